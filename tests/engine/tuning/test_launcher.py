"""The option ``--launcher``, and jobs of SLURM with substitutes for its commands."""

import argparse
import sys
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from proj.engine import security
from proj.engine.tuning import slurm_array
from proj.engine.tuning.search import Search
from proj.engine.tuning.slurm_array import Outcome, SlurmArray, read_launcher
from proj.errors import UserError

STORAGE = "postgresql://user@host/studies"
OPTIONS = {"launcher": ["submitit", "time=10"], "storage": STORAGE, "within": None}


def read(**options: Any) -> Any:
    return read_launcher(argparse.Namespace(**OPTIONS | options))


def test_options_of_sbatch_are_passed_on() -> None:
    assert read(launcher=["local"], storage=None) is None
    words = ["submitit", "time=04:00:00", "--gres=gpu:1", "cpus_per_task=2", "exclusive"]
    expected = {"time": "04:00:00", "gres": "gpu:1", "cpus-per-task": "2", "exclusive": True}
    assert read(launcher=words) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"launcher": ["slurm"]}, "expected local, or submitit with options of sbatch, got slurm."),
        ({"launcher": ["local", "time=1"]}, "got local time=1."),
        ({"storage": None}, "expected --storage with a database that all nodes reach"),
        ({"storage": "sqlite:///a.db"}, "got a SQLite file"),
        ({"within": "1h"}, "expected no --within"),
        ({"launcher": ["submitit", "time=1", "nodes=2"]}, "expected no nodes, because each job is"),
        ({"launcher": ["submitit", "gres=gpu:1"]}, "expected time=HH:MM:SS"),
        ({"launcher": ["submitit", "time"]}, "expected time=HH:MM:SS"),
    ],
)
def test_other_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match="--launcher: ") as error:
        read(**options)
    assert message in str(error.value)


def test_a_missing_package_is_named(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(UserError, match=r"install the extra slurm"):
        SlurmArray("study", work / "slurm", 2, {"time": "10"}, [])


class Executor:
    """What ``submitit.SlurmExecutor`` is used for; its jobs have ended when they are submitted."""

    def update_parameters(self, **parameters: Any) -> None:
        self.parameters = parameters

    def map_array(self, function: Any, words: list[list[str]]) -> list[Any]:
        assert function is slurm_array.work
        self.words = words
        result = Path("result.pkl")
        result.touch()
        ended = {"exception": lambda: None, "result": lambda: 143, "stderr": lambda: "a\n\n"}
        killed = {"stderr": lambda: None, "stdout": lambda: "error: it broke"}
        return [
            SimpleNamespace(
                job_id="7_0", paths=SimpleNamespace(result_pickle=result, stderr="0.err"), **ended
            ),
            SimpleNamespace(
                job_id="7_1",
                paths=SimpleNamespace(result_pickle=Path("none"), stderr="1.err"),
                **killed,
            ),
        ]


@pytest.fixture
def array(work: Path, monkeypatch: pytest.MonkeyPatch) -> SlurmArray:
    """An array whose ``squeue`` fails at first, then shows a job, then only one of another's."""
    (work / "squeue").write_text(
        "#!/bin/sh\necho x >> asked\n"
        "case $(wc -l < asked) in 1) exit 1;; 2) echo 7_1;; *) echo 70_1;; esac\n"
    )
    (work / "scancel").write_text('#!/bin/sh\necho "$@" >> cancelled\n')
    for name in ("squeue", "scancel"):
        (work / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{work}:/usr/bin:/bin")
    monkeypatch.setattr(slurm_array, "_executor", lambda folder: Executor())
    monkeypatch.setattr(slurm_array, "POLL_SECONDS", 0.001)
    monkeypatch.setattr(security, "allowed_packages", ["mine"])
    return SlurmArray("study", work / "slurm", 2, {"time": "10"}, ["--workers", "2"])


def test_jobs_are_awaited_also_while_slurm_does_not_answer(array: SlurmArray, work: Path) -> None:
    polls: list[int] = []
    outcomes = array.run(2, lambda: polls.append(1))
    assert outcomes == [Outcome(143, "a (0.err)"), Outcome(None, "it broke (1.err)")]
    # Two while jobs were queued or might be, and one after their end.
    assert len(polls) == 3
    executor: Any = array.executor
    # The last options count: a job must not submit jobs of its own.
    own = ["--allow", "mine", "--launcher", "local", "--workers", "1"]
    assert executor.words == [["--workers", "2", *own]] * 2
    assert executor.parameters["additional_parameters"] == {"signal": "TERM@60", "time": "10"}
    assert executor.parameters["array_parallelism"] == 2
    assert (work / "slurm").stat().st_mode & 0o777 == 0o700


def test_a_signal_saves_the_trials_and_a_second_one_kills_the_jobs(
    array: SlurmArray, work: Path
) -> None:
    array.stop(2)
    assert array.signal == 2
    assert not (work / "cancelled").exists()
    array.run(2, lambda: None)
    array.stop(2)
    lines = (work / "cancelled").read_text().splitlines()
    waiting = "--state=PENDING 7_0 7_1"
    assert lines == [waiting, "--signal=TERM 7_0 7_1", waiting, "--signal=KILL --full 7_0 7_1"]


@pytest.mark.parametrize(
    ("storage", "is_own", "seconds_ago", "is_enqueued"),
    [
        (None, False, 0, True),
        (STORAGE, True, 0, True),
        (STORAGE, False, 0, False),
        (STORAGE, False, 60, True),
    ],
)
@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_processes_that_stop_at_once_enqueue_each_trial_once(
    storage: str | None, is_own: bool, seconds_ago: int, is_enqueued: bool
) -> None:
    """The jobs of an array get the signal together. A killed one leaves its trial to the others."""
    study = optuna.create_study()
    attempt = optuna.create_trial(state=TrialState.FAIL, user_attrs={"interrupted": 0})
    attempt.datetime_complete = datetime.now() - timedelta(seconds=seconds_ago)
    study.add_trial(attempt)
    search: Any = object.__new__(Search)
    search.plan, search.study = SimpleNamespace(storage=storage, minutes=None), study
    search.interrupted = {0} if is_own else set()
    # Another process waits for what becomes of the trial.
    assert search._others_are_running() == (storage is not None)
    search._retry_interrupted()
    states = [trial.state for trial in study.trials]
    assert states == [TrialState.FAIL, *[TrialState.WAITING] * is_enqueued]
    search._retry_interrupted()
    assert len(study.trials) == len(states)
