"""Multilayer perceptrons: the tutorial's, and one that takes its sizes from the data."""

from typing import Literal

from torch import Tensor, nn

from proj.nets.layers import Dropout, Standardize, TableEmbedding
from proj.schema import Schema, Tensors

ACTIVATIONS = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU, "tanh": nn.Tanh}
NORMS = {"batch": nn.BatchNorm1d, "layer": nn.LayerNorm}


class SimpleNN(nn.Module):
    """The net of PyTorch's introductory tutorial: two linear layers with a ReLU between them.

    Its sizes are fixed: inputs [rows, inputs], outputs [rows, outputs].
    """

    def __init__(self, inputs: int = 10, hidden: int = 50, outputs: int = 1) -> None:
        super().__init__()
        self.fc1 = nn.Linear(inputs, hidden)
        self.relu = nn.ReLU()
        self.fc2 = nn.Linear(hidden, outputs)

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.fc2(self.relu(self.fc1(x)))
        return outputs


class MLP(nn.Module):
    """Linear layers with activations between them.

    Arrays are standardized and flattened first; the columns of a table are embedded.

    Args:
        schema: schema of the data, with sizes and input statistics.
        hidden: width of each hidden layer; an empty list makes a linear model.
        activation: activation after each hidden layer.
        dropout: share of hidden units that are set to zero in each training step.
        norm: normalization before each activation, over the batch or over the layer.
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
        layers: list[nn.Module]
        if schema.columns:
            embedding = TableEmbedding(schema)
            layers, width = [embedding], embedding.width
        else:
            layers, width = [Standardize(schema), nn.Flatten()], schema.num_features
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
        """Return raw outputs [rows, outputs] for ``x`` [rows, ...] or a batch of a table."""
        outputs: Tensor = self.layers(x)
        return outputs
