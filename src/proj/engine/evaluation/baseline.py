"""The simplest baseline: what the same prediction for every row scores."""

from dataclasses import replace
from typing import NamedTuple

import numpy as np

from proj.engine.console import number, signed
from proj.engine.evaluation.counts import headline_metric, metric_names, scores, sums_of
from proj.engine.evaluation.prediction_set import PredictionSet
from proj.engine.runs.predictions import apply_thresholds
from proj.schema import DEFAULT_THRESHOLD, Array, Schema

# More labels or targets are not named one by one.
MAX_NAMES = 3


class Baseline(NamedTuple):
    """What one prediction for every row scores, beside what the run scores on the same rows.

    Attributes:
        prediction: the prediction in words, such as ``always No, the most frequent class …``.
        scores: by name, the headline metric and, for classes and labels, accuracy.
        run_scores: the same metrics of the run.
    """

    prediction: str
    scores: dict[str, float]
    run_scores: dict[str, float]

    def __str__(self) -> str:
        parts = []
        for name, score in self.scores.items():
            difference = self.run_scores[name] - score
            run = f"this run: {signed(difference)}" if difference else "as this run"
            parts.append(f"{name} {number(score)} ({run})")
        return f"baseline, {self.prediction}: {', '.join(parts)}"


def constant_baseline(predictions: PredictionSet, schema: Schema) -> Baseline | None:
    """Return what the most frequent class, or the mean target, of the training split scores.

    For several labels, it is the most frequent value of each label. None if the schema does not
    know the training split, as ``Schema.of`` does not, or if a prediction is not a finite number.

    Args:
        predictions: the rows that are scored.
        schema: the schema, for the class counts or the mean targets of the training split.
    """
    is_known = bool(schema.rows) and (schema.task == "regression" or bool(schema.class_counts))
    if not is_known or predictions.missing:
        return None
    output = constant_output(schema)
    rows = np.broadcast_to(output, (len(predictions), *output.shape))
    constant = replace(predictions, output=rows, thresholds=DEFAULT_THRESHOLD, columns=None)
    return Baseline(_words(schema), _scores(constant), _scores(predictions))


def _scores(predictions: PredictionSet) -> dict[str, float]:
    """Return the headline metric and accuracy in float64."""
    sums = sums_of(predictions, np.zeros(len(predictions), np.int64), 1)[0]
    values = scores(sums, predictions).tolist()
    by_name = dict(zip(metric_names(predictions), values, strict=True))
    names = [headline_metric(predictions.task), "accuracy"]
    return {name: by_name[name] for name in names if name in by_name}


def constant_output(schema: Schema) -> Array:
    """Return the best output that is the same for every row, in the shape for one row.

    It is the frequencies of the classes or labels in the training split, or the mean targets. The
    prediction is then the most frequent class, or the most frequent value of each label.
    """
    if schema.task == "regression":
        return np.array(schema.target_mean)
    counts = np.array(schema.class_counts)
    frequencies = counts / (schema.rows if schema.task == "multilabel" else counts.sum())
    return np.asarray(frequencies[1] if schema.task == "binary" else frequencies)


def _words(schema: Schema) -> str:
    """Return the prediction of the constant output in words."""
    if schema.task == "regression":
        means = [number(mean) for mean in schema.target_mean]
        shown = f" {means[0]}" if len(means) == 1 else "s"
        return f"always the training mean{shown}"
    output = constant_output(schema)
    if schema.task == "multilabel":
        set_labels = apply_thresholds(output).astype(bool)
        names = [
            name for name, is_set in zip(schema.class_names, set_labels, strict=True) if is_set
        ]
        shown = f"{', '.join(names[:MAX_NAMES])}{', …' if len(names) > MAX_NAMES else ''}"
        most = "always the most frequent value of each label in training"
        return f"{most} ({shown or 'none of them'})"
    name = schema.class_names[int(np.argmax(schema.class_counts))]
    return f"always {name}, the most frequent class in training"
