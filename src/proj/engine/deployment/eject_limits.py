"""Settings of a run that a plain script does not repeat, refused by name."""

from collections.abc import Iterator
from typing import Any

import torch

from proj.data.base import DataModule
from proj.engine import PACKAGE
from proj.engine.callbacks.single_steps import STEP_HOOKS, TRANSFER_HOOKS, overridden
from proj.engine.config.experiment import ExperimentCLI
from proj.engine.runs.run import Run
from proj.errors import UserError
from proj.models.base import Model

# Values of the Trainer's flags that the script repeats. Flags that do not change the training, such
# as those of loggers, are not listed.
TRAINER: dict[str, tuple[Any, ...]] = {
    "strategy": ("auto",),
    "devices": ("auto", 1, "1"),
    "num_nodes": (1,),
    "precision": (None, "32", "32-true", 32),
    "min_epochs": (None,),
    "max_steps": (-1,),
    "min_steps": (None,),
    "max_time": (None,),
    "limit_train_batches": (None, 1.0),
    "limit_val_batches": (None, 1.0),
    "limit_test_batches": (None, 1.0),
    "overfit_batches": (0.0,),
    "val_check_interval": (None, 1.0),
    "check_val_every_n_epoch": (1,),
    "accumulate_grad_batches": (1,),
    "plugins": (None, []),
}
# Modules of the models whose losses the script repeats.
MODELS = (f"{PACKAGE}.models.classification", f"{PACKAGE}.models.regression")
# Callbacks that watch a training and do not change it.
WATCHING = (
    *("DeviceStatsMonitor", "LearningRateMonitor", "ModelCheckpoint", "ModelSummary"),
    *("RichModelSummary", "RichProgressBar", "ThroughputMonitor", "TQDMProgressBar"),
)
# Metrics that the script computes.
RANKING_METRICS = ("auroc", "average_precision")
CLASS_METRICS = ("loss", "accuracy", "precision", "recall", "f1", *RANKING_METRICS)
METRICS: dict[str, tuple[str, ...]] = {
    "binary": CLASS_METRICS,
    "multiclass": CLASS_METRICS,
    "multilabel": CLASS_METRICS,
    "regression": ("loss", "mse", "rmse", "mae", "r2"),
}


def check_repeatable(run: Run, cli: ExperimentCLI) -> None:
    """Raise UserError that names the first setting of a run that a script does not repeat."""
    if reason := next(obstacles(run, cli), None):
        raise UserError(f"{reason}; `eject` does not write a script for this run.")


def obstacles(run: Run, cli: ExperimentCLI) -> Iterator[str]:
    """Yield the settings that a script does not repeat, with what it does repeat."""
    yield from _device(run, cli)
    for flag, repeated in TRAINER.items():
        value = cli.config.trainer[flag]
        # 1 batch is not 1.0, all batches.
        if not any(value == other and type(value) is type(other) for other in repeated):
            yield f"trainer.{flag}: expected {repeated[-1]}, got {value}"
    if cli.config.trainer.max_epochs == -1:
        yield "trainer.max_epochs: expected a number of epochs, got -1"
    for callback in _callbacks(cli.config_init.trainer["callbacks"]):
        if type(callback).__name__ not in WATCHING:
            yield (
                f"trainer.callbacks: expected none that may change the training, got "
                f"{type(callback).__name__}"
            )
    command = run.manifest.get("command") or []
    if any(word.partition("=")[0] == "--ckpt_path" for word in command):
        yield "--ckpt_path: expected a training from the start, got one that continues another"
    if cli.option("init_from") is not None:
        yield f"init_from: expected random initial weights, got {cli.option('init_from')}"
    if run.manifest.get("within"):
        yield "within: expected a run without --within, whose schedule follows no clock, got one"
    yield from _model(cli)
    yield from _monitors(cli)


def _device(run: Run, cli: ExperimentCLI) -> Iterator[str]:
    hardware = run.manifest.get("hardware") or {}
    on_mps = torch.backends.mps.is_available() and cli.config.trainer.accelerator != "cpu"
    if hardware.get("gpus") or on_mps:
        yield "trainer.accelerator: expected a run on a CPU, got one on a GPU"


def _callbacks(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value] if value else []


def _model(cli: ExperimentCLI) -> Iterator[str]:
    """Yield what is not this package's own in the model and the data module."""
    model, data = cli.model, cli.datamodule
    name = type(model).__name__
    if not isinstance(model, Model) or type(model).__module__ not in MODELS:
        yield f"model: expected a model of this package as it is, got {name}"
        return
    if model.layer_decay is not None:
        yield f"model.layer_decay: expected null, got {model.layer_decay}"
    if model.compile_mode != "none":
        yield f"model.compile: expected none, got {model.compile_mode}"
    if hook := overridden(model, Model, tuple(STEP_HOOKS)):
        yield f"model: expected a model of this package as it is, got a {hook} of {name}"
    if not isinstance(data, DataModule):
        yield f"data: expected a data module of this package, got {type(data).__name__}"
    elif getattr(data, "is_streamed", False):
        yield f"data: expected splits that fit into memory, got {type(data).__name__}"
    elif hook := overridden(data, DataModule, TRANSFER_HOOKS):
        yield f"data: expected the batches of this package, got a {hook} of {type(data).__name__}"
    elif overridden(data, DataModule, ("augment_batch",)) and not hasattr(data, "augmentation"):
        yield (
            f"data: expected no augmentation, or a property `augmentation`, got an augment_batch "
            f"of {type(data).__name__}"
        )


def _monitors(cli: ExperimentCLI) -> Iterator[str]:
    """Yield metrics that choose epochs and that the script does not compute."""
    known = METRICS[cli.model.task] if isinstance(cli.model, Model) else ()
    monitored = {f"{option}.monitor": metric for option, metric in cli.monitored().items()}
    scheduler = cli.config.model.init_args.get("scheduler")
    if scheduler is not None and "monitor" in scheduler.init_args:
        monitored["model.scheduler.monitor"] = scheduler.init_args.monitor
    for option, metric in monitored.items():
        split, _, name = str(metric).partition("/")
        if split != "val" or name not in known:
            yield f"{option}: expected one of {', '.join(f'val/{n}' for n in known)}, got {metric}"
