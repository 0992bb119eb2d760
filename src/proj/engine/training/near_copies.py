"""Texts of a later split that have nearly the words of a training text."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import polars as pl

from proj.data.base import DataModule
from proj.errors import quoted
from proj.schema import Array, Batch, Finding

# Two texts are alike if this share of the words of both, each counted once, is in both (Jaccard).
MIN_SHARED = 0.7
# Shorter texts have the same words by chance.
MIN_WORDS = 5
# Texts of each split, and characters of all, that are compared. If there are more, evenly spread
# rows are taken.
MAX_ROWS = 100_000
MAX_CHARACTERS = 20_000_000
# Texts of one MinHash band are compared. A pair of the similarity s has an equal band with a
# probability of 1 - (1 - s**4)**16: 0.99 for 0.7, and 0.63 for 0.5 (Leskovec et al., Mining of
# Massive Datasets, section 3.4).
BANDS, BAND_SIZE = 16, 4

WORD = r"[\p{L}\p{N}]+"


class Words(NamedTuple):
    """The distinct words of texts.

    Attributes:
        hashes: hashes of the words of all texts, one text after the other: uint64.
        starts: the first word of each text, and the end: [texts + 1].
        rows: positions of the texts in their split; short ones are left out.
    """

    hashes: Array
    starts: Array
    rows: Array

    def of(self, text: int) -> set[int]:
        return set(self.hashes[self.starts[text] : self.starts[text + 1]].tolist())


def find_near_copies(data: DataModule, splits: dict[str, Batch]) -> Iterator[Finding]:
    """Find texts of val and test that differ from a training text in a few words only.

    Args:
        data: the data module of the splits.
        splits: the splits that have targets.
    """
    assert data.schema is not None
    names = list(dict.fromkeys(c.source for c in data.schema.columns if c.kind == "word"))
    if not names:
        return
    read = {
        name: data.source_columns(names, split.row.numpy(), name) for name, split in splits.items()
    }
    for name in names:
        texts = {split: columns[name].cast(pl.String) for split, columns in read.items()}
        characters = sum(int(values.str.len_chars().sum()) for values in texts.values())
        train = texts.pop("train")
        known = distinct_words(train, characters)
        for split, values in texts.items():
            words = distinct_words(values, characters)
            if pairs := find_alike(words, known):
                yield _finding(name, split, values, train, pairs)


def distinct_words(texts: pl.Series, characters: int = 0) -> Words:
    """Return the distinct words of texts, of some of them if all have too many characters."""
    stride = max(1, -(-len(texts) // MAX_ROWS), -(-characters // MAX_CHARACTERS))
    frame = texts.alias("text").to_frame().with_row_index("row").gather_every(stride)
    lists = frame.select(
        "row", words=pl.col("text").str.to_lowercase().str.extract_all(WORD).list.unique()
    ).filter(pl.col("words").list.len() >= MIN_WORDS)
    lengths = lists["words"].list.len().to_numpy()
    hashes = lists["words"].explode().hash(seed=0).to_numpy() if len(lists) else np.zeros(0, "u8")
    starts = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    return Words(hashes, starts, lists["row"].to_numpy())


def find_alike(words: Words, known: Words) -> list[tuple[int, int, float]]:
    """Return the row of each text that is alike to a known one, the row of that, and the share.

    The share is that of the words in both, and the known text is the most similar one found.
    """
    if not len(words.rows) or not len(known.rows):
        return []
    candidates: set[tuple[int, int]] = set()
    for band, known_band in zip(_bands(words), _bands(known), strict=True):
        order = np.argsort(known_band, kind="stable")
        ordered = known_band[order]
        # Of many known texts in a band, the first and the last one are compared.
        first = np.searchsorted(ordered, band).clip(max=len(order) - 1)
        last = np.searchsorted(ordered, band, "right") - 1
        for places in (first, last):
            found = np.flatnonzero(ordered[places] == band)
            candidates.update(zip(found.tolist(), order[places[found]].tolist(), strict=True))
    best: dict[int, tuple[float, int]] = {}
    for text, other in sorted(candidates):
        mine, theirs = words.of(text), known.of(other)
        share = len(mine & theirs) / len(mine | theirs)
        if share >= MIN_SHARED and share > best.get(text, (0.0, 0))[0]:
            best[text] = share, other
    return [(int(words.rows[t]), int(known.rows[o]), share) for t, (share, o) in best.items()]


def _bands(words: Words) -> Iterator[Array]:
    """Yield a number for each text [texts], equal for texts of the same lowest hashes."""
    draw = np.random.default_rng(0)
    for _ in range(BANDS):
        band = np.zeros(len(words.rows), np.uint64)
        for _ in range(BAND_SIZE):
            factor, added, mix = draw.integers(0, 2**63, 3, dtype=np.uint64) * 2 + 1
            hashed = (words.hashes * factor + added) >> np.uint64(20)
            band = (band ^ np.minimum.reduceat(hashed, words.starts[:-1])) * mix
        yield band


def _finding(
    name: str,
    split: str,
    values: pl.Series,
    train: pl.Series,
    pairs: list[tuple[int, int, float]],
) -> Finding:
    # Texts of the same words come last, because they show less.
    examples = sorted(pairs, key=lambda pair: pair[2] == 1)[:2]
    listed = "; ".join(
        f"{quoted(values[row])} and {quoted(train[other])}" for row, other, _ in examples
    )
    same = sum(share == 1 for _, _, share in pairs)
    return Finding(
        f"the text in column {name} of {len(pairs)} of {len(values)} {split} rows has nearly the "
        f"words of a train row ({same} the same words), such as {listed}",
        "if they are versions of one text, the model may have memorized it, and the result looks "
        "better than it is",
        "in that case keep one of each, or keep them in one split with data.group",
    )
