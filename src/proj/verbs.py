"""The verbs that take an experiment: fit and check."""

import json
import os
from pathlib import Path

from proj import console
from proj.arguments import read_arguments
from proj.callbacks.checkpoint import InitFrom
from proj.check import preflight
from proj.data.base import Finding, SplitData
from proj.data.doctor import examine
from proj.errors import UserError
from proj.experiment import ExperimentCLI, differences, first_process
from proj.guard import exit_codes, explained
from proj.resume import resume
from proj.run import Run, check_name, claim, find, locked, read_checkpoint, write
from proj.training import RUN_VARIABLE, train


def fit(args: list[str]) -> None:
    """Train into a new run folder, or go on in an old one."""
    arguments = read_arguments(args, "fit")
    if arguments.resume is not None:
        resume(arguments, args)
        return
    cli = ExperimentCLI("fit", arguments.configs, arguments.flags)
    start, checkpoint = _init_from(cli, cli.root), _checkpoint_to_go_on(cli)
    if first_process():
        check_name(cli.root, cli.option("name"))
        preflight(cli, start)
        found = _findings(cli)
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
        train(cli, Run(Path(os.environ.get(RUN_VARIABLE, cli.root))), args, start, checkpoint)
        return
    run = claim(cli.root, cli.option("name"))
    write(run.path / "config.yaml", lambda file: file.write(cli.as_yaml().encode()))
    findings = json.dumps([finding._asdict() for finding in found], indent=2)
    write(run.path / "findings.json", lambda file: file.write(findings.encode()))
    with locked(run):
        train(cli, run, ["fit", *args], start, checkpoint)


def _findings(cli: ExperimentCLI) -> list[Finding]:
    return examine(cli.datamodule) if isinstance(cli.datamodule, SplitData) else []


def check(args: list[str]) -> None:
    """Find what can be known before the first epoch."""
    arguments = read_arguments(args)
    cli = ExperimentCLI("check", arguments.configs, arguments.flags)
    preflight(cli, _init_from(cli, cli.root))
    if isinstance(cli.datamodule, SplitData):
        console.show_data(cli.datamodule)
        console.show_findings(_findings(cli), strict="--strict" in args)
    console.say("a batch of each stage goes through.")


def _init_from(cli: ExperimentCLI, root: Path) -> list[InitFrom]:
    source = cli.option("init_from")
    if source is None:
        return []
    path = Path(source) if source.endswith(".ckpt") else find(root, source).checkpoint("best")
    return [InitFrom(read_checkpoint(path)["state_dict"], str(path))]


def _checkpoint_to_go_on(cli: ExperimentCLI) -> Path | None:
    """The checkpoint of ``fit --ckpt_path``, if it is one of this very model: its optimizer and schedule go on."""
    if (given := cli.option("ckpt_path")) is None:
        return None
    path = Path(given)
    checkpoint = read_checkpoint(path)
    if "loops" not in checkpoint or "optimizer_states" not in checkpoint:
        raise UserError(f"--ckpt_path: {path} holds weights only; start from them with --init_from.")
    before = checkpoint.get("config", cli.experiment)
    changes = differences(before["model"], cli.experiment["model"])
    changes = [line for line in changes if not line.startswith("init_args.compile:")]  # the weights are interchangeable
    if getattr(cli.model, "scheduler", None) is not None:
        keys = ("max_epochs", "max_steps")  # a schedule's length
        lengths = [{key: config["trainer"][key] for key in keys} for config in (before, cli.experiment)]
        changes += differences(lengths[0], lengths[1])
    if changes:
        raise UserError(f"--ckpt_path: training goes on with the model, optimizer and schedule of {path}, and these differ: "
                        f"{'; '.join(changes)}. Leave the settings as they were, or use --init_from.")  # fmt: skip
    return path
