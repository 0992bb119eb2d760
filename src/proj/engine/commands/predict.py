"""Write a run's predictions for new rows."""

from pathlib import Path

from proj.data.base import DataModule, split_names
from proj.engine import console
from proj.engine.callbacks.prediction_writer import PredictionWriter
from proj.engine.config.experiment import ExperimentCLI, first_process
from proj.engine.evaluation.ensemble import NamedEnsemble, named_ensemble, predict_ensemble
from proj.engine.evaluation.restore import apply_calibration, restore, run_loop
from proj.engine.runs.ensemble import members_of, require_models
from proj.engine.runs.files import atomic_write
from proj.engine.runs.predictions import escape_formulas, writer
from proj.engine.runs.run import Run
from proj.errors import UserError


def predict(args: list[str]) -> None:
    """Write a run's predictions for new rows."""
    if ensemble := named_ensemble("predict", args):
        _predict_ensemble(ensemble)
        return
    restored = restore("predict", args)
    cli = restored.cli
    apply_calibration(cli.model, restored.checkpoint)
    path = _output_path(cli, restored.run)
    columns = cli.option("keep")
    prediction_writer = PredictionWriter(
        path, split_names(columns, "--keep") if columns else [], bool(cli.option("escape_formulas"))
    )
    data = cli.datamodule
    if first_process() and isinstance(data, DataModule) and data.predict_path is None:
        console.say("no data.predict_path is given, so the rows of the test split are predicted")
    trainer = run_loop("predict", restored, prediction_writer)
    if trainer.is_global_zero and not restored.fast_dev_run:
        console.say(f"predictions: {path}")


def _predict_ensemble(ensemble: NamedEnsemble) -> None:
    """Write the averaged predictions of an ensemble's members."""
    run = ensemble.run
    require_models(run, members_of(run))
    cli = ExperimentCLI("predict", [members_of(run)[0].run.config], ensemble.flags, False)
    path = _output_path(cli, run)
    table, _ = predict_ensemble("predict", run, ensemble.flags)
    if cli.option("escape_formulas"):
        table = escape_formulas(table)
    atomic_write(path, lambda file: writer(path)(table, file))
    console.say(f"predictions: {path}")


def _output_path(cli: ExperimentCLI, run: Run) -> Path:
    """Return the file to write; raise UserError if it cannot be written.

    This is called before the forward passes, so that a wrong name wastes no time.
    """
    path = Path(cli.option("output") or run.path / "predict" / "predictions.parquet")
    writer(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output: cannot write to {path}: {error}.") from error
    if path.is_dir():
        raise UserError(f"--output: expected a file, got the folder {path}.")
    return path
