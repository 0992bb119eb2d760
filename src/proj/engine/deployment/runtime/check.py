"""Compare a bundle's answers with those of the run, in a process of its own.

usage: python -m runtime.check BUNDLE ROWS [--absolute_paths] [--require_equal]

ROWS is a folder with ``rows.jsonl``: a line about the comparison, then lines of up to 1,000 rows
with the expected answers. The last line of the output is the result as JSON. With
``--require_equal``, the exit code is 1 if a row is answered otherwise.
"""

import json
import platform
import sys
import warnings
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from . import Predictor, UnreadableWarning, load

CHUNK = 1000
# Rows per forward pass. The smaller ones are tried on the first chunk only.
BATCH_SIZES = (1, 7, CHUNK)
MAX_WORST = 5
# What a bundle does without. A program of torch.export needs torch.
NOT_NEEDED = ("polars", "pandas", "lightning", "torchmetrics", "sklearn", "torch")

Array = np.ndarray[Any, Any]
Columns = dict[str, Array]


def read_header(folder: Path) -> dict[str, Any]:
    """Return the first line of ``rows.jsonl``: labels and tolerances."""
    with (folder / "rows.jsonl").open(encoding="utf-8") as lines:
        header: dict[str, Any] = json.loads(next(lines))
    return header


def read_chunks(
    folder: Path, absolute_paths: bool
) -> Iterator[tuple[list[int], Any, dict[str, list[Any]]]]:
    """Yield row numbers, rows and expected answers of each further line."""
    arrays, start = folder / "rows.npy", 0
    x = np.load(arrays, mmap_mode="r", allow_pickle=False) if arrays.exists() else None
    with (folder / "rows.jsonl").open(encoding="utf-8") as lines:
        next(lines)
        for line in lines:
            chunk = json.loads(line)
            count, rows = len(chunk["row"]), chunk["rows"]
            if x is not None:
                rows = np.array(x[start : start + count])
            elif isinstance(rows, list):
                rows = [_file(folder, name, absolute_paths) for name in rows]
            yield chunk["row"], rows, chunk["answers"]
            start += count


def _file(folder: Path, name: str, absolute_paths: bool) -> Path:
    """Return the path of an image. The files of a bundle lie beside its rows."""
    if absolute_paths:
        return Path(name)
    if Path(name).name != name:
        raise ValueError(f"rows.jsonl: expected names of files, got the path {name!r}")
    return folder / name


class Comparison:
    """Differences between expected answers and those of a bundle.

    Args:
        header: names of the columns of labels, the relative tolerance, and the absolute tolerance
            of each other column.
    """

    def __init__(self, header: dict[str, Any]) -> None:
        self.labels: list[str] = header["labels"]
        self.relative: float = header["relative"]
        self.absolute: dict[str, float] = header["absolute"]
        self.wrong: set[int] = set()
        self.largest = 0.0
        # By row and column, how many times the tolerance the difference is, and the cell.
        self.cells: dict[tuple[int, str], tuple[float, dict[str, Any]]] = {}

    def add(self, numbers: list[int], got: Columns, expected: dict[str, list[Any]]) -> None:
        """Compare the answers for some rows."""
        if list(got) != list(expected):
            raise ValueError(f"expected the columns {list(expected)}, got {list(got)}")
        for name, values in got.items():
            excess = self._excess(name, values, expected[name])
            self.wrong |= {numbers[i] for i in np.flatnonzero(excess > 1)}
            for i in np.argsort(-excess)[:MAX_WORST]:
                if excess[i] > 1:
                    cell = {"row": numbers[i], "column": name, "expected": expected[name][i]}
                    entry = float(excess[i]), {**cell, "got": values[i : i + 1].tolist()[0]}
                    self.cells[numbers[i], name] = entry

    def worst(self) -> list[dict[str, Any]]:
        """Return the answers that differ most, each with its row and column."""
        ordered = sorted(self.cells.values(), key=lambda entry: -entry[0])
        return [cell for _, cell in ordered[:MAX_WORST]]

    def _excess(self, name: str, got: Array, expected: list[Any]) -> Array:
        """Return by how many times the tolerance each answer differs: [rows]."""
        if name in self.labels:
            same = np.array([a == b for a, b in zip(got.tolist(), expected, strict=True)], bool)
            return np.where(same, 0.0, np.inf)
        reference = np.array(expected, np.float64)
        difference = np.abs(got.astype(np.float64) - reference)
        tolerance = np.maximum(self.relative * np.abs(reference), self.absolute[name])
        # A column without variation has no tolerance, and no difference if it is the same.
        with np.errstate(divide="ignore"):
            excess = np.divide(difference, tolerance, out=np.zeros(len(got)), where=difference != 0)
        excess[np.isnan(excess)] = np.inf
        if len(excess):
            self.largest = max(self.largest, float(excess.max()) * self.relative)
        return excess


def compare(bundle: Predictor, folder: Path, absolute_paths: bool) -> dict[str, Any]:
    """Return the result of all comparisons as plain values."""
    comparison = Comparison(read_header(folder))
    unreadable: set[str] = set()
    count = 0
    chunks = enumerate(read_chunks(folder, absolute_paths))
    for number, (rows, values, expected) in chunks:
        for size in BATCH_SIZES if number == 0 else BATCH_SIZES[-1:]:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always", UnreadableWarning)
                got = bundle.predict(values, size, strict=False)
            unreadable |= {str(warning.message) for warning in caught}
            comparison.add(rows, got, expected)
        count += len(rows)
    empty = bundle.predict([], strict=False)
    if list(empty) != list(got) or any(len(values) for values in empty.values()):
        raise ValueError("expected empty answers for no rows")
    return {
        "rows": count,
        "wrong": len(comparison.wrong),
        "largest_difference": comparison.largest if np.isfinite(comparison.largest) else None,
        "worst": comparison.worst(),
        "unreadable": sorted(unreadable),
    }


def environment(model_format: str) -> dict[str, Any]:
    """Return versions, and the modules that a bundle should do without and that were imported."""
    names = ["numpy", "onnxruntime" if model_format == "onnx" else "torch"]
    if "PIL" in sys.modules:
        names.append("pillow")
    not_needed = [name for name in NOT_NEEDED if model_format == "onnx" or name != "torch"]
    return {
        "versions": {name: metadata.version(name) for name in names},
        "python": platform.python_version(),
        "machine": platform.machine(),
        "system": platform.system(),
        "imported": [name for name in not_needed if name in sys.modules],
    }


def main() -> None:
    bundle = load(sys.argv[1])
    result = compare(bundle, Path(sys.argv[2]), "--absolute_paths" in sys.argv[3:])
    result |= environment(bundle.spec["model"]["format"])
    print(json.dumps(result))
    if "--require_equal" in sys.argv[3:] and result["wrong"]:
        sys.exit(1)


if __name__ == "__main__":
    main()
