"""Numbers in text, as they are written in the training data."""

import math
import re

# White space of Unicode. Python's own list has four control characters more.
SPACES = (
    "\t\n\x0b\x0c\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009"
    "\u200a\u2028\u2029\u202f\u205f\u3000"
)

# The two ways to write a number, and the decimal sign of each.
DECIMAL_SIGNS = {"1,234.5": ".", "1.234,5": ","}

_PLAIN = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?", re.ASCII)
_INFINITE = re.compile(r"[+-]?inf(?:inity)?", re.IGNORECASE | re.ASCII)
_CURRENCY = (
    r"(?:[A-Z]{0,3}[$]|[€£¥₹₽₩₺₫฿₴₪₱¢]|(?:USD|EUR|GBP|CHF|JPY|CNY|INR|CAD|AUD|NZD|SEK|NOK|DKK|PLN"
    r"|CZK|HUF|RUB|BRL|MXN|ZAR|TRY|KRW)\b|kr\b\.?|zł|Kč|Ft\b)"
)
_SIGN = r"([+\-−–]?)"
# A number in thousands does not begin with 0. The second form is the Indian one, 12,34,567.
_GROUPED = r"[1-9]\d{{0,2}}(?:{s}\d{{3}})+|[1-9]\d?(?:{s}\d{{2}})+{s}\d{{3}}"


def _pattern(decimal: str) -> re.Pattern[str]:
    separators = ["," if decimal == "." else r"\.", r"[ \u00a0\u2009\u202f]", r"['’]"]
    grouped = "|".join(_GROUPED.format(s=separator) for separator in separators)
    fraction, space = re.escape(decimal), f"[{SPACES}]*"
    digits = rf"(?:(?:{grouped}|\d+)(?:{fraction}\d*)?|{fraction}\d+)(?:[eE][+-]?\d+)?"
    return re.compile(
        rf"(\()?{space}{_SIGN}{space}(?:{_CURRENCY})?{space}{_SIGN}({digits})"
        rf"{space}(?:[%‰]|{_CURRENCY})?{space}(\))?"
    )


_PATTERNS = {style: _pattern(decimal) for style, decimal in DECIMAL_SIGNS.items()}


def read_number(text: str, style: str) -> float:
    """Return a number in text, NaN if it is none.

    ``style`` is a key of ``DECIMAL_SIGNS``. A percent or currency sign is dropped. An amount in
    parentheses is negative.

    >>> read_number("€ 1.234,5", "1.234,5"), read_number("(7)", "1,234.5")
    (1234.5, -7.0)
    """
    decimal = DECIMAL_SIGNS[style]
    if decimal == ".":
        number = plain_number(text)
    else:
        number = math.nan if "." in text else plain_number(text.replace(",", "."))
    return _read_written(text.strip(SPACES), style) if number != number else number


def plain_number(text: str) -> float:
    """Return text such as ``-1.5e3`` as a number, NaN if it is anything else."""
    if _PLAIN.fullmatch(text) or _INFINITE.fullmatch(text):
        return float(text)
    return math.nan


def _read_written(text: str, style: str) -> float:
    decimal = DECIMAL_SIGNS[style]
    match = _PATTERNS[style].fullmatch(text)
    if match is None:
        return math.nan
    opened, first, second, digits, closed = match.groups()
    if (opened is None) != (closed is None) or (first and second):
        return math.nan
    number = plain_number(re.sub(rf"[^\d{decimal}eE+-]", "", digits).replace(",", "."))
    is_negative = (opened is not None) != bool(set(first + second) & set("-−–"))
    return -number if is_negative else number
