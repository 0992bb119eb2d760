"""`fit --within`: training and its schedule end in time, and a repetition makes the same steps."""

import math
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR

from conftest import Cli
from engine.callbacks.test_step_callbacks import ONE_CYCLE
from proj.engine import clock
from proj.engine.callbacks import deadline
from proj.engine.callbacks.deadline import Rhythm
from proj.engine.callbacks.stretch import StepPlan, StretchedScheduler
from proj.engine.commands.fit import fit
from proj.engine.runs.checkpoint_file import read_checkpoint
from proj.engine.runs.run import Run
from proj.errors import UserError

RUN = Path("lightning_logs/version_0")


@pytest.fixture
def ticks(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Replace the clock by one that moves on by ``tick`` seconds whenever it is read."""
    now = SimpleNamespace(seconds=0.0, tick=0.1)

    def monotonic() -> float:
        now.seconds += now.tick
        return float(now.seconds)

    monkeypatch.setattr(deadline, "time", SimpleNamespace(monotonic=monotonic))
    monkeypatch.setattr(clock, "began", lambda: now.seconds)
    return now


@pytest.mark.parametrize("seconds", [0.0, 0.3, 1.0, 2.05, 4.9, 5.0, 33.3])
@pytest.mark.parametrize("to_next", [0, 3, 10])
def test_steps_within_a_time_equal_a_simulation(seconds: float, to_next: int) -> None:
    """Training would end too late, or leave time over, if validations were counted wrongly."""
    rhythm = Rhythm(step=0.125, validation=0.5, period=10)
    best = steps = 0
    spent = 0.0
    while spent <= seconds:
        steps, spent = steps + 1, spent + rhythm.step
        at_validation = steps >= to_next and (steps - to_next) % rhythm.period == 0
        if spent + rhythm.validation <= seconds:
            best = steps
        spent += rhythm.validation if at_validation else 0.0
    if to_next == 0 and rhythm.validation <= seconds:
        # The simulation has no validation before its first step.
        return
    assert rhythm.steps_within(seconds, to_next) == best


def test_a_stretched_schedule_ends_with_the_last_step() -> None:
    """The rate at the end would be that of the middle of the schedule."""
    rates: dict[str, list[float]] = {"own": [], "stretched": []}
    plan = StepPlan(length=100)
    for name, values in rates.items():
        optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.1)
        scheduler: Any = OneCycleLR(optimizer, max_lr=1.0, total_steps=100)
        if name == "stretched":
            scheduler = StretchedScheduler(scheduler, plan, 1, by_epoch=False)
        for step in range(100 if name == "own" else 60):
            if name == "stretched" and step == 10:
                plan.change(10, 40)  # 10 of 100 are made, 90 must follow in 30 steps.
            if name == "stretched" and step == 25:
                plan.change(25, 60)  # 55 are made, 45 must follow in 35 steps.
            values.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
    positions = [*range(10), *(10 + 3 * i for i in range(15))]
    positions += [math.floor(55 + 45 / 35 * i + 1e-9) for i in range(35)]
    assert rates["stretched"] == [rates["own"][position] for position in positions]


def test_a_schedule_of_epochs_is_stretched() -> None:
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=1.0)
    plan = StepPlan(length=80, epoch_steps=8)
    scheduler = StretchedScheduler(
        torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5), plan, 1, by_epoch=True
    )
    plan.change(0, 16)
    optimizer.step()
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] == 0.5**5
    state = scheduler.state_dict()
    assert state["calls"] == 1
    assert state["last_epoch"] == 5


def test_a_run_ends_in_time_and_is_reproduced(
    experiment: Any, cli: Cli, ticks: SimpleNamespace
) -> None:
    """The run would take its own number of epochs, or a repetition another number of steps."""
    config = experiment(trainer={"max_epochs": 1000}, model={**ONE_CYCLE, "steps_per_execution": 1})
    said = cli("fit", "--config", config, "--within", "15s")
    assert re.search(
        r"within 15 s: about [\d.]+ epochs of [\d.]+ s, 1e\+03 without the limit", said
    )
    assert "within 15 s: training ended in time" in said
    assert 10 < ticks.seconds < 15
    last = read_checkpoint(RUN / "checkpoints/last.ckpt")
    facts = Run(RUN).manifest["within"]
    assert facts["steps"] == last["global_step"] < 1000
    assert last["optimizer_states"][0]["param_groups"][0]["lr"] < 1e-4
    # A faster machine and other executions must not change the repetition.
    ticks.tick, recorded = 0.001, RUN / "config.yaml"
    text = recorded.read_text()
    recorded.write_text(text.replace("steps_per_execution: 1", "steps_per_execution: 4"))
    assert "identical to the bit" in cli("reproduce", RUN)


def test_an_interrupted_run_keeps_its_plan_and_the_time_left(
    experiment: Any, cli: Cli, ticks: SimpleNamespace
) -> None:
    config = experiment(trainer={"max_epochs": 1000}, model=ONE_CYCLE)

    class Interrupt(Callback):
        def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
            if ticks.seconds > 5:
                raise KeyboardInterrupt

    with pytest.raises(SystemExit):
        fit(
            ["--config", str(config), "--within", "15s", "--checkpoint.every_seconds", "0"],
            callbacks=[Interrupt()],
        )
    used, before = ticks.seconds, read_checkpoint(RUN / "checkpoints/last.ckpt")
    state = before["callbacks"]["Deadline"]
    assert 4 < state["used"] <= used
    ticks.seconds = 0.0
    said = cli("fit", "--resume")
    assert re.search(r"within 15 s: [78]\.?\d* s are left", said)
    assert used + ticks.seconds < 15
    after = read_checkpoint(RUN / "checkpoints/last.ckpt")
    changes = after["callbacks"]["Deadline"]["changes"]
    assert changes[: len(state["changes"])] == state["changes"]
    assert after["optimizer_states"][0]["param_groups"][0]["lr"] < 1e-4


def test_all_epochs_that_fit_are_trained_as_without_a_deadline(experiment: Any, cli: Cli) -> None:
    """A deadline that is far away would change the schedule."""
    config = experiment(model=ONE_CYCLE)
    cli("fit", "--config", config)
    said = cli("fit", "--config", config, "--within", "1h")
    assert "within 1h: training ended before the time was over" in said
    own, within = (
        read_checkpoint(Path(f"lightning_logs/version_{i}/checkpoints/last.ckpt")) for i in (0, 1)
    )
    assert all(
        torch.equal(own["state_dict"][k], within["state_dict"][k]) for k in own["state_dict"]
    )
    cli("test", "--run", "version_1")


@pytest.mark.parametrize("text", ["30", "m", "0s", "1h 3x", "-5m", "1e3s"])
def test_a_time_has_a_unit(text: str) -> None:
    with pytest.raises(UserError, match="--within: expected a time such as 90s"):
        clock.read_duration(text, "--within")


def test_durations_are_read() -> None:
    read = [clock.read_duration(text, "") for text in ("90s", "30m", "1h30m", "1.5h", "1d")]
    assert read == [90, 1800, 5400, 5400, 86400]
