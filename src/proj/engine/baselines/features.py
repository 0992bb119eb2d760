"""Matrices for standard learners, from the splits of a data module."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from proj.errors import UserError
from proj.schema import Array, Batch, Schema

# Images are scaled down to at most this height and width.
MAX_PIXELS = 32
# Images that are scaled down at once.
CHUNK = 4096
# Categories with fewer training rows share one column with unknown ones in a linear model.
MIN_CATEGORY_ROWS = 10
# HistGradientBoosting takes at most 255 categories. One stands for all that are not kept.
MAX_CATEGORIES = 254
# The code of a missing value, and that of rare and unknown categories; see ``Column.categories``.
MISSING_CODE, OTHER_CODE = 0, 1


@dataclass(frozen=True)
class Features:
    """The inputs of a split as matrices.

    Attributes:
        numbers: float32 or uint8 [rows, numbers], NaN where a value is missing.
        codes: integer codes of categories [rows, categories]; see ``Column.categories``.
    """

    numbers: Array
    codes: Array

    def __len__(self) -> int:
        return len(self.numbers)


def features_of(batch: Batch, schema: Schema) -> Features:
    """Return the inputs of a split: those of the net, but images of at most 32 by 32 pixels.

    Raises UserError for inputs that are neither a tensor nor the columns of a table.
    """
    x = batch.x
    if isinstance(x, Tensor):
        pixels = _small_images(x) if is_image(schema) else x
        numbers = pixels.reshape(len(pixels), -1).numpy()
        return Features(numbers, np.zeros((len(numbers), 0), np.int32))
    if not isinstance(x, dict) or set(x) != {"numeric", "categorical"}:
        got = f"inputs {', '.join(x)}" if isinstance(x, dict) else f"{len(x)} inputs"
        raise UserError(
            f"baseline: expected one array, or a table of numbers and categories, got {got}; use a "
            "data module of this package."
        )
    return Features(x["numeric"].numpy(), x["categorical"].numpy())


def is_image(schema: Schema) -> bool:
    return schema.input_type == "uint8" and len(schema.input_shape) == 3


def is_flat(schema: Schema) -> bool:
    """Return whether rows are columns of a table or plain features, in no spatial order."""
    return bool(schema.columns) or len(schema.input_shape) == 1


def _small_images(x: Tensor) -> Tensor:
    """Return images [rows, channels, height, width] with sides of at most ``MAX_PIXELS``."""
    height, width = x.shape[2:]
    if max(height, width) <= MAX_PIXELS:
        return x
    size = (min(height, MAX_PIXELS), min(width, MAX_PIXELS))
    parts = (x[start : start + CHUNK] for start in range(0, len(x), CHUNK))
    return torch.cat([adaptive_avg_pool2d(part.float(), size) for part in parts])


class LinearEncoder:
    """Scaled numbers and one-hot categories, fitted on the training split.

    A missing number is replaced by the median, and has a column that tells so. Numbers have mean 0
    and standard deviation 1. Each category is a column, also that of missing values; those with
    fewer than ``MIN_CATEGORY_ROWS`` training rows share one with unknown ones.
    """

    def __init__(self, train: Features) -> None:
        numbers = train.numbers.shape[1]
        parts = [
            ("numbers", _scaled_numbers(), slice(0, numbers)),
            ("categories", _one_hot(), slice(numbers, None)),
        ]
        counts = (numbers, train.codes.shape[1])
        self.columns = ColumnTransformer(
            [part for part, count in zip(parts, counts, strict=True) if count]
        )
        self.columns.fit(_stacked(train, np.float64))

    def __call__(self, features: Features) -> Any:
        """Return a matrix [rows, columns], sparse if most of it is zero."""
        return self.columns.transform(_stacked(features, np.float64))


def _scaled_numbers() -> Any:
    imputer = SimpleImputer(strategy="median", add_indicator=True, keep_empty_features=True)
    return make_pipeline(imputer, StandardScaler())


def _one_hot() -> Any:
    return OneHotEncoder(handle_unknown="infrequent_if_exist", min_frequency=MIN_CATEGORY_ROWS)


class TreeEncoder:
    """Numbers with NaN for missing values, followed by the codes of categories.

    Of a column with more than ``MAX_CATEGORIES`` categories, the most frequent ones of the training
    split are kept. Codes are renumbered from 0 in ascending order; NaN stands for a missing value.

    Attributes:
        categories: whether a column holds codes [columns].
        counts: the number of codes of each column of categories [categories].
    """

    def __init__(self, train: Features) -> None:
        self.kept = [_frequent_codes(column) for column in train.codes.T]
        self.counts = [len(kept) + 1 for kept in self.kept]
        numbers = train.numbers.shape[1]
        self.categories = np.arange(numbers + len(self.kept)) >= numbers

    def __call__(self, features: Features) -> Array:
        """Return a matrix of float32 [rows, columns]."""
        matrix = np.empty((len(features), len(self.categories)), np.float32)
        first = features.numbers.shape[1]
        matrix[:, :first] = features.numbers
        for i, (kept, codes) in enumerate(zip(self.kept, features.codes.T, strict=True)):
            matrix[:, first + i] = _renumbered(codes, kept)
        return matrix


def _frequent_codes(codes: Array) -> Array:
    """Return the most frequent codes of categories in ascending order."""
    found, counts = np.unique(codes, return_counts=True)
    is_category = (found != MISSING_CODE) & (found != OTHER_CODE)
    found, counts = found[is_category], counts[is_category]
    # Of categories with equal counts, the first ones are kept.
    frequent = np.argsort(-counts, kind="stable")[: MAX_CATEGORIES - 1]
    return np.sort(found[frequent])


def _renumbered(codes: Array, kept: Array) -> Array:
    """Return 1, 2, … for the codes that are kept, 0 for others, and NaN for missing values."""
    position = np.searchsorted(kept, codes)
    is_kept = np.isin(codes, kept)
    return np.where(codes == MISSING_CODE, np.nan, np.where(is_kept, position + 1, 0))


def _stacked(features: Features, dtype: type) -> Array:
    return np.hstack([features.numbers, features.codes], dtype=dtype)
