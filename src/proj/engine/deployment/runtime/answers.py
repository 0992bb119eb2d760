"""Outputs of the net as answers: labels, probabilities and numbers in the user's own terms."""

from collections.abc import Mapping
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


class Answers:
    """Columns of answers, as in the files of predictions.

    Args:
        spec: ``outputs`` of ``bundle.json``: task, classes or names, thresholds.
    """

    def __init__(self, spec: Mapping[str, Any]) -> None:
        self.task, self.names = spec["task"], spec["names"]
        self.classes = np.asarray(spec["classes"])
        self.thresholds = spec["thresholds"]

    def columns(self, output: Array) -> dict[str, Array]:
        """Return ``prediction`` and ``probability_CLASS`` [rows] by name.

        Args:
            output: probabilities of the positive class [rows], of classes [rows, classes] or of
                labels [rows, labels], or numbers [rows, targets].
        """
        if self.task == "binary":
            predicted = output > np.asarray(self.thresholds, output.dtype)
            return self._of_classes(predicted.astype(np.int64), np.stack([1 - output, output], 1))
        if self.task == "multiclass":
            return self._of_classes(output.argmax(1), output)
        if self.task == "numbers":
            return {name: output[:, i] for i, name in enumerate(self.names)}
        suffixes = [f"_{name}" for name in self.names] if len(self.names) > 1 else [""]
        predicted = output
        if self.task == "multilabel":
            predicted = (output > np.asarray(self.thresholds, output.dtype)).astype(np.int64)
        columns = {f"prediction{s}": predicted[:, i] for i, s in enumerate(suffixes)}
        if self.task == "multilabel":
            columns |= {f"probability{s}": output[:, i] for i, s in enumerate(suffixes)}
        return columns

    def _of_classes(self, predicted: Array, probability: Array) -> dict[str, Array]:
        columns = {"prediction": self.classes[predicted]}
        for i, name in enumerate(self.names):
            columns[f"probability_{name}"] = probability[:, i]
        return columns
