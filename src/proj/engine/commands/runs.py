"""List runs with their headline metrics."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from rich import box
from rich.table import Column, Table

from proj.engine import console
from proj.engine.config.parser import VerbParser
from proj.engine.console import number, plural
from proj.engine.runs.files import read_json
from proj.engine.runs.run import Run, flatten_config, run_folders
from proj.errors import UserError, nearest
from proj.metrics import metric_info

SHOWN_METRICS = ("accuracy", "f1", "auroc", "rmse", "r2")
CONDITION = re.compile(r"([^<>=]+)(<=|>=|<|>|=)(.+)")


class RunFacts(NamedTuple):
    """The settings and metrics of a run.

    ``settings`` holds the name, start, end and status, and the config by dotted key. ``metrics``
    are those of the test split.
    """

    settings: dict[str, Any]
    metrics: dict[str, Any]

    def value(self, key: str) -> Any:
        """Return a metric or a setting; None if the run has none of that name."""
        return self.metrics[key].get("value") if key in self.metrics else self.settings.get(key)


def runs(args: list[str]) -> None:
    """List the runs of a folder, the newest first, or by a metric."""
    parser = VerbParser("runs", "List runs with their headline metrics on the test split.")
    parser.add_argument("folder", nargs="?", default="lightning_logs", help="folder of the runs")
    parser.add_argument(
        "--where",
        action="append",
        default=[],
        help="a condition, such as f1>0.9, status=finished or model.optimizer.lr=0.01; may be "
        "given several times",
    )
    parser.add_argument(
        "--sort",
        help="a metric (best first) or a setting (smallest first) to sort by",
    )
    arguments = parser.parse_args(args)
    folder = Path(arguments.folder)
    if not folder.is_dir():
        reason = "is not a folder" if folder.exists() else "does not exist"
        raise UserError(
            f"runs: expected a folder of runs, got {folder}, which {reason}; train first, with "
            "`fit --config FILE`, or name another folder."
        )
    listed = sorted(
        _readable(run_folders(folder)),
        key=lambda run: (run.settings["start"], run.settings["name"]),
        reverse=True,
    )
    for condition in arguments.where:
        listed = [run for run in listed if meets(run, condition, listed)]
    if arguments.sort:
        listed = ordered(listed, arguments.sort)
    _show(listed, arguments.sort)
    console.say(f"{plural(len(listed), 'run')} in {folder}")


def _readable(runs: Iterable[Run]) -> Iterator[RunFacts]:
    """Yield the facts of each run; warn of runs with a damaged file."""
    for run in runs:
        try:
            yield read_facts(run)
        except UserError as error:
            console.warn(f"{run.path.name} is left out: {error}")


def read_facts(run: Run) -> RunFacts:
    """Read the settings and metrics of a run."""
    path = run.path / "test" / "metrics.json"
    metrics = read_json(path) if path.is_file() else {}
    manifest = {key: run.manifest.get(key) for key in ("start", "end", "status")}
    settings = {**flatten_config(run.config), **manifest, "name": run.path.name}
    return RunFacts(settings, metrics)


def _show(listed: list[RunFacts], sort_key: str | None) -> None:
    """Print a table of runs, with a column for the metric that they are sorted by."""
    metrics = {name for run in listed for name in run.metrics}
    shown = [name for name in SHOWN_METRICS if name in metrics]
    if sort_key in metrics and sort_key not in shown:
        shown = [*shown[:2], sort_key]
    metric_columns = [Column(name, justify="right") for name in shown]
    table = Table("run", "start", "status", "net", *metric_columns, box=box.SIMPLE)
    for run in listed:
        settings = run.settings
        start = str(settings["start"])[:16].replace("T", " ")
        net = str(settings.get("model.net") or settings.get("model", "")).rpartition(".")[2]
        values = [
            number(run.metrics[name].get("value")) if name in run.metrics else "" for name in shown
        ]
        table.add_row(settings["name"], start, settings["status"], net, *values)
    console.show(table)


def meets(run: RunFacts, condition: str, listed: list[RunFacts]) -> bool:
    """Return whether a run meets a condition; a run without its key does not."""
    if not (match := CONDITION.fullmatch(condition)):
        raise UserError(f"--where: expected KEY=VALUE, KEY<NUMBER or KEY>NUMBER, got {condition}.")
    key, operator, wanted = (text.strip() for text in match.groups())
    _check_key(key, "--where", listed)
    value = run.value(key)
    if value is None:
        return False
    if operator == "=" and isinstance(value, bool):
        return str(value).lower() == wanted.lower()
    if operator == "=" and not isinstance(value, int | float):
        # A class may be named without its module.
        return wanted in (str(value), str(value).rpartition(".")[2])
    try:
        a, b = float(value), float(wanted)
    except ValueError as error:
        raise UserError(
            f"--where: expected numbers to compare, got {key} {value} and {wanted}; use =."
        ) from error
    return {"=": a == b, "<": a < b, ">": a > b, "<=": a <= b, ">=": a >= b}[operator]


def ordered(listed: list[RunFacts], key: str) -> list[RunFacts]:
    """Sort by a metric, the best first, or by a setting; runs without it come last."""
    _check_key(key, "--sort", listed)
    with_key = [run for run in listed if run.value(key) is not None]
    without = [run for run in listed if run.value(key) is None]
    largest_first = any(key in run.metrics for run in listed) and _mode(key, listed) == "max"
    numeric = all(isinstance(run.value(key), int | float) for run in with_key)
    with_key.sort(
        key=lambda run: run.value(key) if numeric else str(run.value(key)),
        reverse=largest_first,
    )
    return with_key + without


def _mode(metric: str, listed: list[RunFacts]) -> str | None:
    """Return the better direction of a metric; for a user's own, that of a run that monitors it."""
    if info := metric_info(metric):
        return info.mode
    modes = (
        run.value("checkpoint.mode")
        for run in listed
        if run.value("checkpoint.monitor") == f"val/{metric}"
    )
    return next((mode for mode in modes if mode), None)


def _check_key(key: str, option: str, listed: list[RunFacts]) -> None:
    """Raise UserError unless a run has the metric or setting."""
    keys = dict.fromkeys(name for run in listed for name in (*run.metrics, *run.settings))
    if listed and key not in keys:
        raise UserError(
            f"{option}: expected a metric or a setting of a run, got {key!r}.{nearest(key, keys)}"
        )
