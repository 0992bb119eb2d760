"""Prepare images: split the rows, decode each split into one array, fit the schema on train."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from proj.data.images.decode import Shape, decode, read_shape, run_parallel, sixteen_bit_range
from proj.data.images.sources import ImageFolder, ImageSet
from proj.data.tabular.cache import create_array, map_array, save_array
from proj.data.tabular.positive import choose_positive
from proj.data.tabular.row_splits import Fold, split
from proj.data.tabular.targets import Targets
from proj.errors import UserError
from proj.schema import SPLITS, Array, Batch, Finding, Schema, Task

CHANNEL_NAMES = {1: ("grey",), 3: ("red", "green", "blue")}
# The numbers from 0 to 1 that nets receive for each uint8.
LEVELS = np.arange(256) / 255
# Images that are looked at for their number of bits.
MAX_SAMPLE = 200
# Images per step of the statistics.
CHUNK = 1024


@dataclass(frozen=True)
class ImagePlan:
    """The options that decide the prepared arrays, together with the source. Plain values."""

    shape: Shape
    resize: bool
    skip_unreadable: bool
    task: Task | None
    val_fraction: float
    test_fraction: float
    split_seed: int
    fold: Fold | None


class PreparedImages(NamedTuple):
    """The folder that ``prepare_images`` filled for a source."""

    folder: Path
    # None for an .npz file.
    listing: ImageFolder | None
    source_hash: str

    @property
    def facts(self) -> dict[str, Any]:
        """``schema`` of labelled images, and a message about images that cannot be read."""
        facts: dict[str, Any] = json.loads((self.folder / "facts.json").read_text(encoding="utf-8"))
        return facts

    @property
    def names(self) -> list[str]:
        """The file of each row number; empty for an ``.npz`` file."""
        return self.listing.names if self.listing else []

    @property
    def findings(self) -> list[Finding]:
        """Findings about files that are not used."""
        effect, findings = "they are left out", []
        if unreadable := self.facts["unreadable"]:
            findings.append(Finding(unreadable, effect, "repair or remove them"))
        if depth := self.facts.get("sixteen_bits"):
            findings.append(_depth_finding(*depth))
        if self.listing and (files := self.listing.other_files):
            listed = ", ".join(files[:3]) + ", …" * (len(files) > 3)
            noun, verb = ("file", "has") if len(files) == 1 else ("files", "have")
            root = self.listing.root
            problem = f"{len(files)} {noun} in {root} {verb} no image suffix ({listed})"
            findings.append(Finding(problem, effect, "remove them, or rename them to their format"))
        if self.listing and (links := self.listing.skipped_links):
            noun = "link leads" if links == 1 else "links lead"
            problem = f"{links} {noun} to files of {self.listing.root} that are counted already"
            findings.append(Finding(problem, "they are not followed", "remove them"))
        if self.listing and (shared := self.listing.shared):
            noun = "file is" if len(shared) == 1 else "files are"
            problem = f"{len(shared)} {noun} in several classes through links, such as {shared[0]}"
            effect = "no model can predict all its labels"
            findings.append(Finding(problem, effect, "remove the links with a wrong label"))
        return findings

    def load(self, name: str, split_name: str) -> Array:
        """Return the array ``y`` or ``row`` of a split."""
        array: Array = np.load(self.folder / f"{name}_{split_name}.npy")
        return array

    def batch(self, split_name: str, y: Tensor | None) -> Batch:
        """Return a split, whose images stay on disk until they are used."""
        rows = torch.from_numpy(self.load("row", split_name))
        return Batch(map_array(self.folder / f"x_{split_name}.npy")[: len(rows)], y, rows)


def prepare_images(folder: Path, images: ImageSet, plan: ImagePlan, where: str) -> None:
    """Fill ``folder`` with x, y and row of each split, and ``facts.json``."""
    failures: dict[int, str] = {}
    readable: dict[str, Array] = {}
    for name, positions in _split_positions(images, plan, where).items():
        x = create_array(folder / f"x_{name}.npy", np.uint8, (len(positions), *plan.shape))
        failed = decode([images.images[i] for i in positions], x, plan.resize)
        failures |= {int(positions[i]): reason for i, reason in failed.items()}
        intact = np.delete(np.arange(len(positions)), list(failed))
        if failed:
            # Close the gaps. The remaining rows at the end of the array are not used.
            for target, source in enumerate(intact):
                x[target] = x[source]
        readable[name] = positions[intact]
        save_array(folder / f"row_{name}.npy", images.rows[readable[name]])
        if len(images.labels):
            save_array(folder / f"y_{name}.npy", images.labels[readable[name]])
    _check_failures(images, failures, plan.skip_unreadable)
    facts: dict[str, Any] = {"unreadable": _describe(images, failures) if failures else ""}
    sample = images.images[:: -(-len(images.images) // MAX_SAMPLE)]
    count, largest = sixteen_bit_range(sample)
    facts["sixteen_bits"] = [count, len(sample), largest] if count else []
    if len(images.labels):
        labels = images.labels[readable["train"]]
        x = np.load(folder / "x_train.npy", mmap_mode="r")[: len(labels)]
        targets = Targets.from_array(labels, plan.task, (), where)
        all_targets = Targets.from_array(
            images.labels[images.splits == "train"], plan.task, (), where
        )
        target_fields = targets.fit(choose_positive(all_targets, None))
        facts["schema"] = _fit_schema(x, target_fields).to_dict()
    (folder / "facts.json").write_text(json.dumps(facts), encoding="utf-8")


def common_shape(
    images: ImageSet, size: Sequence[int] | None, channels: int | None, skip_unreadable: bool
) -> Shape:
    """Return channels, height and width of all images, as requested or as they are.

    Raises UserError if the images differ in size and no ``size`` is given, or cannot be read.
    """
    shapes = np.zeros((len(images.images), 3), np.int64)

    def read(i: int) -> None:
        shapes[i] = read_shape(images.images[i])

    failures = run_parallel(read, len(shapes), "reading image sizes")
    _check_failures(images, failures, skip_unreadable)
    shapes = np.delete(shapes, list(failures), axis=0)
    sizes, counts = np.unique(shapes[:, 1:], axis=0, return_counts=True)
    if size is None and len(sizes) > 1:
        order = np.argsort(-counts, kind="stable")[:3]
        listed = ", ".join(f"{counts[i]} of {sizes[i][0]}×{sizes[i][1]}" for i in order)
        raise UserError(
            f"data.size: expected images of one height×width, got {len(sizes)} ({listed}"
            f"{', …' * (len(sizes) > 3)}); set data.size to scale all images, such as 64 or "
            "[48, 64]."
        )
    height, width = sizes[0] if size is None else size
    return channels or int(shapes[:, 0].max()), int(height), int(width)


def _check_failures(images: ImageSet, failures: dict[int, str], skip: bool) -> None:
    """Raise UserError for unreadable images, unless they may be skipped and others are left."""
    if failures and not (skip and len(failures) < len(images.images)):
        raise UserError(
            f"{_describe(images, failures)}; repair or remove them, or set data.skip_unreadable to "
            "true to leave them out."
        )


def _describe(images: ImageSet, failures: dict[int, str]) -> str:
    listed = ", ".join(f"{images.names[i]}: {failures[i]}" for i in sorted(failures)[:3])
    ellipsis = ", …" * (len(failures) > 3)
    return f"{len(failures)} of {len(images.images)} images cannot be read ({listed}{ellipsis})"


def _depth_finding(count: int, sample: int, largest: int) -> Finding:
    """Return a finding about images of 16 bits, which lose 8 of them."""
    return Finding(
        f"{count} of {sample} images looked at have 16 bits, with values up to {largest:,}",
        f"65,535 becomes 255, so {largest // 257 + 1} of 256 grey levels are left",
        "scale the values to the full range of 16 bits, or write images of 8 bits",
    )


def _split_positions(images: ImageSet, plan: ImagePlan, where: str) -> dict[str, Array]:
    """Return the positions of each split's images. Missing splits are taken off train."""
    by_split = {name: np.flatnonzero(images.splits == name) for name in ("predict", *SPLITS)}
    if len(by_split["predict"]):
        return {"predict": by_split["predict"]}
    if plan.fold:
        # The fold replaces the split of this name that the source has.
        by_split[plan.fold[0]] = by_split[plan.fold[0]][:0]
    train = by_split["train"]
    targets = Targets.from_array(images.labels[train], plan.task, (), where)
    targets.check()
    chosen = split(
        train,
        0.0 if len(by_split["val"]) else plan.val_fraction,
        0.0 if len(by_split["test"]) else plan.test_fraction,
        plan.split_seed,
        targets.strata,
        plan.fold,
        targets.class_names,
    )
    return chosen | {name: by_split[name] for name in ("val", "test") if len(by_split[name])}


def _fit_schema(x: Array, target_fields: dict[str, Any]) -> Schema:
    """Return the schema of the training images ``x`` [rows, channels, height, width].

    Means and standard deviations come from the number of pixels at each of the 256 levels.
    """
    counts = np.zeros((x.shape[1], 256), np.int64)
    for start in range(0, len(x), CHUNK):
        for channel, values in enumerate(x[start : start + CHUNK].swapaxes(0, 1)):
            counts[channel] += np.bincount(values.ravel(), minlength=256)
    total = counts.sum(axis=1)
    mean = counts @ LEVELS / total
    std = np.sqrt((counts * (LEVELS - mean[:, None]) ** 2).sum(axis=1) / total)
    # Leave a constant channel as it is.
    std[std == 0] = 1.0
    return Schema(
        input_shape=tuple(x.shape[1:]),
        input_type="uint8",
        input_names=CHANNEL_NAMES[x.shape[1]],
        input_mean=tuple(mean.tolist()),
        input_std=tuple(std.tolist()),
        rows=len(x),
        columns=(),
        **target_fields,
    )
