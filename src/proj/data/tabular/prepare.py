"""Prepare a table: split the rows, fit the schema on the training split, write encoded arrays."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl
from rich.console import Console
from rich.progress import Progress

from proj.data.base import Finding
from proj.data.splits import Fold, split
from proj.data.tabular.cache import create_array, save_array
from proj.data.tabular.columns import (
    NumberKind,
    Override,
    check_columns,
    encode_column,
    fit_columns,
    rounding,
    target_column,
    unreadable_values,
)
from proj.data.tabular.files import by_name, check_names, collect, iter_chunks, nameless, open_table
from proj.data.tabular.splits import split_by_time, split_groups
from proj.data.targets import Targets
from proj.errors import UserError
from proj.schema import SPLITS, Array, Column, Schema, Task

# Split number of rows that are left out: without a target, or later than a fold in time.
LEFT_OUT = len(SPLITS)

# Number of evenly spread training rows to fit column kinds, quantiles and categories on.
SAMPLE_ROWS = 1_000_000


@dataclass(frozen=True)
class TablePlan:
    """The options that decide the prepared arrays, together with the files. Plain values."""

    targets: list[str]
    task: Task | None
    columns: dict[str, Override]
    val_fraction: float
    test_fraction: float
    split_by: dict[str, str | None]  # the column for each of group, time and split
    split_seed: int
    fold: Fold | None


def prepare_table(
    plan: TablePlan, folder: Path, files: list[Path], test_files: list[Path], schema: Schema | None
) -> None:
    """Fill ``folder`` with the arrays of each split, ``schema.json`` and ``findings.json``.

    A schema is fitted unless one is given. Raises UserError if the table does not fit the plan or
    the schema.
    """
    where = str(files[0])
    table = open_table(files, folder, schema.text_sources if schema else ())
    _check_plan(plan, table.collect_schema().names(), where)
    targets, keys = _read_targets(plan, files, table, schema)
    if targets.missing.all():
        names = ", ".join(plan.targets)
        raise UserError(f"{where}: column {names}: expected targets, got missing values only.")
    if schema is None:
        targets.check()
    row_splits = _assign_splits(plan, targets, keys, where)
    train_keys = keys.filter(row_splits == 0)
    findings = _find_missing_targets(targets)
    for number in (1, 2):
        findings += _find_leaks(plan, train_keys, keys.filter(row_splits == number), SPLITS[number])
    if schema is None:
        schema, column_findings = _fit_schema(plan, files, table, targets, row_splits)
        findings += column_findings
    else:
        check_columns(table, schema.columns, where)
    y = targets.encode(schema)
    splits = SPLITS[:2] if test_files else SPLITS
    _write_splits(folder, files, table, schema, splits, row_splits, y)
    if test_files:
        findings += _prepare_test_file(plan, folder, test_files, schema, train_keys)
    (folder / "schema.json").write_text(json.dumps(schema.to_dict()), encoding="utf-8")
    (folder / "findings.json").write_text(json.dumps(findings), encoding="utf-8")
    _remove_parsed_files(folder)


def prepare_new_rows(folder: Path, files: list[Path], schema: Schema) -> None:
    """Fill ``folder`` with the arrays of rows to predict, which have no targets."""
    table = open_table(files, folder, schema.text_sources)
    check_columns(table, schema.columns, str(files[0]))
    rows = int(collect(files, table.select(pl.len())).item())
    _write_splits(folder, files, table, schema, ("predict",), np.zeros(rows, np.uint8), None)
    _remove_parsed_files(folder)


def _prepare_test_file(
    plan: TablePlan, folder: Path, files: list[Path], schema: Schema, train_keys: pl.DataFrame
) -> list[Finding]:
    """Write the arrays of a test split with files of its own, and return findings."""
    where = str(files[0])
    labels = plan.targets if any(isinstance(label, str) for label in schema.classes) else []
    table = open_table(files, folder, [*schema.text_sources, *labels])
    names = table.collect_schema().names()
    keys = [plan.split_by[option] for option in ("group", "time")]
    wanted = [*plan.targets, *(name for name in keys if name is not None)]
    check_names(names, wanted, "data.test_path", where)
    check_columns(table, schema.columns, where)
    targets, test_keys = _read_targets(plan, files, table, schema, with_split=False)
    y = targets.encode(schema)
    row_splits = np.where(targets.missing, LEFT_OUT, 0).astype(np.uint8)
    _write_splits(folder, files, table, schema, ("test",), row_splits, y)
    leaks = _find_leaks(plan, train_keys, test_keys, "test")
    return [*leaks, *_find_missing_targets(targets)]


def _check_plan(plan: TablePlan, names: list[str], where: str) -> None:
    check_names(names, plan.targets, "data.target", where)
    if not_text := [name for name in plan.columns if not isinstance(name, str)]:
        raise UserError(
            f"data.columns: expected names of columns as texts, got {not_text[0]}, which YAML does "
            "not read as a text; put quotes around it."
        )
    check_names(names, list(plan.columns), "data.columns", where)
    for option, name in plan.split_by.items():
        if name is not None:
            check_names(names, [name], f"data.{option}", where)
    if plan.split_by["group"] is not None and plan.split_by["time"] is not None:
        raise UserError(
            "expected data.group or data.time, got both; keep one, or give each row's split in "
            "data.split."
        )
    if plan.fold and plan.split_by["split"] is not None:
        raise UserError(
            "expected data.fold or data.split, got both; the column already gives each row's split."
        )


def _read_targets(
    plan: TablePlan,
    files: list[Path],
    table: pl.LazyFrame,
    schema: Schema | None,
    with_split: bool = True,
) -> tuple[Targets, pl.DataFrame]:
    """Return the targets of all rows, and the columns to split by, named by their option."""
    where = str(files[0])
    keys = {
        option: name
        for option, name in plan.split_by.items()
        if name is not None and (with_split or option != "split")
    }
    # A column may be a target and a key, so each has a name of its own here.
    labelled = [by_name(name).alias(f"target {i}") for i, name in enumerate(plan.targets)]
    keyed = [by_name(name).alias(option) for option, name in keys.items()]
    frame = collect(files, table.select(*labelled, *keyed))
    columns = tuple(
        target_column(name, nameless(frame, f"target {i}"), where)
        for i, name in enumerate(plan.targets)
    )
    targets = Targets.from_table(columns, schema.task if schema else plan.task, where)
    return targets, frame.drop(f"target {i}" for i in range(len(plan.targets)))


def _assign_splits(plan: TablePlan, targets: Targets, keys: pl.DataFrame, where: str) -> Array:
    """Return the split of each row: a position in SPLITS, or LEFT_OUT: [rows] uint8."""
    rows = np.flatnonzero(~targets.missing)
    fractions = plan.val_fraction, plan.test_fraction
    by = plan.split_by
    option = next((option for option in ("split", "group", "time") if by[option] is not None), None)
    if option is None:
        present = targets.take(rows)
        chosen = split(
            rows, *fractions, plan.split_seed, present.strata, plan.fold, present.class_names
        )
    else:
        name = str(by[option])
        key = keys[option].gather(rows)
        if missing := key.null_count():
            raise UserError(
                f"data.{option}: expected a value of {name} in each row, got {missing} missing "
                "values."
            )
        if option == "split":
            chosen = _splits_of_column(rows, key.cast(pl.String), name)
        elif option == "group":
            groups = key.rank("dense").to_numpy()
            chosen = split_groups(rows, *fractions, plan.split_seed, groups, plan.fold)
        else:
            chosen = split_by_time(rows, *fractions, key.rank("dense").to_numpy(), plan.fold)
    if not len(chosen["train"]):
        raise UserError(
            f"{where}: expected rows to train on, got none; check data.{option or 'val_fraction'}."
        )
    row_splits = np.full(len(targets.missing), LEFT_OUT, np.uint8)
    for number, name in enumerate(SPLITS):
        row_splits[chosen[name]] = number
    return row_splits


def _splits_of_column(rows: Array, values: pl.Series, name: str) -> dict[str, Array]:
    """Return the rows of each split by the values of a column."""
    if (invalid := values.filter(~values.is_in(SPLITS))).len():
        raise UserError(
            f"data.split: expected train, val or test in column {name}, got {invalid[0]!r}."
        )
    return {split_name: rows[(values == split_name).to_numpy()] for split_name in SPLITS}


def _fit_schema(
    plan: TablePlan, files: list[Path], table: pl.LazyFrame, targets: Targets, row_splits: Array
) -> tuple[Schema, list[Finding]]:
    """Return the schema of the training split, and findings about its columns."""
    train = np.flatnonzero(row_splits == 0)
    in_sample = np.zeros(len(row_splits), bool)
    in_sample[train[:: -(-len(train) // SAMPLE_ROWS)]] = True
    not_inputs = (*plan.targets, plan.split_by["split"], plan.split_by["group"])
    inputs = [name for name in table.collect_schema().names() if name not in not_inputs]
    if not inputs:
        raise UserError(
            f"{files[0]}: expected a column to learn from, got {', '.join(plan.targets)} only, the "
            "target; add the inputs."
        )
    sample = pl.concat(
        chunk.filter(in_sample[start : start + len(chunk)])
        for start, chunk in iter_chunks(files, table.select(map(by_name, inputs)))
    )
    columns, left_out = fit_columns(sample, plan.columns)
    if not columns:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in left_out.items())
        raise UserError(f"{files[0]}: expected a column to learn from, got none: {reasons}.")
    schema = Schema(
        input_shape=(len(columns),),
        input_type="table",
        input_names=tuple(column.name for column in columns),
        input_mean=(),
        input_std=(),
        rows=len(train),
        columns=columns,
        **targets.take(train).fit(),
    )
    unintended = {name: why for name, why in left_out.items() if plan.columns.get(name) != "drop"}
    findings = [_left_out_finding(name, reason) for name, reason in unintended.items()]
    findings += _find_unreadable_values(sample, columns)
    return schema, findings + _find_rounded_values(sample, columns, plan.columns)


def _write_splits(
    folder: Path,
    files: list[Path],
    table: pl.LazyFrame,
    schema: Schema,
    splits: tuple[str, ...],
    row_splits: Array,
    y: Array | None,
) -> None:
    """Encode all rows in one streaming pass, each into the arrays of its split.

    ``row_splits`` [rows] holds the position in ``splits``; rows with another number are left out.
    """
    counts = np.bincount(row_splits, minlength=LEFT_OUT + 1).tolist()
    arrays = _create_arrays(folder, schema, dict(zip(splits, counts, strict=False)))
    columns = (*schema.numeric, *schema.categorical)
    encoded = table.select(encode_column(c).alias(str(i)) for i, c in enumerate(columns))
    filled = [0] * len(splits)
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task(f"preparing {files[0].name}", total=len(row_splits))
        for start, chunk in iter_chunks(files, encoded):
            values = _to_arrays(chunk, len(schema.numeric))
            _check_finite(values["numeric"], schema, start, files[0])
            chunk_splits = row_splits[start : start + len(chunk)]
            for number, name in enumerate(splits):
                chosen = chunk_splits == number
                end = filled[number] + int(chosen.sum())
                for kind, rows in values.items():
                    arrays[name, kind][filled[number] : end] = rows[chosen]
                filled[number] = end
            progress.update(bar, advance=len(chunk))
    for number, name in enumerate(splits):
        rows = np.flatnonzero(row_splits == number)
        save_array(folder / f"{name}_row.npy", rows)
        if y is not None:
            save_array(folder / f"{name}_y.npy", y[rows])


def _create_arrays(
    folder: Path, schema: Schema, rows: dict[str, int]
) -> dict[tuple[str, str], Array]:
    """Return an empty array in a file for each split and kind of input."""
    kinds: dict[str, tuple[int, type[np.generic]]] = {
        "numeric": (len(schema.numeric), np.float32),
        "categorical": (len(schema.categorical), np.int32),
    }
    return {
        (name, kind): create_array(folder / f"{name}_{kind}.npy", dtype, (count, columns))
        for name, count in rows.items()
        for kind, (columns, dtype) in kinds.items()
    }


def _to_arrays(chunk: pl.DataFrame, num_numeric: int) -> dict[str, Array]:
    """Return the encoded columns as arrays; the first ``num_numeric`` are numeric."""
    frames = {"numeric": chunk[:, :num_numeric], "categorical": chunk[:, num_numeric:]}
    # A polars frame without columns has no rows either.
    return {
        kind: frame.to_numpy() if frame.width else np.zeros((len(chunk), 0))
        for kind, frame in frames.items()
    }


def _check_finite(numbers: Array, schema: Schema, start: int, file: Path) -> None:
    if (infinite := np.isinf(numbers)).any():
        row, column = np.argwhere(infinite)[0]
        raise UserError(
            f"{file}: column {schema.numeric[column].source}: expected finite numbers, got an "
            f"infinite one in row {start + row}; correct it, or leave it empty."
        )


def _remove_parsed_files(folder: Path) -> None:
    """Remove the Parquet files that `open_table` wrote."""
    for file in folder.glob("*.parquet"):
        file.unlink()


def _find_missing_targets(targets: Targets) -> list[Finding]:
    if not (missing := int(targets.missing.sum())):
        return []
    problem = f"{missing} of {len(targets.missing)} rows of {targets.where} have no target"
    return [Finding(problem, "they are left out", "fill it in, or drop them from the file")]


def _left_out_finding(name: str, reason: str) -> Finding:
    return Finding(
        f"column {name} is left out",
        reason,
        f"to confirm, set data.columns: {{{name}: drop}}; to use it, set number, category or date",
        name,
    )


def _find_unreadable_values(rows: pl.DataFrame, columns: tuple[Column, ...]) -> list[Finding]:
    """Return a finding for each column with text in place of the number or date it should hold."""
    findings = []
    for column in {column.source: column for column in columns}.values():
        if len(values := unreadable_values(rows, column)):
            finding = Finding(
                f"{len(values)} of {len(rows)} values of column {column.source} cannot be read "
                f"as data.columns says, such as {values[0]!r}",
                "they count as missing",
                "correct them, or choose another kind",
                column.source,
            )
            findings.append(finding)
    return findings


def _find_rounded_values(
    rows: pl.DataFrame, columns: tuple[Column, ...], overrides: dict[str, Override]
) -> list[Finding]:
    """Return a finding for each column of numbers or dates that float32 cannot tell apart."""
    findings = []
    for column in {column.source: column for column in reversed(columns)}.values():
        kind = overrides.get(column.source) or column.type
        if kind not in ("number", "date"):
            continue
        number: NumberKind = "number" if kind == "number" else "days"
        if found := rounding(rows, replace(column, kind=number)):
            size, step, spread = found
            finding = Finding(
                f"the values of column {column.source}, up to {size:.10g}, are rounded to steps of "
                f"{step:.3g} (float32), and their standard deviation is {spread:.3g}",
                "the model cannot learn from smaller differences",
                "subtract a constant from the column, such as its smallest value",
                column.source,
            )
            findings.append(finding)
    return findings


def _find_leaks(
    plan: TablePlan, train: pl.DataFrame, other: pl.DataFrame, split_name: str
) -> list[Finding]:
    """Return findings about groups or times of another split that overlap the training rows."""
    findings = []
    if (group := plan.split_by["group"]) is not None:
        groups, other_groups = (frame.select("group").unique() for frame in (train, other))
        if shared := groups.join(other_groups, on="group", how="semi").height:
            finding = Finding(
                f"{shared} values of {group} are both in train and in {split_name}",
                "what the model memorizes about a group counts as skill on new groups",
                "split by data.group only, or use other files",
            )
            findings.append(finding)
    if (time := plan.split_by["time"]) is not None:
        latest = train["time"].max()
        early = int((other["time"] < latest).sum()) if len(train) else 0
        if early:
            finding = Finding(
                f"{early} {split_name} rows are earlier than the latest training row by {time}",
                "the future explains the past, so the result looks better than it will be",
                "split by data.time only, or use other files",
            )
            findings.append(finding)
    return findings
