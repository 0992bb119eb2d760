"""Folders of pictures, and arrays of them, as a data module."""

import json
from collections.abc import Callable
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import PIL
import torch
from lightning.pytorch.utilities import rank_zero_warn
from PIL import Image
from torch import Tensor

from proj.data.base import DataModule
from proj.data.cache import prepared
from proj.data.images import sources
from proj.data.images.augment import augment
from proj.data.images.decode import Picture, Shape, decode
from proj.data.images.prepare import COLOURS, Plan, Prepared, prepare, shape_of
from proj.data.splits import Fold
from proj.data.targets import Targets
from proj.errors import UserError
from proj.schema import SPLITS, Batch, Schema, Task

if TYPE_CHECKING:
    import polars as pl

CHANNELS = {"grey": 1, "rgb": 3}


class Images(DataModule):
    """Pictures in a folder for each class, or in an ``.npz`` file.

    They are decoded once, into a cache that all runs share and that is mapped, not loaded: a set may be larger than memory.

    Args:
        path: ``PATH/CLASS/…``, or ``PATH/train/CLASS/…`` with ``PATH/val`` and ``PATH/test`` where there are such, of files
            that Pillow reads; or an ``.npz`` file with ``x_train`` and ``y_train`` (or ``x`` and ``y``) and optional
            ``x_val``, ``y_val``, ``x_test``, ``y_test``, uint8 [rows, height, width] or with channels.
        predict_path: a folder of pictures, or an ``.npz`` file with ``x``, for ``predict``; null means the test part. A
            picture's row is its place among all names in sorted order.
        task: what the targets of an ``.npz`` file are; null means what they suggest. Folders are classes.
        size: height and width that all pictures are scaled to, one number if they are equal; null: as the pictures are,
            which must be alike then.
        channels: grey or rgb; auto: grey if all pictures are, else rgb.
        skip_unreadable: leave damaged pictures out, with a warning, where they would be an error.
        flip: mirror training pictures left to right by chance; not for writing, or where the side means something.
        crop: shift training pictures by up to so many pixels; an eighth of the size is much.
        erase: probability that a rectangle of a training picture is blotted out.
        batch_size: rows a batch and device; null means all rows of a part at once.
        val_fraction: share of the rows to choose the best epoch on, where the source has no val part.
        test_fraction: share of the rows kept for ``test``, where the source has no test part.
        split_seed: seed of the split alone, so that runs with different seeds see the same test rows.
        fold: one fold as a part, [test, 0, 5] say: the first of five tests, and what val_fraction says is cut off the rest;
            [val, 0, 5]: the first of five of the rows that are not for testing validates. `cv` sets it.
        shuffle: draw a new order of the training rows each epoch.
        cache_dir: folder of decoded pictures; it may be deleted at any time.
    """

    def __init__(
        self,
        path: str,
        predict_path: str | None = None,
        task: Task | None = None,
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
        self.path, self.task = path, task
        self.size = (size, size) if isinstance(size, int) else size
        self.channels, self.skip_unreadable = CHANNELS.get(channels), skip_unreadable
        self.flip, self.crop, self.erase = flip, crop, erase
        self.val_fraction, self.test_fraction, self.split_seed, self.fold = (
            val_fraction,
            test_fraction,
            split_seed,
            fold,
        )
        self.cache = Path(cache_dir)
        self.files: dict[
            str, list[str]
        ] = {}  # by stage: the file of each row number, for pictures from a folder

    @classmethod
    def encode(cls, rows: Any, schema: Schema) -> Tensor:
        """``rows``, a list of files or of PIL images or uint8 [rows, height, width] or with channels, as ``x``.

        All are made grey or RGB, and scaled, to what the model was trained on.
        """
        if isinstance(rows, np.ndarray | Tensor):
            rows = sources.to_pictures(np.asarray(rows), "rows")
        elif (
            not isinstance(rows, list | tuple)
            or not rows
            or not all(isinstance(row, str | Path | Image.Image) for row in rows)
        ):
            got = type(rows[0] if isinstance(rows, list | tuple) and rows else rows).__name__
            raise UserError(
                f"rows: expected a list of files or of PIL images, or an array of uint8, got {got}."
            )
        items: list[Picture] = [Path(row) if isinstance(row, str) else row for row in rows]
        x = np.empty((len(items), *schema.input_shape), np.uint8)
        if failed := decode(items, x, resize=True):
            i = min(failed)
            name = items[i] if isinstance(items[i], Path) else f"row {i}"
            raise UserError(
                f"rows: {len(failed)} of {len(items)} pictures cannot be read ({name}: {failed[i]})."
            )
        return torch.from_numpy(x)

    def prepare_data(self) -> None:
        if not self._only_new_rows():
            self._prepared(self.path)
        elif self.predict_path:
            self._prepared(self.predict_path, predict=True)

    def setup(self, stage: str) -> None:
        if not self.splits and not self._only_new_rows():
            self._setup_all()
        if stage == "predict" and "predict" not in self.splits:
            self._setup_predict()

    @property
    def id_columns(self) -> list[str]:
        return ["file"] if any(self.files.values()) else []

    def source_columns(self, names: list[str], rows: Any, stage: str) -> "pl.DataFrame":
        import polars as pl

        files = self.files[stage]
        if names != ["file"] or not files:
            raise UserError(
                f"--keep: expected file, for pictures from a folder, got {', '.join(names)}."
            )
        return pl.DataFrame({"file": [files[row] for row in rows]})

    def augment_batch(self, batch: Batch) -> Batch:
        assert isinstance(batch.x, Tensor)
        return batch._replace(x=augment(batch.x, self.flip, self.crop, self.erase))

    # From source to parts

    def _prepared(self, path: str, predict: bool = False) -> Prepared:
        """What was decoded of ``path``, now or in an earlier run."""
        listing = sources.folder_of(path, predict)
        source = sources.identity(path, listing, self.cache)
        read = cache(lambda: sources.pictures_of(path, listing, predict))
        shape = self._shape(source, read)
        self._check(shape)
        plan = Plan(
            shape,
            self.size is not None,
            self.skip_unreadable,
            self.task,
            self.val_fraction,
            self.test_fraction,
            self.split_seed,
            self.fold,
        )
        key = {"source": source, "predict": predict, "pillow": PIL.__version__, **asdict(plan)}
        done = prepared(self.cache, key, lambda folder: prepare(folder, read(), plan, path))
        return Prepared(done, listing, source)

    def _shape(self, source: str, read: Callable[[], sources.Pictures]) -> Shape:
        if self.schema is not None:
            return self.schema.input_shape
        if self.size and self.channels:
            return self.channels, *self.size

        def look(folder: Path) -> None:
            shape = shape_of(read(), self.size, self.channels, self.skip_unreadable)
            (folder / "shape").write_text(json.dumps(shape))

        key = {
            "source": source,
            "size": self.size,
            "channels": self.channels,
            "skip": self.skip_unreadable,
        }
        return tuple(json.loads((prepared(self.cache, key, look) / "shape").read_text()))

    def _check(self, shape: Shape) -> None:
        if len(shape) != 3 or shape[0] not in COLOURS:
            raise UserError(
                f"data: expected a model that was trained on pictures, got one for rows of shape {shape}."
            )
        if self.size is not None and (min(self.size) < 1 or shape[1:] != tuple(self.size)):
            wanted = f"{list(shape[1:])}, as in training" if self.schema else "numbers from 1 up"
            raise UserError(f"data.size: expected {wanted}, got {list(self.size)}.")
        if not 0 <= self.crop < min(shape[1:]):
            raise UserError(
                f"data.crop: expected pixels from 0 to {min(shape[1:]) - 1}, less than a picture has, "
                f"got {self.crop}."
            )
        if not 0 <= self.erase <= 1:
            raise UserError(f"data.erase: expected a probability from 0 to 1, got {self.erase}.")

    def _setup_all(self) -> None:
        done = self._prepared(self.path)
        self.fingerprint, self.findings = done.source, done.findings
        self.schema = self.schema or Schema.from_dict(done.facts["schema"])
        targets = Targets(done.load("y", "train"), self.task, (), self.path)
        for stage in SPLITS:
            y = targets.encode(done.load("y", stage), self.schema, stage, done.load("row", stage))
            self.splits[stage] = done.part(stage, torch.from_numpy(y))
            self.files[stage] = done.names

    def _setup_predict(self) -> None:
        if self.predict_path is None:
            self.splits["predict"], self.files["predict"] = (
                self.splits["test"]._replace(y=None),
                self.files["test"],
            )
            return
        done = self._prepared(self.predict_path, predict=True)
        self.splits["predict"], self.files["predict"] = done.part("predict", None), done.names
        for finding in done.findings:
            rank_zero_warn(str(finding))
