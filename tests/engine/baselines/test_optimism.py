"""Optimism of a random split: true where rows are alike, none for independent rows."""

from typing import Any

import numpy as np
import polars as pl
import pytest
import yaml
from scipy.stats import f_oneway, kstest
from sklearn.compose import make_column_transformer
from sklearn.ensemble import RandomForestRegressor
from sklearn.metrics import r2_score
from sklearn.model_selection import GroupKFold, KFold, TimeSeriesSplit, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import TargetEncoder

from conftest import Cli
from proj.data.tabular.datamodule import Tabular
from proj.engine.baselines import optimism
from proj.engine.baselines.optimism import Optimism, alike_p_value, measure_optimism
from proj.engine.cli import main

ROWS, GROUPS = 400, 40
Columns = dict[str, Any]


@pytest.fixture(autouse=True)
def one_repeat(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw the folds once, which takes half the time."""
    monkeypatch.setattr(optimism, "REPEATS", 1)


def groups_with_effects(size: float = 1.0, seed: int = 0) -> Columns:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(ROWS, 3))
    patient = rng.permutation(np.arange(ROWS) % GROUPS)
    effect = size * rng.normal(size=GROUPS)[patient]
    y = x[:, 0] + effect + rng.normal(size=ROWS)
    return {"a": x[:, 0], "b": x[:, 1], "c": x[:, 2], "patient": patient, "y": y}


def days(correlation: float, seed: int = 0) -> Columns:
    rng = np.random.default_rng(seed)
    x, noise, state = rng.normal(size=ROWS), rng.normal(size=ROWS), np.zeros(ROWS)
    for i in range(1, ROWS):
        state[i] = correlation * state[i - 1] + noise[i]
    when = pl.date_range(pl.date(2020, 1, 1), pl.date(2025, 1, 1), eager=True)[:ROWS]
    return {"when": when, "a": x, "y": x + state}


def measure(columns: Columns, **options: Any) -> list[Optimism]:
    pl.DataFrame(columns).write_csv("t.csv")
    # The training split has all rows, as in the comparisons.
    data = Tabular("t.csv", "y", val_fraction=0.0, test_fraction=0.0, **options)
    data.prepare_data()
    data.setup("fit")
    return measure_optimism(data)


def test_the_gap_of_groups_is_that_of_another_learner() -> None:
    """A wrong gap would move users from an honest split, or to one that they do not need."""
    (found,) = measure(columns := groups_with_effects())
    x = np.column_stack([columns[name] for name in ("a", "b", "c", "patient")])
    forest = RandomForestRegressor(50, min_samples_leaf=5, random_state=0)
    encoder = TargetEncoder(target_type="continuous", cv=KFold(5, shuffle=True, random_state=0))
    pipeline = make_pipeline(
        make_column_transformer((encoder, [3]), remainder="passthrough"), forest
    )
    y, folds = columns["y"], KFold(5, shuffle=True, random_state=0)
    random = r2_score(y, cross_val_predict(pipeline, x, y, cv=folds))
    by_group = cross_val_predict(forest, x[:, :3], y, cv=GroupKFold(5), groups=x[:, 3])
    honest = r2_score(y, by_group)
    assert found.random == pytest.approx(random, abs=0.1)
    assert found.honest == pytest.approx(honest, abs=0.1)
    assert found.low < random - honest < found.high
    assert (found.option, found.column, found.metric) == ("group", "patient", "R²")
    assert found.is_strong
    assert found.p == 1 / 2000  # no permutation is as far from chance


def test_the_gap_of_times_is_that_of_another_learner() -> None:
    """A random split of a series interpolates between neighbours, which forecasts cannot."""
    (found,) = measure(columns := days(correlation=0.95))
    x, y = np.column_stack([np.arange(ROWS), columns["a"]]), columns["y"]
    forest = RandomForestRegressor(50, min_samples_leaf=5, random_state=0)
    folds, latest = KFold(5, shuffle=True, random_state=0), slice(240, None)
    random = r2_score(y[latest], cross_val_predict(forest, x, y, cv=folds)[latest])
    errors, squares = 0.0, 0.0
    for train, test in TimeSeriesSplit(4, test_size=40).split(x):
        errors += float(np.square(y[test] - forest.fit(x[train], y[train]).predict(x[test])).sum())
        squares += float(np.square(y[test] - y[latest].mean()).sum())
    assert found.is_strong
    assert found.option == "time"
    assert found.random == pytest.approx(random, abs=0.1)
    assert found.low < random - (1 - errors / squares) < found.high


def test_independent_rows_have_no_gap() -> None:
    """A split that is not needed makes results worse than they are."""
    (found,) = measure(groups_with_effects(0.0))
    assert not found.is_strong
    assert abs(found.gap) < 0.1
    (found,) = measure(days(0.0))
    assert not found.is_strong


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("split", ["time", "group"])
def test_a_column_without_values_in_some_rows(split: str) -> None:
    """scikit-learn cannot bin it: `init` ended with a traceback."""
    columns = days(0.9) if split == "time" else groups_with_effects()
    rare = np.arange(ROWS) >= ROWS - 30 if split == "time" else columns["patient"] == 1
    late = [0.5 * i if known else None for i, known in enumerate(rare)]
    (found,) = measure(
        {**columns, "late": late}, **{split: "when" if split == "time" else "patient"}
    )
    (without,) = measure(columns, **{split: "when" if split == "time" else "patient"})
    assert abs(found.honest - without.honest) < 0.2


@pytest.mark.filterwarnings("error")
def test_rows_of_one_time_have_no_later_ones() -> None:
    """The mean of no row is a warning of NumPy."""
    columns = days(0.9)
    columns["when"] = columns["when"][[0] * 370 + [*range(30)]]
    assert measure(columns, time="when") == []


def test_classes_are_scored_by_their_brier_score() -> None:
    columns = groups_with_effects(2.0)
    columns["y"] = np.where(columns["y"] > 0, "high", "low")
    (found,) = measure(columns)
    assert found.metric == "Brier skill score"
    assert found.is_strong
    # Half of the classes' variance is that of the groups.
    assert 0.2 < found.random < 0.6
    assert found.honest < 0.2


def test_a_stated_split_is_measured() -> None:
    """`check` says what the stated split is good for."""
    (found,) = measure(groups_with_effects(), group="patient")
    assert found.is_strong
    assert found.random > found.honest + 0.2


def test_a_group_is_the_only_input() -> None:
    columns = groups_with_effects(2.0)
    (found,) = measure({"patient": columns["patient"], "y": columns["y"]})
    assert found.is_strong
    assert found.honest == pytest.approx(0.0, abs=0.1)


def test_large_tables_are_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    """A check of a few seconds must not grow with the table. Whole groups stay together."""
    monkeypatch.setattr(optimism, "MAX_ROWS", 200)
    (found,) = measure(groups_with_effects(2.0))
    assert 190 <= found.rows <= 200
    assert found.is_strong
    rng = np.random.default_rng(0)
    groups = np.sort(rng.integers(0, 50, 5000))
    sizes = np.bincount(groups[optimism._sample_groups(groups, rng)])
    assert sizes.sum() == 200
    assert set(sizes) <= {0, optimism.GROUP_ROWS}


def test_the_p_value_is_that_of_an_analysis_of_variance() -> None:
    """With one fold and normal errors, permutations and the F test are the same."""
    rng = np.random.default_rng(0)
    units, folds = np.repeat(np.arange(15), 8), np.zeros(120, int)
    for _ in range(3):
        errors = rng.normal(size=120) + 0.35 * rng.normal(size=15)[units]
        expected = f_oneway(*(errors[units == unit] for unit in range(15))).pvalue
        found = alike_p_value(errors[:, None], units, folds, rng)
        assert found == pytest.approx(expected, abs=0.04)


def test_p_values_without_structure_are_uniform(monkeypatch: pytest.MonkeyPatch) -> None:
    """Differences between folds, as of models that were fitted to different rows, do not count."""
    monkeypatch.setattr(optimism, "PERMUTATIONS", 99)
    rng = np.random.default_rng(0)
    units = np.repeat(np.arange(12), 5)
    folds, found = units % 3, []
    for _ in range(100):
        errors = rng.normal(size=(60, 1)) + 5 * rng.normal(size=3)[folds][:, None]
        found.append(alike_p_value(errors, units, folds, rng))
    assert kstest(found, "uniform").pvalue > 0.01


def test_group_means_leave_out_the_own_target() -> None:
    """A mean with the own target would reveal it."""
    rng = np.random.default_rng(0)
    groups, y, folds = rng.integers(0, 6, 50), rng.normal(size=50), np.arange(50) % 5
    means, test_means = optimism._group_means(groups, y, folds, np.array([0, 9]))
    for i in range(50):
        others = y[(groups == groups[i]) & (folds != folds[i])]
        assert means[i] == pytest.approx(np.append(others, y.mean()).mean())
    assert test_means[0] == pytest.approx(np.append(y[groups == 0], y.mean()).mean())
    assert test_means[1] == pytest.approx(y.mean())


def test_init_splits_by_group_and_says_why(cli: Cli) -> None:
    """The random split of such rows reports skill that new patients do not see."""
    pl.DataFrame(groups_with_effects()).write_csv("t.csv")
    out = cli("init", "t.csv", "--target", "y", "--strict")
    assert "the rows are split by data.group: patient, because rows of one patient are alike" in out
    assert "remove `group` from the experiment" in out
    with open("configs/t.yaml", encoding="utf-8") as file:
        data = yaml.safe_load(file)["data"]["init_args"]
    assert data["group"] == "patient"
    splits = Tabular("t.csv", "y", group="patient")
    splits.setup("fit")
    table = pl.read_csv("t.csv")["patient"].to_numpy()
    groups = [set(table[splits.splits[name].row]) for name in ("train", "val", "test")]
    assert not groups[0] & groups[1]
    assert not (groups[0] | groups[1]) & groups[2]


def test_init_splits_by_time(cli: Cli) -> None:
    pl.DataFrame(days(0.95)).write_csv("t.csv")
    out = cli("init", "t.csv", "--target", "y")
    assert "the rows are split by data.time: when" in out
    with open("configs/t.yaml", encoding="utf-8") as file:
        assert yaml.safe_load(file)["data"]["init_args"]["time"] == "when"


def test_init_keeps_a_random_split_if_a_class_is_in_one_group(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """`init` would end with an error about an option that the user has not set."""
    columns = groups_with_effects(2.0)
    pl.DataFrame(columns).write_csv("t.csv")
    data = Tabular("t.csv", "y", group="patient")
    data.setup("fit")
    rare = columns["patient"][int(data.splits["test"].row[0])]
    columns["y"] = np.where(columns["patient"] == rare, "r", np.where(columns["y"] > 0, "p", "q"))
    pl.DataFrame(columns).write_csv("t.csv")
    assert main(["init", "t.csv", "--target", "y"]) == 0
    warnings = capsys.readouterr().err
    assert "data.group is not possible: " in warnings
    assert "column patient repeats" in warnings
    with open("configs/t.yaml", encoding="utf-8") as file:
        assert "group" not in yaml.safe_load(file)["data"]["init_args"]


def test_check_prints_the_optimism(cli: Cli) -> None:
    pl.DataFrame(groups_with_effects(0.0)).write_csv("t.csv")
    cli("init", "t.csv", "--target", "y")
    out = cli("check", "--config", "configs/t.yaml", "--model.net", "MLP")
    (line,) = [line for line in out.splitlines() if line.startswith("optimism")]
    assert "with a random split" in line
    assert "95 % interval" in line
