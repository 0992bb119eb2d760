"""Intervals against references: scikit-learn, scipy, definitions written out; that they cover; what has none says why."""

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn import metrics as sk

from conftest import plain_schema, script_of
from proj.engine.evaluation.counts import names_of, scores, sums_of
from proj.engine.evaluation.intervals import Interval, intervals, mean_interval, newcombe, wilson
from proj.engine.evaluation.prediction_set import PredictionSet
from proj.engine.evaluation.ranks import auroc, average_precision
from proj.engine.evaluation.resampling import Units, bca, resampling_units, student, studentized
from proj.metrics import StageMetrics

TASKS = ("binary", "multiclass", "multilabel", "regression", "regression_2")


def outcomes(task: str, rows: int = 150, seed: int = 0) -> PredictionSet:
    """Predictions that are right mostly; class 2 of several is never predicted, and class 4 neither that nor there."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(rows, 5))
    if task == "multiclass":
        target = rng.integers(4, size=rows)
        score = noise + 2 * np.eye(5)[target]
        score[:, [2, 4]] -= 50
        output = np.exp(score) / np.exp(score).sum(1, keepdims=True)
        return PredictionSet("multiclass", tuple("abcde"), np.arange(rows), target, output)
    if task.startswith("regression"):
        count = 2 if task.endswith("2") else 1
        target = 1000 + 50 * noise[:, :count]
        return PredictionSet(
            "regression",
            tuple("ab"[:count]),
            np.arange(rows),
            target,
            target + 20 * noise[:, 2 : 2 + count],
        )
    labels = (noise[:, :3] + noise[:, 3:4] > 0.5).astype(np.int64)
    output = 1 / (1 + np.exp(-2 * (noise[:, :3] + noise[:, 4:] - 0.2)))
    output[:, 2] /= 3  # a label that is never predicted
    if task == "binary":
        return PredictionSet("binary", ("no", "yes"), np.arange(rows), labels[:, 0], output[:, 0])
    return PredictionSet("multilabel", tuple("abc"), np.arange(rows), labels, output)


@pytest.mark.parametrize("task", TASKS)
def test_values_are_those_that_the_run_writes(task: str) -> None:
    """Those of `metrics.py`, which `test_metrics.py` compares with scikit-learn; here with classes never predicted."""
    o = outcomes(task)
    schema = plain_schema(o.task, (1,), len(o.names))
    meter = StageMetrics(schema, "test")
    meter.names = o.names
    target = torch.from_numpy(o.target)
    meter.update(torch.from_numpy(o.output), target, torch.zeros(1), torch.ones(1))
    written = {name: value.item() for name, value in meter.compute().items() if name != "loss"}
    found = intervals(o)
    assert found.keys() == written.keys()
    for name, value in written.items():
        if np.isnan(value):
            assert found[name].value is None
            assert found[name].why
        else:
            assert found[name].value == pytest.approx(value, rel=1e-6, abs=1e-7), name
    if not task.startswith("regression"):
        assert found["accuracy"].value == sk.accuracy_score(o.target, o.predicted)


@pytest.mark.parametrize("task", TASKS)
def test_an_interval_lies_around_its_value_within_what_is_possible(task: str) -> None:
    for name, found in intervals(outcomes(task)).items():
        if found.value is None or found.low is None or found.high is None:
            assert found.why, name
            continue
        assert found.low <= found.value <= found.high, name
        assert found.low < found.high, name
        assert found.high <= 1 or o_is_unbounded(name), name
        assert found.low >= 0 or name.startswith("r2"), name
        assert found.method, name


def o_is_unbounded(name: str) -> bool:
    return name.split("/")[0] in ("mse", "rmse", "mae")


def test_wilson_is_scipys() -> None:
    for hits, rows in ((0, 5), (1, 1), (37, 200), (199, 200)):
        want = stats.binomtest(hits, rows).proportion_ci(method="wilson")
        low, high = wilson(hits / rows, rows)
        assert (float(low), float(high)) == pytest.approx((want.low, want.high), abs=1e-12)


def test_limits_of_f1_are_those_of_the_share_of_true_ones() -> None:
    """70 true among 100 that are predicted or there: J = 0.7, and F1 = 2J / (1 + J)."""
    target, output = (
        np.repeat([1, 1, 0, 0], [70, 20, 10, 50]),
        np.repeat([0.9, 0.1, 0.9, 0.1], [70, 20, 10, 50]),
    )
    found = intervals(PredictionSet("binary", ("no", "yes"), np.arange(150), target, output))["f1"]
    limits = stats.binomtest(70, 100).proportion_ci(method="wilson")
    assert found.value == pytest.approx(sk.f1_score(target, output > 0.5))
    assert (found.low, found.high) == pytest.approx(
        (2 * limits.low / (1 + limits.low), 2 * limits.high / (1 + limits.high))
    )
    assert found.support == 90


@pytest.mark.parametrize("levels", [5, 10**6])
def test_delongs_variance_is_that_of_its_definition(levels: int) -> None:
    """DeLong et al. 1988, equations 3 to 5, pair by pair; with ties and without."""
    rng = np.random.default_rng(0)
    hit = (rng.random(120) < 0.3).astype(np.int64)
    score = np.round((rng.normal(size=120) + hit) * levels) / levels
    pairs = (score[hit == 1][:, None] > score[hit == 0]) + 0.5 * (
        score[hit == 1][:, None] == score[hit == 0]
    )
    m, k = pairs.shape
    variance = pairs.mean(1).var(ddof=1) / m + pairs.mean(0).var(ddof=1) / k
    area, influence = auroc(score, hit)
    assert area == pytest.approx(sk.roc_auc_score(hit, score), abs=1e-12)
    assert (influence**2).sum() / 120**2 == pytest.approx(variance, rel=1e-12)


@pytest.mark.parametrize("levels", [3, 10**6])
def test_influence_on_average_precision_is_its_derivative_by_a_rows_weight(levels: int) -> None:
    rng = np.random.default_rng(1)
    hit = (rng.random(60) < 0.4).astype(np.int64)
    score = np.round((rng.normal(size=60) + hit) * levels) / levels
    value, influence = average_precision(score, hit)
    assert value == pytest.approx(sk.average_precision_score(hit, score), abs=1e-12)
    for row in range(60):
        weights = np.ones(60)
        weights[row] += 1e-6
        moved = sk.average_precision_score(hit, score, sample_weight=weights)
        assert influence[row] / 60 == pytest.approx((moved - value) / 1e-6, abs=1e-5)
    assert influence.sum() == pytest.approx(0, abs=1e-9)


def test_bca_is_scipys() -> None:
    """On the mean of skewed numbers, with resamples of their own: they agree as far as those do."""
    values = np.random.default_rng(0).exponential(size=80)
    limits, varies = bca(
        Units(values[:, None], np.ones(80, np.int64)), lambda s: s / 80, np.random.default_rng(1)
    )
    want = stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, rng=np.random.default_rng(2)
    ).confidence_interval
    assert varies.all()
    assert limits[:, 0] == pytest.approx([want.low, want.high], rel=0.02)


def test_bootstrap_t_of_a_mean_is_its_definition() -> None:
    values = np.random.default_rng(0).exponential(size=60)
    sums = np.column_stack([np.ones(60), values])
    found = studentized(
        Units(sums, np.ones(60, np.int64)),
        lambda s: s[..., 1:] / s[..., :1],
        np.random.default_rng(1),
    )
    rng = np.random.default_rng(2)
    drawn = rng.choice(values, (20_000, 60))
    t = (np.log(drawn.mean(1)) - np.log(values.mean())) / (
        drawn.std(1) / np.sqrt(60) / drawn.mean(1)
    )
    error = values.std() / np.sqrt(60) / values.mean()
    want = values.mean() * np.exp(-np.quantile(t, [0.975, 0.025]) * error)
    assert found[:, 0] == pytest.approx(want, rel=0.02)


@pytest.mark.parametrize("task", TASKS)
def test_the_seed_decides(task: str) -> None:
    assert intervals(outcomes(task), seed=1) == intervals(outcomes(task), seed=1)
    resampled = {"binary": False}.get(task, True)
    assert (intervals(outcomes(task), seed=1) != intervals(outcomes(task), seed=2)) is resampled


@pytest.mark.parametrize("task", TASKS)
def test_rows_that_are_copies_of_each_other_count_once_where_they_are_a_group(task: str) -> None:
    """Each row six times, as a group: nearly the limits of each row once. Without groups the interval is far narrower."""
    one = outcomes(task, 300)
    six = one[np.repeat(np.arange(300), 6)]
    together = PredictionSet(
        six.task, six.names, six.row, six.target, six.output, np.repeat(np.arange(300), 6)
    )
    for name, want in intervals(one).items():
        got, alone = intervals(together)[name], intervals(six)[name]
        assert got.value == pytest.approx(want.value)
        if want.low is None or want.high is None or got.low is None or got.high is None:
            assert (want.low, want.high) == (got.low, got.high)
            continue
        assert (got.low, got.high) == pytest.approx(
            (want.low, want.high), abs=0.12 * (want.high - want.low)
        ), name
        assert alone.low is not None
        assert alone.high is not None
        assert alone.high - alone.low < 0.6 * (want.high - want.low)


def test_many_rows_are_resampled_in_blocks_as_they_would_be_one_by_one() -> None:
    o = outcomes("regression", 20_000)
    found = intervals(o)["mae"]
    error = np.abs(o.output - o.target).std() / np.sqrt(20_000)
    assert found.low is not None
    assert found.high is not None
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.1)
    assert found.method == "bootstrap-t, 2000 resamples of 2000 blocks of 20000 rows"
    unit, units = resampling_units(20_000, None, np.random.default_rng(0))
    assert (np.bincount(unit) == 10).all()
    assert units == 2000


def test_sums_do_not_depend_on_how_rows_are_dealt() -> None:
    for task in TASKS:
        o = outcomes(task)
        whole, parts = (
            sums_of(o, np.zeros(150, np.int64), 1)[0],
            sums_of(o, np.arange(150) % 7, 7).sum(axis=0),
        )
        assert np.allclose(whole, parts)
        assert len(scores(whole, o.task)) == len(names_of(o))


# What has no interval, or no value, says why


def binary(target: list[int], output: list[float]) -> dict[str, Interval]:
    return intervals(
        PredictionSet(
            "binary", ("no", "yes"), np.arange(len(target)), np.array(target), np.array(output)
        )
    )


def test_one_class_in_the_part() -> None:
    found = binary([0] * 20, [0.2] * 15 + [0.7] * 5)
    assert found["accuracy"].value == 0.75
    assert found["auroc"] == Interval(
        None, None, None, 0, "", "it needs rows that are of the class and rows that are not"
    )
    assert found["recall"] == Interval(
        0.0, None, None, 0, "", "no row is of it: 0/0, which counts as 0"
    )
    assert found["precision"].value == 0.0
    assert found["precision"].high == pytest.approx(
        stats.binomtest(0, 5).proportion_ci(method="wilson").high
    )


def test_a_constant_prediction() -> None:
    found = binary([0] * 20 + [1] * 10, [0.1] * 30)
    assert found["precision"].why == "it is never predicted: 0/0, which counts as 0"
    assert found["auroc"].value == 0.5
    assert found["average_precision"].value == pytest.approx(1 / 3)
    assert (
        found["auroc"].low == found["auroc"].high == 0.5
    )  # whatever rows come: all pairs are ties


def test_one_row() -> None:
    found = binary([1], [0.8])
    assert found["accuracy"].low == pytest.approx(
        stats.binomtest(1, 1).proportion_ci(method="wilson").low
    )
    assert found["auroc"].value is None
    number = PredictionSet("regression", ("y",), np.arange(1), np.array([[3.0]]), np.array([[2.0]]))
    assert intervals(number)["rmse"] == Interval(
        1.0, None, None, 1, "", "1 of them are too few to know how it varies"
    )
    assert intervals(number)["r2"] == Interval(None, None, None, 1, "", "one row has no variance")


def test_perfect_scores() -> None:
    """As many rows as there are could have been perfect by chance."""
    found = binary([0] * 30 + [1] * 20, [0.1] * 30 + [0.9] * 20)
    for name in ("accuracy", "precision", "recall", "f1", "auroc", "average_precision"):
        assert found[name].value == found[name].high == 1.0
        low = found[name].low
        assert low is not None
        assert 0.75 < low < 0.97, name
    several = outcomes("multiclass")
    perfect = PredictionSet(
        "multiclass", several.names, several.row, several.target, np.eye(5)[several.target]
    )
    f1 = intervals(perfect)["f1"]
    assert f1.value == f1.high == 1.0
    assert f1.low is not None
    assert 0.9 < f1.low < 0.99
    exact = outcomes("regression")
    found = intervals(
        PredictionSet("regression", exact.names, exact.row, exact.target, exact.target)
    )
    assert found["rmse"] == Interval(0.0, None, None, 150, "", "it does not vary between rows")
    assert found["r2"].value == 1.0
    assert found["r2"].low is None


def test_students_quantile_is_scipys() -> None:
    for freedom, close in ((4, 0.02), (9, 1e-3), (40, 1e-4), (1e6, 1e-6)):
        assert student(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), abs=close)


def test_limits_of_an_area_of_many_rows_are_delongs() -> None:
    """On the scale of logits; what is added for few rows is gone there."""
    o = outcomes("binary", 20_000)
    area, influence = auroc(o.output, o.target)
    error = np.sqrt((influence**2).sum()) / 20_000 / (area * (1 - area))
    want = 1 / (1 + np.exp(-(np.log(area / (1 - area)) + np.array([-1.96, 1.96]) * error)))
    found = intervals(o)["auroc"]
    assert (found.low, found.high) == pytest.approx(tuple(want), abs=1e-5)


def test_newcombes_limit_solves_its_equation() -> None:
    """The limit lies where the squared distance is z² times the variance there."""
    low, high = newcombe(1.0, 20, 30)
    m, k, more = 20, 30, 24
    variance = (
        low * (1 - low) * (1 + more * (1 - low) / (2 - low) + more * low / (1 + low)) / (m * k)
    )
    assert (1 - low) / np.sqrt(variance) == pytest.approx(stats.norm.ppf(0.975))
    assert high == 1.0
    assert newcombe(0.0, 20, 30) == pytest.approx((0.0, 1 - low))


def test_a_class_that_is_right_always_and_one_that_never_is_are_not_certain() -> None:
    """Each resample has the same macro recall then."""
    output = np.eye(2)[[0] * 60]
    found = intervals(
        PredictionSet("multiclass", ("a", "b"), np.arange(60), np.repeat([0, 1], 30), output)
    )["recall"]
    assert found.value == 0.5
    assert found.low is not None
    assert found.high is not None
    assert found.high - found.low > 0.1


def test_a_target_that_does_not_vary() -> None:
    rng = np.random.default_rng(0)
    found = intervals(
        PredictionSet(
            "regression", ("y",), np.arange(30), np.ones((30, 1)), rng.normal(size=(30, 1))
        )
    )
    assert found["r2"] == Interval(None, None, None, 30, "", "the target does not vary")
    assert found["rmse"].low is not None


@pytest.mark.parametrize("task", TASKS)
def test_a_prediction_that_is_no_number_leaves_nothing_defined(task: str) -> None:
    o = outcomes(task)
    o.output.reshape(150, -1)[3, 0] = np.nan
    for name, found in intervals(o).items():
        assert found.value is found.low is found.high is None, name
        assert found.why == "the prediction of 1 of 150 rows is no number"


def test_the_mean_of_a_value_a_row() -> None:
    values = np.random.default_rng(0).exponential(size=500)
    found = mean_interval(values)
    assert found.value == pytest.approx(values.mean())
    error = values.std() / np.sqrt(500)
    assert (found.low, found.high) == pytest.approx(
        (values.mean() - 1.96 * error, values.mean() + 1.96 * error), abs=0.03
    )


# Coverage, as `scripts/coverage.py` measures it


@pytest.mark.parametrize(
    ("generator", "metrics"),
    [
        (
            "binormal, 30 % positive, AUROC 0.86",
            ("accuracy", "precision", "f1", "auroc", "average_precision"),
        ),
        ("3 classes of 60, 30, 10 %, 80 % right", ("precision", "recall", "f1", "f1/class_2")),
        ("normal errors", ("rmse", "mae", "r2")),
    ],
)
def test_intervals_cover(
    generator: str, metrics: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """300 repeats know a coverage to some 2.5 points; the script's table, in docs/evaluation.md, to fewer."""
    module = script_of("coverage")
    monkeypatch.setattr(module, "TRUTH", 300_000)
    for name, (above, below) in module.coverage(
        module.GENERATORS[generator][0], metrics, 200, 300
    ).items():
        assert 0.92 <= 1 - above - below <= 0.98, (name, above, below)


def test_a_mean_over_labels_of_which_one_is_not_there_lies_within_its_limits() -> None:
    """The label counts as 0; the other one is right always, so that resampling cannot tell."""
    target = np.stack([np.arange(40) % 2, np.zeros(40, int)], axis=1)
    found = intervals(
        PredictionSet(
            "multilabel", ("a", "b"), np.arange(40), target, np.where(target == 1, 0.9, 0.1)
        )
    )
    for name in ("precision", "recall", "f1"):
        one = found[name]
        assert one.value == 0.5
        assert one.low is not None
        assert one.high is not None
        assert 0.4 < one.low <= 0.5 <= one.high < 0.6


def test_an_error_that_one_row_makes_up_has_no_limits() -> None:
    rng = np.random.default_rng(0)
    error = np.where(np.arange(60) == 0, 100.0, 1e-3 * rng.normal(size=60))[:, None]
    target = rng.normal(size=(60, 1))
    found = intervals(PredictionSet("regression", ("y",), np.arange(60), target, target + error))
    assert found["rmse"].value == pytest.approx(100 / 60**0.5, rel=1e-3)
    assert found["rmse"].low is None
    assert found["rmse"].why == "a few rows make up nearly all of it"


def test_it_is_told_why_a_single_row_of_a_kind_has_no_limits() -> None:
    found = binary([0] * 999 + [1], np.linspace(0.1, 0.9, 1000)[np.r_[0:500, 501:1000, 500]])
    assert found["auroc"].why == "1 of them are too few to know how it varies"
    target = np.zeros((200, 1))
    target[7] = 5
    one = PredictionSet(
        "regression", ("y",), np.arange(200), target, np.random.default_rng(0).normal(size=(200, 1))
    )
    assert intervals(one)["r2"].why == "a few rows make up nearly all of it"
