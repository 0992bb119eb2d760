"""Splits: disjoint, whole, seeded, stratified; and words for what cannot be split."""

import numpy as np
import pytest

from proj.data.splits import split, split_by_time, split_groups
from proj.errors import UserError


@pytest.mark.parametrize("strata", [None, np.arange(100) % 3])
def test_each_row_is_in_one_part_and_the_shares_are_as_asked(strata: np.ndarray | None) -> None:
    parts = split(np.arange(100), 0.2, 0.3, 5, strata)
    assert np.array_equal(np.sort(np.concatenate(list(parts.values()))), np.arange(100))
    assert [len(parts[s]) for s in ("train", "val", "test")] == [50, 20, 30]
    again = split(np.arange(100), 0.2, 0.3, 5, strata)
    assert all(np.array_equal(again[stage], rows) for stage, rows in parts.items())
    assert not np.array_equal(split(np.arange(100), 0.2, 0.3, 6, strata)["test"], parts["test"])


def test_stratified_parts_have_each_class_in_its_share() -> None:
    classes = np.array([0] * 80 + [1] * 20)
    parts = split(np.arange(100), 0.2, 0.2, 0, classes)
    assert [int(classes[rows].sum()) for rows in parts.values()] == [12, 4, 4]


def test_no_fraction_no_part() -> None:
    parts = split(np.arange(10), 0.0, 0.0, 0, None)
    assert [len(rows) for rows in parts.values()] == [10, 0, 0]


@pytest.mark.parametrize(
    ("val", "test", "message"),
    [
        (-0.1, 0.2, "val_fraction"),
        (0.2, 1.0, "test_fraction"),
        (0.5, 0.5, "sum below 1"),
        (0.01, 0.0, "val_fraction"),
    ],
)
def test_fractions_that_make_no_split_are_named(val: float, test: float, message: str) -> None:
    with pytest.raises(UserError, match=message):
        split(np.arange(12), val, test, 0, np.arange(12) % 3)


def test_a_class_too_rare_for_every_part_is_an_error() -> None:
    with pytest.raises(UserError, match="cannot split 1 off 5 rows"):
        split(np.arange(5), 0.2, 0.2, 0, np.array([0, 0, 0, 0, 1]))


def test_groups_stay_together() -> None:
    groups = np.random.default_rng(0).integers(0, 20, 100)
    rows = np.arange(100) * 2  # numbers in the source, with gaps
    parts = split_groups(rows, 0.2, 0.3, 1, groups)
    assert np.array_equal(np.sort(np.concatenate(list(parts.values()))), rows)
    members = [set(groups[part // 2]) for part in parts.values()]
    assert [len(m) for m in members] == [10, 4, 6]
    assert not members[0] & members[1] | members[0] & members[2] | members[1] & members[2]


def test_the_latest_rows_are_tested_and_one_moment_is_not_torn_apart() -> None:
    times = np.repeat(np.arange(10), 10)
    np.random.default_rng(0).shuffle(times)
    parts = split_by_time(np.arange(100), 0.2, 0.25, times)
    assert {stage: set(times[rows]) for stage, rows in parts.items()} == {
        "train": {0, 1, 2, 3, 4},
        "val": {5, 6},
        "test": {7, 8, 9},
    }
    assert [len(rows) for rows in split_by_time(np.arange(100), 0.0, 0.0, times).values()] == [
        100,
        0,
        0,
    ]
