"""A multilayer perceptron."""

import math
from typing import Literal

from torch import Tensor, nn

from proj.nets.layers import Dropout, Embedded, Standardize
from proj.schema import Schema, Tensors

ACTIVATIONS = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU, "tanh": nn.Tanh}
NORMS = {"batch": nn.BatchNorm1d, "layer": nn.LayerNorm}


class MLP(nn.Module):
    """Linear layers with an activation between them, over standardised and flattened inputs, or a table's embedded columns.

    Args:
        schema: what is known of the data; gives the sizes and the input statistics.
        hidden: width of each hidden layer; none makes a linear model.
        activation: the function after each hidden layer.
        dropout: share of the hidden units switched off at each training step.
        norm: normalisation before each activation, over the batch or over the layer.
    """

    def __init__(
        self,
        schema: Schema,
        hidden: tuple[int, ...] = (128, 128),
        activation: Literal["relu", "gelu", "silu", "tanh"] = "relu",
        dropout: float = 0.0,
        norm: Literal["batch", "layer"] | None = None,
    ) -> None:
        super().__init__()
        width = math.prod(schema.input_shape)
        layers: list[nn.Module] = [Standardize(schema), nn.Flatten()]
        if schema.columns:
            layers = [embedded := Embedded(schema)]
            width = embedded.width
        for size in hidden:
            layers.append(nn.Linear(width, size))
            if norm:
                layers.append(NORMS[norm](size))
            layers.append(ACTIVATIONS[activation]())
            if dropout:
                layers.append(Dropout(dropout))
            width = size
        self.layers = nn.Sequential(*layers, nn.Linear(width, schema.num_outputs))

    def forward(self, x: Tensors) -> Tensor:
        """``x`` [rows, ...], or a table's parts, to raw outputs [rows, outputs]."""
        outputs: Tensor = self.layers(x)
        return outputs


class SimpleNN(nn.Module):
    """Two linear layers with a ReLU between them, with sizes of its own: inputs [rows, 10], outputs [rows, 1]."""

    def __init__(self, inputs: int = 10, hidden: int = 50, outputs: int = 1) -> None:
        super().__init__()
        self.fc1 = nn.Linear(inputs, hidden)
        self.relu = nn.ReLU()
        self.fc2 = nn.Linear(hidden, outputs)

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.fc2(self.relu(self.fc1(x)))
        return outputs
