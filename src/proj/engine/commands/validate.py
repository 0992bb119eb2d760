"""Compute a run's metrics on the validation split; fit its calibration; rank its columns."""

from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from rich.table import Column, Table

from proj.data.base import DataModule
from proj.data.loader import take
from proj.engine import console
from proj.engine.callbacks.prediction_writer import PredictionWriter
from proj.engine.config.experiment import ExperimentCLI, first_process
from proj.engine.console import number
from proj.engine.evaluation import calibrate, conformal
from proj.engine.evaluation.artifacts import row_positions
from proj.engine.evaluation.calibrate import CalibrationRequest
from proj.engine.evaluation.counts import headline_metric
from proj.engine.evaluation.ensemble import evaluate_ensemble, named_ensemble
from proj.engine.evaluation.importance import REPEATS, Rows, importances, inputs_of, predictor
from proj.engine.evaluation.own_metrics import own_intervals, own_metrics
from proj.engine.evaluation.prediction_set import PredictionSet, predictions_in
from proj.engine.evaluation.restore import restore, run_loop
from proj.engine.evaluation.results import logged_metrics, run_seed, save_metrics, show_location
from proj.engine.evaluation.scoring import Metrics, add_intervals, small_sample_warnings
from proj.engine.runs import calibration
from proj.engine.runs.calibration import Calibration
from proj.engine.runs.files import write_json
from proj.engine.runs.locks import replace_results
from proj.engine.runs.run import Run
from proj.engine.training.data_checks import require_whole_splits
from proj.errors import UserError
from proj.models.base import Model
from proj.schema import Schema


def validate(args: list[str]) -> None:
    """Compute a run's metrics on the validation split.

    Depending on the flags, also fit a calibration and compute the importance of the columns.
    """
    if ensemble := named_ensemble("validate", args):
        evaluate_ensemble("validate", ensemble)
        return
    restored = restore("validate", args)
    run, cli, checkpoint, _ = restored
    wants_importance = bool(cli.config.get("importance"))
    if wants_importance:
        check_importance(cli.model, cli.datamodule, restored.fast_dev_run)
    request = _calibration_request(cli, checkpoint, restored.fast_dev_run)
    writer = PredictionWriter(run.path / "validate" / "predictions.parquet", deferred=True)
    trainer = run_loop("validate", restored, writer)
    if not trainer.is_global_zero:
        return
    if restored.fast_dev_run:
        console.say("fast_dev_run: completed; nothing is saved.")
        return
    metrics = logged_metrics(trainer.callback_metrics, "val")
    if writer.has_answers and isinstance(cli.model, Model):
        predictions = _score(run, cli.model, checkpoint, metrics, request, writer)
        if wants_importance:
            save_importance(run, trainer, cli.model, cli.datamodule, predictions, checkpoint)
    else:
        with replace_results(run, "validate"):
            _write_predictions(run, writer)
            save_metrics(run, "validate", checkpoint.name, metrics, [], writer.table is not None)
    show_location(run)


def _score(
    run: Run,
    model: Model,
    checkpoint: Path,
    metrics: Metrics,
    request: CalibrationRequest | None,
    writer: PredictionWriter,
) -> PredictionSet:
    """Add intervals to the metrics of one of our models, fit the calibration; return the rows."""
    assert model.schema is not None
    schema = model.schema
    assert writer.table is not None
    predictions = predictions_in(writer.table, run, schema, None)
    fitted = None
    if request is not None:
        fitted = calibrate.fit_calibration(request, predictions, schema, checkpoint)
    own = own_intervals(own_metrics(model), predictions, run_seed(run))
    metrics = add_intervals(metrics, predictions, schema, run_seed(run), own)
    warnings = small_sample_warnings(metrics, schema.task, "validation")
    with replace_results(run, "validate"):
        _write_predictions(run, writer)
        save_metrics(run, "validate", checkpoint.name, metrics, warnings, True, schema.task)
    if fitted is not None:
        show_calibration(fitted, predictions, schema)
        _save_calibration(fitted, checkpoint)
    return predictions


def _write_predictions(run: Run, writer: PredictionWriter) -> None:
    if writer.table is not None:
        writer.write()
    else:
        writer.path.unlink(missing_ok=True)  # predictions of an earlier call
    # The metrics of this split are those of the uncalibrated model.
    calibration.save_applied(None, run.path / "validate")


# Calibration


def _calibration_request(
    cli: ExperimentCLI, checkpoint: Path, fast_dev_run: bool
) -> CalibrationRequest | None:
    """Return what the flags ask to fit; None if they are not given."""
    calibrated, threshold, coverage = map(cli.option, ("calibrate", "threshold", "coverage"))
    if calibrated is threshold is coverage is None:
        path = checkpoint.with_name(calibration.FILE)
        if path.is_file() and first_process():
            console.say(f"{path} is not applied to the split it was fitted on")
        return None
    if fast_dev_run:
        raise UserError(
            "--calibrate, --threshold, --coverage: expected the whole validation split, got "
            "--trainer.fast_dev_run; leave it out."
        )
    task = cli.model.task if isinstance(cli.model, Model) else None
    if coverage is not None and isinstance(cli.model, Model):
        conformal.check_metric_names(cli.model.extra_metrics)
    return calibrate.parse_request(calibrated, threshold, task, coverage)


def show_calibration(fitted: Calibration, predictions: PredictionSet, schema: Schema) -> None:
    """Print what was fitted to the predictions, and what it changes there."""
    after = calibrate.calibrated(predictions, fitted, schema)
    console.say(f"fitted on {console.plural(fitted.rows, 'row')}: {fitted}")
    headings = [Column(name, justify="right") for name in ("before", "after")]
    table = Table("on the validation split", *headings)
    for name, *values in calibrate.compare_calibration(predictions, after, fitted):
        table.add_row(name, *map(number, values))
    if table.row_count:
        console.show(table)
        console.say(
            "the calibration was fitted on these rows, so this table is too optimistic; `test` "
            "gives an unbiased result."
        )
    if fitted.coverage is not None:
        limits = fitted.conformal_limits(schema)
        for line in conformal.fit_remarks(after, limits, fitted.coverage):
            console.say(line)
    for name, count in calibrate.rarely_predicted(after, fitted):
        console.warn(
            f"--threshold: only {console.plural(count, 'validation row')} "
            f"{'is' if count == 1 else 'are'} above the threshold of {name}; metrics of so few "
            "rows are mostly noise."
        )


def _save_calibration(fitted: Calibration, checkpoint: Path) -> None:
    path = checkpoint.with_name(calibration.FILE)
    fitted.write(path)
    console.say(
        f"calibration: {path}; test, predict and proj.load apply it until you delete the file"
    )


# Importance


def check_importance(model: Any, data: Any, fast_dev_run: bool) -> None:
    """Raise UserError unless the importance of columns can be computed."""
    if fast_dev_run:
        raise UserError(
            "--importance: expected the whole validation split, got trainer.fast_dev_run; leave "
            "one of them out."
        )
    if not isinstance(model, Model) or not isinstance(data, DataModule) or model.schema is None:
        raise UserError(
            "--importance: expected a model and a data module of this package, got "
            f"{type(model).__name__} and {type(data).__name__}; leave it out."
        )
    require_whole_splits(data, "--importance")
    inputs_of(model.schema)


def save_importance(
    run: Run,
    trainer: Trainer,
    model: Model,
    data: DataModule,
    predictions: PredictionSet,
    checkpoint: Path,
) -> None:
    """Write permutation importance to ``validate/importance.json``, and show it as a table.

    This process computes it alone, whatever the number of processes.
    """
    assert model.schema is not None
    columns, split = inputs_of(model.schema), data.splits["val"]
    console.say(
        f"importance: {console.plural(len(columns), 'column')} × {REPEATS} permutations, and once "
        f"unpermuted: {len(columns) * REPEATS + 1} passes over "
        f"{console.plural(len(predictions), 'validation row')}"
    )
    indices = row_positions(split, predictions.row)
    rows = Rows(split, indices, *predictor(trainer, model, take(split, indices[:2])))
    importance = importances(rows, predictions, columns, run_seed(run))
    entries = {name: entry.entry() for name, entry in importance.items()}
    metric = headline_metric(predictions.task)
    path = run.path / "validate" / "importance.json"
    content = {
        "metric": metric,
        "checkpoint": checkpoint.name,
        "rows": len(predictions),
        "repeats": REPEATS,
        "columns": entries,
    }
    write_json(path, content)
    console.show_importance(metric, entries)
    console.say(f"importance: {path}; `report {run.path.name}` adds it to the report")
