"""``tune``: search for better settings, in processes apart, until the budget is used up."""

import math
import signal
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import optuna
import torch
from optuna import Study, Trial
from optuna.trial import FrozenTrial, TrialState

from proj.engine import console, security
from proj.engine.runs.run import Run, lock_run
from proj.engine.tuning.plan import Plan, read_plan, threads
from proj.engine.tuning.results import Board, write_results
from proj.engine.tuning.sampler import place
from proj.engine.tuning.space import flags, suggest
from proj.engine.tuning.study import left, make_again, open_study, trials
from proj.engine.tuning.worker import Job
from proj.engine.tuning.workers import Failed, Interrupted, Pool
from proj.errors import TrainingError, UserError


def tune(args: list[str]) -> None:
    """Search for better settings."""
    plan = read_plan(args)
    plan.folder.mkdir(parents=True, exist_ok=True)
    with nullcontext() if plan.storage else lock_run(Run(plan.folder)):
        search = Search(plan, open_study(plan))
        with search.signals(), search.board.shown():
            search.go_on()
        write_results(search.study, plan)
    if search.signal:
        console.say(f"stopped; the same command goes on: {plan.folder}")
        raise SystemExit(128 + search.signal)
    if not any(trial.state == TrialState.COMPLETE for trial in trials(search.study).values()):
        reasons = [trial.user_attrs.get("reason", "") for trial in trials(search.study).values()]
        raise TrainingError(
            f"no trial of {plan.folder} came to an end: {reasons[-1] if reasons else 'none was started'}"
        )


class Search:
    """A study at work.

    Attributes:
        signal: the one that has stopped it, or 0.
    """

    def __init__(self, plan: Plan, study: Study) -> None:
        self.plan, self.study, self.signal = plan, study, 0
        self.pool = Pool(plan.workers, plan.apart, threads(plan.workers), torch.cuda.device_count())
        self.board = Board(study, plan)
        self.begun, self.worked = time.monotonic(), float(study.user_attrs.get("seconds", 0.0))

    def go_on(self) -> None:
        """Make trials until the budget of the whole study is used up."""
        try:
            while not self.signal and (wanted := self._wanted()) != 0:
                if wanted is None or wanted > 0:
                    timeout = (
                        None if self.plan.minutes is None else 60 * self.plan.minutes - self.worked
                    )
                    self.study.optimize(
                        self.objective,
                        n_trials=wanted,
                        timeout=timeout,
                        n_jobs=self.plan.workers,
                        catch=(Failed, Interrupted),
                        callbacks=[self._after],
                    )
                else:  # others, on other machines, are at the last ones, and may die
                    time.sleep(1)
                    optuna.storages.fail_stale_trials(self.study)
        finally:
            self.pool.close()
            for trial in trials(self.study).values():
                if (
                    trial.state == TrialState.FAIL
                    and trial.user_attrs.get("interrupted") == trial.number
                ):
                    make_again(self.study, trial)

    def _wanted(self) -> int | None:
        """How many trials to start now; -1 to wait for others'; None for as many as there is time for."""
        if self.plan.minutes is not None:
            return None if self.worked < 60 * self.plan.minutes else 0
        wanted = left(self.study, self.plan)
        running = self.plan.storage and self.study.get_trials(
            deepcopy=False, states=[TrialState.RUNNING]
        )
        return wanted or (-1 if running else 0)

    def objective(self, trial: Trial) -> float:
        """The mean of the metric over a trial's trainings."""
        here = place(self.study, self.study.get_trials(deepcopy=False)[trial.number])
        if self.plan.trials is not None and here >= self.plan.trials:
            trial.set_user_attr("reason", "the budget was used up on another machine meanwhile")
            raise Failed("beyond the budget")
        trial.set_user_attr("settings", values := suggest(trial, self.plan.space))
        alone, scores = len(self.plan.repeats) == 1, []
        for number, repeat in enumerate(self.plan.repeats):
            folder = self.plan.folder / f"trial_{here}{repeat.suffix}"
            job = Job(
                folder=str(folder),
                fit=[*self.plan.experiment, *flags(values), *repeat.flags],
                log=f"{folder}.txt",
                metric=self.plan.metric if alone else None,
                test=False,
                allow=security.allowed_packages,
            )
            judge = Judge(self.study, trial)
            metrics = self._done(job, judge, trial)
            if judge.pruned:
                raise optuna.TrialPruned
            if (score := metrics.get(self.plan.metric)) is None:
                raise UserError(
                    f"metric: the model logs no {self.plan.metric}; it logs {', '.join(metrics)}."
                )
            scores.append(score)
            if (
                not alone
                and judge(number, statistics.fmean(scores))
                and number + 1 < len(self.plan.repeats)
            ):
                raise optuna.TrialPruned
        if math.isnan(value := statistics.fmean(scores)):
            trial.set_user_attr("reason", f"{self.plan.metric} is not a number")
            raise Failed("not a number")
        return value

    def _done(self, job: Job, judge: "Judge", trial: Trial) -> dict[str, float]:
        try:
            return self.pool.run(job, judge)
        except Failed as failed:
            trial.set_user_attr("reason", str(failed))
            raise
        except Interrupted:
            trial.set_user_attr("interrupted", trial.number)
            raise

    def _after(self, study: Study, trial: FrozenTrial) -> None:
        now = time.monotonic()
        self.worked, self.begun = self.worked + now - self.begun, now
        study.set_user_attr("seconds", self.worked)
        self.board.tell(trial)
        if self.signal or left(study, self.plan) == 0:
            study.stop()

    @contextmanager
    def signals(self) -> Iterator[None]:
        """SIGINT and SIGTERM stop the trials, which are gone on with the next time; a second one kills them."""

        def stop(number: int, frame: Any) -> None:
            self.signal = number
            self.pool.stop()

        before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class Judge:
    """Takes the values of a trial as they come and says whether they are enough to give it up."""

    def __init__(self, study: Study, trial: Trial) -> None:
        self.study, self.trial, self.pruned = study, trial, False

    def __call__(self, step: int, value: float) -> bool:
        known = self.study.get_trials(deepcopy=False)[self.trial.number].intermediate_values
        if step not in known and not math.isnan(value):  # a trial that goes on tells some again
            self.trial.report(value, step)
        self.pruned = self.pruned or self.trial.should_prune()
        return self.pruned
