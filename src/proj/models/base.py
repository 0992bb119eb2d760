"""The LightningModule that all tasks share: steps, loss and optimizer."""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, Literal, TypeAlias, cast

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torchmetrics import Metric

from proj.models.checks import check_outputs, mean_loss, with_targets
from proj.models.mixing import mix_images
from proj.models.module import SchemaModule, to_inputs
from proj.models.optim import build_optimizer, build_scheduler, keep_group_rates
from proj.schema import SUM_DTYPE, Batch, Execution, Inputs, Schema

# A module is taken as it is; a class or function of the schema is called when the data are known.
# The command line tries a module first, so the order matters.
Net: TypeAlias = nn.Module | Callable[[Schema], nn.Module]
MetricOption: TypeAlias = Metric | Callable[[int], Metric]


class Model(SchemaModule):
    """A net with a loss, metrics and an optimizer. A subclass defines what an output means.

    Args:
        net: net from inputs to raw outputs. A class whose first argument is the schema is built
            from it.
        optimizer: optimizer class with its options.
        scheduler: scheduler class with its options. ``total_steps`` is filled in if it is open.
        scheduler_interval: whether the scheduler steps after each optimizer step or each epoch.
        loss: module of (outputs, targets) that returns a mean; null means the task's own.
        metrics: torchmetrics metrics by name, for instance ``{kappa: {class_path:
            torchmetrics.classification.MulticlassCohenKappa}}``. They get what ``predict_proba``
            returns. A required first argument is the number of classes or labels.
        freeze: name patterns (``layers.1.*``) of parameters that are not trained.
        learning_rates: learning rates by name pattern.
        layer_decay: factor on the learning rate for each layer below the head, for fine-tuning.
        mixup, cutmix: alphas of mixed training images, such as 0.2 and 1; see ``mix_images``.
        compile: ``net`` compiles the net with ``torch.compile``. ``step`` compiles the whole
            optimizer step; that takes some ten seconds and pays for small nets in long runs.
        steps_per_execution: optimizer steps in one ``training_step``; auto chooses so many that
            one call takes about 0.2 s. It changes the speed and nothing else.
    """

    def __init__(
        self,
        net: Net,
        optimizer: OptimizerCallable = torch.optim.Adam,
        scheduler: LRSchedulerCallable | None = None,
        scheduler_interval: Literal["step", "epoch"] = "epoch",
        loss: nn.Module | None = None,
        metrics: dict[str, MetricOption] | None = None,
        freeze: list[str] | None = None,
        learning_rates: dict[str, float] | None = None,
        layer_decay: float | None = None,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        compile: Literal["none", "net", "step"] = "none",
        steps_per_execution: int | Literal["auto"] = "auto",
    ) -> None:
        super().__init__(net, metrics or {}, freeze or [], compile)
        self.optimizer = optimizer
        self.scheduler, self.scheduler_interval = scheduler, scheduler_interval
        self.loss = loss
        self.learning_rates, self.layer_decay = learning_rates or {}, layer_decay
        self.mixup, self.cutmix = mixup, cutmix
        self.steps_per_execution = steps_per_execution
        # Set before training if the loader hands out several batches at once: see
        # engine/callbacks/steps_per_execution.py.
        self.run_execution: Callable[[Any, Execution], Tensor] | None = None
        self.compiled_step: Any = None

    # What a task defines

    @abstractmethod
    def compute_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss of raw outputs [rows, outputs] for the targets of a batch."""

    @abstractmethod
    def predict_proba(self, outputs: Tensor) -> Tensor:
        """Return probabilities for raw outputs [rows, outputs], or numbers in the target's unit.

        Shapes: [rows] (binary, the positive class), [rows, classes], [rows, labels] or
        [rows, targets]. Metrics and predictions files get these values.
        """

    def loss_weight(self, targets: Tensor) -> Tensor | float:
        """Return the weight of a batch's mean loss in the mean over the epoch."""
        return len(targets)

    def average_members(self, outputs: Tensor) -> Tensor:
        """Average an ensemble: raw outputs [rows, members, outputs] to [rows, outputs]."""
        return outputs.mean(1)

    # Steps

    def forward(self, x: Inputs) -> Tensor:
        """Return raw outputs [rows, outputs], or [rows, members, outputs] of an ensemble."""
        assert isinstance(self.net, nn.Module)  # built in configure_model
        inputs = to_inputs(x, cast(torch.dtype, self.dtype))
        # Of several inputs each is an argument of the net; a dict is one argument.
        outputs = self.net(*inputs) if type(inputs) in (tuple, list) else self.net(inputs)
        return cast(Tensor, getattr(outputs, "logits", outputs))  # transformers' outputs

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        if isinstance(batch, Execution):
            assert self.run_execution is not None
            return self.run_execution(self, batch)
        batch = self.to_batch(batch)
        outputs, loss, weight = self.forward_loss(batch, "train")
        self.update_metrics(outputs, batch.y, [loss], [weight], "train", batch.weight)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        return self._evaluate(batch, "val")

    def test_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        return self._evaluate(batch, "test")

    def predict_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        batch = self.to_batch(batch)
        predictions = self.predict_proba(self.eval_outputs(self(batch.x)))
        return {"row": batch.row, "output": predictions}

    def _evaluate(self, batch: Any, split: str) -> dict[str, Tensor]:
        batch = self.to_batch(batch)
        outputs, loss, weight = self.forward_loss(batch, split)
        predictions = self.update_metrics(outputs, batch.y, [loss], [weight], split, batch.weight)
        weights = {} if batch.weight is None else {"weight": batch.weight}
        return {"row": batch.row, "output": predictions, "target": batch.y, **weights}

    def forward_loss(self, batch: Batch, split: str) -> tuple[Tensor, Tensor, Tensor | float]:
        """Return a batch's raw outputs, their mean loss, and its weight (see ``mean_loss``)."""
        assert self.schema is not None
        x, targets, share = batch.x, with_targets(batch.y), None
        if split == "train" and self.training and (self.mixup or self.cutmix):
            inputs: Tensor = to_inputs(x, cast(torch.dtype, self.dtype))
            x, share = mix_images(inputs, self.mixup, self.cutmix)
        outputs = self(x)
        check_outputs(outputs, len(batch.row), self.schema, type(self.net).__name__)
        outputs = outputs.float() if split == "train" else self.eval_outputs(outputs)
        return outputs, *mean_loss(self, outputs, targets, batch.weight, share)

    def eval_outputs(self, outputs: Tensor) -> Tensor:
        """Return raw outputs [rows, outputs] for evaluation: averaged, divided by temperature."""
        outputs = outputs.to(SUM_DTYPE)
        return (self.average_members(outputs) if outputs.ndim == 3 else outputs) / self.temperature

    # Optimizer

    def configure_optimizers(self) -> Any:
        assert isinstance(self.net, nn.Module)
        optimizer = build_optimizer(self.optimizer, self.net, self.learning_rates, self.layer_decay)
        if self.scheduler is None:
            return optimizer
        rates = [group.get("lr") for group in optimizer.param_groups]
        scheduler = build_scheduler(
            self.scheduler, optimizer, self.scheduler_interval, self.trainer
        )
        if self.learning_rates or self.layer_decay is not None:
            keep_group_rates(optimizer, rates, self.learning_rates, type(scheduler).__name__)
        config: dict[str, Any] = {"scheduler": scheduler, "interval": self.scheduler_interval}
        if monitor := getattr(scheduler, "monitor", None):  # ReduceLROnPlateau
            config["monitor"] = monitor
        return {"optimizer": optimizer, "lr_scheduler": config}

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        if loss.requires_grad:  # A compiled step has made its own backward pass.
            super().backward(loss, *args, **kwargs)
