"""The study in its storage: opened, mended, and what its trials have come to."""

import contextlib
import json
import logging
import re
import time
import warnings
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna import Study
from optuna.exceptions import DuplicatedStudyError, ExperimentalWarning
from optuna.storages import (
    BaseStorage,
    JournalStorage,
    RDBStorage,
    RetryHeartbeatStaleTrialCallback,
)
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from proj.engine import console
from proj.engine.config.experiment import differences
from proj.engine.tuning.plan import Plan
from proj.engine.tuning.sampler import PlaceSampler, place
from proj.errors import UserError

HEARTBEAT = (
    5  # seconds; a `tune` on another machine that has not been heard of for four of them is dead
)

warnings.simplefilter("ignore", ExperimentalWarning)
make_again = RetryHeartbeatStaleTrialCallback(inherit_intermediate_values=True)


def _is_news(record: logging.LogRecord) -> bool:
    """Optuna tells of trials that fail with a traceback of our own code; the board tells of them with the reason."""
    return not re.match(r"Trial \d+ failed", record.getMessage())


def open_study(plan: Plan) -> Study:
    """The study of a plan, new or as it was left. UserError where it is one of another experiment."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    for handler in logging.getLogger("optuna").handlers:
        handler.addFilter(_is_news)
    sampler, pruner = PlaceSampler(plan.make_sampler, plan.seed), plan.make_pruner()
    direction: Literal["minimize", "maximize"] = "minimize" if plan.mode == "min" else "maximize"
    storage = _storage(plan)
    try:
        study = optuna.create_study(
            storage=storage,
            study_name=plan.name,
            direction=direction,
            sampler=sampler,
            pruner=pruner,
        )
        study.set_user_attr("about", _about(plan))
    except DuplicatedStudyError:
        study = optuna.load_study(
            storage=storage, study_name=plan.name, sampler=sampler, pruner=pruner
        )
        for _ in range(50):  # until who made it has said what it is about
            if "about" in study.user_attrs:
                break
            time.sleep(0.1)
    about = study.user_attrs.get("about", {})
    if changes := differences(about, _about(plan)):
        raise UserError(
            f"the study {plan.name} in {plan.storage or plan.folder} is of another experiment or space: "
            f"{'; '.join(changes)[:500]}. Change it back, or name another folder with --output."
        )
    if plan.storage is None:  # we alone work on it, so nobody works on what it takes for running
        for trial in study.get_trials(deepcopy=False, states=[TrialState.RUNNING]):
            again(study, trial.number)
    return study


def _about(plan: Plan) -> dict[str, Any]:
    """What makes it this study, as plain values."""
    space = {
        parameter.key: [parameter.kind, parameter.values, parameter.when]
        for parameter in plan.space
    }
    about = {
        "experiment": plan.resolved,
        "metric": plan.metric,
        "mode": plan.mode,
        "seed": plan.seed,
        "space": space,
        "sampler": plan.sampler,
        "pruner": plan.pruner,
        "repeats": [of.suffix for of in plan.repeats],
    }
    plain: dict[str, Any] = json.loads(json.dumps(about))
    return plain


def _storage(plan: Plan) -> BaseStorage:
    if plan.storage is None:
        journal = plan.folder / "study.journal"
        plan.folder.mkdir(parents=True, exist_ok=True)
        for lock in plan.folder.glob(f"{journal.name}.lock*"):  # of a process that was killed
            lock.unlink()
        mend(journal)
        return JournalStorage(JournalFileBackend(str(journal)))
    try:
        return RDBStorage(
            plan.storage,
            heartbeat_interval=HEARTBEAT,
            grace_period=4 * HEARTBEAT,
            heartbeat_stale_trial_callback=make_again,
        )
    except ImportError as error:
        raise UserError(
            f"--storage: {plan.storage.partition(':')[0]} needs a package that is not there: {error}."
        ) from error
    except Exception as error:  # of SQLAlchemy or of the database's driver, of many kinds
        said = " ".join(str(error).split())[:300]
        raise UserError(
            f"--storage: expected a database that can be reached, got {type(error).__name__}: {said}."
        ) from error


def mend(journal: Path) -> None:
    """Cut off a last record that a killed process has left half written: Optuna would append to it and read neither."""
    if not journal.exists():
        return
    content = journal.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    with contextlib.suppress(ValueError):
        last = whole[whole.rfind(b"\n", 0, -1) + 1 :]
        json.loads(last or b"{}")
        last = b""
    if last:  # ends as a line should and is none
        whole = whole[: -len(last)]
    if len(whole) < len(content):
        console.warn(
            f"{journal}: a record that was cut off is left out ({len(content) - len(whole)} bytes)."
        )
        with journal.open("rb+") as file:
            file.truncate(len(whole))


def again(study: Study, number: int) -> None:
    """Give a trial up, and have another one made of it that goes on in its folder."""
    study.tell(number, state=TrialState.FAIL)
    make_again(study, study.get_trials(deepcopy=True)[number])


def trials(study: Study) -> dict[int, FrozenTrial]:
    """The trials by their places: of those that were made again, the last."""
    return dict(sorted((place(study, trial), trial) for trial in study.get_trials(deepcopy=False)))


def left(study: Study, plan: Plan) -> int | None:
    """Trials still to be started; None where the budget is a time."""
    if plan.trials is None:
        return None
    every = study.get_trials(deepcopy=False)
    started = sum(
        RetryHeartbeatStaleTrialCallback.retried_trial_number(trial) is None for trial in every
    )
    return max(0, plan.trials - started) + sum(trial.state == TrialState.WAITING for trial in every)
