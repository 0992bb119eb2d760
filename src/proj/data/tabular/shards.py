"""Parquet shards: list them, cut them into blocks of rows, hold blocks out, and read blocks."""

import glob
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain, pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
from polars.exceptions import PolarsError

from proj.data.tabular.columns import type_of
from proj.data.tabular.files import by_name, check_names, nan_to_null
from proj.errors import UserError
from proj.schema import SPLITS, Array, Finding

# Rows of a block at most. A reader decodes only the pages that a block needs.
BLOCK_ROWS = 32_768
# Smaller sources have smaller blocks, so that a tenth of them is a tenth of the rows.
MIN_BLOCKS = 100
# Footers of shards that are read at once; those on a server take long to arrive.
FOOTERS_AT_ONCE = 16


class Shard(NamedTuple):
    """A Parquet file, by its path or URL, with its number of rows and the types of its columns."""

    name: str
    rows: int
    types: dict[str, pl.DataType]


@dataclass(frozen=True)
class Block:
    """Consecutive rows of a shard.

    Attributes:
        shard: path or URL of the shard.
        start: number of the first row within the shard.
        rows: number of rows.
        first: number of the first row within the whole source.
        count: number of rows that have a target.
    """

    shard: str
    start: int
    rows: int
    first: int
    count: int


def is_remote(path: str) -> bool:
    """Return whether a path is a URL, such as ``s3://bucket/folder``."""
    return "://" in path


def list_shards(path: str, option: str) -> list[Shard]:
    """Return the shards that have rows, in the order of their names.

    Args:
        path: a Parquet file, a folder, a glob, or a URL of such. Of a folder, files below folders
            count as well; names that begin with ``_`` or ``.`` are left out, as Spark expects.
        option: the option that names it, for messages.

    Raises:
        UserError: if there are no shards, one cannot be read, or their columns differ.
    """
    names = _remote_names(path, option) if is_remote(path) else _local_names(path)
    if not names:
        raise UserError(
            f"{option}: expected Parquet files ({path} or a folder of *.parquet), got none; "
            "correct the path."
        )
    with ThreadPoolExecutor(FOOTERS_AT_ONCE) as pool:
        shards = list(pool.map(_open_shard, names))
    first = shards[0]
    for shard in shards[1:]:
        if (got := _kinds(shard)) != (expected := _kinds(first)):
            differing = sorted(n for n in {*got, *expected} if got.get(n) != expected.get(n))
            raise UserError(
                f"{option}: expected the columns of {first.name} in all shards, got {shard.name} "
                f"with others: {', '.join(differing[:5])}; write all shards with one schema."
            )
    if not (filled := [shard for shard in shards if shard.rows]):
        raise UserError(f"{option}: expected rows of data in {path}, got empty files.")
    return filled


def _local_names(path: str) -> list[str]:
    place = Path(path).expanduser()
    if place.is_file():
        return [str(place)]
    if place.is_dir():
        found = [file.relative_to(place) for file in place.rglob("*.parquet")]
        return [str(place / file) for file in sorted(found) if not _is_hidden(file.parts)]
    return sorted(glob.glob(str(place), recursive=True))


def _remote_names(path: str, option: str) -> list[str]:
    is_file = path.endswith(".parquet") or glob.has_magic(path)
    pattern = path if is_file else f"{path.rstrip('/')}/**/*.parquet"
    column = "shard"
    try:
        table = pl.scan_parquet(pattern, include_file_paths=column).select(column).unique()
        names: list[str] = table.collect(engine="streaming").to_series().sort().to_list()
    except (PolarsError, OSError) as error:
        reason = " ".join(str(error).split())
        if "paths were empty" in reason:
            return []
        raise UserError(
            f"{option}: expected shards in {path} that can be read, got: {reason[:300]}; the "
            "variables AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION and AWS_ENDPOINT_URL "
            "say how."
        ) from error
    return [name for name in names if not _is_hidden(name.removeprefix(path).split("/"))]


def _is_hidden(parts: Sequence[str]) -> bool:
    return any(part.startswith(("_", ".")) for part in parts)


def _open_shard(name: str) -> Shard:
    """Return a shard, of which only the footer is read."""
    try:
        table = pl.scan_parquet(name, glob=False, hive_partitioning=False)
        rows = table.select(pl.len()).collect().item()
        return Shard(name, int(rows), dict(table.collect_schema()))
    except (PolarsError, OSError) as error:
        raise _unreadable(name, error) from error


def _kinds(shard: Shard) -> dict[str, object]:
    return {name: type_of(dtype) or dtype for name, dtype in shard.types.items()}


def _unreadable(name: str, error: Exception) -> UserError:
    reason = " ".join(str(error).split())[:300]
    return UserError(f"{name}: expected a Parquet file that can be read, got: {reason}.")


def find_partitions(shards: list[Shard], path: str) -> list[Finding]:
    """Return a finding about values that only the names of folders have, as in ``year=2024/``."""
    names = [shard.name.replace("\\", "/") for shard in shards]
    shared = len(os.path.commonpath(names))
    folders = [name[shared:].split("/")[:-1] for name in names]
    keys = dict.fromkeys(part.partition("=")[0] for part in chain(*folders) if "=" in part)
    if not keys:
        return []
    return [
        Finding(
            f"folders of {path} are named by values of {', '.join(keys)}",
            "these are no columns, because the files do not hold them",
            "write the columns into the files, if they are inputs",
        )
    ]


def cut(shards: list[Shard]) -> list[Block]:
    """Return the blocks of shards, in order. Those of a shard have nearly equal numbers of rows."""
    size = max(1, min(BLOCK_ROWS, sum(shard.rows for shard in shards) // MIN_BLOCKS))
    blocks, first = [], 0
    for shard in shards:
        parts = -(-shard.rows // size)
        cuts = [shard.rows * i // parts for i in range(parts + 1)]
        for start, stop in pairwise(cuts):
            rows = stop - start
            blocks.append(Block(shard.name, start, rows, first + start, rows))
        first += shard.rows
    return blocks


def hold_out(
    blocks: list[Block], val_fraction: float, test_fraction: float, seed: int
) -> dict[str, list[int]]:
    """Return the positions of the blocks of train, val and test, drawn at random, in order.

    A split gets blocks until it has its fraction of the rows.
    """
    rows = sum(block.rows for block in blocks)
    order = np.random.default_rng(seed).permutation(len(blocks)).tolist()
    splits: dict[str, list[int]] = {}
    for name, fraction in (("test", test_fraction), ("val", val_fraction)):
        taken: list[int] = []
        while order and sum(blocks[i].rows for i in taken) < round(fraction * rows):
            taken.append(order.pop())
        splits[name] = sorted(taken)
    splits["train"] = sorted(order)
    return {name: splits[name] for name in SPLITS}


def with_counts(blocks: list[Block], counts: list[int]) -> list[Block]:
    """Return blocks with the number of their rows that have a target."""
    return [replace(block, count=n) for block, n in zip(blocks, counts, strict=True)]


def check_columns(shard: Shard, targets: list[str], others: list[str]) -> None:
    """Raise UserError unless a shard has the target columns, and those of ``data.columns``."""
    check_names(list(shard.types), targets, "data.target", shard.name)
    check_names(list(shard.types), others, "data.columns", shard.name)


def describe_content(shards: list[Shard], counts: list[object]) -> list[object]:
    """Return what the fingerprint of a stream is made of, as plain values.

    These are names, numbers of rows and columns of the shards, and what is counted of the targets
    of each block. Other columns are not read for it.
    """
    files = [
        (Path(shard.name).name, shard.rows, {n: str(t) for n, t in shard.types.items()})
        for shard in shards
    ]
    return [files, counts]


def read_rows(block: Block, names: Sequence[str]) -> pl.DataFrame:
    """Return columns of a block, NaN as null. Raises UserError if the shard has changed."""
    try:
        table = pl.scan_parquet(block.shard, glob=False, hive_partitioning=False)
        part = table.slice(block.start, block.rows).select(map(by_name, names))
        frame = nan_to_null(part).collect()
    except (PolarsError, OSError) as error:
        raise _unreadable(block.shard, error) from error
    if len(frame) != block.rows:
        raise UserError(
            f"{block.shard}: expected rows up to {block.start + block.rows}, as before, got "
            f"{block.start + len(frame)}; start again when the file is complete."
        )
    return frame


def sample(blocks: list[Block], names: Sequence[str], rows: int, max_blocks: int) -> pl.DataFrame:
    """Return evenly spread rows of at most ``max_blocks`` evenly spread blocks; all if they fit."""
    if sum(block.rows for block in blocks) <= rows:
        parts = [read_rows(block, names) for block, _ in runs_of(blocks, rows)]
        return pl.concat(parts, how="vertical_relaxed")
    count = min(len(blocks), max_blocks, rows)
    places = np.linspace(0, len(blocks) - 1, count).round().astype(int).tolist()
    parts = []
    for number, place in enumerate(places):
        share = rows * (number + 1) // count - rows * number // count
        part = read_rows(blocks[place], names)
        chosen = np.linspace(0, len(part) - 1, min(share, len(part))).round().astype(int)
        parts.append(part[chosen])
    return pl.concat(parts, how="vertical_relaxed")


def gather(blocks: list[Block], names: Sequence[str], rows: Array) -> pl.DataFrame:
    """Return columns for row numbers of the whole source, in their order: [rows]."""
    order = np.argsort(rows, kind="stable")
    ordered = rows[order]
    parts = [read_rows(blocks[0], names)[:0]]
    for block in blocks:
        low, high = np.searchsorted(ordered, (block.first, block.first + block.rows))
        if low < high:
            parts.append(read_rows(block, names)[ordered[low:high] - block.first])
    back = np.empty(len(order), np.int64)
    back[order] = np.arange(len(order))
    return pl.concat(parts, how="vertical_relaxed")[back]


def runs_of(blocks: list[Block], rows: int) -> Iterator[tuple[Block, list[int]]]:
    """Yield consecutive blocks of a shard as one block of about ``rows`` rows, with their indices.

    A column of its own is read faster in larger pieces.
    """
    held: list[int] = []
    for i, block in enumerate(blocks):
        if held and (
            block.shard != blocks[held[0]].shard
            or block.start != blocks[held[-1]].start + blocks[held[-1]].rows
            or block.start + block.rows - blocks[held[0]].start > rows
        ):
            yield _join(blocks, held), held
            held = []
        held = [*held, i]
    if held:
        yield _join(blocks, held), held


def _join(blocks: list[Block], indices: list[int]) -> Block:
    count = sum(blocks[i].rows for i in indices)
    return replace(blocks[indices[0]], rows=count, count=count)
