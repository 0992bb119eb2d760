"""The verb compare: whether one run is better than another, told from the same test rows."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.table import Column, Table

from proj.engine import console, html
from proj.engine.callbacks.monitoring import flatten_config
from proj.engine.console import number
from proj.engine.evaluation.intervals import FEW
from proj.engine.evaluation.paired import LEVEL, Difference, differences, holm
from proj.engine.evaluation.prediction_set import PredictionSet
from proj.engine.evaluation.report import parser_of, schema_of
from proj.engine.evaluation.scoring import load_predictions
from proj.engine.html import Section
from proj.engine.runs import calibration
from proj.engine.runs.run import Run, atomic_write, find_run
from proj.errors import UserError
from proj.metrics import metric_info

HEADER = ("metric", "difference", "95 % interval", "p", "verdict", "test")


def compare(args: list[str]) -> None:
    """Show each run's metrics less those of the first run, with intervals and p-values."""
    given = _arguments(args)
    runs = [find_run(Path("lightning_logs"), name) for name in given.runs]
    if len({run.path.resolve() for run in runs}) < len(runs):
        raise UserError(f"compare: expected different runs, got {' '.join(given.runs)}.")
    outcomes = [_read(run) for run in runs]
    for run, other in zip(runs[1:], outcomes[1:], strict=True):
        check_same_rows(runs[0].path.name, outcomes[0], run.path.name, other)
    group = outcomes[0].group
    count, kind = (
        (len(outcomes[0]), "test rows")
        if group is None
        else (len(np.unique(group)), "groups of test rows")
    )
    if count < FEW:
        raise UserError(
            f"compare: expected {FEW} {kind} or more, got {count}; they tell nothing apart."
        )
    found = [differences(outcomes[0], other) for other in outcomes[1:]]
    names = [run.path.name for run in runs]
    adjusted = [
        dict(zip(found[0], row, strict=True))
        for row in zip(*(holm([each[name].p for each in found]) for name in found[0]), strict=True)
    ]
    for name, differs, ps in zip(names[1:], found, adjusted, strict=True):
        _show(f"{name} less {names[0]}, {len(outcomes[0])} test rows", differs, ps)
    console.show(_settings_table(names, settings(runs)))
    if given.output:
        content = _page(names, outcomes[0], found, adjusted, settings(runs))
        atomic_write(Path(given.output), lambda file: file.write(content.encode()))
        console.say(f"page: {given.output}")


def _arguments(args: list[str]) -> argparse.Namespace:
    parser = parser_of("compare", "Compare runs with the first one, on the same test rows.")
    parser.add_argument(
        "runs",
        nargs="+",
        help="names or folders of two runs or more, the one to compare with first",
    )
    parser.add_argument("--output", help="an .html file to write, beside what is printed")
    given = parser.parse_args(args)
    if len(given.runs) < 2:
        raise UserError(
            f"compare: expected two runs or more, got {given.runs[0]} alone; name another."
        )
    if given.output and not given.output.endswith(".html"):
        raise UserError(f"--output: expected a name that ends in .html, got {given.output}.")
    return given


def _read(run: Run) -> PredictionSet:
    if not (run.path / "test" / "predictions.parquet").is_file():
        raise UserError(
            f"{run.path} has not been tested: expected test/predictions.parquet in it; run "
            f"`test --run {run.path.name}` first."
        )
    return load_predictions(run, "test", schema_of(run))


def check_same_rows(first: str, one: PredictionSet, second: str, other: PredictionSet) -> None:
    """Raise UserError unless both are predictions of the same targets of the same rows."""
    if one.task != other.task or one.names != other.names:
        raise UserError(
            f"compare: expected runs of one task, got {first} ({one.task}: {', '.join(one.names[:5])}) and "
            f"{second} ({other.task}: {', '.join(other.names[:5])})."
        )
    if not np.array_equal(one.row, other.row):
        shared = len(np.intersect1d(one.row, other.row))
        raise UserError(
            f"compare: expected the same test rows, got {len(one)} of {first} and {len(other)} of {second}, "
            f"of which {shared} are the same; test both on one part."
        )
    if not np.array_equal(one.target, other.target):
        raise UserError(
            f"compare: expected the same test rows, the targets of {first} and {second} differ; test both on "
            "one source."
        )
    if one.missing or other.missing:
        name = first if one.missing else second
        raise UserError(
            f"compare: expected predictions that are numbers, {name} has some that are not."
        )


def settings(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """The settings in which the runs differ, with each one's value: of their configs, and the calibration of `test`."""
    configs = [flatten_config(run.config) for run in runs]
    keys = list(dict.fromkeys(key for config in configs for key in config))
    rows = [(key, [str(config.get(key, "")) for config in configs]) for key in keys]
    rows.append(("calibration", [_calibration(run) for run in runs]))
    return [(key, values) for key, values in rows if len(set(values)) > 1]


def _calibration(run: Run) -> str:
    applied = run.path / "test" / calibration.FILE
    return str(calibration.read(applied)) if applied.is_file() else "none"


def verdict(name: str, found: Difference, p: float) -> str:
    """Better, worse, or not told apart, at a level of 5 %."""
    known = metric_info(name)
    if p >= LEVEL or known is None:
        return "not told apart"
    return "better" if (found.value > 0) == (known.mode == "max") else "worse"


def _signed(value: float) -> str:
    return f"{'+' if value > 0 else ''}{number(value)}"


def _rows(found: dict[str, Difference], ps: dict[str, float]) -> list[list[str]]:
    return [
        [
            name,
            _signed(of.value),
            f"{_signed(of.low)} to {_signed(of.high)}",
            f"{ps[name]:.3f}",
            verdict(name, of, ps[name]),
            of.test,
        ]
        for name, of in found.items()
    ]


def _show(title: str, found: dict[str, Difference], ps: dict[str, float]) -> None:
    console.say(title)
    table = Table(
        *(Column(name, justify="right" if name in HEADER[1:4] else "left") for name in HEADER[:5])
    )
    for row in _rows(found, ps):
        table.add_row(*row[:5])  # by which test is told on the page
    console.show(table)


def _settings_table(names: list[str], rows: list[tuple[str, list[str]]]) -> Table:
    table = Table("setting", *names)
    for key, values in rows:
        table.add_row(key, *values)
    return table


def _page(
    names: list[str],
    one: PredictionSet,
    found: list[dict[str, Difference]],
    adjusted: list[dict[str, float]],
    rows: list[tuple[str, list[str]]],
) -> str:
    more = (
        f" The p-values are corrected for {len(found)} runs, after Holm." if len(found) > 1 else ""
    )
    lead = html.text(
        f"Differences on the same {len(one)} test rows; the intervals hold for each one by itself.{more}"
    )
    sections = [
        Section(
            f"{name} less {names[0]}",
            [html.table(f"{name} less {names[0]}", HEADER, _rows(differs, ps))],
        )
        for name, differs, ps in zip(names[1:], found, adjusted, strict=True)
    ]
    differing = html.table(
        "Settings that differ", ["setting", *names], [[key, *values] for key, values in rows]
    )
    return html.page(" and ".join(names), lead, [*sections, Section("Settings", [differing])])
