"""Intervals equal references (scikit-learn, SciPy, their definitions), cover, or give a reason."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn import metrics as sk

from conftest import plain_schema, script_of
from proj.engine.evaluation.areas import auroc, average_precision, mean_area
from proj.engine.evaluation.counts import metric_names, scores, sums_of
from proj.engine.evaluation.intervals import intervals, mean_interval
from proj.engine.evaluation.limits import Interval, newcombe, student_quantile, wilson
from proj.engine.evaluation.prediction_set import PredictionSet
from proj.engine.evaluation.resampling import Units, bca, resampling_units, studentized
from proj.metrics.stage import StageMetrics
from proj.schema import Average

TASKS = ("binary", "multiclass", "multilabel", "regression", "regression_2")


def make_predictions(task: str, rows: int = 150, seed: int = 0) -> PredictionSet:
    """Mostly correct predictions.

    For several classes, class 2 is never predicted, and class 4 neither occurs nor is predicted.
    """
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


AVERAGES: list[tuple[str, Average]] = [
    *((task, "macro") for task in TASKS),
    *(
        (task, average)
        for task in ("multiclass", "multilabel")
        for average in ("micro", "weighted")
    ),
]


@pytest.mark.parametrize(("task", "average"), AVERAGES)
def test_values_equal_the_reported_metrics(task: str, average: Average) -> None:
    """The counts equal `proj.metrics`, also for classes that are never predicted."""
    predictions = replace(make_predictions(task), average=average)
    schema = plain_schema(predictions.task, (1,), len(predictions.names))
    stage_metrics = StageMetrics(schema, "test", average=average)
    stage_metrics.names = predictions.names
    target = torch.from_numpy(predictions.target)
    stage_metrics.update(
        torch.from_numpy(predictions.output), target, torch.zeros(1), torch.ones(1)
    )
    written = {
        name: value.item() for name, value in stage_metrics.compute().items() if name != "loss"
    }
    result = intervals(predictions)
    assert result.keys() == written.keys()
    for name, value in written.items():
        if np.isnan(value):
            assert result[name].value is None
            assert result[name].why
        else:
            assert result[name].value == pytest.approx(value, rel=1e-6, abs=1e-7), name
    if not task.startswith("regression"):
        assert result["accuracy"].value == sk.accuracy_score(
            predictions.target, predictions.predicted
        )


@pytest.mark.parametrize(("task", "average"), AVERAGES)
def test_an_interval_contains_its_value_and_lies_in_the_range_of_the_metric(
    task: str, average: Average
) -> None:
    """Limits outside the range of a metric are impossible."""
    for name, result in intervals(replace(make_predictions(task), average=average)).items():
        if result.value is None or result.low is None or result.high is None:
            assert result.why, name
            continue
        assert result.low <= result.value <= result.high, name
        assert result.low < result.high, name
        assert result.high <= 1 or is_unbounded(name), name
        assert result.low >= 0 or name.startswith("r2"), name
        assert result.method, name


@pytest.mark.parametrize("average", ["micro", "weighted"])
@pytest.mark.parametrize("kind", ["auroc", "average_precision"])
@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
def test_the_error_of_an_average_of_areas_is_that_of_the_bootstrap(
    task: str, kind: str, average: Average
) -> None:
    """The influences of the rows: they give the variance without resampling."""
    rng = np.random.default_rng(0)
    predictions = replace(make_predictions(task, rows=400), average=average)
    area = mean_area(predictions, kind)
    assert area is not None
    resampled = [mean_area(predictions[rng.integers(400, size=400)], kind) for _ in range(400)]
    values = [one.value for one in resampled if one is not None]
    error = np.sqrt((area.influence**2).sum()) / len(predictions)
    assert error == pytest.approx(np.std(values), rel=0.12)


def is_unbounded(name: str) -> bool:
    return name.split("/")[0] in ("mse", "rmse", "mae")


def test_wilson_equals_scipy() -> None:
    """The limits must also hold for shares of 0 and 1."""
    for hits, rows in ((0, 5), (1, 1), (37, 200), (199, 200)):
        want = stats.binomtest(hits, rows).proportion_ci(method="wilson")
        low, high = wilson(hits / rows, rows)
        assert (float(low), float(high)) == pytest.approx((want.low, want.high), abs=1e-12)


def test_limits_of_f1_follow_from_a_proportion() -> None:
    """70 true positives of 100 predicted or actual ones: J = 0.7, and F1 = 2J / (1 + J)."""
    target, output = (
        np.repeat([1, 1, 0, 0], [70, 20, 10, 50]),
        np.repeat([0.9, 0.1, 0.9, 0.1], [70, 20, 10, 50]),
    )
    result = intervals(PredictionSet("binary", ("no", "yes"), np.arange(150), target, output))["f1"]
    limits = stats.binomtest(70, 100).proportion_ci(method="wilson")
    assert result.value == pytest.approx(sk.f1_score(target, output > 0.5))
    assert (result.low, result.high) == pytest.approx(
        (2 * limits.low / (1 + limits.low), 2 * limits.high / (1 + limits.high))
    )
    assert result.support == 90


@pytest.mark.parametrize("levels", [5, 10**6])
def test_delong_variance_equals_its_definition(levels: int) -> None:
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
def test_influence_on_average_precision_is_its_derivative_by_the_row_weight(levels: int) -> None:
    """Ties must not change the influence."""
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


def test_bca_equals_scipy() -> None:
    """The limits of the mean of skewed values agree up to the randomness of the resamples."""
    values = np.random.default_rng(0).exponential(size=80)
    limits, varies = bca(
        Units(values[:, None], np.ones(80, np.int64)), lambda s: s / 80, np.random.default_rng(1)
    )
    want = stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, rng=np.random.default_rng(2)
    ).confidence_interval
    assert varies.all()
    assert limits[:, 0] == pytest.approx([want.low, want.high], rel=0.02)


def test_bootstrap_t_of_a_mean_equals_its_definition() -> None:
    """The log scale and the standard errors must match."""
    values = np.random.default_rng(0).exponential(size=60)
    sums = np.column_stack([np.ones(60), values])
    result = studentized(
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
    assert result[:, 0] == pytest.approx(want, rel=0.02)


@pytest.mark.parametrize("task", TASKS)
def test_the_seed_determines_the_intervals(task: str) -> None:
    """An interval that changes between calls is not reproducible."""
    assert intervals(make_predictions(task), seed=1) == intervals(make_predictions(task), seed=1)
    resampled = {"binary": False}.get(task, True)
    assert (
        intervals(make_predictions(task), seed=1) != intervals(make_predictions(task), seed=2)
    ) is resampled


@pytest.mark.parametrize("task", TASKS)
def test_copies_of_a_row_in_a_group_count_once(task: str) -> None:
    """Six copies of each row as a group give nearly the limits of single rows.

    Without groups the interval is far narrower.
    """
    single = make_predictions(task, 300)
    six = single[np.repeat(np.arange(300), 6)]
    together = PredictionSet(
        six.task, six.names, six.row, six.target, six.output, np.repeat(np.arange(300), 6)
    )
    for name, want in intervals(single).items():
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


def test_blocks_of_many_rows_give_the_interval_of_single_rows() -> None:
    """Blocks must not narrow or widen the interval."""
    predictions = make_predictions("regression", 20_000)
    result = intervals(predictions)["mae"]
    error = np.abs(predictions.output - predictions.target).std() / np.sqrt(20_000)
    assert result.low is not None
    assert result.high is not None
    assert result.high - result.low == pytest.approx(2 * 1.96 * error, rel=0.1)
    assert result.method == "bootstrap-t, 2000 resamples of 2000 blocks of 20000 rows"
    unit, units = resampling_units(20_000, None, np.random.default_rng(0))
    assert (np.bincount(unit) == 10).all()
    assert units == 2000


def test_sums_do_not_depend_on_the_units() -> None:
    """Sums of units must add up to the sums of all rows."""
    for task in TASKS:
        predictions = make_predictions(task)
        total, parts = (
            sums_of(predictions, np.zeros(150, np.int64), 1)[0],
            sums_of(predictions, np.arange(150) % 7, 7).sum(axis=0),
        )
        assert np.allclose(total, parts)
        assert len(scores(total, predictions)) == len(metric_names(predictions))


# A missing value or interval has a reason


def binary(target: list[int], output: list[float]) -> dict[str, Interval]:
    return intervals(
        PredictionSet(
            "binary", ("no", "yes"), np.arange(len(target)), np.array(target), np.array(output)
        )
    )


def test_a_split_of_one_class() -> None:
    """Metrics without cases have a reason, the others a value."""
    result = binary([0] * 20, [0.2] * 15 + [0.7] * 5)
    assert result["accuracy"].value == 0.75
    assert result["auroc"] == Interval(
        None,
        None,
        None,
        0,
        "",
        "the area is undefined because it needs rows of the class and rows of others",
    )
    assert result["recall"] == Interval(
        0.0, None, None, 0, "", "recall is undefined because no row is of the class; reported as 0"
    )
    assert result["precision"].value == 0.0
    assert result["precision"].high == pytest.approx(
        stats.binomtest(0, 5).proportion_ci(method="wilson").high
    )


def test_a_constant_prediction() -> None:
    """Ties between all rows must not raise an error."""
    result = binary([0] * 20 + [1] * 10, [0.1] * 30)
    assert (
        result["precision"].why
        == "precision is undefined because the class is never predicted; reported as 0"
    )
    assert result["auroc"].value == 0.5
    assert result["average_precision"].value == pytest.approx(1 / 3)
    assert result["auroc"].low == result["auroc"].high == 0.5  # all pairs are ties


def test_one_row() -> None:
    """A single row has limits only where a formula gives them."""
    result = binary([1], [0.8])
    assert result["accuracy"].low == pytest.approx(
        stats.binomtest(1, 1).proportion_ci(method="wilson").low
    )
    assert result["auroc"].value is None
    number = PredictionSet("regression", ("y",), np.arange(1), np.array([[3.0]]), np.array([[2.0]]))
    assert intervals(number)["rmse"] == Interval(
        1.0, None, None, 1, "", "too few rows (1) to estimate its variance"
    )
    assert intervals(number)["r2"] == Interval(
        None, None, None, 1, "", "a single row has no variance"
    )


def test_perfect_scores() -> None:
    """The lower limits of perfect metrics are below 1, because it may be chance."""
    result = binary([0] * 30 + [1] * 20, [0.1] * 30 + [0.9] * 20)
    for name in ("accuracy", "precision", "recall", "f1", "auroc", "average_precision"):
        assert result[name].value == result[name].high == 1.0
        low = result[name].low
        assert low is not None
        assert 0.75 < low < 0.97, name
    several = make_predictions("multiclass")
    perfect = PredictionSet(
        "multiclass", several.names, several.row, several.target, np.eye(5)[several.target]
    )
    f1 = intervals(perfect)["f1"]
    assert f1.value == f1.high == 1.0
    assert f1.low is not None
    assert 0.9 < f1.low < 0.99
    exact = make_predictions("regression")
    result = intervals(
        PredictionSet("regression", exact.names, exact.row, exact.target, exact.target)
    )
    assert result["rmse"] == Interval(0.0, None, None, 150, "", "it does not vary between rows")
    assert result["r2"].value == 1.0
    assert result["r2"].low is None


def test_student_quantile_equals_scipy() -> None:
    """The series must be accurate for the degrees of freedom in use."""
    for freedom, close in ((4, 0.02), (9, 1e-3), (40, 1e-4), (1e6, 1e-6)):
        assert student_quantile(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), abs=close)


def test_limits_of_an_area_of_many_rows_equal_delong() -> None:
    """The correction for few rows vanishes; the limits are those on the logit scale."""
    predictions = make_predictions("binary", 20_000)
    area, influence = auroc(predictions.output, predictions.target)
    error = np.sqrt((influence**2).sum()) / 20_000 / (area * (1 - area))
    want = 1 / (1 + np.exp(-(np.log(area / (1 - area)) + np.array([-1.96, 1.96]) * error)))
    result = intervals(predictions)["auroc"]
    assert (result.low, result.high) == pytest.approx(tuple(want), abs=1e-5)


def test_newcombe_limit_solves_its_equation() -> None:
    """At the limit the squared distance is z² times the variance."""
    low, high = newcombe(1.0, 20, 30)
    m, k, more = 20, 30, 24
    variance = (
        low * (1 - low) * (1 + more * (1 - low) / (2 - low) + more * low / (1 + low)) / (m * k)
    )
    assert (1 - low) / np.sqrt(variance) == pytest.approx(stats.norm.ppf(0.975))
    assert high == 1.0
    assert newcombe(0.0, 20, 30) == pytest.approx((0.0, 1 - low))


def test_a_class_always_correct_and_one_never_correct_have_an_interval() -> None:
    """Resampling alone would give limits equal to the value."""
    output = np.eye(2)[[0] * 60]
    result = intervals(
        PredictionSet("multiclass", ("a", "b"), np.arange(60), np.repeat([0, 1], 30), output)
    )["recall"]
    assert result.value == 0.5
    assert result.low is not None
    assert result.high is not None
    assert result.high - result.low > 0.1


def test_a_target_that_does_not_vary() -> None:
    """R² is undefined then, the errors are not."""
    rng = np.random.default_rng(0)
    result = intervals(
        PredictionSet(
            "regression", ("y",), np.arange(30), np.ones((30, 1)), rng.normal(size=(30, 1))
        )
    )
    assert result["r2"] == Interval(None, None, None, 30, "", "the target does not vary")
    assert result["rmse"].low is not None


@pytest.mark.parametrize("task", TASKS)
def test_a_prediction_that_is_not_finite_makes_all_metrics_undefined(task: str) -> None:
    """A metric of the other rows would mislead."""
    predictions = make_predictions(task)
    predictions.output.reshape(150, -1)[3, 0] = np.nan
    for name, result in intervals(predictions).items():
        assert result.value is result.low is result.high is None, name
        assert result.why == "1 of 150 predictions are not finite numbers"


def test_the_interval_of_a_mean() -> None:
    """For many rows it must approach the normal interval."""
    values = np.random.default_rng(0).exponential(size=500)
    result = mean_interval(values)
    assert result.value == pytest.approx(values.mean())
    error = values.std() / np.sqrt(500)
    assert (result.low, result.high) == pytest.approx(
        (values.mean() - 1.96 * error, values.mean() + 1.96 * error), abs=0.03
    )


# Coverage, as `scripts/coverage.py` measures it


@pytest.mark.long
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
    """The coverage of 300 repeats, with a standard error of 1.3 points, is between 92 and 98 %."""
    module = script_of("coverage")
    monkeypatch.setattr(module, "TRUTH_ROWS", 300_000)
    for name, (above, below) in module.coverage(
        module.GENERATORS[generator][0], metrics, 200, 300
    ).items():
        assert 0.92 <= 1 - above - below <= 0.98, (name, above, below)


def test_a_mean_over_labels_with_one_that_never_occurs_is_within_its_limits() -> None:
    """The label counts as 0, and the other one is always correct, so resampling fails."""
    target = np.stack([np.arange(40) % 2, np.zeros(40, int)], axis=1)
    result = intervals(
        PredictionSet(
            "multilabel", ("a", "b"), np.arange(40), target, np.where(target == 1, 0.9, 0.1)
        )
    )
    for name in ("precision", "recall", "f1"):
        interval = result[name]
        assert interval.value == 0.5
        assert interval.low is not None
        assert interval.high is not None
        assert 0.4 < interval.low <= 0.5 <= interval.high < 0.6


def test_an_error_that_one_row_accounts_for_has_no_limits() -> None:
    """Resampling cannot estimate the variance then."""
    rng = np.random.default_rng(0)
    error = np.where(np.arange(60) == 0, 100.0, 1e-3 * rng.normal(size=60))[:, None]
    target = rng.normal(size=(60, 1))
    result = intervals(PredictionSet("regression", ("y",), np.arange(60), target, target + error))
    assert result["rmse"].value == pytest.approx(100 / 60**0.5, rel=1e-3)
    assert result["rmse"].low is None
    assert result["rmse"].why.startswith("row 0 makes up more than 99 % of the squared error;")


def one_wild_row(rng: np.random.Generator, rows: int, size: float) -> PredictionSet:
    """Rows with normal errors of deviation 1, but for one with an error of ``size``."""
    target, error = 10 * rng.normal(size=(rows, 1)), rng.normal(size=(rows, 1))
    error[0] = size
    return PredictionSet("regression", ("y",), 1000 + np.arange(rows), target, target + error)


def test_the_error_without_a_dominant_row_has_an_interval_that_covers() -> None:
    """One row with half of the squared error: the interval of all rows would be useless.

    Over 150 data sets the standard error of the coverage is 1.8 points.
    """
    rng, covered = np.random.default_rng(0), []
    for seed in range(150):
        predictions = one_wild_row(rng, 40, size=7.5)
        rmse = intervals(predictions, seed)["rmse"]
        assert rmse.low is None
        found = re.fullmatch(
            r"row 1000 makes up (\d+) % of the squared error; without it, rmse is "
            r"([\d.]+) \(([\d.]+) to ([\d.]+)\)",
            rmse.why,
        )
        assert found is not None, rmse.why
        error = (predictions.output - predictions.target)[:, 0]
        assert int(found[1]) == round(100 * error[0] ** 2 / (error**2).sum())
        assert float(found[2]) == pytest.approx((error[1:] ** 2).mean() ** 0.5, abs=1e-4)
        covered.append(float(found[3]) <= 1 <= float(found[4]))
    assert 0.89 <= np.mean(covered) <= 0.99


def test_rows_that_do_not_dominate_leave_the_interval_as_it_is() -> None:
    """Some of few rows have large shares by chance, and would not be counted."""
    rng = np.random.default_rng(0)
    for rows in (8, 20, 60, 400):
        for _ in range(50):
            for interval in intervals(one_wild_row(rng, rows, size=1.0)).values():
                assert "up" not in interval.why
    assert intervals(one_wild_row(rng, 100, size=6.5))["rmse"].low is not None  # 30 %


def test_several_dominant_rows_are_named_or_there_is_no_interval_at_all() -> None:
    """Naming one of two such rows would give an error of the other."""
    predictions = one_wild_row(np.random.default_rng(0), 200, size=90.0)
    predictions.output[7] += 200
    why = intervals(predictions)["mse"].why
    assert why.startswith("rows 1007, 1000 make up more than 99 % of the squared error; without")
    for i, size in ((8, 1e3), (9, 5e3), (10, 2e4)):
        predictions.output[i] += size
    why = intervals(predictions)["mse"].why
    assert why.startswith("rows 1010, 1009, 1008 make up more than 99 %")
    assert why.endswith("and few other rows make up most of the rest")


def test_a_dominant_row_of_one_target_concerns_that_target() -> None:
    """The other target would lose its interval."""
    one = one_wild_row(np.random.default_rng(0), 100, size=30.0)
    other = one_wild_row(np.random.default_rng(1), 100, size=1.0)
    both = PredictionSet(
        "regression",
        ("a", "b"),
        one.row,
        np.hstack([one.target, other.target]),
        np.hstack([one.output, other.output]),
        np.arange(100) // 2,
    )
    result = intervals(both)
    assert "row 1000" in result["rmse/a"].why
    assert result["rmse/b"].low is not None
    assert "row 1000" in result["rmse"].why
    assert result["mae/b"].low is not None


def test_a_single_row_of_a_kind_gives_a_reason_instead_of_limits() -> None:
    """The variance of one row is unknown."""
    result = binary([0] * 999 + [1], np.linspace(0.1, 0.9, 1000)[np.r_[0:500, 501:1000, 500]])
    assert result["auroc"].why == "too few rows of a class (1) to estimate its variance"
    target = np.zeros((200, 1))
    target[7] = 5
    single = PredictionSet(
        "regression", ("y",), np.arange(200), target, np.random.default_rng(0).normal(size=(200, 1))
    )
    assert intervals(single)["r2"].why == "a few rows account for nearly all of it"
