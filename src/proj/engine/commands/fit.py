"""Train into a new run folder, or resume an existing run."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lightning.pytorch import Callback

from proj.data.base import DataModule
from proj.engine import console
from proj.engine.callbacks.check_optimizers import CheckOptimizers
from proj.engine.config.arguments import Arguments, read_arguments
from proj.engine.config.experiment import ExperimentCLI, first_process
from proj.engine.config.placeholders import show_not_recorded
from proj.engine.config.without_effect import settings_without_effect
from proj.engine.evaluation.tensorboard import FigureLogger
from proj.engine.exit_codes import DISK_ERRORS, as_user_error, signal_exit_codes
from proj.engine.runs.contents import PlanFacts
from proj.engine.runs.files import atomic_write, write_json
from proj.engine.runs.locks import lock_run
from proj.engine.runs.run import Run, check_name, create_run
from proj.engine.training.data_checks import check_data, describe_positive
from proj.engine.training.deadline import deadline
from proj.engine.training.initial_weights import (
    check_classes,
    checkpoint_to_continue,
    initial_weights,
)
from proj.engine.training.lr_find import find_learning_rate
from proj.engine.training.preflight import preflight
from proj.engine.training.resume import resume
from proj.engine.training.train import RUN_VARIABLE, train
from proj.errors import UserError
from proj.schema import Finding

# Importing matplotlib takes a second, and training does not need it.
if TYPE_CHECKING:
    from matplotlib.figure import Figure


def fit(
    args: list[str], folder: Path | None = None, callbacks: Sequence[Callback] = ()
) -> Run | None:
    """Train into a new run folder, or resume an existing run.

    Args:
        args: the command line after the verb.
        folder: folder of the new run; by default ``--name``, or the next ``version_N``.
        callbacks: callbacks beside those of the experiment.

    Returns:
        The run; None after ``fast_dev_run``, which leaves no run.
    """
    arguments = read_arguments(args, "fit")
    if arguments.resume is not None:
        return resume(arguments, args, [FigureLogger(), *callbacks])
    experiment, lr_figure = parse_experiment(arguments)
    return train_experiment(experiment, args, folder, callbacks, lr_figure)


def parse_experiment(arguments: Arguments) -> tuple[ExperimentCLI, "Figure | None"]:
    """Parse the experiment; with ``--lr_find``, find its learning rate and draw the curve."""
    cli = ExperimentCLI("fit", arguments.configs, arguments.flags)
    if not (cli.config.lr_find and first_process()):
        return cli, None
    lr, figure = find_learning_rate(cli)
    console.say(f"learning rate: {lr:.2g}, where the loss falls most steeply")
    flags = [*arguments.flags, "--model.optimizer.lr", repr(lr)]
    return ExperimentCLI("fit", arguments.configs, flags), figure


def train_experiment(
    cli: ExperimentCLI,
    args: list[str],
    folder: Path | None = None,
    callbacks: Sequence[Callback] = (),
    lr_figure: "Figure | None" = None,
    plan: PlanFacts | None = None,
) -> Run | None:
    """Check an experiment, create its run folder and train; see ``fit``.

    ``plan`` is that of a run with ``--within`` that is repeated.
    """
    callbacks = [*callbacks, *deadline(cli, plan)]
    initial, checkpoint = initial_weights(cli), checkpoint_to_continue(cli)
    root, name = (folder.parent, folder.name) if folder else (cli.root, cli.option("name"))
    findings: list[Finding] = []
    if first_process():
        check_name(root, name)
        for sentence in settings_without_effect(cli.config, cli.parser.get_defaults()):
            console.warn(sentence)
        preflight(cli, [*initial, CheckOptimizers()])
        findings = check_data(cli.datamodule) if isinstance(cli.datamodule, DataModule) else []
        if line := describe_positive(cli.datamodule):
            console.say(line)
        console.show_findings(findings)
        if checkpoint is not None:
            check_classes(checkpoint, cli.datamodule)
        for callback in initial:
            console.say(f"initialized from {callback.report}")
    if cli.config.trainer.fast_dev_run:
        _fast_dev_run(cli, list(initial), checkpoint)
        return None
    callbacks = [*initial, FigureLogger(), *callbacks]
    if not first_process():
        # Lightning's launcher passes RUN_VARIABLE on, torchrun's does not. With torchrun, Lightning
        # broadcasts the checkpoints' folder from process 0, and only process 0 writes other files.
        run = Run(Path(os.environ.get(RUN_VARIABLE, cli.root)))
        train(cli, run, args, callbacks, checkpoint)
        return run
    run = create_run(root, name)
    show_not_recorded(cli.secrets)
    _write_files(run, cli, findings, lr_figure)
    with lock_run(run):
        train(cli, run, ["fit", *args], callbacks, checkpoint)
    return run


def _fast_dev_run(cli: ExperimentCLI, callbacks: list[Callback], checkpoint: Path | None) -> None:
    trainer = cli.build_trainer(None, callbacks)
    with signal_exit_codes(trainer), as_user_error("training fails"):
        trainer.fit(cli.model, datamodule=cli.datamodule, ckpt_path=checkpoint, weights_only=True)
    console.say("fast_dev_run: done; no files are written.")


def _write_files(
    run: Run, cli: ExperimentCLI, findings: list[Finding], lr_figure: "Figure | None"
) -> None:
    """Write the files of a run that are known before training.

    Raises UserError if the disk is full or read-only.
    """
    try:
        _write(run, cli, findings, lr_figure)
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        raise UserError(
            f"cannot write to {run.path}: {error.strerror}; make space there, or set "
            "trainer.default_root_dir."
        ) from error


def _write(
    run: Run, cli: ExperimentCLI, findings: list[Finding], lr_figure: "Figure | None"
) -> None:
    atomic_write(run.path / "config.yaml", lambda file: file.write(cli.as_yaml().encode()))
    write_json(run.path / "findings.json", [finding._asdict() for finding in findings])
    if lr_figure is not None:
        atomic_write(run.path / "lr_find.png", lambda file: lr_figure.savefig(file, format="png"))
