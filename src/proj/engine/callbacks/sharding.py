"""Sharded weights (FSDP2): each process keeps its part of the weights and the optimizer state."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ModelParallelStrategy, StrategyRegistry
from torch import nn
from torch.optim import Optimizer

from proj.engine.lightning_internals import shard_over_all_processes
from proj.errors import UserError
from proj.models.module import SchemaModule

NAME = "fsdp2"


class Sharded(ModelParallelStrategy):
    """Lightning's strategy for FSDP2 on GPUs and CPUs, with checkpoints as of one process.

    A checkpoint is one file with whole tensors, so that every verb reads it, with any number of
    processes. Tensor parallelism, which the class of Lightning has too, is not used: its processes
    would need the same rows.
    """

    def __init__(self) -> None:
        super().__init__(save_distributed_checkpoint=False)

    def setup_environment(self) -> None:
        shard_over_all_processes(self)
        super().setup_environment()

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Return the whole state on process 0.

        Before the first step there is none. torch would make a step to create it, which counts in
        the bias correction of Adam (``_init_optim_state`` in its ``state_dict.py``).
        """
        plain = optimizer.optimizer if isinstance(optimizer, LightningOptimizer) else optimizer
        return super().optimizer_state(plain) if plain.state else plain.state_dict()

    def load_checkpoint(
        self, checkpoint_path: str | Path, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a file with whole tensors in each process, and keep this process's part of them."""
        # Imported late: torch.distributed.checkpoint takes a third of a second.
        from torch.distributed.checkpoint.state_dict import (
            StateDictOptions,
            set_model_state_dict,
            set_optimizer_state_dict,
        )
        from torch.distributed.fsdp import FullyShardedDataParallel, OptimStateKeyType

        path = Path(self.broadcast(checkpoint_path))
        checkpoint = self.checkpoint_io.load_checkpoint(path, weights_only=weights_only)
        assert self.model is not None
        options = StateDictOptions(full_state_dict=True)
        set_model_state_dict(self.model, checkpoint["state_dict"], options=options)
        states = checkpoint.get("optimizer_states", [])
        for optimizer, state in zip(self.optimizers, states, strict=False):
            if state["state"]:
                by_name = FullyShardedDataParallel.rekey_optim_state_dict(
                    state, OptimStateKeyType.PARAM_NAME, self.model
                )
                set_optimizer_state_dict(self.model, optimizer, by_name, options=options)
        return checkpoint


# The module may be imported again, as tests do.
StrategyRegistry.register(NAME, Sharded, description="FSDP2: sharded weights", override=True)


def shard_net(trainer: Trainer, model: LightningModule) -> None:
    """Shard the net of a model if the Trainer's strategy is ``fsdp2``; do nothing otherwise.

    Raises UserError for other modules, and for Lightning's own strategy with our models.
    """
    strategy: Any = trainer.strategy
    if not isinstance(strategy, ModelParallelStrategy):
        return
    ours = isinstance(model, SchemaModule)
    if ours != isinstance(strategy, Sharded):
        raise UserError(
            f"trainer.strategy: expected {NAME}, which shards the nets of this package, got "
            f"{type(strategy).__name__}; change the strategy."
            if ours
            else f"trainer.strategy: {NAME} shards the nets of this package, not the modules of "
            f"{type(model).__name__}; use Lightning's ModelParallelStrategy, and apply "
            "fully_shard in the module's configure_model."
        )
    # Imported late: most trainings have one process.
    from torch.distributed.fsdp import FSDPModule, fully_shard

    net: Any = model.net
    if isinstance(net, FSDPModule):
        return
    for parameter in net.parameters():
        # FSDP2 refuses other layouts, such as that of convolutions with channels last.
        parameter.data = parameter.data.contiguous()
    mesh = strategy.device_mesh["data_parallel"]
    for layer in [*reversed([*_layers(net)]), net]:  # inner ones first
        fully_shard(layer, mesh=mesh)


def _layers(net: nn.Module) -> Iterator[nn.Module]:
    """Yield the members of all sequences with parameters, so that one at a time is whole.

    Layers with a parameter that another module has, too, stay with the net.
    """
    owners = Counter(id(p) for module in net.modules() for p in module.parameters(recurse=False))
    for module in net.modules():
        if isinstance(module, nn.Sequential | nn.ModuleList):
            for layer in module:
                counts = [owners[id(parameter)] for parameter in layer.parameters()]
                if counts and max(counts) == 1:
                    yield layer


@torch.no_grad()
def share_buffers(trainer: Trainer, model: LightningModule) -> None:
    """Give all processes the buffers of the first one, such as the statistics of batches.

    DDP does the same before each forward pass; for validation this is enough.
    """
    if isinstance(trainer.strategy, Sharded) and trainer.world_size > 1:
        for buffer in model.net.buffers():  # type: ignore[union-attr]
            torch.distributed.broadcast(buffer, 0)
