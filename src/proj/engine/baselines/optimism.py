"""Optimism of a random split: how much better it scores than a split by group or by time."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from sklearn.ensemble import HistGradientBoostingRegressor
from threadpoolctl import threadpool_limits

from proj.data.base import DataModule
from proj.data.loader import take
from proj.engine.baselines.features import Features, TreeEncoder, features_of
from proj.engine.baselines.fitting import targets_of
from proj.engine.console import plural
from proj.engine.evaluation.paired import holm
from proj.schema import Array, Schema

# Rows, random columns, and targets or most frequent classes that are used at most.
MAX_ROWS, MAX_COLUMNS, MAX_TARGETS = 3_000, 60, 5
# Rows of a large group that are used at most, if the sample cannot hold all groups whole.
GROUP_ROWS = 20
# Folds of random rows and of groups, and how often they are drawn.
FOLDS, REPEATS = 5, 2
# The latest share of the rows is predicted in blocks, each from all rows before it.
TIME_SHARE, TIME_BLOCKS = 0.4, 4
BOOSTING = {"max_iter": 30, "learning_rate": 0.2, "max_leaf_nodes": 15}
PERMUTATIONS = BOOTSTRAPS = 1_999
# A split is proposed if p is below this level, and the random split scores at least so much better.
SIGNIFICANCE_LEVEL, MIN_GAP = 0.01, 0.02


class Candidate(Protocol):
    """A column to split the rows by."""

    @property
    def option(self) -> str:
        """``group`` or ``time``."""

    @property
    def column(self) -> str:
        """Name of the column."""

    @property
    def ranks(self) -> Array:
        """Dense ranks of its values from 0, -1 where one is missing [training rows]."""


@runtime_checkable
class HasCandidates(Protocol):
    """A data module that knows columns to split its rows by."""

    @property
    def candidates(self) -> Sequence[Candidate]:
        """The columns that the rows are split by, or could be."""

    def split_by(self, option: str, column: str) -> DataModule:
        """Return the data module for the same source, split by a column."""


@dataclass(frozen=True)
class Optimism:
    """What a random split claims of a quick baseline, and what a split by a column leaves of it.

    Attributes:
        option: ``group`` or ``time``.
        column: the column.
        is_complete: whether the column has a value in each training row.
        metric: name of the scores.
        rows: number of training rows that the baseline was fitted to and scored on.
        random: score of random splits.
        honest: score of splits by the column.
        low: lower end of the 95 % interval of their difference.
        high: upper end.
        p: the larger p-value of two hypotheses: rows of one group, or near in time, are not alike,
            and the random split does not score better.
    """

    option: str
    column: str
    is_complete: bool
    metric: str
    rows: int
    random: float
    honest: float
    low: float
    high: float
    p: float

    @property
    def gap(self) -> float:
        return self.random - self.honest

    @property
    def is_strong(self) -> bool:
        """Return whether the evidence is strong enough to split by the column."""
        return self.is_complete and self.gap >= MIN_GAP and self.p < SIGNIFICANCE_LEVEL

    def __str__(self) -> str:
        p = f"p = {self.p:.4f}" if self.p >= SIGNIFICANCE_LEVEL / 10 else "p < 0.001"
        return (
            f"{self.metric} {self.random:.3f} with a random split, {self.honest:.3f} with a split "
            f"by {self.option} {self.column}, difference {self.gap:.3f} (95 % interval "
            f"{self.low:.3f} to {self.high:.3f}, {p}; boosting on {plural(self.rows, 'row')})"
        )


class _Problem(NamedTuple):
    """Inputs and targets of a sample, with the value of the candidate of each row.

    Attributes:
        x: numbers and codes of categories, without the candidate [rows, columns].
        categories: whether a column of ``x`` holds codes [columns].
        y: standardized numbers, or indicators of classes [rows, targets].
        ranks: dense ranks of the candidate [rows].
    """

    x: Array
    categories: Array
    y: Array
    ranks: Array


class _Scores(NamedTuple):
    """Squared errors of the same rows in both kinds of splits.

    Attributes:
        random: squared errors of random splits, summed over targets [rows].
        honest: those of splits by the candidate [rows].
        total: those of the mean [rows].
        residuals: errors of one split by the candidate [rows, targets].
        units: the group or the stretch of time of each row, from 0 [rows].
        folds: the fold of each row in which ``residuals`` were predicted [rows].
    """

    random: Array
    honest: Array
    total: Array
    residuals: Array
    units: Array
    folds: Array


def measure_optimism(data: object) -> list[Optimism]:
    """Return the optimism of a random split for each candidate of a data module after ``setup``.

    The baseline is scikit-learn's gradient boosting with squared errors, fitted to a sample of the
    training rows. Its score is R² for numbers and the Brier skill score for classes: the share of
    the squared errors of a constant that it avoids. The interval is a bootstrap of groups, or of
    stretches of time. The test of whether rows are alike permutes the residuals of the split by the
    column among the rows of each fold. p-values have Holm's correction for several candidates.
    """
    if not isinstance(data, HasCandidates) or not isinstance(data, DataModule):
        return []
    assert data.schema is not None
    with threadpool_limits(1, "openmp"):
        found = [_measure(data, data.schema, candidate) for candidate in data.candidates]
    known = [one for one in found if one is not None]
    adjusted = holm([one.p for one in known])
    return [replace(one, p=p) for one, p in zip(known, adjusted, strict=True)]


def _measure(data: DataModule, schema: Schema, candidate: Candidate) -> Optimism | None:
    """Return the optimism for a candidate; None if the sample is too small or all alike."""
    rng = np.random.default_rng(0)
    is_group = candidate.option == "group"
    present = np.flatnonzero(candidate.ranks >= 0)
    ranks = candidate.ranks[present]
    chosen = present[_sample_groups(ranks, rng) if is_group else _latest(ranks)]
    problem = _problem(data, schema, candidate, chosen, rng)
    distinct = int(problem.ranks.max(initial=0)) + 1
    if distinct < 2 * (FOLDS if is_group else TIME_BLOCKS) or not problem.y.any():
        return None
    scores = (_score_groups if is_group else _score_times)(problem, rng)
    if scores is None or not (total := scores.total.sum()):
        return None
    gaps = _bootstrap(scores, rng)
    low, high = np.quantile(gaps, (0.025, 0.975))
    not_better = (1 + int((gaps <= 0).sum())) / (1 + BOOTSTRAPS)
    return Optimism(
        candidate.option,
        candidate.column,
        len(present) == len(candidate.ranks),
        "R²" if schema.task == "regression" else "Brier skill score",
        len(chosen),
        float(1 - scores.random.sum() / total),
        float(1 - scores.honest.sum() / total),
        float(low),
        float(high),
        max(not_better, alike_p_value(scores.residuals, scores.units, scores.folds, rng)),
    )


def _sample_groups(groups: Array, rng: np.random.Generator) -> Array:
    """Return the positions of at most about ``MAX_ROWS`` rows of random groups, ascending."""
    if len(groups) <= MAX_ROWS:
        return np.arange(len(groups))
    order = rng.permutation(len(groups))
    order = order[np.argsort(groups[order], kind="stable")]
    starts = np.flatnonzero(np.diff(groups[order], prepend=-1))
    sizes = np.diff(starts, append=len(order))
    place = np.arange(len(order)) - np.repeat(starts, sizes)
    limit = max(GROUP_ROWS, MAX_ROWS // len(starts))
    drawn = rng.permutation(len(starts))
    fitting = np.cumsum(np.minimum(sizes[drawn], limit)) <= MAX_ROWS
    is_drawn = np.zeros(len(starts), bool)
    is_drawn[drawn[fitting]] = True
    return np.sort(order[np.repeat(is_drawn, sizes) & (place < limit)])


def _latest(times: Array) -> Array:
    """Return the positions of the latest ``MAX_ROWS`` rows, ascending."""
    return np.sort(np.argsort(times, kind="stable")[-MAX_ROWS:])


def _problem(
    data: DataModule,
    schema: Schema,
    candidate: Candidate,
    chosen: Array,
    rng: np.random.Generator,
) -> _Problem:
    """Return the problem for chosen training rows."""
    batch = take(data.splits["train"], torch.from_numpy(chosen))
    # A split by time leaves the time an input, and one by group does not.
    left_out = candidate.column if candidate.option == "group" else None
    columns = (*schema.numeric, *schema.categorical)
    # Scores of texts are cross-fitted in random folds, so they know other rows of a group.
    used = np.flatnonzero([c.source != left_out and c.kind != "score" for c in columns])
    used = np.sort(rng.permutation(used)[:MAX_COLUMNS])
    features, numbers = features_of(batch, schema), len(schema.numeric)
    features = Features(
        features.numbers[:, used[used < numbers]],
        features.codes[:, used[used >= numbers] - numbers],
    )
    encoder = TreeEncoder(features)
    ranks = np.unique(candidate.ranks[chosen], return_inverse=True)[1]
    return _Problem(encoder(features), encoder.categories, _targets(batch, schema), ranks)


def _targets(batch: Any, schema: Schema) -> Array:
    """Return standardized numbers, or indicators of classes: [rows, targets] float64."""
    y = targets_of(batch)
    if schema.task == "regression":
        y = y.reshape(len(y), -1)[:, :MAX_TARGETS].astype(np.float64)
        return np.asarray((y - y.mean(axis=0)) / np.where(std := y.std(axis=0), std, 1))
    if schema.task == "multilabel":
        return np.asarray(y[:, :MAX_TARGETS], np.float64)
    if schema.task == "binary":
        return np.asarray(y.reshape(-1, 1), np.float64)
    frequent = np.argsort(-np.bincount(y), kind="stable")[:MAX_TARGETS]
    return np.asarray(y[:, None] == frequent, np.float64)


def _score_groups(problem: _Problem, rng: np.random.Generator) -> _Scores:
    """Score random folds, in which the group is an input, and folds of whole groups."""
    (x, categories, y, groups), rows = problem, len(problem.y)
    random, honest = np.zeros(rows), np.zeros(rows)
    for _ in range(REPEATS):
        row_folds = rng.permutation(rows) % FOLDS
        errors = y - _cross_predict(x, categories, y, row_folds, groups)
        random += np.square(errors).sum(axis=1) / REPEATS
        folds = (rng.permutation(groups.max() + 1) % FOLDS)[groups]
        residuals = y - _cross_predict(x, categories, y, folds)
        honest += np.square(residuals).sum(axis=1) / REPEATS
    total = np.square(y - y.mean(axis=0)).sum(axis=1)
    return _Scores(random, honest, total, residuals, groups, folds)


def _cross_predict(
    x: Array, categories: Array, y: Array, folds: Array, groups: Array | None = None
) -> Array:
    """Return the prediction of each row by a model of the other folds [rows, targets].

    ``groups`` become an input: the mean target of their training rows, shrunk to that of all.
    """
    predicted = np.empty(y.shape)
    for fold in range(FOLDS):
        test = folds == fold
        if groups is None:
            predicted[test] = _fit(x[~test], y[~test], categories)(x[test])
            continue
        inner = np.arange(int((~test).sum())) % FOLDS
        for k in range(y.shape[1]):
            means, test_means = _group_means(groups[~test], y[~test, k], inner, groups[test])
            train = np.column_stack([x[~test], means])
            predict = _fit(train, y[~test, k : k + 1], np.append(categories, False))
            predicted[test, k] = predict(np.column_stack([x[test], test_means]))[:, 0]
    return predicted


def _group_means(groups: Array, y: Array, folds: Array, test_groups: Array) -> tuple[Array, Array]:
    """Return the mean targets of the groups of training rows, and those of test rows.

    The mean of a training row is that of its group in the other folds, so that its own target is no
    input. Means are shrunk to that of all rows, as if each group had one more row with it.
    """
    count = int(max(groups.max(), test_groups.max())) + 1
    cells, shape = folds * count + groups, (FOLDS, count)
    sums = np.bincount(cells, y, FOLDS * count).reshape(shape)
    sizes = np.bincount(cells, minlength=FOLDS * count).reshape(shape)
    others = (sums.sum(axis=0) - sums + y.mean()) / (sizes.sum(axis=0) - sizes + 1)
    means = (sums.sum(axis=0) + y.mean()) / (sizes.sum(axis=0) + 1)
    return others[folds, groups], means[test_groups]


def _score_times(problem: _Problem, rng: np.random.Generator) -> _Scores | None:
    """Score blocks of the latest rows, predicted by earlier rows and by as many random ones.

    Return None if nearly all rows have the earliest time.
    """
    order = np.argsort(problem.ranks, kind="stable")
    x, y, times = problem.x[order], problem.y[order], problem.ranks[order]
    rows = len(y)
    # Rows of one time are in one block.
    cuts = np.linspace(round((1 - TIME_SHARE) * rows), rows, TIME_BLOCKS + 1)[:-1].astype(int)
    starts = np.unique([*np.searchsorted(times, times[cuts]), rows])
    starts = starts[starts > 0]
    if len(starts) < 2:
        return None
    tested = np.arange(starts[0], rows)
    random_test = rng.permutation(tested)
    later, mixed = np.empty((2, rows, y.shape[1]))
    for start, end in pairwise(starts):
        later[start:end] = _fit(x[:start], y[:start], problem.categories)(x[start:end])
        test = random_test[start - starts[0] : end - starts[0]]
        train = rng.permutation(np.setdiff1d(np.arange(rows), test))[:start]
        mixed[test] = _fit(x[train], y[train], problem.categories)(x[test])
    y, residuals = y[tested], (y - later)[tested]
    return _Scores(
        np.square(y - mixed[tested]).sum(axis=1),
        np.square(residuals).sum(axis=1),
        np.square(y - y.mean(axis=0)).sum(axis=1),
        residuals,
        _stretches(times[tested], blocks := np.searchsorted(starts, tested, side="right")),
        blocks,
    )


def _stretches(times: Array, blocks: Array) -> Array:
    """Return numbers from 0 of stretches of time inside of blocks: [rows].

    The times ascend. A stretch has about as many rows as a block has stretches.
    """
    length = max(2, round(np.sqrt(len(times) / TIME_BLOCKS)))
    stretches = np.searchsorted(times, times) // length
    return np.unique(np.stack([blocks, stretches]), axis=1, return_inverse=True)[1].reshape(-1)


def _fit(x: Array, y: Array, categories: Array) -> Callable[[Array], Array]:
    """Return the function from inputs to predictions [rows, targets] of boosting."""
    # Binning fails for a column without a value in these rows.
    known = ~np.isnan(x).all(axis=0)
    if not known.any():
        return lambda rows: np.repeat(y.mean(axis=0, keepdims=True), len(rows), axis=0)
    x, categories = x[:, known], categories[known]
    leaf = int(np.clip(len(y) // 40, 3, 20))
    models = [
        HistGradientBoostingRegressor(
            **BOOSTING,
            min_samples_leaf=leaf,
            early_stopping=False,
            categorical_features=categories,
            random_state=0,
        ).fit(x, target)
        for target in y.T
    ]
    return lambda rows: np.stack([model.predict(rows[:, known]) for model in models], axis=1)


def _bootstrap(scores: _Scores, rng: np.random.Generator) -> Array:
    """Return the differences of the scores for random units with replacement [BOOTSTRAPS]."""
    differences = np.bincount(scores.units, scores.honest - scores.random)
    totals = np.bincount(scores.units, scores.total)
    units = len(totals)
    counts = rng.multinomial(units, np.full(units, 1 / units), BOOTSTRAPS)
    sums = np.maximum(counts @ totals, 1e-30)
    return np.asarray(counts @ differences / sums)


def alike_p_value(residuals: Array, units: Array, folds: Array, rng: np.random.Generator) -> float:
    """Return the p-value of the hypothesis that the residuals of a unit are not alike.

    The statistic is the sum of squares between the units. It is compared with that of residuals
    which are permuted among the rows of each fold, after their mean in the fold is subtracted.

    Args:
        residuals: errors of a model that was fitted to other units [rows, targets].
        units: the group of each row, from 0 [rows].
        folds: the fold of each row; each unit is in one fold [rows].
        rng: draws the permutations.
    """
    order = np.argsort(folds, kind="stable")
    units, centred = units[order], residuals[order].T.copy()
    bounds = [0, *(np.flatnonzero(np.diff(folds[order])) + 1), len(order)]
    parts = [slice(*ends) for ends in pairwise(bounds)]
    for part in parts:
        centred[:, part] -= centred[:, part].mean(axis=1, keepdims=True)
    sizes = np.maximum(np.bincount(units), 1)

    def between(values: Array) -> float:
        return float(sum((np.square(np.bincount(units, v)) / sizes).sum() for v in values))

    observed, larger = between(centred), 0
    permutation = np.arange(len(order))
    for _ in range(PERMUTATIONS):
        for part in parts:
            rng.shuffle(permutation[part])
        # Sums of the same residuals in another order differ by rounding.
        larger += between(centred[:, permutation]) >= observed * (1 - 1e-12)
    return (1 + larger) / (1 + PERMUTATIONS)
