"""The verbs that run an experiment: fit and check, and validate, test, predict on a run."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning.pytorch.utilities.model_helpers import is_overridden

from proj import console
from proj.arguments import Arguments, read_arguments
from proj.callbacks.checkpoint import Checkpoint, InitFrom
from proj.callbacks.predictions import PredictionWriter
from proj.check import preflight
from proj.data.base import SplitData
from proj.errors import UserError
from proj.experiment import ExperimentCLI, differences
from proj.models.weights import check_weights, give_schema
from proj.predictions import writer
from proj.run import Run, check_name, claim, find, find_same, read_checkpoint, recording, write, write_metrics
from proj.schema import Schema

# Where process 0 tells the processes it starts which folder it claimed.
RUN_VARIABLE = f"{str(__package__).upper()}_RUN"


def fit(args: list[str]) -> None:
    """Train into a new run folder."""
    arguments = read_arguments(args)
    cli = ExperimentCLI("fit", arguments.configs, arguments.flags)
    start, resume = _init_from(cli, arguments.root), _checkpoint_to_go_on(cli)
    if _first_process():
        check_name(arguments.root, cli.option("name"))
        preflight(cli, start)
    for callback in start:
        console.say(f"started from {callback.report}")
    if cli.config_init.trainer.fast_dev_run:
        trainer = cli.build_trainer(None, list(start))
        _run(trainer, trainer.fit, cli, ckpt_path=resume, weights_only=True)
        console.say("fast_dev_run: it went through; nothing is kept.")
    elif _first_process():
        _train(cli, claim(arguments.root, cli.option("name")), args, start, resume)
    else:
        # Lightning's launcher hands RUN_VARIABLE on. torchrun's does not: there, Lightning broadcasts the checkpoints'
        # folder from process 0, and no other process writes anything else.
        run = Run(Path(os.environ.get(RUN_VARIABLE, arguments.root)))
        trainer = cli.build_trainer(run.path, [*cli.fit_callbacks(run.path), *start])
        _run(trainer, trainer.fit, cli, ckpt_path=resume, weights_only=True)


def _first_process() -> bool:
    return int(getattr(rank_zero_only, "rank", 0)) == 0


def _train(cli: ExperimentCLI, run: Run, args: list[str], start: list[InitFrom], resume: Path | None) -> None:
    os.environ[RUN_VARIABLE] = str(run.path)
    trainer = cli.build_trainer(run.path, [*cli.fit_callbacks(run.path), *start])
    write(run.path / "config.yaml", lambda file: file.write(cli.as_yaml().encode()))
    fingerprint = getattr(cli.datamodule, "fingerprint", "")
    console.say(f"run: {run.path} on {trainer.num_devices} x {trainer.strategy.root_device.type}")
    try:
        with recording(run, ["fit", *args], cli.experiment["seed_everything"], fingerprint):
            _run(trainer, trainer.fit, cli, ckpt_path=resume, weights_only=True)
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
    preflight(cli, _init_from(cli, arguments.root))
    if isinstance(cli.datamodule, SplitData):
        console.show_data(cli.datamodule)
    console.say("a batch of each stage goes through.")


def validate(args: list[str]) -> None:
    """Compute a run's metrics on the validation part."""
    _score("validate", "val", args)


def test(args: list[str]) -> None:
    """Compute a run's metrics on the test part, and keep the predictions."""
    _score("test", "test", args)


def predict(args: list[str]) -> None:
    """Write a run's predictions for new rows."""
    arguments = read_arguments(args)
    run, cli, path = _restore("predict", arguments)
    file = Path(cli.option("output") or run.path / "predict" / "predictions.parquet")
    writer(file)
    trainer = cli.build_trainer(run.path, [PredictionWriter(file)])
    _run(trainer, trainer.predict, cli, ckpt_path=path, weights_only=True, return_predictions=False)
    if trainer.is_global_zero:
        console.say(f"predictions: {file}")


def _score(verb: str, stage: str, args: list[str]) -> None:
    run, cli, path = _restore(verb, read_arguments(args))
    predictions = PredictionWriter(run.path / verb / "predictions.parquet")
    trainer = cli.build_trainer(run.path, [predictions] if verb == "test" else [])
    _run(trainer, getattr(trainer, verb), cli, ckpt_path=path, weights_only=True, verbose=False)
    if not trainer.is_global_zero:
        return
    values = {name.removeprefix(f"{stage}/"): value.item() for name, value in trainer.callback_metrics.items()}
    if cli.config_init.trainer.fast_dev_run:
        return
    write_metrics(run.path / verb / "metrics.json", values)
    console.show_metrics(f"{verb}, {run.path.name}, {path.name}", values)
    console.say(f"metrics: {run.path / verb / 'metrics.json'}")
    if predictions.written:
        console.say(f"predictions: {predictions.path}")
    console.say(f"run: {run.path}")
    if any(run.path.glob("events.out.tfevents.*")):
        console.say(f"watch: tensorboard --logdir {run.path.parent}")


def _restore(verb: str, arguments: Arguments) -> tuple[Run, ExperimentCLI, Path]:
    """The run an evaluating verb is to work on, its experiment with the user's changes, and the checkpoint to use."""
    if {"-h", "--help"} & set(arguments.flags):
        ExperimentCLI(verb, [], ["--help"])  # prints it and exits
    if arguments.run is None and arguments.files:
        wanted = ExperimentCLI(verb, arguments.configs, [], instantiate=False).experiment
        run = find_same(arguments.root, wanted["model"], wanted["data"], arguments.files)
    else:
        run = find(arguments.root, arguments.run)
    recorded = run.config
    cli = ExperimentCLI(verb, [recorded, *arguments.configs], arguments.flags)
    path = run.checkpoint(cli.option("ckpt_path") or "best")
    checkpoint = read_checkpoint(path)
    give_schema(cli.model, checkpoint)
    if not is_overridden("configure_model", cli.model) or hasattr(cli.model, "meters"):  # its net is built
        check_weights(cli.model, checkpoint["state_dict"], str(path))
    if isinstance(cli.datamodule, SplitData) and checkpoint.get("schema"):
        cli.datamodule.schema = Schema.from_dict(checkpoint["schema"])
    if _first_process():
        console.say(f"run: {run.path}, {path.name}")
        for line in differences({**recorded, "init_from": None}, cli.experiment):
            console.say(f"not as recorded: {line}")
        _warn_of_other_data(run, recorded, cli)
    return run, cli, path


def _warn_of_other_data(run: Run, recorded: dict[str, Any], cli: ExperimentCLI) -> None:
    if isinstance(cli.datamodule, SplitData) and recorded["data"] == cli.experiment["data"]:
        cli.datamodule.prepare_data()
        cli.datamodule.setup("fit")
        if cli.datamodule.fingerprint != run.manifest["data"]:
            console.warn("the data are not those the run was trained on: a test row may have been a training row then.")


def _init_from(cli: ExperimentCLI, root: Path) -> list[InitFrom]:
    source = cli.option("init_from")
    if source is None:
        return []
    path = Path(source) if source.endswith(".ckpt") else find(root, source).checkpoint("best")
    return [InitFrom(read_checkpoint(path)["state_dict"], str(path))]


def _checkpoint_to_go_on(cli: ExperimentCLI) -> Path | None:
    if (given := cli.option("ckpt_path")) is None:
        return None
    if not Path(given).is_file():
        raise UserError(f"--ckpt_path: expected the file of a checkpoint to go on from, got {given}.")
    read_checkpoint(Path(given))
    return Path(given)


def _run(trainer: Trainer, method: Callable[..., Any], cli: ExperimentCLI, **options: Any) -> None:
    """Call a method of the Trainer; being stopped by a signal ends in the usual exit code, 128 + its number."""
    try:
        method(cli.model, datamodule=cli.datamodule, **options)
    except SIGTERMException:
        raise SystemExit(143) from None
    except SystemExit:
        raise SystemExit(130 if trainer.interrupted else 1) from None
    except MisconfigurationException as error:
        raise UserError(f"Lightning refuses this: {' '.join(str(error).split())}") from error
