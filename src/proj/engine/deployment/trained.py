"""What a bundle is made of: a run's graph, its inputs and outputs, and the rows that prove it."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from proj.data.base import DataModule
from proj.data.loader import take
from proj.engine.config.experiment import ExperimentCLI
from proj.engine.deployment.graph import EXAMPLE_ROWS, AnswerGraph, ModuleGraph, input_names
from proj.engine.deployment.proof import TestRows, answer_columns
from proj.engine.deployment.spec import (
    array_inputs,
    comparison,
    describe_numbers,
    describe_outputs,
)
from proj.engine.evaluation.prediction_set import read_table
from proj.engine.evaluation.restore import RestoredRun, apply_calibration
from proj.engine.evaluation.results import check_tested
from proj.engine.exit_codes import as_user_error
from proj.engine.runs import calibration
from proj.engine.runs.checkpoint_file import read_checkpoint
from proj.engine.runs.files import is_present
from proj.engine.runs.locks import read_results
from proj.engine.runs.run import Run
from proj.errors import UserError
from proj.models.base import Model
from proj.schema import Array, Schema


class Trained(NamedTuple):
    """A run with its weights, ready for export.

    Attributes:
        run: the run.
        graph: module in evaluation mode from encoded inputs to probabilities or numbers.
        example: ``EXAMPLE_ROWS`` rows of each input of the graph, by name.
        inputs: the section ``inputs`` of ``bundle.json``.
        outputs: the section ``outputs``.
        rows: the raw test rows with the run's answers.
        net: class of the net.
        schema: schema of the data; None for a LightningModule without one.
        splits: number of rows of each split, if it is known.
    """

    run: Run
    graph: nn.Module
    example: dict[str, Tensor]
    inputs: dict[str, Any]
    outputs: dict[str, Any]
    rows: TestRows
    net: str
    schema: Schema | None = None
    splits: Mapping[str, int] = MappingProxyType({})


class RunInputs(NamedTuple):
    """The inputs of a run.

    Attributes:
        raw: the raw test rows; see ``TestRows``.
        example: ``EXAMPLE_ROWS`` rows of each input of the graph, by name.
        section: the section ``inputs`` of ``bundle.json``.
    """

    raw: Any
    example: dict[str, Tensor]
    section: dict[str, Any]


def load_trained(restored: RestoredRun, verb: str) -> Trained:
    """Load the weights of a restored run, and its test rows with its answers.

    Raises:
        UserError: if the run has not been tested, or was tested with another calibration.
    """
    run, cli, checkpoint, _ = restored
    content = read_checkpoint(checkpoint)
    model = cli.model
    if not isinstance(model, Model):
        return _load_other(run, cli, content, verb)
    check_tested(run, "metrics.json", "predictions.parquet")
    check_precision(cli, run)
    model.load_state_dict(content["state_dict"])
    assert model.schema is not None
    rows, answers = _tested(run, model, model.schema, checkpoint)
    inputs = read_data(cli, rows, model.schema, verb)
    proof_rows = TestRows(inputs.raw, rows, answers, comparison(model.schema, answers.columns))
    return Trained(
        run,
        AnswerGraph(model, list(inputs.example)).eval(),
        inputs.example,
        inputs.section,
        describe_outputs(model),
        proof_rows,
        type(model.net).__name__,
        model.schema,
        split_rows(cli),
    )


def check_precision(cli: ExperimentCLI, run: Run) -> None:
    """Raise UserError unless `test` computes with the precision of a bundle."""
    precision = str(cli.config.trainer.precision or "32-true")
    if precision in ("32", "32-true", "64", "64-true"):
        return
    exact = "--trainer.precision 32-true"
    raise UserError(
        f"trainer.precision: expected 32-true or 64-true, got {precision}, whose predictions a "
        f"bundle does not repeat to 5 digits; run `test --run {run.path.name} {exact}`, then "
        f"`export --run {run.path.name} {exact}`."
    )


def _tested(run: Run, model: Model, schema: Schema, checkpoint: Path) -> tuple[Array, pl.DataFrame]:
    """Apply the model's calibration; return row numbers and answers of the test split."""
    with read_results(run, "test"):
        table = read_table(run.path / "test" / "predictions.parquet")
        tested = run.path / "test" / calibration.FILE
        then = calibration.read(tested) if is_present(tested) else None
    again = f"run `test --run {run.path.name}` again"
    applied = apply_calibration(model, checkpoint)
    if applied != then:
        raise UserError(
            f"{run.path} was tested with another calibration ({then or 'none'}) than the present "
            f"one ({applied or 'none'}): expected the same; {again}."
        )
    names = answer_columns(schema, model.conformal_limits)
    if missing := [name for name in ["row", *names] if name not in table.columns]:
        raise UserError(
            f"{run.path}/test/predictions.parquet: expected the column {missing[0]}, found none; "
            f"{again}."
        )
    return table["row"].to_numpy(), table.select(names)


def read_data(cli: ExperimentCLI, rows: Array, schema: Schema, verb: str) -> RunInputs:
    """Return the inputs of one of our models, with the raw test rows of these numbers."""
    data = cli.datamodule
    if not isinstance(data, DataModule):
        x, _ = _loaded(cli, verb)
        if len(x) != len(rows):
            raise UserError(
                f"{verb}: expected the {len(rows)} test rows of the run, got {len(x)} from "
                "test_dataloader; run `test` again."
            )
        return RunInputs(x.numpy(), _examples({"x": x}), array_inputs(x))
    data.prepare_data()
    data.setup("test")
    test = data.splits["test"]
    inputs = take(test, torch.arange(min(EXAMPLE_ROWS, len(test.row)))).x
    by_name = {n: inputs[n] if isinstance(inputs, dict) else inputs for n in input_names(inputs)}
    raw = data.raw_rows(rows, "test")
    raw = raw.numpy() if isinstance(raw, Tensor) else raw
    return RunInputs(raw, _examples(by_name), data.describe_inputs(schema))


def split_rows(cli: ExperimentCLI) -> dict[str, int]:
    """Return the number of rows of each split, if it is known."""
    data = cli.datamodule
    return {s: data.rows(s) for s in data.splits} if isinstance(data, DataModule) else {}


def _examples(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return ``EXAMPLE_ROWS`` rows of inputs, which may have fewer."""
    return {name: x[torch.arange(EXAMPLE_ROWS) % len(x)] for name, x in inputs.items()}


# Models and data modules that are not built on this package's bases


def _load_other(run: Run, cli: ExperimentCLI, checkpoint: dict[str, Any], verb: str) -> Trained:
    """Load a user's own LightningModule. The answers to compare with are computed now."""
    model: LightningModule = cli.model
    with as_user_error(f"{verb}: the weights cannot be loaded"):
        model.configure_model()
        model.on_load_checkpoint(checkpoint)
        model.load_state_dict(checkpoint["state_dict"])
    x, is_pair = _loaded(cli, verb)
    graph = ModuleGraph(model, is_pair).eval()
    with as_user_error(f"{verb}: the outputs cannot be computed"), torch.no_grad():
        widths = {name: v.shape[1] for name, v in graph.columns(x[:EXAMPLE_ROWS]).items()}
        outputs = torch.cat([graph(part) for part in torch.split(x, 1024)]).numpy()
    names = [
        name if width == 1 else f"{name}_{i}"
        for name, width in widths.items()
        for i in range(width)
    ]
    answers = pl.DataFrame({name: outputs[:, i] for i, name in enumerate(names)})
    rows = TestRows(x.numpy(), np.arange(len(x)), answers, comparison(None, names, outputs.std(0)))
    return Trained(
        run,
        graph,
        _examples({"x": x}),
        array_inputs(x),
        describe_numbers(names),
        rows,
        type(model).__name__,
    )


def _loaded(cli: ExperimentCLI, verb: str) -> tuple[Tensor, bool]:
    """Return the inputs of the test loader [rows, ...], and whether its batches are (x, y)."""
    data = cli.datamodule if cli.datamodule is not None else cli.model
    with as_user_error(f"{verb}: the test rows cannot be loaded"):
        data.prepare_data()
        data.setup("test")
        batches = list(data.test_dataloader())
    is_pair = bool(batches) and isinstance(batches[0], tuple | list)
    parts = [batch[0] if is_pair else batch for batch in batches]
    if not parts or not all(isinstance(part, Tensor) for part in parts):
        got = type(parts[0]).__name__ if parts else "no batches"
        raise UserError(
            f"{verb}: expected test batches that are a tensor, or begin with one, got {got}; a "
            "bundle of other inputs is not supported."
        )
    return torch.cat(parts), is_pair
