"""The net of a run as source text, checked against the net that the run has trained."""

import re
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, NamedTuple

import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn

from proj.engine.deployment.eject_branches import Ran
from proj.engine.deployment.eject_values import plain
from proj.engine.exit_codes import as_user_error
from proj.errors import UserError
from proj.schema import Column, Schema, Tensors

# Longer values of the schema are stored beside the script.
MAX_VALUE = 60


class Trace(NamedTuple):
    """What a net reads of the schema, and the dimensions of its outputs in both modes."""

    read: dict[str, Any]
    training_dims: int
    evaluation_dims: int


class SchemaText(NamedTuple):
    """What a net reads of the schema: the statement that defines it, and values stored beside."""

    text: str
    values: dict[str, Any]


def observed(schema: Schema) -> tuple[Schema, dict[str, Any]]:
    """Return a schema that records the attributes that are read of it, and the record."""
    read: dict[str, Any] = {}

    class Observed(Schema):
        def __getattribute__(self, name: str) -> Any:
            if name.startswith("__"):
                return object.__getattribute__(self, name)
            value = getattr(schema, name)
            read[name] = value
            return value

    return object.__new__(Observed), read


def trace_net(build: Any, schema: Schema | None, x: Tensors, ran: Ran) -> Trace:
    """Build a net and compute outputs, recording what runs.

    Args:
        build: class of the net with its options; called with the schema if that is not None.
        schema: schema of the data.
        x: a few rows, as the net takes them.
        ran: record of the lines that run.
    """
    record: dict[str, Any] = {}
    arguments = []
    if schema is not None:
        watched, record = observed(schema)
        arguments = [watched]
    with isolate_rng(), torch.no_grad():
        with ran.record(ran.built):
            net = build(*arguments)
        with ran.record(ran.used):
            dims = [net.train(training)(x).ndim for training in (True, False)]
    return Trace(record, *dims)


def schema_text(read: Mapping[str, Any], definitions: str) -> SchemaText:
    """Return the statement that defines what the definitions read of the schema.

    Raises UserError for an attribute that is neither a plain value nor columns.
    """
    lines, values = [], {}
    for name, value in read.items():
        if not _is_read(name, definitions):
            continue
        is_columns = isinstance(value, tuple) and any(isinstance(v, Column) for v in value)
        text = plain(value)
        if is_columns:
            values[name] = [_column(column, definitions) for column in value]
            text = f'[SimpleNamespace(**column) for column in DATA["schema"]["{name}"]]'
        elif callable(value):
            raise UserError(
                f"eject: expected a net that reads values of the schema, got one that calls "
                f"schema.{name}; write it with the values that the method uses."
            )
        elif len(text) > MAX_VALUE:
            values[name] = value
            text = f'DATA["schema"]["{name}"]'
        lines.append(f"    {name}={text},\n")
    return SchemaText(f"schema = SimpleNamespace(\n{''.join(lines)})" if lines else "", values)


def _column(column: Column, definitions: str) -> dict[str, Any]:
    fields = {**asdict(column), "name": column.name}
    return {name: value for name, value in fields.items() if _is_read(name, definitions)}


def _is_read(name: str, definitions: str) -> bool:
    return re.search(rf"\.{name}\b", definitions) is not None


def check_net(
    script: str,
    data: dict[str, Any],
    seed: int,
    initial: nn.Module,
    weights: dict[str, Tensor],
    x: Tensors,
) -> None:
    """Raise UserError unless the text builds the run's net.

    Args:
        script: text that defines ``net``.
        data: what the text finds in ``DATA``.
        seed: seed of the run.
        initial: the net as the run has built it, before training.
        weights: weights of the run, by their names in the net.
        x: a few rows, as the net takes them.
    """
    scope: dict[str, Any] = {"DATA": data, "SEED": seed}
    with isolate_rng(), as_user_error("eject: the source of the net does not run"):
        exec(script, scope)
    net = scope["net"]
    expected, got = initial.state_dict(), net.state_dict()
    _require(expected.keys() == got.keys(), "it has other weights")
    for name, values in expected.items():
        _require(_equal(values, got[name]), f"{name} begins with other values")
    with isolate_rng(), torch.no_grad():
        for training in (False, True):
            outputs = []
            for other in (initial, net):
                other.load_state_dict(weights)
                torch.manual_seed(seed)
                outputs.append(other.train(training)(x))
            _require(_equal(*outputs), "it computes other outputs")


def _require(holds: bool, difference: str) -> None:
    if not holds:
        raise UserError(
            f"eject: the source of the net builds another net, {difference}: expected a module "
            "that defines all that the net uses, once, at its top level; define it there."
        )


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a, b)
