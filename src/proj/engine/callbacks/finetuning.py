"""Train the head of a net first, and its backbone from an epoch on."""

from collections.abc import Callable
from functools import partial
from typing import Any

from lightning.pytorch import LightningModule, Trainer, callbacks
from torch import nn
from torch.optim import Optimizer

from proj.engine.lightning_internals import base_rates, takes_frozen_parameters
from proj.errors import UserError
from proj.models.base import Model
from proj.models.optim import multiply_rates


class BackboneFinetuning(callbacks.BackboneFinetuning):
    """Lightning's ``BackboneFinetuning`` with options that a config can hold, for exact resumes.

    The backbone of one of our models is the attribute ``backbone`` of its net. Its parameters are
    in the optimizer from the start, in groups of their own, so that ``learning_rates``,
    ``layer_decay``, schedulers and checkpoints treat them as all others. Lightning adds a group in
    the middle of a training, which schedulers do not expect, and after a resume its backbone is
    frozen. Batch normalization is trained from the start, as by Lightning's.

    Args:
        unfreeze_backbone_at_epoch: the first epoch that trains the backbone.
        backbone_initial_ratio_lr: share of their learning rates that the parameters of the backbone
            begin with.
        epoch_factor_lr: factor on this share with each further epoch.
        should_align: end at the learning rates themselves; false lets the share grow on.
    """

    def __init__(
        self,
        unfreeze_backbone_at_epoch: int = 10,
        backbone_initial_ratio_lr: float = 0.1,
        epoch_factor_lr: float = 2.0,
        should_align: bool = True,
    ) -> None:
        super().__init__(
            unfreeze_backbone_at_epoch,
            partial(_constant, epoch_factor_lr),
            backbone_initial_ratio_lr,
            should_align=should_align,
        )
        self.epoch_factor_lr = epoch_factor_lr
        # The trained parameters of the backbone; the share of their rates, and since which epoch.
        self.parameters: list[nn.Parameter] = []
        self.share, self.share_epoch = 1.0, -1

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "share": self.share, "share_epoch": self.share_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.share, self.share_epoch = state_dict["share"], state_dict["share_epoch"]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if not isinstance(pl_module, Model):
            super().setup(trainer, pl_module, stage)
        elif stage == "fit":
            backbone = getattr(pl_module, "backbone", None)
            if backbone is None:
                raise UserError(
                    "trainer.callbacks.BackboneFinetuning: expected a net with an attribute "
                    f"backbone, got {type(pl_module.net).__name__}; add the attribute, or use "
                    "model.freeze."
                )
            self.parameters = [*self.filter_params(backbone, train_bn=False)]
            pl_module.optimizer = partial(_build_apart, pl_module.optimizer, self.parameters)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not isinstance(pl_module, Model):
            super().on_fit_start(trainer, pl_module)
            return
        if not takes_frozen_parameters(trainer):
            raise UserError(
                "trainer.strategy: expected one device, or ddp_find_unused_parameters_true for "
                "BackboneFinetuning, because the backbone has no gradients at first, got "
                f"{type(trainer.strategy).__name__}; change the strategy."
            )
        self._train_backbone(False)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # In an epoch that is resumed in its middle, Lightning does not call the next method.
        if trainer.current_epoch >= self.unfreeze_backbone_at_epoch:
            if isinstance(pl_module, Model):
                self._train_backbone(True)
            elif self.previous_backbone_lr is not None:  # unfrozen before the resume
                self.make_trainable(pl_module.backbone)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not isinstance(pl_module, Model):
            super().on_train_epoch_start(trainer, pl_module)
            return
        epoch, first = trainer.current_epoch, self.unfreeze_backbone_at_epoch
        if epoch < first or epoch <= self.share_epoch:
            return
        self._train_backbone(True)
        before = self.share
        is_first = self.share_epoch < 0
        share = self.backbone_initial_ratio_lr if is_first else before * self.epoch_factor_lr
        self.share = min(share, 1.0) if self.should_align else share
        self.share_epoch = epoch
        self._multiply_rates(trainer, self.share / before)

    def _train_backbone(self, is_trained: bool) -> None:
        for parameter in self.parameters:
            parameter.requires_grad_(is_trained)

    def _multiply_rates(self, trainer: Trainer, factor: float) -> None:
        """Multiply the rates of the backbone, also those that schedulers compute from."""
        own = set(map(id, self.parameters))
        for optimizer in trainer.optimizers:
            for number, group in enumerate(optimizer.param_groups):
                if id(group["params"][0]) in own:
                    multiply_rates(group, factor)
                    for rates in base_rates(trainer):
                        rates[number] *= factor


def _constant(value: float, epoch: int) -> float:
    return value


def _build_apart(
    build: Callable[[Any], Optimizer], apart: list[nn.Parameter], groups: list[dict[str, Any]]
) -> Optimizer:
    """Build an optimizer with some parameters in groups of their own, after the others."""
    chosen = set(map(id, apart))
    parts = [
        {**group, "params": [p for p in group["params"] if (id(p) in chosen) == is_apart]}
        for is_apart in (False, True)
        for group in groups
    ]
    return build([part for part in parts if part["params"]])
