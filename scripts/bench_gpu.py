"""Compare the speed of training on a GPU with the same training in plain PyTorch, in 10 minutes.

usage: python scripts/bench_gpu.py [--work tiny mid conv tabm resnet] [--accelerator gpu]
                                   [--json FILE]

tiny, mid, conv: as in ``bench.py``, with all rows in the memory of the device.
tabm: the default net of tables on 200,000 rows, against a loop by hand with the same net.
resnet: ResNet-18 as it is used for CIFAR-10, on 50,000 random pictures of its size, in bf16 and
channels last, against a loop by hand with the same net, precision and layout.

The contenders take turns of one epoch, and the first turn does not count. The ratio is the time of
the loop divided by the contender's own. With ``--accelerator cpu`` small data show that the script
works. Nothing is claimed for machines where it was not run.
"""

import argparse
import json
import logging
import tempfile
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

import bench
import numpy as np
import polars as pl
import torch
from bench import PACKAGE, WORK, Turns, Work, call, machine, measure_training, run_round
from bench import summarize_training as summarize
from rich.console import Console
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

FEWER_ROWS = 50  # the share of the rows on a CPU is one of so many


class Block(nn.Module):
    """Two convolutions with a shortcut (He et al. 2016, arXiv:1512.03385)."""

    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        stride = 1 if width == width_in else 2
        self.convolutions = nn.Sequential(
            nn.Conv2d(width_in, width, 3, stride, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 3, 1, 1, bias=False),
            nn.BatchNorm2d(width),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride == 2:
            self.shortcut = nn.Sequential(
                nn.Conv2d(width_in, width, 1, 2, bias=False), nn.BatchNorm2d(width)
            )

    def forward(self, x: Tensor) -> Tensor:
        return (self.convolutions(x) + self.shortcut(x)).relu_()


class ResNet(nn.Sequential):
    """ResNet-18 for pictures of 32 pixels a side: [rows, 3, 32, 32] of numbers from 0 to 255."""

    def __init__(self, sizes: list[int]) -> None:
        width, classes = sizes
        widths = [width, width, width, 2 * width, 2 * width, 4 * width, 4 * width, 8 * width]
        blocks = [Block(a, b) for a, b in zip(widths, [*widths[1:], 8 * width], strict=True)]
        super().__init__(
            nn.Conv2d(3, width, 3, 1, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            *blocks,
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8 * width, classes),
        )
        self.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(torch.float32, memory_format=torch.channels_last)
        output: Tensor = super().forward(x / 64 - 2)
        return output


RESNET = Work(ResNet, [64, 10], 50_000, 3 * 32 * 32, 10, 512, 5)
TABM = WORK["tiny"]._replace(rows=200_000, batch=1024, turns=5, epochs_per_turn=1)


def write_pictures(work: Work, folder: Path) -> None:
    """Write random pictures whose class is the brightest of ten areas."""
    random = np.random.default_rng(0)
    arrays = {}
    for split, rows in {"train": work.rows, "val": work.rows // 5}.items():
        x = random.integers(0, 256, (rows, 3, 32, 32), np.uint8)
        y = random.integers(0, work.classes, rows)
        for number in range(work.classes):
            x[y == number, :, 3 * number : 3 * number + 3] //= 2
        arrays |= {f"x_{split}": x, f"y_{split}": y}
    np.savez(folder / "data.npz", **arrays)


def write_table(work: Work, folder: Path) -> None:
    """Write the rows of ``bench.arrays`` as a table with a column for the split."""
    data, tables = bench.arrays(work), []
    for split in ("train", "val"):
        columns = {f"n{i}": data[f"x_{split}"][:, i] for i in range(work.features)}
        names = np.array(["a", "b", "c"])[data[f"y_{split}"]]
        tables.append(pl.DataFrame({**columns, "y": names, "split": split}))
    pl.concat(tables).write_parquet(folder / "data.parquet")


def train_by_hand(
    work: Work,
    net: nn.Module,
    optimizer: torch.optim.Optimizer,
    data: dict[str, Any],
    turns: Turns,
    dtype: torch.dtype | None,
) -> float:
    """Train over slices of ``data``: x and y of train and of val, on the device.

    Args:
        dtype: type of automatic mixed precision, or None.
    """

    def part(x: Any, rows: Any) -> Any:
        return {name: v[rows] for name, v in x.items()} if isinstance(x, dict) else x[rows]

    def outputs(x: Any) -> Tensor:
        with torch.autocast(work.device.type, dtype, enabled=dtype is not None):
            result: Tensor = net(x)
        return result.float()

    accuracy = 0.0
    count, count_val = len(data["y_train"]), len(data["y_val"])
    for _ in range(work.epochs):
        turns.wait()
        net.train()
        for rows in torch.randperm(count, device=work.device).split(work.batch):
            found, y = outputs(part(data["x_train"], rows)), data["y_train"][rows]
            if found.ndim == 3:  # Each member of an ensemble has its own loss.
                y = y[:, None].expand(found.shape[:2]).flatten()
                found = found.flatten(0, 1)
            loss = cross_entropy(found, y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        net.eval()
        metrics = bench.four_metrics(work.classes).to(work.device)
        with torch.no_grad():
            for start in range(0, count_val, work.batch):
                rows = slice(start, start + work.batch)
                found = outputs(part(data["x_val"], rows))
                found = found.softmax(-1).mean(1) if found.ndim == 3 else found
                metrics.update(found, data["y_val"][rows])
        accuracy = max(accuracy, metrics.compute()["accuracy"].item())
    return accuracy


def resnet_by_hand(work: Work, folder: Path, turns: Turns) -> float:
    data = {name: values.to(work.device) for name, values in bench.tensors(folder).items()}
    net = work.net(work.sizes).to(work.device)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    return train_by_hand(work, net, optimizer, data, turns, torch.bfloat16)


def resnet(work: Work, folder: Path, turns: Turns, *flags: str) -> float:
    optimizer = ["SGD", "--model.optimizer.lr", "0.1", "--model.optimizer.momentum", "0.9"]
    decay = ["--model.optimizer.weight_decay", "5e-4", "--trainer.precision", "bf16-mixed"]
    return bench.ours(work, folder, turns, "--model.optimizer", *optimizer, *decay, *flags)


def table_data(folder: Path) -> Any:
    """Return a data module of the table, prepared."""
    module = import_module(f"{PACKAGE}.data.tabular.datamodule").Tabular
    path, cache = str(folder / "data.parquet"), str(folder / "cache")
    data = module(path, "y", split="split", cache_dir=cache)
    data.prepare_data()
    data.setup("fit")
    return data


def tabm_by_hand(work: Work, folder: Path, turns: Turns) -> float:
    module = table_data(folder)
    net = import_module(f"{PACKAGE}.nets").TabM(module.schema).to(work.device)
    data: dict[str, Any] = {}
    for split in ("train", "val"):
        rows = module.splits[split]
        data[f"x_{split}"] = {name: values.to(work.device) for name, values in rows.x.items()}
        data[f"y_{split}"] = rows.y.to(work.device)
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.002)
    return train_by_hand(work, net, optimizer, data, turns, None)


def tabm(work: Work, folder: Path, turns: Turns, *flags: str) -> float:
    source = f"--data Tabular --data.path {folder}/data.parquet --data.target y"
    split = f"--data.split split --data.cache_dir {folder}/cache"
    size = f"--data.batch_size {work.batch} --model MulticlassClassifier --model.net TabM"
    optimizer = "--model.optimizer AdamW --model.optimizer.lr 0.002"
    trainer = f"--trainer.max_epochs {work.epochs} --trainer.accelerator {work.accelerator}"
    place = f"--trainer.devices 1 --trainer.default_root_dir {folder}"
    clock = f"--trainer.callbacks {bench.Clock.__module__}.Clock --early_stopping.patience 1000"
    words = " ".join((source, split, size, optimizer, trainer, place, clock)).split()
    bench.Clock.turns = turns
    call(["fit", *words, *flags, "--allow", "bench"])
    return bench.Clock.last.accuracy


def resnet_compiled(work: Work, folder: Path, turns: Turns) -> float:
    return resnet(work, folder, turns, "--model.compile", "net")


def tabm_compiled(work: Work, folder: Path, turns: Turns) -> float:
    return tabm(work, folder, turns, "--model.compile", "step")


OWN = {
    "resnet": (
        RESNET,
        write_pictures,
        {
            "plain loop, bf16, channels last": resnet_by_hand,
            PACKAGE: resnet,
            f"{PACKAGE}, compiled net": resnet_compiled,
        },
    ),
    "tabm": (
        TABM,
        write_table,
        {
            "plain loop": tabm_by_hand,
            PACKAGE: tabm,
            f"{PACKAGE}, compiled step": tabm_compiled,
        },
    ),
}


def measure(kind: str, console: Console, accelerator: str) -> dict[str, Any]:
    """Measure one kind of work, print a table, and return the numbers."""
    work = (OWN[kind][0] if kind in OWN else WORK[kind])._replace(accelerator=accelerator)
    if accelerator == "cpu":
        work = work._replace(rows=work.rows // FEWER_ROWS, batch=work.batch // 8, turns=3)
    if kind not in OWN:
        return summarize(console, f"{kind}: {work}", work.rows, measure_training(work, 1))
    _, write, contenders = OWN[kind]
    with tempfile.TemporaryDirectory() as folder:
        write(work, Path(folder))
        races = run_round(work, Path(folder), dict(contenders))
    return summarize(
        console, f"{kind}: {work}", work.rows, {name: [race] for name, race in races.items()}
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    kinds = [*WORK, *OWN]
    parser.add_argument("--work", nargs="+", choices=kinds, default=kinds)
    parser.add_argument("--accelerator", choices=["cpu", "gpu"], default="gpu")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    results: dict[str, Any] = {"machine": machine(arguments.accelerator)}
    console = Console(width=120)
    console.print(", ".join(f"{name} {value}" for name, value in results["machine"].items()))
    for kind in arguments.work:
        results[kind] = measure(kind, console, arguments.accelerator)
        if arguments.json:  # after each, because the time on a borrowed GPU may end
            arguments.json.write_text(json.dumps(results, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
