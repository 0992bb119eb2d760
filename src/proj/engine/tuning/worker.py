"""Worker process that trains one job after another: ``python -m proj.engine.tuning``.

Reusing the process saves the imports. Each line of its input is a job as JSON. It writes lines of
JSON, too: the monitored metric after each validation, and the outcome of each job. The parent
process answers a metric with whether to stop. The output of training goes to the job's log file.

With a job as its argument the process runs that job and exits. Under DDP, Lightning starts the
further processes with the same arguments.
"""

import json
import math
import os
import queue
import shutil
import signal
import sys
import threading
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TypedDict

from lightning.pytorch import Callback, LightningModule, Trainer

from proj.engine import clock, security
from proj.engine.callbacks.deadline import StopAt
from proj.engine.callbacks.process_messages import from_first
from proj.engine.cli import replace_unprintable
from proj.engine.commands.fit import fit
from proj.engine.commands.test import test
from proj.engine.config.arguments import read_arguments
from proj.engine.config.experiment import ExperimentCLI, first_process
from proj.engine.config.placeholders import secret_flags
from proj.engine.exit_codes import exit_code
from proj.engine.runs import checkpoint_file
from proj.engine.runs.checkpoint_file import read_checkpoint
from proj.engine.runs.files import as_plain
from proj.engine.runs.locks import lock_run
from proj.engine.runs.run import LAST, PREVIOUS, Run
from proj.engine.secrets import hide, is_placeholder, printable, split_words
from proj.engine.terminal import escape_output, print_traceback
from proj.engine.write_paths import check_appended, texts
from proj.errors import TrainingError, UserError

QUIET = ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]
LOCK_TIMEOUT_SECONDS = 60


class Job(TypedDict):
    """One training run for a worker, as plain values.

    Attributes:
        folder: the run's folder.
        fit_args: arguments of ``fit``.
        log: file for everything that training prints.
        metric: metric to report after each validation; None: report nothing.
        test: whether to run ``test`` after training.
        end: time of ``time.monotonic`` at which training must be over; None: no limit.
        allow: packages that the experiment may import, as in ``--allow``.
    """

    folder: str
    fit_args: list[str]
    log: str
    metric: str | None
    test: bool
    end: float | None
    allow: list[str]


def make_job(
    folder: Path,
    fit_args: list[str],
    metric: str | None = None,
    test: bool = False,
    end: float | None = None,
) -> Job:
    """Return a job that logs beside the run's folder and may import this process's packages."""
    return Job(
        folder=str(folder),
        fit_args=fit_args,
        log=f"{folder}.txt",
        metric=metric,
        test=test,
        end=end,
        allow=security.allowed_packages,
    )


class Channel:
    """Lines of JSON from and to the parent process.

    When the parent process ends, training saves a checkpoint and stops.
    """

    def __init__(self) -> None:
        self.output = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
        self.messages: queue.Queue[Any] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        for line in sys.stdin:
            self.messages.put(json.loads(line))
        self.messages.put(None)
        os.kill(os.getpid(), signal.SIGTERM)

    def send(self, **message: Any) -> None:
        self.output.write(json.dumps(message, default=as_plain) + "\n")

    def receive(self) -> Any:
        """Return the next message; None after the parent process has ended."""
        return self.messages.get()


class MetricReporter(Callback):
    """Report a metric after the first validation of each epoch; stop training on request.

    Args:
        metric: name of the metric.
        channel: connection to the parent process; None in all processes but the first.
    """

    def __init__(self, metric: str, channel: Channel | None) -> None:
        self.metric, self.channel, self.epoch = metric, channel, -1

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch == self.epoch or self.metric not in trainer.callback_metrics:
            return
        self.epoch, stop = trainer.current_epoch, False
        if self.channel is not None:
            value = trainer.callback_metrics[self.metric].item()
            self.channel.send(epoch=self.epoch, value=value)
            stop = bool(self.channel.receive())
        trainer.should_stop = trainer.should_stop or from_first(trainer, stop) == [1]


def train(job: Job, channel: Channel | None) -> None:
    """Train the experiment of a job, and test the run if the job requests it.

    A run that was interrupted is resumed. A run that is finished stays as it is.
    """
    folder = Path(job["folder"])
    callbacks: list[Callback] = []
    if job["metric"]:
        callbacks.append(MetricReporter(job["metric"], channel))
    stop_at = StopAt(math.inf if job["end"] is None else job["end"])
    if job["end"] is not None:
        callbacks.append(stop_at)
    _wait_for_lock(folder)
    checkpoints = [folder / "checkpoints" / name for name in (LAST, PREVIOUS)]
    resumable = any(path.is_file() and checkpoint_file.is_whole(path) for path in checkpoints)
    if not resumable and folder.exists() and first_process():
        shutil.rmtree(folder)
    if not resumable:
        fit([*job["fit_args"], *QUIET], folder, callbacks)
    elif Run(folder).manifest["status"] != "finished":
        fit(["--resume", str(folder), *_secret_flags(job), *QUIET], folder, callbacks)
    if stop_at.stopped and first_process():
        Run(folder).write_manifest(out_of_time=True)
    if job["test"] and not _is_tested(folder):
        test(["--run", str(folder), *_secret_flags(job), *QUIET])


def _secret_flags(job: Job) -> list[str]:
    """Return the values that the run of a job has not recorded, as flags."""
    if not any(is_placeholder(text) for _, text in texts(Run(Path(job["folder"])).config)):
        return []
    arguments = read_arguments(job["fit_args"], "fit")
    cli = ExperimentCLI("fit", arguments.configs, arguments.flags, instantiate=False)
    return secret_flags(cli.secrets)


def _is_tested(folder: Path) -> bool:
    """Return whether ``test`` has written all its files: the report is the last one.

    Models of a user's own have no report. They are tested again if they have predictions.
    """
    needs_report = (folder / "test" / "predictions.parquet").exists()
    has_report = (folder / "report.html").exists()
    return (folder / "test" / "metrics.json").exists() and (has_report or not needs_report)


def _wait_for_lock(folder: Path) -> None:
    """Wait until no other process trains into the folder.

    A worker whose parent process was killed saves a checkpoint before it ends.
    """
    end = time.monotonic() + LOCK_TIMEOUT_SECONDS
    while time.monotonic() < end:
        try:
            with lock_run(Run(folder)) if folder.exists() and first_process() else nullcontext():
                return
        except UserError:
            time.sleep(0.1)


def execute(job: Job, channel: Channel | None) -> dict[str, Any]:
    """Run a job and return its outcome.

    Returns:
        ``code``, the exit code that the verb would have; with code 0 ``metrics``, the metrics of
        the best epoch, otherwise ``reason``, the error message.
    """
    clock.start()
    _redirect_output(Path(job["log"]))
    hide(split_words(job["fit_args"])[1])
    for package in job["allow"]:
        security.allow_package(package)
    reason = ""

    def call() -> None:
        nonlocal reason
        try:
            train(job, channel)
        except (UserError, TrainingError) as error:
            reason = printable(str(error))
            raise

    try:
        if code := exit_code(call):
            return {"code": code, "reason": reason}
        return {"code": 0, "metrics": best_metrics(Path(job["folder"]))}
    except Exception as error:
        # An error in user code ends this job only, and the log has the traceback.
        print_traceback(type(error), error, error.__traceback__)
        return {"code": 1, "reason": printable(f"{type(error).__name__}: {error}")}
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def best_metrics(folder: Path) -> dict[str, float]:
    """Return the metrics of a run's best epoch."""
    states = read_checkpoint(folder / "checkpoints" / LAST)["callbacks"].values()
    metrics: dict[str, float] = next(
        state["best_metrics"] for state in states if "best_metrics" in state
    )
    return metrics


def _redirect_output(log: Path) -> None:
    """Append everything that this process prints to the log."""
    log.parent.mkdir(parents=True, exist_ok=True)
    check_appended(log)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    os.close(descriptor)


def main() -> None:
    escape_output()
    replace_unprintable()
    channel = Channel() if first_process() else None
    if len(sys.argv) > 1:
        outcome = execute(json.loads(sys.argv[1]), channel)
        if channel is not None:
            channel.send(**outcome)
        sys.exit(outcome["code"])
    assert channel is not None
    while (job := channel.receive()) is not None:
        channel.send(**execute(job, channel))
