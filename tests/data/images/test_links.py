"""Links and files that are no images among the pictures of a folder."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from proj.data.images.datamodule import Images
from proj.data.images.sources import list_folder
from proj.errors import UserError

COUNT = 12


@pytest.fixture
def pets(work: Path) -> Path:
    draw = np.random.default_rng(0)
    for label in ("cat", "dog"):
        (work / "pets" / label / "sub").mkdir(parents=True)
        for i in range(COUNT):
            folder = work / "pets" / label / ("sub" if i % 2 else ".")
            pixels = draw.integers(0, 255, (6, 6), np.uint8)
            Image.fromarray(pixels).save(folder / f"{i}.png")
    return work / "pets"


def listed() -> tuple[list[str], int, int]:
    """Return the labels, and the numbers of skipped links and of files in two classes."""
    folder = list_folder("pets", predict=False)
    assert folder is not None
    return folder.labels, folder.skipped_links, len(folder.shared)


PLAIN = ["cat"] * COUNT + ["dog"] * COUNT


@pytest.mark.parametrize(
    ("links", "skipped"),
    [
        ({"cat/loop": ".."}, 1),
        ({"cat/self": "."}, 1),
        ({"cat/sub/up": ".."}, 1),
        ({"cat/above": "../.."}, 1),
        ({"cat/root": "/"}, 1),
        ({"cat/0": "sub"}, 1),
        ({"cat/x.png": "0.png", "cat/y.png": "x.png"}, 2),
        ({"loop": "."}, 1),
        ({"cat/a": "../../out", "../out/b": "../pets/cat", "../out/c": "."}, 2),
    ],
)
def test_each_file_counts_once_per_class(pets: Path, links: dict[str, str], skipped: int) -> None:
    """A link to the folder above made 1,640 pictures of 40, half of them of the wrong class."""
    (pets.parent / "out").mkdir()
    for name, target in links.items():
        (pets / name).symlink_to(target)
    assert listed() == (PLAIN, skipped, 0)
    data = Images("pets", batch_size=4)
    data.setup("fit")
    assert [str(finding) for finding in data.findings] == [
        f"{skipped} {'link leads' if skipped == 1 else 'links lead'} to files of pets that are "
        "counted already: they are not followed; remove them."
    ]


def test_a_ladder_of_links_ends(pets: Path) -> None:
    """Two links in each folder would make 2 ** 30 paths."""
    for i in range(30):
        (rung := pets.parent / f"rung{i}").mkdir()
        for side in ("left", "right"):
            (rung / side).symlink_to(pets.parent / f"rung{i + 1}")
    (pets / "cat" / "ladder").symlink_to(pets.parent / "rung0")
    (pets.parent / "rung30").mkdir()
    Image.new("L", (6, 6)).save(pets.parent / "rung30" / "end.png")
    assert listed() == (["cat", *PLAIN], 30, 0)


def test_links_to_other_places_are_followed(pets: Path) -> None:
    (pets / "dog").rename(pets.parent / "dogs")
    (pets / "dog").symlink_to("../dogs")
    assert listed() == (PLAIN, 0, 0)


def test_one_file_in_two_classes_is_a_finding(pets: Path) -> None:
    (pets / "cat" / "more").symlink_to("../dog")
    (pets / "dog" / "x.png").symlink_to("../cat/0.png")
    labels, skipped, shared = listed()
    # Through the folder, the link to its own picture leads back to the class.
    assert (labels.count("cat"), labels.count("dog")) == (2 * COUNT, COUNT + 1)
    assert (skipped, shared) == (1, COUNT + 1)
    data = Images("pets", batch_size=4)
    data.setup("fit")
    assert "13 files are in several classes through links, such as" in str(data.findings[1])


@pytest.mark.parametrize("kind", ["pipe", "dangling link", "postscript", "no permission"])
def test_a_file_that_cannot_be_read_is_named(pets: Path, kind: str) -> None:
    """A named pipe was waited for without an end; PostScript started another program."""
    path = pets / "cat" / "odd.png"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "dangling link":
        path.symlink_to("nowhere")
    elif kind == "postscript":
        path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n")
    else:
        Image.new("L", (6, 6)).save(path)
        path.chmod(0)
        if os.access(path, os.R_OK):
            pytest.skip("needs a user without all rights")
    data = Images("pets", batch_size=4)
    message = r"1 of 25 images cannot be read \(cat/odd.png: "
    if kind in ("pipe", "dangling link"):
        message = "expected image files, pets/cat/odd.png is a .*; remove it"
    with pytest.raises(UserError, match=message):
        data.prepare_data()
    if kind in ("pipe", "dangling link"):
        return
    data = Images("pets", batch_size=4, skip_unreadable=True)
    data.setup("fit")
    assert sum(len(split.row) for split in data.splits.values()) == 2 * COUNT


def test_a_suffix_of_another_format_is_a_finding(pets: Path) -> None:
    (pets / "cat" / "logo.eps").write_bytes(b"%!PS")
    data = Images("pets", batch_size=4)
    data.setup("fit")
    (finding,) = data.findings
    assert finding.what == "1 file in pets has no image suffix (cat/logo.eps)"
