"""What the files of a run hold: the types of their content, and the functions that parse them."""

import math
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict

from proj.engine.class_paths import update_class_paths
from proj.engine.runs.files import parse_json, parse_yaml, write_json
from proj.engine.runs.validation import mismatch, shown
from proj.errors import UserError

# What the user can do about a damaged file that `fit` wrote, or that `test` or `validate` wrote.
LOST = "restore it or delete the run"
COMPUTED = "write it again with `test` or `validate`"


class GitState(TypedDict):
    commit: str
    dirty: NotRequired[bool]


class BaselineFacts(TypedDict):
    """What `baseline` records about a standard learner, beside the facts of a run."""

    learner: str
    title: str
    seconds: float


class MemberFacts(TypedDict):
    """A member of an ensemble: the name of its run, and the title of a baseline's learner."""

    name: str
    weight: float
    baseline: NotRequired[str | None]


class EnsembleFacts(TypedDict):
    """What `ensemble` and ``cv --ensemble`` record about the members of an ensemble.

    ``kind`` is ``runs`` if the weights were fitted on the validation split that all members share,
    and ``folds`` for the models of a cross-validation, which have equal weights.
    """

    kind: Literal["runs", "folds"]
    members: list[MemberFacts]


class PlanFacts(TypedDict):
    """What ``fit --within`` has planned; see ``callbacks.stretch.StepPlan``."""

    seconds: float
    steps: int | None
    changes: list[list[float]]


class Manifest(TypedDict):
    """What `fit`, `baseline` or `ensemble` records about a run."""

    start: str
    status: Literal["running", "finished", "stopped", "failed"]
    end: NotRequired[str | None]
    command: NotRequired[list[str]]
    seed: NotRequired[int | None]
    python: NotRequired[str]
    packages: NotRequired[dict[str, str]]
    distributions: NotRequired[dict[str, str]]
    git: NotRequired[GitState | None]
    data: NotRequired[str]
    hardware: NotRequired[dict[str, Any]]
    flags: NotRequired[dict[str, Any]]
    resumed: NotRequired[list[str]]
    best_epoch: NotRequired[int | None]
    warnings: NotRequired[list[str]]
    loggers: NotRequired[dict[str, str]]
    baseline: NotRequired[BaselineFacts]
    ensemble: NotRequired[EnsembleFacts]
    within: NotRequired[PlanFacts]
    out_of_time: NotRequired[bool]


class ClassSection(TypedDict):
    """A class of a config and its options."""

    class_path: NotRequired[str]
    init_args: NotRequired[dict[str, Any] | None]


class Experiment(TypedDict):
    """The sections of a config that are read other than by its parser."""

    trainer: dict[str, Any]
    model: ClassSection
    data: NotRequired[ClassSection | None]
    seed_everything: NotRequired[int | bool | None]


class FindingEntry(TypedDict):
    """A finding in ``findings.json``; see ``proj.data.base.Finding``."""

    what: str
    effect: str
    remedy: str
    column: NotRequired[str | None]


class MetricEntry(TypedDict):
    """The entry of a metric in ``metrics.json``."""

    value: float | None
    low: NotRequired[float | None]
    high: NotRequired[float | None]
    support: NotRequired[int]
    method: NotRequired[str]
    why: NotRequired[str]


class ImportanceEntry(TypedDict):
    """The entry of a column in ``importance.json``."""

    value: float | None
    low: float | None
    high: float | None
    why: NotRequired[str]


class Importance(TypedDict):
    """What `validate --importance` writes into ``importance.json``."""

    metric: str
    checkpoint: str
    rows: int
    repeats: int
    columns: dict[str, ImportanceEntry]


def parse_config(content: bytes, path: Path) -> dict[str, Any]:
    """Return the experiment in a ``config.yaml``; raise UserError if it is damaged."""
    config = parse_yaml(content, path, LOST)
    if problem := mismatch(config, Experiment):
        raise UserError(f"{path} is damaged: {problem}; {LOST}.")
    updated: dict[str, Any] = update_class_paths(config)
    return updated


def parse_manifest(content: bytes, path: Path) -> Manifest:
    """Return the content of a ``manifest.json``; raise UserError if it is damaged."""
    manifest: Manifest = parse_json(content, path, Manifest, LOST)
    return manifest


def parse_metrics(content: bytes, path: Path) -> dict[str, dict[str, Any]]:
    """Return the content of a ``metrics.json``; raise UserError if it is damaged."""
    metrics: dict[str, dict[str, Any]]
    metrics = parse_json(content, path, dict[str, MetricEntry], COMPUTED)
    for name, entry in metrics.items():
        if (entry.get("low") is None) != (entry.get("high") is None):
            raise UserError(
                f"{path} is damaged: {shown(name)}: expected both limits or none; {COMPUTED}."
            )
    return metrics


def metric_entries(values: dict[str, float]) -> dict[str, dict[str, Any]]:
    """Return metrics in the form of ``metrics.json``.

    None stands for a value that is undefined or infinite, because JSON has neither.
    """
    return {
        name: {"value": value if math.isfinite(value) else None} for name, value in values.items()
    }


def write_metrics(path: Path, metrics: dict[str, dict[str, Any]]) -> None:
    """Write ``metrics.json``: ``{"f1": {"value": 0.97, "low": 0.95, "high": 0.98, …}, …}``."""
    write_json(path, metrics)


def flatten_config(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the leaves of a config by dotted key, without ``class_path`` and ``init_args``.

    >>> flatten_config({"model": {"class_path": "M", "init_args": {"lr": 0.1}}})
    {'model': 'M', 'model.lr': 0.1}
    """
    leaves: dict[str, Any] = {}
    for name, value in config.items():
        key = prefix if name in ("class_path", "init_args") else f"{prefix}.{name}".strip(".")
        if isinstance(value, dict):
            leaves |= flatten_config(value, key)
        elif value is not None:
            leaves[key] = value if isinstance(value, bool | int | float | str) else str(value)
    return leaves
