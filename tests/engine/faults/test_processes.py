"""Several processes: each row is seen once, whatever the numbers; killed or stopped, they go on to the same bits."""

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
from engine.faults.shards import ROWS, TRAINED

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


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process finds."""
    folder = tmp_path_factory.mktemp("alone")
    processes.run(SHARDS, folder, "1", cwd=folder).check_returncode()
    return folder


@pytest.mark.parametrize(
    "world", [2, pytest.param(3, marks=pytest.mark.slow), pytest.param(4, marks=pytest.mark.slow)]
)
def test_every_number_of_rows_gives_what_one_process_gives(
    world: int, alone: Path, work: Path
) -> None:
    command = torchrun("-m", SHARDS, work, world, nproc=world, port=free_port())
    processes.run(*command).check_returncode()
    together, single = (json.loads((folder / "found.json").read_text()) for folder in (work, alone))
    for rows in ROWS:
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
        assert ours["test/accuracy"] == theirs["test/accuracy"]  # made of counts
    for rows in TRAINED:
        found = together[f"fit {rows}"]
        assert found["val/accuracy"] == pytest.approx(found["by hand"], abs=1e-7)


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
    """An experiment that takes some seconds on two processes, with dropout."""
    config = experiment(
        rows=240,
        trainer={"max_epochs": 2},
        model={"net": {"class_path": "MLP", "init_args": {"hidden": [8], "dropout": 0.2}}},
        data={"batch_size": 4},
        checkpoint={"every_seconds": None, "every_n_steps": 20, "monitor": "val/loss"},
    )
    return ["proj", "fit", "--config", str(config), *TWO]


def test_two_processes_killed_or_stopped_come_to_the_same_bits(two: list[str], work: Path) -> None:
    assert ended(started([*two, "--name", "whole"], work), work) == 0
    for name, number in (("killed", signal.SIGKILL), ("stopped", signal.SIGTERM)):
        process = started([*two, "--name", name], work)
        checkpoint = (
            work / f"lightning_logs/{name}/checkpoints/previous.ckpt"
        )  # so that it is under way
        end = time.monotonic() + 120
        while not checkpoint.exists() and process.poll() is None and time.monotonic() < end:
            time.sleep(0.02)
        if number == signal.SIGKILL:
            os.killpg(process.pid, number)  # both processes
        else:
            process.send_signal(number)  # the first one only, as a scheduler may
        assert ended(process, work) == (-9 if number == signal.SIGKILL else 143)
        status = json.loads((work / f"lightning_logs/{name}/manifest.json").read_text())["status"]
        assert status == ("running" if number == signal.SIGKILL else "stopped")
        go_on = [
            "proj",
            "fit",
            "--resume",
            name,
            "--trainer.enable_progress_bar",
            "false",
        ]
        assert ended(started(go_on, work), work) == 0
        assert digest(name) == digest("whole"), name


@pytest.mark.slow
def test_two_nodes_of_torchrun_train_as_two_processes_here(
    two: list[str], work: Path, cli: Cli
) -> None:
    two += ["--trainer.max_epochs", "2"]
    assert ended(started([*two, "--name", "here"], work), work) == 0
    port, flags = (
        free_port(),
        [*two[1:], "--name", "nodes", "--trainer.devices", "1", "--trainer.num_nodes", "2"],
    )
    nodes = [
        started(torchrun("-m", "proj", *flags, nodes=2, node=node, port=port), work)
        for node in (0, 1)
    ]
    assert [ended(node, work) for node in nodes] == [0, 0]
    assert sorted(path.name for path in (work / "lightning_logs").iterdir()) == ["here", "nodes"]
    here, there = digest("here"), digest("nodes")
    for part in ("state_dict", "optimizer_states", "best"):
        assert here[part] == there[part], part
    one = ["--trainer.devices", "1", "--trainer.num_nodes", "1", "--trainer.strategy", "auto"]
    for name in ("here", "nodes"):
        cli("test", "--run", name, *one)
    scores = [
        (work / f"lightning_logs/{name}/test/metrics.json").read_text()
        for name in ("here", "nodes")
    ]
    assert scores[0] == scores[1]
