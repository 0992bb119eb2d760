"""What the verbs print."""

import math
import sys

from rich.console import Console
from rich.table import Column, Table

from proj.data.base import Finding, SplitData
from proj.errors import UserError
from proj.metrics import about
from proj.schema import Schema


def show_metrics(title: str, values: dict[str, float]) -> None:
    """A table of metrics, and one with a line for each class or target (``f1/cat``) where there are any."""
    console = Console()
    say(title)
    table = Table("metric", Column("value", justify="right"), "unit")
    for name, value in values.items():
        if "/" not in name.removeprefix("val/"):
            known = about(name)
            table.add_row(name, _number(value), known.unit if known else "")
    console.print(table)
    single = [tuple(name.split("/", 1)) for name in values if "/" in name.removeprefix("val/")]
    if single:
        metrics = list(dict.fromkeys(metric for metric, _ in single))
        table = Table("", *(Column(metric, justify="right") for metric in metrics))
        for of in dict.fromkeys(of for _, of in single):
            table.add_row(of, *(_number(values.get(f"{metric}/{of}", math.nan)) for metric in metrics))
        console.print(table)


def _number(value: float) -> str:
    return "not defined" if math.isnan(value) else f"{value:.4f}"


def say(line: str) -> None:
    """A line as it is: paths are not wrapped."""
    print(line, flush=True)


def warn(line: str) -> None:
    print(f"warning: {line}", file=sys.stderr, flush=True)


def show_findings(findings: list[Finding], strict: bool = False) -> None:
    """What is odd about the data, as warnings; as one UserError if ``strict``."""
    if findings and strict:
        raise UserError(f"--strict: expected no findings, got {len(findings)}: {' '.join(map(str, findings))}")
    for finding in findings:
        warn(str(finding))


def show_data(data: SplitData) -> None:
    """What the data module holds: rows a part, shape, task, classes."""
    schema = data.schema
    assert schema is not None
    say("rows: " + ", ".join(f"{len(part.row)} {stage}" for stage, part in data.parts.items()))
    say(f"inputs: {_columns(schema) if schema.columns else f'{list(schema.input_shape)} a row'}")
    counts = zip(schema.class_names, schema.class_counts, strict=True)
    shares = ", ".join(f"{name} {count} ({count / schema.rows:.1%})" for name, count in counts)
    say(f"targets: {schema.task}, {shares or ', '.join(schema.target_names)}")


def _columns(schema: Schema) -> str:
    """A table's columns by kind, and those in which values are missing."""
    kinds = {"numbers": ["number"], "categories": ["category"], "parts of dates": ["days", "month", "weekday", "hour"]}
    lines = []
    for kind, some in kinds.items():
        if names := [c.name for c in schema.columns if c.kind in some]:
            lines.append(f"{len(names)} {kind} ({', '.join(names[:12])}{', …' if len(names) > 12 else ''})")
    missing = [c.name for c in schema.columns if c.missing]
    return "; ".join([*lines, *([f"missing values in {', '.join(missing[:12])}"] if missing else [])])
