"""Bundles of a user's own nets, data modules and LightningModules."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from conftest import Cli
from engine.deployment.conftest import BUNDLE, FEW_EPOCHS
from proj.engine.deployment.runtime import load
from test_user_code import DATA, MODEL, NET

pytestmark = [
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:onnx.*"),
]
X = torch.randn(90, 4, generator=torch.Generator().manual_seed(0))

WAVES = """
import numpy as np
import torch
from proj.data.base import DataModule
from proj.schema import Batch, Schema

class Waves(DataModule):
    def __init__(self):
        super().__init__(32, True)

    @classmethod
    def encode(cls, rows, schema):
        return torch.from_numpy(np.asarray(rows, dtype=np.float32))

    def setup(self, stage):
        x = torch.linspace(0, 6, 300)[:, None]
        row = torch.randperm(300, generator=torch.Generator().manual_seed(0))
        for split, rows in zip(("train", "val", "test"), row.split(100), strict=True):
            self.splits[split] = Batch(x[rows], torch.sin(x)[rows], rows)
        self.schema = self.schema or Schema.of(1, targets=["height"])
"""

BRANCHES = """
from torch import nn

class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x):
        y = self.layer(x)
        return y if y.sum().item() > 0 else -y
"""


@pytest.fixture
def modules(work: Path, request: pytest.FixtureRequest) -> str:
    """Write the user's modules under the test's name, because Python caches modules."""
    name = "user_" + "".join(c if c.isalnum() else "_" for c in request.node.name)
    (work / f"{name}.py").write_text(DATA + NET + MODEL + WAVES + BRANCHES)
    return name


def test_an_own_lightning_module(modules: str, cli: Cli) -> None:
    """A module with two optimizers answers in the bundle what its predict_step returns."""
    cli("fit", "--model", f"{modules}.MyGan", "--data", f"{modules}.MyData", *FEW_EPOCHS)
    cli("export")
    cli("predict", "--output", "predictions.parquet")
    answers = load(BUNDLE).predict(X.numpy())
    assert list(answers) == ["prediction"]
    expected = pl.read_parquet("predictions.parquet")["prediction"]
    np.testing.assert_allclose(answers["prediction"], expected, rtol=1e-5, atol=1e-6)
    assert "verified: 90 rows" in cli("verify", BUNDLE)


def test_a_net_that_torch_export_cannot_trace(modules: str, cli: Cli) -> None:
    """A branch that depends on the values ends with one message that names the line."""
    model = ["--model", "MulticlassClassifier", "--model.net", f"{modules}.Branches"]
    cli("fit", *model, "--data", f"{modules}.MyData", *FEW_EPOCHS)
    cli("test")
    error = cli("export", "--format", "torch", code=2)
    assert error.startswith("error: torch.export cannot trace the net Branches for any number of")
    assert f"({modules}.py, line " in error
    assert not BUNDLE.exists()


@pytest.mark.slow
@pytest.mark.parametrize("format", ["onnx", "torch"])
def test_an_own_data_module_with_loaders(modules: str, cli: Cli, format: str) -> None:
    """A bundle takes what the loaders of a user's data module yield."""
    model = ["--model", "MulticlassClassifier", "--model.net", f"{modules}.MyNet"]
    cli("fit", *model, "--data", f"{modules}.MyData", *FEW_EPOCHS)
    cli("test")
    assert "proof: 90 test rows" in cli("export", "--format", format)
    assert len(load(BUNDLE).predict(X.numpy())["prediction"]) == 90


@pytest.mark.slow
@pytest.mark.parametrize("format", ["onnx", "torch"])
def test_an_own_subclass_of_the_data_module(modules: str, cli: Cli, format: str) -> None:
    """A bundle takes encoded rows if the data module does not describe its encoding."""
    model = ["--model", "Regressor", "--model.net", "MLP", "--model.standardize_target", "false"]
    cli("fit", *model, "--data", f"{modules}.Waves", *FEW_EPOCHS)
    cli("test")
    assert "proof: 100 test rows" in cli("export", "--format", format)
    assert load(BUNDLE).predict([[0.5]])["prediction"].shape == (1,)
