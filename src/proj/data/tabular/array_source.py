"""Arrays by name from their source: ``.npz`` files, and the data sets that scikit-learn ships."""

import os
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from proj.data.tabular.memory import VARIABLE, check_memory, requested_limit
from proj.errors import UserError, nearest
from proj.schema import SPLITS, Array

BUNDLED = ("breast_cancer", "diabetes", "digits", "iris", "linnerud", "wine")
# A compressed file that unpacks to more than this size and ratio is probably meant to fill memory.
BOMB_SIZE, BOMB_RATIO = 2**30, 200


class ArraySource(NamedTuple):
    """``x_train``, ``y_train`` and optionally x and y of val and test, by name."""

    arrays: dict[str, Array]
    input_names: tuple[str, ...] = ()
    target_names: tuple[str, ...] = ()

    @property
    def splits(self) -> list[str]:
        """The splits that the source has rows of."""
        return [name for name in SPLITS if f"x_{name}" in self.arrays]


def read_source(path: str) -> ArraySource:
    """Return the arrays of an ``.npz`` file or of a data set of scikit-learn."""
    return _load_bundled(path) if path in BUNDLED else _read_npz(path)


def _load_bundled(name: str) -> ArraySource:
    # Importing takes half a second, and other sources do not need it.
    from sklearn import datasets

    bunch = getattr(datasets, f"load_{name}")()
    if name == "digits":
        x = bunch.images.astype(np.uint8)
        return ArraySource({"x_train": x, "y_train": bunch.target}, (), ("class",))
    names = tuple(map(str, bunch.feature_names))
    if name in ("diabetes", "linnerud"):
        targets = tuple(bunch.target_names) if name == "linnerud" else ("progression",)
        y = bunch.target.astype(np.float64)
        return ArraySource({"x_train": bunch.data, "y_train": y}, names, targets)
    y = np.asarray(bunch.target_names)[bunch.target]
    return ArraySource({"x_train": bunch.data, "y_train": y}, names, ("class",))


def _read_npz(path: str) -> ArraySource:
    arrays = load_npz(path)
    listed = ", ".join(arrays) or "none"
    named = {f"{name}_train" if name in ("x", "y") else name: v for name, v in arrays.items()}
    if len(named) < len(arrays):
        raise UserError(
            f"{path}: expected x and y or x_train and y_train, got both; the arrays are {listed}."
        )
    source = ArraySource(named)
    for required in ("x_train", "y_train", *(f"y_{name}" for name in source.splits)):
        if required not in named:
            raise UserError(f"{path}: expected an array named {required}, got {listed}.")
    for name in ("val", "test"):
        if f"y_{name}" in named and f"x_{name}" not in named:
            raise UserError(
                f"{path}: expected an array named x_{name} beside y_{name}, got {listed}."
            )
    valid = [f"{axis}_{name}" for name in SPLITS for axis in "xy"]
    if unknown := [name for name in named if name not in valid]:
        raise UserError(
            f"{path}: no use for an array named {unknown[0]}.{nearest(unknown[0], valid)}"
        )
    return source


def load_npz(path: str, option: str = "data.path") -> dict[str, Array]:
    """Return all arrays of an ``.npz`` file. Pickled objects are refused."""
    bundled = BUNDLED if option == "data.path" else ()
    if not path.endswith(".npz"):
        sets = " or a data set of scikit-learn" if bundled else ""
        near = nearest(path, bundled)
        raise UserError(f"{option}: expected an .npz file{sets}, got {path}.{near}")
    if not Path(path).is_file():
        folder = Path(path).parent
        siblings = [str(file) for file in folder.glob("*.npz")] if folder.is_dir() else []
        raise UserError(f"{option}: no file {path}.{nearest(path, siblings)}")
    try:
        with zipfile.ZipFile(path) as members:
            size = sum(member.file_size for member in members.infolist())
        _check_size(path, size)
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            # A member that is no array comes as bytes, whose type a check refuses.
            return {name: np.asarray(arrays[name]) for name in arrays.files}
    except UserError:
        raise
    except Exception as error:
        # np.load raises many types for a damaged file.
        hint = "; write text labels with y.astype(str)" if "allow_pickle" in str(error) else ""
        raise UserError(f"{path}: cannot be read as .npz: {str(error)[:200]}{hint}") from error


def _check_size(path: str, size: int) -> None:
    """Raise UserError if the arrays of a file of ``size`` bytes, unpacked, are too large."""
    check_memory(size, path)
    ratio = size / max(1, os.path.getsize(path))
    if size > BOMB_SIZE and ratio > BOMB_RATIO and requested_limit() is None:
        raise UserError(
            f"{path}: expected arrays up to {BOMB_RATIO} times as large as their file, got "
            f"{size / 1e9:.1f} GB, {ratio:.0f} times as much; if this is intended, allow it: "
            f"{VARIABLE}=NUMBER"
        )


def load_inputs(path: str) -> Array:
    """Return ``x`` of an ``.npz`` file whose rows are to be predicted."""
    arrays = load_npz(path, "data.predict_path")
    if "x" not in arrays:
        raise UserError(f"{path}: expected an array named x, got {', '.join(arrays) or 'none'}.")
    return arrays["x"]
