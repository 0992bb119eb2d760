"""Write a baseline as a run folder: config, manifest, metrics and predictions."""

from typing import Any

import torch

from proj.data.base import DataModule
from proj.engine.baselines.fitting import FittedBaseline, targets_of
from proj.engine.callbacks.prediction_writer import add_source_columns
from proj.engine.evaluation.artifacts import save_artifacts
from proj.engine.evaluation.ensemble_weights import row_losses
from proj.engine.evaluation.prediction_set import PredictionSet, average_of, predictions_in
from proj.engine.evaluation.results import run_seed
from proj.engine.evaluation.scoring import Metrics, add_intervals
from proj.engine.runs.contents import BaselineFacts, metric_entries, write_metrics
from proj.engine.runs.files import atomic_write, write_json
from proj.engine.runs.locks import lock_run, replace_results
from proj.engine.runs.manifest import record_manifest
from proj.engine.runs.predictions import frame
from proj.engine.runs.run import Run
from proj.engine.yaml_text import yaml_document
from proj.metrics.stage import StageMetrics
from proj.schema import Schema

# The verb whose results a split has.
VERBS = {"val": "validate", "test": "test"}


def write_run(
    run: Run,
    baseline: FittedBaseline,
    experiment: dict[str, Any],
    data: DataModule,
    command: list[str],
    start: str,
    seconds: float,
) -> None:
    """Write a fitted baseline into its new run folder.

    Args:
        run: the run, whose folder is empty.
        baseline: the baseline.
        experiment: the experiment whose data and seed it has, as plain values.
        data: the data module.
        command: the command line, for the manifest.
        start: when fitting started.
        seconds: how long it took.
    """
    assert data.schema is not None
    config = _config(baseline, experiment)
    facts: BaselineFacts = {
        "learner": baseline.name,
        "title": baseline.title,
        "seconds": round(seconds, 3),
    }
    findings = [finding._asdict() for finding in data.findings]
    atomic_write(run.path / "config.yaml", lambda file: file.write(yaml_document(config).encode()))
    write_json(run.path / "schema.json", data.schema.to_dict())
    write_json(run.path / "findings.json", findings)
    seed, cpu = experiment["seed_everything"], torch.device("cpu")
    with (
        lock_run(run),
        record_manifest(run, command, seed, data.fingerprint, cpu, start=start, baseline=facts),
    ):
        for split in VERBS:
            if data.rows(split):
                _write_results(run, baseline, data, data.schema, split)


def _config(baseline: FittedBaseline, experiment: dict[str, Any]) -> dict[str, Any]:
    """Return the config of a baseline's run: the experiment with the estimator as its model."""
    facts: dict[str, Any] = {"learner": baseline.name}
    if baseline.trees:
        facts["trees"] = baseline.trees[0] if len(baseline.trees) == 1 else baseline.trees
    config = {
        "baseline": facts,
        "seed_everything": experiment["seed_everything"],
        "trainer": {},
        "model": {"class_path": baseline.class_path, "init_args": baseline.settings},
        "data": experiment["data"],
    }
    average = (experiment["model"].get("init_args") or {}).get("average")
    return config if average is None else {**config, "average": average}


def _write_results(
    run: Run, baseline: FittedBaseline, data: DataModule, schema: Schema, split: str
) -> None:
    """Write predictions, metrics and artifacts of a split, as `validate` and `test` do."""
    batch, verb = data.splits[split], VERBS[split]
    output, target = baseline.predict(batch), targets_of(batch)
    weight = None if batch.weight is None else batch.weight.numpy()
    table = frame(schema, batch.row.numpy(), output, target, weight=weight)
    table = add_source_columns(table, data, split)
    predictions = predictions_in(table, run, schema, None)
    metrics = metrics_of(run, predictions, schema, split)
    metrics = add_intervals(metrics, predictions, schema, run_seed(run))
    with replace_results(run, verb):
        atomic_write(run.path / verb / "predictions.parquet", table.write_parquet)
        if split == "test":
            # A baseline has no inputs of its own, and the messages about them are those of `test`.
            list(save_artifacts(run, data, schema, predictions))
        write_metrics(run.path / verb / "metrics.json", metrics)


def metrics_of(run: Run, predictions: PredictionSet, schema: Schema, split: str) -> Metrics:
    """Return the metrics of predictions as a model logs them, with the loss without options.

    Args:
        run: the run, for the average of its metrics.
        predictions: predictions of the split.
        schema: the schema of the data.
        split: ``val`` or ``test``.
    """
    metrics = StageMetrics(schema, split, average=average_of(run))
    loss, rows = predictions.mean(row_losses(predictions, schema)), len(predictions)
    weight = None if predictions.weight is None else torch.tensor(predictions.weight)
    metrics.update(
        torch.tensor(predictions.output),
        torch.tensor(predictions.target),
        torch.tensor([loss], dtype=torch.float64),
        torch.tensor([rows], dtype=torch.float64),
        row_weights=weight,
    )
    return metric_entries({name: value.item() for name, value in metrics.compute().items()})
