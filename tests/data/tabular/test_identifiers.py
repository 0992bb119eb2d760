"""Identifiers and codes: numbers that only stand for things are no amounts."""

from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_readings import columns, ready, write

from proj.data.tabular.columns import fit_columns
from proj.data.tabular.identifiers import names_code, names_time
from proj.data.tabular.numbers import is_code
from proj.data.tabular.overrides import Override
from proj.data.tabular.row_hashes import hash_rows


@pytest.mark.parametrize(
    ("name", "is_code", "is_time"),
    [
        ("StoreID", True, False),
        ("teamIDfg", True, False),
        ("patient_id", True, False),
        ("id", True, False),
        ("userId", True, False),
        ("Postal Code", True, False),
        ("cowcode2", True, False),
        ("zip", True, False),
        ("yearID", False, True),
        ("paid", False, False),
        ("grid", False, False),
        ("isIdle", False, False),
        ("candidate", False, False),
        ("ordinal_date", False, True),
        ("YearBuilt", False, True),
        ("timer", False, True),  # A name is a hint only: the values must fit as well.
    ],
)
def test_names_of_codes_and_times(name: str, is_code: bool, is_time: bool) -> None:
    """A word within another one, such as paid, says nothing."""
    assert (names_code(name), names_time(name)) == (is_code, is_time)


@settings(max_examples=10, deadline=None)
@given(codes=st.lists(st.integers(0, 10**9), min_size=2, max_size=6, unique=True), data=st.data())
def test_numbers_with_the_name_of_a_code_are_categories(
    codes: list[int], data: st.DataObject
) -> None:
    """The same numbers are amounts under another name, or if data.columns says so."""
    dtype = data.draw(st.sampled_from([pl.Int64, pl.Float64]))
    rows = pl.DataFrame({"store_id": codes * 6, "size": codes * 6}).cast(dtype)
    (store, size), left_out, findings = fit_columns(rows, {}, {})
    assert left_out == {}
    assert (store.kind, size.kind) == ("category", "number")
    assert store.categories == tuple(sorted(map(str, codes)))
    (finding,) = (f for f in findings if f.column == "store_id")
    assert finding.what.startswith(f"the {len(codes)} different numbers of column store_id")
    stated, _, findings = fit_columns(rows, {"store_id": Override("number")}, {})
    assert stated[0].kind == "number"
    assert not any(f.column == "store_id" for f in findings)


def test_codes_that_are_mostly_different_are_left_out() -> None:
    """Numbers with large gaps do not count the rows, but are identifiers all the same."""
    write("t.csv", patient_id=[10**9 + 977 * i**2 for i in range(100)], x=[*range(50)] * 2)
    data = ready("t.csv")
    assert "patient_id" not in columns(data)
    (finding,) = data.findings
    assert finding.effect == "an identifier: 70 different values in 70 training rows"


def test_text_without_a_frequent_value_is_left_out() -> None:
    """All values would count as one, so the column would be constant."""
    words = [f"w{i}" for i in range(18)]
    rows = pl.DataFrame({"w": words, "m": [*words[:-1], None], "x": range(0, 180, 10)})
    used, left_out, _ = fit_columns(rows, {}, {})
    assert left_out == {"w": "none of its 18 values is in 5 training rows or more"}
    assert [column.source for column in used] == ["m", "x"]


def test_a_series_of_times_does_not_count_the_rows() -> None:
    """A year in each row is the time of a series, and a number of the row is not."""
    write("t.csv", Year=range(1900, 2000), No=range(100), x=[*range(50)] * 2)
    data = ready("t.csv")
    assert set(columns(data)) == {"Year", "x"}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["00501", "10115"], True),
        (["01", "95", "971"], True),
        (["0", "7", "12"], False),
        (["7", "007"], False),
        (["01", "1.5"], False),
        ([], False),
    ],
)
def test_digits_padded_with_zeros_are_codes(values: list[str], expected: bool) -> None:
    """Nobody pads amounts to a common width."""
    assert is_code(pl.Series(values, dtype=pl.String)) == expected


def test_codes_keep_their_zeros_beside_a_few_words() -> None:
    """01001 is not 1001, also if the header is repeated among the rows."""
    codes = [f"{1000 + i % 9:05}" for i in range(98)]
    write("t.csv", place=[*codes, "place", "place"], x=[*range(50)] * 2)
    column = columns(ready("t.csv"))["place"]
    assert (column.type, column.kind) == ("text", "category")
    assert "01000" in column.categories


def test_rows_of_different_times_are_no_copies(work: Path) -> None:
    """Equal values on two days are two measurements. A number of the row does not matter."""
    pl.DataFrame({"date": range(736389, 736409), "x": [1, 2] * 10}).write_csv("times.csv")
    pl.DataFrame({"No": range(20), "x": [1, 2] * 10}).write_csv("numbers.csv")
    assert len(set(hash_rows([Path("times.csv")], []).tolist())) == 20
    assert len(set(hash_rows([Path("numbers.csv")], []).tolist())) == 2
