"""Splits are disjoint, complete, seeded and stratified; messages say why a split is impossible."""

from typing import Any

import numpy as np
import pytest
from sklearn.model_selection import train_test_split

from proj.data.tabular.row_splits import _stratified, split
from proj.data.tabular.splits import split_by_time, split_groups
from proj.errors import UserError


@pytest.mark.parametrize("strata", [None, np.arange(100) % 3])
def test_each_row_is_in_one_split_of_the_requested_size(strata: np.ndarray | None) -> None:
    """A row in two splits would be trained and tested on."""
    splits = split(np.arange(100), 0.2, 0.3, 5, strata)
    assert np.array_equal(np.sort(np.concatenate(list(splits.values()))), np.arange(100))
    assert [len(splits[s]) for s in ("train", "val", "test")] == [50, 20, 30]
    again = split(np.arange(100), 0.2, 0.3, 5, strata)
    assert all(np.array_equal(again[name], rows) for name, rows in splits.items())
    assert not np.array_equal(split(np.arange(100), 0.2, 0.3, 6, strata)["test"], splits["test"])


def test_stratified_splits_have_the_share_of_each_class() -> None:
    """A rare class could be missing in a split."""
    classes = np.array([0] * 80 + [1] * 20)
    splits = split(np.arange(100), 0.2, 0.2, 0, classes)
    assert [int(classes[rows].sum()) for rows in splits.values()] == [12, 4, 4]


@pytest.mark.parametrize("rows", [12, 60, 1_797, 20_000])
def test_stratified_rows_are_those_of_scikit_learn(rows: int) -> None:
    """The splits of a run would change, and its results with them."""
    rng = np.random.default_rng(rows)
    for seed, classes in enumerate((2, 3, 5, 3, 2, 10)):
        # Frequent and rare classes, numbers without a row among them, and equal remainders.
        weights = rng.dirichlet(np.ones(classes)) if seed % 2 else np.full(classes, 1 / classes)
        strata = 2 * np.r_[np.repeat(np.arange(classes), 2), rng.choice(classes, rows, p=weights)]
        for count in (classes, rows // 3, rows // 2):
            if not classes <= count <= len(strata) - classes:
                continue
            _, expected = train_test_split(
                np.arange(len(strata)), test_size=count, random_state=seed, stratify=strata
            )
            chosen = _stratified(strata, count, seed)
            if chosen is None:  # A class would have no training row.
                assert len(np.unique(np.delete(strata, expected))) < classes
            else:
                assert np.array_equal(np.sort(chosen), np.sort(expected))


def test_a_fraction_of_zero_gives_an_empty_split() -> None:
    """All rows can be used for training."""
    splits = split(np.arange(10), 0.0, 0.0, 0, None)
    assert [len(rows) for rows in splits.values()] == [10, 0, 0]


@pytest.mark.parametrize(
    ("val", "test", "message"),
    [
        (-0.1, 0.2, "val_fraction"),
        (0.2, 1.0, "test_fraction"),
        (0.5, 0.5, "sum below 1"),
        (0.8, 0.0, "val_fraction"),
    ],
)
def test_impossible_fractions_are_named(val: float, test: float, message: str) -> None:
    """The message names the option."""
    with pytest.raises(UserError, match=message):
        split(np.arange(12), val, test, 0, np.arange(12) % 6)


@pytest.mark.parametrize("fold", [None, ("test", 1, 3), ("val", 0, 5)])
def test_each_class_has_training_rows(fold: Any) -> None:
    """A class with one row stopped `init`, and a class without training rows cannot be predicted.

    Frequent classes keep their share in each split.
    """
    classes = np.repeat(np.arange(7), [60, 30, 5, 2, 1, 1, 1])
    for seed in range(20):
        splits = split(np.arange(100), 0.2, 0.2, seed, classes, fold)
        assert np.array_equal(np.sort(np.concatenate(list(splits.values()))), np.arange(100))
        counts = {name: np.bincount(classes[rows], minlength=7) for name, rows in splits.items()}
        assert (counts["train"] > 0).all()
        assert counts["train"][4:].tolist() == [1, 1, 1]
        if fold is None:
            assert all(11 <= counts[name][0] <= 13 for name in ("val", "test"))


def test_more_classes_than_rows_of_a_split() -> None:
    """Each of 30 classes has a training row, and a split of 10 rows has those of any classes."""
    classes = np.random.default_rng(0).permutation(np.arange(100) % 30)
    splits = split(np.arange(100), 0.1, 0.1, 0, classes)
    assert [len(rows) for rows in splits.values()] == [80, 10, 10]
    assert len(np.unique(classes[splits["train"]])) == 30


def test_classes_of_one_row_each_are_an_error() -> None:
    """The message names a class as the user does, and speaks of numbers only if they are ones."""
    names = [f"name {i}" for i in range(9)]
    message = (
        r"data.test_fraction: cannot split 2 off 9 rows: train needs a row of each of the 9 "
        r"classes, and class 'name 0' has 1; choose another target, or a smaller fraction\."
    )
    with pytest.raises(UserError, match=message):
        split(np.arange(9), 0.2, 0.2, 0, np.arange(9), class_names=names)
    with pytest.raises(UserError, match=r"class 7\.5 has 1.*set data.task to regression"):
        split(np.arange(9), 0.2, 0.2, 0, np.arange(9), class_names=[7.5] * 9)


def test_groups_stay_together() -> None:
    """A group in two splits would leak into the test."""
    groups = np.random.default_rng(0).integers(0, 20, 100)
    rows = np.arange(100) * 2  # numbers in the source, with gaps
    splits = split_groups(rows, 0.2, 0.3, 1, groups)
    assert np.array_equal(np.sort(np.concatenate(list(splits.values()))), rows)
    members = [set(groups[chosen // 2]) for chosen in splits.values()]
    assert [len(m) for m in members] == [10, 4, 6]
    assert not members[0] & members[1] | members[0] & members[2] | members[1] & members[2]


def test_the_latest_rows_are_tested_and_equal_times_stay_together() -> None:
    """Training rows must not be later than test rows."""
    times = np.repeat(np.arange(10), 10)
    np.random.default_rng(0).shuffle(times)
    splits = split_by_time(np.arange(100), 0.2, 0.25, times)
    assert {name: set(times[rows]) for name, rows in splits.items()} == {
        "train": {0, 1, 2, 3, 4},
        "val": {5, 6},
        "test": {7, 8, 9},
    }
    assert [len(rows) for rows in split_by_time(np.arange(100), 0.0, 0.0, times).values()] == [
        100,
        0,
        0,
    ]
