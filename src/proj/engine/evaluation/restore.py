"""Restore a run for `validate`, `test` and `predict`, and run the loop of the verb."""

from pathlib import Path
from typing import Any, Literal, NamedTuple

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.model_helpers import is_overridden

from proj.data.base import DataModule
from proj.engine import console
from proj.engine.callbacks.prediction_writer import PredictionWriter
from proj.engine.config.arguments import Arguments, read_arguments
from proj.engine.config.checkpoint_owner import check_named_run, check_same_run, run_of_file
from proj.engine.config.experiment import (
    ExperimentCLI,
    differences,
    first_process,
    without_loggers,
)
from proj.engine.config.options import FIT_KEYS
from proj.engine.config.without_effect import flags_without_effect
from proj.engine.evaluation.loggers import evaluation_loggers
from proj.engine.exit_codes import as_user_error, signal_exit_codes
from proj.engine.memory import keep_freed_memory
from proj.engine.runs import calibration
from proj.engine.runs.calibration import Calibration
from proj.engine.runs.checkpoint_file import read_checkpoint
from proj.engine.runs.find import find_matching_run, find_run
from proj.engine.runs.run import Run
from proj.engine.runs.weights import check_weights, give_schema, weight_type
from proj.engine.write_paths import check_links
from proj.errors import UserError
from proj.models.base import Model
from proj.schema import Schema

# Options of our data modules that do not change which rows are in which split.
IRRELEVANT_OPTIONS = {
    f"init_args.{name}"
    for name in (
        *("batch_size", "shuffle", "predict_path", "cache_dir"),
        *("positive", "flip", "crop", "erase"),
        *("buffer_rows", "sample_rows", "text_encoder"),
    )
}


class RestoredRun(NamedTuple):
    """A run with its experiment, changed by the user's flags, and one of its checkpoints.

    ``step`` is the optimizer step of the checkpoint.
    """

    run: Run
    cli: ExperimentCLI
    checkpoint: Path
    step: int

    @property
    def fast_dev_run(self) -> bool:
        """Whether only a few batches are evaluated and nothing is saved."""
        return bool(self.cli.config_init.trainer.fast_dev_run)


def restore(verb: str, args: list[str], check_rows: bool = True) -> RestoredRun:
    """Find the run that the command line names, and build its experiment and model.

    Args:
        verb: the verb.
        args: its words.
        check_rows: warn if rows that the run was trained on may be scored.

    Raises:
        UserError: if there is no such run or checkpoint, or the checkpoint does not fit the model.
    """
    arguments = read_arguments(args, verb)
    if {"-h", "--help"} & set(arguments.flags):
        # This prints the help and exits.
        ExperimentCLI(verb, [], ["--help"])
    ckpt_path = arguments.flag("--ckpt_path") or "best"
    checkpoints: dict[Path, dict[str, Any]] = {}
    run = _find_run(verb, arguments, ckpt_path, checkpoints)
    run.require_trained()
    check_links(run.path)
    recorded = run.config
    cli = ExperimentCLI(verb, [recorded, *arguments.configs], arguments.flags)
    path = run.checkpoint(ckpt_path)
    checkpoint = checkpoints.get(path) or read_checkpoint(path)
    if "pytorch-lightning_version" not in checkpoint:
        raise UserError(
            f"{path}: expected a checkpoint that `fit` wrote, got weights only; start a run with "
            "--init_from."
        )
    check_same_run(run, recorded, checkpoint, path)
    _restore_model(cli, checkpoint, path)
    if first_process():
        for sentence in flags_without_effect(verb, arguments.flags):
            console.warn(sentence)
        console.say(f"run: {run.path}, {path.name} of epoch {checkpoint['epoch']}")
        _show_differences(run, recorded, cli)
        if verb != "predict" and check_rows:
            warn_of_other_rows(run, recorded.get("data") or {}, cli)
    return RestoredRun(run, cli, path, checkpoint["global_step"])


def _find_run(
    verb: str, arguments: Arguments, ckpt_path: str, checkpoints: dict[Path, dict[str, Any]]
) -> Run:
    """Return the run of ``--ckpt_path``, of ``--run``, or the newest one (like ``--config``).

    The newest one is chosen among those whose files are intact; its checkpoint is added to
    ``checkpoints``.
    """
    if ckpt_path not in ("best", "last") and Path(ckpt_path).is_file():
        return _run_of_file(verb, arguments, Path(ckpt_path))

    def read(run: Run) -> None:
        assert run.config
        check_links(run.path)
        if ckpt_path in ("best", "last"):
            path = run.checkpoint(ckpt_path)
            checkpoints[path] = read_checkpoint(path)

    if arguments.run is None and arguments.files:
        return _matching_run(verb, arguments)
    return find_run(arguments.root, arguments.run, ckpt_path, read)


def _matching_run(verb: str, arguments: Arguments) -> Run:
    """Return the newest run with the model and the data of ``--config``."""
    wanted = _wanted(verb, arguments)
    return find_matching_run(arguments.root, wanted["model"], wanted["data"], arguments.files)


def _wanted(verb: str, arguments: Arguments) -> dict[str, Any]:
    return ExperimentCLI(verb, arguments.configs, [], instantiate=False).experiment


def _run_of_file(verb: str, arguments: Arguments, file: Path) -> Run:
    """Return the run that a checkpoint file belongs to.

    Raises:
        UserError: if ``--run`` or ``--config`` name another one, or the file is in no run's folder
            and nothing else names a run.
    """
    if arguments.run is not None:
        run = find_run(arguments.root, arguments.run)
        check_named_run(run, file)
        return run
    owner = run_of_file(file)
    if not arguments.files:
        if owner is None:
            raise UserError(
                f"--ckpt_path: expected a file in the folder of a run, got {file}, which is in "
                "none; name the run that it belongs to with --run."
            )
        return owner
    if owner is None:
        return _matching_run(verb, arguments)
    wanted, recorded = _wanted(verb, arguments), owner.config
    own, other = ({key: c.get(key) for key in ("model", "data")} for c in (recorded, wanted))
    if changes := differences(own, other):
        raise UserError(
            f"--config: expected the model and data of {owner.path}, whose checkpoint is named, "
            f"got differences: {'; '.join(changes)[:300]}; leave out --config, or write the "
            "changes as flags."
        )
    return owner


def _restore_model(cli: ExperimentCLI, checkpoint: dict[str, Any], path: Path) -> None:
    """Give model and data the checkpoint's schema, and check that the weights fit."""
    give_schema(cli.model, checkpoint, weight_type(cli.config.trainer.precision))
    is_built = isinstance(cli.model, Model) and cli.model.schema is not None
    if is_built or not is_overridden("configure_model", cli.model):
        check_weights(cli.model, checkpoint["state_dict"], str(path))
    if isinstance(cli.datamodule, DataModule) and checkpoint.get("schema"):
        cli.datamodule.schema = Schema.from_dict(checkpoint["schema"])


def _show_differences(run: Run, recorded: dict[str, Any], cli: ExperimentCLI) -> None:
    """Print the changes of the recorded experiment; warn of an unfinished run."""
    old, new = without_loggers(recorded), without_loggers(cli.experiment)
    for line in differences({**old, **dict.fromkeys(FIT_KEYS)}, new):
        console.say(f"not as recorded: {line}")
    status = run.manifest["status"]
    if status != "finished":
        console.warn(f"{run.path} is not finished; its status is {status}.")


def warn_of_other_rows(run: Run, recorded: dict[str, Any], cli: ExperimentCLI) -> None:
    """Warn if the scored rows may differ from those of the split at training.

    Then rows that the run was trained on may be among them.
    """
    changes = [
        line
        for line in differences(recorded, cli.experiment["data"])
        # An option may have options of its own.
        if ".".join(line.split(":")[0].split(".")[:2]) not in IRRELEVANT_OPTIONS
    ]
    if isinstance(cli.datamodule, DataModule) and not changes:
        cli.datamodule.prepare_data()
        cli.datamodule.setup("fit")
        if cli.datamodule.fingerprint != run.manifest.get("data"):
            changes = ["the source has changed since"]
    if changes:
        console.warn(
            f"rows that the run was trained on may be among those scored: {'; '.join(changes)}."
        )


def apply_calibration(model: LightningModule, checkpoint: Path) -> Calibration | None:
    """Apply and print the calibration that `validate` fitted for the checkpoint of our model."""
    if not isinstance(model, Model):
        return None
    applied, warning = calibration.apply(model, checkpoint)
    if first_process() and applied:
        console.say(f"calibrated: {applied}")
    elif first_process() and warning:
        console.warn(warning)
    return applied


def run_loop(
    verb: Literal["validate", "test", "predict"],
    restored: RestoredRun,
    writer: PredictionWriter,
    log: bool = True,
) -> Trainer:
    """Run Lightning's loop of a verb with the restored checkpoint, and return its Trainer.

    ``writer`` writes the predictions, except with ``fast_dev_run``. Without ``log``, no logger gets
    the metrics.
    """
    cli = restored.cli
    callbacks: list[Callback] = [] if restored.fast_dev_run else [writer]
    logs = log and not restored.fast_dev_run
    loggers = evaluation_loggers(cli, restored.run) if logs else []
    trainer = cli.build_trainer(restored.run.path, callbacks, loggers=loggers)
    keep_freed_memory(trainer.strategy.root_device)
    options = {"return_predictions": False} if verb == "predict" else {"verbose": False}
    with signal_exit_codes(trainer), as_user_error(f"{verb} fails"):
        getattr(trainer, verb)(
            cli.model,
            datamodule=cli.datamodule,
            ckpt_path=restored.checkpoint,
            weights_only=True,
            **options,
        )
    return trainer
