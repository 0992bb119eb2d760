"""Damaged files of every kind: an exit code of 0 or 2 with one message, no traceback, no hang."""

import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import processes
from conftest import QUIET
from engine.fuzz.targets import TARGETS, Target
from engine.fuzz.worker import SECONDS

# Files of all targets together in the long form.
FILES = int(os.environ.get("PROJ_TEST_FILES", "10000"))
# Files that one process reads. A new one starts with its own memory.
BATCH = 100


def results(target: Target, folder: Path, count: int) -> Iterator[dict[str, Any]]:
    """Damage ``count`` files and yield the result of each call."""
    prepared = folder / "prepared"
    prepared.mkdir()
    target.prepare(prepared)
    for command in target.before:
        quiet = QUIET if command[0] in ("fit", "test", "validate", "predict") else []
        done = processes.run("proj", *command, *quiet, cwd=prepared)
        assert done.returncode == 0, done.stderr
    if (run := prepared / "lightning_logs/run").exists():
        shutil.copytree(run, run.with_name("run2"))
    first = 0
    while first < count:
        numbers = range(first, min(count, first + BATCH))
        for result in _batch(target, prepared, numbers):
            first = result["number"] + 1
            yield result


def _batch(target: Target, prepared: Path, numbers: range) -> Iterator[dict[str, Any]]:
    """Yield the results of one process. It may end before its last number if it crashes."""
    file = prepared.with_name("results.jsonl")
    file.unlink(missing_ok=True)
    arguments = (prepared, target.name, numbers.start, len(numbers), file)
    process = processes.Process("engine.fuzz.worker", *arguments)
    seen = time.monotonic()
    while process.poll() is None:
        time.sleep(0.05)
        if file.exists() and time.time() - file.stat().st_mtime < 3 * SECONDS:
            seen = time.monotonic()
        if time.monotonic() - seen > 3 * SECONDS:
            process.kill()
            process.wait()
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    yield from (line for line in lines if "code" in line)
    if process.returncode != 0:
        yield {**lines[-1], "problem": f"the process ended with {process.returncode}"}


def failures(target: Target, folder: Path, count: int) -> list[str]:
    found = [result for result in results(target, folder, count) if result["problem"]]
    return [
        f"{target.name} {result['number']}: {result.get('command')}: {result['problem']}"
        for result in found
    ]


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
@pytest.mark.slow
def test_damaged_files_end_with_one_message(
    target: Target, work: Path, record_property: Any
) -> None:
    count = round(FILES * target.share / sum(other.share for other in TARGETS))
    found = failures(target, work, count)
    record_property("damaged files", count)
    record_property("damaged files without a proper end", len(found))
    assert not found, "\n".join(found[:40])


@pytest.mark.parametrize("name", ["CSV", "experiment", "pictures"])
def test_a_few_damaged_files_end_with_one_message(name: str, work: Path) -> None:
    (target,) = (target for target in TARGETS if target.name == name)
    found = failures(target, work, 12)
    assert not found, "\n".join(found)
