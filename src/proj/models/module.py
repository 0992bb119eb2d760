"""What a model is built from when the data are known, and its metrics over an epoch."""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar, Literal, cast

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torchmetrics import Metric

from proj.errors import UserError
from proj.metrics import DEFAULT_MONITOR, METRIC_INFO
from proj.metrics.stage import StageMetrics
from proj.models.checks import (
    build_net,
    check_targets,
    check_task,
    evaluation_batch_size,
    infer_schema,
    num_rows,
    split_batch,
    takes_schema,
)
from proj.models.mixing import check_mixing
from proj.models.optim import freeze_matching
from proj.schema import (
    DEFAULT_THRESHOLD,
    SPLITS,
    SUM_DTYPE,
    Average,
    Batch,
    Schema,
    Task,
    Tensors,
)

# Lightning calls what torch 2.13 deprecates (Lightning issue 21326).
warnings.filterwarnings("ignore", r".*isinstance\(treespec, LeafSpec\).*")
# Metrics are logged once per epoch, however few batches it has.
warnings.filterwarnings("ignore", r"The number of training batches \(\d+\) is smaller than the log")


class SchemaModule(LightningModule, ABC):
    """A LightningModule whose net and metrics are built from the schema of the data.

    Attributes:
        task: what the targets are; set by each subclass.
        average: how the metrics of several classes or labels become one.
        mixup, cutmix: see ``mix_images``.
        schema: schema of the data: the data module's, or a checkpoint's if it is set before.
        monitor: metric that the best epoch is chosen by.
        mode: direction of ``monitor`` that is better.
        temperature: divisor of the raw outputs in ``test`` and ``predict``; 1 if not calibrated.
        thresholds: probabilities above which a row is positive, in ``test`` and ``predict``.
        conformal_limits: limits of intervals or sets, in ``test`` and ``predict``; may be empty.
    """

    task: ClassVar[Task]
    average: Average = "macro"
    mixup = cutmix = 0.0
    mode: Literal["min", "max"]

    def __init__(
        self,
        net: nn.Module | Callable[[Schema], nn.Module],
        metrics: dict[str, Metric | Callable[[int], Metric]],
        freeze: list[str],
        compile: Literal["none", "net", "step"],
    ) -> None:
        super().__init__()
        self.net = net
        self.extra_metrics = metrics
        self.freeze_patterns, self.compile_mode = freeze, compile
        self.schema: Schema | None = None
        self.monitor = DEFAULT_MONITOR[self.task]
        self.mode = METRIC_INFO[self.monitor.split("/")[1]].mode
        self.temperature = 1.0
        self.thresholds: tuple[float, ...] = DEFAULT_THRESHOLD
        self.conformal_limits: tuple[float, ...] = ()
        # Rows of this epoch so far, to number the rows of batches that carry no row numbers.
        self._rows_seen = 0
        # Several processes need fewer messages: see engine/callbacks/metric_messages.py.
        self.compute_metrics: Callable[[StageMetrics], dict[str, Tensor]] = StageMetrics.compute
        # The metrics of this training epoch from its last batch to its end, and if they are logged.
        self._train_values: dict[str, Tensor] = {}
        self._train_is_logged = False

    @abstractmethod
    def predict_proba(self, outputs: Tensor) -> Tensor: ...

    @abstractmethod
    def average_members(self, outputs: Tensor) -> Tensor: ...

    def configure_loss(self, schema: Schema) -> None:
        """Set up what the loss takes from the schema. Called once, before training or loading."""

    @property
    def backbone(self) -> nn.Module:
        """The net's ``backbone``, which callbacks such as ``BackboneFinetuning`` look for here."""
        return cast(nn.Module, cast(Any, self.net).backbone)

    # From schema to net

    def configure_model(self) -> None:
        if hasattr(self, "split_metrics"):
            return
        if not isinstance(self.net, nn.Module) and not takes_schema(self.net):
            self.net = build_net(self.net)
        if self.schema is None:
            try:
                data = getattr(self.trainer, "datamodule", None)
            except RuntimeError:  # `load_from_checkpoint` has no Trainer, but a schema a bit later.
                return
            self.schema = getattr(data, "schema", None) or infer_schema(self, data)
        check_task(self.task, self.schema, type(self).__name__)
        check_mixing(self.mixup, self.cutmix, self.schema)
        if not isinstance(self.net, nn.Module):
            self.net = build_net(self.net, self.schema)
            self.schema = replace(self.schema, net_config=getattr(self.net, "net_config", ""))
        freeze_matching(self.net, self.freeze_patterns)
        self.configure_loss(self.schema)
        extra = {name: self._build_metric(name, self.schema) for name in self.extra_metrics}
        self.split_metrics = nn.ModuleList(
            StageMetrics(self.schema, split, extra, self.average) for split in SPLITS
        )
        if self.compile_mode == "net":
            self.net.compile()  # In place, so that the checkpoint's keys stay as they are.

    def _build_metric(self, name: str, schema: Schema) -> Metric:
        if name in METRIC_INFO or "/" in name:
            raise UserError(
                f"model.metrics: expected a name that is not taken and without /, got {name}; "
                "choose another one."
            )
        metric: Any = self.extra_metrics[name]
        options = getattr(metric, "keywords", {})
        counts = [k for k in ("num_classes", "num_labels") if k in options and options[k] is None]
        if counts:  # torchmetrics' classes for several tasks, such as `torchmetrics.CohenKappa`
            metric = metric(schema.task, **dict.fromkeys(counts, schema.num_outputs))
        return metric if isinstance(metric, Metric) else metric(schema.num_outputs)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.schema is not None and not checkpoint.get("schema"):
            checkpoint["schema"] = self.schema.to_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.schema is None and checkpoint.get("schema"):
            self.schema = Schema.from_dict(checkpoint["schema"])
            self.configure_model()

    def evaluation_batch_size(self, x: Tensors) -> int:
        """Return how many rows like ``x`` to evaluate at once."""
        return evaluation_batch_size(self, x)

    def to_batch(self, batch: Any) -> Batch:
        """Return a user's ``(x, y)`` or ``x`` with numbered rows, and targets in our form."""
        ours = isinstance(batch, Batch)
        x, y, row, weights = batch if ours else (*split_batch(batch), None, ())
        if y is not None:
            assert self.schema is not None
            y = check_targets(y, self.schema)
        if row is None:
            count = num_rows(x) if y is None else len(y)
            row = torch.arange(self._rows_seen, self._rows_seen + count, device=self.device)
            row = row * self.trainer.world_size + self.trainer.global_rank
            self._rows_seen += count
        return Batch(x, y, row, (weights,) if isinstance(weights, Tensor) else tuple(weights))

    # Metrics

    @torch.no_grad()
    def update_metrics(
        self,
        outputs: Tensor,
        targets: Tensor,
        losses: list[Tensor],
        weights: list[Tensor | float],
        split: str,
        row_weights: Tensor | None = None,
    ) -> Tensor:
        """Add batches to the metrics of a split; return the predictions for their rows."""
        averaged = self.average_members(outputs) if outputs.ndim == 3 else outputs
        predictions = self.predict_proba(averaged)
        numbers = [weight for weight in weights if not isinstance(weight, Tensor)]
        weight = (
            torch.tensor(numbers, dtype=SUM_DTYPE, device=targets.device)
            if numbers
            else torch.stack(cast(list[Tensor], weights))
        )
        sums = torch.stack(losses).detach(), weight.to(SUM_DTYPE)
        self._metrics_of(split).update(predictions, targets, *sums, self.thresholds, row_weights)
        return predictions

    def _metrics_of(self, split: str) -> StageMetrics:
        metrics = self.split_metrics[SPLITS.index(split)]
        assert isinstance(metrics, StageMetrics)
        return metrics

    def metric_state(self) -> dict[str, Any]:
        """Return what this process has counted of the training epoch so far, or its metrics."""
        return {**self._metrics_of("train").state(), "values": self._train_values}

    def load_metric_state(self, state: dict[str, Any]) -> None:
        self._metrics_of("train").load_state(state)
        self._train_values = state.get("values", {})

    @property
    def loss_so_far(self) -> Tensor:
        """Sum of the weighted losses of the training epoch so far."""
        return self._metrics_of("train").loss.total

    # Epochs

    def on_train_epoch_start(self) -> None:
        self._rows_seen = 0

    on_validation_epoch_start = on_test_epoch_start = on_predict_epoch_start = on_train_epoch_start

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        # Callbacks read the metrics in `on_train_epoch_end`, which is called before the model's.
        steps = self.trainer.max_steps
        if self.trainer.is_last_batch or 0 < steps <= self.trainer.global_step:
            values = self.compute_metrics(self._metrics_of("train"))
            # Training logs nothing of single classes, and a checkpoint need not hold it.
            self._train_values = {name: v for name, v in values.items() if "/" not in name}
            self._log_epoch("train", self._train_values)
            self._train_is_logged = True

    def on_train_epoch_end(self) -> None:
        if not self._train_is_logged:  # The epoch was stopped early, or resumes at this point.
            values = self._train_values or self.compute_metrics(self._metrics_of("train"))
            self._log_epoch("train", values)
        self._train_values, self._train_is_logged = {}, False

    def on_validation_epoch_end(self) -> None:
        self._log_epoch("val", self.compute_metrics(self._metrics_of("val")))

    def on_test_epoch_end(self) -> None:
        self._log_epoch("test", self.compute_metrics(self._metrics_of("test")))

    def _log_epoch(self, split: str, metrics: dict[str, Tensor]) -> None:
        """Log the metrics of a split; in ``fit`` without single classes."""
        within_fit = self.trainer.state.fn == "fit"
        values = {
            f"{split}/{name}": value
            for name, value in metrics.items()
            if not (within_fit and "/" in name)
        }
        headline = (f"{split}/loss", self.monitor.replace("val/", f"{split}/"))
        # The values are equal on all processes already.
        per_epoch: Any = {"on_step": False, "on_epoch": True, "reduce_fx": "max"}
        is_logged = False if within_fit else None
        for name, value in values.items():
            self.log(name, value, prog_bar=name in headline, logger=is_logged, **per_epoch)
        if within_fit and not self.trainer.sanity_checking:
            # The x axis is optimizer steps. `self.log` would count calls of `training_step`.
            scalars = {name: value.item() for name, value in values.items()}
            for logger in self.trainer.loggers:
                logger.log_metrics(
                    {**scalars, "epoch": self.current_epoch}, step=self.trainer.global_step
                )


def to_inputs(x: Any, dtype: torch.dtype) -> Any:
    """Return uint8 images as numbers from 0 to 1, and floats as ``dtype`` unless it is float32."""
    if isinstance(x, Tensor) and x.dtype == torch.uint8:
        return x.to(dtype) / 255
    if dtype == torch.float32:
        return x
    if isinstance(x, dict):
        return {name: to_floats(values, dtype) for name, values in x.items()}
    if type(x) in (tuple, list):
        return tuple(to_floats(values, dtype) for values in x)
    return to_floats(x, dtype)


def to_floats(x: Any, dtype: torch.dtype) -> Any:
    return x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x
