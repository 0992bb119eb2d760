"""Seeded, disjoint row numbers for train, val and test."""

from typing import Any, Literal, TypeAlias

import numpy as np

from proj.errors import UserError

Rows: TypeAlias = np.ndarray[Any, np.dtype[np.int64]]
Fold: TypeAlias = tuple[
    Literal["val", "test"], int, int
]  # which part is one fold, its number from 0, of how many


def split(
    rows: Rows,
    val_fraction: float,
    test_fraction: float,
    seed: int,
    stratify: np.ndarray[Any, Any] | None,
    fold: Fold | None = None,
) -> dict[str, Rows]:
    """Deal ``rows`` into three disjoint parts; with ``stratify`` (a class for each row) each part gets its share of each.

    With ``fold`` one part is a fold of scikit-learn's KFold or StratifiedKFold: test of all rows, val of those that are
    not for testing. The same arguments give the same parts. Row numbers come back in ascending order.
    """
    _check_fractions(val_fraction, test_fraction)
    part = fold[0] if fold else None
    if fold and part == "test":
        rest, test = _fold(rows, fold, seed, stratify)
    else:
        rest, test = _cut(rows, _share(rows, test_fraction), seed, stratify, "test_fraction")
    left = None if stratify is None else stratify[np.searchsorted(rows, rest)]
    if fold and part == "val":
        train, val = _fold(rest, fold, seed, left)
    else:
        train, val = _cut(rest, _share(rows, val_fraction), seed, left, "val_fraction")
    return {"train": train, "val": val, "test": test}


def _fold(
    rows: Rows, fold: Fold, seed: int, stratify: np.ndarray[Any, Any] | None
) -> tuple[Rows, Rows]:
    from sklearn.model_selection import KFold, StratifiedKFold

    part, number, of = fold
    least = len(rows) if stratify is None else int(np.unique(stratify, return_counts=True)[1].min())
    if not (2 <= of <= least and 0 <= number < of):
        what = "rows" if stratify is None else "rows of the rarest class"
        raise UserError(
            f"data.fold: expected val or test, a number from 0 up and a larger number of folds, from 2 to the "
            f"{least} {what}, got {part}, {number}, {of}."
        )
    splitter = (KFold if stratify is None else StratifiedKFold)(of, shuffle=True, random_state=seed)
    kept, cut = list(splitter.split(rows, stratify))[number]
    return rows[kept], rows[cut]


def _check_fractions(val_fraction: float, test_fraction: float) -> None:
    for name, fraction in (("val_fraction", val_fraction), ("test_fraction", test_fraction)):
        if not 0 <= fraction < 1:
            raise UserError(f"data.{name}: expected a number from 0 up to 1, got {fraction}.")
    if val_fraction + test_fraction >= 1:
        raise UserError(
            f"data.val_fraction and data.test_fraction: expected a sum below 1, got {val_fraction} + {test_fraction}; "
            "lower one of them, so that rows to train on are left."
        )


def _share(rows: Rows, fraction: float) -> int:
    return max(1, round(fraction * len(rows))) if fraction else 0


def _cut(
    rows: Rows, count: int, seed: int, stratify: np.ndarray[Any, Any] | None, name: str
) -> tuple[Rows, Rows]:
    if count == 0:
        return rows, rows[:0]
    from sklearn.model_selection import train_test_split  # half a second, and some data come split

    try:
        kept, cut = train_test_split(rows, test_size=count, random_state=seed, stratify=stratify)
    except ValueError as error:  # a class too rare for every part, or no row left for one
        why = "a part would be empty"
        if stratify is not None:
            classes, counts = np.unique(stratify, return_counts=True)
            rarest = f"class {classes[counts.argmin()]} has {counts.min()}"
            why = (
                f"each part needs rows of all {len(classes)} classes, and {rarest}; "
                "drop rare classes, change the fractions, or if these are no classes, set data.task to regression"
            )
        raise UserError(
            f"data.{name}: cannot split {count} off {len(rows)} rows: {why}."
        ) from error
    return np.sort(kept), np.sort(cut)


def split_groups(
    rows: Rows,
    val_fraction: float,
    test_fraction: float,
    seed: int,
    groups: Rows,
    fold: Fold | None = None,
) -> dict[str, Rows]:
    """The same for rows that belong together: all of a group (a number for each row) are in one part.

    Fractions and folds are of groups, so shares of rows differ where groups differ in size.
    """
    parts = split(np.unique(groups), val_fraction, test_fraction, seed, None, fold)
    return {stage: rows[np.isin(groups, chosen)] for stage, chosen in parts.items()}


def split_by_time(
    rows: Rows, val_fraction: float, test_fraction: float, times: Rows, fold: Fold | None = None
) -> dict[str, Rows]:
    """The latest rows are the test part, those before them the validation part. Rows of one moment stay together.

    Folds are those of scikit-learn's TimeSeriesSplit over the moments: rows later than a fold are in no part.
    """
    _check_fractions(val_fraction, test_fraction)
    if fold and fold[0] == "test":
        first_test, end = _moments(times, fold)
    else:
        first_test, end = _moment(np.sort(times), _share(rows, test_fraction)), np.inf
    before = np.sort(times[times < first_test])
    if fold and fold[0] == "val":
        first_val, end_of_val = _moments(before, fold)
    else:
        first_val, end_of_val = _moment(before, _share(rows, val_fraction)), first_test
    train = (times < first_val) & (times < first_test)
    val, test = (times >= first_val) & (times < end_of_val), (times >= first_test) & (times < end)
    return {"train": rows[train], "val": rows[val], "test": rows[test]}


def _moments(times: Rows, fold: Fold) -> tuple[float, float]:
    """When a fold begins, and when the next one does."""
    from sklearn.model_selection import TimeSeriesSplit

    part, number, of = fold
    moments = np.unique(times)
    if not (2 <= of < len(moments) and 0 <= number < of):
        raise UserError(
            f"data.fold: expected val or test, a number from 0 up and a larger number of folds, from 2 to "
            f"{len(moments) - 1}, one less than there are moments, got {part}, {number}, {of}."
        )
    chosen = list(TimeSeriesSplit(of).split(moments))[number][1]
    end = moments[chosen[-1] + 1] if chosen[-1] + 1 < len(moments) else np.inf
    return float(moments[chosen[0]]), float(end)


def _moment(ordered: Rows, count: int) -> float:
    """The moment from which on about ``count`` of the ordered times lie."""
    return float(ordered[-count]) if 0 < count <= len(ordered) else np.inf
