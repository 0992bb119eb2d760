"""Weight averaging and learning-rate monitors in executions have the results of single steps."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    DeviceStatsMonitor,
    EMAWeightAveraging,
    LambdaCallback,
    LearningRateMonitor,
    ModelCheckpoint,
    ModelPruning,
    StochasticWeightAveraging,
    Timer,
    WeightAveraging,
)
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from conftest import Cli
from engine.callbacks.test_steps_per_execution import equal
from proj.engine.callbacks.single_steps import callback_obstacles
from proj.engine.commands.fit import fit
from proj.engine.runs.checkpoint_file import read_checkpoint

OWN = """
import os
import signal

from lightning.pytorch import Callback
from lightning.pytorch.callbacks import WeightAveraging

class Late(WeightAveraging):
    def should_update(self, step_idx=None, epoch_idx=None):
        return step_idx in (3, 4, 9, 20) or epoch_idx == 1

class Interrupt(Callback):
    def on_validation_start(self, trainer, pl_module):
        if trainer.global_step == 26:  # The 4th step of the last epoch.
            os.kill(os.getpid(), signal.SIGINT)

class Epochs(Callback):
    def on_train_epoch_end(self, trainer, pl_module):
        next(pl_module.parameters()).data += 0.001 * trainer.global_step
"""
ONE_CYCLE = {
    "scheduler": {"class_path": "OneCycleLR", "init_args": {"max_lr": 0.01}},
    "scheduler_interval": "step",
}
PLATEAU = {
    "scheduler": {"class_path": "lightning.pytorch.cli.ReduceLROnPlateau"}
    | {"init_args": {"monitor": "val/loss", "patience": 0}}
}
NORMED = {"net": {"class_path": "MLP", "init_args": {"hidden": [8], "norm": "batch"}}}
KEYS = ("state_dict", "optimizer_states", "lr_schedulers", "epoch", "global_step")
KEYS += ("current_model_state", "averaging_state")
AVERAGES = ("EMAWeightAveraging", "StochasticWeightAveraging", "Late")
SWA = "StochasticWeightAveraging"


def callbacks(*specs: tuple[str, dict[str, Any]]) -> dict[str, Any]:
    return {"callbacks": [{"class_path": name, "init_args": init} for name, init in specs]}


# Flags of the Trainer and of the model. An epoch has 11 batches.
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "EMA, clipped": (
        callbacks(("EMAWeightAveraging", {"decay": 0.9})) | {"gradient_clip_val": 0.1},
        ONE_CYCLE,
    ),
    "EMA every 3 steps from step 5": (
        callbacks(
            ("EMAWeightAveraging", {"update_every_n_steps": 3, "update_starting_at_step": 5})
        ),
        {},
    ),
    "EMA, validation within the epoch, max_steps": (
        callbacks(("EMAWeightAveraging", {"update_starting_at_epoch": 1}))
        | {"val_check_interval": 4, "max_steps": 26},
        NORMED,
    ),
    "own averages": (callbacks(("own.Late", {})), {}),
    "SWA by step": (
        callbacks((SWA, {"swa_lrs": 0.02, "swa_epoch_start": 2, "annealing_epochs": 2})),
        ONE_CYCLE,
    ),
    "SWA, batch norm": (
        callbacks((SWA, {"swa_lrs": 0.02, "swa_epoch_start": 1})),
        NORMED,
    ),
    "monitor and own epochs": (
        callbacks(("LearningRateMonitor", {"log_momentum": True}), ("own.Epochs", {}))
        | {"log_every_n_steps": 3},
        ONE_CYCLE,
    ),
    "monitor by epochs": (
        callbacks(("LearningRateMonitor", {"logging_interval": "epoch", "log_momentum": True})),
        PLATEAU,
    ),
}
QUICK = ("EMA, clipped", "SWA, batch norm", "monitor and own epochs")


def train(experiment: Any, cli: Cli, name: str, steps: int, *flags: str) -> str:
    Path("own.py").write_text(OWN)
    trainer, model = CASES[name]
    config = experiment(rows=250, trainer={"max_epochs": 3} | trainer, model=model)
    said: str = cli("fit", "--config", config, "--model.steps_per_execution", steps, *flags)
    return said


def results(run: str) -> Any:
    """The checkpoints and curves of a run, except for Lightning's counts of executions."""
    folder = Path("lightning_logs") / run
    state: dict[str, Any] = {}
    for which in ("best", "last"):
        checkpoint = read_checkpoint(folder / "checkpoints" / f"{which}.ckpt")
        averages = {k: v for k, v in checkpoint["callbacks"].items() if k in AVERAGES}
        state[which] = [averages, *(checkpoint.get(key) for key in KEYS)]
    events = EventAccumulator(str(folder))
    events.Reload()
    # `StepLogger` logs the norm of an execution's last step, and the rates unless a monitor does.
    monitored = "LearningRateMonitor" in (folder / "config.yaml").read_text()
    by_execution = ("gradient_norm", *([] if monitored else ["lr-Adam"]))
    tags = [tag for tag in events.Tags()["scalars"] if tag not in by_execution]
    return state, {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in tags}


def check_case(experiment: Any, cli: Cli, name: str, sizes: tuple[int, ...]) -> None:
    train(experiment, cli, name, 1, "--name", "by_1")
    single = results("by_1")
    assert len(single[1]["val/loss"]) >= 3
    assert ("lr-Adam-momentum" in single[1]) == name.startswith("monitor")
    for size in sizes:
        said = train(experiment, cli, name, size, "--name", f"by_{size}")
        assert "at a time" not in said
        loops = read_checkpoint(Path(f"lightning_logs/by_{size}/checkpoints/last.ckpt"))["loops"]
        progress = loops["fit_loop"]["epoch_loop.batch_progress"]
        assert progress["total"]["ready"] < single[0]["last"][5]
        assert equal(results(f"by_{size}"), single), size


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", QUICK)
def test_executions_have_the_results_of_single_steps(name: str, experiment: Any, cli: Cli) -> None:
    check_case(experiment, cli, name, (4,))


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CASES)
def test_executions_of_several_sizes(name: str, experiment: Any, cli: Cli) -> None:
    check_case(experiment, cli, name, (2, 3, 7, 500))


def interrupt_and_resume(experiment: Any, cli: Cli, name: str, steps: int, run: str) -> Any:
    trainer, model = CASES[name]
    interrupt = {"class_path": "own.Interrupt", "init_args": {}}
    trainer = {**trainer, "callbacks": [*trainer["callbacks"], interrupt], "val_check_interval": 4}
    config = experiment(rows=250, trainer={"max_epochs": 3} | trainer, model=model)
    flags = ["--config", config, "--model.steps_per_execution", steps, "--name", run]
    cli("fit", *flags, code=130)
    saved = read_checkpoint(Path(f"lightning_logs/{run}/checkpoints/last.ckpt"))
    assert saved["global_step"] == 26
    assert "at a time" not in cli("fit", "--resume", run)
    return results(run)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["EMA, clipped", "SWA by step"])
def test_a_resume_within_an_epoch(name: str, experiment: Any, cli: Cli) -> None:
    """Within the epochs of SWA, plain Lightning loses a step of its schedule, and so do both."""
    Path("own.py").write_text(OWN)
    single = interrupt_and_resume(experiment, cli, name, 1, "by_1")
    assert equal(interrupt_and_resume(experiment, cli, name, 3, "by_3"), single)
    if name.startswith("EMA"):
        train(experiment, cli, name, 2, "--trainer.val_check_interval", "4", "--name", "whole")
        assert equal(results("whole")[0], single[0])


@pytest.mark.filterwarnings("ignore")
def test_averages_are_those_of_a_loop(experiment: Any, cli: Cli) -> None:
    """After an execution, the average of a recomputed sequence of weights is the callback's."""
    steps: list[dict[str, torch.Tensor]] = []

    class Record(EMAWeightAveraging):
        def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
            if step_idx is not None:
                steps.append({k: v.detach().clone() for k, v in model.named_parameters()})
                assert step_idx == len(steps) - 1
            return super().should_update(step_idx, epoch_idx)

        def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            nonlocal model
            model = pl_module

    model: Any = None
    config = experiment(rows=250, model={"steps_per_execution": 4})
    quiet = ["--trainer.enable_progress_bar", "false", "--name", "ema"]
    fit(["--config", str(config), *quiet], callbacks=[Record(decay=0.9)])
    assert len(steps) == 22
    mean = steps[0]
    for weights in steps[1:]:
        mean = {name: 0.9 * mean[name] + 0.1 * weights[name] for name in mean}
    saved = read_checkpoint(Path("lightning_logs/ema/checkpoints/best.ckpt"))
    assert saved["averaging_state"]["n_averaged"] == 22
    for name, value in mean.items():
        torch.testing.assert_close(saved["state_dict"][name], value)
        assert not torch.equal(saved["current_model_state"][name], value)


class OwnBatchEnd(WeightAveraging):
    def on_train_batch_end(self, *args: Any) -> None:
        super().on_train_batch_end(*args)


class OwnTimer(Timer):
    def on_before_backward(self, *args: Any) -> None: ...


class OwnEpochs(Callback):
    def on_train_epoch_start(self, *args: Any) -> None: ...

    def on_validation_end(self, *args: Any) -> None: ...

    def on_fit_start(self, *args: Any) -> None: ...


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (EMAWeightAveraging, None),
        (LearningRateMonitor, None),
        (lambda: StochasticWeightAveraging(0.1), None),
        (OwnEpochs, None),
        (lambda: LambdaCallback(on_train_epoch_end=print), None),
        (lambda: LambdaCallback(on_train_batch_end=print), "on_train_batch_end"),
        (BackboneFinetuning, None),
        (lambda: ModelPruning("l1_unstructured"), None),
        (lambda: ModelCheckpoint(monitor="val/loss"), None),
        (lambda: ModelCheckpoint(every_n_train_steps=5), "on_train_batch_end"),
        (DeviceStatsMonitor, "on_train_batch_start"),
        (OwnBatchEnd, "on_train_batch_end"),
        (OwnTimer, "on_before_backward"),
    ],
)
def test_which_callbacks_need_single_steps(
    build: Callable[[], Callback], reason: str | None
) -> None:
    obstacles = list(callback_obstacles([build()]))
    assert bool(obstacles) == (reason is not None)
    assert reason is None or reason in obstacles[0]
