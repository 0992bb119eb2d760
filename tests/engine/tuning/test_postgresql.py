"""A study that two processes share through a real PostgreSQL server."""

import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest

import processes
from engine.tuning.conftest import run, start, trials, wait_until
from proj.engine.tuning import study as study_module

POSTGRESQL_BIN = next(
    (path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")), None
)


@pytest.fixture
def server() -> Iterator[str]:
    """Start a server and return the URL of its empty database."""
    initdb = shutil.which("initdb")
    programs = POSTGRESQL_BIN or (Path(initdb).parent if initdb else None)
    if programs is None:
        pytest.skip("PostgreSQL is not installed; it is in Debian's package postgresql")
    folder = Path(tempfile.mkdtemp())
    as_user: dict[str, Any] = {}
    if os.getuid() == 0:  # The server refuses to run as root.
        as_user = {"user": "nobody"}
        shutil.chown(folder, "nobody")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    data = folder / "data"
    subprocess.run(
        [programs / "initdb", "-D", data, "-A", "trust", "-U", "tester"],
        check=True,
        cwd=folder,
        capture_output=True,
        **as_user,
    )
    command = [
        programs / "postgres",
        "-D",
        data,
        "-p",
        str(port),
        "-c",
        "listen_addresses=127.0.0.1",
        "-k",
        folder,
    ]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, **as_user)
    try:
        wait_until(lambda: "ready to accept connections" in (folder / "log").read_text(), 30)
        yield f"postgresql://tester@127.0.0.1:{port}/postgres"
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(30)
        shutil.rmtree(folder)


@pytest.mark.long
def test_a_study_survives_the_kill_of_one_of_two_processes(
    study: Callable[..., list[str]], server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The surviving process takes over the trials of the killed one."""
    quick = {study_module.__name__: {"HEARTBEAT_SECONDS": 1, "GRACE_SECONDS": 4}}
    monkeypatch.setenv(processes.CONSTANTS, json.dumps(quick))
    command = [*study(6), "--storage", server]
    first = start(*command)
    wait_until(lambda: Path("lightning_logs/studies/study/trial_0/checkpoints/last.ckpt").exists())
    second = start(*command)
    others = [
        Path(f"lightning_logs/studies/study/trial_{number}/checkpoints/last.ckpt")
        for number in (1, 2, 3)
    ]
    wait_until(lambda: any(path.exists() for path in others))
    first.kill()
    first.wait()
    assert second.wait(200) == 0, Path("log.txt").read_text()
    assert [(row["trial"], row["state"]) for row in trials()] == [
        (number, "complete") for number in range(6)
    ]
    storage = optuna.storages.RDBStorage(server)
    states = [
        trial.state for trial in optuna.load_study(storage=storage, study_name="study").trials
    ]
    storage.remove_session()
    storage.engine.dispose()
    assert states.count(optuna.trial.TrialState.COMPLETE) == 6
    assert optuna.trial.TrialState.RUNNING not in states
    # The budget is used up.
    run(*command)
    assert len(trials()) == 6
