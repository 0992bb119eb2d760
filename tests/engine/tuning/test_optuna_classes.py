"""Every sampler and pruner of Optuna runs a study; the workers are replaced by a small program."""

import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest

from conftest import ROOT, Cli
from engine.tuning.conftest import run
from proj.engine.runs.files import as_plain
from proj.engine.tuning.plan import StudyPlan, class_names, read_plan
from proj.engine.tuning.pool import Pool, Worker
from proj.engine.tuning.search import Search
from proj.engine.tuning.space import read_space
from proj.engine.tuning.study import open_study, rehearse, trials_by_index
from proj.errors import UserError

# Optuna's own, which `tune` switches off for its process.
pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")

# Answers each job with four epochs, whose metric depends on the learning rate, and the outcome.
WORKER = """
import json, math, sys
while line := sys.stdin.readline():
    flags = dict(word.split("=", 1) for word in json.loads(line)["fit_args"] if "=" in word)
    lr = float(flags["--model.optimizer.lr"])
    best = 0.9 - 0.1 * abs(math.log10(lr) + 2)
    for epoch in range(4):
        print(json.dumps({"epoch": epoch, "value": best - 0.1 / (epoch + 1)}), flush=True)
        if json.loads(sys.stdin.readline()):
            break
    print(json.dumps({"code": 0, "metrics": {"val/f1": best}}), flush=True)
"""
# Options that a class cannot do without.
OPTIONS: dict[str, Any] = {
    "GridSampler": {
        "search_space": {"model.optimizer.lr": [0.001, 0.01, 0.1], "data.batch_size": ["16", "32"]}
    },
    "PartialFixedSampler": {
        "fixed_params": {"data.batch_size": "32"},
        "base_sampler": {"class_path": "RandomSampler"},
    },
    "PatientPruner": {"wrapped_pruner": {"class_path": "MedianPruner"}, "patience": 1},
    "PercentilePruner": {"percentile": 25.0, "n_startup_trials": 2},
    "MedianPruner": {"n_startup_trials": 2},
    "ThresholdPruner": {"lower": 0.75},
    "GPSampler": {"n_startup_trials": 4},
    "NSGAIISampler": {"population_size": 4},
    "NSGAIIISampler": {"population_size": 4},
    "HyperbandPruner": {"max_resource": 4},
    "WilcoxonPruner": {"n_startup_steps": 1, "p_threshold": 0.5},
}
# Packages that Optuna's classes need and that this project does not install.
NEEDED = {"CmaEsSampler": "cmaes"}
SPACE = {
    "model.optimizer.lr": {"log": [0.001, 0.1]},
    "data.batch_size": {"choice": [16, 32]},
}
# This sampler tries everything, so no number may be of any value.
DISCRETE = {
    "model.optimizer.lr": {"choice": [0.001, 0.01, 0.1]},
    "data.batch_size": {"int": [1, 2]},
}


@pytest.fixture
def small_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(worker: Worker, args: list[str]) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-S", "-c", WORKER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )

    monkeypatch.setattr(Worker, "_start", start)


def rows(plan: StudyPlan, pool: Pool, folder: str) -> list[tuple[Any, ...]]:
    """Run the study in a new folder; return parameters, state and values of its trials."""
    study = open_study(plan._replace(folder=Path(folder)))
    Search(plan, study, pool).run()
    return [
        (trial.params, trial.state.name, trial.value, trial.intermediate_values)
        for trial in trials_by_index(study).values()
    ]


@pytest.fixture
def pool(small_workers: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pool]:
    """One worker for several studies, which would each close it."""
    pool = Pool(1, False)
    with monkeypatch.context() as patch:
        patch.setattr(pool, "close", lambda: None)
        yield pool
    pool.close()


@pytest.mark.long
def test_every_sampler_and_pruner_runs_a_study(study: Any, pool: Pool) -> None:
    """The same study has the same trials when it runs again."""
    plan = read_plan(study(8, space=SPACE)[1:])
    discrete = plan._replace(space=read_space(DISCRETE))
    pruned = {}
    for module, kind in ((optuna.samplers, "sampler"), (optuna.pruners, "pruner")):
        for name in class_names(module):
            section = {"class_path": name, "init_args": OPTIONS.get(name, {})}
            chosen = discrete if name == "BruteForceSampler" else plan
            chosen = chosen._replace(**{kind: section})
            if name in NEEDED and importlib.util.find_spec(NEEDED[name]) is None:
                with pytest.raises(UserError, match=f"{name} needs a package.*{NEEDED[name]}"):
                    rehearse(chosen)
                continue
            rehearse(chosen)
            trials = rows(chosen, pool, f"first/{name}")
            # A sampler that has tried everything begins again.
            assert len(trials) == 8, name
            assert {state for _, state, *_ in trials} <= {"COMPLETE", "PRUNED"}, name
            assert rows(chosen, pool, f"second/{name}") == trials, name
            pruned[name] = any(state == "PRUNED" for _, state, *_ in trials)
    # The pruners are not merely accepted.
    assert {name for name, any_pruned in pruned.items() if any_pruned} >= {
        "MedianPruner",
        "PercentilePruner",
        "ThresholdPruner",
        "SuccessiveHalvingPruner",
    }


@pytest.mark.usefixtures("small_workers")
@pytest.mark.parametrize(
    ("sampler", "message"),
    [
        (
            {"class_path": "CmaEsSampler"},
            "CmaEsSampler needs a package that is not installed: No module named 'cmaes'",
        ),
        ({"class_path": "BaseSampler"}, "expected a class of optuna.samplers, got BaseSampler"),
        ({"class_path": "BruteForceSampler"}, "expected one that fits the space, got BruteForce"),
        (
            {"class_path": "GridSampler", "init_args": {"search_space": {"other": [1]}}},
            "expected one that fits the space, got GridSampler",
        ),
    ],
)
def test_a_sampler_that_cannot_run_gives_one_message(
    study: Any, cli: Cli, sampler: dict[str, Any], message: str
) -> None:
    if sampler["class_path"] == "CmaEsSampler" and importlib.util.find_spec("cmaes"):
        pytest.skip("cmaes is installed")
    assert message in cli(*study(2, space=SPACE, sampler=sampler), code=2)


def test_a_study_file_with_a_date_gives_one_message(study: Any, cli: Cli) -> None:
    command = study(2, space=SPACE)
    path = Path("study.yaml")
    path.write_text(path.read_text().replace("- 16", "- 2026-01-01"))
    assert "got a date; put quotes around it" in cli(*command, code=2)


def test_scalars_of_numpy_become_plain_values() -> None:
    import numpy as np
    import torch

    values = {
        "bool": np.bool_(True),
        "int": np.int64(3),
        "float": np.float32(0.5),
        "nan": np.float64("nan"),
        "tensor": torch.tensor([1.0, float("inf")]),
        "array": np.array([[1, 2]]),
        "tuple": (np.int8(1), None),
    }
    assert json.loads(json.dumps(as_plain(values), allow_nan=False)) == {
        "bool": True,
        "int": 3,
        "float": 0.5,
        "nan": None,
        "tensor": [1.0, None],
        "array": [[1, 2]],
        "tuple": [1, None],
    }
    with pytest.raises(TypeError, match="expected a plain value, got object"):
        as_plain(object())


def test_the_median_pruner_prunes_a_real_training(study: Any) -> None:
    """With real workers: the answer of the pruner passes through a pipe as JSON."""
    pruner = {"class_path": "MedianPruner", "init_args": {"n_startup_trials": 1}}
    grid = {"model.optimizer.lr": [0.1, 0.00001], "data.batch_size": ["16"]}
    sampler = {"class_path": "GridSampler", "init_args": {"search_space": grid}}
    space = {"model.optimizer.lr": {"log": [0.00001, 0.1]}, "data.batch_size": {"choice": [16]}}
    output = run(*study(2, space=space, sampler=sampler, pruner=pruner))
    assert "trial 1 " in output


SHIPPED = sorted((ROOT / "configs/tune").glob("*.yaml"))


@pytest.mark.long
@pytest.mark.parametrize(
    "config",
    [
        pytest.param(
            path, marks=[] if path.stem == "breast_cancer" else pytest.mark.slow, id=path.stem
        )
        for path in SHIPPED
    ],
)
def test_every_shipped_study_runs_to_its_end(config: Path, work: Path) -> None:
    """Enough trials that the pruner of the study is asked, and has others to compare with."""
    (work / "configs").symlink_to(ROOT / "configs")
    n_trials = "3" if config.stem == "breast_cancer" else "8"
    flags = [] if config.stem == "simple_nn" else ["--trainer.max_epochs", "7"]
    output = run("tune", "--config", str(config), "--n_trials", n_trials, *flags)
    assert "best: trial " in output
    assert "failed" not in output
