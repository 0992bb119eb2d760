"""List the images of a source: the files of a folder, or the arrays of an ``.npz`` file."""

import hashlib
import json
import os
from collections import deque
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from proj.data.images.decode import FORMATS, AnyImage
from proj.data.images.file_checks import check_files
from proj.data.tabular.array_source import check_rows, load_inputs, read_source, to_inputs
from proj.data.tabular.fingerprint import fingerprint
from proj.data.tabular.row_splits import SPLIT_WORDS
from proj.errors import UserError, nearest
from proj.schema import SPLITS, Array


class ImageFolder(NamedTuple):
    """The image files of a folder in sorted order. The number of a row is its position."""

    root: Path
    names: list[str]  # files, relative to the root
    labels: list[str]  # the class folder of each file; empty when predicting
    splits: list[str]  # the split of each file; "train" if the source has no splits
    other_files: list[str]  # files without the suffix of an image format
    skipped_links: int = 0  # links to files that are already counted
    shared: tuple[str, ...] = ()  # pairs of names in two classes that are one file

    @property
    def files(self) -> list[Path]:
        return [self.root / name for name in self.names]


class ImageSet(NamedTuple):
    """All images of a source, with their names, labels, splits and row numbers."""

    images: Sequence[AnyImage]
    names: list[str]  # name of each image for messages
    labels: Array  # [images], empty when predicting
    splits: Array  # [images] train, val, test or predict
    rows: Array  # [images] row number in the source


def list_folder(path: str, predict: bool) -> ImageFolder | None:
    """Return the images of a folder; None for an ``.npz`` file. Raises UserError for others."""
    if path.endswith(".npz"):
        if not Path(path).is_file():
            _existing_folder(path, "data.predict_path" if predict else "data.path")
        return None
    folder = _list_unlabelled(path) if predict else _list_classes(path)
    check_files(folder.root, folder.names, "data.predict_path" if predict else "data.path")
    return folder


def hash_source(path: str, folder: ImageFolder | None, cache_dir: Path) -> str:
    """Return a hash of the content of a source, including the names of its files."""
    files, names = (folder.files, folder.names) if folder else ([Path(path)], [])
    content = fingerprint(files, cache_dir, unreadable=folder is not None)
    return hashlib.sha256(json.dumps([content, names]).encode()).hexdigest()


def check_unchanged(path: str, folder: ImageFolder | None, cache_dir: Path, before: str) -> None:
    """Raise UserError unless a source still has its hash ``before``."""
    if hash_source(path, folder, cache_dir) != before:
        raise UserError(
            f"{path}: expected files that stay as they are while they are read, got a change; "
            "start again when they are complete."
        )


def read_images(path: str, folder: ImageFolder | None, predict: bool) -> ImageSet:
    """Return the images of a source: ``folder``, or the ``.npz`` file at ``path``."""
    if folder is not None:
        labels, splits = np.asarray(folder.labels), np.asarray(folder.splits)
        return ImageSet(folder.files, folder.names, labels, splits, np.arange(len(folder.names)))
    if predict:
        x = to_images(load_inputs(path), f"{path}: x")
        names, rows = [f"row {i} of x" for i in range(len(x))], np.arange(len(x))
        return ImageSet(list(x), names, np.empty(0), np.full(len(x), "predict"), rows)
    source = read_source(path)
    arrays = source.arrays
    if weights := [name for name in arrays if name.startswith("weight")]:
        raise UserError(
            f"{path}: no use for an array named {weights[0]}, because images take no weights of "
            "rows; leave it out, or repeat the rows that count more."
        )
    x_by_split = {
        name: to_images(arrays[f"x_{name}"], f"{path}: x_{name}") for name in source.splits
    }
    for name, x in x_by_split.items():
        check_rows(x, arrays[f"y_{name}"], name, path)
    return ImageSet(
        [image for x in x_by_split.values() for image in x],
        [f"row {i} of x_{name}" for name, x in x_by_split.items() for i in range(len(x))],
        np.concatenate([arrays[f"y_{name}"] for name in x_by_split]),
        np.concatenate([np.full(len(x), name) for name, x in x_by_split.items()]),
        np.concatenate([np.arange(len(x)) for x in x_by_split.values()]),
    )


def to_images(x: Array, name: str) -> Array:
    """Return uint8 images as [rows, channels, height, width]. Raises UserError for others."""
    if x.dtype != np.uint8 or x.ndim not in (3, 4):
        raise UserError(
            f"{name}: expected images, uint8 of shape [rows, height, width] or with channels, got "
            f"{x.dtype} of shape {x.shape}; other numbers are for ArrayDataModule."
        )
    return to_inputs(x, name)


@cache
def image_suffixes() -> frozenset[str]:
    """Return the lower-case suffixes of the formats that are read."""
    extensions = Image.registered_extensions().items()
    return frozenset(suffix for suffix, kind in extensions if kind in FORMATS)


def _list_classes(path: str) -> ImageFolder:
    """Return the images of ``PATH/CLASS/…``, or of ``PATH/train/CLASS/…``, val and test.

    Hidden files are left out.
    """
    root = _existing_folder(path, "data.path")
    images: list[tuple[str, str, str]] = []
    other_files: list[str] = []
    skipped_links = 0
    labels_by_file: dict[str, dict[str, str]] = {}
    split_folders = _split_folders(root)
    for folder, split in (split_folders or {"": "train"}).items():
        entries = sorted(_visible(root / folder))
        classes = [name for name in entries if (root / folder / name).is_dir()]
        files = [(Path(folder) / name).as_posix() for name in entries if name not in classes]
        _refuse_loose_images(root, [name for name in files if _is_image(name)], bool(classes))
        other_files += [name for name in files if not _is_image(name)]
        _refuse_equal_folders(root / folder, classes)
        for label in classes:
            found = _walk(root, Path(folder) / label)
            skipped_links += found.skipped_links
            if not found.images and not found.is_loop:
                raise UserError(
                    f"data.path: expected images in the class folder {root / folder / label}, got "
                    "none; add some, or remove it."
                )
            for file, name in found.images.items():
                labels_by_file.setdefault(file, {})[label] = name
                images.append((name, label, split))
            other_files += found.others
    images.sort()
    _check_classes(root, images)
    names, labels, splits = map(list, zip(*images, strict=True))
    several = [by_label.values() for by_label in labels_by_file.values() if len(by_label) > 1]
    shared = [" and ".join(same_file) for same_file in several]
    return ImageFolder(root, names, labels, splits, other_files, skipped_links, tuple(shared))


def _list_unlabelled(path: str) -> ImageFolder:
    """Return all images in a folder, for predicting."""
    root = _existing_folder(path, "data.predict_path")
    found = _walk(root, Path())
    if not found.images:
        raise UserError(f"data.predict_path: expected images, got none in {path}; choose another.")
    names = sorted(found.images.values())
    splits = ["predict"] * len(names)
    return ImageFolder(root, names, [], splits, found.others, found.skipped_links)


def _existing_folder(path: str, option: str) -> Path:
    root = Path(path)
    if not root.is_dir():
        neighbours = root.parent.glob("*") if root.parent.is_dir() else ()
        sources = [str(p) for p in neighbours if p.is_dir() or p.suffix == ".npz"]
        raise UserError(
            f"{option}: expected a folder of images or an .npz file, {path} does not exist."
            f"{nearest(path, sources)}"
        )
    return root


def _visible(folder: Path) -> list[str]:
    return [name for name in os.listdir(folder) if not name.startswith(".")]


def _split_folders(root: Path) -> dict[str, str]:
    """Return the split of each folder in ``root``, such as train of Training.

    Nothing if its folders are classes: one of them must be train, so that classes may be called
    valid or dev.
    """
    folders = [name for name in sorted(_visible(root)) if (root / name).is_dir()]
    # Two letters are rather a class, such as a language.
    words = {name: SPLIT_WORDS.get(name.lower(), "") for name in folders if len(name) > 2}
    splits = {name: split for name, split in words.items() if split}
    if "train" not in splits.values():
        if exact := [name for name in SPLITS if name in folders]:
            raise UserError(
                f"data.path: expected a folder train beside {' and '.join(exact)} in {root}, got "
                "none."
            )
        return {}
    if others := [name for name in folders if name not in splits]:
        raise UserError(
            f"data.path: expected no folders beside train, val and test in {root}, got "
            f"{', '.join(others[:3])}; move or rename folders that are not a split."
            f"{nearest(others[0], SPLITS)}"
        )
    for name, split in splits.items():
        if same := [other for other in splits if splits[other] == split and other != name]:
            raise UserError(
                f"data.path: expected one folder for {split} in {root}, got {name} and {same[0]}; "
                "put their images together, or rename one."
            )
    return splits


def _refuse_equal_folders(root: Path, classes: list[str]) -> None:
    """Raise UserError if all class folders hold the same folders: these may be the classes."""
    inner = [
        {name for name in _visible(root / label) if (root / label / name).is_dir()}
        for label in classes
    ]
    if len(inner) > 1 and len(inner[0]) > 1 and all(names == inner[0] for names in inner):
        listed = ", ".join(sorted(inner[0])[:3])
        raise UserError(
            f"data.path: expected a folder for each class in {root}, got {', '.join(classes[:3])}, "
            f"which all hold the folders {listed}; if those are the classes, put the images of "
            f"each into one folder {root}/CLASS, or name the outer folders train, val and test."
        )


class _Found(NamedTuple):
    images: dict[str, str]  # the name of each image, relative to the root, by its real path
    others: list[str]  # names of the other files
    skipped_links: int
    is_loop: bool  # whether the folder itself is a link to a folder above it


def _walk(root: Path, start: Path) -> _Found:
    """Return all images and all other files under ``root / start``.

    Links are followed, but each real file counts once, and so does each real folder: links to a
    folder above, or to one another, would repeat files without an end.
    """
    inside = [root / parent for parent in start.parents] if start.parts else []
    visited = {os.path.realpath(folder) for folder in inside}
    visited |= set(map(str, Path(os.path.realpath(root)).parents))
    files: dict[str, str] = {}
    skipped, links = 0, deque([start.as_posix()])
    is_loop = os.path.realpath(root / start) in visited
    while links:
        link = links.popleft()
        real = os.path.realpath(root / link)
        if real in visited or real in files:
            skipped += 1
        elif os.path.isdir(real):
            links += _read_folder(link, real, visited, files)
        else:
            files[real] = link
    others = sorted(name for name in files.values() if not _is_image(name))
    images = {file: name for file, name in files.items() if _is_image(name)}
    return _Found(images, others, skipped, is_loop)


def _read_folder(start: str, real: str, visited: set[str], files: dict[str, str]) -> list[str]:
    """Add the files under a real folder, named ``start``, to ``files``; return the links in it."""
    links, folders = [], [(start, real)]
    while folders:
        name, real = folders.pop()
        visited.add(real)
        with os.scandir(real) as entries:
            for entry in entries:
                entry_name = entry.name if name == "." else f"{name}/{entry.name}"
                if entry.name.startswith("."):
                    continue
                if entry.is_symlink():
                    links.append(entry_name)
                elif not entry.is_dir(follow_symlinks=False):
                    files.setdefault(entry.path, entry_name)
                elif entry.path not in visited:
                    folders.append((entry_name, entry.path))
    return sorted(links)


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in image_suffixes()


def _refuse_loose_images(root: Path, names: list[str], has_classes: bool) -> None:
    if names:
        beside = "beside its class folders" if has_classes else "and no class folder"
        raise UserError(
            f"data.path: expected images in a folder for each class, got {len(names)} in {root} "
            f"{beside} ({', '.join(names[:3])}); move them into their class folder."
        )


def _check_classes(root: Path, images: list[tuple[str, str, str]]) -> None:
    """Raise UserError unless train has at least two classes, and all classes of other splits."""
    known = sorted({label for _, label, split in images if split == "train"})
    if len(known) < 2:
        got = f"only {known[0]}" if known else "none"
        raise UserError(
            "data.path: expected a folder of images for each of two classes or more in "
            f"{root}, got {got}."
        )
    for name, label, _ in images:
        if label not in known:
            raise UserError(
                f"data.path: expected a folder in train for the class {label} of {root / name}, "
                f"got none; add images to train on, or remove it.{nearest(label, known)}"
            )
