"""Baselines learn what scikit-learn learns on the same rows, and never see a target of the test."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
import yaml
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import f1_score, log_loss, root_mean_squared_error
from sklearn.preprocessing import StandardScaler

from conftest import Cli, Trained
from proj.data import ArrayDataModule
from proj.engine.baselines import fitting, learners
from proj.engine.baselines.features import Features, LinearEncoder, TreeEncoder, features_of
from proj.engine.baselines.fitting import constant, fit_baseline
from proj.engine.baselines.learners import HistGradientBoosting, Linear, Problem
from proj.engine.evaluation.leaderboard import Rival, best_of
from proj.engine.runs.run import Run
from proj.errors import UserError
from proj.schema import Batch, Schema

LOGS = Path("lightning_logs")
OURS = ("constant", "linear", "hist_gradient_boosting")
Experiment = Callable[..., Path]


@pytest.fixture(autouse=True)
def only_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the optional packages: the quick tests are the same wherever they run."""
    optional = ("lightgbm", "xgboost", "catboost")
    monkeypatch.setattr(fitting, "find_spec", lambda name: None if name in optional else object())


def predictions(name: str, verb: str = "test") -> pl.DataFrame:
    return pl.read_parquet(LOGS / name / verb / "predictions.parquet")


def splits_of(path: str = "data.npz") -> dict[str, tuple[Any, Any, Any]]:
    """Return inputs in float64, targets and row numbers of each split of the fixture's data."""
    data = ArrayDataModule(path)
    data.setup("fit")
    return {
        name: (batch.x.numpy().astype(np.float64), np.asarray(batch.y), batch.row.numpy())
        for name, batch in data.splits.items()
        if isinstance(batch.x, torch.Tensor)
    }


def in_row_order(values: Any, rows: Any) -> Any:
    return values[np.argsort(rows)]


def test_classes_are_predicted_as_by_scikit_learn(experiment: Experiment, cli: Cli) -> None:
    """A wrong split, scaling or class order would give other probabilities, not exactly these."""
    cli("baseline", "--config", experiment("multiclass", 300), "--name", "a")
    splits = splits_of()
    (x, y, _), (x_val, y_val, _), (x_test, y_test, rows) = (
        splits[name] for name in ("train", "val", "test")
    )
    boosting = HistGradientBoostingClassifier(
        max_iter=1000, early_stopping=True, n_iter_no_change=10, random_state=1
    ).fit(x, y, X_val=x_val, y_val=y_val)
    scaler = StandardScaler().fit(x)
    candidates = [
        LogisticRegression(C=c, max_iter=100).fit(scaler.transform(x), y)
        for c in (1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0)
    ]
    linear = min(
        candidates, key=lambda one: log_loss(y_val, one.predict_proba(scaler.transform(x_val)))
    )
    expected = {
        "a_hist_gradient_boosting": boosting.predict_proba(x_test),
        "a_linear": linear.predict_proba(scaler.transform(x_test)),
        "a_constant": np.tile(np.bincount(y) / len(y), (len(y_test), 1)),
    }
    for name, probability in expected.items():
        table = predictions(name)
        assert table["row"].to_list() == sorted(rows)
        written = table.select(pl.col("^probability_.*$"))
        assert written.columns == [f"probability_{label}" for label in (0, 10, 20)]
        np.testing.assert_array_equal(written.to_numpy(), in_row_order(probability, rows))
        predicted = in_row_order(probability.argmax(1), rows)
        assert table["prediction"].to_list() == (predicted * 10).tolist()
        f1 = f1_score(in_row_order(y_test, rows), predicted, average="macro")
        entry = Run(LOGS / name).metrics("test")["f1"]
        assert entry["value"] == pytest.approx(f1, abs=1e-6)
        assert entry["low"] <= entry["value"] <= entry["high"]
    config = yaml.safe_load((LOGS / "a_linear" / "config.yaml").read_text())
    assert config["model"]["init_args"]["C"] == linear.C


def test_numbers_are_predicted_as_by_scikit_learn(experiment: Experiment, cli: Cli) -> None:
    """Of several targets, each has a learner of its own and its own unit."""
    cli("baseline", "--config", experiment("regression_2", 300), "--name", "a")
    splits = splits_of()
    (x, y, _), (x_val, y_val, _), (x_test, y_test, rows) = (
        splits[name] for name in ("train", "val", "test")
    )
    table = predictions("a_hist_gradient_boosting")
    linear = predictions("a_linear")
    alphas = yaml.safe_load((LOGS / "a_linear" / "config.yaml").read_text())["model"]["init_args"]
    scaler, errors = StandardScaler().fit(x), []
    for i, name in enumerate(column for column in table.columns if column.startswith("pred")):
        boosting = HistGradientBoostingRegressor(
            max_iter=1000, early_stopping=True, n_iter_no_change=10, random_state=1
        ).fit(x, y[:, i], X_val=x_val, y_val=y_val[:, i])
        predicted = in_row_order(boosting.predict(x_test), rows)
        np.testing.assert_array_equal(table[name].to_numpy(), predicted)
        errors.append(root_mean_squared_error(in_row_order(y_test[:, i], rows), predicted))
        alpha = alphas["alpha"][i] if isinstance(alphas["alpha"], list) else alphas["alpha"]
        ridge = Ridge(alpha=alpha).fit(scaler.transform(x), y[:, i])
        expected = in_row_order(ridge.predict(scaler.transform(x_test)), rows)
        np.testing.assert_allclose(linear[name].to_numpy(), expected, rtol=1e-9)
    metrics = Run(LOGS / "a_hist_gradient_boosting").metrics("test")
    assert metrics["rmse"]["value"] == pytest.approx(np.mean(errors), rel=1e-6)


@pytest.mark.parametrize("task", ["multilabel", "regression"])
def test_files_are_those_of_a_net(task: str, trained: Trained, cli: Cli) -> None:
    """Verbs read columns by name, and `compare` needs equal rows and targets."""
    trained(task)
    cli("test", "--run", "version_0")
    cli("validate", "--run", "version_0")
    cli("baseline", "--run", "version_0")
    for verb in ("test", "validate"):
        net = predictions("version_0", verb)
        names = json.loads((LOGS / "version_0" / verb / "metrics.json").read_text()).keys()
        for learner in OURS:
            other = predictions(f"version_0_{learner}", verb)
            assert other.columns == net.columns
            columns = ["row", *(name for name in net.columns if name.startswith("target"))]
            assert other[columns].equals(net[columns])
            path = LOGS / f"version_0_{learner}" / verb / "metrics.json"
            assert json.loads(path.read_text()).keys() == names


def make_table(path: Path, seed: int = 0) -> pl.DataFrame:
    """Write a table with missing values, a rare category and the split of each row."""
    rng = np.random.default_rng(seed)
    size = 300
    number, colour = rng.normal(size=size), rng.choice(["red", "blue", "green"], size)
    target = np.where(number + (colour == "red") + rng.normal(size=size) > 0.5, "yes", "no")
    colour[:3] = "rare"
    table = pl.DataFrame(
        {
            "number": pl.Series(number).scatter(np.arange(0, size, 9), None),
            "colour": pl.Series(colour).scatter(np.arange(0, size, 11), None),
            "part": rng.choice(["train", "val", "test"], size, p=[0.6, 0.2, 0.2]),
            "target": target,
        }
    )
    table.write_csv(path)
    return table


def table_experiment(work: Path) -> Path:
    config = {
        "model": {"class_path": "BinaryClassifier", "init_args": {"net": "MLP"}},
        "data": {
            "class_path": "Tabular",
            "init_args": {"path": "table.csv", "target": "target", "split": "part"},
        },
    }
    path = work / "table.yaml"
    path.write_text(json.dumps(config))
    return path


def test_targets_of_the_test_split_change_no_prediction(work: Path, cli: Cli) -> None:
    """A learner that saw them would predict them; the same call twice predicts the same."""
    config = table_experiment(work)
    table = make_table(work / "table.csv")
    cli("baseline", "--config", config)
    cli("baseline", "--config", config)
    is_test = table["part"] == "test"
    flipped = pl.when(is_test & (table["target"] == "yes")).then(pl.lit("no"))
    flipped = flipped.when(is_test).then(pl.lit("yes")).otherwise(table["target"])
    table.with_columns(target=flipped).write_csv(work / "table.csv")
    cli("baseline", "--config", config)
    for learner in OURS:
        first, same, other = (predictions(f"{base}_{learner}") for base in NAMES)
        assert same.equals(first)
        assert not other["target"].equals(first["target"])
        assert other.drop("target").equals(first.drop("target"))


NAMES = ("table", "table_2", "table_3")


def test_missing_rare_and_unknown_values() -> None:
    """The linear model has a flag for a missing number and a column for rare and unknown ones."""
    numbers = np.array([[1.0], [np.nan], [3.0], [8.0]] * 10, np.float32)
    codes = np.array([[2], [3], [0], [2]] * 10)
    codes[0] = 4  # rare
    train = Features(numbers, codes)
    new = Features(np.array([[np.nan], [3.0]], np.float32), np.array([[9], [4]]))
    encoded = np.asarray(LinearEncoder(train)(new))
    # The scaled number, the flag, three frequent codes, and one column of all others.
    assert encoded.shape == (2, 6)
    scaled = StandardScaler().fit(np.array([[1.0], [3.0], [3.0], [8.0]])).transform([[3.0]])
    np.testing.assert_allclose(encoded[:, 0], scaled.item())
    assert encoded[0, 1] > 0 > encoded[1, 1]
    assert encoded[:, 2:].tolist() == [[0, 0, 0, 1], [0, 0, 0, 1]]
    tree = TreeEncoder(train)(Features(new.numbers, np.array([[0], [9]])))
    assert np.isnan(tree[0]).all()
    assert tree[1].tolist() == [3.0, 0.0]


def test_the_most_frequent_of_many_categories_are_kept() -> None:
    """HistGradientBoosting refuses more than 255 of them."""
    codes = np.concatenate([np.arange(2, 402), np.arange(202, 302)])[:, None]
    encoder = TreeEncoder(Features(np.zeros((500, 0), np.float32), codes))
    matrix = encoder(Features(np.zeros((500, 0), np.float32), codes))
    assert matrix.max() == 253
    assert (matrix[200:300] > 0).all()
    x = Features(np.zeros((500, 0), np.float32), codes)
    learner = HistGradientBoosting()
    encoded = learner.encoder(x)(x)
    y = (codes[:, 0] > 250).astype(np.int64)
    fitted = learner.fit(Problem(encoded, y, None, 2, 0, 1))
    assert fitted.predict(encoded).shape == (500, 2)


def batch_of(x: Any, y: Any) -> Batch:
    return Batch(torch.tensor(x), torch.tensor(y), torch.arange(len(x)))


def test_a_class_without_training_rows_has_probability_0() -> None:
    """scikit-learn gives only the classes that it saw a column."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 2)).astype(np.float32)
    schema = Schema.of(2, classes=["a", "b", "c", "d"])
    train = batch_of(x, np.where(x[:, 0] > 0, 1, 3))
    val = batch_of(x[:9], np.arange(9) % 4)
    for learner in (Linear(), HistGradientBoosting()):
        output = fit_baseline(learner, train, val, schema, 0).predict(train)
        assert output.shape == (60, 4)
        assert (output[:, [0, 2]] == 0).all()
        assert (output.argmax(1) == np.asarray(train.y)).mean() > 0.9
    single = batch_of(x, np.full(60, 2))
    output = fit_baseline(Linear(), single, val, schema, 0).predict(val)
    assert output.tolist() == [[0, 0, 1, 0]] * 9
    assert constant(single, schema).predict(val).tolist() == [[0, 0, 1, 0]] * 9


def test_a_part_of_many_rows_chooses_the_strength(monkeypatch: pytest.MonkeyPatch) -> None:
    """The part has every class, and the model that is kept is fitted to all rows."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 4))
    y = (x[:, 0] > 0) + np.int64(0)
    y[7] = 2
    problem = Problem(x[50:], y[50:], (x[:50], np.minimum(y[:50], 1)), 2, 0, 1)
    monkeypatch.setattr(learners, "MAX_SEARCH_VALUES", 400)
    fitted = Linear().fit(problem)
    whole = LogisticRegression(**fitted.settings).fit(x[50:], y[50:])
    np.testing.assert_array_equal(fitted.predict(x), whole.predict_proba(x))
    part = learners._search_part(Problem(x, y, problem.val, 3, 0, 1))
    assert 100 <= len(part.y) <= 103  # and a row of each class
    assert set(part.y) == {0, 1, 2}
    assert learners._search_part(problem._replace(x=x[:90], y=y[:90])).x.shape == (90, 4)


def test_images_are_learned_from_small_pixels(work: Path, cli: Cli) -> None:
    """Large images would make the linear model slow; trees on pixels are no baseline."""
    rng = np.random.default_rng(0)
    y = np.arange(120) % 2
    images = rng.integers(0, 100, (120, 40, 64), dtype=np.uint8)
    images[y == 1, :20] += 60
    np.savez(work / "images.npz", x=images, y=y)
    model = {"class_path": "BinaryClassifier", "init_args": {"net": "CNN"}}
    data = {"class_path": "ArrayDataModule", "init_args": {"path": "images.npz"}}
    (work / "images.yaml").write_text(json.dumps({"model": model, "data": data}))
    output = cli("baseline", "--config", "images.yaml")
    assert "LightGBM" not in output
    assert sorted(p.name for p in LOGS.iterdir()) == ["images_constant", "images_linear"]
    assert Run(LOGS / "images_linear").metrics("test")["accuracy"]["value"] == 1.0
    module = ArrayDataModule("images.npz")
    module.setup("fit")
    assert module.schema is not None
    features = features_of(module.splits["test"], module.schema)
    assert features.numbers.shape == (len(features), 32 * 32)
    x = module.splits["test"].x
    assert isinstance(x, torch.Tensor)
    assert features.numbers[0, 0] == pytest.approx(float(x[0, 0, :2, :2].float().mean()))


def test_inputs_of_another_form_are_refused() -> None:
    """A learner cannot use a text or several arrays, and must not drop them silently."""
    rows = Batch({"tokens": torch.zeros(3, 2)}, torch.zeros(3, dtype=torch.long), torch.arange(3))
    with pytest.raises(UserError, match="got inputs tokens"):
        features_of(rows, Schema.of(2, classes=[0, 1]))


def test_the_best_baseline_is_chosen_on_the_validation_split() -> None:
    """Chosen on the test split, the best of several by chance would look better than it is."""

    def rival(name: str, val: float | None, test: float) -> Rival:
        validation = {"rmse": {"value": val}}
        return Rival(Run(LOGS / name), name, {"rmse": {"value": test}}, validation, 0.0)

    rivals = [rival("a", 2.0, 1.0), rival("b", 1.5, 9.0), rival("c", None, 0.1)]
    best = best_of(rivals, "rmse")
    assert best is not None
    assert best.title == "b"
    f1 = [one._replace(validation={"f1": one.validation["rmse"]}) for one in rivals]
    best = best_of(f1, "f1")
    assert best is not None
    assert best.title == "a"
    assert best_of(rivals, "f1") is None
