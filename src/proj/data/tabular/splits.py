"""Split the rows of a table by groups or by time."""

import numpy as np

from proj.data.tabular.row_splits import Fold, Rows, check_fractions, num_rows, split
from proj.errors import UserError


def split_groups(
    rows: Rows,
    val_fraction: float,
    test_fraction: float,
    seed: int,
    groups: Rows,
    fold: Fold | None = None,
) -> dict[str, Rows]:
    """Split ``rows`` so that all rows of a group (a number for each row) are in one split.

    Fractions and folds count groups, so the shares of rows differ if groups differ in size.
    """
    chosen = split(np.unique(groups), val_fraction, test_fraction, seed, None, fold)
    return {name: rows[np.isin(groups, numbers)] for name, numbers in chosen.items()}


def split_by_time(
    rows: Rows, val_fraction: float, test_fraction: float, times: Rows, fold: Fold | None = None
) -> dict[str, Rows]:
    """Use the latest rows as the test split and the rows before them as the validation split.

    Rows with equal times are in one split. Folds are those of scikit-learn's TimeSeriesSplit over
    the distinct times: rows later than a fold are in no split.
    """
    check_fractions(val_fraction, test_fraction)
    if fold and fold[0] == "test":
        test_start, test_end = _fold_times(times, fold)
    else:
        test_start = _start_of_latest(np.sort(times), num_rows(rows, test_fraction))
        test_end = np.inf
    before_test = np.sort(times[times < test_start])
    if fold and fold[0] == "val":
        val_start, val_end = _fold_times(before_test, fold)
    else:
        val_start = _start_of_latest(before_test, num_rows(rows, val_fraction))
        val_end = test_start
    return {
        "train": rows[(times < val_start) & (times < test_start)],
        "val": rows[(times >= val_start) & (times < val_end)],
        "test": rows[(times >= test_start) & (times < test_end)],
    }


def _fold_times(times: Rows, fold: Fold) -> tuple[float, float]:
    """Return the first time of a fold, and the first time after it."""
    # Importing takes half a second, and most runs have no fold.
    from sklearn.model_selection import TimeSeriesSplit

    name, number, folds = fold
    distinct = np.unique(times)
    if not (2 <= folds < len(distinct) and 0 <= number < folds):
        raise UserError(
            "data.fold: expected val or test, a fold number from 0, and a larger number of folds, "
            f"from 2 to {len(distinct) - 1}, one less than the distinct times, got {name}, "
            f"{number}, {folds}."
        )
    chosen = list(TimeSeriesSplit(folds).split(distinct))[number][1]
    end = distinct[chosen[-1] + 1] if chosen[-1] + 1 < len(distinct) else np.inf
    return float(distinct[chosen[0]]), float(end)


def _start_of_latest(times: Rows, count: int) -> float:
    """Return the time from which on about ``count`` of the ascending ``times`` lie."""
    return float(times[-count]) if 0 < count <= len(times) else np.inf
