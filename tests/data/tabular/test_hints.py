"""Hints to split by group or by time: true ones for such rows, none for others."""

from datetime import date, timedelta
from typing import Any

import numpy as np
import polars as pl
import pytest

from conftest import Cli
from proj.data.tabular.datamodule import Tabular

ROWS = 600
RNG = np.random.default_rng(0)
DAYS = [date(2020, 1, 1) + timedelta(days=i) for i in range(ROWS)]
VISIT = [i % 15 for i in range(ROWS)]


def hints(columns: dict[str, Any], /, **options: Any) -> list[str]:
    rng = np.random.default_rng(1)
    table = {"x": rng.normal(size=ROWS).round(3), **columns, "y": rng.normal(size=ROWS).round(3)}
    pl.DataFrame(table).write_csv("t.csv")
    data = Tabular("t.csv", "y", **options)
    data.prepare_data()
    data.setup("fit")
    found = [f for f in data.findings if "set data.group" in str(f) or "set data.time" in str(f)]
    assert all(finding.column is None for finding in found)
    return [finding.what for finding in found]


SHUFFLED = RNG.permutation(np.repeat(np.arange(40), 15)).tolist()


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"patient": SHUFFLED, "day": VISIT}, ["column patient repeats: 40 values in 600 rows"]),
        ({"userId": SHUFFLED}, ["column userId repeats: 40 values in 600 rows"]),
        # A name and a code of one thing.
        (
            {"country": [f"c{i // 12}" for i in range(ROWS)], "iso": [i // 12 for i in range(600)]},
            ["column country repeats: 50 values in 600 rows"],
        ),
        ({"plot": [i // 12 for i in range(ROWS)]}, ["column plot repeats: 50 values in 600 rows"]),
        ({"when": DAYS}, ["the rows are in the order of column when: 600 values in 600 rows"]),
        (
            {"when": DAYS[::-1]},
            ["the rows are in the order of column when: 600 values in 600 rows"],
        ),
        (
            {"time": [1960 + i / 12 for i in range(ROWS)]},
            ["the rows are in the order of column time: 600 values in 600 rows"],
        ),
    ],
)
def test_groups_and_times_are_named(columns: dict[str, Any], expected: list[str]) -> None:
    """A random split of such rows gives results that are too good, without a word."""
    assert hints(columns) == expected


@pytest.mark.parametrize(
    "columns",
    [
        # Ages, amounts, categories, and days that recur.
        {"age": RNG.integers(18, 78, ROWS), "visit": VISIT, "dose": np.arange(ROWS) // 20 % 10},
        {"age": np.sort(RNG.integers(18, 78, ROWS))},
        {"state": RNG.choice([f"s{i}" for i in range(30)], ROWS)},
        {"id": range(ROWS)},  # one row of each
        {"id": [i // 100 for i in range(ROWS)]},  # few values
        {"born": [DAYS[i] for i in RNG.permutation(ROWS)]},
        {"day": [DAYS[i // 10] for i in range(ROWS)]},  # a date of several things
        {"time": np.sort(RNG.exponential(size=ROWS))},  # survival times
        {"year": [1900 + i // 12 for i in range(ROWS)]},
        {
            "yearID": [1900 + i // 12 for i in range(ROWS)],
            "mnth": [f"m{i // 50}" for i in range(600)],
        },
        {"customer": [f"c{i}" if i % 9 else "none" for i in range(ROWS)]},
    ],
)
def test_other_columns_give_no_hint(columns: dict[str, Any]) -> None:
    """A hint at a column that identifies nothing would teach to ignore hints."""
    assert hints(columns) == []


@pytest.mark.parametrize(
    "options",
    [{"group": "patient"}, {"time": "when"}, {"columns": {"patient": "category", "when": "drop"}}],
)
def test_a_decision_ends_the_hints(options: dict[str, Any]) -> None:
    """`check --strict` could never pass."""
    assert hints({"patient": SHUFFLED, "when": DAYS}, **options) == []


def test_init_says_what_to_set(cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    """The name can be pasted into the experiment, whatever it is."""
    hints({"the: id": SHUFFLED})
    message = cli("init", "t.csv", "--target", "y", "--strict", code=2)
    assert "if the model will predict rows of new values, set data.group: 'the: id'." in message


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"day": [DAYS[i // 10] for i in range(ROWS)]}, [("time", "day")]),
        ({"day": [DAYS[i] for i in RNG.permutation(ROWS)]}, []),
        ({"patient": SHUFFLED, "when": DAYS}, [("time", "when"), ("group", "patient")]),
        ({"age": RNG.integers(18, 78, ROWS)}, []),
    ],
)
def test_candidates_have_the_ranks_of_the_training_rows(
    columns: dict[str, Any], expected: list[tuple[str, str]]
) -> None:
    """The optimism would be measured with the groups or times of other rows."""
    hints(columns)
    data = Tabular("t.csv", "y")
    data.setup("fit")
    assert [(option, column) for option, column, _ in data.candidates] == expected
    rows = data.splits["train"].row.numpy()
    for _, column, ranks in data.candidates:
        assert ranks.tolist() == (np.unique(columns[column], return_inverse=True)[1][rows]).tolist()
