"""Whether a model, a net and the data fit together, said in words where they do not."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from proj.errors import UserError
from proj.schema import Schema, Task, Tensors

MEMORY = 64 * 2**20  # bytes, for the layers' outputs in evaluation


def schema_of_a_batch(model: Any, source: Any) -> Schema:
    """For a user's data module without a schema: shapes from one batch, numbers of outputs from the net itself."""
    if not isinstance(model.net, nn.Module):
        raise UserError(
            "the net is built from a schema, and the data module has none: give the data module an attribute "
            "`schema`, or use a net with sizes of its own."
        )
    with evaluating(model.net):  # generators, too: a DataLoader draws a seed when it starts
        x, *_ = next(iter(source.train_dataloader()))
        columns = model(x[:1]).shape[-1]
    return Schema.without_statistics(model.task, tuple(x.shape[1:]), columns)


def rows_at_once(net: nn.Module, x: Tensors) -> int:
    """How many rows to evaluate at once: what the net's layers give out for them takes about ``MEMORY``.

    ``x`` are some rows, for a look at the layers' outputs. More rows a batch are faster only where layers are small.
    """
    sizes: list[int] = []

    def note(layer: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            sizes.append(output.nbytes)

    hooks = [
        module.register_forward_hook(note)
        for module in net.modules()
        if not list(module.children())
    ]
    try:
        with (
            evaluating(net),
            torch.compiler.set_stance("force_eager"),
        ):  # a compiled net may not know sizes as numbers
            net(x)
    finally:
        for hook in hooks:
            hook.remove()
    rows = len(next(iter(x.values())) if isinstance(x, dict) else x)
    return max(1, MEMORY * rows // max(sum(sizes), 1))


@contextmanager
def evaluating(net: nn.Module) -> Iterator[None]:
    """The net in evaluation mode, without gradients; modes and generators are put back."""
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
    """Raise UserError unless the data's targets are of the model's task."""
    if schema.task != task:
        raise UserError(
            f"model {model}: expected targets for the task {task}, got {schema.task} ({describe(schema)}); "
            f"use the model for {schema.task}, or set data.task."
        )


def build(net: Callable[[Schema], nn.Module], schema: Schema) -> nn.Module:
    """The net for these data."""
    try:
        made = net(schema)
    except TypeError as error:
        raise UserError(
            f"the net cannot be built from the schema alone: {error}; give a value to each of its other arguments, "
            "and write the first one as `schema: Schema`."
        ) from error
    if any(is_lazy(parameter) for parameter in made.parameters()):
        raise UserError(
            f"net {type(made).__name__}: expected layers of known size, got lazy ones; take the sizes from the schema."
        )
    return made


def check_outputs(outputs: Tensor, rows: int, schema: Schema, net: str) -> None:
    """Raise UserError unless the net gave one raw output a class, label or target for each row (and each of its members)."""
    if outputs.ndim not in (2, 3) or (outputs.shape[0], outputs.shape[-1]) != (
        rows,
        schema.num_outputs,
    ):
        mend = "leave out the squeeze" if outputs.ndim == 1 else "change the size of its last layer"
        raise UserError(
            f"net {net}: expected outputs of shape [{rows}, {schema.num_outputs}] ({describe(schema)}), "
            f"got {list(outputs.shape)}; {mend}."
        )


def check_targets(y: Tensor, task: Task) -> None:
    """Raise UserError unless targets of a user's own loader are class numbers [rows], or numbers [rows] or [rows, n]."""
    if task in ("binary", "multiclass") and (y.ndim != 1 or y.is_floating_point()):
        raise UserError(
            f"expected class numbers of shape [rows] and type int64 for the task {task}, got {y.dtype} of shape "
            f"{list(y.shape)}; give the loader y.long(), without a second axis."
        )


def describe(schema: Schema) -> str:
    """The targets in a few words."""
    if schema.task == "binary":
        return f"one output, for the class {schema.classes[1]!r}"
    if schema.task == "multiclass":
        return f"{len(schema.classes)} classes"
    return f"{len(schema.target_names)} {'labels' if schema.task == 'multilabel' else 'targets'}"


def check_share(option: str, value: float) -> None:
    if not 0 <= value < 1:
        raise UserError(f"{option}: expected a number from 0 up to 1, got {value}.")


def class_counts(schema: Schema, option: str) -> tuple[int, ...]:
    """Training rows of each class, for weights that are to be worked out from them."""
    if not schema.class_counts or min(schema.class_counts) == 0:
        raise UserError(
            f"{option}: auto needs training rows of every class, got {schema.class_counts or 'no counts'}; "
            "give the weights as numbers."
        )
    return schema.class_counts
