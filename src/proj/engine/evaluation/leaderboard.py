"""A run beside the baselines of the same data: one line for `test`, a section of the report."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from typing import NamedTuple

import numpy as np

from proj.engine import PACKAGE, console, html
from proj.engine.console import number, plural, signed_like
from proj.engine.evaluation import interval_figures
from proj.engine.evaluation.counts import headline_metric, headline_sign
from proj.engine.evaluation.interval_figures import limits_of
from proj.engine.evaluation.limits import MIN_UNITS
from proj.engine.evaluation.paired import SIGNIFICANCE_LEVEL, differences, metric_values
from proj.engine.evaluation.prediction_set import PredictionSet, load_predictions
from proj.engine.evaluation.results import read_schema
from proj.engine.evaluation.scoring import Metrics
from proj.engine.html import Html
from proj.engine.runs.files import is_present
from proj.engine.runs.find import baseline_runs
from proj.engine.runs.locks import read_results
from proj.engine.runs.run import Run
from proj.errors import UserError
from proj.metrics import metric_info


class Rival(NamedTuple):
    """A run with the results that the leaderboard shows.

    Attributes:
        run: the run.
        title: name of its learner or net.
        test: metrics of the test split; empty if it has none.
        validation: metrics of the validation split; empty if it has none.
        seconds: duration of fitting; None if it is not known.
    """

    run: Run
    title: str
    test: Metrics
    validation: Metrics
    seconds: float | None


def read_rival(run: Run) -> Rival:
    """Return the results in a run's folder; raise UserError if a file is damaged."""
    test, validation = (
        run.metrics(split) if is_present(run.path / verb / "metrics.json") else {}
        for split, verb in (("test", "test"), ("val", "validate"))
    )
    if facts := run.baseline:
        return Rival(run, facts["title"], test, validation, facts["seconds"])
    return Rival(run, "this run", test, validation, _duration(run))


def _duration(run: Run) -> float | None:
    """Return the seconds between start and end of a run that was not resumed."""
    manifest = run.manifest
    end = manifest.get("end")
    if end is None or manifest.get("resumed"):
        return None
    try:
        times = [datetime.fromisoformat(time) for time in (manifest["start"], end)]
        return (times[1] - times[0]).total_seconds()
    except (ValueError, TypeError):  # Older manifests have times in other forms.
        return None


def rivals_of(run: Run, predictions: PredictionSet) -> list[Rival]:
    """Return the newest baseline of each learner with the run's data and test rows.

    They are searched for in the folder that the run is in. A damaged one is left out with a
    warning. ``predictions`` are those of the run on the test split.
    """
    skipped: list[str] = []
    fingerprint, found = run.manifest.get("data"), dict[str, Rival]()
    others = baseline_runs(run.path.parent, []) if fingerprint else []
    for other in others:
        try:
            facts = other.baseline
            if facts is None or facts["learner"] in found or other.path.name == run.path.name:
                continue
            if other.manifest.get("data") == fingerprint and has_same_rows(predictions, other):
                found[facts["learner"]] = read_rival(other)
        except UserError as error:
            skipped.append(f"the baseline {other.path.name} is left out: {error}")
    for reason in skipped:
        console.warn(reason)
    return list(found.values())[::-1]


def has_same_rows(predictions: PredictionSet, other: Run) -> bool:
    """Return whether a run has finite predictions of the same rows, targets and weights."""
    if not is_present(other.path / "test" / "predictions.parquet"):
        return False
    others = _test_predictions(other)
    return (
        others.task == predictions.task
        and others.names == predictions.names
        and not others.missing
        and np.array_equal(others.row, predictions.row)
        and np.array_equal(others.target, predictions.target)
        and np.array_equal(others.weights, predictions.weights)
    )


def _test_predictions(run: Run) -> PredictionSet:
    with read_results(run, "test"):
        return load_predictions(run, "test", read_schema(run))


def best_of(rivals: Sequence[Rival], metric: str) -> Rival | None:
    """Return the best baseline by its metric on the validation split; None if none has one.

    The test split must not choose it: the best of several by chance would seem better than it is.
    """
    info = metric_info(metric)
    sign = -1 if info is not None and info.mode == "min" else 1
    values = [rival.validation.get(metric, {}).get("value") for rival in rivals]
    known = [
        (sign * value, i, rival)
        for i, (value, rival) in enumerate(zip(values, rivals, strict=True))
        if value is not None
    ]
    # Of equal ones, the later and stronger learner is chosen.
    return max(known)[2] if known else None


# Sentences


def compare_with_best(run: Run, predictions: PredictionSet) -> str:
    """Return one line that compares a run with the best baseline, or how to fit baselines."""
    rivals = rivals_of(run, predictions)
    if not rivals:
        if facts := run.ensemble:
            return (
                "not compared with standard learners: fit them with `baseline --run`, for a "
                f"trained member of {', '.join(member['name'] for member in facts['members'])}"
            )
        name = run.path.name if run.path.parent.name == "lightning_logs" else run.path
        return f"compare with standard learners: python -m {PACKAGE} baseline --run {name}"
    return _sentence(predictions, rivals)


def _sentence(predictions: PredictionSet, rivals: Sequence[Rival]) -> str:
    metric = headline_metric(predictions.task)
    best = best_of(rivals, metric)
    if best is None:
        return f"not compared with the baselines: none has {metric} on validation rows"
    other = replace(_test_predictions(best.run), average=predictions.average)
    group = predictions.group
    units = len(predictions) if group is None else len(np.unique(group))
    name = f"the best baseline ({best.title})"
    if predictions.missing:
        return f"not compared with {name}: some predictions are not finite numbers"
    difference = differences(other, predictions).get(metric) if units >= MIN_UNITS else None
    if difference is None:
        rows = plural(units, "test row" if group is None else "group of test rows")
        return f"not compared with {name}: {rows} cannot show a difference of {metric}"
    value, low, high, p, _ = difference
    verdict = "not significantly different from"
    if p < SIGNIFICANCE_LEVEL:
        is_better = value * headline_sign(predictions.task) > 0
        verdict = "better than" if is_better else "worse than"
    shown_p = "p < 0.001" if p < 0.001 else f"p = {p:.3f}"
    values = [number(metric_values(one)[metric]) for one in (predictions, other)]
    shown, *limits = (signed_like(number_, values) for number_ in (value, low, high))
    return (
        f"{verdict} {name}: {metric} {' vs '.join(values)}, difference {shown} "
        f"[{', '.join(limits)}], {shown_p}"
    )


# Section of the report


def leaderboard(run: Run, predictions: PredictionSet, metrics: Metrics) -> Iterator[Html]:
    """Yield a figure and a table of the run and the baselines of the same data.

    ``metrics`` are those of the run on the test split. Nothing is yielded without baselines.
    """
    rivals = rivals_of(run, predictions)
    if not rivals:
        return
    name, sign = headline_metric(predictions.task), headline_sign(predictions.task)
    own = read_rival(run)._replace(test=metrics)
    entries = sorted(
        [own, *rivals],
        key=lambda rival: sign * (rival.test.get(name, {}).get("value") or -sign * math.inf),
        reverse=True,
    )
    others = "baseline" if run.baseline else "run"
    if run.baseline is None:
        sentence = _sentence(predictions, rivals)
        yield html.text(f"This run is {sentence}.")
    yield html.text(
        "All have the same rows and columns. Baselines learn from the training split; the "
        "validation split stops boosting, chooses the regularization of the linear model, and "
        f"chooses the best one. The intervals are those of each {others} alone."
    )
    limits = [limits_of(rival.test.get(name, {})) for rival in entries]
    titles = [rival.title for rival in entries]
    caption = f"{name} on the test split with 95 % intervals, the best at the top."
    yield html.figures((interval_figures.dots(titles, limits, name, None), caption))
    rows = [_cells(rival, name) for rival in entries]
    header = ["model", name, "from", "to", f"{name} on the validation split", "seconds", "run"]
    yield html.table("Leaderboard", header, rows, numbers=5, texts=1)


def _cells(rival: Rival, name: str) -> list[str]:
    test, validation = rival.test.get(name, {}), rival.validation.get(name, {})
    shown = [
        "" if value is None else number(value)
        for value in (*limits_of(test), validation.get("value"))
    ]
    seconds = "" if rival.seconds is None else f"{rival.seconds:.1f}"
    return [rival.title, *shown, seconds, rival.run.path.name]
