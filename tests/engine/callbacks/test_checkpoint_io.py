"""Checkpoint files: atomic, with a checksum, and written together with ``last.ckpt``."""

import random
import zipfile
from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from conftest import Cli
from engine.callbacks.test_steps_per_execution import equal, left_behind
from proj.engine.callbacks.checkpoint_io import DurableCheckpointIO
from proj.engine.runs import checkpoint_file
from proj.engine.runs.checkpoint_file import read_checkpoint
from proj.errors import TrainingError, UserError


@pytest.fixture
def whole(work: Path) -> Path:
    """An intact checkpoint file."""
    with (work / "whole.ckpt").open("wb") as file:
        checkpoint_file.save({"state_dict": {"w": torch.arange(500.0)}, "epoch": 3}, file)
    return work / "whole.ckpt"


def test_a_file_with_a_checksum_can_be_read_by_torch_and_zip(whole: Path) -> None:
    assert checkpoint_file.is_whole(whole)
    assert torch.equal(torch.load(whole, weights_only=True)["state_dict"]["w"], torch.arange(500.0))
    assert torch.equal(
        torch.load(whole, weights_only=True, mmap=True)["state_dict"]["w"], torch.arange(500.0)
    )
    assert zipfile.ZipFile(whole).testzip() is None


def test_a_truncated_file_or_a_flipped_bit_is_detected(whole: Path) -> None:
    content, rng = whole.read_bytes(), random.Random(0)
    for size in [0, 1, 2, len(content) - 1, *rng.sample(range(len(content)), 100)]:
        whole.write_bytes(content[:size])
        assert not checkpoint_file.is_whole(whole), size
    ends = range(8 * len(content) - 800, 8 * len(content))
    for bit in [*rng.sample(range(8 * len(content)), 100), *rng.sample(ends, 100)]:
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        whole.write_bytes(flipped)
        assert not checkpoint_file.is_whole(whole), bit
    whole.write_bytes(content)
    assert checkpoint_file.is_whole(whole)


def test_a_file_of_torch_save_has_no_checksum(work: Path) -> None:
    torch.save({"state_dict": {}}, work / "plain.ckpt")
    assert not checkpoint_file.is_whole(work / "plain.ckpt")


def test_best_is_the_same_however_often_it_is_written(experiment: Any, cli: Cli) -> None:
    config = experiment(trainer={"max_epochs": 6}, checkpoint={"monitor": "val/loss"})
    cli("fit", "--config", config, "--name", "each", "--checkpoint.every_seconds", "0")
    cli("fit", "--config", config, "--name", "seldom", "--checkpoint.every_seconds", "null")
    assert equal(left_behind("seldom"), left_behind("each"))


def test_an_exception_does_not_lose_the_best_checkpoint(experiment: Any, cli: Cli) -> None:
    Path("mine.py").write_text("""
from lightning.pytorch import Callback

class Fail(Callback):
    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == 4:
            raise RuntimeError("failed on purpose")
""")
    config = experiment(
        trainer={"max_epochs": 6}, checkpoint={"monitor": "val/loss", "every_seconds": None}
    )
    with pytest.raises(RuntimeError, match="failed on purpose"):
        cli("fit", "--config", config, "--name", "broken", "--trainer.callbacks", "mine.Fail")
    assert read_checkpoint(Path("lightning_logs/broken/checkpoints/best.ckpt"))["epoch"] == 3


@pytest.mark.parametrize(
    ("option", "what"), [("every_seconds", "seconds from 0"), ("every_n_steps", "steps from 1")]
)
def test_a_negative_interval_is_an_error(option: str, what: str, experiment: Any, cli: Cli) -> None:
    said = cli("fit", "--config", experiment(), f"--checkpoint.{option}", "-1", code=2)
    assert f"checkpoint.{option}: expected {what} up, or null, got -1" in said
    assert not Path("lightning_logs").exists()


@pytest.mark.parametrize(
    ("value", "key"),
    [
        ({"history": [0.5, np.float32(0.5)]}, "history.1"),
        ({"history": {"best": (1, np.zeros(2))}}, "history.best.1"),
        ({"history": {np.int64(3): 0.5}}, "history"),
        ({"callbacks": {"Mine": {"seen": frozenset({1})}}}, "callbacks.Mine.seen"),
        ({"folder": Path("x")}, "folder"),
    ],
    ids=["number", "array", "key", "frozenset", "path"],
)
def test_a_value_that_no_verb_could_read_is_not_written(
    value: dict[str, Any], key: str, work: Path
) -> None:
    """Training would end well, and then `test` and `--resume` would call the file damaged."""
    io, last = DurableCheckpointIO(work / "own"), work / "own" / "last.ckpt"
    io.save_checkpoint({"a": 1}, last)
    for name in ("last.ckpt", "best.ckpt", "../x.ckpt"):
        with pytest.raises(TrainingError, match=rf"the checkpoint's {key}: expected .* Training"):
            io.save_checkpoint({"state_dict": {}, **value}, work / "own" / name)
    io.teardown()
    assert [path.name for path in sorted(work.rglob("*.ckpt"))] == ["last.ckpt"]
    assert torch.load(last, weights_only=True) == {"a": 1}


def test_what_weights_only_reads_is_written(work: Path) -> None:
    """Training would stop for a value that every verb can read."""
    value = {"size": torch.Size([1]), "seen": {1, 2}, "votes": Counter("ab"), "raw": bytearray(2)}
    saved = {**value, "sparse": torch.eye(2).to_sparse(), "net": nn.Linear(2, 1).state_dict()}
    DurableCheckpointIO(work / "own").save_checkpoint(saved, work / "own" / "last.ckpt")
    read = torch.load(work / "own" / "last.ckpt", weights_only=True)
    assert {name: read[name] for name in value} == value


@pytest.mark.parametrize(
    ("value", "named"),
    [(np.float32(1), "numpy"), (nn.Linear(1, 1), "torch.nn.modules.linear.Linear"), (None, None)],
    ids=["NumPy", "module", "damaged"],
)
def test_the_message_of_a_file_with_other_values(value: Any, named: str, work: Path) -> None:
    """The text of torch, with its escape codes, tells how to load the file without protection."""
    torch.save({"state_dict": {}, "own": value}, work / "x.ckpt")
    if named is None:
        (work / "x.ckpt").write_bytes((work / "x.ckpt").read_bytes()[:200])
    with pytest.raises(UserError) as raised:
        read_checkpoint(work / "x.ckpt")
    message = str(raised.value)
    assert ("cut off, damaged" if named is None else f"it holds {named}") in message
    assert "\x1b" not in message
    assert "option" not in message


def test_other_files_are_written_with_last_or_when_they_are_read(work: Path) -> None:
    io, own = DurableCheckpointIO(work / "own"), work / "own"
    io.save_checkpoint({"a": 1}, work / "other" / "x.ckpt")
    assert (work / "other" / "x.ckpt").is_file()
    io.save_checkpoint({"a": 1}, own / "best.ckpt")
    assert not (own / "best.ckpt").exists()
    io.save_checkpoint({"a": 2}, own / "last.ckpt")
    assert (torch.load(own / "best.ckpt")["a"], torch.load(own / "last.ckpt")["a"]) == (1, 2)
    io.save_checkpoint({"a": 3}, own / "last.ckpt")
    assert (torch.load(own / "previous.ckpt")["a"], torch.load(own / "last.ckpt")["a"]) == (2, 3)
    io.save_checkpoint({"a": 4}, own / "best.ckpt")
    assert io.load_checkpoint(own / "best.ckpt")["a"] == 4


@pytest.mark.parametrize("copies", [True, False])
def test_training_does_not_change_a_checkpoint_that_is_held_in_memory(
    copies: bool, work: Path
) -> None:
    io, best = DurableCheckpointIO(work, copies), work / "best.ckpt"
    weight = torch.zeros(2, requires_grad=True)
    checkpoint = {
        "state_dict": OrderedDict(weight=weight.detach(), tied=weight.detach()),
        "callbacks": {"Mine": {"values": [1, 2], "count": weight.detach()[:1]}},
        "config": {"lr": 0.1},
        "schema": None,
    }
    io.save_checkpoint(checkpoint, best)
    checkpoint["callbacks"]["Mine"]["values"].append(3)
    weight.data.fill_(5)
    io.write_pending()
    saved = read_checkpoint(best)
    assert saved["callbacks"]["Mine"]["values"] == [1, 2]
    assert saved["config"] == {"lr": 0.1}
    tensors = *saved["state_dict"].values(), saved["callbacks"]["Mine"]["count"]
    assert [tensor.tolist() for tensor in tensors] == [[0, 0], [0, 0], [0]]
    # Tied weights stay tied, so that the file does not hold them twice.
    assert len({tensor.untyped_storage().data_ptr() for tensor in tensors}) == 1
    # torch cannot copy the results of operations.
    checkpoint["callbacks"]["Mine"]["count"] = 2 * weight
    io.save_checkpoint(checkpoint, best)
    io.write_pending()
    assert read_checkpoint(best)["callbacks"]["Mine"]["count"].tolist() == [10, 10]


NUMPY_SCHEDULE = """
import numpy as np
from torch.optim.lr_scheduler import LambdaLR
def cosine(optimizer):
    return LambdaLR(optimizer, lambda epoch: 0.5 * (1 + np.cos(epoch / 7)))
"""


def test_a_schedule_computed_with_numpy_trains_and_resumes_to_the_same_bits(
    work: Path, experiment: Any, cli: Cli
) -> None:
    """Its rates are of the type np.float64, which `weights_only=True` does not read."""
    Path("schedules.py").write_text(NUMPY_SCHEDULE)
    flags = ["--config", experiment(), "--model.scheduler", "schedules.cosine"]
    cli("fit", *flags, "--name", "whole", "--trainer.max_epochs", 4)
    cli("fit", *flags, "--name", "half", "--trainer.max_epochs", 2)
    cli("fit", "--resume", "half", "--trainer.max_epochs", 4)
    whole, resumed = (
        read_checkpoint(Path("lightning_logs") / name / "checkpoints" / "last.ckpt")
        for name in ("whole", "half")
    )
    assert type(whole["lr_schedulers"][0]["_last_lr"][0]) is float
    assert resumed["lr_schedulers"] == whole["lr_schedulers"]
    for name, value in whole["state_dict"].items():
        assert torch.equal(value, resumed["state_dict"][name])
