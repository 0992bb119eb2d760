"""List runs with their headline metrics."""

import operator
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from proj.engine import console
from proj.engine.config.parser import VerbParser
from proj.engine.console import number, plural
from proj.engine.runs.contents import COMPUTED, parse_metrics
from proj.engine.runs.find import config_index, manifest_index, without_manifest
from proj.engine.runs.index import FileIndex, Outcome, run_names
from proj.errors import UserError, nearest
from proj.metrics import metric_info

SHOWN_METRICS = ("accuracy", "f1", "auroc", "rmse", "r2")
# Columns that are left out of a table that is too wide for the terminal, in this order.
OPTIONAL = ("net", "status", "start")
COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    "=": operator.eq,
    "<": operator.lt,
    ">": operator.gt,
    "<=": operator.le,
    ">=": operator.ge,
}
CONDITION = re.compile(r"([^<>=]+)(<=|>=|<|>|=)(.+)")


class RunFacts(NamedTuple):
    """The settings and metrics of a run.

    ``settings`` holds the name, start, end and status, and the config by dotted key. ``metrics``
    are the values of those of the test split, None where they are not defined.
    """

    settings: dict[str, Any]
    metrics: dict[str, float | None]

    def value(self, key: str) -> Any:
        """Return a metric or a setting; None if the run has none of that name."""
        return self.metrics[key] if key in self.metrics else self.settings.get(key)


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
    damaged: list[str] = []
    listed = sorted(
        read_facts(folder, damaged),
        key=lambda run: (run.settings["start"], run.settings["name"]),
        reverse=True,
    )
    for reason in damaged:
        console.warn(reason)
    listed = _meeting(listed, arguments.where)
    if arguments.sort:
        listed = ordered(listed, arguments.sort)
    _show(listed, arguments.sort)
    console.say(f"{plural(len(listed), 'run')} in {folder}")


def read_facts(folder: Path, damaged: list[str]) -> Iterator[RunFacts]:
    """Yield settings and metrics of each run; add a message for each damaged run to ``damaged``.

    Files that are in an index are not read.
    """
    names = run_names(folder)
    manifests = manifest_index(folder).read_all(names)
    configs = config_index(folder).read_all(manifests, required=True)
    metrics = FileIndex(folder, "test/metrics.json", _values, COMPUTED).read_all(manifests)
    untested: Outcome = {}, None
    for name, (manifest, reason) in manifests.items():
        config, config_reason = configs[name]
        values, metrics_reason = metrics.get(name, untested)
        if reason := reason or config_reason or metrics_reason:
            damaged.append(f"{name} is left out: {reason}")
        else:
            yield RunFacts({**config["settings"], **manifest, "name": name}, values)
    others = without_manifest(folder, set(names) - manifests.keys())
    damaged += [f"{name} is left out: {reason}" for name, reason in others.items()]


def _values(content: bytes, path: Path) -> dict[str, float | None]:
    return {name: entry["value"] for name, entry in parse_metrics(content, path).items()}


def _show(listed: list[RunFacts], sort_key: str | None) -> None:
    """Print a table of runs, with a column for the metric that they are sorted by."""
    metrics = {name for run in listed for name in run.metrics}
    shown = [name for name in SHOWN_METRICS if name in metrics]
    if sort_key in metrics and sort_key not in shown:
        shown = [*shown[:2], sort_key]
    rows = []
    for run in listed:
        settings = run.settings
        start = str(settings["start"])[:16].replace("T", " ")
        net = str(settings.get("model.net") or settings.get("model", "")).rpartition(".")[2]
        values = [number(run.metrics[name]) if name in run.metrics else "" for name in shown]
        rows.append([settings["name"], start, settings["status"], net, *values])
    header, rows, left_out = console.fitting(
        ["run", "start", "status", "net", *shown], rows, OPTIONAL, console.terminal_width()
    )
    console.show_lines(header, rows, numbers=len(shown))
    if left_out:
        console.say(f"too wide to show: {', '.join(left_out)}")


def _meeting(listed: list[RunFacts], conditions: list[str]) -> list[RunFacts]:
    """Return the runs that meet all conditions."""
    for condition in conditions:
        meets = parse_condition(condition, listed)
        listed = [run for run in listed if meets(run)]
    return listed


def parse_condition(condition: str, listed: list[RunFacts]) -> Callable[[RunFacts], bool]:
    """Return a function that tells whether a run meets a condition; without its key it does not.

    Raises UserError if no run in ``listed`` has the key.
    """
    if not (match := CONDITION.fullmatch(condition)):
        raise UserError(f"--where: expected KEY=VALUE, KEY<NUMBER or KEY>NUMBER, got {condition}.")
    key, relation, wanted = (text.strip() for text in match.groups())
    _check_key(key, "--where", listed)
    return lambda run: _is_met(key, run.value(key), relation, wanted)


def _is_met(key: str, value: Any, relation: str, wanted: str) -> bool:
    """Return whether a value of a run stands in a relation to the wanted one."""
    if value is None:
        return False
    if relation == "=" and isinstance(value, bool):
        return str(value).lower() == wanted.lower()
    if relation == "=" and not isinstance(value, int | float):
        # A class may be named without its module.
        return wanted in (str(value), str(value).rpartition(".")[2])
    try:
        a, b = float(value), float(wanted)
    except ValueError as error:
        raise UserError(
            f"--where: expected numbers to compare, got {key} {value} and {wanted}; use =."
        ) from error
    return COMPARISONS[relation](a, b)


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
