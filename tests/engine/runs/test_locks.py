"""Readers and writers of one run at the same time: they see results that belong together."""

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from conftest import QUIET, Cli
from proj.engine.evaluation.prediction_set import read_table
from proj.engine.runs import locks
from proj.engine.runs.contents import write_metrics
from proj.engine.runs.files import atomic_write
from proj.engine.runs.locks import read_results, replace_results
from proj.engine.runs.run import Run
from proj.errors import UserError

LOGS = Path("lightning_logs")
# Calls one command line again and again, and prints how many calls succeeded.
LOOP = """
import sys
from proj.engine.cli import main
codes = [main(sys.argv[2:]) for _ in range(int(sys.argv[1]))]
print(f"{codes.count(0)} of {len(codes)} succeeded")
"""
# Checks again and again that the metrics are those of the predictions.
CHECK = """
import sys
from pathlib import Path
from proj.engine.evaluation.prediction_set import read_table
from proj.engine.runs.locks import read_results
from proj.engine.runs.run import Run
run, seen = Run(Path("lightning_logs/only")), set()
for _ in range(int(sys.argv[1])):
    with read_results(run, "test"):
        metrics = run.metrics("test")
        table = read_table(run.path / "test" / "predictions.parquet")
    accuracy = (table["target"] == table["prediction"]).mean()
    assert abs(metrics["accuracy"]["value"] - accuracy) < 1e-6, (metrics["accuracy"], accuracy)
    seen.add(round(accuracy, 6))
print(f"{sys.argv[1]} of {sys.argv[1]} succeeded")
"""


def write(run: Run, value: float) -> None:
    """Replace the results by some that all have one value."""
    with replace_results(run, "test"):
        table = pl.DataFrame({"prediction": [value] * 1000})
        atomic_write(run.path / "test/predictions.parquet", table.write_parquet)
        write_metrics(run.path / "test/metrics.json", {"mine": {"value": value}})


def read(run: Run) -> tuple[set[float], float]:
    """Return the values in the predictions, and that in the metrics."""
    with read_results(run, "test"):
        table = read_table(run.path / "test/predictions.parquet")
        return set(table["prediction"]), run.metrics("test")["mine"]["value"]


def test_readers_see_predictions_and_metrics_of_one_test(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "POLL_SECONDS", 0.001)
    run = Run(work / "run")
    run.path.mkdir()
    write(run, 0.0)
    stop = threading.Event()

    def write_on(first: float) -> int:
        rounds = 0
        while not stop.wait(0.005):  # The reader, and the other writer, get the lock meanwhile.
            rounds += 1
            write(run, first + rounds)
        return rounds

    with ThreadPoolExecutor(2) as pool:
        writers = [pool.submit(write_on, first) for first in (0.0, 10_000.0)]
        seen, reads = set(), 0
        try:
            while (reads := reads + 1) <= 300 or len(seen) < 20:
                predicted, value = read(run)
                assert predicted == {value}
                seen.add(value)
        finally:
            stop.set()
        assert all(writer.result() > 0 for writer in writers)


def test_a_killed_writer_leaves_no_metrics_beside_other_predictions(work: Path) -> None:
    """The lock of a process ends with it, and the metrics are written last."""
    run = Run(work / "run")
    run.path.mkdir()
    write(run, 1.0)

    def write_a_part() -> None:
        with replace_results(run, "test"):
            table = pl.DataFrame({"prediction": [2.0]})
            atomic_write(run.path / "test/predictions.parquet", table.write_parquet)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_a_part()
    with pytest.raises(UserError, match="expected the metrics of the test split, found no file"):
        run.metrics("test")
    write(run, 3.0)
    assert read(run) == ({3.0}, 3.0)


def test_a_writer_that_never_ends_gives_a_message(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(work / "run")
    run.path.mkdir()
    write(run, 1.0)
    monkeypatch.setattr(locks, "RESULTS_SECONDS", 0.1)
    with replace_results(run, "test"):
        for other in (read_results, replace_results):
            with pytest.raises(UserError, match="is being written by another process"):
                other(run, "test").__enter__()
    # Readers do not exclude each other.
    write(run, 1.0)
    with read_results(run, "test"):
        assert read(run) == ({1.0}, 1.0)


@pytest.mark.slow
def test_test_report_and_compare_at_the_same_time(experiment: Any, cli: Cli) -> None:
    """Two tests of different checkpoints, and readers of what they write."""
    rounds = "60"
    config = experiment("binary", trainer={"max_epochs": 6})
    for name in ("only", "other"):
        cli("fit", "--config", config, "--name", name)
        cli("test", "--run", name)
    commands: list[list[str]] = [
        [LOOP, rounds, "test", "--run", "only", *QUIET],
        [LOOP, rounds, "test", "--run", "only", "--ckpt_path", "last", *QUIET],
        [LOOP, rounds, "report", "only"],
        [LOOP, rounds, "compare", "only", "other"],
        [CHECK, "500"],
    ]
    started = [
        subprocess.Popen(
            [sys.executable, "-c", *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for command in commands
    ]
    for process, (_, count, *verb) in zip(started, commands, strict=True):
        output, errors = process.communicate()
        assert f"{count} of {count} succeeded" in output, (verb, errors[-2000:])
