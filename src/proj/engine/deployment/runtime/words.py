"""Words and scores of texts, as they are computed in training."""

import json
import math
import re
from collections import Counter
from itertools import pairwise

# Letters and digits by their code points, as in training. Chinese and Japanese characters, which no
# spaces separate, and emoji are words of their own.
_LETTERS = "0-9a-z\u00c0-\u167f\u1681-\u1fff\u2c00-\u2dff\ua000-\ud7ff\uf900-\ufdff"
_SIGNS = "\u2600-\u27bf\u3040-\u30ff\u3400-\u9fff\U0001f300-\U0001faff"
_WORD = re.compile(f"[{_LETTERS}]+(?:'[{_LETTERS}]+)*|[{_SIGNS}]")


def normalize(text: str) -> str:
    """Return a text as its words in lower case, with one space before and after each."""
    return f" {' '.join(_WORD.findall(text.lower().replace('’', chr(39))))} "


class Score:
    """A linear model of the TF-IDF of a text's words and parts of words.

    Args:
        terms: JSON with ``words`` and ``parts``, the inverse document frequency of each term.
        weights: JSON with the weight of each term in the same order, and the bias.
    """

    def __init__(self, terms: str, weights: str) -> None:
        kinds = json.loads(terms)
        *values, self.bias = json.loads(weights)
        remaining = iter(values)
        self.words, self.parts = (
            {term: (idf, next(remaining)) for term, idf in kinds[kind].items()}
            for kind in ("words", "parts")
        )

    def __call__(self, text: str) -> float:
        words = _WORD.findall(text.lower().replace("’", "'"))
        words += [" ".join(pair) for pair in pairwise(words)]
        score: float = self.bias + _product(words, self.words)
        return score + (_product(_parts(text), self.parts) if self.parts else 0.0)


def _parts(text: str) -> list[str]:
    """Return the parts of 2 to 5 characters of what stands between spaces, and of the spaces."""
    return [
        word[start : start + length]
        for word in (f" {word} " for word in text.lower().split())
        for length in range(2, 6)
        for start in range(len(word) - length + 1)
    ]


def _product(terms: list[str], known: dict[str, tuple[float, float]]) -> float:
    """Return the product of the weights and of the vector of a text, which has the length 1."""
    product = square = 0.0
    for term, count in Counter(term for term in terms if term in known).items():
        idf, weight = known[term]
        value = (1 + math.log(count)) * idf
        product += value * weight
        square += value * value
    return product / math.sqrt(square) if square else 0.0
