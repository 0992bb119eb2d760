"""Values of an experiment as Python text: plain values, and calls of classes with options."""

import inspect
import math
import sys
from collections.abc import Iterable
from typing import Any

import torch
from jsonargparse import Namespace
from torch import nn

from proj.engine import security
from proj.engine.deployment.eject_cleaning import WIDTH
from proj.engine.deployment.eject_source import Sources
from proj.errors import UserError


def plain(value: Any) -> str:
    """Return a plain value as text, with double quotes as ruff writes them."""
    if isinstance(value, str):
        text = repr(value)
        return text if '"' in text else f'"{text[1:-1]}"'
    if isinstance(value, list | tuple):
        inner = ", ".join(map(plain, value))
        if isinstance(value, list):
            return f"[{inner}]"
        return f"({inner},)" if len(value) == 1 else f"({inner})"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{plain(k)}: {plain(v)}" for k, v in value.items()) + "}"
    if isinstance(value, float) and not math.isfinite(value):
        return "math.nan" if math.isnan(value) else "math.inf" if value > 0 else "-math.inf"
    return repr(value).replace("e+", "e") if isinstance(value, float) else repr(value)


def call(function: str, arguments: Iterable[str], target: str = "") -> str:
    """Return a call, on one line or with a line for each argument, as ruff formats it."""
    arguments = [*arguments]
    start = f"{target} = {function}(" if target else f"{function}("
    line = f"{start}{', '.join(arguments)})"
    if len(line) <= WIDTH:
        return line
    inner = f"    {', '.join(arguments)}"
    if len(inner) <= WIDTH:
        return f"{start}\n{inner}\n)"
    return f"{start}\n" + "".join(f"    {argument},\n" for argument in arguments) + ")"


def class_of(spec: Any, option: str) -> Any:
    """Return the class that a value of an experiment names, under the rules of its parser.

    Raises UserError if it names none, or one that the parser does not build.
    """
    if not isinstance(spec, Namespace) or "class_path" not in spec:
        raise UserError(f"{option}: expected a class with its options, got {spec!r:.80}.")
    module, _, name = spec.class_path.rpartition(".")
    # The parser has imported the modules of all classes that it builds.
    found = getattr(sys.modules.get(module), name, None)
    try:
        security.check_object(spec.class_path, found, called=True)
    except ImportError as error:
        raise UserError(f"{option}: {error}") from error
    return found


def name_of(value: Any, sources: Sources) -> str:
    """Return the name of a class in the script, and add its source or its import."""
    name = value.__name__
    for prefix, place in (
        ("nn", nn),
        ("torch.optim", torch.optim),
        ("torch.optim.lr_scheduler", torch.optim.lr_scheduler),
    ):
        if getattr(place, name, None) is value:
            return f"{prefix}.{name}"
    return sources.add(value)


def init_args(spec: Any) -> dict[str, Any]:
    """Return the options of a class in an experiment."""
    arguments = spec.get("init_args")
    return dict(vars(arguments)) if arguments else {}


def options(cls: Any, values: dict[str, Any], sources: Sources, option: str) -> list[str]:
    """Return the options of a class that differ from its defaults, as keyword arguments.

    Args:
        cls: the class.
        values: its options.
        sources: source text of the classes that the options name.
        option: the key of the class in the experiment, for messages.
    """
    parameters = inspect.signature(cls).parameters
    texts = []
    for name, value in values.items():
        default = parameters[name].default if name in parameters else inspect.Parameter.empty
        # 0.0 is 0, but True is not 1. A learning rate is always written.
        is_default = value == default and isinstance(value, bool) == isinstance(default, bool)
        if not is_default or name == "lr":
            texts.append(f"{name}={value_text(value, sources, f'{option}.{name}')}")
    return texts


def value_text(value: Any, sources: Sources, option: str) -> str:
    """Return a value of an experiment as text."""
    if isinstance(value, Namespace) and "class_path" in value:
        cls = class_of(value, option)
        arguments = options(cls, init_args(value), sources, option)
        return f"{name_of(cls, sources)}({', '.join(arguments)})"
    if not _is_plain(value):
        raise UserError(
            f"{option}: expected a plain value or a class with options, got {value!r:.80}; `eject` "
            "does not write a script for this run."
        )
    return plain(value)


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(_is_plain(part) for pair in value.items() for part in pair)
    return value is None or type(value) in (str, int, float, bool)
