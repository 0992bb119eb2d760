"""Train a run, record its manifest, and print the result."""

import os
import shlex
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import Logger, TensorBoardLogger

from proj.engine import PACKAGE, console
from proj.engine.callbacks.best_checkpoint import BestCheckpoint
from proj.engine.callbacks.deadline import Deadline
from proj.engine.callbacks.divergence import DIVERGED, divergence
from proj.engine.callbacks.loggers import finish, log_files
from proj.engine.callbacks.monitoring import RunLogger
from proj.engine.config.experiment import ExperimentCLI, first_process
from proj.engine.config.loggers import build_loggers
from proj.engine.exit_codes import as_user_error, signal_exit_codes
from proj.engine.memory import keep_freed_memory
from proj.engine.runs.checkpoint_file import read_checkpoint
from proj.engine.runs.contents import LOST, FindingEntry, metric_entries
from proj.engine.runs.files import read_json, write_json
from proj.engine.runs.manifest import record_manifest
from proj.engine.runs.run import LAST, Run
from proj.engine.training.outcome import is_elsewhere, outcome, restore_callbacks
from proj.schema import Average, Finding, Task

# Environment variable with the run's folder. Process 0 sets it for the processes that it starts.
RUN_VARIABLE = f"{PACKAGE.upper()}_RUN"

# Exit codes of a process that SIGINT or SIGTERM has stopped.
SIGNAL_CODES = (130, 143)


def train(
    cli: ExperimentCLI,
    run: Run,
    command: list[str],
    callbacks: Sequence[Callback],
    checkpoint: Path | None,
    resumed: bool = False,
) -> None:
    """Train into the run's folder.

    Args:
        command: the command line, for the manifest.
        callbacks: callbacks beside those of the experiment.
        checkpoint: training continues from it; None starts anew.
        resumed: whether the checkpoint is the run's own.
    """
    first_step = read_checkpoint(checkpoint)["global_step"] if checkpoint else 0
    purge_step = first_step + 1 if resumed else None
    ids = run.manifest.get("loggers", {}) if resumed else {}
    loggers = build_loggers(cli.config.trainer.logger, run.path.name, ids)
    callbacks = [*cli.fit_callbacks(run.path, resumed), *callbacks]
    trainer = cli.build_trainer(run.path, callbacks, purge_step, loggers)
    device = trainer.strategy.root_device
    keep_freed_memory(device)
    if not first_process():
        _fit(cli, trainer, checkpoint)
        return
    nodes = f"{trainer.num_nodes} nodes with " if trainer.num_nodes > 1 else ""
    console.say(f"run: {run.path} on {nodes}{trainer.num_devices} x {device.type}")
    fingerprint = getattr(cli.datamodule, "fingerprint", "")
    seed = cli.experiment["seed_everything"]
    with (
        _failed_training(cli, run, trainer, checkpoint, first_step, resumed),
        _run_variable(run),
        record_manifest(run, command, seed, fingerprint, device, resumed),
    ):
        _fit(cli, trainer, checkpoint)
        restore_callbacks(run, trainer)
        _record_result(run, trainer)
        if is_elsewhere(trainer):
            # Those of this process have not begun the runs of their services.
            ids = run.manifest.get("loggers", {})
            loggers = build_loggers(cli.config.trainer.logger, run.path.name, ids)
        _log_files(run, loggers)
    _show_result(run, trainer)


def _log_files(run: Run, loggers: Sequence[Logger]) -> None:
    """Give the config and the best checkpoint, or the last one, to the experiment's loggers."""
    checkpoints = [run.path / "checkpoints" / name for name in ("best.ckpt", LAST)]
    best = next((path for path in checkpoints if path.is_file()), run.path)
    log_files(loggers, [run.path / "config.yaml", best], run.path.name)
    finish(loggers)


@contextmanager
def _failed_training(
    cli: ExperimentCLI,
    run: Run,
    trainer: Trainer,
    checkpoint: Path | None,
    first_step: int,
    resumed: bool,
) -> Iterator[None]:
    """Say how a stopped run continues, and delete the folder of a run that made no step."""
    try:
        yield
    except SystemExit as stop:
        if stop.code in SIGNAL_CODES and (run.path / "checkpoints" / LAST).is_file():
            console.say(
                f"stopped in epoch {_epoch(run, trainer)}, saved; to continue: "
                f"fit --resume {shlex.quote(str(run.path))}"
            )
        raise
    except Exception:
        # No step was made, so model, data, settings and checkpoint do not fit together.
        steps = outcome(run, trainer).steps
        # Other processes may have made steps since their last checkpoint.
        if is_elsewhere(trainer) and (run.path / "checkpoints" / LAST).is_file():
            raise
        if steps == first_step and not resumed:
            _delete(run, cli.root)
            with as_user_error("training cannot start"):
                raise
        if steps in (0, first_step):
            with as_user_error(f"training cannot resume from {checkpoint}"):
                raise
        raise


def _epoch(run: Run, trainer: Trainer) -> int:
    return outcome(run, trainer).epochs - 1 if is_elsewhere(trainer) else trainer.current_epoch


def _record_result(run: Run, trainer: Trainer) -> None:
    for saver in _best_checkpoints(trainer):
        run.write_manifest(best_epoch=saver.best_epoch)
    for deadline in _deadlines(trainer):
        run.write_manifest(within=deadline.facts())
    _record_divergence(run, divergence(trainer))


def _record_divergence(run: Run, found: Finding | None) -> None:
    """Record in the manifest and in ``findings.json`` whether training has diverged.

    What an earlier part of a resumed run recorded is replaced.
    """
    path = run.path / "findings.json"
    findings = read_json(path, list[FindingEntry], LOST) if path.is_file() else []
    others = [finding for finding in findings if finding["effect"] != DIVERGED]
    new = [found._asdict()] if found else []
    if others + new != findings:
        write_json(path, others + new)
    if found or run.manifest.get("warnings"):
        run.write_manifest(warnings=[str(found)] if found else [])


def _fit(cli: ExperimentCLI, trainer: Trainer, checkpoint: Path | None) -> None:
    with signal_exit_codes(trainer):
        trainer.fit(cli.model, datamodule=cli.datamodule, ckpt_path=checkpoint, weights_only=True)


@contextmanager
def _run_variable(run: Run) -> Iterator[None]:
    """Pass the run's folder to the processes that Lightning starts."""
    os.environ[RUN_VARIABLE] = str(run.path)
    try:
        yield
    finally:
        del os.environ[RUN_VARIABLE]


def _delete(run: Run, root: Path) -> None:
    """Delete the folder of a run without a step, and the folder of runs if it is empty then."""
    shutil.rmtree(run.path)
    if not any(root.iterdir()):
        root.rmdir()


def _best_checkpoints(trainer: Trainer) -> list[BestCheckpoint]:
    """Return the callback that selected the best epoch, if there was a validation."""
    savers = [saver for saver in trainer.checkpoint_callbacks if isinstance(saver, BestCheckpoint)]
    return [saver for saver in savers if saver.best_metrics]


def _deadlines(trainer: Any) -> list[Deadline]:
    return [callback for callback in trainer.callbacks if isinstance(callback, Deadline)]


def _show_result(run: Run, trainer: Trainer) -> None:
    """Print the metrics of the best epoch, the length of the training, and the run's folder."""
    reached = outcome(run, trainer)
    epochs = console.plural(reached.epochs, "epoch")
    for saver in _best_checkpoints(trainer):
        metrics = {
            name: value
            for name, value in saver.best_metrics.items()
            if not name.startswith(("train", "lr-"))
        }
        title = f"best epoch: {saver.best_epoch} of {epochs}, by {saver.monitor}"
        module = trainer.lightning_module
        task: Task | None = getattr(module, "task", None)
        average: Average = getattr(module, "average", "macro")
        title = title if saver.monitor else "last epoch"
        console.show_metrics(title, metric_entries(metrics), task, average)
    console.say(f"trained: {epochs} (counted from 0), {console.plural(reached.steps, 'step')}")
    for deadline in _deadlines(trainer):
        console.say(deadline.result(reached.steps))
    console.say(f"run: {run.path}")
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            folder = run.path.parent if isinstance(logger, RunLogger) else logger.root_dir
            console.say(f"watch: tensorboard --logdir {shlex.quote(str(folder))}")
    if found := divergence(trainer):
        console.warn(str(found))
