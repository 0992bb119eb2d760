"""What becomes of exceptions: one sentence for the user, or the exit code of a signal."""

import errno
import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException

from proj.errors import Stopped, TrainingError, UserError

DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)


@contextmanager
def as_user_error(what: str) -> Iterator[None]:
    """Turn any exception into a UserError that says ``what`` does not work, why, and in which line of the user's code.

    For work that comes before anything is created, when every error is about what was put together.
    """
    try:
        yield
    except (UserError, TrainingError):
        raise
    except Exception as error:
        frames = [
            f
            for f in traceback.extract_tb(error.__traceback__)
            if "site-packages" not in f.filename
        ]
        own = str(Path(__file__).parent.parent)
        users = [f for f in frames if not f.filename.startswith(own)]
        place = f" ({Path(users[-1].filename).name}, line {users[-1].lineno})" if users else ""
        text = " ".join(str(error).split()).rstrip(".!") or type(error).__name__
        raise UserError(f"{what}{place}: {text}. See it whole with --debug.") from error


@contextmanager
def signal_exit_codes(trainer: Trainer) -> Iterator[None]:
    """Being stopped by a signal ends in the usual exit code, 128 + its number, where Lightning has 0 or 1.

    Where all processes end by an error, process 0 says it: Lightning kills it if another one is the first to fail.
    """
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
    except SystemExit as stop:  # Lightning's own after Ctrl-C, or a user's
        raise SystemExit(
            130 if isinstance(stop.__context__, KeyboardInterrupt) else stop.code
        ) from None
    except OSError as error:
        if error.errno not in DISK:
            raise
        raise TrainingError(
            f"the disk takes no more: {error}; the checkpoints written before are whole."
        ) from error


@contextmanager
def stop_signals(handler: Callable[[int], None]) -> Iterator[None]:
    """Call ``handler`` with the number of each SIGINT and SIGTERM; restore the old handlers at the end.

    Python allows signal handlers in the main thread only; in other threads this does nothing.
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
