"""95 % intervals for every metric, each by a method that covers; `docs/evaluation.md` has how well."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from proj.engine.evaluation.counts import KINDS, names_of, ratio, scores, sums_of
from proj.engine.evaluation.prediction_set import Array, PredictionSet
from proj.engine.evaluation.ranks import auroc, average_precision
from proj.engine.evaluation.resampling import (
    RESAMPLES,
    Units,
    Z,
    bca,
    resampling_units,
    student,
    studentized,
)

PRIOR = 2  # rows
FEW = 5  # units below which there is nothing to resample
WIDEST = 100  # times an error, or as small a part of it, where a limit is no longer one
AREAS = {"auroc": auroc, "average_precision": average_precision}


class Interval(NamedTuple):
    """A metric with its 95 % interval; None where there is none, and then ``why``."""

    value: float | None
    low: float | None
    high: float | None
    support: int  # rows, of a class its own ones
    method: str = ""
    why: str = ""

    def entry(self) -> dict[str, Any]:
        """For ``metrics.json``."""
        return {name: value for name, value in self._asdict().items() if value != ""}


def intervals(outcomes: PredictionSet, seed: int = 0, areas: bool = True) -> dict[str, Interval]:
    """All metrics that predictions give, with intervals over rows, or over groups where there are any.

    The same ``seed`` gives the same ones. Without ``areas``, which sort the rows for each class, it is faster.
    """
    if missing := outcomes.missing:
        why = f"the prediction of {missing} of {len(outcomes)} rows is no number"
        names = [
            *names_of(outcomes),
            *([] if outcomes.task == "regression" else _area_names(outcomes)),
        ]
        return {
            name: Interval(None, None, None, support(outcomes, name), "", why) for name in names
        }
    rng = np.random.default_rng(seed)
    if outcomes.task == "regression":
        return dict(_errors(outcomes, rng))
    return dict([*_counts(outcomes, rng), *(_areas(outcomes) if areas else [])])


def mean_interval(values: Array, group: Array | None = None, seed: int = 0) -> Interval:
    """The mean of a positive value for each row [rows], such as the loss."""
    rng = np.random.default_rng(seed)
    unit, count = resampling_units(len(values), group, rng)
    sums = np.column_stack([np.bincount(unit, minlength=count), np.bincount(unit, values, count)])
    mean = float(values.mean())
    return _resampled(mean, _units(sums), lambda s: s[..., 1:] / s[..., :1], rng, len(values))[0]


def support(outcomes: PredictionSet, name: str) -> int:
    """How many rows a metric is about: those of its class or label; of the positive class where there are two."""
    kind, _, of = name.partition("/")
    if (
        outcomes.task == "regression"
        or kind in ("accuracy", "loss")
        or (not of and outcomes.task != "binary")
    ):
        return len(outcomes)
    return int(outcomes.hits[:, outcomes.names.index(of) if of else 0].sum())


def wilson(share: Array | float, count: Array | float) -> tuple[Array, Array]:
    """Limits of a proportion of ``count`` cases: Wilson (1927), JASA 22:209. NaN where there is no case."""
    share, count = np.asarray(share, float), np.asarray(count, float)
    with np.errstate(divide="ignore", invalid="ignore"):
        middle = (share + Z**2 / (2 * count)) / (1 + Z**2 / count)
        half = Z / (1 + Z**2 / count) * np.sqrt(share * (1 - share) / count + Z**2 / (4 * count**2))
    none, every = (share == 0) & (count > 0), (share == 1) & (count > 0)
    return np.where(none, 0.0, middle - half), np.where(every, 1.0, middle + half)


# Metrics made of counts


def _counts(outcomes: PredictionSet, rng: np.random.Generator) -> Iterator[tuple[str, Interval]]:
    """Wilson's limits where they hold, BCa's of resampled counts for macro averages, and for all where rows are grouped."""
    task, grouped, names = outcomes.task, outcomes.group is not None, names_of(outcomes)
    units = _count_units(outcomes, rng)
    values = scores(units.total, task)
    share = (
        units.times.sum() / len(outcomes) if grouped else 1.0
    )  # groups stand for as many rows as there are groups
    low, high = _wilson_all(units.total, task, share)
    macro = np.array([task != "binary" and name in KINDS for name in names])
    resampled = macro | grouped
    if resampled.any() and units.times.sum() >= FEW:
        limits, varies = bca(units, lambda sums: scores(sums, task), rng)
        resampled &= varies
        low, high = np.where(resampled, limits[0], low), np.where(resampled, limits[1], high)
    else:
        resampled = np.zeros(len(names), bool)
    drawn = f"BCa, {RESAMPLES} resamples of {int(units.times.sum())} {_kind(outcomes, units)}"
    for i, name in enumerate(names):
        rows = support(outcomes, name)
        if np.isnan(low[i]):
            yield name, Interval(float(values[i]), None, None, rows, "", _convention(name))
        else:
            method = drawn if resampled[i] else "Wilson, of each class" if macro[i] else "Wilson"
            yield name, Interval(float(values[i]), float(low[i]), float(high[i]), rows, method)


def _convention(name: str) -> str:
    why = {"precision": "it is never predicted", "recall": "no row is of it"}
    return f"{why.get(name.split('/')[0], 'it is neither there nor predicted')}: 0/0, which counts as 0"


def _count_units(outcomes: PredictionSet, rng: np.random.Generator) -> Units:
    """Rows of one target and one prediction are one unit, the cell of a confusion matrix, that occurs several times."""
    if outcomes.task == "multilabel" or outcomes.group is not None:
        unit, count = resampling_units(len(outcomes), outcomes.group, rng)
        return _units(sums_of(outcomes, unit, count))
    cell = outcomes.target * len(outcomes.names) + outcomes.predicted
    _, unit, times = np.unique(cell, return_inverse=True, return_counts=True)
    return Units(sums_of(outcomes, unit, len(times)) / times[:, None], times)


def _units(sums: Array) -> Units:
    return Units(sums, np.ones(len(sums), np.int64))


def _kind(outcomes: PredictionSet, units: Units) -> str:
    of = "rows" if outcomes.group is None else "groups"
    there = len(outcomes) if outcomes.group is None else int(outcomes.group.max()) + 1
    return of if units.times.sum() == there else f"blocks of {there} {of}"


def _wilson_all(total: Array, task: str, share: float) -> Array:
    """Limits of all metrics of counts, [2, metrics], each count taken for ``share`` of it.

    Accuracy, precision and recall are proportions; how many cases they are of is random for precision, which is taken as
    it came out. F1 is 2J/(1+J) of the proportion J, the true ones among all that are predicted or there (Lam et al. 2023,
    arXiv:2309.14621, "Wilson indirect"). A mean over classes has the limits of Zou and Donner (2008, Statistics in Medicine
    27:1693) for independent ones; they are used where resampling cannot tell, when each class is all right or all wrong.
    """
    true, named, there = total[2:].reshape(-1, 3).T
    either = named + there - true
    cases = [
        (ratio(true, named), named),
        (ratio(true, there), there),
        (ratio(true, either), either),
    ]
    limits = [np.stack(wilson(part, count * share)) for part, count in cases]
    limits[2] = 2 * limits[2] / (1 + limits[2])
    accuracy = np.stack(wilson(total[1:2] / total[0], total[0] * share))
    if task == "binary":
        return np.concatenate([accuracy, *limits], axis=1)
    values = [ratio(true, named), ratio(true, there), ratio(2 * true, named + there)]
    count = int(
        ((named + there > 0) | (task == "multilabel")).sum()
    )  # of 0/0, some count as 0, and do not vary
    macro = []
    for value, mean, (low, high) in zip(values, scores(total, task)[1:4], limits, strict=True):
        known = ~np.isnan(low)
        half = [
            np.sqrt(((limit - value)[known] ** 2).sum()) / max(1, count) for limit in (low, high)
        ]
        macro.append([mean - half[0], mean + half[1]] if known.any() else [np.nan, np.nan])
    return np.concatenate(
        [accuracy, np.transpose(macro), *(limits if len(true) > 1 else [])], axis=1
    )


# Areas


def _area_names(outcomes: PredictionSet) -> list[str]:
    single = outcomes.task != "binary" and len(outcomes.names) > 1
    return [
        name
        for kind in AREAS
        for name in (kind, *([f"{kind}/{of}" for of in outcomes.names] if single else []))
    ]


def _areas(outcomes: PredictionSet) -> Iterator[tuple[str, Interval]]:
    hits, given = outcomes.hits, outcomes.scores
    for kind, area in AREAS.items():
        values, influences = zip(
            *(area(score, hit) for score, hit in zip(given.T, hits.T, strict=True)), strict=True
        )
        known = [i for i, value in enumerate(values) if not np.isnan(value)]
        if known:
            influence = np.mean([influences[i] for i in known], axis=0)
            numbers = [(int(hits[:, i].sum()), int((1 - hits[:, i]).sum())) for i in known]
            yield (
                kind,
                _area(
                    outcomes, kind, float(np.mean([values[i] for i in known])), influence, numbers
                ),
            )
        else:
            yield kind, _no_area(outcomes, kind)
        if outcomes.task == "binary" or len(values) < 2:
            continue
        for i, name in enumerate(outcomes.names):
            numbers = [(int(hits[:, i].sum()), int((1 - hits[:, i]).sum()))]
            one = (
                _area(outcomes, f"{kind}/{name}", values[i], influences[i], numbers)
                if i in known
                else _no_area(outcomes, f"{kind}/{name}")
            )
            yield f"{kind}/{name}", one


def _no_area(outcomes: PredictionSet, name: str) -> Interval:
    why = "it needs rows that are of the class and rows that are not"
    return Interval(None, None, None, support(outcomes, name), "", why)


def _area(
    outcomes: PredictionSet,
    name: str,
    value: float,
    influence: Array,
    numbers: list[tuple[int, int]],
) -> Interval:
    """Limits of an area, or of a mean of areas of ``numbers`` of positive and negative rows, on the scale of logits.

    The standard error is that of the influences (DeLong's for the area under the ROC curve), summed by group where there
    are groups. Of few rows of one kind that is too small, by chance of which they are: the quantile is Student's, and
    DeLong's variance is drawn towards that of Hanley and McNeil, as if it were known from ``PRIOR`` rows. Where all is right
    or all wrong it is 0, and the limits are those of a single area of as many rows.
    """
    rows, kind = support(outcomes, name), name.split("/")[0]
    units = len(outcomes) if outcomes.group is None else int(outcomes.group.max()) + 1
    m, k = (sum(part) for part in zip(*numbers, strict=True))
    if kind == "auroc" and value in (0.0, 1.0):
        low, high = newcombe(value, m * units / len(outcomes), k * units / len(outcomes))
        return Interval(value, low, high, rows, "Newcombe")
    if value == 1.0:
        return Interval(
            value, float(wilson(value, m * units / len(outcomes))[0]), 1.0, rows, "Wilson"
        )
    if np.isnan(influence).any() or units < FEW:
        fewest = min(units, *(count for pair in numbers for count in pair))
        return Interval(
            value, None, None, rows, "", f"{fewest} of them are too few to know how it varies"
        )
    if outcomes.group is not None:
        influence = np.bincount(outcomes.group, influence) * np.sqrt(units / (units - 1))
    variance = (influence**2).sum() / len(outcomes) ** 2
    if (
        kind == "auroc" and len(numbers) == 1 and outcomes.group is None and variance > 0
    ):  # 0: all scores are equal
        variance += (hanley(value, m, k) - variance) * PRIOR / (PRIOR + min(m, k))
    half = student(min(m, k, units) - 1) * np.sqrt(variance) / (value * (1 - value))
    middle = np.log(value / (1 - value))
    low, high = (float(1 / (1 + np.exp(-(middle + side * half)))) for side in (-1, 1))
    return Interval(
        value,
        low,
        high,
        rows,
        "DeLong, of logits" if kind == "auroc" else "infinitesimal jackknife, of logits",
    )


def newcombe(area: float, m: float, k: float) -> tuple[float, float]:
    """Limits of an area of 0 or 1 under the ROC curve of ``m`` positive and ``k`` negative rows.

    Method 5 of Newcombe (2006, Statistics in Medicine 25:559): the variance is that of an area of the limit itself.
    """
    low, high = 0.0, 1.0
    for _ in range(60):  # halved until it is exact
        theta = (low + high) / 2
        low, high = (theta, high) if (1 - theta) ** 2 > Z**2 * hanley(theta, m, k) else (low, theta)
    return (low, 1.0) if area == 1 else (0.0, 1 - low)


def hanley(area: float, m: float, k: float) -> float:
    """The variance of an area for scores of exponential distributions, with the mean of both numbers for each.

    Hanley and McNeil (1982), Radiology 143:29, as modified by Newcombe (2006).
    """
    more = (m + k) / 2 - 1
    return area * (1 - area) * (1 + more * ((1 - area) / (2 - area) + area / (1 + area))) / (m * k)


# Errors


def _errors(outcomes: PredictionSet, rng: np.random.Generator) -> Iterator[tuple[str, Interval]]:
    """Bootstrap-t limits; R² by the share of the variance that is left."""
    unit, count = resampling_units(len(outcomes), outcomes.group, rng)
    units, names = _units(sums_of(outcomes, unit, count)), names_of(outcomes)
    r2 = np.array([name.startswith("r2") for name in names])

    def positive(sums: Array) -> Array:
        values = scores(sums, "regression")
        return np.where(r2, 1 - values, values)

    values = scores(units.total, "regression")
    found = _resampled(np.where(r2, 1 - values, values), units, positive, rng, len(outcomes), r2)
    drawn = f"bootstrap-t, {RESAMPLES} resamples of {count} {_kind(outcomes, units)}"
    for name, interval in zip(names, found, strict=True):
        interval = interval._replace(method=interval.method and drawn)
        if name.startswith("r2") and interval.value is not None:
            turned = [
                None if v is None else 1 - v for v in (interval.value, interval.high, interval.low)
            ]
            interval = interval._replace(value=turned[0], low=turned[1], high=turned[2])
        if name.startswith("r2") and interval.value is None:
            why = "one row has no variance" if len(outcomes) == 1 else "the target does not vary"
            interval = interval._replace(why=why)
        yield name, interval


def _resampled(
    value: Any,
    units: Units,
    statistic: Any,
    rng: np.random.Generator,
    rows: int,
    quotient: Array | bool = False,
) -> list[Interval]:
    values = np.atleast_1d(value)
    few = len(units.times) < FEW
    limits = (
        np.full((2, len(values)), np.nan) if few else studentized(units, statistic, rng, quotient)
    )
    found = []
    for v, (low, high) in zip(values, limits.T, strict=True):
        if np.isnan(v):
            found.append(Interval(None, None, None, rows, "", "it is not defined"))
        elif np.isnan(low) or np.isnan(high):
            why = (
                f"{len(units.times)} of them are too few to know how it varies"
                if few
                else "it does not vary between rows"
            )
            found.append(Interval(float(v), None, None, rows, "", why))
        elif high > WIDEST * v or v > WIDEST * low:
            found.append(
                Interval(float(v), None, None, rows, "", "a few rows make up nearly all of it")
            )
        else:
            found.append(
                Interval(
                    float(v), float(low), float(high), rows, f"bootstrap-t, {RESAMPLES} resamples"
                )
            )
    return found
