"""Run the trials of a study in the jobs of SLURM arrays, submitted with the package submitit.

Each job is a ``tune`` with one local worker that takes trials from the study's database until the
budget is used up or SLURM's time limit comes. A minute before the limit SLURM sends SIGTERM; the
trial then saves a checkpoint, and a job of the next array continues it.
"""

import argparse
import io
import os
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any, NamedTuple

from proj.engine import PACKAGE, security
from proj.engine.cli import main
from proj.engine.secrets import printable
from proj.errors import UserError

POLL_SECONDS = 2.0
# Options of sbatch. By default submitit requests a signal that would end the worker process.
DEFAULTS = {"signal": "TERM@60"}

FIXED = {"array", "nodes", "ntasks", "ntasks-per-node", "output", "error", "open-mode"}


class Outcome(NamedTuple):
    """The end of a job.

    Attributes:
        code: exit code of ``tune`` in the job; None if the job ended without one.
        reason: what the job printed last, with the file of its output.
    """

    code: int | None
    reason: str


def read_launcher(options: argparse.Namespace) -> dict[str, Any] | None:
    """Return the options of ``sbatch`` in ``--launcher``; None for local processes."""
    kind, *words = options.launcher
    if kind not in ("local", "submitit") or (kind == "local" and words):
        raise UserError(
            "--launcher: expected local, or submitit with options of sbatch, got "
            f"{' '.join(options.launcher)}."
        )
    if kind == "local":
        return None
    if options.storage is None or options.storage.startswith("sqlite"):
        raise UserError(
            "--launcher: expected --storage with a database that all nodes reach "
            "(postgresql://…), because the jobs share the study, got "
            f"{'none' if options.storage is None else 'a SQLite file'}; add it."
        )
    if options.within:
        raise UserError(
            "--launcher: expected no --within, because jobs may wait in the queue for longer; give "
            "trials or minutes in the study file."
        )
    sbatch: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.removeprefix("--").partition("=")
        sbatch[key.replace("_", "-")] = value if equals else True
    if fixed := sbatch.keys() & FIXED:
        raise UserError(
            f"--launcher: expected no {min(fixed)}, because each job is one process on one node, "
            "and --workers is the number of jobs; leave it out."
        )
    if not isinstance(sbatch.get("time"), str):
        raise UserError(
            "--launcher: expected time=HH:MM:SS, the limit of each job, got none; add it, a trial "
            "that takes longer continues in another job."
        )
    return sbatch


def work(words: list[str]) -> int:
    """Run ``tune`` in a job and return its exit code."""
    # submitit ignores this signal. From its start on, ``tune`` handles it.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.environ.setdefault("OMP_NUM_THREADS", os.environ.get("SLURM_CPUS_PER_TASK", "1"))
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        # Lightning would expect that srun had started one process for each device of a trial.
        del os.environ[name]
    return main(["tune", *words])


class SlurmArray:
    """Arrays of jobs for one study, with the attributes of a ``Pool``.

    Args:
        name: name of the jobs.
        folder: folder of the jobs' scripts and output.
        workers: number of jobs at the same time.
        options: options of ``sbatch``.
        args: arguments of ``tune``.

    Attributes:
        signal: number of the signal that stopped the jobs, or 0.

    Raises:
        UserError: submitit or SLURM is not installed.
    """

    def __init__(
        self, name: str, folder: Path, workers: int, options: dict[str, Any], args: list[str]
    ) -> None:
        allowed = [word for package in security.allowed_packages for word in ("--allow", package)]
        self.words = [*args, *allowed, "--launcher", "local", "--workers", "1"]
        self.folder, self.signal, self.jobs = folder, 0, list[Any]()
        # The arguments, which submitit writes there, may hold the password of the database.
        folder.mkdir(mode=0o700, exist_ok=True)
        self.executor = _executor(folder)
        self.executor.update_parameters(
            job_name=f"{PACKAGE}-{name}",
            array_parallelism=workers,
            additional_parameters={**DEFAULTS, **options},
        )

    def run(self, count: int, poll: Callable[[], None]) -> list[Outcome]:
        """Submit an array of ``count`` jobs, wait until all have ended, and return their ends.

        ``poll`` is called every two seconds. Raises UserError if SLURM refuses the jobs.
        """
        try:
            with redirect_stderr(io.StringIO()):  # submitit also prints what its errors hold.
                self.jobs = self.executor.map_array(work, [self.words] * count)
        except Exception as error:  # submitit passes on what sbatch prints, as errors of its own.
            lines = str(error).split("sbatch: error: ", 1)[-1].splitlines() or [""]
            raise UserError(
                "--launcher: expected options that sbatch accepts, got an error: "
                f"{printable(lines[0])}."
            ) from error
        if self.signal:  # It came while the jobs were submitted.
            self._cancel(["--signal=TERM"])
        while self._are_queued():
            poll()
            time.sleep(POLL_SECONDS)
        poll()
        return [_outcome(job) for job in self.jobs]

    def stop(self, number: int) -> None:
        """Stop the jobs on a signal: the first saves and stops them, the second kills them."""
        again, self.signal = bool(self.signal), number
        self._cancel(["--signal=KILL", "--full"] if again else ["--signal=TERM"])

    def close(self) -> None:
        """Cancel the jobs that still run, after an error."""
        if not self.signal and self._are_queued():
            self._cancel()

    def _cancel(self, how: list[str] | None = None) -> None:
        ids = [str(job.job_id) for job in self.jobs]
        if not ids:
            return
        # A signal does not reach jobs that wait; those that run get it alone.
        commands = [["--state=PENDING", *ids], [*how, *ids]] if how else [ids]
        for options in commands:
            subprocess.run(["scancel", *options], capture_output=True)

    def _are_queued(self) -> bool:
        """Return whether a job waits or runs; also while SLURM does not answer."""
        if not self.jobs:
            return False
        command = ["squeue", "--me", "--array", "--noheader", "--format=%i"]
        queue = subprocess.run(command, capture_output=True, encoding="utf-8")
        ids = set(queue.stdout.split())
        return queue.returncode != 0 or any(job.job_id in ids for job in self.jobs)


def _executor(folder: Path) -> Any:
    try:
        import submitit  # an extra of its own
    except ImportError as error:
        raise UserError(
            "--launcher: the package submitit is not installed; install the extra slurm: python -m "
            "pip install --constraint constraints.txt --editable '.[slurm]'."
        ) from error
    try:
        return submitit.SlurmExecutor(folder)
    except RuntimeError as error:
        raise UserError(
            "--launcher: expected a machine with the commands of SLURM, got one without srun; run "
            "this on a login node."
        ) from error


def _outcome(job: Any) -> Outcome:
    """Return the end of a job whose result, if it has one, is in its file."""
    lines = [line for line in (job.stderr() or job.stdout() or "").splitlines() if line.strip()]
    last = printable(lines[-1].removeprefix("error: ")) if lines else "nothing was printed"
    code = None
    if job.paths.result_pickle.exists() and job.exception() is None:
        code = int(job.result())
    return Outcome(code, f"{last} ({job.paths.stderr})")
