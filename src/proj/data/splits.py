"""Seeded, disjoint row numbers for train, val and test."""

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import numpy as np

from proj.errors import UserError
from proj.schema import Array

Rows: TypeAlias = np.ndarray[Any, np.dtype[np.int64]]

# The split that is one fold, the number of the fold from 0, and the number of folds.
Fold: TypeAlias = tuple[Literal["val", "test"], int, int]


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

    With ``stratify``, a class for each row, each split gets its share of each class. With ``fold``
    one split is a fold of scikit-learn's KFold or StratifiedKFold: test of all rows, or val of the
    rows that are not test rows. Row numbers are returned in ascending order.

    ``class_names`` holds the names of classes that ``stratify`` gives by number, for messages.
    Raises UserError if a split would be empty or lack a class.
    """
    check_fractions(val_fraction, test_fraction)
    if fold and fold[0] == "test":
        rest, test = _take_fold(rows, fold, seed, stratify)
    else:
        count = num_rows(rows, test_fraction)
        rest, test = _split_off(rows, count, seed, stratify, "test_fraction", class_names)
    rest_classes = None if stratify is None else stratify[np.searchsorted(rows, rest)]
    if fold and fold[0] == "val":
        train, val = _take_fold(rest, fold, seed, rest_classes)
    else:
        count = num_rows(rows, val_fraction)
        train, val = _split_off(rest, count, seed, rest_classes, "val_fraction", class_names)
    return {"train": train, "val": val, "test": test}


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
    """Return the remaining rows and ``count`` random rows."""
    if count == 0:
        return rows, rows[:0]
    # Importing takes half a second, and data with splits of their own do not need it.
    from sklearn.model_selection import train_test_split

    try:
        rest, chosen = train_test_split(rows, test_size=count, random_state=seed, stratify=stratify)
    except ValueError as error:
        # A class is too rare to be in each split, or no row is left for a split.
        reason = "a split would be empty"
        if stratify is not None:
            classes, counts = np.unique(stratify, return_counts=True)
            rarest = classes[counts.argmin()]
            reason = (
                f"each split needs rows of all {len(classes)} classes, and class "
                f"{class_names[rarest] if class_names else rarest} has {counts.min()}; drop rare "
                "classes, change the fractions, or set data.task to regression if these are numbers"
            )
        raise UserError(
            f"data.{option}: cannot split {count} off {len(rows)} rows: {reason}."
        ) from error
    return np.sort(rest), np.sort(chosen)


def _take_fold(rows: Rows, fold: Fold, seed: int, stratify: Array | None) -> tuple[Rows, Rows]:
    """Return the remaining rows and the rows of a fold."""
    # Importing takes half a second, and most runs have no fold.
    from sklearn.model_selection import KFold, StratifiedKFold

    name, number, folds = fold
    limit, unit = len(rows), "rows"
    if stratify is not None:
        limit = int(np.unique(stratify, return_counts=True)[1].min())
        unit = "rows of the rarest class"
    if not (2 <= folds <= limit and 0 <= number < folds):
        raise UserError(
            "data.fold: expected val or test, a fold number from 0, and a larger number of folds, "
            f"from 2 to the {limit} {unit}, got {name}, {number}, {folds}."
        )
    splitter = KFold if stratify is None else StratifiedKFold
    folded = splitter(folds, shuffle=True, random_state=seed).split(rows, stratify)
    rest, chosen = list(folded)[number]
    return rows[rest], rows[chosen]
