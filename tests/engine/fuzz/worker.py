"""Damage files and call the command line on them: ``python -m engine.fuzz.worker ARGUMENTS``.

The arguments are the folder with the prepared files, the name of the target, the first number and
the number of files, and a file for the results: one line of JSON for each damaged file, written
before and after the call, so that a crash or a hang of this process is seen.
"""

import contextlib
import glob
import io
import json
import os
import re
import resource
import shlex
import shutil
import signal
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

from conftest import QUIET
from engine.fuzz.targets import TARGETS, Target
from proj.engine.cli import main
from proj.engine.tuning import search

SECONDS = 30
LONGEST_MESSAGE = 3000
MEMORY = 12 * 2**30
# Codes: done, the input is wrong; of a training: failed.
ALLOWED = (0, 2)


class Hang(BaseException):
    """A call took longer than ``SECONDS``."""


class InstantPool:
    """Stands for the workers of a study: each trial ends at once, and at most 20 are run."""

    signal = 0

    def __init__(self, *_: Any) -> None:
        self.jobs = 0

    def run(self, job: Any, report: Any = None) -> dict[str, float]:
        self.jobs += 1
        if self.jobs > 20:
            raise SystemExit(0)
        for epoch in range(3 if job["metric"] else 0):
            if report(epoch, 0.1 * self.jobs):
                break
        return {f"val/{name}": 0.1 * self.jobs for name in ("f1", "loss", "accuracy")}

    def stop(self, number: int) -> None:
        pass

    def close(self) -> None:
        pass


def damage(target: Target, number: int, folder: Path) -> list[str]:
    """Damage one file in the folder; return the command line that reads it."""
    rng = Random(f"{target.name} {number}")
    files = sorted(
        file
        for file in glob.glob(str(folder / target.files), recursive=True)
        if Path(file).is_file()
    )
    file = Path(rng.choice(files))
    content = rng.choice(target.damages)(file.read_bytes(), rng)
    file.write_bytes(content)
    words = rng.choice(target.commands).format(file=file.relative_to(folder))
    quiet = QUIET if words.split()[0] in ("fit", "test", "validate", "predict") else []
    return [*shlex.split(words), *quiet]


def call(args: list[str]) -> dict[str, Any]:
    """Call the command line; return its exit code and what is wrong with what it printed."""
    out, err = io.StringIO(), io.StringIO()
    problem = ""
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(args)
    except Hang:
        return {"code": None, "problem": f"hangs: {_place(sys.exc_info()[2])}"}
    except BaseException as error:
        reason = f"{type(error).__name__}: {str(error)[:200]}"
        return {"code": 1, "problem": f"{_place(error.__traceback__)} {reason}"}
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    errors = [line for line in err.getvalue().splitlines() if line.startswith("error: ")]
    printed = out.getvalue() + err.getvalue()
    if code not in ALLOWED:
        problem = f"exit code {code}: {errors}"
    elif code == 2 and (len(errors) != 1 or not err.getvalue().endswith(f"{errors[-1]}\n")):
        problem = f"not one message: {err.getvalue()[-400:]}"
    elif errors and len(errors[0]) > LONGEST_MESSAGE:
        problem = f"a message of {len(errors[0])} characters: {errors[0][:200]}"
    elif "Traceback (most" in printed:
        problem = f"prints a traceback: {printed[-400:]}"
    elif found := re.search(
        r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", printed.replace("\r\n", "\n")
    ):
        problem = f"prints the control character {found[0]!r}"
    return {"code": code, "problem": problem, "message": errors[:1]}


def _place(trace: Any) -> str:
    """Return the last line of this package in a traceback, and the last line of all."""
    frames = traceback.extract_tb(trace)
    own = [frame for frame in frames if "/src/proj/" in frame.filename]
    shown = own[-1:] + frames[-1:]
    return " ".join(f"{frame.filename.rpartition('/proj/')[2]}:{frame.lineno}" for frame in shown)


def calls(prepared: Path, target: Target, numbers: range) -> Iterator[dict[str, Any]]:
    """Yield the number of each damaged file, and then the result of the call."""
    for number in numbers:
        yield {"number": number}
        folder = prepared.with_name(f"work_{os.getpid()}")
        shutil.copytree(prepared, folder)
        os.chdir(folder)
        args = damage(target, number, folder)
        yield {"number": number, "command": " ".join(args), **call(args)}
        os.chdir(prepared.parent)
        shutil.rmtree(folder)


def stop(number: int, frame: Any) -> None:
    raise Hang


if __name__ == "__main__":
    prepared, name, first, count, results = sys.argv[1:]
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    signal.signal(signal.SIGALRM, stop)
    search.Pool = InstantPool  # type: ignore[assignment, misc]
    (target,) = (target for target in TARGETS if target.name == name)
    numbers = range(int(first), int(first) + int(count))
    with open(results, "a", buffering=1) as file:
        for result in calls(Path(prepared), target, numbers):
            file.write(json.dumps(result) + "\n")
