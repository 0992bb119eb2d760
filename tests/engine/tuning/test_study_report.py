"""The figures of a study: whole names, inside the drawing, in the colours of the page."""

import re

import pytest
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator

from proj.engine import html
from proj.engine.tuning.study_report import _broken, _restyle, _whole

KEYS = ["model.optimizer.lr", "model.optimizer.weight_decay"]


def drawing(names: list[str]) -> Figure:
    """A figure with names at both axes, a title and a grey area, as those of Optuna."""
    figure = Figure((4, 3))
    axes = figure.add_axes((0.05, 0.05, 0.9, 0.9))
    axes.set(facecolor="#e5e5e5", xlabel=names[-1])
    axes.set_title("Hyperparameter Importances", loc="left")
    axes.yaxis.set_major_locator(FixedLocator([float(i) for i in range(len(names))]))
    axes.yaxis.set_major_formatter(FixedFormatter(names))
    axes.set_ylim(-1, len(names))
    return figure


def test_labels_are_whole_and_inside_the_drawing() -> None:
    """The ends of long names would be cut off, or dots stand for them."""
    figure = drawing(["model.optimizer.lr", "model.optimizer.w..."])
    _restyle(figure, KEYS)
    svg = html.svg(figure, "figure", tight=True)
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", svg)
    assert {"model.optimizer.lr", "model.optimizer.", "weight_decay"} <= set(texts)
    assert not any("..." in text for text in texts)
    width = float(re.findall(r'viewBox="0 0 ([\d.]+) ', svg)[0])
    assert width > 4 * 72  # the names are left of the axes, which fill the figure
    assert "Hyperparameter Importances" not in svg
    assert "#e5e5e5" not in svg


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("lr", ["lr"]),
        ("a.b", ["a.b"]),
        ("model.optimizer.weight_decay", ["model.optimizer.", "weight_decay"]),
        ("a_long_name_without_a_dot", ["a_long_name_without_a_dot"]),
        ("0.00012345678901234567", ["0.00012345678901234567"]),
    ],
)
def test_long_names_take_two_lines(name: str, lines: list[str]) -> None:
    assert _broken(name).split("\n") == lines


def test_a_label_that_optuna_has_not_cut_stays() -> None:
    """It would become the first setting that begins like it."""
    assert _whole("model.optimizer.w...", KEYS) == "model.optimizer.weight_decay"
    assert _whole("model.optimizer.lr", KEYS) == "model.optimizer.lr"
    assert _whole("val/loss", KEYS) == "val/loss"
    assert _whole("model.optimizer", KEYS) == "model.optimizer"
