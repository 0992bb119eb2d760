"""What training shows in a terminal: a bar of one line, and the parameters of the model."""

import re
import threading
from typing import Any

import pytest
from lightning.pytorch import LightningModule, Trainer
from rich.live import Live
from torch import nn

from proj.engine.callbacks import progress
from proj.engine.callbacks.progress import ParameterSummary, fitting_metrics
from proj.engine.cli import main


def test_metrics_that_do_not_fit_into_the_line_are_left_out() -> None:
    """The line would be wrapped, and each refresh leave a line behind."""
    metrics = {"loss": 0.5, "train/f1": 0.25, "val/loss": 0.125, "val/f1": 1 / 3, "lr": 1e-5}
    texts = fitting_metrics(metrics, width=200)
    assert texts == {
        "loss": "0.5",
        "val/loss": "0.125",
        "val/f1": "0.333",
        "lr": "1e-05",
        "train/f1": "0.25",
    }
    for width in range(80):
        shown = fitting_metrics(metrics, width)
        assert len("".join(f"{name}: {text} " for name, text in shown.items())) <= width
        assert list(shown) == list(texts)[: len(shown)]


def test_the_bar_takes_one_line_of_80_columns(
    experiment: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """A bar of six lines would hide what was printed before it."""
    for name, value in {"COLUMNS": "80", "TTY_COMPATIBLE": "1", "TTY_INTERACTIVE": "1"}.items():
        monkeypatch.setenv(name, value)
    assert main(["fit", "--config", str(experiment("binary")), "--name", "run"]) == 0
    out = capsys.readouterr().out
    assert "\x1b[1A" not in out  # the terminal never goes up, which it does for several lines
    lines = re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", out))
    bars = [line.rstrip() for line in lines if line.startswith("Epoch")]
    assert max(map(len, bars)) <= 80
    assert re.search(r"6/6 .* loss: [\d.]+ val/loss: [\d.]+ val/f1: [\d.]+", bars[-1])


@pytest.mark.parametrize("terminal", [True, False])
def test_the_bar_is_drawn_during_training_on_a_terminal_only(
    terminal: bool, experiment: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Into a file, rich prints the end of the bar, whatever was drawn before."""
    if terminal:
        for name in ("TTY_COMPATIBLE", "TTY_INTERACTIVE"):
            monkeypatch.setenv(name, "1")
    monkeypatch.setattr(progress, "REFRESHES_PER_SECOND", 200)
    drawn, refresh = [], Live.refresh

    def counted(live: Live) -> None:
        drawn.append(threading.current_thread() is not threading.main_thread())
        refresh(live)

    monkeypatch.setattr(Live, "refresh", counted)
    flags = ["--trainer.max_epochs", "5", "--model.steps_per_execution", "1"]
    assert main(["fit", "--config", str(experiment("binary")), "--name", "run", *flags]) == 0
    assert any(drawn) == terminal
    out = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", capsys.readouterr().out)
    assert re.search(r"Epoch 4/4 .* 6/6 .* loss: ", out)


def test_the_summary_has_the_parameters_and_no_operations(capsys: Any) -> None:
    """Lightning's has a line `Total FLOPs: 0`, because it counts none before the first batch."""

    class Module(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(40, 25), nn.Linear(25, 1)
            self.second.requires_grad_(False)
            self.act = nn.ReLU()

    ParameterSummary().on_fit_start(Trainer(logger=False, accelerator="cpu"), Module())
    out = capsys.readouterr().out
    assert "1,051 parameters, 26 of them not trained, 0.0042 MB" in out
    assert "first" in out
    assert "act" not in out
    assert "FLOP" not in out
