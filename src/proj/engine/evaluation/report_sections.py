"""Sections of the report about single rows and columns: mistakes, slices, importance."""

from collections.abc import Iterator
from typing import Any
from zipfile import BadZipFile

import numpy as np
import polars as pl

from proj.engine import html
from proj.engine.console import number, plural
from proj.engine.evaluation import curves, figures
from proj.engine.evaluation.artifacts import COLUMNS, IMAGES, LEFT_OUT
from proj.engine.evaluation.counts import headline_metric
from proj.engine.evaluation.prediction_set import PredictionSet, read_table
from proj.engine.evaluation.scoring import Metrics
from proj.engine.evaluation.slices import MIN_SLICE_ROWS, Slices, format_value, slices
from proj.engine.html import Html
from proj.engine.runs import contents
from proj.engine.runs.files import is_present, read_json
from proj.engine.runs.run import Run
from proj.errors import UserError
from proj.schema import Array, Schema

# Columns in a figure or a table.
MAX_COLUMNS = 30
# Columns beside each mistake.
MAX_VALUES = 8
# Characters of a text beside a mistake.
MAX_CHARACTERS = 60


def saved_columns(run: Run, predictions: PredictionSet) -> pl.DataFrame | None:
    """Return the columns of the test rows, in the order of the predictions; None if not saved."""
    path = run.path / "test" / COLUMNS
    table = read_table(path) if is_present(path) else None
    return table if table is not None and len(table) == len(predictions) else None


# Mistakes


def mistakes(run: Run, predictions: PredictionSet, columns: pl.DataFrame | None) -> Iterator[Html]:
    """Yield the most confident mistakes, or the largest errors.

    Each one has its prediction, the values of its columns, and its image.
    """
    if predictions.missing:
        return
    indices = curves.mistakes(predictions)
    if not len(indices):
        yield html.text("There are no mistakes.")
        return
    is_regression = predictions.task == "regression"
    facts = _prediction_cells(predictions, indices)
    values = _shown_values(run, columns, indices)
    left_out = _left_out_values(run, predictions.row[indices])
    values = values.hstack(left_out.select(pl.all().exclude(values.columns)))
    images = _saved_images(run)
    rows = []
    for index, cells, row_values in zip(
        indices, facts.rows(), values.rows() or [()] * len(indices), strict=True
    ):
        first, *others = cells
        image = []
        if images:
            image = [html.image(images[predictions.row[index]], _describe(facts.columns, cells))]
        rows.append([first, *image, *others, *map(format_value, row_values)])
    title = "largest error" if is_regression else "most confident mistake"
    image_column = ["image"] if images else []
    header = [facts.columns[0], *image_column, *facts.columns[1:], *values.columns]
    numbers = 0 if values.columns or is_regression else 1
    yield html.table(_counted(len(rows), title), header, rows, numbers=numbers)


def _counted(count: int, noun: str) -> str:
    return f"The {noun}" if count == 1 else f"The {count} {noun}s"


def _prediction_cells(predictions: PredictionSet, indices: Array) -> pl.DataFrame:
    """Return texts for some rows: row number, target, prediction, source columns, probability."""
    # `load_predictions` sets the columns.
    assert predictions.columns is not None
    rows = predictions.columns[indices]
    cells = {
        name: [_cell_text(value) for value in rows[name].to_list()]
        for name in rows.columns[:MAX_VALUES]
    }
    if predictions.task != "regression":
        cells["probability"] = [f"{_certainty(predictions, index):.3f}" for index in indices]
    return pl.DataFrame(cells, schema=dict.fromkeys(cells, pl.String))


def _cell_text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_cell_text, value))
    return number(value) if isinstance(value, float) else str(value)


def _certainty(predictions: PredictionSet, index: int) -> float:
    """Return the probability of a row's prediction; for several labels, the largest error."""
    scores = predictions.scores[index]
    if predictions.task == "multiclass":
        return float(scores.max())
    wrong = predictions.predicted[index] != predictions.hits[index]
    return float((np.abs(scores - predictions.hits[index]) * wrong).max())


def _shown_values(run: Run, columns: pl.DataFrame | None, indices: Array) -> pl.DataFrame:
    """Return the first columns of some rows, by importance if it has been computed."""
    if columns is None:
        return pl.DataFrame()
    by_importance = [name for name in read_importance(run).get("columns", {}) if name in columns]
    names = list(dict.fromkeys([*by_importance, *columns.columns]))[:MAX_VALUES]
    return columns[indices][names]


def _left_out_values(run: Run, rows: Array) -> pl.DataFrame:
    """Return the columns that the net does not see, such as names, if `test` saved them."""
    path = run.path / "test" / LEFT_OUT
    table = read_table(path) if is_present(path) else pl.DataFrame()
    if "row" not in table.columns or table["row"].to_list() != rows.tolist():
        return pl.DataFrame()
    values = table.drop("row").cast(pl.String)
    short = values.with_columns(
        pl.when(pl.all().str.len_chars() > MAX_CHARACTERS)
        .then(pl.all().str.head(MAX_CHARACTERS) + "…")
        .otherwise(pl.all())
    )
    return short.rename(lambda name: f"{name.removeprefix('left_out_')} (left out)")


def _saved_images(run: Run) -> dict[int, Array]:
    """Return the pixels of mistakes by row number, if `test` saved any."""
    if not (path := run.path / "test" / IMAGES).is_file():
        return {}
    try:
        with path.open("rb") as file, np.load(file) as arrays:
            return dict(zip(arrays["row"].tolist(), arrays["pixels"], strict=True))
    except (OSError, ValueError, LookupError, TypeError, AttributeError, BadZipFile) as error:
        raise UserError(f"{path} is damaged: {error}; run `test` again to replace it.") from error


def _describe(names: list[str], cells: tuple[str, ...]) -> str:
    """Return the text alternative of an image: target 3, predicted 5, probability 0.98."""
    renamed = [name.replace("prediction", "predicted").replace("_", " ") for name in names]
    starts = ("target", "predicted", "probability")
    return ", ".join(
        f"{name} {value}"
        for name, value in zip(renamed, cells, strict=True)
        if name.startswith(starts)
    )


# Slices


def worst_slices(
    predictions: PredictionSet, columns: pl.DataFrame | None, metrics: Metrics, seed: int
) -> Iterator[Html]:
    """Yield the slices of the test rows in which the headline metric is worst."""
    if predictions.missing or columns is None:
        return
    result = slices(predictions, columns, seed)
    left_out = _left_out(result)
    if not result.worst:
        yield html.text(f"No slice has a metric.{left_out}")
        return
    yield html.text(
        "A slice is the test rows with the same category, or in the same quarter of a number or "
        f"date. {_shown(result)} The worst of "
        "many slices is partly the worst by chance, and each interval is valid for its slice "
        f"alone.{left_out}"
    )
    metric = headline_metric(predictions.task)
    overall = metrics.get(metric, {})
    rows = [["all test rows", "", str(len(predictions)), *_value_and_limits(overall)]]
    rows += [
        [row.column, row.value, str(row.rows), *_value_and_limits(row.interval.entry())]
        for row in result.worst
    ]
    header = ["column", "value", "rows", metric, "from", "to"]
    yield html.table(f"Slices with the worst {metric}", header, rows, numbers=4)


def _shown(result: Slices) -> str:
    if len(result.worst) == result.scored:
        return f"There {'is' if result.scored == 1 else 'are'} {plural(result.scored, 'slice')}."
    return f"Of {result.scored} slices, the {len(result.worst)} worst are shown."


def _left_out(result: Slices) -> str:
    """Return a sentence about the slices that have no metric."""
    reasons = [
        f"{result.small} with fewer than {MIN_SLICE_ROWS} rows" if result.small else "",
        f"{result.undefined} without a positive row or prediction, where F1 is undefined"
        if result.undefined
        else "",
        f"{plural(result.constant, 'column')} in which all test rows have the same value"
        if result.constant
        else "",
    ]
    return f" Left out: {', '.join(filter(None, reasons))}." if any(reasons) else ""


def _value_and_limits(entry: dict[str, Any]) -> list[str]:
    """Return the cells of a metric's entry: value with its reason, and limits."""
    limits = [
        number(entry[side]) if entry.get(side) is not None else "" for side in ("low", "high")
    ]
    return [html.remarked(number(entry.get("value")), entry.get("why", "")), *limits]


# Columns


def read_importance(run: Run) -> dict[str, Any]:
    """Return the content of the file of `validate --importance`; empty if there is no file."""
    path = run.path / "validate" / "importance.json"
    remedy = "delete it, or write it again with `validate --importance`"
    return dict(read_json(path, contents.Importance, remedy)) if is_present(path) else {}


def importance(run: Run) -> Iterator[Html]:
    """Yield the permutation importance of the columns on the validation split."""
    if not (saved := read_importance(run)):
        return
    metric, columns = saved["metric"], saved["columns"]
    change = f"{'rise' if metric == 'rmse' else 'drop'} of {metric}"
    yield html.text(
        f"The {change} of {saved['checkpoint']} on {plural(saved['rows'], 'validation row')} "
        f"when the values of a column are permuted: the mean of {saved['repeats']} permutations. "
        "Columns with the same information share their importance, because each can replace the "
        "other, so both may look worthless."
    )
    known = {name: entry for name, entry in columns.items() if entry["low"] is not None}
    if shown := dict(list(known.items())[:MAX_COLUMNS]):
        limits = [(entry["value"], entry["low"], entry["high"]) for entry in shown.values()]
        first = next(iter(shown))
        caption = (
            f"Importance of columns with 95 % intervals; {first} has the largest, "
            f"{number(shown[first]['value'])}."
        )
        yield html.figures((figures.importances(list(shown), limits, change), caption))
    rows = [
        [name, *_value_and_limits(entry)] for name, entry in list(columns.items())[:MAX_COLUMNS]
    ]
    header = ["column", change, "from", "to"]
    yield html.table("Importance with 95 % intervals", header, rows, numbers=3)
    if len(columns) > MAX_COLUMNS:
        more = plural(len(columns) - MAX_COLUMNS, "more column")
        yield html.text(f"See validate/importance.json for {more}.")


def missing_values(
    schema: Schema, predictions: PredictionSet, columns: pl.DataFrame | None
) -> Iterator[Html]:
    """Yield the columns with missing values in the training split or among the test rows."""
    if not schema.columns:
        return
    in_training = {column.source for column in schema.columns if column.missing}
    in_test: dict[str, int] = {}
    if columns is not None:
        nulls = columns.null_count().row(0, named=True)
        in_test = {name: count for name, count in nulls.items() if count}
    names = sorted(in_training | in_test.keys(), key=lambda name: -in_test.get(name, 0))
    if not names:
        count = len({column.source for column in schema.columns})
        yield html.text(f"No value is missing in {plural(count, 'column')}.")
        return
    rows = []
    for name in names[:MAX_COLUMNS]:
        count = in_test.get(name, 0)
        counts = ["", ""] if columns is None else [str(count), f"{count / len(predictions):.1%}"]
        rows.append([name, "yes" if name in in_training else "no", *counts])
    header = ["column", "missing in training", "test rows without", "share"]
    yield html.table("Where values are missing", header, rows, numbers=2)
    if len(names) > MAX_COLUMNS:
        more = plural(len(names) - MAX_COLUMNS, "more column")
        yield html.text(f"Values are missing in {more}.")
