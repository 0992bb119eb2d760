"""TensorBoard: loss, gradient norm and learning rates of steps, config, graph."""

import contextlib
import copy
import io
import re
import sys
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn
from torch.optim import Optimizer

from proj.data.base import DataModule
from proj.data.loader import take
from proj.engine.callbacks.best_checkpoint import BestCheckpoint
from proj.engine.lightning_internals import skips_optimizer_steps
from proj.engine.runs.contents import flatten_config
from proj.engine.yaml_text import yaml_document
from proj.models.base import Model
from proj.models.checks import evaluating
from proj.models.module import to_inputs
from proj.schema import Tensors

__all__ = ["RunLogger", "StepLogger", "TensorBoardSummary", "flatten_config"]


class StepLogger(Callback):
    """Log the loss of a step, its gradient norm before clipping, and the learning rates.

    A ``LearningRateMonitor`` logs the rates by the same names, so they are left to it.
    Values are logged every ``log_every_n_steps`` optimizer steps. In an execution of several steps,
    the norm and the rates are those of its last step, and the losses are of the same steps as
    without executions.
    """

    def __init__(self) -> None:
        # Number of intervals of `log_every_n_steps` steps up to the last logging.
        self.intervals_logged = -1
        self.pending: dict[str, Tensor | float] = {}
        self.losses: list[tuple[int, Tensor]] = []  # to be logged, by number of the step

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.intervals_logged = (trainer.global_step - 1) // _log_interval(trainer)

    def keep_loss(self, trainer: Trainer, loss: Tensor) -> None:
        """Keep the loss of the step that is being made, if it is to be logged."""
        intervals = trainer.global_step // _log_interval(trainer)
        if trainer.loggers and intervals > self.intervals_logged:
            self.intervals_logged = intervals
            self.losses.append((trainer.global_step + 1, loss))

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        due = trainer.global_step // _log_interval(trainer) > self.intervals_logged
        if not trainer.loggers or not (due or self.losses) or skips_optimizer_steps(trainer):
            return
        gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
        has_monitor = any(isinstance(c, LearningRateMonitor) for c in cast(Any, trainer).callbacks)
        self.pending = {} if has_monitor else dict(_learning_rates(trainer.optimizers))
        compiled_step = getattr(pl_module, "compiled_step", None)
        if gradients:
            self.pending["gradient_norm"] = nn.utils.get_total_norm(gradients)
        elif compiled_step is not None:  # A compiled step leaves no gradients.
            self.pending["gradient_norm"] = compiled_step.gradient_norm

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not self.pending:
            return
        intervals = (trainer.global_step - 1) // _log_interval(trainer)
        is_due, self.intervals_logged = intervals > self.intervals_logged, intervals
        if is_due and isinstance(outputs, dict) and "loss" in outputs:
            self.losses.append((trainer.global_step, outputs["loss"]))
        points: dict[int, dict[str, Any]] = {
            step: {"train/loss_step": loss} for step, loss in self.losses
        }
        points[trainer.global_step] = self.pending | points.get(trainer.global_step, {})
        for step, values in points.items():
            numbers = {name: float(value) for name, value in values.items()}
            for logger in trainer.loggers:
                logger.log_metrics(numbers, step=step)
        self.pending, self.losses = {}, []


def _log_interval(trainer: Any) -> int:
    """Return the number of optimizer steps from one logging to the next."""
    return cast(int, trainer.log_every_n_steps) or sys.maxsize


def _learning_rates(optimizers: list[Optimizer]) -> dict[str, float]:
    """Return the learning rate of each group, named as by Lightning's LearningRateMonitor."""
    rates: dict[str, float] = {}
    for optimizer in optimizers:
        name, groups = f"lr-{type(optimizer).__name__}", optimizer.param_groups
        for i, group in enumerate(groups, 1):
            rates[name if len(groups) == 1 else f"{name}/pg{i}"] = float(group["lr"])
    return rates


class RunLogger(TensorBoardLogger):
    """Write TensorBoard events directly into the run's folder, by optimizer steps.

    Lightning counts batches instead, which differ from optimizer steps with several optimizers and
    with several steps in one execution. Then a resumed run could not tell which values it logs
    again.

    Args:
        folder: the run's folder.
        purge_step: for a resumed run, the first step that is logged again. TensorBoard discards
            older values from this step on.
        evaluating: log only what a module logs itself, because the metrics of `test` belong to no
            step of the curves.
    """

    def __init__(
        self, folder: Path, purge_step: int | None = None, evaluating: bool = False
    ) -> None:
        # Imported with the other modules of a run, not in the first moments of its training.
        # `fit --help` does without.
        import torch.utils.tensorboard  # noqa: F401

        super().__init__(
            folder.parent,
            name="",
            version=folder.name,
            default_hp_metric=False,
            purge_step=purge_step,
        )
        self.resumed, self.evaluating = purge_step is not None, evaluating
        self.trainer: Trainer | None = None
        if self.resumed:
            _wait_for_a_later_name(folder)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        # Lightning adds the epoch where it chooses the step, not where a module logs a step.
        if "epoch" in metrics and self.evaluating:
            return
        if self.trainer is not None and "epoch" in metrics:
            step = self.trainer.global_step
        super().log_metrics(metrics, step)

    def log_hyperparams(self, *args: Any, **options: Any) -> None:
        if not self.evaluating:
            super().log_hyperparams(*args, **options)

    def save(self) -> None:
        """Do nothing: ``config.yaml`` replaces Lightning's ``hparams.yaml``."""


def _wait_for_a_later_name(folder: Path) -> None:
    """Wait, for a second at most, until a new event file's name sorts after those in the folder.

    TensorBoard reads the files in the order of their names: the second in which a file was made,
    the host, the process and a number. The number has no leading zeros, so of two files that one
    process makes in one second, number 10 sorts before number 9.
    """
    files = folder.glob("events.out.tfevents.[0-9]*.*")
    last = max((int(file.name.split(".")[3]) for file in files), default=0)
    if 0 < (wait := last + 1 - time.time()) <= 1:
        time.sleep(wait)


class TensorBoardSummary(Callback):
    """Log the config, the charts, the graph of the net, and hyperparameters with the best metrics.

    The config is logged at the start, charts and graph after the first validation, hyperparameters
    at the end.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config
        self.charts_logged = False

    def state_dict(self) -> dict[str, Any]:
        return {"charts_logged": self.charts_logged}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.charts_logged = state_dict["charts_logged"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        text = yaml_document(self.config)
        for logger in _tensorboard_loggers(trainer):
            # A new run may start from another run's checkpoint, so `charts_logged` may be restored.
            if not getattr(logger, "resumed", False):
                self.charts_logged = False
                logger.experiment.add_text("config", f"```yaml\n{text}```")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        logged = sorted(trainer.callback_metrics)
        names = [name.removeprefix("val/") for name in logged if name.startswith("val/")]
        waiting_for_validation = trainer.enable_validation and not names
        if self.charts_logged or waiting_for_validation:
            return
        self.charts_logged = True
        for logger in _tensorboard_loggers(trainer):
            if names:
                logger.experiment.add_custom_scalars({"train and val": _charts(names)})
            if trainer.is_global_zero and (x := _example_rows(trainer, pl_module)) is not None:
                _log_graph(logger, cast(Model, pl_module), x)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        savers = [c for c in cast(Any, trainer).callbacks if isinstance(c, BestCheckpoint)]
        best_metrics = savers[0].best_metrics if savers else {}
        # TensorBoard sorts by name: `val_best/f1` is below the curves.
        values = {name.replace("/", "_best/", 1): value for name, value in best_metrics.items()}
        values = {name: value for name, value in values.items() if name not in best_metrics}
        # The step after the last one, so that a resumed run discards them like any later curve.
        step = trainer.global_step + 1
        for logger in _tensorboard_loggers(trainer):
            logger.log_hyperparams(flatten_config(self.config), values, step)


def _tensorboard_loggers(trainer: Trainer) -> list[TensorBoardLogger]:
    return [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]


def _charts(names: list[str]) -> dict[str, list[Any]]:
    """Return a chart for each metric with its curves of training and validation.

    TensorBoard selects curves by regular expressions.
    """
    return {
        name: ["Multiline", [f"{split}/{re.escape(name)}$" for split in ("train", "val")]]
        for name in names
    }


def _example_rows(trainer: Any, model: LightningModule) -> Tensors | None:
    """Return two training rows to trace the net with, not augmented.

    None if the net has no known input or is not complete in one process.
    """
    data = trainer.datamodule
    complete = isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy)
    if not complete or not isinstance(model, Model) or not isinstance(data, DataModule):
        return None
    rows = torch.arange(min(2, data.rows("train")))
    x: Tensors = move_data_to_device(take(data.splits["train"], rows).x, model.device)
    return x


def _log_graph(logger: TensorBoardLogger, model: Model, x: Tensors) -> None:
    """Log the net's graph, traced with the rows ``x``; warn if the net cannot be traced."""
    assert isinstance(model.net, nn.Module)
    # A compiled net cannot be traced, and its copy is not compiled.
    net = copy.deepcopy(model.net) if model.compile_mode == "net" else model.net
    try:
        with (
            isolate_rng(),
            evaluating(net),
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
        ):
            # The tracer warns of branches and numbers that it records as constants.
            warnings.simplefilter("ignore")
            inputs = (to_inputs(x, cast(torch.dtype, model.dtype)),)
            # `add_graph` would trace twice, to compare. It takes a traced net as it is.
            trace: Any = torch.jit.trace
            traced = trace(net, inputs, check_trace=False)
            logger.experiment.add_graph(traced, inputs)
    except Exception as error:  # A net may raise anything when it is traced.
        reason = " ".join(str(error).split())[:200]
        rank_zero_warn(
            f"TensorBoard shows no graph: {type(net).__name__} cannot be traced: {reason}"
        )
