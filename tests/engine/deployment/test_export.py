"""`export` writes bundles that answer as their runs, for every task, kind of data and format."""

import ast
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
import yaml

import proj
from conftest import CONFIGS, Cli, Trained
from engine.deployment.conftest import BUNDLE, FEW_EPOCHS, RUN
from proj.engine.deployment import graph
from proj.engine.deployment.card import text
from proj.engine.deployment.runtime import load
from proj.engine.deployment.runtime.session import open_net

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning:onnx.*", "ignore::DeprecationWarning:torch.*"
)


def check_answers(rows: Any, tolerance: float = 1e-6) -> None:
    """The bundle answers raw rows as the loaded model does, for any batch size."""
    bundle, model = load(BUNDLE), proj.load(RUN)
    expected = model.predict(rows)
    for size in (1, 7, 1000):
        answers = bundle.predict(rows, size, strict=False)
        assert list(answers) == [name for name in expected.columns if name != "row"]
        for name, values in answers.items():
            reference = expected[name].to_numpy()
            if values.dtype.kind == "f":
                np.testing.assert_allclose(values, reference, rtol=1e-5, atol=tolerance)
            else:
                np.testing.assert_array_equal(values, reference)


@pytest.mark.usefixtures("table_bundle")
def test_a_table_with_odd_values(cli: Cli) -> None:
    """Numbers with currency, dates, unknown and missing values give the same answers."""
    proof = json.loads((BUNDLE / "proof.json").read_text())
    assert proof["rows"] == 45
    assert proj.deploy.load is load
    assert 0 < proof["largest_difference"] <= 1e-5
    rows = pl.read_csv("table.csv", infer_schema=False)
    new = rows.head(9).with_columns(plan=pl.lit("never seen"), amount=pl.lit("oops"))
    check_answers(pl.concat([rows, new]))
    assert "verified: 45 rows" in cli("verify", BUNDLE)


@pytest.mark.slow
@pytest.mark.parametrize("format", ["onnx", "torch"])
@pytest.mark.parametrize("typed", [False, True])
@pytest.mark.parametrize("net", ["MLP", "TabM"])
@pytest.mark.parametrize("task", ["binary", "multiclass", "multilabel", "regression"])
def test_tables_of_every_task(
    table_run: Callable[..., None], cli: Cli, task: str, net: str, typed: bool, format: str
) -> None:
    """A task, a net or a kind of file whose bundle answers otherwise fails here."""
    table_run(task, net, typed)
    cli("export", "--format", format)
    rows = (
        pl.read_parquet("table.parquet") if typed else pl.read_csv("table.csv", infer_schema=False)
    )
    check_answers(rows, 1e-5 * 1e6 if task == "regression" else 1e-6)
    trust = ["--trust"] if format == "torch" else []
    assert "verified: 45 rows" in cli("verify", BUNDLE, *trust)
    cli("verify", BUNDLE, "--run", RUN.name, *trust)


@pytest.mark.slow
@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
@pytest.mark.parametrize("format", ["onnx", "torch"])
def test_each_shipped_experiment(work: Path, cli: Cli, config: Path, format: str) -> None:
    """An experiment that people start from could not be deployed."""
    cli("fit", "--config", config, *FEW_EPOCHS)
    cli("test")
    cli("export", "--format", format)
    trust = ["--trust"] if format == "torch" else []
    assert "verified: " in cli("verify", BUNDLE, *trust)


@pytest.mark.usefixtures("image_bundle")
def test_images_in_files(cli: Cli) -> None:
    """JPEG, PNG and GIF in several sizes and modes, upright and turned, give the same answers."""
    files = sorted(Path("images").rglob("*.*"))
    check_answers(files)
    bundle = load(BUNDLE)
    by_name, by_bytes = (
        bundle.predict(files[:3]),
        bundle.predict([f.read_bytes() for f in files[:3]]),
    )
    np.testing.assert_array_equal(by_name["probability_light"], by_bytes["probability_light"])
    assert "verified: 9 rows" in cli("verify", BUNDLE)


@pytest.mark.slow
@pytest.mark.parametrize("format", ["onnx", "torch"])
@pytest.mark.parametrize(("mirror", "npz"), [(False, False), (True, True)])
def test_images_of_every_source(
    image_run: Callable[..., None], cli: Cli, mirror: bool, npz: bool, format: str
) -> None:
    """Images in folders and in arrays give the same answers, in both formats."""
    image_run(mirror, npz)
    cli("export", "--format", format)
    rows: Any = np.load("images.npz")["x"] if npz else sorted(Path("images").rglob("*.*"))
    check_answers(rows)
    cli("verify", BUNDLE, *(["--trust"] if format == "torch" else []))


ARRAY_TASKS = ["binary", "multiclass", "multilabel", "regression", "regression_2"]
ARRAYS = [(task, format) for task in ARRAY_TASKS for format in ("onnx", "torch")]
# A process that imports torch takes seconds.
QUICK = ("regression_2", "onnx")


@pytest.mark.long
@pytest.mark.parametrize(
    ("task", "format"),
    [pytest.param(*case, marks=[] if case == QUICK else [pytest.mark.slow]) for case in ARRAYS],
)
def test_arrays(trained: Trained, cli: Cli, task: str, format: str) -> None:
    """Arrays of every task give the same answers, in both formats."""
    trained(task)
    cli("test")
    assert "proof: 18 test rows" in cli("export", "--format", format)
    check_answers(np.load("data.npz")["x"], 1e-4)
    assert "verified: 18 rows" in cli("verify", BUNDLE, *(["--trust"] if format == "torch" else []))
    empty = load(BUNDLE).predict([])
    assert [len(values) for values in empty.values()] == [0] * len(empty)


@pytest.mark.slow
def test_a_compiled_program(trained: Trained, cli: Cli) -> None:
    """AOTInductor compiles the net for any number of rows."""
    trained("multiclass")
    cli("test")
    cli("export", "--format", "torch", "--compile")
    check_answers(np.load("data.npz")["x"])
    assert "verified: 18 rows" in cli("verify", BUNDLE, "--trust")


@pytest.mark.usefixtures("table_bundle")
def test_the_model_card_says_what_the_run_knows() -> None:
    """The card has Hugging Face's header, true numbers, and an example that works."""
    card = (BUNDLE / "README.md").read_text(encoding="utf-8")
    header = yaml.safe_load(card.split("---\n")[1])
    assert header["pipeline_tag"] == "tabular-classification"
    metrics = json.loads((RUN / "test" / "metrics.json").read_text())
    (result,) = header["model-index"][0]["results"]
    assert {m["type"]: m["value"] for m in result["metrics"]}["f1"] == metrics["f1"]["value"]
    for title in ("Use", "Inputs", "Results", "Worst slices", "Findings about the data", "Proof"):
        assert f"\n## {title}\n" in card
    assert "Größe" in card
    (example,) = re.findall(r"model\.predict\((.*)\)\n", card)
    rows = ast.literal_eval(example)
    assert set(rows[0]) >= {"tenure", "amount", "since", "plan"}
    assert load(BUNDLE).predict(rows, strict=True)["prediction"][0] in ("yes", "no")


def test_a_program_of_torch_export(work: Path) -> None:
    """A saved program answers any number of rows as the module that it was traced from."""
    net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Softmax(1)).eval()
    program = graph.trace(Lists(net), [torch.randn(3, 4)], "net")
    graph.write_torch(program, work / "model.pt2")
    loaded = open_net(work, {"file": "model.pt2", "format": "torch", "inputs": ["x"]}, None)
    for rows in (1, 2, 7):
        x = torch.randn(rows, 4)
        np.testing.assert_allclose(loaded({"x": x.numpy()}), net(x).detach(), rtol=1e-6)


class Lists(torch.nn.Module):
    """A module that takes a list of inputs, as graphs do."""

    def __init__(self, net: torch.nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        # `len` fixes the number of rows, unless torch.export reads the bytecode.
        outputs: torch.Tensor = self.net(inputs[0]).view(len(inputs[0]), -1)
        return outputs


def test_the_model_card_escapes_names() -> None:
    """A name from the data is shown as it is, and is neither markup nor HTML."""
    assert text("a|b\n*c* <script>`d`") == r"a\|b\\n\*c\* &lt;script&gt;\`d\`"
