"""The index of many runs: it gives what the files hold, whatever happens to it."""

import gzip
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conftest import Cli
from proj.engine.commands.runs import read_facts
from proj.engine.runs import index
from proj.engine.runs.contents import write_metrics
from proj.engine.runs.files import atomic_write
from proj.engine.runs.find import find_run, list_runs

LOGS = Path("lightning_logs")
INDEXES = (".index-manifest.json.gz", ".index-config.yaml.gz", ".index-test-metrics.json.gz")


def add_run(name: str, start: str = "2026-01-01", f1: float = 0.5, lr: float = 0.1) -> None:
    folder = LOGS / name
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints/best.ckpt").touch()
    manifest = {"start": start, "status": "finished"}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "config.yaml").write_text(
        f"trainer: {{}}\nmodel:\n  class_path: M\n  init_args: {{lr: {lr}}}\n"
    )
    write_metrics(folder / "test/metrics.json", {"f1": {"value": f1}})


@pytest.fixture(autouse=True)
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """The files of these tests are seconds old, as far as the index can tell."""
    monkeypatch.setattr(index, "time_ns", lambda: time.time_ns() + 10_000_000_000)
    monkeypatch.setattr(index, "MIN_FILES", 3)


@pytest.fixture
def many(work: Path) -> None:
    for number in range(12):
        add_run(f"version_{number}", f"2026-01-{number + 1:02}", number / 100)


def listed() -> dict[str, tuple[Any, Any]]:
    """Return the learning rate and f1 of each run, as `runs` reads them."""
    damaged: list[str] = []
    facts = {run.settings["name"]: run for run in read_facts(LOGS, damaged)}
    assert not damaged
    return {name: (run.settings["model.lr"], run.value("f1")) for name, run in facts.items()}


@pytest.mark.usefixtures("many")
def test_a_changed_file_is_read_again(cli: Cli) -> None:
    """Also when size and modification time are kept, as `cp -p` and `rsync` do."""
    before = listed()
    assert all((LOGS / name).is_file() for name in INDEXES)
    path = LOGS / "version_3/config.yaml"
    times = os.stat(path)
    text = path.read_text().replace("lr: 0.1", "lr: 0.9")
    path.write_text(text)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert os.stat(path).st_mtime_ns == times.st_mtime_ns
    assert os.stat(path).st_size == times.st_size
    assert listed() == before | {"version_3": (0.9, 0.03)}
    write_metrics(LOGS / "version_4/test/metrics.json", {"f1": {"value": 0.99}})
    shutil.rmtree(LOGS / "version_5")
    add_run("new", "2027", 1.0)
    expected = before | {
        "version_3": (0.9, 0.03),
        "version_4": (0.1, 0.99),
        "new": (0.1, 1.0),
    }
    del expected["version_5"]
    assert listed() == expected
    for name in INDEXES:
        (LOGS / name).unlink()
    assert listed() == expected
    assert find_run(LOGS, None).path.name == "new"


@pytest.mark.usefixtures("many")
def test_files_that_are_not_settled_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two writes in one tick of the file system's clock may have the same times."""
    monkeypatch.setattr(index, "time_ns", time.time_ns)
    before = listed()
    content = json.loads(gzip.decompress((LOGS / INDEXES[0]).read_bytes()))
    assert content["entries"] == {}
    assert listed() == before


@pytest.mark.usefixtures("many")
@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:-20]),
        lambda path: path.write_bytes(b"x" + path.read_bytes()),
        lambda path: path.write_bytes(gzip.compress(b"[]")),
        lambda path: path.write_bytes(gzip.compress(b'{"header": null, "entries": {}}')),
        lambda path: path.write_bytes(flipped(path.read_bytes())),
        lambda path: (path.unlink(), path.mkdir()),
        lambda path: (path.unlink(), os.mkfifo(path)),
        lambda path: (path.unlink(), path.symlink_to("nothing")),
    ],
)
def test_a_damaged_index_changes_nothing(damage: Callable[[Path], Any]) -> None:
    before = listed()
    for name in INDEXES:
        damage(LOGS / name)
    assert listed() == before
    assert next(iter(list_runs(LOGS))).path.name == "version_11"
    assert listed() == before


def flipped(content: bytes) -> bytes:
    """Change one bit in the middle."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.usefixtures("many")
def test_an_index_that_was_copied_with_its_folder_is_not_used() -> None:
    """Its stamps are of other files; those of an attacker's choice could be made to fit."""
    listed()
    path = LOGS / INDEXES[2]
    content = json.loads(gzip.decompress(path.read_bytes()))
    for entry in content["entries"].values():
        entry[1] = {"f1": 1.0}
    content["header"][2] += 1
    path.write_bytes(gzip.compress(json.dumps(content).encode()))
    assert listed()["version_3"] == (0.1, 0.03)


@pytest.mark.usefixtures("many")
def test_a_folder_that_cannot_be_written_to_works_without_an_index(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(path: Path, fill: Any) -> None:
        raise OSError(30, "Read-only file system")

    before = listed()
    for name in INDEXES:
        (LOGS / name).unlink()
    monkeypatch.setattr(index, "atomic_write", refuse)
    assert listed() == before
    assert not any((LOGS / name).exists() for name in INDEXES)


@pytest.mark.usefixtures("many")
def test_few_new_files_write_no_index() -> None:
    """A folder with few runs has no further files."""
    shutil.rmtree(LOGS)
    add_run("a")
    listed()
    assert not list(LOGS.glob(".index*"))


@pytest.mark.usefixtures("many")
def test_processes_that_write_an_index_at_the_same_time_give_the_same_facts() -> None:
    before = listed()
    problems = []

    def read_on() -> None:
        for _ in range(15):
            for name in INDEXES:
                (LOGS / name).unlink(missing_ok=True)
            if listed() != before:
                problems.append("other facts")

    threads = [threading.Thread(target=read_on) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems
    assert not [path for path in LOGS.iterdir() if path.is_file() and path.suffix != ".gz"]


@pytest.mark.usefixtures("many")
def test_sorting_and_conditions_read_the_index(cli: Cli) -> None:
    cli("runs")
    output = cli("runs", "--where", "f1>0.055", "--where", "model.lr=0.1", "--sort", "f1")
    shown = [line.split()[0] for line in output.splitlines() if line.startswith("version_")]
    assert shown == [f"version_{number}" for number in range(11, 5, -1)]
    assert "6 runs in lightning_logs" in output
    assert "Did you mean 'model.lr'" in cli("runs", "--where", "model.l=0.1", code=2)


def test_runs_does_not_import_torch() -> None:
    """Importing torch and Lightning takes seconds."""
    add_run("a")
    code = (
        "import sys\nfrom proj.engine.cli import main\n"
        "assert main(['runs', '--where', 'f1>0', '--sort', 'f1']) == 0\n"
        "print(sorted({'torch', 'lightning', 'polars', 'numpy', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1] == "[]", done.stdout + done.stderr


def test_the_work_for_many_runs_does_not_grow_with_their_square(cli: Cli) -> None:
    """The calls of Python functions for five times as many runs are about five times as many."""
    calls: list[int] = []
    for first, last in ((0, 200), (200, 1000)):
        for number in range(first, last):
            add_run(f"r{number}", f1=number / 1000, lr=number)
        cli("runs")  # reads the new ones
        count = Counter[str]()
        sys.setprofile(lambda frame, event, argument, count=count: count.update([event]))
        try:
            cli("runs", "--where", "f1>0.1", "--where", "model.lr>3", "--sort", "f1")
        finally:
            sys.setprofile(None)
        calls.append(count["call"])
    assert calls[1] < 7 * calls[0]
    atomic_write(LOGS / "r5/config.yaml", lambda file: file.write(b"[]"))
    assert "999 runs" in cli("runs")
