"""The verbs that take a run: validate, test and predict."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities.model_helpers import is_overridden

from proj.data.base import DataModule
from proj.engine import console
from proj.engine.callbacks.prediction_writer import PredictionWriter
from proj.engine.config.arguments import Arguments, read_arguments
from proj.engine.config.experiment import ExperimentCLI, differences, first_process
from proj.engine.evaluation import calibrate, scoring
from proj.engine.exit_codes import as_user_error, signal_exit_codes
from proj.engine.memory import keep_freed_memory
from proj.engine.runs import calibration
from proj.engine.runs.calibration import Calibration
from proj.engine.runs.predictions import writer
from proj.engine.runs.run import (
    Run,
    find_matching_run,
    find_run,
    metric_entries,
    read_checkpoint,
    write_metrics,
)
from proj.engine.runs.weights import check_weights, give_schema
from proj.errors import UserError
from proj.models.base import Model
from proj.schema import Schema

# Options of our data modules that do not decide which rows are in which part.
HARMLESS = {
    f"init_args.{name}"
    for name in ("batch_size", "shuffle", "predict_path", "cache_dir", "flip", "crop", "erase")
}


def validate(args: list[str]) -> None:
    """Compute a run's metrics on the validation part."""
    _score("validate", "val", args)


def test(args: list[str]) -> None:
    """Compute a run's metrics on the test part, and keep the predictions."""
    _score("test", "test", args)


def predict(args: list[str]) -> None:
    """Write a run's predictions for new rows."""
    arguments = read_arguments(args)
    run, cli, path, _ = _restore("predict", arguments)
    _calibrate(cli.model, path)
    file = Path(cli.option("output") or run.path / "predict" / "predictions.parquet")
    writer(file)  # a wrong ending, or no way to write there, should be known before the work
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output: cannot write to {file}: {error}.") from error
    if file.is_dir():
        raise UserError(f"--output: expected a file, got the folder {file}.")
    keep = (cli.option("keep") or "").split(",") if cli.option("keep") else []
    callbacks = [] if cli.config_init.trainer.fast_dev_run else [PredictionWriter(file, keep)]
    trainer = cli.build_trainer(run.path, [*callbacks])
    keep_freed_memory(trainer.strategy.root_device)
    with signal_exit_codes(trainer), as_user_error("predicting does not go through"):
        trainer.predict(
            cli.model,
            datamodule=cli.datamodule,
            ckpt_path=path,
            weights_only=True,
            return_predictions=False,
        )
    if callbacks and trainer.is_global_zero:
        console.say(f"predictions: {file}")


def _score(verb: str, stage: str, args: list[str]) -> None:
    run, cli, path, step = _restore(verb, read_arguments(args))
    watched = any(run.path.glob("events.out.tfevents.*"))
    importance = _importance(cli) if cli.config.get("importance") else None
    fast = bool(cli.config_init.trainer.fast_dev_run)  # then nothing is kept
    request = _request(cli, path, fast) if verb == "validate" else None
    applied = _calibrate(cli.model, path) if verb == "test" else None
    predictions = PredictionWriter(run.path / verb / "predictions.parquet")
    trainer = cli.build_trainer(run.path, [] if fast else [predictions])
    keep_freed_memory(trainer.strategy.root_device)
    with signal_exit_codes(trainer), as_user_error(f"{verb} does not go through"):
        getattr(trainer, verb)(
            cli.model, datamodule=cli.datamodule, ckpt_path=path, weights_only=True, verbose=False
        )
    if fast and trainer.is_global_zero:
        console.say("fast_dev_run: it went through; nothing is kept.")
    if fast or not trainer.is_global_zero:
        return
    values = {
        name.removeprefix(f"{stage}/"): value.item()
        for name, value in trainer.callback_metrics.items()
    }
    metrics = metric_entries(values)
    calibration.keep(applied, run.path / verb)
    judge = scoring if predictions.written and isinstance(cli.model, Model) else None
    fitted = None
    if judge is not None and request is not None:
        outcomes = judge.load_predictions(run, verb, cli.model.schema)
        fitted = calibrate.fit(request, outcomes, cli.model.schema, path)
    if judge is not None:
        metrics = judge.with_intervals(metrics, run, verb, cli.model.schema)
    write_metrics(run.path / verb / "metrics.json", metrics)
    _show(
        verb,
        run,
        path,
        metrics,
        judge.small_sample_warnings(metrics, cli.model.schema.task) if judge is not None else [],
    )
    if predictions.written:
        console.say(f"predictions: {predictions.path}")
    if fitted is not None:
        calibrate.show(fitted, outcomes, cli.model.schema)
        fitted.write(file := path.with_name(calibration.FILE))
        console.say(
            f"calibration: {file}; test, predict and proj.load apply it, unless you delete it"
        )
    if importance is not None:
        importance(run, trainer, cli.model, cli.datamodule, path)
    if judge is not None and verb == "test":
        for line in judge.keep(run, cli.model.schema, cli.datamodule):
            console.say(line)
        console.say(
            f"report: {judge.write_report(run, cli.model.schema, step if watched else None)}"
        )
    console.say(f"run: {run.path}")
    if watched:
        console.say(f"watch: tensorboard --logdir {run.path.parent}")


def _show(
    verb: str, run: Run, path: Path, metrics: dict[str, dict[str, Any]], doubts: Iterable[str]
) -> None:
    """The metrics, what they cannot tell, and where they are."""
    console.show_metrics(f"{verb}, {run.path.name}, {path.name}", metrics)
    for line in doubts:
        console.warn(f"{verb}: {line}")
    console.say(f"metrics: {run.path / verb / 'metrics.json'}")


def _request(cli: ExperimentCLI, path: Path, fast: bool) -> Any:
    """What `validate` is asked to fit, if anything."""
    given = cli.option("calibrate"), cli.option("threshold")
    if given == (None, None):
        if path.with_name(calibration.FILE).is_file() and first_process():
            console.say(
                f"{path.with_name(calibration.FILE)} is not applied to the part it was fitted on"
            )
        return None
    if fast:
        raise UserError(
            "--calibrate, --threshold: expected the whole part, got --trainer.fast_dev_run; leave it out."
        )
    return calibrate.request(*given, cli.model.task if isinstance(cli.model, Model) else None)


def _calibrate(model: Any, path: Path) -> Calibration | None:
    """Give a model of ours what was fitted for its checkpoint, and say so."""
    found, why = calibration.apply(model, path) if isinstance(model, Model) else (None, "")
    if first_process() and (found or why):
        console.say(f"calibrated: {found}") if found else console.warn(why)
    return found


def _importance(cli: ExperimentCLI) -> Any:
    """What `validate --importance` calls when the metrics are there; raises UserError, before the work, where it cannot."""
    if cli.config_init.trainer.fast_dev_run:
        raise UserError(
            "--importance: expected the whole validation part, got trainer.fast_dev_run; leave one of them out."
        )
    judge = scoring
    judge.check_importance(cli.model, cli.datamodule)
    return judge.importance


def _restore(verb: str, arguments: Arguments) -> tuple[Run, ExperimentCLI, Path, int]:
    """The run an evaluating verb is to work on, its experiment with the user's changes, the checkpoint to use, its step."""
    if {"-h", "--help"} & set(arguments.flags):
        ExperimentCLI(verb, [], ["--help"])  # prints it and exits
    which = arguments.flag("--ckpt_path") or "best"
    if arguments.run is None and arguments.files:
        wanted = ExperimentCLI(verb, arguments.configs, [], instantiate=False).experiment
        run = find_matching_run(arguments.root, wanted["model"], wanted["data"], arguments.files)
    else:
        run = find_run(arguments.root, arguments.run, which)
    recorded = run.config
    cli = ExperimentCLI(verb, [recorded, *arguments.configs], arguments.flags)
    path = run.checkpoint(which)
    checkpoint = read_checkpoint(path)
    if "pytorch-lightning_version" not in checkpoint:
        raise UserError(
            f"{path}: expected a checkpoint that `fit` wrote, got weights alone; start a run with --init_from."
        )
    give_schema(cli.model, checkpoint)
    if not is_overridden("configure_model", cli.model) or hasattr(
        cli.model, "meters"
    ):  # its net is built
        check_weights(cli.model, checkpoint["state_dict"], str(path))
    if isinstance(cli.datamodule, DataModule) and checkpoint.get("schema"):
        cli.datamodule.schema = Schema.from_dict(checkpoint["schema"])
    if first_process():
        console.say(f"run: {run.path}, {path.name}")
        for line in differences({**recorded, "init_from": None}, cli.experiment):
            console.say(f"not as recorded: {line}")
        if run.manifest["status"] != "finished":
            console.warn(f"{run.path} is not finished, its status is {run.manifest['status']}.")
        if verb != "predict":
            _warn_of_other_rows(run, recorded["data"], cli)
    return run, cli, path, checkpoint["global_step"]


def _warn_of_other_rows(run: Run, recorded: dict[str, Any], cli: ExperimentCLI) -> None:
    """Say where the rows to be scored may be other ones than at training: then training rows may be among them."""
    changes = [
        line
        for line in differences(recorded, cli.experiment["data"])
        if line.split(":")[0] not in HARMLESS
    ]
    if isinstance(cli.datamodule, DataModule) and not changes:
        cli.datamodule.prepare_data()
        cli.datamodule.setup("fit")
        if cli.datamodule.fingerprint != run.manifest["data"]:
            changes = ["the source has changed since"]
    if changes:
        console.warn(
            f"rows that the run was trained on may be among those scored: {'; '.join(changes)}."
        )
