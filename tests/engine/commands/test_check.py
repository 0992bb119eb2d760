"""``check`` finds what is planted, and says nothing where nothing is."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.dummy import DummyClassifier
from sklearn.metrics import log_loss

from conftest import Cli
from proj.engine.cli import main


def warned(args: Any, capsys: Any) -> str:
    """What ``check`` warns of."""
    code, said = main(["check", *map(str, args)]), str(capsys.readouterr().err)
    assert code == 0, said
    return said


def test_a_good_experiment_is_told_its_layers_loss_and_costs(experiment: Any, cli: Cli) -> None:
    out = cli(
        "check", "--config", experiment(rows=1000), "--overfit", "--model.optimizer.lr", "0.02"
    )
    assert "[16, 8]" in out  # a hidden layer's output
    y = np.load("data.npz")["y"]
    chance = log_loss(y, DummyClassifier().fit(y, y).predict_proba(y))
    assert abs(float(out.split("best constant prediction: ")[1].split()[0]) - chance) < 0.02
    assert "the net learned 16 rows in" in out
    assert "44 steps per epoch" in out  # 700 rows by 16
    assert not Path("lightning_logs").exists()


def test_what_is_odd_is_warned_of(
    experiment: Any, cli: Cli, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("odd.py").write_text("""
from torch import nn

class Odd(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.unused = nn.Linear(6, 3), nn.Linear(6, 3)

    def forward(self, x):
        return 1000 * self.used(x)
""")
    config = experiment()
    said = warned(["--config", config, "--model.net", "odd.Odd"], capsys)
    assert "the parameter unused.weight gets no gradient" in said
    assert "the parameter used" not in said
    assert "the loss at the start is" in said
    flags = ["--config", config, "--model.net", "odd.Odd", "--strict"]
    assert "--strict: expected no findings, got 3" in cli("check", *flags, code=2)
    assert "± 23 percentage points" in cli(
        "check", "--config", config
    )


def test_labels_of_chance_are_not_learned_by_a_net_without_inputs(
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
    said = warned(["--config", experiment(), "--model.net", "blind.Blind", "--overfit"], capsys)
    assert "the net has not learned 16 rows in 500 steps" in said


def test_a_last_batch_of_one_row_and_batch_normalisation_are_named_before_training(
    experiment: Any, cli: Cli
) -> None:
    flags = ["--model.net.norm", "batch", "--data.batch_size", "83"]
    assert "last batch of 83 has one row" in cli("fit", "--config", experiment(), *flags, code=2)
    cli("fit", "--config", experiment(), "--data.batch_size", "83")
    cli("fit", "--config", experiment(), "--model.net.norm", "batch", "--data.batch_size", "82")
