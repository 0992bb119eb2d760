"""Train a run again from its config, and say whether the result is the same to the bit."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from proj.data.base import DataModule
from proj.engine import console
from proj.engine.commands.fit import parse_experiment, train_experiment
from proj.engine.config.arguments import read_arguments
from proj.engine.config.experiment import ExperimentCLI
from proj.engine.config.parser import VerbParser
from proj.engine.console import plural
from proj.engine.evaluation.report import read_scalars
from proj.engine.runs.checkpoint_file import read_checkpoint
from proj.engine.runs.environment import environment_changes, uncommitted_code
from proj.engine.runs.find import find_run
from proj.engine.runs.run import Run
from proj.errors import TrainingError, UserError
from proj.schema import Array

CHECKPOINTS = ("best", "last")
# More changes of the environment are counted only.
MAX_CHANGES = 8


def reproduce(args: list[str]) -> None:
    """Train a run again beside it, and compare metrics and weights.

    The second run is deleted if it is identical, and kept for a comparison if it is not.
    """
    parser = VerbParser(
        "reproduce", "Train a run again from its config, and compare the result to the bit."
    )
    parser.add_argument(
        "run", nargs="?", help="name or folder of a run; default: the newest finished one"
    )
    run = find_run(Path("lightning_logs"), parser.parse_args(args).run)
    run.require_trained()
    if run.manifest["status"] != "finished":
        raise UserError(
            f"reproduce: expected a finished run, got {run.path}, which is "
            f"{run.manifest['status']}; finish it with `fit --resume {run.path.name}`."
        )
    if not _checkpoints(run):
        raise UserError(
            f"reproduce: expected a run with checkpoints, got {run.path} without one, so nothing "
            "can be compared; train with checkpoints."
        )
    again = Run(run.path.with_name(f"{run.path.name}_again"))
    if again.path.exists():
        raise UserError(
            f"reproduce: expected no folder {again.path}, where the second run is trained, but it "
            "exists; delete it, or rename it."
        )
    words = ["--config", str(run.path / "config.yaml")]
    experiment, _ = parse_experiment(read_arguments(words, "fit"))
    _check_data(run, experiment)
    train_experiment(experiment, words, again.path, plan=run.manifest.get("within"))
    changes = [*_changes(run, again)]
    reason = f"not as recorded: {_listed(changes)}" if changes else "all that is recorded is equal"
    if difference := first_difference(run, again):
        raise TrainingError(
            f"{run.path} is not reproduced: {difference}. {reason[0].upper()}{reason[1:]}. The "
            f"second run is {again.path}."
        )
    curves = read_scalars(again).items()
    validations = max((len(v) for name, (_, v) in curves if name.startswith("val/")), default=0)
    shutil.rmtree(again.path)
    although = f"; {reason}" if changes else ""
    console.say(
        f"identical to the bit: the weights of {' and '.join(_checkpoints(run))}, and "
        f"the metrics of {plural(validations, 'validation')}{although}"
    )


def _check_data(run: Run, experiment: ExperimentCLI) -> None:
    """Raise TrainingError if the data are not those of the run, before it is trained again."""
    datamodule = experiment.datamodule
    if not isinstance(datamodule, DataModule):
        return
    datamodule.prepare_data()
    datamodule.setup("fit")
    recorded = run.manifest.get("data", "")
    if datamodule.fingerprint != recorded:
        raise TrainingError(
            f"{run.path} cannot be reproduced: the data have changed (fingerprint {recorded} -> "
            f"{datamodule.fingerprint}). Restore them."
        )


def _changes(run: Run, again: Run) -> list[str]:
    """Return what differs between the runs beside the results: seed, versions, code, hardware."""
    old, new = run.manifest, again.manifest
    changes, git = [*environment_changes(old, new)], old.get("git")
    if old.get("seed") != new.get("seed"):
        changes.insert(0, f"seed_everything: {old.get('seed')} -> {new.get('seed')}")
    patch = run.path / "code.diff"
    recorded = patch.read_text(encoding="utf-8") if patch.is_file() else ""
    if recorded != uncommitted_code():
        changes.append(f"uncommitted changes of Python files, those of the run are in {patch}")
    elif not recorded and git is not None and git.get("dirty"):
        changes.append("the run was trained with uncommitted changes that it does not hold")
    return changes


def _listed(changes: list[str]) -> str:
    more = len(changes) - MAX_CHANGES
    return "; ".join(changes[:MAX_CHANGES]) + (f"; and {more} more" if more > 0 else "")


def first_difference(run: Run, again: Run) -> str | None:
    """Return the first difference between the results of two runs, None if there is none."""
    return _first_epoch(run, again) or _different_weights(run, again)


def _first_epoch(run: Run, again: Run) -> str | None:
    """Return the first validation whose metrics differ."""
    # Points within an epoch depend on the number of steps in one execution.
    old, new = (
        {name: curve for name, curve in read_scalars(other).items() if name.startswith("val/")}
        for other in (run, again)
    )
    if old.keys() != new.keys():
        return f"one of the runs has no curve {sorted(old.keys() ^ new.keys())[0]}"
    differences = [
        (int(steps[i]), f"{name} {what}")
        for name, (steps, before) in sorted(old.items())
        for i, what in _first_points(before, new[name][1])
    ]
    if not differences:
        return None
    step, line = min(differences)
    steps, numbers = read_scalars(run).get("epoch", (np.zeros(0), np.zeros(0)))
    epochs = numbers[steps == step]
    place = f"epoch {epochs[0]:.0f}" if len(epochs) else f"step {step}"
    return f"the first difference is in {place}: {line}"


def _first_points(before: Array, after: Array) -> Iterator[tuple[int, str]]:
    """Yield the position of the first point that differs, and how; nothing if none does."""
    count = min(len(before), len(after))
    old, new = before[:count], after[:count]
    differs = (old != new) & ~(np.isnan(old) & np.isnan(new))
    if differs.any():
        i = int(differs.argmax())
        yield i, f"is {old[i]:.9g} in the run and {new[i]:.9g} now"
    elif len(before) != len(after):
        yield count - 1, f"has {len(before)} points in the run and {len(after)} now"


def _checkpoints(run: Run) -> list[str]:
    names = [f"{name}.ckpt" for name in CHECKPOINTS]
    return [name for name in names if (run.path / "checkpoints" / name).is_file()]


def _different_weights(run: Run, again: Run) -> str | None:
    for name in _checkpoints(run):
        before, after = (
            read_checkpoint(other.path / "checkpoints" / name)["state_dict"]
            for other in (run, again)
        )
        if before.keys() != after.keys():
            return f"{name} holds other weights: {sorted(before.keys() ^ after.keys())[0]}"
        for key, weight in before.items():
            if not _equal(weight, after[key]):
                return f"{key} in {name} differs, although the metrics of all epochs are equal"
    return None


def _equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Return whether two tensors have the same bits."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    a, b = (tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (a, b))
    return torch.equal(a, b)
