"""Tables: CSV, TSV and Parquet files, prepared once and mapped after."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor

from proj.data.base import DataModule, Finding
from proj.data.cache import fingerprint, mapped, place, prepared
from proj.data.splits import Fold
from proj.data.tabular import columns
from proj.data.tabular import files as tables
from proj.data.tabular.columns import Override
from proj.data.tabular.prepare import Preparation
from proj.data.tabular.targets import check_columns, target_names
from proj.data.tabular.write import write_parts
from proj.schema import SPLITS, Batch, Schema, Task


class Tabular(DataModule):
    """A table of numbers, categories and dates, with one target column or several.

    Args:
        path: a .csv, .tsv, .txt or .parquet file, or a glob of such files.
        target: the column to predict, or a list of them.
        test_path: a file or glob whose rows are the test part.
        predict_path: a file or glob that ``predict`` works on, without targets; null means the test part.
        task: what the targets are; null means: one column of text, truth values or at most 20 whole numbers is classes,
            several columns of 0 and 1 are labels, anything else is numbers to predict.
        columns: what a column is, where it is not what it seems: number, category, date, or drop to leave it out.
        batch_size: rows a batch and device; null means all rows of a part at once.
        val_fraction: share of the rows to choose the best epoch on.
        test_fraction: share of the rows kept for ``test``, where there is no ``test_path``.
        group: a column whose equal values stay in one part, such as a customer with several rows.
        time: a column to split by: the latest rows are the test part, those before them the validation part.
        split: a column that says train, val or test of each row.
        split_seed: seed of the split alone, so that runs with different seeds see the same test rows.
        fold: one fold as a part, [test, 0, 5] say: the first of five tests, and what val_fraction says is cut off the rest;
            [val, 0, 5]: the first of five of the rows that are not for testing validates. `cv` sets it.
        shuffle: draw a new order of the training rows each epoch.
        cache_dir: where the prepared arrays are kept.
    """

    def __init__(
        self,
        path: str,
        target: str | list[str],
        test_path: str | None = None,
        predict_path: str | None = None,
        task: Task | None = None,
        columns: dict[str, Override] | None = None,
        batch_size: int | None = 256,
        val_fraction: float = 0.15,
        test_fraction: float = 0.15,
        group: str | None = None,
        time: str | None = None,
        split: str | None = None,
        split_seed: int = 0,
        fold: Fold | None = None,
        shuffle: bool = True,
        cache_dir: str = ".cache/proj",
    ) -> None:
        super().__init__(batch_size, shuffle, predict_path)
        self.path, self.test_path = path, None if fold and fold[0] == "test" else test_path
        self.cache = Path(cache_dir)
        self.preparation = Preparation(
            targets=target_names(target),
            task=task,
            columns=columns or {},
            fractions=(val_fraction, 0.0 if self.test_path else test_fraction),
            by={"group": group, "time": time, "split": split},
            seed=split_seed,
            fold=fold,
        )

    @classmethod
    def encode(cls, rows: Any, schema: Schema) -> dict[str, Tensor]:
        """``rows``, a polars or pandas frame or a dict of columns, as ``x``."""
        frame = (
            tables.without_nan(rows.lazy()).collect()
            if isinstance(rows, pl.DataFrame)
            else tables.from_columns(rows)
        )
        columns.check(frame.lazy(), schema.columns, "rows")
        kinds = {
            "numeric": (schema.numeric, np.float32),
            "categorical": (schema.categorical, np.int32),
        }
        return {
            kind: torch.from_numpy(
                np.column_stack(
                    [frame.select(columns.encode(c)).to_series().to_numpy() for c in some]
                ).astype(dtype)
                if some
                else np.zeros((len(frame), 0), dtype)
            )
            for kind, (some, dtype) in kinds.items()
        }

    def prepare_data(self) -> None:
        if not self._only_new_rows():
            self._folder()

    def setup(self, stage: str) -> None:
        if not self.splits and not self._only_new_rows():
            folder = self._folder()
            self.schema = _schema(folder)
            self.findings = [
                Finding(*found) for found in json.loads((folder / "findings.json").read_text())
            ]
            self.splits = {part: _part(folder, part) for part in SPLITS}
        if stage == "predict" and "predict" not in self.splits:
            self.splits["predict"] = self._to_predict()

    def _folder(self) -> Path:
        """Where the prepared parts are: those of the run's own schema, where there is one already."""
        files, test = self._files("path"), self._files("test_path")
        self.fingerprint = fingerprint([*files, *test], self.cache)
        key = {
            "source": self.fingerprint,
            "files": [len(files), len(test)],
            **self.preparation._asdict(),
        }
        fitted = place(self.cache, key)
        if self.schema is not None and not (fitted.is_dir() and _schema(fitted) == self.schema):
            key["schema"] = self.schema.to_dict()
        return prepared(
            self.cache, key, lambda folder: self.preparation.run(folder, files, test, self.schema)
        )

    def _files(self, option: str) -> list[Path]:
        path = getattr(self, option)
        return [] if path is None else tables.files_of(path, f"data.{option}")

    @property
    def group(self) -> str | None:
        return self.preparation.by["group"]

    def source_columns(self, names: list[str], rows: Any, stage: str) -> pl.DataFrame:
        order = {
            "val": ("path",),
            "test": ("test_path", "path"),
            "predict": ("predict_path", "test_path", "path"),
        }[stage]
        option = next(option for option in order if getattr(self, option) is not None)
        files = self._files(option)
        table = tables.scan(files, text=names)  # in text files, as it stands there
        check_columns(table.collect_schema().names(), names, "--keep", str(files[0]))
        return tables.read(files, table.select(names)).select(pl.all().gather(rows))

    def _to_predict(self) -> Batch:
        assert self.schema is not None
        schema = self.schema
        if self.predict_path is None:
            return self.splits["test"]._replace(y=None)
        files = self._files("predict_path")

        def build(folder: Path) -> None:
            table = tables.parsed(files, folder, schema.text_sources)
            columns.check(table, schema.columns, str(files[0]))
            write_parts(folder, files, table, schema, None, ("predict",))
            for parsed in folder.glob("*.parquet"):
                parsed.unlink()

        key = {"predict": fingerprint(files, self.cache), "schema": schema.to_dict()}
        return _part(prepared(self.cache, key, build), "predict")


def _schema(folder: Path) -> Schema:
    return Schema.from_dict(json.loads((folder / "schema.json").read_text()))


def _part(folder: Path, part: str) -> Batch:
    arrays = {
        kind: folder / f"{part}_{kind}.npy" for kind in ("numeric", "categorical", "y", "row")
    }
    y = mapped(arrays["y"]) if arrays["y"].exists() else None
    return Batch(
        {kind: mapped(arrays[kind]) for kind in ("numeric", "categorical")},
        y,
        mapped(arrays["row"]),
    )
