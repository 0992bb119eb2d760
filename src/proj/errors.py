"""Exceptions for user errors and failed training."""

import difflib
from collections.abc import Iterable

# A message stays readable whatever a cell of a file holds.
MAX_QUOTED = 80


class UserError(ValueError):
    """The input is wrong. Exit code 2.

    The message says what was given, what was expected and what to change.
    """


class TrainingError(RuntimeError):
    """Training failed, for example because the loss is not finite. Exit code 3."""


class Stopped(BaseException):
    """A signal has stopped training, after a checkpoint. Exit code 128 plus the signal's number."""

    def __init__(self, signal: int) -> None:
        super().__init__(f"stopped by signal {signal}")
        self.signal = signal


def quoted(value: object) -> str:
    """Return a value of a file for a message: as Python writes it, at most 80 characters of it."""
    text = repr(value)
    return text if len(text) <= MAX_QUOTED else f"{text[: MAX_QUOTED - 1]}…"


def nearest(name: str, valid_names: Iterable[str]) -> str:
    """Return a hint for a mistyped name, to be appended to an error message.

    The hint is the most similar valid name, the first one if several are. Without a similar one,
    all valid names if there are at most 20, else nothing.

    >>> nearest("droput", ["dropout", "hidden"])
    " Did you mean 'dropout'?"
    """
    name = str(name)  # A key in YAML may be a number.
    names = [str(valid) for valid in valid_names if str(valid) != name]
    if completions := [valid for valid in names if len(name) > 2 and valid.startswith(name)]:
        return f" Did you mean '{completions[0]}'?"
    ratios = [difflib.SequenceMatcher(None, v.lower(), name.lower()).ratio() for v in names]
    if max(ratios, default=0) >= 0.6:
        return f" Did you mean '{names[ratios.index(max(ratios))]}'?"
    return f" Valid: {', '.join(names)}." if 0 < len(names) <= 20 else ""
