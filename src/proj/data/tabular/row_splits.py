"""Seeded, disjoint row numbers for train, val and test."""

import warnings
from collections.abc import Sequence
from typing import Literal, TypeAlias

import numpy as np

from proj.errors import UserError
from proj.schema import Array

Rows: TypeAlias = Array

# The split that is one fold, the number of the fold from 0, and the number of folds.
Fold: TypeAlias = tuple[Literal["val", "test"], int, int]

# How publishers of data write the splits, in lower case.
SPLIT_WORDS = {
    **dict.fromkeys(("train", "training", "tr"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "eval"), "val"),
    **dict.fromkeys(("test", "testing", "holdout", "hold-out"), "test"),
}


def split(
    rows: Rows,
    val_fraction: float,
    test_fraction: float,
    seed: int,
    stratify: Array | None,
    fold: Fold | None = None,
    class_names: Sequence[object] = (),
) -> dict[str, Rows]:
    """Split ``rows`` into disjoint train, val and test rows. Equal arguments give equal splits.

    With ``stratify``, a class for each row, each split gets its share of each class, and train at
    least one row. With ``fold`` one split is a fold of scikit-learn's KFold or StratifiedKFold:
    test of all rows, or val of the rows that are not test rows. The only row of a class is in no
    fold. Row numbers are returned in ascending order.

    ``class_names`` holds the names of classes that ``stratify`` gives by number, for messages.
    Raises UserError if a split would be empty.
    """
    check_fractions(val_fraction, test_fraction)
    if fold and fold[0] == "test":
        rest, test = _take_fold(rows, fold, seed, stratify)
    else:
        count = num_rows(rows, test_fraction)
        rest, test = _split_off(rows, count, seed, stratify, "test_fraction", class_names)
    rest_classes = stratify
    if stratify is not None and len(rest) < len(rows):
        rest_classes = stratify[np.searchsorted(rows, rest)]
    if fold and fold[0] == "val":
        train, val = _take_fold(rest, fold, seed, rest_classes)
    else:
        count = num_rows(rows, val_fraction)
        train, val = _split_off(rest, count, seed, rest_classes, "val_fraction", class_names)
    return {"train": train, "val": val, "test": test}


def row_numbers(count: int) -> Array:
    """Return the numbers of all rows: [count], int32 where they fit, half of the memory."""
    return np.arange(count, dtype=np.int32 if count <= 2**31 else np.int64)


def check_fractions(val_fraction: float, test_fraction: float) -> None:
    for name, fraction in (("val_fraction", val_fraction), ("test_fraction", test_fraction)):
        if not 0 <= fraction < 1:
            raise UserError(f"data.{name}: expected a number from 0 up to 1, got {fraction}.")
    if val_fraction + test_fraction >= 1:
        raise UserError(
            "data.val_fraction and data.test_fraction: expected a sum below 1, got "
            f"{val_fraction} + {test_fraction}; lower one of them to leave rows to train on."
        )


def num_rows(rows: Rows, fraction: float) -> int:
    return max(1, round(fraction * len(rows))) if fraction else 0


def _split_off(
    rows: Rows,
    count: int,
    seed: int,
    stratify: Array | None,
    option: str,
    class_names: Sequence[object],
) -> tuple[Rows, Rows]:
    """Return the remaining rows, at least one of each class, and ``count`` random rows."""
    if count == 0:
        return rows, rows[:0]
    if stratify is not None and (chosen := _stratified(stratify, count, seed)) is not None:
        return np.delete(rows, chosen), rows[np.sort(chosen)]
    # The permutation of scikit-learn's ShuffleSplit.
    order, kept = np.random.RandomState(seed).permutation(len(rows)), 1
    if stratify is not None:
        # Some classes have too few rows for both splits: one row of each stays.
        first = np.unique(stratify[order], return_index=True)[1]
        order, kept = np.append(np.delete(order, first), order[first]), len(first)
    if count > len(rows) - kept:
        reason = "a split would be empty"
        if stratify is not None and kept > 1:
            reason = _too_many_classes(stratify, class_names)
        raise UserError(f"data.{option}: cannot split {count} off {len(rows)} rows: {reason}.")
    return np.delete(rows, order[:count]), rows[np.sort(order[:count])]


def _stratified(strata: Array, count: int, seed: int) -> Rows | None:
    """Return the positions of ``count`` random rows with their share of each class.

    The only row of a class is not among them. Returns None if classes have too few rows.
    """
    positions, strata = _several(strata)
    counts = np.bincount(strata)
    counts = counts[counts > 0]
    if not 0 < len(counts) <= min(count, len(positions) - count):
        return None
    rest, chosen = _draw_of_each_class(np.argsort(strata, kind="stable"), counts, count, seed)
    return positions[chosen] if len(np.unique(strata[rest])) == len(counts) else None


def _draw_of_each_class(by_class: Rows, counts: Rows, count: int, seed: int) -> tuple[Rows, Rows]:
    """Return the remaining positions, and ``count`` random ones with a share of each class.

    They are those of ``train_test_split`` of scikit-learn 1.9, in another order. Importing
    scikit-learn takes more than a second, which each run on a table would pay for them.

    Args:
        by_class: the positions, those of each class together.
        counts: rows of each class.
        count: positions to draw.
        seed: of the draw.
    """
    random = np.random.RandomState(seed)
    kept = _shares(counts, int(counts.sum()) - count, random)
    drawn = _shares(counts - kept, count, random)
    rest, chosen = [], []
    for rows, stay, go in zip(np.split(by_class, counts.cumsum()[:-1]), kept, drawn, strict=True):
        shuffled = rows[random.permutation(len(rows))]
        rest.append(shuffled[:stay])
        chosen.append(shuffled[stay : stay + go])
    return np.concatenate(rest), np.concatenate(chosen)


def _shares(counts: Rows, total: int, random: np.random.RandomState) -> Rows:
    """Return how many of each class make ``total``: its share rounded down, and one of the rest.

    The classes with the largest remainders get one more, equal remainders in random order.
    """
    exact = counts / counts.sum() * total
    shares = np.floor(exact)
    remainders, missing = exact - shares, int(total - shares.sum())
    for remainder in np.unique(remainders)[::-1]:
        if missing == 0:
            break
        equal = np.flatnonzero(remainders == remainder)
        more = random.choice(equal, size=min(len(equal), missing), replace=False)
        shares[more] += 1
        missing -= len(more)
    whole: Rows = shares.astype(np.int64)
    return whole


def _several(strata: Array) -> tuple[Rows, Array]:
    """Return the positions and classes of rows that are not the only one of their class."""
    positions = np.flatnonzero(np.bincount(strata)[strata] > 1)
    return positions, strata[positions]


def _too_many_classes(strata: Array, class_names: Sequence[object]) -> str:
    classes, counts = np.unique(strata, return_counts=True)
    rarest = classes[counts.argmin()]
    name = class_names[rarest] if class_names else int(rarest)
    number = "" if isinstance(name, str) else ", or set data.task to regression"
    return (
        f"train needs a row of each of the {len(classes)} classes, and class {name!r} has "
        f"{counts.min()}; choose another target, or a smaller fraction{number}"
    )


def _take_fold(rows: Rows, fold: Fold, seed: int, stratify: Array | None) -> tuple[Rows, Rows]:
    """Return the remaining rows, among them the only row of a class, and the rows of a fold."""
    # Importing takes half a second, and most runs have no fold.
    from sklearn.model_selection import KFold, StratifiedKFold

    name, number, folds = fold
    positions, limit, unit = np.arange(len(rows)), len(rows), "rows"
    if stratify is not None:
        positions, stratify = _several(stratify)
        limit = int(np.bincount(stratify).max(initial=0))
        unit = "rows of the most frequent class"
    if not (2 <= folds <= limit and 0 <= number < folds):
        raise UserError(
            "data.fold: expected val or test, a fold number from 0, and a larger number of folds, "
            f"from 2 to the {limit} {unit}, got {name}, {number}, {folds}."
        )
    splitter = KFold if stratify is None else StratifiedKFold
    with warnings.catch_warnings():
        # A finding names the classes that have too few rows for a share of each fold.
        warnings.filterwarnings("ignore", message="The least populated class")
        folded = splitter(folds, shuffle=True, random_state=seed).split(positions, stratify)
        chosen = positions[list(folded)[number][1]]
    return np.delete(rows, chosen), rows[chosen]
