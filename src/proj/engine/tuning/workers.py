"""Processes that train: kept, and replaced when they die."""

import json
import os
import queue
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from proj.engine.tuning.worker import Job

TRIES = 2  # of a job whose worker is killed: by a user, or by the kernel, for want of memory

Answer = Callable[[int, float], bool]


class Died(Exception):
    """A worker ended in the middle of a job."""


class Failed(Exception):
    """What ended a job; the other jobs go on."""


class Interrupted(Exception):
    """The job was stopped on request, and can be gone on with."""


class Pool:
    """So many processes, each with its share of the processor's cores. ``apart``: a new one for each job."""

    def __init__(self, count: int, apart: bool, threads: int, gpus: int = 0) -> None:
        self.apart, self.stopped = apart, False
        self.idle: queue.Queue[_Worker] = queue.Queue()
        self.workers = []
        for i in range(count):
            environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
            if gpus > 1 and not apart:
                environment["CUDA_VISIBLE_DEVICES"] = str(i % gpus)
            self.workers.append(_Worker(environment))
            self.idle.put(self.workers[-1])

    def run(self, job: Job, answer: Answer) -> dict[str, float]:
        """The metrics of the job's best epoch. ``answer`` gets each epoch's metric and says whether that is enough.

        Raises Failed with the reason, or Interrupted.
        """
        worker = self.idle.get()
        try:
            for attempt in range(TRIES):
                if self.stopped:
                    raise Interrupted
                try:
                    outcome = worker.run(job, answer, self.apart)
                except Died as died:
                    if attempt < TRIES - 1 or self.stopped:
                        continue
                    raise Failed(f"its process ended {died}, {TRIES} times") from died
                if outcome["code"] == 0:
                    metrics: dict[str, float] = outcome["metrics"]
                    return metrics
                if outcome["code"] > 128:
                    raise Interrupted
                if outcome["code"] != 2:
                    worker.end()  # who knows what is left of it in memory
                raise Failed(outcome["reason"])
            raise Interrupted
        finally:
            self.idle.put(worker)

    def stop(self) -> None:
        """Have all jobs saved and stopped; at once, if called again."""
        for worker in self.workers:
            worker.end(signal.SIGKILL if self.stopped else signal.SIGTERM)
        self.stopped = True

    def close(self) -> None:
        for worker in self.workers:
            worker.end()


class _Worker:
    """A process, started when there is something to do."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.environment = environment
        self.process: subprocess.Popen[str] | None = None

    def run(self, job: Job, answer: Answer, apart: bool) -> dict[str, Any]:
        if self.process is None or self.process.poll() is not None:
            command = [
                sys.executable,
                "-m",
                f"{__package__}.worker",
                *([json.dumps(job)] if apart else []),
            ]
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                bufsize=1,
                env=self.environment,
                start_new_session=True,
            )
        process = self.process
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            if not apart:
                process.stdin.write(json.dumps(job) + "\n")
            for line in process.stdout:
                message: dict[str, Any] = json.loads(line)
                if "code" in message:
                    return message
                process.stdin.write(json.dumps(answer(message["step"], message["value"])) + "\n")
        except BrokenPipeError:
            pass  # it has died; why, is asked below
        code = process.wait()
        why = (
            f"by signal {-code} ({signal.Signals(-code).name})"
            if code < 0
            else f"with exit code {code}"
        )
        raise Died(f"{why}{', as when memory runs out' if code == -signal.SIGKILL else ''}")

    def end(self, number: signal.Signals = signal.SIGTERM) -> None:
        process = self.process
        if process is not None and process.poll() is None:
            process.send_signal(number)
