"""What a study shows while it works, and what it leaves."""

import csv
import io
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from optuna import Study
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table

from proj.engine import PACKAGE, console
from proj.engine.config.arguments import read_arguments
from proj.engine.config.experiment import ExperimentCLI
from proj.engine.runs.run import atomic_write
from proj.engine.tuning.plan import Plan, threads
from proj.engine.tuning.space import flags
from proj.engine.tuning.study import trials
from proj.engine.tuning.study_page import study_page

SHOWN = 12  # trials in the table, the newest
NAMES = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
}


class Board:
    """The trials as a table that is drawn anew each second; without a terminal, a line for each that ends."""

    def __init__(self, study: Study, plan: Plan) -> None:
        self.study, self.plan, self.begun = study, plan, time.monotonic()
        self.ended = sum(trial.state.is_finished() for trial in trials(study).values())

    @contextmanager
    def shown(self) -> Iterator[None]:
        if not sys.stdout.isatty():
            yield
            return
        with Live(
            get_renderable=self.table,
            refresh_per_second=1,
            console=Console(markup=False, emoji=False),
        ):
            yield

    def table(self) -> Group:
        every, keys = trials(self.study), [parameter.key for parameter in self.plan.space]
        table = Table("trial", "state", self.plan.metric, *keys, title=self.plan.name)
        for here, trial in list(every.items())[-SHOWN:]:
            settings = trial.user_attrs.get("settings", {})
            table.add_row(
                str(here),
                NAMES[trial.state],
                _value(trial),
                *(_short(settings.get(key)) for key in keys),
            )
        states = Counter(NAMES[trial.state] for trial in every.values())
        counts = ", ".join(f"{number} {state}" for state, number in states.items())
        return Group(
            table, f"best so far: {_number(best(self.study))} · {counts}{self._time_left(every)}"
        )

    def _time_left(self, every: dict[int, FrozenTrial]) -> str:
        ended = sum(trial.state.is_finished() for trial in every.values())
        since, took = ended - self.ended, time.monotonic() - self.begun
        if self.plan.minutes is not None:
            left = self.plan.minutes - self.study.user_attrs.get("seconds", 0.0) / 60
        elif self.plan.trials is not None and since:
            left = (self.plan.trials - ended) * took / since / 60
        else:
            return ""
        return f" · about {max(0.0, left):.0f} min left"

    def tell(self, trial: FrozenTrial) -> None:
        if sys.stdout.isatty() or trial.user_attrs.get("interrupted") == trial.number:
            return
        here = next(
            here for here, other in trials(self.study).items() if other.number == trial.number
        )
        why = trial.user_attrs.get("reason", "")
        said = f"{self.plan.metric} {_value(trial)}" if trial.state != TrialState.FAIL else why
        console.say(f"trial {here} {NAMES[trial.state]}: {said} (best {_number(best(self.study))})")


def write_results(study: Study, plan: Plan) -> None:
    """``trials.csv``, ``best.yaml`` and ``report.html`` in the study's folder, and where they are, said."""
    every = trials(study)
    file = io.StringIO()
    table = csv.writer(file)
    keys = [parameter.key for parameter in plan.space]
    table.writerow(["trial", "state", plan.metric, *keys, "seconds", "reason"])
    for here, trial in every.items():
        settings, seconds = (
            trial.user_attrs.get("settings", {}),
            trial.duration.total_seconds() if trial.duration else None,
        )
        table.writerow(
            [
                here,
                NAMES[trial.state],
                trial.value,
                *(settings.get(key) for key in keys),
                seconds,
                trial.user_attrs.get("reason"),
            ]
        )
    atomic_write(plan.folder / "trials.csv", lambda stream: stream.write(file.getvalue().encode()))
    console.say(f"trials: {plan.folder / 'trials.csv'}")
    if (first := best(study)) is None:
        return
    here = next(here for here, trial in every.items() if trial.number == first.number)
    text = _experiment(plan, here, first)
    atomic_write(plan.folder / "best.yaml", lambda stream: stream.write(text.encode()))
    console.say(f"best: trial {here}, {plan.metric} {first.value:.4f}: {plan.folder / 'best.yaml'}")
    content = study_page(study, plan, every)
    atomic_write(plan.folder / "report.html", lambda stream: stream.write(content.encode()))
    console.say(f"page: {plan.folder / 'report.html'}")


def _experiment(plan: Plan, here: int, trial: FrozenTrial) -> str:
    """The experiment of a trial, and how to come to its very bits."""
    parsed = read_arguments([*plan.experiment, *flags(trial.user_attrs["settings"])], "fit")
    experiment = ExperimentCLI("fit", parsed.configs, parsed.flags, instantiate=False).as_yaml()
    return (
        f"# Trial {here} of {plan.folder}, {plan.metric} {trial.value!r}. To come to the same bits:\n"
        f"# OMP_NUM_THREADS={threads(plan.workers)} python -m {PACKAGE} fit --config {plan.folder / 'best.yaml'}\n"
        f"{experiment}"
    )


def best(study: Study) -> FrozenTrial | None:
    return (
        study.best_trial if study.get_trials(deepcopy=False, states=[TrialState.COMPLETE]) else None
    )


def _number(trial: FrozenTrial | None) -> str:
    return "none" if trial is None else f"{trial.value:.4f}"


def _value(trial: FrozenTrial) -> str:
    value = (
        trial.value
        if trial.value is not None
        else next(reversed(trial.intermediate_values.values()), None)
    )
    return "" if value is None else f"{value:.4f}"


def _short(value: Any) -> str:
    return "" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)
