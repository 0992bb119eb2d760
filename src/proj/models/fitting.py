"""Whether a model, a net and the data fit together, said in words where they do not."""

from collections.abc import Callable

from torch import Tensor, nn

from proj.errors import UserError
from proj.schema import Schema, Task


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
        return net(schema)
    except TypeError as error:
        raise UserError(
            f"the net cannot be built from the schema alone: {error}; give a value to each of its arguments, "
            "or name the first one `schema`."
        ) from error


def check_outputs(outputs: Tensor, rows: int, schema: Schema, net: str) -> None:
    """Raise UserError unless the net gave one raw output a class, label or target for each row."""
    if tuple(outputs.shape) != (rows, schema.outputs):
        raise UserError(
            f"net {net}: expected outputs of shape [{rows}, {schema.outputs}] ({describe(schema)}), "
            f"got {list(outputs.shape)}; change the size of its last layer."
        )


def describe(schema: Schema) -> str:
    """The targets in a few words."""
    if schema.task == "binary":
        return f"one output, for the class {schema.classes[1]!r}"
    if schema.task == "multiclass":
        return f"{len(schema.classes)} classes"
    return f"{len(schema.target_names)} {'labels' if schema.task == 'multilabel' else 'targets'}"


def class_counts(schema: Schema, option: str) -> tuple[int, ...]:
    """Training rows of each class, for weights that are to be worked out from them."""
    if not schema.class_counts or min(schema.class_counts) == 0:
        raise UserError(f"{option}: auto needs training rows of every class, got {schema.class_counts or 'no counts'}; "
                        "give the weights as numbers.")  # fmt: skip
    return schema.class_counts
