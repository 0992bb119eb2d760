"""What can be known before the first epoch."""

import copy
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.seed import isolate_rng

from proj.data.base import DataModule
from proj.data.loader import take
from proj.engine.config.experiment import ExperimentCLI
from proj.engine.exit_codes import as_user_error, signal_exit_codes
from proj.errors import UserError, nearest
from proj.models.base import Model

# Flags of the Trainer that decide whether a step works at all.
KEPT = (
    "accelerator",
    "precision",
    "gradient_clip_val",
    "gradient_clip_algorithm",
    "accumulate_grad_batches",
    "deterministic",
    "benchmark",
    "inference_mode",
    "detect_anomaly",
)


def preflight(cli: ExperimentCLI, callbacks: Sequence[Callback]) -> None:
    """Set up the data, build the net and run one batch of each stage, on a copy of the model and one device.

    Raises UserError where the Trainer cannot be built as asked, where a step fails, or where a metric that is to be
    monitored is not logged. Generators are put back.
    """
    with _quiet():
        cli.build_trainer(Path("not claimed"), [])
    options = {name: cli.config_init.trainer[name] for name in KEPT}
    with isolate_rng(), _quiet(), as_user_error("a first batch does not go through"):
        model = copy.deepcopy(cli.model)
        if isinstance(model, Model):
            model.compile_mode = "none"  # compiling takes longer than the check
        trainer = Trainer(
            **options,
            devices=1,
            fast_dev_run=True,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=list(callbacks),
        )
        with signal_exit_codes(trainer):
            trainer.fit(model, datamodule=cli.datamodule)
            _last_batch(model, cli.datamodule)
            logged = set(trainer.callback_metrics)
            if _can_test(model, cli.datamodule):
                trainer.test(model, datamodule=cli.datamodule, verbose=False)
    for key, monitor in cli.monitored().items():
        if monitor is not None and monitor not in logged:
            if monitor.startswith("val/") and not any(name.startswith("val/") for name in logged):
                raise UserError(
                    f"{key}.monitor: there is no {monitor!r}, the validation part has no rows; set "
                    "data.val_fraction, or choose by --checkpoint.monitor train/loss."
                )
            raise UserError(
                f"{key}.monitor: no metric {monitor!r} is logged in fit.{nearest(monitor, sorted(logged))}"
            )
    cli.monitors()  # raises where it is not known which way is better


def _last_batch(model: LightningModule, data: LightningDataModule | None) -> None:
    """The last batch of an epoch may have one row, which batch normalisation has no variance of."""
    if not isinstance(model, Model) or not isinstance(data, DataModule) or not data.batch_size:
        return
    part = data.splits["train"]
    if len(part.row) % data.batch_size == 1:
        model.train()
        try:
            model.forward_loss(
                model.trainer.strategy.batch_to_device(take(part, torch.tensor([0]))), "train"
            )
        except ValueError as error:
            raise UserError(
                f"data.batch_size: of {len(part.row)} training rows, the last batch of {data.batch_size} has one row, which "
                f"does not go through the net ({error}); take another size."
            ) from error


def _can_test(model: LightningModule, data: LightningDataModule | None) -> bool:
    if not is_overridden("test_step", model):
        return False
    if isinstance(data, DataModule):
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
