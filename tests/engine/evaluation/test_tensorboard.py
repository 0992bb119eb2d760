"""Figures in TensorBoard: when they are logged, what they show, and no effect on training."""

import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import processes
from conftest import Cli, Trained, ask, watched
from proj.engine.evaluation import figure_sets, tensorboard
from proj.engine.evaluation.figure_sets import figures_of
from proj.engine.evaluation.prediction_set import load_predictions
from proj.engine.html import figures, pixels
from proj.engine.runs.checkpoint_file import read_checkpoint
from proj.engine.runs.run import Run
from proj.schema import Schema

RUN = Path("lightning_logs/version_0")


def images(run: Path = RUN) -> dict[str, list[tuple[int, Any]]]:
    """Steps and pixels by tag."""
    events = EventAccumulator(str(run), {"images": 0})
    events.Reload()

    def logged(tag: str) -> list[tuple[int, Any]]:
        return [
            (e.step, np.array(Image.open(io.BytesIO(e.encoded_image_string))))
            for e in events.Images(tag)
        ]

    return {tag: logged(tag) for tag in events.Tags()["images"]}


def expected(run: Path, verb: str) -> dict[str, Any]:
    """The figures of the report for the predictions that ``verb`` wrote."""
    schema = Schema.from_dict(read_checkpoint(run / "checkpoints" / "last.ckpt")["schema"])
    drawn = list(figures_of(load_predictions(Run(run.resolve()), verb, schema)))
    # The report draws the test figures first, which moves some lines by less than a pixel.
    if verb == "test":
        figures(*((figure, caption) for _, figure, caption in drawn))
    return {name: pixels(figure) for name, figure, _ in drawn}


@pytest.mark.long
@pytest.mark.parametrize("task", ["binary", "multiclass", "multilabel", "regression"])
def test_each_validation_is_drawn_without_a_minimum_interval(
    task: str, experiment: Any, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last figures must equal those of `validate`."""
    monkeypatch.setattr(tensorboard, "MIN_SECONDS_BETWEEN_FIGURES", 0.0)
    monkeypatch.setattr(tensorboard, "MAX_SHARE_OF_TIME", 1e9)
    cli("fit", "--config", experiment(task))
    logged_images = images()
    steps = read_checkpoint(RUN / "checkpoints" / "last.ckpt")["global_step"]
    assert {tuple(step for step, _ in entries) for entries in logged_images.values()} == {
        (steps // 2, steps)
    }
    cli("validate", "--ckpt_path", "last")
    wanted = expected(RUN, "validate")
    assert logged_images.keys() == {f"val/{name}" for name in wanted}
    for name, drawing in wanted.items():
        assert (logged_images[f"val/{name}"][-1][1] == drawing).all(), name


@pytest.mark.filterwarnings("ignore:val/f1 was")  # as the rows are few
def test_a_short_training_has_no_figures_and_drawing_time_is_limited(
    experiment: Any, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Drawing must not slow down training."""
    cli("fit", "--config", experiment())
    assert images() == {}
    monkeypatch.setattr(tensorboard, "MIN_SECONDS_BETWEEN_FIGURES", 0.0)
    # After drawing for a hundredth of a second, wait for a hundred seconds.
    monkeypatch.setattr(tensorboard, "MAX_SHARE_OF_TIME", 1e-4)
    cli("fit", "--config", experiment(), "--name", "two", "--trainer.max_epochs", "5")
    assert {len(entries) for entries in images(Path("lightning_logs/two")).values()} == {1}


def test_a_sample_of_rows_is_random_and_bounded() -> None:
    """Without a bound, the figures of millions of rows would take more memory than training."""
    sample = tensorboard.RowSample(1000)
    for start in range(0, 100_000, 300):
        sample.add({"row": np.arange(start, min(start + 300, 100_000))})
        assert sum(len(chunk["row"]) for chunk in sample.chunks) <= 1000
    rows = np.concatenate([chunk["row"] for chunk in sample.chunks])
    assert sample.seen == 100_000
    assert 500 <= len(rows) <= 1000
    assert (np.diff(rows) > 0).all()
    # The fifths of the rows have equal shares of the sample, up to 4 standard errors.
    counts = np.bincount(rows // 20_000)
    assert (abs(counts - len(rows) / 5) < 4 * np.sqrt(len(rows) * 0.2 * 0.8)).all()


def test_the_figures_of_a_sample_say_so(
    experiment: Any, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The numbers in them are not those of all rows."""
    titles: list[str] = []
    monkeypatch.setattr(tensorboard, "MIN_SECONDS_BETWEEN_FIGURES", 0.0)
    monkeypatch.setattr(tensorboard, "MAX_DRAWN_ROWS", 12)
    monkeypatch.setattr(
        figure_sets,
        "log_figures",
        lambda writer, split, drawn, step: titles.extend(one[1].get_suptitle() for one in drawn),
    )
    cli("fit", "--config", experiment(), "--trainer.max_epochs", "1")
    assert len(titles) > 3
    assert all(re.fullmatch(r"a random sample: \d+ of 18 rows", title) for title in titles)


def test_figures_do_not_change_the_weights(
    experiment: Any, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Drawing must not use the global random generators."""
    dropout = ["--model.net.dropout", "0.5"]
    cli("fit", "--config", experiment(), *dropout)
    monkeypatch.setattr(tensorboard, "MIN_SECONDS_BETWEEN_FIGURES", 0.0)
    cli("fit", "--config", experiment(), *dropout)
    first, second = (
        read_checkpoint(RUN.with_name(f"version_{i}") / "checkpoints" / "last.ckpt") for i in (0, 1)
    )
    assert images(RUN.with_name("version_1"))
    assert all(
        torch.equal(value, second["state_dict"][name])
        for name, value in first["state_dict"].items()
    )


@pytest.mark.parametrize(
    ("task", "outputs", "factor"), [("multiclass", 3, "nan"), ("regression", 1, "inf")]
)
def test_a_prediction_that_is_not_finite_draws_nothing(
    task: str,
    outputs: int,
    factor: str,
    work: Path,
    experiment: Any,
    cli: Cli,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A figure of NaN would raise an error in training."""
    monkeypatch.setattr(tensorboard, "MIN_SECONDS_BETWEEN_FIGURES", 0.0)
    Path("own.py").write_text(
        "import torch\n"
        "class Net(torch.nn.Linear):\n"
        "    def __init__(self):\n"
        f"        super().__init__(6, {outputs})\n"
        "    def forward(self, x):\n"
        f"        factor = 1 if self.training else float('{factor}')\n"
        "        return super().forward(x) * factor\n"
    )
    cli("fit", "--config", experiment(task), "--model.net", "own.Net")
    cli("test")
    assert images() == {}
    assert "predictions are not finite numbers" in (RUN / "report.html").read_text()


def test_the_test_figures_equal_those_of_the_report(trained: Trained, cli: Cli) -> None:
    """They are logged at the step of the tested checkpoint."""
    trained()
    cli("test")
    logged_images = images()
    step = read_checkpoint(RUN / "checkpoints" / "best.ckpt")["global_step"]
    for name, drawing in expected(RUN, "test").items():
        ((at, image),) = logged_images[f"test/{name}"]
        assert at == step
        assert (image == drawing).all(), name
    before = sorted(RUN.glob("events*"))
    cli("report")
    assert sorted(RUN.glob("events*")) == before


def test_a_run_without_tensorboard_gets_no_event_file(experiment: Any, cli: Cli) -> None:
    """A new event file would look like a run with curves."""
    cli("fit", "--config", experiment(trainer={"logger": False}))
    cli("test")
    assert (RUN / "report.html").is_file()
    assert not list(RUN.glob("events*"))


@pytest.mark.long
def test_figures_in_chromium(
    trained: Trained, cli: Cli, board: Callable[[], str], browser: Any
) -> None:
    """TensorBoard must show the images without an error."""
    trained()
    cli("test")
    address = board()
    ask(f"{address}/data/plugin/images/tags", lambda c: "test/confusion" in c.get("version_0", {}))
    tab, said, requests = watched(browser)
    tab.goto(f"{address}/#images")
    drawn = tab.locator("tf-image-loader img")
    drawn.nth(5).wait_for(timeout=60_000)
    sizes = [
        drawn.nth(i).evaluate("one => [one.naturalWidth, one.naturalHeight]") for i in range(6)
    ]
    assert all(width > 300 and height > 300 for width, height in sizes)
    assert said == []
    assert [url for url in requests if not url.startswith((address, "data:", "blob:"))] == []


OFTEN = """
from lightning.pytorch import Callback
from proj.engine.evaluation import figure_sets, tensorboard
tensorboard.MIN_SECONDS_BETWEEN_FIGURES, tensorboard.MAX_SHARE_OF_TIME = 0.0, 1e9
class Often(Callback):
    pass
"""


@pytest.mark.slow
def test_two_processes_draw_all_rows(work: Path, experiment: Any, cli: Cli) -> None:
    """Figures of one process alone would show half of the rows."""
    Path("often.py").write_text(OFTEN)
    flags = [
        "--trainer.devices",
        "2",
        "--trainer.strategy",
        "ddp",
        "--trainer.callbacks",
        "often.Often",
    ]
    processes.run("proj", "fit", "--config", experiment(), *flags).check_returncode()
    logged_images = images()
    cli("validate", "--ckpt_path", "last", "--trainer.devices", "1", "--trainer.strategy", "auto")
    for name, drawing in expected(RUN, "validate").items():
        assert (logged_images[f"val/{name}"][-1][1] == drawing).all(), name
