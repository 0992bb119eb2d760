"""The verbs that take an experiment: fit and check."""

import json
import os
import shutil
from pathlib import Path

from lightning.pytorch.loggers import TensorBoardLogger

from proj import console
from proj.arguments import read_arguments
from proj.callbacks.checkpoint import Checkpoint, InitFrom
from proj.check import preflight
from proj.data.base import Finding, SplitData
from proj.data.doctor import examine
from proj.errors import UserError
from proj.experiment import ExperimentCLI, differences, first_process
from proj.guard import exit_codes, explained
from proj.run import Run, check_name, claim, find, read_checkpoint, recording, write

# Where process 0 tells the processes it starts which folder it claimed.
RUN_VARIABLE = f"{str(__package__).upper()}_RUN"


def fit(args: list[str]) -> None:
    """Train into a new run folder."""
    arguments = read_arguments(args)
    cli = ExperimentCLI("fit", arguments.configs, arguments.flags)
    start, resume = _init_from(cli, cli.root), _checkpoint_to_go_on(cli)
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
            trainer.fit(cli.model, datamodule=cli.datamodule, ckpt_path=resume, weights_only=True)
        console.say("fast_dev_run: it went through; nothing is kept.")
    elif first_process():
        _train(cli, claim(cli.root, cli.option("name")), args, found, start, resume)
    else:
        # Lightning's launcher hands RUN_VARIABLE on. torchrun's does not: there, Lightning broadcasts the checkpoints'
        # folder from process 0, and no other process writes anything else.
        run = Run(Path(os.environ.get(RUN_VARIABLE, cli.root)))
        trainer = cli.build_trainer(run.path, [*cli.fit_callbacks(run.path), *start])
        with exit_codes(trainer):
            trainer.fit(cli.model, datamodule=cli.datamodule, ckpt_path=resume, weights_only=True)


def _findings(cli: ExperimentCLI) -> list[Finding]:
    return examine(cli.datamodule) if isinstance(cli.datamodule, SplitData) else []


def _train(
    cli: ExperimentCLI, run: Run, args: list[str], found: list[Finding], start: list[InitFrom], resume: Path | None
) -> None:
    os.environ[RUN_VARIABLE] = str(run.path)
    trainer = cli.build_trainer(run.path, [*cli.fit_callbacks(run.path), *start])
    write(run.path / "config.yaml", lambda file: file.write(cli.as_yaml().encode()))
    findings = json.dumps([finding._asdict() for finding in found], indent=2)
    write(run.path / "findings.json", lambda file: file.write(findings.encode()))
    fingerprint = getattr(cli.datamodule, "fingerprint", "")
    console.say(f"run: {run.path} on {trainer.num_devices} x {trainer.strategy.root_device.type}")
    first_step = read_checkpoint(resume)["global_step"] if resume else 0
    try:
        with recording(run, ["fit", *args], cli.experiment["seed_everything"], fingerprint), exit_codes(trainer):
            trainer.fit(cli.model, datamodule=cli.datamodule, ckpt_path=resume, weights_only=True)
    except Exception:  # of whatever kind, since it is raised again: here it matters only how far training came
        if trainer.global_step == first_step:
            shutil.rmtree(run.path)  # what never made a step is no run
            if not any(cli.root.iterdir()):
                cli.root.rmdir()
            with explained("training cannot start"):
                raise
        raise
    finally:
        del os.environ[RUN_VARIABLE]
    for saver in trainer.checkpoint_callbacks:
        if isinstance(saver, Checkpoint) and saver.best_metrics:
            shown = {n: v for n, v in saver.best_metrics.items() if not n.startswith(("train", "lr-"))}
            console.show_metrics(f"best epoch, by {saver.monitor}" if saver.monitor else "last epoch", shown)
    console.say(f"trained: {trainer.current_epoch} epochs, {trainer.global_step} steps")
    console.say(f"run: {run.path}")
    if any(isinstance(logger, TensorBoardLogger) for logger in trainer.loggers):
        console.say(f"watch: tensorboard --logdir {run.path.parent}")


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
