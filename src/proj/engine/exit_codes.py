"""Convert exceptions and signals to error messages and exit codes."""

import errno
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from proj.engine.secrets import printable
from proj.errors import Stopped, TrainingError, UserError

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

# A disk that is full, over its quota, read-only or broken.
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)

# A file or folder that cannot be used: read-only, of another user, a file in place of a folder.
PLACE_ERRORS = (
    *DISK_ERRORS,
    *(errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.ENOENT, errno.EEXIST),
    *(errno.ELOOP, errno.ENAMETOOLONG),
)


def exit_code(call: Callable[[], int | None], debug: bool = False) -> int:
    """Call a function, print the message of a ``UserError`` or ``TrainingError``, return the code.

    With ``debug`` these errors are raised again, for their traceback.
    """
    try:
        return call() or 0
    except (UserError, TrainingError) as error:
        if debug:
            raise
        print(f"error: {printable(str(error))}", file=sys.stderr)
        return 2 if isinstance(error, UserError) else 3
    except UnicodeEncodeError as error:
        if debug:
            raise
        print(f"error: {printable(_unencodable(error))}", file=sys.stderr)
        return 2
    except OSError as error:
        if debug or error.errno not in PLACE_ERRORS or error.filename is None:
            raise
        print(f"error: {printable(_unusable_place(error))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1


def _unusable_place(error: OSError) -> str:
    """Return the message for a file or folder that cannot be read or written."""
    place = os.fsdecode(error.filename2 or error.filename)
    if error.errno == errno.ENOENT and os.path.islink(place):
        place += " is a link to nothing"
    return (
        f"{place}: expected a place that can be read and written, got {error.strerror!r}; change "
        "its permissions, or choose another place. Add --debug for the traceback."
    )


def _unencodable(error: UnicodeEncodeError) -> str:
    """Return the message for a text, such as a file name, that cannot be encoded."""
    text = ascii(error.object if len(error.object) < 80 else error.object[error.start :][:80])
    if error.encoding.lower().replace("-", "") == "utf8":
        return f"{text} is not valid UTF-8: expected names and texts in UTF-8; rename the file."
    return (
        f"{text} has characters that this process cannot use as a file name, because its locale "
        f"is of {error.encoding}; set the environment variable PYTHONUTF8=1, or LC_ALL=C.UTF-8."
    )


@contextmanager
def as_user_error(failure: str) -> Iterator[None]:
    """Convert any exception to a ``UserError``.

    Use it where code of the user runs before anything has been created: building classes, the first
    batches, a verb that only reads a run. Such an exception means that model, data and settings do
    not fit together. Do not use it around training: an exception in the middle of training may be a
    bug, and the user needs its traceback.

    Args:
        failure: what failed, as the beginning of the message. The line of user code and the reason
            follow it.
    """
    try:
        yield
    except (UserError, TrainingError):
        raise
    except Exception as error:
        package = str(Path(__file__).parent.parent)
        frames = [
            frame
            for frame in traceback.extract_tb(error.__traceback__)
            if "site-packages" not in frame.filename and not frame.filename.startswith(package)
        ]
        place = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
        reason = " ".join(str(error).split()).rstrip(".!") or type(error).__name__
        raise UserError(f"{failure}{place}: {reason}. Add --debug for the traceback.") from error


@contextmanager
def signal_exit_codes(trainer: "Trainer") -> Iterator[None]:
    """Exit with 128 + the number of the signal that stopped a Trainer; Lightning exits with 0 or 1.

    If all processes fail, only process 0 reports it: Lightning kills process 0 when another process
    is the first to fail.
    """
    # Lightning is imported late because `--help` does not need it and importing it takes seconds.
    from lightning.pytorch.utilities.exceptions import SIGTERMException

    try:
        yield
    except Stopped as stopped:
        raise SystemExit(128 + stopped.signal if trainer.is_global_zero else 0) from None
    except TrainingError:
        if trainer.is_global_zero:
            raise
        raise SystemExit(0) from None
    except SIGTERMException:
        raise SystemExit(143) from None
    except SystemExit as stop:
        # Lightning raises it after Ctrl-C; user code may raise it, too.
        interrupted = isinstance(stop.__context__, KeyboardInterrupt)
        raise SystemExit(130 if interrupted else stop.code) from None
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        raise TrainingError(
            f"cannot write to the disk: {error}; the checkpoints written before are complete. Free "
            "some space, then run `fit --resume`."
        ) from error


@contextmanager
def keep_interrupts() -> Iterator[None]:
    """Raise KeyboardInterrupt for each Ctrl-C, also for one during a finalizer.

    Python ignores an exception in a ``__del__`` method, so an interrupt that comes then would be
    lost. It is sent again a little later. Without effect where Python has no handler of its own
    for it, as outside the main thread.
    """
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler or (
        threading.current_thread() is not threading.main_thread()
    ):
        yield
        return

    def handle(number: int, frame: FrameType | None) -> None:
        while frame is not None:
            if frame.f_code.co_name == "__del__":
                threading.Timer(0.01, os.kill, (os.getpid(), number)).start()
                return
            frame = frame.f_back
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def stop_signals(handler: Callable[[int], None]) -> Iterator[None]:
    """Call ``handler`` with the number of each SIGINT and SIGTERM.

    The previous handlers are restored at the end. Python allows signal handlers in the main thread
    only; in other threads this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, frame: Any) -> None:
        handler(number)

    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, previous_handler in previous.items():
            signal.signal(number, previous_handler)
