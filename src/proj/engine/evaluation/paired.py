"""Differences between two runs on the same rows: how large, how sure, and whether chance alone makes such."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import t as student

from proj.engine.evaluation.counts import names_of, scores, sums_of
from proj.engine.evaluation.intervals import AREAS
from proj.engine.evaluation.prediction_set import PredictionSet
from proj.engine.evaluation.resampling import Statistic, Units, drawn, resampling_units

LEVEL = 0.05


class Difference(NamedTuple):
    """A metric of one run less that of the first one, on the same rows."""

    value: float
    low: float
    high: float
    p: float  # how likely at least so much is, by chance, for runs that are equally good
    test: str


def differences(one: PredictionSet, other: PredictionSet, seed: int = 0) -> dict[str, Difference]:
    """Every metric of ``other`` less that of ``one``; what is not defined, or not known how it varies, is left out.

    Metrics of counts and of errors by a paired bootstrap: the same rows, or groups, are drawn for both. Accuracy, where rows
    are not grouped, by McNemar's test. Areas by the paired test of DeLong et al. (1988), and its like for average precision.
    """
    rng, names = np.random.default_rng(seed), names_of(one)
    unit, count = resampling_units(len(one), one.group, rng)
    sums = np.column_stack([sums_of(one, unit, count), sums_of(other, unit, count)])
    half = sums.shape[1] // 2
    found = paired(
        Units(sums, np.ones(count, np.int64)),
        lambda s: scores(s[..., half:], one.task) - scores(s[..., :half], one.task),
        rng,
    )
    by_name = {
        name: each for name, each in zip(names, found, strict=True) if not math.isnan(each.low)
    }
    if one.task == "regression":
        return by_name
    if one.group is None:
        right = [
            np.equal(of.predicted, of.target).reshape(len(of), -1).all(axis=1)
            for of in (one, other)
        ]
        p = mcnemar(int((right[0] & ~right[1]).sum()), int((right[1] & ~right[0]).sum()))
        by_name["accuracy"] = by_name["accuracy"]._replace(p=p, test="McNemar, mid-p")
    areas = {kind: _area(one, other, kind) for kind in AREAS}
    return by_name | {kind: area for kind, area in areas.items() if area is not None}


def paired(units: Units, statistic: Statistic, rng: np.random.Generator) -> list[Difference]:
    """Differences by a studentized bootstrap, symmetric: Hall (1988), Annals of Statistics 16:927, as in `resampling.py`.

    Interval and p-value agree: 0 is within the one exactly where the other is above 0.05.
    """
    value, error, values, errors = drawn(units, statistic, rng)
    # A resample without any of the rows in which the two differ has no error, and cannot tell how far off the difference is.
    tells = np.asarray(errors > 1e-6 * error)
    t = np.full(values.shape, np.nan)
    np.divide(np.abs(values - value), errors, out=t, where=tells)
    t[0, ~tells.any(axis=0)] = 0.0  # the two differ in no row, or in each alike
    with np.errstate(divide="ignore", invalid="ignore"):
        p = (1 + (t >= np.abs(value) / error).sum(axis=0)) / (1 + tells.sum(axis=0))
    half = np.nanquantile(t, 1 - LEVEL, axis=0) * error
    return [
        _certain(v) if e <= 1e-12 else Difference(v, v - h, v + h, chance, "paired bootstrap")
        for v, h, chance, e in zip(*(of.tolist() for of in (value, half, p, error)), strict=True)
    ]


def _certain(value: float) -> Difference:
    """A difference that is the same on each row, as of a run with itself."""
    return Difference(
        value, value, value, 1.0 if abs(value) < 1e-12 else 0.0, "the same on each row"
    )


def mcnemar(one: int, other: int) -> float:
    """Two-sided mid-p value of McNemar's test for how often only the one, and only the other, is right.

    Fagerland, Lydersen and Laake (2013), BMC Medical Research Methodology 13:91, who recommend it over the exact one.
    """
    count, fewer = one + other, min(one, other)
    if not count:
        return 1.0
    logs = [
        math.lgamma(count + 1) - math.lgamma(k + 1) - math.lgamma(count - k + 1)
        for k in range(fewer + 1)
    ]
    chances = np.exp(np.array(logs) - count * math.log(2))
    return float(min(1.0, 2 * chances.sum() - chances[-1]))


def _area(one: PredictionSet, other: PredictionSet, kind: str) -> Difference | None:
    """Areas, or their means over the classes that have one; with Student's quantile, as in `intervals.py`."""
    values, influences = [], []
    for of in (one, other):
        found = [AREAS[kind](score, hit) for score, hit in zip(of.scores.T, of.hits.T, strict=True)]
        known = [area for area in found if not math.isnan(area[0])]
        if not known or np.isnan([influence for _, influence in known]).any():
            return None
        values.append(float(np.mean([value for value, _ in known])))
        influences.append(np.mean([influence for _, influence in known], axis=0))
    moved = influences[1] - influences[0]
    hits = one.hits[:, [0 < share < 1 for share in one.hits.mean(axis=0)]]
    freedom = min(hits.sum(), (1 - hits).sum()) - 1
    if one.group is not None:
        moved = np.bincount(one.group, moved)
        moved = moved * np.sqrt(len(moved) / max(1, len(moved) - 1))
        freedom = min(freedom, len(moved) - 1)
    value, error = values[1] - values[0], float(np.sqrt((moved**2).sum()) / len(one))
    if error < 1e-12:
        return _certain(value)
    if freedom < 1:  # a single row of one kind
        return None
    t = student(freedom)
    half, p = float(t.ppf(1 - LEVEL / 2)) * error, 2 * float(t.sf(abs(value) / error))
    return Difference(
        value, value - half, value + half, p, "DeLong" if kind == "auroc" else "jackknife"
    )


def holm(ps: Sequence[float]) -> list[float]:
    """p-values for several runs, so that one of them is below 0.05 by chance in 5 % of all cases: Holm (1979)."""
    adjusted, most = [0.0] * len(ps), 0.0
    for rank, i in enumerate(sorted(range(len(ps)), key=lambda i: ps[i])):
        most = max(most, min(1.0, (len(ps) - rank) * ps[i]))
        adjusted[i] = most
    return adjusted
