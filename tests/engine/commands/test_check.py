"""``check`` finds planted mistakes, and reports none in a good experiment."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.dummy import DummyClassifier
from sklearn.metrics import log_loss

from conftest import Cli
from proj.engine.cli import main


def warnings_of(args: Any, capsys: Any) -> str:
    """The warnings that ``check`` prints."""
    code = main(["check", *map(str, args)])
    warnings = str(capsys.readouterr().err)
    assert code == 0, warnings
    return warnings


def test_layers_loss_and_costs_are_printed(experiment: Any, cli: Cli) -> None:
    out = cli(
        "check", "--config", experiment(rows=1000), "--overfit", "--model.optimizer.lr", "0.02"
    )
    assert "[16, 8]" in out  # the output of a hidden layer
    y = np.load("data.npz")["y"]
    constant_loss = log_loss(y, DummyClassifier().fit(y, y).predict_proba(y))
    assert abs(float(out.split("best constant prediction: ")[1].split()[0]) - constant_loss) < 0.02
    assert "the net learned 16 rows in" in out
    assert "44 steps per epoch" in out  # 700 rows in batches of 16
    assert not Path("lightning_logs").exists()


def test_suspicious_nets_give_warnings(
    experiment: Any, cli: Cli, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("suspicious.py").write_text("""
from torch import nn

class Suspicious(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.unused = nn.Linear(6, 3), nn.Linear(6, 3)

    def forward(self, x):
        return 1000 * self.used(x)
""")
    config = experiment()
    warnings = warnings_of(["--config", config, "--model.net", "suspicious.Suspicious"], capsys)
    assert "the parameter unused.weight gets no gradient" in warnings
    assert "the parameter used" not in warnings
    assert "the loss at the start is" in warnings
    flags = ["--config", config, "--model.net", "suspicious.Suspicious", "--strict"]
    assert "--strict: expected no findings, got 3" in cli("check", *flags, code=2)
    assert "± 23 percentage points" in cli("check", "--config", config)


def test_a_net_that_ignores_its_inputs_learns_no_batch(
    experiment: Any, cli: Cli, capsys: Any
) -> None:
    Path("blind.py").write_text("""
import torch
from torch import nn

class Blind(nn.Module):
    def __init__(self):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(3))

    def forward(self, x):
        return self.bias.expand(len(x), 3)
""")
    warnings = warnings_of(
        ["--config", experiment(), "--model.net", "blind.Blind", "--overfit"], capsys
    )
    assert "the net has not learned 16 rows in 500 steps" in warnings


def test_batch_normalization_with_a_last_batch_of_one_row_is_an_error(
    experiment: Any, cli: Cli
) -> None:
    flags = ["--model.net.norm", "batch", "--data.batch_size", "83"]
    assert "last batch of 83 has one row" in cli("fit", "--config", experiment(), *flags, code=2)
    cli("fit", "--config", experiment(), "--data.batch_size", "83")
    cli("fit", "--config", experiment(), "--model.net.norm", "batch", "--data.batch_size", "82")
