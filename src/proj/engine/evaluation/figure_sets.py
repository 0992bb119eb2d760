"""Which figures a set of outcomes asks for, each with its name and its caption."""

from collections.abc import Iterator, Sequence

import numpy as np
from matplotlib.figure import Figure

from proj.engine.console import number
from proj.engine.evaluation import curves, figures
from proj.engine.evaluation.figures import Curve
from proj.engine.evaluation.intervals import AREAS
from proj.engine.evaluation.prediction_set import Array, PredictionSet

Drawn = tuple[str, Figure, str]

EACH = 6  # labels or targets that have figures of their own
CLASSES = 50  # in a confusion matrix


def figures_of(outcomes: PredictionSet) -> Iterator[Drawn]:
    """All figures of a task; none where a prediction is no number."""
    if outcomes.missing:
        return
    if outcomes.task == "regression":
        for i, name in enumerate(outcomes.names[:EACH]):
            yield from _of_numbers(
                outcomes.target[:, i],
                outcomes.output[:, i],
                name if len(outcomes.names) > 1 else "",
            )
        return
    if outcomes.task != "multilabel" and len(outcomes.names) <= CLASSES:
        matrix = curves.confusion(outcomes)
        yield (
            "confusion",
            figures.confusion_matrix(matrix, outcomes.names, shares=False),
            "Confusion matrix: rows of each class.",
        )
        yield (
            "confusion_percent",
            figures.confusion_matrix(matrix, outcomes.names, shares=True),
            "Confusion matrix: percent of the target's rows.",
        )
    yield from _areas(outcomes)
    yield ("reliability", *reliability(outcomes))
    hits, scores = outcomes.hits, outcomes.scores
    if outcomes.task == "multiclass":
        sure, right = curves.confidence(outcomes)
        yield (
            "probability",
            figures.score_histogram(sure, right, ("wrong", "right")),
            "Probability of the prediction, where it is right and where it is wrong.",
        )
        return
    names = (
        [("not", name) for name in outcomes.names]
        if outcomes.task == "multilabel"
        else [outcomes.names[:2]]
    )
    for i, pair in enumerate(names[:EACH]):
        of, end = (f" of {pair[1]}", f"/{pair[1]}") if len(names) > 1 else ("", "")
        yield (
            f"probability{end}",
            figures.score_histogram(scores[:, i], hits[:, i], (pair[0], pair[1])),
            f"Predicted probability{of or f' of {pair[1]}'}, by what is the case.",
        )
        used = outcomes.thresholds[i if len(outcomes.thresholds) > 1 else 0]
        yield (
            f"threshold{end}",
            figures.threshold_curves(curves.thresholds(scores[:, i], hits[:, i]), used),
            f"What another threshold would give{of}; {used:.3g} is used.",
        )


def _areas(outcomes: PredictionSet) -> Iterator[Drawn]:
    """The curves of the classes that have rows of both kinds, with the areas beneath."""
    found = []
    for i in range(outcomes.hits.shape[1]):
        hit, score = outcomes.hits[:, i], outcomes.scores[:, i]
        if hit.any() and not hit.all():
            name = outcomes.names[-1 if outcomes.task == "binary" else i]
            found.append(
                (
                    name,
                    curves.thresholds(score, hit),
                    {kind: of(score, hit)[0] for kind, of in AREAS.items()},
                )
            )
    if not found:
        return
    areas = {kind: number(float(np.mean([area[kind] for *_, area in found]))) for kind in AREAS}
    mean = "mean area" if len(found) > 1 else "area"
    yield (
        "roc",
        figures.roc(
            [
                Curve(f"{name} {area['auroc']:.3f}", t.false_rate, t.recall)
                for name, t, area in found
            ]
        ),
        f"ROC curve{'s, each class against the rest' if len(found) > 1 else ''}; {mean} {areas['auroc']}.",
    )
    yield (
        "precision_recall",
        figures.precision_recall(
            [
                Curve(f"{name} {area['average_precision']:.3f}", t.recall[1:], t.precision[1:])
                for name, t, area in found
            ]
        ),
        f"Precision by recall; average precision{', the mean,' if len(found) > 1 else ''} "
        f"{areas['average_precision']}.",
    )


def reliability(outcomes: PredictionSet, of: str = "Reliability") -> tuple[Figure, str]:
    found = curves.reliability(*curves.confidence(outcomes))
    what = (
        "the prediction's probability"
        if outcomes.task == "multiclass"
        else "the predicted probability"
    )
    return (
        figures.reliability_diagram(found),
        f"{of}: how often {what} came true; expected calibration error {number(found.error)}.",
    )


def _of_numbers(target: Array, predicted: Array, name: str) -> Iterator[Drawn]:
    of, end = (f" of {name}", f"/{name}") if name else ("", "")
    sample = f", {figures.POINTS} rows drawn at random" if len(target) > figures.POINTS else ""
    yield (
        f"prediction{end}",
        figures.predicted_against_actual(target, predicted),
        f"Prediction by target{of}{sample}.",
    )
    yield (
        f"error{end}",
        figures.residuals(target, predicted),
        f"Errors{of} by prediction{sample}, and how often they occur.",
    )
    yield (
        f"error_by_target{end}",
        figures.error_by_decile(curves.deciles(target, predicted)),
        f"Errors{of} by tenths of the rows, from the smallest targets to the largest.",
    )


def learning(
    scalars: dict[str, tuple[Array, Array]], wanted: Sequence[str]
) -> Iterator[tuple[Figure, str]]:
    """Curves of metrics in training and on the validation part, from what TensorBoard was told: steps and values."""
    for name in wanted:
        lines = [
            Curve(stage, *scalars[f"{stage}/{name}"])
            for stage in ("train", "val")
            if f"{stage}/{name}" in scalars
        ]
        if lines:
            last = ", ".join(f"{line.name} {number(float(line.y[-1]))}" for line in lines)
            yield (
                figures.learning_curves(lines, name),
                f"{name} by optimizer steps; at the end {last}.",
            )
