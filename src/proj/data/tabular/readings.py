"""How the text of a column is read: as numbers, dates, booleans or text. Found from its values."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple, TypeAlias, TypeVar

import polars as pl

from proj.data.tabular.dates import (
    find_date_form,
    find_number_form,
    read_dates,
    read_number_dates,
    to_polars_form,
)
from proj.data.tabular.files import nameless
from proj.data.tabular.numbers import (
    DECIMAL_SIGNS,
    DEFAULT_FORMAT,
    PLACEHOLDERS,
    is_code,
    is_whole,
    parse_numbers,
    plain_numbers,
)
from proj.data.tabular.overrides import Override
from proj.data.tabular.targets import MAX_NUMBER_CLASSES
from proj.errors import UserError, quoted
from proj.schema import Column

Text = TypeVar("Text", pl.Series, pl.Expr)
ColumnType: TypeAlias = Literal["number", "text", "boolean", "date"]

# A column is a number or a date if at least this share of its values can be read as one.
READABLE_SHARE: Final = 0.95
# If data.columns states it, half of the values are enough.
STATED_SHARE: Final = 0.5

# Rows that a reading is found from. It is then tried on all rows.
SAMPLE_ROWS: Final = 10_000

# Different unreadable words of a column that are kept.
MAX_WORDS: Final = 100

DATE_KINDS: Final = ("days", "month", "weekday", "hour")

# Forms of dates in text for a column that had the type of a date in training.
ISO_FORMS: Final = "|".join(
    (
        *("%Y-%m-%d", "%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%d %H:%M"),
        *("%Y-%m-%dT%H:%M", "%Y-%m-%dT%H:%M:%S%.f%#z", "%Y-%m-%d %H:%M:%S%.f%#z"),
        *("%d-%m-%Y", "%d/%m/%Y", "%d/%m/%Y %H:%M:%S%.f"),
    )
)

# The end of a time with an offset from UTC that is not 0, such as 10:30:00+01:00.
_OFFSET: Final = (
    r"(?::\d\d(?:\.\d+)?|T\d{6}) *[+-](?:0[1-9]|1\d|00:?[1-9]\d|00:?0[1-9])(?::?\d\d)? *$"
)

# Whole numbers of these dates, 19000101 to 21001231, may be dates.
_DAY_RANGE: Final = (1900_01_01, 2100_12_31)


class Reading(NamedTuple):
    """How the text of a column is read.

    Attributes:
        type: what the values are.
        format: a key of ``DECIMAL_SIGNS``, a form of dates, or empty.
        placeholders: words among numbers or dates that count as missing.
        whole: whether all numbers are written without a fraction.
    """

    type: ColumnType
    format: str = ""
    placeholders: tuple[str, ...] = ()
    whole: bool = False


@dataclass
class Tally:
    """What became of the values of a column when they were read."""

    rows: int = 0
    present: int = 0  # values that are neither missing nor a placeholder
    read: int = 0
    words: dict[str, int] = field(default_factory=dict)  # unreadable values and placeholders
    written: int = 0  # numbers in another form than -1.5, and dates with an offset
    example: str = ""
    whole: bool = True
    first_odd: tuple[int, str] | None = None  # row and value of the first that cannot be read
    is_plain: bool = True  # whether all are plain numbers or missing

    def add(self, values: pl.Series, reading: Reading) -> None:
        """Count the values of a chunk."""
        start = self.rows
        self.rows += len(values)
        if reading.type == "number" and not reading.format:
            numbers = plain_numbers(values)
            if numbers.null_count() == values.null_count():
                # The usual case: all numbers are plainly written.
                self.read += len(values) - values.null_count()
                self.present = self.read + self._unreadable
                if self.whole:
                    integers = values.cast(pl.Int64, strict=False)
                    self.whole = integers.null_count() == values.null_count()
                return
        self.is_plain = False
        parsed = read(values, reading)
        present = values.is_not_null()
        if parsed.null_count() > values.null_count():
            self._add_words(values, present & parsed.is_null(), reading, start)
        self.read += len(parsed) - parsed.null_count()
        self.present = self.read + self._unreadable
        if reading.type == "number":
            self._add_forms(values, parsed, reading)
        elif reading.type == "date" and "z" in reading.format:
            self._add_written(values.filter(values.str.contains(_OFFSET)))

    _unreadable: int = 0

    def _add_words(self, values: pl.Series, odd: pl.Series, reading: Reading, start: int) -> None:
        counts = values.filter(odd).alias("v").value_counts(sort=True, name="n")
        for word, count in counts.rows():
            if not word.strip():
                continue  # A field of spaces is as missing as an empty one.
            if not is_placeholder(word, reading):
                self._unreadable += count
                if self.first_odd is None:
                    row = int((values == word).arg_max() or 0)
                    self.first_odd = start + row, word
            if word in self.words or len(self.words) < MAX_WORDS:
                self.words[word] = self.words.get(word, 0) + count

    def _add_forms(self, values: pl.Series, parsed: pl.Series, reading: Reading) -> None:
        plain = plain_numbers(values)
        if plain.null_count() > parsed.null_count() or reading.format not in ("", DEFAULT_FORMAT):
            text = values.str.strip_chars()
            written = parsed.is_not_null() & (plain_numbers(text) - parsed).fill_null(1).ne(0)
            self._add_written(values.filter(written))
        if self.whole:
            style = reading.format or DEFAULT_FORMAT
            self.whole = bool(is_whole(values.filter(parsed.is_not_null()), style).all())
            self.whole = self.whole and not (parsed.abs() >= 2**63).any()

    def _add_written(self, values: pl.Series) -> None:
        self.written += len(values)
        if len(values) and not self.example:
            self.example = values[0]


def stored_format(reading: Reading) -> str:
    """Return the format for a schema: empty for ISO dates, as those of a typed source."""
    return "" if reading.format == "%Y-%m-%d" else reading.format


def is_placeholder(word: str, reading: Reading) -> bool:
    """Return whether a word among numbers or dates stands for a missing value."""
    return word.strip().lower() in PLACEHOLDERS or word in reading.placeholders


def read(values: pl.Series, reading: Reading) -> pl.Series:
    """Return text as the type of a reading, null where it cannot be read."""
    if reading.type == "number":
        return parse_numbers(values, reading.format or DEFAULT_FORMAT)
    if reading.type == "boolean":
        lower = values.str.strip_chars().str.to_lowercase()
        known = {"true": True, "false": False, "1": True, "0": False}
        return lower.replace_strict(known, default=None, return_dtype=pl.Boolean)
    if reading.type == "date":
        dates = read_dates(pl.col("v"), reading.format or ISO_FORMS)
        return values.alias("v").to_frame().select(dates).to_series().alias(values.name)
    return _clean(values)


def _clean(text: Text) -> Text:
    """Return text without spaces around it; nothing else is missing."""
    return text.str.strip_chars().replace("", None)


def read_column(values: pl.Expr, reading: Reading) -> pl.Expr:
    """Return the expression of a text column as the type of its reading."""
    if reading.type == "date":
        return read_dates(values, reading.format or ISO_FORMS)
    if reading.type == "text":
        return _clean(values)
    if reading.type == "boolean":
        return values.map_batches(
            lambda series: read(series.alias(""), reading),
            return_dtype=pl.Boolean,
            is_elementwise=True,
        )

    def to_numbers(series: pl.Series) -> pl.Series:
        # Methods of a series take its name for a pattern.
        series = series.alias("")
        numbers = read(series, reading)
        if not reading.whole:
            return numbers
        # Directly, because Float64 rounds whole numbers above 2^53.
        integers = series.cast(pl.Int64, strict=False)
        if integers.null_count() == numbers.null_count():
            return integers
        return (
            integers.to_frame("i")
            .select(pl.coalesce("i", pl.lit(numbers.cast(pl.Int64, strict=False))))
            .to_series()
        )

    dtype = pl.Int64 if reading.whole else pl.Float64
    return values.map_batches(to_numbers, return_dtype=dtype, is_elementwise=True)


# Finding the reading


class Wish(NamedTuple):
    """What the options say of a column. ``strict``: each value must be readable, as of a target."""

    override: Override | None = None
    strict: bool = False


def find_readings(sample: pl.DataFrame, wishes: Mapping[str, Wish], separator: str) -> "Found":
    """Return the readings of text columns that fit a sample of their rows.

    Raises UserError if data.columns states a kind that the values do not have.
    """
    columns = {name: _Values(nameless(sample, name)) for name in sample.columns}
    styles = {name: column.style() for name, column in columns.items()}
    comma = any(columns[name].has_comma(style) for name, style in styles.items())
    found: Found = {}
    for name, column in columns.items():
        wish = wishes.get(name, Wish())
        use_comma = comma or (separator == ";" and column.contains(","))
        found[name] = _find_one(name, column, wish, use_comma)
    return found


class FoundReading(NamedTuple):
    """The reading of a column, and what else it may be.

    Attributes:
        reading: how the text is read.
        other: another form of dates that fits as well, or nothing.
        numbers: for text, the reading as numbers that fits most values, but too few.
    """

    reading: Reading
    other: str = ""
    numbers: Reading | None = None


Found = dict[str, FoundReading]


class _Values:
    """Distinct texts of a column without placeholders, with their numbers of rows."""

    def __init__(self, values: pl.Series) -> None:
        counts = values.alias("v").drop_nulls().value_counts(name="n")
        counts = counts.sort("n", "v", descending=[True, False])
        lower = counts["v"].str.strip_chars().str.to_lowercase()
        is_word = lower.is_in(list(PLACEHOLDERS))
        self.texts, self.counts = counts.filter(~is_word).iter_columns()
        self.rows = int(self.counts.sum())
        self.numbers = {DEFAULT_FORMAT: parse_numbers(self.texts)}
        # Most numbers have no other reading, which takes longer to try.
        fractions = self.texts.filter(self.texts.str.contains(r"[.,]"))
        plain = not self.numbers[DEFAULT_FORMAT].null_count()
        if plain and not fractions.str.contains(r"[.,]\d{3}\D*$").all():
            self.numbers["1.234,5"] = pl.Series([None] * len(self.texts), dtype=pl.Float64)
        else:
            self.numbers["1.234,5"] = parse_numbers(self.texts, "1.234,5")

    def rows_as_numbers(self, style: str) -> int:
        return int(self.counts.filter(self.numbers[style].is_not_null()).sum())

    def are_codes(self, style: str) -> bool:
        """Return whether the numbers are codes. A few words among them do not matter."""
        return is_code(self.texts.filter(self.numbers[style].is_not_null()).str.strip_chars())

    def contains(self, sign: str) -> bool:
        return bool(self.texts.str.contains(sign, literal=True).any())

    def style(self) -> str:
        """Return the style of numbers that fits most rows; empty if several do."""
        fits = {style: self.rows_as_numbers(style) for style in DECIMAL_SIGNS}
        best = max(fits.values())
        styles = [style for style, rows in fits.items() if rows == best]
        first, second = self.numbers.values()
        # Whole numbers are the same in both.
        same = len(styles) == 2 and bool((first == second).fill_null(True).all())
        return DEFAULT_FORMAT if same else styles[0] if len(styles) == 1 else ""

    def has_comma(self, style: str) -> bool:
        """Return whether the column certainly has decimal commas."""
        share = self.rows_as_numbers(style) / self.rows if style and self.rows else 0
        return style not in ("", DEFAULT_FORMAT) and share >= READABLE_SHARE


def _find_one(name: str, values: _Values, wish: Wish, use_comma: bool) -> FoundReading:
    kind, stated = (wish.override.kind, wish.override.format) if wish.override else (None, "")
    if kind in ("drop", "text") or not values.rows:
        return FoundReading(Reading("text"))
    style = values.style() or ("1.234,5" if use_comma else DEFAULT_FORMAT)
    if kind == "number" and stated:
        style = _stated_style(name, stated)
    share = values.rows_as_numbers(style) / values.rows
    numbers = Reading("number", "" if style == DEFAULT_FORMAT else style)
    if kind == "number":
        if share < STATED_SHARE:
            raise _cannot_follow(name, "numbers", stated, values, values.numbers[style])
        return FoundReading(numbers)
    if kind == "category":
        plain = plain_numbers(values.texts).null_count() == 0 and not values.are_codes(style)
        return FoundReading(Reading("number") if plain else _boolean_or_text(values))
    if kind == "date":
        return _stated_dates(name, values, stated)
    if share >= READABLE_SHARE and not values.are_codes(style):
        few = values.numbers[style].n_unique() <= MAX_NUMBER_CLASSES + 1
        if share == 1 or not (wish.strict and few):
            return FoundReading(numbers)
    if (found := find_date_form(values.texts, values.counts)) is not None:
        form, rows = found
        if rows / values.rows >= READABLE_SHARE:
            return FoundReading(Reading("date", form.form), form.other)
    is_mixed = STATED_SHARE <= share < READABLE_SHARE and not values.are_codes(style)
    is_mixed = is_mixed and values.numbers[style].n_unique() > MAX_NUMBER_CLASSES + 1
    return FoundReading(_boolean_or_text(values), "", numbers if is_mixed else None)


def _boolean_or_text(values: _Values) -> Reading:
    lower = values.texts.str.strip_chars().str.to_lowercase()
    return Reading("boolean" if lower.is_in(["true", "false"]).all() else "text")


def _stated_style(name: str, stated: str) -> str:
    if stated not in DECIMAL_SIGNS:
        raise UserError(
            f"data.columns: {name}: expected the format of numbers, {' or '.join(DECIMAL_SIGNS)}, "
            f"got {stated!r}."
        )
    return stated


def _stated_dates(name: str, values: _Values, stated: str) -> FoundReading:
    """Return the reading of a column that data.columns declares to hold dates."""
    numbers = values.numbers[DEFAULT_FORMAT]
    if numbers.is_not_null().mean() > READABLE_SHARE:  # type: ignore[operator]
        return FoundReading(Reading("number"))
    if stated:
        form = to_polars_form(stated)
        dates = read(values.texts, Reading("date", form))
        other, rows = "", int(values.counts.filter(dates.is_not_null()).sum())
    else:
        found = find_date_form(values.texts, values.counts)
        form, other, rows = (*found[0], found[1]) if found else ("", "", 0)
        dates = read(values.texts, Reading("date", form or "%Y-%m-%d"))
    if rows / values.rows < STATED_SHARE:
        raise _cannot_follow(name, "dates", stated, values, dates)
    return FoundReading(Reading("date", form), other)


def number_date_form(name: str, numbers: pl.Series, stated: str) -> str:
    """Return the form of numbers that data.columns declares to be dates.

    Raises UserError if they are none.
    """
    form = to_polars_form(stated) if stated else find_number_form(numbers)
    dates = read_number_series(numbers, form) if form else None
    if form is None or dates is None or dates.null_count() > STATED_SHARE * len(dates):
        got = next(iter(numbers.drop_nulls()), None)
        got = int(got) if got is not None and got % 1 == 0 else got
        raise UserError(
            f"data.columns: {name}: expected dates"
            f"{f' in the format {stated}' if stated else ''}, got {got}; state the format, such as "
            f"{{{name}: {{kind: date, format: seconds}}}} since 1970, or choose another kind."
        )
    return form


def read_number_series(numbers: pl.Series, form: str) -> pl.Series:
    """Return numbers as dates, null where they are none."""
    frame = numbers.alias("v").to_frame()
    return frame.select(read_number_dates(pl.col("v"), form)).to_series()


def days_in_numbers(numbers: pl.Series) -> bool:
    """Return whether whole numbers such as 20180131 are dates, but for a few."""
    # Int8 and Int16 cannot be compared with the limits, which they cannot hold.
    in_range = numbers.cast(pl.Float64).is_between(*_DAY_RANGE)
    # Most columns end here, before anything is read as dates.
    if not len(numbers) or in_range.sum() < READABLE_SHARE * len(numbers):
        return False
    dates = read_number_series(numbers, "%Y%m%d")
    return bool((dates.is_not_null() & in_range).sum() >= READABLE_SHARE * len(numbers))


def _cannot_follow(
    name: str, what: str, stated: str, values: _Values, parsed: pl.Series
) -> UserError:
    example = values.texts.filter(parsed.is_null())[0]
    format_hint = f" in the format {stated}" if stated else ""
    return UserError(
        f"data.columns: {name}: expected {what}{format_hint}, got {quoted(example)}; choose "
        f"another kind{'' if stated else ', or state the format'}."
    )


# Readings of a schema


def column_readings(columns: Iterable[Column]) -> dict[str, Reading]:
    """Return how each column of a schema is read where it is text."""
    return {column.source: _reading_of(column) for column in columns}


def _reading_of(column: Column) -> Reading:
    type_, form = column.type, column.format
    if column.type == "number" and column.kind in DATE_KINDS:
        form = ""  # The format is that of the numbers, which are plain.
    elif column.type == "text" and column.kind == "number":
        type_ = "number"
    elif column.type == "text" and column.kind in DATE_KINDS:
        type_ = "date"
    return Reading(type_, form, column.placeholders)
