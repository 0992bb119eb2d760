"""Escape what libraries print: warnings, log messages and tracebacks."""

import logging
import sys
import traceback
import warnings
from types import TracebackType
from typing import Any

from proj.engine.secrets import printable


def escape_output() -> None:
    """Escape hidden characters and mask secrets in warnings, log messages and tracebacks.

    Further lines of a warning or a log message are indented, so that a name with a line break
    cannot look like another message. Call it after the imports, because Lightning replaces the
    function that formats warnings when it is imported. Further calls change nothing.
    """
    logging.setLogRecordFactory(VisibleLogRecord)
    if sys.excepthook is sys.__excepthook__:
        sys.excepthook = print_traceback
    if not isinstance(warnings.formatwarning, VisibleWarning):
        warnings.formatwarning = VisibleWarning(warnings.formatwarning)


class VisibleLogRecord(logging.LogRecord):
    """A log record whose message holds no hidden characters."""

    def getMessage(self) -> str:
        return _indented(super().getMessage())


class VisibleWarning:
    """Format warnings with another function, and escape the result."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __call__(self, *args: Any, **options: Any) -> str:
        return _indented(self.inner(*args, **options).removesuffix("\n")) + "\n"


def print_traceback(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    text = "".join(traceback.format_exception(kind, error, trace))
    sys.stderr.write(printable(text, keep="\n\t"))


def _indented(text: str) -> str:
    return printable(text, keep="\n\t").replace("\n", "\n  ")
