"""A model's temperature, thresholds and conformal limits, stored in ``calibration.json``."""

import hashlib
import re
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from proj.engine.runs.files import read_json, write_json
from proj.errors import UserError
from proj.schema import DEFAULT_THRESHOLD, Schema

if TYPE_CHECKING:
    # It imports Lightning, which takes seconds and which `compare` does not need.
    from proj.models.base import Model

FILE = "calibration.json"
# Temperatures outside this range make no sense.
LOWEST, HIGHEST = 0.01, 100.0
REMEDY = "delete the file, or fit it again"
MAX_SHOWN = 10


@dataclass(frozen=True)
class Calibration:
    """What ``validate`` has fitted to a model's outputs: temperature, thresholds, conformal limits.

    Raw outputs are divided by the temperature. A probability above its threshold is a yes. An
    interval reaches from the prediction to its limit on both sides. A set holds the classes whose
    probability is not below the limit.

    Attributes:
        checkpoint: name of the checkpoint's file.
        sha256: hash of its content, to recognize the checkpoint.
        rows: number of rows of the validation split that it was fitted on.
        temperature: above 1 if the model was overconfident (Guo et al. 2017, arXiv:1706.04599);
            None if not fitted.
        thresholds: by name of the positive class or of each label; None if not fitted, so 0.5.
        rule: rule that chose the thresholds: ``f1`` or ``precision=P``.
        coverage: share of rows whose interval or set contains the target; None if not fitted.
        limits: by name of each target or label, or of the target of all classes; None if not
            fitted.
    """

    checkpoint: str
    sha256: str
    rows: int
    temperature: float | None
    thresholds: dict[str, float] | None
    rule: str | None
    coverage: float | None = None
    limits: dict[str, float] | None = None

    def __str__(self) -> str:
        parts = [] if self.temperature is None else [f"temperature {self.temperature:.3g}"]
        if self.thresholds is not None:
            plural = "s" if len(self.thresholds) > 1 else ""
            rule = f" ({self.rule})" if self.rule else ""
            parts.append(f"threshold{plural} {_listed(self.thresholds)}{rule}")
        if self.limits is not None:
            plural = "s" if len(self.limits) > 1 else ""
            parts.append(f"coverage {self.coverage:g} (limit{plural} {_listed(self.limits)})")
        return ", ".join(parts)

    def settings(self, schema: Schema) -> tuple[float, tuple[float, ...]]:
        """Return the temperature and the thresholds in the schema's order.

        Raises UserError if they are for another kind of model.
        """
        fits_classes = self.temperature is not None or self.thresholds is not None
        if schema.task == "regression" and fits_classes:
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

    def conformal_limits(self, schema: Schema) -> tuple[float, ...]:
        """Return the conformal limits in the schema's order; none if they are not fitted.

        Raises UserError if they are for another kind of model.
        """
        names = schema.target_names
        if self.limits is None:
            return ()
        is_share = schema.task != "regression"
        if set(names) != set(self.limits) or (is_share and max(self.limits.values()) > 1):
            kind = "probabilities" if is_share else "numbers"
            got = str(self.limits)[:200]
            raise UserError(f"{FILE}: expected limits of {kind} for {names}, got {got}; {REMEDY}.")
        return tuple(float(self.limits[name]) for name in names)

    def write(self, path: Path) -> None:
        """Write the calibration as JSON, without a coverage as programs before it did."""
        unused = OPTIONAL if self.limits is None else ()
        write_json(path, {k: value for k, value in asdict(self).items() if k not in unused})


def _listed(values: dict[str, float]) -> str:
    """Return the values for a reader, with their names if there are several."""
    shown = list(values.items())[:MAX_SHOWN]
    texts = [f"{name} {value:.3g}" if len(values) > 1 else f"{value:.3g}" for name, value in shown]
    return f"{', '.join(texts)}{', …' if len(values) > MAX_SHOWN else ''}"


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


def _is_coverage(value: Any) -> bool:
    return _is_number(value, 0, 1) and 0 < value < 1


def _are_limits(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and bool(value)
        and all(_is_number(limit, 0, sys.float_info.max) for limit in value.values())
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
    "coverage": ("a number between 0 and 1", _is_coverage),
    "limits": ("a number of 0 or more for each name", _are_limits),
}
# The keys that are in the file together, or not at all.
OPTIONAL = ("coverage", "limits")


def read(path: Path) -> Calibration:
    """Read a calibration; raise UserError if the file is damaged or cannot be applied."""
    values = read_json(path, Any, REMEDY)
    keys = [key for key in KEYS if key not in OPTIONAL]
    if isinstance(values, dict) and values.keys() & {*OPTIONAL}:
        keys = [*KEYS]
    if not isinstance(values, dict) or values.keys() != {*keys}:
        got = ", ".join(values) if isinstance(values, dict) else type(values).__name__
        raise UserError(
            f"{path}: expected the keys {', '.join(keys)}, got {got[:200]!r}; {REMEDY}."
        )
    for key in keys:
        expected, is_valid = KEYS[key]
        if not is_valid(values[key]):
            got = repr(values[key])[:80]
            raise UserError(f"{path}: {key}: expected {expected}, got {got}; {REMEDY}.")
    calibration = Calibration(**values)
    if not str(calibration):
        raise UserError(f"{path}: expected a temperature or thresholds, got neither; {REMEDY}.")
    return calibration


def apply(model: "Model", checkpoint: Path) -> tuple[Calibration | None, str]:
    """Set the temperature, thresholds and limits that were fitted for the model's checkpoint.

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
    model.conformal_limits = calibration.conformal_limits(model.schema)
    return calibration, ""


def save_applied(calibration: Calibration | None, folder: Path) -> None:
    """Save the calibration that was applied to results in the folder of the results.

    With None, delete the calibration of earlier results.
    """
    if calibration is not None:
        calibration.write(folder / FILE)
    else:
        (folder / FILE).unlink(missing_ok=True)
