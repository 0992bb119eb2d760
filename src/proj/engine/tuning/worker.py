"""A process that trains one job after another, so that imports are paid once: ``python -m proj.tune.worker``.

A job is a line of JSON on its input: arguments of ``fit``, the run's folder, and what else is to be done. On its output go
the values of a metric after each validation, each answered by whether to stop, and what has come of the job. What training
prints goes into the job's log. With a job as its argument it does that one alone: under DDP, Lightning starts all further
processes with the same arguments.
"""

import json
import os
import queue
import shutil
import signal
import sys
import threading
import time
import traceback
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TypedDict

from lightning.pytorch import Callback, LightningModule, Trainer

from proj.engine import security
from proj.engine.cli import exit_code
from proj.engine.commands.fit import fit
from proj.engine.commands.test import test
from proj.engine.config.experiment import first_process
from proj.engine.runs import checkpoint_file
from proj.engine.runs.run import LAST, PREVIOUS, Run, lock_run, read_checkpoint
from proj.errors import TrainingError, UserError

QUIET = ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]


class Job(TypedDict):
    folder: str  # of the run
    fit: list[str]
    log: str
    metric: str | None  # to report after each validation
    test: bool
    allow: list[str]  # packages


class Channel:
    """Lines of JSON, to and from the process that started this one. When that is gone, training saves and stops."""

    def __init__(self) -> None:
        self.out = os.fdopen(os.dup(1), "w", buffering=1)
        self.lines: queue.Queue[Any] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        for line in sys.stdin:
            self.lines.put(json.loads(line))
        self.lines.put(None)
        os.kill(os.getpid(), signal.SIGTERM)

    def send(self, **message: Any) -> None:
        self.out.write(json.dumps(message) + "\n")


class Report(Callback):
    """Tells a metric after the first validation of each epoch, and stops training where the answer is to."""

    def __init__(self, metric: str, channel: Channel | None) -> None:
        self.metric, self.channel, self.epoch = metric, channel, -1

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch == self.epoch or self.metric not in trainer.callback_metrics:
            return
        self.epoch, stop = trainer.current_epoch, False
        if self.channel is not None:
            self.channel.send(step=self.epoch, value=trainer.callback_metrics[self.metric].item())
            stop = bool(self.channel.lines.get())
        trainer.should_stop = trainer.should_stop or bool(trainer.strategy.broadcast(stop))


def work(job: Job, channel: Channel | None) -> None:
    """Train into the job's folder, or go on there where a worker died; a run that is complete is left as it is."""
    folder = Path(job["folder"])
    callbacks = [Report(job["metric"], channel)] if job["metric"] else []
    _wait_for(folder)
    go_on = any(
        (path := folder / "checkpoints" / name).is_file() and checkpoint_file.is_whole(path)
        for name in (LAST, PREVIOUS)
    )
    if not go_on and folder.exists() and first_process():
        shutil.rmtree(folder)
    if not (go_on and Run(folder).manifest["status"] == "finished"):
        fit(
            ["--resume", str(folder), *QUIET] if go_on else [*job["fit"], *QUIET], folder, callbacks
        )
    if job["test"] and not (folder / "test" / "metrics.json").exists():
        test(["--run", str(folder), *QUIET])


def _wait_for(folder: Path) -> None:
    """Until nobody trains there any more: a worker whose `tune` was killed saves before it ends."""
    for _ in range(600):
        try:
            with lock_run(Run(folder)) if folder.exists() and first_process() else nullcontext():
                return
        except UserError:
            time.sleep(0.1)


def done(job: Job, channel: Channel | None) -> dict[str, Any]:
    """Do a job; its exit code, and the metrics of its best epoch or why there are none."""
    Path(job["log"]).parent.mkdir(parents=True, exist_ok=True)
    log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(log, stream)
    os.close(log)
    for package in job["allow"]:
        security.allow_package(package)
    reason = ""

    def call() -> None:
        nonlocal reason
        try:
            work(job, channel)
        except (UserError, TrainingError) as error:
            reason = str(error)
            raise

    try:
        if code := exit_code(call):
            return {"code": code, "reason": reason}
        callbacks = read_checkpoint(Path(job["folder"]) / "checkpoints" / LAST)[
            "callbacks"
        ].values()
        return {
            "code": 0,
            "metrics": next(
                state["best_metrics"] for state in callbacks if "best_metrics" in state
            ),
        }
    except Exception as error:  # it ends this trial alone
        traceback.print_exc()
        return {"code": 1, "reason": f"{type(error).__name__}: {error}"}
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def main() -> None:
    channel = Channel() if first_process() else None
    if len(sys.argv) > 1:
        outcome = done(json.loads(sys.argv[1]), channel)
        if channel is not None:
            channel.send(**outcome)
        sys.exit(outcome["code"])
    assert channel is not None
    while (job := channel.lines.get()) is not None:
        channel.send(**done(job, channel))


if __name__ == "__main__":
    main()
