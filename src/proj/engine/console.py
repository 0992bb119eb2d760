"""What the verbs print."""

import sys
from typing import Any

from rich.console import Console
from rich.table import Column, Table

from proj.data.base import DataModule, Finding
from proj.errors import UserError
from proj.metrics import metric_info
from proj.schema import Schema


def show_metrics(title: str, metrics: dict[str, dict[str, Any]]) -> None:
    """A table of metrics as in ``metrics.json``, and one with a line for each class or target where there are any."""
    say(title)
    known = any("low" in entry for entry in metrics.values())
    table = Table(
        "metric",
        *(Column(of, justify="right") for of in ("value", "95 % interval")[: 1 + known]),
        "unit",
    )
    for name, entry in metrics.items():
        if "/" not in name.removeprefix("val/"):
            meaning, limits = metric_info(name), [_limits(entry)] if known else []
            table.add_row(
                name, number(entry.get("value")), *limits, meaning.unit if meaning else ""
            )
    show(table)
    single = [tuple(name.split("/", 1)) for name in metrics if "/" in name.removeprefix("val/")]
    if single:
        kinds = list(dict.fromkeys(kind for kind, _ in single))
        table = Table("", *(Column(kind, justify="right") for kind in kinds))
        for of in dict.fromkeys(of for _, of in single):
            entries = [metrics.get(f"{kind}/{of}", {}) for kind in kinds]
            table.add_row(
                of,
                *(f"{number(entry.get('value'))}\n{_limits(entry)}".strip() for entry in entries),
            )
        show(table)
    for why in dict.fromkeys(entry["why"] for entry in metrics.values() if entry.get("why")):
        names = [name for name, entry in metrics.items() if entry.get("why") == why]
        say(f"{', '.join(names[:5])}{', …' if len(names) > 5 else ''}: {why}.")


def show_importance(metric: str, columns: dict[str, dict[str, Any]], most: int = 30) -> None:
    """A table of columns as in ``importance.json``, the first ones of many."""
    change = f"{'rise' if metric == 'rmse' else 'drop'} of {metric}"
    table = Table("column", *(Column(of, justify="right") for of in (change, "95 % interval")))
    for name, entry in list(columns.items())[:most]:
        table.add_row(name, number(entry["value"]), _limits(entry))
    show(table)
    if len(columns) > most:
        say(f"{len(columns) - most} more columns are in the file.")
    for why in dict.fromkeys(entry["why"] for entry in columns.values() if entry.get("why")):
        say(f"{why}.")


def show(table: Table) -> None:
    """Names as they are: one in square brackets, or colons, is no style and no picture."""
    Console(markup=False, emoji=False).print(table)


def number(value: float | None) -> str:
    """Four digits behind the point, or of a number from 1,000 up, and of one below 0.1, five that count."""
    if value is None:
        return "not defined"
    return f"{value:.4f}" if 0.1 <= abs(value) < 1000 or value == 0 else f"{value:.5g}"


def _limits(entry: dict[str, Any]) -> str:
    return "" if entry.get("low") is None else f"{number(entry['low'])} – {number(entry['high'])}"


def say(line: str) -> None:
    """A line as it is: paths are not wrapped."""
    print(line, flush=True)


def warn(line: str) -> None:
    print(f"warning: {line}", file=sys.stderr, flush=True)


def show_findings(findings: list[Finding], strict: bool = False) -> None:
    """What is odd about the data, as warnings; as one UserError if ``strict``."""
    if findings and strict:
        raise UserError(
            f"--strict: expected no findings, got {len(findings)}: {' '.join(map(str, findings))}"
        )
    for finding in findings:
        warn(str(finding))


def show_data(data: DataModule) -> None:
    """What the data module holds: rows a part, shape, task, classes."""
    schema = data.schema
    assert schema is not None
    say("rows: " + ", ".join(f"{len(part.row)} {stage}" for stage, part in data.splits.items()))
    say(f"inputs: {_columns(schema) if schema.columns else f'{list(schema.input_shape)} a row'}")
    counts = zip(schema.class_names, schema.class_counts, strict=True)
    shares = ", ".join(f"{name} {count} ({count / schema.rows:.1%})" for name, count in counts)
    say(f"targets: {schema.task}, {shares or ', '.join(schema.target_names)}")


def _columns(schema: Schema) -> str:
    """A table's columns by kind, and those in which values are missing."""
    kinds = {
        "numbers": ["number"],
        "categories": ["category"],
        "parts of dates": ["days", "month", "weekday", "hour"],
    }
    lines = []
    for kind, some in kinds.items():
        if names := [c.name for c in schema.columns if c.kind in some]:
            lines.append(
                f"{len(names)} {kind} ({', '.join(names[:12])}{', …' if len(names) > 12 else ''})"
            )
    missing = [c.name for c in schema.columns if c.missing]
    return "; ".join(
        [*lines, *([f"missing values in {', '.join(missing[:12])}"] if missing else [])]
    )
