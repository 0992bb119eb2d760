"""Arrays by name from their source: ``.npz`` files, and the data sets that scikit-learn ships."""

import hashlib
import os
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from proj.data.tabular.memory import VARIABLE, check_memory, requested_limit
from proj.data.tabular.row_splits import Fold, row_numbers
from proj.data.tabular.targets import Targets
from proj.errors import UserError, nearest
from proj.schema import SPLITS, Array, Batch, Schema, mean_and_std

BUNDLED = ("breast_cancer", "diabetes", "digits", "iris", "linnerud", "wine")
# A compressed file that unpacks to more than this size and ratio is probably meant to fill memory.
BOMB_SIZE, BOMB_RATIO = 2**30, 200
CHANNELS = (1, 3, 4)  # of images
CHUNK = 2**14  # rows; checks and statistics of all rows at once take more memory


class ArraySource(NamedTuple):
    """Arrays by name: ``x_train``, ``y_train``, and optionally those of val and test.

    With ``weight_train``, the rows of each split have weights.
    """

    arrays: dict[str, Array]
    input_names: tuple[str, ...] = ()
    target_names: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        given: dict[str, tuple[Any, ...] | None],
        input_names: tuple[str, ...],
        target_names: tuple[str, ...],
    ) -> "ArraySource":
        """Return the arrays of ``(x, y)`` or ``(x, y, weight)`` of each split that is given."""
        arrays = {
            f"{axis}_{name}": to_numpy(values)
            for name, pair in given.items()
            if pair is not None
            for axis, values in zip(("x", "y", "weight")[: max(2, len(pair))], pair, strict=True)
        }
        return cls(arrays, input_names, target_names)

    def arrays_for(self, fold: Fold | None) -> dict[str, Array]:
        """Return the arrays by name; a fold replaces the split of its name that the source has."""
        own = f"_{fold[0]}" if fold else None
        return {n: values for n, values in self.arrays.items() if not own or not n.endswith(own)}

    @property
    def splits(self) -> list[str]:
        """The splits that the source has rows of."""
        return [name for name in SPLITS if f"x_{name}" in self.arrays]


def read_source(path: str) -> ArraySource:
    """Return the arrays of an ``.npz`` file or of a data set of scikit-learn."""
    return _load_bundled(path) if path in BUNDLED else _read_npz(path)


def _load_bundled(name: str) -> ArraySource:
    # Importing takes half a second, and other sources do not need it.
    from sklearn import datasets

    bunch = getattr(datasets, f"load_{name}")()
    if name == "digits":
        x = bunch.images.astype(np.uint8)
        return ArraySource({"x_train": x, "y_train": bunch.target}, (), ("class",))
    names = tuple(map(str, bunch.feature_names))
    if name in ("diabetes", "linnerud"):
        targets = tuple(bunch.target_names) if name == "linnerud" else ("progression",)
        y = bunch.target.astype(np.float64)
        return ArraySource({"x_train": bunch.data, "y_train": y}, names, targets)
    y = np.asarray(bunch.target_names)[bunch.target]
    return ArraySource({"x_train": bunch.data, "y_train": y}, names, ("class",))


def _read_npz(path: str) -> ArraySource:
    arrays = load_npz(path)
    listed = ", ".join(arrays) or "none"
    short = ("x", "y", "weight")
    named = {f"{name}_train" if name in short else name: v for name, v in arrays.items()}
    if len(named) < len(arrays):
        raise UserError(
            f"{path}: expected x and y or x_train and y_train, got both; the arrays are {listed}."
        )
    source = ArraySource(named)
    for required in ("x_train", "y_train", *(f"y_{name}" for name in source.splits)):
        if required not in named:
            raise UserError(f"{path}: expected an array named {required}, got {listed}.")
    for name in ("val", "test"):
        if f"y_{name}" in named and f"x_{name}" not in named:
            raise UserError(
                f"{path}: expected an array named x_{name} beside y_{name}, got {listed}."
            )
    valid = [f"{axis}_{name}" for name in SPLITS for axis in ("x", "y", "weight")]
    if unknown := [name for name in named if name not in valid]:
        raise UserError(
            f"{path}: no use for an array named {unknown[0]}.{nearest(unknown[0], valid)}"
        )
    return source


def load_npz(path: str, option: str = "data.path") -> dict[str, Array]:
    """Return all arrays of an ``.npz`` file. Pickled objects are refused."""
    bundled = BUNDLED if option == "data.path" else ()
    if not path.endswith(".npz"):
        sets = " or a data set of scikit-learn" if bundled else ""
        near = nearest(path, bundled)
        raise UserError(f"{option}: expected an .npz file{sets}, got {path}.{near}")
    if not Path(path).is_file():
        folder = Path(path).parent
        siblings = [str(file) for file in folder.glob("*.npz")] if folder.is_dir() else []
        raise UserError(f"{option}: no file {path}.{nearest(path, siblings)}")
    try:
        with zipfile.ZipFile(path) as members:
            size = sum(member.file_size for member in members.infolist())
        _check_size(path, size)
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            # A member that is no array comes as bytes, whose type a check refuses.
            return {name: np.asarray(arrays[name]) for name in arrays.files}
    except UserError:
        raise
    except Exception as error:
        # np.load raises many types for a damaged file.
        hint = "; write text labels with y.astype(str)" if "allow_pickle" in str(error) else ""
        raise UserError(f"{path}: cannot be read as .npz: {str(error)[:200]}{hint}") from error


def _check_size(path: str, size: int) -> None:
    """Raise UserError if the arrays of a file of ``size`` bytes, unpacked, are too large."""
    check_memory(size, path)
    ratio = size / max(1, os.path.getsize(path))
    if size > BOMB_SIZE and ratio > BOMB_RATIO and requested_limit() is None:
        raise UserError(
            f"{path}: expected arrays up to {BOMB_RATIO} times as large as their file, got "
            f"{size / 1e9:.1f} GB, {ratio:.0f} times as much; if this is intended, allow it: "
            f"{VARIABLE}=NUMBER"
        )


def load_inputs(path: str) -> Array:
    """Return ``x`` of an ``.npz`` file whose rows are to be predicted."""
    arrays = load_npz(path, "data.predict_path")
    if "x" not in arrays:
        raise UserError(f"{path}: expected an array named x, got {', '.join(arrays) or 'none'}.")
    return arrays["x"]


def to_inputs(x: Array, what: str) -> Array:
    """Return numbers as float32 [rows, ...], and images as uint8 [rows, channels, height, width].

    Raises UserError for other arrays and for numbers that are not finite; ``what`` names the array.
    """
    if x.ndim < 2 or 0 in x.shape or x.dtype.kind not in "biuf":
        raise UserError(
            f"{what}: expected numbers with a first axis of at least one row, and at least one "
            f"more axis, got {x.dtype} of shape {x.shape}."
        )
    if x.dtype == np.uint8 and x.ndim in (3, 4):
        if x.ndim == 3:
            return np.ascontiguousarray(x[:, None])
        if x.shape[3] in CHANNELS:
            return np.ascontiguousarray(x.transpose(0, 3, 1, 2))
        if x.shape[1] in CHANNELS:
            return np.ascontiguousarray(x)
        raise UserError(
            f"{what}: expected images with 1, 3 or 4 channels first or last, got shape {x.shape}."
        )
    x = np.ascontiguousarray(x, dtype=np.float32)
    finite = np.empty(len(x), bool)
    for start in range(0, len(x), CHUNK):
        rows = x[start : start + CHUNK]
        finite[start : start + CHUNK] = np.isfinite(rows).all(axis=tuple(range(1, x.ndim)))
    if not finite.all():
        raise UserError(
            f"{what}: expected finite numbers, got a missing or infinite one in row "
            f"{int(np.argmin(finite))} ({int((~finite).sum())} rows in all); fill or drop them."
        )
    return x


def check_rows(x: Array, y: Array, split_name: str, where: str) -> None:
    """Raise UserError unless there is a target for each row."""
    if y.shape[:1] != (len(x),):
        raise UserError(
            f"{where}: expected a target for each of the {len(x)} rows of x_{split_name}, got an "
            f"array of shape {y.shape} in y_{split_name}."
        )


def checked_inputs(arrays: dict[str, Array], where: str) -> dict[str, Array]:
    """Return the inputs of each split, of one shape and type."""
    x: dict[str, Array] = {}
    for name in ArraySource(arrays).splits:
        x[name] = to_inputs(arrays[f"x_{name}"], f"{where}: x_{name}")
        check_rows(x[name], arrays[f"y_{name}"], name, where)
        train = x["train"]
        if (x[name].shape[1:], x[name].dtype) != (train.shape[1:], train.dtype):
            raise UserError(
                f"{where}: expected rows of one shape and type, got {train.shape[1:]} "
                f"{train.dtype} in x_train and {x[name].shape[1:]} {x[name].dtype} in x_{name}."
            )
    return x


def hash_arrays(arrays: dict[str, Array]) -> str:
    """Return a SHA-256 of names, types, shapes and content."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].dtype} {arrays[name].shape}".encode())
        digest.update(np.ascontiguousarray(arrays[name]).view(np.uint8).data)
    return digest.hexdigest()


def to_numpy(values: Any) -> Array:
    """Return an array, tensor or list as an array; Python objects become text or numbers."""
    array = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    if array.dtype.kind in "OT":
        array = np.array(array.tolist())
    # torch.from_numpy warns about read-only arrays.
    return array if array.flags.writeable else array.copy()


def encode_rows(rows: Any, schema: Schema) -> Tensor:
    """Return new ``rows`` [rows, ...] as inputs, which must be of the schema's type and shape."""
    rows = np.asarray(rows)
    x = to_inputs(rows, "rows")
    if str(x.dtype) != schema.input_type:
        raise UserError(
            f"expected rows of {schema.input_type}, as in training, got {rows.dtype} of shape "
            f"{rows.shape}; images are uint8 [rows, height, width] or with channels."
        )
    if x.shape[1:] != schema.input_shape:
        raise UserError(
            f"expected rows of shape {schema.input_shape}, as in training, got "
            f"{tuple(x.shape[1:])}; rows of another shape need a model trained on them."
        )
    return torch.from_numpy(x)


def take_rows(values: Array, rows: Array) -> Array:
    """Return some rows of an array, or the array itself if these are all rows."""
    return values if len(rows) == len(values) else values[rows]


def encode_splits(
    x: dict[str, Array],
    y: dict[str, Array],
    rows: dict[str, Array],
    targets: Targets,
    weights: dict[str, Tensor | None],
    schema: Schema,
) -> dict[str, Batch]:
    """Return the rows of each split as a loader takes them, without a copy of whole arrays.

    Args:
        x: inputs of train, and of the splits that the source has.
        y: targets of the same splits.
        rows: rows of each split among those of train, for splits that the source does not have.
        targets: targets of train.
        weights: weights of each split's rows.
        schema: schema of the data.
    """
    splits = {}
    for name in SPLITS:
        inputs, numbers, split_targets = x["train"], rows[name], targets.take(rows[name])
        if name in x and name != "train":
            inputs, numbers = x[name], row_numbers(len(x[name]))
            split_targets = Targets.from_array(y[name], targets.task, (), targets.where)
        encoded = split_targets.encode(schema, name, numbers)
        if encoded.dtype == np.int64 and len(schema.classes) <= 256:
            encoded = encoded.astype(np.uint8)  # Loaders make them int64 again.
        arrays = (take_rows(inputs, numbers), encoded, numbers)
        x_rows, y_rows, row = map(torch.from_numpy, arrays)
        weight = weights[name]
        splits[name] = Batch(x_rows, y_rows, row, () if weight is None else (weight,))
    return splits


def fit_schema(x: Array, target_fields: dict[str, Any], names: tuple[str, ...]) -> Schema:
    """Return the schema of the training split, ``x`` [rows, features or channels, ...]."""
    mean, std = mean_and_std([x[start : start + CHUNK] for start in range(0, len(x), CHUNK)])
    return Schema(
        input_shape=tuple(x.shape[1:]),
        input_type=str(x.dtype),
        input_names=names if len(names) == x.shape[1] else tuple(str(i) for i in range(x.shape[1])),
        input_mean=mean,
        input_std=std,
        rows=len(x),
        columns=(),
        **target_fields,
    )
