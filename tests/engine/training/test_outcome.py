"""Training in processes that Python starts: the result comes from the files of the run."""

from pathlib import Path
from typing import Any

import pytest
import torch

import processes
from conftest import Cli
from proj.engine.config.world import starts_with_python
from proj.engine.runs.run import Run

RUNS = Path("lightning_logs")
TWO = ["--trainer.devices", "2", "--trainer.accelerator", "cpu"]


def fit(config: Path, name: str, strategy: str) -> str:
    """Train in two processes, and return the table of the best epoch and the lines after it."""
    flags = [*TWO, "--trainer.strategy", strategy, "--trainer.enable_progress_bar", "false"]
    done = processes.run("proj", "fit", "--config", config, "--name", name, *flags)
    assert done.returncode == 0, done.stdout + done.stderr
    return str(done.stdout[done.stdout.index("best epoch") :].replace(name, "NAME"))


@pytest.mark.long
@pytest.mark.parametrize(
    "strategy", ["ddp_fork", pytest.param("ddp_spawn", marks=pytest.mark.slow)]
)
def test_the_result_is_that_of_programs(strategy: str, experiment: Any, cli: Cli) -> None:
    """The summary would tell of no epoch and no step, and the run could not be tested."""
    config = experiment("multiclass")
    assert fit(config, "python", strategy) == fit(config, "programs", "ddp")
    states = [
        torch.load(RUNS / name / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
        for name in ("python", "programs")
    ]
    assert all(torch.equal(states[0][name], value) for name, value in states[1].items())
    best = [Run(RUNS / name).manifest["best_epoch"] for name in ("python", "programs")]
    assert best[0] == best[1]
    cli("test", "--run", "python")
    assert (RUNS / "python/test/predictions.parquet").is_file()


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        ("ddp_notebook", True),
        ("ddp_fork_find_unused_parameters_true", True),
        ("ddp", False),
        ("auto", False),
    ],
)
def test_strategies_whose_processes_python_starts(strategy: str, expected: bool) -> None:
    """`test` would write no predictions."""
    assert starts_with_python(strategy) == expected
