"""The cache: no stale arrays, no half-written folders, one message on a full disk."""

import errno
import multiprocessing
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from proj.data.tabular import cache, fingerprint
from proj.data.tabular.cache import build_once, create_array, is_complete, save_array
from proj.data.tabular.datamodule import Tabular
from proj.errors import UserError

CACHE = Path("cache")


def build(folder: Path) -> None:
    save_array(folder / "a.npy", np.arange(6.0).reshape(2, 3))
    save_array(folder / "empty.npy", np.zeros((0, 3)))
    (folder / "facts.json").write_text("[1, 2]")


def fail(folder: Path) -> None:
    raise AssertionError("expected the entry in the cache")


def write_table(words: str) -> None:
    rows = [f"{i % 7},{words[i % 2]}" for i in range(60)]
    Path("t.csv").write_text("a,y\n" + "\n".join(rows))


def labels() -> dict[int, str]:
    """Return the label of each training row by its number."""
    data = Tabular("t.csv", "y", batch_size=8, cache_dir="cache")
    data.prepare_data()
    data.setup("fit")
    assert data.schema is not None
    split = data.splits["train"]
    return {
        int(i): data.schema.class_names[int(y)] for i, y in zip(split.row, split.y, strict=True)
    }


@pytest.fixture
def always_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remember the contents of small files, too."""
    monkeypatch.setattr(fingerprint, "ALWAYS_READ", 0)


@pytest.mark.parametrize("large", [False, True])
def test_a_change_that_keeps_size_and_time_is_seen(
    large: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Old arrays would be scored under the name of the new file."""
    if large:
        monkeypatch.setattr(fingerprint, "ALWAYS_READ", 0)
    write_table("pq")
    before, times = labels(), os.stat("t.csv")
    assert before == {i: "pq"[i % 2] for i in before}
    write_table("qp")
    os.utime("t.csv", ns=(times.st_atime_ns, times.st_mtime_ns))
    after = os.stat("t.csv")
    assert (after.st_size, after.st_mtime_ns) == (times.st_size, times.st_mtime_ns)
    now = labels()
    assert now == {i: "qp"[i % 2] for i in now}


def test_an_unchanged_file_is_read_once(
    always_remembered: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading many gigabytes at each start would take minutes."""
    Path("f").write_text("content")
    reads: list[str] = []
    read = fingerprint._hash_file
    monkeypatch.setattr(fingerprint, "_hash_file", lambda path: (reads.append(path), read(path))[1])
    digests = set()

    def start() -> int:
        count = len(reads)
        digests.add(fingerprint.fingerprint([Path("f")], CACHE))
        return len(reads) - count

    # The file is as young as the reading: it might change again within one tick of the clock.
    assert [start(), start()] == [1, 1]
    monkeypatch.setattr(fingerprint, "TICK", 0.0)
    time.sleep(0.02)
    assert [start(), start(), start()] == [1, 0, 0]
    Path("f").write_text("CONTENT")
    assert start() == 1
    assert len(digests) == 2


def test_times_of_another_clock_are_trusted_after_a_second_reading(
    always_remembered: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file server may have another clock, by which a new change can look old."""
    monkeypatch.setattr(fingerprint, "TICK", 0.0)
    (CACHE / "files").mkdir(parents=True)
    monkeypatch.setattr(fingerprint, "folder_clock", lambda _: (2**32 - 1, 4e9))
    Path("f").write_text("content")
    certain = []
    for _ in range(2):
        fingerprint.fingerprint([Path("f")], CACHE)
        (record,) = (CACHE / "files").glob("*.npy")
        certain.append(bool(np.load(record)["certain"][0]))
        time.sleep(0.01)
    assert certain == [False, True]


def test_a_file_that_changes_while_it_is_prepared_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Arrays of the new content would be kept under the hash of the old one."""
    write_table("pq")
    from proj.data.tabular import datamodule

    prepare = datamodule.prepare_table

    def prepare_and_change(*args: Any) -> None:
        prepare(*args)
        write_table("rs")

    monkeypatch.setattr(datamodule, "prepare_table", prepare_and_change)
    with pytest.raises(UserError, match="stay as they are while they are read, got a change"):
        labels()
    assert not [path for path in CACHE.iterdir() if path.is_dir()]


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "deleted": Path.unlink,
    "emptied": lambda path: path.write_bytes(b""),
    "cut": lambda path: os.truncate(path, max(0, path.stat().st_size - 3)),
    "overwritten": lambda path: path.write_bytes(b"x" * path.stat().st_size),
    "replaced by a folder": lambda path: (path.unlink(), path.mkdir()),
    "replaced by a dangling link": lambda path: (path.unlink(), path.symlink_to("nowhere")),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_entry_is_built_anew(damage: str) -> None:
    """A cache that is cleaned by age loses some of its files."""
    folder = build_once(CACHE, {"k": 1}, build)
    assert build_once(CACHE, {"k": 1}, fail) == folder
    for name in sorted(path.name for path in folder.iterdir()):
        DAMAGE[damage](folder / name)
        assert not is_complete(folder)
        assert build_once(CACHE, {"k": 1}, build) == folder
        assert is_complete(folder)
        assert np.load(folder / "a.npy").tolist() == [[0, 1, 2], [3, 4, 5]]
    assert {path.name for path in CACHE.iterdir()} == {"CACHEDIR.TAG", folder.name, "lock"}


def build_forever(folder: Path) -> None:
    build(folder)
    (folder / "half").write_bytes(bytes(1000))
    time.sleep(60)


def test_leftovers_of_killed_builds_are_removed_but_none_in_use() -> None:
    """Each kill would leave a copy of the data for good."""
    context = multiprocessing.get_context("fork")
    workers = [
        context.Process(target=build_once, args=(CACHE, {"k": k}, build_forever)) for k in (1, 2)
    ]
    for worker in workers:
        worker.start()
    halves: list[Path] = []
    while len(halves) < 2:
        time.sleep(0.01)
        halves = list(CACHE.glob(".*.*/half"))
    workers[0].kill()
    workers[0].join()
    build_once(CACHE, {"k": 3}, build)
    assert len(list(CACHE.glob(".*.*"))) == 1
    workers[1].kill()
    workers[1].join()
    build_once(CACHE, {"k": 4}, build)
    assert list(CACHE.glob(".*.*")) == []


def test_without_locks_a_leftover_is_removed_after_a_day(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "_lock", lambda *_, **__: None)
    for name, age in (("new", 1e3), ("old", 1e5)):
        (folder := CACHE / f".key.{name}").mkdir(parents=True)
        (folder / "half").write_bytes(b"1")
        for path in (folder / "half", folder):
            os.utime(path, (time.time() - age,) * 2)
    build_once(CACHE, {"k": 1}, build)
    assert [path.name for path in CACHE.glob(".*.*")] == [".key.new"]


@pytest.mark.parametrize("supported", [True, False])
def test_space_is_taken_before_an_array_is_mapped(
    supported: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mapped write on a full disk would kill the process."""
    code = errno.ENOSPC if supported else errno.EOPNOTSUPP

    def refuse(*_: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    if supported:
        with pytest.raises(UserError, match="expected space for 8,000,128 bytes in cache, got"):
            build_once(CACHE, {}, lambda f: create_array(f / "x.npy", np.float64, (1000, 1000)))
        assert not [path for path in CACHE.iterdir() if path.is_dir()]
    else:
        create_array(Path("x.npy"), np.int16, (5, 7))[2] = 3
        assert Path("x.npy").stat().st_blocks > 0
        assert np.load("x.npy").tolist() == [[0] * 7] * 2 + [[3] * 7] + [[0] * 7] * 2


@pytest.mark.parametrize("name", ["cache.lock", "facts.json"])
def test_a_write_that_fails_is_one_message(name: str) -> None:
    def fill(folder: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), name)

    with pytest.raises(UserError, match=r"cannot write to cache: No space left .* bytes are free"):
        build_once(CACHE, {}, fill)
    assert not [path for path in CACHE.iterdir() if path.is_dir()]
    shutil.rmtree(CACHE)
    CACHE.write_text("a file")
    with pytest.raises(UserError, match="cannot write to cache: File exists"):
        build_once(CACHE, {}, build)
