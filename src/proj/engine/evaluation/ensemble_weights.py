"""Weights of an ensemble: greedy selection with replacement on the validation split."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from proj.engine.evaluation.curves import log_losses
from proj.engine.evaluation.prediction_set import PredictionSet
from proj.schema import Array, Schema

# Selections in all; a weight is a multiple of one divided by the number of those that are kept.
SELECTIONS = 50
# A sum of probabilities over few members may lie below or above 0 and 1 by rounding.
SMALLEST = 1e-15


def row_losses(predictions: PredictionSet, schema: Schema) -> Array:
    """Return each row's log loss, or its squared error of standardized targets: [rows]."""
    if predictions.task != "regression":
        return log_losses(predictions)
    error = (predictions.output - predictions.target) / np.array(schema.target_std)
    return np.asarray((error**2).mean(axis=1))


def mean_loss(predictions: PredictionSet, schema: Schema, output: Array) -> float:
    """Return the mean loss of other outputs for the same rows, with the rows' weights.

    Probabilities of 0 count as 1e-15, so that a single row cannot make all losses infinite.
    """
    if predictions.task != "regression":
        output = np.clip(output, SMALLEST, 1 - SMALLEST)
    return predictions.mean(row_losses(replace(predictions, output=output), schema))


def greedy_weights(
    candidates: Sequence[PredictionSet], schema: Schema, selections: int = SELECTIONS
) -> list[float]:
    """Return the weight of each candidate, with the sum 1; those that do not help have 0.

    In each round, the candidate with which the average has the smallest loss is selected once more.
    The selections up to the round with the smallest loss are kept (Caruana et al. 2004, "Ensemble
    Selection from Libraries of Models"). Of equal losses the first candidate and round are taken.

    Args:
        candidates: predictions of the same validation rows.
        schema: the schema of the data.
        selections: number of rounds.
    """
    outputs = [candidate.output.astype(np.float64) for candidate in candidates]
    total, chosen, losses = np.zeros_like(outputs[0]), list[int](), list[float]()
    for count in range(1, selections + 1):
        trials = [mean_loss(candidates[0], schema, (total + output) / count) for output in outputs]
        best = int(np.argmin(trials))
        total = total + outputs[best]
        chosen.append(best)
        losses.append(trials[best])
    kept = chosen[: int(np.argmin(losses)) + 1]
    return [kept.count(i) / len(kept) for i in range(len(candidates))]
