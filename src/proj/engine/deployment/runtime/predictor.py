"""Load a bundle and predict."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from .answers import Answers
from .arrays import Arrays
from .images import Images, to_list
from .rows import count_rows, to_columns
from .session import open_net
from .table import Table

Array = np.ndarray[Any, Any]
Inputs = dict[str, Array]

# The version of `bundle.json` that this code reads.
VERSION = 1
BATCH_SIZE = 1024


class Predictor:
    """The model of a bundle with everything between raw rows and answers. Made by ``load``.

    Attributes:
        spec: the content of ``bundle.json``.
        kind: ``table``, ``images`` or ``arrays``.
        encoder: from raw rows to inputs of the net.
    """

    def __init__(self, folder: Path, threads: int | None = None) -> None:
        self.spec: dict[str, Any] = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))
        version = self.spec.get("bundle")
        if version != VERSION:
            raise ValueError(f"{folder}: expected a bundle of version {VERSION}, got {version}")
        inputs = self.spec["inputs"]
        self.kind: str = inputs["kind"]
        encoders: dict[str, Any] = {"table": Table, "images": Images, "arrays": Arrays}
        self.encoder: Table | Images | Arrays = encoders[self.kind](inputs)
        # Members of an ensemble may encode the same rows in other ways.
        encodings = inputs.get("encodings", [])
        self._more_encoders = [encoders[self.kind](section) for section in encodings]
        self._answers = Answers(self.spec["outputs"])
        self._net = open_net(folder, self.spec["model"], threads)

    def predict(
        self, rows: Any, batch_size: int = BATCH_SIZE, strict: bool = True
    ) -> dict[str, Array]:
        """Predict raw rows.

        Args:
            rows: of a table a list of dicts, one dict, a dict of columns, or a frame of pandas or
                polars; of images files, their contents as bytes, images of Pillow or arrays; else
                an array [rows, ...].
            batch_size: rows per forward pass.
            strict: whether a text among numbers or dates that cannot be read is an error. If not,
                it counts as missing, with an ``UnreadableWarning``, as in files that the project
                reads.

        Returns:
            Columns by name, each [rows]: ``prediction`` and ``probability_CLASS``, or for several
            targets ``prediction_NAME``. Predictions are labels, or numbers in the unit of the
            target.

        Raises:
            InputError: if a row does not have the form of the training data.
        """
        rows, count = self.take_rows(rows)
        outputs = []
        for start in range(0, count, batch_size):
            part = self.part(rows, start, min(start + batch_size, count))
            outputs.append(self.run(self.encode(part, strict, start)))
        if not outputs:
            # One row of zeros gives the answers their columns; nets need not take 0 rows.
            outputs.append(self.run(self.zeros())[:0])
        return self.answers(np.concatenate(outputs))

    # The steps of a prediction, for programs that encode and answer for several callers.

    def take_rows(self, rows: Any) -> tuple[Any, int]:
        """Return rows in the form that ``encode`` takes, and their number."""
        if self.kind == "table":
            columns = to_columns(rows)
            return columns, count_rows(columns)
        rows = to_list(rows) if self.kind == "images" else rows
        return rows, len(rows)

    def part(self, rows: Any, start: int, end: int) -> Any:
        """Return the rows from ``start`` to ``end`` of what ``take_rows`` returned."""
        if self.kind == "table":
            return {name: values[start:end] for name, values in rows.items()}
        return rows[start:end]

    def encode(self, rows: Any, strict: bool = True, first: int = 0) -> dict[str, Array]:
        """Return inputs of the net by name, [rows, ...].

        Args:
            rows: what ``take_rows`` returned, or a part of it.
            strict: see ``predict``.
            first: the position of the first row, for messages.
        """
        x = _encode(self.encoder, rows, strict, first)
        for number, encoder in enumerate(self._more_encoders, 1):
            # The first encoder has given the same warnings.
            x |= _numbered(_encode(encoder, rows, strict, first, warns=False), number)
        return x

    def run(self, x: dict[str, Array]) -> Array:
        """Return the output of the net for encoded rows: [rows] or [rows, outputs]."""
        return self._net(x)

    def answers(self, output: Array) -> dict[str, Array]:
        """Return the columns of answers for the output of the net."""
        return self._answers.columns(output)

    def zeros(self) -> dict[str, Array]:
        """Return one row of zeros as input of the net."""
        x = _zeros(self.encoder)
        for number, encoder in enumerate(self._more_encoders, 1):
            x |= _numbered(_zeros(encoder), number)
        return x


def _encode(
    encoder: Table | Images | Arrays, rows: Any, strict: bool, first: int, warns: bool = True
) -> Inputs:
    if isinstance(encoder, Table):
        return encoder.encode(rows, strict, first, warns)
    return encoder.encode(rows, first)


def _zeros(encoder: Table | Images | Arrays) -> Inputs:
    if isinstance(encoder, Table):
        numbers, categories = len(encoder.numeric), len(encoder.categorical)
        numeric, categorical = np.zeros((1, numbers)), np.zeros((1, categories))
        return {
            "numeric": numeric.astype(np.float32),
            "categorical": categorical.astype(np.int32),
        }
    dtype = encoder.dtype if isinstance(encoder, Arrays) else np.dtype(np.uint8)
    return {"x": np.zeros((1, *encoder.shape), dtype)}


def _numbered(x: Inputs, number: int) -> Inputs:
    """Return the inputs of a further encoder by the names that they have in the graph."""
    return {f"{name}_{number}": values for name, values in x.items()}


def load(bundle: str | Path, threads: int | None = None) -> Predictor:
    """Load a bundle for prediction.

    Args:
        bundle: the folder that ``export`` wrote.
        threads: threads of onnxruntime for one call; None means one per core.

    Raises:
        ValueError: if the folder holds no bundle of this version.
    """
    folder = Path(bundle)
    if not (folder / "bundle.json").is_file():
        raise ValueError(f"{folder}: expected a bundle, found no bundle.json in it")
    return Predictor(folder, threads)
