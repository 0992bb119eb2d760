"""A study whose trials take a second, run in processes of its own."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml

import processes


@pytest.fixture
def study(experiment: Any) -> Callable[..., list[str]]:
    """Write an experiment and a study of it; returns the command line. Options: keys of the study's file."""

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
    with Path("log.txt").open("a") as log:
        return processes.Process("proj", *args, stdout=log, stderr=log)


def run(*args: str, code: int = 0) -> str:
    """A command line in a process of its own; what it printed."""
    done = processes.run("proj", *args)
    assert done.returncode == code, f"{done.returncode}: {done.stdout}\n{done.stderr}"
    return done.stdout if code == 0 else done.stderr


def wait_until(happened: Callable[[], Any], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, Path("log.txt").read_text()
        time.sleep(0.02)


def trials(folder: str = "lightning_logs/studies/study") -> list[dict[str, Any]]:
    """The study's table, without the times."""
    return pl.read_csv(f"{folder}/trials.csv", infer_schema_length=None).drop("seconds").to_dicts()


def records(folder: str = "lightning_logs/studies/study") -> list[Any]:
    path = Path(folder) / "study.journal"
    return (
        [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
        if path.exists()
        else []
    )
