"""What becomes of exceptions: one sentence for the user, or the exit code of a signal."""

import errno
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lightning.pytorch import Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException

from proj.errors import Stopped, TrainingError, UserError

DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)


def exit_code(call: Callable[[], int | None], debug: bool = False) -> int:
    """Call, and turn what it raises into a message and an exit code; with ``debug`` errors of the user are raised."""
    try:
        return call() or 0
    except (UserError, TrainingError) as error:
        if debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, UserError) else 3
    except KeyboardInterrupt:
        return 130
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1


@contextmanager
def stop_signals(handler: Callable[[int], None]) -> Iterator[None]:
    """Call ``handler`` with the number of each SIGINT and SIGTERM; restore the old handlers after."""
    previous = {
        number: signal.signal(number, lambda number, frame: handler(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, old in previous.items():
            signal.signal(number, old)


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
