"""What can be known before the first epoch."""

import copy
import logging
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.seed import isolate_rng

from proj.data.base import SplitData
from proj.errors import TrainingError, UserError, nearest
from proj.experiment import ExperimentCLI
from proj.models.base import Model

# Flags of the Trainer that decide whether a step works at all.
KEPT = ("accelerator", "precision", "gradient_clip_val", "gradient_clip_algorithm", "accumulate_grad_batches",
        "deterministic", "benchmark", "inference_mode", "detect_anomaly")  # fmt: skip


def preflight(cli: ExperimentCLI, callbacks: list[Callback]) -> None:
    """Set up the data, build the net and run one batch of each stage, on a copy of the model and one device.

    Raises UserError where that fails, or where a metric that is to be monitored is not logged. Generators are put back.
    """
    stopping, saving = cli.monitors()
    options = {name: cli.config_init.trainer[name] for name in KEPT}
    with isolate_rng(), _quiet(), _explained():
        model = copy.deepcopy(cli.model)
        if isinstance(model, Model):
            model.compile_what = "none"  # compiling takes longer than the check
        trainer = Trainer(**options, devices=1, fast_dev_run=True, logger=False, enable_progress_bar=False,
                          enable_model_summary=False, callbacks=callbacks)  # fmt: skip
        trainer.fit(model, datamodule=cli.datamodule)
        logged = set(trainer.callback_metrics)
        if _can_test(model, cli.datamodule):
            trainer.test(model, datamodule=cli.datamodule, verbose=False)
    for key, wanted in (("checkpoint", saving), ("early_stopping", stopping or {})):
        monitor = wanted.get("monitor")
        if monitor is not None and monitor not in logged:
            raise UserError(f"{key}.monitor: no metric {monitor!r} is logged in fit.{nearest(monitor, sorted(logged))}")


def _can_test(model: LightningModule, data: LightningDataModule | None) -> bool:
    if not is_overridden("test_step", model):
        return False
    if isinstance(data, SplitData):
        return data.rows("test") > 0
    return data is not None and is_overridden("test_dataloader", data)


@contextmanager
def _quiet() -> Iterator[None]:
    """What Lightning has to say it says again in the real run."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


@contextmanager
def _explained() -> Iterator[None]:
    """Errors that come from what was put together, rather than from a mistake in code, become UserErrors."""
    try:
        yield
    except (UserError, TrainingError):
        raise
    except (ValueError, RuntimeError, IndexError, OSError, MisconfigurationException) as error:
        place = next((f for f in reversed(traceback.extract_tb(error.__traceback__)) if _is_ours(f.filename)), None)
        where = f" ({Path(place.filename).name}, line {place.lineno})" if place else ""
        raise UserError(f"a first batch does not go through{where}: {error} Run it with --debug to see where.") from error


def _is_ours(filename: str) -> bool:
    libraries = [str(Path(module.__file__ or "").parent) for module in (torch, lightning)]
    return not any(filename.startswith(library) for library in libraries)
