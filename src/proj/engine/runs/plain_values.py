"""Find values of a checkpoint that no verb could read again."""

import io
import tempfile
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from types import NoneType
from typing import Any

import torch
from torch import Tensor, nn

from proj.engine.runs.checkpoint_file import read_checkpoint
from proj.errors import UserError, quoted

# Values of exactly these types can be read with `weights_only=True`. A subclass, such as a number
# of NumPy, may not be readable, and is tried.
PLAIN = {NoneType, bool, int, float, complex, str, bytes, torch.Size, torch.dtype, torch.device}
CONTAINERS = {dict, OrderedDict, list, tuple, set}
TENSORS = {Tensor, nn.Parameter}


def with_plain_rates(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Return a checkpoint whose optimizers and schedulers hold floats of Python.

    A schedule computed with NumPy, as by ``np.cos``, makes learning rates of the type
    ``np.float64``. It derives from float, and has the same numbers and arithmetic.
    """
    keys = checkpoint.keys() & {"optimizer_states", "lr_schedulers"}
    return checkpoint | {key: _with_floats(checkpoint[key]) for key in keys}


def _with_floats(value: Any) -> Any:
    if isinstance(value, float):
        return float(value)
    if type(value) is dict:
        return {name: _with_floats(part) for name, part in value.items()}
    return type(value)(map(_with_floats, value)) if type(value) in (list, tuple) else value


def check_readable(checkpoint: dict[str, Any]) -> None:
    """Raise UserError, which names the key, unless the verbs could read a checkpoint.

    A copy without the numbers of its tensors is written and read.
    """
    small = without_tensors(with_plain_rates(checkpoint))
    try:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "trial.ckpt"
            torch.save(small, file)
            read_checkpoint(file)
    except Exception as error:  # Pickling calls the user's classes, which may raise anything.
        check_plain(small)
        # Each value can be read, and the verbs refuse one of them for its type.
        reason = str(error).partition(": expected ")[2].partition(";")[0] or "other values"
        raise UserError(
            f"the checkpoint could not be read again: expected {reason}; save it in "
            "on_save_checkpoint under a key of its own."
        ) from error


def check_plain(checkpoint: dict[str, Any]) -> None:
    """Raise UserError, which names the key, unless all values of a checkpoint can be read back.

    The numbers of tensors are not touched, so this is fast enough for each checkpoint.
    """
    if found := unreadable(checkpoint):
        key, value = found
        raise UserError(
            f"the checkpoint's {key}: expected tensors and plain values, which every verb can read "
            f"again, got {type(value).__name__} ({quoted(value)}); {_remedy(key, value)}."
        )


def _remedy(key: str, value: Any) -> str:
    section, _, name = key.partition(".")
    if section.endswith("hyper_parameters"):
        name = name.partition(".")[0]
        return f"leave it out: self.save_hyperparameters(ignore=[{name!r}])"
    if type(value).__module__ == "numpy":
        return "convert it with .item(), .tolist() or torch.from_numpy"
    return "save its state_dict(), or plain values"


def without_tensors(value: Any) -> Any:
    """Return a checkpoint with an empty tensor in place of each tensor, to save memory."""
    if type(value) in TENSORS and value.layout == torch.strided:
        return torch.empty(0, dtype=value.dtype)
    if type(value) in (dict, OrderedDict):
        return type(value)((name, without_tensors(part)) for name, part in value.items())
    return type(value)(map(without_tensors, value)) if type(value) in (list, tuple) else value


def unreadable(value: Any, key: str = "") -> tuple[str, Any] | None:
    """Return key and value of a part that cannot be read back; None if everything can.

    Only values of other types than tensors and plain values are written and read for this.
    """
    kind = type(value)
    # Parameters of a model and tensors of an optimizer have no attributes of the user.
    if kind in PLAIN or (kind in TENSORS and value.layout == torch.strided and not vars(value)):
        return None
    names_are_plain = not isinstance(value, dict) or PLAIN.issuperset(map(type, value))
    is_plain = kind in CONTAINERS and names_are_plain
    parts: Iterable[Any] = value.values() if isinstance(value, dict) else value
    if is_plain and PLAIN.issuperset(map(type, parts)):
        return None  # Long lists of numbers are common, and this needs no call for each.
    if not is_plain and _can_be_read_back(value):
        return None
    if isinstance(value, dict | list | tuple | set | frozenset):
        names = value if isinstance(value, dict) else range(len(value))
        for name, part in zip(names, parts, strict=True):
            if found := unreadable(part, f"{key}.{name}".lstrip(".")):
                return found
    return None if is_plain else (key, value)


def _can_be_read_back(value: Any) -> bool:
    buffer = io.BytesIO()
    try:
        torch.save(value, buffer)
        buffer.seek(0)
        torch.load(buffer, weights_only=True)
    except Exception:  # Pickling calls the user's classes, which may raise anything.
        return False
    return True
