"""Settings of a run as text of its script: optimizer, schedule, loss, best epoch."""

from functools import partial
from typing import Any

import torch
from jsonargparse import Namespace
from torch import Tensor, nn

from proj.engine.callbacks.best_checkpoint import CLASS_TASKS, MIN_LOSS_CHANGE
from proj.engine.config.experiment import ExperimentCLI
from proj.engine.deployment.eject_source import Sources
from proj.engine.deployment.eject_values import (
    call,
    class_of,
    init_args,
    name_of,
    options,
    plain,
    value_text,
)
from proj.errors import UserError
from proj.models.base import Model
from proj.models.optim import build_optimizer, takes_length
from proj.schema import DEFAULT_THRESHOLD

# Longer lists of numbers are stored beside the script.
MAX_NUMBERS = 6


def net_class(cli: ExperimentCLI, takes_schema: bool) -> partial[nn.Module]:
    """Return the class of the net with its options."""
    spec = cli.config.model.init_args.net
    cls = class_of(spec, "model.net")
    if takes_schema:
        return partial(cls, **cli.model.net.keywords)
    return partial(cls, **{name: _built(value) for name, value in init_args(spec).items()})


def _built(value: Any) -> Any:
    """Return a value of an experiment, with objects in place of class paths."""
    if not isinstance(value, Namespace):
        return value
    build = class_of(value, "model.net")
    return build(**{name: _built(option) for name, option in init_args(value).items()})


def optimizer_call(cli: ExperimentCLI, sources: Sources) -> str:
    """Return the statement that builds the optimizer."""
    spec, net = cli.config.model.init_args.optimizer, cli.model.net
    cls = class_of(spec, "model.optimizer")
    if issubclass(cls, torch.optim.LBFGS):
        raise UserError(
            "model.optimizer: expected an optimizer whose step computes no losses, got "
            f"{cls.__name__}; `eject` does not write a script for this run."
        )
    model = cli.model
    optimizer = build_optimizer(model.optimizer, net, model.learning_rates, model.layer_decay)
    values = init_args(spec)
    if optimizer.param_groups[0].get("fused"):
        values["fused"] = True
    trained = "net.parameters()"
    if cli.model.learning_rates:
        trained = '[group for group in groups if group["params"]]'
    elif not all(parameter.requires_grad for parameter in net.parameters()):
        trained = "[p for p in net.parameters() if p.requires_grad]"
    arguments = options(cls, values, sources, "model.optimizer")
    return call(name_of(cls, sources), [trained, *arguments], "optimizer")


def scheduler_settings(cli: ExperimentCLI, sources: Sources, batches: int) -> dict[str, Any]:
    """Return the statement that builds the scheduler, when it steps, and what it reads.

    Args:
        batches: batches of an epoch.
    """
    spec = cli.config.model.init_args.get("scheduler")
    if spec is None:
        return {"scheduler": "", "scheduler_step": None, "metric": "", "plateau": ""}
    interval, epochs = cli.model.scheduler_interval, _epochs(cli)
    values = init_args(spec)
    if takes_length(cli.model.scheduler):
        values["total_steps"] = epochs if interval == "epoch" else epochs * batches
    metric = str(values.get("monitor", "")).partition("/")[2]
    if metric and interval == "step":
        raise UserError(
            "model.scheduler_interval: expected epoch for a scheduler that reads a metric, got "
            "step; `eject` does not write a script for this run."
        )
    text = _scheduler_text(class_of(spec, "model.scheduler"), values, sources)
    plateau = f'metrics["{metric}"]' if metric else ""
    return {"scheduler": text, "scheduler_step": interval, "metric": metric, "plateau": plateau}


def _scheduler_text(cls: Any, values: dict[str, Any], sources: Sources) -> str:
    """Return the statements that build a scheduler, or a schedule of several schedulers."""
    schedulers = values.get("schedulers")
    if schedulers is None:
        return _scheduler_call(cls, values, sources, "scheduler")
    lines = [
        f"    {_scheduler_call(class_of(part, 'model.scheduler'), init_args(part), sources)},\n"
        for part in schedulers
    ]
    arguments = ["schedulers", "optimizer"]
    if "milestones" in values:  # SequentialLR, not ChainedScheduler
        arguments = ["optimizer", "schedulers", f"milestones={plain(values['milestones'])}"]
    name = name_of(getattr(torch.optim.lr_scheduler, cls.__name__), sources)
    return f"schedulers = [\n{''.join(lines)}]\n{call(name, arguments, 'scheduler')}"


def _scheduler_call(cls: Any, values: dict[str, Any], sources: Sources, target: str = "") -> str:
    if "schedulers" in values:
        raise UserError(
            f"model.scheduler: expected schedulers of torch in a list, got {cls.__name__} in "
            "another one; `eject` does not write a script for this run."
        )
    # Lightning's class takes the name of the metric, which the loop reads.
    base = getattr(torch.optim.lr_scheduler, cls.__name__, cls)
    values = {key: value for key, value in values.items() if key != "monitor"}
    arguments = options(base, values, sources, "model.scheduler")
    return call(name_of(base, sources), ["optimizer", *arguments], target)


def loss_settings(cli: ExperimentCLI, sources: Sources) -> dict[str, Any]:
    """Return the values of the loss: text by name, with the tensors that are stored beside."""
    model = cli.model
    spec = cli.config.model.init_args.get("loss")
    criterion = "" if spec is None else value_text(spec, sources, "model.loss")
    constants, stored = {}, {}
    for name in ("positive_weight", "class_weight", "target_mean", "target_std", "target_limits"):
        values: Tensor | None = getattr(model, name, None)
        if values is None or _is_neutral(name, values):
            continue
        dtype = ["dtype=torch.float64"] if values.dtype == torch.float64 else []
        text = call("torch.tensor", [plain(values.tolist()), *dtype], name.upper())
        if values.numel() > MAX_NUMBERS:
            stored[name], text = values, f'{name.upper()} = DATA["{name}"]'
        constants[name] = text
    smoothing = getattr(model, "label_smoothing", 0.0)
    loss_fn = ""
    if model.task == "regression":
        criterion = criterion or "nn.MSELoss()"
    elif model.task == "multiclass" and "class_weight" not in constants:
        options = f"label_smoothing={plain(smoothing)}" if smoothing else ""
        loss_fn = criterion or f"nn.CrossEntropyLoss({options})"
    return {
        "loss_fn": loss_fn,
        "criterion": criterion,
        "constants": constants,
        "stored": stored,
        "smoothing": smoothing,
    }


def _is_neutral(name: str, values: Tensor) -> bool:
    """Return whether targets are not standardized."""
    neutral = {"target_mean": 0.0, "target_std": 1.0}.get(name)
    return neutral is not None and bool((values == neutral).all())


def selection_settings(cli: ExperimentCLI) -> dict[str, Any]:
    """Return how the best epoch is chosen, and when training stops early (None: it does not)."""
    chosen = {}
    for section, values in cli.monitors().items():
        is_max = values["mode"] == "max"
        chosen[section] = {
            "metric": values["monitor"].partition("/")[2],
            "better": ">" if is_max else "<",
            "worst": "-math.inf" if is_max else "math.inf",
            **({"patience": values["patience"]} if "patience" in values else {}),
        }
    if stopping := chosen.get("early_stopping"):
        delta = cli.monitors()["early_stopping"]["min_delta"]
        # As in the callback EarlyStopping.
        loss_change = abs(delta) if delta is not None else _loss_change(cli.model)
        margin = loss_change if stopping["metric"] == "loss" else abs(delta or 0.0)
        sign = "-" if stopping["better"] == ">" else "+"
        stopping |= {"loss_change": loss_change, "margin": f" {sign} {margin}" if margin else ""}
    return {"best": chosen["checkpoint"], "stopping": chosen.get("early_stopping")}


def _loss_change(model: Model) -> float:
    return MIN_LOSS_CHANGE if model.task in CLASS_TASKS else 0.0


def trainer_settings(cli: ExperimentCLI) -> dict[str, Any]:
    """Return what flags of the Trainer add to the loop."""
    trainer = cli.config.trainer
    clip, value = "", trainer.gradient_clip_val
    if value:
        by_value = trainer.gradient_clip_algorithm == "value"
        function = "clip_grad_value_" if by_value else "clip_grad_norm_"
        # The sum of the norm depends on the order of the parameters, which is the optimizer's.
        parameters = "parameters" if cli.model.learning_rates else "net.parameters()"
        clip = f"nn.utils.{function}({parameters}, {plain(value)})"
    return {"clip": clip, "deterministic": trainer.deterministic, "epochs": _epochs(cli)}


def _epochs(cli: ExperimentCLI) -> int:
    """Return the largest number of epochs; 1000 is Lightning's default."""
    epochs = cli.config.trainer.max_epochs
    return 1000 if epochs is None else int(epochs)


def calibration_settings(model: Model) -> dict[str, Any]:
    """Return the temperature and the thresholds that `test` applies."""
    threshold = ""
    if len(model.thresholds) > 1:
        values = [plain([*model.thresholds]), "dtype=torch.float64"]
        threshold = call("torch.tensor", values, "THRESHOLD")
    elif model.thresholds != DEFAULT_THRESHOLD:
        threshold = f"THRESHOLD = {plain(model.thresholds[0])}"
    return {"temperature": model.temperature, "threshold": threshold}
