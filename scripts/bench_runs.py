"""Measure how long `runs` and the search for the newest run take among many runs.

usage: python scripts/bench_runs.py [--runs 5000] [--folder FOLDER]

Trains and tests one small run and copies it. Each copy has its own name, start, seed, learning rate
and metrics, so no two configs are equal. Then it calls the program as a user does and prints the
seconds and the CPU seconds of the whole command, and the CPU seconds beyond `runs --help`, which
imports the same modules. `--folder` keeps the runs in a folder, and uses those that are there.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import yaml

PACKAGE = next(path.parent.name for path in Path(__file__).parent.parent.glob("src/*/__main__.py"))
LOGS = Path("lightning_logs")
SORTED = ["runs", "--where", "f1>0.1", "--where", "status=finished", "--sort", "f1"]
# Finds the newest finished run as `test` does, without the seconds that `test` itself takes.
NEWEST = f"""
import time
from pathlib import Path
from {PACKAGE}.engine.runs.find import find_run
start = time.process_time()
find_run(Path("lightning_logs"), None)
print(time.process_time() - start)
"""


def train_one() -> None:
    """Train and test the run that is copied."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 6)).astype(np.float32)
    np.savez("data.npz", x=x, y=(x[:, 0] > 0).astype(int) + (x[:, 1] > 0.3))
    experiment = {
        "trainer": {"max_epochs": 2, "accelerator": "cpu"},
        "model": {"class_path": "MulticlassClassifier", "init_args": {"net": "MLP"}},
        "data": {"class_path": "ArrayDataModule", "init_args": {"path": "data.npz"}},
    }
    Path("experiment.yaml").write_text(yaml.safe_dump(experiment), encoding="utf-8")
    call("fit", "--config", "experiment.yaml", "--name", "base")
    call("test", "--run", "base")


def copy_run(number: int) -> None:
    """Write a run that differs from the trained one in every file."""
    base, folder = LOGS / "base", LOGS / f"version_{number}"
    (folder / "test").mkdir(parents=True)
    (folder / "checkpoints").mkdir()
    os.link(base / "checkpoints/best.ckpt", folder / "checkpoints/best.ckpt")
    config = (base / "config.yaml").read_text(encoding="utf-8")
    config = config.replace("seed_everything: 0", f"seed_everything: {number}")
    config = config.replace("lr: 0.001", f"lr: {0.001 + number * 1e-6}")
    (folder / "config.yaml").write_text(config, encoding="utf-8")
    manifest = json.loads((base / "manifest.json").read_text(encoding="utf-8"))
    start = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=number)
    manifest["start"] = start.isoformat()
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2), encoding="utf-8")
    metrics = json.loads((base / "test/metrics.json").read_text(encoding="utf-8"))
    metrics["f1"]["value"] = number % 1000 / 1000
    (folder / "test/metrics.json").write_text(json.dumps(metrics, indent=2), encoding="utf-8")


def call(*args: str) -> tuple[float, float]:
    """Run a command of the program; return its seconds and its CPU seconds."""
    start, cpu = time.perf_counter(), cpu_seconds()
    command = [sys.executable, "-m", PACKAGE, *args]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)
    if done.returncode:
        sys.exit(f"{' '.join(args)}: exit code {done.returncode}: {done.stderr}")
    return time.perf_counter() - start, cpu_seconds() - cpu


def cpu_seconds() -> float:
    """Return the CPU seconds of all processes that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def newest() -> float:
    """Return the CPU seconds that the search for the newest finished run takes."""
    command = [sys.executable, "-c", NEWEST]
    return float(subprocess.run(command, capture_output=True, encoding="utf-8", check=True).stdout)


def measure() -> None:
    """Print the seconds of each command; files are in the system's cache for all of them."""
    call("runs", "--help")  # Write the bytecode.
    seconds, imports = call("runs", "--help")
    print(f"{'command':58}{'s':>8}{'CPU s':>8}{'beyond --help':>15}")
    print(f"{'runs --help':58}{seconds:8.2f}{imports:8.2f}")
    rows: list[tuple[str, list[str]]] = [
        ("runs, the first time", ["runs"]),
        ("runs", ["runs"]),
        (" ".join(SORTED), SORTED),
    ]
    for title, args in rows:
        seconds, cpu = call(*args)
        print(f"{title:58}{seconds:8.2f}{cpu:8.2f}{cpu - imports:15.2f}", flush=True)
    print(f"{'the newest finished run, within a process':58}{'':8}{newest():8.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5000, help="number of runs")
    parser.add_argument("--folder", type=Path, help="folder that keeps the runs")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        os.chdir(folder)
        if not LOGS.exists():
            train_one()
            for number in range(1, arguments.runs):
                copy_run(number)
        # An index of an earlier measurement would make the first call fast.
        for path in LOGS.glob(".index*"):
            path.unlink()
        print(f"{len(list(LOGS.glob('*/manifest.json')))} runs")
        measure()


if __name__ == "__main__":
    main()
