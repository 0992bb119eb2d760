"""Results of a checkpoint are written into the folder of its own run."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import Cli, files_in
from proj.engine.config.checkpoint_owner import check_same_run, run_of_file
from proj.engine.runs.run import Run
from proj.errors import UserError

LOGS = Path("lightning_logs")


@pytest.fixture
def two_runs(experiment: Any, cli: Cli, once: Any) -> None:
    """The runs ``a`` and ``b``, the newest; they differ in seed and length."""

    def fit() -> None:
        cli("fit", "--config", config, "--name", "a", "--trainer.max_epochs", "1")
        cli("fit", "--config", config, "--name", "b", "--seed_everything", "2")

    config = experiment()
    once("two_runs", fit)


@pytest.mark.usefixtures("two_runs")
def test_a_checkpoint_file_names_its_run(cli: Cli) -> None:
    """The metrics, predictions and report of a would be written into b, the newest run."""
    before = files_in(LOGS / "b")
    file = LOGS / "a/checkpoints/best.ckpt"
    shutil.copytree(file.parent, LOGS / "a/kept")
    for verb, path in (
        ("test", file),
        ("validate", file.absolute()),
        ("predict", LOGS / "a/kept/best.ckpt"),
        ("predict", LOGS / "b/../a/kept/last.ckpt"),
    ):
        assert "run: lightning_logs/a, " in cli(verb, "--ckpt_path", path)
    args = ("validate", "--config", "experiment.yaml", "--ckpt_path", file)
    assert "run: lightning_logs/a, " in cli(*args)
    assert files_in(LOGS / "b") == before
    assert {"test/metrics.json", "validate/metrics.json", "report.html"} <= {*files_in(LOGS / "a")}


@pytest.mark.usefixtures("two_runs")
def test_a_checkpoint_of_another_run_is_refused(cli: Cli) -> None:
    """One of the ways to give a run another's checkpoint would give it another's results."""
    file, before = LOGS / "a/checkpoints/best.ckpt", files_in(LOGS)
    message = cli("test", "--run", "b", "--ckpt_path", file, code=2)
    assert "expected a checkpoint of lightning_logs/b, got one of lightning_logs/a" in message
    shutil.copy(file, "moved.ckpt")
    message = cli("test", "--ckpt_path", "moved.ckpt", code=2)
    assert "got moved.ckpt, which is in none; name the run that it belongs to" in message
    message = cli("test", "--run", "b", "--ckpt_path", "moved.ckpt", code=2)
    assert "whose config is another run's: seed_everything: 2 -> 1; name the" in message
    assert "run: lightning_logs/a" in cli("predict", "--run", "a", "--ckpt_path", "moved.ckpt")
    other = ("--config", "experiment.yaml", "--ckpt_path", file)
    Path("experiment.yaml").write_text(
        Path("experiment.yaml").read_text().replace('"batch_size": 16', '"batch_size": 8')
    )
    assert "data.init_args.batch_size: 16 -> 8; leave out --config" in cli("test", *other, code=2)
    shutil.rmtree(LOGS / "a/predict")
    assert files_in(LOGS) == before
    for name in ("best", "last"):
        shutil.copy(LOGS / f"a/checkpoints/{name}.ckpt", LOGS / f"b/checkpoints/{name}.ckpt")
    longer = ["fit", "--resume", "b", "--trainer.max_epochs", "9"]
    for args in (["test"], ["validate", "--ckpt_path", "last"], longer):
        assert "whose config is another run's" in cli(*args, code=2)


def test_the_run_of_a_file_is_the_nearest_folder_of_a_run(work: Path) -> None:
    for folder in ("runs/study", "runs/study/trial_1"):
        Path(folder).mkdir(parents=True)
        for name in ("config.yaml", "manifest.json"):
            Path(folder, name).touch()
    file = Path("runs/study/trial_1/checkpoints/best.ckpt")
    assert run_of_file(file) == Run(Path("runs/study/trial_1"))
    assert run_of_file(Path("runs/best.ckpt")) is None
    assert run_of_file(work / "runs/study/x.ckpt") == Run(Path("runs/study"))


CONFIG = {"trainer": {"max_epochs": 2}, "model": {"lr": 0.1}, "data": {"init_args": {"path": "a"}}}


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"trainer": {"max_epochs": 9}}, True),
        ({"data": {"init_args": {"path": "a", "cache_dir": "/tmp"}}}, True),
        ({"init_from": None}, True),
        ({"model": {"lr": 0.2}}, False),
        ({"data": {"init_args": {"path": "b"}}}, False),
        ({"init_from": "c.ckpt"}, False),
    ],
    ids=str,
)
def test_a_resumed_run_keeps_its_checkpoints(change: dict[str, Any], same: bool) -> None:
    """The checkpoints of a run that was made longer would be refused, or foreign ones accepted."""
    checkpoint, file = {"config": {**CONFIG, **change}}, Path("run/checkpoints/best.ckpt")
    if same:
        check_same_run(Run(Path("run")), CONFIG, checkpoint, file)
        return
    with pytest.raises(UserError, match="whose config is another run's"):
        check_same_run(Run(Path("run")), CONFIG, checkpoint, file)


@pytest.mark.usefixtures("two_runs")
def test_a_checkpoint_without_a_config_belongs_to_the_run_whose_folder_it_is_in(cli: Cli) -> None:
    """A user's ModelCheckpoint with `save_weights_only` writes no config."""
    checkpoint = torch.load(LOGS / "a/checkpoints/best.ckpt", weights_only=True)
    del checkpoint["config"]
    torch.save(checkpoint, LOGS / "a/checkpoints/weights.ckpt")
    cli("test", "--ckpt_path", LOGS / "a/checkpoints/weights.ckpt")
    torch.save(checkpoint, "weights.ckpt")
    message = cli("test", "--run", "a", "--ckpt_path", "weights.ckpt", code=2)
    assert "got one without a config, which may belong to any run" in message


@pytest.mark.parametrize("task", ["regression", "multilabel", "binary", "multiclass"])
def test_a_config_finds_its_run(task: str, trained: Any, cli: Cli) -> None:
    """The class of the model would be recorded by another path than the config is compared by."""
    trained(task)
    assert "run: lightning_logs/version_0, " in cli("predict", "--config", "experiment.yaml")
    continued = ("--trainer.max_epochs", "2", "--trainer.fast_dev_run", "true")
    last = LOGS / "version_0/checkpoints/last.ckpt"
    cli("fit", "--config", "experiment.yaml", "--ckpt_path", last, *continued)
