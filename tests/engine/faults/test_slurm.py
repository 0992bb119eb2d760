"""The SLURM job, stopped before its limit, resumes when it is queued again: on a real cluster."""

import os
import subprocess
import warnings
from pathlib import Path
from typing import Any

import pytest

from conftest import ROOT, Cli, Trained
from engine.faults.harness import digest
from slurm_cluster import Cluster

SCRIPT = ROOT / "scripts/slurm.sh"
# The cluster has no GPUs, and two cores for each node.
HERE = ("--gres=none", "--cpus-per-task=1")
# A training of a minute on a machine of any speed: 360 batches on each of two processes.
SLOW = """
import time
from lightning.pytorch import Callback
class Slow(Callback):
    def on_train_batch_end(self, *args, **options):
        time.sleep(0.15)
"""


@pytest.fixture
def config(experiment: Any, work: Path) -> Path:
    (work / "slow.py").write_text(SLOW)
    path: Path = experiment(
        rows=240,
        trainer={"max_epochs": 16, "callbacks": ["slow.Slow"], "enable_model_summary": False},
        model={"net": {"class_path": "MLP", "init_args": {"hidden": [8], "dropout": 0.2}}},
        data={"batch_size": 4},
        checkpoint={"every_seconds": None, "every_n_steps": 50},
    )
    return path


@pytest.mark.slow
def test_a_job_of_two_nodes_stops_before_its_limit_and_resumes_to_the_same_bits(
    config: Path, work: Path, cluster: Cluster
) -> None:
    """The signal, the checkpoint, the requeue and the resume are SLURM's own."""
    whole = cluster.submit("--time=10", *HERE, "--output=whole.txt", SCRIPT, config)
    assert cluster.wait_for_end(whole, work / "whole.txt") == "COMPLETED"
    assert (
        f"run: lightning_logs/slurm_{whole} on 2 nodes with 1 x cpu"
        in (work / "whole.txt").read_text()
    )

    # SLURM looks for limits every 30 seconds: the signal comes 5 to 35 seconds before this one.
    job = cluster.submit("--time=1", "--signal=TERM@5", *HERE, "--output=job.txt", SCRIPT, config)
    assert cluster.wait_for_end(job, work / "job.txt") == "COMPLETED"
    output = (work / "job.txt").read_text()
    assert "DUE TO TIME LIMIT" not in output
    assert int(cluster.field(job, "Restarts")) >= 1
    assert f"resumed: lightning_logs/slurm_{job}/checkpoints/last.ckpt" in output
    runs = {path.name for path in (work / "lightning_logs").iterdir() if path.is_dir()}
    assert runs == {f"slurm_{whole}", f"slurm_{job}"}
    assert digest(f"slurm_{job}") == digest(f"slurm_{whole}")


@pytest.mark.slow
def test_a_job_with_a_wrong_config_fails_once(work: Path, cluster: Cluster) -> None:
    """A job that is queued again for each error would run forever."""
    job = cluster.submit("--time=5", *HERE, "--output=job.txt", SCRIPT, "missing.yaml")
    assert cluster.wait_for_end(job, work / "job.txt") == "FAILED"
    assert cluster.field(job, "ExitCode") == "2:0"
    assert cluster.field(job, "Restarts") == "0"
    assert "missing.yaml" in (work / "job.txt").read_text()


@pytest.mark.parametrize("job", [None, "7"])
def test_a_machine_with_srun_gives_a_hint_in_jobs_only(
    job: str | None, trained: Trained, cli: Cli, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Login nodes have the command, too, and Lightning warns whenever it builds a Trainer."""
    trained()
    (work / "srun").touch(0o755)
    monkeypatch.setenv("PATH", str(work), prepend=os.pathsep)
    if job:
        monkeypatch.setenv("SLURM_JOB_ID", job)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        cli("test")
    hints = [str(warning.message) for warning in caught if "srun" in str(warning.message)]
    assert bool(hints) == bool(job)


@pytest.mark.parametrize(
    ("code", "has_checkpoint", "called"),
    [
        (0, False, ["python -m proj fit --config c.yaml --name slurm_7"]),
        (2, True, ["python -m proj fit --resume slurm_7"]),
        (143, False, ["python -m proj fit --config c.yaml --name slurm_7", "requeue 7"]),
    ],
)
def test_the_job_is_queued_again_after_a_signal_only(
    code: int, has_checkpoint: bool, called: list[str], work: Path
) -> None:
    """The decisions of the script, without SLURM: functions replace its two commands."""
    run = work / "lightning_logs/slurm_7"
    (run / "checkpoints").mkdir(parents=True)
    if has_checkpoint:
        (run / "checkpoints/last.ckpt").touch()
    commands = f'srun() {{ echo "${{@:3}}"; return {code}; }}\nscontrol() {{ echo "$@"; }}\n'
    (work / "commands.sh").write_text(commands)
    environment = {"BASH_ENV": str(work / "commands.sh"), "PATH": os.environ["PATH"]}
    environment |= {"SLURM_JOB_ID": "7", "SLURM_NNODES": "2", "SLURM_NTASKS_PER_NODE": "1"}
    result = subprocess.run(
        ["bash", SCRIPT, "c.yaml"], env=environment, stdout=subprocess.PIPE, text=True
    )
    assert result.returncode == code
    lines = [line.partition(" --trainer")[0] for line in result.stdout.splitlines()]
    assert lines == called
    # A folder without a checkpoint would be in the way of a new run of this name.
    assert run.exists() == has_checkpoint
