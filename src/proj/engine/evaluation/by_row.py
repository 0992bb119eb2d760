"""The section of the page that looks at single rows: the worst mistakes."""

from collections.abc import Iterator
from typing import Any
from zipfile import BadZipFile

import numpy as np
import polars as pl

from proj.engine import html
from proj.engine.console import number
from proj.engine.evaluation import curves
from proj.engine.evaluation.artifacts import PICTURES
from proj.engine.evaluation.by_column import columns_of, importances_of
from proj.engine.evaluation.prediction_set import Array, PredictionSet
from proj.engine.evaluation.scoring import read_table
from proj.engine.evaluation.slices import shown
from proj.engine.html import Html
from proj.engine.runs.run import Run
from proj.errors import UserError

VALUES = 8  # columns of a table beside each mistake


def mistakes(run: Run, outcomes: PredictionSet) -> Iterator[Html]:
    """The rows that the model is most sure of and wrong about, or furthest off: predictions, columns, pictures."""
    if outcomes.missing:
        return
    places = curves.mistakes(outcomes)
    if not len(places):
        yield html.text("There is none.")
        return
    table = read_table(run.path / "test" / "predictions.parquet")[places]
    columns = [name for name in table.columns if not name.startswith("probability")][:VALUES]
    sure = [] if outcomes.task == "regression" else ["probability"]
    values, pictures = _values(run, outcomes, places), _pictures(run)
    lines = []
    for place, row, more in zip(
        places, table.select(columns).rows(), values.rows() or [()] * len(places), strict=True
    ):
        said = [*map(_plain, row), *([f"{_certainty(outcomes, place):.3f}"] if sure else [])]
        picture = (
            [html.image(pictures[outcomes.row[place]], _words([*columns, *sure], said))]
            if pictures
            else []
        )
        lines.append([said[0], *picture, *said[1:], *map(shown, more)])
    what = "largest errors" if outcomes.task == "regression" else "most confident mistakes"
    header = [columns[0], *(["picture"] if pictures else []), *columns[1:], *sure, *values.columns]
    yield html.table(
        f"The {len(lines)} {what}", header, lines, numbers=0 if values.columns else len(sure)
    )


def _values(run: Run, outcomes: PredictionSet, places: Array) -> pl.DataFrame:
    """The first columns of some test rows, or the most important ones, where that is known."""
    if (table := columns_of(run, outcomes)) is None:
        return pl.DataFrame()
    important = [name for name in importances_of(run).get("columns", {}) if name in table.columns]
    return table[places].select(list(dict.fromkeys([*important, *table.columns]))[:VALUES])


def _pictures(run: Run) -> dict[int, Array]:
    """The pixels of mistakes by row number, where `test` kept some."""
    if not (path := run.path / "test" / PICTURES).is_file():
        return {}
    try:
        with path.open("rb") as file, np.load(file) as arrays:
            return dict(zip(arrays["row"].tolist(), arrays["pixels"], strict=True))
    except (ValueError, BadZipFile) as error:
        raise UserError(f"{path} is damaged: {error}; `test` writes it anew.") from error


def _words(names: list[str], said: list[str]) -> str:
    """A picture's row in words: target 3, predicted 5, probability 0.98."""
    renamed = [name.replace("prediction", "predicted").replace("_", " ") for name in names]
    wanted = ("target", "predicted", "probability")
    return ", ".join(
        f"{name} {value}"
        for name, value in zip(renamed, said, strict=True)
        if name.startswith(wanted)
    )


def _plain(value: Any) -> str:
    return number(value) if isinstance(value, float) else str(value)


def _certainty(outcomes: PredictionSet, place: int) -> float:
    """The probability that a row's prediction was given; of labels, the one that is furthest off."""
    scores = outcomes.scores[place]
    if outcomes.task == "multiclass":
        return float(scores.max())
    wrong = outcomes.predicted[place] != outcomes.hits[place]
    return float((np.abs(scores - outcomes.hits[place]) * wrong).max())
