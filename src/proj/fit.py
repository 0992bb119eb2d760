"""``fit``: train into a new run folder, or go on in an old one."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

from lightning.pytorch import Callback

from proj import console
from proj.arguments import read_arguments
from proj.data.base import SplitData
from proj.data.doctor import examine
from proj.experiment import ExperimentCLI, first_process
from proj.guard import exit_codes, explained
from proj.preflight import preflight
from proj.rate import find_rate
from proj.resume import resume
from proj.run import Run, check_name, claim, locked, write
from proj.start import checkpoint_to_go_on, weights_to_start_from
from proj.training import RUN_VARIABLE, train


def fit(args: list[str], folder: Path | None = None, callbacks: Sequence[Callback] = ()) -> None:
    """Train into a new run folder, ``folder`` if it is given, or go on in an old one."""
    arguments = read_arguments(args, "fit")
    if arguments.resume is not None:
        resume(arguments, args, callbacks)
        return
    cli = ExperimentCLI("fit", arguments.configs, arguments.flags)
    rate = find_rate(cli) if cli.config.lr_find and first_process() else None
    if rate:
        console.say(f"learning rate: {rate[0]:.2g}, where the loss falls most steeply")
        cli = ExperimentCLI("fit", arguments.configs, [*arguments.flags, "--model.optimizer.lr", repr(rate[0])])
    start, checkpoint = weights_to_start_from(cli), checkpoint_to_go_on(cli)
    if first_process():
        root, name = (folder.parent, folder.name) if folder else (cli.root, cli.option("name"))
        check_name(root, name)
        preflight(cli, start)
        found = examine(cli.datamodule) if isinstance(cli.datamodule, SplitData) else []
        console.show_findings(found)
    for callback in start:
        console.say(f"started from {callback.report}")
    if cli.config_init.trainer.fast_dev_run:
        trainer = cli.build_trainer(None, list(start))
        with exit_codes(trainer), explained("training cannot go on"):
            trainer.fit(cli.model, datamodule=cli.datamodule, ckpt_path=checkpoint, weights_only=True)
        console.say("fast_dev_run: it went through; nothing is kept.")
        return
    if not first_process():
        # Lightning's launcher hands RUN_VARIABLE on. torchrun's does not: there, Lightning broadcasts the checkpoints'
        # folder from process 0, and no other process writes anything else.
        train(cli, Run(Path(os.environ.get(RUN_VARIABLE, cli.root))), args, [*start, *callbacks], checkpoint)
        return
    run = claim(root, name)
    write(run.path / "config.yaml", lambda file: file.write(cli.as_yaml().encode()))
    findings = json.dumps([finding._asdict() for finding in found], indent=2)
    write(run.path / "findings.json", lambda file: file.write(findings.encode()))
    if rate:
        write(run.path / "lr_find.png", lambda file: rate[1].savefig(file, format="png"))
    with locked(run):
        train(cli, run, ["fit", *args], [*start, *callbacks], checkpoint)
