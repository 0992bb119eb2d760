"""Training from shards: killed runs resume to the same bits, processes see each row once."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import yaml

from engine.faults.harness import attempt, digest, said
from engine.faults.test_processes import TWO, ended, started

ROWS = (310, 1, 489)
# Blocks have 8 rows. Three splits have 640, 80 and 80 rows.
SIZES = {"val_fraction": 0.1, "test_fraction": 0.1, "batch_size": 8, "buffer_rows": 100}


@pytest.fixture
def fit(work: Path) -> list[Any]:
    """The command line of a training on shards, with dropout and validations within the epoch."""
    draw = np.random.default_rng(0)
    starts = np.cumsum([0, *ROWS])
    size = draw.normal(size=sum(ROWS))
    frame = pl.DataFrame(
        {"size": size, "y": np.where(size + draw.normal(size=len(size)) > 0, 1, 0)}
    )
    (work / "shards").mkdir()
    for i, rows in enumerate(ROWS):
        frame[int(starts[i]) : int(starts[i]) + rows].write_parquet(f"shards/{i}.parquet")
    experiment = {
        "seed_everything": 1,
        "trainer": {
            "max_epochs": 2,
            "val_check_interval": 0.5,
            "callbacks": ["engine.faults.victim.Points"],
        },
        "model": {
            "class_path": "BinaryClassifier",
            "init_args": {
                "net": {
                    "class_path": "engine.faults.victim.Noisy",
                    "init_args": {"hidden": [8], "dropout": 0.2},
                },
                "steps_per_execution": 3,
            },
        },
        "data": {
            "class_path": "ParquetStream",
            "init_args": {"path": "shards", "target": "y", **SIZES},
        },
        "checkpoint": {"every_seconds": None, "every_n_steps": 3, "monitor": "val/loss"},
    }
    (work / "stream.yaml").write_text(yaml.safe_dump(experiment))
    return ["fit", "--config", work / "stream.yaml"]


@pytest.mark.long
def test_a_killed_run_resumes_to_the_same_bits(fit: list[Any]) -> None:
    """Within a buffer and at the border of two, before and after a validation."""
    assert attempt(*fit, "--name", "whole") == 0, said()
    command = [*fit, "--name", "killed"]
    for kill in ("step:23", "validation end:1", "step:70"):
        assert attempt(*command, kill=kill) == -9, said()
        command = ["fit", "--resume", "killed"]
    assert attempt(*command) == 0, said()
    assert digest("killed") == digest("whole")


@pytest.mark.long
def test_two_processes_share_the_rows_and_resume(fit: list[Any], work: Path) -> None:
    """Killed processes resume to the same bits, and the test split is predicted once."""
    flags = ["--allow", "engine.faults", *TWO]
    command = ["proj", *map(str, fit), *flags]
    assert ended(started([*command, "--name", "whole"], work), work) == 0
    process = started([*command, "--name", "killed"], work)
    checkpoint = work / "lightning_logs/killed/checkpoints/previous.ckpt"
    limit = time.monotonic() + 120
    while not checkpoint.exists() and process.poll() is None and time.monotonic() < limit:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    assert ended(process, work) == -9
    quiet = ["--allow", "engine.faults", "--trainer.enable_progress_bar", "false"]
    assert ended(started(["proj", "fit", "--resume", "killed", *quiet], work), work) == 0
    assert digest("killed") == digest("whole")
    assert ended(started(["proj", "test", "--run", "killed", *quiet], work), work) == 0
    together = pl.read_parquet(work / "lightning_logs/killed/test/predictions.parquet")
    assert together["row"].is_unique().all()
    alone = ["--trainer.devices", "1", "--trainer.strategy", "auto"]
    assert ended(started(["proj", "test", "--run", "killed", *quiet, *alone], work), work) == 0
    assert together.equals(pl.read_parquet(work / "lightning_logs/killed/test/predictions.parquet"))
