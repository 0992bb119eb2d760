"""Rows of a data set that are copies of each other, and rows that differ in the target only."""

from collections import Counter
from collections.abc import Collection, Iterator
from itertools import pairwise

import numpy as np

from proj.data.base import DataModule
from proj.engine.console import plural
from proj.schema import Array, Batch, Finding, Schema

# Rows that are compared with each other. If there are more, a share of them is chosen by the hash
# of the inputs, so that of equal rows all or none are chosen.
MAX_COMPARED_ROWS = 4_000_000

# Bytes of rows that are hashed at once. Larger parts leave the cache of a core.
CHUNK = 2**19

# Rows are compared in 2^PART_BITS parts by the first bits of the hash of their inputs. Equal rows
# are in one part, and sorting a part takes little memory.
PART_BITS = 4

# The hashes of the rows of each split: [rows] uint64.
Hashes = dict[str, Array]


def find_equal_rows(data: DataModule, splits: dict[str, Batch]) -> Iterator[Finding]:
    """Find rows that occur in an earlier split, too, and rows that differ in the label only.

    Args:
        data: the data module of the splits.
        splits: the splits that have targets.
    """
    assert data.schema is not None
    # Scores of training texts are cross-fitted, so those of equal texts differ.
    ignored = [i for i, c in enumerate(data.schema.numeric) if c.kind == "score"]
    arrays = {name: _input_arrays(split, ignored) for name, split in splits.items()}
    stride = -(-sum(len(split.row) for split in splits.values()) // MAX_COMPARED_ROWS)
    inputs = {name: hash_rows(values, stride) for name, values in arrays.items()}
    rows = {name: len(hashes) for name, hashes in inputs.items()}
    repeated = np.concatenate([_repeated(part) for (part,) in _parts(inputs)])
    if not len(repeated):
        return
    del inputs  # All but the repeated ones are of no use.
    inputs, targets = _hash_repeated(splits, arrays, repeated, _source_hashes(data, splits))
    copies, contradicting = Counter[tuple[str, str]](), 0
    for part in _parts(inputs, targets):
        copies.update(_count_copies(*part))
        contradicting += _count_contradicting(*part)
    for (later, earlier), count in copies.items():
        if count:
            yield _copies_finding(count, rows[later], later, earlier, _has_texts(data.schema))
    if contradicting and data.schema.task != "regression":
        yield Finding(
            f"{contradicting} of {plural(sum(rows.values()), 'row')} have the inputs of another "
            "row and a different label",
            "no model can predict all of them correctly",
            "add a column in which the rows differ, or correct labels that are wrong",
        )


def target_rows(split: Batch) -> Array:
    """Return the targets of a split: [rows, targets]."""
    assert split.y is not None
    return np.ascontiguousarray(split.y.numpy().reshape(len(split.row), -1))


def _source_hashes(data: DataModule, splits: dict[str, Batch]) -> Hashes | None:
    """Return hashes of the rows of each split in the source, None if the inputs are enough."""
    hashes = {name: data.source_hashes(name) for name in splits}
    known = {name: values for name, values in hashes.items() if values is not None}
    return known if len(known) == len(splits) else None


def _input_arrays(split: Batch, ignored: Collection[int]) -> list[Array]:
    """Return the inputs of a split as arrays [rows, ...], without the ``ignored`` numbers."""
    arrays = [x.numpy() for x in (split.x.values() if isinstance(split.x, dict) else [split.x])]
    return [*_without(ignored, arrays[0]), *arrays[1:]]


def _hash_repeated(
    splits: dict[str, Batch],
    arrays: dict[str, list[Array]],
    repeated: Array,
    source: Hashes | None,
) -> tuple[Hashes, Hashes]:
    """Return hashes of the inputs and of the targets of the rows with repeated inputs.

    With ``source``, the hashes of the rows in the source, rows with equal inputs have equal hashes
    only if they are equal in the source, too: columns are left out of inputs, and values merge.

    Args:
        arrays: inputs of each split.
        repeated: sorted hashes of inputs, as ``hash_rows`` returns them.
    """
    inputs, targets = {}, {}
    for name, split in splits.items():
        rows, found, start = [np.zeros(0, np.int64)], [np.zeros(0, np.uint64)], 0
        for hashes in _hash_chunks(arrays[name]):
            places = np.searchsorted(repeated, hashes).clip(max=len(repeated) - 1)
            chosen = np.flatnonzero(repeated[places] == hashes)
            rows.append(start + chosen)
            found.append(hashes[chosen])
            start += len(hashes)
        chosen, inputs[name] = np.concatenate(rows), np.concatenate(found)
        if source:
            inputs[name] += source[name][chosen]
        targets[name] = hash_rows([target_rows(split)[chosen]])
    return inputs, targets


def _without(ignored: Collection[int], array: Array) -> list[Array]:
    """Return the parts of an array [rows, columns] between the ignored columns, not copied."""
    edges = [-1, *ignored, array.shape[1]] if ignored else []
    parts = [array[:, a + 1 : b] for a, b in pairwise(edges) if b > a + 1]
    return parts if ignored else [array]


def hash_rows(arrays: list[Array], stride: int = 1, chunk: int = CHUNK) -> Array:
    """Return 64-bit hashes of those rows whose hash is a multiple of ``stride``: uint64.

    Equal rows have equal hashes, and different rows practically never do.

    Args:
        arrays: arrays [rows, ...], which together make the rows.
        chunk: bytes that are hashed at once.
    """
    # Of memory that is not written to, the system provides none.
    found, count = np.empty(len(arrays[0]), np.uint64), 0
    for hashes in _hash_chunks(arrays, chunk):
        kept = hashes[hashes % np.uint64(stride) == 0] if stride > 1 else hashes
        found[count : count + len(kept)] = kept
        count += len(kept)
    return found[:count]


def _hash_chunks(arrays: list[Array], chunk: int = CHUNK) -> Iterator[Array]:
    """Yield the hashes of rows in order, in parts of ``chunk`` bytes."""
    rows = len(arrays[0])
    size = max(1, chunk * rows // max(1, sum(array.nbytes for array in arrays)))
    for start in range(0, rows, size):
        parts = [array[start : start + size] for array in arrays]
        hashes = np.zeros(len(parts[0]), np.uint64)
        for part in parts:
            flat = np.ascontiguousarray(part.reshape(len(part), -1))
            hashes += _hash_bytes(flat.view(np.uint8))
        yield hashes


def _hash_bytes(rows: Array) -> Array:
    """Return hashes of byte rows [rows, bytes].

    They are sums, modulo 2^64, of mixed words times random odd numbers. The mixing function is that
    of SplitMix64 (Steele et al. 2014).
    """
    words = np.pad(rows, ((0, 0), (0, -rows.shape[1] % 8))).view(np.uint64)
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    generator = np.random.default_rng(words.shape[1])
    random = generator.integers(0, 2**63, words.shape[1], dtype=np.uint64)
    factors = random * np.uint64(2) + np.uint64(1)
    mixed: Array = (words ^ (words >> np.uint64(31))) * factors
    return np.asarray(mixed.sum(axis=1, dtype=np.uint64))


def _parts(*hashes: Hashes) -> Iterator[tuple[Hashes, ...]]:
    """Yield hashes in parts by the first of them, those of the inputs.

    Rows with equal inputs are in one part, and the parts are in the order of the hashes.
    """
    shift = np.uint64(64 - PART_BITS)
    for number in range(2**PART_BITS):
        chosen = {name: values >> shift == number for name, values in hashes[0].items()}
        yield tuple({name: kind[name][rows] for name, rows in chosen.items()} for kind in hashes)


def _repeated(inputs: Hashes) -> Array:
    """Return the hashes that more than one row has, sorted."""
    hashes = np.concatenate(list(inputs.values()))
    hashes.sort()
    equal = hashes[1:] == hashes[:-1]
    return np.unique(hashes[1:][equal])


def _count_copies(inputs: Hashes, targets: Hashes) -> dict[tuple[str, str], int]:
    """Return how many rows of a later split occur in an earlier one with the same target."""
    hashes = {name: inputs[name] + targets[name] for name in inputs}
    return {
        (later, earlier): int(np.isin(hashes[later], hashes[earlier]).sum())
        for later, earlier in (("val", "train"), ("test", "train"), ("test", "val"))
        if later in hashes and earlier in hashes
    }


def _copies_finding(count: int, rows: int, later: str, earlier: str, has_texts: bool) -> Finding:
    """Return the finding about ``count`` copies.

    With ``has_texts``, the hashes of the inputs are equal for texts of the same words.
    """
    exact = "" if has_texts else "exact "
    equal = f"is {'a' if has_texts else 'an'} {exact}copy of a {earlier} row"
    if count > 1:
        equal = f"are {exact}copies of {earlier} rows"
    same = " with the same words in texts" if has_texts else ""
    return Finding(
        f"{count} of {rows} {later} rows {equal}{same}",
        "if they are records of one thing, the model may have memorized them, and the result looks "
        "better than it is",
        "in that case keep one of each, or keep them in one split with data.group",
    )


def _has_texts(schema: Schema) -> bool:
    return any(column.kind == "word" for column in schema.columns)


def _count_contradicting(inputs: Hashes, targets: Hashes) -> int:
    """Return the number of rows whose inputs are those of a row with another label."""
    hashes, labels = (np.concatenate(list(kind.values())) for kind in (inputs, targets))
    if not len(hashes):
        return 0
    order = np.argsort(hashes, kind="stable")
    hashes, labels = hashes[order], labels[order]
    starts = np.flatnonzero(np.append(True, hashes[1:] != hashes[:-1]))
    differ = np.minimum.reduceat(labels, starts) != np.maximum.reduceat(labels, starts)
    return int(np.diff(np.append(starts, len(hashes)))[differ].sum())
