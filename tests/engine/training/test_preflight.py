"""The preflight finds mistakes before training, and sees what training sees."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from torch import nn
from torch.nn.parameter import UninitializedBuffer

from conftest import Cli
from proj.engine.runs.plain_values import check_readable
from proj.engine.training.trial_callbacks import copy_for_trial
from proj.errors import UserError
from proj.models import Regressor

LOGS = Path("lightning_logs")

OWN = """
import threading
from pathlib import Path
import numpy as np
import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule
from torch import nn
from torch.nn.parameter import UninitializedBuffer
from torch.utils.data import DataLoader


class Rows(LightningDataModule):
    def setup(self, stage):
        self.x = torch.randn(32, 6, generator=torch.Generator().manual_seed(0))

    def train_dataloader(self):
        return DataLoader(self.x, batch_size=8)

    val_dataloader = test_dataloader = train_dataloader


class Saves(LightningModule):
    def __init__(self, net: nn.Module, lr: float = 0.01, keep_net: bool = True, mean: str = ""):
        super().__init__()
        self.save_hyperparameters(ignore=[] if keep_net else ["net"])
        self.net = net

    def training_step(self, batch, batch_idx):
        return self.net(batch).square().mean()

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", self.net(batch).square().mean())

    def test_step(self, batch, batch_idx):
        self.log("test/loss", self.net(batch).square().mean())

    def on_save_checkpoint(self, checkpoint):
        if self.hparams.mean:
            is_late = self.hparams.mean == "late" and self.current_epoch > 1
            mean = np.float64(0.5) if self.hparams.mean == "numpy" or is_late else 0.5
            checkpoint["own"] = {"statistics": [1, mean]}

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), self.hparams.lr)


class Extra(Callback):
    def __init__(self):
        self.epochs = 0

    def on_validation_epoch_end(self, trainer, pl_module):
        pl_module.log("val/extra", 1.0 - self.epochs)

    def on_train_epoch_end(self, trainer, pl_module):
        self.epochs += 1
        print(f"epochs: {self.epochs}")
        Path(trainer.log_dir, "epochs.txt").write_text(f"{self.epochs}")

    def state_dict(self):
        return {"epochs": self.epochs}


class HoldsLock(Extra):
    def __init__(self):
        super().__init__()
        self.lock = threading.Lock()


class Modes(Callback):
    "Fail unless the optimizer is in its training mode, as schedule-free optimizers do."

    def on_train_start(self, trainer, pl_module):
        trainer.optimizers[0].training = True

    on_validation_end = on_train_start

    def on_validation_start(self, trainer, pl_module):
        trainer.optimizers[0].training = False


class Free(torch.optim.SGD):
    training = False

    def step(self, closure=None):
        if not self.training:
            raise RuntimeError("the optimizer is not in train mode")
        return super().step(closure)


class Broken(Callback):
    def on_train_epoch_end(self, trainer, pl_module):
        raise RuntimeError("no such metric")
"""

CPU = ["--trainer.accelerator", "cpu", "--trainer.max_epochs", "2"]
SAVES = ["fit", "--model", "own.Saves", "--model.net", "torch.nn.Linear", "--data", "own.Rows"]
NET = ["--model.net.in_features", "6", "--model.net.out_features", "1", *CPU]


@pytest.fixture(autouse=True)
def own(work: Path) -> None:
    (work / "own.py").write_text(OWN)


@pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers")
@pytest.mark.filterwarnings("ignore:Attribute 'net' is an instance of `nn.Module`")
def test_values_that_no_verb_could_read_are_found_before_training(cli: Cli) -> None:
    """Training would end, and then every verb would call the checkpoint damaged."""
    message = cli(*SAVES, *NET, code=2)
    assert "the checkpoint's hyper_parameters.net: expected tensors and plain values" in message
    assert "leave it out: self.save_hyperparameters(ignore=['net'])." in message
    own = ["--model.keep_net", "false", "--model.mean"]
    message = cli(*SAVES, *NET, *own, "numpy", code=2)
    assert "the checkpoint's own.statistics.1: expected tensors and plain values" in message
    assert "got float64 (np.float64(0.5)); convert it with .item(), .tolist()" in message
    assert not LOGS.exists()
    cli(*SAVES, *NET, *own, "plain")
    cli("test")
    # One that appears in the third epoch stops the training, and the checkpoint before it stays.
    late = ["late", "--name", "late", "--trainer.max_epochs", "3"]
    message = cli(*SAVES, *NET, *own, *late, code=3)
    assert "the checkpoint's own.statistics.1: expected tensors and plain values" in message
    assert "best.ckpt of epoch 1" in cli("test", "--run", "late")


class Box:
    """A value that cannot be pickled."""

    def __reduce__(self) -> Any:
        raise TypeError("no")


UNREADABLE: dict[str, tuple[Any, str]] = {
    "a net": ({"a": nn.Linear(1, 1)}, "a"),
    "an array": ({"a": {"b": np.zeros(3)}}, "a.b"),
    "a NumPy number in a list": ([1, [np.int64(3)]], "1.0"),
    "a function": ({"a": lambda: 0}, "a"),
    "a path": ({"folder": Path("x")}, "folder"),
    "an object": ({"a": torch.zeros(2), "b": Box()}, "b"),
    "a set of paths": ({"a": {Path("x")}}, "a.0"),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_the_key_of_an_unreadable_value(name: str) -> None:
    """The message would name another value, or training would start."""
    value, key = UNREADABLE[name]
    with pytest.raises(UserError, match=f"the checkpoint's hyper_parameters.{key}: expected"):
        check_readable({"state_dict": {}, "hyper_parameters": value})


class WithExtraState(nn.Linear):
    def get_extra_state(self) -> dict[str, int]:
        return {"calls": 3}

    def set_extra_state(self, state: dict[str, int]) -> None: ...


def test_the_type_of_a_readable_value(work: Path) -> None:
    """The verbs load tensors as weights; the message would be about a temporary file."""
    state = WithExtraState(1, 1).state_dict()
    with pytest.raises(UserError, match=r"expected a tensor for _extra_state, got dict; save it"):
        check_readable({"state_dict": state})


def test_tensors_and_plain_values_are_readable() -> None:
    state = nn.Linear(3, 2).state_dict()
    values = {"a": [1, 2.5, None, True, "x", (1,), {2}], "t": torch.zeros(2, dtype=torch.bfloat16)}
    check_readable({"state_dict": state, "epoch": 0, "global_step": 1, "own": values})


@pytest.mark.usefixtures("own")
def test_a_metric_of_a_callback_can_be_monitored(experiment: Any, cli: Cli) -> None:
    """The preflight would not know the metric. Its copy of the callback leaves no trace."""
    flags = ["--trainer.callbacks", "own.Extra", "--checkpoint.monitor", "val/extra"]
    printed = cli("fit", "--config", experiment(), *CPU, *flags, "--checkpoint.mode", "max")
    assert [line for line in printed.splitlines() if line.startswith("epochs")] == [
        "epochs: 1",
        "epochs: 2",
    ]
    assert (LOGS / "version_0/epochs.txt").read_text() == "2"
    state = torch.load(LOGS / "version_0/checkpoints/last.ckpt", weights_only=True)["callbacks"]
    assert state["Extra"] == {"epochs": 2}


@pytest.mark.usefixtures("own")
def test_an_optimizer_whose_mode_a_callback_sets(experiment: Any, cli: Cli) -> None:
    """The first batch would fail, because nobody has put the optimizer into its training mode."""
    optimizer = ["--model.optimizer", "own.Free", "--model.optimizer.lr", "0.01"]
    fit = ["fit", "--config", experiment(), *CPU, *optimizer]
    cli(*fit, "--trainer.callbacks", "own.Modes")
    message = cli(*fit, code=2)
    assert "the first batch fails (own.py, line" in message
    assert "the optimizer is not in train mode" in message


@pytest.mark.usefixtures("own")
def test_a_callback_that_fails_is_found_before_training(experiment: Any, cli: Cli) -> None:
    message = cli(
        "fit", "--config", experiment(), *CPU, "--trainer.callbacks", "own.Broken", code=2
    )
    assert "the first batch fails (own.py, line" in message
    assert "no such metric" in message
    assert not LOGS.exists()


@pytest.mark.usefixtures("own")
def test_metrics_that_own_callbacks_monitor(experiment: Any, cli: Cli) -> None:
    """Lightning would raise an error after the first epoch."""
    for name, monitor, code in (
        ("ModelCheckpoint", "val/f", 2),
        ("EarlyStopping", "val/f", 2),
        ("ModelCheckpoint", "step", 0),
        ("ModelCheckpoint", "val/f1", 0),
    ):
        flags = ["--trainer.callbacks", name, "--trainer.callbacks.monitor", monitor]
        printed = cli("fit", "--config", experiment(), *CPU, *flags, code=code)
        if code:
            assert not LOGS.exists()
            assert f"trainer.callbacks.{name}.monitor: expected a metric that fit logs" in printed
            assert "Did you mean 'val/f1'?" in printed


@pytest.mark.usefixtures("own")
def test_a_callback_that_cannot_be_copied(experiment: Any, cli: Cli) -> None:
    """Its metric would be called missing; or its state would count the epoch of the preflight."""
    flags = ["--trainer.callbacks", "own.HoldsLock", "--checkpoint.monitor", "val/extra"]
    cli("fit", "--config", experiment(), *CPU, *flags, "--checkpoint.mode", "max")
    assert (LOGS / "version_0/epochs.txt").read_text() == "2"


WAVES = """
import torch
from torch.utils.data import TensorDataset

from proj.data.base import DataModule
from proj.schema import Batch, Schema


class Waves(DataModule):
    def __init__(self, column: bool = False):
        super().__init__(16, True)
        self.column = column

    @classmethod
    def encode(cls, rows, schema):
        return rows

    def setup(self, stage):
        x = torch.linspace(0, 6, 90)[:, None]
        y = torch.sin(x) if self.column else torch.sin(x[:, 0])
        for split, rows in zip(("train", "val", "test"), torch.arange(90).split(30)):
            self.splits[split] = Batch(x[rows], y[rows], rows)
        self.schema = Schema.from_dataset(TensorDataset(x, y), targets=["height"])
"""


def test_targets_of_splits_have_the_shape_of_the_outputs(cli: Cli, work: Path) -> None:
    """Outputs [rows, 1] and targets [rows] would become a loss of all pairs of rows."""
    (work / "waves.py").write_text(WAVES)
    fit = ["fit", "--data", "waves.Waves", "--model", "Regressor", "--model.net", "MLP", *CPU]
    message = cli(*fit, code=2)
    assert "splits['train'].y: expected targets of shape [30, 1], got [30]; write y[:" in message
    cli(*fit, "--data.column", "true")


class SharesNet(Callback):
    def __init__(self, net: nn.Module) -> None:
        self.net, self.calls = net, 0

    def on_train_start(self, *_: Any) -> None:
        self.calls += 1


def test_copies_share_what_model_and_callbacks_share() -> None:
    """A callback that holds the net would act on another net than the model's."""
    model = Regressor(nn.Linear(1, 1))
    assert isinstance(model.net, nn.Module)
    callback = SharesNet(model.net)
    copied, (copy,), failed = copy_for_trial(model, [callback])
    assert isinstance(copy, SharesNet)
    assert copy.net is copied.net is not model.net
    copy.on_train_start()
    assert (copy.calls, callback.calls, failed) == (1, 0, [])


def test_a_copy_of_lazy_modules() -> None:
    """The first batch would fail: torch cannot copy buffers that have no shape yet."""
    model = Regressor(nn.Sequential(nn.LazyBatchNorm1d(), nn.LazyLinear(1)))
    copied, _, _ = copy_for_trial(model, [])
    copied.net(torch.rand(5, 3))
    norm, original = copied.net[0], model.net[0]  # type: ignore[index]
    assert norm.running_mean.shape == (3,)
    assert isinstance(original.running_mean, UninitializedBuffer)
