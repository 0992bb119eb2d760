"""Score of a text: a linear model of the TF-IDF of its words and of its characters."""

import json
import math
import re
from collections import Counter
from functools import lru_cache
from itertools import pairwise
from typing import Final

import polars as pl

from proj.data.tabular.words import WORD

# Lengths of the parts of words that are terms, as in scikit-learn's analyzer char_wb.
PART_LENGTHS: Final = range(2, 6)

_WORD: Final = re.compile(WORD)


def word_terms(text: str) -> list[str]:
    """Return the words of a text in lower case, and its pairs of neighboring words."""
    words = _WORD.findall(text.lower().replace("’", "'"))
    return words + [" ".join(pair) for pair in pairwise(words)]


def part_terms(text: str) -> list[str]:
    """Return the parts of 2 to 5 characters of what stands between spaces, in lower case.

    A space marks the beginning and the end. Parts find other forms of words, misspellings and
    punctuation.
    """
    padded = [f" {word} " for word in text.lower().split()]
    return [
        word[start : start + length]
        for word in padded
        for length in PART_LENGTHS
        for start in range(len(word) - length + 1)
    ]


class TextModel:
    """A linear model of texts.

    Words and parts of words are two vectors. The value of a term is (1 + log(count)) times its
    inverse document frequency, and each vector has the length 1. engine/deployment/runtime/words.py
    computes the same for bundles.

    Args:
        terms: JSON with ``words`` and ``parts``, the inverse document frequency of each term.
        weights: JSON with the weight of each term in the same order, and the bias.
    """

    def __init__(self, terms: str, weights: str) -> None:
        kinds = json.loads(terms)
        *values, self.bias = json.loads(weights)
        remaining = iter(values)
        # The inverse document frequency and the weight of each term.
        self.words, self.parts = (
            {term: (idf, next(remaining)) for term, idf in kinds[kind].items()}
            for kind in ("words", "parts")
        )

    def score(self, text: str) -> float:
        """Return the score of a text: log-odds of a class, or standard deviations of a number."""
        score: float = self.bias + _product(word_terms(text), self.words)
        return score + (_product(part_terms(text), self.parts) if self.parts else 0.0)


def _product(terms: list[str], known: dict[str, tuple[float, float]]) -> float:
    """Return the product of the weights and of the vector of a text, which has the length 1."""
    product = square = 0.0
    for term, count in Counter(term for term in terms if term in known).items():
        idf, weight = known[term]
        value = (1 + math.log(count)) * idf
        product += value * weight
        square += value * value
    return product / math.sqrt(square) if square else 0.0


@lru_cache(maxsize=64)
def read_model(terms: str, weights: str) -> TextModel:
    """Return the model of a score's column. Reading it takes as long as some hundred texts."""
    return TextModel(terms, weights)


def score_texts(values: pl.Expr, terms: str, weights: str) -> pl.Expr:
    """Return the scores of texts. A missing text counts as an empty one."""

    def scores(texts: pl.Series) -> pl.Series:
        model = read_model(terms, weights)
        return pl.Series([model.score(text or "") for text in texts], dtype=pl.Float64)

    return values.cast(pl.String).map_batches(scores, return_dtype=pl.Float64, is_elementwise=True)
