"""Export a run as a bundle: graph, description, runtime, proof and model card."""

import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import torch

from proj.data.base import DataModule
from proj.data.loader import take
from proj.engine import PACKAGE, console
from proj.engine.config.experiment import ExperimentCLI
from proj.engine.deployment import graph
from proj.engine.deployment.proof import (
    RUNTIME,
    TestRows,
    read_test_rows,
    require_equal,
    run_check,
)
from proj.engine.deployment.spec import RELATIVE, build_spec, file_hash
from proj.engine.evaluation.prediction_set import read_table
from proj.engine.evaluation.restore import RestoredRun, apply_calibration
from proj.engine.evaluation.results import check_tested
from proj.engine.runs import calibration
from proj.engine.runs.checkpoint_file import read_checkpoint
from proj.engine.runs.files import is_present, write_json
from proj.engine.runs.locks import read_results
from proj.engine.runs.run import Run
from proj.errors import UserError
from proj.models.base import Model


class Trained(NamedTuple):
    """A run's model with its weights and calibration, and the raw test rows with its answers."""

    run: Run
    model: Model
    data: DataModule
    rows: TestRows


def load_trained(restored: RestoredRun, verb: str) -> Trained:
    """Load the weights of a restored run, and its test rows with the answers of `test`.

    Raises:
        UserError: if the run has not been tested, or was tested with another calibration.
    """
    run, cli, checkpoint, _ = restored
    model, data = _own_classes(cli, verb)
    check_tested(run, "metrics.json", "predictions.parquet")
    with read_results(run, "test"):
        table = read_table(run.path / "test" / "predictions.parquet")
        tested = run.path / "test" / calibration.FILE
        then = calibration.read(tested) if is_present(tested) else None
    model.load_state_dict(read_checkpoint(checkpoint)["state_dict"])
    model.eval()
    applied = apply_calibration(model, checkpoint)
    if applied != then:
        raise UserError(
            f"{run.path} was tested with another calibration ({then or 'none'}) than the present "
            f"one ({applied or 'none'}): expected the same; run `test --run {run.path.name}` again."
        )
    data.prepare_data()
    data.setup("test")
    raw = data.raw_rows(table["row"].to_numpy(), "test")
    assert model.schema is not None
    return Trained(run, model, data, read_test_rows(raw, table, model.schema))


def _own_classes(cli: ExperimentCLI, verb: str) -> tuple[Model, DataModule]:
    model, data = cli.model, cli.datamodule
    if isinstance(model, Model) and isinstance(data, DataModule):
        return model, data
    raise UserError(
        f"{verb}: expected a model and a data module built on this package's bases, got "
        f"{type(model).__name__} and {type(data).__name__}."
    )


def write_bundle(trained: Trained, output: Path, model_format: str, keep_rows: bool) -> None:
    """Write the bundle of a run into a new folder, if the bundle answers as the run.

    Raises:
        UserError: if the net cannot be exported.
        ProofError: if the bundle answers otherwise.
    """
    with new_folder(output) as folder:
        write_graph(trained, folder, model_format)
        shutil.copytree(
            RUNTIME, folder / RUNTIME.name, ignore=shutil.ignore_patterns("__pycache__")
        )
        proof = prove(trained, folder, folder / RUNTIME.name)
        if keep_rows:
            trained.rows.sample().write(folder / "rows", copy_files=True)
        hashes = {path.name: file_hash(path) for path in folder.iterdir() if path.is_file()}
        write_json(folder / "proof.json", {**proof, "sha256": hashes})


def write_graph(trained: Trained, folder: Path, model_format: str) -> None:
    """Write the graph and ``bundle.json``."""
    model, data = trained.model, trained.data
    count = data.rows("test")
    positions = torch.arange(graph.EXAMPLE_ROWS) % count
    x = take(data.splits["test"], positions).x
    names = graph.input_names(x)
    spec = build_spec(model, type(data), model_format, names)
    inputs = [x[name] for name in names] if isinstance(x, dict) else [x]
    console.say(f"exporting {type(model.net).__name__} as {model_format}")
    program = graph.trace(graph.AnswerGraph(model, names).eval(), inputs)
    path = folder / spec["model"]["file"]
    if model_format == "onnx":
        graph.write_onnx(program, inputs, names, path)
    else:
        torch.export.save(program, path)
    spec["run"] = {"name": trained.run.path.name}
    write_json(folder / "bundle.json", spec)


def prove(trained: Trained, bundle: Path, package: Path) -> dict[str, Any]:
    """Pass all test rows through a bundle; return the content of ``proof.json``."""
    rows = bundle.parent / f"{bundle.name}.rows"
    try:
        trained.rows.write(rows, copy_files=False)
        result = run_check(bundle, rows, package, absolute_paths=True)
    finally:
        shutil.rmtree(rows, ignore_errors=True)
    for warning in result["unreadable"]:
        console.warn(warning)
    require_equal(result, str(trained.run.path), HINTS)
    largest = result["largest_difference"]
    console.say(f"proof: {result['rows']} test rows, largest difference {largest:.1e}")
    return {
        "rows": result["rows"],
        "largest_difference": largest,
        "tolerance": RELATIVE,
        **{name: result[name] for name in ("versions", "python", "machine", "system")},
        "exported_with": {name: metadata.version(name) for name in (PACKAGE, "torch")},
    }


HINTS = (
    "No bundle is written.",
    "If the data, the checkpoint or trainer.precision have changed since, run `test` again.",
)


@contextmanager
def new_folder(output: Path) -> Iterator[Path]:
    """Yield a temporary folder beside ``output`` that is renamed to it at the end.

    After an exception nothing is left.
    """
    check_output(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    folder = output.parent / f".{output.name}.{secrets.token_hex(4)}"
    folder.mkdir()
    try:
        yield folder
        check_output(output)
        folder.rename(output)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def check_output(output: Path) -> None:
    """Raise UserError if there is a file or folder of this name."""
    if output.exists() or output.is_symlink():
        raise UserError(
            f"--output: expected a new folder, got {output}, which exists; choose another name, or "
            "delete it."
        )
