"""Which pictures a source holds: a folder's files, or the arrays of an ``.npz`` file."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from proj.data.cache import fingerprint
from proj.data.images.decode import Picture
from proj.data.images.folders import Folder, classes_in, existing, pictures_in
from proj.data.sources import load, read, stages, to_inputs
from proj.errors import UserError

Array: TypeAlias = np.ndarray[Any, Any]


class Pictures(NamedTuple):
    """All pictures of a source, with what is known of each."""

    items: Sequence[Picture]
    names: list[str]  # what to call each in a message
    labels: Array  # [pictures], empty when predicting
    parts: Array  # [pictures] train, val, test or predict, as the source says
    rows: Array  # [pictures] number in the source


def identity(path: str, folder: Folder | None, cache: Path) -> str:
    """A hash of a source's content and of where in it each picture lies."""
    files = folder.files if folder else [Path(path)]
    names = folder.names if folder else []
    return hashlib.sha256(json.dumps([fingerprint(files, cache), names]).encode()).hexdigest()


def folder_of(path: str, predict: bool) -> Folder | None:
    """The pictures of a folder; nothing for an ``.npz`` file."""
    if path.endswith(".npz"):
        if not Path(path).is_file():
            existing(path, "data.predict_path" if predict else "data.path")
        return None
    return pictures_in(path) if predict else classes_in(path)


def pictures_of(path: str, folder: Folder | None, predict: bool) -> Pictures:
    if folder is not None:
        rows = np.arange(len(folder.names))
        return Pictures(
            folder.files, folder.names, np.asarray(folder.labels), np.asarray(folder.parts), rows
        )
    if predict:
        arrays = load(path, "data.predict_path")
        if "x" not in arrays:
            raise UserError(
                f"{path}: expected an array named x, got {', '.join(arrays) or 'none'}."
            )
        x = to_pictures(arrays["x"], f"{path}: x")
        return Pictures(
            list(x),
            [f"row {i} of x" for i in range(len(x))],
            np.empty(0),
            _filled("predict", x),
            np.arange(len(x)),
        )
    return _arrays(path)


def _arrays(path: str) -> Pictures:
    arrays = read(path).arrays
    parts = stages(arrays)
    x = {s: to_pictures(arrays[f"x_{s}"], f"{path}: x_{s}") for s in parts}
    for s in parts:
        if (got := arrays[f"y_{s}"].shape[:1]) != (len(x[s]),):
            raise UserError(
                f"{path}: expected a target for each of the {len(x[s])} rows of x_{s}, got {got} in y_{s}."
            )
    return Pictures(
        [picture for s in parts for picture in x[s]],
        [f"row {i} of x_{s}" for s in parts for i in range(len(x[s]))],
        np.concatenate([arrays[f"y_{s}"] for s in parts]),
        np.concatenate([_filled(s, x[s]) for s in parts]),
        np.concatenate([np.arange(len(x[s])) for s in parts]),
    )


def _filled(part: str, x: Array) -> Array:
    return np.full(len(x), part)


def to_pictures(x: Array, what: str) -> Array:
    """uint8 pictures as [rows, channels, height, width]."""
    if x.dtype != np.uint8 or x.ndim not in (3, 4):
        raise UserError(
            f"{what}: expected pictures, uint8 of shape [rows, height, width] or with channels, got "
            f"{x.dtype} of shape {x.shape}; other numbers are for the data module Arrays."
        )
    return to_inputs(x, what)
