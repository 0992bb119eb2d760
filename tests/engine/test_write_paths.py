"""Where a config, a checkpoint and a run folder may have files written."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from conftest import Cli, files_in
from proj.engine.runs.files import atomic_write
from proj.engine.write_paths import check_appended, check_callback_paths, check_paths
from proj.errors import UserError

LOGS = Path("lightning_logs")


@pytest.fixture
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder outside the working directory, with files of the user."""
    folder = tmp_path_factory.mktemp("elsewhere")
    for name in ("metrics.json", "best.ckpt", "last.ckpt", "report.html", "config.yaml"):
        (folder / name).write_text("MINE")
    return folder


LINKS = ["test", "validate", "predict", "checkpoints", "report.html", "test/metrics.json"]


@pytest.mark.parametrize("link", LINKS)
def test_no_verb_writes_through_a_link_in_a_run(
    link: str, experiment: Any, cli: Cli, elsewhere: Path
) -> None:
    """A run of another person would have files of the user overwritten."""
    cli("fit", "--config", experiment())
    cli("test")
    path, target = LOGS / "version_0" / link, elsewhere / Path(link).name
    if path.is_dir() or not path.exists():
        target = elsewhere / "folder"
        shutil.copytree(path, target) if path.exists() else target.mkdir()
        (target / "mine.txt").write_text("MINE")
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    path.symlink_to(target)
    before = {file: (elsewhere / file).read_bytes() for file in files_in(elsewhere)}
    for words in (
        ["test"],
        ["validate"],
        ["predict"],
        ["report"],
        ["fit", "--resume", "version_0", "--trainer.max_epochs", "3"],
    ):
        assert f"{path}: expected a file or folder of its own, got a link" in cli(*words, code=2)
    assert before == {file: (elsewhere / file).read_bytes() for file in files_in(elsewhere)}


def test_links_that_the_user_may_have(
    experiment: Any, cli: Cli, elsewhere: Path, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The user could not keep the runs, one run or the project on another disk."""
    LOGS.symlink_to(elsewhere)
    Path(".cache").mkdir()
    Path(".cache/proj").symlink_to(elsewhere)
    config = experiment()
    cli("fit", "--config", config)
    shutil.move(elsewhere / "version_0", elsewhere.parent / "moved")
    (LOGS / "version_0").symlink_to(elsewhere.parent / "moved")
    cli("test")
    cli("fit", "--resume", "version_0", "--trainer.max_epochs", "3")
    assert (elsewhere.parent / "moved/test/metrics.json").exists()
    # The working directory itself is reached through a link, and a config names it by that link.
    project = elsewhere.parent / "project"
    project.symlink_to(work)
    monkeypatch.chdir(project)
    cli("fit", "--config", LOGS / "version_0/config.yaml")
    check_paths({"trainer": {"default_root_dir": str(project / "runs")}}, [])


def test_a_link_inside_a_run_may_lead_to_the_run(experiment: Any, cli: Cli) -> None:
    """A run whose best checkpoint is a link to the last one could not be tested."""
    cli("fit", "--config", experiment())
    best = LOGS / "version_0/checkpoints/best.ckpt"
    best.unlink()
    best.symlink_to("last.ckpt")
    cli("test")


def test_a_temporary_file_that_is_a_link_is_not_written_through(work: Path) -> None:
    """A link with the name of the temporary file would have another file overwritten."""
    (work / "mine.txt").write_text("MINE")
    (work / f".out.txt.{os.getpid()}").symlink_to(work / "mine.txt")
    (work / "out.txt").symlink_to(work / "mine.txt")
    atomic_write(work / "out.txt", lambda file: file.write(b"new"))
    assert (work / "out.txt").read_text() == "new"
    assert not (work / "out.txt").is_symlink()
    assert (work / "mine.txt").read_text() == "MINE"


def test_hard_links_are_not_appended_to(work: Path) -> None:
    """The journal of a study that is a second name of another file would change that file."""
    (work / "mine.txt").write_text("MINE")
    check_appended(work / "mine.txt")
    check_appended(work / "missing.txt")
    (work / "hard").hardlink_to(work / "mine.txt")
    (work / "soft").symlink_to(work / "missing.txt")
    for name in ("hard", "soft"):
        with pytest.raises(UserError, match="expected a file of its own, got a link"):
            check_appended(work / name)


def test_a_path_is_allowed_as_the_value_of_its_own_flag_only(work: Path) -> None:
    """A path that the user typed to read from would allow a config to write there."""
    logger = {"class_path": "CSVLogger", "init_args": {"save_dir": "/outside"}}
    cases: list[tuple[dict[str, Any], list[str]]] = [
        ({"trainer": {"default_root_dir": "/outside"}}, ["--trainer.default_root_dir", "/outside"]),
        ({"trainer": {"default_root_dir": "/outside"}}, ["--trainer.default_root_dir=/outside"]),
        ({"trainer": {"logger": logger}}, ["--trainer.logger.save_dir", "/outside"]),
        ({"trainer": {"logger": [logger]}}, ["--trainer.logger.init_args.save_dir=/outside"]),
        ({"trainer": {"logger": logger}}, ["--trainer.logger", json.dumps(logger)]),
        ({"trainer": {"callbacks": [logger]}}, ["--trainer.callbacks+", json.dumps(logger)]),
        ({"data": {"init_args": {"cache_dir": "/outside"}}}, ["--data.cache_dir", "/outside"]),
    ]
    for experiment, typed in cases:
        check_paths(experiment, typed)
        for others in ([], ["--data.path", "/outside"], ["--data.path=/outside/x"]):
            with pytest.raises(UserError, match="expected a path in the working directory"):
                check_paths(experiment, others)


def test_links_below_a_folder_that_a_config_names(work: Path, elsewhere: Path) -> None:
    """An archive with links, and a config that names it, would have files elsewhere overwritten."""
    (work / "archive/version_0").mkdir(parents=True)
    (work / "archive/lightning_logs").symlink_to(elsewhere)
    with pytest.raises(UserError, match="expected a path in the working directory"):
        check_paths({"trainer": {"default_root_dir": "archive"}}, [])
    logger = {"init_args": {"save_dir": "archive", "version": 0}}
    for name in ("lightning_logs", "version_0/metrics.csv"):
        (work / "archive/lightning_logs").unlink(missing_ok=True)
        (work / "archive" / name).symlink_to(elsewhere / "metrics.json")
        with pytest.raises(UserError, match="expected a file or folder of its own, got a link"):
            check_paths({"trainer": {"logger": logger}}, [])
    (work / "archive/version_0/metrics.csv").unlink()
    (work / "archive/version_0/metrics.csv").symlink_to("../../metrics.csv")
    check_paths({"trainer": {"logger": logger, "default_root_dir": "archive"}}, [])


def test_texts_that_are_no_paths_are_allowed(work: Path) -> None:
    """Names of metrics, times and servers would be taken as paths."""
    for text in ("val/loss", "00:12:00:00", "http://server:5000/x", "epoch={epoch}", "16-mixed"):
        check_paths({"trainer": {"callbacks": [{"init_args": {"x": text}}]}}, [])
    for text in ("a\0b", "file:x", "a::b", "s3://x", "data:x"):
        with pytest.raises(UserError, match="expected a path in the working directory"):
            check_paths({"trainer": {"callbacks": [{"init_args": {"x": text}}]}}, [])


def test_a_study_does_not_write_elsewhere(experiment: Any, cli: Cli, elsewhere: Path) -> None:
    """A study file would have runs written anywhere, because its settings become flags."""
    study = {"experiment": str(experiment()), "trials": 1, "sampler": {"class_path": "TPESampler"}}
    for key in ("trainer.default_root_dir", "data.cache_dir"):
        space = {key: {"choice": [str(elsewhere), "."]}}
        Path("study.yaml").write_text(yaml.safe_dump({**study, "space": space}))
        message = cli("tune", "--config", "study.yaml", code=2)
        assert f"{key}: expected a path in the working directory" in message


@pytest.mark.parametrize(
    ("dirpath", "path"),
    [
        ("/run", "/mine/x.ckpt"),
        ("/run", "/run/../mine/x.ckpt"),
        ("", "/mine/x.ckpt"),
        (None, "mine/x.ckpt"),
        ("simplecache::", "simplecache::/mine/x.ckpt"),
        ("/run", "file:///mine/x.ckpt"),
    ],
)
def test_the_state_of_a_callback_names_files_of_its_own_folder(dirpath: Any, path: str) -> None:
    """Lightning would delete the file as the previous best checkpoint."""
    for state in ({"best_model_path": path}, {"best_k_models": {path: 1.0}}):
        with pytest.raises(UserError, match="tampered with"):
            check_callback_paths(
                {"callbacks": {"ModelCheckpoint": {"dirpath": dirpath, **state}}}, Path("x.ckpt")
            )
