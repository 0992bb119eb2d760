"""Loggers of the verbs that evaluate: those that the user names, and the run's own in `test`."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger

from proj.engine import PACKAGE, console
from proj.engine.callbacks.loggers import finish, log_files
from proj.engine.callbacks.monitoring import RunLogger
from proj.engine.config.experiment import ExperimentCLI, first_process
from proj.engine.config.loggers import build_loggers, class_name, named_loggers, unusable
from proj.engine.evaluation.scoring import Metrics
from proj.engine.runs.run import Run
from proj.engine.write_paths import check_paths
from proj.errors import UserError


def evaluation_loggers(cli: ExperimentCLI, run: Run) -> list[Logger]:
    """Return the loggers of a verb that evaluates a run.

    A module of the user's may log to TensorBoard itself, so it finds the run's own logger, too.

    Raises:
        UserError: a logger that the user names writes elsewhere, or cannot be built.
    """
    loggers = _named_or_recorded(cli, run)
    is_users = not type(cli.model).__module__.startswith(f"{PACKAGE}.")
    if is_users and any(run.path.glob("events.out.tfevents.*")):
        loggers.append(RunLogger(run.path, evaluating=True))
    return loggers


def _named_or_recorded(cli: ExperimentCLI, run: Run) -> list[Logger]:
    """Return the loggers that the user names, or those that the run has recorded.

    A logger that the run has recorded goes on with the run of its service. It is left out, with a
    line, where it may not be used without being named.
    """
    value, name = cli.config.trainer.logger, run.path.name
    trainer = {"logger": cli.experiment["trainer"].get("logger")}
    recorded = _as_list(run.config["trainer"].get("logger"))
    # Of several loggers of one class, the manifest has one identity.
    ids = run.manifest.get("loggers", {})
    ids = ids if all(spec in recorded for spec in _as_list(trainer["logger"])) else {}
    is_named = any(word.startswith("--trainer.logger") for word in cli.flags)
    if is_named or trainer["logger"] != run.config["trainer"].get("logger"):
        check_paths({"trainer": trainer}, cli.flags)
        return build_loggers(value, name, ids)
    loggers: list[Logger] = []
    for spec in named_loggers(value) if cli.verb == "test" else ():
        reason = unusable(spec)
        if reason is None:
            try:
                loggers += build_loggers(spec, name, ids)
            except UserError as error:
                reason = str(error).rstrip(".")
        if reason is not None and first_process():
            console.say(
                f"{class_name(spec)} is not used, because {reason}; name it with --trainer.logger "
                "to use it."
            )
    return loggers


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def log_results(loggers: Iterable[Logger], run: Run, checkpoint: Path, metrics: Metrics) -> None:
    """Give the results of `test` to loggers that have logged the metrics.

    They get the limits of the intervals, and the report, the metrics and the checkpoint as files.
    """
    loggers = [logger for logger in loggers if not isinstance(logger, RunLogger)]
    limits = {
        f"test/{name}_{side}": entry[side]
        for name, entry in metrics.items()
        for side in ("low", "high")
        if entry.get(side) is not None
    }
    for logger in loggers if limits else ():
        logger.log_metrics(limits, 0)
        logger.save()
    files = [run.path / "report.html", run.path / "test/metrics.json", checkpoint]
    log_files(loggers, files, run.path.name)
    finish(loggers)
