"""Load weights from a checkpoint into a model, as far as they fit, and in their own type."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from proj.errors import UserError
from proj.models.base import Model
from proj.schema import Schema

MAX_MISMATCHES_SHOWN = 3


# Types of the weights that Lightning trains with these values of ``trainer.precision``. All others
# train float32 weights.
WEIGHT_TYPES = {
    "64": torch.float64,
    "64-true": torch.float64,
    "bf16-true": torch.bfloat16,
    "16-true": torch.float16,
}


def weight_type(precision: Any) -> torch.dtype:
    """Return the type of the weights for a value of ``trainer.precision``."""
    return WEIGHT_TYPES.get(str(precision), torch.float32)


def give_schema(model: LightningModule, checkpoint: dict[str, Any], dtype: torch.dtype) -> None:
    """Give the checkpoint's schema to one of our models and build its net from it.

    The net is built with weights and constants of type ``dtype``, as Lightning builds it.
    """
    if isinstance(model, Model) and checkpoint.get("schema") is not None:
        model.schema = Schema.from_dict(checkpoint["schema"])
        with _default_type(dtype):
            model.configure_model()
        if dtype != torch.float32:
            model.to(dtype)


@contextmanager
def _default_type(dtype: torch.dtype) -> Iterator[None]:
    """Let torch create tensors of this type."""
    previous = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(previous)


def has_lazy_parameters(model: nn.Module) -> bool:
    """Return whether a module waits for its first batch to know the shapes of its parameters."""
    return any(is_lazy(parameter) for parameter in model.parameters())


def restore_state_types(optimizer: Optimizer, saved: dict[str, Any]) -> None:
    """Give the optimizer's tensors the bits that they have in its saved state.

    ``Optimizer.load_state_dict`` casts them to the type of their parameter. An optimizer may keep
    them in another type.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    numbers = [number for group in saved["param_groups"] for number in group["params"]]
    for number, parameter in zip(numbers, parameters, strict=True):
        state = optimizer.state.get(parameter, {})
        for key, value in saved["state"].get(number, {}).items():
            loaded = state.get(key)
            both_tensors = isinstance(value, Tensor) and isinstance(loaded, Tensor)
            if both_tensors and loaded.dtype != value.dtype:
                state[key] = value.to(loaded.device)


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

    The names are those of the model, or of its net. Returns one line that says what did and did not
    fit. Raises UserError if nothing fits.
    """
    own = model.state_dict()
    if not own.keys() & state.keys():
        # A file of the net's own state_dict has no prefix.
        state = {f"net.{name}": value for name, value in state.items()}
    fitting = {
        name: value
        for name, value in state.items()
        if name in own and (is_lazy(own[name]) or own[name].shape == value.shape)
    }
    rounded = sorted(
        name
        for name, value in fitting.items()
        if torch.promote_types(own[name].dtype, value.dtype) != own[name].dtype
    )
    problems = mismatches(own, state)
    if not fitting:
        raise UserError(
            f"--init_from: expected tensors that fit the model, got none in {source}: "
            f"{'; '.join(problems[:MAX_MISMATCHES_SHOWN])}; choose another checkpoint."
        )
    model.load_state_dict(fitting, strict=False)
    not_loaded = f"; not loaded: {'; '.join(problems)}" if problems else ""
    if rounded:
        types = f"{state[rounded[0]].dtype} to {own[rounded[0]].dtype}".replace("torch.", "")
        not_loaded += f"; rounded from {types}: {len(rounded)} of them, such as {rounded[0]}"
    return f"{len(fitting)} of {len(own)} tensors from {source}{not_loaded}"


def mismatches(own: dict[str, Tensor], state: dict[str, Tensor]) -> list[str]:
    """Return a line for each tensor of a model or a state whose name or shape the other lacks."""
    problems = [f"{name} is missing in it" for name in own if name not in state]
    problems += [f"{name} is not in the model" for name in state if name not in own]
    for name in own.keys() & state.keys():
        # A lazy parameter takes its shape from the state.
        if is_lazy(own[name]) or is_lazy(state[name]):
            continue
        shape, own_shape = list(state[name].shape), list(own[name].shape)
        if shape != own_shape:
            problems.append(f"{name} has shape {shape}, the model's {own_shape}")
    return sorted(problems)
