"""The SLURM job, stopped before its limit, resumes when it is queued again.

``srun`` and ``scontrol`` are replaced by scripts.
"""

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

import processes
from conftest import ROOT
from engine.faults.harness import digest

SRUN = """#!/usr/bin/env bash
# two tasks of two nodes; SIGTERM reaches both, as from SLURM
pids=()
for task in 0 1; do
    SLURM_PROCID=$task SLURM_NODEID=$task SLURM_LOCALID=0 SLURM_NTASKS=2 "${@:3}" &
    pids+=($!)
done
trap 'kill -TERM "${pids[@]}"' TERM
worst=0
for pid in "${pids[@]}"; do
    wait "$pid"; code=$?
    while kill -0 "$pid" 2>/dev/null; do wait "$pid"; code=$?; done
    ((code > worst)) && worst=$code
done
exit "$worst"
"""


def job(work: Path) -> subprocess.Popen[bytes]:
    programs = work / "bin"
    programs.mkdir(exist_ok=True)
    for name, text in (
        ("srun", SRUN),
        ("scontrol", '#!/usr/bin/env bash\necho "$@" >> requeued\n'),
    ):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    python = programs / "python"
    if not python.exists():
        python.symlink_to(processes.stand_in())
    environment = {
        **os.environ,
        "PATH": f"{programs}:{os.environ['PATH']}",
        "SLURM_JOB_ID": "77",
        "SLURM_JOB_NAME": "job",
        "SLURM_NNODES": "2",
        "SLURM_NTASKS": "2",
        "SLURM_NTASKS_PER_NODE": "1",
        "SLURM_NODELIST": "127.0.0.1",
        "MASTER_ADDR": "127.0.0.1",
        "OMP_NUM_THREADS": "1",
    }
    with (work / "out.txt").open("a") as out:
        return subprocess.Popen(
            ["bash", ROOT / "scripts/slurm.sh", "experiment.yaml"],
            cwd=work,
            env=environment,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )


@pytest.mark.slow
def test_a_requeued_job_resumes_to_the_same_bits(experiment: Any, work: Path) -> None:
    experiment(
        rows=240,
        trainer={"max_epochs": 4},
        data={"batch_size": 4},
        checkpoint={"every_seconds": None, "every_n_steps": 5},
    )
    process = job(work)
    assert process.wait(120) == 0, (work / "out.txt").read_text()
    (work / "lightning_logs/slurm_77").rename(work / "lightning_logs/whole")

    process = job(work)
    end = time.monotonic() + 100
    while (
        not (work / "lightning_logs/slurm_77/checkpoints/previous.ckpt").exists()
        and time.monotonic() < end
    ):
        time.sleep(0.02)
    (srun,) = (
        int(pid)
        for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    )
    os.kill(srun, signal.SIGTERM)  # SLURM sends the signal to the job's steps.
    assert process.wait(60) == 143, (work / "out.txt").read_text()
    assert (work / "requeued").read_text() == "requeue 77\n"
    assert job(work).wait(120) == 0, (work / "out.txt").read_text()
    assert (
        "resumed: lightning_logs/slurm_77/checkpoints/last.ckpt" in (work / "out.txt").read_text()
    )
    assert digest("slurm_77") == digest("whole")
