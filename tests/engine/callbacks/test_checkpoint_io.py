"""Checkpoint files: atomic, with a checksum, and written together with ``last.ckpt``."""

import random
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import Cli
from engine.callbacks.test_steps_per_execution import equal, left_behind
from proj.engine.callbacks.checkpoint_io import DurableCheckpointIO
from proj.engine.runs import checkpoint_file
from proj.engine.runs.checkpoint_file import read_checkpoint


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
