"""End training, and its learning-rate schedule, within a given time."""

import math
import time
from typing import Any, NamedTuple

from lightning.pytorch import Callback, LightningModule, Trainer

from proj.data.base import DataModule
from proj.engine import clock, console
from proj.engine.callbacks.process_messages import from_first
from proj.engine.callbacks.stretch import StepPlan, stretch_schedulers
from proj.engine.lightning_internals import set_step_limit

# Seconds for the end of the command: checkpoint, result, loggers, the end of the process.
END_SECONDS = 2.5
# The plan ends before the time at which training is stopped: by this share of the time, and by
# these seconds at most. So steps that become slower at the end do not cut the schedule.
MARGIN_SHARE, MARGIN_SECONDS = 0.02, 2.0
# The first plan follows after this share of the time, and after these seconds at most.
FIRST_SHARE, FIRST_SECONDS = 0.02, 3.0
# A plan changes if its end is wrong by this share of the time left, and by half of the margin.
TOLERANCE = 0.03
# Seconds between two looks at the plan.
LOOK_SECONDS = 0.5
# Time of a row in validation, as a share of its time in training, before it is measured.
VALIDATION_SHARE = 0.35


class Speed:
    """Seconds of an optimizer step, as a mean in which earlier steps fade.

    Args:
        memory: seconds after which a step counts a third.
    """

    def __init__(self, memory: float) -> None:
        self.memory, self.seconds, self.steps = memory, 0.0, 0.0

    def add(self, seconds: float, steps: int) -> None:
        kept = math.exp(-seconds / self.memory)
        self.seconds, self.steps = self.seconds * kept + seconds, self.steps * kept + steps

    @property
    def step_seconds(self) -> float:
        return self.seconds / self.steps if self.steps else math.nan


class Rhythm(NamedTuple):
    """Times of a training.

    Attributes:
        step: seconds of an optimizer step.
        validation: seconds of a validation with all that follows it, such as a checkpoint.
        period: optimizer steps from one validation to the next one.
    """

    step: float
    validation: float
    period: float

    def steps_within(self, seconds: float, to_next: float) -> int:
        """Return how many steps fit into ``seconds``, with a validation after the last one.

        ``to_next`` steps follow until the next validation.
        """
        seconds -= self.validation
        if seconds < to_next * self.step:
            return max(0, math.floor(seconds / self.step))
        seconds -= to_next * self.step
        periods, rest = divmod(seconds, self.period * self.step + self.validation)
        # The rest must hold one more validation.
        steps = max(0.0, rest - self.validation) / self.step
        return math.floor(to_next + periods * self.period + steps)


class Deadline(Callback):
    """Plan the number of optimizer steps so that training ends in time, and stop it then.

    The plan follows the measured speed, and the learning-rate schedule follows the plan: it ends
    with the last step. ``trainer.max_epochs`` and ``max_steps`` stay limits. The plan is part of
    the checkpoint and of the manifest, and a repetition with it makes the same steps with the same
    rates.

    Args:
        seconds: time from the start of the command to its end.
        repeated: the plan of a run to repeat; the time does not matter then.
    """

    def __init__(self, seconds: float, repeated: dict[str, Any] | None = None) -> None:
        self.seconds, self.repeats = seconds, repeated is not None
        self.plan = StepPlan()
        self.end = clock.began() + seconds - END_SECONDS
        self.margin = min(MARGIN_SECONDS, MARGIN_SHARE * seconds)
        self.speed = Speed(max(3.0, min(30.0, seconds / 12)))
        self.validation_seconds: float | None = None
        self.step = self.period_start = 0
        # Times: the last end of a batch, the start of a validation, the last look at the plan.
        self.batch_end: float | None = None
        self.validation_start: float | None = None
        self.look = 0.0
        self.is_announced = self.stopped = False
        if repeated is not None:
            self._load_plan(repeated)

    # State

    def state_dict(self) -> dict[str, Any]:
        used = self.seconds - END_SECONDS - (self.end - time.monotonic())
        return {"used": used, **self.facts()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.end -= state_dict["used"]
        self._load_plan(state_dict)

    def _load_plan(self, facts: dict[str, Any]) -> None:
        self.plan.steps = facts["steps"]
        self.plan.changes = [(int(step), at, rate) for step, at, rate in facts["changes"]]

    def facts(self) -> dict[str, Any]:
        """Return the plan as plain values, for the manifest."""
        return {
            "seconds": self.seconds,
            "steps": self.plan.steps,
            "changes": [list(change) for change in self.plan.changes],
        }

    # Measuring

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        stretch_schedulers(trainer, self.plan)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.plan.epoch_steps, self.period = _epoch_steps(trainer), _period_steps(trainer)
        self.plan.length = _length(trainer, self.plan.epoch_steps)
        self.step = trainer.global_step
        if self.repeats:
            assert self.plan.steps is not None
            set_step_limit(trainer, self.plan.steps)
        elif trainer.global_step and trainer.is_global_zero:
            left = self.end - time.monotonic()
            console.say(
                f"within {clock.duration(self.seconds)}: {clock.duration(max(0, left))} are left."
            )

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.period_start = trainer.global_step

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self.validation_start is not None:
            now = time.monotonic()
            self.validation_seconds = now - self.validation_start
            self.validation_start, self.batch_end = None, now

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self.validation_start = time.monotonic()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.period_start = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now, step = time.monotonic(), trainer.global_step
        if self.repeats:
            if self.plan.steps is not None and step >= self.plan.steps:
                trainer.should_stop = True
            return
        # The first batch also allocates memory and may compile.
        if self.batch_end is not None:
            self.speed.add(now - self.batch_end, step - self.step)
        self.batch_end, self.step = now, step
        self._decide(trainer, now)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # There is no sense in an epoch that ends before it has begun.
        if not self.repeats and self.plan.steps is not None:
            (is_over,) = from_first(trainer, self._is_over(trainer, time.monotonic()))
            self._stop_if(trainer, bool(is_over))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Whatever has ended the training: a repetition ends there, too.
        self.plan.steps = trainer.global_step

    # Planning

    def _decide(self, trainer: Trainer, now: float) -> None:
        """Change the plan if the speed has changed, and stop if it is at its end."""
        needed = min(FIRST_SECONDS, FIRST_SHARE * self.seconds)
        is_due = self.speed.seconds >= needed and now - self.look >= LOOK_SECONDS
        steps = self._planned_steps(trainer, now) if is_due else self.plan.steps
        # The clock of process 0 decides for all processes.
        planned, is_over = from_first(
            trainer, -1 if steps is None else steps, self._is_over(trainer, now)
        )
        steps = None if planned < 0 else int(planned)
        if steps is not None and steps != self.plan.steps:
            self.plan.change(self.step, steps)
            if not self.is_announced and trainer.is_global_zero:
                self._announce(trainer)
            self.is_announced = True
        if self.plan.steps is not None:
            # An execution of several steps ends there, too.
            set_step_limit(trainer, self.plan.steps)
        self._stop_if(trainer, bool(is_over))

    def _planned_steps(self, trainer: Trainer, now: float) -> int | None:
        """Return the steps that fit, or the steps of the plan if they are nearly the same."""
        self.look, left, rhythm = now, self.end - now, self._rhythm(trainer)
        left -= self.margin
        to_next = max(0.0, self.period_start + rhythm.period - self.step)
        steps = self.step + rhythm.steps_within(left, to_next)
        steps = int(min(steps, self.plan.length))
        if self.plan.steps is None:
            return steps
        difference = abs(steps - self.plan.steps) * rhythm.step
        allowed = max(self.margin / 2, TOLERANCE * left)
        return steps if difference > allowed else self.plan.steps

    def _rhythm(self, trainer: Trainer) -> Rhythm:
        step, validation = self.speed.step_seconds, self.validation_seconds
        if validation is None:
            # Not measured yet; the largest part of it is the work for each row.
            validation = VALIDATION_SHARE * _rows_ratio(trainer) * step
        return Rhythm(step, validation, self.period)

    def _is_over(self, trainer: Trainer, now: float) -> bool:
        """Return whether a validation that starts now ends too late."""
        validation = self._rhythm(trainer).validation if self.speed.steps else 0.0
        return now + validation >= self.end

    def _stop_if(self, trainer: Trainer, is_over: bool) -> None:
        """Stop if the time is over, or all steps of the plan are made."""
        is_done = self.plan.steps is not None and trainer.global_step >= self.plan.steps
        # With fewer steps than the limits of the Trainer allow, the plan is what ends the training.
        if (is_over or is_done) and trainer.global_step < self.plan.length:
            self.stopped = trainer.should_stop = True

    # Reporting

    def _announce(self, trainer: Trainer) -> None:
        assert self.plan.steps is not None
        rhythm, within = self._rhythm(trainer), clock.duration(self.seconds)
        epoch_steps = self.plan.epoch_steps
        if not math.isfinite(epoch_steps):
            console.say(f"within {within}: about {console.plural(self.plan.steps, 'step')}.")
            return
        seconds = epoch_steps * (rhythm.step + rhythm.validation / rhythm.period)
        each = f"of {clock.duration(seconds)}"
        if self.plan.steps >= self.plan.length:
            epochs = console.plural(math.ceil(self.plan.length / epoch_steps), "epoch")
            console.say(f"within {within}: all {epochs} {each} fit.")
            return
        limit = ""
        if math.isfinite(self.plan.length):
            limit = f", {self.plan.length / epoch_steps:.3g} without the limit"
        epochs = f"{self.plan.steps / epoch_steps:.2g}"
        console.say(f"within {within}: about {epochs} epochs {each}{limit}.")

    def result(self, step: int) -> str:
        """Return a line about the end of a training that has made ``step`` steps."""
        within = clock.duration(self.seconds)
        if self.repeats or not self.stopped:
            return f"within {within}: training ended before the time was over."
        share = self.plan.position(step) / self.plan.length
        if not math.isfinite(self.plan.length) or share >= 0.99:
            return f"within {within}: training ended in time."
        return (
            f"within {within}: the time was over at {share:.0%} of the schedule of the learning "
            "rate; the steps became slower at the end."
        )


class StopAt(Callback):
    """Stop training so that its last validation ends at a given time.

    Args:
        end: the time, on the clock of ``time.monotonic``.

    Attributes:
        stopped: whether the time has ended the training.
    """

    def __init__(self, end: float) -> None:
        self.end, self.stopped = end, False
        self.validation_start = self.validation_seconds = 0.0

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.validation_start = time.monotonic()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.validation_seconds = time.monotonic() - self.validation_start

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        is_over = time.monotonic() + self.validation_seconds >= self.end
        if from_first(trainer, is_over) == [1]:
            self.stopped = trainer.should_stop = True


def _epoch_steps(trainer: Any) -> float:
    """Return the optimizer steps of an epoch; infinite if the data do not tell."""
    batches = trainer.num_training_batches
    if getattr(trainer.datamodule, "steps_per_execution", None):
        batches = trainer.train_dataloader.batches
    if not math.isfinite(batches):
        return math.inf
    return float(math.ceil(batches / trainer.accumulate_grad_batches))


def _period_steps(trainer: Any) -> float:
    """Return the optimizer steps from one validation to the next one, at most those of an epoch."""
    epoch_steps = _epoch_steps(trainer)
    if getattr(trainer.datamodule, "steps_per_execution", None):
        period = trainer.datamodule.validation_period or epoch_steps
    else:
        period = trainer.val_check_batch / trainer.accumulate_grad_batches
    epochs = trainer.check_val_every_n_epoch or 1
    return float(min(period, epoch_steps)) if period < epoch_steps else epoch_steps * epochs


def _length(trainer: Trainer, epoch_steps: float) -> float:
    """Return the optimizer steps that the limits of the Trainer allow; infinite without a limit."""
    epochs, steps = trainer.max_epochs, trainer.max_steps
    length = epochs * epoch_steps if epochs is not None and epochs > 0 else math.inf
    return min(length, steps) if steps > 0 else length


def _rows_ratio(trainer: Any) -> float:
    """Return the rows of a validation divided by those of an optimizer step."""
    data = trainer.datamodule
    if not isinstance(data, DataModule) or not data.rows("val"):
        return 0.0
    return data.rows("val") * _epoch_steps(trainer) / data.rows("train")
