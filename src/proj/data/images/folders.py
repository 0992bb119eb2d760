"""Which pictures there are in a folder, of which classes, and for which part."""

import os
from functools import cache
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from proj.errors import UserError, nearest
from proj.schema import SPLITS


class Folder(NamedTuple):
    """The pictures of a folder in sorted order; a row's number is its place there."""

    root: Path
    names: list[str]  # files, relative to the root
    labels: list[str]  # the class folder of each; empty where there are none
    parts: list[
        str
    ]  # the part each belongs to; where val or test have no folder, they are cut off train
    left_out: list[str]  # files that no picture format has the ending of

    @property
    def files(self) -> list[Path]:
        return [self.root / name for name in self.names]


@cache
def suffixes() -> frozenset[str]:
    """File name endings of the formats that Pillow can open, in lower case."""
    return frozenset(
        ending for ending, kind in Image.registered_extensions().items() if kind in Image.OPEN
    )


def classes_in(path: str) -> Folder:
    """The pictures of ``PATH/CLASS/…``, or ``PATH/train/CLASS/…`` with val and test beside; hidden ones are left out."""
    root = existing(path, "data.path")
    tops = {name: sorted(_visible(root / name)) for name in _parts(root)} or {
        "": sorted(_visible(root))
    }
    pictures: list[tuple[str, str, str]] = []
    left_out: list[str] = []
    for part, tree in tops.items():
        folders = [name for name in tree if (root / part / name).is_dir()]
        loose = [f"{part}/{name}".lstrip("/") for name in tree if name not in folders]
        _check_loose(root, [name for name in loose if _is_picture(name)], bool(folders))
        left_out += [name for name in loose if not _is_picture(name)]
        for label in folders:
            found, others = _under(root, Path(part) / label)
            if not found:
                raise UserError(
                    f"data.path: the class folder {root / part / label} has no pictures; add some, or remove it."
                )
            pictures += [(name, label, part or "train") for name in found]
            left_out += others
    pictures.sort()
    _check_classes(root, pictures)
    names, labels, parts = map(list, zip(*pictures, strict=True))
    return Folder(root, names, labels, parts, left_out)


def pictures_in(path: str) -> Folder:
    """All pictures under a folder, of whatever class."""
    root = existing(path, "data.predict_path")
    names, left_out = _under(root, Path())
    if not names:
        raise UserError(f"data.predict_path: no pictures in {path}.")
    return Folder(root, sorted(names), [], ["predict"] * len(names), left_out)


def existing(path: str, option: str) -> Path:
    root = Path(path)
    if not root.is_dir():
        beside = root.parent.glob("*") if root.parent.is_dir() else ()
        siblings = [str(p) for p in beside if p.is_dir() or p.suffix == ".npz"]
        raise UserError(
            f"{option}: expected a folder of pictures or an .npz file, there is no {path}."
            f"{nearest(path, siblings)}"
        )
    return root


def _visible(folder: Path) -> list[str]:
    return [name for name in os.listdir(folder) if not name.startswith(".")]


def _parts(root: Path) -> list[str]:
    """The folders train, val and test that ``root`` has; none if its folders are classes."""
    folders = [name for name in sorted(_visible(root)) if (root / name).is_dir()]
    parts = [name for name in SPLITS if name in folders]
    if parts and "train" not in parts:
        raise UserError(
            f"data.path: expected a folder train beside {' and '.join(parts)} in {root}, got none."
        )
    if parts and (others := [name for name in folders if name not in SPLITS]):
        raise UserError(
            f"data.path: expected no folders beside train, val and test in {root}, got {', '.join(others[:3])}; "
            f"move or rename what is not a part.{nearest(others[0], SPLITS)}"
        )
    return parts


def _under(root: Path, start: Path) -> tuple[list[str], list[str]]:
    """Names of all pictures under ``root / start``, however deep, and of what else lies there."""
    names = []
    for folder, inner, files in os.walk(root / start, followlinks=True):
        inner[:] = [name for name in inner if not name.startswith(".")]
        names += [
            (Path(folder) / name).relative_to(root).as_posix()
            for name in files
            if not name.startswith(".")
        ]
    return [name for name in names if _is_picture(name)], sorted(
        name for name in names if not _is_picture(name)
    )


def _is_picture(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in suffixes()


def _check_loose(root: Path, loose: list[str], classes: bool) -> None:
    if loose:
        beside = "beside its class folders" if classes else "and no class folder"
        raise UserError(
            f"data.path: expected pictures in a folder for each class, got {len(loose)} in {root} {beside} "
            f"({', '.join(loose[:3])}); move them into their class' folder."
        )


def _check_classes(root: Path, pictures: list[tuple[str, str, str]]) -> None:
    """At least two classes to train on, and none in another part that training knows nothing of."""
    known = sorted({label for _, label, part in pictures if part == "train"})
    if len(known) < 2:
        got = f"only {known[0]}" if known else "none"
        raise UserError(
            f"data.path: expected a folder of pictures for each of two classes or more in {root}, got {got}."
        )
    for name, label, _ in pictures:
        if label not in known:
            raise UserError(
                f"data.path: the class {label} of {root / name} has no folder in train; "
                f"add pictures to train on, or remove it.{nearest(label, known)}"
            )
