"""Data module for tables: CSV, TSV and Parquet files, prepared once and memory-mapped."""

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from proj.data.base import DataModule, split_names
from proj.data.tabular.cache import build_once, entry_folder, is_complete, map_array, save_array
from proj.data.tabular.columns import encode_column
from proj.data.tabular.description import describe, plain_values
from proj.data.tabular.experiment import experiment_values
from proj.data.tabular.files import (
    SUFFIXES,
    Source,
    by_name,
    check_names,
    collect_table,
    list_files,
    open_table,
    read_names,
    suffix_of,
)
from proj.data.tabular.fingerprint import check_unchanged, fingerprint
from proj.data.tabular.hints import Candidate, read_candidates
from proj.data.tabular.overrides import OverrideKind, StatedColumn, parse_overrides
from proj.data.tabular.prepare import TablePlan, prepare_new_rows, prepare_table
from proj.data.tabular.row_hashes import columns_of_text, hash_rows
from proj.data.tabular.row_splits import Fold
from proj.data.tabular.rows import to_frame
from proj.data.tabular.text_encoder import TextEncoder, fill_scores
from proj.data.tabular.typed import conform
from proj.errors import UserError
from proj.schema import SPLITS, Array, Batch, Finding, Label, Schema, Task

# The options that name the files of a split, in order of preference.
SOURCES = {
    "train": ("path",),
    "val": ("path",),
    "test": ("test_path", "path"),
    "predict": ("predict_path", "test_path", "path"),
}


class Tabular(DataModule):
    """A table of numbers, categories, dates and texts, with one target column or several.

    Args:
        path: a table in text (.csv, .tsv, .txt, also compressed), .parquet, JSON lines (.json) or
            Excel (.xlsx), or a glob of such files.
        target: the column to predict, or a list of columns.
        test_path: a file or glob whose rows are the test split.
        predict_path: a file or glob for ``predict``, without targets; null means the test split.
        task: the task of the targets; null infers it: one column of text, booleans or at most 20
            different integers holds classes, several columns of 0 and 1 hold labels, and other
            columns hold numbers to predict.
        positive: the positive class of two, whose precision, recall and F1 are computed; null
            means yes, true or 1 against no, false or 0, else the rarer class.
        columns: the kind of a column, if the inferred one is wrong: number, category, date, text,
            or drop to leave it out. {kind: date, format: "%d/%m/%Y"} states a form as well, and
            {kind: number, format: "1.234,5"} decimal commas.
        text_encoder: a pretrained encoder, such as Model2Vec, for one more score of each text.
        batch_size: rows per batch and device; null means all rows of a split in one batch.
        val_fraction: share of the rows for validation.
        test_fraction: share of the rows for ``test``, if there is no ``test_path``.
        group: a column whose equal values stay in one split, such as a customer with several rows.
        time: a column to split by: the latest rows are the test split, the rows before them the
            validation split.
        split: a column with train, val or test for each row. Without val, validation rows are
            taken from the training rows by val_fraction.
        weight: a column of numbers from 0, the weight of each row in loss, metrics and baselines.
            It is no input.
        split_seed: seed of the split only, so that runs with different seeds have the same test
            rows.
        fold: one fold as a split. [test, 0, 5] tests on the first of five folds and takes
            val_fraction off the rest; [val, 0, 5] validates on the first of five folds of the rows
            that are not test rows. `cv` sets it.
        shuffle: whether the training rows get a new order in each epoch.
        cache_dir: folder of the prepared arrays; it may be deleted at any time.
    """

    def __init__(
        self,
        path: str,
        target: str | list[str],
        test_path: str | None = None,
        predict_path: str | None = None,
        task: Task | None = None,
        positive: Label | None = None,
        columns: dict[str, OverrideKind | StatedColumn] | None = None,
        text_encoder: TextEncoder | None = None,
        batch_size: int | None = 256,
        val_fraction: float = 0.15,
        test_fraction: float = 0.15,
        group: str | None = None,
        time: str | None = None,
        split: str | None = None,
        weight: str | None = None,
        split_seed: int = 0,
        fold: Fold | None = None,
        shuffle: bool = True,
        cache_dir: str = ".cache/proj",
    ) -> None:
        super().__init__(batch_size, shuffle, predict_path)
        # A fold replaces the test split that the source has.
        self.path, self.test_path = path, None if fold and fold[0] == "test" else test_path
        self.cache = Path(cache_dir)
        # The files that are prepared and their fingerprint, by the option that names them.
        self.prepared: dict[str, tuple[list[Path], str]] = {}
        # Columns that the rows are split by, or could be.
        self.candidates: list[Candidate] = []
        targets = [target] if isinstance(target, str) else target
        if not targets or len(set(targets)) < len(targets):
            raise UserError(
                f"data.target: expected one column or several different ones, got {target}."
            )
        self.plan = TablePlan(
            targets=targets,
            task=task,
            positive=positive,
            columns=parse_overrides(columns),
            val_fraction=val_fraction,
            test_fraction=0.0 if self.test_path else test_fraction,
            split_by={"group": group, "time": time, "split": split},
            split_seed=split_seed,
            fold=fold,
            weight=weight,
            text_encoder=text_encoder,
        )

    @classmethod
    def for_source(
        cls, path: str, target: str | list[str] | None, task: Task | None
    ) -> "Tabular | None":
        if Path(path).expanduser().is_dir() or suffix_of(Path(path)) not in SUFFIXES:
            return None
        names = read_names(list_files(path, "DATA"))
        if target is None:
            raise UserError(
                f"--target: expected a column of {path}, got none; it has {', '.join(names[:30])}."
            )
        # A target with a comma in its name is not a list of targets.
        if isinstance(target, str) and target not in names:
            target = split_names(target, "--target")
        return cls(path, target, task=task)

    def split_by(self, option: str, column: str) -> "Tabular":
        """Return the data module for the same source whose option group or time is a column."""
        other = copy.copy(self)
        other.plan = replace(self.plan, split_by={**self.plan.split_by, option: column})
        other.splits, other.schema, other.findings, other.candidates = {}, None, [], []
        return other

    def experiment_template(self, path: str) -> tuple[Path, dict[str, Any]]:
        assert self.schema is not None
        template = Path(__file__).parent / "templates" / "experiment.yaml.j2"
        by = self.plan.split_by
        return template, experiment_values(self.plan.targets, self.schema, self.findings, by)

    @classmethod
    def encode(
        cls, rows: Any, schema: Schema, text_encoder: TextEncoder | None = None
    ) -> dict[str, Tensor]:
        """Return rows as ``x``.

        They are a polars or pandas frame, a dict of columns, a list of dicts, or one row as a dict.
        """
        if isinstance(rows, list) and not rows:
            rows = {column.source: [] for column in schema.columns}
        source = Source(Path("rows"), to_frame(rows).lazy())
        table, findings = conform(source, schema.columns, "rows", has_words=True)
        for finding in findings:
            rank_zero_warn(str(finding))
        frame = table.select(
            map(by_name, dict.fromkeys(c.source for c in schema.columns))
        ).collect()
        inputs = {}
        for kind, columns, dtype in (
            ("numeric", schema.numeric, np.float32),
            ("categorical", schema.categorical, np.int32),
        ):
            x = np.empty((len(frame), len(columns)), dtype)
            # In one query, which finds the words of a text once for all inputs made from them.
            query = (encode_column(c).alias(str(i)) for i, c in enumerate(columns))
            encoded = fill_scores(frame.lazy().select(query).collect(), columns, text_encoder)
            for i, values in enumerate(encoded):
                x[:, i] = values.to_numpy()
            inputs[kind] = torch.from_numpy(x)
        return inputs

    def prepare_data(self) -> None:
        if not self._only_new_rows():
            self._prepare()

    def setup(self, stage: str) -> None:
        if not self.splits and not self._only_new_rows():
            folder = self._prepare()
            self.schema = _read_schema(folder)
            self.findings = _read_findings(folder)
            self.candidates = read_candidates(folder)
            self.splits = {split: _map_split(folder, split) for split in SPLITS}
        if stage == "predict" and "predict" not in self.splits:
            self.splits["predict"] = self._predict_rows()

    @property
    def positive(self) -> Label | None:
        return self.plan.positive

    @property
    def group(self) -> str | None:
        return self.plan.split_by["group"]

    @property
    def left_out_columns(self) -> list[str]:
        assert self.schema is not None
        used = {column.source for column in self.schema.columns}
        keys = [*self.plan.split_by.values(), self.plan.weight]
        used |= {*self.plan.targets, *filter(None, keys)}
        names = read_names(self._files("test_path") or self._files("path"))
        return [name for name in names if name not in used]

    def source_hashes(self, split: str) -> Array | None:
        option = next(option for option in SOURCES[split] if getattr(self, option))
        assert self.schema is not None
        files = {name: self._files(name) for name in ("path", "test_path") if self._files(name)}
        keys = [self.plan.split_by["split"], self.plan.weight]
        ignored = [*self.plan.targets, *filter(None, keys)]
        if len({suffix_of(file) for part in files.values() for file in part}) > 1:
            # Of values in different kinds of files, only those that both have as text are alike.
            names = {name for part in files.values() for name in read_names(part)}
            for part in files.values():
                ignored += sorted(names - columns_of_text(part))
        texts = sorted({column.source for column in self.schema.columns if column.kind == "word"})

        def build(folder: Path) -> None:
            for name, part in files.items():
                save_array(folder / f"{name}.npy", hash_rows(part, ignored, texts))

        key = {"hashes": self.fingerprint, "polars": pl.__version__, "ignored": ignored}
        key |= {"texts": texts} if texts else {}
        folder = build_once(self.cache, key, build)
        rows = self.splits[split].row.numpy()
        hashes: Array = np.load(folder / f"{option}.npy")[rows]
        return hashes

    def source_columns(self, names: list[str], rows: Any, split: str) -> pl.DataFrame:
        option = next(option for option in SOURCES[split] if getattr(self, option) is not None)
        files = self._files(option)
        # Text files are read as text, so that values stay as they are written.
        with open_table(files) as source:
            check_names(source.table.collect_schema().names(), names, "--keep", str(files[0]))
            table = collect_table(source, source.table.select(map(by_name, names)))
        columns: pl.DataFrame = table[rows]
        prepared, before = self.prepared[option]
        check_unchanged(prepared, self.cache, before)
        return columns

    @classmethod
    def describe_inputs(cls, schema: Schema) -> dict[str, Any]:
        return describe(schema)

    def raw_rows(self, rows: Any, split: str) -> dict[str, list[Any]]:
        assert self.schema is not None
        names = dict.fromkeys(column.source for column in self.schema.columns)
        return plain_values(self.source_columns(list(names), rows, split))

    def _files(self, option: str) -> list[Path]:
        path = getattr(self, option)
        return [] if path is None else list_files(path, f"data.{option}")

    def _prepare(self) -> Path:
        """Return the folder of the prepared splits, encoded by the run's schema if it has one."""
        files, test_files, schema = self._files("path"), self._files("test_path"), self.schema
        sources = [*files, *test_files]
        self.fingerprint = fingerprint(sources, self.cache)
        self.prepared["path"] = self.prepared["test_path"] = sources, self.fingerprint
        counts = [len(files), len(test_files)]
        key = {"source": self.fingerprint, "files": counts, **self.plan.to_dict()}
        fitted = entry_folder(self.cache, key)
        # A run's schema is usually the one that was fitted on these files.
        if schema is not None and not (is_complete(fitted) and _read_schema(fitted) == schema):
            key["schema"] = schema.to_dict()

        def build(folder: Path) -> None:
            prepare_table(self.plan, folder, files, test_files, schema)
            check_unchanged(sources, self.cache, self.fingerprint)

        return build_once(self.cache, key, build)

    def _predict_rows(self) -> Batch:
        if self.predict_path is None:
            return self.splits["test"]._replace(y=None, weights=())
        assert self.schema is not None
        files, schema = self._files("predict_path"), self.schema
        encoder = self.plan.text_encoder
        content = fingerprint(files, self.cache)
        self.prepared["predict_path"] = files, content

        def build(folder: Path) -> None:
            prepare_new_rows(folder, files, schema, encoder)
            check_unchanged(files, self.cache, content)

        key = {"predict": content, "schema": schema.to_dict()}
        key |= {"text_encoder": encoder.cache_key} if encoder else {}
        folder = build_once(self.cache, key, build)
        for finding in _read_findings(folder):
            rank_zero_warn(str(finding))
        return _map_split(folder, "predict")


def _read_schema(folder: Path) -> Schema:
    return Schema.from_dict(json.loads((folder / "schema.json").read_text(encoding="utf-8")))


def _read_findings(folder: Path) -> list[Finding]:
    findings = json.loads((folder / "findings.json").read_text(encoding="utf-8"))
    return [Finding(*fields) for fields in findings]


def _map_split(folder: Path, split: str) -> Batch:
    """Return a prepared split, whose rows stay on disk until they are used."""
    x = {kind: map_array(folder / f"{split}_{kind}.npy") for kind in ("numeric", "categorical")}
    files = (folder / f"{split}_{name}.npy" for name in ("y", "row", "weight"))
    y, row, weight = (map_array(file) if file.exists() else None for file in files)
    assert row is not None
    return Batch(x, y, row, () if weight is None else (weight,))
