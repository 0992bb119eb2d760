"""The verb runs: what there is, with its main numbers."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Column, Table

from proj.engine import console
from proj.engine.callbacks.monitoring import flatten_config
from proj.engine.console import number
from proj.engine.evaluation.report import parser_of
from proj.engine.runs.run import Run, read_json, run_folders
from proj.errors import UserError, nearest
from proj.metrics import metric_info

MAIN = ("accuracy", "f1", "auroc", "rmse", "r2")  # metrics that are shown
CONDITION = re.compile(r"([^<>=]+)(<=|>=|<|>|=)(.+)")


def runs(args: list[str]) -> None:
    """List the runs of a folder, the newest first, or by a metric."""
    parser = parser_of("runs", "List runs with their main numbers on the test part.")
    parser.add_argument("folder", nargs="?", default="lightning_logs", help="where the runs are")
    parser.add_argument(
        "--where",
        action="append",
        default=[],
        help="a condition, such as f1>0.9, status=finished or "
        "model.optimizer.lr=0.01; may be given several times",
    )
    parser.add_argument(
        "--sort",
        help="a metric or a setting to sort by: a metric's best first, a setting's smallest",
    )
    given = parser.parse_args(args)
    if not Path(given.folder).is_dir():
        raise UserError(f"runs: expected a folder of runs, got {given.folder}, which is none.")
    every = sorted(
        _readable(run_folders(Path(given.folder))),
        key=lambda one: (one["start"], one["name"]),
        reverse=True,
    )
    for condition in given.where:
        every = [one for one in every if holds(one, condition, every)]
    if given.sort:
        every = ordered(every, given.sort)
    _show(every)
    console.say(f"{len(every)} runs in {given.folder}")


def _readable(runs: Iterable[Run]) -> Iterator[dict[str, Any]]:
    """What is known of each run; a warning for one with a damaged file."""
    for run in runs:
        try:
            yield facts(run)
        except UserError as error:
            console.warn(f"{run.path.name} is left out: {error}")


def _show(every: list[dict[str, Any]]) -> None:
    shown = [name for name in MAIN if any(name in one["metrics"] for one in every)]
    table = Table(
        "run",
        "start",
        "status",
        "net",
        *(Column(name, justify="right") for name in shown),
        box=box.SIMPLE,
    )
    for one in every:
        values = [
            number(one["metrics"][name].get("value")) if name in one["metrics"] else ""
            for name in shown
        ]
        net = str(one.get("model.net") or one.get("model", "")).rpartition(".")[2]
        table.add_row(
            one["name"], str(one["start"])[:16].replace("T", " "), one["status"], net, *values
        )
    console.show(table)


def facts(run: Run) -> dict[str, Any]:
    """What is known of a run: settings by dotted key, name, status and times, and its metrics on the test part."""
    scored = run.path / "test" / "metrics.json"
    metrics = read_json(scored) if scored.is_file() else {}
    manifest = {key: run.manifest.get(key) for key in ("start", "end", "status")}
    return {**flatten_config(run.config), **manifest, "name": run.path.name, "metrics": metrics}


def value(one: dict[str, Any], key: str) -> Any:
    return one["metrics"][key].get("value") if key in one["metrics"] else one.get(key)


def holds(one: dict[str, Any], condition: str, every: list[dict[str, Any]]) -> bool:
    """Whether a run meets a condition; a run without the key does not."""
    if not (parts := CONDITION.fullmatch(condition)):
        raise UserError(f"--where: expected KEY=VALUE, KEY<NUMBER or KEY>NUMBER, got {condition}.")
    key, sign, wanted = (part.strip() for part in parts.groups())
    _check(key, "--where", every)
    got = value(one, key)
    if got is None:
        return False
    if sign == "=" and isinstance(got, bool):
        return str(got).lower() == wanted.lower()
    if sign == "=" and not isinstance(got, int | float):
        return str(got) == wanted or str(got).rpartition(".")[2] == wanted
    try:
        a, b = float(got), float(wanted)
    except ValueError as error:
        raise UserError(
            f"--where: expected a number to compare {key} with, got {wanted}; it is {got}."
        ) from error
    return {"=": a == b, "<": a < b, ">": a > b, "<=": a <= b, ">=": a >= b}[sign]


def ordered(every: list[dict[str, Any]], key: str) -> list[dict[str, Any]]:
    """By a metric, the best first, or by a setting; runs without it last."""
    _check(key, "--sort", every)
    there, rest = (
        [one for one in every if (value(one, key) is not None) is has] for has in (True, False)
    )
    known = metric_info(key) if any(key in one["metrics"] for one in every) else None
    numbers = all(isinstance(value(one, key), int | float) for one in there)
    there.sort(
        key=lambda one: value(one, key) if numbers else str(value(one, key)),
        reverse=known is not None and known.mode == "max",
    )
    return there + rest


def _check(key: str, option: str, every: list[dict[str, Any]]) -> None:
    keys = dict.fromkeys(
        name for one in every for name in (*one["metrics"], *one) if name != "metrics"
    )
    if every and key not in keys:
        raise UserError(f"{option}: no run has {key!r}.{nearest(key, keys)}")
