"""The run folder: its files, how it is created and found, and how it reproduces a run."""

import json
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
import yaml

import proj
from conftest import Cli, Trained, files_in, make_arrays
from proj.engine.cli import main
from proj.engine.runs.checkpoint_file import read_checkpoint
from proj.engine.runs.contents import flatten_config
from proj.engine.runs.files import atomic_write
from proj.engine.runs.find import find_run, list_runs
from proj.engine.runs.run import Run, create_run
from proj.errors import UserError

LOGS = Path("lightning_logs")


def state(name: str, which: str = "last") -> dict[str, Any]:
    return read_checkpoint(LOGS / name / "checkpoints" / f"{which}.ckpt")["state_dict"]


def equal(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_a_run_is_one_folder(experiment: Any, cli: Cli) -> None:
    out = cli("fit", "--config", experiment())
    run = LOGS / "version_0"
    files = [f for f in files_in(run) if "tfevents" not in f]
    assert files == [
        "checkpoints/best.ckpt",
        "checkpoints/last.ckpt",
        "checkpoints/previous.ckpt",
        "config.yaml",
        "findings.json",
        "manifest.json",
    ]
    assert len(files_in(run)) == 7
    assert "tensorboard --logdir lightning_logs" in out
    cli("validate")
    cli("test")
    cli("predict")
    assert {
        "validate/metrics.json",
        "test/metrics.json",
        "test/predictions.parquet",
        "predict/predictions.parquet",
    } <= set(files_in(run))
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["status"] == "finished"
    assert manifest["start"] < manifest["end"]
    assert manifest["command"][:2] == ["fit", "--config"]
    assert manifest["packages"]["torch"] == metadata.version("torch")
    assert len(manifest["data"]) == 64


def test_the_config_of_a_run_gives_the_same_weights(experiment: Any, cli: Cli) -> None:
    """Dropout and shuffling make the result depend on the random generators."""
    net = {"class_path": "MLP", "init_args": {"hidden": [8], "dropout": 0.5}}
    cli("fit", "--config", experiment(model={"net": net}))
    cli("fit", "--config", LOGS / "version_0/config.yaml")
    assert equal(state("version_0"), state("version_1"))
    assert (LOGS / "version_0/config.yaml").read_text() == (
        LOGS / "version_1/config.yaml"
    ).read_text()
    cli("fit", "--config", LOGS / "version_0/config.yaml", "--seed_everything", "5")
    assert not equal(state("version_0"), state("version_2"))


@pytest.mark.parametrize(
    "logger",
    [
        ["--trainer.logger", "false"],
        ["--trainer.logger", "CSVLogger", "--trainer.logger.save_dir", "csv"],
    ],
)
def test_the_folder_does_not_depend_on_the_logger(
    logger: list[str], experiment: Any, cli: Cli
) -> None:
    cli("fit", "--config", experiment(), *logger)
    files = (
        "checkpoints/best.ckpt",
        "checkpoints/last.ckpt",
        "checkpoints/previous.ckpt",
        "config.yaml",
        "findings.json",
        "manifest.json",
    )
    written = [name for name in files_in(LOGS) if "tfevents" not in name]
    assert written == [f"version_0/{file}" for file in files]
    cli("test")
    assert (LOGS / "version_0/test/metrics.json").exists()


def test_a_checkpoint_holds_plain_values_and_its_config_and_schema(trained: Trained) -> None:
    trained("binary")
    checkpoint = torch.load(LOGS / "version_0/checkpoints/best.ckpt", weights_only=True)
    assert checkpoint["config"] == yaml.safe_load((LOGS / "version_0/config.yaml").read_text())
    assert checkpoint["schema"]["classes"] == ["no", "yes"]
    assert json.loads(json.dumps(checkpoint["schema"])) == checkpoint["schema"]


@pytest.mark.parametrize("task", ["binary", "multiclass", "multilabel", "regression_2"])
def test_load_predicts_what_the_predict_verb_writes(
    task: str, trained: Trained, cli: Cli, work: Path
) -> None:
    trained(task)
    rows = make_arrays(task, 30, seed=9)["x"]
    np.savez("new.npz", x=rows)
    cli("predict", "--data.predict_path", "new.npz", "--output", "out.csv")
    table = pl.read_csv("out.csv")
    for source in (
        "version_0",
        str(work / LOGS / "version_0"),
        LOGS / "version_0/checkpoints/best.ckpt",
    ):
        loaded = proj.load(source).predict(rows)
        assert loaded.columns == table.columns
        for name in table.columns:
            if table[name].dtype == pl.Float64:
                assert np.allclose(loaded[name], table[name], atol=1e-6)
            else:
                assert loaded[name].cast(table[name].dtype).to_list() == table[name].to_list()
    with pytest.raises(UserError, match=r"expected rows of shape \(6,\)"):
        proj.load("version_0").predict(rows[:, :3])


def test_a_checkpoint_moved_elsewhere_is_enough(
    trained: Trained, tmp_path_factory: Any, monkeypatch: Any
) -> None:
    trained("multiclass")
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (LOGS / "version_0/checkpoints/best.ckpt").rename(elsewhere / "my.ckpt")
    monkeypatch.chdir(elsewhere)
    table = proj.load("my.ckpt").predict(make_arrays("multiclass", 5)["x"])
    assert set(table["prediction"]) <= {0, 10, 20}


def test_names_and_the_newest_finished_run(experiment: Any, cli: Cli) -> None:
    config = experiment()
    cli("fit", "--config", config, "--name", "zebra")
    cli("fit", "--config", config, "--name", "ant")
    run = Run(LOGS / "unfinished")
    run.path.mkdir()
    run.write_manifest(status="running", start="9999")
    assert find_run(LOGS, None).path.name == "ant"
    assert find_run(LOGS, "zebra").path == LOGS / "zebra"
    assert find_run(LOGS, str(LOGS / "zebra")).path == LOGS / "zebra"
    assert [r.path.name for r in list_runs(LOGS)] == ["unfinished", "ant", "zebra"]
    assert "run: lightning_logs/ant" in cli("test")
    assert "Did you mean 'zebra'" in cli("test", "--run", "zebr", code=2)
    assert "expected a new name, got lightning_logs/ant, which exists" in cli(
        "fit", "--config", config, "--name", "ant", code=2
    )
    assert "--name: expected up to 100 letters, digits" in cli(
        "fit", "--config", config, "--name", "a/b", code=2
    )


def test_a_config_finds_the_newest_run_with_its_model_and_data(experiment: Any, cli: Cli) -> None:
    config = experiment()
    cli("fit", "--config", config, "--name", "plain", "--trainer.max_epochs", "1")
    cli("fit", "--config", config, "--name", "wide", "--model.net.hidden", "[16]")
    assert "run: lightning_logs/plain" in cli("test", "--config", config)
    assert "expected a finished run in lightning_logs with the model and data" in cli(
        "test", "--config", experiment("binary"), code=2
    )


def test_flags_override_recorded_settings_and_the_change_is_printed(
    trained: Trained, cli: Cli
) -> None:
    trained()
    out = cli("test", "--data.batch_size", "7", "--model.label_smoothing", "0.5")
    assert "not as recorded: data.init_args.batch_size: 16 -> 7" in out
    assert "not as recorded: model.init_args.label_smoothing: 0.0 -> 0.5" in out
    plain = json.loads((LOGS / "version_0/test/metrics.json").read_text())["loss"]["value"]
    cli("test")
    assert json.loads((LOGS / "version_0/test/metrics.json").read_text())["loss"]["value"] != plain


def test_a_changed_source_gives_a_warning(trained: Trained, capsys: Any) -> None:
    trained()
    np.savez("data.npz", **make_arrays("multiclass", 120, seed=5))
    assert main(["test"]) == 0
    assert (
        "rows that the run was trained on may be among those scored: the source has changed"
        in capsys.readouterr().err
    )


def test_another_split_than_in_training_gives_a_warning(trained: Trained, capsys: Any) -> None:
    trained()
    assert main(["test", "--data.split_seed", "1"]) == 0
    assert "may be among those scored: init_args.split_seed: 0 -> 1" in capsys.readouterr().err
    assert main(["test", "--data.batch_size", "7"]) == 0
    assert "may be among those scored" not in capsys.readouterr().err


def test_an_unfinished_run_gives_a_warning(trained: Trained, cli: Cli, capsys: Any) -> None:
    trained()
    find_run(LOGS, None).write_manifest(status="failed")
    assert "1 run in lightning_logs, none finished" in cli("test", code=2)
    assert main(["test", "--run", "version_0"]) == 0
    assert "version_0 is not finished; its status is failed" in capsys.readouterr().err
    (LOGS / "version_0/manifest.json").write_text("{")
    assert "manifest.json cannot be read" in cli("test", code=2)


def test_predicting_new_rows_needs_no_training_data(trained: Trained, cli: Cli) -> None:
    trained()
    Path("data.npz").unlink()
    np.savez("new.npz", x=make_arrays("multiclass", 7)["x"])
    cli("predict", "--data.predict_path", "new.npz")
    assert pl.read_parquet(LOGS / "version_0/predict/predictions.parquet").height == 7


def test_the_last_config_decides_where_runs_are(experiment: Any, cli: Cli) -> None:
    Path("one.yaml").write_text("trainer: {default_root_dir: one}")
    Path("two.yaml").write_text("trainer: {default_root_dir: two}")
    files = ["--config", experiment(), "--config", "one.yaml", "--config", "two.yaml"]
    cli("fit", *files)
    assert (Path("two") / LOGS / "version_0/config.yaml").exists()
    assert not Path("one").exists()
    assert "run: two/lightning_logs/version_0" in cli("test", *files)
    assert "run: two/lightning_logs/version_0" in cli("test", "--trainer.default_root_dir", "two")


def test_runs_created_at_the_same_time_get_different_folders(work: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        created = list(pool.map(lambda _: create_run(work / "logs", None).path, range(40)))
    assert len(set(created)) == 40
    assert {p.name for p in created} == {f"version_{i}" for i in range(40)}
    (work / "logs/version_²").mkdir()  # Python takes it for a digit, but not for a number.
    assert create_run(work / "logs", None).path.name == "version_40"


def test_an_interrupted_write_leaves_the_old_file(work: Path) -> None:
    atomic_write(work / "a.txt", lambda file: file.write(b"old"))

    def fail(file: Any) -> None:
        file.write(b"ne")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        atomic_write(work / "a.txt", fail)
    assert files_in(work) == ["a.txt"]
    assert (work / "a.txt").read_text() == "old"


def test_best_is_the_epoch_with_the_best_validation_metric(experiment: Any, cli: Cli) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = experiment(
        "regression",
        trainer={"max_epochs": 8},
        model={"optimizer": {"class_path": "SGD", "init_args": {"lr": 0.5}}},
    )
    cli("fit", "--config", config)
    events = EventAccumulator(str(LOGS / "version_0"))
    events.Reload()
    rmse = [e.value for e in events.Scalars("val/rmse")]
    best = read_checkpoint(LOGS / "version_0/checkpoints/best.ckpt")
    assert len(rmse) == 8
    assert best["epoch"] == int(np.argmin(rmse))
    cli("validate")
    got = json.loads((LOGS / "version_0/validate/metrics.json").read_text())["rmse"]["value"]
    assert got == pytest.approx(min(rmse), rel=1e-6)


def test_metrics_of_a_split_are_those_that_its_verb_wrote(trained: Trained, cli: Cli) -> None:
    trained("binary")
    run = find_run(LOGS, "version_0")
    for split, verb in (("val", "validate"), ("test", "test")):
        with pytest.raises(UserError, match=rf"found no file; write it with `{verb} --run vers"):
            run.metrics(split)
        cli(verb)
        content = json.loads((run.path / verb / "metrics.json").read_text())
        assert run.metrics(split) == content
        assert run.metrics(split)["f1"]["value"] == content["f1"]["value"]
    with pytest.raises(UserError, match="expected the split val or test, got 'train'"):
        run.metrics("train")
    (run.path / "test" / "metrics.json").write_text("{")
    with pytest.raises(UserError, match="is damaged"):
        run.metrics("test")


def test_a_flat_config_has_dotted_keys_without_class_paths() -> None:
    config = {
        "seed_everything": 1,
        "model": {"class_path": "M", "init_args": {"lr": 0.1, "net": None, "hidden": [8]}},
    }
    assert flatten_config(config) == {
        "seed_everything": 1,
        "model": "M",
        "model.lr": 0.1,
        "model.hidden": "[8]",
    }
