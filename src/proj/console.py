"""What the verbs print."""

import sys

from rich.console import Console
from rich.table import Table

from proj.data.base import SplitData


def show_metrics(title: str, values: dict[str, float]) -> None:
    """A table of metrics; those of single classes or targets in rows of their own below."""
    table = Table("metric", "value", title=title, title_justify="left")
    table.columns[1].justify = "right"
    for name in sorted(values, key=lambda name: "/" in name):
        value = values[name]
        table.add_row(name, "not defined" if value != value else f"{value:.4f}")
    Console().print(table)


def say(line: str) -> None:
    """A line as it is: paths are not wrapped."""
    print(line, flush=True)


def warn(line: str) -> None:
    print(f"warning: {line}", file=sys.stderr, flush=True)


def show_data(data: SplitData) -> None:
    """What the data module holds: rows a part, shape, task, classes."""
    schema = data.schema
    assert schema is not None
    say("rows: " + ", ".join(f"{len(part.row)} {stage}" for stage, part in data.parts.items()))
    say(f"inputs: {list(schema.input_shape)} a row")
    shares = ", ".join(f"{name} {count}" for name, count in zip(schema.class_names, schema.class_counts, strict=True))
    say(f"targets: {schema.task}, {shares or ', '.join(schema.target_names)}")
