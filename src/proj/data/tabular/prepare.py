"""From a table in files to prepared arrays: who is in which part, what the training part tells, and the encoded rows."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from proj.data.base import Finding
from proj.data.splits import Fold, split, split_by_time, split_groups
from proj.data.tabular import columns
from proj.data.tabular import files as tables
from proj.data.tabular import targets as table_targets
from proj.data.tabular.columns import Override
from proj.data.tabular.write import batches, write_parts
from proj.errors import UserError
from proj.schema import SPLITS, Schema, Task

LEFT_OUT = 3  # the part of rows without a target, and of those later than a fold in time
SAMPLE = (
    1_000_000  # training rows, evenly spread, that kinds, quantiles and categories are fitted on
)

Array = np.ndarray[Any, Any]


class Preparation(NamedTuple):
    """What decides the prepared arrays, beside the files themselves: plain values, fit for a cache's key."""

    targets: list[str]
    task: Task | None
    columns: dict[str, Override]
    fractions: tuple[float, float]  # validation and test
    by: dict[str, str | None]  # group, time and split: the columns to split by
    seed: int
    fold: Fold | None

    def run(self, folder: Path, files: list[Path], test: list[Path], schema: Schema | None) -> None:
        """Fill ``folder``; fits a schema unless one is given."""
        text = schema.text_sources if schema else []
        table, where = tables.parsed(files, folder, text), str(files[0])
        names = table.collect_schema().names()
        self._check_names(names, where)
        special = [name for name in self.by.values() if name is not None]
        known = tables.read(
            files, table.select(*self.targets, *(pl.col(s).alias(f"_by_{s}") for s in special))
        )
        targets = known.select(self.targets)
        task = schema.task if schema else self.task or table_targets.infer(targets)
        part = self._assign(known, targets, task, where)
        without = int(targets.select(pl.any_horizontal(pl.all().is_null())).sum().item())
        findings = [_without_target(without, len(part), where)] if without else []
        findings += [
            f
            for stage in (1, 2)
            for f in self._leaks(
                known.filter(part == 0), known.filter(part == stage), SPLITS[stage]
            )
        ]
        if schema is None:
            schema, found = self._fit(files, table, targets, part, task, where)
            findings += found
        else:
            columns.check(table, schema.columns, where)
        y = table_targets.encode(targets, schema, where)
        del targets
        write_parts(folder, files, table, schema, y, SPLITS if not test else SPLITS[:2], part)
        if test:
            findings += self._prepare_test(folder, test, schema, known.filter(part == 0))
        for parsed in folder.glob("*.parquet"):
            parsed.unlink()
        (folder / "schema.json").write_text(json.dumps(schema.to_dict()))
        (folder / "findings.json").write_text(json.dumps(findings))

    def _check_names(self, names: list[str], where: str) -> None:
        table_targets.check_columns(names, self.targets, "data.target", where)
        table_targets.check_columns(names, list(self.columns), "data.columns", where)
        used = {option: name for option, name in self.by.items() if name is not None}
        for option, name in used.items():
            table_targets.check_columns(names, [name], f"data.{option}", where)
        if {"group", "time"} <= used.keys():
            raise UserError(
                "expected data.group or data.time, got both; keep one, or say each row's part in data.split."
            )

    def _assign(self, known: pl.DataFrame, targets: pl.DataFrame, task: Task, where: str) -> Array:
        """The part of each row: 0, 1, 2, or LEFT_OUT where a target is missing."""
        if self.fold and self.by["split"]:
            raise UserError(
                "expected data.fold or data.split, got both; the column says each row's part already."
            )
        part = np.full(len(known), LEFT_OUT, np.uint8)
        rows = np.flatnonzero(
            ~targets.select(pl.any_horizontal(pl.all().is_null())).to_series().to_numpy()
        )
        if not len(rows):
            raise UserError(
                f"{where}: column {', '.join(self.targets)}: expected targets, got missing values alone."
            )
        option, name = next(
            ((o, n) for o in ("split", "group", "time") if (n := self.by[o]) is not None), ("", "")
        )
        by = known[f"_by_{name}"].gather(rows) if option else None
        if by is not None and by.null_count():
            raise UserError(
                f"data.{option}: expected a value of {name} in each row, got {by.null_count()} missing ones."
            )
        if by is None:
            classes = task in ("binary", "multiclass")
            strata = targets.to_series().gather(rows).rank("dense").to_numpy() if classes else None
            parts = split(rows, *self.fractions, self.seed, strata, self.fold)
        elif option == "split":
            parts = {stage: rows[(by.cast(pl.String) == stage).to_numpy()] for stage in SPLITS}
            if (strange := by.filter(~by.cast(pl.String).is_in(SPLITS))).len():
                raise UserError(
                    f"data.split: expected train, val or test in column {name}, got {strange[0]!r}."
                )
        elif option == "group":
            parts = split_groups(
                rows, *self.fractions, self.seed, by.rank("dense").to_numpy(), self.fold
            )
        else:
            parts = split_by_time(rows, *self.fractions, by.rank("dense").to_numpy(), self.fold)
        for number, stage in enumerate(SPLITS):
            part[parts[stage]] = number
        if not (part == 0).any():
            raise UserError(
                f"{where}: no row is left to train on; check data.{option or 'val_fraction'}."
            )
        return part

    def _fit(
        self,
        files: list[Path],
        table: pl.LazyFrame,
        targets: pl.DataFrame,
        part: Array,
        task: Task,
        where: str,
    ) -> tuple[Schema, list[Finding]]:
        train = np.flatnonzero(part == 0)
        chosen = np.zeros(len(part), bool)
        chosen[train[:: -(-len(train) // SAMPLE)]] = True
        inputs = [
            n
            for n in table.collect_schema().names()
            if n not in (*self.targets, self.by["split"], self.by["group"])
        ]
        sample = pl.concat(
            [
                batch.filter(chosen[start : start + len(batch)])
                for start, batch in batches(files, table.select(inputs))
            ]
        )
        fitted, left = columns.fit(sample, self.columns)
        if not fitted:
            raise UserError(
                f"{where}: no column is left to learn from: {'; '.join(f'{n}: {why}' for n, why in left.items())}."
            )
        schema = Schema(
            input_shape=(len(fitted),),
            input_type="table",
            input_names=tuple(column.name for column in fitted),
            input_mean=(),
            input_std=(),
            rows=len(train),
            columns=fitted,
            **table_targets.fit(task, targets[train], where),
        )
        findings = [
            _left_out(name, why) for name, why in left.items() if self.columns.get(name) != "drop"
        ]
        for column in {column.source: column for column in fitted}.values():
            if len(strange := columns.not_read(sample, column)):
                findings.append(
                    Finding(
                        f"{len(strange)} of {len(sample)} values of column {column.source} cannot be read "
                        f"as data.columns says ({strange[0]!r} is one)",
                        "they count as missing",
                        "correct them, or choose another kind",
                    )
                )
        return schema, findings

    def _leaks(self, train: pl.DataFrame, other: pl.DataFrame, stage: str) -> list[Finding]:
        """Groups, or moments, of another part that are among the training rows'."""
        findings = []
        if (group := self.by["group"]) and (
            shared := _shared(train[f"_by_{group}"], other[f"_by_{group}"])
        ):
            findings.append(
                Finding(
                    f"{shared} values of {group} are both in train and in {stage}",
                    "what was learned of a group by heart counts as knowledge of new ones",
                    "split by data.group alone, or give other files",
                )
            )
        if (
            (time := self.by["time"])
            and len(train)
            and (late := int((other[f"_by_{time}"] < train[f"_by_{time}"].max()).sum()))
        ):
            findings.append(
                Finding(
                    f"{late} {stage} rows are earlier than the latest training row by {time}",
                    "the future tells of the past, so the result looks better than it will be",
                    "split by data.time alone, or give other files",
                )
            )
        return findings

    def _prepare_test(
        self, folder: Path, files: list[Path], schema: Schema, train: pl.DataFrame
    ) -> list[Finding]:
        labels = self.targets if any(isinstance(label, str) for label in schema.classes) else []
        table, where = tables.parsed(files, folder, [*schema.text_sources, *labels]), str(files[0])
        table_targets.check_columns(
            table.collect_schema().names(), self.targets, "data.test_path", where
        )
        columns.check(table, schema.columns, where)
        special = [
            name for option, name in self.by.items() if name is not None and option != "split"
        ]
        table_targets.check_columns(
            table.collect_schema().names(), special, "data.test_path", where
        )
        known = tables.read(
            files, table.select(*self.targets, *(pl.col(s).alias(f"_by_{s}") for s in special))
        )
        y = table_targets.encode(known.select(self.targets), schema, where)
        missing = np.isnan(y).any(axis=1) if y.ndim == 2 else y < 0
        part = np.where(missing, LEFT_OUT, 0).astype(np.uint8)
        write_parts(folder, files, table, schema, y, ("test",), part)
        return [
            *self._leaks(train, known, "test"),
            *([_without_target(missing.sum(), len(part), where)] if missing.any() else []),
        ]


def _shared(one: pl.Series, other: pl.Series) -> int:
    """How many different values are in both."""
    return one.unique().to_frame().join(other.unique().to_frame(), on=one.name, how="semi").height


def _without_target(count: int, rows: int, where: str) -> Finding:
    return Finding(
        f"{count} of {rows} rows of {where} have no target",
        "they are left out",
        "fill it in, or drop them from the file",
    )


def _left_out(name: str, why: str) -> Finding:
    return Finding(
        f"column {name} is left out, {why}",
        "it would not help on new rows",
        f"agree with data.columns: {{{name}: drop}}, or say what it is: number, category or date",
    )
