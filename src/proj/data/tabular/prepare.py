"""Prepare a table: split the rows, fit the schema on the training split, write encoded arrays."""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from rich.console import Console
from rich.progress import Progress

from proj.data.tabular.cache import create_array, save_array
from proj.data.tabular.columns import (
    encode_column,
    find_alike,
    fit_columns,
    state,
    target_column,
)
from proj.data.tabular.files import (
    Source,
    by_name,
    check_names,
    collect_table,
    iter_chunks,
    nameless,
    open_table,
)
from proj.data.tabular.hints import Candidate, find_hints, ranks_of, save_candidates
from proj.data.tabular.linear import fit_linear
from proj.data.tabular.overrides import Override
from proj.data.tabular.positive import check_positive, choose_positive
from proj.data.tabular.readings import Reading, Wish, column_readings, stored_format
from proj.data.tabular.row_splits import Fold, row_numbers, split
from proj.data.tabular.split_column import name_splits
from proj.data.tabular.splits import split_by_time, split_groups
from proj.data.tabular.targets import Targets
from proj.data.tabular.text_encoder import TextEncoder, fill_scores
from proj.data.tabular.text_scores import (
    TextScore,
    add_columns,
    fit_scores,
    write_cross_fitted,
)
from proj.data.tabular.typed import TypedTable, apply_readings, conform, read_text
from proj.data.tabular.weights import check_splits, column_weights, to_tensor
from proj.data.tabular.words import Outcomes
from proj.errors import UserError, quoted
from proj.schema import SPLITS, Array, Column, Finding, Label, Schema, Task

# Split number of rows that are left out: without a target, or later than a fold in time.
LEFT_OUT = len(SPLITS)

# Number of evenly spread training rows to fit column kinds, quantiles and categories on.
SAMPLE_ROWS = 1_000_000


@dataclass(frozen=True)
class TablePlan:
    """The options that decide the prepared arrays, together with the files."""

    targets: list[str]
    task: Task | None
    positive: Label | None
    columns: dict[str, Override]
    val_fraction: float
    test_fraction: float
    split_by: dict[str, str | None]  # the column for each of group, time and split
    split_seed: int
    fold: Fold | None
    weight: str | None = None
    text_encoder: TextEncoder | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the options as a key of the cache, without weight and encoder if there is none."""
        values = asdict(replace(self, text_encoder=None))
        if self.text_encoder is not None:
            values["text_encoder"] = self.text_encoder.cache_key
        optional = ("weight", "text_encoder")
        return {name: v for name, v in values.items() if name not in optional or v is not None}


def prepare_table(
    plan: TablePlan, folder: Path, files: list[Path], test_files: list[Path], schema: Schema | None
) -> None:
    """Fill ``folder`` with the arrays of each split, ``schema.json`` and ``findings.json``.

    A schema is fitted unless one is given. Raises UserError if the table does not fit the plan or
    the schema.
    """
    with open_table(files, folder) as source:
        _check_plan(plan, source.table.collect_schema().names(), str(source.file))
        is_new = schema is None
        schema, findings, keys, readings = _prepare_rows(plan, folder, source, test_files, schema)
    if test_files:
        with open_table(test_files, folder) as source:
            findings += _prepare_test_file(plan, folder, source, schema, keys, readings)
    if is_new:
        schema = replace(schema, linear=fit_linear(folder, schema))
    (folder / "schema.json").write_text(json.dumps(schema.to_dict()), encoding="utf-8")
    (folder / "findings.json").write_text(json.dumps(findings), encoding="utf-8")


def _prepare_rows(
    plan: TablePlan, folder: Path, source: Source, test_files: list[Path], schema: Schema | None
) -> tuple[Schema, list[Finding], pl.DataFrame, dict[str, Reading]]:
    """Write the arrays of the splits of ``source``.

    Returns the schema, findings, the columns to split the training rows by, and how text is read.
    """
    where = str(source.file)
    inputs = _input_names(plan, source.table.collect_schema().names())
    typed = _read_columns(plan, source, inputs, schema)
    targets, keys = _read_targets(plan, source, typed, schema)
    if targets.missing.all():
        names = ", ".join(plan.targets)
        raise UserError(f"{where}: column {names}: expected targets, got missing values only.")
    if schema is None:
        targets.check()
    else:
        check_positive(plan.positive, schema)
    row_splits, findings = _assign_splits(plan, targets, keys, where)
    if schema is None:
        _check_classes(targets, row_splits)
    weight, weight_findings = _read_weights(plan, source, row_splits, SPLITS)
    train_keys = keys.filter(row_splits == 0)
    findings += [
        *weight_findings,
        *source.findings,
        *typed.general,
        *_find_missing_targets(targets),
        *_find_alike_labels(targets),
    ]
    time = plan.split_by["time"]
    for name in dict.fromkeys([*plan.targets, *([] if time is None else [time])]):
        # Without a column: `init` writes columns with findings that are no inputs as left out.
        findings += [f._replace(column=None) for f in typed.findings.get(name, ())]
    for number in (1, 2):
        findings += _find_leaks(plan, train_keys, keys.filter(row_splits == number), SPLITS[number])
    groups = keys["group"].to_numpy() if "group" in keys.columns else None
    if schema is None:
        schema, column_findings, scores = _fit_schema(
            plan, source, typed, inputs, targets, row_splits, groups
        )
        if weight is not None:
            schema = replace(schema, weight_mean=float(weight[row_splits == 0].mean()))
        table = typed.table
        candidates: list[Candidate] = []
        if not test_files and not any(plan.split_by.values()):
            undecided = [name for name in inputs if name not in plan.columns]
            hints, candidates = find_hints(source, table, undecided)
            findings += hints
        stated = {
            o: column for o, column in plan.split_by.items() if o != "split" and column is not None
        }
        candidates += [Candidate(o, column, ranks_of(keys[o])) for o, column in stated.items()]
        is_train = row_splits == 0
        save_candidates(folder, [c._replace(ranks=c.ranks[is_train]) for c in candidates])
    else:
        table, column_findings = conform(source, schema.columns, where)
        scores = _fit_known_scores(
            plan, source._replace(table=table), schema, targets, row_splits, groups
        )
    y = _encode_targets(targets, schema, row_splits)
    splits = SPLITS[:2] if test_files else SPLITS
    source, encoder = source._replace(table=table), plan.text_encoder
    _write_splits(folder, source, schema, encoder, splits, row_splits, y, weight)
    write_cross_fitted(folder, schema, scores, _sampled(row_splits))
    return schema, findings + column_findings, train_keys, typed.readings


def prepare_new_rows(
    folder: Path, files: list[Path], schema: Schema, encoder: TextEncoder | None
) -> None:
    """Fill ``folder`` with the arrays of rows to predict, which have no targets, and findings."""
    with open_table(files, folder) as source:
        table, findings = conform(source, schema.columns, str(source.file))
        rows = int(collect_table(source, table.select(pl.len())).item())
        source = source._replace(table=table)
        row_splits = np.zeros(rows, np.uint8)
        _write_splits(folder, source, schema, encoder, ("predict",), row_splits)
        (folder / "findings.json").write_text(
            json.dumps([*source.findings, *findings]), encoding="utf-8"
        )


def _prepare_test_file(
    plan: TablePlan,
    folder: Path,
    source: Source,
    schema: Schema,
    train_keys: pl.DataFrame,
    readings: dict[str, Reading],
) -> list[Finding]:
    """Write the arrays of a test split with files of its own, and return findings."""
    where = str(source.file)
    names = source.table.collect_schema().names()
    keys = [plan.split_by["group"], plan.split_by["time"], plan.weight]
    wanted = [*plan.targets, *(name for name in keys if name is not None)]
    check_names(names, wanted, "data.test_path", where)
    table, findings = conform(source, schema.columns, where)
    dtypes = source.table.collect_schema()
    # Targets and times are read as in the file with the training rows.
    time = plan.split_by["time"]
    others = [*plan.targets, *([] if time is None else [time])]
    used = {n: readings[n] for n in others if n in readings and dtypes[n] == pl.String}
    typed = TypedTable(apply_readings(source.table, used), readings, {})
    targets, test_keys = _read_targets(plan, source, typed, schema, with_split=False)
    y = targets.encode(schema, "test")
    row_splits = np.where(targets.missing, LEFT_OUT, 0).astype(np.uint8)
    weight, weight_findings = _read_weights(plan, source, row_splits, ("test",))
    source, encoder = source._replace(table=table), plan.text_encoder
    _write_splits(folder, source, schema, encoder, ("test",), row_splits, y, weight)
    leaks = _find_leaks(plan, train_keys, test_keys, "test")
    missing = _find_missing_targets(targets)
    return [*source.findings, *leaks, *weight_findings, *missing, *findings]


def _input_names(plan: TablePlan, names: list[str]) -> list[str]:
    not_inputs = (*plan.targets, plan.split_by["split"], plan.split_by["group"], plan.weight)
    return [name for name in names if name not in not_inputs]


def _read_columns(
    plan: TablePlan, source: Source, inputs: list[str], schema: Schema | None
) -> TypedTable:
    """Return the table with typed inputs, targets and times.

    With a schema, inputs are left as they are, and targets are read as in training.
    """
    time = plan.split_by["time"]
    wishes = {name: Wish(override) for name, override in plan.columns.items()}
    dropped = [name for name, override in plan.columns.items() if override.kind == "drop"]
    used = [] if schema else [name for name in inputs if name not in dropped]
    for name in dropped:
        del wishes[name]
    for name in plan.targets:
        wishes[name] = Wish(wishes.get(name, Wish()).override, strict=True)
    known = {}
    if schema and any(isinstance(label, str) for label in schema.classes):
        known[plan.targets[0]] = Reading("text")
    known |= column_readings(schema.target_columns) if schema else {}
    names = dict.fromkeys([*plan.targets, *([] if time is None else [time]), *used])
    return read_text(source, names, wishes, known)


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
    if plan.weight is not None:
        check_names(names, [plan.weight], "data.weight", where)
        others = [("target", name) for name in plan.targets] + list(plan.split_by.items())
        if other := next((option for option, name in others if name == plan.weight), None):
            raise UserError(
                f"data.weight: expected a column of its own, got {plan.weight}, which is also "
                f"data.{other}."
            )
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
    source: Source,
    typed: TypedTable,
    schema: Schema | None,
    with_split: bool = True,
) -> tuple[Targets, pl.DataFrame]:
    """Return the targets of all rows, and the columns to split by, named by their option."""
    where = str(source.file)
    names = {option: name for option, name in plan.split_by.items() if name is not None}
    if not with_split:
        names.pop("split", None)
    # A column may be a target and a key, so each has a name of its own here.
    labelled = [by_name(name).alias(f"target {i}") for i, name in enumerate(plan.targets)]
    time = [by_name(name).alias(option) for option, name in names.items() if option == "time"]
    frame = collect_table(source, typed.table.select(*labelled, *time))
    keys = frame.drop(f"target {i}" for i in range(len(plan.targets)))
    # Groups and splits are compared as they are written.
    others = [option for option in names if option != "time"]
    if raw := [by_name(names[o]).cast(pl.String).str.strip_chars().alias(o) for o in others]:
        keys = keys.hstack(collect_table(source, source.table.select(raw)))
    if time:
        _check_order(keys["time"], names["time"])
    columns = tuple(
        target_column(name, nameless(frame, f"target {i}"), where)
        for i, name in enumerate(plan.targets)
    )
    targets = Targets.from_table(columns, schema.task if schema else plan.task, where)
    return targets, keys


def _check_order(times: pl.Series, name: str) -> None:
    """Raise UserError unless the values of a column have an order in time."""
    if not (times.dtype.is_numeric() or times.dtype.is_temporal()):
        example = next(iter(times.drop_nulls()), None)
        raise UserError(
            f"data.time: expected dates or numbers in column {name}, got {quoted(example)}, whose "
            f"order in time is not known; state the form, such as data.columns: "
            f"{{{name}: {{kind: date, format: '%d/%m/%Y'}}}}."
        )


def _assign_splits(
    plan: TablePlan, targets: Targets, keys: pl.DataFrame, where: str
) -> tuple[Array, list[Finding]]:
    """Return the split of each row, a position in SPLITS or LEFT_OUT: [rows] uint8.

    Also returns a finding if a column of splits has no validation rows.
    """
    findings: list[Finding] = []
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
            chosen = _splits_of_column(rows, key, name)
            if not len(chosen["val"]) and plan.val_fraction:
                chosen, findings = _take_val(plan, targets, chosen, name)
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
    return row_splits, findings


def _read_weights(
    plan: TablePlan, source: Source, row_splits: Array, splits: tuple[str, ...]
) -> tuple[Array | None, list[Finding]]:
    """Return the weight of each row [rows], None for rows without weights, and findings."""
    if plan.weight is None:
        return None, []
    table = collect_table(source, source.table.select(by_name(plan.weight)))
    where = str(source.file)
    weight = column_weights(table.to_series(), row_splits < len(splits), plan.weight, where)
    by_split = {name: weight[row_splits == number] for number, name in enumerate(splits)}
    present = {name: values for name, values in by_split.items() if len(values)}
    return weight, check_splits(present, f"{where}: column {plan.weight}")


def _check_classes(targets: Targets, row_splits: Array) -> None:
    """Raise UserError for a class of val or test that train does not have."""
    if (strata := targets.strata) is None:
        return
    known = np.unique(strata[row_splits == 0])
    labels = tuple(targets.class_names[i] for i in known)
    for number, name in enumerate(SPLITS):
        unknown = np.flatnonzero((row_splits == number) & ~np.isin(strata, known))
        if len(unknown):
            raise targets.unknown_class(unknown, labels, name)


def _encode_targets(targets: Targets, schema: Schema, row_splits: Array) -> Array:
    """Return the targets of all rows; those of rows that are left out have no meaning."""
    used = np.flatnonzero(row_splits != LEFT_OUT)
    encoded = targets.take(used).encode(schema, "", used)
    y = np.zeros((len(row_splits), *encoded.shape[1:]), encoded.dtype)
    y[used] = encoded
    return y


def _splits_of_column(rows: Array, values: pl.Series, name: str) -> dict[str, Array]:
    """Return the rows of each split by the values of a column."""
    splits = name_splits(values, name)
    return {split_name: rows[(splits == split_name).to_numpy()] for split_name in SPLITS}


def _take_val(
    plan: TablePlan, targets: Targets, chosen: dict[str, Array], name: str
) -> tuple[dict[str, Array], list[Finding]]:
    """Return the splits with validation rows taken from the training rows."""
    train = targets.take(chosen["train"])
    taken = split(
        chosen["train"],
        plan.val_fraction,
        0.0,
        plan.split_seed,
        train.strata,
        None,
        train.class_names,
    )
    finding = Finding(
        f"column {name} names no validation rows",
        f"{len(taken['val'])} of {len(chosen['train'])} training rows are used",
        "mark rows with val, or set data.val_fraction",
    )
    return {**taken, "test": chosen["test"]}, [finding]


def _sampled(row_splits: Array) -> Array:
    """Return positions in the training split of the rows to fit column kinds on."""
    train = np.arange(int((row_splits == 0).sum()))
    return train[:: -(-len(train) // SAMPLE_ROWS)]


def _collect_sample(
    source: Source, table: pl.LazyFrame, inputs: list[str], row_splits: Array
) -> tuple[pl.DataFrame, Array]:
    """Return the columns ``inputs`` of the sampled training rows, and the numbers of the rows."""
    rows = np.flatnonzero(row_splits == 0)[_sampled(row_splits)]
    in_sample = np.zeros(len(row_splits), bool)
    in_sample[rows] = True
    sample = pl.concat(
        chunk.filter(in_sample[start : start + len(chunk)])
        for start, chunk in iter_chunks(source, table.select(map(by_name, inputs)))
    )
    return sample, rows


def _fit_known_scores(
    plan: TablePlan,
    source: Source,
    schema: Schema,
    targets: Targets,
    row_splits: Array,
    groups: Array | None,
) -> list[TextScore]:
    """Return the scores of the text columns that a known schema has scores of."""
    sources = list(dict.fromkeys(c.source for c in schema.columns if c.kind == "score"))
    if not sources:
        return []
    sample, rows = _collect_sample(source, source.table, sources, row_splits)
    outcomes = Outcomes.of(targets.take(rows))
    groups = None if groups is None else groups[rows]
    return fit_scores(sample, sources, outcomes, groups, plan.text_encoder)


def _fit_schema(
    plan: TablePlan,
    source: Source,
    typed: TypedTable,
    inputs: list[str],
    targets: Targets,
    row_splits: Array,
    groups: Array | None,
) -> tuple[Schema, list[Finding], list[TextScore]]:
    """Return the schema of the training split, findings about its columns, and scores of texts."""
    train = np.flatnonzero(row_splits == 0)
    if not inputs:
        raise UserError(
            f"{source.file}: expected a column to learn from, got {', '.join(plan.targets)} only, "
            "the target; add the inputs."
        )
    sample, rows = _collect_sample(source, typed.table, inputs, row_splits)
    outcomes = Outcomes.of(targets.take(rows))
    encoder = plan.text_encoder
    columns, left_out, findings = fit_columns(
        sample, plan.columns, typed.readings, outcomes, encoder is not None
    )
    stated = [name for name, override in plan.columns.items() if override.kind == "text"]
    encoded = stated if encoder is not None else []
    with_words = (c.source for c in columns if c.kind in ("word", "length"))
    texts = list(dict.fromkeys((*with_words, *encoded)))
    groups = None if groups is None else groups[rows]
    scores = fit_scores(sample, texts, outcomes, groups, encoder)
    if encoder is not None and not texts:
        findings.append(_no_text_finding())
    columns = add_columns(columns, scores)
    used = {column.source for column in columns}
    useless = {name: "no score predicts the target" for name in encoded if name not in used}
    findings += [_left_out_finding(*item) for item in useless.items()]
    left_out |= useless
    if not columns:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in left_out.items())
        raise UserError(f"{source.file}: expected a column to learn from, got none: {reasons}.")
    schema = Schema(
        input_shape=(len(columns),),
        input_type="table",
        input_names=tuple(column.name for column in columns),
        input_mean=(),
        input_std=(),
        rows=len(train),
        columns=columns,
        target_columns=_target_columns(plan, typed.readings),
        **targets.take(train).fit(choose_positive(targets, plan.positive)),
    )
    unintended = {name: why for name, why in left_out.items() if name not in plan.columns}
    for name in dict.fromkeys(column.source for column in columns):
        if name != plan.split_by["time"]:
            findings += typed.findings.get(name, ())
    for name in unintended:
        if typed.readings.get(name, Reading("text")).type == "text":
            # Without a column: that of the finding above is enough for `init`.
            findings += [f._replace(column=None) for f in typed.findings.get(name, ())]
    left_out_findings = [_left_out_finding(*item) for item in unintended.items()]
    return schema, [*left_out_findings, *findings], scores


def _target_columns(plan: TablePlan, readings: dict[str, Reading]) -> tuple[Column, ...]:
    """Return how the targets in text are read, if not as plain numbers or text."""
    known = {name: readings[name] for name in plan.targets if name in readings}
    read = [(name, r) for name, r in known.items() if stored_format(r) or r.placeholders]
    return tuple(
        Column(
            name,
            reading.type,
            "number" if reading.type == "number" else "category",
            False,
            (),
            (),
            (),
            stored_format(reading),
            reading.placeholders,
        )
        for name, reading in read
    )


def _write_splits(
    folder: Path,
    source: Source,
    schema: Schema,
    encoder: TextEncoder | None,
    splits: tuple[str, ...],
    row_splits: Array,
    y: Array | None = None,
    weight: Array | None = None,
) -> None:
    """Encode all rows in one streaming pass, each into the arrays of its split.

    ``row_splits`` [rows] holds the position in ``splits``; rows with another number are left out.
    """
    counts = np.bincount(row_splits, minlength=LEFT_OUT + 1).tolist()
    arrays = _create_arrays(folder, schema, dict(zip(splits, counts, strict=False)))
    columns = (*schema.numeric, *schema.categorical)
    encoded = source.table.select(encode_column(c).alias(str(i)) for i, c in enumerate(columns))
    filled = [0] * len(splits)
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task(f"preparing {source.file.name}", total=len(row_splits))
        for start, chunk in iter_chunks(source, encoded):
            chunk = fill_scores(chunk, columns, encoder)
            values = to_arrays(chunk, len(schema.numeric))
            check_finite(values["numeric"], schema, start, source.file)
            chunk_splits = row_splits[start : start + len(chunk)]
            for number, name in enumerate(splits):
                chosen = chunk_splits == number
                end = filled[number] + int(chosen.sum())
                for kind, rows in values.items():
                    arrays[name, kind][filled[number] : end] = rows[chosen]
                filled[number] = end
            progress.update(bar, advance=len(chunk))
    for number, name in enumerate(splits):
        rows = row_numbers(len(row_splits))[row_splits == number]
        save_array(folder / f"{name}_row.npy", rows)
        if y is not None:
            save_array(folder / f"{name}_y.npy", y[rows])
        if weight is not None:
            save_array(folder / f"{name}_weight.npy", to_tensor(weight[rows]).numpy())


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


def to_arrays(chunk: pl.DataFrame, num_numeric: int) -> dict[str, Array]:
    """Return the encoded columns as arrays; the first ``num_numeric`` are numeric."""
    frames = {"numeric": chunk[:, :num_numeric], "categorical": chunk[:, num_numeric:]}
    # A polars frame without columns has no rows either.
    return {
        kind: frame.to_numpy() if frame.width else np.zeros((len(chunk), 0))
        for kind, frame in frames.items()
    }


def check_finite(numbers: Array, schema: Schema, start: int, file: Path) -> None:
    if (infinite := np.isinf(numbers)).any():
        row, column = np.argwhere(infinite)[0]
        raise UserError(
            f"{file}: column {schema.numeric[column].source}: expected finite numbers, got an "
            f"infinite one in row {start + row}; correct it, or leave it empty."
        )


def _find_missing_targets(targets: Targets) -> list[Finding]:
    if not (missing := int(targets.missing.sum())):
        return []
    problem = f"{missing} of {len(targets.missing)} rows of {targets.where} have no target"
    return [Finding(problem, "they are left out", "fill it in, or drop them from the file")]


def _find_alike_labels(targets: Targets) -> list[Finding]:
    findings = []
    for column in targets.columns:
        if targets.is_classes and column.words:
            labels = pl.Series(column.words, dtype=pl.String).gather(column.values)
            findings += find_alike(labels, f"the target {column.name}")
    return findings


def _left_out_finding(name: str, reason: str) -> Finding:
    return Finding(
        f"column {name} is left out",
        reason,
        f"to confirm, set {state(name, 'drop')}; to use it, set number, category, date or text",
        name,
    )


def _no_text_finding() -> Finding:
    return Finding(
        "no column is text",
        "data.text_encoder is not used",
        "set data.columns: {NAME: text} for a column, or leave the option out",
    )


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
