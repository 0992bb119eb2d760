"""Build the net of a model before other callbacks see the model."""

from lightning.pytorch import Callback, LightningModule, Trainer

from proj.engine.callbacks.metric_messages import compute_together
from proj.engine.callbacks.sharding import shard_net, share_buffers
from proj.engine.lightning_internals import configure_model
from proj.metrics.stage import StageMetrics
from proj.models.module import SchemaModule


class BuildModel(Callback):
    """Build the net of one of our models in ``setup``; it must be the first callback.

    Lightning calls ``configure_model`` after the ``setup`` of all callbacks. Callbacks that copy or
    freeze the model there, such as ``StochasticWeightAveraging`` and ``BaseFinetuning``, would get
    a model without parameters.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if isinstance(pl_module, SchemaModule):
            configure_model(trainer)
            several = trainer.world_size > 1
            pl_module.compute_metrics = compute_together if several else StageMetrics.compute
        shard_net(trainer, pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        share_buffers(trainer, pl_module)
