"""Nearly equal texts in two splits, against a comparison of all pairs."""

import random
from pathlib import Path

import numpy as np
import polars as pl
from test_words import OTHERS, reviews

from proj.data.tabular.datamodule import Tabular
from proj.engine.training.data_checks import check_data
from proj.engine.training.near_copies import MIN_SHARED, distinct_words, find_alike

VOCABULARY = [f"{a}{b}" for a in OTHERS for b in "abcdefgh"]


def texts(rows: int, seed: int) -> list[list[str]]:
    draw = random.Random(seed)
    return [draw.sample(VOCABULARY, draw.randint(6, 25)) for _ in range(rows)]


def test_alike_texts_are_those_of_all_pairs() -> None:
    """MinHash is a sample; a pair that it misses is a leak that `check` does not show."""
    draw = random.Random(2)
    known = texts(250, 0)
    new = []
    for words in known[:150]:
        changed = list(words)
        for _ in range(draw.randint(0, 4)):
            changed[draw.randrange(len(changed))] = draw.choice(VOCABULARY)
        draw.shuffle(changed)
        new.append(changed)
    new += texts(60, 1)
    expected = {}
    for i, words in enumerate(new):
        shares = [len({*words} & {*k}) / len({*words} | {*k}) for k in known]
        if max(shares) >= MIN_SHARED:
            expected[i] = int(np.argmax(shares)), max(shares)
    series = [pl.Series([" ".join(words).title() + "!" for words in rows]) for rows in (new, known)]
    found = {i: (j, share) for i, j, share in find_alike(*map(distinct_words, series))}
    assert found.keys() <= expected.keys()
    assert len(found) > 0.97 * len(expected) > 70
    assert all(expected[i] == pair for i, pair in found.items())


def test_short_and_missing_texts_are_not_compared() -> None:
    words = distinct_words(
        pl.Series([None, "", "good good good good good", "a b c d", "a b c d e"])
    )
    assert words.rows.tolist() == [4]
    assert find_alike(words, distinct_words(pl.Series(["x"]))) == []
    assert find_alike(distinct_words(pl.Series([], dtype=pl.String)), words) == []


def test_check_finds_reviews_that_differ_in_a_word(work: Path) -> None:
    """Reviews of train with another word in test make a result look better than it is."""
    table = reviews(200).with_columns(size=pl.int_range(200) * 0.37)
    table.write_csv("t.csv")
    other = reviews(150, seed=1).with_columns(
        review=pl.format("{} unseen{} quite other words here", "review", pl.int_range(pl.len())),
        size=pl.int_range(pl.len()) * 0.37,
    )
    edited = table.filter(pl.col("review").str.count_matches(" ") > 9)[:6].with_columns(
        review=pl.col("review").str.to_uppercase() + " zzz!!", size=pl.lit(1.5)
    )

    def found(rows: pl.DataFrame) -> list[str]:
        rows.write_csv("test.csv")
        data = Tabular("t.csv", "y", test_path="test.csv", val_fraction=0.0)
        data.prepare_data()
        data.setup("fit")
        return [f.what for f in check_data(data) if "nearly the words" in f.what]

    assert found(other) == []
    (what,) = found(pl.concat([other, edited]))
    assert what.startswith(
        "the text in column review of 6 of 156 test rows has nearly the words of a train row "
        "(0 the same words), such as 'TOPIC"
    )
    assert " and 'Topic" in what
