"""Figures: pure functions from arrays to matplotlib figures, without pyplot's global state."""

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, Literal, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from proj.engine.evaluation.curves import Deciles, Reliability, Thresholds, thinned
from proj.engine.html import COLOURS, INK, style
from proj.schema import Array

# More curves in one figure have one colour and no legend.
MAX_NAMED_CURVES = 12
# The cells of a confusion matrix of more classes have no numbers.
MAX_NUMBERED_CLASSES = 15
MAX_SCATTER_ROWS = 2_000
GREY = "#999999"
# Beyond this number of points, an embedded bitmap is smaller than an element for each.
RASTER_POINTS = 500


class Curve(NamedTuple):
    """A named line through points, [points] each."""

    name: str
    x: Array
    y: Array


def styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Decorate a function so that it draws in the style of our pages."""

    @wraps(draw)
    def wrapped(*args: Any, **kwargs: Any) -> Figure:
        with style():
            return draw(*args, **kwargs)

    return wrapped


def _axes(width: float = 4.6, height: float = 3.4, **labels: Any) -> tuple[Figure, Axes]:
    figure = Figure((width, height))
    axes = figure.add_axes((0.62 / width, 0.5 / height, 1 - 0.75 / width, 1 - 0.62 / height))
    axes.set(**labels)
    return figure, axes


def short(name: str, limit: int = 18) -> str:
    """Return a name in one line of at most ``limit`` characters."""
    name = " ".join(str(name).split())
    return name if len(name) <= limit else f"{name[: limit - 1]}…"


@styled
def confusion_matrix(matrix: Array, names: Sequence[str], shares: bool) -> Figure:
    """Draw a confusion matrix [targets, predictions] of 2 to 50 classes.

    The cells show numbers of rows or sums of their weights, or with ``shares`` percents of the
    target's rows.
    """
    count = len(names)
    side = 1.6 + (0.32 if count <= MAX_NUMBERED_CLASSES else 0.14) * max(count, 4)
    figure = Figure((side, side), layout="constrained")
    axes = figure.add_subplot()
    rows = matrix.sum(axis=1, keepdims=True)
    share = np.divide(matrix, rows, out=np.zeros(matrix.shape), where=rows > 0)
    colour = np.zeros((count, count, 4))
    colour[...] = mpl.colors.to_rgba(COLOURS[0])
    # The root makes rare mistakes visible.
    colour[..., 3] = 0.75 * np.sqrt(share)
    axes.imshow(colour, interpolation="none")
    size = 9 if count <= MAX_NUMBERED_CLASSES else 6
    axes.set_xticks(range(count), [short(name, 12) for name in names], rotation=90, fontsize=size)
    axes.set_yticks(range(count), [short(name, 12) for name in names], fontsize=size)
    axes.set(xlabel="predicted", ylabel="target")
    axes.grid(visible=False)
    if count <= MAX_NUMBERED_CLASSES:
        for i, j in np.ndindex(count, count):
            if matrix[i, j]:
                cell = f"{matrix[i, j]:.4g}" if matrix.dtype.kind == "f" else str(matrix[i, j])
                text = f"{100 * share[i, j]:.0f}" if shares else cell
                axes.text(j, i, text, ha="center", va="center", fontsize=7 if len(text) > 4 else 8)
    return figure


@styled
def roc(curves: Sequence[Curve]) -> Figure:
    """Draw ROC curves: the true positive rate by the false positive rate."""
    figure, axes = _axes(
        xlabel="false positive rate", ylabel="true positive rate", xlim=(0, 1), ylim=(0, 1.01)
    )
    axes.plot([0, 1], [0, 1], color=GREY, linestyle=":", linewidth=1)
    _lines(axes, curves, "lower right")
    return figure


@styled
def precision_recall(curves: Sequence[Curve]) -> Figure:
    """Draw precision by recall."""
    figure, axes = _axes(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.01))
    _lines(axes, curves, "lower left", drawstyle="steps-pre")
    return figure


def _lines(
    axes: Axes, curves: Sequence[Curve], place: Literal["lower left", "lower right"], **options: Any
) -> None:
    """Draw curves with a legend, or in one pale colour if there are too many to distinguish."""
    many = len(curves) > MAX_NAMED_CURVES
    for curve in curves:
        x, y = thinned(curve.x, curve.y)
        kind: dict[str, Any] = {"label": short(curve.name, 30)}
        if many:
            kind = {"color": COLOURS[0], "alpha": 0.35, "linewidth": 0.8}
        axes.plot(x, y, **kind, **options)
    if len(curves) > 1 and not many:
        axes.legend(loc=place, fontsize=7)


@styled
def reliability_diagram(bins: Reliability) -> Figure:
    """Draw observed frequencies by predicted probability, above the number of rows in each bin."""
    figure = Figure((4.6, 3.8))
    axes, below = (
        figure.add_axes((0.14, bottom, 0.83, height))
        for bottom, height in ((0.34, 0.63), (0.12, 0.16))
    )
    axes.plot([0, 1], [0, 1], color=GREY, linestyle=":", linewidth=1)
    filled = bins.rows > 0
    axes.plot(bins.predicted[filled], bins.observed[filled], marker="o", markersize=4)
    axes.set(xlim=(0, 1), ylim=(0, 1.01), ylabel="observed frequency")
    count = len(bins.rows)
    below.bar((np.arange(count) + 0.5) / count, bins.rows, 0.9 / count)
    below.set(xlim=(0, 1), xlabel="predicted probability", ylabel="rows")
    return figure


@styled
def score_histogram(score: Array, hit: Array, names: tuple[str, str]) -> Figure:
    """Draw the distribution of probabilities [rows] for ``hit`` 0 and 1, each summing to 1.

    ``names`` are those of the two kinds of row.
    """
    figure, axes = _axes(xlabel="predicted probability", ylabel="share of rows", xlim=(0, 1))
    edges = np.linspace(0, 1, 31)
    for kind, name in enumerate(names):
        rows = score[hit == kind]
        if len(rows):
            weights = np.full(len(rows), 1 / len(rows))
            label = f"{short(name)} ({len(rows)})"
            axes.hist(rows, edges.tolist(), weights=weights, alpha=0.6, label=label)
    axes.legend(fontsize=7)
    return figure


@styled
def threshold_curves(curve: Thresholds, used: float = 0.5) -> Figure:
    """Draw precision, recall and F1 by the threshold, with a line at the one that is ``used``."""
    figure, axes = _axes(xlabel="threshold", ylabel="", xlim=(0, 1), ylim=(0, 1.01))
    for name in ("precision", "recall", "f1"):
        x, y = thinned(curve.at[1:], getattr(curve, name)[1:])
        axes.plot(x, y, label=name.replace("f1", "F1"))
    axes.axvline(used, color=GREY, linestyle=":", linewidth=1)
    axes.legend(fontsize=7, loc="lower center")
    return figure


@styled
def predicted_against_actual(target: Array, predicted: Array) -> Figure:
    """Draw predictions by targets, [rows] each; a random sample if there are many rows."""
    figure, axes = _axes(xlabel="target", ylabel="prediction")
    rows = _sample(len(target))
    _scatter(axes, target[rows], predicted[rows])
    ends = [min(target.min(), predicted.min()), max(target.max(), predicted.max())]
    axes.plot(ends, ends, color=GREY, linestyle=":", linewidth=1)
    _shorten_ticks(axes.xaxis, axes.yaxis)
    return figure


@styled
def residuals(target: Array, predicted: Array) -> Figure:
    """Draw errors by predictions, both from arrays [rows], beside the distribution of errors."""
    figure = Figure((6.4, 3.4))
    axes = figure.add_axes((0.11, 0.15, 0.58, 0.82))
    beside = figure.add_axes((0.72, 0.15, 0.26, 0.82), sharey=axes)
    rows, error = _sample(len(target)), predicted - target
    _scatter(axes, predicted[rows], error[rows])
    axes.axhline(0, color=GREY, linestyle=":", linewidth=1)
    axes.set(xlabel="prediction", ylabel="prediction - target")
    beside.hist(error, 40, orientation="horizontal", alpha=0.8)
    beside.tick_params(labelleft=False)
    beside.set(xlabel="rows")
    _shorten_ticks(axes.xaxis, axes.yaxis)
    return figure


def _sample(rows: int) -> Array:
    if rows <= MAX_SCATTER_ROWS:
        return np.arange(rows)
    return np.random.default_rng(0).choice(rows, MAX_SCATTER_ROWS, replace=False)


def _scatter(axes: Axes, x: Array, y: Array) -> None:
    axes.scatter(x, y, s=8, alpha=0.5, linewidths=0, rasterized=len(x) > RASTER_POINTS)


@styled
def error_by_decile(tenths: Deciles) -> Figure:
    """Draw the mean absolute error and the mean error of each tenth of the targets."""
    figure, axes = _axes(6.4, xlabel="target", ylabel="error")
    positions = np.arange(len(tenths.low))
    axes.bar(positions, tenths.absolute, alpha=0.7, label="mean absolute error")
    axes.plot(
        positions, tenths.mean, marker="o", markersize=4, color=COLOURS[1], label="mean error"
    )
    axes.axhline(0, color=GREY, linewidth=1)
    limits = zip(tenths.low, tenths.high, strict=True)
    ticks = [f"{_tick(low)}\n{_tick(high)}" for low, high in limits]
    axes.set_xticks(positions, ticks, fontsize=7)
    _shorten_ticks(axes.yaxis)
    axes.legend(fontsize=7)
    return figure


def _tick(value: float) -> str:
    """Return a number of three digits, with k, M or G in place of an exponent: 39.7k."""
    return EngFormatter(sep="")(float(f"{value:.3g}")) if abs(value) >= 1e4 else f"{value:.3g}"


def _shorten_ticks(*axes: Axis) -> None:
    """Write large numbers at axes with k, M or G, so that they neither overlap nor are cut."""
    for axis in axes:
        if np.abs(axis.get_view_interval()).max() >= 1e4:
            axis.set_major_locator(MaxNLocator(6))
            axis.set_major_formatter(EngFormatter(sep=""))


@styled
def importances(
    names: Sequence[str], limits: Sequence[tuple[float, float, float]], label: str
) -> Figure:
    """Draw a bar with its interval for each of at most about 30 columns, the first at the top.

    ``limits`` holds the value, the low and the high limit of each column.
    """
    value, low, high = np.array(limits).T
    height = 0.7 + 0.22 * len(names)
    figure = Figure((6.4, height))
    axes = figure.add_axes((0.27, 0.5 / height, 0.7, 1 - 0.6 / height))
    positions = np.arange(len(names))
    axes.barh(positions, value, 0.7, alpha=0.7)
    axes.hlines(positions, low, high, color=INK, linewidth=1.2)
    axes.axvline(0, color=GREY, linewidth=1)
    axes.set_yticks(positions, [short(name, 24) for name in names], fontsize=8)
    axes.set(xlabel=label, ylim=(len(names) - 0.4, -0.6))
    axes.grid(visible=False, axis="y")
    return figure


@styled
def learning_curves(curves: Sequence[Curve], label: str, limit: float | None = None) -> Figure:
    """Draw a metric of the training and the validation split by optimizer steps.

    The axis ends at ``limit`` if it is given; higher points are beyond it.
    """
    figure, axes = _axes(xlabel="optimizer steps", ylabel=label)
    for curve in curves:
        # A line of one point would be invisible.
        marker = "o" if len(curve.x) < 3 else None
        axes.plot(curve.x, curve.y, label=short(curve.name), marker=marker)
    if limit is not None:
        axes.set_ylim(top=limit, bottom=min(float(np.nanmin(curve.y)) for curve in curves))
    axes.legend(fontsize=7)
    return figure
