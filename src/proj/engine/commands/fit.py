"""``fit``: train into a new run folder, or go on in an old one."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

from lightning.pytorch import Callback

from proj.data.base import DataModule
from proj.engine import console
from proj.engine.config.arguments import read_arguments
from proj.engine.config.experiment import ExperimentCLI, first_process
from proj.engine.evaluation.tensorboard import FigureLogger
from proj.engine.exit_codes import as_user_error, signal_exit_codes
from proj.engine.runs.run import Run, atomic_write, check_name, create_run, lock_run
from proj.engine.training.data_checks import check_data
from proj.engine.training.initial_weights import checkpoint_to_continue, initial_weights
from proj.engine.training.lr_find import find_learning_rate
from proj.engine.training.preflight import preflight
from proj.engine.training.resume import resume
from proj.engine.training.train import RUN_VARIABLE, train


def fit(args: list[str], folder: Path | None = None, callbacks: Sequence[Callback] = ()) -> None:
    """Train into a new run folder, ``folder`` if it is given, or go on in an old one."""
    arguments = read_arguments(args, "fit")
    callbacks = [FigureLogger(), *callbacks]
    if arguments.resume is not None:
        resume(arguments, args, callbacks)
        return
    cli = ExperimentCLI("fit", arguments.configs, arguments.flags)
    rate = find_learning_rate(cli) if cli.config.lr_find and first_process() else None
    if rate:
        console.say(f"learning rate: {rate[0]:.2g}, where the loss falls most steeply")
        cli = ExperimentCLI(
            "fit", arguments.configs, [*arguments.flags, "--model.optimizer.lr", repr(rate[0])]
        )
    start, checkpoint = initial_weights(cli), checkpoint_to_continue(cli)
    if first_process():
        root, name = (folder.parent, folder.name) if folder else (cli.root, cli.option("name"))
        check_name(root, name)
        preflight(cli, start)
        found = check_data(cli.datamodule) if isinstance(cli.datamodule, DataModule) else []
        console.show_findings(found)
    for callback in start:
        console.say(f"started from {callback.report}")
    if cli.config_init.trainer.fast_dev_run:
        trainer = cli.build_trainer(None, list(start))
        with signal_exit_codes(trainer), as_user_error("training cannot go on"):
            trainer.fit(
                cli.model, datamodule=cli.datamodule, ckpt_path=checkpoint, weights_only=True
            )
        console.say("fast_dev_run: it went through; nothing is kept.")
        return
    if not first_process():
        # Lightning's launcher hands RUN_VARIABLE on. torchrun's does not: there, Lightning broadcasts the checkpoints'
        # folder from process 0, and no other process writes anything else.
        train(
            cli,
            Run(Path(os.environ.get(RUN_VARIABLE, cli.root))),
            args,
            [*start, *callbacks],
            checkpoint,
        )
        return
    run = create_run(root, name)
    atomic_write(run.path / "config.yaml", lambda file: file.write(cli.as_yaml().encode()))
    findings = json.dumps([finding._asdict() for finding in found], indent=2)
    atomic_write(run.path / "findings.json", lambda file: file.write(findings.encode()))
    if rate:
        atomic_write(run.path / "lr_find.png", lambda file: rate[1].savefig(file, format="png"))
    with lock_run(run):
        train(cli, run, ["fit", *args], [*start, *callbacks], checkpoint)
