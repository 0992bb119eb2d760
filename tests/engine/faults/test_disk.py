"""A full or read-only disk leaves the files intact that were written before."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import Cli
from engine.faults.harness import attempt, digest, said
from proj.engine.runs.checkpoint_file import is_whole


def mount(folder: Path, options: str) -> bool:
    return (
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "none", folder], capture_output=True
        ).returncode
        == 0
    )


@pytest.fixture
def small(work: Path) -> Iterator[Path]:
    """A folder of runs on a separate file system of one megabyte."""
    (folder := work / "lightning_logs").mkdir()
    if not mount(folder, "size=1m"):
        pytest.skip("needs the right to mount a tmpfs")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.mark.filterwarnings("default:the manifest of .* cannot be written")
def test_a_full_disk_stops_training_which_resumes_with_more_space(
    fit: list[Any], small: Path
) -> None:
    fit += ["--model.steps_per_execution", "4", "--checkpoint.every_n_steps", "8"]
    Path("filler.py").write_text("""
from pathlib import Path
from lightning.pytorch import Callback

class Filler(Callback):
    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == 2:
            with Path("lightning_logs/filler").open("wb") as file:
                try:
                    while True:
                        file.write(bytes(1024))
                        file.flush()
                except OSError:
                    pass
""")
    assert attempt(*fit, "--trainer.callbacks", "filler.Filler", "--name", "full") == 3, said()
    assert (
        "training stops, and the checkpoints written before are intact" in said()
        or "the disk" in said()
    )
    checkpoints = small / "full" / "checkpoints"
    assert is_whole(checkpoints / "last.ckpt")
    assert is_whole(checkpoints / "previous.ckpt")
    assert not [path for path in checkpoints.iterdir() if path.name.startswith(".")]
    os.unlink(small / "filler")
    subprocess.run(["mount", "-o", "remount,size=20m", small], check=True)
    Path("filler.py").write_text(
        "from lightning.pytorch import Callback\nclass Filler(Callback): pass\n"
    )
    assert attempt("fit", "--resume", "full") == 0, said()
    assert attempt(*fit, "--trainer.callbacks", "filler.Filler", "--name", "whole") == 0, said()
    assert digest("full")["state_dict"] == digest("whole")["state_dict"]


def test_a_read_only_folder_is_an_error_before_training(
    experiment: Any, cli: Cli, small: Path
) -> None:
    subprocess.run(["mount", "-o", "remount,ro", small], check=True)
    assert "cannot create the folder of a run in lightning_logs" in cli(
        "fit", "--config", experiment(), code=2
    )


def test_a_full_folder_for_temporary_files_does_not_matter(
    fit: list[Any], small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = small / "other"  # full
    other.mkdir()
    (other / "filler").write_bytes(bytes(1_000_000))
    monkeypatch.setenv("TMPDIR", str(other))
    assert attempt(*fit, "--trainer.default_root_dir", "elsewhere", "--name", "here") == 0, said()
    assert is_whole(Path("elsewhere/lightning_logs/here/checkpoints/last.ckpt"))
