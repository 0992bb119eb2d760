"""Locks of folders between processes: training into a run, and its results.

The system releases a lock when its process ends, however it ends. Windows has no such locks, and
some network file systems have none: there, do not use one run from two processes at a time.
"""

import errno
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from proj.engine.runs.files import is_present
from proj.engine.runs.run import Run
from proj.errors import UserError

# A process holds the lock of results while it writes some files and draws the report.
RESULTS_SECONDS = 120
POLL_SECONDS = 0.02
# Answers of file systems without locks of folders.
NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL, errno.EBADF)


@contextmanager
def lock_run(run: Run) -> Iterator[None]:
    """Prevent other processes from training into the run's folder.

    Raises UserError if another process holds the lock.
    """
    with _lock(run.path, False, 0, "trained", "wait for it, or stop it"):
        yield


@contextmanager
def read_results(run: Run, verb: str) -> Iterator[None]:
    """Wait while another process replaces the results of ``test`` or ``validate``, and prevent it.

    Without this lock, metrics and predictions of two tests could be read together.
    """
    folder = run.path / verb
    if not folder.is_dir():
        yield
        return
    with _lock(folder, True, RESULTS_SECONDS, "written", "try again"):
        yield


@contextmanager
def replace_results(run: Run, verb: str) -> Iterator[None]:
    """Exclude other processes while the results of ``test`` or ``validate`` are replaced.

    The metrics are removed first, and the caller writes them last. So wherever this process is
    killed, no metrics stand beside the predictions of another test.
    """
    folder = run.path / verb
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{folder}: expected a folder that can be written to, got: {error.strerror}; move what "
            "is there, or change the permissions of the run's folder."
        ) from error
    with _lock(folder, False, RESULTS_SECONDS, "written", "try again"):
        metrics = folder / "metrics.json"
        if is_present(metrics):
            try:
                metrics.unlink()
            except OSError as error:
                raise UserError(
                    f"{metrics}: expected a file that can be replaced, got: {error.strerror}; "
                    "remove it, or change the permissions of its folder."
                ) from error
        yield


@contextmanager
def _lock(folder: Path, shared: bool, seconds: float, what: str, remedy: str) -> Iterator[None]:
    """Lock a folder, for several readers or for one writer; wait for the lock.

    Raises UserError if other processes hold it for longer than ``seconds``.
    """
    if os.name != "posix":
        yield
        return
    import fcntl  # It exists on POSIX systems only.

    descriptor, end = os.open(folder, os.O_RDONLY), time.monotonic() + seconds
    operation = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB
    try:
        while not _is_locked(lambda: fcntl.flock(descriptor, operation)):
            if time.monotonic() >= end:
                raise UserError(
                    f"{folder} is being {what} by another process: expected none; {remedy}."
                )
            time.sleep(POLL_SECONDS)
        yield
    finally:
        os.close(descriptor)


def _is_locked(lock: Callable[[], None]) -> bool:
    """Return False if another process holds the lock, and True if the system has no locks."""
    try:
        lock()
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
    return True
