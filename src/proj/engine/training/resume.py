"""``fit --resume``: go on with a run in its own folder, as if nothing had happened."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback

from proj.data.base import DataModule
from proj.engine import console
from proj.engine.config.arguments import Arguments
from proj.engine.config.experiment import ExperimentCLI, differences, first_process
from proj.engine.runs import checkpoint_file
from proj.engine.runs.run import (
    LAST,
    PREVIOUS,
    Run,
    atomic_write,
    find_run,
    list_runs,
    lock_run,
    read_checkpoint,
)
from proj.engine.runs.weights import give_schema
from proj.engine.training.preflight import preflight
from proj.engine.training.train import RUN_VARIABLE, train
from proj.errors import UserError
from proj.schema import Schema

# Settings that another value of changes how far training goes, or what it shows, not what it does.
LONGER = ("trainer.max_epochs", "trainer.max_steps", "trainer.max_time", "early_stopping.patience")
FREE = (
    *LONGER,
    "trainer.min_epochs",
    "trainer.min_steps",
    "trainer.enable_progress_bar",
    "trainer.enable_model_summary",
    "trainer.default_root_dir",
    "trainer.profiler",
    "early_stopping.min_delta",
    "checkpoint.every_seconds",
    "checkpoint.every_n_steps",
    "data.init_args.cache_dir",
)


def resume(arguments: Arguments, args: list[str], callbacks: Sequence[Callback] = ()) -> None:
    """Go on with a run from its newest checkpoint that is whole."""
    run = _run(arguments)
    recorded = run.config
    cli = ExperimentCLI("fit", [recorded, *arguments.configs], arguments.flags)
    for option in ("name", "ckpt_path"):
        if cli.option(option) is not None:
            raise UserError(
                f"--resume goes on in the run's own folder, from its own checkpoint: leave out --{option}."
            )
    changes = differences(
        {**recorded, "init_from": cli.experiment.get("init_from")}, cli.experiment
    )
    fixed = [line for line in changes if line.split(":")[0] not in _free(cli)]
    if fixed:
        raise UserError(
            f"--resume: these settings of {run.path} cannot change while it is trained: {'; '.join(fixed)}. "
            "Leave them as they were, or start a new run from its weights with --init_from."
        )
    if run.manifest["status"] == "finished" and not any(
        line.startswith(LONGER) for line in changes
    ):
        console.say(
            f"{run.path} is complete; `test --run {run.path.name}` evaluates it, a larger --trainer.max_epochs "
            "trains it longer."
        )
        return
    path, checkpoint = newest(run)
    if 0 < (epochs := cli.experiment["trainer"]["max_epochs"] or -1) <= checkpoint["epoch"]:
        raise UserError(
            f"trainer.max_epochs: expected more than the {checkpoint['epoch']} epochs that {run.path} has been "
            f"trained for, got {epochs}."
        )
    give_schema(cli.model, checkpoint)
    if isinstance(cli.datamodule, DataModule) and checkpoint.get("schema"):
        cli.datamodule.schema = Schema.from_dict(checkpoint["schema"])
    if not first_process():
        train(cli, run, ["fit", *args], callbacks, path, again=True)
        return
    with lock_run(run):
        _tidy(path)
        preflight(cli, [])
        if getattr(cli.datamodule, "fingerprint", "") != run.manifest["data"]:
            raise UserError(
                f"--resume: the data have changed since {run.path} was begun: expected what it was trained on; "
                "bring it back, or start a new run from its weights with --init_from."
            )
        for line in changes:
            console.say(f"not as recorded: {line}")
        if changes:
            atomic_write(run.path / "config.yaml", lambda file: file.write(cli.as_yaml().encode()))
        console.say(
            f"resumed: {path} of epoch {checkpoint['epoch']}, step {checkpoint['global_step']}"
        )
        train(cli, run, ["fit", *args], callbacks, path, again=True)


def _run(arguments: Arguments) -> Run:
    if not arguments.resume:
        if told := os.environ.get(RUN_VARIABLE):  # by process 0
            return Run(Path(told))
        if not (every := list_runs(arguments.root)):
            raise UserError(
                f"--resume: expected a run to go on with, there is none in {arguments.root}."
            )
        return every[0]
    return find_run(arguments.root, arguments.resume)


def _free(cli: ExperimentCLI) -> set[str]:
    """The settings that may change: not the length of training where a schedule is stretched over it."""
    scheduled = getattr(cli.model, "scheduler", None) is not None
    return {
        key
        for key in FREE
        if not (scheduled and key in ("trainer.max_epochs", "trainer.max_steps"))
    }


def _tidy(used: Path) -> None:
    """Put away what a killed process left half written, and a damaged file that would take the place of a whole one."""
    for path in used.parent.glob(".*.ckpt.*"):
        path.unlink()
    damaged = used.with_name(LAST)
    if used.name != LAST and damaged.exists():
        damaged.replace(damaged.with_suffix(".damaged"))


def newest(run: Run) -> tuple[Path, dict[str, Any]]:
    """The newest checkpoint to go on from that is whole, and its content; the others are named."""
    there = [
        path for name in (LAST, PREVIOUS) if (path := run.path / "checkpoints" / name).is_file()
    ]
    for path in there:
        if checkpoint_file.is_whole(path) or run.config["trainer"].get(
            "plugins"
        ):  # one of these may write files of its own
            return path, read_checkpoint(path)
        if first_process():
            console.warn(f"{path} is damaged: passed over.")
    what = "is whole" if there else "is there"
    raise UserError(
        f"--resume: expected {LAST} or {PREVIOUS} in {run.path / 'checkpoints'}, none {what}; "
        "train anew with `fit --config`."
    )
