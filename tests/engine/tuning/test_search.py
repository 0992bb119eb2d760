"""Studies in real processes: their results, and their behaviour on kills, errors and signals."""

import contextlib
import os
import random
import re
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml

from conftest import Cli
from engine.tuning.conftest import STUDY_FOLDER, records, run, start, trials, wait_until
from proj.engine.runs.checkpoint_file import read_checkpoint
from proj.engine.runs.run import Run
from proj.engine.tuning.plan import read_plan
from proj.engine.tuning.study import truncate_torn_record
from proj.engine.tuning.worker import best_metrics

Study = Callable[..., list[str]]

NETS = """
import os, signal, torch
from torch import nn
class Crashing(nn.Linear):
    def __init__(self, how: str):
        super().__init__(6, 3)
        self.how = how
    def forward(self, x):
        if self.how == "error" and self.training: raise RuntimeError("it broke")
        if self.how == "killed" and self.training: os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(x) * (float("nan") if self.how == "nan" and self.training else 1)
"""


def workers_of(parent: int) -> list[int]:
    """Return the child processes of a process, from /proc."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # The process has ended in the meantime.
            parents[int(path.parent.name)] = int(path.read_text().rsplit(")", 1)[1].split()[1])
    return [child for child, its_parent in parents.items() if its_parent == parent]


@pytest.mark.long
def test_the_results_of_a_study(study: Study, cli: Cli) -> None:
    """The table, the best experiment, the report and the runs of a study are complete and true."""
    output = run(*study(), "--workers", "2")
    table = trials()
    assert [row["trial"] for row in table] == list(range(5))
    assert {row["state"] for row in table} == {"complete"}
    best = max(table, key=lambda row: row["val/f1"])
    assert f"best: trial {best['trial']}, val/f1 {best['val/f1']:.4f}" in output
    # The runs of a study do not count as the latest run.
    assert "no run in" in cli("test", code=2)

    cli("fit", "--config", STUDY_FOLDER / "best.yaml", "--name", "again")
    # Equal to the bit.
    assert best_metrics(Path("lightning_logs/again"))["val/f1"] == best["val/f1"]
    config = yaml.safe_load((STUDY_FOLDER / "best.yaml").read_text())
    optimizer = config["model"]["init_args"]["optimizer"]
    assert optimizer["init_args"]["lr"] == best["model.optimizer.lr"]

    for row in table:
        trial = Run(STUDY_FOLDER / f"trial_{row['trial']}")
        assert trial.manifest["status"] == "finished"
        # A study does not use the test split.
        assert not list(trial.path.glob("test*"))
        assert "trained: " in (STUDY_FOLDER / f"trial_{row['trial']}.txt").read_text()

    report = (STUDY_FOLDER / "report.html").read_text()
    assert report.count("<svg") == 5
    assert "://" not in re.sub(r'xmlns(:xlink)?="[^"]*"', "", report)

    # The number of trials is a total.
    run(*study(), "--n_trials", "6")
    assert trials()[:5] == table
    assert len(trials()) == 6


@pytest.mark.long
@pytest.mark.parametrize("kills", [2, pytest.param(10, marks=pytest.mark.slow)])
def test_random_kills_of_parent_and_workers_change_nothing(study: Study, kills: int) -> None:
    """A study that is killed again and again has the table of an undisturbed one."""
    n_trials = 5 if kills == 2 else 16
    command = study(n_trials)
    run(*command)
    undisturbed = trials()
    shutil.move(STUDY_FOLDER, "undisturbed")
    generator = random.Random(0)
    for kill in range(kills):
        target = len(records()) + generator.randrange(1, 12)
        process = start(*command)
        wait_until(
            lambda process=process, target=target: (
                process.poll() is not None or len(records()) >= target
            )
        )
        assert process.poll() is None, f"the study ended before kill {kill}"
        for victim in workers_of(process.pid)[:1] if kill % 2 else []:
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)
        time.sleep(generator.random())
        process.kill()
        process.wait()
    run(*command)
    assert trials() == undisturbed
    backend = optuna.storages.journal.JournalFileBackend(str(STUDY_FOLDER / "study.journal"))
    storage = optuna.storages.JournalStorage(backend)
    attempts = optuna.load_study(storage=storage, study_name="study").trials
    states = [attempt.state for attempt in attempts]
    assert states.count(optuna.trial.TrialState.COMPLETE) == n_trials
    assert set(states) <= {optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.FAIL}


@pytest.mark.slow
def test_a_killed_worker_is_replaced_and_its_trial_continues(study: Study) -> None:
    """A kill of a worker fails no trial."""
    command = [*study(4), "--workers", "2"]
    run(*command)
    undisturbed = {row["trial"]: row for row in trials()}
    shutil.move(STUDY_FOLDER, "undisturbed")
    process = start(*command)
    for trial in (0, 2):
        checkpoint = STUDY_FOLDER / f"trial_{trial}/checkpoints/last.ckpt"
        wait_until(checkpoint.exists)
        os.kill(workers_of(process.pid)[0], signal.SIGKILL)
    assert process.wait() == 0, Path("log.txt").read_text()
    assert [row["state"] for row in trials()] == ["complete"] * 4
    # With two workers, the proposals of later trials depend on which trial ends first.
    assert trials()[0] == undisturbed[0]


@pytest.mark.slow
def test_the_same_command_continues_after_ctrl_c(study: Study) -> None:
    """Ctrl-C keeps the results so far, and the continued study equals an undisturbed one."""
    command = study()
    run(*command)
    undisturbed = trials()
    shutil.move(STUDY_FOLDER, "undisturbed")
    process = start(*command)
    wait_until(lambda: (STUDY_FOLDER / "trial_2/checkpoints/last.ckpt").exists())
    process.send_signal(signal.SIGINT)
    assert process.wait() == 130
    log = Path("log.txt").read_text()
    assert "Traceback" not in log
    assert "run the same command again to continue" in log
    stopped = trials()
    assert stopped[:2] == undisturbed[:2]
    assert {row["state"] for row in stopped[2:]} <= {"waiting", "complete"}
    assert (STUDY_FOLDER / "best.yaml").exists()
    assert (STUDY_FOLDER / "report.html").exists()
    run(*command)
    assert trials() == undisturbed


def test_an_error_in_a_trial_ends_only_that_trial(study: Study) -> None:
    """A failed trial has its reason in the table, and the other trials run."""
    Path("nets.py").write_text(NETS)
    net = {"class_path": "nets.Crashing", "init_args": {"how": "well"}}
    choices = ["well", "error", "nan", "killed"]
    grid = {"model.net.how": [f'"{choice}"' for choice in choices]}
    command = study(
        4,
        experiment_sections={"model": {"net": net}},
        sampler={"class_path": "GridSampler", "init_args": {"search_space": grid}},
        space={"model.net.how": {"choice": choices}},
    )
    process = start(*command)
    assert process.wait() == 0
    log = Path("log.txt").read_text()
    assert "it broke" in log
    # The traceback is in the log of the trial.
    assert "Traceback" not in log
    rows = {row["model.net.how"]: row for row in trials()}
    assert {how: row["state"] for how, row in rows.items()} == {
        "well": "complete",
        "error": "failed",
        "nan": "failed",
        "killed": "failed",
    }
    for how, reason in {"error": "it broke", "nan": "not finite", "killed": "SIGKILL"}.items():
        assert reason in rows[how]["reason"], rows[how]


# A pruner that stops each trial at its second epoch, because no metric reaches the threshold.
PRUNE_ALL = {"class_path": "ThresholdPruner", "init_args": {"lower": 1.1, "n_warmup_steps": 1}}


def test_a_pruned_trial_leaves_a_finished_run(study: Study) -> None:
    """Pruning ends a trial early, with a checkpoint; a study without a completed trial fails."""
    command = study(2, pruner=PRUNE_ALL, space={"trainer.max_epochs": {"int": [4, 5]}})
    run(*command, code=3)
    assert [row["state"] for row in trials()] == ["pruned"] * 2
    checkpoint = read_checkpoint(STUDY_FOLDER / "trial_0/checkpoints/last.ckpt")
    # Epochs count from 0.
    assert checkpoint["epoch"] == 1
    assert Run(STUDY_FOLDER / "trial_0").manifest["status"] == "finished"


def test_a_percentile_pruner(study: Study) -> None:
    """Percentile pruners answer with numpy.bool, which must reach the worker as JSON."""
    pruner = {
        "class_path": "PercentilePruner",
        "init_args": {"percentile": 50.0, "n_startup_trials": 1},
    }
    run(*study(3, pruner=pruner, space={"trainer.max_epochs": {"int": [3, 4]}}))
    assert trials()[0]["state"] == "complete"
    assert {row["state"] for row in trials()} <= {"complete", "pruned"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("key", "suffixes"), [("seeds", "seed_1 seed_2 seed_3"), ("folds", "fold_0 fold_1 fold_2")]
)
def test_a_trial_is_the_mean_over_seeds_or_folds(study: Study, key: str, suffixes: str) -> None:
    """The value of a trial with repeats is the mean of its runs, which differ."""
    run(*study(1, **{key: 3}))
    folders = [STUDY_FOLDER / f"trial_0_{suffix}" for suffix in suffixes.split()]
    values = [best_metrics(folder)["val/f1"] for folder in folders]
    assert len(set(values)) > 1
    assert trials()[0]["val/f1"] == pytest.approx(sum(values) / 3, abs=1e-12)


@pytest.mark.slow
def test_the_budget_can_be_a_time(study: Study) -> None:
    """A study ends when its time is used up, and does not start again."""
    command = study(None, minutes=0.05, space={"trainer.max_epochs": {"int": [1, 2]}})
    run(*command)
    before = len(trials())
    assert before >= 1
    run(*command)
    assert len(trials()) == before


@pytest.mark.slow
def test_a_study_ends_within_the_time_of_the_command(study: Study) -> None:
    """A trial without an end would exceed the time, or its score so far would be lost."""
    command = study(None, space={"trainer.max_epochs": {"int": [100_000, 100_001]}})
    start_time = time.monotonic()
    output = run(*command, "--within", "15s")
    assert time.monotonic() - start_time < 25
    (trial,) = trials()
    assert trial["state"] == "complete"
    assert trial["val/f1"] > 0.5
    assert "within 15 s: 1 trial complete, 1 stopped before the end" in output
    assert Run(STUDY_FOLDER / "trial_0").manifest["out_of_time"]


@pytest.mark.slow
def test_several_devices(study: Study) -> None:
    """Trials on several devices report their metric and can be pruned."""
    trainer = {"accelerator": "cpu", "devices": 2, "strategy": "ddp"}
    space = {"trainer.max_epochs": {"int": [4, 5]}}
    command = study(1, experiment_sections={"trainer": trainer}, pruner=PRUNE_ALL, space=space)
    run(*command, code=3)
    assert trials()[0]["state"] == "pruned"
    assert read_checkpoint(STUDY_FOLDER / "trial_0/checkpoints/last.ckpt")["epoch"] == 1


def test_a_journal_that_is_cut_off_anywhere_can_be_continued(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A last record of any length is removed, and the study can be read and continued."""
    path = work / "study.journal"

    def open_storage() -> optuna.storages.JournalStorage:
        backend = optuna.storages.journal.JournalFileBackend(str(path))
        return optuna.storages.JournalStorage(backend)

    study = optuna.create_study(storage=open_storage(), study_name="s")
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=3)
    content = path.read_bytes()
    begin = content.rfind(b"\n", 0, -1) + 1
    for end in range(begin, len(content) + 1):
        path.write_bytes(content[:end])
        truncate_torn_record(path)
        warned = "incomplete last record" in capsys.readouterr().err
        assert warned == (begin < end < len(content))
        reopened = optuna.load_study(storage=open_storage(), study_name="s")
        assert len(reopened.trials) == 3
        reopened.add_trial(optuna.create_trial(value=0.5))
        assert len(optuna.load_study(storage=open_storage(), study_name="s").trials) == 4


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"space": {"model.optimizer.lrr": {"log": [0.1, 1.0]}}}, "Did you mean 'lr'"),
        (
            {"space": {"data.batch_size": {"choice": ["many"]}}},
            "data.batch_size: expected int or null, got many",
        ),
        ({"space": {"trainer.max_epoch": {"int": [1, 2]}}}, "trainer.max_epoch"),
        ({"experiment": "nowhere.yaml"}, "nowhere.yaml"),
        ({"metric": "test/f1"}, "expected a metric of the validation split"),
        ({"metric": "val/mine"}, "mode: expected min or max"),
        ({"sampler": {"class_path": "TPESample"}}, "Did you mean 'TPESampler'"),
        ({"sampler": {"class_path": "os.system"}}, "expected a class of optuna.samplers"),
        (
            {"sampler": {"class_path": "TPESampler", "init_args": {"n_startup": 3}}},
            "Did you mean 'n_startup_trials'",
        ),
        ({"sampler": {"class_path": "TPESampler", "init_args": {"seed": 3}}}, "leave it out"),
        ({"pruner": {"class_path": "PercentilePruner"}}, "cannot be built"),
        ({"trials": None}, "either trials or minutes"),
        ({"trails": 3}, "Did you mean 'trials'"),
        ({"trials": 0}, "of at least 1"),
    ],
)
def test_a_mistake_ends_the_command_before_the_first_trial(
    keys: dict[str, Any], message: str, study: Study, cli: Any
) -> None:
    """Each mistake in a study file has its message, and no folder is created."""
    space = {"trainer.max_epochs": {"int": [2, 4]}}
    assert message in cli(*study(**{"space": space, **keys}), code=2)
    assert not Path("lightning_logs").exists()


def test_a_study_optimizes_what_selects_the_best_epoch(study: Study) -> None:
    """The direction of a metric of the user's own is that of the experiment, or the study's."""
    keys: dict[str, Any] = {
        "experiment_sections": {"checkpoint": {"monitor": "val/kappa", "mode": "max"}},
        "space": {"trainer.max_epochs": {"int": [2, 4]}},
    }
    plan = read_plan(study(**keys)[1:])
    assert (plan.metric, plan.mode) == ("val/kappa", "max")
    assert read_plan(study(**keys, mode="min")[1:]).mode == "min"


@pytest.mark.long
@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_a_different_study_and_an_unreachable_database(study: Study, cli: Any) -> None:
    """A study does not continue with another experiment; option mistakes have their message."""
    run(*study(1))
    error = cli(*study(1), "--model.label_smoothing", "0.1", code=2)
    assert "another experiment" in error
    assert "label_smoothing" in error
    storage = ["--storage", "postgresql://nobody@127.0.0.1:1/none"]
    assert "can be reached" in cli(*study(1), *storage, code=2)
    assert "of at least 1" in cli(*study(1), "--workers", "0", code=2)
