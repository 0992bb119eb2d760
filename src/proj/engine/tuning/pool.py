"""Pool of worker processes that train, with a replacement for each one that dies."""

import json
import os
import queue
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import torch

from proj.engine.runs.files import as_plain
from proj.engine.tuning.worker import Job

# Attempts at a job whose worker is killed, for example by the kernel when memory runs out.
MAX_ATTEMPTS = 2

# Called with (epoch, metric) after each validation; returns whether to stop training.
Report = Callable[[int, float], bool]


class WorkerDied(Exception):
    """A worker process ended in the middle of a job."""


class JobFailed(Exception):
    """A job failed; the message is the reason. Other jobs are not affected."""


class JobInterrupted(Exception):
    """A job was stopped by a signal; it can be continued later."""


def threads_per_worker(workers: int) -> int:
    """Return ``OMP_NUM_THREADS`` if it is set, otherwise an equal share of the CPU cores."""
    return int(os.environ.get("OMP_NUM_THREADS", 0)) or max(1, (os.cpu_count() or 1) // workers)


def _visible_gpus() -> list[str]:
    """Return the GPUs of this process as the values of ``CUDA_VISIBLE_DEVICES``."""
    names = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    count = torch.cuda.device_count()
    return names[:count] if len(names) >= count and names[0] else [str(i) for i in range(count)]


class Pool:
    """Worker processes that train jobs, each with its share of the CPU cores and one GPU.

    Args:
        size: number of processes.
        one_process_per_job: start a new process for each job instead of reusing it.

    Attributes:
        signal: number of the signal that stopped the pool, or 0.
    """

    def __init__(self, size: int, one_process_per_job: bool) -> None:
        self.one_process_per_job, self.signal = one_process_per_job, 0
        self.idle: queue.Queue[Worker] = queue.Queue()
        self.workers = []
        gpus = _visible_gpus()
        for i in range(size):
            environment = {**os.environ, "OMP_NUM_THREADS": str(threads_per_worker(size))}
            if len(gpus) > 1 and not one_process_per_job:
                environment["CUDA_VISIBLE_DEVICES"] = gpus[i % len(gpus)]
            self.workers.append(Worker(environment))
            self.idle.put(self.workers[-1])

    def run(self, job: Job, report: Report = lambda epoch, value: False) -> dict[str, float]:
        """Run a job in the next idle worker and return the metrics of its best epoch.

        Raises:
            JobFailed: the job failed, or its worker died in each attempt.
            JobInterrupted: a signal stopped the job.
        """
        worker = self.idle.get()
        try:
            outcome = self._attempt(job, report, worker)
        finally:
            self.idle.put(worker)
        if outcome["code"] == 0:
            metrics: dict[str, float] = outcome["metrics"]
            return metrics
        if outcome["code"] > 128:
            raise JobInterrupted
        raise JobFailed(outcome["reason"])

    def _attempt(self, job: Job, report: Report, worker: "Worker") -> dict[str, Any]:
        """Run a job, again if its worker dies; return its outcome."""
        end = ""
        for _ in range(MAX_ATTEMPTS):
            if self.signal:
                raise JobInterrupted
            try:
                outcome = worker.run(job, report, self.one_process_per_job)
            except WorkerDied as died:
                end = str(died)
                continue
            if outcome["code"] not in (0, 2) and outcome["code"] <= 128:
                # An unexpected error may leave the process in any state, so replace it.
                worker.close()
            return outcome
        if self.signal:
            raise JobInterrupted
        raise JobFailed(f"its process ended {end}, {MAX_ATTEMPTS} times")

    def stop(self, number: int) -> None:
        """Stop all jobs on a signal: the first saves and stops them, the second kills them."""
        for worker in self.workers:
            worker.terminate(signal.SIGKILL if self.signal else signal.SIGTERM)
        self.signal = number

    def close(self) -> None:
        """Terminate the processes and wait for them to end."""
        for worker in self.workers:
            worker.close()


class Worker:
    """A worker process, started with its first job and again after it has ended.

    Args:
        environment: environment variables of the process.
    """

    def __init__(self, environment: dict[str, str]) -> None:
        self.environment = environment
        self.process: subprocess.Popen[str] | None = None

    def run(self, job: Job, report: Report, one_process_per_job: bool) -> dict[str, Any]:
        """Run a job and return its outcome; see ``worker.execute``. Raises WorkerDied."""
        if self.process is not None and one_process_per_job:
            # The process exits after its job.
            self.process.wait()
        if self.process is not None and self.process.poll() is not None:
            self.close()
        if self.process is None:
            self.process = self._start(
                [json.dumps(job, default=as_plain)] if one_process_per_job else []
            )
        process = self.process
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            if not one_process_per_job:
                process.stdin.write(f"{json.dumps(job, default=as_plain)}\n")
            for line in process.stdout:
                message: dict[str, Any] = json.loads(line)
                if "code" in message:
                    return message
                stop = report(message["epoch"], message["value"])
                process.stdin.write(json.dumps(stop, default=as_plain) + "\n")
        except BrokenPipeError:
            # The process has died, and its exit code gives the reason.
            pass
        raise WorkerDied(_describe_exit(process.wait()))

    def _start(self, args: list[str]) -> subprocess.Popen[str]:
        # Its own session keeps Ctrl-C in the terminal from the worker: the pool passes signals on.
        return subprocess.Popen(
            [sys.executable, "-m", __package__, *args],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            encoding="utf-8",
            bufsize=1,
            env=self.environment,
            start_new_session=True,
        )

    def terminate(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Send a signal to the process if it runs."""
        process = self.process
        if process is not None and process.poll() is None:
            process.send_signal(number)

    def close(self) -> None:
        """Terminate the process, close its pipes and wait for its end."""
        if self.process is not None:
            self.terminate()
            with self.process:
                self.process = None


def _describe_exit(code: int) -> str:
    if code >= 0:
        return f"with exit code {code}"
    hint = ", possibly because memory ran out" if code == -signal.SIGKILL else ""
    return f"by signal {-code} ({signal.Signals(-code).name}){hint}"
