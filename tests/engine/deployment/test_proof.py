"""A bundle that answers otherwise than its run is refused, and a hostile bundle harms nobody."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import polars as pl
import pytest
from onnx import numpy_helper

from conftest import Cli, Trained, files_in
from engine.deployment.conftest import BUNDLE, RUN, copy_bundle
from proj.engine.commands.export import FORMATS
from proj.engine.deployment import graph
from proj.engine.deployment.export import locked, new_folder
from proj.engine.deployment.runtime import load
from proj.engine.deployment.runtime.check import Comparison, compare, read_chunks
from proj.errors import UserError
from proj.models import Model

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning:onnx.*", "ignore::DeprecationWarning:torch.*"
)
SPEC = "bundle.json"
Spec = dict[str, Any]


def swap_categories(spec: Spec) -> None:
    categories = spec["inputs"]["categorical"][0]["categories"]
    categories[0], categories[1] = categories[1], categories[0]


def move_center(spec: Spec) -> None:
    (seconds,) = (c for c in spec["inputs"]["numeric"] if c["center"])
    seconds["center"] += 100


def drop_a_placeholder(spec: Spec) -> None:
    (amount,) = (s for s in spec["inputs"]["sources"] if s["name"] == "amount")
    amount["format"] = "1.234,5"


def exchange_day_and_month(spec: Spec) -> None:
    (since,) = (s for s in spec["inputs"]["sources"] if s["name"] == "since")
    since["format"] = "%m.%d.%Y %H:%M"


def lower_the_threshold(spec: Spec) -> None:
    spec["outputs"]["thresholds"] = [0.01]


def exchange_classes(spec: Spec) -> None:
    spec["outputs"]["classes"].reverse()


FAULTS = [
    *(swap_categories, move_center, drop_a_placeholder, exchange_day_and_month),
    *(lower_the_threshold, exchange_classes),
]


@pytest.mark.usefixtures("table_bundle")
def test_verify_refuses_each_planted_fault(cli: Cli) -> None:
    """Preprocessing that was changed after the export fails the rows that it changes."""
    rows = set(pl.read_parquet(RUN / "test" / "predictions.parquet")["row"])
    assert not compare(load(BUNDLE), BUNDLE / "rows", absolute_paths=False)["wrong"]
    for fault in FAULTS:
        copy = copy_bundle()
        spec = json.loads((copy / SPEC).read_text())
        fault(spec)
        (copy / SPEC).write_text(json.dumps(spec))
        result = compare(load(copy), copy / "rows", absolute_paths=False)
        assert result["wrong"], fault
        assert {cell["row"] for cell in result["worst"]} <= rows, fault
        if fault == FAULTS[0]:
            error = cli("verify", copy, code=3)
            assert f"{result['wrong']} of 45 rows are answered otherwise than by the run" in error
            assert "Changed since the export: bundle.json" in error
        shutil.rmtree(copy)


@pytest.mark.usefixtures("table_bundle")
def test_verify_refuses_a_changed_weight(cli: Cli) -> None:
    """A model whose numbers were changed fails, whatever its description says."""
    copy = copy_bundle()
    model = onnx.load(copy / "model.onnx")
    largest = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    values = numpy_helper.to_array(largest)
    largest.CopyFrom(numpy_helper.from_array(values * np.float32(1.1), largest.name))
    onnx.save(model, copy / "model.onnx")
    assert "Changed since the export: model.onnx" in cli("verify", copy, code=3)


@pytest.mark.usefixtures("image_bundle")
def test_verify_refuses_another_way_to_scale_images(cli: Cli) -> None:
    """Anomalib's exports predicted otherwise because images were scaled otherwise."""
    copy = copy_bundle()
    spec = json.loads((copy / SPEC).read_text())
    spec["inputs"]["resample"] = "bilinear"
    (copy / SPEC).write_text(json.dumps(spec))
    error = cli("verify", copy, code=3)
    assert "rows are answered otherwise than by the run (row " in error


@pytest.mark.parametrize(
    ("buffer", "format"),
    [("mean", "onnx"), *(pytest.param("std", name, marks=pytest.mark.slow) for name in FORMATS)],
)
def test_export_refuses_another_standardization(
    trained: Trained, cli: Cli, monkeypatch: pytest.MonkeyPatch, buffer: str, format: str
) -> None:
    """A bundle whose statistics differ from those of the run is not written."""
    trained("multiclass")
    cli("test")
    build = graph.AnswerGraph.__init__

    def change(self: graph.AnswerGraph, model: Model, names: list[str]) -> None:
        build(self, model, names)
        dict(self.named_buffers())[f"model.net.layers.0.{buffer}"] += 0.01

    monkeypatch.setattr(graph.AnswerGraph, "__init__", change)
    before = files_in(Path.cwd())
    error = cli("export", "--format", format, code=3)
    assert "rows are answered otherwise than by the run (row " in error
    assert "No bundle is written." in error
    assert files_in(Path.cwd()) == before, "a refused export leaves files"


def test_the_comparison_has_the_stated_tolerance() -> None:
    """1e-5 relative, and 1e-6 near 0; a label must be equal; NaN is never equal."""
    header = {"labels": ["p"], "relative": 1e-5, "absolute": {"n": 1e-6}}

    def wrong(expected: float, got: float, label: str = "a") -> int:
        comparison = Comparison(header)
        columns = {"p": np.array([label]), "n": np.array([got])}
        comparison.add([7], columns, {"p": ["a"], "n": [expected]})
        return len(comparison.wrong)

    assert wrong(0.5, 0.5 * (1 + 0.9e-5)) == 0
    assert wrong(0.5, 0.5 * (1 + 1.1e-5)) == 1
    assert wrong(1e-9, 0.9e-6) == 0
    assert wrong(1e-9, 1.1e-6) == 1
    assert wrong(0.5, 0.5, label="b") == 1
    assert wrong(0.5, np.nan) == 1
    # The column does not vary, such as a corner of all masks.
    header["absolute"]["n"] = 0.0
    assert (wrong(0.0, 0.0), wrong(0.0, 1e-9), wrong(0.0, np.nan)) == (0, 1, 1)


def test_what_a_killed_export_left_is_removed(work: Path) -> None:
    """An abandoned folder would stay forever; that of a process at work must stay."""
    for name in (".bundle.0123abcd", ".bundle.89ef4567", ".bundle.other"):
        Path(name).mkdir()
    with locked(Path(".bundle.89ef4567")), new_folder(work / "bundle") as folder:
        assert files_in_folder(work) == [".bundle.89ef4567", ".bundle.other", folder.name]
    assert files_in_folder(work) == [".bundle.89ef4567", ".bundle.other", "bundle"]
    with pytest.raises(UserError, match="expected a new folder"), new_folder(work / "bundle"):
        pass


def files_in_folder(folder: Path) -> list[str]:
    """Return the names in a folder; a new temporary one is last."""
    names = sorted(path.name for path in folder.iterdir())
    known = [".bundle.89ef4567", ".bundle.other"]
    return [name for name in known if name in names] + [n for n in names if n not in known]


# Bundles of other people


@pytest.mark.usefixtures("table_bundle")
def test_verify_runs_nothing_of_the_bundle(cli: Cli, work: Path) -> None:
    """Code in a bundle of somebody else is not executed, neither in its runtime nor beside it."""
    copy = copy_bundle()
    attack = f"open({str(work / 'canary')!r}, 'w').close()\n"
    for path in (
        *(copy / "runtime").glob("*.py"),
        copy / "numpy.py",
        copy / "runtime" / "added.py",
    ):
        path.write_text(attack)
    error = cli("verify", copy, code=3)
    assert "expected the files of the export, got changes in runtime/" in error
    assert "runtime/added.py" in error
    assert not (work / "canary").exists()


HOSTILE: dict[str, tuple[str, str]] = {
    "a model elsewhere": ("model.onnx", "expected model.onnx or model.pt2, got '../../secret'"),
    "a program": ("model.pt2", "add --trust"),
    "not JSON": ("", "cannot be read: it is damaged"),
    "another version": ("version", "expected a bundle of version 1, got 99"),
}


@pytest.mark.usefixtures("table_bundle")
def test_verify_of_a_hostile_bundle_ends_with_one_message(cli: Cli, work: Path) -> None:
    """A bundle that leads out of its folder, or needs trust, is refused."""
    for name, (what, message) in HOSTILE.items():
        copy = copy_bundle()
        spec = json.loads((copy / SPEC).read_text())
        if what == "model.onnx":
            spec["model"]["file"] = "../../secret"
        elif what == "model.pt2":
            spec["model"] |= {"file": "model.pt2", "format": "torch"}
        elif what == "version":
            spec["bundle"] = 99
        (copy / SPEC).write_text(json.dumps(spec) if what else "{")
        assert message in cli("verify", copy, code=2), name
        shutil.rmtree(copy)
    copy = copy_bundle()
    (work / "outside").write_bytes((copy / "model.onnx").read_bytes())
    (copy / "model.onnx").unlink()
    (copy / "model.onnx").symlink_to(work / "outside")
    assert "got a link to" in cli("verify", copy, code=2)
    assert "found no bundle.json" in cli("verify", "outside", code=2)


def test_rows_of_a_bundle_name_no_other_files() -> None:
    """A path in the rows of a bundle is refused: its content would be decoded and reported."""
    rows = Path("rows")
    rows.mkdir()
    line = {"row": [0], "rows": ["../../etc/passwd"], "answers": {}}
    (rows / "rows.jsonl").write_text(f"{{}}\n{json.dumps(line)}\n")
    with pytest.raises(ValueError, match="expected names of files"):
        list(read_chunks(rows, absolute_paths=False))


# What a bundle needs


BLOCKED = """
import builtins, json, sys
real = builtins.__import__
allowed = {"numpy", "onnxruntime", "runtime", "PIL"}
def refuse(name, globals=None, locals=None, fromlist=(), level=0):
    top = name.partition(".")[0]
    if level == 0 and top in ("torch", "polars", "lightning", "proj", "pandas", "onnx", "sklearn"):
        raise AssertionError(f"the bundle imports {name}")
    return real(name, globals, locals, fromlist, level)
builtins.__import__ = refuse
sys.path.insert(0, sys.argv[1])
from runtime import load
rows = json.loads(sys.stdin.read())
answers = load(sys.argv[1]).predict(rows)
print(json.dumps({name: values.tolist() for name, values in answers.items()}))
"""


@pytest.mark.usefixtures("table_bundle")
def test_a_bundle_needs_numpy_and_onnxruntime_only() -> None:
    """An import of torch or polars would make the bundle useless on a small machine."""
    lines = (BUNDLE / "rows" / "rows.jsonl").read_text().splitlines()
    chunk = json.loads(lines[1])
    process = subprocess.run(
        [sys.executable, "-P", "-c", BLOCKED, str(BUNDLE)],
        input=json.dumps(chunk["rows"]),
        capture_output=True,
        text=True,
        check=True,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
    )
    answers = json.loads(process.stdout)
    assert answers["prediction"] == chunk["answers"]["prediction"]
    expected = pl.read_parquet(RUN / "test" / "predictions.parquet")
    np.testing.assert_allclose(answers["probability_yes"], expected["probability_yes"], rtol=1e-5)


@pytest.mark.slow
@pytest.mark.usefixtures("table_bundle")
def test_a_new_environment_with_two_packages_predicts(work: Path) -> None:
    """A virtual environment with only NumPy and onnxruntime predicts as the run did."""
    subprocess.run([sys.executable, "-m", "venv", "small"], check=True)
    python = work / "small" / "bin" / "python"
    install = [python, "-m", "pip", "install", "--quiet", "--requirement"]
    subprocess.run([*install, BUNDLE / "requirements.txt"], check=True)
    chunk = json.loads((BUNDLE / "rows" / "rows.jsonl").read_text().splitlines()[1])
    (work / "use.py").write_text(BLOCKED)
    process = subprocess.run(
        [python, "use.py", BUNDLE],
        input=json.dumps(chunk["rows"]),
        capture_output=True,
        text=True,
        check=True,
        env={"PATH": os.environ["PATH"]},
    )
    answers = json.loads(process.stdout)
    assert answers["prediction"] == chunk["answers"]["prediction"]
    np.testing.assert_allclose(
        answers["probability_yes"], chunk["answers"]["probability_yes"], rtol=1e-5
    )


# Messages


@pytest.mark.usefixtures("table_bundle")
def test_messages_of_wrong_command_lines(cli: Cli) -> None:
    """Each mistake ends with one message before the net is exported."""
    assert "which exists; choose another name" in cli("export", code=2)
    new = ["--output", "new"]
    assert "--format: expected onnx or torch, got 'onix'" in cli(
        "export", *new, "--format", "onix", code=2
    )
    assert "--compile: expected --format torch" in cli("export", *new, "--compile", code=2)
    shutil.rmtree(RUN / "test")
    assert "has not been tested" in cli("export", *new, code=2)
    shutil.rmtree(BUNDLE / "rows")
    assert "expected rows to compare, found none" in cli("verify", BUNDLE, code=2)


def test_a_precision_of_16_bits_is_refused(trained: Trained, cli: Cli) -> None:
    """Predictions with three digits differ from those of any bundle."""
    trained("multiclass")
    cli("test")
    error = cli("export", "--trainer.precision", "bf16-mixed", code=2)
    assert "`test --run version_0 --trainer.precision 32-true`" in error


@pytest.mark.usefixtures("table_bundle")
def test_a_calibration_that_test_did_not_apply_is_refused(cli: Cli) -> None:
    """A calibration that was fitted after `test` would make all answers differ."""
    cli("validate", "--calibrate", "temperature")
    assert "was tested with another calibration (none)" in cli("export", "--output", "b", code=2)
