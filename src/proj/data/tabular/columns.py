"""Columns of a table as inputs of a net: fit and encode each column, and describe the losses."""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Literal, TypeAlias

import numpy as np
import polars as pl
import yaml

from proj.data.tabular.dates import UNITS, read_number_dates
from proj.data.tabular.files import by_name, nameless
from proj.data.tabular.identifiers import MIN_CATEGORY_ROWS, holds_codes, why_left_out
from proj.data.tabular.overrides import Override
from proj.data.tabular.readings import (
    DATE_KINDS,
    ColumnType,
    Reading,
    days_in_numbers,
    number_date_form,
    read_number_series,
    stored_format,
)
from proj.data.tabular.targets import TargetColumn
from proj.data.tabular.text_encoder import is_encoded
from proj.data.tabular.text_model import score_texts
from proj.data.tabular.words import Outcomes, choose_words, count_words, has_word, is_free_text
from proj.errors import UserError, quoted
from proj.schema import Array, Column, Finding

NumberKind: TypeAlias = Literal["number", "days", "month", "weekday", "hour", "length"]

# Words that are inputs, for combinations with other columns: the score of a text has all its words.
# More words made results worse (scripts/bench_texts.py).
MAX_WORD_INPUTS = 16
# The number of bins that rtdl_num_embeddings uses by default.
BINS = 48
# Less frequent categories are encoded like unseen ones.
MAX_CATEGORIES = 256
MICROSECONDS_PER_DAY = 86_400_000_000

# Category codes. The known categories follow.
MISSING_CODE, OTHER_CODE, FIRST_CODE = 0, 1, 2

# Numbers this many times as large as their spread have a center subtracted: float32 has 7 digits.
LARGE_OFFSET = 10_000
# Whole numbers up to here are exact in float64.
MAX_EXACT = 2**53

# Names of columns whose whole numbers may be times since 1970.
_TIME_NAME = re.compile(r"(?i)time|date|epoch|unix|created|updated|(?:^|[_ .])(?:ts|at)$")
# Seconds since 1970 of the years 1990 and 2100.
_EPOCH_RANGE = (631_152_000, 4_102_444_800)


def type_of(dtype: pl.DataType) -> ColumnType | None:
    """Return the type of a column's values; None for types that no net takes, such as lists."""
    if dtype.is_numeric() or dtype in (pl.Duration, pl.Time):
        return "number"
    if dtype in (pl.String, pl.Categorical, pl.Enum, pl.Null):
        return "text"
    if dtype == pl.Boolean:
        return "boolean"
    return "date" if dtype in (pl.Date, pl.Datetime) else None


def fit_columns(
    rows: pl.DataFrame,
    overrides: Mapping[str, Override],
    readings: Mapping[str, Reading],
    outcomes: Outcomes | None = None,
    has_encoder: bool = False,
) -> tuple[tuple[Column, ...], dict[str, str], list[Finding]]:
    """Return the inputs made from training ``rows``.

    Also returns the reason for each column left out, and findings about the columns used. Words of
    texts are chosen by ``outcomes``; without them texts are left out. For an encoder of texts, a
    column that is stated to be text needs no such words.
    """
    columns: list[Column] = []
    left_out: dict[str, str] = {}
    findings: list[Finding] = []
    for name in rows.columns:
        override, values = overrides.get(name), nameless(rows, name)
        if override and override.kind == "drop":
            left_out[name] = "as data.columns says"
            continue
        form = _date_form(name, values, override)
        reason = None if override else _why_useless(name, values, form)
        is_stated = override is not None and override.kind == "text"
        is_text = is_stated or (reason and is_free_text(values))
        texts = _fit_text(name, values, outcomes, is_stated, has_encoder) if is_text else []
        if texts or (is_stated and has_encoder):
            columns += texts
            findings += [] if is_stated else [_text_finding(name, texts)]
            continue
        if reason:
            left_out[name] = reason
            continue
        is_number_date = bool(form)
        if override is None and not is_number_date and holds_codes(name, values):
            fitted = [_fit_categories(name, values, "number")]
            findings.append(_code_finding(name, values))
        else:
            fitted = _fit_column(name, values, override, form)
        reading = readings.get(name, Reading("text"))
        form, words = form or stored_format(reading), reading.placeholders
        fitted = [replace(column, format=form, placeholders=words) for column in fitted]
        columns += fitted
        findings += _describe(name, values, fitted, is_number_date and not override)
    return tuple(columns), left_out, findings


def _date_form(name: str, values: pl.Series, override: Override | None) -> str:
    """Return the form of numbers that are dates, or nothing."""
    if override is not None:
        is_date = override.kind == "date" and values.dtype.is_numeric()
        return number_date_form(name, values, override.format) if is_date else ""
    if not values.dtype.is_numeric() or not len(present := values.drop_nulls()):
        return ""
    if days_in_numbers(present):
        return "%Y%m%d"
    if _TIME_NAME.search(name):
        low, high = float(present.min()), float(present.max())  # type: ignore[arg-type]
        for unit, seconds in UNITS.items():
            if _EPOCH_RANGE[0] <= low * seconds and high * seconds <= _EPOCH_RANGE[1]:
                return unit
    return ""


def _why_useless(name: str, values: pl.Series, form: str) -> str | None:
    """Return the reason to leave a column out, or None."""
    if type_of(values.dtype) is None:
        return f"values of type {values.dtype} cannot be used"
    return why_left_out(name, values, is_date=bool(form))


def _code_finding(name: str, values: pl.Series) -> Finding:
    present = values.drop_nulls()
    return Finding(
        f"the {present.n_unique()} different numbers of column {name}, such as {int(present[0])}, "
        "are categories",
        "its name says that they are codes",
        f"to confirm, set {state(name, 'category')}; to use them as numbers, set number",
        name,
    )


def _fit_text(
    name: str, values: pl.Series, outcomes: Outcomes | None, is_stated: bool, has_encoder: bool
) -> list[Column]:
    """Return an input for each of the most informative words of a text column, and for its length.

    The list is empty if no word is frequent enough. If data.columns states that the column is text,
    an encoder needs no word: then at most the length is an input. Without an encoder, UserError is
    raised.
    """
    if type_of(values.dtype) != "text":
        assert is_stated
        raise UserError(
            f"data.columns: {name}: expected text, got {values.dtype}; choose another kind."
        )
    chosen = choose_words(values, outcomes) if outcomes is not None else {}
    words = dict(list(chosen.items())[:MAX_WORD_INPUTS])
    columns = [
        Column(name, "text", "word", False, (0.0, 1.0), ((1 - s) / 2, 1 - s / 2), (word,))
        for word, s in words.items()
    ]
    if words or (is_stated and has_encoder):
        length = _fit_numbers(name, values, "text", "length", "")
        if len(length.edges) > 1 or (words and length.missing):
            columns.append(length)
    if is_stated and not columns and not has_encoder:
        raise UserError(
            f"data.columns: {name}: expected text with a word that is in {MIN_CATEGORY_ROWS} "
            "training rows, but not in all, got none; choose another kind, or drop."
        )
    return columns


def _text_finding(name: str, columns: list[Column]) -> Finding:
    words = [quoted(column.categories[0]) for column in columns if column.kind == "word"]
    return Finding(
        f"column {name} is text: the {len(words)} most informative words and pairs of words in the "
        "training rows are inputs",
        f"the first are {', '.join(words[:5])}; other words count only in the score of the text, "
        "an input if it predicts the target",
        f"to confirm, set {state(name, 'text')}; to leave it out, set drop",
        name,
    )


def _fit_column(name: str, values: pl.Series, override: Override | None, form: str) -> list[Column]:
    type_ = type_of(values.dtype)
    if type_ is None:
        raise UserError(
            f"data.columns: expected numbers, text, booleans or dates in {name}, got "
            f"{values.dtype}; drop the column."
        )
    kind = override.kind if override else None
    if kind in ("number", "date") and type_ == "text" and values.drop_nulls().len():
        raise UserError(
            f"data.columns: {name}: expected {kind}s, got {quoted(values.drop_nulls()[0])}; "
            "choose another kind."
        )
    if kind == "date" and type_ == "boolean":
        raise UserError(f"data.columns: {name}: expected dates, got booleans.")
    numbers: list[Column] = []
    if kind == "date" or (kind is None and (form or type_ == "date")):
        numbers = [
            _fit_numbers(name, values, type_, number_kind, form) for number_kind in DATE_KINDS
        ]
    elif kind == "number" or (kind is None and type_ == "number"):
        numbers = [_fit_numbers(name, values, type_, "number", "")]
    if varying := [column for column in numbers if len(column.edges) > 1]:
        return varying
    # A column with a single number only shows whether it is missing, which is a category.
    return [_fit_categories(name, values, type_)]


def _fit_categories(name: str, values: pl.Series, type_: ColumnType) -> Column:
    column = Column(name, type_, "category", bool(values.null_count()), (), (), ())
    texts = values.to_frame(name).select(_category_text(column)).to_series().alias("").drop_nulls()
    counts = sorted(texts.value_counts(sort=True).rows(), key=lambda row: (-row[1], row[0]))
    categories = sorted(
        category for category, count in counts[:MAX_CATEGORIES] if count >= MIN_CATEGORY_ROWS
    )
    return replace(column, categories=tuple(categories))


def _fit_numbers(
    name: str, series: pl.Series, type_: ColumnType, kind: NumberKind, form: str
) -> Column:
    column = Column(name, type_, kind, False, (), (), (), form)
    frame = series.to_frame(name)
    values = frame.select(_number(column).cast(pl.Float64)).to_series().alias("")
    missing = bool(values.fill_nan(None).null_count())
    ordered = np.sort(values.drop_nulls().drop_nans().to_numpy())
    ordered = ordered[np.isfinite(ordered)]
    center = _center(ordered)
    if center:
        ordered -= center
    edges, shares = _quantiles(ordered.astype(np.float32).astype(np.float64))
    return replace(
        column,
        missing=missing,
        edges=tuple(edges.tolist()),
        shares=tuple(shares.tolist()),
        center=center,
    )


def _center(ordered: Array) -> float:
    """Return the median of ascending numbers if they are large beside their spread, else 0.

    float32 would round 1.7e9 to multiples of 128. The differences from the median keep their
    digits.
    """
    if not len(ordered):
        return 0.0
    low, median, high = (ordered[len(ordered) * i // 4] for i in (1, 2, 3))
    spread = (high - low) or ordered[-1] - ordered[0]
    return float(median) if spread > 0 and abs(median) > LARGE_OFFSET * spread else 0.0


def quantiles(values: Array) -> tuple[Array, Array]:
    """Return bin edges of ``values``, and the share of all values below each edge.

    There are at most ``BINS + 1`` edges, all of them values, in ascending order. Values equal to an
    edge count half. A value as frequent as a bin has its own edge, and the other edges divide the
    remaining values equally: a column that is mostly zero still has many edges above zero.
    """
    return _quantiles(np.sort(values))


def _quantiles(ordered: Array) -> tuple[Array, Array]:
    """Return the quantiles of ascending values."""
    is_first = np.append(True, ordered[1:] != ordered[:-1])[: len(ordered)]
    edges, counts = ordered[is_first], np.diff(np.append(np.flatnonzero(is_first), len(ordered)))
    if len(edges) > BINS + 1:
        frequent = edges[counts * BINS > len(ordered)]
        others = ordered[~np.isin(ordered, frequent)]
        places = np.linspace(0, 1, BINS + 1 - len(frequent))
        edges = np.union1d(frequent, np.quantile(others, places, method="nearest"))
    below, below_or_equal = (np.searchsorted(ordered, edges, side) for side in ("left", "right"))
    return edges, (below + below_or_equal) / 2 / max(len(ordered), 1)


def encode_column(column: Column) -> pl.Expr:
    """Return the expression of a column's input: float32, NaN where missing, or int32 codes.

    Of a score by an encoder, it is the text: see ``fill_scores``.
    """
    values = by_name(column.source)
    if is_encoded(column):
        return values.cast(pl.String).fill_null("")
    if column.kind == "category":
        known: pl.Expr | int = OTHER_CODE
        if column.categories:
            codes = list(range(FIRST_CODE, FIRST_CODE + len(column.categories)))
            known = _category_text(column).replace_strict(
                list(column.categories), codes, default=OTHER_CODE, return_dtype=pl.Int32
            )
        return pl.when(values.is_null()).then(MISSING_CODE).otherwise(known).cast(pl.Int32)
    numbers = _number(column)
    if column.center:
        # In float64, because float32 has too few digits for the whole number.
        numbers = numbers.cast(pl.Float64, strict=False) - column.center
    return numbers.cast(pl.Float32, strict=False).fill_null(float("nan"))


def _number(column: Column) -> pl.Expr:
    """Return the expression of the number that a column gives."""
    values = by_name(column.source)
    if column.kind == "number":
        return values
    if column.kind == "length":
        return count_words(values)
    if column.kind == "word":
        return has_word(values, column.categories[0])
    if column.kind == "score":
        return score_texts(values, *column.categories[1:])
    is_number = column.type == "number" and column.format
    date = read_number_dates(values, column.format) if is_number else values
    date = date.cast(pl.Datetime("us"))
    return {
        "days": date.dt.epoch("us").cast(pl.Float64) / MICROSECONDS_PER_DAY,
        "month": date.dt.month(),
        "weekday": date.dt.weekday(),
        "hour": date.dt.hour() + date.dt.minute() / 60,
    }[column.kind]


def _category_text(column: Column) -> pl.Expr:
    """Return a category as text. The numbers 7 and 7.0 are one category."""
    values = by_name(column.source)
    if column.type != "number":
        return values.cast(pl.String)
    is_integer = values.cast(pl.Float64) == values.cast(pl.Float64).round()
    integer = values.cast(pl.Int64, strict=False).cast(pl.String)
    return pl.when(is_integer).then(integer).otherwise(values.cast(pl.String))


def _describe(
    name: str, values: pl.Series, fitted: list[Column], is_number_date: bool
) -> list[Finding]:
    """Return findings about values of a column that are merged, rounded or read as dates."""
    column = fitted[0]
    if is_number_date:
        return _describe_dates(name, values.drop_nulls(), column.format)
    if column.kind == "category":
        return _find_folded(values, column) + find_alike(values, f"column {name}", name)
    if column.kind == "number" and values.dtype.is_numeric():
        return _find_rounded(values, column)
    return []


def _describe_dates(name: str, numbers: pl.Series, form: str) -> list[Finding]:
    """Return findings about numbers that are read as dates, and those that are none."""
    dates = read_number_series(numbers, form)
    read, odd = numbers.filter(dates.is_not_null()), numbers.filter(dates.is_null())
    remedy = f"to keep numbers, {state(name, 'number')}"
    what = f"{len(read)} numbers of column {name} are read as dates"
    findings = [Finding(what, f"{read[0]} is {dates.drop_nulls()[0]}", remedy, name)]
    if len(odd):
        share = f"{len(odd)} of {len(numbers)} numbers of column {name} in training rows"
        what = f"{share} cannot be read as dates, such as {odd[0]}"
        findings.append(Finding(what, "they count as missing", f"correct them; {remedy}", name))
    return findings


def _find_folded(values: pl.Series, column: Column) -> list[Finding]:
    frame = values.to_frame(column.source)
    texts = frame.select(_category_text(column)).to_series().alias("").drop_nulls()
    folded = texts.filter(~texts.is_in(list(column.categories)))
    counts = folded.alias("v").value_counts(sort=True, name="n")
    # A single one is still distinct from all others.
    if len(counts) < 2:
        return []
    limit = f"fewer than {MIN_CATEGORY_ROWS} rows have each"
    if len(column.categories) == MAX_CATEGORIES:
        limit = f"only the {MAX_CATEGORIES} most frequent are kept"
    return [
        Finding(
            f"{len(counts)} of {texts.n_unique()} values of column {column.source}, in "
            f"{len(folded)} of {len(values)} training rows, count as one, such as "
            f"{quoted(counts['v'][0])}",
            limit,
            f"merge values in the file, or leave the column out: {state(column.source, 'drop')}",
            column.source,
        )
    ]


def find_alike(values: pl.Series, where: str, column: str | None = None) -> list[Finding]:
    """Find texts that differ only in capitals or spaces."""
    if values.dtype != pl.String:
        return []
    words = values.drop_nulls().unique().sort()
    plain = words.str.strip_chars().str.replace_all(r"\s+", " ").str.to_lowercase()
    alike = words.filter(plain.is_duplicated())
    if not len(alike):
        return []
    rows = int(values.is_in(alike.implode()).sum())
    same = words.filter(plain == plain.filter(plain.is_duplicated())[0])
    listed = " and ".join(quoted(word) for word in same[:3])
    return [
        Finding(
            f"{len(alike)} values of {where} differ only in capitals or spaces, in {rows} rows, "
            f"such as {listed}",
            "they count as different values",
            "write them alike in the file, if they mean the same",
            column,
        )
    ]


def _find_rounded(values: pl.Series, column: Column) -> list[Finding]:
    """Find numbers that float32 cannot tell apart."""
    present = values.drop_nulls()
    what = ""
    largest = max(abs(column.center + edge) for edge in (column.edges[0], column.edges[-1]))
    if values.dtype.is_integer() and largest > MAX_EXACT:
        large = present.filter(present.cast(pl.Float64).abs() > MAX_EXACT)
        what = f"{len(large)} numbers of column {column.source} are above 2^53, such as {large[0]}"
    elif _is_wide(column):
        numbers = present.cast(pl.Float64)
        rounded = (numbers - column.center).cast(pl.Float32)
        lost = numbers.n_unique() - rounded.n_unique()
        if lost > numbers.n_unique() / 10:
            what = (
                f"{lost} of {numbers.n_unique()} different numbers of column {column.source} are "
                f"equal to others in float32, such as {numbers[0]}"
            )
    if not what:
        return []
    remedy = f"subtract a constant in the file, or set {state(column.source, 'category')} or drop"
    return [Finding(what, "they are rounded", remedy, column.source)]


def _is_wide(column: Column) -> bool:
    """Return whether the largest number is so far from most numbers that these may be rounded."""
    edges, middle = column.edges, len(column.edges) // 2
    spread = edges[(3 * len(edges)) // 4] - edges[len(edges) // 4]
    return max(abs(edges[0]), abs(edges[-1]), abs(edges[middle])) > LARGE_OFFSET * spread


def state(name: str, kind: str) -> str:
    """Return an entry of data.columns that can be pasted into YAML."""
    text = yaml.safe_dump({name: kind}, default_flow_style=True, allow_unicode=True, width=1000)
    return f"data.columns: {text.strip()}"


def yaml_name(name: str) -> str:
    """Return the name of a column as YAML reads it."""
    return state(name, "x").removeprefix("data.columns: {").removesuffix(": x}")


def target_column(name: str, values: pl.Series, where: str) -> TargetColumn:
    """Return a target column as NumPy values and, for text and dates, the distinct texts."""
    kind, dtype = type_of(values.dtype), str(values.dtype)
    missing = values.is_null().to_numpy() if values.null_count() else None
    if kind is None:
        raise UserError(
            f"{where}: column {name}: expected targets that are numbers, text, booleans or "
            f"dates, got {dtype}; set data.target."
        )
    if kind == "boolean":
        present = values.fill_null(False)
        return TargetColumn(name, kind, present.to_numpy(), dtype, (), missing)
    if kind == "number":
        numbers = values if values.dtype.is_integer() else values.cast(pl.Float64)
        present = numbers.fill_null(0)
        return TargetColumn(name, kind, present.to_numpy(), dtype, (), missing)
    text = values.cast(pl.String)
    words = text.drop_nulls().unique().sort()
    positions = text.replace_strict(
        words, pl.Series(range(len(words)), dtype=pl.Int64), default=0, return_dtype=pl.Int64
    )
    codes = positions.fill_null(0).to_numpy()
    return TargetColumn(name, kind, codes, dtype, tuple(words.to_list()), missing)
