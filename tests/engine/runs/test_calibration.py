"""A calibration.json is applied by `test`, `predict` and `proj.load`, for its own checkpoint only.

The tests write the files themselves, so they do not depend on the code that fits a calibration.
"""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from sklearn import metrics as sk
from torch import Tensor, nn

import processes
import proj
from conftest import QUIET, Cli, Trained
from proj.engine.cli import main
from proj.errors import UserError

RUN = Path("lightning_logs/version_0")
FILE = RUN / "checkpoints/calibration.json"
TEMPERATURE = 1.7
THRESHOLDS: dict[str, Any] = {
    "binary": {"yes": 0.37},
    "multilabel": {"target_0": 0.3, "target_1": 0.5, "target_2": 0.62},
    "multiclass": None,
}


class Three(nn.Module):
    """An ensemble of three members: outputs [rows, 3, 1]."""

    def __init__(self) -> None:
        super().__init__()
        self.members = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        members: Tensor = self.members(x)
        return 5 * members[..., None]


def calibration(task: str, checkpoint: str = "best.ckpt", **changes: Any) -> dict[str, Any]:
    content = (RUN / "checkpoints" / checkpoint).read_bytes()
    plain = {
        "checkpoint": checkpoint,
        "sha256": hashlib.sha256(content).hexdigest(),
        "rows": 18,
        "temperature": TEMPERATURE,
        "thresholds": THRESHOLDS[task],
        "rule": THRESHOLDS[task] and "f1",
    }
    return {**plain, **changes}


def save(values: Any) -> None:
    FILE.write_text(json.dumps(values))


def written(verb: str = "test") -> pl.DataFrame:
    return pl.read_parquet(RUN / verb / "predictions.parquet")


def probabilities(table: pl.DataFrame) -> np.ndarray[Any, Any]:
    return table.select(name for name in table.columns if name.startswith("probability")).to_numpy()


def softened(
    p: np.ndarray[Any, Any], task: str, temperature: float = TEMPERATURE
) -> np.ndarray[Any, Any]:
    """Probabilities of logits divided by the temperature, from those of the logits."""
    odds = p ** (1 / temperature)
    others = (
        (1 - p) ** (1 / temperature)
        if task == "multilabel"
        else odds.sum(axis=1, keepdims=True) - odds
    )
    return odds / (odds + others)


@pytest.mark.parametrize("task", ["binary", "multiclass", "multilabel", "ensemble"])
def test_all_verbs_apply_a_calibration_in_the_same_way(
    task: str, experiment: Any, cli: Cli
) -> None:
    """Probabilities come from outputs divided by the temperature, decisions from the thresholds.

    Metrics and loss are those of scikit-learn for both.
    """
    net = {"net": "engine.runs.test_calibration.Three"} if task == "ensemble" else {}
    task = "binary" if net else task
    cli(
        "fit",
        "--config",
        experiment(task, 300, model=net),
        "--model.optimizer.lr",
        "0.03",
        "--allow",
        "engine.runs.test_calibration",
    )
    said = cli("test")
    raw = written()
    assert "calibrat" not in said
    assert not (RUN / "test/calibration.json").exists()
    save(calibration(task))
    said = cli("test")
    assert "calibrated: temperature 1.7" in said
    assert ("threshold" in said.split("calibrated: ")[1].split("\n")[0]) is (task != "multiclass")
    table = written()
    p = probabilities(table)
    assert np.allclose(p, softened(probabilities(raw), task), atol=1e-12)
    names = [name for name in table.columns if name.startswith("prediction")]
    scores = {
        name: entry["value"]
        for name, entry in json.loads((RUN / "test/metrics.json").read_text()).items()
    }
    targets = [name.replace("prediction", "target") for name in names]
    target = table.select(targets).to_numpy()
    predicted = table.select(names).to_numpy()
    if task == "binary":
        assert (predicted[:, 0] == np.where(p[:, 1] > 0.37, "yes", "no")).all()
        assert (predicted != raw.select(names).to_numpy()).any()
        target, predicted = target == "yes", predicted == "yes"
        assert scores["f1"] == pytest.approx(sk.f1_score(target, predicted))
        assert scores["precision"] == pytest.approx(sk.precision_score(target, predicted))
        assert scores["loss"] == pytest.approx(sk.log_loss(target[:, 0], p[:, 1]))
    elif task == "multilabel":
        assert (predicted == (p > np.array([0.3, 0.5, 0.62]))).all()
        assert (predicted != raw.select(names).to_numpy()).any()
        assert scores["f1"] == pytest.approx(sk.f1_score(target, predicted, average="macro"))
        assert scores["recall/target_0"] == pytest.approx(
            sk.recall_score(target[:, 0], predicted[:, 0])
        )
        assert scores["loss"] == pytest.approx(
            np.mean([sk.log_loss(target[:, i], p[:, i]) for i in range(3)])
        )
    else:
        assert table["prediction"].equals(raw["prediction"])
        assert scores["loss"] == pytest.approx(sk.log_loss(target[:, 0], p))
    assert scores["accuracy"] == pytest.approx(sk.accuracy_score(target, predicted))
    assert json.loads((RUN / "test/calibration.json").read_text()) == calibration(task)

    x = np.load("data.npz")["x"][table["row"].to_numpy()]
    np.savez("new.npz", x=x)
    said = cli("predict", "--data.predict_path", "new.npz", "--output", "new.parquet")
    assert "calibrated: temperature 1.7" in said
    loaded = proj.load("version_0")
    assert loaded.calibration is not None
    assert loaded.calibration.temperature == 1.7
    for other in (
        pl.read_parquet("new.parquet"),
        loaded.predict(x),
        proj.load(RUN / "checkpoints/best.ckpt").predict(x),
    ):
        assert np.allclose(probabilities(other), p, atol=1e-6)
        assert other.select(names).equals(table.select(names))


@pytest.mark.parametrize("omitted", ["temperature", "thresholds"])
def test_temperature_and_thresholds_also_apply_alone(
    omitted: str, trained: Trained, cli: Cli
) -> None:
    trained("binary", 300)
    cli("test")
    raw = written()
    save(calibration("binary", **{omitted: None}))
    said = cli("test").split("calibrated: ")[1].split("\n")[0]
    assert said == ("threshold 0.37 (f1)" if omitted == "temperature" else "temperature 1.7")
    p = probabilities(written())
    assert np.allclose(
        p,
        probabilities(raw) if omitted == "temperature" else softened(probabilities(raw), "binary"),
    )
    threshold = 0.37 if omitted == "temperature" else 0.5
    assert ((written()["prediction"] == "yes").to_numpy() == (p[:, 1] > threshold)).all()


def test_a_calibration_applies_to_its_own_checkpoint_only(
    trained: Trained, cli: Cli, capsys: pytest.CaptureFixture[str]
) -> None:
    """For another checkpoint, the copy beside earlier results is deleted, too."""
    trained("binary")
    cli("test")
    raw, rows = written(), np.load("data.npz")["x"]
    save(calibration("binary"))
    cli("test")
    assert not written().equals(raw)
    capsys.readouterr()
    assert main(["test", "--ckpt_path", "last", *QUIET]) == 0
    printed = capsys.readouterr()
    assert "calibrated:" not in printed.out
    why = "it was fitted for best.ckpt, and this is last.ckpt; fit it again, or delete it."
    assert f"warning: {FILE} is not applied: {why}" in printed.err
    assert not (RUN / "test/calibration.json").exists()
    with pytest.warns(UserWarning, match=r"was fitted for best\.ckpt, and this is last\.ckpt"):
        assert proj.load(RUN / "checkpoints/last.ckpt").calibration is None

    best = RUN / "checkpoints/best.ckpt"
    shutil.copy(RUN / "checkpoints/last.ckpt", best)
    with best.open("ab") as file:
        file.write(b" ")
    for args in (["test"], ["predict", "--data.predict_path", "data.npz"]):
        assert main([*args, *QUIET]) == 0
        printed = capsys.readouterr()
        assert (
            "is not applied: it was fitted for best.ckpt, which has changed since;" in printed.err
        )
    with pytest.warns(UserWarning, match="which has changed since"):
        loaded = proj.load("version_0")
    assert np.allclose(
        probabilities(loaded.predict(rows[raw["row"].to_numpy()])),
        probabilities(written()),
        atol=1e-6,
    )


BAD: list[tuple[dict[str, Any], str]] = [
    ({"temperature": 0}, "temperature: expected a number from 0.01 to 100, or null, got 0;"),
    ({"temperature": True}, "temperature: expected a number from 0.01 to 100, or null, got True;"),
    ({"temperature": float("nan")}, "got nan;"),
    ({"temperature": 10**400}, "temperature: expected"),
    ({"temperature": "1.5"}, "got '1.5';"),
    (
        {"thresholds": {}},
        "thresholds: expected a number from 0 to 1 for each name, or null, got {};",
    ),
    ({"thresholds": {"yes": 1.2}}, "got {'yes': 1.2};"),
    ({"thresholds": [0.5]}, "got [0.5];"),
    ({"thresholds": {"no": 0.5}}, "expected thresholds for ['yes'], got thresholds for ['no'];"),
    ({"thresholds": {"yes": 0.5, "no\n": 0.5}}, "got thresholds for ['yes', 'no\\n'];"),
    (
        {"thresholds": None, "temperature": None},
        "expected a temperature or thresholds, got neither;",
    ),
    ({"sha256": "abc"}, "sha256: expected 64 hexadecimal digits, got 'abc';"),
    (
        {"checkpoint": "../best.ckpt"},
        "checkpoint: expected the name of a file, got '../best.ckpt';",
    ),
    ({"rule": "f1\nf2"}, "rule: expected f1, precision=P or null, got 'f1\\nf2';"),
    ({"rows": -1}, "rows: expected a number of rows, got -1;"),
    ({"more": 1}, "expected the keys checkpoint, sha256, rows, temperature, thresholds, rule, got"),
]


def test_a_damaged_file_is_an_error_with_a_remedy(trained: Trained, cli: Cli) -> None:
    trained("binary")
    for changes, message in BAD:
        save({**calibration("binary"), **changes})
        with pytest.raises(UserError) as raised:
            proj.load("version_0")
        said = str(raised.value)
        assert message in said, changes
        assert "delete the file, or fit it again." in said
        assert len(said) < 600
        assert "\n" not in said
    assert said in cli("test", code=2)
    for content in (b"", b"{", b"[" * 100_000, b"\xff\xfe", b"[1]", b"1" * 10_000, b'{"a": 1}'):
        FILE.write_bytes(content)
        with pytest.raises(UserError, match=r"calibration\.json"):
            proj.load("version_0")
    assert "calibration.json" in cli("predict", "--data.predict_path", "data.npz", code=2)
    said = cli("validate")  # It applies no calibration and reads none.
    assert f"{FILE} is not applied to the split it was fitted on" in said


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("regression", "expected a model of classes or labels, got one of numbers;"),
        ("multiclass", "expected no thresholds for several classes, got thresholds for ['yes'];"),
    ],
)
def test_a_file_for_another_task_is_an_error(
    task: str, message: str, trained: Trained, cli: Cli
) -> None:
    trained(task)
    save(calibration("binary"))
    assert message in cli("test", code=2)


def test_training_and_validation_ignore_a_calibration(experiment: Any, cli: Cli) -> None:
    cli("fit", "--config", experiment("binary"))
    cli("validate")
    raw, scores = written("validate"), (RUN / "validate/metrics.json").read_text()
    save(calibration("binary"))
    cli("validate")
    assert written("validate").equals(raw)
    assert (RUN / "validate/metrics.json").read_text() == scores
    cli("fit", "--resume", "version_0", "--trainer.max_epochs", "3")


@pytest.mark.slow
def test_two_processes_apply_a_calibration_as_one_does(experiment: Any, cli: Cli) -> None:
    cli("fit", "--config", experiment("multilabel", 121))
    save(calibration("multilabel"))
    cli("test")
    one, scores = written(), json.loads((RUN / "test/metrics.json").read_text())
    two = ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--trainer.accelerator", "cpu"]
    done = processes.run(proj.__name__, "test", *two, *QUIET)
    assert done.returncode == 0, done.stderr
    assert (
        done.stdout.count(
            "calibrated: temperature 1.7, thresholds target_0 0.3, target_1 0.5, target_2 0.62 (f1)"
        )
        == 1
    )
    assert np.allclose(probabilities(written()), probabilities(one), atol=1e-6)
    assert written().select("^prediction.*$").equals(one.select("^prediction.*$"))
    again = json.loads((RUN / "test/metrics.json").read_text())
    assert {name: entry["value"] for name, entry in again.items()} == pytest.approx(
        {name: entry["value"] for name, entry in scores.items()}, abs=1e-6
    )
