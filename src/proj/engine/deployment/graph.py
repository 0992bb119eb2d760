"""The part of a bundle that is a graph: from encoded inputs to probabilities or numbers."""

import logging
import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from proj.errors import UserError
from proj.models.base import Model
from proj.schema import Tensors

# Inputs of a table, in the order of the graph's arguments.
TABLE = ("numeric", "categorical")
# Rows of the example that a graph is traced with. 0 and 1 would be taken as constants.
EXAMPLE_ROWS = 3


class AnswerGraph(nn.Module):
    """Net, mean of its members, temperature, softmax or sigmoid, and the unit of the target.

    Args:
        model: a model with its weights and its temperature.
        inputs: names of the inputs: ``x``, or those of ``TABLE`` that have columns.
    """

    def __init__(self, model: Model, inputs: list[str]) -> None:
        super().__init__()
        # Metrics and losses are not part of the graph.
        model.split_metrics = nn.ModuleList()
        model.loss = None
        self.model, self.inputs = model, inputs

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return what ``Model.predict_proba`` returns, for ``inputs`` [rows, ...] in order."""
        x: Tensors = inputs[0]
        if self.inputs != ["x"]:
            x = dict(zip(self.inputs, inputs, strict=True))
            rows = inputs[0].shape[0]
            if "numeric" not in x:
                x["numeric"] = inputs[0].new_zeros((rows, 0), dtype=torch.float32)
            if "categorical" not in x:
                x["categorical"] = inputs[0].new_zeros((rows, 0), dtype=torch.int32)
        return self.model.predict_proba(self.model.eval_outputs(self.model(x)))


class ForwardGraph(nn.Module):
    """The ``forward`` of a user's own module, with outputs [rows, outputs].

    Args:
        module: module from a tensor [rows, ...] to a tensor with as many rows.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        outputs = self.module(x)
        if not isinstance(outputs, Tensor):
            raise UserError(
                f"forward of {type(self.module).__name__}: expected a tensor [rows, ...], got "
                f"{type(outputs).__name__}; a bundle of other outputs is not supported."
            )
        return outputs.flatten(1) if outputs.ndim > 1 else outputs[:, None]


def input_names(x: Tensors) -> list[str]:
    """Return the inputs of the graph for rows like ``x``: those that have columns."""
    return [name for name in TABLE if x[name].shape[1]] if isinstance(x, dict) else ["x"]


def trace(graph: nn.Module, inputs: list[Tensor]) -> torch.export.ExportedProgram:
    """Return the graph as a program of torch.export for any number of rows.

    Args:
        graph: module in evaluation mode.
        inputs: an example of ``EXAMPLE_ROWS`` rows.

    Raises:
        UserError: if torch.export cannot trace the net.
    """
    rows = torch.export.Dim("rows", min=0)
    shapes = tuple({0: rows} for _ in inputs)
    reasons: list[Exception] = []
    # Tracing in Python is more tolerant, but `len(x)` is a constant there. The strict mode reads
    # the bytecode, in which it is not.
    for strict in (False, True):
        try:
            with torch.no_grad(), quiet(), torch.compiler.set_stance("force_eager"):
                return torch.export.export(
                    graph, tuple(inputs), dynamic_shapes=(shapes,), strict=strict
                )
        except Exception as error:  # torch.export raises many types.
            reasons.append(error)
    raise UserError(f"the net cannot be exported: {_first_line(reasons[-1])}") from reasons[-1]


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300]


def write_onnx(
    program: torch.export.ExportedProgram, inputs: list[Tensor], names: list[str], path: Path
) -> None:
    """Write a program as ONNX.

    Raises:
        UserError: if an operation has no counterpart in ONNX.
    """
    # These are imported late because they take seconds, and the other format needs neither.
    import torch.onnx

    with quiet():
        try:
            plain = program.run_decompositions(DECOMPOSITIONS)
            exported: Any = torch.onnx.export(
                plain, tuple(inputs), dynamo=True, verbose=False, input_names=names
            )
        except torch.onnx.errors.OnnxExporterError as error:
            raise UserError(
                f"--format onnx: the net has an operation that ONNX does not: {_first_line(error)}"
                "; use --format torch."
            ) from error
        exported.save(path, external_data=False)


def compile_torch(program: torch.export.ExportedProgram, path: Path) -> None:
    """Compile a program with AOTInductor for the processor of this machine.

    Raises:
        UserError: if there is no C++ compiler.
    """
    compilers = (os.environ.get("CXX"), "g++", "clang++", "c++")
    if not any(shutil.which(name) for name in compilers if name):
        raise UserError(
            "--compile: expected a C++ compiler, found none of g++, clang++ and c++; install one, "
            "or leave the flag out."
        )
    # It is imported late because it takes seconds.
    from torch._inductor import aoti_compile_and_package

    with quiet():
        aoti_compile_and_package(program, package_path=str(path))


@contextmanager
def quiet() -> Iterator[None]:
    """Silence warnings and log messages of torch's exporters about themselves."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


# Operations without a counterpart in ONNX, by equal ones that have one.


def searchsorted(edges: Tensor, values: Tensor, *, right: bool = False, **options: Any) -> Tensor:
    """Return how many of ``edges`` [..., edges] are below ``values`` [..., values]."""
    assert not {name for name, value in options.items() if value}, options
    if edges.ndim == 1 and values.ndim > 1:
        edges = edges.expand(*values.shape[:-1], -1)
    pairs = edges[..., None, :], values[..., :, None]
    return (pairs[0] <= pairs[1] if right else pairs[0] < pairs[1]).sum(-1)


def column_stack(tensors: list[Tensor]) -> Tensor:
    """Return columns of one type side by side. ONNX does not convert the types."""
    dtype = tensors[0].dtype
    for tensor in tensors[1:]:
        dtype = torch.promote_types(dtype, tensor.dtype)
    columns = [tensor[:, None] if tensor.ndim == 1 else tensor for tensor in tensors]
    return torch.cat([column.to(dtype) for column in columns], 1)


DECOMPOSITIONS: dict[Any, Any] = {
    torch.ops.aten.searchsorted.Tensor: searchsorted,
    torch.ops.aten.column_stack.default: column_stack,
}
