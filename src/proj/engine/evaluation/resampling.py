"""Intervals of functions of sums, by resampling the units that are summed over."""

from collections.abc import Callable
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from proj.engine.evaluation.prediction_set import Array

RESAMPLES = 2_000
MOST = 4_000  # units that are resampled one by one
BLOCKS = 2_000  # of more units, dealt at random: between them a metric varies as between rows, and it takes no longer
NORMAL = NormalDist()
Z = NORMAL.inv_cdf(0.975)


def student(freedom: float) -> float:
    """The quantile of Student's t in the place of ``Z``: Abramowitz and Stegun (1964), 26.7.5."""
    v = max(1.0, freedom)
    return (
        Z
        + (Z**3 + Z) / (4 * v)
        + (5 * Z**5 + 16 * Z**3 + 3 * Z) / (96 * v**2)
        + (3 * Z**7 + 19 * Z**5 + 17 * Z**3 - 15 * Z) / (384 * v**3)
    )


Statistic = Callable[[Array], Array]  # sums [..., sums] to metrics [..., metrics]


class Units(NamedTuple):
    """What is drawn with replacement: sums for each unit, and how often each occurs."""

    sums: Array  # [units, sums]
    times: Array  # [units]

    @property
    def total(self) -> Array:
        return np.asarray(self.times @ self.sums)

    def resamples(self, rng: np.random.Generator) -> Array:
        """How often each unit is in each of as many draws as there are units: [resamples, units]."""
        count = int(self.times.sum())
        if len(self.times) < count:
            return rng.multinomial(count, self.times / count, RESAMPLES)
        drawn = (
            rng.integers(count, size=(RESAMPLES, count), dtype=np.int32)
            + np.arange(RESAMPLES)[:, None] * count
        )
        return np.bincount(drawn.ravel(), minlength=RESAMPLES * count).reshape(RESAMPLES, count)

    def without(self) -> Array:
        """The sums without one unit, for each: [units, sums]."""
        return np.asarray(self.total - self.sums)


def resampling_units(rows: int, group: Array | None, rng: np.random.Generator) -> tuple[Array, int]:
    """The number of each row's unit [rows], and how many units there are: rows, groups, or blocks of either."""
    unit = np.arange(rows) if group is None else group
    units = int(unit.max()) + 1
    if units > MOST:
        unit, units = rng.permutation(units)[unit] % BLOCKS, BLOCKS
    return unit, units


def bca(units: Units, statistic: Statistic, rng: np.random.Generator) -> tuple[Array, Array]:
    """Bias-corrected and accelerated bootstrap limits of each metric, [2, metrics], and where it varies at all, [metrics].

    Efron (1987), JASA 82:171; the acceleration is the jackknife's. Percentile limits alone cover too little.
    """
    value, drawn = statistic(units.total), statistic(units.resamples(rng) @ units.sums)
    left = statistic(units.without())
    gap = np.average(left, axis=0, weights=units.times) - left
    spread = units.times @ gap**2
    varies = (spread > 1e-20) & (np.ptp(drawn, axis=0) > 0)
    acceleration = np.where(varies, units.times @ gap**3, 0.0) / (
        6 * np.where(varies, spread, 1.0) ** 1.5
    )
    below = (
        np.mean(drawn < value - 1e-12, axis=0) + np.mean(np.abs(drawn - value) <= 1e-12, axis=0) / 2
    )
    limits = np.empty((2, len(value)))
    for i, share in enumerate(below.clip(0.5 / RESAMPLES, 1 - 0.5 / RESAMPLES)):
        bias = NORMAL.inv_cdf(share)
        for side, z in enumerate((bias - Z, bias + Z)):
            limits[side, i] = np.quantile(
                drawn[:, i], NORMAL.cdf(bias + z / (1 - acceleration[i] * z))
            )
    return limits, varies


class Drawn(NamedTuple):
    """Metrics, their standard errors, and both again in each resample."""

    value: Array  # [metrics]
    error: Array  # [metrics]
    values: Array  # [resamples, metrics]
    errors: Array  # [resamples, metrics]


def drawn(units: Units, statistic: Statistic, rng: np.random.Generator) -> Drawn:
    """Resamples of units that occur once each; the errors are those of the jackknife's linear approximation."""
    value, count = statistic(units.total), len(units.times)
    influence = (count - 1) * (value - statistic(units.without()))
    weights = units.resamples(rng)
    variance = weights @ influence**2 / count - (weights @ influence / count) ** 2
    error = np.sqrt(np.mean(influence**2, axis=0) / count)
    return Drawn(value, error, statistic(weights @ units.sums), np.sqrt(variance.clip(0) / count))


def studentized(
    units: Units, statistic: Statistic, rng: np.random.Generator, quotient: Array | bool = False
) -> Array:
    """Bootstrap-t limits, on the scale of logarithms, of metrics that are above 0: [2, metrics]. They are NaN where a metric
    does not vary, and inf where so few units make it up that it has no limit.

    Efron (1982), section 10.10, recommended for means of skewed values by Hall (1988, Annals of Statistics 16:927). The
    error of a logarithm is the metric's own by the metric, in each resample by its own; that of a ``quotient`` [metrics],
    whose linear approximation is one of the logarithm, by the one of all rows.
    """
    value, error, values, errors = drawn(units, statistic, rng)
    with np.errstate(divide="ignore", invalid="ignore"):
        t = (np.log(values) - np.log(value)) * np.where(quotient, value, values) / errors
        limits = value * np.exp(-np.quantile(t, [0.975, 0.025], axis=0) * error / value)
    limits = np.where(np.isfinite(limits).all(axis=0), limits, np.inf)
    return np.where((value > 0) & ~(error <= 1e-12 * value), limits, np.nan)
