"""Compare the speed of training on several processes with plain PyTorch DDP and plain Lightning.

usage: python scripts/bench_ddp.py [--work tiny mid conv] [--processes 1 2 4] [--rounds 2]

All contenders train the nets of ``bench.py`` with Adam on the processor, with gloo, on the same
number of rows per process and step, and validate after each epoch with the same metrics. A
contender is a program of its own, and they take turns: a round starts each of them once. The first
two epochs of a program do not count. The ratio is the median epoch of plain DDP in a round, divided
by the contender's. More processes than cores share the cores: then the ratios are about scheduling,
too.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import lightning.pytorch as L
import numpy as np
import torch
import torch.distributed as dist
from bench import PACKAGE, WORK, Plain, Work, arrays, command, four_metrics, tensors
from rich.console import Console
from rich.table import Table
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset

EPOCHS = {"tiny": 12, "mid": 6, "conv": 6}
SKIPPED = 2
TIMES = "BENCH_DDP_TIMES"  # the variable with the file for the seconds of the epochs


class EpochTimes(L.Callback):
    """Write the time at which each epoch begins, in the first process."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.times.append(time.perf_counter())

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero:
            Path(os.environ[TIMES]).write_text(json.dumps(self.times), encoding="utf-8")


def plain_ddp(work: Work, folder: Path, rank: int, world: int) -> None:
    """Train with a hand-written loop over slices of the tensors."""
    store = f"file://{folder}/store_{world}"
    dist.init_process_group("gloo", store, rank=rank, world_size=world)
    data = {name: values[rank::world].contiguous() for name, values in tensors(folder).items()}
    net = DistributedDataParallel(work.net(work.sizes))
    optimizer = torch.optim.Adam(net.parameters())
    x, y = data["x_train"], data["y_train"]
    metrics, times = four_metrics(work.classes), []
    for _ in range(work.epochs):
        times.append(time.perf_counter())
        net.train()
        order = torch.randperm(len(x))
        for a, b in zip(x[order].split(work.batch), y[order].split(work.batch), strict=True):
            loss = cross_entropy(net(a), b)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        net.eval()
        with torch.no_grad():
            held_out = (data[name].split(work.batch) for name in ("x_val", "y_val"))
            for a, b in zip(*held_out, strict=True):
                metrics.update(net.module(a), b)
        metrics.compute()
        metrics.reset()
    if rank == 0:
        Path(os.environ[TIMES]).write_text(json.dumps(times), encoding="utf-8")
    dist.barrier()  # A process that leaves early may keep the others waiting.
    dist.destroy_process_group()


def plain_lightning(work: Work, folder: Path, world: int) -> None:
    data = tensors(folder)
    train = DataLoader(TensorDataset(data["x_train"], data["y_train"]), work.batch, shuffle=True)
    val = DataLoader(TensorDataset(data["x_val"], data["y_val"]), work.batch)
    trainer = L.Trainer(
        max_epochs=work.epochs,
        accelerator="cpu",
        devices=world,
        strategy="ddp" if world > 1 else "auto",
        default_root_dir=folder / "plain",
        callbacks=[EpochTimes()],
    )
    trainer.fit(Plain(work), train, val)


def run_contender(name: str, kind: str, folder: Path, world: int) -> list[float]:
    """Run a program, and return the seconds of its epochs."""
    times, cores = folder / f"{name}.json", os.cpu_count() or 1
    times.unlink(missing_ok=True)
    (folder / f"store_{world}").unlink(missing_ok=True)
    here = str(Path(__file__).parent)
    env = {**os.environ, TIMES: str(times), "OMP_NUM_THREADS": str(max(1, cores // world))}
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH", "")]))
    if name == PACKAGE:
        flags = ["--trainer.devices", str(world), "--trainer.callbacks+", "bench_ddp.EpochTimes"]
        flags += ["--trainer.strategy", "ddp"] if world > 1 else []
        words = [word.replace("__main__", "bench") for word in command(work_of(kind), folder)]
        programs = [["-m", PACKAGE, *words, *flags, "--allow", "bench", "--allow", "bench_ddp"]]
    else:
        ranks = range(world) if name == "plain DDP" else range(1)
        words = [__file__, "--contender", name, "--work", kind, "--folder", str(folder)]
        programs = [[*words, "--processes", str(world), "--rank", str(rank)] for rank in ranks]
    started = [
        subprocess.Popen(
            [sys.executable, *words], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        for words in programs
    ]
    codes = [process.wait() for process in started]
    assert not any(codes), (name, codes)
    starts = json.loads(times.read_text(encoding="utf-8"))
    return [b - a for a, b in pairwise(starts)][SKIPPED - 1 :]


def work_of(kind: str) -> Work:
    return WORK[kind]._replace(turns=EPOCHS[kind], epochs_per_turn=1)


CONTENDERS = ("plain DDP", "plain Lightning", PACKAGE)


def measure(kind: str, world: int, rounds: int) -> dict[str, list[list[float]]]:
    """Return the seconds of the epochs of each round by contender."""
    seconds: dict[str, list[list[float]]] = {name: [] for name in CONTENDERS}
    with tempfile.TemporaryDirectory() as folder:
        np.savez(Path(folder) / "data.npz", **arrays(work_of(kind)))
        for _ in range(rounds):
            for name in CONTENDERS:
                seconds[name].append(run_contender(name, kind, Path(folder), world))
    return seconds


def main() -> None:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", nargs="+", choices=list(EPOCHS), default=list(EPOCHS))
    parser.add_argument("--processes", nargs="+", type=int, default=[1, 2, 4])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--contender", help="used by this script itself")
    parser.add_argument("--folder", type=Path, help="used by this script itself")
    parser.add_argument("--rank", type=int, default=0, help="used by this script itself")
    options = parser.parse_args()
    if options.contender:
        work, world = work_of(options.work[0]), options.processes[0]
        if options.contender == "plain DDP":
            plain_ddp(work, options.folder, options.rank, world)
        else:
            plain_lightning(work, options.folder, world)
        return
    table = Table("net", "processes", "contender", "rows per second", "ratio", "rounds")
    for kind in options.work:
        for world in options.processes:
            seconds = measure(kind, world, options.rounds)
            for name, times in seconds.items():
                table.add_row(kind, str(world), name, *figures(kind, times, seconds["plain DDP"]))
    Console(width=120).print(table)


def figures(kind: str, times: list[list[float]], loop: list[list[float]]) -> tuple[str, str, str]:
    """Return rows per second, the median ratio and that of each round, as text."""
    pairs = zip(loop, times, strict=True)
    ratios = [statistics.median(plain) / statistics.median(own) for plain, own in pairs]
    rate = WORK[kind].rows / statistics.median(second for own in times for second in own)
    by_round = " ".join(f"{ratio:.2f}" for ratio in ratios)
    return f"{rate:,.0f}", f"{statistics.median(ratios):.2f}", by_round


if __name__ == "__main__":
    main()
