"""Seeded, disjoint row numbers for train, val and test."""

from typing import Any, TypeAlias

import numpy as np

from proj.errors import UserError

Rows: TypeAlias = np.ndarray[Any, np.dtype[np.int64]]


def split(
    rows: Rows, val_fraction: float, test_fraction: float, seed: int, stratify: np.ndarray[Any, Any] | None
) -> dict[str, Rows]:
    """Deal ``rows`` into three disjoint parts; with ``stratify`` (a class for each row) each part gets its share of each.

    The same arguments give the same parts. Row numbers come back in ascending order.
    """
    _check_fractions(val_fraction, test_fraction)
    rest, test = _cut(rows, _share(rows, test_fraction), seed, stratify, "test_fraction")
    left = None if stratify is None else stratify[np.searchsorted(rows, rest)]
    train, val = _cut(rest, _share(rows, val_fraction), seed, left, "val_fraction")
    return {"train": train, "val": val, "test": test}


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


def _cut(rows: Rows, count: int, seed: int, stratify: np.ndarray[Any, Any] | None, name: str) -> tuple[Rows, Rows]:
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
        raise UserError(f"data.{name}: cannot split {count} off {len(rows)} rows: {why}.") from error
    return np.sort(kept), np.sort(cut)


def split_groups(rows: Rows, val_fraction: float, test_fraction: float, seed: int, groups: Rows) -> dict[str, Rows]:
    """The same for rows that belong together: all of a group (a number for each row) are in one part.

    The fractions are of groups, so shares of rows differ where groups differ in size.
    """
    parts = split(np.unique(groups), val_fraction, test_fraction, seed, None)
    return {stage: rows[np.isin(groups, chosen)] for stage, chosen in parts.items()}


def split_by_time(rows: Rows, val_fraction: float, test_fraction: float, times: Rows) -> dict[str, Rows]:
    """The latest rows are the test part, those before them the validation part. Rows of one moment stay together."""
    _check_fractions(val_fraction, test_fraction)
    ordered = np.sort(times)
    first_test = _moment(ordered, _share(rows, test_fraction))
    first_val = _moment(ordered[ordered < first_test], _share(rows, val_fraction))
    test, val = times >= first_test, (times >= first_val) & (times < first_test)
    return {"train": rows[~test & ~val], "val": rows[val], "test": rows[test]}


def _moment(ordered: Rows, count: int) -> float:
    """The moment from which on about ``count`` of the ordered times lie."""
    return float(ordered[-count]) if 0 < count <= len(ordered) else np.inf
