"""Compare the speed of training with plain loops, plain Lightning and scikit-learn.

usage: python scripts/bench.py [--work tiny mid conv table test report growth start] [--rounds 5]
                               [--json FILE] [--accelerator gpu] [--contenders NAME …]
                               [--turns N]

tiny, mid, conv, table: all contenders train the same net on batches of the same size with Adam,
validate after each epoch with the same metrics, and must reach the same accuracy. table has the
rows, numbers and categories of adult; this project reads them from a CSV file, and the loops get
them as tensors. This project runs through ``main(args)`` with TensorBoard, checkpoints, progress
bar and early stopping. Further programs take part if they are installed (``bench_peers.py``);
--contenders selects some by the names that the table of results shows. Each contender has its own
process, and the processes take turns, so that other load on the machine affects all alike. A turn
is one epoch. The epochs of tiny take a fraction of a second, so its turn is four epochs. The first
one does not count, because a process is slow after it has waited. The ratio is the time of the
plain loop just before and just after, divided by the contender's own time: the median over all
turns except the first of each round. The time before the first step is shown separately, including
compilation, which Keras does in its first epoch. A round starts all processes anew. The CPU
seconds and page faults of an epoch depend less on other load. With --accelerator gpu all contenders
except scikit-learn train on a GPU; the plain loops keep all rows there.

test: a million rows through ``test``, from the first batch to the predictions file, compared
with plain loops that compute the same metrics.
report: ``test`` of a hundred thousand rows of ten classes, with intervals, figures and report,
in a process that has not drawn before, and the part of it beyond the forward passes.
growth: seconds per million rows and peak memory, from ten thousand to ten million rows, each in
its own process.
start: the time from the command to the first step on a small data set, compared with ``import
lightning.pytorch``.
"""

import argparse
import contextlib
import io
import json
import logging
import multiprocessing
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from itertools import pairwise
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as L
import numpy as np
import polars as pl
import torch
from bench_peers import PEERS, TABLE_PEERS
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from rich.console import Console
from rich.table import Table
from scipy.special import ndtr
from sklearn.metrics import accuracy_score, precision_recall_fscore_support
from sklearn.neural_network import MLPClassifier
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassAUROC,
    MulticlassAveragePrecision,
    MulticlassF1Score,
    MulticlassPrecision,
    MulticlassRecall,
)

PACKAGE = next(path.parent.name for path in Path(__file__).parent.parent.glob("src/*/__main__.py"))


# The categories of the table have as many values as those of adult.
CATEGORIES = (8, 16, 7, 14, 6, 5, 2, 41)


class Net(nn.Sequential):
    """Linear layers of these sizes with ReLU between them."""

    def __init__(self, sizes: list[int]) -> None:
        layers: list[nn.Module] = []
        for a, b in pairwise(sizes):
            layers += [nn.Linear(a, b), nn.ReLU()]
        super().__init__(*layers[:-1])


class Conv(nn.Sequential):
    """Two convolutions at full resolution: a step takes tens of milliseconds."""

    def __init__(self, sizes: list[int]) -> None:
        width, classes = sizes
        super().__init__(
            nn.Unflatten(1, (1, 28, 28)),
            nn.Conv2d(1, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(7),
            nn.Flatten(),
            nn.Linear(49 * width, classes),
        )


class TableNet(nn.Module):
    """Embeddings of categories beside normalized numbers, then linear layers with ReLU.

    Inputs are a batch of a table of this project, or the numbers and then the categories as floats.
    It is the CategoryEmbeddingModel of pytorch_tabular.
    """

    def __init__(self, sizes: list[int]) -> None:
        super().__init__()
        # Two numbers more than values, for missing and unknown ones.
        pairs = [(count + 2, (count + 1) // 2) for count in CATEGORIES]
        self.embeddings = nn.ModuleList(nn.Embedding(count, size) for count, size in pairs)
        self.numbers = sizes[0] - len(CATEGORIES)
        self.normalize = nn.BatchNorm1d(self.numbers)
        width = self.numbers + sum(size for _, size in pairs)
        self.layers = Net([width, *sizes[1:]])

    def forward(self, x: Tensor | dict[str, Tensor]) -> Tensor:
        if isinstance(x, Tensor):
            x = {"numeric": x[:, : self.numbers], "categorical": x[:, self.numbers :]}
        codes = x["categorical"].long()
        vectors = [embed(codes[:, i]) for i, embed in enumerate(self.embeddings)]
        outputs: Tensor = self.layers(torch.cat([self.normalize(x["numeric"]), *vectors], 1))
        return outputs


class Work(NamedTuple):
    """A net, a data set and the number of epochs."""

    net: type[nn.Module]
    sizes: list[int]
    rows: int
    features: int
    classes: int
    batch: int
    turns: int
    epochs_per_turn: int = 1
    categories: tuple[int, ...] = ()  # number of values of each categorical feature, the last ones
    accelerator: str = "cpu"

    @property
    def epochs(self) -> int:
        return self.turns * self.epochs_per_turn

    @property
    def device(self) -> torch.device:
        return torch.device("cpu" if self.accelerator == "cpu" else "cuda")


WORK = {
    "tiny": Work(Net, [10, 50, 3], 50_000, 10, 3, 64, 6, 4),
    "mid": Work(Net, [784, 512, 512, 10], 30_000, 784, 10, 256, 8),
    "conv": Work(Conv, [24, 10], 3_000, 784, 10, 128, 10),
    "table": Work(TableNet, [14, 128, 64, 32, 3], 32_000, 14, 3, 128, 6, 2, categories=CATEGORIES),
}


class Result(NamedTuple):
    """The speed of one evaluation."""

    start: float  # seconds before the first step
    rate: float  # rows per second from the first step to the end
    accuracy: float


class Race(NamedTuple):
    """The speed of one contender in one round."""

    start: float  # seconds before the first step
    turns: "list[Cost]"  # cost of an epoch, for each turn
    accuracy: float  # best validation accuracy of an epoch

    @property
    def seconds(self) -> list[float]:
        return [cost.seconds for cost in self.turns]


class Cost(NamedTuple):
    """What a process has used so far, or in a time."""

    seconds: float  # of the clock
    cpu: float  # seconds of the CPU, of all threads
    faults: float  # page faults

    @classmethod
    def now(cls) -> "Cost":
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return cls(time.perf_counter(), usage.ru_utime + usage.ru_stime, usage.ru_minflt)

    def since(self, begin: "Cost") -> "Cost":
        return Cost(*(b - a for a, b in zip(begin, self, strict=True)))

    def of_epoch(self, epochs: int) -> "Cost":
        return Cost(*(value / epochs for value in self))


class Turns:
    """The contender's end of a connection that decides when it may train.

    It sends the cost of the last turn and waits for the message that starts the next one.
    Meanwhile ``time.monotonic`` stands still. Otherwise, what a program does every ten seconds or
    once a minute would count several times as often as in a training without pauses.
    """

    def __init__(self, connection: Connection, length: int) -> None:
        self.connection, self.length = connection, length
        self.epoch = 0
        self.begin = Cost.now()
        self.waited, clock = 0.0, time.monotonic
        time.monotonic = lambda: clock() - self.waited

    def wait(self) -> None:
        """Wait for the next turn. Call it before each epoch."""
        position = self.epoch % self.length
        if position == 0:
            self.send_cost()
            begin = time.perf_counter()
            self.connection.recv()
            self.waited += time.perf_counter() - begin
        # In a turn of several epochs the first one does not count.
        if position < 2:
            self.begin = Cost.now()
        self.epoch += 1

    def send_cost(self) -> None:
        # A plain tuple, because this module has another name in the process of a contender.
        self.connection.send(tuple(Cost.now().since(self.begin)))


def arrays(work: Work, test: int = 0) -> dict[str, np.ndarray[Any, Any]]:
    """Return rows to train on, a fifth as many for validation, and ``test`` rows to test.

    A categorical feature has the numbers of intervals with equally many rows.
    """
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(work.features, work.classes))
    if work.net is Conv:  # Classes that a mean over 4 by 4 pixels can distinguish.
        weights = (
            rng.normal(size=(7, 7, work.classes))
            .repeat(4, 0)
            .repeat(4, 1)
            .reshape(work.features, work.classes)
        )
    data = {}
    for split, rows in {"train": work.rows, "val": work.rows // 5, "test": test}.items():
        if rows:
            data[f"x_{split}"] = x = rng.standard_normal(
                size=(rows, work.features), dtype=np.float32
            )
            data[f"y_{split}"] = (x @ weights).argmax(1)
            for i, count in enumerate(work.categories, -len(work.categories)):
                x[:, i] = np.minimum(count * ndtr(x[:, i]), count - 1).astype(int)
    return data


def write_data(work: Work, folder: Path) -> None:
    """Write the arrays, and those of a table also as CSV, with words as categories."""
    data = arrays(work)
    np.savez(folder / "data.npz", **data)
    if work.categories:
        parts = []
        for split in ("train", "val"):
            frame = pl.DataFrame(data[f"x_{split}"])
            words = [
                pl.format("value {}", pl.col(name).cast(pl.Int64)).alias(name)
                for name in frame.columns[-len(work.categories) :]
            ]
            target = pl.format("class {}", pl.lit(pl.Series(data[f"y_{split}"]))).alias("class")
            parts.append(frame.with_columns(*words, target, split=pl.lit(split)))
        pl.concat(parts).write_csv(folder / "table.csv")


def plain_loop(
    work: Work, folder: Path, turns: Turns, fused: bool | None = None, loader: bool = False
) -> float:
    """Train with the tutorial's loop, over slices of the tensors or over a DataLoader."""
    data = {name: values.to(work.device) for name, values in tensors(folder).items()}
    net = work.net(work.sizes).to(work.device)
    optimizer = torch.optim.Adam(net.parameters(), fused=fused)
    x, y = data["x_train"], data["y_train"]
    batches = DataLoader(TensorDataset(x, y), work.batch, shuffle=True) if loader else None
    accuracy = 0.0
    for _ in range(work.epochs):
        turns.wait()
        net.train()
        order = torch.randperm(len(x), device=work.device)
        slices = zip(x[order].split(work.batch), y[order].split(work.batch), strict=True)
        for a, b in batches or slices:
            loss = cross_entropy(net(a), b)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        net.eval()
        metrics = four_metrics(work.classes).to(work.device)
        with torch.no_grad():
            for a, b in zip(
                data["x_val"].split(work.batch), data["y_val"].split(work.batch), strict=True
            ):
                metrics.update(net(a), b)
        accuracy = max(accuracy, metrics.compute()["accuracy"].item())
    return accuracy


def tensors(folder: Path) -> dict[str, Tensor]:
    with np.load(folder / "data.npz") as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


def four_metrics(classes: int) -> MetricCollection:
    return MetricCollection(
        {
            "accuracy": MulticlassAccuracy(classes, average="micro"),
            "precision": MulticlassPrecision(classes),
            "recall": MulticlassRecall(classes),
            "f1": MulticlassF1Score(classes),
        }
    )


class Plain(L.LightningModule):
    """A module as Lightning's documentation shows it."""

    def __init__(self, work: Work) -> None:
        super().__init__()
        self.net = work.net(work.sizes)
        self.train_metrics = four_metrics(work.classes).clone(prefix="train/")
        self.val_metrics = four_metrics(work.classes).clone(prefix="val/")

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        outputs = self.net(x)
        loss = cross_entropy(outputs, y)
        self.train_metrics(outputs, y)
        self.log("train/loss", loss, on_step=True, on_epoch=True)
        self.log_dict(dict(self.train_metrics), on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        outputs = self.net(x)
        self.val_metrics(outputs, y)
        self.log("val/loss", cross_entropy(outputs, y))
        self.log_dict(dict(self.val_metrics), on_step=False, on_epoch=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters())


def scikit_learn(work: Work, folder: Path, turns: Turns) -> float:
    """Train MLPClassifier one epoch per call, with the same metrics after each."""
    data = tensors(folder)
    x, y, x_val, y_val = (data[name].numpy() for name in ("x_train", "y_train", "x_val", "y_val"))
    net, accuracy = MLPClassifier(work.sizes[1:-1], batch_size=work.batch, alpha=0.0), 0.0
    for _ in range(work.epochs):
        turns.wait()
        net.partial_fit(x, y, classes=range(work.classes))
        predicted = net.predict(x_val)
        accuracy = max(accuracy, float(accuracy_score(y_val, predicted)))
        precision_recall_fscore_support(y_val, predicted, average="macro")
    return accuracy


class Clock(L.Callback):
    """Callback that records when training or testing began and ended, and the best accuracy."""

    last: "Clock"
    turns: Turns | None = None

    def __init__(self) -> None:
        Clock.last = self
        self.begin = self.end = 0.0
        self.accuracy = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.begin = time.perf_counter()

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._update_accuracy(trainer)
        # The trial before training runs a copy of the callback, with fast_dev_run.
        if self.turns is not None and not getattr(trainer, "fast_dev_run", False):
            self.turns.wait()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.end = time.perf_counter()
        self._update_accuracy(trainer)

    def _update_accuracy(self, trainer: L.Trainer) -> None:
        self.accuracy = max(self.accuracy, float(trainer.callback_metrics.get("val/accuracy", 0.0)))

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.begin = time.perf_counter()

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.end = time.perf_counter()
        self.accuracy = trainer.callback_metrics["test/accuracy"].item()


def plain_lightning(work: Work, folder: Path, turns: Turns) -> float:
    data = tensors(folder)
    Clock.turns = turns
    train = DataLoader(TensorDataset(data["x_train"], data["y_train"]), work.batch, shuffle=True)
    val = DataLoader(TensorDataset(data["x_val"], data["y_val"]), work.batch)
    callbacks = [
        clock := Clock(),
        ModelCheckpoint(monitor="val/f1", mode="max", save_last=True),
        EarlyStopping("val/f1", mode="max", patience=1000),
    ]
    trainer = L.Trainer(
        max_epochs=work.epochs,
        accelerator=work.accelerator,
        devices=1,
        default_root_dir=folder / "plain",
        callbacks=callbacks,
    )
    trainer.fit(Plain(work), train, val)
    return clock.accuracy


def command(work: Work, folder: Path) -> list[str]:
    """Return the command line of ``fit`` for this project."""
    data: dict[str, Any] = {
        "data": "ArrayDataModule",
        "data.path": folder / "data.npz",
        "data.test_fraction": 0,
    }
    if work.categories:
        data = {
            "data": "Tabular",
            "data.path": folder / "table.csv",
            "data.target": "class",
            "data.split": "split",
            "data.cache_dir": folder / "cache",
        }
    flags = data | {
        "data.batch_size": work.batch,
        "model": "MulticlassClassifier",
        "model.net": f"{work.net.__module__}.{work.net.__name__}",
        "model.net.sizes": work.sizes,
        "trainer.max_epochs": work.epochs,
        "trainer.accelerator": work.accelerator,
        "trainer.devices": 1,
        "trainer.default_root_dir": folder,
        "trainer.callbacks": f"{Clock.__module__}.Clock",
        "early_stopping.patience": 1000,
    }
    pairs = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    return ["fit", *pairs, "--allow", "__main__", "--allow", "__mp_main__"]


def call(args: list[str]) -> None:
    code = import_module(f"{PACKAGE}.engine.cli").main(args)
    assert code == 0, code


def ours(work: Work, folder: Path, turns: Turns, *extra_args: str) -> float:
    Clock.turns = turns
    call([*command(work, folder), *extra_args])
    return Clock.last.accuracy


def compiled(work: Work, folder: Path, turns: Turns) -> float:
    return ours(work, folder, turns, "--model.compile", "step")


def plain_loop_fused(work: Work, folder: Path, turns: Turns) -> float:
    return plain_loop(work, folder, turns, fused=True)


def plain_loop_with_loader(work: Work, folder: Path, turns: Turns) -> float:
    return plain_loop(work, folder, turns, loader=True)


Contender = Callable[[Work, Path, Turns], float]

CONTENDERS: dict[str, Contender] = {
    "plain loop, slices": plain_loop,
    "plain loop, slices, fused Adam": plain_loop_fused,
    "plain loop, DataLoader": plain_loop_with_loader,
    "plain Lightning": plain_lightning,
    PACKAGE: ours,
    "scikit-learn": scikit_learn,
    f"{PACKAGE}, compiled step": compiled,
}


def run_contender(train: Contender, work: Work, folder: Path, connection: Connection) -> None:
    """Train in turns; the target of a contender's process."""
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.manual_seed(0)
    with silence():
        turns = Turns(connection, work.epochs_per_turn)
        accuracy = train(work, folder, turns)
    turns.send_cost()
    connection.recv()
    connection.send(accuracy)


def contenders_of(work: Work, selected: Sequence[str]) -> dict[str, Contender]:
    """Return the programs that can train the net: all, or the plain loop and those selected."""
    if work.net is Net:
        contenders = CONTENDERS | PEERS
    else:
        peers = TABLE_PEERS if work.categories else {}
        contenders = dict(list(CONTENDERS.items())[:5]) | peers
    if work.accelerator != "cpu":
        contenders.pop("scikit-learn", None)
    names = [next(iter(contenders)), *selected] if selected else contenders
    return {name: train for name, train in contenders.items() if name in names}


def measure_training(
    work: Work, rounds: int, selected: Sequence[str] = ()
) -> dict[str, list[Race]]:
    """Return the races of all rounds for each contender."""
    contenders = contenders_of(work, selected)
    races: dict[str, list[Race]] = {name: [] for name in contenders}
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            write_data(work, Path(folder))
            for name, race in run_round(work, Path(folder), contenders).items():
                races[name].append(race)
    return races


def run_round(work: Work, folder: Path, contenders: dict[str, Contender]) -> dict[str, Race]:
    """Start all contenders one after the other, then let them train in turns."""
    spawn = multiprocessing.get_context("spawn")
    connections, workers = {}, []
    starts: dict[str, float] = {}
    costs: dict[str, list[Cost]] = {name: [] for name in contenders}
    accuracies = {}
    try:
        for name, train in contenders.items():
            connections[name], other_end = spawn.Pipe()
            arguments = (train, work, folder, other_end)
            workers.append(spawn.Process(target=run_contender, args=arguments))
            workers[-1].start()
            other_end.close()
            starts[name] = Cost(*connections[name].recv()).seconds
        for _ in range(work.turns):
            for name, connection in connections.items():
                connection.send(None)
                cost = Cost(*connection.recv())
                costs[name].append(cost.of_epoch(max(1, work.epochs_per_turn - 1)))
        for name, connection in connections.items():
            connection.send(None)
            accuracies[name] = connection.recv()
    except BaseException:  # The other processes would wait for their turn for ever.
        for worker in workers:
            worker.kill()
        raise
    for worker in workers:
        worker.join()
    return {name: Race(starts[name], costs[name], accuracies[name]) for name in contenders}


def alternate(contenders: dict[str, Callable[[], Result]], rounds: int) -> dict[str, list[Result]]:
    """Run each contender once per round."""
    results: dict[str, list[Result]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, run in contenders.items():
            torch.manual_seed(0)
            with silence():
                results[name].append(run())
    return results


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Show what is printed only after an error."""
    output = io.StringIO()
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            yield
    except Exception:
        print(output.getvalue(), file=sys.stderr)
        raise


def measure_test(rounds: int) -> dict[str, list[Result]]:
    """Evaluate a million rows of tiny with the metrics and the loss that ``test`` computes."""
    work = WORK["tiny"]._replace(turns=1, epochs_per_turn=1)
    with tempfile.TemporaryDirectory() as name, silence():
        folder = Path(name)
        data = arrays(work, test=1_000_000)
        np.savez(folder / "data.npz", **data)
        call(command(work, folder))
        run = next((folder / "lightning_logs").iterdir())
        net = trained_net(run, work)
        x, y = torch.from_numpy(data["x_test"]), torch.from_numpy(data["y_test"])
        contenders = {
            "plain loop, batches of 64": lambda: plain_test(net, x, y, 64, work.classes),
            "plain loop, batches of 8192": lambda: plain_test(net, x, y, 8192, work.classes),
            PACKAGE: lambda: our_test(run, len(x)),
        }
        return alternate(contenders, rounds)


def trained_net(run: Path, work: Work) -> nn.Module:
    state = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    net = Net(work.sizes)
    net.load_state_dict(
        {key.removeprefix("net."): v for key, v in state.items() if key.startswith("net.")}
    )
    return net.eval()


def plain_test(net: nn.Module, x: Tensor, y: Tensor, batch_size: int, classes: int) -> Result:
    begin = time.perf_counter()
    metrics = MetricCollection(
        {
            **four_metrics(classes),
            "auroc": MulticlassAUROC(classes),
            "average_precision": MulticlassAveragePrecision(classes),
        }
    )
    mean_loss = MeanMetric()
    with torch.no_grad():
        for inputs, targets in zip(x.split(batch_size), y.split(batch_size), strict=True):
            outputs = net(inputs)
            mean_loss.update(cross_entropy(outputs, targets), len(targets))
            metrics.update(outputs.softmax(1), targets)
    accuracy = metrics.compute()["accuracy"].item()
    mean_loss.compute()
    return Result(0.0, len(x) / (time.perf_counter() - begin), accuracy)


def our_test(run: Path, rows: int) -> Result:
    begin = time.perf_counter()
    call(["test", "--run", str(run)])
    clock = Clock.last
    return Result(clock.begin - begin, rows / (clock.end - clock.begin), clock.accuracy)


def seconds_of_test(run: Path) -> float:
    begin = time.perf_counter()
    with silence():
        call(["test", "--run", str(run), "--allow", "__main__", "--allow", "__mp_main__"])
    return time.perf_counter() - begin


def seconds_of_forward_passes(folder: Path, work: Work) -> float:
    net, x = work.net(work.sizes).eval(), tensors(folder)["x_test"]
    begin = time.perf_counter()
    with torch.no_grad():
        for rows in x.split(8192):
            net(rows)
    return time.perf_counter() - begin


def measure_report(console: Console, rounds: int) -> dict[str, Any]:
    """Measure ``test`` with its report, and its time without the forward passes."""
    work = WORK["tiny"]._replace(sizes=[10, 50, 10], classes=10, turns=1, epochs_per_turn=1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        np.savez(folder / "data.npz", **arrays(work, test=100_000))
        with silence():
            call(command(work, folder))
        run = next((folder / "lightning_logs").iterdir())
        with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
            total = [pool.apply(seconds_of_test, (run,)) for _ in range(rounds)]
        forward = [seconds_of_forward_passes(folder, work) for _ in range(rounds)]
    beyond = statistics.median(total) - statistics.median(forward)
    table = Table("test of 100,000 rows, ten classes", "seconds", "range")
    for name, seconds in {"total": total, "forward passes": forward}.items():
        table.add_row(name, *median_and_range(seconds))
    table.add_row("beyond the forward passes", f"{beyond:.2f}", "")
    console.print(table)
    return {"took": total, "forward": forward, "beyond": beyond}


def median_and_range(seconds: list[float]) -> tuple[str, str]:
    return f"{statistics.median(seconds):.2f}", f"{min(seconds):.2f} to {max(seconds):.2f}"


def write_rows(rows: int, folder: Path) -> None:
    np.savez(folder / "data.npz", **arrays(WORK["tiny"]._replace(rows=rows)))


def train_rows(rows: int, folder: Path) -> tuple[float, float]:
    """Train tiny on ``rows`` rows; return seconds per million rows and the peak memory in MB."""
    warnings.filterwarnings("ignore")
    work = WORK["tiny"]._replace(rows=rows, turns=max(1, 1_000_000 // rows), epochs_per_turn=1)
    with silence():
        call(command(work, folder))
    seconds = Clock.last.end - Clock.last.begin
    return 1e6 * seconds / (work.rows * work.epochs), peak_memory()


def peak_memory() -> float:
    """Return the peak memory of this process in MB.

    ``ru_maxrss`` is inherited from the parent process, so Linux' own count is used if available.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        lines = status.read_text(encoding="utf-8").splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024 / 1e6
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def measure_growth(console: Console) -> dict[str, Any]:
    """Measure time and memory for ten thousand to ten million rows."""
    table = Table("rows", "data, MB", "seconds per million rows", "peak memory, MB")
    results = {}
    for rows in (10_000, 100_000, 1_000_000, 10_000_000):
        with (
            tempfile.TemporaryDirectory() as folder,
            multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool,
        ):
            # Another process writes the data, so that the memory for it does not count.
            pool.apply(write_rows, (rows, Path(folder)))
            seconds, memory = pool.apply(train_rows, (rows, Path(folder)))
        size = rows * 1.2 * (10 * 4 + 8) / 1e6
        table.add_row(f"{rows:,}", f"{size:,.0f}", f"{seconds:.2f}", f"{memory:,.0f}")
        results[str(rows)] = {"seconds": seconds, "memory": memory}
    console.print(table)
    return results


FIRST_STEP = """
import sys, time
from lightning.pytorch import Callback
class First(Callback):
    def on_train_epoch_start(self, trainer, pl_module):
        print("first step at", time.time(), file=sys.stderr)
"""


IMPORT_LIGHTNING = (
    "import lightning.pytorch, time, sys; print('first step at', time.time(), file=sys.stderr)"
)


def measure_start(console: Console, rounds: int) -> dict[str, Any]:
    """Measure the time from the command to the first training step."""
    work = WORK["tiny"]._replace(rows=200, turns=1, epochs_per_turn=1)
    data = (
        "--data ArrayDataModule --data.path data.npz --model MulticlassClassifier --model.net MLP"
    )
    trainer = "--trainer.max_epochs 1 --trainer.accelerator cpu --trainer.callbacks first.First"
    commands = {
        "import lightning.pytorch": ["-c", IMPORT_LIGHTNING],
        f"python -m {PACKAGE} fit, to the first step": [
            *("-m", PACKAGE, "fit"),
            *data.split(),
            *trainer.split(),
        ],
    }
    results: dict[str, list[float]] = {name: [] for name in commands}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        np.savez(folder / "data.npz", **arrays(work))
        (folder / "first.py").write_text(FIRST_STEP, encoding="utf-8")
        for _ in range(rounds + 1):
            for name, arguments in commands.items():
                results[name].append(seconds_to_first_step(arguments, folder))
    table = Table("process", "seconds", "range")
    for name, seconds in results.items():
        del seconds[0]  # The first round reads cold files and writes bytecode.
        table.add_row(name, *median_and_range(seconds))
    console.print(table)
    return results


def seconds_to_first_step(arguments: list[str], folder: Path) -> float:
    # Bytecode is written, as in a user's first start.
    env = os.environ | {"PYTHONDONTWRITEBYTECODE": ""}
    command = [sys.executable, *arguments]
    begin = time.time()
    done = subprocess.run(
        command, cwd=folder, env=env, capture_output=True, encoding="utf-8", check=True
    )
    return float(done.stderr.split("first step at ")[1].split()[0]) - begin


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    kinds = [*WORK, "test", "report", "growth", "start"]
    parser.add_argument("--work", nargs="+", choices=kinds, default=kinds)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument(
        "--accelerator", choices=["cpu", "gpu"], default="cpu", help="for tiny, mid and conv"
    )
    every = [*CONTENDERS, *PEERS, *TABLE_PEERS]
    parser.add_argument("--contenders", nargs="+", choices=every, default=[], metavar="NAME")
    parser.add_argument("--turns", type=int, help="of each process in a round, at least 3")
    arguments = parser.parse_args()
    if arguments.turns is not None and arguments.turns < 3:
        parser.error("--turns: expected at least 3, since the first one does not count")
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    results: dict[str, Any] = {"machine": machine(arguments.accelerator)}
    results["rounds"] = arguments.rounds
    console = Console(width=120)
    console.print(", ".join(f"{name} {value}" for name, value in results["machine"].items()))
    for kind in arguments.work:
        results[kind] = measure(kind, console, arguments)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2), encoding="utf-8")


def machine(accelerator: str) -> dict[str, Any]:
    """Return the hardware and the versions that the speed depends on."""
    values: dict[str, Any] = {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "lightning": L.__version__,
    }
    if accelerator == "gpu":
        values["gpu"] = torch.cuda.get_device_name()
    return values


def measure(kind: str, console: Console, arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure one kind of work, print a table, and return the numbers."""
    rounds = arguments.rounds
    if kind in WORK:
        work = WORK[kind]
        turns = arguments.turns or work.turns
        work = work._replace(accelerator=arguments.accelerator, turns=turns)
        races = measure_training(work, rounds, arguments.contenders)
        return summarize_training(console, f"{kind}: {work}", work.rows, races)
    if kind == "test":
        return summarize_test(console, "test: a million rows of tiny", measure_test(rounds))
    if kind == "growth":
        return measure_growth(console)
    return {"report": measure_report, "start": measure_start}[kind](console, rounds)


def summarize_training(
    console: Console, title: str, rows: int, races: dict[str, list[Race]]
) -> dict[str, Any]:
    loop = next(iter(races.values()))
    columns = ["rows per second", "ratio", "quartiles of the turns", "rounds"]
    columns += ["CPU seconds of an epoch", "page faults"]
    table = Table("contender", *columns, "seconds before the first step", "accuracy")
    summary = {}
    for name, rounds in races.items():
        ratios = [
            turn_ratios(race.seconds, other.seconds)
            for race, other in zip(rounds, loop, strict=True)
        ]
        low, ratio, high = statistics.quantiles([r for turns in ratios for r in turns], n=4)
        rate = rows / statistics.median(second for race in rounds for second in race.seconds[1:])
        start = statistics.median(race.start for race in rounds)
        accuracy = statistics.median(race.accuracy for race in rounds)
        by_round = [statistics.median(turns) for turns in ratios]
        costs = [cost for race in rounds for cost in race.turns[1:]]
        cpu = statistics.median(cost.cpu for cost in costs)
        faults = statistics.median(cost.faults for cost in costs)
        table.add_row(
            name,
            f"{rate:,.0f}",
            f"{ratio:.2f}",
            f"{low:.2f} to {high:.2f}",
            " ".join(f"{value:.2f}" for value in by_round),
            f"{cpu:.3f}",
            f"{faults:,.0f}",
            f"{start:.1f}",
            f"{accuracy:.3f}",
        )
        summary[name] = {"rate": rate, "ratio": ratio, "rounds": by_round}
        summary[name] |= {"cpu": cpu, "faults": faults, "start": start, "accuracy": accuracy}
    console.print(title)
    console.print(table)
    check_accuracy(summary)
    return summary


def turn_ratios(seconds: list[float], loop: list[float]) -> list[float]:
    """Return the ratio of the plain loop's time to the contender's, for each turn but the first.

    The plain loop is the first in each turn, so the loop of the next turn comes just after.
    """
    if seconds is loop:
        return [1.0] * (len(loop) - 1)
    following = [*loop[1:], loop[-1]]
    turns = list(zip(loop, following, seconds, strict=True))
    return [(before + after) / 2 / contender for before, after, contender in turns[1:]]


def check_accuracy(summary: dict[str, Any]) -> None:
    accuracies = [entry["accuracy"] for entry in summary.values()]
    assert max(accuracies) - min(accuracies) < 0.05, "the accuracies differ: not the same training"


def summarize_test(
    console: Console, title: str, results: dict[str, list[Result]]
) -> dict[str, Any]:
    loop = next(iter(results.values()))
    columns = ["rows per second", "range", "ratio", "seconds before the first batch", "accuracy"]
    table = Table("contender", *columns)
    summary = {}
    for name, runs in results.items():
        rates = [run.rate for run in runs]
        ratio = statistics.median(
            run.rate / first.rate for run, first in zip(runs, loop, strict=True)
        )
        start = statistics.median(run.start for run in runs)
        accuracy = statistics.median(run.accuracy for run in runs)
        table.add_row(
            name,
            f"{statistics.median(rates):,.0f}",
            f"{min(rates):,.0f} to {max(rates):,.0f}",
            f"{ratio:.2f}",
            f"{start:.1f}",
            f"{accuracy:.3f}",
        )
        summary[name] = {"rates": rates, "ratio": ratio, "start": start, "accuracy": accuracy}
    console.print(title)
    console.print(table)
    check_accuracy(summary)
    return summary


if __name__ == "__main__":
    main()
