"""What a user writes: a net, a data module, a loss, a metric and a task of their own.

None of them needs a change to a file of the template.
"""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from sklearn.metrics import cohen_kappa_score

from conftest import Cli
from proj.engine.runs.checkpoint_file import read_checkpoint
from proj.errors import UserError
from proj.schema import Schema

LOGS = Path("lightning_logs/version_0")

# The classes of the user's guide, in a file of the user's beside the project.
MINE = '''
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from proj.models import Model
from proj.nets.layers import Standardize
from proj.schema import Schema


class Wide(nn.Module):
    def __init__(self, schema: Schema, hidden: int = 256) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            Standardize(schema), nn.Linear(schema.num_features, hidden), nn.ReLU(),
            nn.Linear(hidden, schema.num_outputs),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def load_my_files():
    generator = torch.Generator().manual_seed(0)
    x = 5 + torch.randn(150, 4, generator=generator)
    y = (x[:, 0] > 5).long() + (x[:, 1] > 5.5).long()
    return (TensorDataset(x[rows], y[rows]) for rows in torch.arange(150).split([90, 30, 30]))


class Sensors(LightningDataModule):
    def setup(self, stage: str) -> None:
        self.train, self.val, self.test = load_my_files()
        self.schema = Schema.from_dataset(self.train, classes=["ok", "worn", "broken"])

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.train, batch_size=64, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.val, batch_size=64)

    def test_dataloader(self) -> DataLoader:
        return DataLoader(self.test, batch_size=64)

    def predict_dataloader(self) -> DataLoader:
        return DataLoader(self.test, batch_size=64)


class FocalLoss(nn.Module):
    def __init__(self, gamma: float = 2.0) -> None:
        super().__init__()
        self.gamma = gamma

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        log_p = outputs.log_softmax(1).gather(1, targets[:, None])[:, 0]
        return -((1 - log_p.exp()) ** self.gamma * log_p).mean()


class Ordinal(Model):
    """Classes in an order: the outputs are logits of `more than class i`."""

    task = "multiclass"

    def compute_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        above = (targets[:, None] > torch.arange(outputs.shape[1] - 1)).to(outputs.dtype)
        return nn.functional.binary_cross_entropy_with_logits(outputs[:, :-1], above)

    def predict_proba(self, outputs: Tensor) -> Tensor:
        above = outputs[:, :-1].sigmoid().cumprod(1)
        one = torch.ones_like(above[:, :1])
        return torch.cat([one, above], 1) - torch.cat([above, 0 * one], 1)
'''

pytestmark = pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers")


@pytest.fixture(autouse=True)
def mine(work: Path, request: pytest.FixtureRequest) -> str:
    """The user's module, under a name of this test, since Python keeps modules by name."""
    name = "mine_" + "".join(c if c.isalnum() else "_" for c in request.node.name)
    (work / f"{name}.py").write_text(MINE)
    return name


def sensors(mine: str, **model: object) -> Path:
    """Write an experiment of the user's data module."""
    config = {
        "seed_everything": 1,
        "trainer": {"max_epochs": 3, "accelerator": "cpu", "log_every_n_steps": 1},
        "model": {"class_path": "MulticlassClassifier", "init_args": {"net": "MLP", **model}},
        "data": {"class_path": f"{mine}.Sensors"},
    }
    path = Path("experiment.yaml")
    path.write_text(json.dumps(config))
    return path


@pytest.mark.parametrize("net", ["MLP", "Wide"])
def test_an_own_data_module_with_one_line_of_schema_works_through_every_verb(
    net: str, mine: str, cli: Cli
) -> None:
    cli("fit", "--config", sensors(mine, net=net if net == "MLP" else f"{mine}.{net}"))
    cli("validate")
    cli("test")
    cli("predict")
    metrics = json.loads((LOGS / "test/metrics.json").read_text())
    assert metrics["f1"]["low"] < metrics["f1"]["value"] < metrics["f1"]["high"]
    assert {"f1/ok", "f1/worn", "f1/broken"} <= metrics.keys()
    table = pl.read_parquet(LOGS / "test/predictions.parquet")
    assert set(table["prediction"]) <= {"ok", "worn", "broken"}
    assert (LOGS / "report.html").exists()


def test_from_dataset_gives_the_statistics_of_the_training_set(mine: str) -> None:
    module = __import__(mine)
    train = next(iter(module.load_my_files()))
    schema = Schema.from_dataset(train, classes=["ok", "worn", "broken"])
    x, y = train.tensors
    assert (schema.task, schema.input_shape, schema.rows) == ("multiclass", (4,), 90)
    assert schema.class_counts == tuple(np.bincount(y, minlength=3).tolist())
    assert np.allclose(schema.input_mean, x.numpy().mean(0), atol=1e-6)
    assert np.allclose(schema.input_std, x.numpy().std(0), atol=1e-6)


def test_schemas_of_targets_labels_and_images() -> None:
    x = torch.randint(0, 255, (20, 3, 5, 5), dtype=torch.uint8)
    numbers = torch.utils.data.TensorDataset(x, torch.randn(20, 2))
    schema = Schema.from_dataset(numbers, targets=["a", "b"])
    assert (schema.task, schema.num_outputs, schema.num_features) == ("regression", 2, 75)
    pixels = x.numpy() / 255
    assert np.allclose(schema.input_mean, pixels.mean((0, 2, 3)))
    assert np.allclose(schema.input_std, pixels.std((0, 2, 3)))
    assert np.allclose(schema.target_mean, numbers.tensors[1].mean(0), atol=1e-6)
    labels = torch.utils.data.TensorDataset(torch.randn(20, 4), torch.ones(20, 2))
    assert Schema.from_dataset(labels, labels=["x", "y"]).class_counts == (20, 20)
    two = torch.utils.data.TensorDataset(torch.randn(20, 4), torch.arange(20) % 2)
    assert Schema.from_dataset(two).task == "binary"
    assert Schema.of((1, 8, 8), classes="abc").class_names == ("a", "b", "c")


@pytest.mark.parametrize(
    "names", [{}, {"classes": ["a"]}, {"classes": ["a", "b"], "targets": ["c"]}]
)
def test_a_schema_needs_one_kind_of_target(names: dict[str, list[str]]) -> None:
    with pytest.raises(UserError, match="expected two or more classes, or labels, or targets"):
        Schema.of(4, **names)


def test_class_numbers_beyond_the_named_classes_are_an_error() -> None:
    data = torch.utils.data.TensorDataset(torch.randn(9, 2), torch.arange(9) % 3)
    with pytest.raises(UserError, match="expected class numbers from 0 to 1 in y, got 0 to 2"):
        Schema.from_dataset(data, classes=["a", "b"])


def test_an_own_loss_is_the_loss_that_is_trained_and_reported(mine: str, cli: Cli) -> None:
    loss = {"class_path": f"{mine}.FocalLoss", "init_args": {"gamma": 2.0}}
    cli("fit", "--config", sensors(mine, loss=loss))
    cli("test")
    table = pl.read_parquet(LOGS / "test/predictions.parquet")
    target = table["target"].to_numpy()
    p = np.select(
        [target == name for name in ("ok", "worn", "broken")],
        [table[f"probability_{name}"] for name in ("ok", "worn", "broken")],
    )
    metrics = json.loads((LOGS / "test/metrics.json").read_text())
    assert metrics["loss"]["value"] == pytest.approx(-((1 - p) ** 2 * np.log(p)).mean(), rel=1e-5)


def test_an_own_loss_excludes_the_options_of_the_built_in_one(mine: str, cli: Cli) -> None:
    config = sensors(mine, loss={"class_path": f"{mine}.FocalLoss"}, class_weights="auto")
    assert "expected model.loss or model.class_weights, got both" in cli(
        "fit", "--config", config, code=2
    )


@pytest.mark.parametrize("name", ["classification.MulticlassCohenKappa", "CohenKappa"])
def test_an_own_metric_is_logged_monitored_and_equals_scikit_learns(
    mine: str, cli: Cli, name: str
) -> None:
    kappa = {"kappa": {"class_path": f"torchmetrics.{name}"}}
    monitor = ["--checkpoint.monitor", "val/kappa", "--checkpoint.mode", "max"]
    cli("fit", "--config", sensors(mine, metrics=kappa), *monitor)
    cli("test")
    table = pl.read_parquet(LOGS / "test/predictions.parquet")
    metrics = json.loads((LOGS / "test/metrics.json").read_text())
    expected = cohen_kappa_score(table["target"].to_list(), table["prediction"].to_list())
    assert metrics["kappa"]["value"] == pytest.approx(expected, abs=1e-6)
    assert metrics["kappa"]["low"] < expected < metrics["kappa"]["high"]
    states = read_checkpoint(LOGS / "checkpoints/best.ckpt")["callbacks"].values()
    best = next(state["best_metrics"] for state in states if "best_metrics" in state)
    assert "val/kappa" in best


def test_a_metric_under_a_name_that_is_taken_is_an_error(mine: str, cli: Cli) -> None:
    f1 = {"f1": {"class_path": "torchmetrics.classification.MulticlassCohenKappa"}}
    assert "expected a name that is not taken" in cli(
        "fit", "--config", sensors(mine, metrics=f1), code=2
    )


def test_an_own_task_works_through_every_verb(mine: str, cli: Cli) -> None:
    cli("fit", "--config", sensors(mine), "--model", f"{mine}.Ordinal", "--model.net", "MLP")
    cli("test")
    cli("predict")
    table = pl.read_parquet(LOGS / "test/predictions.parquet")
    p = table.select(f"probability_{name}" for name in ("ok", "worn", "broken")).to_numpy()
    assert np.allclose(p.sum(1), 1)
    assert json.loads((LOGS / "test/metrics.json").read_text())["f1"]["low"] is not None
