"""An exported ensemble answers as its members on average, also if each encodes rows its own way."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

import proj
from conftest import Cli
from engine.deployment.conftest import FEW_EPOCHS, TARGETS, write_table
from proj.engine.deployment.runtime import load
from proj.engine.evaluation.ensemble_folder import write_ensemble
from proj.engine.predictor import EnsemblePredictor
from proj.engine.runs.run import Run, create_run

pytestmark = [
    pytest.mark.long,
    pytest.mark.filterwarnings(
        "ignore::DeprecationWarning:onnx.*", "ignore::DeprecationWarning:torch.*"
    ),
]
LOGS = Path("lightning_logs")
BUNDLE = LOGS / "e" / "bundle"
SMALL = ["--model.net.members", 3, "--model.net.width", 8, "--model.net.embedding", 4, *FEW_EPOCHS]


def train(cli: Cli, name: str, task: str, columns: str = "", *flags: object) -> None:
    """Train a small net on the table, with a seed of its own."""
    kept, every = TARGETS[task], ",".join(TARGETS.values()).split(",")
    dropped = ", ".join(f"{name}: drop" for name in every if name not in kept.split(","))
    if not Path("table.yaml").exists():
        write_table()
        cli("init", "table.csv", "--target", kept, "--output", "table.yaml")
    data = ["--data.columns", f"{{{dropped}{columns}}}"]
    seed = ["--seed_everything", ord(name[-1])]
    cli("fit", "--config", "table.yaml", "--name", name, *data, *seed, *SMALL, *flags)


def check_answers(rows: pl.DataFrame, scale: float) -> None:
    """The bundle answers as the loaded ensemble, and as the mean of its loaded members."""
    ensemble, answers = proj.load("e"), load(BUNDLE).predict(rows, 7, strict=False)
    assert isinstance(ensemble, EnsemblePredictor)
    expected = ensemble.predict(rows).drop("row")
    assert list(answers) == expected.columns
    members = [member.predict(rows) for member in ensemble.members]
    numbers = [name for name, values in answers.items() if values.dtype.kind == "f"]
    assert numbers
    for name in numbers:
        columns = [member[name].to_numpy() for member in members]
        mean = np.average(columns, axis=0, weights=ensemble.weights)
        for reference in (expected[name].to_numpy(), mean):
            np.testing.assert_allclose(answers[name], reference, rtol=1e-5, atol=1e-6 * scale)


@pytest.mark.slow
@pytest.mark.parametrize("model_format", ["onnx", "torch"])
def test_members_that_encode_alike_share_their_inputs(
    work: Path, cli: Cli, model_format: str
) -> None:
    """A member with another reading of a column has inputs of its own."""
    for name, columns in (("a", ""), ("b", ""), ("c", ", zip: number")):
        train(cli, name, "binary", columns)
    sources = [Run(LOGS / name) for name in "abc"]
    write_ensemble(create_run(LOGS, "e"), "runs", sources, [0.5, 0.3, 0.2], [])
    assert "lightning_logs/e has not been tested" in cli("export", "--run", "e", code=2)
    cli("test", "--run", "e")
    cli("export", "--run", "e", "--format", model_format)
    spec = json.loads((BUNDLE / "bundle.json").read_text())
    assert spec["model"]["inputs"] == ["numeric", "categorical", "numeric_1", "categorical_1"]
    check_answers(pl.read_csv("table.csv", infer_schema=False), 1)
    trust = ["--trust"] if model_format == "torch" else []
    assert "verified: 45 rows" in cli("verify", BUNDLE, *trust)
    cli("verify", BUNDLE, "--run", "e", *trust)
    assert "Ensemble of 3 nets" in (BUNDLE / "README.md").read_text()
    train(cli, "d", "binary", ", seconds: drop")
    pair = [Run(LOGS / "a"), Run(LOGS / "d")]
    write_ensemble(create_run(LOGS, "other"), "runs", pair, [0.5, 0.5], [])
    cli("test", "--run", "other")
    message = "expected members that read the same columns, got column seconds in only one of a and"
    assert message in cli("export", "--run", "other", code=2)


def test_models_of_folds(work: Path, cli: Cli) -> None:
    """Each fold has its own categories and statistics; the proof scores no row."""
    for fold in range(2):
        train(cli, f"f{fold}", "regression", "", "--data.fold", f"[test, {fold}, 2]")
    sources = [Run(LOGS / f"f{fold}") for fold in range(2)]
    write_ensemble(create_run(LOGS, "e"), "folds", sources, [0.5, 0.5], [])
    cli("export", "--run", "e")
    check_answers(pl.read_csv("table.csv", infer_schema=False), 1e4)
    assert "## Results" not in (BUNDLE / "README.md").read_text()
    assert "verified: 45 rows" in cli("verify", BUNDLE)
