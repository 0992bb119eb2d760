"""Devices and nodes that torchrun has chosen."""

from typing import Any

import pytest

from proj.engine.config.world import torchrun_options
from proj.errors import UserError

DEFAULTS = {"devices": "auto", "num_nodes": 1, "strategy": "auto"}


def options(monkeypatch: pytest.MonkeyPatch, world: int, local: int, **given: Any) -> Any:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("WORLD_SIZE", str(world))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(local))
    return torchrun_options({**DEFAULTS, **given})


@pytest.mark.parametrize(
    ("world", "local", "given", "expected"),
    [
        (2, 2, {}, {"devices": 2, "num_nodes": 1, "strategy": "ddp"}),
        (4, 2, {}, {"devices": 2, "num_nodes": 2, "strategy": "ddp"}),
        (2, 1, {"devices": 1, "num_nodes": 2}, {"devices": 1, "num_nodes": 2, "strategy": "ddp"}),
        (1, 1, {}, {"devices": 1, "num_nodes": 1}),
        (2, 2, {"devices": "0,1"}, {"devices": 2, "num_nodes": 1, "strategy": "ddp"}),
        (2, 2, {"devices": -1, "strategy": "fsdp"}, {"devices": 2, "num_nodes": 1}),
    ],
)
def test_the_world_is_that_of_torchrun(
    world: int, local: int, given: Any, expected: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each process would train on its own."""
    assert options(monkeypatch, world, local, **given) == expected


@pytest.mark.parametrize("given", [{"devices": 1}, {"devices": [0]}, {"num_nodes": 3}])
def test_another_number_of_processes_is_refused(
    given: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two trainings would write into one folder, or wait for processes that do not exist."""
    with pytest.raises(UserError, match="leave it out"):
        options(monkeypatch, 2, 2, **given)


def test_without_torchrun_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A single training would be taken for a part of a larger one."""
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    assert torchrun_options(DEFAULTS) == {}
