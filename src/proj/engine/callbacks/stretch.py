"""Learning-rate schedules that run faster or slower, so that they end with the time of a run."""

import math
from bisect import bisect_left
from dataclasses import dataclass, field
from typing import Any

from lightning.pytorch import Trainer

from proj.engine.lightning_internals import replace_scheduler

# Errors of sums that must not lose a step of a schedule.
ROUNDING = 1e-9


@dataclass
class StepPlan:
    """How many optimizer steps a run makes, and where each is in the experiment's schedule.

    Attributes:
        length: optimizer steps of the experiment's own schedule; infinite without a limit.
        epoch_steps: optimizer steps of an epoch; infinite if the data do not tell.
        steps: optimizer steps that the run makes; None before it is known.
        changes: ``(step, position, rate)``: after ``step`` steps the run was at ``position`` of the
            schedule, and from then on each step advances it by ``rate``.
    """

    length: float = math.inf
    epoch_steps: float = math.inf
    steps: int | None = None
    changes: list[tuple[int, float, float]] = field(default_factory=lambda: [(0, 0.0, 1.0)])

    def position(self, step: float) -> float:
        """Return the position in the schedule after ``step`` steps, up to its length.

        A change counts for later steps only, so that a repeated run finds the same positions.
        """
        index = max(0, bisect_left(self.changes, step, key=lambda change: change[0]) - 1)
        start, position, rate = self.changes[index]
        return min(position + (step - start) * rate, self.length)

    def change(self, step: int, steps: int) -> None:
        """Plan ``steps`` steps in all, of which ``step`` are made; the schedule ends with them."""
        self.steps, position = steps, self.position(step)
        if not math.isfinite(self.length) or steps <= step:
            return
        rate = (self.length - position) / (steps - step)
        if rate != self.changes[-1][2]:
            self.changes.append((step, position, rate))


class StretchedScheduler:
    """A scheduler whose steps follow a ``StepPlan``: each makes none, one or several of its own.

    It is at the position that the plan has, rounded down, so that no step of it is left out.

    Args:
        scheduler: the experiment's scheduler.
        plan: the plan of the run.
        frequency: optimizer steps, or epochs, between two steps of the scheduler.
        by_epoch: whether ``frequency`` counts epochs.
    """

    def __init__(self, scheduler: Any, plan: StepPlan, frequency: int, by_epoch: bool) -> None:
        self.scheduler, self.plan, self.calls = scheduler, plan, 0
        self.frequency, self.by_epoch = frequency, by_epoch
        self.optimizer = scheduler.optimizer
        # For functions that look for the base rates of all schedulers of a run.
        self._schedulers = [scheduler]

    def step(self, *args: Any) -> None:
        before = self._inner_steps()
        self.calls += 1
        for _ in range(self._inner_steps() - before):
            self.scheduler.step()

    def _inner_steps(self) -> int:
        unit = self.frequency * (self.plan.epoch_steps if self.by_epoch else 1)
        if not math.isfinite(unit):
            return self.calls
        return math.floor(self.plan.position(self.calls * unit) / unit + ROUNDING)

    def get_last_lr(self) -> list[Any]:
        rates: list[Any] = self.scheduler.get_last_lr()
        return rates

    def state_dict(self) -> dict[str, Any]:
        return {**self.scheduler.state_dict(), "calls": self.calls}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        state = dict(state)
        self.calls = state.pop("calls", state.get("last_epoch", 0))
        self.scheduler.load_state_dict(state)


def stretch_schedulers(trainer: Trainer, plan: StepPlan) -> None:
    """Let the schedulers of a run follow a plan, before their state is restored.

    Schedulers that read a metric, such as ``ReduceLROnPlateau``, stay as they are.
    """
    for config in trainer.lr_scheduler_configs:
        if not config.reduce_on_plateau:
            by_epoch = config.interval == "epoch"
            scheduler = StretchedScheduler(config.scheduler, plan, config.frequency, by_epoch)
            replace_scheduler(config, scheduler)
