"""What `validate` and `test` ask of this room: intervals for the metrics they have computed, doubts, and the page."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from lightning.pytorch import Trainer

from proj.data.base import DataModule
from proj.data.loader import take
from proj.engine import console
from proj.engine.console import number
from proj.engine.evaluation import artifacts
from proj.engine.evaluation.curves import log_losses
from proj.engine.evaluation.importance import REPEATS, Rows, importances, inputs_of, predictor
from proj.engine.evaluation.intervals import Interval, intervals, mean_interval
from proj.engine.evaluation.prediction_set import Array, PredictionSet, read_prediction_set
from proj.engine.runs import calibration
from proj.engine.runs.run import Run, atomic_write
from proj.errors import UserError
from proj.metrics import DEFAULT_MONITOR
from proj.models.base import Model
from proj.schema import Schema, Task

Entries = dict[str, dict[str, Any]]

FEW = 100  # rows below which a share is hardly known
FEW_OF_A_CLASS = 10


def with_intervals(metrics: Entries, run: Run, verb: str, schema: Schema) -> Entries:
    """The metrics of a run, as ``metrics.json`` has them, with 95 % intervals from the predictions file of ``verb``.

    What the predictions do not give (a metric of the user's own) stays as it is. The seed is the experiment's.
    """
    outcomes, seed = load_predictions(run, verb, schema), run.config.get("seed_everything") or 0
    found = intervals(outcomes, seed)
    done: Entries = {}
    for name, entry in metrics.items():
        interval = (
            _loss(outcomes, schema, entry["value"], seed) if name == "loss" else found.get(name)
        )
        done[name] = entry if interval is None else _checked(interval, entry["value"]).entry()
    return done


def load_predictions(run: Run, verb: str, schema: Schema) -> PredictionSet:
    """What `validate` or `test` wrote for each row, with the thresholds that were applied.

    It is in groups where the experiment's data have a column of them.
    """
    table = read_table(run.path / verb / "predictions.parquet")
    group = ((run.config.get("data") or {}).get("init_args") or {}).get("group")
    column = next((name for name in (f"kept_{group}", group) if name in table.columns), None)
    outcomes, applied = (
        read_prediction_set(schema, table, column),
        run.path / verb / calibration.FILE,
    )
    return (
        replace(outcomes, thresholds=calibration.read(applied).settings(schema)[1])
        if applied.is_file()
        else outcomes
    )


def read_table(path: Path) -> pl.DataFrame:
    """A table that a verb wrote into its folder of a run; raises UserError if it is damaged."""
    try:
        return pl.read_parquet(path)
    except pl.exceptions.PolarsError as error:
        raise UserError(
            f"{path} is damaged: {str(error).splitlines()[0]}; `{path.parent.name}` writes it anew."
        ) from error


def small_sample_warnings(metrics: Entries, task: Task) -> Iterator[str]:
    """What cannot be told from so few rows."""
    name = DEFAULT_MONITOR[task].split("/")[1]
    rows = max((entry.get("support", 0) for entry in metrics.values()), default=0)
    low, high = (metrics.get(name, {}).get(side) for side in ("low", "high"))
    if 0 < rows < FEW and low is not None and high is not None:
        yield (
            f"{rows} rows know {name} only as {number(low)} to {number(high)}: models less than "
            f"{number((high - low) / 2)} apart cannot be told apart by them."
        )
    elif 0 < rows < FEW:
        yield f"{rows} rows are too few to know how far {name} is off."
    rare = [of for of, count in _supports(metrics) if count < FEW_OF_A_CLASS]
    if rare:
        yield (
            f"fewer than {FEW_OF_A_CLASS} rows of {', '.join(rare[:10])}{', …' if len(rare) > 10 else ''}: "
            "their own metrics are mostly chance."
        )


def _supports(metrics: Entries) -> Iterator[tuple[str, int]]:
    """The rows of each class or label; of the positive class where there are two."""
    for name, entry in metrics.items():
        kind, _, of = name.partition("/")
        if (
            kind == "recall"
            and "support" in entry
            and (of or not any(other.startswith("recall/") for other in metrics))
        ):
            yield of or "the positive class", entry["support"]


def write_report(run: Run, schema: Schema, step: int | None) -> Path:
    from proj.engine.evaluation.report import (
        write_report as write_page,  # drawing takes a second to import
    )

    return write_page(run, schema, step)


def keep(run: Run, schema: Schema, data: Any) -> Iterator[str]:
    """What the page needs of the data, written beside the predictions of `test`; yields what is left out, and why."""
    if isinstance(data, DataModule):
        yield from artifacts.keep(run, data, schema, load_predictions(run, "test", schema))


def check_importance(model: Any, data: Any) -> None:
    """Raise UserError unless the inputs have columns."""
    if not isinstance(model, Model) or not isinstance(data, DataModule) or model.schema is None:
        raise UserError(
            f"--importance: expected a model and a data module of this package, got {type(model).__name__} and "
            f"{type(data).__name__}; leave it out."
        )
    inputs_of(model.schema)


def importance(
    run: Run, trainer: Trainer, model: Model, data: DataModule, checkpoint: Path
) -> None:
    """Permutation importance on the rows that `validate` predicted, as ``validate/importance.json`` and as a table.

    It runs in this process alone, whatever the number of processes.
    """
    assert model.schema is not None
    outcomes, columns = load_predictions(run, "validate", model.schema), inputs_of(model.schema)
    console.say(
        f"importance: {len(columns)} columns × {REPEATS} permutations, and once as they are: "
        f"{len(columns) * REPEATS + 1} passes over {len(outcomes)} validation rows"
    )
    places = artifacts.places(data.splits["val"], outcomes.row)
    rows = Rows(
        data.splits["val"], places, *predictor(trainer, model, take(data.splits["val"], places[:2]))
    )
    found = importances(rows, outcomes, columns, run.config.get("seed_everything") or 0)
    metric, path = (
        DEFAULT_MONITOR[outcomes.task].split("/")[1],
        run.path / "validate" / "importance.json",
    )
    entries = {name: one.entry() for name, one in found.items()}
    content = {
        "metric": metric,
        "checkpoint": checkpoint.name,
        "rows": len(outcomes),
        "repeats": REPEATS,
        "columns": entries,
    }
    atomic_write(path, lambda file: file.write(json.dumps(content, indent=2).encode()))
    console.show_importance(metric, entries)
    console.say(f"importance: {path}; `report {run.path.name}` puts it on the page")


def _checked(interval: Interval, written: float | None) -> Interval:
    """The interval beside the value that the run computed; without limits if it is not about that value."""
    value = interval.value
    if value is None or written is None:
        return interval._replace(
            value=None, low=None, high=None, why=interval.why or "it is not defined"
        )
    if abs(value - written) > 1e-5 * max(1.0, abs(written)):
        why = f"the predictions file gives {number(value)}"
        return interval._replace(value=written, low=None, high=None, method="", why=why)
    return interval._replace(value=written)


def _loss(outcomes: PredictionSet, schema: Schema, written: float | None, seed: int) -> Interval:
    """The loss, where it is the plain one: then it is a mean over rows, of what the predictions file has."""
    rows = len(outcomes)
    if written is None:
        return Interval(None, None, None, rows, "", "it is not a number")
    for values in _row_losses(outcomes, schema):
        if np.isinf(values).any():
            return Interval(
                written,
                None,
                None,
                rows,
                "",
                "the predictions file has a row with probability 0 of its target",
            )
        if abs(values.mean() - written) <= 1e-5 * abs(written):
            return mean_interval(values, outcomes.group, seed)
    why = "it has options, such as weights, and is no plain mean over what the predictions file has"
    return Interval(written, None, None, rows, "", why)


def _row_losses(outcomes: PredictionSet, schema: Schema) -> Iterator[Array]:
    """Each row's loss [rows], for each kind of it that our models have without options."""
    if outcomes.task == "regression":
        for std in (np.array(schema.target_std), np.ones(len(schema.target_std))):
            error = (outcomes.output - outcomes.target) / std
            yield (error**2).mean(axis=1)
            yield np.abs(error).mean(axis=1)
        return
    yield log_losses(outcomes)
