"""Studies in real processes: what they leave, and what kills, crashes and signals do to them."""

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
from engine.tuning.conftest import records, run, start, trials, wait_until
from proj.engine.runs.run import Run, read_checkpoint
from proj.engine.tuning.study import mend

FOLDER = Path("lightning_logs/studies/study")
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
    """The processes that a process has started, by the kernel's table."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # gone in the meantime
            parents[int(path.parent.name)] = int(path.read_text().rsplit(")", 1)[1].split()[1])
    return [process for process, of in parents.items() if of == parent]


def test_what_a_study_leaves(study: Study, cli: Cli) -> None:
    said = run(*study(), "--workers", "2")
    table = trials()
    assert [row["trial"] for row in table] == list(range(5))
    assert {row["state"] for row in table} == {"complete"}
    best = max(table, key=lambda row: row["val/f1"])
    assert f"best: trial {best['trial']}, val/f1 {best['val/f1']:.4f}" in said
    assert "no run in" in cli("test", code=2)  # a study's runs are not the newest run
    cli("fit", "--config", FOLDER / "best.yaml", "--name", "again")
    callbacks = read_checkpoint(Path("lightning_logs/again/checkpoints/last.ckpt"))[
        "callbacks"
    ].values()
    assert (
        next(of["best_metrics"]["val/f1"] for of in callbacks if "best_metrics" in of)
        == best["val/f1"]
    )  # to the bit
    config = yaml.safe_load((FOLDER / "best.yaml").read_text())
    assert (
        config["model"]["init_args"]["optimizer"]["init_args"]["lr"] == best["model.optimizer.lr"]
    )
    for row in table:
        folder = Run(FOLDER / f"trial_{row['trial']}")
        assert folder.manifest["status"] == "finished"
        assert not list(folder.path.glob("test*"))  # nobody has looked at the test part
        assert "trained: " in (FOLDER / f"trial_{row['trial']}.txt").read_text()
    page = (FOLDER / "report.html").read_text()
    assert page.count("<svg") == 5
    assert "://" not in re.sub(r'xmlns(:xlink)?="[^"]*"', "", page)
    run(*study(), "--n_trials", "6")  # the budget is a total
    assert trials()[:5] == table
    assert len(trials()) == 6


@pytest.mark.parametrize("kills", [2, pytest.param(10, marks=pytest.mark.slow)])
def test_parent_and_workers_killed_at_random_change_nothing(study: Study, kills: int) -> None:
    count = 5 if kills == 2 else 16
    command = study(count)
    run(*command)
    whole = trials()
    shutil.move(FOLDER, "whole")
    chance, killed = random.Random(0), 0
    while killed < kills:
        before, more = len(records()), chance.randrange(1, 12)
        process = start(*command)
        wait_until(
            lambda before=before, more=more, process=process: (
                process.poll() is not None or len(records()) >= before + more
            )
        )
        assert process.poll() is None, "the study ended before it was killed so often"
        for victim in workers_of(process.pid)[:1] if killed % 2 else []:
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)
        time.sleep(chance.random())
        process.kill()
        process.wait()
        killed += 1
    run(*command)
    assert trials() == whole
    journal = optuna.storages.JournalStorage(
        optuna.storages.journal.JournalFileBackend(str(FOLDER / "study.journal"))
    )
    states = [
        trial.state for trial in optuna.load_study(storage=journal, study_name="study").trials
    ]
    assert states.count(optuna.trial.TrialState.COMPLETE) == count
    assert set(states) <= {optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.FAIL}


@pytest.mark.slow
def test_a_worker_that_is_killed_is_replaced_and_its_trial_goes_on(study: Study) -> None:
    command = [*study(4), "--workers", "2"]
    run(*command)
    whole = {row["trial"]: row for row in trials()}
    shutil.move(FOLDER, "whole")
    process = start(*command)
    for trial in (0, 2):
        wait_until(lambda trial=trial: (FOLDER / f"trial_{trial}/checkpoints/last.ckpt").exists())
        os.kill(workers_of(process.pid)[0], signal.SIGKILL)
    assert process.wait() == 0, Path("log.txt").read_text()
    assert [row["state"] for row in trials()] == ["complete"] * 4
    assert trials()[0] == whole[0]  # what later trials are proposed hangs on which one ends first


@pytest.mark.slow
def test_ctrl_c_leaves_what_is_done_and_the_same_command_goes_on(study: Study) -> None:
    command = study()
    run(*command)
    whole = trials()
    shutil.move(FOLDER, "whole")
    process = start(*command)
    wait_until(lambda: (FOLDER / "trial_2/checkpoints/last.ckpt").exists())
    process.send_signal(signal.SIGINT)
    assert process.wait() == 130
    assert "Traceback" not in Path("log.txt").read_text()
    left = trials()
    assert left[:2] == whole[:2]
    assert {row["state"] for row in left[2:]} <= {"waiting", "complete"}
    assert (FOLDER / "best.yaml").exists()
    assert (FOLDER / "report.html").exists()
    run(*command)
    assert trials() == whole


def test_what_goes_wrong_in_a_trial_ends_that_trial_alone(study: Study) -> None:
    Path("nets.py").write_text(NETS)
    command = study(
        4,
        experiment_sections={
            "model": {"net": {"class_path": "nets.Crashing", "init_args": {"how": "well"}}}
        },
        sampler={
            "class_path": "GridSampler",
            "init_args": {
                "search_space": {"model.net.how": ['"well"', '"error"', '"nan"', '"killed"']}
            },
        },
        space={"model.net.how": {"choice": ["well", "error", "nan", "killed"]}},
    )
    process = start(*command)
    assert process.wait() == 0
    said = Path("log.txt").read_text()
    assert "it broke" in said
    assert "Traceback" not in said  # it is in the trial's own file
    found = {row["model.net.how"]: row for row in trials()}
    assert {how: row["state"] for how, row in found.items()} == {
        "well": "complete",
        "error": "failed",
        "nan": "failed",
        "killed": "failed",
    }
    for how, reason in {"error": "it broke", "nan": "not finite", "killed": "SIGKILL"}.items():
        assert reason in found[how]["reason"], found[how]


def test_a_bad_trial_is_pruned_and_its_run_is_whole(study: Study) -> None:
    pruner = {
        "class_path": "ThresholdPruner",
        "init_args": {"lower": 1.1, "n_warmup_steps": 1},
    }  # which nobody reaches
    run(*study(2, pruner=pruner, space={"trainer.max_epochs": {"int": [4, 5]}}), code=3)
    assert [row["state"] for row in trials()] == ["pruned"] * 2
    checkpoint = read_checkpoint(FOLDER / "trial_0/checkpoints/last.ckpt")
    assert checkpoint["epoch"] == 1  # counted from 0
    assert Run(FOLDER / "trial_0").manifest["status"] == "finished"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("key", "ends"), [("seeds", "seed_1 seed_2 seed_3"), ("folds", "fold_0 fold_1 fold_2")]
)
def test_a_trial_is_the_mean_over_seeds_or_folds(study: Study, key: str, ends: str) -> None:
    run(*study(1, **{key: 3}))
    values = []
    for end in ends.split():
        callbacks = read_checkpoint(FOLDER / f"trial_0_{end}/checkpoints/last.ckpt")["callbacks"]
        values.append(
            next(
                state["best_metrics"]["val/f1"]
                for state in callbacks.values()
                if "best_metrics" in state
            )
        )
    assert len(set(values)) > 1
    assert trials()[0]["val/f1"] == pytest.approx(sum(values) / 3, abs=1e-12)


@pytest.mark.slow
def test_a_time_is_a_budget_too(study: Study) -> None:
    run(*study(None, minutes=0.05, space={"trainer.max_epochs": {"int": [1, 2]}}))
    assert len(trials()) >= 1
    before = len(trials())
    run(*study(None, minutes=0.05, space={"trainer.max_epochs": {"int": [1, 2]}}))
    assert len(trials()) == before  # it is used up


@pytest.mark.slow
def test_several_devices(study: Study) -> None:
    pruner = {"class_path": "ThresholdPruner", "init_args": {"lower": 1.1, "n_warmup_steps": 1}}
    two = {"accelerator": "cpu", "devices": 2, "strategy": "ddp"}
    run(
        *study(
            1,
            experiment_sections={"trainer": two},
            pruner=pruner,
            space={"trainer.max_epochs": {"int": [4, 5]}},
        ),
        code=3,
    )
    assert trials()[0]["state"] == "pruned"
    assert read_checkpoint(FOLDER / "trial_0/checkpoints/last.ckpt")["epoch"] == 1


def test_a_journal_that_is_cut_off_anywhere_is_mended(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = work / "study.journal"
    backend = optuna.storages.journal.JournalFileBackend(str(path))
    study = optuna.create_study(storage=optuna.storages.JournalStorage(backend), study_name="s")
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=3)
    content = path.read_bytes()
    begin = content.rfind(b"\n", 0, -1) + 1
    for end in range(begin, len(content) + 1):
        path.write_bytes(content[:end])
        mend(path)
        assert ("cut off" in capsys.readouterr().err) == (begin < end < len(content))
        storage = optuna.storages.JournalStorage(
            optuna.storages.journal.JournalFileBackend(str(path))
        )
        again = optuna.load_study(storage=storage, study_name="s")
        assert len(again.trials) == 3
        again.add_trial(optuna.create_trial(value=0.5))
        storage = optuna.storages.JournalStorage(
            optuna.storages.journal.JournalFileBackend(str(path))
        )
        assert len(optuna.load_study(storage=storage, study_name="s").trials) == 4


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"space": {"model.optimizer.lrr": {"log": [0.1, 1.0]}}}, "Did you mean 'lr'"),
        (
            {"space": {"data.batch_size": {"choice": ["many"]}}},
            "data.batch_size: expected int or null, got many",
        ),
        ({"space": {"trainer.max_epoch": {"int": [1, 2]}}}, "trainer.max_epoch"),
        ({"experiment": "nowhere.yaml"}, "nowhere.yaml"),
        ({"metric": "test/f1"}, "expected a metric of the validation part"),
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
        ({"trials": 0}, "from 1 up"),
    ],
)
def test_what_is_wrong_is_said_before_the_first_trial(
    keys: dict[str, Any], said: str, study: Study, cli: Any
) -> None:
    assert said in cli(*study(**keys), code=2)
    assert not Path("lightning_logs").exists()


def test_a_study_of_something_else_and_a_database_that_is_not_there(study: Study, cli: Any) -> None:
    run(*study(1))
    said = cli(*study(1), "--model.label_smoothing", "0.1", code=2)
    assert "another experiment" in said
    assert "label_smoothing" in said
    assert "can be reached" in cli(
        *study(1), "--storage", "postgresql://nobody@127.0.0.1:1/none", code=2
    )
    assert "from 1 up" in cli(*study(1), "--workers", "0", code=2)
