"""A model's temperature and thresholds, stored beside its checkpoint in ``calibration.json``."""

import hashlib
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from proj.engine.runs.files import read_json, write_json
from proj.errors import UserError
from proj.models.base import Model
from proj.schema import DEFAULT_THRESHOLD, Schema

FILE = "calibration.json"
# Temperatures outside this range make no sense.
LOWEST, HIGHEST = 0.01, 100.0
REMEDY = "delete the file, or fit it again"
MAX_THRESHOLDS_SHOWN = 10


@dataclass(frozen=True)
class Calibration:
    """A temperature and thresholds that ``validate`` has fitted to a model's outputs.

    Raw outputs are divided by the temperature. A probability above its threshold is a yes.

    Attributes:
        checkpoint: name of the checkpoint's file.
        sha256: hash of its content, to recognize the checkpoint.
        rows: number of rows of the validation split that it was fitted on.
        temperature: above 1 if the model was overconfident (Guo et al. 2017, arXiv:1706.04599);
            None if not fitted.
        thresholds: by name of the positive class or of each label; None if not fitted, so 0.5.
        rule: rule that chose the thresholds: ``f1`` or ``precision=P``.
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
            shown = list(self.thresholds.items())[:MAX_THRESHOLDS_SHOWN]
            values = [
                f"{name} {threshold:.3g}" if several else f"{threshold:.3g}"
                for name, threshold in shown
            ]
            more = ", …" if len(self.thresholds) > MAX_THRESHOLDS_SHOWN else ""
            rule = f" ({self.rule})" if self.rule else ""
            parts.append(f"threshold{'s' if several else ''} {', '.join(values)}{more}{rule}")
        return ", ".join(parts)

    def settings(self, schema: Schema) -> tuple[float, tuple[float, ...]]:
        """Return the temperature and the thresholds in the schema's order.

        Raises UserError if they are for another kind of model.
        """
        if schema.task == "regression":
            raise UserError(
                f"{FILE}: expected a model of classes or labels, got one of numbers; {REMEDY}."
            )
        temperature = 1.0 if self.temperature is None else float(self.temperature)
        if self.thresholds is None:
            return temperature, DEFAULT_THRESHOLD
        names = threshold_names(schema)
        if set(names) != set(self.thresholds):
            expected = (
                f"thresholds for {list(names)}" if names else "no thresholds for several classes"
            )
            got = str(list(self.thresholds))[:200]
            raise UserError(f"{FILE}: expected {expected}, got thresholds for {got}; {REMEDY}.")
        return temperature, tuple(float(self.thresholds[name]) for name in names)

    def write(self, path: Path) -> None:
        """Write the calibration as JSON."""
        write_json(path, asdict(self))


def threshold_names(schema: Schema) -> tuple[str, ...]:
    """Return the names that have a threshold: the positive class, or each label."""
    return {"binary": schema.class_names[1:], "multilabel": schema.class_names}.get(schema.task, ())


def file_sha256(checkpoint: Path) -> str:
    """Return the SHA-256 of a file."""
    with checkpoint.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_file_name(value: Any) -> bool:
    return isinstance(value, str) and value.isprintable() and Path(value).name == value


def _is_hash(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


def _is_count(value: Any) -> bool:
    return type(value) is int and value > 0


def _is_number(value: Any, low: float, high: float) -> bool:
    return type(value) in (int, float) and low <= value <= high


def _is_temperature(value: Any) -> bool:
    return value is None or _is_number(value, LOWEST, HIGHEST)


def _are_thresholds(value: Any) -> bool:
    if value is None:
        return True
    return (
        isinstance(value, dict)
        and bool(value)
        and all(_is_number(threshold, 0, 1) for threshold in value.values())
    )


def _is_rule(value: Any) -> bool:
    return value is None or (isinstance(value, str) and value.isprintable() and len(value) < 40)


# The valid values of each key of the file, in words and as a test.
KEYS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "checkpoint": ("the name of a file", _is_file_name),
    "sha256": ("64 hexadecimal digits", _is_hash),
    "rows": ("a number of rows", _is_count),
    "temperature": (f"a number from {LOWEST:g} to {HIGHEST:g}, or null", _is_temperature),
    "thresholds": ("a number from 0 to 1 for each name, or null", _are_thresholds),
    "rule": ("f1, precision=P or null", _is_rule),
}


def read(path: Path) -> Calibration:
    """Read a calibration; raise UserError if the file is damaged or cannot be applied."""
    values = read_json(path, Any, REMEDY)
    if not isinstance(values, dict) or values.keys() != KEYS.keys():
        got = ", ".join(values) if isinstance(values, dict) else type(values).__name__
        raise UserError(
            f"{path}: expected the keys {', '.join(KEYS)}, got {got[:200]!r}; {REMEDY}."
        )
    for key, (expected, is_valid) in KEYS.items():
        if not is_valid(values[key]):
            got = repr(values[key])[:80]
            raise UserError(f"{path}: {key}: expected {expected}, got {got}; {REMEDY}.")
    if values["temperature"] is None and values["thresholds"] is None:
        raise UserError(f"{path}: expected a temperature or thresholds, got neither; {REMEDY}.")
    return Calibration(**values)


def apply(model: Model, checkpoint: Path) -> tuple[Calibration | None, str]:
    """Set the temperature and thresholds that were fitted for the model's checkpoint.

    The model needs its schema.

    Returns:
        The calibration that was applied, or None; and if there is a calibration for another
        checkpoint, the reason why it was not applied.
    """
    path = checkpoint.with_name(FILE)
    if not path.is_file():
        return None, ""
    calibration = read(path)
    if file_sha256(checkpoint) != calibration.sha256:
        has_changed = checkpoint.name == calibration.checkpoint
        mismatch = "which has changed since" if has_changed else f"and this is {checkpoint.name}"
        return None, (
            f"{path} is not applied: it was fitted for {calibration.checkpoint}, {mismatch}; "
            "fit it again, or delete it."
        )
    assert model.schema is not None
    model.temperature, model.thresholds = calibration.settings(model.schema)
    return calibration, ""


def save_applied(calibration: Calibration | None, folder: Path) -> None:
    """Save the calibration that was applied to results in the folder of the results.

    With None, delete the calibration of earlier results.
    """
    if calibration is not None:
        calibration.write(folder / FILE)
    else:
        (folder / FILE).unlink(missing_ok=True)
