"""After SIGINT or SIGTERM the step ends, a checkpoint is saved, and a resume has the same bits."""

import json
import re
import time
from pathlib import Path
from signal import SIGINT, SIGTERM
from typing import Any

import pytest

from engine.faults.harness import attempt, digest, said


def status(name: str) -> Any:
    return json.loads(Path(f"lightning_logs/{name}/manifest.json").read_text())["status"]


@pytest.mark.long
def test_a_run_stopped_at_any_point_resumes_to_the_same_bits(fit: list[Any]) -> None:
    fit += [
        "--model.steps_per_execution",
        "4",
        "--checkpoint.every_n_steps",
        "1000",
    ]  # Only the signal saves.
    assert attempt(*fit, "--name", "whole") == 0, said()
    for point, number in [
        ("step:20", SIGTERM),
        ("validation start:2", SIGTERM),
        ("before fsync:1", SIGINT),
        ("save:2", SIGTERM),
        ("epoch end:2", SIGINT),
        ("epoch start:3", SIGINT),
    ]:
        name = point.replace(":", " ").replace(" ", "_")
        begin = time.monotonic()
        assert attempt(*fit, "--name", name, kill=point, by=[number]) == 128 + number, said()
        assert time.monotonic() - begin < 60
        assert status(name) == "stopped"
        assert re.search(
            rf"stopped in epoch \d+, saved; to continue: fit --resume lightning_logs/{name}", said()
        )
        assert attempt("fit", "--resume", name) == 0, said()
        assert status(name) == "finished"
        assert digest(name) == digest("whole"), point


def test_the_second_ctrl_c_stops_at_once(fit: list[Any]) -> None:
    assert attempt(*fit, "--name", "stopped", kill="step:20", by=[SIGINT, SIGINT]) == 130
    assert status("stopped") == "stopped"
    assert attempt(*fit, "--name", "whole") == 0
    assert attempt("fit", "--resume", "stopped") == 0
    assert digest("stopped")["state_dict"] == digest("whole")["state_dict"]
