"""The time that a command has taken so far, from its start."""

import re
import time

from proj.errors import UserError

UNITS = {"d": 86_400.0, "h": 3_600.0, "m": 60.0, "s": 1.0}
# The moment at which the command began, on the clock of `time.monotonic`.
_began = [time.monotonic()]


def start() -> None:
    """Begin to count: a command starts now."""
    _began[0] = time.monotonic()


def began() -> float:
    """Return the start of the command, on the clock of ``time.monotonic``."""
    return _began[0]


def read_duration(text: str, key: str) -> float:
    """Return the seconds of a duration such as ``90s``, ``30m`` or ``1h30m``.

    >>> read_duration("1h30m", "--within")
    5400.0

    Raises UserError for other texts, and for no time at all.
    """
    parts = re.findall(r"(\d+(?:\.\d+)?)([dhms])", text)
    seconds = sum(float(number) * UNITS[unit] for number, unit in parts)
    if "".join(number + unit for number, unit in parts) != text.strip() or not seconds:
        raise UserError(
            f"{key}: expected a time such as 90s, 30m or 1h30m (d, h, m, s), got {text!r}; write "
            "the number with its unit."
        )
    return seconds


def duration(seconds: float) -> str:
    """Return a duration for people, with two units at most.

    >>> duration(0.25), duration(2.94), duration(75), duration(5400)
    ('0.25 s', '2.9 s', '1m 15s', '1h 30m')
    """
    if seconds < 60:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    rest = round(seconds)
    words: list[str] = []
    for unit, size in UNITS.items():
        count, rest = divmod(rest, int(size))
        words += [f"{count}{unit}"] if count or words else []
    return " ".join(word for word in words[:2] if word[0] != "0")
