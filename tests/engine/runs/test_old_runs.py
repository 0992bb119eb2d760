"""Runs of version 0.1 (commit 1f3aa99, before the new package layout) still work."""

import json
import shutil
from pathlib import Path

import polars as pl
import pytest
import torch
import yaml
from polars.testing import assert_frame_equal

import proj
from conftest import Cli
from proj.engine.runs.checkpoint_file import read_checkpoint
from proj.engine.runs.run import Run

RUNS = Path(__file__).parent / "runs_of_0.1"
NAMES = ("table", "images", "regression")
RECORDED_PACKAGE = yaml.safe_load((RUNS / "lightning_logs/table/config.yaml").read_text())["model"][
    "class_path"
].split(".")[0]

pytestmark = pytest.mark.skipif(
    proj.__name__ != RECORDED_PACKAGE,
    reason="the package was renamed; runs made under the old name do not work with the new one",
)


@pytest.fixture(autouse=True)
def old_runs(work: Path) -> None:
    shutil.copytree(RUNS, work, dirs_exist_ok=True)


@pytest.mark.parametrize("name", NAMES)
def test_test_gives_the_recorded_metrics_and_predictions(name: str, cli: Cli) -> None:
    folder = Path("lightning_logs") / name / "test"
    metrics = json.loads((folder / "metrics.json").read_text())
    table = pl.read_parquet(folder / "predictions.parquet")
    out = cli("test", "--run", name)
    assert "not as recorded: model" not in out
    assert "not as recorded: data" not in out
    again = json.loads((folder / "metrics.json").read_text())
    assert again.keys() == metrics.keys()
    for key, entry in metrics.items():
        assert again[key]["value"] == pytest.approx(entry["value"], abs=1e-6), key
        assert again[key].get("low") == pytest.approx(entry.get("low"), abs=1e-6), key
    assert_frame_equal(pl.read_parquet(folder / "predictions.parquet"), table, abs_tol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_predict_gives_the_recorded_predictions(name: str, cli: Cli) -> None:
    cli("predict", "--run", name, "--output", "new.parquet")
    table = pl.read_parquet(Path("lightning_logs") / name / "test" / "predictions.parquet")
    columns = [column for column in table.columns if not column.startswith("target")]
    assert_frame_equal(pl.read_parquet("new.parquet"), table.select(columns), abs_tol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_fit_on_the_recorded_config_gives_the_recorded_weights(name: str, cli: Cli) -> None:
    recorded = Run(Path("lightning_logs") / name)
    cli("fit", "--config", recorded.path / "config.yaml", "--name", "again")
    for which in ("best", "last"):
        before, after = (
            read_checkpoint(run.checkpoint(which))["state_dict"]
            for run in (recorded, Run(Path("lightning_logs/again")))
        )
        assert before.keys() == after.keys()
        assert all(
            torch.allclose(before[key].double(), after[key].double(), atol=1e-6) for key in before
        )


@pytest.mark.parametrize("name", NAMES)
def test_a_resume_of_an_old_checkpoint_is_refused(name: str, cli: Cli) -> None:
    """Its callbacks have other states, so the resumed run would go wrong without a message."""
    run = Path("lightning_logs") / name
    before = (run / "manifest.json").read_text()
    message = "expected a checkpoint of this version of proj, got one of another version"
    said = cli("fit", "--resume", name, "--trainer.max_time", "00:00:10:00", code=2)
    assert f"{run}/checkpoints/last.ckpt: {message}" in said
    assert "start a new run from its weights with --init_from" in said
    flags = ["--config", run / "config.yaml", "--trainer.max_epochs", "9"]
    last = run / "checkpoints" / "last.ckpt"
    assert message in cli("fit", *flags, "--ckpt_path", last, code=2)
    assert (run / "manifest.json").read_text() == before
    cli("fit", *flags[:2], "--init_from", last, "--name", "new")
