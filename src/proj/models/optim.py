"""Parameters and learning rates: frozen parameters, parameter groups, learning-rate schedules."""

import math
from fnmatch import fnmatchcase
from typing import Any, Literal

from lightning.pytorch import Trainer
from lightning.pytorch.cli import LRSchedulerCallable
from torch import nn
from torch.optim import Adam, AdamW, Optimizer

from proj.errors import UserError


def freeze_matching(net: nn.Module, patterns: list[str]) -> None:
    """Switch off the gradient of each parameter whose name matches a pattern (shell wildcards)."""
    for pattern in patterns:
        for name in _matching_names(net, pattern, "freeze"):
            net.get_parameter(name).requires_grad_(False)
    if patterns and not any(parameter.requires_grad for parameter in net.parameters()):
        raise UserError(
            f"model.freeze: expected patterns that leave some parameters to train, got {patterns}, "
            "which leaves no parameter to train."
        )


def parameter_groups(net: nn.Module, learning_rates: dict[str, float]) -> list[dict[str, Any]]:
    """Return an optimizer's groups: one per pattern with its rate, then all other parameters.

    A parameter belongs to the first pattern that matches its name.
    """
    names = [name for name, parameter in net.named_parameters() if parameter.requires_grad]
    groups = []
    for pattern, rate in learning_rates.items():
        if rate <= 0:
            raise UserError(
                f"model.learning_rates: expected a rate above 0 for {pattern!r}, got {rate}; use "
                "freeze for 0."
            )
        own = [n for n in _matching_names(net, pattern, "learning_rates") if n in names]
        names = [name for name in names if name not in own]
        groups.append({"params": [net.get_parameter(name) for name in own], "lr": rate})
    groups.append({"params": [net.get_parameter(name) for name in names]})
    return [group for group in groups if group["params"]]


def use_fused_step(optimizer: Optimizer) -> None:
    """Switch on the fused step of Adam and AdamW where the user left it open.

    It is a third faster and equal but for rounding.
    """
    for group in optimizer.param_groups if type(optimizer) in (Adam, AdamW) else ():
        supported = all(
            parameter.device.type in ("cpu", "cuda", "mps") and parameter.is_floating_point()
            for parameter in group["params"]
        )
        excluding = group["foreach"] or group["capturable"] or group["differentiable"]
        if supported and group["fused"] is None and not excluding:
            group["fused"] = True


def check_group_rates(
    optimizer: Optimizer, learning_rates: dict[str, float], scheduler: str
) -> None:
    """Raise UserError if a scheduler has replaced the rates of the groups by its own."""
    for (pattern, rate), group in zip(learning_rates.items(), optimizer.param_groups, strict=False):
        if group["initial_lr"] != rate:
            raise UserError(
                f"model.learning_rates: {scheduler} sets one rate for all parameters, so that "
                f"{rate} for {pattern!r} would have no effect; leave one of the two out."
            )


def build_scheduler(
    build: LRSchedulerCallable,
    optimizer: Optimizer,
    interval: Literal["step", "epoch"],
    trainer: Trainer,
) -> Any:
    """Build the scheduler; a ``total_steps`` that is left open gets the length of the training."""
    if not takes_length(build):
        return build(optimizer)
    total = training_length(trainer, interval)
    return build(optimizer, total_steps=total)  # type: ignore[call-arg]


def takes_length(build: LRSchedulerCallable) -> bool:
    """Return whether the options that a scheduler has from a config leave its length open."""
    options = getattr(build, "keywords", {})
    is_given = options.get("total_steps") is not None or options.get("epochs") is not None
    return "total_steps" in options and not is_given


def training_length(trainer: Trainer, interval: Literal["step", "epoch"]) -> int:
    """Return the number of optimizer steps, or epochs, by ``max_steps`` and ``max_epochs``."""
    if interval == "epoch" and trainer.max_epochs and trainer.max_epochs > 0:
        return trainer.max_epochs
    steps = math.inf if interval == "epoch" else _optimizer_steps(trainer)
    if not math.isfinite(steps):
        limits = "trainer.max_epochs" if interval == "epoch" else "trainer.max_epochs, max_steps"
        raise UserError(
            "model.scheduler: expected total_steps or a training of fixed length, got neither; set "
            f"{limits} or total_steps."
        )
    return int(steps)


def _optimizer_steps(trainer: Any) -> float:
    loader = trainer.datamodule.train_dataloader() if trainer.datamodule else None
    # Our loaders know their number of batches. For a user's DataLoader, Lightning has to load the
    # data, so early that a resumed loader loses its state (Lightning issue 20550).
    if loader is None or not hasattr(loader, "batches"):
        return float(trainer.estimated_stepping_batches)
    batches: float = loader.batches
    limit = trainer.limit_train_batches
    batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
    epochs = trainer.max_epochs if trainer.max_epochs and trainer.max_epochs > 0 else math.inf
    steps = math.ceil(batches / trainer.accumulate_grad_batches) * epochs
    return float(min(steps, trainer.max_steps)) if trainer.max_steps > 0 else steps


def _matching_names(net: nn.Module, pattern: str, option: str) -> list[str]:
    names = [name for name, _ in net.named_parameters()]
    if matching := [name for name in names if fnmatchcase(name, pattern)]:
        return matching
    first = ", ".join(names[:8]) + (", …" if len(names) > 8 else "")
    raise UserError(
        f"model.{option}: expected a pattern that matches a parameter of the net, no parameter of "
        f"the net matches {pattern!r}; they are: {first}."
    )
