"""Content of ``bundle.json``: a plain description of everything between raw rows and answers."""

from collections.abc import Iterable
from importlib import metadata
from typing import Any

from torch import Tensor

from proj.engine import PACKAGE
from proj.engine.deployment.bundle import FILES
from proj.engine.deployment.runtime.predictor import VERSION
from proj.models.base import Model
from proj.schema import Schema

# Tolerance of the proof. Near 0, where relative differences mean nothing, probabilities may differ
# by ABSOLUTE, and numbers by so many standard deviations of their target in the training split.
RELATIVE, ABSOLUTE = 1e-5, 1e-6


def build_spec(
    model_format: str, names: list[str], inputs: dict[str, Any], outputs: dict[str, Any]
) -> dict[str, Any]:
    """Return the content of ``bundle.json``.

    Args:
        model_format: key of ``FILES``.
        names: inputs of the graph, in order.
        inputs: how raw rows become inputs: ``DataModule.describe_inputs``.
        outputs: what the outputs of the graph mean: ``describe_outputs``.
    """
    return {
        "bundle": VERSION,
        "model": {"file": FILES[model_format], "format": model_format, "inputs": names},
        "inputs": inputs,
        "outputs": outputs,
        "versions": {name: metadata.version(name) for name in (PACKAGE, "torch")},
    }


def describe_outputs(model: Model) -> dict[str, Any]:
    """Return what the outputs of one of our models mean."""
    schema = model.schema
    assert schema is not None
    return {
        "task": schema.task,
        "classes": list(schema.classes),
        "names": list(schema.class_names or schema.target_names),
        "thresholds": list(model.thresholds),
        "temperature": model.temperature,
        "conformal_limits": list(model.conformal_limits),
        "target_mean": list(schema.target_mean),
        "target_std": list(schema.target_std),
    }


def describe_numbers(names: list[str]) -> dict[str, Any]:
    """Return the description of columns whose meaning only the user's own module knows."""
    return {"task": "numbers", "classes": [], "names": names, "thresholds": []}


def array_inputs(x: Tensor) -> dict[str, Any]:
    """Return the description of inputs ``x`` [rows, ...] that a loader yields."""
    dtype = str(x.dtype).removeprefix("torch.")
    return {"kind": "arrays", "shape": list(x.shape[1:]), "dtype": dtype}


def comparison(
    schema: Schema | None, columns: list[str], scales: Iterable[float] = ()
) -> dict[str, Any]:
    """Return which answers are labels, and the tolerances of the others.

    ``scales`` are the standard deviations of numbers without a schema.
    """
    is_regression = schema is None or schema.task == "regression"
    labels = [] if is_regression else [n for n in columns if n.startswith(("prediction", "set"))]
    numbers = [name for name in columns if name not in labels]
    if schema is not None:
        # The limits of intervals follow the predictions, in the same order of targets.
        repeats = len(numbers) // len(schema.target_std) if is_regression else 1
        scales = schema.target_std * repeats if is_regression else (1.0,) * len(numbers)
    absolute = {name: ABSOLUTE * float(scale) for name, scale in zip(numbers, scales, strict=True)}
    return {"labels": labels, "relative": RELATIVE, "absolute": absolute}
