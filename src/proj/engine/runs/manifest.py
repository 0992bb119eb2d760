"""Write the manifest of a run during training."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn

from proj.engine.runs.environment import environment, uncommitted_code
from proj.engine.runs.files import atomic_write
from proj.engine.runs.run import Run
from proj.engine.secrets import split_words
from proj.errors import UserError


@contextmanager
def record_manifest(
    run: Run,
    command: list[str],
    seed: int,
    fingerprint: str,
    device: torch.device,
    resumed: bool = False,
    **facts: Any,
) -> Iterator[None]:
    """Write the manifest at the start of training, and its status and time at the end.

    For a resumed run, command and start time stay, and the time of the resume is added. ``facts``
    are more entries.
    """
    if resumed:
        start: dict[str, Any] = {"resumed": [*run.manifest.get("resumed", []), now()]}
    else:
        start = {"start": now(), "command": split_words(command)[0]}
    run.write_manifest(
        **{**start, **environment(device), **facts},
        seed=seed,
        status="running",
        end=None,
        data=fingerprint,
    )
    if patch := uncommitted_code():
        atomic_write(run.path / "code.diff", lambda file: file.write(patch.encode()))
    try:
        yield
    except BaseException as error:
        stopped = isinstance(error, KeyboardInterrupt | SystemExit)
        try:
            run.write_manifest(status="stopped" if stopped else "failed", end=now())
        except (OSError, UserError) as write_error:  # The first error is the cause.
            rank_zero_warn(
                f"the manifest of {run.path} cannot be written: {write_error}; its status is still "
                "running."
            )
        raise
    run.write_manifest(status="finished", end=now())


def now() -> str:
    """Return the time as a manifest has it."""
    return datetime.now(UTC).isoformat()
