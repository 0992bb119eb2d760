"""Interrupt a scenario again and again, let it finish, and compare with the undisturbed result."""

import contextlib
import io
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from signal import SIGINT, SIGKILL, SIGTERM
from typing import Any, NamedTuple

import processes
from conftest import QUIET
from engine.faults.experiments import Scenario
from engine.faults.snapshot import check_readable, differences, snapshot
from proj.engine.cli import main

# Interruptions of one run before it may finish.
MOST_PER_RUN = 4
# Exit codes after a signal: those of the program, or the signal itself where it has its default
# action, which a shell reports with the same number. A process may also have finished before.
EXIT_CODES = {SIGKILL: (-9, -14), SIGTERM: (143, -15), SIGINT: (130, -2)}
OTHER_PROCESS = "other process"


class Interruption(NamedTuple):
    """When and how a process is interrupted.

    Attributes:
        number: the signal.
        at: the operation on files before which the process gets it; see ``interruption``.
        after: seconds from the start, or from that operation.
        target: whether the first process gets it, or another one that it has started.
    """

    number: int
    at: int | None
    after: float
    target: str = "first process"


class Undisturbed(NamedTuple):
    """The result of the scenario without an interruption, its duration and its operations."""

    result: dict[str, Any]
    seconds: float
    operations: int


class Campaign:
    """Interruptions of one scenario, drawn from a seed.

    Args:
        scenario: what is run.
        folder: an empty folder.
        seed: seed of the interruptions.
    """

    def __init__(self, scenario: Scenario, folder: Path, seed: int = 0) -> None:
        self.scenario, self.folder = scenario, folder
        self.rng = random.Random(f"{scenario.name} {seed}")
        self.pristine, self.work = folder / "pristine", folder / "work"
        self.kills, self.history = 0, [""]

    def run(self, kills: int) -> int:
        """Interrupt the scenario ``kills`` times, and return how often it was interrupted.

        Raises AssertionError if a result differs from the undisturbed one, if an attempt fails or
        prints a traceback, or if a file is left over.
        """
        whole = self._prepare()
        while self.kills < kills:
            self._copy()
            self.history = []
            self._finish_interrupted(whole, min(MOST_PER_RUN, kills - self.kills))
            lines = differences(whole.result, self._result())
            assert not lines, self._failed("\n".join(lines))
        return self.kills

    def sweep(self, points: int) -> None:
        """Kill the scenario once at each of evenly spaced operations, and let it finish.

        Raises AssertionError as ``run`` does.
        """
        whole = self._prepare()
        for number in range(1, points + 1):
            self._copy()
            self.history = []
            at = number * whole.operations // points
            code = self._attempt(self.scenario.command, Interruption(SIGKILL, at, 0.0))
            if code != 0:
                code = self._attempt(self._next_command(), None)
            assert code == 0, self._failed("the last attempt failed")
            lines = differences(whole.result, self._result())
            assert not lines, self._failed("\n".join(lines))

    def _prepare(self) -> Undisturbed:
        processes.run("proj", "--version")  # The first request starts the server.
        self.pristine.mkdir()
        self.scenario.prepare(self.pristine)
        for command in self.scenario.before:
            code = self._wait(self._start(command, self.pristine), None)
            assert code == 0, self._said(self.pristine)
        return self._undisturbed()

    def _undisturbed(self) -> Undisturbed:
        self._copy()
        counted = self.folder / "operations"
        begin = time.monotonic()
        process = self._start(self.scenario.command, self.work, OPERATIONS=str(counted))
        assert self._wait(process, None) == 0, self._said(self.work)
        seconds = time.monotonic() - begin
        return Undisturbed(self._result(), seconds, int(counted.read_text()))

    def _result(self) -> dict[str, Any]:
        return snapshot(self.work, self.scenario.repeats_points)

    def _finish_interrupted(self, whole: Undisturbed, kills: int) -> None:
        """Run the scenario, interrupted up to ``kills`` times, until it ends by itself."""
        command = self.scenario.command
        for number in range(kills + 1):
            interruption = self._draw(whole) if number < kills else None
            code = self._attempt(command, interruption)
            check_readable(self.work)
            self._check_other_verbs()
            if interruption is None or (code == 0 and interruption.target != OTHER_PROCESS):
                assert code == 0, self._failed("the last attempt failed")
                if command == self.scenario.command or number:
                    return
            self.kills += 1
            if code == 0:
                return
            command = self._next_command()

    def _draw(self, whole: Undisturbed) -> Interruption:
        rng = self.rng
        number = rng.choices([SIGKILL, SIGTERM, SIGINT], [6, 1, 1])[0]
        if self.scenario.processes > 1 and rng.random() < 0.4:
            return Interruption(SIGKILL, None, rng.uniform(0.2, whole.seconds), OTHER_PROCESS)
        if whole.operations and rng.random() < 0.5:
            delay = rng.choice([0.0, rng.uniform(0, 0.004)])
            return Interruption(number, rng.randint(1, whole.operations), delay)
        return Interruption(number, None, rng.uniform(0.1, whole.seconds))

    def _attempt(self, command: list[str], interruption: Interruption | None) -> int:
        environment = {}
        if interruption is not None and interruption.at is not None:
            environment["INTERRUPTION"] = (
                f'{{"at": {interruption.at}, "delay": {interruption.after}, '
                f'"signal": {int(interruption.number)}}}'
            )
        log = self.work / "log.txt"
        begin = log.stat().st_size if log.exists() else 0
        code = self._wait(self._start(command, self.work, **environment), interruption)
        self.history.append(f"{' '.join(command)}: {interruption} -> {code}")
        if interruption is None or interruption.target == OTHER_PROCESS:
            return code
        allowed = (0, *EXIT_CODES[signal.Signals(interruption.number)])
        assert code in allowed, self._failed(f"exit code {code}, expected {allowed}")
        if self.scenario.processes == 1:
            assert "Traceback" not in log.read_text()[begin:], self._failed("a traceback")
        return code

    def _start(self, command: list[str], folder: Path, **environment: str) -> processes.Process:
        verb = command[0]
        quiet = QUIET if verb in ("fit", "test", "validate", "predict") else []
        with (folder / "log.txt").open("a") as log:
            return processes.Process(
                "engine.faults.interruption",
                "proj",
                *command,
                *quiet,
                *["--allow", "engine.faults"],
                env={**os.environ, **environment},
                cwd=folder,
                stdout=log,
                stderr=log,
            )

    def _wait(self, process: processes.Process, interruption: Interruption | None) -> int:
        """Interrupt the process if it is to be interrupted by time; return its exit code."""
        try:
            if interruption is None or interruption.at is not None:
                return process.wait(self.scenario.timeout)
            with contextlib.suppress(subprocess.TimeoutExpired):
                return process.wait(interruption.after)
            if interruption.target == OTHER_PROCESS:
                self._kill_another(process)
            elif interruption.number == SIGKILL:
                with contextlib.suppress(ProcessLookupError):  # It may have just ended.
                    os.killpg(process.pid, SIGKILL)
            else:
                process.send_signal(interruption.number)
            return process.wait(self.scenario.timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(self._failed("it hangs")) from None
        finally:
            # The processes of DDP, which a crash of the machine would end, too.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, SIGKILL)

    def _kill_another(self, process: processes.Process) -> None:
        others = [number for number in self._running() if number != process.pid]
        if others:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.rng.choice(others), SIGKILL)

    def _running(self) -> Iterator[int]:
        """Yield the processes in the working folder."""
        for path in Path("/proc").glob("[0-9]*/cwd"):
            with contextlib.suppress(OSError):
                if path.readlink() == self.work:
                    yield int(path.parent.name)

    def _next_command(self) -> list[str]:
        """Return the command that continues the scenario after an interruption."""
        if self.scenario.command[0] != "fit":
            return self.scenario.command
        checkpoints = self.work / "lightning_logs/run/checkpoints"
        if any((checkpoints / f"{name}.ckpt").exists() for name in ("last", "previous")):
            return ["fit", "--resume", "run"]
        # It was interrupted before the first checkpoint, so there is nothing to resume.
        shutil.rmtree(self.work / "lightning_logs/run", ignore_errors=True)
        return self.scenario.command

    def _check_other_verbs(self) -> None:
        """Check that another verb can read what an interrupted one has left."""
        with contextlib.chdir(self.work), contextlib.redirect_stdout(io.StringIO()):
            if Path("lightning_logs").is_dir():
                assert main(["runs"]) in (0, 2), self._failed("`runs` fails")

    def _copy(self) -> None:
        shutil.rmtree(self.work, ignore_errors=True)
        shutil.copytree(self.pristine, self.work)

    def _said(self, folder: Path) -> str:
        log = folder / "log.txt"
        return log.read_text()[-6000:] if log.exists() else ""

    def _failed(self, what: str) -> str:
        """Return a message with the attempts so far and what they printed."""
        lines = "\n".join(self.history)
        return f"{self.scenario.name}: {what}\nattempts:\n{lines}\n{self._said(self.work)}"
