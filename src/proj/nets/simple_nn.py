"""The net of PyTorch's introductory tutorial."""

from torch import Tensor, nn


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
