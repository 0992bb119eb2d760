"""Checks that a model, its net and the data fit together, and what they can tell of a net."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from inspect import isclass, signature
from typing import Any

import torch
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from proj.errors import UserError
from proj.schema import Batch, Schema, Task, Tensors

# Bytes that the outputs of a net's layers may take in evaluation. Larger batches are not faster.
EVALUATION_BYTES = 16 * 2**20


def infer_schema(model: Any, data: Any) -> Schema:
    """Return a schema for a user's data module, or DataLoaders, that have none.

    Shapes come from the first batch, the number of outputs from the net.
    """
    if not isinstance(model.net, nn.Module):
        raise UserError(
            "the net is built from a schema, and the data module has none: expected an attribute "
            "`schema` of the data module, as in `self.schema = Schema.from_dataset(self.train)`, "
            "or of the model, or a net with fixed sizes."
        )
    with evaluating(model.net):
        x, _ = split_batch(_first_batch(model, data))
        count = model(x[:1] if isinstance(x, Tensor) else x).shape[-1]
    shape = tuple(_parts(x)[0].shape[1:]) or (1,)
    if model.task == "binary":
        return Schema.of(shape, classes=(0, 1))
    if model.task == "multiclass":
        return Schema.of(shape, classes=range(count), task="multiclass")
    names = ["target"] if count == 1 else [f"target_{i}" for i in range(count)]
    if model.task == "multilabel":
        return Schema.of(shape, labels=names)
    return Schema.of(shape, targets=names)


def _first_batch(model: Any, data: Any) -> Any:
    """Return the first batch, as the hooks of data module and model change it."""
    source, trainer = data or model, model.trainer
    if is_overridden("train_dataloader", source):
        batch = next(iter(source.train_dataloader()))
    else:  # DataLoaders that were given to the Trainer
        stage = trainer.state.fn.value
        getattr(trainer, f"{stage}_loop").setup_data()
        names = {"fit": "train_dataloader", "validate": "val_dataloaders"}
        loader = getattr(trainer, names.get(stage, f"{stage}_dataloaders"))
        batch = next(iter(loader[0] if isinstance(loader, list) else loader))
    for owner in filter(None, (data, model)):
        batch = owner.on_after_batch_transfer(owner.on_before_batch_transfer(batch, 0), 0)
    return batch


def split_batch(batch: Any) -> tuple[Any, Any]:
    """Return the inputs and the targets of a batch ``(x, y)``, or of ``x`` and ``(x,)``.

    Raises UserError for more parts, because one of them would be taken for the targets.
    """
    if isinstance(batch, Batch):
        return batch.x, batch.y
    if not isinstance(batch, tuple | list):
        return batch, None
    if len(batch) not in (1, 2):
        kinds = ", ".join(type(part).__name__ for part in batch)
        raise UserError(
            f"expected batches (x, y) of inputs and targets, got {len(batch)} parts ({kinds}); "
            "return ((a, b), y) from the data set or collate_fn for a net with forward(a, b), and "
            "for other parts, such as weights, override to_batch and forward_loss of the model."
        )
    return batch[0], batch[1] if len(batch) == 2 else None


def _parts(x: Any) -> list[Any]:
    """Return the tensors of inputs."""
    return list(x.values()) if isinstance(x, dict) else list(x) if type(x) in (tuple, list) else [x]


def num_rows(x: Any) -> int:
    """Return the number of rows of inputs."""
    return len(_parts(x)[0])


def with_targets(y: Tensor | None) -> Tensor:
    """Return the targets of a batch; raise UserError if it has none."""
    if y is None:
        raise UserError(
            "expected batches (x, y) of inputs and targets, got inputs only; return both from the "
            "data set or collate_fn. A dict as a whole is inputs."
        )
    return y


def evaluation_batch_size(net: nn.Module, x: Tensors) -> int:
    """Return how many rows to evaluate at once.

    So many that the outputs of the net's layers take about ``EVALUATION_BYTES``. ``x`` are a few
    rows, which are passed through the net to measure the outputs.
    """
    sizes: list[int] = []

    def measure(name: str, layer: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            sizes.append(output.nbytes)

    # A compiled net may not report sizes as numbers.
    with leaf_hooks(net, measure), evaluating(net), torch.compiler.set_stance("force_eager"):
        net(x)
    return max(1, EVALUATION_BYTES * num_rows(x) // max(sum(sizes), 1))


@contextmanager
def evaluating(net: nn.Module) -> Iterator[None]:
    """Put a net into evaluation mode, without gradients; restore modes and random generators."""
    training = [module for module in net.modules() if module.training]
    net.eval()
    try:
        with torch.random.fork_rng(), torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def leaf_hooks(net: nn.Module, hook: Callable[[str, nn.Module, Any, Any], None]) -> Iterator[None]:
    """Call ``hook(name, module, inputs, output)`` after the forward of each leaf module."""

    def bind(name: str) -> Callable[[nn.Module, Any, Any], None]:
        return lambda module, inputs, output: hook(name, module, inputs, output)

    handles = [
        module.register_forward_hook(bind(name))
        for name, module in net.named_modules()
        if not list(module.children())
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def check_task(task: Task, schema: Schema, model: str) -> None:
    """Raise UserError unless the targets of the data are of the model's task."""
    if schema.task != task:
        raise UserError(
            f"model {model}: expected targets for the task {task}, got {schema.task} "
            f"({describe_targets(schema)}); use the model for {schema.task}, or set data.task."
        )


def takes_schema(net: nn.Module | Callable[..., nn.Module]) -> bool:
    """Return whether a class or function of nets is called with the schema."""
    if isinstance(net, nn.Module):
        return False
    target: Callable[..., Any] = net
    if isinstance(net, partial) and net.args and isclass(net.args[-1]):  # made by jsonargparse
        target = partial(net.args[-1], **net.keywords)
    first = next(iter(signature(target).parameters.values()), None)
    if first is None or first.kind in (first.KEYWORD_ONLY, first.VAR_KEYWORD):
        return False
    return first.default is first.empty or "Schema" in str(first.annotation)


def build_net(net: Callable[..., nn.Module], *schema: Schema) -> nn.Module:
    """Build the net, for the schema if its class or function takes one."""
    try:
        built = net(*schema)
    except TypeError as error:
        change = "correct its arguments"
        if schema:
            change = "give a value to each of its arguments but the first, `schema: Schema`"
        raise UserError(f"the net cannot be built: {error}; {change}.") from error
    if any(is_lazy(parameter) for parameter in built.parameters()):
        raise UserError(
            f"net {type(built).__name__}: expected layers of known size, got lazy ones; take the "
            "sizes from the schema."
        )
    return built


def check_outputs(outputs: Tensor, rows: int, schema: Schema, net: str) -> None:
    """Raise UserError unless a net gives [rows, outputs] or [rows, members, outputs]."""
    expected = (rows, schema.num_outputs)
    if outputs.ndim not in (2, 3) or (outputs.shape[0], outputs.shape[-1]) != expected:
        change = (
            "leave out the squeeze" if outputs.ndim == 1 else "change the size of its last layer"
        )
        raise UserError(
            f"net {net}: expected outputs of shape {list(expected)} ({describe_targets(schema)}), "
            f"got {list(outputs.shape)}; {change}."
        )


def mean_loss(
    model: Any,
    outputs: Tensor,
    targets: Tensor,
    row_weights: Tensor | None,
    share: Tensor | None = None,
) -> tuple[Tensor, Tensor | float]:
    """Return the mean loss of a batch and its weight in the mean of an epoch.

    Args:
        outputs: raw outputs [rows, outputs], or [rows, members, outputs] of an ensemble.
        row_weights: weights in the loss [rows]; see ``weighted_loss``.
        share: each row's share in mixed rows; the rest is the row before it. See ``mix_images``.
    """
    if share is not None:
        other = None if row_weights is None else row_weights.roll(1, 0)
        other_loss, _ = mean_loss(model, outputs, targets.roll(1, 0), other)
        loss, weight = mean_loss(model, outputs, targets, row_weights)
        return share * loss + (1 - share) * other_loss, weight
    if outputs.ndim == 3:
        # Each member of an ensemble is trained by its own loss.
        members = outputs.shape[1]
        outputs, targets = outputs.flatten(0, 1), targets.repeat_interleave(members, dim=0)
        row_weights = None if row_weights is None else row_weights.repeat_interleave(members)
    if row_weights is not None and len(outputs):
        return weighted_loss(model, outputs, targets, row_weights)
    return model.compute_loss(outputs, targets), model.loss_weight(targets)


def weighted_loss(
    model: Any, outputs: Tensor, targets: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the loss of a batch with row weights [rows], and its factor and divisor [2].

    Weights are divided by their mean over the training split, not over the batch. So the expected
    gradient of a random batch is that of the whole split, and weights of 1 change nothing. The mean
    loss of an epoch is the sum of the losses, each times its factor, over the sum of the divisors.
    """
    if not (mean := model.schema.weight_mean):
        raise UserError(
            "data.weight: expected rows without weights, as in training, got weights; leave it out."
        )

    def row_loss(output: Tensor, target: Tensor) -> Any:
        return model.compute_loss(output[None], target[None])

    try:
        losses = torch.vmap(row_loss, randomness="different")(outputs, targets)
    except RuntimeError:  # vmap does not support the loss, such as that of smoothed labels.
        losses = torch.stack([row_loss(*row) for row in zip(outputs, targets, strict=True)])
    total = model.loss_weight(targets)  # a tensor with the weights of classes
    if isinstance(total, Tensor):
        weight = weight * torch.vmap(lambda y: model.loss_weight(y[None]))(targets)
    loss = (losses * weight.to(outputs.dtype)).sum() / (total * mean)
    factor = torch.as_tensor(total * mean, dtype=weight.dtype, device=weight.device)
    return loss.to(outputs.dtype), torch.stack([factor, weight.sum()])


def check_targets(y: Any, schema: Schema) -> Tensor:
    """Return the targets of a batch in our form, as ``Batch`` describes it.

    Raises UserError unless they are class numbers [rows], or as many numbers per row as the data
    have targets.
    """
    is_classes = schema.task in ("binary", "multiclass")
    if not isinstance(y, Tensor) or (is_classes and (y.ndim != 1 or y.is_floating_point())):
        kind = "class numbers of shape [rows] and type int64" if is_classes else "a tensor"
        change = "; return y.long() from the data set, without a second axis" if is_classes else ""
        raise UserError(f"expected {kind} for the task {schema.task}, got {_form(y)}{change}.")
    if is_classes:
        return y.long()  # Splits of arrays hold class numbers in a byte each.
    numbers = y[:, None] if y.ndim == 1 else y.flatten(1)
    if numbers.shape[1] != schema.num_outputs:
        raise UserError(
            f"expected targets of shape [rows, {schema.num_outputs}], got {_form(y)}; return as "
            "many numbers per row as the schema has targets, or the net has outputs."
        )
    return numbers


def _form(y: Any) -> str:
    return f"{y.dtype} of shape {list(y.shape)}" if isinstance(y, Tensor) else type(y).__name__


def describe_targets(schema: Schema) -> str:
    """Return the targets in a few words, for messages."""
    if schema.task == "binary":
        return f"one output, for the class {schema.classes[1]!r}"
    if schema.task == "multiclass":
        return f"{len(schema.classes)} classes"
    return f"{len(schema.target_names)} {'labels' if schema.task == 'multilabel' else 'targets'}"


def check_fraction(option: str, value: float) -> None:
    if not 0 <= value < 1:
        raise UserError(f"{option}: expected a number from 0 up to 1, got {value}.")


def check_no_loss(loss: nn.Module | None, **options: Any) -> None:
    """Raise UserError if an option of the task's own loss is set beside another loss."""
    if loss is None:
        return
    for name, value in options.items():
        if value not in (None, 0.0):
            raise UserError(
                f"model.{name}: expected model.loss or model.{name}, got both; {name} is an "
                "option of the task's own loss, leave one of the two out."
            )


def class_counts(schema: Schema, option: str) -> tuple[int, ...]:
    """Return the training rows of each class; raise UserError if weights cannot be computed."""
    if not schema.class_counts or min(schema.class_counts) == 0:
        raise UserError(
            f"{option}: expected training rows of every class for auto, got "
            f"{schema.class_counts or 'no counts'}; give the weights as numbers."
        )
    return schema.class_counts
