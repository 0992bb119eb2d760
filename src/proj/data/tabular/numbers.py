"""Numbers as people write them in text: thousands separators, decimal commas, currency, percent."""

from typing import Final

import polars as pl

# The two ways to write a number, and the decimal sign of each. They are also the values of
# `format` in data.columns. Spaces and apostrophes between thousands are read in both.
DECIMAL_SIGNS: Final = {"1,234.5": ".", "1.234,5": ","}
DEFAULT_FORMAT: Final = "1,234.5"

# Words that mean "missing" among numbers, in lower case.
PLACEHOLDERS: Final = frozenset(
    [
        *("", "-", "--", "---", "—", "–", ".", "..", "...", "…", "*", "?", "na", "n/a", "n.a."),
        *("#n/a", "#na", "<na>", "n.d.", "nd", "nan", "nil", "none", "null", "(null)", "missing"),
        *("unknown", "unavailable", "not available", "not applicable", "no data", "tbd"),
        *("#null!", "#div/0!", "#value!", "#ref!", "#num!", "#name?"),
    ]
)

_CURRENCY = (
    r"(?:[A-Z]{0,3}[$]|[€£¥₹₽₩₺₫฿₴₪₱¢]|(?:USD|EUR|GBP|CHF|JPY|CNY|INR|CAD|AUD|NZD|SEK|NOK|DKK|PLN"
    r"|CZK|HUF|RUB|BRL|MXN|ZAR|TRY|KRW)\b|kr\b\.?|zł|Kč|Ft\b)"
)
_SIGN = r"([+\-−–]?)"
# A number in thousands does not begin with 0. The second group is the Indian form 12,34,567.
_GROUPED = r"[1-9]\d{{0,2}}(?:{s}\d{{3}})+|[1-9]\d?(?:{s}\d{{2}})+{s}\d{{3}}"


def _pattern(decimal: str) -> str:
    separators = ["," if decimal == "." else r"\.", r"[ \u00a0\u2009\u202f]", r"['’]"]
    grouped = "|".join(_GROUPED.format(s=separator) for separator in separators)
    fraction = r"\." if decimal == "." else ","
    digits = rf"(?:(?:{grouped}|\d+)(?:{fraction}\d*)?|{fraction}\d+)(?:[eE][+-]?\d+)?"
    return (
        rf"^(\()?\s*{_SIGN}\s*(?:{_CURRENCY})?\s*{_SIGN}({digits})"
        rf"\s*(?:[%‰]|{_CURRENCY})?\s*(\))?$"
    )


_PATTERNS: Final = {style: _pattern(decimal) for style, decimal in DECIMAL_SIGNS.items()}


def parse_numbers(values: pl.Series, style: str = DEFAULT_FORMAT) -> pl.Series:
    """Return text as Float64, null where it is not a number.

    ``style`` is a key of ``DECIMAL_SIGNS``. A percent or currency sign is dropped: 12 % is 12. An
    amount in parentheses is negative, as accountants write it.

    >>> parse_numbers(pl.Series(["36,5", "1.234,5", "€ 7", "nil"]), "1.234,5").to_list()
    [36.5, 1234.5, 7.0, None]
    """
    if style == DEFAULT_FORMAT:
        numbers = plain_numbers(values)
    else:
        with_point = values.str.replace(",", ".", literal=True)
        has_point = values.str.contains(".", literal=True)
        numbers = plain_numbers(with_point.set(has_point, None))
    # Most values are plain. Only the rest takes the slower way.
    rest = (numbers.is_null() & values.is_not_null()).arg_true()
    if not len(rest):
        return numbers
    return numbers.scatter(rest, _parse_written(values.gather(rest), style))


def plain_numbers(values: pl.Series) -> pl.Series:
    """Return text such as ``-1.5e3`` as Float64, null where it is anything else."""
    return values.cast(pl.Float64, strict=False).fill_nan(None)


def _parse_written(values: pl.Series, style: str) -> pl.Series:
    decimal = DECIMAL_SIGNS[style]
    text = values.str.strip_chars()
    groups = text.str.extract_groups(_PATTERNS[style]).struct.unnest()
    opened, first, second, digits, closed = groups.iter_columns()
    if decimal == ",":
        digits = digits.str.replace_all(r"[^\d,eE+-]", "").str.replace(",", ".", literal=True)
    else:
        digits = digits.str.replace_all(r"[^\d.eE+-]", "")
    numbers = digits.cast(pl.Float64, strict=False)
    minus = (first + second).str.contains("[-−–]") ^ opened.is_not_null()
    valid = (opened.is_null() == closed.is_null()) & ((first == "") | (second == ""))
    frame = pl.DataFrame({"n": numbers, "minus": minus, "valid": valid})
    signed = pl.when("minus").then(-pl.col("n")).otherwise("n")
    return frame.select(pl.when("valid").then(signed)).to_series().alias(values.name)


def is_whole(values: pl.Series, style: str) -> pl.Series:
    """Return whether each number in text is written without a fraction: a Boolean series."""
    return ~values.str.contains(rf"[{DECIMAL_SIGNS[style]}]|\d[eE]|[iI][nN][fF]")


def is_code(values: pl.Series) -> bool:
    """Return whether texts are codes: digits that are padded with zeros to a common width.

    >>> is_code(pl.Series(["00501", "10115"])), is_code(pl.Series(["01", "95", "971"]))
    (True, True)
    >>> is_code(pl.Series(["0", "7"])), is_code(pl.Series(["7", "007"]))
    (False, False)
    """
    if not len(values) or not values.str.contains(r"^\d+$").all():
        return False
    lengths = values.str.len_chars()
    padded = lengths.filter(values.str.contains(r"^0\d"))
    return bool(len(padded) and padded.max() == lengths.min())
