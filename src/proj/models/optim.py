"""Parameters and learning rates: frozen parameters, parameter groups, learning-rate schedules."""

import math
import re
from fnmatch import fnmatchcase
from typing import Any, Literal

from lightning.pytorch import Trainer
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import nn
from torch.optim import Adam, AdamW, Optimizer

from proj.errors import UserError

# Rates in a group: the present one, and those that OneCycleLR and other schedulers start from.
RATES = ("lr", "initial_lr", "max_lr", "min_lr")


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


def parameter_groups(
    net: nn.Module, learning_rates: dict[str, float], layer_decay: float | None = None
) -> list[dict[str, Any]]:
    """Return an optimizer's groups: one per pattern with its rate, then all other parameters.

    A parameter belongs to the first pattern that matches its name. With ``layer_decay`` each layer
    of the others has a group, and ``lr_scale`` is its share of the optimizer's rate.
    """
    names = [name for name, parameter in net.named_parameters() if parameter.requires_grad]
    scales = {} if layer_decay is None else layer_scales(net, layer_decay)
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
    for scale in sorted({scales.get(name, 1.0) for name in names}):
        own = [name for name in names if scales.get(name, 1.0) == scale]
        scaled = {"lr_scale": scale} if scales else {}
        groups.append({"params": [net.get_parameter(name) for name in own], **scaled})
    return [group for group in groups if group["params"]]


def layer_scales(net: nn.Module, decay: float) -> dict[str, float]:
    """Return for each parameter ``decay`` to the power of its number of layers below the head.

    Layers are numbered by the first number in a parameter's name, as in ``encoder.layer.3.weight``.
    Parameters before the first layer, such as embeddings, count as one more layer, those after the
    last one as the head (Bao et al. 2022, arXiv:2106.08254; Clark et al. 2020, arXiv:2003.10555).
    """
    if not 0 < decay <= 1:
        raise UserError(f"model.layer_decay: expected a number above 0 up to 1, got {decay}.")
    names = [name for name, _ in net.named_parameters()]
    found = {name: match[0] for name in names if (match := re.match(r"(.*?\.)??\d+(?=\.)", name))}
    layers = list(dict.fromkeys(found.values()))
    if len(layers) < 2:
        raise UserError(
            "model.layer_decay: expected a net with numbered layers, as in layers.3.weight, got "
            f"parameters named {', '.join(names[:4])}, …; use learning_rates."
        )
    depths, begun = {}, 0
    last = max(number for number, name in enumerate(names) if name in found)
    for number, name in enumerate(names):
        begun = layers.index(found[name]) + 1 if name in found else begun
        depths[name] = begun if number <= last else len(layers) + 1
    return {name: decay ** (max(depths.values()) - depth) for name, depth in depths.items()}


def build_optimizer(
    build: OptimizerCallable,
    net: nn.Module,
    learning_rates: dict[str, float],
    layer_decay: float | None,
) -> Optimizer:
    """Build the optimizer of a net with its groups, rates and fused step."""
    optimizer = build(parameter_groups(net, learning_rates, layer_decay))
    for group in optimizer.param_groups:
        multiply_rates(group, group.get("lr_scale", 1.0))
    use_fused_step(optimizer)
    return optimizer


def multiply_rates(group: dict[str, Any], factor: float) -> None:
    """Multiply the rate of a group, and those that a scheduler has stored in it."""
    for name in RATES:
        if factor != 1 and name in group:
            group[name] = group[name] * factor


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


def keep_group_rates(
    optimizer: Optimizer, rates: list[Any], learning_rates: dict[str, float], scheduler: str
) -> None:
    """Keep the ratios of the groups' rates where a scheduler has replaced them by its own.

    ``rates`` are those before the scheduler. Raises UserError if it sets one rate for all groups.
    """
    patterns = {rate: pattern for pattern, rate in learning_rates.items()}
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        if "max_lr" in group and "lr_scale" in group:  # OneCycleLR
            multiply_rates(group, group["lr_scale"])
        elif group.get("initial_lr", rate) != rate:
            option = "layer_decay" if "lr_scale" in group else "learning_rates"
            owner = f"{rate} for {patterns[rate]!r}" if rate in patterns else "the decay"
            raise UserError(
                f"model.{option}: {scheduler} sets one rate for all parameters, so that {owner} "
                "would have no effect; leave one of the two out."
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
