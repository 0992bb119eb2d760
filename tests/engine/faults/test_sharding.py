"""Training with sharded weights (``fsdp2``): the results and checkpoints of other trainings."""

import json
import signal
import time
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from polars.testing import assert_frame_equal
from torch import nn

import proj
from conftest import Cli
from engine.faults.harness import curves, digest
from engine.faults.test_processes import ended, free_port, started
from proj.engine.callbacks.sharding import Sharded, _layers, shard_net
from proj.engine.runs.checkpoint_file import read_checkpoint
from proj.errors import UserError
from proj.models.classification import BinaryClassifier

QUIET = ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]
ONE = ["--trainer.devices", "1", "--trainer.num_nodes", "1", "--trainer.strategy", "auto"]


@pytest.fixture
def sharded(experiment: Any) -> list[str]:
    """A training with batch normalization, dropout and clipping on two processes."""
    net = {"hidden": [8, 8], "dropout": 0.2, "norm": "batch"}
    config = experiment(
        rows=240,
        trainer={"max_epochs": 2, "devices": 2, "gradient_clip_val": 0.5},
        # The rounding of sums in another order grows with Adam, but not with SGD.
        model={
            "net": {"class_path": "MLP", "init_args": net},
            "optimizer": {"class_path": "SGD", "init_args": {"lr": 0.05, "momentum": 0.9}},
        },
        data={"batch_size": 4},
        checkpoint={"every_seconds": None, "every_n_steps": 10, "monitor": "val/loss"},
    )
    return ["proj", "fit", "--config", str(config), *QUIET, "--trainer.strategy", "fsdp2"]


def last_checkpoint(name: str) -> dict[str, Any]:
    return read_checkpoint(Path(f"lightning_logs/{name}/checkpoints/last.ckpt"))


@pytest.mark.long
def test_sharded_weights_train_as_whole_ones_and_are_evaluated_exactly(
    sharded: list[str], work: Path, cli: Cli
) -> None:
    """A checkpoint with parts of tensors, a row counted twice, or statistics of one process."""
    assert ended(started([*sharded, "--name", "parts"], work), work) == 0
    ddp = [*sharded, "--name", "whole", "--trainer.strategy", "ddp"]
    assert ended(started([*ddp, "--model.steps_per_execution", "1"], work), work) == 0
    parts, whole = last_checkpoint("parts"), last_checkpoint("whole")
    torch.testing.assert_close(parts["state_dict"], whole["state_dict"], rtol=0, atol=1e-5)
    losses = [curves(name)["val/loss"] for name in ("parts", "whole")]
    torch.testing.assert_close(*losses, rtol=0, atol=1e-5)
    states = [checkpoint["optimizer_states"] for checkpoint in (parts, whole)]
    torch.testing.assert_close(states[0], states[1], rtol=0, atol=1e-5)

    run, scores, tables = work / "lightning_logs/parts", [], []
    for flags in ([], ONE):
        assert ended(started(["proj", "test", "--run", "parts", *QUIET, *flags], work), work) == 0
        scores.append(json.loads((run / "test/metrics.json").read_text()))
        tables.append(pl.read_parquet(run / "test/predictions.parquet"))
    assert_frame_equal(*tables, rel_tol=0, abs_tol=1e-6)
    values = [{name: entry["value"] for name, entry in score.items()} for score in scores]
    assert values[0] == pytest.approx(values[1], abs=1e-6)
    assert values[0]["accuracy"] == values[1]["accuracy"]
    # The whole weights are in the file, for other verbs.
    rows = torch.ones(3, 6).numpy()
    assert len(proj.load("lightning_logs/parts").predict(rows)) == 3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "every_n_steps"),
    [(signal.SIGKILL, "10"), (signal.SIGTERM, "10"), (signal.SIGKILL, "null")],
    ids=["killed", "stopped", "killed before the second checkpoint"],
)
def test_sharded_weights_resume_to_the_same_bits(
    number: signal.Signals, every_n_steps: str, sharded: list[str], work: Path
) -> None:
    """Adam counts its steps: the checkpoint before the first step must not count one."""
    adam = ["--model.optimizer", "Adam", "--model.optimizer.lr", "0.01"]
    command = [*sharded, *adam, "--checkpoint.every_n_steps", every_n_steps]
    assert ended(started([*command, "--name", "whole"], work), work) == 0
    process = started([*command, "--name", "stopped"], work)
    checkpoints = work / "lightning_logs/stopped/checkpoints"
    is_first = every_n_steps == "null"
    written = checkpoints / ("last.ckpt" if is_first else "previous.ckpt")
    end = time.monotonic() + 120
    while not written.exists() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.01)
    process.send_signal(number)  # To the first process only.
    assert ended(process, work) == (-9 if number == signal.SIGKILL else 143)
    if is_first:
        assert last_checkpoint("stopped")["optimizer_states"][0]["state"] == {}
    assert ended(started(["proj", "fit", "--resume", "stopped", *QUIET], work), work) == 0
    assert digest("stopped") == digest("whole")


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["auto", "fsdp2"])
def test_two_agents_of_torchrun_find_each_other(
    strategy: str, sharded: list[str], work: Path
) -> None:
    """``fit`` and ``test`` on two nodes without a node rank, as in the documentation."""
    meeting = ["--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "c10d"]
    flags = ["--name", "nodes", "--trainer.strategy", strategy, "--trainer.devices", "auto"]
    for number, words in enumerate(([*sharded[1:], *flags], ["test", "--run", "nodes", *QUIET])):
        address = ["--rdzv-id", str(number), "--rdzv-endpoint", f"127.0.0.1:{free_port()}"]
        command = ["torch.distributed.run", *meeting, *address, "-m", "--", "proj", *words]
        nodes = [started(command, work) for _ in range(2)]
        assert [ended(node, work) for node in nodes] == [0, 0]
    assert [path.name for path in (work / "lightning_logs").iterdir()] == ["nodes"]
    output = (work / "out.txt").read_text()
    assert "run: lightning_logs/nodes on 2 nodes with 1 x cpu" in output
    run = work / "lightning_logs/nodes"
    two = json.loads((run / "test/metrics.json").read_text())
    assert ended(started(["proj", "test", "--run", "nodes", *QUIET, *ONE], work), work) == 0
    one = json.loads((run / "test/metrics.json").read_text())
    assert {name: entry["value"] for name, entry in two.items()} == pytest.approx(
        {name: entry["value"] for name, entry in one.items()}, abs=1e-6
    )


class Own(LightningModule):
    """A module of the user's own."""


@pytest.mark.parametrize(
    ("strategy", "model", "message"),
    [
        (
            ModelParallelStrategy(),
            BinaryClassifier(nn.Linear(1, 1)),
            "trainer.strategy: expected fsdp2, which shards the nets of this package, got "
            "ModelParallelStrategy; change the strategy.",
        ),
        (
            Sharded(),
            Own(),
            "trainer.strategy: fsdp2 shards the nets of this package, not the modules of Own; use "
            "Lightning's ModelParallelStrategy, and apply fully_shard in the module's "
            "configure_model.",
        ),
    ],
)
def test_each_strategy_has_its_modules(strategy: Any, model: Any, message: str) -> None:
    """Lightning's would distribute rows over processes that share them; ours shards nothing."""
    trainer = Trainer(accelerator="cpu", devices=2, strategy=strategy, logger=False)
    with pytest.raises(UserError) as error:
        shard_net(trainer, model)
    assert str(error.value) == message


def test_inner_layers_come_after_the_outer_ones() -> None:
    """They are sharded in reverse: FSDP2 refuses an outer layer before its inner ones."""
    inner = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    net = nn.Sequential(inner, nn.Flatten(), nn.Linear(2, 1))
    assert [*_layers(net)] == [inner, net[2], inner[0]]


def test_layers_that_share_a_weight_stay_with_the_net() -> None:
    """FSDP2 refuses a parameter that two groups have, such as tied embeddings."""
    first, last = nn.Linear(2, 2), nn.Linear(2, 2)
    last.weight = first.weight
    between = nn.Linear(2, 2)
    assert [*_layers(nn.Sequential(first, between, last))] == [between]


def test_a_strategy_given_as_a_class_serves_every_trainer(experiment: Any, cli: Cli) -> None:
    """The preflight builds a Trainer, too, and a strategy keeps the accelerator of its first."""
    strategy = "lightning.pytorch.strategies.SingleDeviceStrategy"
    flags = ["--trainer.strategy", strategy, "--trainer.strategy.device", "cpu"]
    cli("fit", "--config", experiment(), *flags)
