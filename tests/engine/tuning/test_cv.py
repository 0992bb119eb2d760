"""Cross-validation against a loop over scikit-learn's splitters, and the statistics by hand."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from scipy import stats
from sklearn.metrics import accuracy_score, f1_score
from sklearn.model_selection import KFold, StratifiedKFold, TimeSeriesSplit, train_test_split

from conftest import Cli
from engine.tuning.conftest import run
from proj.data.splits import split, split_by_time, split_groups
from proj.engine.tuning.cv import interval
from proj.errors import UserError

RATE = ["--model.optimizer", "Adam", "--model.optimizer.lr", "0.05"]
FOLDER = Path("lightning_logs/studies/experiment_cv")


def test_scores_are_those_of_a_loop_by_hand(experiment: Any, cli: Cli) -> None:
    config = experiment(rows=150)
    run("cv", "--config", str(config), "--folds", "3", "--seeds", "2", "--workers", "2", *RATE)
    data = np.load("data.npz")
    x, y, found = data["x"], data["y"], json.loads((FOLDER / "metrics.json").read_text())
    by_hand = []
    for i in range(2):
        for fold, (rest, test) in enumerate(
            StratifiedKFold(3, shuffle=True, random_state=i).split(x, y)
        ):
            train, val = train_test_split(
                rest, test_size=round(0.15 * len(x)), random_state=i, stratify=y[rest]
            )
            parts = {"train": np.sort(train), "val": np.sort(val), "test": test}
            np.savez(
                "hand.npz",
                **{
                    f"{n}_{s}": {"x": x, "y": y}[n][rows] for s, rows in parts.items() for n in "xy"
                },
            )
            name = f"hand_{i}_{fold}"
            cli(
                "fit",
                "--config",
                config,
                "--data.path",
                "hand.npz",
                "--seed_everything",
                str(1 + i),
                "--name",
                name,
                *RATE,
            )
            cli("test", "--run", name)
            by_hand.append(
                json.loads(Path(f"lightning_logs/{name}/test/metrics.json").read_text())["f1"][
                    "value"
                ]
            )
    assert found["f1"]["folds"] == by_hand
    assert found["f1"]["value"] == pytest.approx(np.mean(by_hand), abs=1e-12)
    assert found["f1"]["std"] == pytest.approx(np.std(by_hand, ddof=1), abs=1e-12)
    predictions = pl.read_parquet(FOLDER / "predictions.parquet")
    for _, part in predictions.group_by("seed"):
        assert sorted(part["row"]) == list(
            range(150)
        )  # each row once, by a model that has not seen it
    seeds = [part for _, part in predictions.group_by("seed", maintain_order=True)]
    accuracy = np.mean([accuracy_score(part["target"], part["prediction"]) for part in seeds])
    f1 = np.mean([f1_score(part["target"], part["prediction"], average="macro") for part in seeds])
    assert found["accuracy"]["out_of_fold"] == pytest.approx(accuracy, abs=1e-12)
    assert found["f1"]["out_of_fold"] == pytest.approx(f1, abs=1e-12)
    assert "something else" in cli("cv", "--config", config, "--folds", "4", code=2)


def test_the_interval_is_that_of_nadeau_and_bengio() -> None:
    values = [0.8, 0.9, 0.85, 0.7, 0.95]
    half = stats.t(4).ppf(0.975) * np.sqrt((1 / 5 + 1 / 4) * np.var(values, ddof=1))
    found = interval(values, 5)
    assert (found.low, found.high) == pytest.approx(
        (np.mean(values) - half, np.mean(values) + half), abs=1e-12
    )


def test_folds_are_those_of_scikit_learn() -> None:
    rows, rng = np.arange(100, 160), np.random.default_rng(0)
    for fold, (_, test) in enumerate(KFold(4, shuffle=True, random_state=3).split(rows)):
        assert np.array_equal(split(rows, 0.1, 0.2, 3, None, ("test", fold, 4))["test"], rows[test])
    test = split(rows, 0.1, 0.2, 3, None)["test"]
    parts = [split(rows, 0.1, 0.2, 3, None, ("val", fold, 4)) for fold in range(4)]
    assert all(
        np.array_equal(part["test"], test) for part in parts
    )  # which rows are tested hangs on the seed alone
    assert sorted(np.concatenate([part["val"] for part in parts])) == sorted(set(rows) - set(test))
    groups = rng.integers(0, 9, 60)
    seen = [split_groups(rows, 0.2, 0.2, 0, groups, ("test", fold, 3)) for fold in range(3)]
    assert sorted(np.concatenate([part["test"] for part in seen])) == list(rows)
    for part in seen:
        of = {stage: set(groups[np.isin(rows, some)]) for stage, some in part.items()}
        assert not of["train"] & of["test"]
        assert not of["val"] & (of["train"] | of["test"])
    times = rng.permutation(60)
    for fold, (before, test) in enumerate(TimeSeriesSplit(4).split(np.arange(60))):
        part = split_by_time(rows, 0.1, 0.2, times, ("test", fold, 4))
        assert set(times[np.isin(rows, part["test"])]) == set(test)
        assert set(times[np.isin(rows, np.concatenate([part["train"], part["val"]]))]) == set(
            before
        )
        assert times[np.isin(rows, part["train"])].max() < times[np.isin(rows, part["val"])].min()
    for wrong in (("test", 4, 4), ("val", 0, 1), ("test", -1, 3)):
        with pytest.raises(UserError, match=r"data\.fold"):
            split(rows, 0.1, 0.2, 0, None, wrong)  # type: ignore[arg-type]


@pytest.mark.slow
def test_the_refit_trains_on_all_rows(experiment: Any) -> None:
    run("cv", "--config", str(experiment(rows=90)), "--folds", "2", "--refit")
    assert (FOLDER / "refit" / "checkpoints" / "last.ckpt").exists()
    run("test", "--run", str(FOLDER / "seed_1_fold_0"))
