"""The figures for each task, with names and captions."""

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from proj.engine.console import number, plural
from proj.engine.evaluation import curves, figures
from proj.engine.evaluation.areas import AREAS
from proj.engine.evaluation.figures import Curve
from proj.engine.evaluation.prediction_set import PredictionSet
from proj.engine.html import pixels
from proj.schema import Array

if TYPE_CHECKING:
    # It imports TensorBoard, and `report` writes nothing for it.
    from torch.utils.tensorboard import SummaryWriter

# Only the first labels or targets have figures of their own.
MAX_NAMES = 6
# A confusion matrix of more classes would be illegible.
MAX_CLASSES = 50


class NamedFigure(NamedTuple):
    """A figure with its name in TensorBoard and its caption in reports."""

    name: str
    figure: Figure
    caption: str


def figures_of(predictions: PredictionSet) -> Iterator[NamedFigure]:
    """Yield all figures of a task; none if a prediction is not a finite number."""
    if predictions.missing:
        return
    if predictions.task == "regression":
        for i, name in enumerate(predictions.names[:MAX_NAMES]):
            shown = name if len(predictions.names) > 1 else ""
            yield from _regression_figures(
                predictions.target[:, i], predictions.output[:, i], shown, predictions.weight
            )
        return
    if predictions.task != "multilabel" and len(predictions.names) <= MAX_CLASSES:
        yield from _confusion_figures(predictions)
    yield from _curve_figures(predictions)
    yield NamedFigure("reliability", *reliability(predictions))
    if predictions.task == "multiclass":
        yield NamedFigure(
            "probability",
            figures.score_histogram(*curves.confidence(predictions)[:2], ("wrong", "correct")),
            "Probability of the prediction, for wrong and for correct predictions."
            f"{_unweighted(predictions.weight)}",
        )
    else:
        yield from _probability_figures(predictions)


def _confusion_figures(predictions: PredictionSet) -> Iterator[NamedFigure]:
    matrix, names = curves.confusion(predictions), predictions.names
    yield NamedFigure(
        "confusion",
        figures.confusion_matrix(matrix, names, shares=False),
        "Confusion matrix: rows of each class."
        if predictions.weight is None
        else "Confusion matrix: weights of the rows of each class.",
    )
    yield NamedFigure(
        "confusion_percent",
        figures.confusion_matrix(matrix, names, shares=True),
        "Confusion matrix: percent of the target's rows.",
    )


def _probability_figures(predictions: PredictionSet) -> Iterator[NamedFigure]:
    """Yield the figures of the positive class, or of each label."""
    if predictions.task == "multilabel":
        pairs = [("not", name) for name in predictions.names]
    else:
        pairs = [(predictions.names[0], predictions.names[1])]
    several = len(pairs) > 1
    columns = zip(predictions.scores.T, predictions.hits.T, pairs, strict=True)
    for i, (score, hit, pair) in enumerate(list(columns)[:MAX_NAMES]):
        suffix, of_name = (f"/{pair[1]}", f" of {pair[1]}") if several else ("", "")
        yield NamedFigure(
            f"probability{suffix}",
            figures.score_histogram(score, hit, pair),
            f"Predicted probability of {pair[1]}, by the target.{_unweighted(predictions.weight)}",
        )
        used = predictions.thresholds[i if len(predictions.thresholds) > 1 else 0]
        yield NamedFigure(
            f"threshold{suffix}",
            figures.threshold_curves(curves.thresholds(score, hit, predictions.weight), used),
            f"Metrics{of_name} by threshold; {used:.3g} is used.",
        )


def _curve_figures(predictions: PredictionSet) -> Iterator[NamedFigure]:
    """Yield the curves of the classes that have rows of both kinds, with the areas below them."""
    names, thresholds = [], []
    areas: dict[str, list[float]] = {kind: [] for kind in AREAS}
    for i, (score, hit) in enumerate(zip(predictions.scores.T, predictions.hits.T, strict=True)):
        if hit.any() and not hit.all():
            names.append(predictions.names[-1 if predictions.task == "binary" else i])
            thresholds.append(curves.thresholds(score, hit, predictions.weight))
            for kind, area in AREAS.items():
                areas[kind].append(area(score, hit, predictions.weight)[0])
    if not names:
        return
    means = {kind: number(float(np.mean(values))) for kind, values in areas.items()}
    several = len(names) > 1
    roc_curves = [
        Curve(f"{name} {area:.3f}", curve.false_rate, curve.recall)
        for name, curve, area in zip(names, thresholds, areas["auroc"], strict=True)
    ]
    yield NamedFigure(
        "roc",
        figures.roc(roc_curves),
        f"ROC curves, each class against the rest; mean area {means['auroc']}."
        if several
        else f"ROC curve; area {means['auroc']}.",
    )
    # The first threshold accepts no row and has no precision.
    precision_curves = [
        Curve(f"{name} {area:.3f}", curve.recall[1:], curve.precision[1:])
        for name, curve, area in zip(names, thresholds, areas["average_precision"], strict=True)
    ]
    mean = "mean average precision" if several else "average precision"
    yield NamedFigure(
        "precision_recall",
        figures.precision_recall(precision_curves),
        f"Precision by recall; {mean} {means['average_precision']}.",
    )


def reliability(predictions: PredictionSet, title: str = "Reliability") -> tuple[Figure, str]:
    """Return the reliability diagram and its caption."""
    bins = curves.reliability(*curves.confidence(predictions))
    event = "predictions are correct" if predictions.task == "multiclass" else "the event occurs"
    return (
        figures.reliability_diagram(bins),
        f"{title}: how often {event}, by predicted probability; expected calibration error "
        f"{number(bins.error)}.",
    )


def _unweighted(weight: Array | None) -> str:
    """Return a sentence about a figure of single rows, empty for rows without weights."""
    return "" if weight is None else " Each row counts once, whatever its weight."


def _regression_figures(
    target: Array, predicted: Array, name: str, weight: Array | None
) -> Iterator[NamedFigure]:
    of_name, suffix = (f" of {name}", f"/{name}") if name else ("", "")
    limit = figures.MAX_SCATTER_ROWS
    sample = f", a random sample of {limit} rows" if len(target) > limit else ""
    yield NamedFigure(
        f"prediction{suffix}",
        figures.predicted_against_actual(target, predicted),
        f"Prediction by target{of_name}{sample}.{_unweighted(weight)}",
    )
    yield NamedFigure(
        f"error{suffix}",
        figures.residuals(target, predicted),
        f"Errors{of_name} by prediction{sample}, and their distribution.{_unweighted(weight)}",
    )
    yield NamedFigure(
        f"error_by_target{suffix}",
        figures.error_by_decile(curves.deciles(target, predicted, weight)),
        f"Errors{of_name} by tenths of the rows, from the smallest targets to the largest.",
    )


def learning(
    scalars: dict[str, tuple[Array, Array]], metrics: Sequence[str]
) -> Iterator[tuple[Figure, str]]:
    """Yield the learning curves of metrics, with captions.

    ``scalars`` has the optimizer steps and the values by tag, such as ``val/loss``.
    """
    for metric in metrics:
        lines = [
            Curve(split, *scalars[f"{split}/{metric}"])
            for split in ("train", "val")
            if f"{split}/{metric}" in scalars
        ]
        if lines:
            last = ", ".join(f"{line.name} {number(float(line.y[-1]))}" for line in lines)
            limit = curves.spike_limit([line.y for line in lines])
            yield (
                figures.learning_curves(lines, metric, limit),
                f"{metric} by optimizer steps; at the end {last}.{_beyond(lines, limit)}",
            )


def _beyond(lines: Sequence[Curve], limit: float | None) -> str:
    """Return a sentence about the points above the end of the axis, empty without such points."""
    if limit is None:
        return ""
    count = sum(int((line.y > limit).sum()) for line in lines)
    peak = max(lines, key=lambda line: float(np.nanmax(line.y)))
    step = peak.x[int(np.nanargmax(peak.y))]
    return (
        f" {plural(count, 'value')} above {number(limit)} {'is' if count == 1 else 'are'} beyond "
        f"the axis, the largest {number(float(np.nanmax(peak.y)))} of {peak.name} at step {step}."
    )


def log_figures(
    writer: "SummaryWriter", split: str, figures: Iterable[NamedFigure], step: int
) -> None:
    """Log figures as images to TensorBoard at an optimizer step."""
    for name, figure, _ in figures:
        writer.add_image(f"{split}/{name}", pixels(figure), step, dataformats="HWC")
