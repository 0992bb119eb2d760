"""Callbacks of ``fit`` and the metrics that they monitor."""

from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch import Callback, LightningModule

from proj.engine.callbacks.best_checkpoint import BestCheckpoint, EarlyStopping
from proj.engine.callbacks.divergence import Divergence
from proj.engine.callbacks.loggers import ConfigLogger
from proj.engine.callbacks.monitoring import StepLogger, TensorBoardSummary
from proj.engine.callbacks.non_finite import StopOnNonFinite
from proj.engine.callbacks.resume_state import ResumeCheckpoint
from proj.engine.callbacks.steps_per_execution import StepsPerExecution
from proj.engine.runs.run import Run
from proj.errors import UserError
from proj.metrics import metric_info


def fit_callbacks(
    config: Namespace,
    model: LightningModule,
    experiment: dict[str, Any],
    folder: Path,
    resumed: bool = False,
) -> list[Callback]:
    """Return our callbacks for ``fit``, without those that flags of the Trainer switch off.

    Args:
        config: the parsed experiment.
        model: the model, for the metric that it monitors.
        experiment: the experiment as plain values, which every checkpoint carries.
        folder: the run's folder.
        resumed: whether the run was begun before.
    """
    if config.trainer.fast_dev_run or config.trainer.barebones:
        return []
    saving = config.trainer.enable_checkpointing is not False
    checkpoints = folder / "checkpoints"
    callbacks: list[Callback] = [
        TensorBoardSummary(experiment),
        ConfigLogger(experiment, Run(folder), resumed),
        StepLogger(),
        StepsPerExecution(),
        StopOnNonFinite(checkpoints if saving else None),
        Divergence(),
    ]
    options = monitor_options(config, model)
    if "early_stopping" in options:
        callbacks.append(EarlyStopping(**options["early_stopping"]))
    if saving:
        best = options["checkpoint"]
        intervals = {name: best.pop(name) for name in ("every_seconds", "every_n_steps")}
        callbacks.append(BestCheckpoint(**best, dirpath=checkpoints, config=experiment))
        callbacks.append(ResumeCheckpoint(checkpoints, **intervals))
    return callbacks


def monitored_metrics(config: Namespace, model: LightningModule) -> dict[str, str | None]:
    """Return the metrics that ``checkpoint`` and, if it is on, ``early_stopping`` monitor.

    A value is None if neither the experiment nor the model names a metric.
    """
    checkpoint = config.checkpoint.monitor or getattr(model, "monitor", None)
    if config.early_stopping.patience is None:
        return {"checkpoint": checkpoint}
    early_stopping = config.early_stopping.monitor or checkpoint
    return {"checkpoint": checkpoint, "early_stopping": early_stopping}


def monitor_options(config: Namespace, model: LightningModule) -> dict[str, dict[str, Any]]:
    """Return the options of ``checkpoint`` and, if it is on, ``early_stopping``.

    Their monitor and mode are filled in.

    Raises:
        UserError: if an interval is out of range, or the mode of a metric is unknown.
    """
    seconds, steps = config.checkpoint.every_seconds, config.checkpoint.every_n_steps
    if seconds is not None and not seconds >= 0:
        raise UserError(
            f"checkpoint.every_seconds: expected seconds from 0 up, or null, got {seconds}."
        )
    if steps is not None and not steps >= 1:
        raise UserError(
            f"checkpoint.every_n_steps: expected steps from 1 up, or null, got {steps}."
        )
    options = {}
    for section, metric in monitored_metrics(config, model).items():
        options[section] = {**config[section].as_dict(), "monitor": metric}
        if metric is not None:
            options[section]["mode"] = config[section].mode or _mode(section, metric, config, model)
        elif section == "early_stopping":
            raise UserError(
                "early_stopping.monitor: expected a metric that the model logs, got none; name "
                "one, or set early_stopping.patience to null."
            )
    return options


def _mode(section: str, metric: str, config: Namespace, model: LightningModule) -> str:
    """Return ``min`` or ``max`` for a metric, from the experiment, the model or the metric."""
    if metric == monitored_metrics(config, model)["checkpoint"] and config.checkpoint.mode:
        return str(config.checkpoint.mode)
    if metric == getattr(model, "monitor", None) and hasattr(model, "mode"):
        return str(model.mode)
    if (info := metric_info(metric)) is None:
        raise UserError(f"{section}.mode: expected min or max for the metric {metric}, got none.")
    return info.mode
