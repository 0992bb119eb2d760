"""What ``validate --calibrate temperature --threshold f1`` fits, on the validation part alone."""

import re
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.table import Column, Table

from proj.engine import console
from proj.engine.console import number
from proj.engine.evaluation import curves
from proj.engine.evaluation.counts import names_of, scores, sums_of
from proj.engine.evaluation.prediction_set import Array, PredictionSet
from proj.engine.runs.calibration import HIGHEST, LOWEST, Calibration, decided_names, hash_of
from proj.errors import UserError
from proj.schema import DEFAULT_THRESHOLD, Schema, Task

LEAST = 10  # rows to fit on, and rows above a threshold that tell something
TINY, NEARLY_ONE = np.finfo(np.float64).tiny, 1 - np.finfo(np.float64).epsneg


class Request(NamedTuple):
    """What is to be fitted."""

    temperature: bool
    rule: str | None  # for the thresholds: f1, or precision=P


def request(calibrate: str | None, threshold: str | None, task: Task | None) -> Request | None:
    """What the flags ask for, if anything; UserError where it makes no sense for a task (None: a stranger's model)."""
    for flag, given in (("--calibrate", calibrate), ("--threshold", threshold)):
        if given is not None and task in (None, "regression"):
            got = "one of numbers" if task else "one of your own"
            raise UserError(
                f"{flag}: expected a model of classes or labels, got {got}; leave {flag} out."
            )
    if calibrate not in (None, "temperature"):
        raise UserError(f"--calibrate: expected temperature, got {calibrate}.")
    if threshold is None:
        return Request(True, None) if calibrate else None
    if task == "multiclass":
        raise UserError(
            "--threshold: expected a model of two classes or of labels, got one of several classes, which takes "
            "the most probable one; leave --threshold out."
        )
    least = re.fullmatch(r"precision=(0?\.\d+)", threshold)
    if threshold != "f1" and not (least and 0 < float(least[1]) < 1):
        raise UserError(
            f"--threshold: expected f1, or precision=P with P between 0 and 1, got {threshold}."
        )
    return Request(calibrate is not None, f"precision={float(least[1])}" if least else threshold)


def fit(wanted: Request, outcomes: PredictionSet, schema: Schema, checkpoint: Path) -> Calibration:
    """The temperature that makes these outcomes most likely, and then the thresholds; UserError where there is none."""
    if len(outcomes) < LEAST:
        raise UserError(
            f"--calibrate, --threshold: expected {LEAST} validation rows or more, got {len(outcomes)}."
        )
    if outcomes.missing:
        raise UserError(
            f"--calibrate, --threshold: expected probabilities that are numbers, got {outcomes.missing} of "
            f"{len(outcomes)} validation rows without; see what the model makes of them."
        )
    heat = temperature(outcomes) if wanted.temperature else None
    after, found = apply_temperature(outcomes, heat or 1.0), None
    if wanted.rule is not None:
        columns = zip(decided_names(schema), after.scores.T, after.hits.T, strict=True)
        found = {name: threshold(score, hit, wanted.rule, name) for name, score, hit in columns}
    return Calibration(
        checkpoint.name, hash_of(checkpoint), len(outcomes), heat, found, wanted.rule
    )


def calibrated(outcomes: PredictionSet, found: Calibration, schema: Schema) -> PredictionSet:
    """Outcomes of the model as it is, calibrated."""
    heat, thresholds = found.settings(schema)
    return replace(apply_temperature(outcomes, heat), thresholds=thresholds)


def uncalibrated(outcomes: PredictionSet, found: Calibration) -> PredictionSet:
    """What calibrated outcomes would have been without."""
    return replace(
        apply_temperature(outcomes, 1 / (found.temperature or 1.0)), thresholds=DEFAULT_THRESHOLD
    )


def apply_temperature(outcomes: PredictionSet, heat: float) -> PredictionSet:
    """The outcomes of raw outputs divided by a temperature; with 1 as they are, to the bit."""
    if heat == 1:
        return outcomes
    z = logits(outcomes) / heat
    if outcomes.task == "multiclass":
        odds = np.exp(z - z.max(axis=1, keepdims=True))
        return replace(outcomes, output=odds / odds.sum(axis=1, keepdims=True))
    return replace(outcomes, output=_sigmoid(z).reshape(outcomes.output.shape))


def logits(outcomes: PredictionSet) -> Array:
    """The raw outputs behind probabilities: [rows, classes], up to a constant a row, or [rows, 1 or labels].

    A probability that was rounded to 0 or 1 does not tell them: such a row counts as the last one that would have, with a
    logit of -708 or 37 (of several classes, which are told by their small probabilities, with -708 alone).
    """
    if outcomes.task == "multiclass":
        return np.asarray(np.log(np.maximum(outcomes.scores, TINY)))
    p = outcomes.scores.clip(TINY, NEARLY_ONE)
    return np.asarray(np.log(p) - np.log1p(-p))


def _sigmoid(z: Array) -> Array:
    with np.errstate(over="ignore"):  # exp(800) is inf, and 1/inf is right
        return np.asarray(1 / (1 + np.exp(-z)))


def temperature(outcomes: PredictionSet) -> float:
    """The minimum of the mean negative log likelihood (Guo et al. 2017, arXiv:1706.04599, section 4.2).

    The likelihood is that of the targets alone, whatever options the model's loss has; of labels, all count alike. In the
    temperature's inverse it has one minimum, which Newton's method finds; a step out of the bracket around it halves that.
    """
    if len(np.unique(outcomes.target)) < 2:
        raise UserError(
            "--calibrate: expected validation rows of two classes or more, got one kind alone; leave it out."
        )
    z, low, high, inverse = logits(outcomes), 1 / HIGHEST, 1 / LOWEST, 1.0
    if _derivatives(outcomes, z, high)[0] <= 0:
        wrong = int((outcomes.predicted != outcomes.target).sum())
        raise UserError(
            f"--calibrate: expected mistakes on the validation part to learn from, got {wrong}, so "
            f"that every lower temperature, down to {LOWEST:g}, is better; leave it out."
        )
    if _derivatives(outcomes, z, low)[0] >= 0:
        raise UserError(
            "--calibrate: expected predictions that are better than chance, got such that every higher "
            f"temperature, up to {HIGHEST:g}, is better; train longer, or leave it out."
        )
    for _ in range(100):
        slope, curvature = _derivatives(outcomes, z, inverse)
        low, high = (inverse, high) if slope < 0 else (low, inverse)
        step = inverse - slope / curvature if curvature > 0 else 0.0
        last, inverse = inverse, step if low <= step <= high else (low * high) ** 0.5
        if abs(inverse - last) <= 1e-12 * last:
            break
    return 1 / inverse


def _derivatives(outcomes: PredictionSet, z: Array, inverse: float) -> tuple[float, float]:
    """The first two of the mean negative log likelihood by the temperature's inverse, at logits ``z`` [rows, columns]."""
    if outcomes.task == "multiclass":
        p = apply_temperature(outcomes, 1 / inverse).output
        mean, square = (p * z).sum(axis=1), (p * z**2).sum(axis=1)
        return float((mean - z[np.arange(len(z)), outcomes.target]).mean()), float(
            (square - mean**2).mean()
        )
    p = _sigmoid(z * inverse)
    return float(((p - outcomes.hits) * z).mean()), float((p * (1 - p) * z**2).mean())


def threshold(score: Array, hit: Array, rule: str, name: str) -> float:
    """The threshold that a rule chooses for probabilities and what is the case, both [rows].

    ``f1``: the highest of those with the largest F1. ``precision=P``: the lowest with at least that precision, so the one
    with the largest recall. It lies halfway between two probabilities, so that no rounding moves a row across it.
    """
    if hit.all() or not hit.any() or not score.any():
        raise UserError(
            f"--threshold: expected validation rows with and without {name}, and probabilities above 0, got "
            f"{int(hit.sum())} rows with it of {len(hit)}; leave --threshold out."
        )
    found = curves.thresholds(score, hit)
    some = slice(
        1, int((found.at > 0).sum())
    )  # all but the one that takes nothing, and none that takes what is impossible
    levels, precision = found.at[some], found.precision[some]
    if rule == "f1":
        best = int(found.f1[some].argmax())
    else:
        reached = np.flatnonzero(precision >= float(rule.removeprefix("precision=")))
        if not len(reached):
            most = np.floor(precision.max() * 1e4) / 1e4
            raise UserError(
                f"--threshold: expected a threshold with {rule} for {name} on the validation part, got "
                f"{most:.4f} at best; ask for less."
            )
        best = int(reached[-1])
    below = float(levels[best + 1]) if best + 1 < len(levels) else 0.0
    between = (float(levels[best]) + below) / 2
    return (
        between if between < levels[best] else below
    )  # neighbouring floats have nothing in between


def compared(
    before: PredictionSet, after: PredictionSet, found: Calibration
) -> list[tuple[str, float, float]]:
    """What a calibration changes: names, and values before and after. A threshold changes no probability."""
    rows = []
    if found.temperature is not None:
        errors = [curves.reliability(*curves.confidence(of)).error for of in (before, after)]
        losses = [float(curves.log_losses(of).mean()) for of in (before, after)]
        rows = [
            ("negative log likelihood", losses[0], losses[1]),
            ("expected calibration error", errors[0], errors[1]),
        ]
    if found.thresholds is not None:
        each = [
            scores(sums_of(of, np.zeros(len(of), int), 1)[0], of.task) for of in (before, after)
        ]
        rows += [
            (name, float(a), float(b))
            for name, a, b in zip(names_of(before), *each, strict=True)
            if "/" not in name
        ]
    return rows


def show(found: Calibration, outcomes: PredictionSet, schema: Schema) -> None:
    """Print what was fitted to outcomes, and what it changes there."""
    after = calibrated(outcomes, found, schema)
    console.say(f"fitted on {found.rows} rows: {found}")
    table = Table(
        "on the validation part", *(Column(name, justify="right") for name in ("before", "after"))
    )
    for name, *values in compared(outcomes, after, found):
        table.add_row(name, *map(number, values))
    console.show(table)
    console.say(
        "it was fitted on these very rows, so that it looks better here than it is: `test` tells."
    )
    for name, count in zip(
        found.thresholds or (), after.predicted.reshape(len(after), -1).sum(axis=0), strict=False
    ):
        if count < LEAST:
            console.warn(
                f"--threshold: {count} validation rows are above that of {name}: what it gives is mostly chance."
            )
