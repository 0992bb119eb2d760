"""Permutation importance: the loss of quality when the values of a column are permuted.

Breiman (2001), Machine Learning 45:5, for any model: Fisher, Rudin and Dominici (2019), JMLR
20:177. Columns with the same information share their importance, because each can replace the
other.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from lightning.pytorch import Trainer
from torch import Tensor

from proj.data.loader import take
from proj.engine.console import plural
from proj.engine.evaluation.counts import (
    headline_metric,
    headline_sign,
    metric_names,
    scores,
    sums_of,
)
from proj.engine.evaluation.limits import MIN_UNITS, too_few, unit_name
from proj.engine.evaluation.paired import paired
from proj.engine.evaluation.prediction_set import PredictionSet
from proj.engine.evaluation.resampling import Statistic, resampling_units, units_of
from proj.engine.lightning_internals import precision_plugin
from proj.errors import UserError
from proj.models.base import Model
from proj.schema import Array, Batch, Schema

# Permutations of each column.
REPEATS = 5

# The indices of a column's inputs in each tensor of ``x``, by its name; "" if ``x`` is one tensor.
Inputs: TypeAlias = dict[str, list[int]]


class Importance(NamedTuple):
    """The drop of a metric, or the rise of an error, with its 95 % interval.

    A value that is undefined is None, and ``why`` is the reason.
    """

    value: float | None
    low: float | None
    high: float | None
    why: str = ""

    def entry(self) -> dict[str, Any]:
        """Return the entry of ``importance.json``."""
        return {name: value for name, value in self._asdict().items() if value != ""}


def inputs_of(schema: Schema) -> dict[str, Inputs]:
    """Return the indices in ``x`` of the inputs of each source column; a date has several.

    Raises:
        UserError: if the data have no columns.
    """
    if not schema.columns and len(schema.input_shape) != 1:
        raise UserError(
            "--importance: expected columns of a table or rows of features, got rows of shape "
            f"{list(schema.input_shape)}, such as images; leave it out."
        )
    if not schema.columns:
        return {name: {"": [i]} for i, name in enumerate(schema.input_names)}
    inputs: dict[str, Inputs] = {column.source: {} for column in schema.columns}
    for kind, columns in (("numeric", schema.numeric), ("categorical", schema.categorical)):
        for i, column in enumerate(columns):
            inputs[column.source].setdefault(kind, []).append(i)
    return inputs


class Rows(NamedTuple):
    """Rows of a split, and a function that predicts them.

    ``predict`` takes a batch of at most ``size`` rows and returns ``PredictionSet.output``.
    ``positions`` are the indices of the rows in the split, [rows].
    """

    split: Batch
    positions: Tensor
    predict: Callable[[Batch], Array]
    size: int

    def outputs(self, inputs: Inputs | None = None, order: Array | None = None) -> Array:
        """Return the predictions.

        With ``order`` [rows], row i takes the values of ``inputs`` from row ``order[i]``.
        """
        permuted = {
            name: (indices, _tensor(self.split, name)[:, indices][self.positions])
            for name, indices in (inputs or {}).items()
        }
        outputs = []
        for start in range(0, len(self.positions), self.size):
            # `take` copies, so that the split itself stays as it is.
            batch = take(self.split, self.positions[start : start + self.size])
            for name, (indices, values) in permuted.items():
                assert order is not None
                sources = torch.from_numpy(order[start : start + self.size])
                _tensor(batch, name)[:, indices] = values[sources]
            outputs.append(self.predict(batch))
        return np.concatenate(outputs)


def _tensor(batch: Batch, name: str) -> Tensor:
    return batch.x[name] if isinstance(batch.x, dict) else batch.x


def predictor(
    trainer: Trainer, model: Model, example: Batch
) -> tuple[Callable[[Batch], Array], int]:
    """Return a function that predicts batches as `validate` did, and its batch size.

    It uses the device and precision of the Trainer. The batch size is chosen for rows like those
    of ``example``.
    """
    device, precision = trainer.strategy.root_device, precision_plugin(trainer)
    model.to(device).eval()

    def moved(batch: Batch) -> Batch:
        batch = model.transfer_batch_to_device(batch, device, 0)
        return Batch(*precision.convert_input(batch))

    def predict(batch: Batch) -> Array:
        with torch.inference_mode(), precision.val_step_context():
            return np.asarray(model.predict_step(moved(batch), 0)["output"].cpu().numpy())

    with precision.val_step_context():
        return predict, model.evaluation_batch_size(moved(example).x)


def importances(
    rows: Rows, predictions: PredictionSet, columns: dict[str, Inputs], seed: int = 0
) -> dict[str, Importance]:
    """Return each column's importance, the largest first.

    ``predictions`` has the targets and groups of the same rows. All columns are permuted in the
    same ``REPEATS`` orders, which ``seed`` determines.
    """
    rng = np.random.default_rng(seed)
    orders = [rng.permutation(len(predictions)) for _ in range(REPEATS)]
    plain = replace(predictions, output=rows.outputs())
    unordered = {}
    for name, inputs in columns.items():
        outputs = (rows.outputs(inputs, order) for order in orders)
        permuted = (replace(plain, output=output) for output in outputs)
        unordered[name] = importance(plain, permuted, orders, seed)
    known = [name for name in unordered if unordered[name].value is not None]
    unknown = [name for name in unordered if unordered[name].value is None]
    ordered = sorted(known, key=lambda name: -(unordered[name].value or 0.0))
    return {name: unordered[name] for name in [*ordered, *unknown]}


def importance(
    plain: PredictionSet, permuted: Iterator[PredictionSet], orders: list[Array], seed: int = 0
) -> Importance:
    """Return the mean over permutations of the metric before minus the metric after.

    For errors it is after minus before. The interval is a paired bootstrap over rows or groups.

    A row counts twice: by its target, and by the value that it gives to another row. With weights
    w the sums are those of all rows i weighted by w_i, and what the permutation changes is
    weighted by w_i w_j, where j is the row that the value comes from. To first order that is
    w_i + w_j - 1. Without the second term, intervals of strong columns are far too narrow.
    """
    if plain.missing:
        return _undefined(plain)
    rng = np.random.default_rng(seed)
    unit, count = resampling_units(len(plain), plain.group, rng)
    before = sums_of(plain, unit, count)
    sums = [before]
    for order, after in zip(orders, permuted, strict=True):
        if after.missing:
            return _undefined(after)
        by_target = sums_of(after, unit, count)
        by_value = sums_of(after, unit[order], count) - sums_of(plain, unit[order], count)
        sums.append(by_target + by_value - by_value.sum(axis=0) / count)
    units = units_of(np.column_stack(sums))
    statistic = _statistic(plain, before.shape[1])
    value = float(statistic(units.total)[0])
    if count < MIN_UNITS:
        return Importance(value, None, None, too_few(unit_name(plain), count))
    difference = paired(units, statistic, rng)[0]
    return Importance(value, difference.low, difference.high)


def _statistic(predictions: PredictionSet, width: int) -> Statistic:
    """Return the function from sums to the importance.

    Its argument has ``width`` sums of the unpermuted rows, then ``width`` of each permutation.
    """
    index = metric_names(predictions).index(headline_metric(predictions.task))
    sign = headline_sign(predictions.task)

    def statistic(sums: Array) -> Array:
        # By the approximation, a sum of few rows may be below 0.
        permutations = sums.reshape(*sums.shape[:-1], -1, width).clip(0)
        values = scores(permutations, predictions)[..., index]
        return np.asarray(sign * (values[..., :1] - values[..., 1:]).mean(axis=-1, keepdims=True))

    return statistic


def _undefined(predictions: PredictionSet) -> Importance:
    why = (
        f"{predictions.missing} of {plural(len(predictions), 'prediction')} are not finite numbers"
    )
    return Importance(None, None, None, why)
