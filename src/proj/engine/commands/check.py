"""``check``: everything that can be known before the first epoch."""

import copy
import math
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch.utilities.seed import isolate_rng
from rich.table import Table
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from proj.data.base import DataModule, Finding
from proj.data.loader import nbytes, take
from proj.engine import console
from proj.engine.config.arguments import read_arguments
from proj.engine.config.experiment import ExperimentCLI
from proj.engine.training.data_checks import check_data
from proj.engine.training.initial_weights import initial_weights
from proj.engine.training.preflight import preflight
from proj.models.base import Model
from proj.models.optim import parameter_groups
from proj.schema import Batch

FEW = 100  # rows to evaluate on, under which a share says little
STEPS = 500  # to learn a batch by heart in


def check(args: list[str]) -> None:
    """Find what can be known before the first epoch, and say what training will cost."""
    arguments = read_arguments(args)
    cli = ExperimentCLI("check", arguments.configs, arguments.flags)
    start = initial_weights(cli)
    preflight(cli, start)
    data, model = cli.datamodule, copy.deepcopy(cli.model)
    findings: list[Finding] = []
    if isinstance(data, DataModule):
        console.show_data(data)
        findings += [*check_data(data), *_parts(data)]
    if isinstance(data, DataModule) and isinstance(model, Model):
        with isolate_rng():
            findings += _net(cli, model, data, overfit=bool(cli.config.overfit))
    else:
        console.say(
            "the layers, the loss and the costs are looked at with our own models and data modules only."
        )
    console.show_findings(findings, strict=bool(cli.config.strict))
    console.say("a batch of each stage goes through.")


def _parts(data: DataModule) -> Iterator[Finding]:
    for stage in ("val", "test"):
        if (rows := data.rows(stage)) == 0:
            yield Finding(
                f"the {stage} part has no rows",
                "nothing is known of new rows",
                f"set data.{stage}_fraction",
            )
        elif rows < FEW:  # no finding: there may be no more
            apart = 100 * 1.96 * math.sqrt(0.25 / rows)
            console.say(
                f"the {stage} part has {rows} rows: a share of them is known to some {apart:.0f} points."
            )


def _net(cli: ExperimentCLI, model: Model, data: DataModule, overfit: bool) -> Iterator[Finding]:
    trainer = cli.build_trainer(None, [])
    data.trainer, model.trainer = trainer, trainer  # what the hooks ask
    model.schema = data.schema
    model.configure_model()
    device = trainer.strategy.root_device
    model.to(device)
    rows = min(data.batch_size or data.rows("train"), data.rows("train"))
    order = torch.randperm(data.rows("train"), generator=torch.Generator().manual_seed(0))
    batch = trainer.strategy.batch_to_device(take(data.splits["train"], order[:rows]))
    assert isinstance(model.net, nn.Module)
    with _layers(model.net):
        loss, activations = _kept(model, batch)
    if (chance := _chance(model)) is not None:
        console.say(
            f"loss at the start: {loss:.4f}; of a model that knows the shares of the targets alone: {chance:.4f}"
        )
        if not loss < 3 * chance + 1:
            yield Finding(
                f"the loss at the start is {loss:.3g}",
                f"far from chance, {chance:.3g}, which comes first",
                "scale the inputs, or the weights of the last layer",
            )
    for name, parameter in model.net.named_parameters():
        if parameter.requires_grad and (parameter.grad is None or not parameter.grad.any()):
            yield Finding(
                f"the parameter {name} gets no gradient",
                "it stays as it is drawn",
                "use it in forward, or freeze it",
            )
    _costs(model, data, _seconds(model, batch), activations)
    yield from _disk(cli, model)
    if overfit:
        yield from _overfit(model, batch)


@contextmanager
def _layers(net: nn.Module) -> Iterator[None]:
    """Show what the layers give out in a forward pass."""
    table = Table("layer", "kind", "output", "parameters")

    def show(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            shape = list(output.shape) if isinstance(output, Tensor) else ""
            table.add_row(
                name,
                type(module).__name__,
                str(shape),
                f"{sum(p.numel() for p in module.parameters()):,}",
            )

        return hook

    named = [
        (name or "net", module)
        for name, module in net.named_modules()
        if not list(module.children())
    ]
    handles = [module.register_forward_hook(show(name)) for name, module in named]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
    console.show(table)


def _kept(model: Model, batch: Batch) -> tuple[float, int]:
    """The loss of a batch, and the bytes kept for the way back; the gradients are left with the parameters."""
    known, size = {p.data_ptr() for p in model.parameters()}, 0

    def note(values: Tensor) -> Tensor:
        nonlocal size
        if values.data_ptr() not in known:
            known.add(values.data_ptr())
            size += values.nbytes
        return values

    with saved_tensors_hooks(note, lambda values: values):
        loss = model.forward_loss(batch, "train")[1]
    torch.autograd.backward(loss)
    return loss.item(), size


def _seconds(model: Model, batch: Batch) -> float:
    """What a step takes, without the optimizer."""
    seconds = math.inf
    for _ in range(3):
        model.zero_grad()
        begin = time.perf_counter()
        loss = model.forward_loss(batch, "train")[1]
        torch.autograd.backward(loss)
        loss.item()  # waits for the device
        seconds = min(seconds, time.perf_counter() - begin)
    return seconds


def _chance(model: Model) -> float | None:
    """The mean loss of the best constant prediction; None where the schema does not say."""
    schema = model.schema
    assert schema is not None
    if schema.task == "regression":
        variances = [
            1.0 if getattr(model, "standardize_target", False) else std**2
            for std in schema.target_std
        ]
        return sum(variances) / len(variances)
    if not schema.class_counts:
        return None
    shares = torch.tensor(schema.class_counts, dtype=torch.float64) / schema.rows
    if schema.task == "multilabel":
        return float(_entropy(torch.stack([shares, 1 - shares])).mean())
    return float(_entropy(shares))


def _entropy(shares: Tensor) -> Tensor:
    return -torch.xlogy(shares, shares).sum(0)


def _costs(model: Model, data: DataModule, seconds: float, activations: int) -> None:
    weights = sum(p.nbytes for p in model.parameters())
    steps = data.train_dataloader().batches
    held = nbytes(data.splits["train"]) + nbytes(data.splits["val"])
    console.say(
        f"memory: {_mb(weights)} weights, {_mb(3 * weights)} gradients and Adam's state, {_mb(activations)} "
        f"activations of a batch, {_mb(held)} data"
    )
    console.say(
        f"time: {1000 * seconds:.2g} ms a step, {steps} steps an epoch: {seconds * steps:.2g} s, without "
        "the optimizer and the validation"
    )


def _disk(cli: ExperimentCLI, model: Model) -> Iterator[Finding]:
    need = (
        4 * 3 * sum(p.nbytes for p in model.parameters())
    )  # best, last, previous and one being written, with Adam's state
    folder = next(
        path for path in (cli.root.absolute(), *cli.root.absolute().parents) if path.exists()
    )
    free = shutil.disk_usage(folder).free
    console.say(f"disk: {_mb(need)} for checkpoints, {_mb(free)} free in {folder}")
    if need > free:
        yield Finding(
            f"{folder} has {_mb(free)} free, checkpoints take {_mb(need)}",
            "training will stop when it saves",
            "make room, or set trainer.default_root_dir",
        )


def _mb(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


def _overfit(model: Model, batch: Batch) -> Iterator[Finding]:
    """Whether the net can learn one batch by heart: if not, net, loss and labels do not fit together."""
    assert isinstance(model.net, nn.Module)
    optimizer = model.optimizer(parameter_groups(model.net, model.learning_rates))
    before, _ = _known(model, batch)
    for step in range(1, STEPS + 1):
        optimizer.zero_grad()
        torch.autograd.backward(model.forward_loss(batch, "train")[1])
        optimizer.step()
        if step % 25 == 0 and (state := _known(model, batch))[1]:
            console.say(
                f"overfit: {len(batch.row)} rows are learned by heart in {step} steps, loss {before:.3g} to {state[0]:.3g}"
            )
            return
    yield Finding(
        f"the net has not learned {len(batch.row)} rows in {STEPS} steps, loss {before:.3g} to {state[0]:.3g}",
        "more rows it will not learn better",
        "look for a mistake in the net or the labels, or try another "
        "learning rate, more units, less dropout",
    )


@torch.no_grad()
def _known(model: Model, batch: Batch) -> tuple[float, bool]:
    """The loss of a batch, and whether its targets are told: all classes or labels, or 0.9 of the variance."""
    assert batch.y is not None
    model.eval()
    outputs, loss, _ = model.forward_loss(batch, "val")
    predicted = model.predict_proba(outputs)
    model.train()
    if model.task == "regression":
        errors = (predicted - batch.y).square().mean(0)
        return loss.item(), bool((errors <= 0.1 * batch.y.var(0, correction=0)).all())
    classes = predicted.argmax(1) if model.task == "multiclass" else predicted > 0.5
    return loss.item(), bool((classes == batch.y).all())
