"""Figures, drawn by pure functions of arrays, with matplotlib's own objects: no state is kept anywhere."""

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, Literal, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from proj.engine.evaluation.curves import Deciles, Reliability, Thresholds, thinned
from proj.engine.evaluation.prediction_set import Array
from proj.engine.html import COLOURS, INK, style

LINES = 12  # curves told apart in one figure
CELLS = 15  # classes up to which numbers are written into a confusion matrix
POINTS = 2_000  # rows drawn as points


class Curve(NamedTuple):
    """A line of points, by its name."""

    name: str
    x: Array
    y: Array


def styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
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


def short(name: str, most: int = 18) -> str:
    name = " ".join(str(name).split())
    return name if len(name) <= most else f"{name[: most - 1]}…"


@styled
def confusion_matrix(matrix: Array, names: Sequence[str], shares: bool) -> Figure:
    """Rows by target [classes] and prediction, as numbers, or as ``shares`` of the target's rows; 2 to 50 classes."""
    count = len(names)
    side = 1.6 + (0.32 if count <= CELLS else 0.14) * max(count, 4)
    figure = Figure((side, side), layout="constrained")
    axes = figure.add_subplot()
    rows = matrix.sum(axis=1, keepdims=True)
    share = np.divide(matrix, rows, out=np.zeros(matrix.shape), where=rows > 0)
    colour = np.zeros((count, count, 4))
    colour[...] = mpl.colors.to_rgba(COLOURS[0])
    colour[..., 3] = 0.75 * np.sqrt(share)  # so that few mistakes are seen
    axes.imshow(colour, interpolation="none")
    size = 9 if count <= CELLS else 6
    axes.set_xticks(range(count), [short(name, 12) for name in names], rotation=90, fontsize=size)
    axes.set_yticks(range(count), [short(name, 12) for name in names], fontsize=size)
    axes.set(xlabel="predicted", ylabel="target")
    axes.grid(visible=False)
    if count <= CELLS:
        for i, j in np.ndindex(count, count):
            if matrix[i, j]:
                text = f"{100 * share[i, j]:.0f}" if shares else f"{matrix[i, j]}"
                axes.text(j, i, text, ha="center", va="center", fontsize=7 if len(text) > 4 else 8)
    return figure


@styled
def roc(curves: Sequence[Curve]) -> Figure:
    """Recall against the rate of false alarms."""
    figure, axes = _axes(
        xlabel="false positive rate", ylabel="true positive rate", xlim=(0, 1), ylim=(0, 1.01)
    )
    axes.plot([0, 1], [0, 1], color="#999999", linestyle=":", linewidth=1)
    _lines(axes, curves, "lower right")
    return figure


@styled
def precision_recall(curves: Sequence[Curve]) -> Figure:
    figure, axes = _axes(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.01))
    _lines(axes, curves, "lower left", drawstyle="steps-pre")
    return figure


def _lines(
    axes: Axes, curves: Sequence[Curve], place: Literal["lower left", "lower right"], **options: Any
) -> None:
    """Each curve by its name, or all in grey where they are too many to tell apart."""
    many = len(curves) > LINES
    for curve in curves:
        x, y = thinned(curve.x, curve.y)
        kind = (
            {"color": COLOURS[0], "alpha": 0.35, "linewidth": 0.8}
            if many
            else {"label": short(curve.name, 30)}
        )
        axes.plot(x, y, **kind, **options)
    if len(curves) > 1 and not many:
        axes.legend(loc=place, fontsize=7)


@styled
def reliability_diagram(found: Reliability) -> Figure:
    """Predicted probabilities against how often it happened; below, how many rows there are of each."""
    figure = Figure((4.6, 3.8))
    axes, below = (
        figure.add_axes((0.14, bottom, 0.83, height))
        for bottom, height in ((0.34, 0.63), (0.12, 0.16))
    )
    axes.plot([0, 1], [0, 1], color="#999999", linestyle=":", linewidth=1)
    there = found.rows > 0
    axes.plot(found.predicted[there], found.happened[there], marker="o", markersize=4)
    axes.set(xlim=(0, 1), ylim=(0, 1.01), ylabel="share that came true")
    bins = len(found.rows)
    below.bar((np.arange(bins) + 0.5) / bins, found.rows, 0.9 / bins)
    below.set(xlim=(0, 1), xlabel="predicted probability", ylabel="rows")
    return figure


@styled
def score_histogram(score: Array, hit: Array, names: tuple[str, str]) -> Figure:
    """Predicted probabilities of rows of one kind and of the other, each as shares of its own."""
    figure, axes = _axes(xlabel="predicted probability", ylabel="share of its rows", xlim=(0, 1))
    edges = np.linspace(0, 1, 31)
    for kind, name in enumerate(names):
        rows = score[hit == kind]
        if len(rows):
            weights = np.full(len(rows), 1 / len(rows))
            axes.hist(
                rows,
                edges.tolist(),
                weights=weights,
                alpha=0.6,
                label=f"{short(name)} ({len(rows)})",
            )
    axes.legend(fontsize=7)
    return figure


@styled
def threshold_curves(found: Thresholds, used: float = 0.5) -> Figure:
    """Precision, recall and F1 by the probability from which a row is taken for positive; a line where it is ``used``."""
    figure, axes = _axes(xlabel="threshold", ylabel="", xlim=(0, 1), ylim=(0, 1.01))
    for name in ("precision", "recall", "f1"):
        x, y = thinned(found.at[1:], getattr(found, name)[1:])
        axes.plot(x, y, label=name.replace("f1", "F1"))
    axes.axvline(used, color="#999999", linestyle=":", linewidth=1)
    axes.legend(fontsize=7, loc="lower center")
    return figure


@styled
def predicted_against_actual(target: Array, predicted: Array) -> Figure:
    """[rows] each; a sample of the rows where they are many."""
    figure, axes = _axes(xlabel="target", ylabel="prediction")
    rows = _some(len(target))
    axes.scatter(
        target[rows], predicted[rows], s=8, alpha=0.5, linewidths=0, rasterized=len(rows) > 500
    )
    ends = [min(target.min(), predicted.min()), max(target.max(), predicted.max())]
    axes.plot(ends, ends, color="#999999", linestyle=":", linewidth=1)
    return figure


@styled
def residuals(target: Array, predicted: Array) -> Figure:
    """How far off predictions are [rows]: by the prediction, and how often."""
    figure = Figure((6.4, 3.4))
    axes = figure.add_axes((0.11, 0.15, 0.58, 0.82))
    beside = figure.add_axes((0.72, 0.15, 0.26, 0.82), sharey=axes)
    rows, error = _some(len(target)), predicted - target
    axes.scatter(
        predicted[rows], error[rows], s=8, alpha=0.5, linewidths=0, rasterized=len(rows) > 500
    )
    axes.axhline(0, color="#999999", linestyle=":", linewidth=1)
    axes.set(xlabel="prediction", ylabel="prediction - target")
    beside.hist(error, 40, orientation="horizontal", alpha=0.8)
    beside.tick_params(labelleft=False)
    beside.set(xlabel="rows")
    return figure


def _some(rows: int) -> Array:
    return (
        np.arange(rows)
        if rows <= POINTS
        else np.random.default_rng(0).choice(rows, POINTS, replace=False)
    )


@styled
def error_by_decile(found: Deciles) -> Figure:
    """Mean absolute error, and mean error, of each tenth of the targets."""
    figure, axes = _axes(6.4, xlabel="target", ylabel="error")
    places = np.arange(len(found.low))
    axes.bar(places, found.absolute, alpha=0.7, label="mean absolute error")
    axes.plot(places, found.mean, marker="o", markersize=4, color=COLOURS[1], label="mean error")
    axes.axhline(0, color="#999999", linewidth=1)
    ticks = [f"{low:.3g}\n{high:.3g}" for low, high in zip(found.low, found.high, strict=True)]
    axes.set_xticks(places, ticks, fontsize=7)
    axes.legend(fontsize=7)
    return figure


@styled
def importances(
    names: Sequence[str], limits: Sequence[tuple[float, float, float]], label: str
) -> Figure:
    """A bar and its interval for up to some thirty columns, the first at the top; ``limits`` are value, low and high."""
    value, low, high = np.array(limits).T
    height = 0.7 + 0.22 * len(names)
    figure = Figure((6.4, height))
    axes = figure.add_axes((0.27, 0.5 / height, 0.7, 1 - 0.6 / height))
    places = np.arange(len(names))
    axes.barh(places, value, 0.7, alpha=0.7)
    axes.hlines(places, low, high, color=INK, linewidth=1.2)
    axes.axvline(0, color="#999999", linewidth=1)
    axes.set_yticks(places, [short(name, 24) for name in names], fontsize=8)
    axes.set(xlabel=label, ylim=(len(names) - 0.4, -0.6))
    axes.grid(visible=False, axis="y")
    return figure


@styled
def learning_curves(curves: Sequence[Curve], label: str) -> Figure:
    """A metric in training and on the validation part, by optimizer steps."""
    figure, axes = _axes(xlabel="optimizer steps", ylabel=label)
    for curve in curves:
        axes.plot(
            curve.x, curve.y, label=short(curve.name), marker="o" if len(curve.x) < 3 else None
        )
    axes.legend(fontsize=7)
    return figure
