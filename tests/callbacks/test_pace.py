"""Checkpoints written seldom are those written each epoch, also where training is broken off."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import Cli
from proj import run
from proj.callbacks.pace import PacedCheckpointIO
from proj.run import read_checkpoint
from test_execution import equal, left_behind


@pytest.fixture
def writes(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each file has been written."""
    count: Counter[str] = Counter()

    def counted(path: Path, fill: Any) -> None:
        count[path.name] += 1
        run.write(path, fill)

    monkeypatch.setattr("proj.callbacks.pace.write", counted)
    return count


def test_seldom_written_they_are_the_same(experiment: Any, cli: Cli, writes: Counter[str]) -> None:
    config = experiment(trainer={"max_epochs": 6}, checkpoint={"monitor": "val/loss"})
    cli("fit", "--config", config, "--name", "each", "--checkpoint.every_seconds", "0")
    assert writes["last.ckpt"] == 6
    assert writes["best.ckpt"] > 2  # or this test would show nothing
    writes.clear()
    cli("fit", "--config", config, "--name", "seldom", "--checkpoint.every_seconds", "1000")
    assert writes == {"best.ckpt": 2, "last.ckpt": 2}  # at the first epoch and at the end
    assert equal(left_behind("seldom"), left_behind("each"))


def test_broken_off_the_last_whole_epoch_is_there(experiment: Any, cli: Cli) -> None:
    Path("mine.py").write_text("""
from lightning.pytorch import Callback

class Break(Callback):
    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == 4:
            raise RuntimeError("broken off")
""")
    config = experiment(trainer={"max_epochs": 6})
    flags = ["--checkpoint.every_seconds", "1000", "--trainer.callbacks", "mine.Break"]
    with pytest.raises(RuntimeError, match="broken off"):
        cli("fit", "--config", config, "--name", "broken", *flags)
    assert read_checkpoint(Path("lightning_logs/broken/checkpoints/last.ckpt"))["epoch"] == 3


def test_a_pace_is_no_less_than_none(experiment: Any, cli: Cli) -> None:
    said = cli("fit", "--config", experiment(), "--checkpoint.every_seconds", "-1", code=2)
    assert "checkpoint.every_seconds: expected seconds from 0 up, got -1.0" in said
    assert not Path("lightning_logs").exists()


def test_other_files_are_written_at_once_and_waiting_ones_before_they_are_read(work: Path) -> None:
    io = PacedCheckpointIO(work / "own", every_seconds=1000)
    io.save_checkpoint({"a": torch.ones(1)}, work / "other" / "x.ckpt")
    assert (work / "other" / "x.ckpt").is_file()
    for value in (1.0, 2.0):
        io.save_checkpoint({"a": torch.tensor(value)}, work / "own" / "x.ckpt")
    assert torch.load(work / "own" / "x.ckpt")["a"] == 1
    assert io.load_checkpoint(work / "own" / "x.ckpt")["a"] == 2
