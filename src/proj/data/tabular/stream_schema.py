"""Fit the schema of shards on a sample of their rows, and encode the rows of a block."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from lightning.pytorch.utilities import rank_zero_warn

from proj.data.tabular.columns import encode_column, fit_columns, state, type_of
from proj.data.tabular.files import Source, by_name
from proj.data.tabular.overrides import Override
from proj.data.tabular.prepare import check_finite, to_arrays
from proj.data.tabular.readings import find_readings
from proj.data.tabular.shards import Block
from proj.data.tabular.stream_targets import encode_targets, read_targets
from proj.data.tabular.targets import Targets
from proj.data.tabular.typed import conform
from proj.data.tabular.words import Outcomes
from proj.errors import UserError
from proj.schema import Batch, Finding, Schema


def fit_schema(
    rows: pl.DataFrame,
    inputs: list[str],
    overrides: dict[str, Override],
    targets: list[str],
    fields: dict[str, Any],
    train_rows: int,
    where: str,
) -> tuple[Schema, list[Finding]]:
    """Return the schema of the training rows, and findings about its columns.

    Args:
        rows: a sample of the training rows.
        inputs: the columns other than the targets.
        overrides: kinds of columns that the user states.
        targets: the target columns.
        fields: the fields of the schema that describe the targets.
        train_rows: number of all training rows.
        where: name of the source, for messages.

    Raises:
        UserError: if no column can be used, or one does not have its stated kind.
    """
    if not inputs:
        raise UserError(
            f"{where}: expected a column to learn from, got {', '.join(targets)} only, the target; "
            "add the inputs."
        )
    rows = rows.drop_nulls(targets)
    columns_of_targets = read_targets(rows, targets, where)
    outcomes = Outcomes.of(Targets(columns_of_targets, fields["task"], where, is_table=True))
    columns, left_out, found = fit_columns(rows.select(inputs), overrides, {}, outcomes)
    if not columns:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in left_out.items())
        raise UserError(f"{where}: expected a column to learn from, got none: {reasons}.")
    findings = [_left_out(name, why) for name, why in left_out.items() if name not in overrides]
    texts = dict.fromkeys(column.source for column in columns if column.type == "text")
    stated = [name for name in texts if name in overrides]
    findings += [*found, *_find_numbers_in_text(rows.select(list(texts)).drop(stated))]
    if len(rows) < train_rows:
        findings = [_of_sample(finding) for finding in findings]
        findings.insert(0, _sample_finding(len(rows), train_rows))
    schema = Schema(
        input_shape=(len(columns),),
        input_type="table",
        input_names=tuple(column.name for column in columns),
        input_mean=(),
        input_std=(),
        rows=train_rows,
        columns=columns,
        **fields,
    )
    return schema, findings


def _left_out(name: str, reason: str) -> Finding:
    # A split by a column's names is not possible here.
    reason = reason.partition("; to split")[0]
    return Finding(
        f"column {name} is left out",
        reason,
        f"to confirm, set {state(name, 'drop')}; to use it, set number, category, date or text",
        name,
    )


def _find_numbers_in_text(texts: pl.DataFrame) -> list[Finding]:
    """Return findings about columns of text that a table in memory would read as other values."""
    strings = texts.select(pl.col(pl.String))
    return [
        Finding(
            f"the text of column {name} looks like {found.reading.type}s",
            "its values are categories, because a stream takes the types of its files",
            f"write them as {found.reading.type}s, or confirm with {state(name, 'category')}",
            name,
        )
        for name, found in find_readings(strings, {}, "").items()
        if found.reading.type in ("number", "date")
    ]


def _of_sample(finding: Finding) -> Finding:
    return finding._replace(what=finding.what.replace("training rows", "sampled training rows"))


def _sample_finding(rows: int, train_rows: int) -> Finding:
    return Finding(
        f"the columns are fitted on a sample of {rows} of {train_rows} training rows",
        "categories and extreme numbers that the sample lacks are not known",
        "raise data.sample_rows if rare values matter",
    )


def encode_rows(frame: pl.DataFrame, block: Block, schema: Schema, targets: list[str]) -> Batch:
    """Return the rows of a block that have all ``targets``, encoded; all rows without targets.

    Raises UserError for a value that does not fit the schema.
    """
    columns = (*schema.numeric, *schema.categorical)
    # Other types, such as those of a column without values, are converted where that is exact.
    is_alike = all(type_of(frame.schema[c.source]) == c.type for c in columns)
    table = frame.lazy()
    if not is_alike:
        source = Source(Path(block.shard), table)
        table, findings = conform(source, schema.columns, block.shard)
        for finding in findings:
            rank_zero_warn(str(finding))
    encoded = table.select(encode_column(c).alias(str(i)) for i, c in enumerate(columns)).collect()
    values = to_arrays(encoded, len(schema.numeric))
    check_finite(values["numeric"], schema, block.start, Path(block.shard))
    present, y = np.ones(len(frame), bool), None
    if targets:
        missing = frame.select(pl.any_horizontal(by_name(name).is_null() for name in targets))
        present = ~missing.to_series().to_numpy()
        encoded_targets = encode_targets(frame.filter(present), targets, schema, block.shard)
        y = torch.from_numpy(np.array(encoded_targets))  # polars' memory is read-only
    kept = present if not present.all() else slice(None)
    x = {
        kind: torch.from_numpy(np.array(values[kind][kept], dtype, order="C"))
        for kind, dtype in (("numeric", np.float32), ("categorical", np.int32))
    }
    rows = np.arange(block.first, block.first + len(frame))[kept]
    return Batch(x, y, torch.from_numpy(rows))
