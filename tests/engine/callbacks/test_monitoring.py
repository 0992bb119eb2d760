"""What a real TensorBoard process serves over HTTP, and shows in a real browser."""

import itertools
import urllib.request
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.proto.graph_pb2 import GraphDef
from tensorboard.summary.writer import event_file_writer
from torch import nn
from torch.utils.tensorboard import _pytorch_graph

from conftest import Cli, Once, ask, watched
from proj.engine.callbacks.monitoring import RunLogger
from proj.engine.runs.checkpoint_file import read_checkpoint
from proj.engine.runs.run import Run

RUN = Path("lightning_logs/version_0")


@pytest.fixture
def runs(experiment: Any, cli: Cli, once: Once) -> None:
    def train() -> None:
        cli("fit", "--config", experiment("binary"), "--name", "one")
        more = ["--model.optimizer.lr", "0.1", "--data.batch_size", "8"]
        cli("fit", "--config", experiment("binary"), "--name", "two", *more)

    once("one_and_two", train)


def test_tensorboard_serves_scalars_text_and_hparams(runs: None, board: Callable[[], str]) -> None:
    address = board()
    tags = ask(
        f"{address}/data/plugin/scalars/tags",
        lambda c: {"one", "two"} <= c.keys() and "val_best/f1" in c["two"],
    )
    wanted = {
        "train/loss",
        "train/loss_step",
        "train/f1",
        "val/loss",
        "val/f1",
        "val/auroc",
        "lr-Adam",
        "gradient_norm",
    }
    assert wanted <= tags["one"].keys()
    curve = ask(
        f"{address}/data/plugin/scalars/scalars?run=one&tag=val%2Ff1", lambda c: len(c) == 2
    )
    assert all(0 <= value <= 1 for _, _, value in curve)
    texts = ask(f"{address}/data/plugin/text/tags", lambda c: len(c) == 2)
    assert "config/text_summary" in texts["one"]
    text = ask(f"{address}/data/plugin/text/text?run=one&tag=config%2Ftext_summary", lambda c: c)
    assert "BinaryClassifier" in text[0]["text"]
    experiment = ask(
        f"{address}/data/plugin/hparams/experiment", lambda c: c.get("hparamInfos"), body={}
    )
    names = {info["name"] for info in experiment["hparamInfos"]}
    assert {"model.optimizer.lr", "data.batch_size", "seed_everything"} <= names
    groups = ask(
        f"{address}/data/plugin/hparams/session_groups",
        lambda c: len(c.get("sessionGroups", [])) == 2,
        body={
            "startIndex": 0,
            "sliceSize": 10,
            "allowedStatuses": ["STATUS_SUCCESS", "STATUS_UNKNOWN", "STATUS_RUNNING"],
            "colParams": [{"metric": {"tag": "val_best/f1", "group": ""}}],
        },
    )
    rates = {group["hparams"]["model.optimizer.lr"] for group in groups["sessionGroups"]}
    assert rates == {0.001, 0.1}
    assert all(g["metricValues"] for g in groups["sessionGroups"])


def test_one_chart_has_the_curves_of_training_and_validation(
    runs: None, board: Callable[[], str]
) -> None:
    address = board()
    layout = ask(f"{address}/data/plugin/custom_scalars/layout", lambda c: c)
    charts = {chart["title"]: chart["multiline"]["tag"] for chart in layout["category"][0]["chart"]}
    assert {"loss", "f1", "auroc"} <= charts.keys()
    for name, pattern in (("loss", 0), ("f1", 1)):
        tag = urllib.request.quote(charts[name][pattern])  # type: ignore[attr-defined]
        url = f"{address}/data/plugin/custom_scalars/scalars?run=one&tag={tag}"
        events = ask(url, lambda c: c.get("regex_valid"))["tag_to_events"]
        assert {tag: len(points) for tag, points in events.items()} == {
            f"{('train', 'val')[pattern]}/{name}": 2
        }


def graph_of(run: Path) -> str:
    """Operations and names of the graph in a run's events; empty without a graph."""
    events = EventAccumulator(str(run))
    events.Reload()
    if not events.Tags()["graph"]:
        return ""
    graph: GraphDef = GraphDef.FromString(events.Graph().SerializeToString())
    return " ".join(f"{node.op} {node.name}" for node in graph.node)


@pytest.mark.parametrize("how", ["none", "net"])
def test_the_graph_of_the_net_is_logged(how: str, experiment: Any, cli: Cli) -> None:
    cli("fit", "--config", experiment(), "--model.compile", how)
    assert graph_of(RUN).count("aten::linear") == 2


def test_a_traced_net_has_the_graph_of_the_net() -> None:
    """The graph of a net that is traced once would differ from that of ``add_graph``."""
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Sequential(nn.Linear(4, 2))).eval()
    x = (torch.ones(2, 3),)
    whole, _ = _pytorch_graph.graph(net, x)
    traced = torch.jit.trace(net, x, check_trace=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        warnings.filterwarnings("ignore", "The input to trace is already a ScriptModule")
        once, _ = _pytorch_graph.graph(traced, x)
    assert len(whole.node) > 5
    assert once == whole


def test_the_graph_of_a_net_for_tables_is_logged(work: Path, cli: Cli) -> None:
    lines = "".join(f"{i % 7},{'abc'[i % 3]},{'yes' if i % 7 > 3 else 'no'}\n" for i in range(90))
    Path("t.csv").write_text(f"size,kind,bought\n{lines}")
    data = ["--data", "Tabular", "--data.path", "t.csv", "--data.target", "bought"]
    cli(
        "fit",
        *data,
        "--data.batch_size",
        "32",
        "--model",
        "BinaryClassifier",
        "--model.net",
        "MLP",
        "--trainer.max_epochs",
        "1",
    )
    assert "aten::linear" in graph_of(RUN)


def test_a_resumed_run_logs_no_second_graph_and_a_new_run_its_own(
    experiment: Any, cli: Cli
) -> None:
    cli("fit", "--config", experiment(), "--trainer.max_epochs", "1")
    before = [path.stat().st_size for path in RUN.glob("events*")]
    cli("fit", "--resume", "--trainer.max_epochs", "2")
    assert [path.stat().st_size for path in sorted(RUN.glob("events*"))][:1] == before
    resumed = EventAccumulator(str(sorted(RUN.glob("events*"))[-1]))
    resumed.Reload()
    assert not resumed.Tags()["graph"]
    cli(
        "fit",
        "--config",
        experiment(),
        "--trainer.max_epochs",
        "3",
        "--ckpt_path",
        RUN / "checkpoints" / "last.ckpt",
    )
    assert "aten::linear" in graph_of(RUN.with_name("version_1"))


def test_a_step_is_one_row_of_other_loggers(experiment: Any, cli: Cli) -> None:
    """The losses are of all steps, the gradient norms of the last step of each execution."""
    logger = ["--trainer.logger", "CSVLogger", "--trainer.logger.save_dir", "csv"]
    cli("fit", "--config", experiment(), "--model.steps_per_execution", "4", *logger)
    (file,) = Path("csv").rglob("metrics.csv")
    rows = pl.read_csv(file).filter(pl.col("train/loss_step").is_not_null())
    assert rows["step"].to_list() == list(range(1, 13))
    assert rows.filter(pl.col("gradient_norm").is_not_null())["step"].to_list() == [4, 6, 10, 12]
    everything = pl.read_csv(file)["gradient_norm"]
    assert everything.count() == 4


def test_curves_of_a_run_resumed_within_a_second_keep_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorBoard sorts number 10 of a second before number 9."""
    numbers = itertools.count(9)
    monkeypatch.setattr(event_file_writer, "_global_uid", SimpleNamespace(get=numbers.__next__))
    for purge_step, logged in ((None, (1, 2, 3)), (3, (3, 4)), (5, (5,))):
        logger = RunLogger(tmp_path, purge_step)
        for step in logged:
            logger.log_metrics({"val/loss": 0.1}, step)
        logger.finalize("success")
    assert len(names := sorted(file.name for file in tmp_path.iterdir())) == 3
    assert names[0].endswith(".9")
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [event.step for event in events.Scalars("val/loss")] == [1, 2, 3, 4, 5]


def test_charts_and_the_graph_wait_for_the_first_validation(experiment: Any, cli: Cli) -> None:
    cli(
        "fit",
        "--config",
        experiment(),
        "--trainer.check_val_every_n_epoch",
        "2",
        "--trainer.max_epochs",
        "3",
    )
    events = EventAccumulator(str(RUN))
    events.Reload()
    assert "custom_scalars__config__" in events.Tags()["tensors"]
    assert "aten::linear" in graph_of(RUN)


UNTRACED = """
import torch
class Net(torch.nn.Linear):
    def __init__(self):
        super().__init__(6, 3)
    def forward(self, x):
        if torch.jit.is_tracing():
            raise ValueError("tracing is not supported")
        return super().forward(x)
"""


def test_a_net_that_cannot_be_traced_is_trained_without_a_graph(
    work: Path, experiment: Any, cli: Cli
) -> None:
    Path("own.py").write_text(UNTRACED)
    with pytest.warns(
        UserWarning, match="no graph: Net cannot be traced: tracing is not supported"
    ):
        cli("fit", "--config", experiment(), "--model.net", "own.Net")
    assert graph_of(RUN) == ""
    assert Run(RUN.resolve()).manifest["status"] == "finished"


@pytest.mark.long
def test_tensorboard_in_chromium(runs: None, board: Callable[[], str], browser: Any) -> None:
    """No error in the console, no request to another host, and one chart draws both curves."""
    address = board()
    ask(f"{address}/data/plugin/custom_scalars/layout", lambda c: c)
    ask(f"{address}/data/plugin/scalars/tags", lambda c: "val_best/f1" in c.get("two", {}))
    tab, said, requests = watched(browser)
    tab.goto(f"{address}/#custom_scalars")
    chart = tab.locator("tf-custom-scalar-multi-line-chart-card", has_text="f1")
    chart.get_by_text("Matches (4)").wait_for(timeout=60_000)  # two curves of two runs
    lines = chart.locator("path.line")
    lines.nth(3).wait_for(state="attached", timeout=60_000)
    assert all(lines.nth(i).get_attribute("d") for i in range(4))
    for page, text in (
        ("graphs", "Main Graph"),
        ("hparams", "model.optimizer.lr"),
        ("text", "config"),
        ("timeseries", "train_best"),
    ):
        tab.goto(f"{address}/#{page}")
        tab.get_by_text(text).locator("visible=true").first.wait_for(timeout=60_000)
    assert said == []
    assert [url for url in requests if not url.startswith((address, "data:", "blob:"))] == []


@pytest.mark.filterwarnings("ignore:Found 1 module.*eval mode")
def test_logging_the_graph_leaves_a_frozen_layer_frozen(
    work: Path, experiment: Any, cli: Cli
) -> None:
    """A layer that is in evaluation mode from the start stays so, with and without TensorBoard."""
    Path("frozen.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Sequential):\n"
        "    def __init__(self):\n"
        "        super().__init__(nn.BatchNorm1d(6), nn.Linear(6, 1))\n"
        "        self[0].eval()\n"
    )
    flags = [
        "fit",
        "--config",
        experiment("binary"),
        "--model.net",
        "frozen.Net",
        "--trainer.max_epochs",
        "3",
    ]
    cli(*flags, "--name", "watched")
    cli(*flags, "--name", "alone", "--trainer.logger", "false")
    assert "aten::batch_norm" in graph_of(RUN.with_name("watched"))
    one, other = (
        read_checkpoint(RUN.with_name(name) / "checkpoints" / "last.ckpt")
        for name in ("watched", "alone")
    )
    assert not one["state_dict"]["net.0.running_mean"].any()  # never updated
    assert all(
        torch.equal(one["state_dict"][name], value) for name, value in other["state_dict"].items()
    )
