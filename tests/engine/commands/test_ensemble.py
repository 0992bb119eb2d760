"""Ensembles: weights, averaged predictions, and the verbs that take them or refuse them."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import log_loss

from conftest import Cli, Once, make_arrays, plain_schema
from proj.engine.baselines import fitting
from proj.engine.evaluation.ensemble_folder import write_ensemble
from proj.engine.evaluation.ensemble_weights import greedy_weights
from proj.engine.evaluation.prediction_set import PredictionSet
from proj.engine.predictor import EnsemblePredictor, load
from proj.engine.runs.find import find_run
from proj.engine.runs.run import Run, create_run
from proj.errors import UserError

LOGS = Path("lightning_logs")
MEMBERS = (["a"], ["b"], ["a_linear"], ["ensemble"])
MORE = ["--seed_everything", "5", "--model.net.hidden", "[16]", "--trainer.max_epochs", "4"]


@pytest.fixture(autouse=True)
def only_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the optional packages: the quick tests are the same wherever they run."""
    optional = ("lightgbm", "xgboost", "catboost")
    monkeypatch.setattr(fitting, "find_spec", lambda name: None if name in optional else object())


@pytest.fixture
def two_runs(experiment: Callable[..., Path], cli: Cli, once: Once) -> Callable[[str], None]:
    """Train the runs ``a`` and ``b`` of a task, whose nets and seeds differ."""

    def train(task: str) -> None:
        config = experiment(task)

        def fit() -> None:
            cli("fit", "--config", config, "--name", "a")
            cli("fit", "--config", config, "--name", "b", *MORE)

        once(f"ensemble_{task}", fit)

    return train


def candidates(task: str, count: int, rows: int = 40) -> list[PredictionSet]:
    """Predictions of the same random targets, each with an error of its own."""
    rng = np.random.default_rng(3)
    if task == "regression":
        target = rng.normal(size=(rows, 1))
        outputs = [target + rng.normal(size=(rows, 1)) for _ in range(count)]
        names: tuple[str, ...] = ("target",)
    else:
        target, names = rng.integers(3, size=rows), ("0", "1", "2")
        scores = np.eye(3)[target] * 2 + rng.normal(scale=1.5, size=(count, rows, 3))
        outputs = list(np.exp(scores) / np.exp(scores).sum(axis=2, keepdims=True))
    weight = rng.uniform(0.5, 2, size=rows)
    first = PredictionSet(task, names, np.arange(rows), target, outputs[0], weight=weight)  # type: ignore[arg-type]
    return [replace(first, output=output) for output in outputs]


@pytest.mark.parametrize("task", ["multiclass", "regression"])
def test_weights_equal_those_of_a_greedy_search_in_plain_loops(task: str) -> None:
    """Each round tries every candidate in a list of selections, scored by scikit-learn."""
    members = candidates(task, 4)
    first = members[0]

    def loss(selected: list[int]) -> float:
        output = np.mean([members[i].output for i in selected], axis=0)
        if task == "regression":
            squared = ((output - first.target) ** 2)[:, 0]
            return float(np.average(squared, weights=first.weight))
        return float(log_loss(first.target, output, sample_weight=first.weight))

    selected: list[int] = []
    best: list[int] = []
    for _ in range(12):
        selected = min(([*selected, i] for i in range(4)), key=loss)
        if not best or loss(selected) < loss(best) - 1e-12:
            best = selected
    schema = replace(plain_schema(task, (2,), 1 if task == "regression" else 3), target_std=(1.0,))
    weights = greedy_weights(members, schema, selections=12)
    assert weights == [best.count(i) / len(best) for i in range(4)]
    assert sum(weight > 0 for weight in weights) > 1


def test_one_wrong_row_of_probability_0_does_not_decide() -> None:
    """An infinite loss of every candidate would select the first one, whatever the other rows."""
    good, bad = candidates("multiclass", 2)
    output = np.eye(3)[good.target] * 0.9 + 0.1 / 3
    output[0] = np.roll(np.eye(3)[good.target[0]], 1)
    useless = np.full_like(output, 1 / 3)
    useless[0] = output[0]
    schema = plain_schema("multiclass", (2,), 3)
    weights = greedy_weights([replace(bad, output=useless), replace(good, output=output)], schema)
    assert weights == [0.0, 1.0]


def check_weighted_mean(task: str, cli: Cli) -> None:
    """Compare the predictions of an ensemble of ``a`` and ``b`` with NumPy's mean."""
    sources = [Run(LOGS / "a"), Run(LOGS / "b")]
    write_ensemble(create_run(LOGS, "e"), "runs", sources, [0.3, 0.7], [])
    assert "members: 0.3 of a, 0.7 of b" in cli("test", "--run", "e")
    assert not (LOGS / "e" / "members" / "0" / "test").exists()
    table = pl.read_parquet(LOGS / "e" / "test" / "predictions.parquet")
    x = np.load("data.npz")["x"][table["row"].to_numpy()]
    kind = "prediction" if task.startswith("regression") else "probability"
    columns = [column for column in table.columns if column.startswith(kind)]
    a, b = (load(name).predict(x)[columns].to_numpy().astype(np.float64) for name in "ab")
    mean = 0.3 * a + 0.7 * b
    np.testing.assert_allclose(table[columns].to_numpy(), mean, rtol=1e-5)
    assert any(column.startswith("target") for column in table.columns)
    if task in ("multiclass", "binary"):
        labels = np.array([column.removeprefix("probability_") for column in columns])
        assert table["prediction"].cast(pl.String).to_list() == labels[mean.argmax(1)].tolist()
    cli("predict", "--run", "e", "--output", "new.csv")
    np.testing.assert_allclose(pl.read_csv("new.csv")[columns].to_numpy(), mean, rtol=1e-5)
    loaded = load("e")
    assert isinstance(loaded, EnsemblePredictor)
    np.testing.assert_allclose(loaded.predict(x)[columns].to_numpy(), mean, rtol=1e-5)


@pytest.mark.parametrize("task", ["multiclass"])
def test_predictions_are_the_weighted_mean(
    task: str, two_runs: Callable[[str], None], cli: Cli
) -> None:
    """`test`, `predict` and `proj.load` give NumPy's mean of what the members predict alone."""
    two_runs(task)
    check_weighted_mean(task, cli)


@pytest.mark.long
@pytest.mark.parametrize("task", ["binary", "multilabel", "regression", "regression_2"])
def test_predictions_of_the_other_tasks_are_the_weighted_mean(
    task: str, two_runs: Callable[[str], None], cli: Cli
) -> None:
    """A table has one column of probabilities or two, and one of each label or target."""
    two_runs(task)
    check_weighted_mean(task, cli)


def test_an_ensemble_is_a_run(two_runs: Callable[[str], None], cli: Cli) -> None:
    """`runs`, `compare` and `report` take it, also once its members' runs are gone."""
    two_runs("multiclass")
    cli("baseline", "--run", "a")
    output = cli("ensemble", "a", "b", "a_linear", "--name", "e")
    facts = Run(LOGS / "e").ensemble
    assert facts is not None
    assert sum(member["weight"] for member in facts["members"]) == pytest.approx(1)
    assert facts["kind"] == "runs"
    losses = [
        float(line.split()[1])
        for line in output.splitlines()
        if line[:2] in ("a ", "b ", "a_", "en")
    ]
    assert losses[-1] <= min(losses)
    assert find_run(LOGS, None).path.name == "b"
    tested = cli("test", "--run", "e")
    assert "the best baseline (linear model)" in tested
    cli("test", "--run", "b")
    shutil.rmtree(LOGS / "a")
    (LOGS / "e").rename(LOGS / "moved")
    assert cli("test", "--run", "moved").count("│ f1 ") == 1
    assert "moved minus b" in cli("compare", "b", "moved")
    cli("report", "moved")
    page = (LOGS / "moved" / "report.html").read_text()
    assert "with weights fitted on the validation split" in page
    assert "ensemble a b a_linear --name e" in page
    assert "Ensemble" in cli("runs", "--where", f"ensemble={len(facts['members'])}")
    validated = cli("validate", "--run", "moved")
    assert "the weights were fitted on these rows" in validated
    by_name = {member["name"]: member for member in facts["members"]}
    assert "a_linear" in by_name  # The linear model is better than two epochs of a small net.
    message = "got the baseline a_linear (linear model), which is stored without its model"
    assert message in cli("predict", "--run", "moved", code=2)
    with pytest.raises(UserError, match="got the baseline a_linear"):
        load("moved")


def test_the_test_split_decides_nothing(
    experiment: Callable[..., Path], cli: Cli, work: Path
) -> None:
    """Other test targets give the same weights."""
    arrays, parts = make_arrays("multiclass", 200), {}
    for name, rows in (("train", slice(120)), ("val", slice(120, 160)), ("test", slice(160, 200))):
        parts |= {f"{key}_{name}": values[rows] for key, values in arrays.items()}
    config = experiment("multiclass")
    np.savez(work / "data.npz", **parts)
    cli("fit", "--config", config, "--name", "a")
    cli("fit", "--config", config, "--name", "b", *MORE)
    cli("ensemble", "a", "b", "--name", "before")
    np.savez(work / "data.npz", **{**parts, "y_test": np.roll(parts["y_test"], 1)})
    cli("ensemble", "a", "b", "--name", "after")
    assert Run(LOGS / "before").ensemble == Run(LOGS / "after").ensemble


def test_verbs_that_need_a_checkpoint_refuse_an_ensemble(
    two_runs: Callable[[str], None], cli: Cli
) -> None:
    """Each says what the run is, in place of a missing file or an unknown class."""
    two_runs("multiclass")
    cli("ensemble", "a", "b", "--name", "e")
    for words in (
        ["fit", "--resume", "e"],
        ["fit", "--config", "experiment.yaml", "--init_from", "e"],
        ["reproduce", "e"],
        ["eject", "e"],
        ["baseline", "--run", "e"],
        ["ensemble", "a", "e"],
    ):
        message = cli(*words, code=2)
        assert "expected a run that `fit` trained, got an ensemble" in message, words
    for flags in (["--calibrate", "temperature"], ["--ckpt_path", "last"], ["--importance"]):
        assert f"{flags[0]}: expected a run that `fit` trained, got the ensemble" in cli(
            "validate", "--run", "e", *flags, code=2
        )
    assert "lightning_logs/e has not been tested" in cli("export", "--run", "e", code=2)
    config = LOGS / "e" / "config.yaml"
    assert "got the config of an ensemble" in cli("fit", "--config", config, code=2)
    assert "--config: expected a run" in cli(
        "test", "--run", "e", "--config", "experiment.yaml", code=2
    )
    assert "fast_dev_run" in cli("test", "--run", "e", "--trainer.fast_dev_run", "true", code=2)


def test_mistakes_are_one_message(
    two_runs: Callable[[str], None], experiment: Callable[..., Path], cli: Cli
) -> None:
    """Runs of other tasks, rows or targets cannot be averaged; no folder is made for them."""
    two_runs("multiclass")
    assert "expected two different runs or more, got a" in cli("ensemble", "a", code=2)
    assert "expected two different runs or more, got a a" in cli("ensemble", "a", "a", code=2)
    assert "no run c in lightning_logs" in cli("ensemble", "a", "c", code=2)
    assert "--name: expected a new name" in cli("ensemble", "a", "b", "--name", "b", code=2)
    cli("fit", "--config", "experiment.yaml", "--name", "c", "--data.split_seed", "3")
    assert "expected members with the same rows, got different ones in a and c" in cli(
        "ensemble", "a", "c", code=2
    )
    assert sorted(path.name for path in LOGS.iterdir() if path.is_dir()) == ["a", "b", "c"]
    manifest = Run(LOGS / "b").manifest
    Run(LOGS / "b").write_manifest(status="stopped")
    assert "whose status is stopped" in cli("ensemble", "a", "b", code=2)
    Run(LOGS / "b").write_manifest(status=manifest["status"])
    cli("fit", "--config", experiment("binary"), "--name", "d")
    assert "expected runs of one task with the same classes" in cli("ensemble", "a", "d", code=2)


def test_a_damaged_ensemble_is_one_message(two_runs: Callable[[str], None], cli: Cli) -> None:
    """Weights that are no shares, and members that are gone."""
    two_runs("multiclass")
    cli("ensemble", "a", "b", "--name", "e")
    path = LOGS / "e" / "manifest.json"
    manifest = json.loads(path.read_text())
    for weight in (-1.0, 0.2, float("nan")):
        manifest["ensemble"]["members"][0]["weight"] = weight
        path.write_text(json.dumps(manifest))
        message = cli("test", "--run", "e", code=2)
        assert "is damaged" in message
    manifest["ensemble"]["members"] = [{"name": "a", "weight": 1.0}]
    path.write_text(json.dumps(manifest))
    shutil.rmtree(LOGS / "e" / "members")
    assert "members/0" in cli("test", "--run", "e", code=2)


def test_models_of_folds_predict_new_rows_only(
    experiment: Callable[..., Path], cli: Cli, work: Path
) -> None:
    """Each row of the cross-validation trained some member, so no metric of them is honest."""
    config = experiment("multiclass")
    for fold in range(2):
        cli("fit", "--config", config, "--name", f"f{fold}", "--data.fold", f"[test, {fold}, 2]")
    sources = [Run(LOGS / f"f{fold}") for fold in range(2)]
    write_ensemble(create_run(LOGS, "e"), "folds", sources, [0.5, 0.5], [])
    for verb in ("test", "validate", "predict"):
        assert "expected rows that no member was trained on" in cli(verb, "--run", "e", code=2)
    x = make_arrays("multiclass", 30, seed=0)["x"]
    np.savez(work / "new.npz", x=x)
    cli("predict", "--run", "e", "--data.predict_path", "new.npz", "--output", "new.csv")
    columns = ["probability_0", "probability_10", "probability_20"]
    members = [load(f"f{fold}").predict(x)[columns].to_numpy() for fold in range(2)]
    written = pl.read_csv("new.csv")[columns].to_numpy()
    np.testing.assert_allclose(written, np.mean(members, axis=0), rtol=1e-5)
