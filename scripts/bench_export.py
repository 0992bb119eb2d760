"""Measure the time from the start of Python to a first prediction: a bundle and its alternatives.

usage: python scripts/bench_export.py [--rounds 5]

Trains and exports a table of 10 numbers and 5 categories in a temporary folder. Then starts a new
process for each way to predict one row, in turns, and prints the medians of imports and first
prediction, and of one further row: CPU time, which other programs do not disturb, and seconds.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import joblib
import numpy as np
import polars as pl
from rich.console import Console
from rich.table import Table
from sklearn.compose import make_column_transformer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

PACKAGE = next(path.parent.name for path in Path(__file__).parent.parent.glob("src/*/__main__.py"))
NUMBERS, CATEGORIES = [f"n{i}" for i in range(10)], [f"c{i}" for i in range(5)]

# Each loads a model and defines `predict(row)`.
WAYS = {
    "bundle in ONNX": """
        sys.path.insert(0, "onnx_bundle")
        from runtime import load
        model = load("onnx_bundle")
        predict = lambda row: model.predict(row)
    """,
    "bundle of torch.export": """
        sys.path.insert(0, "torch_bundle")
        from runtime import load
        model = load("torch_bundle")
        predict = lambda row: model.predict(row)
    """,
    "PACKAGE.load": """
        import PACKAGE
        model = PACKAGE.load("version_0")
        predict = lambda row: model.predict(row)
    """,
    "joblib, scikit-learn": """
        import joblib, numpy
        model = joblib.load("model.joblib")
        predict = lambda row: model.predict_proba(numpy.array([list(row.values())], object))
    """,
}
TIMED = """
import time
start, cpu = time.perf_counter(), time.process_time()
import json, sys
row = json.loads(sys.argv[1])
{way}
predict(row)
first = time.process_time() - cpu, time.perf_counter() - start
cpu = time.process_time()
for _ in range(200):
    predict(row)
print(json.dumps([*first, (time.process_time() - cpu) / 200]))
"""


def prepare() -> dict[str, float | str]:
    """Write the table, train, export, and return one row."""
    rng = np.random.default_rng(0)
    numbers = rng.normal(size=(2000, len(NUMBERS)))
    columns = {name: numbers[:, i] for i, name in enumerate(NUMBERS)}
    columns |= {name: rng.choice(["red", "green", "blue"], 2000) for name in CATEGORIES}
    y = np.where(numbers[:, 0] + rng.normal(size=2000) > 0, "yes", "no")
    table = pl.DataFrame(columns)
    table.with_columns(y=y).write_csv("table.csv")
    run("init", "table.csv", "--target", "y")
    run("fit", "--config", "configs/table.yaml", "--trainer.max_epochs", "3")
    run("test")
    for name in ("onnx", "torch"):
        run("export", "--format", name, "--output", f"{name}_bundle")
    scale = StandardScaler(), slice(0, len(NUMBERS))
    encode = OneHotEncoder(), slice(len(NUMBERS), len(NUMBERS) + len(CATEGORIES))
    encoder = make_column_transformer(scale, encode)
    pipeline = make_pipeline(encoder, LogisticRegression())
    joblib.dump(pipeline.fit(table.to_numpy(), y), "model.joblib")
    return table.row(0, named=True)


def run(*arguments: str) -> None:
    quiet = ["--trainer.enable_progress_bar", "false"] if arguments[0] == "fit" else []
    command = [sys.executable, "-m", PACKAGE, *arguments, *quiet]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def measure(way: str, row: dict[str, float | str]) -> tuple[float, float, float]:
    """Return CPU time and seconds to the first prediction, and CPU time of one further row."""
    lines = [line.strip() for line in way.replace("PACKAGE", PACKAGE).strip().splitlines()]
    program = TIMED.format(way="\n".join(lines))
    command = [sys.executable, "-c", program, json.dumps(row)]
    process = subprocess.run(command, check=True, capture_output=True, encoding="utf-8")
    cpu, seconds, further = json.loads(process.stdout)
    return cpu, seconds, further


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        row = prepare()
        for way in WAYS.values():  # Fills the caches of the disk and of bytecode.
            measure(way, row)
        times = {name: [] for name in WAYS}
        for _ in range(rounds):
            for name, way in WAYS.items():
                times[name].append(measure(way, row))
    headings = "first prediction, CPU time", "seconds", "one more row, CPU time"
    table = Table("one row of 15 columns", *headings)
    for name, values in times.items():
        cpu, seconds, further = map(statistics.median, zip(*values, strict=True))
        name = name.replace("PACKAGE", PACKAGE)
        table.add_row(name, f"{cpu:.2f} s", f"{seconds:.2f} s", f"{further * 1000:.2f} ms")
    Console().print(table)


if __name__ == "__main__":
    main()
