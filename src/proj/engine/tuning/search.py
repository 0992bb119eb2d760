"""Run the trials of a study in worker processes until its budget is used up."""

import math
import signal
import statistics
import time
from contextlib import nullcontext
from datetime import datetime
from pathlib import Path

import optuna
from optuna import Study, Trial
from optuna.trial import FrozenTrial, TrialState

from proj.engine import clock, console
from proj.engine.config.arguments import as_flags
from proj.engine.exit_codes import stop_signals
from proj.engine.runs.files import as_plain
from proj.engine.runs.locks import lock_run
from proj.engine.runs.run import Run
from proj.engine.tuning.plan import StudyPlan, read_plan
from proj.engine.tuning.pool import MAX_ATTEMPTS, JobFailed, JobInterrupted, Pool
from proj.engine.tuning.slurm_array import SlurmArray
from proj.engine.tuning.space import suggest
from proj.engine.tuning.study import (
    enqueue_retry,
    open_study,
    rehearse,
    remaining_trials,
    trial_index,
    trials_by_index,
    was_interrupted,
)
from proj.engine.tuning.study_report import StudyDisplay, write_results
from proj.engine.tuning.worker import Job, make_job
from proj.engine.write_paths import check_links
from proj.errors import TrainingError, UserError

# Seconds for the end of the command: the last validation of a trial, the table and the report.
END_SECONDS = 4.0
# A process enqueues a trial that it was stopped in within this time, or it has been killed.
ORPHANED_SECONDS = 10.0


def tune(args: list[str]) -> None:
    """Search for better hyperparameters."""
    plan = read_plan(args)
    rehearse(plan)
    plan.folder.mkdir(parents=True, exist_ok=True)
    check_links(plan.folder)
    with nullcontext() if plan.storage else lock_run(Run(plan.folder)):
        study = open_study(plan)
        pool = (
            Pool(plan.workers, plan.one_process_per_job)
            if plan.launcher is None
            else SlurmArray(plan.name, plan.folder / "slurm", plan.workers, plan.launcher, args)
        )
        search = Search(plan, study, pool)
        with stop_signals(pool.stop), search.display.live():
            search.run()
        write_results(study, plan)
        search.show_number()
    if pool.signal:
        console.say(f"stopped; run the same command again to continue: {plan.folder}")
        raise SystemExit(128 + pool.signal)
    trials = trials_by_index(study).values()
    if not any(trial.state == TrialState.COMPLETE for trial in trials):
        reasons = [trial.user_attrs.get("reason", "") for trial in trials]
        reason = reasons[-1] if reasons else "no trial was started"
        raise TrainingError(f"no trial of {plan.folder} was completed: {reason}")


class Search:
    """Run the trials of a study.

    Args:
        plan: what to search and how.
        study: the opened study.
        pool: the workers that train.
    """

    def __init__(self, plan: StudyPlan, study: Study, pool: Pool | SlurmArray) -> None:
        self.plan, self.study, self.pool = plan, study, pool
        # Numbers of the trials that a signal interrupted here, and that jobs of SLURM ended.
        self.interrupted: set[int] = set()
        self.failed_arrays = 0
        self.shown = {trial.number for trial in self._ended_trials()}
        self.display = StudyDisplay(study, plan)
        # Seconds of work on the study, including earlier commands, up to ``clock``.
        self.seconds = float(study.user_attrs.get("seconds", 0.0))
        self.clock = time.monotonic()
        self.end = math.inf
        if plan.within is not None:
            self.end = clock.began() + plan.within - END_SECONDS

    def run(self) -> None:
        """Run trials until the budget of the whole study is used up or a signal stops the pool."""
        try:
            while not self.pool.signal:
                n_trials = self._trials_to_start()
                if n_trials != 0:
                    self._optimize(n_trials)
                elif self._others_are_running():
                    # Other processes may die, and then this one takes over their trials.
                    time.sleep(1)
                    optuna.storages.fail_stale_trials(self.study)
                    self._retry_interrupted()
                else:
                    return
        finally:
            self.pool.close()
            self._retry_interrupted()

    def _trials_to_start(self) -> int | None:
        """Return how many trials to start; None for as many as there is time for."""
        if not self._another_fits():
            return 0
        if self.plan.minutes is None:
            return remaining_trials(self.study, self.plan.n_trials)
        return None if self.seconds < 60 * self.plan.minutes else 0

    def _another_fits(self) -> bool:
        """Return whether the shortest trial so far would end within the time of the command."""
        left = self.end - time.monotonic()
        complete = self.study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
        times = [trial.duration.total_seconds() for trial in complete if trial.duration is not None]
        return left > min(times, default=0.0)

    def show_number(self) -> None:
        """Print how many trials the time was enough for, if it has ended the command."""
        if self.plan.within is None or self._another_fits():
            return
        trials = self.study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
        stopped = sum("out_of_time" in trial.user_attrs for trial in trials)
        early = f", {stopped} stopped before the end" if stopped else ""
        within = clock.duration(self.plan.within)
        console.say(f"within {within}: {console.plural(len(trials), 'trial')} complete{early}.")

    def _others_are_running(self) -> bool:
        """Return whether others still work on trials of a counted budget, or were just stopped."""
        if self.plan.minutes is not None or self.plan.storage is None:
            return False
        running = self.study.get_trials(deepcopy=False, states=[TrialState.RUNNING])
        return bool(running or self._interrupted_trials())

    def _optimize(self, n_trials: int | None) -> None:
        if isinstance(self.pool, SlurmArray):
            self._run_jobs(self.pool, min(n_trials or self.plan.workers, self.plan.workers))
            return
        minutes = self.plan.minutes
        self.study.optimize(
            self.objective,
            n_trials=n_trials,
            timeout=None if minutes is None else 60 * minutes - self.seconds,
            n_jobs=self.plan.workers,
            catch=(JobFailed, JobInterrupted),
            callbacks=[self._after_trial],
        )

    def _run_jobs(self, array: SlurmArray, count: int) -> None:
        """Run trials in jobs until all jobs have ended; raise TrainingError if none ended well."""
        before = len(self._ended_trials())
        console.say(f"submitting {console.plural(count, 'job')}; their output: {array.folder}")
        outcomes = array.run(count, self._show_ended)
        self.seconds = float(self.study.user_attrs.get("seconds", 0.0))
        codes = {outcome.code for outcome in outcomes}
        if codes & {0, 128 + signal.SIGTERM} or len(self._ended_trials()) > before:
            self.failed_arrays = 0
            return
        # Jobs that SLURM kills have no exit code. They get as many attempts as killed workers.
        self.failed_arrays += 1
        if not array.signal and (codes != {None} or self.failed_arrays == MAX_ATTEMPTS):
            raise TrainingError(f"no job of {self.plan.folder} ended well: {outcomes[-1].reason}")

    def _ended_trials(self) -> list[FrozenTrial]:
        trials = self.study.get_trials(deepcopy=False)
        return [trial for trial in trials if trial.state.is_finished()]

    def _show_ended(self) -> None:
        for trial in self._ended_trials():
            if trial.number not in self.shown:
                self.shown.add(trial.number)
                self.display.trial_ended(trial)

    def _interrupted_trials(self) -> list[FrozenTrial]:
        """Return the trials that a signal interrupted and that are not enqueued again."""
        trials = trials_by_index(self.study).values()
        return [
            trial for trial in trials if trial.state == TrialState.FAIL and was_interrupted(trial)
        ]

    def _retry_interrupted(self) -> None:
        """Enqueue the trials that a signal interrupted.

        Other processes that share the study may have been stopped at the same moment. They enqueue
        their own trials, unless they were killed before that.
        """
        now = datetime.now()
        for trial in self._interrupted_trials():
            is_own = self.plan.storage is None or trial.number in self.interrupted
            ended = trial.datetime_complete or now
            if is_own or (now - ended).total_seconds() > ORPHANED_SECONDS:
                enqueue_retry(self.study, trial)

    def _after_trial(self, study: Study, trial: FrozenTrial) -> None:
        now = time.monotonic()
        self.seconds, self.clock = self.seconds + now - self.clock, now
        study.set_user_attr("seconds", self.seconds)
        self.display.trial_ended(trial)
        is_used_up = remaining_trials(study, self.plan.n_trials) == 0
        if self.pool.signal or is_used_up or not self._another_fits():
            study.stop()

    def objective(self, trial: Trial) -> float:
        """Return the mean of the metric over the repeats of a trial."""
        plan = self.plan
        index = trial_index(self.study, self.study.get_trials(deepcopy=False)[trial.number])
        if plan.n_trials is not None and index >= plan.n_trials:
            trial.set_user_attr("reason", "another machine used up the budget in the meantime")
            raise JobFailed("beyond the budget")
        # Samplers may propose scalars of NumPy, which JSON does not accept.
        settings = as_plain(suggest(trial, plan.space))
        trial.set_user_attr("settings", settings)
        has_repeats = len(plan.repeats) > 1
        scores: list[float] = []
        for number, repeat in enumerate(plan.repeats):
            job = make_job(
                plan.folder / f"trial_{index}{repeat.suffix}",
                [*plan.fit_args, *as_flags(settings), *repeat.flags],
                # With repeats, pruning compares the means over repeats instead of the epochs.
                metric=None if has_repeats else plan.metric,
                end=None if plan.within is None else self.end,
            )
            reporter = PruningReporter(self.study, trial)
            scores.append(self._score(job, trial, reporter))
            if has_repeats:
                reporter(number, statistics.fmean(scores))
            is_last = number + 1 == len(plan.repeats)
            if not is_last and time.monotonic() >= self.end:
                # The mean of some repeats is not comparable with that of all.
                raise optuna.TrialPruned
            if reporter.pruned and not (has_repeats and is_last):
                raise optuna.TrialPruned
        value = statistics.fmean(scores)
        if math.isnan(value):
            trial.set_user_attr("reason", f"{plan.metric} is not a number")
            raise JobFailed("not a number")
        return value

    def _score(self, job: Job, trial: Trial, reporter: "PruningReporter") -> float:
        """Run a job and return the metric of its best epoch."""
        assert isinstance(self.pool, Pool)
        try:
            metrics = self.pool.run(job, reporter)
        except JobFailed as failed:
            trial.set_user_attr("reason", str(failed))
            raise
        except JobInterrupted:
            # A retry inherits this value, so it must identify the interrupted attempt.
            trial.set_user_attr("interrupted", trial.number)
            self.interrupted.add(trial.number)
            raise
        timed = self.plan.within is not None
        if timed and Run(Path(job["folder"])).manifest.get("out_of_time"):
            trial.set_user_attr("out_of_time", True)
        if self.plan.metric not in metrics and not reporter.pruned:
            raise UserError(
                f"metric: expected a metric that the model logs ({', '.join(metrics)}), got "
                f"{self.plan.metric}; correct it in the study file."
            )
        return metrics.get(self.plan.metric, math.nan)


class PruningReporter:
    """Report the values of a trial to Optuna's pruner and return whether to stop the trial.

    Attributes:
        pruned: whether any answer was to stop.
    """

    def __init__(self, study: Study, trial: Trial) -> None:
        self.study, self.trial, self.pruned = study, trial, False

    def __call__(self, step: int, value: float) -> bool:
        known = self.study.get_trials(deepcopy=False)[self.trial.number].intermediate_values
        # A retried trial repeats the epochs after its last checkpoint.
        if step not in known and not math.isnan(value):
            self.trial.report(value, step)
        # Percentile pruners return numpy.bool, which JSON does not accept.
        self.pruned = self.pruned or bool(self.trial.should_prune())
        return self.pruned
