"""What all tasks share: the steps, the metrics, the optimizer, and the net's way from schema to checkpoint."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Literal, TypeAlias, cast

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from proj import metrics
from proj.metrics.exact import EXACT
from proj.models.checks import (
    build,
    check_outputs,
    check_targets,
    check_task,
    rows_at_once,
    schema_of_a_batch,
)
from proj.models.optim import check_rates, freeze_matching, fuse, parameter_groups, schedule
from proj.schema import DEFAULT_THRESHOLD, SPLITS, Batch, Execution, Schema, Task, Tensors

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
        compile: ``net`` runs the net through ``torch.compile``; ``step`` the whole optimizer step, for small nets in long
            runs: it takes some ten seconds to compile.
        steps_per_execution: optimizer steps in one ``training_step``, so that Lightning's own work is done once for all of
            them; auto: as many as take some tens of milliseconds. It changes the speed and nothing else.
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
        compile: Literal["none", "net", "step"] = "none",
        steps_per_execution: int | Literal["auto"] = "auto",
    ) -> None:
        super().__init__()
        self.net = net
        self.optimizer, self.scheduler, self.scheduler_interval = (
            optimizer,
            scheduler,
            scheduler_interval,
        )
        self.frozen, self.learning_rates, self.compile_mode = (
            freeze or [],
            learning_rates or {},
            compile,
        )
        self.steps_per_execution = steps_per_execution
        self.schema: Schema | None = (
            None  # from the data module, or from a checkpoint before the Trainer runs
        )
        self.monitor = metrics.DEFAULT_MONITOR[self.task]
        self.mode = metrics.METRIC_INFO[self.monitor.split("/")[1]].mode
        self.temperature = 1.0  # others, of both, for `test` and `predict`, where some were fitted
        self.thresholds: tuple[float, ...] = DEFAULT_THRESHOLD
        # Set before training where the loader gives several batches at once: engine/callbacks/multi_step.py.
        self.run_execution: Callable[[Any, Execution], Tensor] | None = None
        self.compiled_step: Any = None
        self._seen = (
            0  # rows of this stage so far, to number the rows of a user's own (x, y) batches
        )

    # What a task's class says

    @abstractmethod
    def losses(self, outputs: Tensor, y: Tensor) -> tuple[Tensor, Tensor | float]:
        """Mean loss of the rows of a batch, and its weight among other batches' means (the number of rows, mostly)."""

    @abstractmethod
    def average_members(self, outputs: Tensor) -> Tensor:
        """Raw outputs [rows, members, outputs] of an ensemble as [rows, outputs] that give its mean prediction."""

    @abstractmethod
    def predict_proba(self, outputs: Tensor) -> Tensor:
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
        self.meters = nn.ModuleList(metrics.StageMetrics(self.schema, stage) for stage in SPLITS)
        if self.compile_mode == "net":
            self.net.compile()  # in place, so that the checkpoint's keys stay as they are

    def rows_at_once(self, x: Tensors) -> int:
        """How many rows like ``x`` to evaluate at once."""
        return rows_at_once(self, x)

    # Steps

    def forward(self, x: Tensors) -> Tensor:
        """Inputs to raw outputs [rows, outputs]."""
        assert isinstance(self.net, nn.Module)  # built in configure_model
        outputs: Tensor = self.net(as_numbers(x))
        return outputs

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        if isinstance(batch, Execution):
            assert self.run_execution is not None
            return self.run_execution(self, batch)
        batch = self._batch(batch)
        outputs, loss, weight = self.forward_loss(batch, "train")
        self.update_metrics(outputs, batch.y, [loss], [weight], "train")
        return loss

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        if loss.requires_grad:  # else a compiled step has been made of it
            super().backward(loss, *args, **kwargs)

    def validation_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        return self._evaluate(batch, "val")

    def test_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        return self._evaluate(batch, "test")

    def predict_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        batch = self._batch(batch)
        return {"row": batch.row, "output": self.predict_proba(self.eval_outputs(self(batch.x)))}

    def eval_outputs(self, outputs: Tensor) -> Tensor:
        """Raw outputs [rows, outputs] in evaluation: the mean of an ensemble's, divided by the temperature."""
        outputs = outputs.to(EXACT)
        return (self.average_members(outputs) if outputs.ndim == 3 else outputs) / self.temperature

    def forward_loss(self, batch: Batch, stage: str) -> tuple[Tensor, Tensor, Tensor | float]:
        """Raw outputs for a batch, their mean loss, and its weight."""
        outputs, y = self(batch.x), batch.y
        assert self.schema is not None
        assert y is not None
        check_outputs(outputs, len(batch.row), self.schema, type(self.net).__name__)
        outputs = outputs.float() if stage == "train" else self.eval_outputs(outputs)
        if outputs.ndim == 2:
            return outputs, *self.losses(outputs, y)
        # each member of an ensemble learns by its own loss
        return outputs, *self.losses(
            outputs.flatten(0, 1), y.repeat_interleave(outputs.shape[1], dim=0)
        )

    @torch.no_grad()
    def update_metrics(
        self,
        outputs: Tensor,
        y: Tensor,
        losses: list[Tensor],
        weights: list[Tensor | float],
        stage: str,
    ) -> Tensor:
        """Count the rows of some batches in the stage's metrics; return what is predicted for them."""
        predicted = self.predict_proba(
            self.average_members(outputs) if outputs.ndim == 3 else outputs
        )
        numbers = [w for w in weights if not isinstance(w, Tensor)]
        weight = (
            torch.tensor(numbers, device=y.device)
            if numbers
            else torch.stack(cast(list[Tensor], weights))
        )
        self._meter(stage).update(
            predicted, y, torch.stack(losses).detach(), weight.to(EXACT), self.thresholds
        )
        return predicted

    def _evaluate(self, batch: Any, stage: str) -> dict[str, Tensor]:
        batch = self._batch(batch)
        outputs, loss, weight = self.forward_loss(batch, stage)
        predicted = self.update_metrics(outputs, batch.y, [loss], [weight], stage)
        return {"row": batch.row, "output": predicted, "target": batch.y}

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
        self._finish("train")

    def on_validation_epoch_end(self) -> None:
        self._finish("val")

    def on_test_epoch_end(self) -> None:
        self._finish("test")

    def _finish(self, stage: str) -> dict[str, Tensor]:
        """Compute, log and clear the stage's metrics. Within fit, results for single classes are left out."""
        values = self._meter(stage).finish()
        within_fit = self.trainer.state.fn == "fit"
        named = {
            f"{stage}/{name}": value
            for name, value in values.items()
            if not (within_fit and "/" in name)
        }
        headline = [f"{stage}/loss", self.monitor.replace("val/", f"{stage}/")]
        for (
            name,
            value,
        ) in named.items():  # equal on every process already, so the largest is the value itself
            self.log(
                name,
                value,
                prog_bar=name in headline,
                sync_dist=True,
                reduce_fx="max",
                logger=False,
            )
        if within_fit and not self.trainer.sanity_checking:
            for logger in (
                self.trainer.loggers
            ):  # by optimizer steps, where `self.log` counts calls of `training_step`
                scalars = {name: value.item() for name, value in named.items()}
                logger.log_metrics(
                    {**scalars, "epoch": self.current_epoch}, step=self.trainer.global_step
                )
        return named

    def metric_state(self) -> dict[str, Tensor]:
        """What this process has counted of the training epoch so far."""
        return self._meter("train").metric_state_dict()

    @property
    def loss_so_far(self) -> Tensor:
        """Sum of the weighted losses of the training epoch so far."""
        total: Tensor = self._meter("train").loss.total
        return total

    def load_metric_state(self, sums: dict[str, Tensor]) -> None:
        """Count on from there."""
        self._meter("train").load_metric_state(sums)

    def _meter(self, stage: str) -> metrics.StageMetrics:
        meter = self.meters[SPLITS.index(stage)]
        assert isinstance(meter, metrics.StageMetrics)
        return meter

    # Optimizer

    def configure_optimizers(self) -> Any:
        assert isinstance(self.net, nn.Module)
        optimizer = self.optimizer(parameter_groups(self.net, self.learning_rates))
        fuse(optimizer)
        if self.scheduler is None:
            return optimizer
        scheduler = schedule(self.scheduler, optimizer, self.scheduler_interval, self.trainer)
        check_rates(optimizer, self.learning_rates, type(scheduler).__name__)
        config: dict[str, Any] = {"scheduler": scheduler, "interval": self.scheduler_interval}
        if monitor := getattr(scheduler, "monitor", None):  # ReduceLROnPlateau
            config["monitor"] = monitor
        return {"optimizer": optimizer, "lr_scheduler": config}


def as_numbers(x: Tensors) -> Tensors:
    """What the net is given: uint8 images become numbers from 0 to 1."""
    return (
        x.to(torch.get_default_dtype()) / 255
        if isinstance(x, Tensor) and x.dtype == torch.uint8
        else x
    )


def mean_logit(outputs: Tensor) -> Tensor:
    """The logits of the mean probabilities of an ensemble's logits: [rows, members, outputs] to [rows, outputs]."""
    return logsigmoid(outputs).logsumexp(1) - logsigmoid(-outputs).logsumexp(1)
