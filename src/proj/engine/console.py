"""Output of the verbs: lines, warnings and tables."""

import os
import re
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from proj.engine.secrets import printable
from proj.errors import UserError
from proj.metrics import metric_info

# Importing torch takes seconds, and `runs` does not need it.
if TYPE_CHECKING:
    from proj.data.base import DataModule
    from proj.schema import Average, Finding, Schema, Task

INTERVAL = "95 % interval"
# Names of a table's columns that are printed.
MAX_NAMES_SHOWN = 12


def say(line: str) -> None:
    """Print a line. It is not wrapped, so that paths stay whole."""
    print(printable(line), flush=True)


def warn(line: str) -> None:
    print(f"warning: {printable(line)}", file=sys.stderr, flush=True)


class Terminal(Console):
    """A rich console that shows texts as they are: no markup, no control sequences."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        # The cells of our tables have several lines.
        return super().render_str(printable(text, keep="\n"), **options)


def show(table: Table) -> None:
    """Print a table."""
    Terminal().print(table)


def terminal_width() -> int:
    """Return the columns of the terminal; a file or a pipe takes lines of any length."""
    known = sys.stdout.isatty() or "COLUMNS" in os.environ
    return Terminal().width if known else sys.maxsize


def fitting(
    header: list[str], rows: list[list[str]], optional: Sequence[str], width: int
) -> tuple[list[str], list[list[str]], list[str]]:
    """Return a table that fits into ``width`` columns of the terminal, as far as possible.

    The ``optional`` columns are left out one by one until it fits. The last result names them.
    """
    left_out: list[str] = []
    for name in (name for name in optional if name in header):
        widths = [max(map(cell_len, column)) for column in zip(header, *rows, strict=True)]
        if sum(widths) + 2 * (len(widths) - 1) <= width:
            break
        index = header.index(name)
        header, *rows = ([*cells[:index], *cells[index + 1 :]] for cells in (header, *rows))
        left_out.append(name)
    return header, rows, left_out


def show_lines(header: list[str], rows: list[list[str]], numbers: int) -> None:
    """Print a table of any length, one line for each row, none of them wrapped or cut.

    rich takes two seconds for five thousand rows. ``numbers`` is how many of the last columns hold
    numbers, which are aligned on the right.
    """
    rows = [[printable(text) for text in cells] for cells in rows]
    widths = [max(map(cell_len, column)) for column in zip(header, *rows, strict=True)]
    first_number = len(header) - numbers

    def line(cells: list[str]) -> str:
        blanks = [" " * (width - cell_len(text)) for text, width in zip(cells, widths, strict=True)]
        parts = [
            text + blank if i < first_number else blank + text
            for i, (text, blank) in enumerate(zip(cells, blanks, strict=True))
        ]
        return "  ".join(parts).rstrip()

    say(line(header))
    say("─" * (sum(widths) + 2 * (len(widths) - 1)))
    for row in rows:
        say(line(row))


def number(value: float | None) -> str:
    """Format a number: four decimals from 0.1 to 1,000, no decimals from 100,000 to a billion.

    Other numbers have five significant digits.
    """
    if value is None:
        return "not defined"
    if 0.1 <= abs(value) < 1000 or value == 0:
        return f"{value:.4f}"
    return f"{value:.0f}" if 1e5 <= abs(value) < 1e9 else f"{value:.5g}"


def signed(value: float) -> str:
    """Format a difference: ``number`` with a plus before a positive one."""
    return f"{'+' if value > 0 else ''}{number(value)}"


def signed_like(difference: float, values: Sequence[str]) -> str:
    """Format a difference: ``signed``, but with four decimals if the ``values`` have them.

    >>> signed_like(0.00012, ["0.9121", "0.9120"])
    '+0.0001'
    """
    has_decimals = all(re.search(r"\.\d{4}$", value) for value in values)
    return f"{difference:+.4f}" if has_decimals else signed(difference)


def plural(count: int, noun: str, plural_noun: str | None = None) -> str:
    """Return a count with its noun: ``1 run``, ``2 runs``.

    >>> plural(1, "run"), plural(1200, "row"), plural(2, "category", "categories")
    ('1 run', '1,200 rows', '2 categories')
    """
    return f"{count:,} {noun if count == 1 else plural_noun or noun + 's'}"


def shown_name(name: str, task: "Task | None") -> str:
    """Return a metric's name for readers: the accuracy of several labels is exact match."""
    is_exact_match = task == "multilabel" and name.removeprefix("val/") == "accuracy"
    return f"{name} (exact match)" if is_exact_match else name


def shown_unit(name: str, task: "Task | None", average: "Average" = "macro") -> str:
    """Return the unit of a metric of all rows, for readers.

    That of a user's own metric is unknown, whatever its name: an accuracy may be a mean over
    classes. The metrics of several classes or labels are averages over them, but for the accuracy.
    """
    kind, info = name.rpartition("/")[2], metric_info(name)
    if info is None or (task is None and kind != "loss"):
        return ""
    if task in ("multiclass", "multilabel") and kind not in ("loss", "accuracy"):
        names = "classes" if task == "multiclass" else "labels"
        averages = {"weighted": f"mean over {names}, by rows", "micro": f"rows of all {names}"}
        return averages.get(average, f"mean over {names}")
    return info.unit


def show_metrics(
    title: str,
    metrics: dict[str, dict[str, Any]],
    task: "Task | None" = None,
    average: "Average" = "macro",
) -> None:
    """Print metrics as they are in ``metrics.json``.

    The first table holds the metrics of all rows, the second those of each class or target, such as
    ``f1/CLASS``. The reasons for missing values and intervals follow.
    """
    say(title)
    overall = {name: entry for name, entry in metrics.items() if not _is_per_class(name)}
    per_class = {name: entry for name, entry in metrics.items() if _is_per_class(name)}
    with_intervals = any("low" in entry for entry in metrics.values())
    show(_overall_table(overall, task, average, with_intervals))
    if per_class:
        _show_classes(per_class, task)
    for reason, names in _reasons(metrics).items():
        say(f"{_listed(names, 5)}: {reason}.")


def _is_per_class(name: str) -> bool:
    """Return whether a metric is of one class or target, such as ``val/f1/CLASS``."""
    return "/" in name.removeprefix("val/")


def _overall_table(
    metrics: dict[str, dict[str, Any]],
    task: "Task | None",
    average: "Average",
    with_intervals: bool,
) -> Table:
    headers = ["value", INTERVAL] if with_intervals else ["value"]
    table = Table("metric", *(Column(header, justify="right") for header in headers), "unit")
    for name, entry in metrics.items():
        limits = [_interval(entry)] if with_intervals else []
        value = number(entry.get("value"))
        table.add_row(shown_name(name, task), value, *limits, shown_unit(name, task, average))
    return table


def _show_classes(metrics: dict[str, dict[str, Any]], task: "Task | None") -> None:
    """Print a line for each class or target: rows, its first metric with its interval, others."""
    names = [name.split("/", 1) for name in metrics]
    first, *others = dict.fromkeys(metric for metric, _ in names)
    rows = []
    for class_name in dict.fromkeys(class_name for _, class_name in names):
        entries = [metrics.get(f"{metric}/{class_name}", {}) for metric in (first, *others)]
        values = [number(entry.get("value")) for entry in entries]
        support = str(entries[0].get("support", ""))
        rows.append([class_name, support, values[0], _interval(entries[0]), *values[1:]])
    noun = {"multilabel": "label", "regression": "target"}.get(task or "", "class")
    header = [noun, "rows", first, INTERVAL, *others]
    header, rows, left_out = fitting(header, rows, others[::-1], terminal_width())
    show_lines(header, rows, numbers=len(header) - 1)
    if left_out:
        say(f"too wide to show: {', '.join(left_out[::-1])}; metrics.json and the report have them")


def _reasons(entries: dict[str, dict[str, Any]]) -> dict[str, list[str]]:
    """Return the reasons for missing values and intervals, each with the names it applies to."""
    reasons: dict[str, list[str]] = {}
    for name, entry in entries.items():
        if entry.get("why"):
            reasons.setdefault(entry["why"], []).append(name)
    return reasons


def _listed(names: list[str], limit: int) -> str:
    return ", ".join(names[:limit]) + (", …" if len(names) > limit else "")


def _interval(entry: dict[str, Any]) -> str:
    return "" if entry.get("low") is None else f"{number(entry['low'])} – {number(entry['high'])}"


def show_importance(metric: str, columns: dict[str, dict[str, Any]], limit: int = 30) -> None:
    """Print at most ``limit`` columns with their importance, as in ``importance.json``."""
    info = metric_info(metric)
    change = "rise" if info is not None and info.mode == "min" else "drop"
    headers = (f"{change} of {metric}", INTERVAL)
    table = Table("column", *(Column(header, justify="right") for header in headers))
    for name, entry in list(columns.items())[:limit]:
        table.add_row(name, number(entry["value"]), _interval(entry))
    show(table)
    if len(columns) > limit:
        say(f"{plural(len(columns) - limit, 'more column')} in the file.")
    for reason in _reasons(columns):
        say(f"{reason}.")


def show_findings(findings: "list[Finding]", strict: bool = False) -> None:
    """Print findings about the data as warnings; raise them as one ``UserError`` if ``strict``."""
    if findings and strict:
        raise UserError(
            f"--strict: expected no findings, got {len(findings)}: {' '.join(map(str, findings))}"
        )
    for finding in findings:
        warn(str(finding))


def show_data(data: "DataModule") -> None:
    """Print the contents of a data module: rows of each split, inputs, task, class shares."""
    schema = data.schema
    assert schema is not None
    say("rows: " + ", ".join(f"{data.rows(split)} {split}" for split in data.splits))
    say(f"inputs: {_columns(schema) if schema.columns else f'{list(schema.input_shape)} per row'}")
    counts = zip(schema.class_names, schema.class_counts, strict=True)
    shares = ", ".join(f"{name} {count} ({count / schema.rows:.1%})" for name, count in counts)
    say(f"targets: {schema.task}, {shares or ', '.join(schema.target_names)}")


def _columns(schema: "Schema") -> str:
    """Return a table's columns by kind, and those that have missing values."""
    columns_by_kind = {
        "number": ["number"],
        "category": ["category"],
        "part of a date": ["days", "month", "weekday", "hour"],
        "score of a text": ["score"],
        "length of a text": ["length"],
    }
    plurals = {
        "category": "categories",
        "part of a date": "parts of dates",
        "score of a text": "scores of texts",
        "length of a text": "lengths of texts",
    }
    texts = []
    for noun, kinds in columns_by_kind.items():
        if names := [column.name for column in schema.columns if column.kind in kinds]:
            count = plural(len(names), noun, plurals.get(noun))
            texts.append(f"{count} ({_listed(names, MAX_NAMES_SHOWN)})")
    if words := [column.source for column in schema.columns if column.kind == "word"]:
        sources = list(dict.fromkeys(words))
        texts.append(f"{plural(len(words), 'word')} of texts ({_listed(sources, MAX_NAMES_SHOWN)})")
    if missing := [column.name for column in schema.columns if column.missing]:
        texts.append(f"missing values in {', '.join(missing[:MAX_NAMES_SHOWN])}")
    return "; ".join(texts)
