"""Test whether runs differ on the same test rows."""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.table import Table

from proj.engine import console
from proj.engine.config.parser import VerbParser
from proj.engine.console import number, signed_like
from proj.engine.evaluation.limits import MIN_UNITS, unit_name
from proj.engine.evaluation.paired import (
    SIGNIFICANCE_LEVEL,
    Difference,
    differences,
    holm,
    metric_values,
)
from proj.engine.evaluation.prediction_set import PredictionSet, load_predictions
from proj.engine.evaluation.results import check_tested, read_schema
from proj.engine.runs import calibration
from proj.engine.runs.contents import flatten_config
from proj.engine.runs.files import atomic_write
from proj.engine.runs.find import find_run
from proj.engine.runs.locks import read_results
from proj.engine.runs.run import Run
from proj.errors import UserError
from proj.metrics import metric_info
from proj.schema import Task

# The columns after the name of a metric and its values in both runs.
HEADER = ("difference", "95 % interval", "p", "verdict", "test")

# The name of each setting, and its value in each run.
Settings = list[tuple[str, list[str]]]


class Comparison(NamedTuple):
    """A run's metrics minus those of the first run, with p-values adjusted for all runs.

    ``names`` and ``values`` are those of the first run and of the other one.
    """

    names: tuple[str, str]
    values: tuple[dict[str, float], dict[str, float]]
    differences: dict[str, Difference]
    p_values: dict[str, float]

    @property
    def title(self) -> str:
        return f"{self.names[1]} minus {self.names[0]}"


def compare(args: list[str]) -> None:
    """Show each run's metrics minus those of the first run, with intervals and p-values."""
    arguments = _parse(args)
    runs = [find_run(Path("lightning_logs"), name) for name in arguments.runs]
    if len({run.path.resolve() for run in runs}) < len(runs):
        raise UserError(f"compare: expected different runs, got {' '.join(arguments.runs)}.")
    predictions = [_read(run) for run in runs]
    names = [run.path.name for run in runs]
    for name, other in zip(names[1:], predictions[1:], strict=True):
        check_same_rows(names[0], predictions[0], name, other)
    _check_enough_rows(predictions[0])
    predictions = _with_one_average(names[0], predictions)
    comparisons = compare_with_first(names, predictions)
    differing = differing_settings(runs)
    for comparison in comparisons:
        _show(comparison, predictions[0])
    console.show(_settings_table(names, differing))
    if arguments.output:
        report = _html_report(names, predictions[0], comparisons, differing)
        atomic_write(Path(arguments.output), lambda file: file.write(report.encode()))
        console.say(f"report: {arguments.output}")


def _parse(args: list[str]) -> argparse.Namespace:
    parser = VerbParser("compare", "Compare runs with the first one, on the same test rows.")
    parser.add_argument(
        "runs", nargs="+", help="names or folders of two runs or more; the first is the reference"
    )
    parser.add_argument("--output", help="an .html file to write the comparison to as well")
    arguments = parser.parse_args(args)
    if len(arguments.runs) < 2:
        raise UserError(
            f"compare: expected two runs or more, got only {arguments.runs[0]}; name another."
        )
    if arguments.output and not arguments.output.endswith(".html"):
        raise UserError(f"--output: expected a name that ends in .html, got {arguments.output}.")
    return arguments


def _read(run: Run) -> PredictionSet:
    with read_results(run, "test"):
        check_tested(run, "predictions.parquet")
        return load_predictions(run, "test", read_schema(run))


def check_same_rows(first_name: str, first: PredictionSet, name: str, other: PredictionSet) -> None:
    """Raise UserError unless both runs have finite predictions of the same weighted rows."""
    if first.task != other.task or first.names != other.names:
        raise UserError(
            f"compare: expected runs of one task, got {first_name} "
            f"({first.task}: {', '.join(first.names[:5])}) and "
            f"{name} ({other.task}: {', '.join(other.names[:5])})."
        )
    if not np.array_equal(first.row, other.row):
        shared = len(np.intersect1d(first.row, other.row))
        raise UserError(
            f"compare: expected the same test rows, got {console.plural(len(first), 'row')} "
            f"of {first_name} and {len(other)} of {name} with {shared} in common; test both "
            "on one split."
        )
    if not np.array_equal(first.target, other.target):
        raise UserError(
            f"compare: expected the same targets, got different ones in {first_name} and {name}; "
            "test both on one source."
        )
    if not np.array_equal(first.weights, other.weights):
        raise UserError(
            f"compare: expected the same weights of rows, got different ones in {first_name} and "
            f"{name}; test both with one data.weight."
        )
    if first.missing or other.missing:
        run = first_name if first.missing else name
        raise UserError(f"compare: expected finite predictions, got others in {run}; leave it out.")


def _with_one_average(first_name: str, predictions: list[PredictionSet]) -> list[PredictionSet]:
    """Return the predictions with the average of the first run's metrics."""
    average = predictions[0].average
    if any(other.average != average for other in predictions):
        console.say(f"model.average differs: all metrics here are {average}, as in {first_name}")
    return [replace(one, average=average) for one in predictions]


def _check_enough_rows(predictions: PredictionSet) -> None:
    group = predictions.group
    count = len(predictions) if group is None else len(np.unique(group))
    if count < MIN_UNITS:
        kind = "test rows" if group is None else f"{unit_name(predictions)} of test rows"
        raise UserError(
            f"compare: expected {MIN_UNITS} {kind} or more, got {count}, which cannot "
            "show a difference."
        )


def compare_with_first(
    names: Sequence[str], predictions: Sequence[PredictionSet]
) -> list[Comparison]:
    """Compare each set of predictions with the first one."""
    by_run = [differences(predictions[0], other) for other in predictions[1:]]
    p_values: list[dict[str, float]] = [{} for _ in by_run]
    for metric in by_run[0]:
        adjusted = holm([run[metric].p for run in by_run])
        for values, p in zip(p_values, adjusted, strict=True):
            values[metric] = p
    first, *others = [metric_values(run) for run in predictions]
    pairs = zip(names[1:], others, by_run, p_values, strict=True)
    return [
        Comparison((names[0], name), (first, own), difference, p)
        for name, own, difference, p in pairs
    ]


def differing_settings(runs: Sequence[Run]) -> Settings:
    """Return the settings in which runs differ: those of their configs, and the calibration."""
    configs = [flatten_config(run.config) for run in runs]
    keys = list(dict.fromkeys(key for config in configs for key in config))
    rows = [(key, [str(config.get(key, "")) for config in configs]) for key in keys]
    rows.append(("calibration", [_calibration(run) for run in runs]))
    return [(key, values) for key, values in rows if len(set(values)) > 1]


def _calibration(run: Run) -> str:
    applied = run.path / "test" / calibration.FILE
    return str(calibration.read(applied)) if applied.is_file() else "none"


def verdict(metric: str, difference: Difference, p: float) -> str:
    """Return better, worse, or not significant, at a level of 5 %."""
    info = metric_info(metric)
    if p >= SIGNIFICANCE_LEVEL or info is None:
        return "not significant"
    return "better" if (difference.value > 0) == (info.mode == "max") else "worse"


def _table(comparison: Comparison, task: Task) -> tuple[list[str], list[list[str]]]:
    """Return the header and the rows of a comparison's table."""
    rows = []
    for metric, difference in comparison.differences.items():
        p = comparison.p_values[metric]
        own = [number(values[metric]) for values in comparison.values]
        value, low, high = (signed_like(limit, own) for limit in difference[:3])
        shown_p = f"{p:.3f}" if p >= 0.001 else "< 0.001"
        conclusion = verdict(metric, difference, p)
        cells = [value, f"{low} to {high}", shown_p, conclusion, difference.test]
        rows.append([console.shown_name(metric, task), *own, *cells])
    return ["metric", *comparison.names, *HEADER], rows


def _show(comparison: Comparison, predictions: PredictionSet) -> None:
    console.say(f"{comparison.title}, {console.plural(len(predictions), 'test row')}")
    header, rows = _table(comparison, predictions.task)
    # The last column, the name of the test, is in the HTML report only.
    header, rows = header[:-1], [row[:-1] for row in rows]
    console.show_lines(header, rows, numbers=len(header) - 1)


def _settings_table(names: list[str], settings: Settings) -> Table:
    table = Table("setting", *names)
    for key, values in settings:
        table.add_row(key, *values)
    return table


def _html_report(
    names: list[str], predictions: PredictionSet, comparisons: list[Comparison], settings: Settings
) -> str:
    # It imports matplotlib, which takes long and which the terminal does not need.
    from proj.engine import html

    several = len(comparisons) > 1
    adjusted = f" The p-values are adjusted for {len(comparisons)} runs (Holm)." if several else ""
    lead = html.text(
        f"Differences on the same {console.plural(len(predictions), 'test row')}. Each interval is "
        f"valid for its difference alone.{adjusted}"
    )
    sections = []
    for comparison in comparisons:
        header, table = _table(comparison, predictions.task)
        element = html.table(comparison.title, header, table, numbers=5, texts=2)
        sections.append(html.Section(comparison.title, [element]))
    rows = [[key, *values] for key, values in settings]
    differing = html.table("Settings that differ", ["setting", *names], rows)
    return html.page(" and ".join(names), lead, [*sections, html.Section("Settings", [differing])])
