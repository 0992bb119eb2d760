"""A user's own code in the scenarios: callbacks with state, loss, metric, models, data module."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import Metric

from proj.models.regression import Regressor
from proj.nets.mlp import MLP


class SlowWeights(Callback):
    """An exponential average of the weights, in the callback's state, that joins them at the end.

    It also draws from torch's generator in each epoch.
    """

    def __init__(self, decay: float = 0.9) -> None:
        self.decay, self.epochs, self.noise = decay, 0, 0.0
        self.average: dict[str, Tensor] = {}

    def state_dict(self) -> dict[str, Any]:
        return {"average": self.average, "epochs": self.epochs, "noise": self.noise}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.average, self.epochs, self.noise = state_dict.values()

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        self.epochs += 1
        self.noise += float(torch.rand(()))

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        for name, values in pl_module.named_parameters():
            old = self.average.get(name, values.detach())
            self.average[name] = self.decay * old + (1 - self.decay) * values.detach()

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        with torch.no_grad():
            for name, values in pl_module.named_parameters():
                values.lerp_(self.average[name], 0.1)


class HuberLoss(nn.Module):
    """A loss with a buffer that changes in each step."""

    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if self.training:
            self.seen += targets.abs().mean()
        return nn.functional.huber_loss(outputs, targets) * (1 + 0.01 / (1 + self.seen))


class LargestError(Metric):
    """The largest absolute error of the epoch so far."""

    largest: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("largest", torch.zeros(()), dist_reduce_fx="max")

    def update(self, preds: Tensor, target: Tensor) -> None:
        self.largest = torch.maximum(self.largest, (preds - target).abs().max())

    def compute(self) -> Tensor:
        return self.largest


class OwnRegressor(Regressor):
    """A task with a step of its own, which mixes the rows of a batch at random."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        return loss * (1 + 0.01 * torch.rand(()))


class BatchNormNet(MLP):
    """A net with running statistics."""

    def __init__(self, schema: Any) -> None:
        super().__init__(schema, hidden=(8,), norm="batch", dropout=0.1)


class Own(LightningDataModule):
    """Torch's own DataLoader."""

    def train_dataloader(self) -> DataLoader[Any]:
        x = torch.randn(96, 6, generator=torch.Generator().manual_seed(0))
        return DataLoader(TensorDataset(x, (x[:, 0] > 0).long() + (x[:, 1] > 0)), 8, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.train_dataloader().dataset, 8)

    test_dataloader = predict_dataloader = val_dataloader


class Adversaries(LightningModule):
    """Two nets with two optimizers in manual optimization."""

    def __init__(self, lr: float = 0.01) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.lr = lr
        self.automatic_optimization = False
        self.generator, self.critic = nn.Linear(2, 6), nn.Linear(6, 1)

    def training_step(self, batch: Any, batch_idx: int) -> None:
        x, _ = batch
        first, second = self.optimizers()  # type: ignore[misc]
        fake = self.generator(torch.randn(len(x), 2))
        loss = self.critic(fake.detach()).mean() - self.critic(x).mean()
        loss = loss + self.critic.weight.square().sum()
        second.zero_grad()
        self.manual_backward(loss)
        second.step()
        score = self.critic(self.generator(torch.randn(len(x), 2))).mean()
        first.zero_grad()
        self.manual_backward(self.generator.weight.square().sum() - score)
        first.step()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        fake = self.critic(self.generator(torch.zeros(1, 2)))
        self.log("val_gap", (self.critic(batch[0]).mean() - fake).abs().sum())

    def configure_optimizers(self) -> Any:
        return (
            torch.optim.Adam(self.generator.parameters(), self.lr),
            torch.optim.RMSprop(self.critic.parameters(), self.lr),
        )
