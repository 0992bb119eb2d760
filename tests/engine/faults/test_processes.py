"""Several processes see each row once; killed or stopped, they resume to the same bits."""

import json
import os
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal

import processes
from conftest import Cli
from engine.faults.harness import digest
from engine.faults.shards import TRAINED

SHARDS = "engine.faults.shards"
TWO = [
    "--trainer.devices",
    "2",
    "--trainer.strategy",
    "ddp",
    "--trainer.accelerator",
    "cpu",
    "--trainer.enable_progress_bar",
    "false",
]


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def torchrun(
    *args: Any, nodes: int = 1, node: int = 0, port: str = "0", nproc: int = 1
) -> list[str]:
    where = [
        "--nnodes",
        str(nodes),
        "--node-rank",
        str(node),
        "--master-addr",
        "127.0.0.1",
        "--master-port",
        port,
    ]
    return [
        "torch.distributed.run",
        *where,
        "--nproc-per-node",
        str(nproc),
        *map(str, args),
    ]


# With batches of 4 rows, two processes evaluate 8 rows at a time: each remainder occurs twice.
TWO_ROUNDS = (*range(1, 18), 40)
EVERY_NUMBER = tuple(range(1, 41))


@pytest.mark.long
@pytest.mark.parametrize(
    ("world", "numbers_of_rows"),
    [
        (2, TWO_ROUNDS),
        pytest.param(2, EVERY_NUMBER, marks=pytest.mark.slow),
        pytest.param(3, EVERY_NUMBER, marks=pytest.mark.slow),
        pytest.param(4, EVERY_NUMBER, marks=pytest.mark.slow),
    ],
    ids=lambda value: str(value) if isinstance(value, int) else f"{len(value)} numbers of rows",
)
def test_results_do_not_depend_on_the_number_of_processes(
    world: int, numbers_of_rows: tuple[int, ...], work: Path
) -> None:
    """A row would be counted twice or left out if the split does not divide evenly."""
    (alone := work / "alone").mkdir()
    processes.run(SHARDS, alone, 1, *numbers_of_rows).check_returncode()
    command = torchrun("-m", SHARDS, work, world, *numbers_of_rows, nproc=world, port=free_port())
    processes.run(*command).check_returncode()
    together, single = (
        json.loads((folder / "results.json").read_text()) for folder in (work, alone)
    )
    for rows in numbers_of_rows:
        for verb in ("test", "predict"):
            one, several = (
                pl.read_parquet(folder / f"{verb}_{rows}.parquet") for folder in (alone, work)
            )
            assert several["row"].to_list() == list(range(rows))
            assert one["prediction"].equals(several["prediction"])
            assert_frame_equal(one, several, rel_tol=0, abs_tol=1e-6)
        ours, theirs = together[f"test {rows}"], single[f"test {rows}"]
        assert ours.keys() == theirs.keys()
        assert ours == pytest.approx(theirs, abs=1e-6, nan_ok=True)
        # A ratio of counts is exact.
        assert ours["test/accuracy"] == theirs["test/accuracy"]
    for rows in TRAINED:
        result = together[f"fit {rows}"]
        assert result["val/accuracy"] == pytest.approx(result["direct"], abs=1e-7)


def started(command: list[str], work: Path) -> processes.Process:
    with (work / "out.txt").open("a") as out:
        return processes.Process(*command, stdout=out, stderr=out)


def ended(process: processes.Process, work: Path) -> int:
    try:
        code = process.wait(120)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise
    if code not in (0, -9, 143):
        pytest.fail((work / "out.txt").read_text())
    return code


@pytest.fixture
def two(experiment: Any) -> list[Any]:
    """An experiment with dropout that takes some seconds on two processes."""
    config = experiment(
        rows=240,
        trainer={"max_epochs": 2},
        model={
            "net": {"class_path": "MLP", "init_args": {"hidden": [8], "dropout": 0.2}},
            "steps_per_execution": 4,  # "auto" measures, so it may differ between runs.
        },
        data={"batch_size": 4},
        checkpoint={"every_seconds": None, "every_n_steps": 20, "monitor": "val/loss"},
    )
    return ["proj", "fit", "--config", str(config), *TWO]


@pytest.mark.long
def test_two_killed_or_stopped_processes_resume_to_the_same_bits(
    two: list[str], work: Path
) -> None:
    assert ended(started([*two, "--name", "whole"], work), work) == 0
    for name, number in (("killed", signal.SIGKILL), ("stopped", signal.SIGTERM)):
        process = started([*two, "--name", name], work)
        checkpoint = (
            work / f"lightning_logs/{name}/checkpoints/previous.ckpt"
        )  # It exists once training has made some steps.
        end = time.monotonic() + 120
        while not checkpoint.exists() and process.poll() is None and time.monotonic() < end:
            time.sleep(0.02)
        if number == signal.SIGKILL:
            os.killpg(process.pid, number)  # both processes
        else:
            process.send_signal(number)  # The first one only, as a scheduler may do.
        assert ended(process, work) == (-9 if number == signal.SIGKILL else 143)
        status = json.loads((work / f"lightning_logs/{name}/manifest.json").read_text())["status"]
        assert status == ("running" if number == signal.SIGKILL else "stopped")
        resume = [
            "proj",
            "fit",
            "--resume",
            name,
            "--trainer.enable_progress_bar",
            "false",
        ]
        assert ended(started(resume, work), work) == 0
        assert digest(name) == digest("whole"), name


@pytest.mark.slow
def test_two_nodes_of_torchrun_train_as_two_local_processes(
    two: list[str], work: Path, cli: Cli
) -> None:
    two += ["--trainer.max_epochs", "2"]
    assert ended(started([*two, "--name", "local"], work), work) == 0
    port, flags = (
        free_port(),
        [*two[1:], "--name", "nodes", "--trainer.devices", "1", "--trainer.num_nodes", "2"],
    )
    nodes = [
        started(torchrun("-m", "proj", *flags, nodes=2, node=node, port=port), work)
        for node in (0, 1)
    ]
    assert [ended(node, work) for node in nodes] == [0, 0]
    assert sorted(path.name for path in (work / "lightning_logs").iterdir()) == ["local", "nodes"]
    local, nodes_digest = digest("local"), digest("nodes")
    for key in ("state_dict", "optimizer_states", "best"):
        assert local[key] == nodes_digest[key], key
    one = ["--trainer.devices", "1", "--trainer.num_nodes", "1", "--trainer.strategy", "auto"]
    for name in ("local", "nodes"):
        cli("test", "--run", name, *one)
    scores = [
        (work / f"lightning_logs/{name}/test/metrics.json").read_text()
        for name in ("local", "nodes")
    ]
    assert scores[0] == scores[1]
