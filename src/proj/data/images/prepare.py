"""Pictures prepared for training: decoded into one mapped array a part, with the schema of the training part beside."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from proj.data.base import Finding
from proj.data.cache import create, mapped
from proj.data.images.decode import Shape, decode, in_parallel, look
from proj.data.images.folders import Folder
from proj.data.images.sources import Pictures
from proj.data.splits import Fold, split
from proj.data.targets import Targets
from proj.errors import UserError
from proj.schema import SPLITS, Batch, Schema, Task

Array: TypeAlias = np.ndarray[Any, Any]

COLOURS = {1: ("grey",), 3: ("red", "green", "blue")}
LEVELS = np.arange(256) / 255  # what a uint8 counts as
ROWS = 1024  # read at once


@dataclass
class Plan:
    """How pictures become arrays: with the source's content, what decides on every byte of them."""

    shape: Shape
    resize: bool
    skip_unreadable: bool
    task: Task | None
    val_fraction: float
    test_fraction: float
    split_seed: int
    fold: Fold | None


class Prepared(NamedTuple):
    """What ``prepare`` left on the disk for a source."""

    folder: Path
    listing: Folder | None  # none for an .npz file
    source: str  # the identity of the source

    @property
    def facts(self) -> dict[str, Any]:
        facts: dict[str, Any] = json.loads((self.folder / "facts.json").read_text())
        return facts

    @property
    def names(self) -> list[str]:
        """The file of each row number."""
        return self.listing.names if self.listing else []

    @property
    def findings(self) -> list[Finding]:
        """What is not used: pictures that cannot be read, and files that are no pictures."""
        effect, found = "they are left out", []
        if failed := self.facts["unreadable"]:
            found.append(Finding(failed, effect, "mend or remove them"))
        if self.listing and (others := self.listing.left_out):
            some = ", ".join(others[:3]) + ", …" * (len(others) > 3)
            what = f"{len(others)} files in {self.listing.root} have no picture's ending ({some})"
            found.append(Finding(what, effect, "remove them, or give them their format's ending"))
        return found

    def load(self, what: str, stage: str) -> Array:
        array: Array = np.load(self.folder / f"{what}_{stage}.npy")
        return array

    def part(self, stage: str, y: Tensor | None) -> Batch:
        """A part whose pictures stay on the disk until a batch of them is used."""
        rows = torch.from_numpy(self.load("row", stage))
        return Batch(mapped(self.folder / f"x_{stage}.npy")[: len(rows)], y, rows)


def shape_of(
    pictures: Pictures, size: Sequence[int] | None, channels: int | None, skip_unreadable: bool
) -> Shape:
    """Channels, height and width that all get: as asked for, else as the pictures themselves have them."""
    found = np.zeros((len(pictures.items), 3), np.int64)

    def write(i: int) -> None:
        found[i] = look(pictures.items[i])

    failed = in_parallel(write, len(found), "looking at pictures")
    refuse(pictures, failed, skip_unreadable)
    found = np.delete(found, list(failed), axis=0)
    sizes, counts = np.unique(found[:, 1:], axis=0, return_counts=True)
    if size is None and len(sizes) > 1:
        often = ", ".join(
            f"{counts[i]} of {sizes[i][0]}×{sizes[i][1]}"
            for i in np.argsort(-counts, kind="stable")[:3]
        )
        raise UserError(
            f"data.size: expected pictures of one height×width, got {len(sizes)} ({often}"
            f"{', …' * (len(sizes) > 3)}); set data.size to what all get, 64 or [48, 64] say."
        )
    height, width = sizes[0] if size is None else size
    return channels or int(found[:, 0].max()), int(height), int(width)


def refuse(pictures: Pictures, failed: dict[int, str], skip: bool) -> None:
    """An error if there are pictures that cannot be read and that are not to be skipped, or if there are no others."""
    if failed and not (skip and len(failed) < len(pictures.items)):
        raise UserError(
            f"{unreadable(pictures, failed)}; mend or remove them, or set data.skip_unreadable to true to leave "
            "them out."
        )


def unreadable(pictures: Pictures, failed: dict[int, str]) -> str:
    some = ", ".join(f"{pictures.names[i]}: {failed[i]}" for i in sorted(failed)[:3])
    return f"{len(failed)} of {len(pictures.items)} pictures cannot be read ({some}{', …' * (len(failed) > 3)})"


def prepare(folder: Path, pictures: Pictures, plan: Plan, where: str) -> None:
    """Decode everything into ``folder``: x, y and row of each part, and ``facts.json``."""
    positions = _parts(pictures, plan, where)
    failed: dict[int, str] = {}
    for part, places in positions.items():
        x = create(folder / f"x_{part}.npy", np.uint8, (len(places), *plan.shape))
        bad = decode([pictures.items[i] for i in places], x, plan.resize)
        failed |= {int(places[i]): why for i, why in bad.items()}
        kept = np.delete(np.arange(len(places)), list(bad))
        for to, i in enumerate(
            kept if bad else ()
        ):  # close the gaps; what is left over at the end is not used
            x[to] = x[i]
        positions[part] = places[kept]
        np.save(folder / f"row_{part}.npy", pictures.rows[places[kept]])
        if len(pictures.labels):
            np.save(folder / f"y_{part}.npy", pictures.labels[places[kept]])
    refuse(pictures, failed, plan.skip_unreadable)
    facts: dict[str, Any] = {"unreadable": unreadable(pictures, failed) if failed else ""}
    if len(pictures.labels):
        labels = pictures.labels[positions["train"]]
        x = np.load(folder / "x_train.npy", mmap_mode="r")[: len(labels)]
        facts["schema"] = _fit(x, Targets(labels, plan.task, (), where)).to_dict()
    (folder / "facts.json").write_text(json.dumps(facts))


def _parts(pictures: Pictures, plan: Plan, where: str) -> dict[str, Array]:
    """Positions of each part's pictures; a part that the source does not have is cut off train."""
    own = {part: np.flatnonzero(pictures.parts == part) for part in ("predict", *SPLITS)}
    if plan.fold:  # takes the place of a part that the source has
        own[plan.fold[0]] = own[plan.fold[0]][:0]
    if len(own["predict"]):
        return {"predict": own["predict"]}
    train = own["train"]
    targets = Targets(pictures.labels[train], plan.task, (), where)
    val, test = (
        0.0 if len(own[part]) else getattr(plan, f"{part}_fraction") for part in ("val", "test")
    )
    dealt = split(train, val, test, plan.split_seed, targets.strata, plan.fold)
    return {
        part: dealt[part] if part == "train" or not len(own[part]) else own[part] for part in SPLITS
    }


def _fit(x: Array, targets: Targets) -> Schema:
    """The schema of the training part: means and standard deviations from how often each value occurs in a channel."""
    counts = np.zeros((x.shape[1], 256), np.int64)
    for start in range(0, len(x), ROWS):
        for channel, values in enumerate(x[start : start + ROWS].swapaxes(0, 1)):
            counts[channel] += np.bincount(values.ravel(), minlength=256)
    total = counts.sum(axis=1)
    mean = counts @ LEVELS / total
    std = np.sqrt((counts * (LEVELS - mean[:, None]) ** 2).sum(axis=1) / total)
    std[std == 0] = 1.0  # a constant channel: leave it as it is
    return Schema(
        input_shape=tuple(x.shape[1:]),
        input_type="uint8",
        input_names=COLOURS[x.shape[1]],
        input_mean=tuple(mean.tolist()),
        input_std=tuple(std.tolist()),
        rows=len(x),
        columns=(),
        **targets.fit(np.arange(len(x))),
    )
