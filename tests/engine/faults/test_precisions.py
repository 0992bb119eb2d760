"""Each precision: a killed run resumes to the same bits, and its checkpoint gives its numbers."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

import proj
from conftest import Cli
from engine.faults.harness import attempt, said
from engine.faults.test_resume import check
from proj.engine.runs.checkpoint_file import read_checkpoint
from proj.engine.runs.weights import restore_state_types

PRECISIONS = {
    "32-true": torch.float32,
    "64-true": torch.float64,
    "bf16-true": torch.bfloat16,
    "16-true": torch.float16,
    "bf16-mixed": torch.float32,
}


def table(rows: int = 150) -> list[str]:
    """Write a table with a target of a large mean; return the flags that train on it."""
    rng = np.random.default_rng(0)
    a = rng.normal(size=rows)
    lines = [f"{x:.4f},{'uvw'[i % 3]},{1e6 + 50 * x + i % 3}" for i, x in enumerate(a)]
    Path("t.csv").write_text("\n".join(["a,b,y", *lines]))
    data = "--data Tabular --data.path t.csv --data.target y --data.batch_size 16"
    model = "--model Regressor --model.net MLP --model.net.hidden [8] --model.net.dropout 0.2"
    points = "--trainer.callbacks engine.faults.victim.Points --checkpoint.every_n_steps 3"
    trainer = "--trainer.accelerator cpu --trainer.max_epochs 3 --model.steps_per_execution 2"
    return f"{data} {model} {points} {trainer}".split()


@pytest.mark.parametrize(
    "precision",
    [
        *("64-true", "bf16-true", "16-true"),
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("32-true", "bf16-mixed")),
    ],
)
def test_a_killed_run_resumes_to_the_same_bits_in_each_precision(
    precision: str, fit: list[Any]
) -> None:
    """Adam's epsilon is 0 in float16, so those weights are trained by SGD."""
    sgd = ["--model.optimizer", "SGD", "--model.optimizer.lr", "0.01"]
    optimizer = sgd if precision == "16-true" else []
    check([*fit, "--trainer.precision", precision, *optimizer], [["step:23", "epoch end:1"]])
    weights = read_checkpoint(Path("lightning_logs/whole/checkpoints/last.ckpt"))["state_dict"]
    assert weights["net.layers.2.weight"].dtype == PRECISIONS[precision]


@pytest.mark.parametrize(
    "precision", ["64-true", pytest.param("bf16-true", marks=pytest.mark.slow)]
)
def test_a_killed_run_on_a_table_resumes_to_the_same_bits(precision: str) -> None:
    check(["fit", *table(), "--trainer.precision", precision], [["save:3", "epoch end:1"]])


@pytest.mark.parametrize("precision", ["64-true", "bf16-true", "bf16-mixed"])
def test_a_checkpoint_gives_the_numbers_of_its_run(precision: str, cli: Cli) -> None:
    flags = [*table(), "--trainer.precision", precision, "--allow", "engine.faults"]
    cli("fit", *flags, "--name", "r")
    state = read_checkpoint(Path("lightning_logs/r/checkpoints/last.ckpt"))["callbacks"]
    (in_run,) = [value["best_metrics"] for value in state.values() if "best_metrics" in value]
    cli("validate", "--run", "r")
    metrics = json.loads(Path("lightning_logs/r/validate/metrics.json").read_text())
    # Lightning logs float32; batches of another size round otherwise in half precision.
    tolerance = 1e-7 if precision == "64-true" else 0.02
    for name in ("loss", "rmse", "mae"):
        assert metrics[name]["value"] == pytest.approx(in_run[f"val/{name}"], rel=tolerance), name
    scored = pl.read_parquet("lightning_logs/r/validate/predictions.parquet")
    truth = pl.read_csv("t.csv")["y"].to_numpy()[scored["row"].to_numpy()]
    assert np.array_equal(scored["target"].to_numpy(), truth)
    error = scored["prediction"].to_numpy() - truth
    assert metrics["rmse"]["value"] == pytest.approx(float(np.sqrt((error**2).mean())), rel=1e-6)


def test_a_loaded_model_computes_in_the_precision_of_its_run(cli: Cli) -> None:
    flags = [*table(), "--trainer.precision", "64-true", "--allow", "engine.faults"]
    cli("fit", *flags, "--name", "r")
    cli("predict", "--run", "r", "--output", "p.parquet")
    loaded = proj.load("r")
    state = read_checkpoint(Path("lightning_logs/r/checkpoints/best.ckpt"))["state_dict"]
    for name, value in loaded.model.state_dict().items():
        assert value.dtype == state[name].dtype, name
        assert torch.equal(value, state[name]), name
    predicted = pl.read_parquet("p.parquet")
    rows = pl.read_csv("t.csv")[predicted["row"].to_list()]
    ours = loaded.predict(rows)["prediction"].to_numpy()
    assert np.abs(ours - predicted["prediction"].to_numpy()).max() < 1e-6


def test_initial_weights_keep_their_type_or_are_reported(experiment: Any, cli: Cli) -> None:
    config = experiment(trainer={"max_epochs": 1})
    cli("fit", "--config", config, "--name", "exact", "--trainer.precision", "64-true")
    same = cli(
        *("fit", "--config", config, "--trainer.precision", "64-true", "--init_from", "exact"),
        *("--model.optimizer", "SGD", "--model.optimizer.lr", "0", "--name", "copy"),
    )
    assert "rounded" not in same
    exact, copy = (
        read_checkpoint(Path(f"lightning_logs/{name}/checkpoints/best.ckpt"))["state_dict"]
        for name in ("exact", "copy")
    )
    assert all(torch.equal(exact[name], copy[name]) for name in exact)
    out = cli("fit", "--config", config, "--init_from", "exact")
    assert "rounded from float64 to float32: " in out


def test_the_state_of_an_optimizer_keeps_its_type() -> None:
    """NAdam keeps a float32 product beside float64 weights."""
    weight = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
    optimizer = torch.optim.NAdam([weight])
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    saved = optimizer.state_dict()
    twin = torch.optim.NAdam([weight])
    twin.load_state_dict(saved)
    assert twin.state[weight]["mu_product"].dtype == torch.float64
    restore_state_types(twin, saved)
    for key, value in optimizer.state[weight].items():
        assert twin.state[weight][key].dtype == value.dtype, key
        assert torch.equal(twin.state[weight][key], value), key


@pytest.mark.parametrize(
    "optimizer", ["NAdam", *(pytest.param(o, marks=pytest.mark.slow) for o in ("ASGD", "Rprop"))]
)
def test_a_killed_run_with_state_of_another_type_resumes_to_the_same_bits(
    optimizer: str, fit: list[Any]
) -> None:
    check([*fit, "--trainer.precision", "64-true", "--model.optimizer", optimizer], [["step:23"]])


def test_a_net_made_by_a_users_own_model_resumes_to_the_same_bits(fit: list[Any]) -> None:
    """It makes its net before Lightning sets the precision."""
    Path("own.py").write_text("""
import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch.utils.data import DataLoader

class Own(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Linear(6, 1)

    def training_step(self, batch, index):
        return self.net(batch).square().mean()

    def validation_step(self, batch, index):
        self.log("val/loss", self.net(batch).square().mean())

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 0.01)

class Data(LightningDataModule):
    def train_dataloader(self):
        return DataLoader(torch.randn(64, 6, generator=torch.Generator().manual_seed(0)), 16)

    val_dataloader = train_dataloader
""")
    command = "fit --model own.Own --data own.Data --trainer.precision 64-true"
    command += " --trainer.accelerator cpu --trainer.max_epochs 4 --checkpoint.monitor val/loss"
    command += " --checkpoint.every_n_steps 1 --trainer.callbacks engine.faults.victim.Points"
    command += " --checkpoint.mode min"
    check(command.split(), [["epoch start:3"]])
    assert attempt("validate", "--run", "whole") == 0, said()
