"""Run one batch of each stage before the first epoch, to find mistakes early."""

import logging
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.seed import isolate_rng

from proj.data.base import DataModule
from proj.data.loader import take
from proj.engine import console
from proj.engine.callbacks.build_model import BuildModel
from proj.engine.config.experiment import ExperimentCLI
from proj.engine.exit_codes import as_user_error, signal_exit_codes
from proj.engine.training.trial_callbacks import TrialLogger, copy_for_trial
from proj.engine.training.trial_checkpoint import CheckpointCheck, TrialCheckpoint
from proj.errors import UserError, nearest
from proj.models.base import Model
from proj.models.checks import check_targets

# Flags of the Trainer that decide whether a step works at all. Trial Trainers get the same values.
STEP_FLAGS = (
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
# What a checkpoint callback may monitor although nobody logs it.
COUNTERS = ("epoch", "step")


def preflight(cli: ExperimentCLI, callbacks: Sequence[Callback]) -> None:
    """Set up the data, build the net, run one batch of each stage, and check the checkpoint.

    The model and the user's callbacks are copies and the device is one. Random generators are
    restored. ``trainer.fast_dev_run`` is true meanwhile, as a sign for callbacks with side effects.

    Args:
        cli: the experiment.
        callbacks: callbacks beside those of the experiment. They are not copied.

    Raises:
        UserError: the Trainer cannot be built with these flags, a step fails, a monitored metric is
            not logged, or a checkpoint could not be read again.
    """
    with _silenced():
        cli.build_trainer(Path("not created"), [])
    with (
        tempfile.TemporaryDirectory() as folder,
        isolate_rng(),
        _silenced(),
        as_user_error("the first batch fails"),
    ):
        logged, left_out = _run_first_batches(cli, callbacks, Path(folder))
    for name in left_out:
        console.warn(f"{name} cannot be copied, so the first batches were checked without it.")
    monitored = [*cli.monitored().items(), *_monitored_by_callbacks(cli)]
    for option, metric in monitored:
        if metric is not None and metric not in logged and not left_out:
            raise UserError(_missing_metric(option, metric, logged))
    # This raises UserError if the mode of a metric is unknown.
    cli.monitors()


def _run_first_batches(
    cli: ExperimentCLI, callbacks: Sequence[Callback], folder: Path
) -> tuple[set[str], list[str]]:
    """Train, validate and test on one batch each.

    Returns the names of the metrics of ``fit``, and the callbacks that cannot be copied.
    """
    options, data = cli.config_init.trainer, cli.datamodule
    model, copies, left_out = copy_for_trial(cli.model, _own_callbacks(cli))
    if isinstance(model, Model):
        model.compile_mode = "none"  # Compiling takes longer than the check.
    saving = options["enable_checkpointing"] is not False and not options["barebones"]
    trainer = Trainer(
        **{flag: options[flag] for flag in STEP_FLAGS},
        devices=1,
        fast_dev_run=True,
        logger=False,
        enable_checkpointing=saving,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        plugins=CheckpointCheck(),
        callbacks=[
            BuildModel(),
            *copies,
            *callbacks,
            *([TrialCheckpoint(folder)] if saving else []),
        ],
    )
    if options["logger"] is not False and not options["barebones"]:
        trainer.loggers = [TrialLogger(folder)]
    with signal_exit_codes(trainer):
        trainer.fit(model, datamodule=data)
        _check_targets(model, data)
        _check_last_batch(model, data)
        logged = set(trainer.callback_metrics)
        if can_test(model, data):
            trainer.test(model, datamodule=data, verbose=False)
    return logged, left_out


def _own_callbacks(cli: ExperimentCLI) -> list[Callback]:
    configured = cli.config_init.trainer["callbacks"] or []
    return configured if isinstance(configured, list) else [configured]


def _monitored_by_callbacks(cli: ExperimentCLI) -> Iterator[tuple[str, str | None]]:
    """Yield the metrics that callbacks of the user need; Lightning's raise an error without them.

    They do nothing while ``fast_dev_run`` is true.
    """
    for callback in _own_callbacks(cli):
        needs_metric = (
            callback.strict
            if isinstance(callback, EarlyStopping)
            else isinstance(callback, ModelCheckpoint) and callback.monitor not in COUNTERS
        )
        if needs_metric:
            yield f"trainer.callbacks.{type(callback).__name__}", getattr(callback, "monitor", None)


def _missing_metric(option: str, metric: str, logged: set[str]) -> str:
    """Return the message for a monitored metric that is not logged."""
    no_validation = not any(name.startswith("val/") for name in logged)
    if metric.startswith("val/") and no_validation:
        return (
            f"{option}.monitor: expected a logged metric, got {metric!r}, but the val split has no "
            "rows; set data.val_fraction, or choose by --checkpoint.monitor train/loss."
        )
    hint = nearest(metric, sorted(logged))
    return f"{option}.monitor: expected a metric that fit logs, got {metric!r}.{hint}"


def _check_targets(model: LightningModule, data: LightningDataModule | None) -> None:
    """Raise UserError unless the targets of a user's splits have the form that losses take.

    The batches of several steps in one execution are taken from the splits as they are.
    """
    if not isinstance(model, Model) or not isinstance(data, DataModule):
        return
    assert model.schema is not None
    for name, split in data.splits.items():
        if split.y is None:
            continue
        shape, expected = list(split.y.shape), list(check_targets(split.y, model.schema).shape)
        if shape != expected:
            raise UserError(
                f"splits[{name!r}].y: expected targets of shape {expected}, got {shape}; write "
                "y[:, None], or flatten the axes after the first."
            )


def _check_last_batch(model: LightningModule, data: LightningDataModule | None) -> None:
    """Raise UserError if the last batch of an epoch has one row and the net cannot train on it.

    Batch normalization, for example, has no variance for one row.
    """
    if not isinstance(model, Model) or not isinstance(data, DataModule) or not data.batch_size:
        return
    rows = data.rows("train")
    if rows % data.batch_size != 1:
        return
    row = take(data.splits["train"], torch.tensor([0]))
    model.train()
    try:
        model.forward_loss(model.trainer.strategy.batch_to_device(row), "train")
    except ValueError as error:
        raise UserError(
            f"data.batch_size: expected batches of two rows or more, got {data.batch_size}: of "
            f"{rows} training rows, the last batch of {data.batch_size} has one row, and the net "
            f"cannot train on it ({error}); choose another size."
        ) from error


def can_test(model: LightningModule, data: LightningDataModule | None) -> bool:
    """Return whether the model has a test step and the data have a test split."""
    if not is_overridden("test_step", model):
        return False
    if isinstance(data, DataModule):
        return data.rows("test") > 0
    return data is not None and is_overridden("test_dataloader", data)


@contextmanager
def _silenced() -> Iterator[None]:
    """Suppress Lightning's messages and all warnings, because the training repeats them."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
