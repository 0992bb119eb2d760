"""Studies whose trials run in the jobs of a SLURM array: on a real cluster and a real database."""

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest

from engine.faults.test_slurm import SLOW
from engine.tuning.conftest import STUDY_FOLDER, trials, wait_until
from engine.tuning.test_postgresql import server  # noqa: F401
from processes import REAL_PYTHON
from slurm_cluster import Cluster

Study = Callable[..., list[str]]
# The nodes of the cluster have two cores each and no GPU.
LAUNCHER = ["--launcher", "submitit", "time=10", "cpus-per-task=1"]


@pytest.fixture(autouse=True)
def submitit() -> None:
    pytest.importorskip("submitit", reason="submitit is not installed; it is in the extra slurm")


@pytest.fixture
def tune(study: Study, server: str, cluster: Cluster) -> Callable[..., Any]:  # noqa: F811
    """Start a study on the cluster; keyword arguments are those of ``study``."""

    def start(*flags: str, **keys: Any) -> subprocess.Popen[bytes]:
        command = [*study(**keys), "--storage", server, *LAUNCHER, *flags]
        with Path("log.txt").open("ab") as log:
            return subprocess.Popen(
                [REAL_PYTHON, "-m", "proj", *command],
                env={**cluster.environment, "PYTHONPATH": os.environ.get("PYTHONPATH", "")},
                stdout=log,
                stderr=log,
            )

    return start


def queued(cluster: Cluster) -> str:
    return cluster.call("squeue", "--noheader", "--format=%i")


def printed() -> str:
    return Path("log.txt").read_text()


@pytest.mark.slow
def test_the_jobs_of_an_array_share_a_study(
    tune: Callable[..., Any],
    cluster: Cluster,
    server: str,  # noqa: F811
) -> None:
    """Each trial once, an error in a trial ends that trial only, and the queue is empty."""
    process = tune("--workers", "2", trials=5)
    wait_until(lambda: len(queued(cluster).splitlines()) >= 1)
    assert process.wait(400) == 0, printed()
    assert [(row["trial"], row["state"]) for row in trials()] == [
        (number, "complete") for number in range(5)
    ]
    assert queued(cluster) == ""
    assert printed().count("submitting 2 jobs") == 1
    for number in range(5):
        assert f"trial {number} complete: val/f1" in printed()
    outputs = [path.read_text() for path in (STUDY_FOLDER / "slurm").glob("*_log.out")]
    # Both jobs trained.
    assert len(outputs) == 2
    assert all("complete: val/f1" in output for output in outputs)
    assert (STUDY_FOLDER / "slurm").stat().st_mode & 0o777 == 0o700
    assert (STUDY_FOLDER / "report.html").exists()


@pytest.mark.slow
def test_ctrl_c_and_the_time_limit_lose_no_trial(
    tune: Callable[..., Any],
    cluster: Cluster,
    server: str,  # noqa: F811
) -> None:
    """The jobs save their trials and end. The same command continues them, as do further jobs."""
    Path("slow.py").write_text(SLOW)
    sections = {"trainer": {"callbacks": ["slow.Slow"]}}
    space = {"model.optimizer.lr": {"log": [1e-3, 1e-1]}, "trainer.max_epochs": {"int": [60, 61]}}
    flags = ["--workers", "2", "--launcher", "submitit", "time=2", "signal=TERM@30"]
    keys = {"trials": 2, "space": space, "experiment_sections": sections}
    process = tune(*flags, **keys)
    checkpoints = [STUDY_FOLDER / f"trial_{i}/checkpoints/last.ckpt" for i in range(2)]
    wait_until(lambda: all(path.exists() for path in checkpoints), 200)
    process.send_signal(signal.SIGINT)
    assert process.wait(100) == 130, printed()
    assert queued(cluster) == ""
    assert "run the same command again to continue" in printed()

    process = tune(*flags, **keys)
    assert process.wait(500) == 0, printed()
    assert [row["state"] for row in trials()] == ["complete"] * 2
    # The signal comes after 61 to 91 seconds, and each trial takes longer.
    assert printed().count("submitting ") >= 3
    for i in range(2):
        assert "resumed: " in (STUDY_FOLDER / f"trial_{i}.txt").read_text()
    storage = optuna.storages.RDBStorage(server)
    states = [
        trial.state for trial in optuna.load_study(study_name="study", storage=storage).trials
    ]
    storage.remove_session()
    storage.engine.dispose()
    assert states.count(optuna.trial.TrialState.COMPLETE) == 2
    assert set(states) == {optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.FAIL}


@pytest.mark.slow
def test_the_trial_of_a_killed_job_is_continued(tune: Callable[..., Any], cluster: Cluster) -> None:
    """As a job that SLURM kills for its memory; here with trials on two devices."""
    devices = ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
    launcher = ["--workers", "2", "--launcher", "submitit", "time=10", "cpus-per-task=2"]
    Path("slow.py").write_text(SLOW)
    sections = {"trainer": {"callbacks": ["slow.Slow"]}}
    space = {"trainer.max_epochs": {"int": [5, 6]}}
    process = tune(*devices, *launcher, trials=3, space=space, experiment_sections=sections)
    wait_until((STUDY_FOLDER / "trial_0/checkpoints/last.ckpt").exists, 200)
    cluster.call("scancel", "--signal=KILL", "--full", queued(cluster).split()[0])
    assert process.wait(400) == 0, printed()
    assert [row["state"] for row in trials()] == ["complete"] * 3
    assert queued(cluster) == ""


@pytest.mark.slow
def test_options_that_sbatch_refuses_and_jobs_that_fail(
    tune: Callable[..., Any], work: Path
) -> None:
    process = tune("--launcher", "submitit", "time=10", "partition=missing")
    assert process.wait(100) == 2
    assert "error: --launcher: expected options that sbatch accepts, got an error: " in printed()
    assert "error: invalid partition specified: missing.\n" in printed()
    assert printed().count("\n") == 2  # what is done, and one message
    # The job starts in a folder where the study file is missing.
    (work / "elsewhere").mkdir()
    process = tune("--launcher", "submitit", "time=10", f"chdir={work / 'elsewhere'}")
    assert process.wait(200) == 3
    assert "no job of lightning_logs/studies/study ended well: --config: cannot read" in printed()
