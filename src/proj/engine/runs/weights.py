"""Load weights from a checkpoint into a model: all of them, or those that fit."""

from typing import Any

from lightning.pytorch import LightningModule
from torch import Tensor

from proj.errors import UserError
from proj.models.base import Model
from proj.schema import Schema

MAX_MISMATCHES_SHOWN = 3


def give_schema(model: LightningModule, checkpoint: dict[str, Any]) -> None:
    """Give the checkpoint's schema to one of our models and build its net from it."""
    if isinstance(model, Model) and checkpoint.get("schema") is not None:
        model.schema = Schema.from_dict(checkpoint["schema"])
        model.configure_model()


def check_weights(model: LightningModule, state: dict[str, Tensor], source: str) -> None:
    """Raise UserError unless ``state`` has exactly the model's tensors."""
    if problems := mismatches(model.state_dict(), state):
        shown = "; ".join(problems[:MAX_MISMATCHES_SHOWN])
        hidden = len(problems) - MAX_MISMATCHES_SHOWN
        more = f" and {hidden} more" if hidden > 0 else ""
        raise UserError(
            f"{source}: expected a checkpoint of {type(model).__name__} as it is configured, got "
            f"one of another model: {shown}{more}; remove the flags that change the model, or "
            "select the run with --run."
        )


def load_fitting(model: LightningModule, state: dict[str, Tensor], source: str) -> str:
    """Copy every tensor whose name and shape match the model's.

    Returns one line that says what did and did not fit. Raises UserError if nothing fits.
    """
    own = model.state_dict()
    fitting = {
        name: value
        for name, value in state.items()
        if name in own and own[name].shape == value.shape
    }
    problems = mismatches(own, state)
    if not fitting:
        raise UserError(
            f"--init_from: expected tensors that fit the model, got none in {source}: "
            f"{'; '.join(problems[:MAX_MISMATCHES_SHOWN])}; choose another checkpoint."
        )
    model.load_state_dict(fitting, strict=False)
    not_loaded = f"; not loaded: {'; '.join(problems)}" if problems else ""
    return f"{len(fitting)} of {len(own)} tensors from {source}{not_loaded}"


def mismatches(own: dict[str, Tensor], state: dict[str, Tensor]) -> list[str]:
    """Return a line for each tensor of a model or a state whose name or shape the other lacks."""
    problems = [f"{name} is missing in it" for name in own if name not in state]
    problems += [f"{name} is not in the model" for name in state if name not in own]
    for name in own.keys() & state.keys():
        shape, own_shape = list(state[name].shape), list(own[name].shape)
        if shape != own_shape:
            problems.append(f"{name} has shape {shape}, the model's {own_shape}")
    return sorted(problems)
