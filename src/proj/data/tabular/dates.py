"""Dates as people write them in text or as whole numbers: find the form, read the dates.

A form is a strptime format, several joined by ``|``, or for numbers one of ``UNITS`` since 1970.
"""

import re
from collections.abc import Sequence
from typing import Final, NamedTuple

import polars as pl

# Seconds in one unit of a number that counts from 1970-01-01.
UNITS: Final = {"seconds": 1, "milliseconds": 1e-3, "microseconds": 1e-6, "nanoseconds": 1e-9}
# Formats of whole numbers, with the smallest and largest number that they fit.
_NUMBER_FORMS: Final = {
    "%Y%m%d": (1000_01_01, 9999_12_31),
    "%Y%m%d%H%M%S": (1000_01_01_00_00_00, 9999_12_31_23_59_59),
    "%Y%m%d%H%M": (1000_01_01_00_00, 9999_12_31_23_59),
    "%Y%m": (1000_01, 9999_12),
    "%Y": (1000, 2999),
}
# Days since 1899-12-30, as Excel stores a date. These are 1954 to 2064.
EXCEL: Final = "excel"
_EXCEL_RANGE: Final = (20_000, 60_000)

# Units in which the median of a column is after 1973 and before 2500.
_YEARS: Final = (1e8, 1.67e10)

# In order of preference among forms that fit equally many values.
_DAYS: Final = (
    *("%Y-%m-%d", "%Y/%m/%d", "%Y.%m.%d", "%m/%d/%Y", "%d/%m/%Y", "%d.%m.%Y", "%m.%d.%Y"),
    *("%m-%d-%Y", "%d-%m-%Y", "%d-%B-%Y", "%d %B %Y", "%d. %B %Y", "%d/%B/%Y", "%d%B%Y"),
    *("%B %d %Y", "%B %d, %Y", "%B-%d-%Y", "%Y-%B-%d", "%Y %B %d", "%d %B, %Y", "%d.%B.%Y"),
    *("%m/%d/%y", "%d/%m/%y", "%d.%m.%y", "%m.%d.%y", "%m-%d-%y", "%d-%m-%y", "%d-%B-%y"),
    *("%d %B %y", "%B %d, %y", "%A, %B %d, %Y", "%A, %d %B %Y", "%A %d %B %Y", "%A %B %d %Y"),
    "%Y%m%d",
)
_MONTHS: Final = (
    *("%Y-%m", "%Y/%m", "%Y.%m", "%m/%Y", "%m-%Y", "%m.%Y", "%B %Y", "%B-%Y", "%B, %Y"),
    *("%Y %B", "%Y-%B", "%B-%y", "%B %y", "%B/%Y"),
)
_TIMES: Final = tuple(
    f"{time}{zone}"
    for time in ("%H:%M:%S%.f", "%H:%M", "%I:%M:%S %p", "%I:%M %p", "%I:%M:%S%p", "%I:%M%p")
    for zone in ("", "%#z", " %#z", " UTC", " GMT")
)
_OTHERS: Final = ("%A %B %d %H:%M:%S %Y", "%Y%m%dT%H%M%S%#z", "%Y%m%dT%H%M%S", "%Y%m%d%H%M%S")
# The text before the time, the gap, and the time.
_TIME: Final = r"^(.*?\d{1,4})(T|,? +|,? +- +|,? +at +)(\d{1,2}:\d\d.*)$"

# Values that a form is tried on before it is tried on all.
_TRIED: Final = 30


class DateForm(NamedTuple):
    """A form of dates, and the other one that fits equally many values, if there is one."""

    form: str
    other: str = ""


def read_dates(values: pl.Expr, form: str) -> pl.Expr:
    """Return the expression of text as dates without a time zone, null where it is none.

    Times with an offset become UTC.
    """
    text = values.str.strip_chars()
    dates = [_read_one(text, one) for one in form.split("|")]
    return dates[0] if len(dates) == 1 else pl.coalesce(d.cast(pl.Datetime("us")) for d in dates)


def _read_one(text: pl.Expr, form: str) -> pl.Expr:
    if "%p" in form:
        text = text.str.to_uppercase()
    if not _has_time(form):
        if not any(day in form for day in ("%d", "%j", "%e", "%F", "%D")):
            # A month or a year is its first day.
            day = " %d" if any(m in form for m in ("%m", "%B", "%b", "%h")) else " %m %d"
            text, form = text + day.replace("%m", "01").replace("%d", "01"), form + day
        date = text.str.to_date(form, strict=False)
    elif "z" in form:
        date = text.str.to_datetime(form, strict=False, time_unit="us", time_zone="UTC")
        date = date.dt.replace_time_zone(None)
    else:
        date = text.str.to_datetime(form, strict=False, time_unit="us")
    # %Y also reads the year 18.
    return pl.when(date.dt.year() >= 1000).then(date)


def read_number_dates(values: pl.Expr, form: str) -> pl.Expr:
    """Return the expression of numbers as dates, null where they are none."""
    if form in UNITS:
        seconds = UNITS[form]
        microseconds = values * (seconds * 1e6) if seconds >= 1e-6 else values / 1e3
        return (
            microseconds.cast(pl.Float64)
            .round()
            .cast(pl.Int64, strict=False)
            .cast(pl.Datetime("us"))
        )
    if form == EXCEL:
        days = (values.cast(pl.Float64) - 25_569) * 86_400_000_000
        return days.round().cast(pl.Int64, strict=False).cast(pl.Datetime("us"))
    whole = values.cast(pl.Int64, strict=False)
    is_whole = whole.cast(pl.Float64) == values.cast(pl.Float64)
    return read_dates(pl.when(is_whole).then(whole).cast(pl.String), form)


def find_date_form(values: pl.Series, counts: pl.Series) -> tuple[DateForm, int] | None:
    """Return the form that fits most of distinct texts, and how many rows it fits; or None.

    ``counts`` holds the rows of each text. Of two forms that fit equally many rows, such as
    month/day and day/month, the other one is returned, too.
    """
    # No date is shorter than 1/1/18, and none is much longer than "Wednesday, September 10, 2018".
    lengths = values.str.len_chars()
    if not len(values) or not 5 <= lengths.median() <= 45:  # type: ignore[operator]
        return None
    tried = values.gather_every(-(-len(values) // _TRIED))
    if tried.str.contains(r"\d").mean() < 0.5:  # type: ignore[operator]
        return None
    timed = _timed_forms(tried)
    forms = [*_fitting(tried, (*_DAYS, *_MONTHS, *_OTHERS)), *timed]
    fits = _rows_that_fit(values, counts, forms)
    if not fits or not max(fits.values()):
        return None
    best = max(fits, key=lambda form: fits[form])
    swapped = _swapped(best)
    other = swapped if fits.get(swapped) == fits[best] else ""
    if other and _is_more_regular(values, other, best):
        best, other = other, best
    # The same dates with another precision, or without a time, are the same form.
    day, form = _day_part(best), best
    rest = values.to_frame("v").filter(read_dates(pl.col("v"), best).is_null())["v"]
    for more in [*_timed_forms(rest.head(_TRIED)), day] if len(rest) else []:
        if _day_part(more) == day and more != best:
            found = rest.to_frame("v").select(read_dates(pl.col("v"), more)).to_series()
            if found.null_count() < len(rest):
                form, rest = f"{form}|{more}", rest.filter(found.is_null())
    rows = _rows_that_fit(values, counts, [form])[form]
    return DateForm(form, other), rows


def find_number_form(values: pl.Series) -> str | None:
    """Return the form of numbers that all are dates; None if they are not."""
    low, high = values.min(), values.max()
    if low is None:
        return None
    whole = bool((values.cast(pl.Float64) % 1 == 0).all())
    for form, (first, last) in _NUMBER_FORMS.items():
        if whole and first <= low and high <= last:  # type: ignore[operator]
            dates = values.to_frame("v").select(read_number_dates(pl.col("v"), form)).to_series()
            if not dates.null_count():
                return form
    median = float(values.median())  # type: ignore[arg-type]
    for unit, seconds in UNITS.items():
        if _YEARS[0] <= median * seconds <= _YEARS[1] and low > 0:  # type: ignore[operator]
            return unit
    if _EXCEL_RANGE[0] <= low and high <= _EXCEL_RANGE[1]:  # type: ignore[operator]
        return EXCEL
    return None


def to_polars_form(form: str) -> str:
    """Return a format of Python's strptime as polars reads it: fractions and offsets differ."""
    return form.replace(".%f", "%.f").replace("%z", "%#z").replace("%b", "%B").replace("%a", "%A")


def _timed_forms(values: pl.Series) -> list[str]:
    """Return the forms with a time that fit any of the texts."""
    parts = values.str.extract_groups(_TIME).struct.unnest().drop_nulls()
    if not len(parts):
        return []
    days, gaps, times = parts.iter_columns()
    prefix = "%Y-%m-%d "
    fitting = _fitting("2000-01-01 " + times.unique(), [prefix + time for time in _TIMES])
    return [
        f"{day}{gap}{time.removeprefix(prefix)}"
        for day in _fitting(days.unique(), _DAYS)
        for gap in gaps.unique(maintain_order=True)
        for time in fitting
    ]


def _fitting(values: pl.Series, forms: Sequence[str]) -> list[str]:
    """Return the forms that fit any of the texts."""
    fits = _rows_that_fit(values, pl.Series([1] * len(values), dtype=pl.Int64), forms)
    return [form for form, count in fits.items() if count]


def _has_time(form: str) -> bool:
    return any(part in form for part in ("%H", "%I", "%T", "%R", "%k", "%l", "%s"))


def _day_part(form: str) -> str:
    return re.split(r"(?:T|,? +(?:- +|at +)?)(?=%[HI])", form)[0]


def _swapped(form: str) -> str:
    """Return the form with day and month exchanged."""
    if "%m" not in form or "%d" not in form:
        return ""
    return form.replace("%m", "\0").replace("%d", "%m").replace("\0", "%d")


def _is_more_regular(values: pl.Series, form: str, than: str) -> bool:
    """Return whether one form gives dates with fewer different days, such as firsts of months."""
    frame = values.to_frame("v")
    days, other_days = (
        frame.select(read_dates(pl.col("v"), f).dt.day().n_unique()).item() for f in (form, than)
    )
    return bool(days < other_days)


def _rows_that_fit(values: pl.Series, counts: pl.Series, forms: Sequence[str]) -> dict[str, int]:
    """Return how many rows each form fits."""
    frame = pl.DataFrame({"v": values, "n": counts})
    sums = [
        pl.col("n").filter(read_dates(pl.col("v"), form).is_not_null()).sum().alias(str(i))
        for i, form in enumerate(forms)
    ]
    return dict(zip(forms, frame.select(sums).row(0) if sums else (), strict=True))
