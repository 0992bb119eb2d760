"""Optuna study with deterministic sampling, so that interruptions do not change its result.

A trial that dies is retried as a new trial of Optuna's. Its index stays the same, and so do its
folder and its proposed parameters.
"""

import hashlib
import json
import logging
import re
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna import Study, Trial
from optuna.distributions import BaseDistribution
from optuna.exceptions import DuplicatedStudyError, ExperimentalWarning
from optuna.samplers import BaseSampler, GridSampler, QMCSampler
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages import RetryHeartbeatStaleTrialCallback as RetryStaleTrial
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from proj.engine import console
from proj.engine.config.experiment import differences
from proj.engine.tuning.plan import StudyPlan
from proj.engine.tuning.space import suggest
from proj.engine.write_paths import check_appended
from proj.errors import UserError

# A `tune` on another machine counts as dead after four missed heartbeats.
HEARTBEAT_SECONDS = 5
GRACE_SECONDS = 4 * HEARTBEAT_SECONDS

# Some samplers propose the first trial at random.
REHEARSED_TRIALS = 3
# What Optuna raises if a sampler or pruner does not fit the space, or lacks a package.
SAMPLER_ERRORS = (TypeError, ValueError, LookupError, ImportError, NotImplementedError)

warnings.simplefilter("ignore", ExperimentalWarning)
# Add a waiting trial with the parameters and the intermediate values of a trial that has failed.
enqueue_retry = RetryStaleTrial(inherit_intermediate_values=True)


def trial_index(study: Study, trial: FrozenTrial) -> int:
    """Return the number that the trial would have if no trial had ever been retried."""
    original = RetryStaleTrial.retried_trial_number(trial)
    number = trial.number if original is None else original
    retries = sum(
        other.number < number and RetryStaleTrial.retried_trial_number(other) is not None
        for other in study.get_trials(deepcopy=False)
    )
    return number - retries


def trials_by_index(study: Study) -> dict[int, FrozenTrial]:
    """Return the trials by index. A retried trial is represented by its latest attempt."""
    trials = study.get_trials(deepcopy=False)
    return dict(sorted((trial_index(study, trial), trial) for trial in trials))


def remaining_trials(study: Study, n_trials: int | None) -> int | None:
    """Return the number of trials still to start; None if the budget is a time."""
    if n_trials is None:
        return None
    trials = study.get_trials(deepcopy=False)
    started = sum(RetryStaleTrial.retried_trial_number(trial) is None for trial in trials)
    waiting = sum(trial.state == TrialState.WAITING for trial in trials)
    return max(0, n_trials - started) + waiting


def retry_trial(study: Study, number: int) -> None:
    """Fail a running trial and enqueue its retry, which continues in the same folder."""
    study.tell(number, state=TrialState.FAIL)
    enqueue_retry(study, study.get_trials(deepcopy=True)[number])


def was_interrupted(trial: FrozenTrial) -> bool:
    """Return whether a signal interrupted this attempt at the trial."""
    return trial.user_attrs.get("interrupted") == trial.number


class DeterministicSampler(BaseSampler):
    """Sample each trial with a seed of its own, so that interruptions do not change the proposals.

    The parameters of a trial depend on the study's seed, the trial index and the trials that have
    ended, but not on the process that samples them or on the time.

    Args:
        make_sampler: builds the sampler of Optuna's from a seed.
        seed: seed of the study.
    """

    def __init__(self, make_sampler: Callable[[int], BaseSampler], seed: int) -> None:
        self.make_sampler, self.seed = make_sampler, seed
        # Samplers of the running trials, by trial number.
        self.samplers: dict[int, BaseSampler] = {}

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Convert the errors of a sampler that does not fit the space to a message."""
        try:
            yield
        except SAMPLER_ERRORS as error:
            if isinstance(error, UserError):
                raise
            name = type(self.make_sampler(self.seed)).__name__
            if isinstance(error, ImportError):
                raise UserError(
                    f"sampler: {name} needs a package that is not installed: {error}; install it, "
                    "or choose another sampler."
                ) from error
            raise UserError(
                f"sampler: expected one that fits the space, got {name}, which cannot propose "
                f"parameters: {' '.join(str(error).split())}; change the sampler or the space."
            ) from error

    def _sampler_of(self, study: Study, trial: FrozenTrial, parameter: str = "") -> BaseSampler:
        key = f"{self.seed} {trial_index(study, trial)} {parameter}"
        digest = hashlib.sha256(key.encode()).digest()
        sampler = self.make_sampler(int.from_bytes(digest[:4], "little"))
        if isinstance(sampler, GridSampler | QMCSampler):
            # These samplers use one sequence, which must be the same for all trials.
            return self.make_sampler(self.seed)
        return sampler

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        with self._explained():
            self.samplers[trial.number] = self._sampler_of(study, trial)
            self.samplers[trial.number].before_trial(study, trial)

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        with self._explained():
            return self.samplers[trial.number].infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        with self._explained():
            return self.samplers[trial.number].sample_relative(study, trial, search_space)

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        # A retried trial has some parameters already. A generator for each parameter keeps the
        # others independent of how many were sampled before.
        with self._explained():
            sampler = self._sampler_of(study, trial, param_name)
            return sampler.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(
        self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        if sampler := self.samplers.pop(trial.number, None):
            sampler.after_trial(study, trial, state, values)


def rehearse(plan: StudyPlan) -> None:
    """Run a few trials of the study in memory, without training.

    Raises:
        UserError: the sampler or the pruner needs a package that is not installed, or does not fit
            the space.
    """
    _silence_optuna()

    def objective(trial: Trial) -> float:
        suggest(trial, plan.space)
        trial.report(float(trial.number), step=0)
        trial.should_prune()
        return float(trial.number)

    sampler = DeterministicSampler(plan.make_sampler, plan.seed)
    study = optuna.create_study(sampler=sampler, pruner=plan.make_pruner())
    try:
        study.optimize(objective, n_trials=REHEARSED_TRIALS)
    except SAMPLER_ERRORS as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"pruner: expected one that can run, got an error: {' '.join(str(error).split())}; "
            "change its options."
        ) from error


def open_study(plan: StudyPlan) -> Study:
    """Create or load the study of a plan.

    Raises:
        UserError: the study has another experiment or space, or its storage cannot be opened.
    """
    _silence_optuna()
    sampler, pruner = DeterministicSampler(plan.make_sampler, plan.seed), plan.make_pruner()
    direction: Literal["minimize", "maximize"] = "minimize" if plan.mode == "min" else "maximize"
    storage = _open_storage(plan)
    try:
        study = optuna.create_study(
            storage=storage,
            study_name=plan.name,
            direction=direction,
            sampler=sampler,
            pruner=pruner,
        )
        study.set_user_attr("about", _description(plan))
    except DuplicatedStudyError:
        study = optuna.load_study(
            storage=storage, study_name=plan.name, sampler=sampler, pruner=pruner
        )
        _wait_for_description(study)
    _check_description(study, plan)
    if plan.storage is None:
        # The lock on the folder excludes other processes, so these trials were interrupted.
        for trial in study.get_trials(deepcopy=False, states=[TrialState.RUNNING]):
            retry_trial(study, trial.number)
    return study


def _silence_optuna() -> None:
    """Hide Optuna's messages and its tracebacks of failed trials: ``tune`` gives the reason."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    for handler in logging.getLogger("optuna").handlers:
        handler.addFilter(_is_no_failed_trial)


def _is_no_failed_trial(record: logging.LogRecord) -> bool:
    return not re.match(r"Trial \d+ failed", record.getMessage())


def _description(plan: StudyPlan) -> dict[str, Any]:
    """Return what must stay the same when a study continues, as plain values."""
    space = {
        parameter.key: [parameter.kind, parameter.values, parameter.when]
        for parameter in plan.space
    }
    description = {
        "experiment": plan.experiment,
        "metric": plan.metric,
        "mode": plan.mode,
        "seed": plan.seed,
        "space": space,
        "sampler": plan.sampler,
        "pruner": plan.pruner,
        "repeats": [repeat.suffix for repeat in plan.repeats],
    }
    plain: dict[str, Any] = json.loads(json.dumps(description))
    return plain


def _wait_for_description(study: Study) -> None:
    """Wait up to 5 s for the process that has just created the study to describe it."""
    for _ in range(50):
        if "about" in study.user_attrs:
            return
        time.sleep(0.1)


def _check_description(study: Study, plan: StudyPlan) -> None:
    changes = differences(study.user_attrs.get("about", {}), _description(plan))
    if not changes:
        return
    remedy = "rename the study file" if plan.storage else "choose another folder with --output"
    raise UserError(
        f"{plan.storage or plan.folder}: expected the experiment and space with which the study "
        f"{plan.name} began, got another experiment or space: {'; '.join(changes)[:500]}; undo the "
        f"changes, or {remedy}."
    )


def _open_storage(plan: StudyPlan) -> BaseStorage:
    if plan.storage is None:
        return _open_journal(plan.folder)
    try:
        return RDBStorage(
            plan.storage,
            heartbeat_interval=HEARTBEAT_SECONDS,
            grace_period=GRACE_SECONDS,
            heartbeat_stale_trial_callback=enqueue_retry,
        )
    except ImportError as error:
        scheme = plan.storage.partition(":")[0]
        raise UserError(
            f"--storage: {scheme} needs a package that is not installed: {error}; install it."
        ) from error
    except Exception as error:  # SQLAlchemy and the database drivers raise errors of many types.
        message = " ".join(str(error).split())[:300]
        raise UserError(
            f"--storage: expected a database that can be reached, got {type(error).__name__}: "
            f"{message}; check the URL and the server."
        ) from error


def _open_journal(folder: Path) -> JournalStorage:
    """Open the journal of a study; the caller holds the lock on its folder.

    Raises UserError if the journal is damaged.
    """
    journal = folder / "study.journal"
    folder.mkdir(parents=True, exist_ok=True)
    # A lock of Optuna's can only be left by a process that was killed.
    for lock in folder.glob(f"{journal.name}.lock*"):
        lock.unlink()
    check_appended(journal)
    truncate_torn_record(journal)
    try:
        return JournalStorage(JournalFileBackend(str(journal)))
    except Exception as error:  # Optuna raises many kinds for a damaged journal.
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(
            f"{journal} is damaged: {reason}; restore it, or choose another folder with --output."
        ) from error


def truncate_torn_record(journal: Path) -> None:
    """Remove the last record if a killed process wrote only a part of it.

    Optuna would append the next record to it, and then could read neither.
    """
    if not journal.exists():
        return
    content = journal.read_bytes()
    complete = content[: content.rfind(b"\n") + 1]
    last_record = complete[complete.rfind(b"\n", 0, -1) + 1 :]
    try:
        json.loads(last_record or b"{}")
    except ValueError:
        complete = complete[: -len(last_record)]
    torn_bytes = len(content) - len(complete)
    if torn_bytes:
        console.warn(
            f"{journal}: removed an incomplete last record ({console.plural(torn_bytes, 'byte')})."
        )
        with journal.open("rb+") as file:
            file.truncate(len(complete))
