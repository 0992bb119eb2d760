"""Measure how fast data are prepared and loaded, and how much memory a large table needs.

usage: python scripts/bench_data.py [--rows 20_000_000] [--images 10_000]

Writes a table of 20 columns (17 numbers, 2 categories, the target) into a temporary folder,
prepares it from CSV and from Parquet, trains on it, and prints rows per second and the peak of
anonymous memory (RssAnon of the process, on Linux). Then writes images (JPEG, 96 pixels a side,
read at 64) and prints the images per second of the second epoch: of this project's data module
with augmentation, and of a DataLoader that decodes each image again.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import numpy as np
import polars as pl
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader, Dataset

CHUNK = 1_000_000
PACKAGE = next(path.parent.name for path in Path(__file__).parent.parent.glob("src/*/__main__.py"))


def write_table(folder: Path, rows: int) -> None:
    """Write a table that does not fit into a small machine's memory, one chunk at a time."""
    files = []
    for start in range(0, rows, CHUNK):
        files.append(folder / f"part_{start // CHUNK:03}.parquet")
        make_chunk(start, min(CHUNK, rows - start)).write_parquet(files[-1])
    pl.scan_parquet(files).sink_csv(folder / "table.csv")


def make_chunk(start: int, rows: int) -> pl.DataFrame:
    rng = np.random.default_rng(start)
    numbers = rng.normal(size=(rows, 17)).astype(np.float32)
    colors = np.array(["red", "green", "blue", "grey"])
    columns = {f"n{i}": numbers[:, i] for i in range(17)}
    columns |= {f"c{i}": rng.choice(colors, rows) for i in range(2)}
    target = (numbers[:, :3].sum(1) + rng.normal(size=rows) > 0).astype(np.int8)
    return pl.DataFrame(columns | {"y": target})


def measure(command: list[str], folder: Path) -> tuple[float, float]:
    """Run a command; return its seconds and the peak of its anonymous memory in GB."""
    begin, peak = time.perf_counter(), 0
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL)
    while process.poll() is None:
        peak = max(peak, anonymous_memory(process.pid))
        time.sleep(0.05)
    if process.returncode:
        sys.exit(f"failed with exit code {process.returncode}: {' '.join(command)}")
    return time.perf_counter() - begin, peak / 1e6


def anonymous_memory(process: int) -> int:
    """Return the anonymous memory of a process in kB, 0 when it has ended."""
    try:
        status = Path(f"/proc/{process}/status").read_text(encoding="utf-8")
    except (FileNotFoundError, ProcessLookupError):
        return 0
    lines = [line for line in status.splitlines() if line.startswith("RssAnon")]
    return int(lines[0].split()[1]) if lines else 0


class DecodingDataset(Dataset[tuple[torch.Tensor, int]]):
    """Images in class folders, decoded when they are requested, as in a tutorial."""

    def __init__(self, folder: Path) -> None:
        classes = sorted(folder.iterdir())
        self.items = [
            (file, label) for label, name in enumerate(classes) for file in sorted(name.iterdir())
        ]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        file, label = self.items[index]
        with Image.open(file) as image:
            pixels = np.asarray(image.convert("RGB").resize((64, 64)))
        return torch.from_numpy(pixels.copy()).permute(2, 0, 1), label


def write_images(folder: Path, count: int) -> None:
    """Write images of smooth noise in two classes, in files about as large as photographs."""
    rng = np.random.default_rng(0)
    for i in range(count):
        class_folder = folder / "ab"[i % 2]
        class_folder.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(rng.integers(0, 256, (12, 12, 3), np.uint8))
        coarse.resize((96, 96), Image.Resampling.BICUBIC).save(class_folder / f"{i:06}.jpg")


def images_per_second(folder: Path, cache: Path) -> dict[str, float]:
    """Return the images per second of both loaders: medians of three epochs after the first."""
    images = import_module(f"{PACKAGE}.data.images.datamodule").Images
    data = images(
        str(folder),
        size=64,
        val_fraction=0.0,
        test_fraction=0.0,
        cache_dir=str(cache),
    )
    data.prepare_data()
    data.setup("fit")
    workers = os.cpu_count() or 1
    loader = DataLoader(
        DecodingDataset(folder),
        batch_size=128,
        shuffle=True,
        num_workers=workers,
        persistent_workers=True,
    )
    epochs: dict[str, Callable[[], int]] = {
        "Images, flipped and shifted": lambda: sum(
            len(data.augment_batch(batch).x) for batch in data.train_dataloader()
        ),
        f"DataLoader, {workers} processes": lambda: sum(len(x) for x, _ in loader),
    }
    rates: dict[str, list[float]] = {name: [] for name in epochs}
    for round_number in range(4):
        for name, run_epoch in epochs.items():
            begin = time.perf_counter()
            count = run_epoch()
            if round_number > 0:
                rates[name].append(count / (time.perf_counter() - begin))
    return {name: float(np.median(values)) for name, values in rates.items()}


def measure_table(folder: Path, rows: int) -> Table:
    """Measure the preparation of a table, and a training on it."""
    table = Table("step", "rows per second", "seconds", "peak anonymous memory, GB")
    write_table(folder, rows)
    for name, path in {"CSV": "table.csv", "Parquet": "part_*.parquet"}.items():
        code = (
            f"from {PACKAGE}.data.tabular.datamodule import Tabular; "
            f"Tabular({path!r}, 'y', cache_dir='cache_{name}').prepare_data()"
        )
        seconds, memory = measure([sys.executable, "-c", code], folder)
        rate = f"{rows / seconds:,.0f}"
        table.add_row(f"prepare from {name}", rate, f"{seconds:.0f}", f"{memory:.2f}")
    data = "--data Tabular --data.path part_*.parquet --data.target y --data.batch_size 8192"
    cache = "--data.cache_dir cache_Parquet"
    model = "--model BinaryClassifier --model.net MLP --model.net.hidden [64]"
    trainer = "--trainer.max_epochs 1 --trainer.limit_train_batches 200"
    limits = "--trainer.limit_val_batches 20 --trainer.enable_progress_bar false"
    flags = " ".join([data, cache, model, trainer, limits]).split()
    seconds, memory = measure([sys.executable, "-m", PACKAGE, "fit", *flags], folder)
    table.add_row("train an MLP for 200 batches of 8192", "", f"{seconds:.0f}", f"{memory:.2f}")
    return table


def measure_images(folder: Path, count: int) -> Table:
    """Measure the second epoch of images."""
    write_images(folder / "images", count)
    rates = images_per_second(folder / "images", folder / "cache_images")
    table = Table("second epoch of images", "images per second", "ratio")
    slowest = min(rates.values())
    for name, rate in rates.items():
        table.add_row(name, f"{rate:,.0f}", f"{rate / slowest:.1f}")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=20_000_000)
    parser.add_argument("--images", type=int, default=10_000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        Console().print(measure_table(Path(folder), arguments.rows))
        Console().print(measure_images(Path(folder), arguments.images))


if __name__ == "__main__":
    main()
