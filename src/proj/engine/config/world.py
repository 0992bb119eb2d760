"""Processes of a Trainer: those that torchrun has started, and those that Python starts."""

import os
from typing import Any

from proj.errors import UserError


def torchrun_options(options: dict[str, Any]) -> dict[str, Any]:
    """Return ``devices``, ``num_nodes`` and ``strategy`` of the world that torchrun has made.

    Lightning would take one device for each process, and each would train on its own.

    Args:
        options: options of the Trainer.

    Returns:
        Nothing outside torchrun.

    Raises:
        UserError: the options name another number of processes.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return {}
    world, local = (int(os.environ[name]) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    nodes = world // local
    for name, count, given in (
        ("devices", local, _count(options["devices"])),
        ("num_nodes", nodes, options["num_nodes"] if options["num_nodes"] != 1 else None),
    ):
        if given not in (None, count):
            raise UserError(
                f"trainer.{name}: expected {count}, as torchrun has started {world} processes on "
                f"{nodes} {'node' if nodes == 1 else 'nodes'}, got {given}; leave it out."
            )
    found: dict[str, Any] = {"devices": local, "num_nodes": nodes}
    if world > 1 and options["strategy"] == "auto":
        found["strategy"] = "ddp"
    return found


def starts_with_python(strategy: Any) -> bool:
    """Return whether a strategy's processes are started by Python, and end with the loop."""
    return isinstance(strategy, str) and strategy.startswith(
        ("ddp_spawn", "ddp_fork", "ddp_notebook")
    )


def _count(devices: Any) -> int | None:
    """Return the number of devices that a value names; None if it names all of them."""
    if isinstance(devices, list):
        return len(devices)
    text = str(devices)
    if "," in text:
        return len([number for number in text.split(",") if number.strip()])
    return int(text) if text.isdecimal() else None
