"""Measure what a run costs beside its steps: starts of commands, and whole trainings.

usage: python scripts/bench_start.py [--what commands whole parts] [--rounds 3] [--json FILE]

commands: CPU seconds of each command in a new process, with bytecode in place, on two runs of
configs/breast_cancer.yaml, and their median. ``import lightning.pytorch`` is for comparison.
whole: seconds of the whole ``Trainer.fit`` call on bench.py's tiny net with everything on, compared
with the loop over slices, for 3 and 10 epochs. Each training has a new process, in turns.
parts: milliseconds of the parts of such a training that do not grow with the number of epochs, and
of those once per epoch.
"""

import argparse
import json
import multiprocessing
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial, wraps
from importlib import import_module
from pathlib import Path
from typing import Any

import bench
import lightning.pytorch as L
import numpy as np
import torch
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parent.parent
CONFIG = str(ROOT / "configs/breast_cancer.yaml")
TABLE_ROWS = 300

COMMANDS = {
    "--help": ["--help"],
    "fit --help": ["fit", "--help"],
    "compare --help": ["compare", "--help"],
    "runs": ["runs"],
    "compare": ["compare", "a", "b"],
    "report": ["report", "a"],
    "test": ["test", "--run", "a"],
    "predict": ["predict", "--run", "a"],
    "init": ["init", "table.csv", "--target", "y", "--output", "new.yaml", "--force"],
    "fit, one epoch": ["fit", "--config", CONFIG, "--trainer.max_epochs", "1"],
    "fit, one epoch, table": ["fit", "--config", "table.yaml", "--trainer.max_epochs", "1"],
    "a mistyped flag": ["fit", "--config", CONFIG, "--trainer.max_epoch", "1"],
}

# Methods and functions, by module, that take the time of a training's parts.
PARTS = {
    "callbacks.build_model:BuildModel.setup": "the net, its metrics",
    "callbacks.steps_per_execution:StepsPerExecution.on_fit_start": "steps per execution",
    "callbacks.progress:ParameterSummary.on_fit_start": "table of parameters",
    "callbacks.monitoring:TensorBoardSummary.on_train_start": "config for TensorBoard",
    "callbacks.monitoring:_log_graph": "graph for TensorBoard",
    "callbacks.monitoring:TensorBoardSummary.on_fit_end": "hyperparameters for TensorBoard",
    "callbacks.resume_state:ResumeCheckpoint._save": "last.ckpt, at the start and the end",
    "callbacks.checkpoint_io:DurableCheckpointIO.save_checkpoint": "all checkpoints",
    "callbacks.progress:StepProgressBar.teardown": "end of the progress bar",
    "callbacks.best_checkpoint:BestCheckpoint.on_validation_end": "best epoch, in memory",
    "callbacks.monitoring:RunLogger.log_metrics": "scalars for TensorBoard",
}


def measure_commands(console: Console, rounds: int) -> dict[str, Any]:
    results: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _prepare(folder)
        for number in range(rounds + 1):
            for command, words in COMMANDS.items():
                seconds = cpu_seconds(["-m", bench.PACKAGE, *words], folder)
                # The first round reads cold files, and writes bytecode and the help.
                results.setdefault(command, []).extend([seconds] if number else [])
            seconds = cpu_seconds(["-c", "import lightning.pytorch"], folder)
            results.setdefault("import lightning.pytorch", []).extend([seconds] if number else [])
    table = Table("command", "CPU seconds", "range")
    for command, seconds_of in results.items():
        table.add_row(command, *bench.median_and_range(seconds_of))
    console.print(table)
    return results


def _prepare(folder: Path) -> None:
    """Make two tested runs, a table, and its experiment."""
    rng = np.random.default_rng(0)
    rows = rng.random((TABLE_ROWS, 2)).round(4)
    lines = [f"{a},{b},{'yes' if a + b > 1 else 'no'}" for a, b in rows]
    (folder / "table.csv").write_text("\n".join(["a,b,y", *lines]), encoding="utf-8")
    for run in ("a", "b"):
        fit = ["fit", "--config", CONFIG, "--trainer.max_epochs", "2", "--name", run]
        cpu_seconds(["-m", bench.PACKAGE, *fit], folder)
        cpu_seconds(["-m", bench.PACKAGE, "test", "--run", run], folder)
    init = ["init", "table.csv", "--target", "y", "--output", "table.yaml"]
    cpu_seconds(["-m", bench.PACKAGE, *init], folder)


def cpu_seconds(arguments: list[str], folder: Path) -> float:
    """Return the CPU seconds, of user and system, of a Python process and its children."""
    env = os.environ | {"PYTHONDONTWRITEBYTECODE": "", "XDG_CACHE_HOME": str(folder / "cache")}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=env, capture_output=True, check=False
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


# Whole trainings


class NoTurns:
    """In place of ``bench.Turns``: nobody waits."""

    def wait(self) -> None:
        pass


def seconds_of_loop(epochs: int) -> float:
    with tempfile.TemporaryDirectory() as name:
        work = _write_data(Path(name), epochs)
        torch.manual_seed(0)
        begin = time.perf_counter()
        bench.plain_loop(work, Path(name), NoTurns())  # type: ignore[arg-type]
        return time.perf_counter() - begin


def seconds_of_fit(epochs: int) -> float:
    """Return the seconds of the ``Trainer.fit`` call of ``fit``, without those of the preflight."""
    fit, seconds = L.Trainer.fit, []

    def timed(*args: Any, **options: Any) -> None:
        begin = time.perf_counter()
        fit(*args, **options)
        seconds.append(time.perf_counter() - begin)

    L.Trainer.fit = timed  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as name, bench.silence():
        work = _write_data(Path(name), epochs)
        command = bench.command(work, Path(name))
        clock = command.index("--trainer.callbacks")
        bench.call([*command[:clock], *command[clock + 2 :], "--allow", "bench"])
    return seconds[-1]


def _write_data(folder: Path, epochs: int) -> bench.Work:
    work = bench.WORK["tiny"]._replace(turns=epochs, epochs_per_turn=1)
    np.savez(folder / "data.npz", **bench.arrays(work))
    return work


def measure_whole(console: Console, rounds: int) -> dict[str, Any]:
    table = Table("epochs", "loop, seconds", "Trainer.fit, seconds", "ratio", "range")
    results = {}
    for epochs in (3, 10):
        loop, ours = [], []
        for _ in range(rounds):
            loop.append(in_new_process(partial(seconds_of_loop, epochs)))
            ours.append(in_new_process(partial(seconds_of_fit, epochs)))
        ratios = [a / b for a, b in zip(loop, ours, strict=True)]
        medians = [f"{statistics.median(values):.2f}" for values in (loop, ours)]
        table.add_row(str(epochs), *medians, *bench.median_and_range(ratios))
        results[str(epochs)] = {"loop": loop, "fit": ours, "ratio": ratios}
    console.print(table)
    return results


def in_new_process(function: Callable[[], Any]) -> Any:
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        return pool.apply(function)


# Parts


def milliseconds_of_parts(epochs: int) -> dict[str, float]:
    totals: dict[str, float] = {}
    for place, label in PARTS.items():
        module, names = place.split(":")
        *owners, name = names.split(".")
        owner = import_module(f"{bench.PACKAGE}.engine.{module}")
        for attribute in owners:
            owner = getattr(owner, attribute)
        setattr(owner, name, _timed(getattr(owner, name), label, totals))
    totals["Trainer.fit"] = 1e3 * seconds_of_fit(epochs)
    return totals


def _timed(function: Callable[..., Any], label: str, totals: dict[str, float]) -> Any:
    @wraps(function)
    def call(*args: Any, **options: Any) -> Any:
        begin = time.perf_counter()
        try:
            return function(*args, **options)
        finally:
            totals[label] = totals.get(label, 0.0) + 1e3 * (time.perf_counter() - begin)

    return call


def measure_parts(console: Console, rounds: int) -> dict[str, Any]:
    table = Table("part", "ms, 3 epochs", "ms, 10 epochs")
    results: dict[str, Any] = {}
    for epochs in (3, 10):
        for _ in range(rounds):
            parts = in_new_process(partial(milliseconds_of_parts, epochs))
            for label, value in parts.items():
                results.setdefault(label, {}).setdefault(str(epochs), []).append(value)
    for label, values in results.items():
        table.add_row(label, *(f"{statistics.median(values[n]):.1f}" for n in ("3", "10")))
    console.print(table)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    kinds = {"commands": measure_commands, "whole": measure_whole, "parts": measure_parts}
    parser.add_argument("--what", nargs="+", choices=kinds, default=list(kinds))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    results: dict[str, Any] = {"machine": bench.machine("cpu"), "rounds": arguments.rounds}
    console = Console(width=120)
    console.print(", ".join(f"{name} {value}" for name, value in results["machine"].items()))
    for kind in arguments.what:
        results[kind] = kinds[kind](console, arguments.rounds)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
