"""Initial weights and checkpoints for training."""

from pathlib import Path
from typing import Any

from proj.engine.callbacks.best_checkpoint import InitialWeights
from proj.engine.callbacks.resume_state import check_resumable
from proj.engine.config.experiment import ExperimentCLI, differences
from proj.engine.runs.checkpoint_file import read_checkpoint, read_weights
from proj.engine.runs.find import find_run
from proj.errors import UserError
from proj.schema import Label, Schema

# Endings of files with weights; other values of --init_from are runs.
WEIGHTS_SUFFIXES = (".ckpt", ".pt", ".pth", ".bin")

# Settings that may differ from the checkpoint's, because they do not change the weights.
INTERCHANGEABLE = ("init_args.compile:",)
# Settings that determine a scheduler's length.
LENGTH_FLAGS = ("max_epochs", "max_steps")


def initial_weights(cli: ExperimentCLI) -> list[InitialWeights]:
    """Return a callback that loads the weights of ``--init_from``; an empty list without it."""
    source = cli.option("init_from")
    if source is None:
        return []
    is_file = source.endswith(WEIGHTS_SUFFIXES)
    path = Path(source) if is_file else find_run(cli.root, source).checkpoint("best")
    checkpoint = read_weights(path)
    return [InitialWeights(checkpoint["state_dict"], str(path), _classes(checkpoint))]


def check_classes(path: Path, data: object) -> None:
    """Raise UserError unless the classes of a data module are those of a checkpoint, in order."""
    classes, schema = _classes(read_checkpoint(path)), getattr(data, "schema", None)
    if isinstance(schema, Schema) and classes and classes != schema.classes:
        raise UserError(
            f"--ckpt_path: expected the classes of {path}, {', '.join(map(str, classes))}, the "
            f"positive one of two last, got {', '.join(schema.class_names)}; use its data and set "
            "data.positive as it was, or use --init_from."
        )


def _classes(checkpoint: dict[str, Any]) -> tuple[Label, ...]:
    return tuple((checkpoint.get("schema") or {}).get("classes", ()))


def checkpoint_to_continue(cli: ExperimentCLI) -> Path | None:
    """Return the checkpoint of ``fit --ckpt_path``, which training continues in a new run.

    Raises UserError unless it holds the training state of the same model, optimizer and schedule.
    """
    option = cli.option("ckpt_path")
    if option is None:
        return None
    path = Path(option)
    checkpoint = read_checkpoint(path)
    if "loops" not in checkpoint or "optimizer_states" not in checkpoint:
        raise UserError(
            f"--ckpt_path: expected a checkpoint of training, got weights only in {path}; "
            "start from them with --init_from."
        )
    check_resumable(checkpoint, path)
    recorded = checkpoint.get("config", cli.experiment)
    changes = [
        line
        for line in differences(recorded["model"], cli.experiment["model"])
        if not line.startswith(INTERCHANGEABLE)
    ]
    if getattr(cli.model, "scheduler", None) is not None:
        recorded_length, length = (
            {flag: config["trainer"][flag] for flag in LENGTH_FLAGS}
            for config in (recorded, cli.experiment)
        )
        changes += differences(recorded_length, length)
    if changes:
        raise UserError(
            f"--ckpt_path: expected the model, optimizer and schedule of {path}, got differences: "
            f"{'; '.join(changes)}. Leave the settings as they were, or use --init_from."
        )
    return path
