"""What all tasks share: the steps, the metrics, the optimizer, and the net's way from schema to checkpoint."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Literal, TypeAlias

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from proj import metrics
from proj.errors import TrainingError
from proj.exact import EXACT
from proj.models.fitting import build, check_outputs, check_targets, check_task, schema_of_a_batch
from proj.models.parameters import check_rates, freeze_matching, parameter_groups
from proj.models.schedule import schedule
from proj.schema import STAGES, Batch, Schema, Task, Tensors

# A plain module is taken as it is; a class whose first argument is the schema is built from it. The order matters: the
# command line tries a module first.
Net: TypeAlias = nn.Module | Callable[[Schema], nn.Module]


class Model(LightningModule, ABC):
    """A net with a loss, metrics and an optimizer. A task's class says what a raw output means.

    Args:
        net: inputs to raw outputs, by class path. A net whose first argument is the schema is built from it.
        optimizer: by class path, with its options.
        scheduler: by class path, with its options; a ``total_steps`` left open is filled in.
        scheduler_interval: whether the scheduler steps after each optimizer step or after each epoch.
        freeze: name patterns (``layers.1.*``) of the net's parameters that are not trained.
        learning_rates: learning rate by name pattern, for parameters that want their own.
        compile: ``net`` runs the net through ``torch.compile``.
    """

    task: ClassVar[Task]
    mode: Literal["min", "max"]

    def __init__(
        self,
        net: Net,
        optimizer: OptimizerCallable = torch.optim.Adam,
        scheduler: LRSchedulerCallable | None = None,
        scheduler_interval: Literal["step", "epoch"] = "epoch",
        freeze: list[str] | None = None,
        learning_rates: dict[str, float] | None = None,
        compile: Literal["none", "net"] = "none",
    ) -> None:
        super().__init__()
        self.net = net
        self.optimizer, self.scheduler, self.scheduler_interval = optimizer, scheduler, scheduler_interval
        self.frozen, self.learning_rates, self.compile_what = freeze or [], learning_rates or {}, compile
        self.schema: Schema | None = None  # from the data module, or from a checkpoint before the Trainer runs
        self.monitor = metrics.MONITOR[self.task]
        self.mode = metrics.ABOUT[self.monitor.split("/")[1]].mode
        self._seen = 0  # rows of this stage so far, to number the rows of a user's own (x, y) batches

    # What a task's class says

    @abstractmethod
    def losses(self, outputs: Tensor, y: Tensor) -> tuple[Tensor, Tensor | float]:
        """Mean loss of the rows of a batch, and its weight among other batches' means (the number of rows, mostly)."""

    @abstractmethod
    def average(self, outputs: Tensor) -> Tensor:
        """Raw outputs [rows, members, outputs] of an ensemble as [rows, outputs] that give its mean prediction."""

    @abstractmethod
    def predictions(self, outputs: Tensor) -> Tensor:
        """Raw outputs as probabilities, or as numbers in the target's own units: what the metrics see."""

    def prepare(self, schema: Schema) -> None:
        """Take from the schema what the loss needs. Called once, before the net is trained or loaded."""

    # From schema to net

    def configure_model(self) -> None:
        """Build the net from the schema, once; Lightning calls it when the data are set up."""
        if hasattr(self, "meters"):
            return
        if self.schema is None:
            data = getattr(self.trainer, "datamodule", None)
            self.schema = getattr(data, "schema", None) or schema_of_a_batch(self, data or self)
        check_task(self.task, self.schema, type(self).__name__)
        if not isinstance(self.net, nn.Module):
            self.net = build(self.net, self.schema)
        freeze_matching(self.net, self.frozen)
        self.prepare(self.schema)
        self.meters = nn.ModuleList(metrics.Meter(self.schema, stage) for stage in STAGES)
        if self.compile_what == "net":
            self.net.compile()  # in place, so that the checkpoint's keys stay as they are

    # Steps

    def forward(self, x: Tensors) -> Tensor:
        """Inputs to raw outputs [rows, outputs]; uint8 images become numbers from 0 to 1."""
        if isinstance(x, Tensor) and x.dtype == torch.uint8:
            x = x.to(torch.get_default_dtype()) / 255
        assert isinstance(self.net, nn.Module)  # built in configure_model
        outputs: Tensor = self.net(x)
        return outputs

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss, _ = self._step(batch, "train")
        self.log("train/loss_step", loss, prog_bar=True, on_step=True, on_epoch=False)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self._step(batch, "val")

    def test_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        _, predicted = self._step(batch, "test")
        return predicted

    def predict_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        batch = self._batch(batch)
        outputs = self(batch.x).to(EXACT)
        return {"row": batch.row, "output": self.predictions(self.average(outputs) if outputs.ndim == 3 else outputs)}

    def _step(self, batch: Any, stage: str) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of a batch, with its rows counted in the stage's metrics, and what is predicted for it."""
        batch = self._batch(batch)
        outputs = self(batch.x)
        assert self.schema is not None
        check_outputs(outputs, len(batch.row), self.schema, type(self.net).__name__)
        outputs = outputs.float() if stage == "train" else outputs.to(EXACT)
        together = self.average(outputs) if outputs.ndim == 3 else outputs
        if stage == "train" and outputs.ndim == 3:  # each member learns by its own loss
            loss, weight = self.losses(outputs.flatten(0, 1), batch.y.repeat_interleave(outputs.shape[1], dim=0))
        else:
            loss, weight = self.losses(together, batch.y)
        with torch.no_grad():
            predicted = self.predictions(together)
            self._meter(stage).update(predicted, batch.y, loss.detach(), weight)
        return loss, {"row": batch.row, "output": predicted, "target": batch.y}

    def _batch(self, batch: Any) -> Batch:
        """A batch as it is, or a user's ``(x, y)`` or ``x`` with each row's place in the data set."""
        if isinstance(batch, Batch):
            return batch
        x, y = (batch[0], batch[1]) if isinstance(batch, tuple | list) else (batch, None)
        rows = torch.arange(self._seen, self._seen + len(x), device=x.device)
        self._seen += len(x)
        if y is not None:
            check_targets(y, self.task)
            if self.task in ("regression", "multilabel"):
                y = y.view(len(y), -1).to(torch.get_default_dtype())
        return Batch(x, y, rows * self.trainer.world_size + self.trainer.global_rank)

    # Ends of a stage

    def on_train_epoch_start(self) -> None:
        self._seen = 0

    on_validation_epoch_start = on_test_epoch_start = on_predict_epoch_start = on_train_epoch_start

    def on_train_epoch_end(self) -> None:
        values = self._finish("train")
        if not torch.isfinite(values["train/loss"]):
            raise TrainingError(
                f"the training loss of epoch {self.current_epoch} is {values['train/loss'].item()}: expected a finite "
                "number; lower the learning rate, clip gradients, or look for extreme inputs. The checkpoints of earlier "
                "epochs are kept."
            )

    def on_validation_epoch_end(self) -> None:
        self._finish("val")

    def on_test_epoch_end(self) -> None:
        self._finish("test")

    def _finish(self, stage: str) -> dict[str, Tensor]:
        """Compute, log and clear the stage's metrics. Within fit, results for single classes are left out."""
        values = self._meter(stage).finish()
        within_fit = self.trainer.state.fn == "fit"
        named = {f"{stage}/{name}": value for name, value in values.items() if not (within_fit and "/" in name)}
        headline = [f"{stage}/loss", self.monitor.replace("val/", f"{stage}/")]
        for name, value in named.items():  # equal on every process already, so the largest is the value itself
            self.log(name, value, prog_bar=name in headline, sync_dist=True, reduce_fx="max")
        return named

    def _meter(self, stage: str) -> metrics.Meter:
        meter = self.meters[STAGES.index(stage)]
        assert isinstance(meter, metrics.Meter)
        return meter

    # Optimizer

    def configure_optimizers(self) -> Any:
        assert isinstance(self.net, nn.Module)
        optimizer = self.optimizer(parameter_groups(self.net, self.learning_rates))
        if self.scheduler is None:
            return optimizer
        scheduler = schedule(self.scheduler, optimizer, self.scheduler_interval, self.trainer)
        check_rates(optimizer, self.learning_rates, type(scheduler).__name__)
        config: dict[str, Any] = {"scheduler": scheduler, "interval": self.scheduler_interval}
        if monitor := getattr(scheduler, "monitor", None):  # ReduceLROnPlateau
            config["monitor"] = monitor
        return {"optimizer": optimizer, "lr_scheduler": config}


def mean_logit(outputs: Tensor) -> Tensor:
    """The logits of the mean probabilities of an ensemble's logits: [rows, members, outputs] to [rows, outputs]."""
    return logsigmoid(outputs).logsumexp(1) - logsigmoid(-outputs).logsumexp(1)
