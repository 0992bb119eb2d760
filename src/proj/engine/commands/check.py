"""Find mistakes in an experiment without training it, and estimate the cost of training."""

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

from proj.data.base import DataModule
from proj.data.loader import nbytes, take
from proj.engine import console
from proj.engine.callbacks.check_optimizers import CheckOptimizers
from proj.engine.callbacks.divergence import constant_loss
from proj.engine.callbacks.multi_step import eager_step
from proj.engine.config.arguments import read_arguments
from proj.engine.config.experiment import ExperimentCLI
from proj.engine.config.without_effect import settings_without_effect
from proj.engine.training.data_checks import check_data, describe_positive, is_streamed
from proj.engine.training.initial_weights import initial_weights
from proj.engine.training.preflight import preflight
from proj.models.base import Model
from proj.models.checks import leaf_hooks
from proj.models.optim import build_optimizer
from proj.schema import DEFAULT_THRESHOLD, Batch, Finding

# For splits with fewer rows, the precision of a share is printed.
SMALL_SPLIT_ROWS = 100
# Steps in which `--overfit` expects the net to learn one batch, and steps between two evaluations.
OVERFIT_STEPS, OVERFIT_INTERVAL = 500, 25
# Share of the targets' variance that may stay unexplained for a batch to count as learned.
UNEXPLAINED_VARIANCE = 0.1
# The time of a step is the shortest of these measurements.
TIMINGS = 3
# The best, the last and the previous checkpoint, and one that is being written. Each holds the
# weights and Adam's two moments.
CHECKPOINTS, TENSORS_PER_WEIGHT = 4, 3


def check(args: list[str]) -> None:
    """Check the experiment on the command line without training it."""
    arguments = read_arguments(args, "check")
    cli = ExperimentCLI("check", arguments.configs, arguments.flags)
    for sentence in settings_without_effect(cli.config, cli.parser.get_defaults()):
        console.warn(sentence)
    preflight(cli, [*initial_weights(cli), CheckOptimizers()])
    data, model = cli.datamodule, copy.deepcopy(cli.model)
    findings: list[Finding] = []
    if isinstance(data, DataModule):
        console.show_data(data)
        if line := describe_positive(data):
            console.say(line)
        findings += [*check_data(data), *_check_splits(data)]
        if is_streamed(data):
            console.say("equal rows and leaking columns are not looked for: the rows are streamed.")
        if getattr(data, "candidates", None):
            # It imports scikit-learn, which takes a second, and most data have no candidates.
            from proj.engine.baselines.optimism import measure_optimism

            for optimism in measure_optimism(data):
                console.say(f"optimism of a random split: {optimism}")
    if isinstance(data, DataModule) and isinstance(model, Model):
        with isolate_rng():
            findings += _check_net(cli, model, data, overfit=bool(cli.config.overfit))
    else:
        console.say(
            "layers, loss and costs are checked for models and data modules of this package only."
        )
    console.show_findings(findings, strict=bool(cli.config.strict))
    console.say("one batch of each stage runs without an error.")


def _check_splits(data: DataModule) -> Iterator[Finding]:
    """Yield a finding for each empty split; print the precision of a small one."""
    for split in ("val", "test"):
        rows = data.rows(split)
        if rows == 0:
            yield Finding(
                f"the {split} split has no rows",
                "the performance on new rows stays unknown",
                f"set data.{split}_fraction",
            )
        # A small split is no finding, because the user may have no more rows.
        elif rows < SMALL_SPLIT_ROWS:
            half_width = 100 * 1.96 * math.sqrt(0.25 / rows)
            console.say(
                f"the {split} split has {console.plural(rows, 'row')}: the 95 % interval of a "
                f"share of them is up to ± {half_width:.0f} percentage points."
            )


def _check_net(
    cli: ExperimentCLI, model: Model, data: DataModule, overfit: bool
) -> Iterator[Finding]:
    """Yield findings about net, loss and gradients on one batch; print layers and costs."""
    trainer = cli.build_trainer(None, [])
    data.trainer, model.trainer = trainer, trainer  # Hooks of both read it.
    model.schema = data.schema
    model.configure_model()
    model.to(trainer.strategy.root_device)
    batch = trainer.strategy.batch_to_device(_random_batch(data))
    assert isinstance(model.net, nn.Module)
    with _show_layers(model.net):
        loss, activation_bytes = _gradients(model, batch)
    yield from _check_initial_loss(model, loss)
    for name, parameter in model.net.named_parameters():
        if parameter.requires_grad and (parameter.grad is None or not parameter.grad.any()):
            yield Finding(
                f"the parameter {name} gets no gradient",
                "training does not change it",
                "use it in forward, or freeze it",
            )
    _show_costs(model, data, _step_seconds(model, batch), activation_bytes)
    yield from _check_disk(cli, model)
    if overfit:
        yield from _check_overfit(model, batch)


def _random_batch(data: DataModule) -> Batch:
    """Return a batch of random training rows, always the same ones."""
    rows = len(data.splits["train"].row)
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(0))
    return take(data.splits["train"], order[: min(data.batch_size or rows, rows)])


@contextmanager
def _show_layers(net: nn.Module) -> Iterator[None]:
    """Print the layers that run in a forward pass, with their output shapes."""
    table = Table("layer", "kind", "output", "parameters")

    def add_row(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        shape = str(list(output.shape)) if isinstance(output, Tensor) else ""
        parameters = sum(p.numel() for p in module.parameters())
        table.add_row(name or "net", type(module).__name__, shape, f"{parameters:,}")

    with leaf_hooks(net, add_row):
        yield
    console.show(table)


def _gradients(model: Model, batch: Batch) -> tuple[float, int]:
    """Compute the gradients; return the loss, and the bytes stored for the backward pass."""
    known_storages, activation_bytes = {p.data_ptr() for p in model.parameters()}, 0

    def measure(values: Tensor) -> Tensor:
        nonlocal activation_bytes
        if values.data_ptr() not in known_storages:
            known_storages.add(values.data_ptr())
            activation_bytes += values.nbytes
        return values

    with saved_tensors_hooks(measure, lambda values: values):
        _, loss, _ = eager_step(model, batch)
    return loss.item(), activation_bytes


def _step_seconds(model: Model, batch: Batch) -> float:
    """Return the time of a step without the optimizer."""
    seconds = math.inf
    for _ in range(TIMINGS):
        start = time.perf_counter()
        _, loss, _ = eager_step(model, batch)
        loss.item()  # Wait for the device.
        seconds = min(seconds, time.perf_counter() - start)
    return seconds


def _check_initial_loss(model: Model, loss: float) -> Iterator[Finding]:
    """Print the loss before training; yield a finding if it is far above that of a constant."""
    constant = constant_loss(model)
    if constant is None:
        return
    console.say(f"loss at the start: {loss:.4f}; of the best constant prediction: {constant:.4f}")
    if not loss < 3 * constant + 1:
        yield Finding(
            f"the loss at the start is {loss:.3g}",
            f"far above that of the best constant prediction, {constant:.3g}, which training "
            "has to reach first",
            "scale the inputs, or the weights of the last layer",
        )


def _show_costs(model: Model, data: DataModule, seconds: float, activation_bytes: int) -> None:
    """Print the memory and the time that training takes."""
    weight_bytes = sum(p.nbytes for p in model.parameters())
    data_bytes = nbytes(data.splits["train"]) + nbytes(data.splits["val"])
    data_bytes = getattr(data, "memory_bytes", data_bytes)
    steps = data.train_dataloader().batches
    console.say(
        f"memory: {_mb(weight_bytes)} weights, {_mb(3 * weight_bytes)} gradients and Adam's state, "
        f"{_mb(activation_bytes)} activations of a batch, {_mb(data_bytes)} data"
    )
    console.say(
        f"time: {_round(1000 * seconds)} ms per step, {console.plural(steps, 'step')} per epoch: "
        f"{_round(seconds * steps)} s, without optimizer and validation"
    )


def _round(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def _check_disk(cli: ExperimentCLI, model: Model) -> Iterator[Finding]:
    """Print the disk space that checkpoints need; yield a finding if there is less."""
    weight_bytes = sum(p.nbytes for p in model.parameters())
    needed = CHECKPOINTS * TENSORS_PER_WEIGHT * weight_bytes
    root = cli.root.absolute()
    folder = next(path for path in (root, *root.parents) if path.exists())
    free = shutil.disk_usage(folder).free
    console.say(f"disk: {_mb(needed)} for checkpoints, {_mb(free)} free in {folder}")
    if needed > free:
        yield Finding(
            f"{folder} has {_mb(free)} free, checkpoints need {_mb(needed)}",
            "training stops when it cannot save",
            "free some space, or set trainer.default_root_dir",
        )


def _mb(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


def _check_overfit(model: Model, batch: Batch) -> Iterator[Finding]:
    """Train on one batch only; yield a finding if the net does not learn it.

    A net that cannot learn one batch does not fit the loss or the labels.
    """
    assert isinstance(model.net, nn.Module)
    optimizer = build_optimizer(model.optimizer, model.net, model.learning_rates, model.layer_decay)
    rows = len(batch.row)
    initial_loss, _ = _evaluate(model, batch)
    for step in range(1, OVERFIT_STEPS + 1):
        eager_step(model, batch, optimizer)
        if step % OVERFIT_INTERVAL:
            continue
        loss, is_learned = _evaluate(model, batch)
        if is_learned:
            console.say(
                f"overfit: the net learned {console.plural(rows, 'row')} in "
                f"{console.plural(step, 'step')}, loss {initial_loss:.3g} to {loss:.3g}"
            )
            return
    yield Finding(
        f"the net has not learned {console.plural(rows, 'row')} in {OVERFIT_STEPS} steps, loss "
        f"{initial_loss:.3g} to {loss:.3g}",
        "it will not learn more rows better",
        "look for a mistake in the net or the labels, or try another learning rate, more units, "
        "less dropout",
    )


@torch.no_grad()
def _evaluate(model: Model, batch: Batch) -> tuple[float, bool]:
    """Return the loss of a batch, and whether its targets are learned.

    All classes or labels must be correct, or most of the variance of each target explained.
    """
    assert batch.y is not None
    model.eval()
    outputs, loss, _ = model.forward_loss(batch, "val")
    predicted = model.predict_proba(outputs)
    model.train()
    if model.task == "regression":
        errors = (predicted - batch.y).square().mean(0)
        variance = batch.y.var(0, correction=0)
        return loss.item(), bool((errors <= UNEXPLAINED_VARIANCE * variance).all())
    is_multiclass = model.task == "multiclass"
    classes = predicted.argmax(1) if is_multiclass else predicted > DEFAULT_THRESHOLD[0]
    return loss.item(), bool((classes == batch.y).all())
