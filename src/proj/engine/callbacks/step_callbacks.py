"""Callbacks of Lightning that work after each optimizer step, also inside an execution.

These are ``WeightAveraging``, with its subclass ``EMAWeightAveraging``, and
``LearningRateMonitor``. ``StepLogger`` gets the losses of the steps here. To remove the feature,
delete this file and its uses in ``multi_step`` and ``steps_per_execution``.
"""

from typing import Any

from lightning.pytorch import Callback
from lightning.pytorch.callbacks import LearningRateMonitor, WeightAveraging
from torch import Tensor

from proj.engine.callbacks.monitoring import StepLogger
from proj.engine.lightning_internals import count_optimizer_steps
from proj.schema import Batch

# A subclass with a batch hook of its own may read the batch or the outputs, so it needs single
# steps.
STEP_CALLBACKS: tuple[type[Callback], ...] = (WeightAveraging, LearningRateMonitor)


class StepCallbacks:
    """Count the steps inside an execution, and call the callbacks that follow single steps.

    Lightning counts the last step of an execution and calls the callbacks there. Their hooks
    use neither outputs nor batch.
    """

    def __init__(self, model: Any) -> None:
        self.model, self.trainer = model, model.trainer
        callbacks: list[Callback] = self.trainer.callbacks
        self.averages = [c for c in callbacks if isinstance(c, WeightAveraging)]
        self.monitors = [c for c in callbacks if isinstance(c, LearningRateMonitor)]
        self.loss_loggers = [c for c in callbacks if isinstance(c, StepLogger)]

    def after_step(self, batch: Batch, loss: Tensor) -> None:
        """Do what Lightning does between a step and the next one; it is not the execution's last.

        The scheduler must have made its step.
        """
        for logger in self.loss_loggers:
            logger.keep_loss(self.trainer, loss)
        count_optimizer_steps(self.trainer, 1)
        for average in self.averages:
            average.on_train_batch_end(self.trainer, self.model, None, batch, 0)
        for monitor in self.monitors:
            monitor.on_train_batch_start(self.trainer, self.model, batch, 0)
