"""Permutation importance: what it costs the headline metric when the values of one column are dealt anew among the rows.

Breiman (2001), Machine Learning 45:5, for any model: Fisher, Rudin and Dominici (2019), JMLR 20:177. Columns that tell the
same share their importance, since each of them stands in for the other.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from lightning.pytorch import Trainer
from torch import Tensor

from proj.data.loader import take
from proj.engine.evaluation.counts import names_of, scores, sums_of
from proj.engine.evaluation.intervals import FEW
from proj.engine.evaluation.paired import paired
from proj.engine.evaluation.prediction_set import Array, PredictionSet
from proj.engine.evaluation.resampling import Statistic, Units, resampling_units
from proj.errors import UserError
from proj.metrics import DEFAULT_MONITOR, metric_info
from proj.models.base import Model
from proj.schema import Batch, Schema

REPEATS = 5  # permutations of each column

Inputs: TypeAlias = dict[
    str, list[int]
]  # places of a column's inputs in each part of ``x``; of a tensor the part is ""


class Importance(NamedTuple):
    """The drop of the metric, or the rise of an error, with its 95 % interval; None where there is none: then ``why``."""

    value: float | None
    low: float | None
    high: float | None
    why: str = ""

    def entry(self) -> dict[str, Any]:
        """For ``importance.json``."""
        return {name: value for name, value in self._asdict().items() if value != ""}


def inputs_of(schema: Schema) -> dict[str, Inputs]:
    """Where in ``x`` the inputs of each column of the source are: of a date there are several.

    Raises UserError for data without columns.
    """
    if not schema.columns and len(schema.input_shape) != 1:
        raise UserError(
            "--importance: expected columns, of a table or of rows of features, got rows of shape "
            f"{list(schema.input_shape)}; pictures have none, leave it out."
        )
    if not schema.columns:
        return {name: {"": [i]} for i, name in enumerate(schema.input_names)}
    found: dict[str, Inputs] = {column.source: {} for column in schema.columns}
    for part, columns in (("numeric", schema.numeric), ("categorical", schema.categorical)):
        for i, column in enumerate(columns):
            found[column.source].setdefault(part, []).append(i)
    return found


class Rows(NamedTuple):
    """Some rows of a part, and how to predict them: a batch to outputs as in ``Outcomes``, ``size`` rows at once."""

    part: Batch
    places: Tensor  # [rows]
    predict: Callable[[Batch], Array]
    size: int

    def outputs(self, inputs: Inputs | None = None, order: Array | None = None) -> Array:
        """What is predicted; with ``order`` [rows], row i has the ``inputs`` of row ``order[i]``."""
        dealt_anew = {
            part: (at, self._of(self.part, part)[:, at][self.places])
            for part, at in (inputs or {}).items()
        }
        found = []
        for start in range(0, len(self.places), self.size):
            batch = take(self.part, self.places[start : start + self.size])  # a copy
            for part, (at, values) in dealt_anew.items():
                assert order is not None
                self._of(batch, part)[:, at] = values[
                    torch.from_numpy(order[start : start + self.size])
                ]
            found.append(self.predict(batch))
        return np.concatenate(found)

    @staticmethod
    def _of(batch: Batch, part: str) -> Tensor:
        return batch.x[part] if isinstance(batch.x, dict) else batch.x


def predictor(trainer: Trainer, model: Model, some: Batch) -> tuple[Callable[[Batch], Array], int]:
    """What predicts batches as `validate` did, on its device and in its precision, and how many rows at once."""
    device, precision = trainer.strategy.root_device, trainer.precision_plugin
    model.to(device).eval()

    def moved(batch: Batch) -> Batch:
        batch = model.transfer_batch_to_device(batch, device, 0)
        return Batch(*precision.convert_input(batch))

    def predict(batch: Batch) -> Array:
        with torch.inference_mode(), precision.val_step_context():
            return np.asarray(model.predict_step(moved(batch), 0)["output"].cpu().numpy())

    with precision.val_step_context():
        return predict, model.evaluation_batch_size(moved(some).x)


def importances(
    rows: Rows, outcomes: PredictionSet, columns: dict[str, Inputs], seed: int = 0
) -> dict[str, Importance]:
    """Each column's importance, the largest first; ``outcomes`` tell the targets, and the groups, of the same rows.

    All columns are permuted in the same ``REPEATS`` orders, drawn by ``seed``.
    """
    rng = np.random.default_rng(seed)
    orders = [rng.permutation(len(outcomes)) for _ in range(REPEATS)]
    plain = replace(outcomes, output=rows.outputs())
    found = {}
    for name, inputs in columns.items():
        outputs = (rows.outputs(inputs, order) for order in orders)
        found[name] = importance(
            plain, (replace(plain, output=output) for output in outputs), orders, seed
        )
    known = [name for name in found if found[name].value is not None]
    ordered = sorted(known, key=lambda name: -(found[name].value or 0.0))
    return {
        name: found[name] for name in [*ordered, *(name for name in found if name not in known)]
    }


def importance(
    plain: PredictionSet, permuted: Iterator[PredictionSet], orders: list[Array], seed: int = 0
) -> Importance:
    """The mean over permutations of the metric before less the metric after (of errors, after less before).

    The interval is a paired bootstrap over rows, or groups. A row counts twice, by its target and by the value that it
    gives to another row: with weights w the sums are those of all rows i, each weighing w_i, and what the permutation
    changes weighs w_i w_j, with j the row that the value is from; to first order that is w_i + w_j - 1. Without the second
    part intervals of strong columns are far too narrow.
    """
    if plain.missing:
        return _none(plain)
    rng = np.random.default_rng(seed)
    unit, count = resampling_units(len(plain), plain.group, rng)
    before = sums_of(plain, unit, count)
    sums = [before]
    for order, after in zip(orders, permuted, strict=True):
        if after.missing:
            return _none(after)
        taken = sums_of(after, unit, count)
        given = sums_of(after, unit[order], count) - sums_of(plain, unit[order], count)
        sums.append(taken + given - given.sum(axis=0) / count)
    units = Units(np.column_stack(sums), np.ones(count, np.int64))
    statistic = _statistic(plain, before.shape[1])
    value = float(statistic(units.total)[0])
    if count < FEW:
        of = "rows" if plain.group is None else "groups"
        return Importance(value, None, None, f"{count} {of} are too few to know how it varies")
    found = paired(units, statistic, rng)[0]
    return Importance(value, found.low, found.high)


def _statistic(outcomes: PredictionSet, width: int) -> Statistic:
    """Sums as they are and after each permutation, ``width`` of each, to the importance."""
    name = DEFAULT_MONITOR[outcomes.task].split("/")[1]
    place, known = names_of(outcomes).index(name), metric_info(name)
    sign = -1 if known is not None and known.mode == "min" else 1

    def statistic(sums: Array) -> Array:
        each = sums.reshape(*sums.shape[:-1], -1, width).clip(
            0
        )  # below 0 a sum of few rows may come by the approximation
        values = scores(each, outcomes.task)[..., place]
        return np.asarray(sign * (values[..., :1] - values[..., 1:]).mean(axis=-1, keepdims=True))

    return statistic


def _none(outcomes: PredictionSet) -> Importance:
    return Importance(
        None,
        None,
        None,
        f"the prediction of {outcomes.missing} of {len(outcomes)} rows is no number",
    )
