"""An experiment whose process is killed at chosen points."""

from typing import Any

import pytest


@pytest.fixture
def fit(experiment: Any) -> list[Any]:
    """The command line that trains it."""
    config = experiment(
        trainer={"max_epochs": 4, "callbacks": ["engine.faults.victim.Points"]},
        model={
            "net": {
                "class_path": "engine.faults.victim.Noisy",
                "init_args": {"hidden": [8], "dropout": 0.2},
            },
            "steps_per_execution": 4,  # "auto" measures, so it may differ between runs.
        },
        data={"batch_size": 8},
        checkpoint={"every_seconds": None, "every_n_steps": 3, "monitor": "val/loss"},
    )
    return ["fit", "--config", config]
