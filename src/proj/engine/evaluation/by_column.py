"""Sections of the page that look at columns: what each is worth, and where the model is worst."""

from collections.abc import Iterator, Sequence
from typing import Any

import polars as pl

from proj.engine import html
from proj.engine.console import number
from proj.engine.evaluation import figures
from proj.engine.evaluation.artifacts import COLUMNS
from proj.engine.evaluation.prediction_set import PredictionSet
from proj.engine.evaluation.scoring import read_table
from proj.engine.evaluation.slices import FEWEST, slices
from proj.engine.html import Html
from proj.engine.runs.run import Run, read_json
from proj.metrics import DEFAULT_MONITOR
from proj.schema import Schema

SHOWN = 30  # columns in a figure or a table


def columns_of(run: Run, outcomes: PredictionSet) -> pl.DataFrame | None:
    """The columns of the test rows, in the order of the outcomes; None where `test` kept none."""
    path = run.path / "test" / COLUMNS
    table = read_table(path) if path.is_file() else None
    return table if table is not None and len(table) == len(outcomes) else None


def missing(run: Run, schema: Schema, outcomes: PredictionSet) -> Iterator[Html]:
    """Which columns lack values in the training part, and how often they do among the test rows."""
    if not schema.columns:
        return
    trained = {column.source for column in schema.columns if column.missing}
    table = columns_of(run, outcomes)
    tested = (
        {name: count for name, count in table.null_count().row(0, named=True).items() if count}
        if table is not None
        else {}
    )
    names = sorted(trained | tested.keys(), key=lambda name: -tested.get(name, 0))
    if not names:
        yield html.text(
            f"No value is missing in the {len({column.source for column in schema.columns})} columns."
        )
        return
    counts = {
        name: [str(tested.get(name, 0)), f"{tested.get(name, 0) / len(outcomes):.1%}"]
        for name in names
    }
    rows = [
        [name, "yes" if name in trained else "no", *(["", ""] if table is None else counts[name])]
        for name in names[:SHOWN]
    ]
    header = ["column", "missing in training", "test rows without", "share"]
    yield html.table("Where values are missing", header, rows, numbers=2)
    if len(names) > SHOWN:
        yield html.text(f"In {len(names) - SHOWN} more columns values are missing.")


def importances_of(run: Run) -> dict[str, Any]:
    """What `validate --importance` wrote; nothing where it was not asked for."""
    path = run.path / "validate" / "importance.json"
    return dict(read_json(path)) if path.is_file() else {}


def importance(run: Run) -> Iterator[Html]:
    """How much worse the metric becomes on the validation part when a column's values are dealt anew among the rows."""
    if not (written := importances_of(run)):
        return
    metric, columns = written["metric"], written["columns"]
    change = "rise" if metric == "rmse" else "drop"
    yield html.text(
        f"The {change} of {metric} of {written['checkpoint']} on {written['rows']} validation rows when the "
        f"values of a column are dealt anew among the rows, as the mean of {written['repeats']} permutations. "
        "Columns that tell the same share their importance: each stands in for the other, and both may look "
        "worthless."
    )
    known = {name: entry for name, entry in columns.items() if entry["low"] is not None}
    if shown := dict(list(known.items())[:SHOWN]):
        limits = [(entry["value"], entry["low"], entry["high"]) for entry in shown.values()]
        first = next(iter(shown))
        yield html.figures(
            (
                figures.importances(list(shown), limits, f"{change} of {metric}"),
                f"Importance of columns with 95 % intervals; {first} has the largest, "
                f"{number(shown[first]['value'])}.",
            )
        )
    rows = [_row(name, entry) for name, entry in list(columns.items())[:SHOWN]]
    yield html.table(
        "Importance with 95 % intervals",
        ["column", f"{change} of {metric}", "from", "to"],
        rows,
        numbers=3,
    )
    if len(columns) > SHOWN:
        yield html.text(f"{len(columns) - SHOWN} more are in validate/importance.json.")


def worst_slices(run: Run, outcomes: PredictionSet, whole: dict[str, Any]) -> Iterator[Html]:
    """The slices of the test rows in which the headline metric is worst, beside all rows, whose entry is ``whole``."""
    if outcomes.missing or (columns := columns_of(run, outcomes)) is None:
        return
    found = slices(outcomes, columns, run.config.get("seed_everything") or 0)
    metric = DEFAULT_MONITOR[outcomes.task].split("/")[1]
    left = [
        f"{found.small} with fewer than {FEWEST} rows" if found.small else "",
        f"{found.undefined} without a positive row or prediction, whose F1 is 0/0"
        if found.undefined
        else "",
        f"{found.alike} columns in which all test rows are alike" if found.alike else "",
    ]
    said = f" Left out: {', '.join(filter(None, left))}." if any(left) else ""
    if not found.worst:
        yield html.text(f"There is no slice to tell of.{said}")
        return
    yield html.text(
        f"Test rows that are alike in one column: by category, or by quarters of numbers and dates. Of "
        f"{found.told} slices, the {len(found.worst)} worst. The worst of many is partly the worst by chance, "
        f"and each interval holds for its slice alone.{said}"
    )
    rows = [_row("all test rows", whole, "", str(len(outcomes)))]
    rows += [
        _row(one.column, one.interval.entry(), one.value, str(one.rows)) for one in found.worst
    ]
    header = ["column", "value", "rows", metric, "from", "to"]
    yield html.table(f"Where {metric} is worst", header, rows, numbers=4)


def _row(name: str, entry: dict[str, Any], *more: str) -> Sequence[str]:
    """A line of a table: what it is of, and a metric's entry with its interval."""
    limits = [
        number(entry[side]) if entry.get(side) is not None else "" for side in ("low", "high")
    ]
    return [name, *more, html.remarked(number(entry.get("value")), entry.get("why", "")), *limits]
