"""How fast data are prepared and loaded, and how much memory a large table takes.

usage: python scripts/bench_data.py [--rows 20_000_000] [--pictures 10_000]

Makes a table of 20 columns (17 numbers, 2 categories, the target) in a temporary folder, prepares it from CSV and from
Parquet, trains on it, and prints rows a second and the peak of anonymous memory (Linux' RssAnon, of the process itself).
Then makes pictures (JPEG, 96 pixels a side, read at 64), and prints how many a second come out of an epoch after the
first: of this project's data module with its flips and shifts, and of a DataLoader that decodes each time.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
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


def make(path: Path, rows: int) -> None:
    """A table that does not fit a small machine's memory, made a chunk at a time."""

    def chunk(start: int) -> pl.DataFrame:
        rng = np.random.default_rng(start)
        count = min(CHUNK, rows - start)
        numbers = rng.normal(size=(count, 17)).astype(np.float32)
        columns = {f"n{i}": numbers[:, i] for i in range(17)}
        columns |= {
            f"c{i}": rng.choice(np.array(["red", "green", "blue", "grey"]), count) for i in range(2)
        }
        return pl.DataFrame(
            columns | {"y": (numbers[:, :3].sum(1) + rng.normal(size=count) > 0).astype(np.int8)}
        )

    parts = [path / f"part_{start // CHUNK:03}.parquet" for start in range(0, rows, CHUNK)]
    for i, part in enumerate(parts):
        chunk(i * CHUNK).write_parquet(part)
    pl.scan_parquet(parts).sink_csv(path / "table.csv")


def measured(command: list[str], cwd: Path) -> tuple[float, float]:
    """Seconds a command takes, and the peak of its anonymous memory in GB."""
    start, peak = time.perf_counter(), 0
    process = subprocess.Popen(command, cwd=cwd, stdout=subprocess.DEVNULL)
    while process.poll() is None:
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
            peak = max(
                peak,
                next(
                    (
                        int(line.split()[1])
                        for line in status.splitlines()
                        if line.startswith("RssAnon")
                    ),
                    0,
                ),
            )
        except FileNotFoundError:
            break
        time.sleep(0.05)
    if process.wait():
        sys.exit(f"failed with exit code {process.returncode}: {' '.join(command)}")
    return time.perf_counter() - start, peak / 1e6


class Decoding(Dataset[tuple[torch.Tensor, int]]):
    """Pictures in class folders, decoded when asked for: what a tutorial's data set does."""

    def __init__(self, folder: Path) -> None:
        classes = sorted(folder.iterdir())
        self.items = [
            (file, label) for label, place in enumerate(classes) for file in sorted(place.iterdir())
        ]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        file, label = self.items[i]
        with Image.open(file) as picture:
            pixels = np.asarray(picture.convert("RGB").resize((64, 64)))
        return torch.from_numpy(pixels.copy()).permute(2, 0, 1), label


def make_pictures(folder: Path, count: int) -> None:
    """Smooth noise in two classes: as large as photographs are in a file, which plain noise is not."""
    rng = np.random.default_rng(0)
    for i in range(count):
        place = folder / "ab"[i % 2]
        place.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(rng.integers(0, 256, (12, 12, 3), np.uint8))
        coarse.resize((96, 96), Image.Resampling.BICUBIC).save(place / f"{i:06}.jpg")


def rates(folder: Path, cache: Path) -> dict[str, float]:
    """Pictures a second in the second epoch, ours and decoded each time by processes; medians of three, in turns."""
    module = import_module(f"{PACKAGE}.data.images")
    data = module.Images(
        str(folder), size=64, val_fraction=0.0, test_fraction=0.0, cache_dir=str(cache)
    )
    data.prepare_data()
    data.setup("fit")
    augment = import_module(f"{PACKAGE}.data.augment").augment
    workers = os.cpu_count() or 1
    plain = DataLoader(
        Decoding(folder), batch_size=128, shuffle=True, num_workers=workers, persistent_workers=True
    )

    def ours() -> int:
        return sum(
            len(augment(batch.x, data.flip, data.crop, data.erase))
            for batch in data.train_dataloader()
        )

    def theirs() -> int:
        return sum(len(x) for x, _ in plain)

    found: dict[str, list[float]] = {
        "Images, mapped, flipped and shifted": [],
        f"DataLoader, {workers} processes": [],
    }
    ours(), theirs()  # the first epoch
    for _ in range(3):
        for name, epoch in zip(found, (ours, theirs), strict=True):
            start = time.perf_counter()
            seen = epoch()
            found[name].append(seen / (time.perf_counter() - start))
    return {name: float(np.median(values)) for name, values in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=20_000_000)
    parser.add_argument("--pictures", type=int, default=10_000)
    given = parser.parse_args()
    table = Table("what", "rows a second", "seconds", "peak anonymous memory, GB")
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        make(work, given.rows)
        for name, path in (
            ("prepared from CSV", "table.csv"),
            ("prepared from Parquet", "part_*.parquet"),
        ):
            code = (
                f"from {PACKAGE}.data.tabular import Tabular; "
                f"Tabular({path!r}, 'y', cache_dir='cache_{path[:4]}').prepare_data()"
            )
            seconds, memory = measured([sys.executable, "-c", code], work)
            table.add_row(name, f"{given.rows / seconds:,.0f}", f"{seconds:.0f}", f"{memory:.2f}")
        flags = [
            "--data",
            "Tabular",
            "--data.path",
            "part_*.parquet",
            "--data.target",
            "y",
            "--data.batch_size",
            "8192",
            "--data.cache_dir",
            "cache_part",
            "--model",
            "BinaryClassifier",
            "--model.net",
            "MLP",
            "--model.net.hidden",
            "[64]",
            "--trainer.max_epochs",
            "1",
            "--trainer.limit_train_batches",
            "200",
            "--trainer.limit_val_batches",
            "20",
            "--trainer.enable_progress_bar",
            "false",
        ]
        seconds, memory = measured([sys.executable, "-m", PACKAGE, "fit", *flags], work)
        table.add_row(
            "an MLP trained for 200 batches of 8192", "", f"{seconds:.0f}", f"{memory:.2f}"
        )
        make_pictures(work / "pictures", given.pictures)
        loaded = rates(work / "pictures", work / "cache_pictures")
    Console().print(table)
    second = Table("second epoch of pictures", "pictures a second", "ratio")
    least = min(loaded.values())
    for name, rate in loaded.items():
        second.add_row(name, f"{rate:,.0f}", f"{rate / least:.1f}")
    Console().print(second)


if __name__ == "__main__":
    main()
