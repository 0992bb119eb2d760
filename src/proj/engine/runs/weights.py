"""Weights from a checkpoint into a model: all of them, or what fits."""

from typing import Any

from lightning.pytorch import LightningModule
from torch import Tensor

from proj.errors import UserError
from proj.models.base import Model
from proj.schema import Schema


def give_schema(model: LightningModule, checkpoint: dict[str, Any]) -> None:
    """Hand the checkpoint's schema to a model that takes one, and let it build its net."""
    if isinstance(model, Model) and checkpoint.get("schema") is not None:
        model.schema = Schema.from_dict(checkpoint["schema"])
        model.configure_model()


def check_weights(model: LightningModule, state: dict[str, Tensor], source: str) -> None:
    """Raise UserError unless ``state`` has exactly the model's tensors."""
    if problems := mismatches(model.state_dict(), state):
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise UserError(
            f"{source} is a checkpoint of another model than {type(model).__name__}: {'; '.join(problems[:3])}{more}; "
            "leave out the flags that change the model, or name the run it belongs to with --run."
        )


def load_fitting(model: LightningModule, state: dict[str, Tensor], source: str) -> str:
    """Copy every tensor whose name and shape are the model's; returns what did and did not fit, in one line."""
    own = model.state_dict()
    fitting = {
        name: value
        for name, value in state.items()
        if name in own and own[name].shape == value.shape
    }
    problems = mismatches(own, state)
    if not fitting:
        raise UserError(
            f"--init_from: nothing in {source} fits the model: {'; '.join(problems[:3])}."
        )
    model.load_state_dict(fitting, strict=False)
    rest = f"; not taken: {'; '.join(problems)}" if problems else ""
    return f"{len(fitting)} of {len(own)} tensors from {source}{rest}"


def mismatches(own: dict[str, Tensor], given: dict[str, Tensor]) -> list[str]:
    problems = [f"{name} is missing in it" for name in own if name not in given]
    problems += [f"{name} is not in the model" for name in given if name not in own]
    for name in own.keys() & given.keys():
        if own[name].shape != given[name].shape:
            problems.append(
                f"{name} has shape {list(given[name].shape)}, the model's {list(own[name].shape)}"
            )
    return sorted(problems)
