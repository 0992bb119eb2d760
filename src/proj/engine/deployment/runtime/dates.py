"""Dates in text and in numbers, as microseconds since 1970 without a time zone.

A form is a strptime format as polars reads it, several joined by ``|``, or for numbers a unit since
1970 or ``excel``.
"""

import math
import re
from collections.abc import Callable
from datetime import date
from functools import cache

from .numbers import SPACES

DAY = 86_400_000_000  # microseconds
# Seconds in one unit of a number that counts from 1970-01-01.
UNITS = {"seconds": 1, "milliseconds": 1e-3, "microseconds": 1e-6, "nanoseconds": 1e-9}
EXCEL = "excel"  # days since 1899-12-30
EXCEL_1970 = 25_569
# A form reads the year 18, too, which is not meant.
FIRST_YEAR = 1000

_MONTHS = (
    *("jan(?:uary)?+", "feb(?:ruary)?+", "mar(?:ch)?+", "apr(?:il)?+", "may", "jun(?:e)?+"),
    *("jul(?:y)?+", "aug(?:ust)?+", "sep(?:tember)?+", "oct(?:ober)?+", "nov(?:ember)?+"),
    "dec(?:ember)?+",
)
_WEEKDAYS = (
    *("mon(?:day)?+", "tue(?:sday)?+", "wed(?:nesday)?+", "thu(?:rsday)?+", "fri(?:day)?+"),
    *("sat(?:urday)?+", "sun(?:day)?+"),
)
_SPACE = f"[{SPACES}]*+"
_TWO = f"{_SPACE}([0-9]{{1,2}}+)"
_OFFSET = rf"{_SPACE}([zZ]|[+\-−][0-9]{{2}}(?:[:{SPACES}]*+[0-5][0-9])?+)"
# Items of a format, each with the name of its value and its pattern. Each takes as much as it can,
# and nothing is tried again, as in polars.
_ITEMS = {
    "Y": ("year", f"{_SPACE}([+-][0-9]{{1,6}}+|[0-9]{{1,4}}+)"),
    "y": ("short_year", _TWO),
    "m": ("month", _TWO),
    "B": ("month_name", f"({'|'.join(_MONTHS)})"),
    "d": ("day", _TWO),
    "j": ("day_of_year", f"{_SPACE}([0-9]{{1,3}}+)"),
    "A": ("weekday", f"({'|'.join(_WEEKDAYS)})"),
    "H": ("hour", _TWO),
    "I": ("hour_12", _TWO),
    "p": ("half", "(am|pm)"),
    "M": ("minute", _TWO),
    "S": ("second", _TWO),
    ".f": ("fraction", r"(?:\.([0-9]++))?+"),
    "#z": ("offset", _OFFSET),
}
_SAME = {"b": "B", "h": "B", "a": "A", "e": "d", "k": "H", "l": "I", "P": "p"}
_COMPOSED = {"%F": "%Y-%m-%d", "%D": "%m/%d/%y", "%T": "%H:%M:%S", "%R": "%H:%M"}
_TIMES = ("%H", "%I", "%k", "%l")
_DAYS = ("%d", "%j", "%e")

Fields = dict[str, str]


def read_date(text: str, form: str) -> int | None:
    """Return a date in text as microseconds since 1970, None if it is none. Offsets become UTC."""
    text = text.strip(SPACES)
    for read in _readers(form):
        if (found := read(text)) is not None:
            return found
    return None


@cache
def _readers(form: str) -> list[Callable[[str], int | None]]:
    return [_reader(one) for one in form.split("|")]


def _reader(form: str) -> Callable[[str], int | None]:
    """Return the function that reads text in one form."""
    for short, long in _COMPOSED.items():
        form = form.replace(short, long)
    has_half, is_date = "%p" in form, not any(time in form for time in _TIMES)
    suffix = ""
    if is_date and not any(day in form for day in _DAYS):
        # A month or a year is its first day.
        has_month = any(month in form for month in ("%m", "%B", "%b", "%h"))
        form, suffix = (f"{form} %d", " 01") if has_month else (f"{form} %m %d", " 01 01")
    pattern, names = _compile(form)

    def read(text: str) -> int | None:
        text = (text.upper() if has_half else text) + suffix
        match = pattern.fullmatch(text)
        if match is None:
            return None
        fields = {name: value for name, value in zip(names, match.groups(), strict=True) if value}
        days = _days(fields)
        if days is None or is_date:
            return None if days is None else days * DAY
        time = _time(fields)
        return None if time is None else days * DAY + time

    return read


def _compile(form: str) -> tuple[re.Pattern[str], list[str]]:
    """Return the pattern of a form, and the names of its values."""
    names, parts = [], []
    for item in re.findall(r"%(?:\.f|#z|.)|\s+|[^%\s]+", form):
        if item.isspace():
            parts.append(_SPACE)
        elif not item.startswith("%"):
            parts.append(re.escape(item))
        else:
            letter = _SAME.get(item[1:], item[1:])
            if letter not in _ITEMS:
                raise ValueError(f"dates of the form {form} are not supported, because of {item}")
            name, pattern = _ITEMS[letter]
            names.append(name)
            # The names of months and half days are read in any case, literal text is not.
            parts.append(f"(?i:{pattern})" if letter in "BAp" else pattern)
    return re.compile("".join(parts), re.ASCII), names


def _days(fields: Fields) -> int | None:
    """Return the days since 1970, None for a date that does not exist or is before year 1000."""
    if "short_year" in fields and "year" not in fields:
        short = int(fields["short_year"])
        year = short + (1900 if short >= 70 else 2000)
    else:
        year = int(fields["year"])
    if year < FIRST_YEAR:
        return None
    if "day_of_year" in fields:
        days = days_from_civil(year, 1, 1) + int(fields["day_of_year"]) - 1
        is_valid = days_from_civil(year, 1, 1) <= days < days_from_civil(year + 1, 1, 1)
        return days if is_valid and "month" not in fields else None
    month = int(fields["month"]) if "month" in fields else _position(fields["month_name"], _MONTHS)
    day = int(fields["day"])
    if not 1 <= month <= 12 or not 1 <= day <= _month_length(year, month):
        return None
    days = days_from_civil(year, month, day)
    if "weekday" in fields and (days + 3) % 7 != _position(fields["weekday"], _WEEKDAYS) - 1:
        return None
    return days


def _position(name: str, names: tuple[str, ...]) -> int:
    """Return the number of a month or weekday from 1."""
    return next(i for i, other in enumerate(names, 1) if other[:3] == name[:3].lower())


def _time(fields: Fields) -> int | None:
    """Return the microseconds since midnight in UTC, None for a time that does not exist."""
    hour = int(fields.get("hour", -1))
    if "hour_12" in fields:
        hour = int(fields["hour_12"])
        if not 1 <= hour <= 12 or "half" not in fields:
            return None
        hour = hour % 12 + (12 if fields["half"].lower() == "pm" else 0)
    minute, second = int(fields.get("minute", -1)), int(fields.get("second", 0))
    if not (0 <= hour < 24 and 0 <= minute < 60 and second <= 60):
        return None
    microseconds = int(fields.get("fraction", "0")[:6].ljust(6, "0"))
    offset = _offset(fields.get("offset", "Z"))
    if offset is None:
        return None
    return ((hour * 60 + minute - offset) * 60 + second) * 1_000_000 + microseconds


def _offset(text: str) -> int | None:
    """Return an offset from UTC in minutes, such as 90 for +01:30."""
    if text in "zZ":
        return 0
    digits = re.sub("[^0-9]", "", text).ljust(4, "0")
    minutes = int(digits[:2]) * 60 + int(digits[2:])
    return None if minutes >= 24 * 60 else minutes if text[0] == "+" else -minutes


def _month_length(year: int, month: int) -> int:
    following = (year + 1, 1) if month == 12 else (year, month + 1)
    return days_from_civil(*following, 1) - days_from_civil(year, month, 1)


def days_from_civil(year: int, month: int, day: int) -> int:
    """Return the days from 1970-01-01 to a date of the Gregorian calendar."""
    # 400 years have 146,097 days. Python's own dates end with the year 9999.
    cycles, year = divmod(year - 2000, 400)
    return (date(2000 + year, month, day) - date(1970, 1, 1)).days + cycles * 146_097


def read_number_date(number: float | int, form: str) -> int | None:
    """Return a number that is a date as microseconds since 1970, None if it is none."""
    if form in UNITS:
        seconds = UNITS[form]
        return _rounded(number * (seconds * 1e6) if seconds >= 1e-6 else number / 1e3)
    if form == EXCEL:
        return _rounded((number - EXCEL_1970) * DAY)
    if not math.isfinite(number) or number != math.floor(number) or abs(number) >= 2**63:
        return None
    return read_date(str(int(number)), form)


def _rounded(microseconds: float) -> int | None:
    """Return the nearest whole number, away from zero for a half."""
    if not abs(microseconds) < 2**63:
        return None
    return int(math.copysign(math.floor(abs(microseconds) + 0.5), microseconds))
