"""Content of ``bundle.json``: a plain description of everything between raw rows and answers."""

import hashlib
from importlib import metadata
from pathlib import Path
from typing import Any

from proj.data.base import DataModule
from proj.engine import PACKAGE
from proj.engine.deployment.runtime.predictor import VERSION
from proj.models.base import Model
from proj.schema import Schema

FILES = {"onnx": "model.onnx", "torch": "model.pt2", "aot": "model.pt2"}

# Tolerance of the proof. Near 0, where relative differences mean nothing, probabilities may differ
# by ABSOLUTE, and numbers by so many standard deviations of their target in the training split.
RELATIVE, ABSOLUTE = 1e-5, 1e-6


def build_spec(
    model: Model, data: type[DataModule], model_format: str, inputs: list[str]
) -> dict[str, Any]:
    """Return the content of ``bundle.json``, without the section ``run``."""
    schema = model.schema
    assert schema is not None
    return {
        "bundle": VERSION,
        "model": {"file": FILES[model_format], "format": model_format, "inputs": inputs},
        "inputs": data.describe_inputs(schema),
        "outputs": {
            "task": schema.task,
            "classes": list(schema.classes),
            "names": list(schema.class_names or schema.target_names),
            "thresholds": list(model.thresholds),
            "temperature": model.temperature,
            "target_mean": list(schema.target_mean),
            "target_std": list(schema.target_std),
        },
        "versions": {name: metadata.version(name) for name in (PACKAGE, "torch")},
    }


def comparison_header(schema: Schema, columns: list[str]) -> dict[str, Any]:
    """Return which answers are labels, and the tolerances of the others."""
    is_regression = schema.task == "regression"
    labels = [] if is_regression else [n for n in columns if n.startswith("prediction")]
    numbers = [name for name in columns if name not in labels]
    scales = schema.target_std if is_regression else (1.0,) * len(numbers)
    absolute = {name: ABSOLUTE * scale for name, scale in zip(numbers, scales, strict=True)}
    return {"labels": labels, "relative": RELATIVE, "absolute": absolute}


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
