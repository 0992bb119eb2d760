"""The main features on a CUDA device, in 32 and 16 bits; run with ``pytest -m cuda``."""

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
from proj.engine.evaluation import tensorboard
from proj.engine.runs.checkpoint_file import read_checkpoint

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"),
    pytest.mark.filterwarnings("ignore::UserWarning"),  # of torch.compile
]

GPU = ["--trainer.accelerator", "gpu", "--trainer.devices", "1"]
DETERMINISTIC = [*GPU, "--trainer.deterministic", "true"]


def run(*args: Any, kill: str = "", code: int = 0, quiet: list[str] = QUIET) -> str:
    """Run a command line in a new process, which uses the GPU; return what it printed."""
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
    flags = [*GPU, "--trainer.precision", precision, "--trainer.max_epochs", "10"]
    optimizer = ["--model.optimizer", "Adam", "--model.optimizer.lr", "0.01"]
    cli("fit", "--config", experiment(task, 2000), *optimizer, *flags)
    cli("test")
    folder = Path("lightning_logs/version_0")
    scores = json.loads((folder / "test/metrics.json").read_text())
    table = pl.read_parquet(folder / "test/predictions.parquet")
    if task == "multiclass":
        f1 = f1_score(table["target"], table["prediction"], average="macro")
        assert scores["f1"]["value"] == pytest.approx(f1, abs=1e-6)
        assert f1 > 0.7
    # The predictor computes on the CPU, in 32 bits.
    on_cpu = proj.load("version_0").predict(np.load("data.npz")["x"][table["row"].to_numpy()])
    tolerance = 0.005 if precision == "32-true" else 0.05
    for name in table.columns:
        if name in on_cpu.columns and table[name].dtype.is_float():
            expected = table[name].to_numpy()
            error = np.abs(on_cpu[name].to_numpy() - expected) / (1 + np.abs(expected))
            assert error.max() < tolerance, name


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
        names = ["--name", steps, "--model.steps_per_execution", steps]
        cli("fit", "--config", config, *names, *DETERMINISTIC, *flags)
    for steps in ("7", "500"):
        assert equal(left_behind(steps), left_behind("1")), steps


def test_a_killed_run_resumes_to_the_same_bits(fit: list[Any]) -> None:
    fit += [*DETERMINISTIC, "--allow", "engine.faults"]
    run(*fit, "--name", "whole")
    run(*fit, "--name", "killed", kill="step:23", code=-9)
    resume = ["fit", "--resume", "killed", "--allow", "engine.faults"]
    run(*resume, kill="validation end:1", code=-9)
    run(*resume)
    assert digest("killed") == digest("whole")


def test_a_compiled_step_equals_an_eager_one_up_to_rounding(experiment: Any, cli: Cli) -> None:
    config = experiment(rows=250)
    for mode in ("none", "step"):
        printed = cli("fit", "--config", config, "--name", mode, "--model.compile", mode, *GPU)
    assert "not compiled" not in printed
    weights = [
        read_checkpoint(Path(f"lightning_logs/{name}/checkpoints/last.ckpt"))["state_dict"]
        for name in ("none", "step")
    ]
    for name, value in weights[0].items():
        assert torch.allclose(value, weights[1][name], atol=1e-3), name


def test_a_loss_that_is_not_finite_exits_with_3(experiment: Any, cli: Cli) -> None:
    optimizer = {"class_path": "SGD", "init_args": {"lr": 1e30}}
    config = experiment("regression", model={"optimizer": optimizer})
    assert "gave a number that is not finite" in cli("fit", "--config", config, *GPU, code=3)


def test_ddp_with_nccl(experiment: Any) -> None:
    config = experiment(rows=250)
    run("fit", "--config", config, "--name", "plain", *GPU)
    run("fit", "--config", config, "--name", "ddp", *GPU, "--trainer.strategy", "ddp")
    run("test", "--run", "ddp", *GPU)
    plain, ddp = (
        read_checkpoint(Path(f"lightning_logs/{name}/checkpoints/last.ckpt"))
        for name in ("plain", "ddp")
    )
    for name, value in plain["state_dict"].items():
        assert torch.allclose(value, ddp["state_dict"][name], atol=1e-4), name
    rows = pl.read_parquet("lightning_logs/ddp/test/predictions.parquet")["row"]
    assert rows.n_unique() == len(rows)


def test_check_passes(experiment: Any, cli: Cli) -> None:
    assert "one batch of each stage runs without an error" in cli(
        "check", "--config", experiment(rows=250), *GPU
    )


def test_figures_calibration_importance_and_report(
    experiment: Any, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Draw after each validation.
    monkeypatch.setattr(tensorboard, "MIN_SECONDS_BETWEEN_FIGURES", 0.0)
    cli("fit", "--config", experiment(rows=400), *GPU)
    folder = Path("lightning_logs/version_0")
    events = EventAccumulator(str(folder), {"images": 0})
    events.Reload()
    assert "val/confusion" in events.Tags()["images"]
    cli("validate", "--calibrate", "temperature", "--importance")
    assert (folder / "validate/importance.json").is_file()
    cli("test")
    table = pl.read_parquet(folder / "test/predictions.parquet")
    # The predictor computes on the CPU and applies the calibration, too.
    on_cpu = proj.load("version_0").predict(np.load("data.npz")["x"][table["row"].to_numpy()])
    names = [name for name in table.columns if name.startswith("probability")]
    assert np.allclose(table[names].to_numpy(), on_cpu[names].to_numpy(), atol=0.005)
    assert "<svg" in (folder / "report.html").read_text()


def test_a_study_with_two_workers(experiment: Any) -> None:
    experiment(rows=250, trainer={"accelerator": "gpu", "devices": 1})
    space = {"model.optimizer.lr": {"log": [1e-3, 0.1]}}
    study = {
        "experiment": "experiment.yaml",
        "trials": 4,
        "sampler": {"class_path": "RandomSampler"},
        "space": space,
    }
    Path("study.yaml").write_text(json.dumps(study))
    run("tune", "--config", "study.yaml", "--workers", "2", quiet=[])
    trials = pl.read_csv("lightning_logs/studies/study/trials.csv")
    assert trials["state"].to_list() == ["complete"] * 4
