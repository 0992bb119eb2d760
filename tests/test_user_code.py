"""A user's data module with DataLoaders and a LightningModule with two optimizers: every verb."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from conftest import Cli
from proj.engine.runs.checkpoint_file import read_checkpoint

LOGS = Path("lightning_logs/version_0")

DATA = """
import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, TensorDataset


class MyData(LightningDataModule):
    def __init__(self, rows: int = 90):
        super().__init__()
        self.rows = rows

    def setup(self, stage):
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(self.rows, 4, generator=generator)
        self.data = TensorDataset(x, (x[:, 0] + x[:, 1] > 0).long() + (x[:, 2] > 1).long())

    def train_dataloader(self):
        return DataLoader(self.data, batch_size=10, shuffle=True)

    def val_dataloader(self):
        return DataLoader(self.data, batch_size=20)

    test_dataloader = predict_dataloader = val_dataloader
"""

NET = '''
from torch import nn


class MyNet(nn.Module):
    """A plain module with sizes of its own."""

    def __init__(self, width: int = 7):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 3))

    def forward(self, x):
        return self.layers(x)
'''

MODEL = '''
import torch
from lightning.pytorch import LightningModule
from torch import nn


class MyGan(LightningModule):
    """Two nets, two optimizers, manual optimization."""

    def __init__(self, lr: float = 0.01):
        super().__init__()
        self.save_hyperparameters()
        self.automatic_optimization = False
        self.generator = nn.Linear(2, 4)
        self.critic = nn.Linear(4, 1)

    def training_step(self, batch, batch_idx):
        x, _ = batch
        first, second = self.optimizers()
        fake = self.generator(torch.randn(len(x), 2))
        gap = self.critic(fake.detach()).mean() - self.critic(x).mean()
        loss = gap + self.critic.weight.square().sum()
        second.zero_grad()
        self.manual_backward(loss)
        second.step()
        score = self.critic(self.generator(torch.randn(len(x), 2))).mean()
        loss = self.generator.weight.square().sum() - score
        first.zero_grad()
        self.manual_backward(loss)
        first.step()
        self.log("g_loss", loss)

    def validation_step(self, batch, batch_idx):
        fake = self.critic(self.generator(torch.zeros(1, 2)))
        self.log("val_gap", (self.critic(batch[0]).mean() - fake).abs().sum())

    def test_step(self, batch, batch_idx):
        self.log("test_gap", self.critic(batch[0]).mean())

    def predict_step(self, batch, batch_idx):
        return self.critic(batch[0])

    def configure_optimizers(self):
        return [torch.optim.SGD(self.generator.parameters(), self.hparams.lr),
                torch.optim.SGD(self.critic.parameters(), self.hparams.lr)]
'''

FLAGS = [
    "--trainer.max_epochs",
    "2",
    "--trainer.accelerator",
    "cpu",
    "--trainer.log_every_n_steps",
    "1",
]


def fit_args(modules: str) -> list[str]:
    """Return the command line that trains the user's net on the user's data."""
    net, data = f"{modules}.MyNet", f"{modules}.MyData"
    model = ["--model", "MulticlassClassifier", "--model.net", net]
    return ["fit", *model, "--data", data, *FLAGS]


@pytest.fixture(autouse=True)
def modules(work: Path, request: pytest.FixtureRequest) -> str:
    """Write the user's modules under the test's name, because Python caches modules."""
    name = "user_" + "".join(c if c.isalnum() else "_" for c in request.node.name)
    (work / f"{name}.py").write_text(DATA + NET + MODEL)
    return name


@pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers")
def test_a_data_module_with_data_loaders(modules: str, cli: Cli) -> None:
    cli(*fit_args(modules))
    cli("validate")
    cli("test")
    cli("predict")
    checkpoint = read_checkpoint(LOGS / "checkpoints/best.ckpt")
    net = torch.nn.Sequential(torch.nn.Linear(4, 7), torch.nn.Tanh(), torch.nn.Linear(7, 3))
    net.load_state_dict(
        {k.removeprefix("net.layers."): v for k, v in checkpoint["state_dict"].items()}
    )
    x = torch.randn(90, 4, generator=torch.Generator().manual_seed(0))
    for file in ("test", "predict"):
        table = pl.read_parquet(LOGS / file / "predictions.parquet")
        assert table["row"].to_list() == list(range(90))
        assert table["prediction"].to_list() == net(x).argmax(1).tolist()
    metrics = json.loads((LOGS / "test/metrics.json").read_text())
    table = pl.read_parquet(LOGS / "test/predictions.parquet")
    assert metrics["accuracy"]["value"] == pytest.approx(
        (table["target"] == table["prediction"]).mean()
    )


@pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers")
def test_a_model_with_manual_optimization_and_two_optimizers(modules: str, cli: Cli) -> None:
    monitor = ["--checkpoint.monitor", "val_gap", "--checkpoint.mode", "min"]
    gan = [
        "--model",
        f"{modules}.MyGan",
        "--model.lr",
        "0.1",
        "--data",
        f"{modules}.MyData",
        *FLAGS,
    ]
    assert "checkpoint.mode: expected min or max for the metric val_gap" in cli(
        "fit", *gan, *monitor[:2], code=2
    )
    cli("fit", *gan, *monitor)
    for verb in ("validate", "test", "predict"):
        cli(verb)
    checkpoint = read_checkpoint(LOGS / "checkpoints/best.ckpt")
    assert len(checkpoint["optimizer_states"]) == 2
    assert json.loads((LOGS / "validate/metrics.json").read_text()).keys() == {"val_gap"}
    assert json.loads((LOGS / "test/metrics.json").read_text()).keys() == {"test_gap"}
    x = torch.randn(90, 4, generator=torch.Generator().manual_seed(0))
    state = checkpoint["state_dict"]
    expected = (x @ state["critic.weight"].T + state["critic.bias"])[:, 0].numpy()
    assert np.allclose(
        pl.read_parquet(LOGS / "predict/predictions.parquet")["prediction"], expected, atol=1e-6
    )
    # the model called save_hyperparameters: what it recorded does not beat a flag
    assert "model.init_args.lr: 0.1 -> 0.5" in cli("test", "--model.lr", "0.5")


@pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers")
def test_a_module_without_a_metric_to_monitor_keeps_its_last_epoch_as_the_best(
    modules: str, cli: Cli
) -> None:
    cli("fit", "--model", f"{modules}.MyGan", "--data", f"{modules}.MyData", *FLAGS)
    best, last = (read_checkpoint(LOGS / f"checkpoints/{which}.ckpt") for which in ("best", "last"))
    assert best["epoch"] == last["epoch"] == 1


@pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers")
def test_a_net_that_wants_a_schema_needs_a_data_module_that_has_one(modules: str, cli: Cli) -> None:
    err = cli(
        "fit",
        "--model",
        "MulticlassClassifier",
        "--model.net",
        "MLP",
        "--data",
        f"{modules}.MyData",
        *FLAGS,
        code=2,
    )
    assert "the net is built from a schema, and the data module has none" in err


def test_labels_beyond_the_nets_outputs_are_an_error(modules: str, cli: Cli, work: Path) -> None:
    text = (
        (work / f"{modules}.py").read_text().replace("nn.Linear(width, 3)", "nn.Linear(width, 2)")
    )
    (work / f"{modules}.py").write_text(text)
    err = cli(*fit_args(modules), code=2)
    assert "the first batch fails" in err
    assert "Target 2 is out of bounds" in err


@pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers")
def test_targets_of_a_users_loader_keep_their_values(modules: str, cli: Cli, work: Path) -> None:
    """Whole-number inputs with fractional targets; the errors equal a direct computation."""
    text = (work / f"{modules}.py").read_text()
    text = text.replace("(x[:, 0] + x[:, 1] > 0).long() + (x[:, 2] > 1).long())", "x[:, 0] + 0.25)")
    text = text.replace("TensorDataset(x,", "TensorDataset((10 * x).long(),")
    text = text.replace("return self.layers(x)", "return self.layers(x.float())").replace(
        "(width, 3)", "(width, 1)"
    )
    (work / f"{modules}.py").write_text(text)
    flags = [
        "--model",
        "Regressor",
        "--model.net",
        f"{modules}.MyNet",
        "--model.standardize_target",
        "false",
    ]
    cli("fit", *flags, "--data", f"{modules}.MyData", *FLAGS)
    cli("test")
    table = pl.read_parquet(LOGS / "test/predictions.parquet")
    x = torch.randn(90, 4, generator=torch.Generator().manual_seed(0))
    assert np.allclose(table["target"], x[:, 0] + 0.25)
    metrics = json.loads((LOGS / "test/metrics.json").read_text())
    assert metrics["mae"]["value"] == pytest.approx(
        (table["target"] - table["prediction"]).abs().mean(), rel=1e-6
    )


@pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers")
@pytest.mark.parametrize("wrong", ["float()", "unsqueeze(1)"])
def test_class_numbers_of_another_shape_or_type_are_an_error(
    wrong: str, modules: str, cli: Cli, work: Path
) -> None:
    text = (
        (work / f"{modules}.py")
        .read_text()
        .replace("(x[:, 2] > 1).long())", f"(x[:, 2] > 1).long().{wrong})")
    )
    if wrong == "unsqueeze(1)":
        text = text.replace("(x[:, 0] + x[:, 1] > 0).long() + ", "")
    (work / f"{modules}.py").write_text(text)
    err = cli(*fit_args(modules), code=2)
    assert "expected class numbers of shape [rows] and type int64 for the task multiclass" in err


@pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers")
def test_outputs_in_bfloat16_are_written(modules: str, cli: Cli, work: Path) -> None:
    text = (
        (work / f"{modules}.py")
        .read_text()
        .replace("return self.critic(batch[0])", "return self.critic(batch[0]).bfloat16()")
    )
    (work / f"{modules}.py").write_text(text)
    cli("fit", "--model", f"{modules}.MyGan", "--data", f"{modules}.MyData", *FLAGS)
    cli("predict")
    assert pl.read_parquet(LOGS / "predict/predictions.parquet")["prediction"].dtype == pl.Float32
