"""Models in a Trainer that the user builds: as any LightningModule, without the command line."""

from functools import partial
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.utils.data import DataLoader, TensorDataset

from proj.data import ArrayDataModule
from proj.errors import UserError
from proj.models import MulticlassClassifier, Regressor
from proj.nets import MLP

pytestmark = pytest.mark.filterwarnings(
    "ignore:You defined a `validation_step`",
    "ignore:The '.*_dataloader' does not have many workers",
)

QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


def trainer(**options: Any) -> lightning.Trainer:
    return lightning.Trainer(**QUIET, **{"max_epochs": 1, "enable_checkpointing": False, **options})


def loader(rows: int = 40, batch_size: int = 8) -> "DataLoader[Any]":
    x = torch.randn(rows, 4, generator=torch.Generator().manual_seed(1))
    return DataLoader(TensorDataset(x, x[:, :1]), batch_size=batch_size)


class Plain(LightningModule):
    """The reference: an ordinary module that logs its loss once per epoch."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = mse_loss(self.net(batch[0]), batch[1])
        self.log("train/loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/loss", mse_loss(self.net(batch[0]), batch[1]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters())


class Seen(Callback):
    """What the hooks of a callback see of the logged metrics."""

    def __init__(self) -> None:
        self.values: list[tuple[str, int, dict[str, float]]] = []

    def _record(self, hook: str, trainer: Trainer) -> None:
        metrics = {n: v.item() for n, v in trainer.callback_metrics.items() if n.endswith("/loss")}
        self.values.append((hook, trainer.current_epoch, metrics))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._record("validation_end", trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._record("train_epoch_end", trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._record("train_end", trainer)


class StopInEpoch(Callback):
    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        trainer.should_stop = trainer.global_step >= 7


@pytest.mark.parametrize(
    "options",
    [
        {"max_epochs": 3},
        {"max_epochs": 3, "max_steps": 7},
        {"max_epochs": 2, "limit_train_batches": 3},
    ],
    ids=["epochs", "a limit of steps within an epoch", "a limit of batches"],
)
def test_callbacks_see_the_metrics_of_this_epoch_as_with_plain_lightning(
    options: dict[str, Any],
) -> None:
    """A callback would see no training loss, or that of the epoch before."""
    torch.manual_seed(0)
    ours = Regressor(nn.Linear(4, 1), standardize_target=False)
    reference = Plain(nn.Linear(4, 1))
    reference.net.load_state_dict(ours.net.state_dict())  # type: ignore[union-attr]
    seen, expected = Seen(), Seen()
    trainer(callbacks=[seen], **options).fit(ours, loader(), loader(16))
    trainer(callbacks=[expected], **options).fit(reference, loader(), loader(16))
    assert [value[:2] for value in seen.values] == [value[:2] for value in expected.values]
    for (*_, ours_then), (hook, _, plain_then) in zip(seen.values, expected.values, strict=True):
        assert ours_then == pytest.approx(plain_then, rel=1e-5), hook


def test_an_epoch_that_a_callback_stops_has_its_metrics() -> None:
    """The metrics of the batches before the stop would be lost, or counted in another epoch."""
    ours = Regressor(nn.Linear(4, 1), standardize_target=False)
    run = trainer(callbacks=[StopInEpoch()], max_epochs=5, min_epochs=0)
    run.fit(ours, loader())
    assert torch.isfinite(run.callback_metrics["train/loss"])
    assert run.callback_metrics["train/rmse"] > 0


def test_the_metrics_of_validate_and_test_are_returned() -> None:
    """``trainer.test`` would return an empty dict."""
    model, data = Regressor(MLP), ArrayDataModule("diabetes", batch_size=64)
    run = trainer()
    run.fit(model, data)
    (tested,) = run.test(model, data, verbose=False)
    (validated,) = run.validate(model, data, verbose=False)
    assert tested["test/rmse"] == pytest.approx(tested["test/mse"] ** 0.5)
    assert validated["val/mae"] > 0
    assert tested.keys() == {f"test/{name}" for name in ("loss", "mse", "rmse", "mae", "r2")}


def test_a_net_with_a_schema_needs_one() -> None:
    with pytest.raises(UserError, match="the net is built from a schema"):
        trainer().fit(Regressor(MLP), loader())


@pytest.mark.parametrize(
    ("net", "is_called_with_schema"),
    [
        (MLP, True),
        (partial(MLP, hidden=[8]), True),
        (lambda schema: MLP(schema), True),
        (lambda outputs=1: nn.Linear(4, outputs), False),
        (lambda: nn.Linear(4, 1), False),
        (lambda **options: nn.Linear(4, 1, **options), False),
    ],
)
def test_a_function_of_nets_gets_the_schema_if_it_takes_one(
    net: Any, is_called_with_schema: bool
) -> None:
    """The schema would be the number of outputs."""
    model = Regressor(net, standardize_target=is_called_with_schema)
    if is_called_with_schema:
        trainer().fit(model, ArrayDataModule("diabetes", batch_size=64))
    else:
        trainer().fit(model, loader())
    assert isinstance(model.net, nn.Module)


def test_loaders_train_as_with_plain_lightning() -> None:
    """The loaders would be refused, or the batches that the schema is read from would be lost."""
    torch.manual_seed(0)
    ours = Regressor(nn.Linear(4, 1), standardize_target=False)
    reference = Plain(nn.Linear(4, 1))
    reference.net.load_state_dict(ours.net.state_dict())  # type: ignore[union-attr]
    for module in (ours, reference):
        trainer(max_epochs=2).fit(module, loader(), loader(16))
    weight = reference.state_dict()["net.weight"]
    assert torch.allclose(ours.state_dict()["net.weight"], weight, atol=1e-6)
    (metrics,) = trainer().validate(ours, loader(16), verbose=False)
    (expected,) = trainer().validate(reference, loader(16), verbose=False)
    assert metrics["val/loss"] == pytest.approx(expected["val/loss"], rel=1e-5)


@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
@pytest.mark.parametrize("loaders", [loader, lambda: [loader()]], ids=["one", "a list"])
def test_a_net_that_is_trained_already_is_evaluated(stage: str, loaders: Any) -> None:
    """Only `fit` would find out the schema, so a pretrained net could not be evaluated first."""
    net = nn.Linear(4, 1)
    model = Regressor(net, standardize_target=False)
    options = {} if stage == "predict" else {"verbose": False}
    (result,) = getattr(trainer(), stage)(model, loaders(), **options)[:1]
    if stage != "predict":
        x, y = loader().dataset.tensors  # type: ignore[attr-defined]
        with torch.no_grad():
            expected = mse_loss(net(x), y).item()
        assert result[f"{stage.replace('validate', 'val')}/mse"] == pytest.approx(expected)


def test_loaders_without_a_limit_of_epochs() -> None:
    run = trainer(max_epochs=-1, max_steps=7)
    run.fit(Regressor(nn.Linear(4, 1), standardize_target=False), loader(), loader())
    assert run.global_step == 7


def test_load_from_checkpoint_builds_the_net_from_the_stored_schema(work: Path) -> None:
    """The net would have no sizes, and the constants of loss and net would be missing."""
    model, data = MulticlassClassifier(MLP), ArrayDataModule("iris", batch_size=32)
    saver = ModelCheckpoint(dirpath=work, filename="mine")
    trainer(callbacks=[saver], enable_checkpointing=True).fit(model, data)
    loaded = MulticlassClassifier.load_from_checkpoint(work / "mine.ckpt", net=MLP)
    assert loaded.schema == model.schema
    state = loaded.state_dict()
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    (before,) = trainer().test(model, data, verbose=False)
    (after,) = trainer().test(loaded, data, verbose=False)
    assert after == before


def test_load_from_checkpoint_of_a_run(trained: Any) -> None:
    """The checkpoint of a run would be readable by the verbs only."""
    trained()
    path = "lightning_logs/version_0/checkpoints/best.ckpt"
    loaded = MulticlassClassifier.load_from_checkpoint(
        path, net=lambda schema: MLP(schema, hidden=[8])
    )
    state = torch.load(path, weights_only=True)["state_dict"]
    assert all(torch.equal(value, state[name]) for name, value in loaded.state_dict().items())
