"""Damaged files in run folders: other runs are not affected, and a message names the file."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conftest import QUIET, Cli
from proj.engine.cli import main
from proj.engine.runs.files import MAX_BYTES, parse_yaml
from proj.engine.runs.find import find_run, list_runs
from proj.errors import UserError

LOGS = Path("lightning_logs")
GOOD = LOGS / "good"
BAD = LOGS / "bad"


def replace_value(path: Path, value: Any, *keys: Any) -> None:
    """Replace the value at some keys of a JSON file."""
    content = json.loads(path.read_text())
    inner = content
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    path.write_text(json.dumps(content))


def link_to_nothing(path: Path) -> None:
    path.unlink()
    path.symlink_to("nothing")


def folder_instead(path: Path) -> None:
    path.unlink()
    path.mkdir()


def pipe_instead(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


WHOLE_FILE: dict[str, Callable[[Path], Any]] = {
    "empty": lambda path: path.write_bytes(b""),
    "list": lambda path: path.write_bytes(b"[]"),
    "null": lambda path: path.write_bytes(b"null"),
    "number": lambda path: path.write_bytes(b"3"),
    "text": lambda path: path.write_bytes(b'"text"'),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-9] + b"{"),
    "not_utf8": lambda path: path.write_bytes(b"\xff\xfe" + path.read_bytes()),
    # Deeper than the recursion of Python; the time of YAML grows with the square of the depth.
    "deep": lambda path: path.write_bytes(b"[" * (5000 if path.suffix == ".json" else 600)),
    "digits": lambda path: path.write_bytes(b'{"start": ' + b"9" * 5000 + b"}"),
    "surrogate": lambda path: path.write_bytes(rb'{"start": "\ud800", "status": "\ud800"}'),
    "link_to_nothing": link_to_nothing,
    "folder": folder_instead,
    "pipe": pipe_instead,
}
DAMAGES: dict[str, tuple[str, Callable[[Path], Any]]] = {
    f"{file.split('.')[0]}_{name}": (file, damage)
    for file in ("manifest.json", "config.yaml")
    for name, damage in WHOLE_FILE.items()
}
DAMAGES |= {
    "no_start": ("manifest.json", lambda path: replace_value(path, None, "start")),
    "status_of_another_type": ("manifest.json", lambda path: replace_value(path, [1], "status")),
    "unknown_status": ("manifest.json", lambda path: replace_value(path, "done", "status")),
    "end_is_a_number": ("manifest.json", lambda path: replace_value(path, 3, "end")),
    "git_is_a_text": ("manifest.json", lambda path: replace_value(path, "abc", "git")),
    "no_manifest": ("manifest.json", Path.unlink),
    "no_config": ("config.yaml", Path.unlink),
    "no_trainer": ("config.yaml", lambda path: path.write_text("model: {}")),
    "laughs": (
        "config.yaml",
        lambda path: path.write_text(
            "a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1]\n"
            + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))
        ),
    ),
    "circle": ("config.yaml", lambda path: path.write_text("trainer: &a {b: *a}\nmodel: {}")),
}


@pytest.fixture(scope="module")
def good_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data and a run that has been trained and tested."""
    import numpy as np

    from conftest import make_arrays

    folder = tmp_path_factory.mktemp("good")
    before = os.getcwd()
    os.chdir(folder)
    try:
        np.savez("data.npz", **make_arrays("binary", 120))
        experiment = {
            "seed_everything": 1,
            "trainer": {"max_epochs": 1, "accelerator": "cpu"},
            "model": {"class_path": "BinaryClassifier", "init_args": {"net": "MLP"}},
            "data": {"class_path": "ArrayDataModule", "init_args": {"path": "data.npz"}},
        }
        Path("experiment.yaml").write_text(json.dumps(experiment))
        assert main(["fit", "--config", "experiment.yaml", "--name", "good", *QUIET]) == 0
        assert main(["test", "--run", "good", *QUIET]) == 0
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def runs(good_run: Path, work: Path) -> Path:
    """Copy the good run into the working folder."""
    shutil.copytree(good_run, work, dirs_exist_ok=True)
    return work


def add_damaged(name: str, file: str, damage: Callable[[Path], Any]) -> None:
    """Copy the good run as a newer one, and damage one of its files."""
    shutil.copytree(GOOD, LOGS / name)
    replace_value(LOGS / name / "manifest.json", "2999-01-01T00:00:00+00:00", "start")
    damage(LOGS / name / file)


def test_damaged_runs_are_skipped_in_one_line_each(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every verb finds the one good run among the damaged ones, which are all newer."""
    for name, (file, damage) in DAMAGES.items():
        add_damaged(name, file, damage)
    verbs = {
        "runs": ["runs"],
        "test": ["test", *QUIET],
        "validate": ["validate", *QUIET],
        "predict": ["predict", *QUIET],
        "report": ["report"],
        "resume": ["fit", "--resume", *QUIET],
        "test like a config": ["test", "--config", "experiment.yaml", *QUIET],
        "compare": ["compare", "good", "twin"],
    }
    shutil.copytree(GOOD, LOGS / "twin")
    replace_value(LOGS / "twin" / "manifest.json", "1999", "start")
    capsys.readouterr()
    for verb, command in verbs.items():
        assert main(command) == 0, verb
        printed = capsys.readouterr()
        lines = printed.err.splitlines()
        assert all(line.startswith("warning: ") for line in lines), verb
        if verb == "compare":
            continue
        assert "good" in printed.out
        for name, (file, _) in DAMAGES.items():
            about = [line for line in lines if f"lightning_logs/{name}/{file}" in line]
            assert len(about) == 1, (verb, name, lines)


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_run_that_was_asked_for_gives_one_message(
    runs: Path, cli: Cli, name: str
) -> None:
    file, damage = DAMAGES[name]
    add_damaged("bad", file, damage)
    for command in (
        ["test", "--run", "bad"],
        ["fit", "--resume", "bad"],
        ["compare", "good", "bad"],
    ):
        if file == "config.yaml" or command[0] == "test":
            message = cli(*command, code=2)
            assert file in message or "no run bad" in message


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("test/metrics.json", WHOLE_FILE["null"]),
        ("test/metrics.json", WHOLE_FILE["list"]),
        ("test/metrics.json", lambda path: path.write_text('{"f1": "0.9"}')),
        ("test/metrics.json", lambda path: path.write_text('{"f1": {"value": "0.9"}}')),
        ("test/metrics.json", lambda path: path.write_text('{"f1": {"value": NaN}}')),
        ("test/metrics.json", lambda path: path.write_text('{"f1": {"value": 1, "low": 0}}')),
        ("test/metrics.json", WHOLE_FILE["folder"]),
        ("test/metrics.json", WHOLE_FILE["link_to_nothing"]),
        ("test/predictions.parquet", WHOLE_FILE["folder"]),
        ("test/predictions.parquet", WHOLE_FILE["truncated"]),
        ("test/predictions.parquet", WHOLE_FILE["pipe"]),
        (
            "test/predictions.parquet",
            lambda path: pl.read_parquet(path).drop("target").write_parquet(path),
        ),
        (
            "test/predictions.parquet",
            lambda path: pl.read_parquet(path).cast(pl.String).write_parquet(path),
        ),
        (
            "test/predictions.parquet",
            lambda path: (
                pl.read_parquet(path).with_columns(target=pl.lit("other")).write_parquet(path)
            ),
        ),
        ("validate/metrics.json", lambda path: (path.parent.mkdir(), path.write_text("null"))),
        ("validate/metrics.json", lambda path: path.mkdir(parents=True)),
        (
            "validate/importance.json",
            lambda path: (path.parent.mkdir(), path.write_text('{"metric": 1}')),
        ),
        ("findings.json", WHOLE_FILE["null"]),
        ("findings.json", lambda path: path.write_text('[{"what": 1}]')),
        ("checkpoints/best.ckpt", WHOLE_FILE["text"]),
    ],
)
def test_a_damaged_file_ends_the_report_with_one_message(
    runs: Path, cli: Cli, file: str, damage: Callable[[Path], Any]
) -> None:
    damage(GOOD / file)
    assert file in cli("report", "good", code=2)


def test_damaged_curves_give_a_message_or_no_figure(runs: Path, cli: Cli) -> None:
    for path in GOOD.glob("events.out.tfevents.*"):
        path.write_bytes(path.read_bytes()[:500] + b"\xff" * 100)
    assert "report: lightning_logs/good/report.html" in cli("report", "good")
    (GOOD / "events.out.tfevents.1.folder").mkdir()
    assert "events.out.tfevents.1.folder" in cli("report", "good", code=2)


def test_a_run_with_a_damaged_checkpoint_is_skipped(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add_damaged("bad", "checkpoints/best.ckpt", lambda path: path.write_bytes(b"PK"))
    capsys.readouterr()
    assert main(["test", *QUIET]) == 0
    printed = capsys.readouterr()
    assert "run: lightning_logs/good" in printed.out
    assert printed.err.count("lightning_logs/bad/checkpoints/best.ckpt cannot be read") == 1


def test_a_folder_in_the_place_of_results_is_reported(runs: Path, cli: Cli) -> None:
    """What was there before is not touched."""
    shutil.rmtree(GOOD / "test")
    (GOOD / "test").write_text("mine")
    assert "lightning_logs/good/test: expected a folder" in cli("test", code=2)
    assert (GOOD / "test").read_text() == "mine"
    (GOOD / "test").unlink()
    (GOOD / "test/metrics.json").mkdir(parents=True)
    assert "test/metrics.json: expected a file" in cli("test", code=2)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(10**300, 10**320)
    | st.floats()
    | st.text(st.characters(), max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3)
    ),
    max_leaves=6,
)


def places(value: Any, keys: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the keys of each value within a JSON value, the whole one included."""
    items = value.items() if isinstance(value, dict) else ()
    return [keys, *(place for name, inner in items for place in places(inner, (*keys, name)))]


@given(data=st.data())
@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_any_json_in_any_place_gives_a_line_and_no_traceback(
    good_run: Path, data: st.DataObject, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run is listed, or it is left out and a line says why."""
    file = data.draw(st.sampled_from(["manifest.json", "test/metrics.json", "config.yaml"]))
    source = good_run / "lightning_logs/good" / file
    if file == "config.yaml":
        content = parse_yaml(source.read_bytes(), source, "")
    else:
        content = json.loads(source.read_text())
    place = data.draw(st.sampled_from(places(content)))
    value = data.draw(JSON)
    inner = content
    for key in place[:-1]:
        inner = inner[key]
    if place:
        inner[place[-1]] = value
    else:
        content = value
    shutil.rmtree(LOGS, ignore_errors=True)
    shutil.copytree(good_run / "lightning_logs/good", BAD, ignore=shutil.ignore_patterns("*.ckpt"))
    (BAD / file).write_text(json.dumps(content))
    capsys.readouterr()
    assert main(["runs"]) == 0
    printed = capsys.readouterr()
    lines = printed.err.splitlines()
    is_listed = "1 run in lightning_logs" in printed.out
    assert is_listed == (not lines)
    assert all(line.startswith("warning: bad is left out: lightning_logs/bad/") for line in lines)
    skipped: list[str] = []
    assert len(list_runs(LOGS, skipped)) + len(skipped) == 1
    with pytest.raises(UserError, match="expected a finished"):
        find_run(LOGS, None)


def test_a_file_that_is_too_large_is_not_read(runs: Path, cli: Cli) -> None:
    with (GOOD / "manifest.json").open("ab") as file:
        file.truncate(MAX_BYTES + 1)
    assert "expected at most 64,000,000 bytes" in cli("test", "--run", "good", code=2)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_files_without_permission_are_skipped(runs: Path, cli: Cli) -> None:
    for file in ("manifest.json", "config.yaml"):
        add_damaged(file, file, lambda path: path.chmod(0))
    assert "1 run in lightning_logs" in cli("runs")
