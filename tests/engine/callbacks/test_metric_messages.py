"""Several processes: the metrics of all rows with the bits of torchmetrics, in few messages."""

import json
import re
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from sklearn import metrics as sk

import processes
from conftest import Cli, make_arrays
from engine.callbacks import metric_shards
from engine.faults.test_processes import TWO, free_port, torchrun
from metrics.test_metrics import expected
from proj.engine.callbacks import process_messages
from proj.engine.runs.checkpoint_file import read_checkpoint
from proj.metrics.stage import StageMetrics


def test_tensors_of_any_form_are_sent() -> None:
    """A column of the predictions is a state whose numbers are no neighbours in memory."""
    table = torch.arange(12.0).view(3, 4)
    sent = [table[:, 1], table.T, torch.tensor(2), table[:0], table > 5]
    received = process_messages._unpack(process_messages._pack(sent, torch.device("cpu")))
    assert all(torch.equal(a, b) for a, b in zip(sent, received, strict=True))


@pytest.mark.long
@pytest.mark.parametrize("world", [2, 3], ids=["two", "three, one without rows"])
def test_metrics_of_processes_are_those_of_all_rows(world: int, work: Path) -> None:
    """The processes compare with what torchmetrics synchronizes itself, bit by bit."""
    command = torchrun("-m", metric_shards.__name__, work, nproc=world, port=free_port())
    done = processes.run(*command)
    assert done.returncode == 0, done.stderr
    results = torch.load(work / "results.pt")
    assert list(results) == metric_shards.KINDS
    for kind, values in results.items():
        want = metric_shards.computed(*kind, StageMetrics.compute)
        assert list(values) == list(want)
        for name, value in values.items():
            # Each process has means of its own.
            if name != "loss" and name not in metric_shards.UNSHARED:
                assert value.item() == pytest.approx(want[name].item(), rel=1e-6), (*kind, name)


@pytest.mark.long
@pytest.mark.parametrize("steps_per_execution", [1, 8])
def test_messages_of_an_epoch(
    steps_per_execution: int, experiment: Any, work: Path, cli: Cli
) -> None:
    """Over gloo a message takes longer than the step of a small net."""
    config = experiment(
        rows=303,
        trainer={"max_epochs": 4},
        model={"steps_per_execution": steps_per_execution},
        data={"batch_size": 4, "val_fraction": 0.3},
        checkpoint={"every_seconds": None},
        early_stopping={"patience": 9},
    )
    count = ["--trainer.callbacks", "engine.callbacks.count_messages.CountMessages"]
    flags = [*TWO, *count, "--allow", "engine"]
    done = processes.run("proj", "fit", "--config", config, *flags)
    assert done.returncode == 0, done.stderr
    assert "sync_dist" not in done.stderr
    epochs = json.loads((work / "messages.json").read_text())
    assert len(epochs) == 3
    for epoch in epochs:
        steps, executions = epoch.pop("steps"), epoch.pop("executions")
        assert executions == -(-steps // steps_per_execution)
        # For each step inside an execution its gradients; for each execution, whether the loss is
        # finite, whether buffers have changed, and Lightning's question for SIGTERM.
        assert sum(epoch.values()) <= (steps - executions) + 3 * executions + 14, epoch
    # Metrics of training: states and values. Of validation: as many, and the scores. A better epoch
    # is saved with the states of all processes, in two messages.
    assert all(epoch["allgather"] <= 7 for epoch in epochs)
    checkpoint = read_checkpoint(work / "lightning_logs/version_0/checkpoints/last.ckpt")
    (best,) = (
        state["best_metrics"]
        for state in checkpoint["callbacks"].values()
        if "best_metrics" in state
    )
    one = ["--trainer.devices", "1", "--trainer.strategy", "auto", "--allow", "engine"]
    cli("validate", *one)
    table = pl.read_parquet(work / "lightning_logs/version_0/validate/predictions.parquet")
    for name, value in expected("multiclass", table).items():
        if "/" not in name:
            assert best[f"val/{name}"] == pytest.approx(value, rel=1e-6), name


OWN = """
import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassAUROC, MulticlassF1Score

class Own(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Linear(6, 3)
        self.f1, self.auroc = MulticlassF1Score(3), MulticlassAUROC(3)

    def training_step(self, batch, batch_idx):
        return torch.nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        probabilities = self.net(batch[0]).softmax(1)
        self.f1(probabilities, batch[1])
        self.auroc(probabilities, batch[1])
        self.log("f1", self.f1)
        self.log("auroc", self.auroc)

    def on_validation_epoch_end(self):
        torch.save(self.net.state_dict(), "net.pt") if self.global_rank == 0 else None

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.5)

class Data(LightningDataModule):
    def setup(self, stage):
        self.rows = TensorDataset(*torch.load("rows.pt"))

    def train_dataloader(self):
        return DataLoader(self.rows, 8)

    val_dataloader = train_dataloader
"""


@pytest.mark.long
def test_metrics_that_a_module_logs_itself(work: Path) -> None:
    """They are torchmetrics' own over all processes, also with the messages of callbacks."""
    Path("own.py").write_text(OWN, encoding="utf-8")
    arrays = make_arrays("multiclass", 48)
    x, y = torch.from_numpy(arrays["x"]), torch.from_numpy(arrays["y"] // 10)
    torch.save((x, y), "rows.pt")
    flags = ["--trainer.max_epochs", "1", "--early_stopping.patience", "null", *TWO]
    own = ["--model", "own.Own", "--data", "own.Data", "--checkpoint.monitor", "f1"]
    done = processes.run("proj", "fit", *own, "--checkpoint.mode", "max", *flags)
    assert done.returncode == 0, done.stderr
    net = torch.nn.Linear(6, 3)
    net.load_state_dict(torch.load("net.pt"))
    with torch.no_grad():
        probabilities = net(x).softmax(1).numpy()
    want = {
        "f1": sk.f1_score(y, probabilities.argmax(1), average="macro"),
        "auroc": sk.roc_auc_score(y, probabilities, multi_class="ovr", average="macro"),
    }
    shown = dict(re.findall(r"(f1|auroc) +\S +([0-9.]+)", done.stdout))
    assert {name: float(value) for name, value in shown.items()} == pytest.approx(want, abs=1e-4)
