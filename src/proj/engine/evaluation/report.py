"""The verb report: all that a run's folder tells, as one page."""

import argparse
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from torch.utils.tensorboard import SummaryWriter

from proj.data.base import Finding
from proj.engine import PACKAGE, console, html
from proj.engine.callbacks.monitoring import flatten_config
from proj.engine.console import number
from proj.engine.evaluation import by_column, by_row, calibrate
from proj.engine.evaluation.figure_sets import figures_of, learning, reliability
from proj.engine.evaluation.prediction_set import Array, PredictionSet
from proj.engine.evaluation.scoring import Entries, load_predictions, small_sample_warnings
from proj.engine.evaluation.tensorboard import log_figures
from proj.engine.html import Html, Section
from proj.engine.runs import calibration
from proj.engine.runs.run import Run, atomic_write, find_run, read_checkpoint, read_json
from proj.errors import UserError
from proj.metrics import DEFAULT_MONITOR, metric_info
from proj.schema import Schema

SCALARS = 1_000  # points of a learning curve that are read


def report(args: list[str]) -> None:
    """Write the page of a run that has been tested."""
    parser = parser_of("report", "Write report.html for a run that has been tested.")
    parser.add_argument(
        "run", nargs="?", help="a run's name or folder; the newest finished one if not given"
    )
    run = find_run(Path("lightning_logs"), parser.parse_args(args).run)
    console.say(f"report: {write_report(run, schema_of(run))}")


def parser_of(verb: str, what: str) -> argparse.ArgumentParser:
    """The parser of one of this room's verbs: a mistake is a UserError."""

    def refuse(message: str) -> Any:
        raise UserError(f"{verb}: {message}.")

    parser = argparse.ArgumentParser(
        f"python -m {PACKAGE} {verb}", description=what, allow_abbrev=False
    )
    parser.error = refuse  # type: ignore[method-assign]
    return parser


def schema_of(run: Run) -> Schema:
    """The schema that the run's checkpoint carries."""
    schema = read_checkpoint(run.checkpoint("best")).get("schema")
    if not schema:
        raise UserError(
            f"{run.path}: expected a run of one of our models, its checkpoint has no schema; read "
            "test/metrics.json instead."
        )
    return Schema.from_dict(schema)


def write_report(run: Run, schema: Schema, step: int | None = None) -> Path:
    """``report.html`` in the run's folder, from what is there alone.

    With the optimizer ``step`` of the checkpoint that was tested, TensorBoard is shown the figures, too.
    """
    scored = run.path / "test" / "metrics.json"
    if not scored.is_file() or not scored.with_name("predictions.parquet").is_file():
        raise UserError(
            f"{run.path} has not been tested: expected {scored} and the predictions beside it; run "
            f"`test --run {run.path.name}` first."
        )
    metrics: Entries = read_json(scored)
    outcomes = load_predictions(run, "test", schema)
    drawn = list(figures_of(outcomes))
    sections = [
        Section("Result on the test part", list(_result(metrics, outcomes, run))),
        Section(
            "Figures",
            [html.figures(*((figure, caption) for _, figure, caption in drawn))] if drawn else [],
        ),
        Section("Calibration", list(_calibration(run, outcomes))),
        Section("Mistakes", list(by_row.mistakes(run, outcomes))),
        Section(
            "Slices",
            list(
                by_column.worst_slices(
                    run, outcomes, metrics.get(DEFAULT_MONITOR[schema.task].split("/")[1], {})
                )
            ),
        ),
        Section("Importance of the columns", list(by_column.importance(run))),
        Section("Training", list(_training(run, schema))),
        Section("Data", list(_data(run, schema, outcomes))),
        Section("How the intervals were made", [html.listed(_methods(metrics))]),
        Section("Do it again", list(_again(run))),
    ]
    path = run.path / "report.html"
    content = html.page(f"Run {run.path.name}", _lead(run, schema, metrics), sections)
    atomic_write(path, lambda file: file.write(content.encode()))
    if step is not None:
        with SummaryWriter(str(run.path)) as writer:
            log_figures(writer, "test", drawn, step)
    return path


def _lead(run: Run, schema: Schema, metrics: Entries) -> Html:
    name, manifest, config = (
        DEFAULT_MONITOR[schema.task].split("/")[1],
        run.manifest,
        flatten_config(run.config),
    )
    model, net, data = (
        str(config.get(key, "")).rpartition(".")[2] for key in ("model", "model.net", "data")
    )
    what = f"{model}{f' with the net {net}' if net else ''} on {config.get('data.path', data)}, {schema.task}."
    status = manifest["status"] + (
        f" on {manifest['end'][:16].replace('T', ' at ')} UTC" if manifest.get("end") else ""
    )
    return Html(
        html.text(what)
        + html.text(f"{name} {with_limits(metrics.get(name, {}))}. Training {status}.")
    )


def with_limits(entry: dict[str, Any]) -> str:
    """A value and its interval in words."""
    limits = (
        "" if entry.get("low") is None else f" ({number(entry['low'])} to {number(entry['high'])})"
    )
    return number(entry.get("value")) + limits


def _result(metrics: Entries, outcomes: PredictionSet, run: Run) -> Iterator[Html]:
    for line in small_sample_warnings(metrics, outcomes.task):
        yield html.note(line[0].upper() + line[1:])
    if outcomes.missing:
        yield html.note(
            f"{outcomes.missing} of {len(outcomes)} predictions are no numbers, so there are no figures, "
            "mistakes and slices."
        )
    validated = run.path / "validate" / "metrics.json"
    other: Entries = read_json(validated) if validated.is_file() else {}
    rows = []
    for name, entry in metrics.items():
        if "/" not in name:
            known = metric_info(name)
            limits = [
                number(entry[side]) if entry.get(side) is not None else ""
                for side in ("low", "high")
            ]
            more = [with_limits(other.get(name, {}))] if other else []
            value = html.remarked(number(entry.get("value")), entry.get("why", ""))
            rows.append(
                [
                    name,
                    known.unit if known else "",
                    value,
                    *limits,
                    str(entry.get("support", "")),
                    *more,
                ]
            )
    header = [
        "metric",
        "unit",
        "value",
        "from",
        "to",
        "rows",
        *(["on the validation part"] if other else []),
    ]
    yield html.table("Metrics with 95 % intervals", header, rows, numbers=len(header) - 2)
    single = [name.split("/", 1) for name in metrics if "/" in name]
    if single:
        kinds, names = (list(dict.fromkeys(part[i] for part in single)) for i in (0, 1))
        lines = [
            [
                of,
                str(metrics.get(f"{kinds[0]}/{of}", {}).get("support", "")),
                *(_cell(metrics.get(f"{kind}/{of}", {})) for kind in kinds),
            ]
            for of in names
        ]
        what = {"multilabel": "label", "regression": "target"}.get(outcomes.task, "class")
        yield html.table(f"For each {what}", [what, "rows", *kinds], lines, numbers=len(kinds) + 1)


def _cell(entry: dict[str, Any]) -> Html:
    limits = (
        "" if entry.get("low") is None else f"{number(entry['low'])} to {number(entry['high'])}"
    )
    return html.remarked(number(entry.get("value")), limits)


def _calibration(run: Run, outcomes: PredictionSet) -> Iterator[Html]:
    """What the calibration that `test` applied has changed; it keeps a copy beside its metrics."""
    applied = run.path / "test" / calibration.FILE
    if outcomes.missing or not applied.is_file():
        return
    found = calibration.read(applied)
    before = calibrate.uncalibrated(outcomes, found)
    what = str(found)
    yield html.text(
        f"{what[0].upper()}{what[1:]}; fitted on {found.rows} validation rows for {found.checkpoint}. "
        "Metrics of the validation part are of the model without it."
    )
    rows = [
        [name, number(a), number(b)] for name, a, b in calibrate.compared(before, outcomes, found)
    ]
    yield html.table(
        "The test part without and with it", ["metric", "before", "after"], rows, numbers=2
    )
    if found.thresholds is not None and len(found.thresholds) > 1:
        lines = [[name, f"{at:.3g}"] for name, at in found.thresholds.items()]
        yield html.table("Thresholds", ["label", "threshold"], lines, numbers=1)
    if found.temperature is not None:
        yield html.figures(
            reliability(before, "Before calibrating"), reliability(outcomes, "After calibrating")
        )


def _training(run: Run, schema: Schema) -> Iterator[Html]:
    wanted = list(dict.fromkeys(["loss", DEFAULT_MONITOR[schema.task].split("/")[1]]))
    drawn = list(learning(scalars(run), wanted))
    if drawn:
        yield html.figures(*drawn)
    rows = [[key, str(value)] for key, value in flatten_config(run.config).items()]
    yield html.table("The experiment", ["setting", "value"], rows)


def scalars(run: Run) -> dict[str, tuple[Array, Array]]:
    """What TensorBoard was told: steps and values by tag."""
    if not any(run.path.glob("events.out.tfevents.*")):
        return {}
    from tensorboard.backend.event_processing.event_accumulator import (
        EventAccumulator,  # a second, for runs that need it
    )

    # of a run that went on, it would say that what comes after the step to go on from was drawn anew
    logging.getLogger("tensorboard").setLevel(logging.ERROR)
    events = EventAccumulator(str(run.path), size_guidance={"scalars": SCALARS})
    events.Reload()
    found = {tag: events.Scalars(tag) for tag in events.Tags()["scalars"]}
    return {
        tag: (np.array([e.step for e in of]), np.array([e.value for e in of]))
        for tag, of in found.items()
    }


def _data(run: Run, schema: Schema, outcomes: PredictionSet) -> Iterator[Html]:
    groups = "" if outcomes.group is None else f", in {len(np.unique(outcomes.group))} groups"
    yield html.text(f"{schema.rows} training rows, {len(outcomes)} test rows{groups}.")
    findings = run.path / "findings.json"
    found = read_json(findings) if findings.is_file() else []
    if found:
        yield html.note("What is odd about the data:")
        yield html.listed(str(Finding(**finding)) for finding in found)
    if schema.class_counts:
        there = outcomes.hits.sum(axis=0)
        there = (
            np.array([len(outcomes) - there[0], there[0]]) if outcomes.task == "binary" else there
        )
        rows = [
            [
                name,
                str(train),
                f"{train / max(1, schema.rows):.1%}",
                str(test),
                f"{test / len(outcomes):.1%}",
            ]
            for name, train, test in zip(
                schema.class_names, schema.class_counts, there, strict=True
            )
        ]
        header = ["class", "training rows", "share", "test rows", "share"]
        yield html.table("How often each class occurs", header, rows, numbers=4)
    yield from by_column.missing(run, schema, outcomes)


def _methods(metrics: Entries) -> Iterator[str]:
    """Which metrics have their interval by which method."""
    for method in dict.fromkeys(
        entry["method"] for entry in metrics.values() if entry.get("method")
    ):
        names = list(
            dict.fromkeys(
                name.split("/")[0] + ("/…" if "/" in name else "")
                for name, entry in metrics.items()
                if entry.get("method") == method
            )
        )
        yield f"{', '.join(names)}: {method}"
    yield (
        "Precision and F1 are of as many rows as the model happens to predict; the interval takes that number as it is."
        if any(name.split("/")[0] == "f1" for name in metrics)
        else "Errors of few rows with rare large ones are wider than any interval from these rows can know."
    )


def _again(run: Run) -> Iterator[Html]:
    manifest = run.manifest
    git = manifest.get("git") or {}
    facts = {
        "command": " ".join(manifest.get("command", [])),
        "seed": manifest.get("seed"),
        "commit": f"{git['commit']}{', with changes' if git.get('dirty') else ''}"
        if git
        else "not in a repository",
        "data": manifest.get("data"),
        "packages": ", ".join(
            f"{name} {version}" for name, version in manifest.get("packages", {}).items()
        ),
        "hardware": ", ".join(
            f"{key} {value}" for key, value in manifest.get("hardware", {}).items()
        ),
        "start": manifest.get("start"),
        "end": manifest.get("end"),
    }
    yield html.table(
        "The run", ["what", "value"], [[key, str(value)] for key, value in facts.items()]
    )
    yield html.text("This, saved as experiment.yaml, does the same again:")
    yield html.code(f"python -m {PACKAGE} fit --config experiment.yaml")
    yield html.code(yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True))
