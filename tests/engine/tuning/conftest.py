"""Helpers for studies whose trials take about a second, in processes of their own."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml

import processes

STUDY_FOLDER = Path("lightning_logs/studies/study")


@pytest.fixture(autouse=True)
def workers(quick_workers: None) -> None:
    """Each test may start workers."""


@pytest.fixture
def study(experiment: Any) -> Callable[..., list[str]]:
    """Write an experiment and a study file; return the command line. Options are its keys."""

    def write(
        trials: int | None = 5, experiment_sections: dict[str, Any] | None = None, **keys: Any
    ) -> list[str]:
        config = experiment("multiclass", 200, **(experiment_sections or {}))
        section = {
            "experiment": str(config.name),
            "trials": trials,
            "sampler": {
                "class_path": "TPESampler",
                "init_args": {"n_startup_trials": 3, "multivariate": True},
            },
            "space": {
                "model.optimizer.lr": {"log": [1e-3, 1e-1]},
                "model.net.hidden": {"choice": [[8], [16, 8], []]},
                "data.batch_size": {"choice": [16, 32]},
                "trainer.max_epochs": {"int": [2, 4]},
            },
            **keys,
        }
        Path("study.yaml").write_text(
            yaml.safe_dump({key: value for key, value in section.items() if value is not None})
        )
        return ["tune", "--config", "study.yaml"]

    return write


def start(*args: str) -> processes.Process:
    """Start a command line; its output goes to ``log.txt``."""
    with Path("log.txt").open("a") as log:
        return processes.Process("proj", *args, stdout=log, stderr=log)


def run(*args: str, code: int = 0) -> str:
    """Run a command line and return its output, with another exit code its errors."""
    process = processes.run("proj", *args)
    message = f"{process.returncode}: {process.stdout}\n{process.stderr}"
    assert process.returncode == code, message
    return process.stdout if code == 0 else process.stderr


def wait_until(condition: Callable[[], Any], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, Path("log.txt").read_text()
        time.sleep(0.02)


def trials() -> list[dict[str, Any]]:
    """Return the table of the study without the durations."""
    table = pl.read_csv(STUDY_FOLDER / "trials.csv", infer_schema_length=None)
    return table.drop("seconds").to_dicts()


def records() -> list[Any]:
    """Return the complete records of the study's journal."""
    path = STUDY_FOLDER / "study.journal"
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
