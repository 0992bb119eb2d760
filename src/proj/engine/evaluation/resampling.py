"""Bootstrap intervals of functions of sums, by resampling the units that are summed over."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from proj.engine.evaluation.limits import NORMAL, Z
from proj.schema import Array

RESAMPLES = 2_000
# Up to this number of units, each one is resampled. More are first put into blocks at random:
# a metric varies between such blocks as between single units, and the time stays the same.
MAX_UNITS = 4_000
BLOCKS = 2_000

Statistic = Callable[[Array], Array]  # sums [..., sums] to metrics [..., metrics]


class Units(NamedTuple):
    """Units that are drawn with replacement: the sums of each, and how often it occurs."""

    sums: Array  # [units, sums]
    times: Array  # [units]

    @property
    def total(self) -> Array:
        """The sums over all units, [sums]."""
        return np.asarray(self.times @ self.sums)

    def resamples(self, rng: np.random.Generator) -> Array:
        """Draw as many units as exist; return how often each is drawn: [resamples, units]."""
        count = int(self.times.sum())
        if len(self.times) < count:
            return rng.multinomial(count, self.times / count, RESAMPLES)
        offsets = np.arange(RESAMPLES)[:, None] * count
        indices = rng.integers(count, size=(RESAMPLES, count), dtype=np.int32) + offsets
        return np.bincount(indices.ravel(), minlength=RESAMPLES * count).reshape(RESAMPLES, count)

    def without(self) -> Array:
        """Return the sums with each unit left out once, for the jackknife: [units, sums]."""
        return np.asarray(self.total - self.sums)


def units_of(sums: Array) -> Units:
    """Return units, each of which occurs once."""
    return Units(sums, np.ones(len(sums), np.int64))


def resampling_units(rows: int, group: Array | None, rng: np.random.Generator) -> tuple[Array, int]:
    """Return the number of each row's unit [rows], and the number of units.

    A unit is a row, a group of rows, or a block of either.
    """
    unit = np.arange(rows) if group is None else group
    units = int(unit.max()) + 1
    if units > MAX_UNITS:
        unit, units = rng.permutation(units)[unit] % BLOCKS, BLOCKS
    return unit, units


def bca(units: Units, statistic: Statistic, rng: np.random.Generator) -> tuple[Array, Array]:
    """Return bias-corrected and accelerated bootstrap limits [2, metrics].

    The second result says which metrics vary at all, [metrics]. Efron (1987), JASA 82:171, with
    the jackknife's acceleration. Percentile limits alone cover too little.
    """
    value, resampled = statistic(units.total), statistic(units.resamples(rng) @ units.sums)
    left_out = statistic(units.without())
    gap = np.average(left_out, axis=0, weights=units.times) - left_out
    spread = units.times @ gap**2
    varies = (spread > 1e-20) & (np.ptp(resampled, axis=0) > 0)
    cubed = np.where(varies, units.times @ gap**3, 0.0)
    acceleration = cubed / (6 * np.where(varies, spread, 1.0) ** 1.5)
    smaller, equal = resampled < value - 1e-12, np.abs(resampled - value) <= 1e-12
    below = np.mean(smaller, axis=0) + np.mean(equal, axis=0) / 2
    limits = np.empty((2, len(value)))
    for i, share in enumerate(below.clip(0.5 / RESAMPLES, 1 - 0.5 / RESAMPLES)):
        bias = NORMAL.inv_cdf(share)
        for side, z in enumerate((bias - Z, bias + Z)):
            quantile = NORMAL.cdf(bias + z / (1 - acceleration[i] * z))
            limits[side, i] = np.quantile(resampled[:, i], quantile)
    return limits, varies


class BootstrapSamples(NamedTuple):
    """Metrics and their standard errors, of all units and of each resample."""

    value: Array  # [metrics]
    error: Array  # [metrics]
    values: Array  # [resamples, metrics]
    errors: Array  # [resamples, metrics]


def bootstrap(units: Units, statistic: Statistic, rng: np.random.Generator) -> BootstrapSamples:
    """Return the metrics and standard errors of units, each of which occurs once, and of resamples.

    The standard errors are those of the jackknife's linear approximation.
    """
    value, count = statistic(units.total), len(units.times)
    influence = (count - 1) * (value - statistic(units.without()))
    weights = units.resamples(rng)
    variance = weights @ influence**2 / count - (weights @ influence / count) ** 2
    error = np.sqrt(np.mean(influence**2, axis=0) / count)
    errors = np.sqrt(variance.clip(0) / count)
    return BootstrapSamples(value, error, statistic(weights @ units.sums), errors)


def studentized(
    units: Units, statistic: Statistic, rng: np.random.Generator, quotient: Array | bool = False
) -> Array:
    """Return bootstrap-t limits [2, metrics] of positive metrics, computed on the log scale.

    The limits are NaN where a metric does not vary, and infinite where too few units account for
    it. Efron (1982), section 10.10, recommended for means of skewed values by
    Hall (1988, Annals of Statistics 16:927).

    The standard error of a logarithm is the standard error of the metric divided by the metric, in
    each resample by the metric of the resample. For a ``quotient`` [metrics], the linear
    approximation is already that of the logarithm, so it is divided by the metric of all rows.
    """
    value, error, values, errors = bootstrap(units, statistic, rng)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        t = (np.log(values) - np.log(value)) * np.where(quotient, value, values) / errors
        limits = value * np.exp(-np.quantile(t, [0.975, 0.025], axis=0) * error / value)
    limits = np.where(np.isfinite(limits).all(axis=0), limits, np.inf)
    return np.where((value > 0) & ~(error <= 1e-12 * value), limits, np.nan)
