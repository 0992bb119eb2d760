"""The verb `predict`: write a run's predictions for new rows."""

from pathlib import Path

from proj.engine import console
from proj.engine.callbacks.prediction_writer import PredictionWriter
from proj.engine.config.experiment import ExperimentCLI
from proj.engine.evaluation.restore import apply_calibration, restore
from proj.engine.exit_codes import as_user_error, signal_exit_codes
from proj.engine.memory import keep_freed_memory
from proj.engine.runs.predictions import writer
from proj.engine.runs.run import Run
from proj.errors import UserError


def predict(args: list[str]) -> None:
    """Write a run's predictions for new rows."""
    run, cli, checkpoint, _ = restore("predict", args)
    apply_calibration(cli.model, checkpoint)
    path = _output_path(cli, run)
    keep = cli.option("keep")
    fast_dev_run = bool(cli.config_init.trainer.fast_dev_run)
    prediction_writer = PredictionWriter(path, keep.split(",") if keep else [])
    trainer = cli.build_trainer(run.path, [] if fast_dev_run else [prediction_writer])
    keep_freed_memory(trainer.strategy.root_device)
    with signal_exit_codes(trainer), as_user_error("predict fails"):
        trainer.predict(
            cli.model,
            datamodule=cli.datamodule,
            ckpt_path=checkpoint,
            weights_only=True,
            return_predictions=False,
        )
    if not fast_dev_run and trainer.is_global_zero:
        console.say(f"predictions: {path}")


def _output_path(cli: ExperimentCLI, run: Run) -> Path:
    """Return the file to write; raise UserError before the work if it cannot be written."""
    path = Path(cli.option("output") or run.path / "predict" / "predictions.parquet")
    writer(path)  # raises UserError for an unknown file name extension
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output: cannot write to {path}: {error}.") from error
    if path.is_dir():
        raise UserError(f"--output: expected a file, got the folder {path}.")
    return path
