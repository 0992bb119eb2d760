"""How fast data are prepared and loaded, and how much memory a large table takes.

usage: python scripts/bench_data.py [--rows 20_000_000]

Makes a table of 20 columns (17 numbers, 2 categories, the target) in a temporary folder, prepares it from CSV and from
Parquet, trains on it, and prints rows a second and the peak of anonymous memory (Linux' RssAnon, of the process itself).
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl
from rich.console import Console
from rich.table import Table

CHUNK = 1_000_000
PACKAGE = next(path.parent.name for path in Path(__file__).parent.parent.glob("src/*/__main__.py"))


def make(path: Path, rows: int) -> None:
    """A table that does not fit a small machine's memory, made a chunk at a time."""

    def chunk(start: int) -> pl.DataFrame:
        rng = np.random.default_rng(start)
        count = min(CHUNK, rows - start)
        numbers = rng.normal(size=(count, 17)).astype(np.float32)
        columns = {f"n{i}": numbers[:, i] for i in range(17)}
        columns |= {f"c{i}": rng.choice(np.array(["red", "green", "blue", "grey"]), count) for i in range(2)}
        return pl.DataFrame(columns | {"y": (numbers[:, :3].sum(1) + rng.normal(size=count) > 0).astype(np.int8)})

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
            peak = max(peak, next((int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon")), 0))
        except FileNotFoundError:
            break
        time.sleep(0.05)
    if process.wait():
        sys.exit(f"failed with exit code {process.returncode}: {' '.join(command)}")
    return time.perf_counter() - start, peak / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000_000)
    given = parser.parse_args()
    table = Table("what", "rows a second", "seconds", "peak anonymous memory, GB")
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        make(work, given.rows)
        for name, path in (("prepared from CSV", "table.csv"), ("prepared from Parquet", "part_*.parquet")):
            code = (f"from {PACKAGE}.data.tabular import Tabular; "
                    f"Tabular({path!r}, 'y', cache_dir='cache_{path[:4]}').prepare_data()")  # fmt: skip
            seconds, memory = measured([sys.executable, "-c", code], work)
            table.add_row(name, f"{given.rows / seconds:,.0f}", f"{seconds:.0f}", f"{memory:.2f}")
        flags = ["--data", "Tabular", "--data.path", "part_*.parquet", "--data.target", "y", "--data.batch_size", "8192",
                 "--data.cache_dir", "cache_part", "--model", "BinaryClassifier", "--model.net", "MLP",
                 "--model.net.hidden", "[64]", "--trainer.max_epochs", "1", "--trainer.limit_train_batches", "200",
                 "--trainer.limit_val_batches", "20", "--trainer.enable_progress_bar", "false"]  # fmt: skip
        seconds, memory = measured([sys.executable, "-m", PACKAGE, "fit", *flags], work)
        table.add_row("an MLP trained for 200 batches of 8192", "", f"{seconds:.0f}", f"{memory:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
