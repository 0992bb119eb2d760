"""Run a module that interrupts itself at a chosen operation on its files.

``python -m engine.faults.interruption MODULE ARGUMENTS``. An operation is a file opened for
writing, a flush to the disk, a rename, a removal, or a folder made or removed, in the working
folder. Python's audit events report them, and ``os.fsync`` is wrapped because it has none.

The environment variable ``INTERRUPTION`` holds JSON: ``at``, the number of the operation before
which the process is interrupted; ``delay``, the seconds to wait from then on; ``signal``. The
variable ``OPERATIONS`` names a file that receives the number of operations at the end.
"""

import atexit
import json
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import processes

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
EVENTS = {
    "os.rename",
    "os.remove",
    "os.mkdir",
    "os.rmdir",
    "os.truncate",
    "os.link",
    "os.symlink",
    "engine.faults.fsync",
}


class Counter:
    """Audit hook that counts operations in a folder, and interrupts the process at one of them."""

    def __init__(self, folder: str, at: int | None, delay: float, number: int) -> None:
        self.folder, self.at, self.delay, self.number = folder, at, delay, number
        self.operations, self.process = 0, os.getpid()

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        if event != "open" and event not in EVENTS:
            return
        if event == "open" and not (isinstance(args[2], int) and args[2] & WRITING):
            return
        if not self._is_inside(args[0]) or os.getpid() != self.process:
            return
        self.operations += 1
        if self.operations == self.at:
            self.interrupt()

    def _is_inside(self, path: Any) -> bool:
        if isinstance(path, int):  # os.fsync of a file in the folder
            return True
        name = os.path.abspath(os.fsdecode(path))
        return name.startswith(self.folder)

    def interrupt(self) -> None:
        if not self.delay:
            os.kill(self.process, self.number)
        elif self.number == signal.SIGKILL:
            # The default action of SIGALRM ends the process at once, whatever it does.
            signal.setitimer(signal.ITIMER_REAL, self.delay)
        else:
            threading.Timer(self.delay, os.kill, (self.process, self.number)).start()


def count_operations() -> None:
    """Install the audit hook."""
    wanted = json.loads(os.environ.get("INTERRUPTION", "{}"))
    counter = Counter(
        os.getcwd() + os.sep,
        wanted.get("at"),
        wanted.get("delay", 0.0),
        wanted.get("signal", signal.SIGKILL),
    )
    fsync = os.fsync

    def audited_fsync(descriptor: int) -> None:
        sys.audit("engine.faults.fsync", descriptor)
        fsync(descriptor)

    os.fsync = audited_fsync
    sys.addaudithook(counter)
    if file := os.environ.get("OPERATIONS"):
        atexit.register(lambda: Path(file).write_text(str(counter.operations)))


if __name__ == "__main__":
    count_operations()
    module, *sys.argv[1:] = sys.argv[1:]
    sys.argv[0] = module
    sys.exit(processes.run_module(module))
