"""Weights of rows: read them from a column or an array, check them, and report those that are 0."""

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from proj.errors import UserError, quoted
from proj.schema import SPLITS, SUM_DTYPE, Array, Finding

if TYPE_CHECKING:
    import polars as pl


def column_weights(values: "pl.Series", used: Array, name: str, where: str) -> Array:
    """Return the weights in a column of a table, as written there: [rows] float64.

    Only the rows that are ``used`` [rows] must have one.

    Raises:
        UserError: if a weight is missing, or is no finite number from 0.
    """
    # Importing takes half a second, and arrays do not need it.
    import polars as pl

    text = values.cast(pl.String).str.strip_chars() if values.dtype == pl.String else values
    numbers = text.cast(pl.Float64, strict=False)
    if values.dtype != pl.String and not values.dtype.is_numeric():
        numbers = pl.Series([None] * len(values), dtype=pl.Float64)
    weights = numbers.to_numpy().astype(np.float64)
    _check(weights, values, used, f"{where}: column {name}")
    return weights


def _check(weights: Array, values: "pl.Series | Array", used: Array, what: str) -> None:
    """Raise UserError for the first row that is used and has no weight; ``values`` as written."""
    wrong = np.flatnonzero(used & ~(np.isfinite(weights) & (weights >= 0)))
    if not len(wrong):
        return
    row, value = int(wrong[0]), values[int(wrong[0])]
    got = "none" if value is None or value == "" else quoted(value)
    others = f" ({len(wrong)} rows in all)" if len(wrong) > 1 else ""
    raise UserError(
        f"{what}: expected a weight in each row, a finite number from 0, got {got} in row {row}"
        f"{others}; correct it, or leave data.weight out."
    )


def check_splits(weights: dict[str, Array], what: str) -> list[Finding]:
    """Return findings about weights of 0, given the weights of the rows of each split.

    Raises:
        UserError: if all weights of a split are 0.
    """
    findings = []
    for split, values in weights.items():
        zeros = int((values == 0).sum())
        if zeros and zeros == len(values):
            raise UserError(
                f"{what}: expected weights above 0 in each split, got 0 in all {zeros} {split} "
                "rows; correct them, or choose another split."
            )
        if zeros:
            finding = Finding(
                f"{zeros} of {len(values)} {split} rows have the weight 0 in {what}",
                "they count in no loss and in no metric",
                "drop them from the source, or correct their weights if that is not intended",
            )
            findings.append(finding)
    return findings


def array_weights(
    arrays: dict[str, Array], rows: dict[str, Array], where: str
) -> tuple[dict[str, Tensor | None], float, list[Finding]]:
    """Return the weights of each split's rows, their mean over the training rows, and findings.

    Without weights these are None for each split, and 0.

    Args:
        arrays: arrays by name, of which ``weight_train``, ``weight_val`` and ``weight_test`` are
            weights.
        rows: the rows of each split in its own arrays, or in those of train: [rows] each.
        where: name of the source.
    """
    named = {name: arrays[f"weight_{name}"] for name in SPLITS if f"weight_{name}" in arrays}
    if not named:
        return dict.fromkeys(SPLITS), 0.0, []
    chosen = {}
    for split, numbers in rows.items():
        source = split if f"x_{split}" in arrays else "train"
        count, what = len(arrays[f"x_{source}"]), f"{where}: weight_{source}"
        got = named.get(source)
        if got is None or got.shape != (count,) or got.dtype.kind not in "biuf":
            kind = "none" if got is None else f"{got.dtype} of shape {got.shape}"
            raise UserError(f"{what}: expected a number for each of the {count} rows, got {kind}.")
        weights = got.astype(np.float64)
        own = source == split and split != "train"
        _check(weights, got, np.ones(count, bool), what)
        chosen[split] = weights if own else weights[numbers]
    findings = check_splits({split: v for split, v in chosen.items() if len(v)}, where)
    mean = float(chosen["train"].mean())
    return {split: to_tensor(values) for split, values in chosen.items()}, mean, findings


def to_tensor(weights: Array) -> Tensor:
    return torch.from_numpy(weights).to(SUM_DTYPE)
