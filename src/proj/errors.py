"""Errors that are the user's to mend, and how they are worded."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """The input is wrong: the message names what was given, what was expected and what to change. Exit code 2."""


class TrainingError(RuntimeError):
    """Training itself failed, by a loss that is not finite, say. Exit code 3."""


class Stopped(BaseException):
    """A signal has stopped training, after a checkpoint. Exit code 128 and the signal's number."""

    def __init__(self, signal: int) -> None:
        super().__init__(f"stopped by signal {signal}")
        self.signal = signal


def nearest(given: str, valid: Iterable[str]) -> str:
    """`` Did you mean 'x'?``, or all valid names when none is near and they are few, or nothing.

    >>> nearest("droput", ["dropout", "hidden"])
    " Did you mean 'dropout'?"
    """
    names = [str(name) for name in valid if str(name) != given]
    by_lower = {name.lower(): name for name in names}
    if begun := [name for name in names if len(given) > 2 and name.startswith(given)]:
        return f" Did you mean '{begun[0]}'?"
    if close := difflib.get_close_matches(given.lower(), by_lower, n=1, cutoff=0.6):
        return f" Did you mean '{by_lower[close[0]]}'?"
    return f" Valid: {', '.join(names)}." if 0 < len(names) <= 20 else ""
