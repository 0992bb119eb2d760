"""What `validate` has fitted to a model's outputs, kept beside the checkpoint it belongs to: ``calibration.json``."""

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from proj.engine.runs.run import atomic_write
from proj.errors import UserError
from proj.models.base import Model
from proj.schema import DEFAULT_THRESHOLD, Schema

FILE = "calibration.json"
LOWEST, HIGHEST = 0.01, 100.0  # temperatures, as far as one makes sense
MEND = "delete the file, or fit it again"


@dataclass(frozen=True)
class Calibration:
    """A temperature, by which raw outputs are divided, and thresholds, above which a probability is a yes.

    Attributes:
        checkpoint: name of the checkpoint's file.
        sha256: hash of its content, which says whether a file is that checkpoint.
        rows: how many rows of the validation part it was fitted on.
        temperature: above 1 where the model was too sure (Guo et al. 2017, arXiv:1706.04599); None: not fitted.
        thresholds: by name, of the positive class or of each label; None: not fitted, so 0.5.
        rule: how the thresholds were chosen: ``f1`` or ``precision=P``.
    """

    checkpoint: str
    sha256: str
    rows: int
    temperature: float | None
    thresholds: dict[str, float] | None
    rule: str | None

    def __str__(self) -> str:
        parts = [] if self.temperature is None else [f"temperature {self.temperature:.3g}"]
        if self.thresholds is not None:
            several = len(self.thresholds) > 1
            each = [
                f"{name} {at:.3g}" if several else f"{at:.3g}"
                for name, at in list(self.thresholds.items())[:10]
            ]
            more = ", …" if len(self.thresholds) > 10 else ""
            rule = f" ({self.rule})" if self.rule else ""
            parts.append(f"threshold{'s' if several else ''} {', '.join(each)}{more}{rule}")
        return ", ".join(parts)

    def settings(self, schema: Schema) -> tuple[float, tuple[float, ...]]:
        """The temperature, and the thresholds in the schema's order; UserError where they are not for such a model."""
        if schema.task == "regression":
            raise UserError(
                f"{FILE}: expected a model of classes or labels, got one of numbers; {MEND}."
            )
        temperature = 1.0 if self.temperature is None else float(self.temperature)
        if self.thresholds is None:
            return temperature, DEFAULT_THRESHOLD
        names = decided_names(schema)
        if set(names) != set(self.thresholds):
            expected = (
                f"thresholds for {list(names)}" if names else "no thresholds for several classes"
            )
            raise UserError(
                f"{FILE}: expected {expected}, got some for {str(list(self.thresholds))[:200]}; {MEND}."
            )
        return temperature, tuple(float(self.thresholds[name]) for name in names)

    def write(self, path: Path) -> None:
        atomic_write(path, lambda file: file.write(json.dumps(asdict(self), indent=2).encode()))


def decided_names(schema: Schema) -> tuple[str, ...]:
    """What a threshold decides about: the positive class, or each label."""
    return {"binary": schema.class_names[1:], "multilabel": schema.class_names}.get(schema.task, ())


def hash_of(checkpoint: Path) -> str:
    with checkpoint.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_number(value: Any, low: float, high: float) -> bool:
    return type(value) in (int, float) and low <= value <= high


# What each key of the file must hold, in words and as a test.
KEYS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "checkpoint": (
        "the name of a file",
        lambda v: isinstance(v, str) and v.isprintable() and Path(v).name == v,
    ),
    "sha256": (
        "64 hexadecimal digits",
        lambda v: isinstance(v, str) and re.fullmatch("[0-9a-f]{64}", v) is not None,
    ),
    "rows": ("a number of rows", lambda v: type(v) is int and v > 0),
    "temperature": (
        f"a number from {LOWEST:g} to {HIGHEST:g}, or null",
        lambda v: v is None or _is_number(v, LOWEST, HIGHEST),
    ),
    "thresholds": (
        "a number from 0 to 1 for each name, or null",
        lambda v: (
            v is None
            or (isinstance(v, dict) and bool(v) and all(_is_number(at, 0, 1) for at in v.values()))
        ),
    ),
    "rule": (
        "f1, precision=P or null",
        lambda v: v is None or (isinstance(v, str) and v.isprintable() and len(v) < 40),
    ),
}


def read(path: Path) -> Calibration:
    """The calibration in a file; UserError where it is damaged or holds what cannot be applied."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read: {error}; {MEND}.") from error
    if not isinstance(values, dict) or values.keys() != KEYS.keys():
        got = ", ".join(values) if isinstance(values, dict) else type(values).__name__
        raise UserError(f"{path}: expected the keys {', '.join(KEYS)}, got {got[:200]!r}; {MEND}.")
    for key, (expected, holds) in KEYS.items():
        if not holds(values[key]):
            raise UserError(
                f"{path}: {key}: expected {expected}, got {repr(values[key])[:80]}; {MEND}."
            )
    if values["temperature"] is None and values["thresholds"] is None:
        raise UserError(f"{path}: expected a temperature or thresholds, got neither; {MEND}.")
    return Calibration(**values)


def apply(model: Model, checkpoint: Path) -> tuple[Calibration | None, str]:
    """Give a model, whose schema is known, what was fitted for its checkpoint.

    Returns what the model has got, if anything; and where there is a calibration that is not for this checkpoint, why.
    """
    path = checkpoint.with_name(FILE)
    if not path.is_file():
        return None, ""
    found = read(path)
    if hash_of(checkpoint) != found.sha256:
        why = (
            "which has changed since"
            if checkpoint.name == found.checkpoint
            else f"and this is {checkpoint.name}"
        )
        return (
            None,
            f"{path} is not applied: it was fitted for {found.checkpoint}, {why}; fit it again, or delete it.",
        )
    assert model.schema is not None
    model.temperature, model.thresholds = found.settings(model.schema)
    return found, ""


def keep(found: Calibration | None, folder: Path) -> None:
    """Leave with results what was applied to them, and nothing where nothing was."""
    if found is not None:
        found.write(folder / FILE)
    else:
        (folder / FILE).unlink(missing_ok=True)
