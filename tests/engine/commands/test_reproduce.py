"""``reproduce`` says that a run is identical, or names what differs."""

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import CONFIGS, Cli, Trained, make_arrays
from proj.engine import security
from proj.engine.commands.reproduce import _first_points, first_difference
from proj.engine.runs.environment import (
    distributions,
    environment,
    environment_changes,
    uncommitted_code,
)
from proj.engine.runs.run import Run

RUN = Path("lightning_logs/version_0")
AGAIN = Path("lightning_logs/version_0_again")


@pytest.fixture
def run(trained: Trained) -> Run:
    trained("multiclass")
    return Run(RUN)


def test_a_run_is_identical(run: Run, cli: Cli) -> None:
    """The second run would differ, for example because a generator is not seeded."""
    said = cli("reproduce", RUN)
    assert "identical to the bit: the weights of best.ckpt and last.ckpt" in said
    assert "the metrics of 2 validations" in said
    assert not AGAIN.exists()
    run.write_manifest(packages={**run.manifest["packages"], "torch": "0.1"})
    assert "; not as recorded: torch: 0.1 -> " in cli("reproduce", RUN)


@pytest.mark.slow
@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_each_shipped_experiment_is_identical(config: Path, cli: Cli) -> None:
    cli("fit", "--config", config)
    assert "identical to the bit" in cli("reproduce")


def test_a_changed_seed_is_named_with_the_first_epoch(run: Run, cli: Cli) -> None:
    config = RUN / "config.yaml"
    config.write_text(config.read_text().replace("seed_everything: 1", "seed_everything: 2"))
    said = cli("reproduce", RUN, code=3)
    assert "is not reproduced: the first difference is in epoch 0: val/" in said
    assert "Not as recorded: seed_everything: 1 -> 2" in said
    assert AGAIN.exists()
    assert "expected no folder lightning_logs/version_0_again" in cli("reproduce", RUN, code=2)


def test_changed_data_are_named_before_the_training(run: Run, cli: Cli) -> None:
    np.savez("data.npz", **make_arrays("multiclass", 120, seed=1))
    assert "the data have changed (fingerprint " in cli("reproduce", RUN, code=3)
    assert not AGAIN.exists()


def test_a_run_that_is_not_finished_is_refused(run: Run, cli: Cli) -> None:
    run.write_manifest(status="stopped")
    assert "expected a finished run" in cli("reproduce", RUN, code=2)


def test_other_weights_are_found_where_all_metrics_are_equal(run: Run, work: Path) -> None:
    """A comparison of the metrics alone would call the runs identical."""
    copy = work / "copy"
    subprocess.run(["cp", "-r", RUN, copy], check=True)
    assert first_difference(run, Run(copy)) is None
    path = copy / "checkpoints/last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    name, weight = next(iter(checkpoint["state_dict"].items()))
    weight.view(-1)[0] = torch.nextafter(weight.view(-1)[0], torch.tensor(9.0))
    torch.save(checkpoint, path)
    difference = first_difference(run, Run(copy))
    assert (
        difference == f"{name} in last.ckpt differs, although the metrics of all epochs are equal"
    )


def points(before: list[float], after: list[float]) -> list[tuple[int, str]]:
    return [*_first_points(np.array(before), np.array(after))]


def test_the_first_point_that_differs_is_found() -> None:
    """A metric that becomes NaN, or a validation less, would count as equal."""
    nan = float("nan")
    assert points([1, nan], [1, nan]) == []
    assert points([1, 0.5, 3], [1, nan, 4]) == [(1, "is 0.5 in the run and nan now")]
    assert points([1, nan], [1, 0.25]) == [(1, "is nan in the run and 0.25 now")]
    assert points([1, 2], [1]) == [(0, "has 2 points in the run and 1 now")]


def test_a_run_without_checkpoints_is_refused(run: Run, cli: Cli) -> None:
    for path in RUN.glob("checkpoints/*.ckpt"):
        path.unlink()
    assert "expected a run with checkpoints" in cli("reproduce", RUN, code=2)


def test_the_manifest_holds_the_environment(run: Run) -> None:
    manifest = json.loads((RUN / "manifest.json").read_text())
    assert manifest["distributions"]["torch"] == torch.__version__
    assert len(manifest["distributions"]) > 50
    assert manifest["hardware"]["cpu"]
    assert manifest["flags"]["deterministic_algorithms"] is False


def test_what_an_interrupted_installation_leaves_is_no_distribution(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that was started beside a `pip install` had a manifest that nothing could read."""
    (work / "half-1.0.dist-info").mkdir()
    (work / "half-1.0.dist-info/RECORD").write_text("half/__init__.py,,\n")
    (work / "no_version.dist-info").mkdir()
    (work / "no_version.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: no-version\n")
    monkeypatch.syspath_prepend(work)
    found = distributions.__wrapped__()
    assert all(isinstance(name, str) and isinstance(v, str) for name, v in found.items())
    assert found["no-version"] == "unknown"
    assert "torchmetrics" in security._dependencies()


def test_environments_differ_in_what_both_record() -> None:
    now = environment(torch.device("cpu"))
    assert [*environment_changes(now, now)] == []
    assert [*environment_changes({}, now)] == []
    other = {**now, "python": "3.9.0", "distributions": {**now["distributions"], "gone": "1.0"}}
    changes = [*environment_changes(other, now)]
    assert changes[0].startswith("python: 3.9.0 -> 3.")
    assert changes[1:] == ["gone: 1.0 -> not installed"]


def test_uncommitted_code_applies_to_the_commit(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run would not hold a new file, or hold a config with a password."""
    assert uncommitted_code() == ""  # no repository

    def git(*args: str) -> str:
        command = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c", *args]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    git("init", "--quiet")
    Path("net.py").write_text("width = 8\n")
    Path("config.yaml").write_text("a: 1\n")
    Path("inner").mkdir()
    git("add", ".")
    git("commit", "--quiet", "--message", "first")
    assert uncommitted_code() == ""
    Path("net.py").write_text("width = 16\n")
    Path("new.py").write_text("depth = 2\n")
    Path("config.yaml").write_text("password: secret\n")
    patch = uncommitted_code()
    monkeypatch.chdir("inner")
    assert uncommitted_code() == patch  # of the whole repository, wherever `fit` is called
    monkeypatch.chdir("..")
    assert "secret" not in patch
    git("stash", "--include-untracked", "--quiet")
    Path("code.diff").write_text(patch)
    git("apply", "code.diff")
    assert Path("net.py").read_text() == "width = 16\n"
    assert Path("new.py").read_text() == "depth = 2\n"
