"""A real SLURM cluster on this machine: one controller and two nodes, below one folder.

Each daemon is a child process of the tests and is stopped by its id. Jobs are tracked through
/proc, so neither systemd nor writable cgroups are needed. The names of the nodes are addresses of
the loopback interface, which the processes of a job resolve without an entry in /etc/hosts.
"""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

NODES = ("127.0.0.1", "127.0.0.2")
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun")
SYSTEM_PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"

# A job that is queued again waits until its credential has expired: five seconds instead of 120.
SLURM_CONF = """
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1,batch_sched_delay=0
SlurmdParameters=config_overrides
MpiDefault=none
KillWait=30
{nodes}
PartitionName=all Nodes=ALL Default=YES State=UP
"""

# SLURM 22.05 initializes a plugin for cgroups even if nothing uses it. That of version 1 needs no
# controllers until a task is put into a group.
CGROUP_CONF = """
CgroupPlugin=cgroup/v1
CgroupMountpoint={folder}/cgroup
"""


def missing_programs() -> list[str]:
    """Return the programs of SLURM and of MUNGE that are not installed."""
    return [name for name in PROGRAMS if shutil.which(name, path=SYSTEM_PATH) is None]


class Cluster:
    """The client programs of a running cluster.

    Attributes:
        folder: configuration, state and logs of the daemons.
        environment: variables for clients and for jobs; the ``python`` of a job is that of the
            tests.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        outside = {
            name: value for name, value in os.environ.items() if not name.startswith("SLURM")
        }
        self.environment = {
            **outside,
            "PATH": f"{Path(sys.executable).parent}:{SYSTEM_PATH}",
            "SLURM_CONF": str(folder / "slurm.conf"),
            "OMP_NUM_THREADS": "1",
            "GLOO_SOCKET_IFNAME": "lo",
        }

    def call(self, *command: Any) -> str:
        """Run a client program and return its output."""
        result = subprocess.run(
            list(map(str, command)), env=self.environment, capture_output=True, text=True
        )
        assert result.returncode == 0, f"{command}: {result.stdout}{result.stderr}"
        return result.stdout.strip()

    def submit(self, *arguments: Any) -> str:
        """Submit a batch script with its arguments and return the number of the job."""
        return self.call("sbatch", "--parsable", *arguments)

    def field(self, job: str, name: str) -> str:
        """Return a field of ``scontrol show job``, such as JobState, Restarts or ExitCode."""
        fields = self.call("scontrol", "--oneliner", "show", "job", job).split()
        return next(field.partition("=")[2] for field in fields if field.startswith(f"{name}="))

    def wait(self, job: str, until: Callable[[], Any], seconds: float, log: Path) -> None:
        """Wait until a condition holds; fail with the job's output after some seconds."""
        end = time.monotonic() + seconds
        while not until():
            if time.monotonic() > end:
                state = self.call("scontrol", "show", "job", job)
                raise AssertionError(f"{state}\n{log.read_text() if log.exists() else 'no output'}")
            time.sleep(0.2)

    def wait_for_end(self, job: str, log: Path, seconds: float = 300) -> str:
        """Wait for the end of a job and return its state, such as COMPLETED."""
        ended = ("COMPLETED", "FAILED", "TIMEOUT", "CANCELLED", "NODE_FAIL", "OUT_OF_MEMORY")
        self.wait(job, lambda: self.field(job, "JobState") in ended, seconds, log)
        return self.field(job, "JobState")


@contextlib.contextmanager
def running_cluster() -> Iterator[Cluster]:
    """Start the daemons, and stop them by their process ids at the end.

    Their folder has a short path, because the address of a socket has 107 bytes at most.
    """
    folder = Path(tempfile.mkdtemp(prefix="proj_slurm_"))
    _configure(folder)
    cluster = Cluster(folder)
    munge = folder / "munge"
    daemons: list[subprocess.Popen[bytes]] = []
    try:
        daemons.append(_start(cluster, "munged", *_munge_options(munge)))
        _wait_for((munge / "socket").exists, folder)
        daemons.append(_start(cluster, "slurmctld", "-D"))
        daemons += [_start(cluster, "slurmd", "-D", "-N", node) for node in NODES]
        _wait_for(lambda: _idle_nodes(cluster) == len(NODES), folder)
        yield cluster
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
        for daemon in reversed(daemons):
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        shutil.rmtree(folder)


def _configure(folder: Path) -> None:
    host, (user_id, *ports) = socket.gethostname(), (os.getuid(), *_free_ports(1 + len(NODES)))
    user = "root" if user_id == 0 else os.environ["USER"]
    lines = [
        f"NodeName={node} NodeHostname={host} NodeAddr={node} Port={port} CPUs=2"
        for node, port in zip(NODES, ports[1:], strict=True)
    ]
    for name in ("state", "munge", "cgroup", *(f"spool.{node}" for node in NODES)):
        (folder / name).mkdir(parents=True)
    # MUNGE refuses a socket that others cannot reach, and a key that they can read.
    (folder / "munge").chmod(0o755)
    (folder / "munge" / "key").write_bytes(os.urandom(1024))
    (folder / "munge" / "key").chmod(0o600)
    text = SLURM_CONF.format(
        host=host, ports=ports, user=user, folder=folder, nodes="\n".join(lines)
    )
    (folder / "slurm.conf").write_text(text)
    (folder / "cgroup.conf").write_text(CGROUP_CONF.format(folder=folder))


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


def _munge_options(folder: Path) -> Sequence[str]:
    files = {"key-file": "key", "socket": "socket", "log-file": "log"}
    files |= {"pid-file": "pid", "seed-file": "seed"}
    return ["--foreground", "--force", *(f"--{key}={folder / file}" for key, file in files.items())]


def _start(cluster: Cluster, *command: str) -> subprocess.Popen[bytes]:
    program = shutil.which(command[0], path=SYSTEM_PATH)
    assert program is not None
    node = command[-1] if command[0] == "slurmd" else ""
    with (cluster.folder / f"{command[0]}{node}.log").open("wb") as log:
        return subprocess.Popen(
            [program, *command[1:]],
            env=cluster.environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def _idle_nodes(cluster: Cluster) -> int:
    result = subprocess.run(
        ["sinfo", "--noheader", "--Node", "--states=idle", "--format=%N %t"],
        env=cluster.environment,
        capture_output=True,
        text=True,
    )
    return sum(line.endswith("idle") for line in result.stdout.splitlines())


def _wait_for(condition: Callable[[], Any], folder: Path, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            logs = {path.name: path.read_text()[-2000:] for path in folder.glob("*.log")}
            raise AssertionError(f"the cluster did not start: {logs}")
        time.sleep(0.1)
