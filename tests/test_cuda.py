"""On a CUDA machine: what holds on the CPU holds there, in 32 bits and in 16."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from sklearn.metrics import f1_score
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import proj
from conftest import QUIET, ROOT, Cli
from engine.callbacks.test_steps_per_execution import equal, left_behind
from engine.faults.conftest import fit as fit
from engine.faults.harness import digest
from proj.engine.runs.run import read_checkpoint

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"),
    pytest.mark.filterwarnings("ignore::UserWarning"),  # of the compiler's
]

GPU = ["--trainer.accelerator", "gpu", "--trainer.devices", "1"]
SURE = [*GPU, "--trainer.deterministic", "true"]


def process(*args: Any, kill: str = "", code: int = 0, quiet: list[str] = QUIET) -> str:
    """The command line in a process of its own."""
    paths = os.pathsep.join([str(ROOT / "src"), str(ROOT / "tests"), *sys.path])
    environment = {
        **os.environ,
        "PYTHONPATH": paths,
        "KILL": kill,
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    }
    command = [sys.executable, "-m", "proj", *map(str, args), *quiet]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == code, f"{done.returncode}: {done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
@pytest.mark.parametrize("task", ["binary", "multiclass", "multilabel", "regression_2"])
def test_each_task_in_each_precision(task: str, precision: str, experiment: Any, cli: Cli) -> None:
    flags = [
        *GPU,
        "--trainer.precision",
        precision,
        "--trainer.max_epochs",
        "10",
        "--model.optimizer.lr",
        "0.01",
    ]
    cli("fit", "--config", experiment(task, 2000), "--model.optimizer", "Adam", *flags)
    cli("test")
    run = Path("lightning_logs/version_0")
    scores = json.loads((run / "test/metrics.json").read_text())
    rows = pl.read_parquet(run / "test/predictions.parquet")
    if task == "multiclass":
        f1 = f1_score(rows["target"], rows["prediction"], average="macro")
        assert scores["f1"]["value"] == pytest.approx(f1, abs=1e-6)
        assert f1 > 0.7
    predictor = proj.load("version_0")  # on the CPU, in 32 bits
    ours = predictor.predict(np.load("data.npz")["x"][rows["row"].to_numpy()])
    for name in (
        name
        for name in rows.columns
        if name.startswith("probability") or rows[name].dtype.is_float()
    ):
        if name in ours.columns:
            apart = np.abs(ours[name].to_numpy() - rows[name].to_numpy()) / (
                1 + np.abs(rows[name].to_numpy())
            )
            assert apart.max() < (0.005 if precision == "32-true" else 0.05), name


@pytest.mark.parametrize(
    "flags",
    [
        ["--model.net.dropout", "0.2"],
        ["--trainer.val_check_interval", "0.3", "--model.optimizer", "SGD"],
    ],
)
def test_every_number_of_steps_gives_the_same_bits(
    flags: list[str], experiment: Any, cli: Cli, monkeypatch: Any
) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    config = experiment(rows=250)
    for steps in ("1", "7", "500"):
        cli(
            "fit",
            "--config",
            config,
            "--name",
            steps,
            "--model.steps_per_execution",
            steps,
            *SURE,
            *flags,
        )
    for steps in ("7", "500"):
        assert equal(left_behind(steps), left_behind("1")), steps


def test_a_killed_run_comes_to_the_same_bits(fit: list[Any]) -> None:
    fit += [*SURE, "--allow", "engine.faults"]
    process(*fit, "--name", "whole")
    process(*fit, "--name", "killed", kill="step:23", code=-9)
    process(
        "fit", "--resume", "killed", "--allow", "engine.faults", kill="validation end:1", code=-9
    )
    process("fit", "--resume", "killed", "--allow", "engine.faults")
    assert digest("killed") == digest("whole")


def test_a_compiled_step_is_as_eager_ones_but_for_rounding(experiment: Any, cli: Cli) -> None:
    config = experiment(rows=250)
    for what in ("none", "step"):
        said = cli("fit", "--config", config, "--name", what, "--model.compile", what, *GPU)
    assert "not compiled" not in said
    weights = [
        read_checkpoint(Path(f"lightning_logs/{name}/checkpoints/last.ckpt"))["state_dict"]
        for name in ("none", "step")
    ]
    for name, value in weights[0].items():
        assert torch.allclose(value, weights[1][name], atol=1e-3), name


def test_what_is_not_finite_ends_with_3(experiment: Any, cli: Cli) -> None:
    optimizer = {"class_path": "SGD", "init_args": {"lr": 1e30}}
    config = experiment("regression", model={"optimizer": optimizer})
    assert "gave a number that is not finite" in cli("fit", "--config", config, *GPU, code=3)


def test_ddp_with_nccl(experiment: Any) -> None:
    config = experiment(rows=250)
    process("fit", "--config", config, "--name", "plain", *GPU)
    process("fit", "--config", config, "--name", "ddp", *GPU, "--trainer.strategy", "ddp")
    process("test", "--run", "ddp", *GPU)
    one, other = (
        read_checkpoint(Path(f"lightning_logs/{name}/checkpoints/last.ckpt"))
        for name in ("plain", "ddp")
    )
    for name, value in one["state_dict"].items():
        assert torch.allclose(value, other["state_dict"][name], atol=1e-4), name
    rows = pl.read_parquet("lightning_logs/ddp/test/predictions.parquet")["row"]
    assert rows.n_unique() == len(rows)


def test_check_goes_through(experiment: Any, cli: Cli) -> None:
    assert "a batch of each stage goes through" in cli(
        "check", "--config", experiment(rows=250), *GPU
    )


def test_figures_calibration_importance_and_page(
    experiment: Any, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensorboard = pytest.importorskip("proj.engine.evaluation.tensorboard")
    monkeypatch.setattr(tensorboard, "MIN_SECONDS_BETWEEN_FIGURES", 0.0)
    cli("fit", "--config", experiment(rows=400), *GPU)
    run = Path("lightning_logs/version_0")
    events = EventAccumulator(str(run), {"images": 0})
    events.Reload()
    assert "val/confusion" in events.Tags()["images"]
    cli("validate", "--calibrate", "temperature", "--importance")
    assert (run / "validate/importance.json").is_file()
    cli("test")
    rows = pl.read_parquet(run / "test/predictions.parquet")
    ours = proj.load("version_0").predict(
        np.load("data.npz")["x"][rows["row"].to_numpy()]
    )  # on the CPU, calibrated too
    names = [name for name in rows.columns if name.startswith("probability")]
    assert np.allclose(rows[names].to_numpy(), ours[names].to_numpy(), atol=0.005)
    assert "<svg" in (run / "report.html").read_text()


def test_a_study_of_two_trials_at_once(experiment: Any) -> None:
    pytest.importorskip("optuna")
    experiment(rows=250, trainer={"accelerator": "gpu", "devices": 1})
    space = {"model.optimizer.lr": {"log": [1e-3, 0.1]}}
    study = {
        "experiment": "experiment.yaml",
        "trials": 4,
        "sampler": {"class_path": "RandomSampler"},
        "space": space,
    }
    Path("study.yaml").write_text(json.dumps(study))
    process("tune", "--config", "study.yaml", "--workers", "2", quiet=[])
    trials = pl.read_csv("lightning_logs/studies/study/trials.csv")
    assert trials["state"].to_list() == ["complete"] * 4
