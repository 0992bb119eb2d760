"""The results of `validate` and `test` in the folder of a run: read, write and show them."""

import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from proj.engine import console
from proj.engine.evaluation.prediction_set import average_of
from proj.engine.evaluation.scoring import Metrics
from proj.engine.runs.checkpoint_file import read_checkpoint
from proj.engine.runs.contents import LOST, metric_entries, write_metrics
from proj.engine.runs.files import is_present, read_json
from proj.engine.runs.run import Run
from proj.errors import UserError
from proj.schema import Schema, Task


def check_tested(run: Run, *files: str) -> None:
    """Raise UserError unless the run's ``test/`` folder has the files."""
    missing = [f"test/{name}" for name in files if not (run.path / "test" / name).is_file()]
    if missing and (run.path / "test" / "metrics.json").is_file():
        raise UserError(
            f"{run.path}: expected {' and '.join(missing)}, which `test` writes for models of this "
            f"package, got the metrics of a module of your own; read test/metrics.json instead."
        )
    if missing:
        raise UserError(
            f"{run.path} has not been tested: expected {' and '.join(missing)} in it; run "
            f"`test --run {run.path.name}` first."
        )


def read_schema(run: Run) -> Schema:
    """Return the schema in the run's best checkpoint, or of a baseline that in its folder.

    Raises UserError if there is none.
    """
    if is_present(path := run.path / "schema.json"):
        return _read_schema_file(path)
    schema = read_checkpoint(run.checkpoint("best")).get("schema")
    if not schema:
        raise UserError(
            f"{run.path}: expected a run of one of our models, got a checkpoint without a schema; "
            "read test/metrics.json instead."
        )
    return Schema.from_dict(schema)


def _read_schema_file(path: Path) -> Schema:
    values = read_json(path, dict[str, Any], LOST)
    try:
        return Schema.from_dict(values)
    except (UserError, TypeError, LookupError, ValueError, AttributeError) as error:
        raise UserError(f"{path} is damaged: {error}; {LOST}.") from error


def run_seed(run: Run) -> int:
    """Return the seed of the run's experiment, which also determines its intervals."""
    return int(run.config.get("seed_everything") or 0)


def logged_metrics(logged: Mapping[str, Tensor], split: str) -> Metrics:
    """Return a Trainer's logged metrics (``callback_metrics``) in the form of metrics.json."""
    values = {name.removeprefix(f"{split}/"): value.item() for name, value in logged.items()}
    return metric_entries(values)


def save_metrics(
    run: Run,
    verb: str,
    model: str,
    metrics: Metrics,
    warnings: Iterable[str],
    has_predictions: bool,
    task: Task | None = None,
    remarks: Iterable[str] = (),
) -> None:
    """Write ``metrics.json`` into the folder of a verb, and show the metrics with warnings.

    ``model`` names the checkpoint. Also print the ``remarks``, and the paths of the metrics and of
    the predictions, if written.
    """
    path = run.path / verb / "metrics.json"
    write_metrics(path, metrics)
    title = f"{verb}, {run.path.name}, {model}"
    console.show_metrics(title, metrics, task, average_of(run))
    for remark in remarks:
        console.say(remark)
    for warning in warnings:
        console.warn(warning)
    console.say(f"metrics: {path}")
    if has_predictions:
        console.say(f"predictions: {path.with_name('predictions.parquet')}")


def show_location(run: Run) -> None:
    """Print the run's folder, and the command for TensorBoard if the run has curves."""
    console.say(f"run: {run.path}")
    if has_tensorboard(run):
        console.say(f"watch: tensorboard --logdir {shlex.quote(str(run.path.parent))}")


def has_tensorboard(run: Run) -> bool:
    """Return whether the run has logged to TensorBoard."""
    return any(run.path.glob("events.out.tfevents.*"))
