"""Several processes see each row once; killed or stopped, they resume to the same bits."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from conftest import ROOT, Cli
from engine.faults.harness import digest
from engine.faults.shards import ROWS, TRAINED

SHARDS = ["-m", "engine.faults.shards"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT / "tests"), "OMP_NUM_THREADS": "1"}
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
    *args: Any, nodes: int = 1, node: int = 0, port: str = "0", processes: int = 1
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
        sys.executable,
        "-m",
        "torch.distributed.run",
        *where,
        "--nproc-per-node",
        str(processes),
        *map(str, args),
    ]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of one process."""
    folder = tmp_path_factory.mktemp("alone")
    subprocess.run(
        [sys.executable, *SHARDS, folder, "1"], check=True, timeout=240, env=ENVIRONMENT, cwd=folder
    )
    return folder


@pytest.mark.parametrize(
    "world", [2, pytest.param(3, marks=pytest.mark.slow), pytest.param(4, marks=pytest.mark.slow)]
)
def test_results_do_not_depend_on_the_number_of_processes(
    world: int, alone: Path, work: Path
) -> None:
    command = torchrun(*SHARDS, work, world, processes=world, port=free_port())
    subprocess.run(command, check=True, timeout=240, env=ENVIRONMENT, cwd=work)
    together, single = (
        json.loads((folder / "results.json").read_text()) for folder in (work, alone)
    )
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
        assert (
            ours["test/accuracy"] == theirs["test/accuracy"]
        )  # It is a ratio of counts, so it is exact.
    for rows in TRAINED:
        result = together[f"fit {rows}"]
        assert result["val/accuracy"] == pytest.approx(result["direct"], abs=1e-7)


def started(command: list[str], work: Path) -> subprocess.Popen[str]:
    with (work / "out.txt").open("a") as out:
        return subprocess.Popen(
            command,
            env=ENVIRONMENT,
            cwd=work,
            stdout=out,
            stderr=out,
            text=True,
            start_new_session=True,
        )


def ended(process: subprocess.Popen[str], work: Path) -> int:
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
        model={"net": {"class_path": "MLP", "init_args": {"hidden": [8], "dropout": 0.2}}},
        data={"batch_size": 4},
        checkpoint={"every_seconds": None, "every_n_steps": 20, "monitor": "val/loss"},
    )
    return [sys.executable, "-m", "proj", "fit", "--config", str(config), *TWO]


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
            sys.executable,
            "-m",
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
        [*two[3:], "--name", "nodes", "--trainer.devices", "1", "--trainer.num_nodes", "2"],
    )
    nodes = [
        started(torchrun("-m", "proj", *flags, nodes=2, node=node, port=port), work)
        for node in (0, 1)
    ]
    assert [ended(node, work) for node in nodes] == [0, 0]
    assert sorted(path.name for path in (work / "lightning_logs").iterdir()) == ["local", "nodes"]
    local, nodes_digest = digest("local"), digest("nodes")
    for part in ("state_dict", "optimizer_states", "best"):
        assert local[part] == nodes_digest[part], part
    one = ["--trainer.devices", "1", "--trainer.num_nodes", "1", "--trainer.strategy", "auto"]
    for name in ("local", "nodes"):
        cli("test", "--run", name, *one)
    scores = [
        (work / f"lightning_logs/{name}/test/metrics.json").read_text()
        for name in ("local", "nodes")
    ]
    assert scores[0] == scores[1]
