"""Figures of values with their intervals: one metric on an axis, or a dot for each class."""

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from proj.engine.console import number
from proj.engine.evaluation.figures import GREY, short, styled
from proj.engine.html import COLOURS

# A value with the low and the high limit of its interval, None where it has none.
Limits = tuple[float | None, float | None, float | None]


def limits_of(entry: dict[str, Any]) -> Limits:
    """Return the value and the limits of a metric's entry, None where it has none."""
    return entry.get("value"), entry.get("low"), entry.get("high")


@styled
def headline(limits: Limits, label: str, baseline: float | None = None) -> Figure:
    """Draw a metric with its interval as a dot on a line, and the value of a baseline beside it."""
    value, low, high = limits
    assert value is not None
    height = 1.5
    figure = Figure((4.6, height))
    axes = figure.add_axes((0.03, 0.5 / height, 0.94, 1 - 0.55 / height))
    if low is not None and high is not None:
        axes.hlines(0, low, high, color=COLOURS[0], linewidth=5, alpha=0.4)
        axes.plot([low, high], [0, 0], "|", color=COLOURS[0], markersize=10)
    _mark(axes, value, "o", number(value), COLOURS[0], 8)
    if baseline is not None:
        _mark(axes, baseline, "D", f"baseline {number(baseline)}", COLOURS[1], -18)
    ends = [end for end in (*limits, baseline) if end is not None]
    margin = 0.15 * (max(ends) - min(ends) or abs(value) or 1)
    axes.set(xlabel=label, ylim=(-1.5, 1.6), xlim=(min(ends) - margin, max(ends) + margin))
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    return figure


def _mark(axes: Axes, x: float, marker: str, text: str, colour: str, offset: int) -> None:
    """Draw a marker with a text above or below it."""
    axes.plot([x], [0], marker, color=colour, markersize=8)
    axes.annotate(
        text, (x, 0), (0, offset), textcoords="offset points", ha="center", color=colour, fontsize=8
    )


@styled
def dots(
    names: Sequence[str], limits: Sequence[Limits], label: str, overall: float | None
) -> Figure:
    """Draw a dot with its interval for each of at most about 50 classes, the first at the top.

    ``overall`` is the metric of all classes together, shown as a dotted line.
    """
    height = 0.75 + 0.22 * max(3, len(names))
    figure = Figure((6.4, height))
    axes = figure.add_axes((0.24, 0.5 / height, 0.73, 1 - 0.6 / height))
    for position, (value, low, high) in enumerate(limits):
        if value is None:
            continue
        if low is not None and high is not None:
            axes.hlines(position, low, high, color=COLOURS[0], linewidth=2, alpha=0.5)
        axes.plot([value], [position], "o", color=COLOURS[0], markersize=5)
    if overall is not None:
        axes.axvline(overall, color=GREY, linestyle=":", linewidth=1)
    axes.set_yticks(range(len(names)), [short(name, 22) for name in names], fontsize=8)
    axes.set(xlabel=label, ylim=(len(names) - 0.4, -0.6))
    axes.grid(visible=False, axis="y")
    return figure
