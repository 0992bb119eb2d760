"""Files that a killed process has left beside the one that it wrote."""

import os
import signal
from pathlib import Path

import pytest
import torch

from proj.engine.runs import checkpoint_file
from proj.engine.runs.checkpoint_file import read_checkpoint
from proj.engine.runs.files import atomic_write
from proj.errors import UserError
from proj.schema import Schema


def hidden_files(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


def test_a_killed_write_leaves_nothing_once_the_file_is_written_again(work: Path) -> None:
    target = work / "metrics.json"
    process = os.fork()
    if process == 0:
        atomic_write(target, lambda file: os.kill(os.getpid(), signal.SIGKILL))
    os.waitpid(process, 0)
    assert len(hidden_files(work)) == 1
    (work / ".metrics.json.of_a_user").touch()
    atomic_write(target, lambda file: file.write(b"{}"))
    assert hidden_files(work) == [".metrics.json.of_a_user"]


def test_a_file_that_another_write_is_in_the_middle_of_is_left_alone(work: Path) -> None:
    def write_both(file: object) -> None:
        (outer,) = hidden_files(work)
        atomic_write(work / "metrics.json", lambda inner: inner.write(b"inner"))
        assert hidden_files(work) == [outer]

    atomic_write(work / "metrics.json", write_both)
    assert hidden_files(work) == []


SCHEMA = Schema.of(2, classes=("a", "b")).to_dict()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"global_step": 1.0}, "an integer for global_step, got 1.0"),
        ({"epoch": None}, "an integer for epoch, got None"),
        ({"state_dict": {"w": 1}}, "a tensor for w, got int"),
        ({"config": "text"}, "an experiment for config, got 'text'"),
        ({"global_step": 10**40}, "an integer for global_step, got 1000"),
        ({"callbacks": 1.5}, "a section for callbacks, got 1.5"),
        ({"schema": SCHEMA | {"class_counts": [1, 2, 3]}}, "3 class_counts for 2 classes"),
        ({"schema": SCHEMA | {"input_mean": [{}]}}, "expected numbers in input_mean"),
        ({"schema": SCHEMA | {"classes": ["a", None]}}, "expected plain values in a schema"),
    ],
    ids=str,
)
def test_a_checkpoint_with_values_of_another_type_is_refused(
    change: dict[str, object], message: str, work: Path
) -> None:
    whole = {
        "pytorch-lightning_version": "2.6.6",
        "epoch": 1,
        "global_step": 2,
        "state_dict": {"w": torch.zeros(2)},
        "config": {},
    }
    for content in (whole, whole | change):
        with Path("a.ckpt").open("wb") as file:
            checkpoint_file.save(content, file)
        if content is whole:
            read_checkpoint(Path("a.ckpt"))
    with pytest.raises(UserError, match=message):
        read_checkpoint(Path("a.ckpt"))
