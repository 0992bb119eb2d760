"""Where arrays come from: scikit-learn's bundled sets and ``.npz`` files."""

import hashlib
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from proj.errors import UserError, nearest
from proj.schema import SPLITS

Array: TypeAlias = np.ndarray[Any, Any]

BUNDLED = ("breast_cancer", "diabetes", "digits", "iris", "linnerud", "wine")


class Source(NamedTuple):
    arrays: dict[
        str, Array
    ]  # x_train, y_train, and what else there is of x_val, y_val, x_test, y_test
    input_names: tuple[str, ...] = ()
    target_names: tuple[str, ...] = ()


def read(path: str) -> Source:
    return _bundled(path) if path in BUNDLED else _npz(path)


def to_inputs(x: Array, what: str) -> Array:
    """Numbers as float32 [rows, ...]; uint8 pictures as uint8 [rows, channels, height, width]."""
    if x.ndim < 2 or 0 in x.shape or x.dtype.kind not in "biuf":
        raise UserError(
            f"{what}: expected numbers with a first axis of rows, at least one of them, and at least one more, "
            f"got {x.dtype} of shape {x.shape}."
        )
    if x.dtype == np.uint8 and x.ndim in (3, 4):
        if x.ndim == 3:
            return np.ascontiguousarray(x[:, None])
        if x.shape[3] in (1, 3, 4):
            return np.ascontiguousarray(x.transpose(0, 3, 1, 2))
        if x.shape[1] in (1, 3, 4):
            return np.ascontiguousarray(x)
        raise UserError(
            f"{what}: expected pictures with 1, 3 or 4 channels first or last, got shape {x.shape}."
        )
    x = np.ascontiguousarray(x, dtype=np.float32)
    if not (finite := np.isfinite(x).all(axis=tuple(range(1, x.ndim)))).all():
        row = int(np.argmin(finite))
        raise UserError(
            f"{what}: expected finite numbers, got a missing or infinite one in row {row} "
            f"({int((~finite).sum())} rows in all); fill or drop them."
        )
    return x


def stages(arrays: dict[str, Array]) -> list[str]:
    """Which of train, val and test the arrays have rows of their own for."""
    return [s for s in SPLITS if f"x_{s}" in arrays]


def fingerprint(arrays: dict[str, Array]) -> str:
    """SHA-256 of names, types, shapes and content."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].dtype} {arrays[name].shape}".encode())
        digest.update(np.ascontiguousarray(arrays[name]).view(np.uint8).data)
    return digest.hexdigest()


def _bundled(name: str) -> Source:
    from sklearn import datasets

    bunch = getattr(datasets, f"load_{name}")()
    x, y = bunch.data, bunch.target
    if name == "digits":
        x = bunch.images.astype(np.uint8)
    if name in ("diabetes", "linnerud"):
        columns = tuple(bunch.target_names) if name == "linnerud" else ("progression",)
        return Source(
            {"x_train": x, "y_train": y.astype(np.float64)},
            tuple(map(str, bunch.feature_names)),
            columns,
        )
    names = () if name == "digits" else tuple(map(str, bunch.feature_names))
    return Source({"x_train": x, "y_train": np.asarray(bunch.target_names)[y]}, names, ("class",))


def _npz(path: str) -> Source:
    arrays = load(path)
    found = {f"{a}_train" if a in ("x", "y") else a: v for a, v in arrays.items()}
    known = [f"{axis}_{stage}" for stage in SPLITS for axis in "xy"]
    if len(found) < len(arrays):
        raise UserError(
            f"{path}: expected x and y or x_train and y_train, got both; the arrays are {', '.join(arrays)}."
        )
    for required in ("x_train", "y_train", *(f"y_{s}" for s in stages(found))):
        if required not in found:
            raise UserError(
                f"{path}: expected an array named {required}, got {', '.join(arrays) or 'none'}."
            )
    for stage in ("val", "test"):
        if f"y_{stage}" in found and f"x_{stage}" not in found:
            raise UserError(
                f"{path}: expected an array named x_{stage} beside y_{stage}, got {', '.join(arrays)}."
            )
    if unknown := [name for name in found if name not in known]:
        raise UserError(
            f"{path}: no use for an array named {unknown[0]}.{nearest(unknown[0], known)}"
        )
    return Source(found)


def load(path: str, option: str = "data.path") -> dict[str, Array]:
    """All arrays of an ``.npz`` file; nothing pickled."""
    if not path.endswith(".npz"):
        sets = " or a set that scikit-learn ships" if option == "data.path" else ""
        near = nearest(path, BUNDLED) if sets else ""
        raise UserError(f"{option}: expected an .npz file{sets}, got {path}.{near}")
    if not Path(path).is_file():
        siblings = (
            [str(p) for p in Path(path).parent.glob("*.npz")] if Path(path).parent.is_dir() else []
        )
        raise UserError(f"{option}: no file {path}.{nearest(path, siblings)}")
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except Exception as error:  # np.load raises many kinds for a damaged file; all of them mean the same to the user
        hint = "; write text labels with y.astype(str)" if "allow_pickle" in str(error) else ""
        raise UserError(f"{path}: cannot be read as .npz: {error}{hint}") from error
