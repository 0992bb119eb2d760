"""Write the report of a run: everything in its folder as one HTML page."""

import logging
import shlex
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from proj.engine import PACKAGE, html
from proj.engine.console import number, plural
from proj.engine.evaluation import calibrate, report_results, report_sections
from proj.engine.evaluation.counts import headline_metric
from proj.engine.evaluation.figure_sets import (
    NamedFigure,
    figures_of,
    learning,
    log_figures,
    reliability,
)
from proj.engine.evaluation.leaderboard import leaderboard
from proj.engine.evaluation.prediction_set import PredictionSet
from proj.engine.evaluation.results import run_seed
from proj.engine.evaluation.scoring import Metrics
from proj.engine.html import Html, Section
from proj.engine.runs import calibration
from proj.engine.runs.contents import flatten_config
from proj.engine.runs.files import atomic_write
from proj.engine.runs.run import Run
from proj.engine.yaml_text import yaml_document
from proj.errors import UserError
from proj.schema import Array, Finding, Schema

# Points that are read of a learning curve.
MAX_CURVE_POINTS = 1_000


def write_report(
    run: Run,
    schema: Schema,
    predictions: PredictionSet,
    metrics: Metrics,
    tensorboard_step: int | None = None,
) -> Path:
    """Write ``report.html`` into the run's folder and return its path.

    Args:
        run: a run that has been tested; everything else is read from its folder.
        schema: the schema of its data.
        predictions: the predictions of the test split.
        metrics: the metrics of the test split with their intervals.
        tensorboard_step: optimizer step at which the figures are logged to TensorBoard; None logs
            none.
    """
    figures = list(figures_of(predictions))
    path = run.path / "report.html"
    content = html.page(
        f"Run {run.path.name}",
        report_results.opening(run, schema, predictions, metrics),
        _sections(run, schema, predictions, metrics, figures),
    )
    atomic_write(path, lambda file: file.write(content.encode()))
    if tensorboard_step is not None:
        # `report` writes nothing for TensorBoard, whose import takes a while.
        from torch.utils.tensorboard import SummaryWriter

        with SummaryWriter(str(run.path)) as writer:
            log_figures(writer, "test", figures, tensorboard_step)
    return path


def _sections(
    run: Run,
    schema: Schema,
    predictions: PredictionSet,
    metrics: Metrics,
    figures: list[NamedFigure],
) -> Iterator[Section]:
    columns = report_sections.saved_columns(run, predictions)
    captioned = [(figure.figure, figure.caption) for figure in figures]
    mistakes = report_sections.mistakes(run, predictions, columns)
    slices = report_sections.worst_slices(predictions, columns, metrics, run_seed(run))
    missing_values = report_sections.missing_values(schema, predictions, columns)
    results = list(report_results.results(metrics, predictions, run))
    yield Section("Results on the test split", results)
    yield Section("Leaderboard", list(leaderboard(run, predictions, metrics)))
    yield Section("Figures", [html.figures(*captioned)] if captioned else [])
    yield Section("Calibration", list(_calibration(run, predictions)))
    yield Section("Mistakes", list(mistakes))
    yield Section("Slices", list(slices))
    yield Section("Importance of the columns", list(report_sections.importance(run)))
    yield Section("Training", list(_training(run, schema)))
    *texts, last = _data(run, schema, predictions)
    beside = html.beside(last, Html("\n").join(missing_values))
    yield Section("Data", [*texts, beside])
    yield Section("Reproduce this run", list(_reproduce(run)))


# Calibration


def _calibration(run: Run, predictions: PredictionSet) -> Iterator[Html]:
    """Yield the effect of the calibration that `test` applied and saved beside its metrics."""
    applied = run.path / "test" / calibration.FILE
    if predictions.missing or not applied.is_file():
        return
    fitted = calibration.read(applied)
    before = calibrate.uncalibrated(predictions, fitted)
    description = str(fitted)
    yield html.text(
        f"{description[0].upper()}{description[1:]}; fitted on "
        f"{plural(fitted.rows, 'validation row')} for {fitted.checkpoint}. Metrics of the "
        "validation split are those of the uncalibrated model."
    )
    changes = calibrate.compare_calibration(before, predictions, fitted)
    rows = [[name, number(old), number(new)] for name, old, new in changes]
    caption, header = "The test split without and with calibration", ["metric", "before", "after"]
    if rows:
        yield html.table(caption, header, rows, numbers=2)
    if fitted.thresholds is not None and len(fitted.thresholds) > 1:
        lines = [[name, f"{threshold:.3g}"] for name, threshold in fitted.thresholds.items()]
        yield html.table("Thresholds", ["label", "threshold"], lines, numbers=1)
    if fitted.temperature is not None:
        yield html.figures(
            reliability(before, "Before calibration"), reliability(predictions, "After calibration")
        )


# Training and data


def _training(run: Run, schema: Schema) -> Iterator[Html]:
    metrics = list(dict.fromkeys(["loss", headline_metric(schema.task)]))
    curves = list(learning(read_scalars(run), metrics))
    if curves:
        yield html.figures(*curves)
    rows = [[key, str(value)] for key, value in flatten_config(run.config).items()]
    table = html.table("The experiment", ["setting", "value"], rows)
    yield html.folded(f"The experiment: {plural(len(rows), 'setting')}", table)


def read_scalars(run: Run) -> dict[str, tuple[Array, Array]]:
    """Return the optimizer steps and values of each scalar in a run's TensorBoard files."""
    if not any(run.path.glob("events.out.tfevents.*")):
        return {}
    # Importing it takes a second, and not every run needs it.
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    # It would warn of steps that a resumed run wrote twice, which is correct.
    logging.getLogger("tensorboard").setLevel(logging.ERROR)
    accumulator = EventAccumulator(str(run.path), size_guidance={"scalars": MAX_CURVE_POINTS})
    try:
        accumulator.Reload()
    except OSError as error:
        raise UserError(
            f"{run.path}: expected curves of TensorBoard that can be read, got: {error}; remove "
            "what is named there."
        ) from error
    scalars = {}
    for tag in accumulator.Tags()["scalars"]:
        events = accumulator.Scalars(tag)
        steps, values = [event.step for event in events], [event.value for event in events]
        scalars[tag] = (np.array(steps), np.array(values))
    return scalars


def _data(run: Run, schema: Schema, predictions: PredictionSet) -> Iterator[Html]:
    group = predictions.group
    groups = "" if group is None else f", in {plural(len(np.unique(group)), 'group')}"
    training, test = plural(schema.rows, "training row"), plural(len(predictions), "test row")
    yield html.text(f"{training}, {test}{groups}.")
    if findings := report_results.read_findings(run):
        yield html.note("Findings of the data checks and of training:")
        yield html.listed(str(Finding(**finding)) for finding in findings)
    if not schema.class_counts:
        return
    test_counts = predictions.hits.sum(axis=0).tolist()
    if predictions.task == "binary":
        test_counts = [len(predictions) - test_counts[0], test_counts[0]]
    rows = []
    counts = zip(schema.class_names, schema.class_counts, test_counts, strict=True)
    for name, train, test in counts:
        train_share, test_share = train / max(1, schema.rows), test / len(predictions)
        rows.append([name, str(train), f"{train_share:.1%}", str(test), f"{test_share:.1%}"])
    header = ["class", "training rows", "share", "test rows", "share"]
    yield html.table("How often each class occurs", header, rows, numbers=4)


def _reproduce(run: Run) -> Iterator[Html]:
    manifest = run.manifest
    commit = "not in a repository"
    if git := manifest.get("git"):
        commit = f"{git['commit']}{', with changes' if git.get('dirty') else ''}"
    packages, hardware = manifest.get("packages", {}), manifest.get("hardware", {})
    facts = {
        "command": " ".join(manifest.get("command", [])),
        "seed": manifest.get("seed"),
        "commit": commit,
        "data": manifest.get("data"),
        "packages": ", ".join(f"{name} {version}" for name, version in packages.items()),
        "hardware": ", ".join(f"{key} {value}" for key, value in hardware.items()),
        "start": manifest.get("start"),
        "end": manifest.get("end"),
    }
    rows = [[key, str(value)] for key, value in facts.items()]
    yield html.table("The run", ["what", "value"], rows)
    if run.baseline:
        words = shlex.join(manifest.get("command", []))
        yield html.text("Fit the baselines again, with the experiment that they are of:")
        yield html.code(f"python -m {PACKAGE} {words}")
    elif run.ensemble:
        words = shlex.join(manifest.get("command", []))
        yield html.text("Make the ensemble again, from the runs of its members:")
        yield html.code(f"python -m {PACKAGE} {words}")
    else:
        yield html.text("Save the configuration as experiment.yaml and train again:")
        yield html.code(f"python -m {PACKAGE} fit --config experiment.yaml")
    yield html.folded("The configuration", html.code(yaml_document(run.config)))
