"""Compute a run's metrics on the test split, with predictions and report."""

from pathlib import Path
from typing import Any

from proj.data.base import DataModule
from proj.engine import console
from proj.engine.callbacks.prediction_writer import PredictionWriter
from proj.engine.evaluation.artifacts import save_artifacts
from proj.engine.evaluation.prediction_set import load_predictions
from proj.engine.evaluation.report import write_report
from proj.engine.evaluation.restore import apply_calibration, restore, run_loop
from proj.engine.evaluation.results import (
    has_tensorboard,
    logged_metrics,
    run_seed,
    save_metrics,
    show_location,
)
from proj.engine.evaluation.scoring import Metrics, add_intervals, small_sample_warnings
from proj.engine.runs import calibration
from proj.engine.runs.run import Run
from proj.models.base import Model


def test(args: list[str]) -> None:
    """Compute a run's metrics on the test split, save the predictions and write the report."""
    restored = restore("test", args)
    run, cli, checkpoint, step = restored
    applied = apply_calibration(cli.model, checkpoint)
    writer = PredictionWriter(run.path / "test" / "predictions.parquet")
    trainer = run_loop("test", restored, writer)
    if not trainer.is_global_zero:
        return
    if restored.fast_dev_run:
        console.say("fast_dev_run: completed; nothing is saved.")
        return
    metrics = logged_metrics(trainer.callback_metrics, "test")
    calibration.save_applied(applied, run.path / "test")
    if writer.written and isinstance(cli.model, Model):
        _score(run, cli.model, cli.datamodule, checkpoint, step, metrics)
    else:
        save_metrics(run, "test", checkpoint, metrics, [], writer.written)
    show_location(run)


def _score(
    run: Run,
    model: Model,
    data: Any,
    checkpoint: Path,
    step: int,
    metrics: Metrics,
) -> None:
    """Add intervals to the metrics of one of our models, save its artifacts, write the report."""
    assert model.schema is not None
    schema = model.schema
    predictions = load_predictions(run, "test", schema)
    metrics = add_intervals(metrics, predictions, schema, run_seed(run))
    warnings = small_sample_warnings(metrics, schema.task, "test")
    save_metrics(run, "test", checkpoint, metrics, warnings, has_predictions=True)
    if isinstance(data, DataModule):
        for omission in save_artifacts(run, data, schema, predictions):
            console.say(omission)
    tensorboard_step = step if has_tensorboard(run) else None
    report = write_report(run, schema, predictions, metrics, tensorboard_step)
    console.say(f"report: {report}")
