"""Fit a temperature, thresholds and conformal limits on the validation split.

This is what ``validate --calibrate temperature --threshold f1 --coverage 0.9`` does.
"""

import re
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from proj.engine.evaluation import curves
from proj.engine.evaluation.conformal import fit_limits, parse_coverage
from proj.engine.evaluation.counts import metric_names, scores, sums_of
from proj.engine.evaluation.prediction_set import PredictionSet
from proj.engine.runs.calibration import HIGHEST, LOWEST, Calibration, file_sha256, threshold_names
from proj.errors import UserError
from proj.schema import DEFAULT_THRESHOLD, Array, Schema, Task

# Fewest rows to fit a temperature or thresholds on.
MIN_ROWS = 10
# The smallest positive float64, and the largest one below 1.
TINY, NEARLY_ONE = np.finfo(np.float64).tiny, 1 - np.finfo(np.float64).epsneg


class CalibrationRequest(NamedTuple):
    """Request to fit a temperature, thresholds, conformal limits or several of them.

    ``rule`` chooses the thresholds: ``f1``, ``precision=P`` or None. ``coverage`` is that of
    intervals or sets, or None.
    """

    temperature: bool
    rule: str | None
    coverage: float | None = None


NOTHING = CalibrationRequest(False, None)


def parse_request(
    calibrate: str | None, threshold: str | None, task: Task | None, coverage: str | None = None
) -> CalibrationRequest | None:
    """Return what the flags ask for; None if they are not given.

    ``task`` is None for a model that is not one of ours.

    Raises:
        UserError: if a flag is wrong, or does not apply to the task.
    """
    for flag, value in (("--calibrate", calibrate), ("--threshold", threshold)):
        if value is not None and task in (None, "regression"):
            got = "a regression model" if task else "a model of your own"
            raise UserError(
                f"{flag}: expected a model of classes or labels, got {got}; leave {flag} out."
            )
    if calibrate not in (None, "temperature"):
        raise UserError(f"--calibrate: expected temperature, got {calibrate}.")
    if coverage is not None and task is None:
        raise UserError(
            "--coverage: expected a model of this package, got a model of your own; leave it out."
        )
    share = None if coverage is None else parse_coverage(coverage)
    if threshold is None:
        request = CalibrationRequest(calibrate is not None, None, share)
        return None if request == NOTHING else request
    if task == "multiclass":
        raise UserError(
            "--threshold: expected a model of two classes or of labels, got one of several "
            "classes, which predicts the most probable one; leave --threshold out."
        )
    precision = re.fullmatch(r"precision=(0?\.\d+)", threshold)
    if threshold != "f1" and not (precision and 0 < float(precision[1]) < 1):
        raise UserError(
            f"--threshold: expected f1, or precision=P with P between 0 and 1, got {threshold}."
        )
    rule = f"precision={float(precision[1])}" if precision else threshold
    return CalibrationRequest(calibrate is not None, rule, share)


def fit_calibration(
    request: CalibrationRequest, predictions: PredictionSet, schema: Schema, checkpoint: Path
) -> Calibration:
    """Fit the temperature, and then the thresholds and limits of the calibrated probabilities.

    Raises:
        UserError: if the predictions do not determine them.
    """
    if len(predictions) < MIN_ROWS:
        raise UserError(
            f"--calibrate, --threshold, --coverage: expected {MIN_ROWS} validation rows or more, "
            f"got {len(predictions)}."
        )
    if predictions.missing:
        raise UserError(
            "--calibrate, --threshold, --coverage: expected finite outputs, got other values in "
            f"{predictions.missing} of {len(predictions)} validation rows; look at "
            "validate/predictions.parquet."
        )
    temperature = fit_temperature(predictions) if request.temperature else None
    after, thresholds = apply_temperature(predictions, temperature or 1.0), None
    if request.rule is not None:
        columns = zip(threshold_names(schema), after.scores.T, after.hits.T, strict=True)
        thresholds = {
            name: fit_threshold(score, hit, request.rule, name, after.weight)
            for name, score, hit in columns
        }
    limits = None
    if request.coverage is not None:
        fitted = fit_limits(after, request.coverage)
        limits = dict(zip(schema.target_names, fitted, strict=True))
    return Calibration(
        checkpoint=checkpoint.name,
        sha256=file_sha256(checkpoint),
        rows=len(predictions),
        temperature=temperature,
        thresholds=thresholds,
        rule=request.rule,
        coverage=request.coverage,
        limits=limits,
    )


def calibrated(
    predictions: PredictionSet, calibration: Calibration, schema: Schema
) -> PredictionSet:
    """Return the calibrated predictions, given those of the uncalibrated model."""
    temperature, thresholds = calibration.settings(schema)
    return replace(apply_temperature(predictions, temperature), thresholds=thresholds)


def uncalibrated(predictions: PredictionSet, calibration: Calibration) -> PredictionSet:
    """Return the predictions of the uncalibrated model, given the calibrated ones."""
    inverse = 1 / (calibration.temperature or 1.0)
    return replace(apply_temperature(predictions, inverse), thresholds=DEFAULT_THRESHOLD)


def apply_temperature(predictions: PredictionSet, temperature: float) -> PredictionSet:
    """Return the predictions with raw outputs divided by a temperature.

    With 1 they stay bit-identical.
    """
    if temperature == 1:
        return predictions
    z = logits(predictions) / temperature
    if predictions.task == "multiclass":
        odds = np.exp(z - z.max(axis=1, keepdims=True))
        return replace(predictions, output=odds / odds.sum(axis=1, keepdims=True))
    return replace(predictions, output=_sigmoid(z).reshape(predictions.output.shape))


def logits(predictions: PredictionSet) -> Array:
    """Return the raw outputs that give the probabilities.

    [rows, classes], up to a constant per row, or [rows, 1 or labels]. A probability that was
    rounded to 0 or 1 does not determine its output: it counts as the nearest number that does,
    with a logit of -708 or 37. Of several classes only the small probabilities matter: -708.
    """
    if predictions.task == "multiclass":
        return np.asarray(np.log(np.maximum(predictions.scores, TINY)))
    p = predictions.scores.clip(TINY, NEARLY_ONE)
    return np.asarray(np.log(p) - np.log1p(-p))


def _sigmoid(z: Array) -> Array:
    # exp(800) is infinite, and 1 / inf is 0, which is correct.
    with np.errstate(over="ignore"):
        return np.asarray(1 / (1 + np.exp(-z)))


def fit_temperature(predictions: PredictionSet) -> float:
    """Return the temperature that minimizes the mean negative log likelihood.

    Guo et al. (2017, arXiv:1706.04599, section 4.2). The likelihood is that of the targets,
    whatever options the model's loss has; all labels count equally. As a function of the inverse
    temperature it has one minimum, which Newton's method finds; a step out of the bracket around
    it is replaced by bisection.

    Raises:
        UserError: if there is no such temperature.
    """
    if len(np.unique(predictions.target)) < 2:
        raise UserError(
            "--calibrate: expected validation rows of two classes or more, got a single one; "
            "leave it out."
        )
    z, low, high, inverse = logits(predictions), 1 / HIGHEST, 1 / LOWEST, 1.0
    if _derivatives(predictions, z, high)[0] <= 0:
        wrong = int((predictions.predicted != predictions.target).sum())
        raise UserError(
            f"--calibrate: expected mistakes on the validation split to learn from, got {wrong}, "
            f"so that every lower temperature, down to {LOWEST:g}, is better; leave it out."
        )
    if _derivatives(predictions, z, low)[0] >= 0:
        raise UserError(
            "--calibrate: expected predictions better than chance, got predictions for which "
            f"every higher temperature, up to {HIGHEST:g}, is better; train longer, or leave it "
            "out."
        )
    for _ in range(100):
        slope, curvature = _derivatives(predictions, z, inverse)
        low, high = (inverse, high) if slope < 0 else (low, inverse)
        step = inverse - slope / curvature if curvature > 0 else 0.0
        last, inverse = inverse, step if low <= step <= high else (low * high) ** 0.5
        if abs(inverse - last) <= 1e-12 * last:
            break
    return 1 / inverse


def _derivatives(predictions: PredictionSet, z: Array, inverse: float) -> tuple[float, float]:
    """Return the first two derivatives of the mean negative log likelihood.

    They are by the inverse temperature, at logits ``z`` [rows, columns].
    """
    if predictions.task == "multiclass":
        p = apply_temperature(predictions, 1 / inverse).output
        mean, square = (p * z).sum(axis=1), (p * z**2).sum(axis=1)
        slope = mean - z[np.arange(len(z)), predictions.target]
        return predictions.mean(slope), predictions.mean(square - mean**2)
    p = _sigmoid(z * inverse)
    slopes, curvatures = (p - predictions.hits) * z, p * (1 - p) * z**2
    if predictions.weight is None:
        return float(slopes.mean()), float(curvatures.mean())
    return predictions.mean(slopes.mean(axis=1)), predictions.mean(curvatures.mean(axis=1))


def fit_threshold(
    score: Array, hit: Array, rule: str, name: str, weight: Array | None = None
) -> float:
    """Return the threshold that a rule chooses for probabilities ``score`` [rows].

    ``hit`` [rows] is 0 and 1, ``weight`` [rows] the weights of the rows. The rule ``f1`` chooses
    the highest threshold with the largest F1, ``precision=P`` the lowest one with at least that
    precision, and so with the largest recall. The threshold is halfway between two probabilities,
    so that rounding moves no row across it.

    Raises:
        UserError: if no threshold fulfils the rule.
    """
    if hit.all() or not hit.any() or not score.any():
        raise UserError(
            f"--threshold: expected validation rows with and without {name}, and probabilities "
            f"above 0, got {int(hit.sum())} rows with it of {len(hit)}; leave --threshold out."
        )
    curve = curves.thresholds(score, hit, weight)
    # Leave out the threshold that accepts no row, and those that accept probability 0.
    usable = slice(1, int((curve.at > 0).sum()))
    levels, precision = curve.at[usable], curve.precision[usable]
    if rule == "f1":
        best = int(curve.f1[usable].argmax())
    else:
        sufficient = np.flatnonzero(precision >= float(rule.removeprefix("precision=")))
        if not len(sufficient):
            best_precision = np.floor(precision.max() * 1e4) / 1e4
            raise UserError(
                f"--threshold: expected a threshold with {rule} for {name} on the validation "
                f"split, got {best_precision:.4f} at best; ask for less."
            )
        best = int(sufficient[-1])
    below = float(levels[best + 1]) if best + 1 < len(levels) else 0.0
    between = (float(levels[best]) + below) / 2
    # There is no number between neighbouring floats.
    return between if between < levels[best] else below


def compare_calibration(
    before: PredictionSet, after: PredictionSet, calibration: Calibration
) -> list[tuple[str, float, float]]:
    """Return the metrics that a calibration changes, with their values before and after.

    A threshold changes no probability.
    """
    rows = []
    pair = (before, after)
    if calibration.temperature is not None:
        losses = [predictions.mean(curves.log_losses(predictions)) for predictions in pair]
        errors = [curves.reliability(*curves.confidence(predictions)).error for predictions in pair]
        rows = [
            ("negative log likelihood", losses[0], losses[1]),
            ("expected calibration error", errors[0], errors[1]),
        ]
    if calibration.thresholds is not None:
        old, new = (_scores(predictions) for predictions in pair)
        rows += [
            (name, float(a), float(b))
            for name, a, b in zip(metric_names(before), old, new, strict=True)
            if "/" not in name
        ]
    return rows


def _scores(predictions: PredictionSet) -> Array:
    single_unit = np.zeros(len(predictions), int)
    return scores(sums_of(predictions, single_unit, 1)[0], predictions)


def rarely_predicted(after: PredictionSet, calibration: Calibration) -> list[tuple[str, int]]:
    """Return the names with fewer than ``MIN_ROWS`` rows above their threshold, and how many."""
    counts = after.predicted.reshape(len(after), -1).sum(axis=0)
    names = calibration.thresholds or ()
    return [
        (name, int(count)) for name, count in zip(names, counts, strict=False) if count < MIN_ROWS
    ]
