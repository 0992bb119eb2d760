"""How fast training is, beside loops written by hand, plain Lightning and scikit-learn.

usage: python scripts/bench.py [--work tiny mid conv test report growth start] [--rounds 5] [--json FILE]
                               [--accelerator gpu]

tiny, mid, conv: everyone trains the same net on the same batches with Adam, validates after each epoch with the same
metrics, and must reach the same accuracy. This project runs through ``main(args)`` with everything on: TensorBoard,
checkpoints, progress, early stopping. Each has a process of its own, and they take turns, so that whatever else the machine
does falls on all alike. A turn is an epoch; of tiny, whose epochs take a fraction of a second, it is four, of which the
first does not count: a process that has waited for seconds is slow for a while. A ratio is the median, over all turns but
the first of each round, of the time the loop by hand took just before and just after, by one's own. What comes before the
first step, compiling included, is shown apart. A round starts everyone anew. With --accelerator gpu everyone trains on a
GPU but scikit-learn, which is left out, and the loops by hand have all rows there.

test: a million rows through ``test``, from its first batch to the predictions in their file, beside loops by hand with the
same metrics. report: ``test`` of a hundred thousand rows of ten classes, with intervals, figures and page, in a process that
has not drawn before, and what it takes beyond the forward passes. growth: seconds a million rows, and peak memory, from ten
thousand to ten million rows, each in a process of its own. start: from the command to the first step, data of a few rows,
beside ``import lightning.pytorch`` alone.
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
from multiprocessing.connection import Connection
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


class Work(NamedTuple):
    net: type[nn.Module]
    sizes: list[int]
    rows: int
    features: int
    classes: int
    batch: int
    turns: int
    turn: int = 1  # epochs in a turn
    accelerator: str = "cpu"

    @property
    def epochs(self) -> int:
        return self.turns * self.turn

    @property
    def device(self) -> torch.device:
        return torch.device("cpu" if self.accelerator == "cpu" else "cuda")


WORK = {
    "tiny": Work(Net, [10, 50, 3], 50_000, 10, 3, 64, 6, 4),
    "mid": Work(Net, [784, 512, 512, 10], 30_000, 784, 10, 256, 8),
    "conv": Work(Conv, [24, 10], 3_000, 784, 10, 128, 10),
}


class Result(NamedTuple):
    start: float  # seconds before the first step
    rate: float  # rows a second from there to the end
    accuracy: float


class Race(NamedTuple):
    start: float  # seconds before the first step
    seconds: list[float]  # an epoch, for each turn
    accuracy: float  # of the best epoch, on the validation rows


class Turns:
    """One's side of taking turns: a turn is begun when the other side says so, and told when it is over."""

    def __init__(self, line: Connection, length: int) -> None:
        self.line, self.length = line, length
        self.epoch = 0
        self.begin = time.perf_counter()

    def wait(self) -> None:
        """Called before each epoch."""
        place = self.epoch % self.length
        if place == 0:
            self.line.send(time.perf_counter() - self.begin)
            self.line.recv()
        if place < 2:  # the second, if there is one: what counts begins after the first
            self.begin = time.perf_counter()
        self.epoch += 1


def arrays(work: Work, test: int = 0) -> dict[str, np.ndarray[Any, Any]]:
    """Rows to train on, a fifth as many to validate with, and some to test."""
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(work.features, work.classes))
    if work.net is Conv:  # what a mean over 4 by 4 pixels can tell
        weights = (
            rng.normal(size=(7, 7, work.classes))
            .repeat(4, 0)
            .repeat(4, 1)
            .reshape(work.features, work.classes)
        )
    found = {}
    for part, rows in {"train": work.rows, "val": work.rows // 5, "test": test}.items():
        if rows:
            found[f"x_{part}"] = x = rng.standard_normal(
                size=(rows, work.features), dtype=np.float32
            )
            found[f"y_{part}"] = (x @ weights).argmax(1)
    return found


def by_hand(
    work: Work, folder: Path, turns: Turns, fused: bool | None = None, loader: bool = False
) -> float:
    """The tutorial's loop, over slices of the tensors or over a DataLoader."""
    data = {name: values.to(work.device) for name, values in tensors(folder).items()}
    net = work.net(work.sizes).to(work.device)
    optimizer = torch.optim.Adam(net.parameters(), fused=fused)
    x, y = data["x_train"], data["y_train"]
    batches = DataLoader(TensorDataset(x, y), work.batch, shuffle=True) if loader else None
    share = 0.0
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
        share = max(share, metrics.compute()["accuracy"].item())
    return share


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


def scikit_learn(work: Work, folder: Path, turns: Turns) -> float:
    """MLPClassifier, an epoch a call, with the same metrics after each."""
    data = tensors(folder)
    x, y, x_val, y_val = (data[name].numpy() for name in ("x_train", "y_train", "x_val", "y_val"))
    net, share = MLPClassifier(work.sizes[1:-1], batch_size=work.batch, alpha=0.0), 0.0
    for _ in range(work.epochs):
        turns.wait()
        net.partial_fit(x, y, classes=range(work.classes))
        predicted = net.predict(x_val)
        share = max(share, float(accuracy_score(y_val, predicted)))
        precision_recall_fscore_support(y_val, predicted, average="macro")
    return share


class Clock(L.Callback):
    """When training or testing began and ended, and how well it did; in between, its epochs take turns."""

    last: "Clock"
    turns: Turns | None = None

    def __init__(self) -> None:
        Clock.last = self
        self.begin = self.end = 0.0
        self.accuracy = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.begin = time.perf_counter()

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._look(trainer)
        if self.turns is not None:
            self.turns.wait()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.end = time.perf_counter()
        self._look(trainer)

    def _look(self, trainer: L.Trainer) -> None:
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
    return [
        "fit",
        "--data",
        "Arrays",
        "--data.path",
        str(folder / "data.npz"),
        "--data.test_fraction",
        "0",
        "--data.batch_size",
        str(work.batch),
        "--model",
        "MulticlassClassifier",
        "--model.net",
        f"{work.net.__module__}.{work.net.__name__}",
        "--model.net.sizes",
        str(work.sizes),
        "--trainer.max_epochs",
        str(work.epochs),
        "--trainer.accelerator",
        work.accelerator,
        "--trainer.devices",
        "1",
        "--trainer.default_root_dir",
        str(folder),
        "--trainer.callbacks",
        f"{Clock.__module__}.Clock",
        "--early_stopping.patience",
        "1000",
        "--allow",
        "__main__",
        "--allow",
        "__mp_main__",
    ]


def call(args: list[str]) -> None:
    code = import_module(f"{PACKAGE}.cli").main(args)
    assert code == 0, code


def ours(work: Work, folder: Path, turns: Turns, *more: str) -> float:
    Clock.turns = turns
    call([*command(work, folder), *more])
    return Clock.last.accuracy


def compiled(work: Work, folder: Path, turns: Turns) -> float:
    return ours(work, folder, turns, "--model.compile", "step")


def fused(work: Work, folder: Path, turns: Turns) -> float:
    return by_hand(work, folder, turns, fused=True)


def over_a_loader(work: Work, folder: Path, turns: Turns) -> float:
    return by_hand(work, folder, turns, loader=True)


Contender = Callable[[Work, Path, Turns], float]

CONTENDERS: dict[str, Contender] = {
    "by hand, slices": by_hand,
    "by hand, slices, fused Adam": fused,
    "by hand, DataLoader": over_a_loader,
    "plain Lightning": plain_lightning,
    PACKAGE: ours,
    "scikit-learn": scikit_learn,
    f"{PACKAGE}, compiled step": compiled,
}


def in_turns(run: Contender, work: Work, folder: Path, line: Connection) -> None:
    """A contender's process."""
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.manual_seed(0)
    with silence():
        turns = Turns(line, work.turn)
        share = run(work, folder, turns)
    line.send(time.perf_counter() - turns.begin)
    line.recv()
    line.send(share)


def training(work: Work, rounds: int) -> dict[str, list[Race]]:
    """For each contender what every round gave."""
    every = CONTENDERS if work.net is Net else dict(list(CONTENDERS.items())[:5])
    if work.accelerator != "cpu":
        every = {who: run for who, run in every.items() if run is not scikit_learn}
    races: dict[str, list[Race]] = {who: [] for who in every}
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            np.savez(Path(folder) / "data.npz", **arrays(work))
            for who, race in race_of(work, Path(folder), every).items():
                races[who].append(race)
    return races


def race_of(work: Work, folder: Path, every: dict[str, Contender]) -> dict[str, Race]:
    """One round: all are started, one after the other, and then train in turn."""
    spawn, lines, processes = multiprocessing.get_context("spawn"), {}, []
    starts: dict[str, float] = {}
    for who, run in every.items():
        lines[who], line = spawn.Pipe()
        processes.append(spawn.Process(target=in_turns, args=(run, work, folder, line)))
        processes[-1].start()
        line.close()
        starts[who] = lines[who].recv()
    seconds: dict[str, list[float]] = {who: [] for who in every}
    for _ in range(work.turns):
        for who, line in lines.items():
            line.send(None)
            seconds[who].append(line.recv() / max(1, work.turn - 1))
    shares = {}
    for who, line in lines.items():
        line.send(None)
        shares[who] = line.recv()
    for process in processes:
        process.join()
    return {who: Race(starts[who], seconds[who], shares[who]) for who in every}


def interleaved(
    contenders: dict[str, Callable[[], Result]], rounds: int
) -> dict[str, list[Result]]:
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
    work = WORK["tiny"]._replace(turns=1, turn=1)
    with tempfile.TemporaryDirectory() as name, silence():
        folder = Path(name)
        data = arrays(work, test=1_000_000)
        np.savez(folder / "data.npz", **data)
        call(command(work, folder))
        run = next((folder / "lightning_logs").iterdir())
        state = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
        net = Net(work.sizes)
        net.load_state_dict(
            {key.removeprefix("net."): v for key, v in state.items() if key.startswith("net.")}
        )
        x, y = torch.from_numpy(data["x_test"]), torch.from_numpy(data["y_test"])

        def tested_by_hand(batch: int) -> Result:
            begin = time.perf_counter()
            counted = MetricCollection(
                {
                    **four_metrics(work.classes),
                    "auroc": MulticlassAUROC(work.classes),
                    "average_precision": MulticlassAveragePrecision(work.classes),
                }
            )
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

        return interleaved(
            {
                "by hand, batches of 64": lambda: tested_by_hand(64),
                "by hand, batches of 8192": lambda: tested_by_hand(8192),
                PACKAGE: tested,
            },
            rounds,
        )


def tested_ten_classes(run: Path) -> float:
    begin = time.perf_counter()
    with silence():
        call(["test", "--run", str(run), "--allow", "__main__", "--allow", "__mp_main__"])
    return time.perf_counter() - begin


def forward_passes(folder: Path, work: Work) -> float:
    net, x = work.net(work.sizes).eval(), tensors(folder)["x_test"]
    begin = time.perf_counter()
    with torch.no_grad():
        for rows in x.split(8192):
            net(rows)
    return time.perf_counter() - begin


def reporting(console: Console, rounds: int) -> dict[str, Any]:
    work = WORK["tiny"]._replace(sizes=[10, 50, 10], classes=10, turns=1, turn=1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        np.savez(folder / "data.npz", **arrays(work, test=100_000))
        with silence():
            call(command(work, folder))
        run = next((folder / "lightning_logs").iterdir())
        with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
            took = [pool.apply(tested_ten_classes, (run,)) for _ in range(rounds)]
        forward = [forward_passes(folder, work) for _ in range(rounds)]
    beyond = statistics.median(took) - statistics.median(forward)
    table = Table("test of 100,000 rows, ten classes", "seconds", "least to most")
    for what, seconds in {"all of it": took, "forward passes alone": forward}.items():
        table.add_row(
            what, f"{statistics.median(seconds):.2f}", f"{min(seconds):.2f} to {max(seconds):.2f}"
        )
    table.add_row("beyond them", f"{beyond:.2f}", "")
    console.print(table)
    return {"took": took, "forward": forward, "beyond": beyond}


def written(rows: int, folder: Path) -> None:
    np.savez(folder / "data.npz", **arrays(WORK["tiny"]._replace(rows=rows)))


def grown(rows: int, folder: Path) -> tuple[float, float]:
    """Seconds a million rows of tiny, in training with all that belongs to it, and the peak of memory in MB."""
    warnings.filterwarnings("ignore")
    work = WORK["tiny"]._replace(rows=rows, turns=max(1, 1_000_000 // rows), turn=1)
    with silence():
        call(command(work, folder))
    seconds = Clock.last.end - Clock.last.begin
    return 1e6 * seconds / (work.rows * work.epochs), peak_memory()


def peak_memory() -> float:
    """Of this process, in MB. ``ru_maxrss`` would begin with that of the process that started it."""
    if (status := Path("/proc/self/status")).is_file():
        return (
            int(
                next(
                    line for line in status.read_text().splitlines() if line.startswith("VmHWM")
                ).split()[1]
            )
            / 1000
        )
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


def growth(console: Console) -> dict[str, Any]:
    table = Table("rows", "data, MB", "seconds a million rows", "peak memory, MB")
    found = {}
    for rows in (10_000, 100_000, 1_000_000, 10_000_000):
        with (
            tempfile.TemporaryDirectory() as folder,
            multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool,
        ):
            pool.apply(
                written, (rows, Path(folder))
            )  # in a process apart, whose memory does not count
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
    work = WORK["tiny"]._replace(rows=200, turns=1, turn=1)
    took: dict[str, list[float]] = {
        "import lightning.pytorch": [],
        f"python -m {PACKAGE} fit, to the first step": [],
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        np.savez(folder / "data.npz", **arrays(work))
        (folder / "first.py").write_text(FIRST_STEP)
        flags = [
            "fit",
            "--data",
            "Arrays",
            "--data.path",
            "data.npz",
            "--model",
            "MulticlassClassifier",
            "--model.net",
            "MLP",
            "--trainer.max_epochs",
            "1",
            "--trainer.accelerator",
            "cpu",
            "--trainer.callbacks",
            "first.First",
        ]
        commands = [
            [
                "-c",
                "import lightning.pytorch, time, sys; print('first step at', time.time(), file=sys.stderr)",
            ],
            ["-m", PACKAGE, *flags],
        ]
        env = os.environ | {
            "PYTHONDONTWRITEBYTECODE": ""
        }  # the first round leaves bytecode, as anyone's first start does
        for _ in range(rounds + 1):
            for taken, arguments in zip(took.values(), commands, strict=True):
                begin = time.time()
                done = subprocess.run(
                    [sys.executable, *arguments],
                    cwd=folder,
                    env=env,
                    capture_output=True,
                    text=True,
                    check=True,
                )
                taken.append(float(done.stderr.split("first step at ")[1].split()[0]) - begin)
    table = Table("process", "seconds", "least to most")
    for what, seconds in took.items():
        del seconds[0]  # of cold files
        table.add_row(
            what, f"{statistics.median(seconds):.2f}", f"{min(seconds):.2f} to {max(seconds):.2f}"
        )
    console.print(table)
    return took


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    alone = {"report": reporting, "start": start}
    kinds = [*WORK, "test", "growth", *alone]
    parser.add_argument("--work", nargs="+", choices=kinds, default=kinds)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument(
        "--accelerator", choices=["cpu", "gpu"], default="cpu", help="for tiny, mid and conv"
    )
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    machine = {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "lightning": L.__version__,
    }
    if given.accelerator == "gpu":
        machine["gpu"] = torch.cuda.get_device_name()
    out: dict[str, Any] = {"machine": machine, "rounds": given.rounds}
    console = Console(width=120)
    console.print(", ".join(f"{name} {value}" for name, value in machine.items()))
    for name in given.work:
        if name in WORK:
            work = WORK[name]._replace(accelerator=given.accelerator)
            out[name] = told(console, f"{name}: {work}", work.rows, training(work, given.rounds))
        elif name == "test":
            out[name] = report(console, "test: a million rows of tiny", testing(given.rounds))
        else:
            out[name] = growth(console) if name == "growth" else alone[name](console, given.rounds)
    if given.json:
        given.json.write_text(json.dumps(out, indent=2))


def told(console: Console, title: str, rows: int, races: dict[str, list[Race]]) -> dict[str, Any]:
    hand = next(iter(races.values()))
    table = Table(
        "who",
        "rows a second",
        "ratio",
        "half of the turns",
        "rounds",
        "before the first step, s",
        "accuracy",
    )
    summary = {}
    for who, rounds in races.items():
        ratios = [
            paired(race.seconds, other.seconds) for race, other in zip(rounds, hand, strict=True)
        ]
        every = [ratio for each in ratios for ratio in each]
        low, ratio, high = statistics.quantiles(every, n=4)
        rate = rows / statistics.median(second for race in rounds for second in race.seconds[1:])
        start = statistics.median(race.start for race in rounds)
        accuracy = statistics.median(race.accuracy for race in rounds)
        each = [statistics.median(of) for of in ratios]
        table.add_row(
            who,
            f"{rate:,.0f}",
            f"{ratio:.2f}",
            f"{low:.2f} to {high:.2f}",
            " ".join(f"{one:.2f}" for one in each),
            f"{start:.1f}",
            f"{accuracy:.3f}",
        )
        summary[who] = {
            "rate": rate,
            "ratio": ratio,
            "rounds": each,
            "start": start,
            "accuracy": accuracy,
        }
    console.print(title)
    console.print(table)
    check_accuracy(summary)
    return summary


def paired(ours: list[float], hand: list[float]) -> list[float]:
    """How much longer the loop by hand took, just before and after, than each turn but the first; itself: than itself."""
    after = [*hand[1:], hand[-1]]  # by hand comes first in each turn
    return [
        (a + b) / 2 / own if ours is not hand else 1.0
        for a, b, own in list(zip(hand, after, ours, strict=True))[1:]
    ]


def check_accuracy(summary: dict[str, Any]) -> None:
    reached = [entry["accuracy"] for entry in summary.values()]
    assert max(reached) - min(reached) < 0.05, "not the same training: the accuracies differ"


def report(console: Console, title: str, results: dict[str, list[Result]]) -> dict[str, Any]:
    hand = next(iter(results.values()))
    table = Table(
        "who", "rows a second", "least to most", "ratio", "before the first step, s", "accuracy"
    )
    summary = {}
    for who, runs in results.items():
        rates = [run.rate for run in runs]
        ratio = statistics.median(
            run.rate / first.rate for run, first in zip(runs, hand, strict=True)
        )
        start = statistics.median(run.start for run in runs)
        accuracy = statistics.median(run.accuracy for run in runs)
        table.add_row(
            who,
            f"{statistics.median(rates):,.0f}",
            f"{min(rates):,.0f} to {max(rates):,.0f}",
            f"{ratio:.2f}",
            f"{start:.1f}",
            f"{accuracy:.3f}",
        )
        summary[who] = {"rates": rates, "ratio": ratio, "start": start, "accuracy": accuracy}
    console.print(title)
    console.print(table)
    check_accuracy(summary)
    return summary


if __name__ == "__main__":
    main()
