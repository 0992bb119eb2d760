"""Proof that a bundle answers as the run: all test rows pass through it in a process of its own."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from proj.engine.escaping import visible
from proj.engine.runs.predictions import frame
from proj.errors import TrainingError, UserError
from proj.schema import Array, Schema

CHUNK = 1000
# Rows that a bundle keeps for `verify`.
MAX_KEPT = 1000


class ProofError(TrainingError):
    """A bundle does not answer as the run did. Exit code 3."""


class TestRows(NamedTuple):
    """Raw rows of the test split, and the run's answers for them.

    Attributes:
        raw: columns of a table, files of images, or an array [rows, ...].
        numbers: each row's number in its source [rows].
        answers: predictions and probabilities.
        comparison: which answers are labels, and the tolerances of the others.
    """

    raw: dict[str, list[Any]] | list[Path] | Array
    numbers: Array
    answers: pl.DataFrame
    comparison: dict[str, Any]

    def take(self, positions: Array) -> "TestRows":
        """Return some of the rows."""
        if isinstance(self.raw, dict):
            raw: Any = {name: [values[i] for i in positions] for name, values in self.raw.items()}
        elif isinstance(self.raw, list):
            raw = [self.raw[i] for i in positions]
        else:
            raw = self.raw[positions]
        return TestRows(raw, self.numbers[positions], self.answers[positions], self.comparison)

    def sample(self) -> "TestRows":
        """Return up to ``MAX_KEPT`` rows, evenly spread."""
        count = len(self.numbers)
        return self.take(np.unique(np.linspace(0, count - 1, min(count, MAX_KEPT)).astype(int)))

    def write(self, folder: Path, copy_files: bool) -> None:
        """Write the rows as ``check.py`` reads them; images as copies, or by their paths."""
        folder.mkdir(parents=True)
        raw: Any = self.raw
        if isinstance(raw, np.ndarray):
            np.save(folder / "rows.npy", raw)
            raw = None
        elif isinstance(raw, list):
            raw = _copied(raw, folder) if copy_files else [str(path.absolute()) for path in raw]
        with (folder / "rows.jsonl").open("w", encoding="utf-8") as file:
            file.write(json.dumps(self.comparison) + "\n")
            for start in range(0, len(self.numbers), CHUNK):
                part = slice(start, start + CHUNK)
                rows = raw
                if isinstance(raw, dict):
                    rows = {name: values[part] for name, values in raw.items()}
                elif raw is not None:
                    rows = raw[part]
                line = {
                    "row": self.numbers[part].tolist(),
                    "rows": rows,
                    "answers": self.answers[part].to_dict(as_series=False),
                }
                file.write(json.dumps(line) + "\n")


def _copied(files: list[Path], folder: Path) -> list[str]:
    """Copy files into a folder under new names, and return the names."""
    names = [f"{i:06}{path.suffix}" for i, path in enumerate(files)]
    for path, name in zip(files, names, strict=True):
        shutil.copyfile(path, folder / name)
    return names


def answer_columns(schema: Schema, conformal_limits: tuple[float, ...] = ()) -> list[str]:
    """Return the names of predictions, probabilities, intervals and sets in a predictions file."""
    shape = (0,) if schema.task == "binary" else (0, schema.num_outputs)
    row, output = np.zeros(0, np.int64), np.zeros(shape)
    columns = frame(schema, row, output, conformal_limits=conformal_limits).columns
    return [name for name in columns if name != "row"]


def run_check(bundle: Path, rows: Path, package: Path, absolute_paths: bool) -> dict[str, Any]:
    """Compare a bundle with the answers in a folder of rows, and return the result of ``check.py``.

    Args:
        bundle: folder of the bundle.
        rows: folder that ``TestRows.write`` has filled.
        package: the folder ``runtime`` to run: ``RUNTIME`` for bundles of other people.
        absolute_paths: whether the rows name files anywhere.

    Raises:
        UserError: if the bundle cannot be used.
    """
    # -P: nothing is imported from the working directory.
    command = [sys.executable, "-P", "-m", f"{package.name}.check", str(bundle), str(rows)]
    command += ["--absolute_paths"] if absolute_paths else []
    paths = [str(package.parent.absolute()), os.environ.get("PYTHONPATH", "")]
    process = subprocess.run(
        command,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            "PYTHONUTF8": "1",
            "PYTHONDONTWRITEBYTECODE": "1",  # A bundle is the same on all versions of Python.
        },
    )
    lines = process.stdout.splitlines()
    if process.returncode or not lines:
        errors = process.stderr.strip().splitlines() or [f"exit code {process.returncode}"]
        # The last line of a traceback begins with the type of the exception.
        reason = visible(re.sub(r"^[\w.]+: ", "", errors[-1]))[:500]
        raise UserError(f"{bundle}: the bundle cannot be used: {reason.rstrip('.')}.")
    result: dict[str, Any] = json.loads(lines[-1])
    assert not result["imported"], f"the bundle imported {result['imported']}"
    return result


def require_equal(result: dict[str, Any], what: str, hints: Iterable[str]) -> None:
    """Raise ProofError, with the worst rows, unless all answers are equal within the tolerance."""
    if not result["wrong"]:
        return
    cells = [
        f"row {cell['row']}, {visible(cell['column'])}: expected {_shown(cell['expected'])}, got "
        f"{_shown(cell['got'])}"
        for cell in result["worst"]
    ]
    listed = "; ".join(cells)
    raise ProofError(
        f"{what}: {result['wrong']} of {result['rows']} rows are answered otherwise than by the "
        f"run ({listed}). {' '.join(hints)}"
    )


def _shown(value: Any) -> str:
    return visible(repr(value))[:60]
