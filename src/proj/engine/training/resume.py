"""Resume a run in its own folder, to the same bits as without the interruption."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback

from proj.data.base import DataModule
from proj.engine import console
from proj.engine.callbacks.resume_state import check_resumable
from proj.engine.config.arguments import Arguments
from proj.engine.config.checkpoint_owner import (
    LENGTH_SETTINGS,
    check_same_run,
    may_change,
)
from proj.engine.config.experiment import ExperimentCLI, differences, first_process
from proj.engine.runs import checkpoint_file
from proj.engine.runs.checkpoint_file import read_checkpoint
from proj.engine.runs.files import atomic_write
from proj.engine.runs.find import and_skipped, find_run, list_runs, warn_of_skipped
from proj.engine.runs.locks import lock_run
from proj.engine.runs.run import LAST, PREVIOUS, Run
from proj.engine.runs.weights import give_schema, weight_type
from proj.engine.training.deadline import deadline
from proj.engine.training.preflight import preflight
from proj.engine.training.train import RUN_VARIABLE, train
from proj.engine.write_paths import check_links
from proj.errors import UserError
from proj.models.optim import takes_length
from proj.schema import Schema

# Settings that a scheduler's length is computed from.
SCHEDULE_SETTINGS = ("trainer.max_epochs", "trainer.max_steps")
# Temporary files of `atomic_write` that a killed training may leave in the run's folder.
UNFINISHED_FILES = ("checkpoints/.*.ckpt.*", ".manifest.json.*", ".config.yaml.*")


def resume(arguments: Arguments, args: list[str], callbacks: Sequence[Callback] = ()) -> Run:
    """Resume a run from its newest intact checkpoint.

    Args:
        arguments: the parsed command line.
        args: the command line, for the manifest.
        callbacks: callbacks beside those of the experiment.
    """
    run = _find_run(arguments)
    run.require_trained()
    check_links(run.path)
    recorded = run.config
    cli = ExperimentCLI("fit", [recorded, *arguments.configs], arguments.flags)
    # A run without initial weights has recorded no `init_from`.
    initial = {"init_from": cli.experiment.get("init_from")}
    changes = differences({**recorded, **initial}, cli.experiment)
    _check_options(cli)
    _check_changes(run, cli, changes)
    is_longer = any(line.startswith(LENGTH_SETTINGS) for line in changes)
    if run.manifest["status"] == "finished" and not is_longer:
        console.say(
            f"{run.path} is complete; `test --run {run.path.name}` evaluates it, a larger "
            "--trainer.max_epochs trains it longer."
        )
        return run
    path, checkpoint = newest_checkpoint(run)
    check_same_run(run, recorded, checkpoint, path)
    _check_epochs(run, cli, checkpoint)
    _restore_schema(cli, checkpoint)
    command, callbacks = ["fit", *args], [*callbacks, *deadline(cli)]
    if not first_process():
        train(cli, run, command, callbacks, path, resumed=True)
        return run
    with lock_run(run):
        _clean_up(run, path)
        preflight(cli, [])
        _check_data(run, cli)
        for line in changes:
            console.say(f"not as recorded: {line}")
        if changes:
            atomic_write(run.path / "config.yaml", lambda file: file.write(cli.as_yaml().encode()))
        progress = f"epoch {checkpoint['epoch']}, step {checkpoint['global_step']}"
        console.say(f"resumed: {path} of {progress}")
        train(cli, run, command, callbacks, path, resumed=True)
    return run


def newest_checkpoint(run: Run) -> tuple[Path, dict[str, Any]]:
    """Return the newest intact checkpoint for a resume, and its content.

    Damaged ones are skipped with a warning. Raises UserError if none is left, or if another version
    wrote it.
    """
    folder = run.path / "checkpoints"
    paths = [path for name in (LAST, PREVIOUS) if (path := folder / name).is_file()]
    # The plugin of a user may write checkpoints without our checksum.
    has_plugins = bool(run.config["trainer"].get("plugins"))
    for path in paths:
        if checkpoint_file.is_whole(path) or has_plugins:
            checkpoint = read_checkpoint(path)
            check_resumable(checkpoint, path)
            return path, checkpoint
        if first_process():
            console.warn(f"{path} is damaged: skipped.")
    problem = "none is intact" if paths else "there is none"
    raise UserError(
        f"--resume: expected {LAST} or {PREVIOUS} in {folder}, {problem}; train a new run with "
        "`fit --config`."
    )


def _find_run(arguments: Arguments) -> Run:
    """Return the run of ``--resume``; without a name, process 0's run or the newest one."""
    if arguments.resume:
        return find_run(arguments.root, arguments.resume)
    if path := os.environ.get(RUN_VARIABLE):
        return Run(Path(path))
    skipped: list[str] = []
    for run in list_runs(arguments.root, skipped):
        try:
            _ = run.config
        except UserError as error:
            skipped.append(str(error))
        else:
            warn_of_skipped(skipped)
            return run
    raise UserError(
        f"--resume: expected a run to resume, there is none in {arguments.root}; train one "
        f"with `fit --config`.{and_skipped(skipped)}"
    )


def _check_options(cli: ExperimentCLI) -> None:
    """Raise UserError if options are set that contradict ``--resume``."""
    for option in ("name", "ckpt_path"):
        if cli.option(option) is not None:
            raise UserError(
                f"--resume: expected no --{option}, because the run continues in its own folder "
                "from its own checkpoint; remove it."
            )


def _check_changes(run: Run, cli: ExperimentCLI, changes: list[str]) -> None:
    """Raise UserError if a setting has changed that must not change during a run.

    ``changes`` are lines of the form ``key: old -> new``.
    """
    refused = [line for line in changes if not may_change(line)]
    scheduler = getattr(cli.model, "scheduler", None)
    if scheduler is not None and takes_length(scheduler):
        name = str(cli.experiment["model"]["init_args"]["scheduler"]["class_path"])
        schedule = f" (model.scheduler {name.rpartition('.')[2]} takes its length from it)"
        refused += [line + schedule for line in changes if line.startswith(SCHEDULE_SETTINGS)]
    if refused:
        raise UserError(
            f"--resume: expected the settings of {run.path}, got changes of settings that cannot "
            f"change while it is trained: {'; '.join(refused)}; leave them as they were, or start "
            "a new run from its weights with --init_from."
        )


def _check_epochs(run: Run, cli: ExperimentCLI, checkpoint: dict[str, Any]) -> None:
    """Raise UserError if the run has already been trained for ``trainer.max_epochs``."""
    max_epochs = cli.experiment["trainer"]["max_epochs"] or -1
    if 0 < max_epochs <= checkpoint["epoch"]:
        raise UserError(
            f"trainer.max_epochs: expected more than the {checkpoint['epoch']} epochs that "
            f"{run.path} has been trained for, got {max_epochs}; set a larger number."
        )


def _check_data(run: Run, cli: ExperimentCLI) -> None:
    """Raise UserError if the data are not those that the run was started with."""
    if getattr(cli.datamodule, "fingerprint", "") != run.manifest.get("data", ""):
        raise UserError(
            f"--resume: expected the data that {run.path} was trained on, got data that have "
            "changed since; restore them, or start a new run from its weights with --init_from."
        )


def _restore_schema(cli: ExperimentCLI, checkpoint: dict[str, Any]) -> None:
    """Give the checkpoint's schema to the model and the data module, so it is not fitted again."""
    give_schema(cli.model, checkpoint, weight_type(cli.config.trainer.precision))
    if isinstance(cli.datamodule, DataModule) and checkpoint.get("schema"):
        cli.datamodule.schema = Schema.from_dict(checkpoint["schema"])


def _clean_up(run: Run, used: Path) -> None:
    """Remove unfinished files of a killed process, and rename a damaged ``last.ckpt``.

    Otherwise the damaged file would replace the intact ``previous.ckpt`` at the next save. Only
    files that ``fit`` writes are removed, because another verb may be writing its own.
    """
    for pattern in UNFINISHED_FILES:
        for path in run.path.glob(pattern):
            path.unlink()
    last = used.with_name(LAST)
    if used.name != LAST and last.exists():
        last.replace(last.with_suffix(".damaged"))
