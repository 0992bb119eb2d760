"""A run that is killed at any point and resumed has the bits of an uninterrupted run."""

import json
import random
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import Cli
from engine.faults.harness import attempt, curves, digest, said
from proj.engine.runs.checkpoint_file import is_whole
from proj.engine.runs.locks import lock_run
from proj.engine.runs.run import Run

ONE_CYCLE = [
    "--model.scheduler",
    "OneCycleLR",
    "--model.scheduler.max_lr",
    "0.01",
    "--model.scheduler_interval",
    "step",
]
PLATEAU = [
    "--model.scheduler",
    "lightning.pytorch.cli.ReduceLROnPlateau",
    "--model.scheduler.monitor",
    "val/loss",
    "--model.scheduler.patience",
    "0",
    "--model.scheduler.threshold",
    "0.5",
]
SCENARIOS = {
    "executions, dropout, OneCycleLR": ["--model.steps_per_execution", "7", *ONE_CYCLE],
    "single steps, accumulated": [
        "--model.steps_per_execution",
        "1",
        "--trainer.accumulate_grad_batches",
        "2",
    ],
    "plateau": [*PLATEAU, "--model.steps_per_execution", "4"],
    "validation within the epoch, max_steps": [
        "--model.steps_per_execution",
        "2",
        "--trainer.val_check_interval",
        "0.4",
        "--trainer.max_steps",
        "31",
    ],
    "accumulated, validation within the epoch": [
        "--trainer.accumulate_grad_batches",
        "2",
        "--trainer.val_check_interval",
        "5",
    ],
    "early stopping": [
        "--model.steps_per_execution",
        "3",
        "--early_stopping.patience",
        "2",
        "--early_stopping.min_delta",
        "0.02",
        "--trainer.max_epochs",
        "9",
    ],
}
COMPILED = [
    "--model.compile",
    "step",
    "--model.net",
    "MLP",
    "--model.net.hidden",
    "[8]",
    "--model.net.dropout",
    "0.2",
]
KILLS = [
    ["after replace:1"],
    ["save:2", "save:2"],
    ["before fsync:5", "after replace:4"],
    ["validation start:2", "validation end:1"],
    ["epoch end:2", "epoch start:1"],
    ["step:23", "step:9", "step:5"],
    ["after replace:9", "before replace:6"],
]


def check(fit: list[Any], point_lists: list[list[str]], copy_first: bool = True) -> int:
    """Kill a run at the points of each list in turn, then let it finish, and compare the results.

    With ``copy_first``, the first kill of each list is a copy of the files of the uninterrupted run
    at that point, which are the files that a kill leaves. This saves a process for each list.

    Returns the number of kills.
    """
    logs = Path("lightning_logs")
    copies = {kills[0]: f"copies/{kills[0]}" for kills in point_lists} if copy_first else {}
    env = {"COPIES": json.dumps(copies)}
    assert attempt(*fit, "--name", "killed", env=env) == 0, said()
    (logs / "killed").rename(logs / "whole")
    expected = digest("whole")
    for kills in point_lists:
        command = [*fit, "--name", "killed"]
        remaining = kills
        if copy_first:
            shutil.move(copies[kills[0]], logs / "killed")
            command, remaining = ["fit", "--resume", "killed"], kills[1:]
        for kill in remaining:
            assert attempt(*command, kill=kill) == -9, f"{kills}: {said()}"
            command = ["fit", "--resume", "killed"]
        assert attempt(*command) == 0, f"{kills}: {said()}"
        assert digest("killed") == expected, kills
        shutil.rmtree(logs / "killed")
    return sum(map(len, point_lists))


@pytest.mark.parametrize(("number", "scenario"), list(enumerate(SCENARIOS)), ids=list(SCENARIOS))
def test_a_killed_run_resumes_to_the_same_bits(number: int, scenario: str, fit: list[Any]) -> None:
    """Together the scenarios use every list of points. A slow test combines all of both."""
    check(fit + SCENARIOS[scenario], [KILLS[number], KILLS[(number + 2) % len(KILLS)]])


def test_the_comparison_fails_without_the_random_generators(
    fit: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORGET_GENERATORS", "1")
    with pytest.raises(AssertionError, match="step:23"):
        check(fit, [["step:23"]])


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_a_run_with_compiled_steps_resumes_to_the_same_bits(fit: list[Any]) -> None:
    check(fit + COMPILED, [["before fsync:5", "validation end:1"]])


def test_images_are_augmented_in_the_same_way_after_a_resume(work: Path) -> None:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 120)
    np.savez(
        "images.npz",
        x=(rng.random((120, 8, 8)) * 99 + 99 * y[:, None, None]).astype(np.uint8),
        y=y,
    )
    flags = [
        "--data",
        "Images",
        "--data.path",
        "images.npz",
        "--data.crop",
        "2",
        "--data.flip",
        "true",
        "--data.erase",
        "0.5",
        "--data.batch_size",
        "16",
        "--model",
        "BinaryClassifier",
        "--model.net",
        "CNN",
        "--model.mixup",
        "0.4",
        "--model.cutmix",
        "1.0",
        "--model.net.width",
        "2",
        "--trainer.max_epochs",
        "3",
        "--trainer.accelerator",
        "cpu",
        "--trainer.callbacks",
        "engine.faults.victim.Points",
        "--checkpoint.every_n_steps",
        "2",
        "--model.steps_per_execution",
        "2",
    ]
    check(["fit", *flags], [["before fsync:5", "epoch end:1"]])


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers")
@pytest.mark.filterwarnings("default:the training data loader has no state_dict")
def test_with_a_users_own_loader_training_resumes_at_the_end_of_an_epoch(
    fit: list[Any], cli: Cli
) -> None:
    Path("own.py").write_text("""
import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, TensorDataset

class Own(LightningDataModule):
    def train_dataloader(self):
        x = torch.randn(96, 6, generator=torch.Generator().manual_seed(0))
        return DataLoader(TensorDataset(x, (x[:, 0] > 0).long() + (x[:, 1] > 0)), 8, shuffle=True)

    def val_dataloader(self):
        return DataLoader(self.train_dataloader().dataset, 8)
""")
    net = ["--model.net", "SimpleNN", "--model.net.inputs", "6", "--model.net.outputs", "3"]
    fit += ["--data", "own.Own", *net, "--checkpoint.every_n_steps", "1"]
    check(fit, [["epoch start:3"], ["validation end:2"]])
    assert attempt(*fit, "--name", "killed", kill="epoch end:2") == -9
    with pytest.warns(UserWarning, match="training resumes at the end of an epoch"):
        cli("fit", "--resume", "killed")


@pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers")
@pytest.mark.filterwarnings("default:the training data loader has no state_dict")
def test_a_curve_has_each_step_once_with_two_optimizers(cli: Cli) -> None:
    """The values of a killed process after its last checkpoint would stay beside the new ones."""
    classes = [
        "--model",
        "engine.faults.own_code.Adversaries",
        "--data",
        "engine.faults.own_code.Own",
    ]
    best = ["--checkpoint.monitor", "val_gap", "--checkpoint.mode", "min"]
    trainer = ["--trainer.max_epochs", "2", "--trainer.accelerator", "cpu"]
    cli("fit", *classes, *best, *trainer, "--name", "run")
    last = Path("lightning_logs/run/checkpoints/last.ckpt")
    of_epoch_1 = last.read_bytes()
    longer = ["--resume", "run", "--trainer.max_epochs", "3"]
    with pytest.warns(UserWarning, match="training resumes at the end of an epoch"):
        cli("fit", *longer)
    last.write_bytes(of_epoch_1)
    manifest = Path("lightning_logs/run/manifest.json")
    manifest.write_text(manifest.read_text().replace('"finished"', '"running"'))
    with pytest.warns(UserWarning, match="training resumes at the end of an epoch"):
        cli("fit", *longer)
    # Two optimizers step in each of 12 batches.
    assert [step for step, _ in curves("run")["val_gap"]] == [24, 48, 72]


# Conditions of a resume


def test_changed_settings_are_applied_or_refused(experiment: Any, cli: Cli) -> None:
    config = experiment(trainer={"max_epochs": 4})
    cli("fit", "--config", config, "--name", "whole")
    cli("fit", "--config", config, "--name", "longer", "--trainer.max_epochs", "2")
    assert "lightning_logs/longer is complete" in cli("fit", "--resume")
    said = cli(
        "fit", "--resume", "longer", "--model.optimizer.lr", "0.1", "--data.batch_size", "5", code=2
    )
    assert "cannot change while it is trained: model.init_args.optimizer" in said
    assert "data.init_args.batch_size: 16 -> 5" in said
    out = cli(
        "fit", "--resume", "longer", "--trainer.max_epochs", "4", "--early_stopping.patience", "7"
    )
    assert "not as recorded: trainer.max_epochs: 2 -> 4" in out
    assert is_whole(Path("lightning_logs/longer/checkpoints/best.ckpt"))
    assert digest("longer")["state_dict"] == digest("whole")["state_dict"]
    assert curves_within_training("longer") == curves_within_training("whole")
    assert json.loads(Path("lightning_logs/longer/manifest.json").read_text())["resumed"]
    assert "is complete" in cli("fit", "--resume", "longer")


@pytest.mark.filterwarnings("ignore:val/f1 was")  # as the rows are few
def test_more_patience_continues_after_early_stopping(experiment: Any, cli: Cli) -> None:
    config = experiment(trainer={"max_epochs": 9}, early_stopping={"min_delta": 1.0})
    cli("fit", "--config", config, "--name", "patient", "--early_stopping.patience", "4")
    cli("fit", "--config", config, "--name", "hasty", "--early_stopping.patience", "2")
    cli("fit", "--resume", "hasty", "--early_stopping.patience", "4")
    assert digest("hasty")["state_dict"] == digest("patient")["state_dict"]
    assert curves_within_training("hasty") == curves_within_training("patient")


def curves_within_training(name: str) -> Any:
    """The curves without those that are logged at the end, which resumed runs have twice."""
    return {tag: sorted(curve) for tag, curve in curves(name).items() if "_best/" not in tag}


def test_fewer_epochs_than_trained_are_an_error(experiment: Any, cli: Cli) -> None:
    cli("fit", "--config", experiment(trainer={"max_epochs": 3}))
    assert "expected more than the 2 epochs" in cli(
        "fit", "--resume", "--trainer.max_epochs", "1", code=2
    )


def test_a_moved_run_keeps_its_best_checkpoint(fit: list[Any], cli: Cli) -> None:
    assert attempt(*fit, "--name", "whole") == 0, said()
    assert attempt(*fit, "--name", "old", kill="epoch start:4") == -9
    Path("lightning_logs/old").rename("lightning_logs/new")
    assert attempt("fit", "--resume", "new") == 0, said()
    assert digest("new") == digest("whole")


def test_the_length_of_a_schedule_cannot_change(experiment: Any, cli: Cli) -> None:
    cli("fit", "--config", experiment(), *ONE_CYCLE)
    said = cli("fit", "--resume", "--trainer.max_epochs", "4", code=2)
    assert "cannot change while it is trained: trainer.max_epochs: 2 -> 4" in said


def test_a_resume_without_a_run_or_checkpoint_is_an_error(experiment: Any, cli: Cli) -> None:
    assert "expected a run to resume, there is none" in cli("fit", "--resume", code=2)
    cli("fit", "--config", experiment(), "--name", "only")
    assert "no run other in" in cli("fit", "--resume", "other", code=2)
    assert "expected no --name" in cli("fit", "--resume", "only", "--name", "other", code=2)
    checkpoints = Path("lightning_logs/only/checkpoints")
    for path in checkpoints.glob("*.ckpt"):
        path.unlink()
    assert "there is none" in cli("fit", "--resume", "only", "--trainer.max_epochs", "3", code=2)


def test_changed_data_are_an_error(experiment: Any, cli: Cli) -> None:
    cli("fit", "--config", experiment(), "--name", "only")
    experiment(rows=130)
    assert "got data that have changed" in cli(
        "fit", "--resume", "only", "--trainer.max_epochs", "3", code=2
    )


def test_a_damaged_checkpoint_is_skipped_with_a_warning(fit: list[Any], cli: Cli) -> None:
    fit += ["--model.steps_per_execution", "4"]
    assert attempt(*fit, "--name", "whole") == 0
    assert attempt(*fit, "--name", "damaged", kill="step:30") == -9
    last = Path("lightning_logs/damaged/checkpoints/last.ckpt")
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 4
    last.write_bytes(content)
    assert attempt("fit", "--resume", "damaged") == 0
    assert "last.ckpt is damaged: skipped" in said()
    assert "resumed: lightning_logs/damaged/checkpoints/previous.ckpt" in said()
    assert digest("damaged") == digest("whole")
    for path in last.parent.glob("*.ckpt"):
        path.write_bytes(path.read_bytes()[:-1])
    assert attempt("fit", "--resume", "damaged", "--trainer.max_epochs", "5") == 2
    assert "none is intact" in said()


def test_a_run_in_training_cannot_be_resumed_by_another_process(fit: list[Any], cli: Cli) -> None:
    cli(*fit, "--name", "only")
    with lock_run(Run(Path("lightning_logs/only"))):
        assert "is being trained by another process" in cli(
            "fit", "--resume", "only", "--trainer.max_epochs", "5", code=2
        )


@pytest.mark.slow
def test_a_hundred_kills_at_random(fit: list[Any]) -> None:
    """Kill every scenario at every list of points, then at random times, over a hundred times."""
    rng, kills = random.Random(0), 0
    scenarios = SCENARIOS | {"compiled": COMPILED} if shutil.which("g++") else SCENARIOS
    for name, flags in scenarios.items():
        points = KILLS if name != "compiled" else KILLS[:5]
        kills += check(fit + flags, points, copy_first=False)
        start = time.monotonic()
        shutil.rmtree("lightning_logs/whole")
        assert attempt(*fit, *flags, "--name", "whole") == 0, said()
        duration = time.monotonic() - start
        command, killed = [*fit, *flags, "--name", "killed"], 0
        while (
            code := attempt(
                *command, after=rng.uniform(0.3, 1.0) * duration if killed < 15 else None
            )
        ) != 0:
            assert code == -9, said()
            killed += 1
            if Path("lightning_logs/killed/checkpoints/last.ckpt").exists():
                command = ["fit", "--resume", "killed"]
            else:  # It was killed before the first checkpoint.
                shutil.rmtree("lightning_logs/killed", ignore_errors=True)
        assert digest("killed") == digest("whole"), name
        shutil.rmtree("lightning_logs")
        kills += killed
    print(f"{kills} kills, none lost")
    assert kills > 100
