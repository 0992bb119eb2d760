"""How fast training is, beside loops written by hand, plain Lightning and scikit-learn.

usage: python scripts/bench.py [--work tiny mid conv test growth start] [--rounds 5] [--json FILE]

tiny, mid, conv: everyone trains the same net on the same batches with Adam, validates after each epoch with the same
metrics, and must reach the same accuracy. This project runs through ``main(args)`` with everything on: TensorBoard,
checkpoints, progress, early stopping. Rounds are interleaved; rows a second are medians over rounds, counted from the first
step to the end of the last epoch, and ratios are medians of each round's ratio to the loop by hand. What comes before the
first step, compiling included, is shown apart.

test: a million rows through ``test``, from its first batch to the predictions in their file, beside loops by hand with the
same metrics. growth: seconds a million rows, and peak memory, from ten thousand to ten million rows, each in a process of
its own. start: from the command to the first step, data of a few rows, beside ``import lightning.pytorch`` alone.
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
from collections.abc import Callable, Iterator
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as L
import numpy as np
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from rich.console import Console
from rich.table import Table
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


class Net(nn.Sequential):
    """Linear layers of the given sizes."""

    def __init__(self, sizes: list[int]) -> None:
        layers: list[nn.Module] = []
        for a, b in pairwise(sizes):
            layers += [nn.Linear(a, b), nn.ReLU()]
        super().__init__(*layers[:-1])


class Conv(nn.Sequential):
    """Two convolutions at full size: a step takes tens of milliseconds."""

    def __init__(self, sizes: list[int]) -> None:
        width, classes = sizes
        super().__init__(nn.Unflatten(1, (1, 28, 28)), nn.Conv2d(1, width, 3, padding=1), nn.ReLU(),
                         nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(7), nn.Flatten(),
                         nn.Linear(49 * width, classes))  # fmt: skip


class Work(NamedTuple):
    net: type[nn.Module]
    sizes: list[int]
    rows: int
    features: int
    classes: int
    batch: int
    epochs: int


WORK = {
    "tiny": Work(Net, [10, 50, 3], 50_000, 10, 3, 64, 6),
    "mid": Work(Net, [784, 512, 512, 10], 30_000, 784, 10, 256, 5),
    "conv": Work(Conv, [24, 10], 6_000, 784, 10, 128, 4),
}


class Result(NamedTuple):
    start: float  # seconds before the first step
    rate: float  # rows a second from there to the end
    accuracy: float  # on the validation rows, after the last epoch


def arrays(work: Work, test: int = 0) -> dict[str, np.ndarray[Any, Any]]:
    """Rows to train on, a fifth as many to validate with, and some to test."""
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(work.features, work.classes))
    if work.net is Conv:  # what a mean over 4 by 4 pixels can tell
        weights = rng.normal(size=(7, 7, work.classes)).repeat(4, 0).repeat(4, 1).reshape(work.features, work.classes)
    found = {}
    for part, rows in {"train": work.rows, "val": work.rows // 5, "test": test}.items():
        if rows:
            found[f"x_{part}"] = x = rng.standard_normal(size=(rows, work.features), dtype=np.float32)
            found[f"y_{part}"] = (x @ weights).argmax(1)
    return found


def by_hand(work: Work, data: dict[str, Tensor], fused: bool | None = None, loader: bool = False) -> Result:
    """The tutorial's loop, over slices of the tensors or over a DataLoader."""
    start = time.perf_counter()
    net = work.net(work.sizes)
    optimizer = torch.optim.Adam(net.parameters(), fused=fused)
    x, y = data["x_train"], data["y_train"]
    batches = DataLoader(TensorDataset(x, y), work.batch, shuffle=True) if loader else None
    begin, share = time.perf_counter(), 0.0
    for _ in range(work.epochs):
        net.train()
        order = torch.randperm(len(x))
        slices = zip(x[order].split(work.batch), y[order].split(work.batch), strict=True)
        for a, b in batches or slices:
            loss = cross_entropy(net(a), b)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        net.eval()
        metrics = four_metrics(work.classes)
        with torch.no_grad():
            for a, b in zip(data["x_val"].split(work.batch), data["y_val"].split(work.batch), strict=True):
                metrics.update(net(a), b)
        share = metrics.compute()["accuracy"].item()
    return Result(begin - start, work.rows * work.epochs / (time.perf_counter() - begin), share)


def four_metrics(classes: int) -> MetricCollection:
    return MetricCollection({
        "accuracy": MulticlassAccuracy(classes, average="micro"),
        "precision": MulticlassPrecision(classes),
        "recall": MulticlassRecall(classes),
        "f1": MulticlassF1Score(classes),
    })  # fmt: skip


class Plain(L.LightningModule):
    """What Lightning's documentation shows."""

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


def scikit_learn(work: Work, data: dict[str, Tensor]) -> Result:
    """MLPClassifier, an epoch a call, with the same metrics after each."""
    start = time.perf_counter()
    x, y, x_val, y_val = (data[name].numpy() for name in ("x_train", "y_train", "x_val", "y_val"))
    net = MLPClassifier(work.sizes[1:-1], batch_size=work.batch, alpha=0.0)
    begin, share = time.perf_counter(), 0.0
    for _ in range(work.epochs):
        net.partial_fit(x, y, classes=range(work.classes))
        predicted = net.predict(x_val)
        share = float(accuracy_score(y_val, predicted))
        precision_recall_fscore_support(y_val, predicted, average="macro")
    return Result(begin - start, work.rows * work.epochs / (time.perf_counter() - begin), share)


class Clock(L.Callback):
    """When training began and ended, and how well it did."""

    last: "Clock"

    def __init__(self) -> None:
        Clock.last = self
        self.begin = self.end = 0.0
        self.accuracy = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.begin = time.perf_counter()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.end = time.perf_counter()
        self.accuracy = trainer.callback_metrics["val/accuracy"].item()

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.begin = time.perf_counter()

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.end = time.perf_counter()
        self.accuracy = trainer.callback_metrics["test/accuracy"].item()

    def result(self, start: float, work: Work) -> Result:
        return Result(self.begin - start, work.rows * work.epochs / (self.end - self.begin), self.accuracy)


def plain_lightning(work: Work, data: dict[str, Tensor], folder: Path) -> Result:
    start = time.perf_counter()
    train = DataLoader(TensorDataset(data["x_train"], data["y_train"]), work.batch, shuffle=True)
    val = DataLoader(TensorDataset(data["x_val"], data["y_val"]), work.batch)
    callbacks = [clock := Clock(), ModelCheckpoint(monitor="val/f1", mode="max", save_last=True),
                 EarlyStopping("val/f1", mode="max", patience=1000)]  # fmt: skip
    trainer = L.Trainer(max_epochs=work.epochs, accelerator="cpu", default_root_dir=folder, callbacks=callbacks)
    trainer.fit(Plain(work), train, val)
    return clock.result(start, work)


def command(work: Work, folder: Path) -> list[str]:
    return ["fit", "--data", "Arrays", "--data.path", str(folder / "data.npz"), "--data.test_fraction", "0",
            "--data.batch_size", str(work.batch), "--model", "MulticlassClassifier",
            "--model.net", f"__main__.{work.net.__name__}", "--model.net.sizes", str(work.sizes),
            "--trainer.max_epochs", str(work.epochs), "--trainer.accelerator", "cpu",
            "--trainer.default_root_dir", str(folder), "--trainer.callbacks", "__main__.Clock",
            "--early_stopping.patience", "1000", "--allow", "__main__", "--allow", "__mp_main__"]  # fmt: skip


def call(args: list[str]) -> None:
    code = import_module(f"{PACKAGE}.cli").main(args)
    assert code == 0, code


def ours(work: Work, folder: Path, *more: str) -> Result:
    start = time.perf_counter()
    call([*command(work, folder), *more])
    return Clock.last.result(start, work)


def contenders(work: Work, folder: Path) -> dict[str, Callable[[], Result]]:
    data = {name: torch.from_numpy(values) for name, values in arrays(work).items()}
    np.savez(folder / "data.npz", **arrays(work))
    more: dict[str, Callable[[], Result]] = {}
    if work.net is Net:
        more = {"scikit-learn": lambda: scikit_learn(work, data),
                f"{PACKAGE}, compiled step": lambda: ours(work, folder, "--model.compile", "step")}  # fmt: skip
    return {
        "by hand, slices": lambda: by_hand(work, data),
        "by hand, slices, fused Adam": lambda: by_hand(work, data, fused=True),
        "by hand, DataLoader": lambda: by_hand(work, data, loader=True),
        "plain Lightning": lambda: plain_lightning(work, data, folder),
        PACKAGE: lambda: ours(work, folder),
        **more,
    }


def training(name: str, rounds: int) -> dict[str, list[Result]]:
    work = WORK[name]
    with tempfile.TemporaryDirectory() as folder:
        return interleaved(contenders(work, Path(folder)), rounds)


def interleaved(contenders: dict[str, Callable[[], Result]], rounds: int) -> dict[str, list[Result]]:
    results: dict[str, list[Result]] = {who: [] for who in contenders}
    for _ in range(rounds):
        for who, run in contenders.items():
            torch.manual_seed(0)
            with silence():
                results[who].append(run())
    return results


@contextlib.contextmanager
def silence() -> Iterator[None]:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def testing(rounds: int) -> dict[str, list[Result]]:
    """A million rows of tiny, by the metrics and the loss that ``test`` computes."""
    work = WORK["tiny"]._replace(epochs=1)
    with tempfile.TemporaryDirectory() as name, silence():
        folder = Path(name)
        data = arrays(work, test=1_000_000)
        np.savez(folder / "data.npz", **data)
        call(command(work, folder))
        run = next((folder / "lightning_logs").iterdir())
        state = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
        net = Net(work.sizes)
        net.load_state_dict({key.removeprefix("net."): v for key, v in state.items() if key.startswith("net.")})
        x, y = torch.from_numpy(data["x_test"]), torch.from_numpy(data["y_test"])

        def tested_by_hand(batch: int) -> Result:
            begin = time.perf_counter()
            counted = MetricCollection({**four_metrics(work.classes), "auroc": MulticlassAUROC(work.classes),
                                        "average_precision": MulticlassAveragePrecision(work.classes)})  # fmt: skip
            mean = MeanMetric()
            net.eval()
            with torch.no_grad():
                for a, b in zip(x.split(batch), y.split(batch), strict=True):
                    outputs = net(a)
                    mean.update(cross_entropy(outputs, b), len(b))
                    counted.update(outputs.softmax(1), b)
            share = counted.compute()["accuracy"].item()
            mean.compute()
            return Result(0.0, len(x) / (time.perf_counter() - begin), share)

        def tested() -> Result:
            start = time.perf_counter()
            call(["test", "--run", str(run)])
            clock = Clock.last
            return Result(clock.begin - start, len(x) / (clock.end - clock.begin), clock.accuracy)

        return interleaved({"by hand, batches of 64": lambda: tested_by_hand(64),
                            "by hand, batches of 8192": lambda: tested_by_hand(8192), PACKAGE: tested}, rounds)  # fmt: skip


def written(rows: int, folder: Path) -> None:
    np.savez(folder / "data.npz", **arrays(WORK["tiny"]._replace(rows=rows)))


def grown(rows: int, folder: Path) -> tuple[float, float]:
    """Seconds a million rows of tiny, in training with all that belongs to it, and the peak of memory in MB."""
    warnings.filterwarnings("ignore")
    with silence():
        result = ours(WORK["tiny"]._replace(rows=rows, epochs=max(1, 1_000_000 // rows)), folder)
    return 1e6 / result.rate, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


def growth(console: Console) -> dict[str, Any]:
    table = Table("rows", "data, MB", "seconds a million rows", "peak memory, MB")
    found = {}
    for rows in (10_000, 100_000, 1_000_000, 10_000_000):
        with (
            tempfile.TemporaryDirectory() as folder,
            multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool,
        ):
            pool.apply(written, (rows, Path(folder)))  # in a process apart, whose memory does not count
            seconds, memory = pool.apply(grown, (rows, Path(folder)))
        size = rows * 1.2 * (10 * 4 + 8) / 1e6
        table.add_row(f"{rows:,}", f"{size:,.0f}", f"{seconds:.2f}", f"{memory:,.0f}")
        found[str(rows)] = {"seconds": seconds, "memory": memory}
    console.print(table)
    return found


FIRST_STEP = """
import sys, time
from lightning.pytorch import Callback
class First(Callback):
    def on_train_epoch_start(self, trainer, pl_module):
        print("first step at", time.time(), file=sys.stderr)
"""


def start(console: Console, rounds: int) -> dict[str, Any]:
    work = WORK["tiny"]._replace(rows=200, epochs=1)
    took: dict[str, list[float]] = {"import lightning.pytorch": [], f"python -m {PACKAGE} fit, to the first step": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        np.savez(folder / "data.npz", **arrays(work))
        (folder / "first.py").write_text(FIRST_STEP)
        flags = ["fit", "--data", "Arrays", "--data.path", "data.npz", "--model", "MulticlassClassifier", "--model.net",
                 "MLP", "--trainer.max_epochs", "1", "--trainer.accelerator", "cpu", "--trainer.callbacks",
                 "first.First"]  # fmt: skip
        commands = [["-c", "import lightning.pytorch, time, sys; print('first step at', time.time(), file=sys.stderr)"],
                    ["-m", PACKAGE, *flags]]  # fmt: skip
        for _ in range(rounds + 1):
            for taken, arguments in zip(took.values(), commands, strict=True):
                begin = time.time()
                done = subprocess.run([sys.executable, *arguments], cwd=folder, capture_output=True, text=True, check=True)
                taken.append(float(done.stderr.split("first step at ")[1].split()[0]) - begin)
    table = Table("process", "seconds", "least to most")
    for what, seconds in took.items():
        del seconds[0]  # of cold files
        table.add_row(what, f"{statistics.median(seconds):.2f}", f"{min(seconds):.2f} to {max(seconds):.2f}")
    console.print(table)
    return took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = [*WORK, "test", "growth", "start"]
    parser.add_argument("--work", nargs="+", choices=kinds, default=kinds)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    machine = {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count(),
               "threads": torch.get_num_threads(), "python": platform.python_version(), "torch": torch.__version__,
               "lightning": L.__version__}  # fmt: skip
    out: dict[str, Any] = {"machine": machine, "rounds": given.rounds}
    console = Console()
    console.print(", ".join(f"{name} {value}" for name, value in machine.items()))
    for name in given.work:
        if name in WORK:
            out[name] = report(console, f"{name}: {WORK[name]}", training(name, given.rounds))
        elif name == "test":
            out[name] = report(console, "test: a million rows of tiny", testing(given.rounds))
        else:
            out[name] = growth(console) if name == "growth" else start(console, given.rounds)
    if given.json:
        given.json.write_text(json.dumps(out, indent=2))


def report(console: Console, title: str, results: dict[str, list[Result]]) -> dict[str, Any]:
    hand = next(iter(results.values()))
    table = Table("who", "rows a second", "least to most", "ratio", "before the first step, s", "accuracy")
    summary = {}
    for who, runs in results.items():
        rates = [run.rate for run in runs]
        ratio = statistics.median(run.rate / first.rate for run, first in zip(runs, hand, strict=True))
        start = statistics.median(run.start for run in runs)
        accuracy = statistics.median(run.accuracy for run in runs)
        table.add_row(who, f"{statistics.median(rates):,.0f}", f"{min(rates):,.0f} to {max(rates):,.0f}", f"{ratio:.2f}",
                      f"{start:.1f}", f"{accuracy:.3f}")  # fmt: skip
        summary[who] = {"rates": rates, "ratio": ratio, "start": start, "accuracy": accuracy}
    console.print(title)
    console.print(table)
    reached = [entry["accuracy"] for entry in summary.values()]
    assert max(reached) - min(reached) < 0.05, "not the same training: the accuracies differ"
    return summary


if __name__ == "__main__":
    main()
