"""The run that a checkpoint belongs to, so that its results are written into no other run."""

import os
from pathlib import Path
from typing import Any

from proj.engine.config.experiment import differences
from proj.engine.config.options import FIT_KEYS
from proj.engine.runs.files import is_present
from proj.engine.runs.find import digest
from proj.engine.runs.run import Run
from proj.errors import UserError

# Settings that decide how long training takes. A scheduler's length is computed from some of them.
LENGTH_SETTINGS = (
    "trainer.max_epochs",
    "trainer.max_steps",
    "trainer.max_time",
    "early_stopping.patience",
)
# Settings that may change in a resumed run: they do not change what a step does. The checkpoints
# of a run may differ in them.
CHANGEABLE_SETTINGS = (
    *LENGTH_SETTINGS,
    "within",
    "trainer.min_epochs",
    "trainer.min_steps",
    "trainer.enable_progress_bar",
    "trainer.enable_model_summary",
    "trainer.default_root_dir",
    "trainer.profiler",
    "early_stopping.min_delta",
    "checkpoint.every_seconds",
    "checkpoint.every_n_steps",
    "data.init_args.cache_dir",
)
# Sections of which all settings may change in that way.
CHANGEABLE_SECTIONS = ("trainer.logger",)
MAX_SHOWN = 3


def may_change(line: str) -> bool:
    """Return whether a change, as ``key: old -> new``, does not change what a step does."""
    key = line.split(":")[0]
    return key in CHANGEABLE_SETTINGS or key.startswith(CHANGEABLE_SECTIONS)


def run_of_file(file: Path) -> Run | None:
    """Return the run in whose folder a checkpoint is; None if it is in no run's folder."""
    here = Path.cwd()
    for folder in Path(os.path.abspath(file)).parents:
        if is_present(folder / "config.yaml") and is_present(folder / "manifest.json"):
            is_below = folder.is_relative_to(here) and folder != here
            return Run(folder.relative_to(here) if is_below else folder)
    return None


def check_named_run(run: Run, file: Path) -> None:
    """Raise UserError if a checkpoint file is in the folder of another run than the named one."""
    owner = run_of_file(file)
    if owner is not None and owner.path.resolve() != run.path.resolve():
        raise UserError(
            f"--ckpt_path: expected a checkpoint of {run.path}, got one of {owner.path}; leave out "
            "--run, and the results are those of the checkpoint's run."
        )


def check_same_run(
    run: Run, recorded: dict[str, Any], checkpoint: dict[str, Any], file: Path
) -> None:
    """Raise UserError if a checkpoint holds the config of another run.

    Args:
        run: the run whose checkpoint it should be.
        recorded: the config of the run.
        checkpoint: the content of the file.
        file: the checkpoint's file.
    """
    if "config" not in checkpoint:
        # A user's ModelCheckpoint with `save_weights_only` writes no config.
        if run_of_file(file) is None:
            raise UserError(
                f"{file}: expected a checkpoint of {run.path}, got one without a config, which may "
                "belong to any run; use a checkpoint in the run's folder."
            )
        return
    # Runs without initial weights record no `init_from`.
    own, other = (dict.fromkeys(FIT_KEYS) | config for config in (recorded, checkpoint["config"]))
    changes = [line for line in differences(own, other) if not may_change(line)]
    if changes and digest(own) != digest(other):
        more = f" and {len(changes) - MAX_SHOWN} more" if len(changes) > MAX_SHOWN else ""
        raise UserError(
            f"{file}: expected a checkpoint of {run.path}, got one whose config is another run's: "
            f"{'; '.join(changes[:MAX_SHOWN])}{more}; name the checkpoint's own run with --run."
        )
