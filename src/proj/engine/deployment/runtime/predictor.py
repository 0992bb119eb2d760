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

# The version of `bundle.json` that this code reads.
VERSION = 1
BATCH_SIZE = 1024


class Predictor:
    """The model of a bundle with everything between raw rows and answers. Made by ``load``.

    Attributes:
        spec: the content of ``bundle.json``.
    """

    def __init__(self, folder: Path, threads: int | None = None) -> None:
        self.spec: dict[str, Any] = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))
        version = self.spec.get("bundle")
        if version != VERSION:
            raise ValueError(f"{folder}: expected a bundle of version {VERSION}, got {version}")
        inputs = self.spec["inputs"]
        self.kind: str = inputs["kind"]
        encoders: dict[str, Any] = {"table": Table, "images": Images, "arrays": Arrays}
        self._encoder = encoders[self.kind](inputs)
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
        columns = to_columns(rows) if self.kind == "table" else {}
        images = to_list(rows) if self.kind == "images" else rows
        count = count_rows(columns) if self.kind == "table" else len(images)
        outputs = []
        for start in range(0, count, batch_size):
            end = min(start + batch_size, count)
            if self.kind == "table":
                part = {name: values[start:end] for name, values in columns.items()}
                x = self._encoder.encode(part, strict, start)
            else:
                x = self._encoder.encode(images[start:end], start)
            outputs.append(self._net(x))
        if not outputs:
            # One row of zeros gives the answers their columns; nets need not take 0 rows.
            outputs.append(self._net(self._zeros())[:0])
        return self._answers.columns(np.concatenate(outputs))

    def _zeros(self) -> dict[str, Array]:
        """Return one row of zeros as input of the net."""
        if isinstance(self._encoder, Table):
            widths = len(self._encoder.numeric), len(self._encoder.categorical)
            numeric, categorical = np.zeros((1, widths[0]), np.float32), np.zeros((1, widths[1]))
            return {"numeric": numeric, "categorical": categorical.astype(np.int32)}
        dtype = np.uint8 if self.kind == "images" else self._encoder.dtype
        return {"x": np.zeros((1, *self._encoder.shape), dtype)}


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
