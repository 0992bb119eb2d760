"""Data module for images: folders of files, and arrays, decoded once and memory-mapped."""

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import PIL
import torch
from lightning.pytorch.utilities import rank_zero_warn
from PIL import Image
from torch import Tensor

from proj.data.base import DataModule
from proj.data.images.augment import augment
from proj.data.images.decode import DRAFT, MAX_PIXELS, RESAMPLE, AnyImage, Shape, decode
from proj.data.images.experiment import experiment_values, scaled_size, val_share
from proj.data.images.prepare import (
    CHANNEL_NAMES,
    ImagePlan,
    PreparedImages,
    common_shape,
    prepare_images,
)
from proj.data.images.sources import (
    ImageSet,
    check_unchanged,
    hash_source,
    list_folder,
    read_images,
    to_images,
)
from proj.data.tabular.array_source import read_source
from proj.data.tabular.cache import build_once
from proj.data.tabular.positive import check_positive, find_positive
from proj.data.tabular.row_splits import Fold
from proj.data.tabular.targets import Targets
from proj.errors import UserError
from proj.schema import SPLITS, Batch, Label, Schema, Task

if TYPE_CHECKING:
    # Importing polars takes half a second, and only predictions need it.
    import polars as pl

CHANNELS = {"grey": 1, "rgb": 3}


class Images(DataModule):
    """Images in a folder for each class, or in an ``.npz`` file.

    They are decoded once, into a cache that all runs share. It is memory-mapped, so a data set may
    be larger than the memory.

    Args:
        path: ``PATH/CLASS/…``, or ``PATH/train/CLASS/…`` with optional ``PATH/val`` and
            ``PATH/test``, of image files; or an ``.npz`` file with ``x_train`` and
            ``y_train`` (or ``x`` and ``y``) and optional ``x_val``, ``y_val``, ``x_test``,
            ``y_test``, uint8 [rows, height, width] or with channels.
        predict_path: a folder of images, or an ``.npz`` file with ``x``, for ``predict``; null
            means the test split. The row of an image is its position among the sorted names.
        task: the task of the targets of an ``.npz`` file; null infers it from their values. Folders
            are classes.
        positive: the positive class of two, whose precision, recall and F1 are computed; null
            means yes, true or 1 against no, false or 0, else the rarer class.
        size: height and width that all images are scaled to, or one number for both; null keeps
            the size of the images, which must then be equal.
        channels: grey or rgb; auto means grey if all images are grey, else rgb.
        skip_unreadable: whether to leave damaged images out, with a warning. Otherwise they are an
            error.
        flip: whether to flip training images left to right at random; not for text, or where left
            and right differ in meaning.
        crop: largest random shift of training images in pixels; an eighth of the size is large.
        erase: probability that a random rectangle of a training image is erased.
        batch_size: rows per batch and device; null means all rows of a split in one batch.
        val_fraction: share of the rows for validation, if the source has no val split.
        test_fraction: share of the rows for ``test``, if the source has no test split.
        split_seed: seed of the split only, so that runs with different seeds have the same test
            rows.
        fold: one fold as a split. [test, 0, 5] tests on the first of five folds and takes
            val_fraction off the rest; [val, 0, 5] validates on the first of five folds of the rows
            that are not test rows. `cv` sets it.
        shuffle: whether the training rows get a new order in each epoch.
        cache_dir: folder of the decoded images; it may be deleted at any time.
    """

    def __init__(
        self,
        path: str,
        predict_path: str | None = None,
        task: Task | None = None,
        positive: Label | None = None,
        size: int | tuple[int, int] | None = None,
        channels: Literal["auto", "grey", "rgb"] = "auto",
        skip_unreadable: bool = False,
        flip: bool = True,
        crop: int = 2,
        erase: float = 0.0,
        batch_size: int | None = 128,
        val_fraction: float = 0.15,
        test_fraction: float = 0.15,
        split_seed: int = 0,
        fold: Fold | None = None,
        shuffle: bool = True,
        cache_dir: str = f".cache/{__name__.partition('.')[0]}",
    ) -> None:
        super().__init__(batch_size, shuffle, predict_path)
        self.path, self.task, self.positive, self.fold = path, task, positive, fold
        self.size = (size, size) if isinstance(size, int) else size
        self.channels, self.skip_unreadable = CHANNELS.get(channels), skip_unreadable
        self.flip, self.crop, self.erase = flip, crop, erase
        self.val_fraction, self.test_fraction = val_fraction, test_fraction
        self.split_seed = split_seed
        self.cache = Path(cache_dir)
        # For each split of a folder, the file of each row number.
        self.files: dict[str, list[str]] = {}

    @classmethod
    def for_source(
        cls, path: str, target: str | list[str] | None, task: Task | None
    ) -> "Images | None":
        if not Path(path).is_dir() and not path.endswith(".npz"):
            return None
        if next(Path(path).glob("*.parquet"), None):
            raise UserError(
                f"DATA: expected a folder of images, got one of Parquet files, {path}; name the "
                f"files, as in '{path}/*.parquet', or write an experiment with ParquetStream if "
                "they are larger than memory."
            )
        if target or task:
            raise UserError(
                "--target, --task: expected neither for images, got one; leave it out, because the "
                "class of an image is its folder, or a value of y."
            )
        images = read_images(path, list_folder(path, predict=False), predict=False)
        return cls(path, size=scaled_size(images), val_fraction=val_share(images))

    def experiment_template(self, path: str) -> tuple[Path, dict[str, Any]]:
        assert self.schema is not None
        template = Path(__file__).parent / "templates" / "experiment.yaml.j2"
        size = self.size[0] if self.size else None
        return template, experiment_values(path, self.schema, size, self.val_fraction)

    @classmethod
    def encode(cls, rows: Any, schema: Schema) -> Tensor:
        """Return ``rows`` as ``x``, grey or RGB and scaled as in training.

        ``rows`` is a list of files or of PIL images, or uint8 [rows, height, width] or with
        channels.
        """
        images = _image_list(rows)
        x = np.empty((len(images), *schema.input_shape), np.uint8)
        if failures := decode(images, x, resize=True):
            i = min(failures)
            name = images[i] if isinstance(images[i], Path) else f"row {i}"
            raise UserError(
                f"rows: {len(failures)} of {len(images)} images cannot be read "
                f"({name}: {failures[i]}); repair or remove them."
            )
        return torch.from_numpy(x)

    def prepare_data(self) -> None:
        if not self._only_new_rows():
            self._prepare(self.path)
        elif self.predict_path:
            self._prepare(self.predict_path, predict=True)

    def setup(self, stage: str) -> None:
        if not self.splits and not self._only_new_rows():
            self._setup_splits()
        if stage == "predict" and "predict" not in self.splits:
            self._setup_predict()

    @property
    def id_columns(self) -> list[str]:
        return ["file"] if any(self.files.values()) else []

    def source_columns(self, names: list[str], rows: Any, split: str) -> "pl.DataFrame":
        # Importing takes half a second, and only predictions need it.
        import polars as pl

        files = self.files[split]
        if names != ["file"] or not files:
            raise UserError(
                f"--keep: expected file, for images from a folder, got {', '.join(names)}."
            )
        return pl.DataFrame({"file": [files[row] for row in rows]})

    @classmethod
    def describe_inputs(cls, schema: Schema) -> dict[str, Any]:
        channels, height, width = schema.input_shape
        return {
            "kind": "images",
            "channels": channels,
            "height": height,
            "width": width,
            "resample": RESAMPLE.name.lower(),
            "draft": DRAFT,
            "max_pixels": MAX_PIXELS,
        }

    def raw_rows(self, rows: Any, split: str) -> Any:
        """Return files, or of an ``.npz`` file the arrays."""
        if files := self.files[split]:
            return [Path(self.path) / files[row] for row in rows]
        arrays = read_source(self.path).arrays
        own = "" if self.fold and self.fold[0] == split else f"x_{split}"
        return arrays.get(own, arrays["x_train"])[rows]

    @property
    def augmentation(self) -> partial[Tensor]:
        """The function of ``x`` that augments a training batch."""
        return partial(augment, flip=self.flip, crop=self.crop, erase=self.erase)

    def augment_batch(self, batch: Batch) -> Batch:
        assert isinstance(batch.x, Tensor)
        return batch._replace(x=self.augmentation(batch.x))

    def _prepare(self, path: str, predict: bool = False) -> PreparedImages:
        """Return the decoded images of ``path``, from the cache if it has them."""
        listing = list_folder(path, predict)
        source_hash = hash_source(path, listing, self.cache)
        read = cache(lambda: read_images(path, listing, predict))
        shape = self._shape(source_hash, read)
        self._check_options(shape)
        plan = ImagePlan(
            shape,
            self.size is not None,
            self.skip_unreadable,
            self.task,
            self.val_fraction,
            self.test_fraction,
            self.split_seed,
            self.fold,
        )
        key = {"source": source_hash, "predict": predict, "pillow": PIL.__version__, **asdict(plan)}
        key["classes"] = "the positive one is last"  # Prepared images of older versions differ.

        def build(folder: Path) -> None:
            prepare_images(folder, read(), plan, path)
            check_unchanged(path, listing, self.cache, source_hash)

        return PreparedImages(build_once(self.cache, key, build), listing, source_hash)

    def _shape(self, source_hash: str, read: Callable[[], ImageSet]) -> Shape:
        """Return the shape of one row, from the schema, the options or the images themselves."""
        if self.schema is not None:
            return self.schema.input_shape
        if self.size and self.channels:
            return self.channels, *self.size

        def write_shape(folder: Path) -> None:
            shape = common_shape(read(), self.size, self.channels, self.skip_unreadable)
            (folder / "shape").write_text(json.dumps(shape), encoding="utf-8")

        key = {
            "source": source_hash,
            "size": self.size,
            "channels": self.channels,
            "skip": self.skip_unreadable,
        }
        folder = build_once(self.cache, key, write_shape)
        return tuple(json.loads((folder / "shape").read_text(encoding="utf-8")))

    def _check_options(self, shape: Shape) -> None:
        if len(shape) != 3 or shape[0] not in CHANNEL_NAMES:
            raise UserError(
                f"data: expected a model trained on images, got one for rows of shape {shape}."
            )
        if self.size is not None and (min(self.size) < 1 or shape[1:] != tuple(self.size)):
            expected = f"{list(shape[1:])}, as in training" if self.schema else "numbers from 1"
            raise UserError(f"data.size: expected {expected}, got {list(self.size)}.")
        if not 0 <= self.crop < min(shape[1:]):
            raise UserError(
                f"data.crop: expected pixels from 0 to {min(shape[1:]) - 1}, less than the size of "
                f"an image, got {self.crop}."
            )
        if not 0 <= self.erase <= 1:
            raise UserError(f"data.erase: expected a probability from 0 to 1, got {self.erase}.")

    def _setup_splits(self) -> None:
        prepared = self._prepare(self.path)
        self.fingerprint, self.findings = prepared.source_hash, prepared.findings
        schema = self.schema or self._fitted_schema(prepared)
        check_positive(self.positive, schema)
        self.schema = schema
        task = self.task or self._infer_task(prepared)
        for split in SPLITS:
            targets = Targets.from_array(prepared.load("y", split), task, (), self.path)
            y = targets.encode(schema, split, prepared.load("row", split))
            self.splits[split] = prepared.batch(split, torch.from_numpy(y))
            self.files[split] = prepared.names

    def _fitted_schema(self, prepared: PreparedImages) -> Schema:
        """Return the schema of the training images, with the class of data.positive as the last."""
        schema, stated = Schema.from_dict(prepared.facts["schema"]), self.positive
        names = schema.classes
        if stated is None or find_positive(stated, schema.task, names) != names[0]:
            return schema
        return replace(schema, classes=names[::-1], class_counts=schema.class_counts[::-1])

    def _infer_task(self, prepared: PreparedImages) -> Task:
        """Return the task that the training targets suggest; other splits may lack classes."""
        return Targets.from_array(prepared.load("y", "train"), None, (), self.path).task

    def _setup_predict(self) -> None:
        if self.predict_path is None:
            self.splits["predict"] = self.splits["test"]._replace(y=None, weights=())
            self.files["predict"] = self.files["test"]
            return
        prepared = self._prepare(self.predict_path, predict=True)
        self.splits["predict"], self.files["predict"] = (
            prepared.batch("predict", None),
            prepared.names,
        )
        for finding in prepared.findings:
            rank_zero_warn(str(finding))


def _image_list(rows: Any) -> list[AnyImage]:
    """Return rows to predict as a list. Raises UserError for other types."""
    if isinstance(rows, np.ndarray | Tensor):
        return list(to_images(np.asarray(rows), "rows"))
    is_list = isinstance(rows, list | tuple) and len(rows) > 0
    if not is_list or not all(isinstance(row, str | Path | Image.Image) for row in rows):
        got = type(rows[0] if is_list else rows).__name__
        raise UserError(
            f"rows: expected a list of files or of PIL images, or an array of uint8, got {got}."
        )
    return [Path(row) if isinstance(row, str) else row for row in rows]
