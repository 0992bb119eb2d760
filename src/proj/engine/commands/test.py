"""Compute a run's metrics on the test split, with predictions and report."""

from proj.data.base import DataModule
from proj.engine import console
from proj.engine.callbacks.prediction_writer import PredictionWriter
from proj.engine.evaluation.artifacts import save_artifacts
from proj.engine.evaluation.baseline import constant_baseline
from proj.engine.evaluation.conformal import conformal_metrics
from proj.engine.evaluation.ensemble import evaluate_ensemble, named_ensemble
from proj.engine.evaluation.leaderboard import compare_with_best
from proj.engine.evaluation.loggers import log_results
from proj.engine.evaluation.own_metrics import own_intervals, own_metrics
from proj.engine.evaluation.prediction_set import predictions_in
from proj.engine.evaluation.report import write_report
from proj.engine.evaluation.restore import RestoredRun, apply_calibration, restore, run_loop
from proj.engine.evaluation.results import (
    has_tensorboard,
    logged_metrics,
    run_seed,
    save_metrics,
    show_location,
)
from proj.engine.evaluation.scoring import Metrics, add_intervals, small_sample_warnings
from proj.engine.runs import calibration
from proj.engine.runs.calibration import Calibration
from proj.engine.runs.locks import replace_results
from proj.engine.runs.run import Run
from proj.engine.training.data_checks import describe_positive, is_streamed
from proj.models.base import Model


def test(args: list[str]) -> None:
    """Compute a run's metrics on the test split, save the predictions and write the report."""
    if ensemble := named_ensemble("test", args):
        evaluate_ensemble("test", ensemble)
        return
    restored = restore("test", args)
    run, cli, checkpoint, _ = restored
    applied = apply_calibration(cli.model, checkpoint)
    writer = PredictionWriter(run.path / "test" / "predictions.parquet", deferred=True)
    trainer = run_loop("test", restored, writer)
    if not trainer.is_global_zero:
        return
    if restored.fast_dev_run:
        console.say("fast_dev_run: completed; nothing is saved.")
        return
    metrics = logged_metrics(trainer.callback_metrics, "test")
    if writer.has_answers and isinstance(cli.model, Model):
        metrics = _score(restored, writer, applied, metrics)
    else:
        with replace_results(run, "test"):
            _write_predictions(run, writer, applied)
            save_metrics(run, "test", checkpoint.name, metrics, [], writer.table is not None)
    log_results(trainer.loggers, run, checkpoint, metrics)
    show_location(run)


def _score(
    restored: RestoredRun, writer: PredictionWriter, applied: Calibration | None, metrics: Metrics
) -> Metrics:
    """Score one of our models: save metrics with intervals, artifacts and the report.

    Returns the metrics with their intervals.
    """
    run, cli, checkpoint, step = restored
    schema, data = cli.model.schema, cli.datamodule
    assert schema is not None
    assert writer.table is not None
    if line := describe_positive(data, schema, " and train again"):
        console.say(line)
    predictions = predictions_in(writer.table, run, schema, applied)
    own = own_intervals(own_metrics(cli.model), predictions, run_seed(run))
    metrics = add_intervals(metrics, predictions, schema, run_seed(run), own)
    if applied is not None:
        limits = applied.conformal_limits(schema)
        metrics |= conformal_metrics(predictions, limits, schema.target_names, run_seed(run))
    warnings = small_sample_warnings(metrics, schema.task, "test")
    with replace_results(run, "test"):
        _write_predictions(run, writer, applied)
        is_ours = isinstance(data, DataModule)
        omissions = list(save_artifacts(run, data, schema, predictions)) if is_ours else []
        baseline = constant_baseline(predictions, schema)
        remarks = [] if baseline is None else [str(baseline)]
        if is_ours and not is_streamed(data):
            remarks.append(compare_with_best(run, predictions))
        save_metrics(run, "test", checkpoint.name, metrics, warnings, True, schema.task, remarks)
        for omission in omissions:
            console.say(omission)
        tensorboard_step = step if has_tensorboard(run) else None
        report = write_report(run, schema, predictions, metrics, tensorboard_step)
        console.say(f"report: {report}")
    return metrics


def _write_predictions(run: Run, writer: PredictionWriter, applied: Calibration | None) -> None:
    if writer.table is not None:
        writer.write()
    else:
        writer.path.unlink(missing_ok=True)  # predictions of an earlier call
    calibration.save_applied(applied, run.path / "test")
