"""Outputs of the net as answers: labels, probabilities and numbers in the user's own terms."""

from collections.abc import Mapping
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


class Answers:
    """Columns of answers, as in the files of predictions.

    Args:
        spec: ``outputs`` of ``bundle.json``: task, classes or names, thresholds, conformal limits.
    """

    def __init__(self, spec: Mapping[str, Any]) -> None:
        self.task, self.names = spec["task"], spec["names"]
        self.classes = np.asarray(spec["classes"])
        self.thresholds = spec["thresholds"]
        # Bundles of programs before limits have none.
        self.limits = np.asarray(spec.get("conformal_limits", []), np.float64)

    def columns(self, output: Array) -> dict[str, Array]:
        """Return ``prediction`` and ``probability_CLASS`` [rows] by name, and intervals or sets.

        With conformal limits, numbers have ``low`` and ``high``, and classes have ``set``, an array
        of lists.

        Args:
            output: probabilities of the positive class [rows], of classes [rows, classes] or of
                labels [rows, labels], or numbers [rows, targets].
        """
        return {**self._predictions(output), **self._uncertainty(output)}

    def _predictions(self, output: Array) -> dict[str, Array]:
        if self.task == "binary":
            predicted = output > np.asarray(self.thresholds, output.dtype)
            return self._of_classes(predicted.astype(np.int64), np.stack([1 - output, output], 1))
        if self.task == "multiclass":
            return self._of_classes(output.argmax(1), output)
        if self.task == "numbers":
            return {name: output[:, i] for i, name in enumerate(self.names)}
        suffixes = self._suffixes()
        predicted = output
        if self.task == "multilabel":
            predicted = (output > np.asarray(self.thresholds, output.dtype)).astype(np.int64)
        columns = {f"prediction{s}": predicted[:, i] for i, s in enumerate(suffixes)}
        if self.task == "multilabel":
            columns |= {f"probability{s}": output[:, i] for i, s in enumerate(suffixes)}
        return columns

    def _suffixes(self) -> list[str]:
        """Return what the names of columns end with, for each target or label."""
        several = self.task in ("regression", "multilabel") and len(self.names) > 1
        return [f"_{name}" for name in self.names] if several else [""]

    def _uncertainty(self, output: Array) -> dict[str, Array]:
        """Return the columns of intervals or sets."""
        if not len(self.limits):
            return {}
        suffixes = self._suffixes()
        if self.task == "regression":
            low, high = output - self.limits, output + self.limits
            lows = {f"low{s}": low[:, i] for i, s in enumerate(suffixes)}
            return {**lows, **{f"high{s}": high[:, i] for i, s in enumerate(suffixes)}}
        options = self.classes if self.task != "multilabel" else np.arange(2)
        present = output[:, None] if self.task == "binary" else output
        # The classes are the options of one target; a label is absent or present.
        probability = np.stack([1 - present, present], 2)
        if self.task == "multiclass":
            probability = output[:, None]
        inside = probability >= self.limits.astype(output.dtype)[:, None]
        return {f"set{s}": _lists(inside[:, i], options) for i, s in enumerate(suffixes)}

    def _of_classes(self, predicted: Array, probability: Array) -> dict[str, Array]:
        columns = {"prediction": self.classes[predicted]}
        for i, name in enumerate(self.names):
            columns[f"probability_{name}"] = probability[:, i]
        return columns


def _lists(inside: Array, options: Array) -> Array:
    """Return a list of the options of each row [rows], given ``inside`` [rows, options]."""
    lists = np.empty(len(inside), object)
    for i, row in enumerate(inside):
        lists[i] = options[row].tolist()
    return lists
