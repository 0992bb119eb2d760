"""Tables: read each value as in training, and encode the columns as inputs of the net."""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any

import numpy as np

from .dates import DAY, read_date, read_number_date
from .numbers import SPACES, read_number
from .rows import Columns, InputError, UnreadableWarning, count_rows, is_missing, match_names
from .words import Score, normalize

MISSING_CODE, OTHER_CODE, FIRST_CODE = 0, 1, 2
TEXT_KINDS = ("word", "length")
BOOLEANS = {"true": True, "1": True, "false": False, "0": False}
EPOCH = datetime(1970, 1, 1)
MICROSECOND = timedelta(microseconds=1)
MAX_NUMBER = int(np.finfo(np.float64).max)
# Different words of a column that a warning lists.
MAX_WORDS = 5

Array = np.ndarray[Any, Any]
Spec = Mapping[str, Any]
# float32 is kept, because 0.1 is another number in float64.
Number = float | int | np.float32


class Table:
    """Encoder of tables.

    Args:
        spec: ``inputs`` of ``bundle.json``: how each source column is read, and the inputs of the
            net that are computed from it.
    """

    def __init__(self, spec: Spec) -> None:
        self.sources = {
            source["name"]: Source(source, frozenset(spec["placeholders"]))
            for source in spec["sources"]
        }
        self.numeric: Sequence[Spec] = spec["numeric"]
        self.categorical: Sequence[Spec] = spec["categorical"]
        self.scores = [Score(*c["model"]) if c["kind"] == "score" else None for c in self.numeric]
        self.codes = [
            {text: code for code, text in enumerate(column["categories"], FIRST_CODE)}
            for column in self.categorical
        ]

    def encode(
        self, columns: Columns, strict: bool, first: int = 0, warns: bool = True
    ) -> dict[str, Array]:
        """Return ``numeric`` float32 [rows, numbers], NaN where missing, and ``categorical`` int32.

        Args:
            columns: values by name.
            strict: whether a text that cannot be read is an error, or counts as missing with a
                warning.
            first: the position of the first row, for messages.
            warns: whether the warning is given; not if another encoder reads the same columns.

        Raises:
            InputError: for a column that is not there, and a value of another type.
        """
        given = match_names(columns, list(self.sources))
        rows = count_rows(given)
        values = {n: s.read(given[n], strict, first, warns) for n, s in self.sources.items()}
        numeric = np.empty((rows, len(self.numeric)), np.float32)
        for i, score in enumerate(self.scores):
            if score:
                numeric[:, i] = [score(v or "") for v in values[self.numeric[i]["source"]]]
        texts = {c["source"] for c in self.numeric if c["kind"] in TEXT_KINDS}
        for name in texts:
            values[name] = [None if v is None else normalize(v) for v in values[name]]
        for i, column in enumerate(self.numeric):
            if column["kind"] != "score":
                numeric[:, i] = self._numbers(column, values[column["source"]], first)
        categorical = np.empty((rows, len(self.categorical)), np.int32)
        for i, (column, codes) in enumerate(zip(self.categorical, self.codes, strict=True)):
            source = self.sources[column["source"]]
            categorical[:, i] = [
                MISSING_CODE if value is None else codes.get(source.text(value), OTHER_CODE)
                for value in values[column["source"]]
            ]
        return {"numeric": numeric, "categorical": categorical}

    def _numbers(self, column: Spec, values: list[Any], first: int) -> Array:
        kind, form = column["kind"], column["format"]
        if kind == "word":
            found = [v is not None and f" {column['word']} " in v for v in values]
            numbers = np.array(found, np.float64)
        elif kind == "length":
            lengths = [len(v.split()) if v else 0 for v in values]
            numbers = np.array([length or math.nan for length in lengths], np.float64)
        elif kind == "number":
            numbers = np.array([math.nan if v is None else float(v) for v in values], np.float64)
        else:
            dates = values
            if form:  # The values are numbers that are dates.
                dates = [None if v is None else read_number_date(v, form) for v in values]
            numbers = date_part(dates, kind)
        # In float64, because float32 has too few digits for the whole number.
        with np.errstate(over="ignore"):
            encoded: Array = (numbers - column["center"]).astype(np.float32)
        if (infinite := np.isinf(encoded)).any():
            row = int(infinite.argmax())
            raise InputError(
                f"expected a finite number, got {values[row]!r}", column["source"], first + row
            )
        return encoded


def date_part(dates: list[int | None], kind: str) -> Array:
    """Return days since 1970, month, weekday from 1 or hour of dates, NaN for None: float64."""
    missing = np.array([value is None for value in dates], bool)
    part: Array
    moments = np.array([value or 0 for value in dates], np.int64)
    days, rest = np.divmod(moments, DAY)
    if kind == "days":
        part = moments / DAY
    elif kind == "month":
        part = days.astype("datetime64[D]").astype("datetime64[M]").astype(np.int64) % 12 + 1.0
    elif kind == "weekday":
        part = (days + 3) % 7 + 1.0
    else:
        minutes = rest // 60_000_000
        part = minutes // 60 + minutes % 60 / 60
    part[missing] = np.nan
    return part


class Source:
    """A column of the table: read its values as the type that they had in training.

    Args:
        spec: entry of ``sources`` in ``bundle.json``.
        placeholders: words that mean "missing" in any column of numbers or dates, in lower case.
    """

    def __init__(self, spec: Spec, placeholders: frozenset[str]) -> None:
        self.name, self.type, self.reading = spec["name"], spec["type"], spec["reading"]
        self.format, self.keeps_spaces = spec["format"], spec["keeps_spaces"]
        self.numbers_as_text, self.days_only = spec["numbers_as_text"], spec["days_only"]
        self.words, self.placeholders = frozenset(spec["placeholders"]), placeholders
        self._convert: Callable[[Any], Any] = getattr(self, f"_as_{self.type}")

    def read(self, values: list[Any], strict: bool, first: int, warns: bool = True) -> list[Any]:
        """Return values as numbers, texts, booleans or microseconds since 1970; None if missing."""
        unreadable: dict[str, int] = {}
        result: list[Any] = []
        for row, value in enumerate(values, first):
            if is_missing(value):
                result.append(None)
                continue
            is_text = isinstance(value, str)
            found = self._read_text(value) if is_text else self._convert(value)
            if found is None and not is_text:
                raise self._wrong_type(value, row)
            if found is None and not self._is_placeholder(value):
                if strict:
                    raise InputError(f"expected a {self.reading}, got {value!r}", self.name, row)
                unreadable[value] = unreadable.get(value, 0) + 1
            result.append(found)
        if unreadable and warns:
            self._warn(unreadable, len(values))
        return result

    def text(self, value: Any) -> str:
        """Return a value as the text of a category. The numbers 7 and 7.0 are one category."""
        if self.type == "number":
            return number_text(value)
        if self.type == "date":
            moment = str(np.datetime64(value, "us")).replace("T", " ")
            return moment[:10] if self.days_only else moment
        return str(value).lower() if self.type == "boolean" else str(value)

    def _read_text(self, text: str) -> Any:
        """Return text as the type of the column, None if it cannot be read."""
        if self.reading == "number":
            number = read_number(text, self.format)
            return None if number != number else number
        if self.reading == "date":
            return read_date(text, self.format)
        if self.reading == "boolean":
            return BOOLEANS.get(text.strip(SPACES).lower())
        if self.keeps_spaces:
            return text
        stripped = text.strip(SPACES)
        return stripped if stripped and stripped not in self.words else None

    def _is_placeholder(self, word: str) -> bool:
        return word.strip(SPACES).lower() in self.placeholders or word in self.words

    def _wrong_type(self, value: Any, row: int) -> InputError:
        got = type(value).__name__
        return InputError(
            f"expected a value of type {self.type}, as in training, got {got} {str(value)[:80]!r}",
            self.name,
            row,
        )

    def _warn(self, words: dict[str, int], rows: int) -> None:
        listed = ", ".join(repr(word) for word in list(words)[:MAX_WORDS])
        warnings.warn(
            f"{sum(words.values())} of {rows} values of column {self.name} cannot be read as "
            f"{self.reading}s and count as missing: {listed}{', …' * (len(words) > MAX_WORDS)}",
            UnreadableWarning,
            stacklevel=2,
        )

    # Values that are not text, by the type of the column; None for a value of another type.

    def _as_number(self, value: Any) -> Number | None:
        if isinstance(value, bool | np.bool_):
            return None
        if isinstance(value, int | np.integer):
            # float64, which holds the numbers of columns, ends there.
            return int(value) if abs(int(value)) < MAX_NUMBER else None
        if isinstance(value, np.float32):
            return value
        if isinstance(value, float | np.floating | Decimal):
            return float(value)
        if isinstance(value, timedelta):
            return value / MICROSECOND
        if isinstance(value, np.timedelta64):
            return int(value.astype(np.int64))
        if isinstance(value, time):
            seconds = (value.hour * 60 + value.minute) * 60 + value.second
            return seconds * 1_000_000_000 + value.microsecond * 1000
        return None

    def _as_boolean(self, value: Any) -> bool | None:
        return bool(value) if isinstance(value, bool | np.bool_) else None

    def _as_date(self, value: Any) -> int | None:
        if isinstance(value, np.datetime64):
            return int(value.astype("datetime64[us]").astype(np.int64))
        if isinstance(value, datetime):
            if value.tzinfo is not None:
                value = value.astimezone(UTC).replace(tzinfo=None)
            return int((value - EPOCH) // MICROSECOND)
        return (value - EPOCH.date()).days * DAY if isinstance(value, date) else None

    def _as_text(self, value: Any) -> str | None:
        # Other readers take categories that look like numbers for numbers.
        number = self._as_number(value)
        return number_text(number) if number is not None and self.numbers_as_text else None


def number_text(number: Number) -> str:
    """Return a number as polars writes it: whole numbers without a fraction, 1e-7 as ``1e-7``."""
    if isinstance(number, int) or (math.isfinite(number) and float(number).is_integer()):
        return str(int(number)) if abs(float(number)) < 2**63 else ""
    text = str(number)
    if "e" in text:
        digits, exponent = text.split("e")
        if int(exponent) < (-6 if isinstance(number, np.float32) else -5):
            return f"{digits}e{int(exponent)}"
        return np.format_float_positional(number, trim="-")
    return text
