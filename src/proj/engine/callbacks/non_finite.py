"""A loss that is not finite stops training, and it is said where it came from."""

from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from proj.engine.callbacks.multi_step import optimizer_step
from proj.engine.callbacks.resume_state import restore_generators
from proj.engine.runs.run import LAST, read_checkpoint
from proj.errors import TrainingError
from proj.models.base import Model
from proj.schema import Batch, Execution


class StopOnNonFinite(Callback):
    """Looks at the loss once a ``training_step``, however many optimizer steps that makes, before the last of them.

    Of a block of steps, it is not known then which one went wrong, and the weights it had are gone. So training goes back to
    ``last.ckpt`` and makes the steps again, one by one, to the first number that is not finite.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder  # of the checkpoints, if there are any
        self.batch: Any = None

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.batch = batch

    def on_before_backward(
        self, trainer: Trainer, pl_module: LightningModule, loss: Tensor
    ) -> None:
        seen = loss.detach() + (
            pl_module.loss_so_far if isinstance(pl_module, Model) else 0
        )  # of all steps of the epoch
        bad = not bool(torch.isfinite(seen))
        if trainer.world_size > 1:
            bad = bool(trainer.strategy.reduce_boolean_decision(bad, all=False))
        if not bad:
            return
        step, where = trainer.global_step + 1, "the loss"
        if isinstance(self.batch, Execution):
            step, where = self._replayed(trainer, pl_module) or (
                step,
                "the loss of it or of one just before it",
            )
        elif isinstance(self.batch, Batch) and isinstance(pl_module, Model):
            where = (
                _watched(
                    pl_module, self.batch, lambda batch: pl_module.forward_loss(batch, "train")
                )[1]
                or where
            )
        raise TrainingError(
            f"step {step} (epoch {trainer.current_epoch}) came to a number that is not finite, first in {where}; lower the "
            "learning rate, clip gradients, or look for extreme inputs. The checkpoints of before are kept."
        )

    def _replayed(self, trainer: Trainer, model: Any) -> tuple[int, str] | None:
        """The first step with a number that is not finite, and where that was; None where the steps made again have none."""
        if self.folder is None or not (self.folder / LAST).is_file():
            return None
        checkpoint = read_checkpoint(self.folder / LAST)
        optimizer, scheduler = model.optimizers(use_pl_optimizer=False), model.lr_schedulers()
        model.load_state_dict(checkpoint["state_dict"])
        optimizer.load_state_dict(checkpoint["optimizer_states"][0])
        if scheduler is not None:
            scheduler.load_state_dict(checkpoint["lr_schedulers"][0])
        restore_generators(checkpoint["callbacks"]["LastCheckpoint"]["processes"][0]["generators"])
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        step = checkpoint["global_step"]
        for batches in _epochs(trainer, checkpoint):
            for batch in batches:
                step += 1
                (_, loss, _), where = _watched(
                    model, batch, lambda batch: model.forward_loss(batch, "train")
                )
                if where or not torch.isfinite(loss):
                    return step, where or "the loss"
                optimizer_step(model, optimizer, parameters, loss)
                for name, parameter in reversed(
                    list(model.named_parameters())
                ):  # the way that gradients go
                    if parameter.grad is not None and not torch.isfinite(parameter.grad).all():
                        return step, f"the gradient of {name}"
                if scheduler is not None and model.scheduler_interval == "step":
                    scheduler.step()
            if scheduler is not None and model.scheduler_interval == "epoch":
                if isinstance(scheduler, ReduceLROnPlateau):  # whose metric is not there any more
                    return None
                scheduler.step()
        return None


def _epochs(trainer: Any, checkpoint: dict[str, Any]) -> Iterator[Iterator[Batch]]:
    """The batches of each epoch that was not over when the checkpoint was written, as far as they were not used."""
    data = trainer.datamodule
    loader = data.train_dataloader()
    loader.load_state_dict(checkpoint["loops"]["fit_loop"]["state_dict"]["combined_loader"][0])
    for epoch in range(checkpoint["epoch"], trainer.current_epoch + 1):
        loader.set_epoch(epoch)
        blocks = iter(loader)
        if (first := next(blocks, None)) is not None:
            yield (
                data.augment_batch(trainer.strategy.batch_to_device(batch))
                for block in chain([first], blocks)
                for batch in block.batches()
            )


def _watched(model: nn.Module, batch: Batch, call: Callable[[Batch], Any]) -> tuple[Any, str]:
    """What ``call`` gives for a batch, and where the first number that is not finite came up; nothing, if none did."""
    found: list[str] = []

    def hook(name: str) -> Callable[..., None]:
        def look(module: nn.Module, inputs: Any, output: Any) -> None:
            if not found and isinstance(output, Tensor) and not torch.isfinite(output).all():
                weights = [n for n, p in module.named_parameters() if not torch.isfinite(p).all()]
                outputs = f"the outputs of {name} ({type(module).__name__})"
                found.append(f"the weights {name}.{weights[0]}" if weights else outputs)

        return look

    inputs = batch.x.values() if isinstance(batch.x, dict) else [batch.x]
    if not all(torch.isfinite(values).all() for values in inputs):
        found.append("the inputs")
    handles = [
        module.register_forward_hook(hook(name))
        for name, module in model.named_modules()
        if not list(module.children())
    ]
    try:
        result = call(batch)
    finally:
        for handle in handles:
            handle.remove()
    return result, found[0] if found else ""
