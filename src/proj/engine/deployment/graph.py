"""The part of a bundle that is a graph: from encoded inputs to probabilities or numbers."""

import io
import logging
import os
import re
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor, nn

from proj.engine.exit_codes import as_user_error
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


class ModuleGraph(nn.Module):
    """What a user's own LightningModule answers in `predict`, as columns of numbers.

    Args:
        module: its ``predict_step`` is used if it has its own, else its ``forward``.
        is_pair: whether the batches of its loaders are (x, y) and not x.
    """

    def __init__(self, module: LightningModule, is_pair: bool) -> None:
        super().__init__()
        self.module, self.is_pair = module, is_pair
        self.has_step = is_overridden("predict_step", module)

    def columns(self, x: Tensor) -> dict[str, Tensor]:
        """Return the outputs by name, each [rows, columns].

        Raises:
            UserError: if they are not tensors with as many rows as ``x``.
        """
        if self.has_step:
            outputs = self.module.predict_step((x, None) if self.is_pair else x, 0)
        else:
            outputs = self.module(x)
        outputs = {"prediction": outputs} if isinstance(outputs, Tensor) else outputs
        is_dict = isinstance(outputs, dict) and all(isinstance(v, Tensor) for v in outputs.values())
        if not is_dict or not all(v.ndim and v.shape[0] == x.shape[0] for v in outputs.values()):
            step = "predict_step" if self.has_step else "forward"
            raise UserError(
                f"{step} of {type(self.module).__name__}: expected a tensor with a row for each "
                "input, or a dict of such tensors; a bundle of other outputs is not supported."
            )
        return {n: v.flatten(1) if v.ndim > 1 else v[:, None] for n, v in outputs.items()}

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return all columns side by side [rows, columns] float64."""
        return torch.cat([values.double() for values in self.columns(inputs[0]).values()], 1)


def input_names(x: Tensors) -> list[str]:
    """Return the inputs of the graph for rows like ``x``: those that have columns."""
    return [name for name in TABLE if x[name].shape[1]] if isinstance(x, dict) else ["x"]


def trace(graph: nn.Module, inputs: list[Tensor], net: str) -> torch.export.ExportedProgram:
    """Return the graph as a program of torch.export for any number of rows.

    Args:
        graph: module in evaluation mode.
        inputs: an example of ``EXAMPLE_ROWS`` rows.
        net: name of the net, for messages.

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
    # The error of the first mode has the line of the net in its traceback.
    short = ValueError(_first_line(reasons[0])).with_traceback(reasons[0].__traceback__)
    with as_user_error(f"torch.export cannot trace the net {net} for any number of rows"):
        raise short from reasons[0]
    raise AssertionError


def _first_line(error: Exception) -> str:
    text = re.sub(r"\x1b\[\d*m", "", str(error))  # torch's exporter writes colors.
    lines = [line.strip() for line in text.splitlines() if line.strip()]
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


def write_torch(program: torch.export.ExportedProgram, path: Path) -> None:
    """Write a program in torch's own format."""
    # torch warns of weights in channels_last, which it saves correctly.
    with quiet():
        torch.export.save(program, path)


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
        # torch prints the graph of a net that it cannot trace.
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
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
