"""Words and pairs of words in text columns: the most informative ones are inputs of the net."""

import re
from collections import Counter
from itertools import pairwise
from typing import Final, NamedTuple

import numpy as np
import polars as pl

from proj.data.tabular.identifiers import MAX_TEXT_CATEGORIES, MIN_CATEGORY_ROWS
from proj.data.tabular.targets import Targets
from proj.schema import Array

# Inputs that a text column gives at most, and training rows for each of them.
MAX_WORDS: Final = 256
ROWS_PER_WORD: Final = 4
# Training rows that the words are chosen from.
CHOICE_ROWS: Final = 50_000
# Words below are less informative than those of random targets are on average.
MIN_CHI2: Final = 1.0
# Classes that choose words.
MAX_CLASSES: Final = 50
# Rows of a column that show whether it holds free text.
SAMPLE_ROWS: Final = 2_000
# Half of the texts have at least as many words of letters.
MIN_WORDS: Final = 3

# Letters and digits by their code points, because `\w` differs between polars and Python. Chinese
# and Japanese characters, which no spaces separate, and emoji are words of their own.
_LETTERS: Final = "0-9a-z\u00c0-\u167f\u1681-\u1fff\u2c00-\u2dff\ua000-\ud7ff\uf900-\ufdff"
_SIGNS: Final = "\u2600-\u27bf\u3040-\u30ff\u3400-\u9fff\U0001f300-\U0001faff"
WORD: Final = f"[{_LETTERS}]+(?:'[{_LETTERS}]+)*|[{_SIGNS}]"
# A word as free text has it between spaces: letters, with signs around them.
_PLAIN_WORD: Final = re.compile(r"[^\w\s]*[^\W\d_]+(?:['’-][^\W\d_]+)*[^\w\s]*")
_UNSPACED: Final = re.compile("[\u3040-\u30ff\u3400-\u9fff]")


def is_free_text(values: pl.Series) -> bool:
    """Return whether a column holds many texts of several words.

    Identifiers, names of persons, addresses of web pages and names of files are none.
    """
    present = values.drop_nulls()
    if values.dtype != pl.String or present.n_unique() <= MAX_TEXT_CATEGORIES:
        return False
    texts = present.gather_every(-(-len(present) // SAMPLE_ROWS))
    return float(np.median([_count_plain_words(text) for text in texts])) >= MIN_WORDS


def _count_plain_words(text: str) -> int:
    plain = sum(bool(_PLAIN_WORD.fullmatch(part)) for part in text.split())
    return plain + len(_UNSPACED.findall(text))


def _words(values: pl.Expr) -> pl.Expr:
    """Return the words of texts in lower case, as lists."""
    lower = values.cast(pl.String).str.to_lowercase()
    return lower.str.replace_all("’", "'", literal=True).str.extract_all(WORD)


def normalize(values: pl.Expr) -> pl.Expr:
    """Return texts as their words in lower case, with one space before and after each."""
    return pl.format(" {} ", _words(values).list.join(" "))


def count_words(values: pl.Expr) -> pl.Expr:
    """Return the length of texts in words, null for texts without words."""
    return _words(values).list.len().replace(0, None)


def has_word(values: pl.Expr, word: str) -> pl.Expr:
    """Return whether texts have a word, or two words one after the other; false where missing."""
    return normalize(values).str.contains(f" {word} ", literal=True).fill_null(False)


class Outcomes(NamedTuple):
    """Targets of training rows, which informative words are correlated with.

    Attributes:
        values: numbers of classes [rows], or labels or numbers to predict [rows, targets].
        is_classes: whether they are numbers of classes.
        names: the labels of the classes, or the names of the columns; may be empty.
    """

    values: Array
    is_classes: bool
    names: tuple[str, ...] = ()

    @classmethod
    def of(cls, targets: Targets) -> "Outcomes":
        """Return the outcomes of rows whose targets are all present."""
        if targets.strata is not None:
            return cls(targets.strata, True, tuple(map(str, targets.class_names)))
        numbers = [column.numbers(np.float64) for column in targets.columns]
        return cls(np.column_stack(numbers), False, tuple(c.name for c in targets.columns))

    def columns(self, stride: int) -> Array:
        """Return the values, or indicators of the classes, of each ``stride``-th row.

        Of two classes one indicator is enough, of many classes those of the most frequent ones.
        """
        values = self.values[::stride]
        if not self.is_classes:
            return values
        classes, counts = np.unique(values, return_counts=True)
        chosen = classes[np.argsort(-counts, kind="stable")[:MAX_CLASSES]]
        indicators: Array = values[:, None] == (chosen[:1] if len(classes) == 2 else chosen)
        return indicators.astype(np.float64)


def choose_words(values: pl.Series, outcomes: Outcomes) -> dict[str, float]:
    """Return the most informative words and pairs of neighboring words, the best first.

    Each target, and each class of several, ranks the words by the squared correlation with their
    presence in a text; for classes that is chi² divided by the rows. They choose in turns.

    Args:
        values: texts of training rows, null where missing.
        outcomes: the targets of the same rows.

    Returns:
        The share of the rows that have each word.
    """
    # scikit-learn takes long to import, and most tables do not need it.
    from sklearn.feature_extraction.text import CountVectorizer

    stride = -(-len(values) // CHOICE_ROWS) or 1
    texts = values.gather_every(stride).alias("v").to_frame().select(normalize(pl.col("v")))
    terms = [_with_pairs(text.split()) for text in texts.to_series().fill_null("")]
    counts = Counter(term for row in terms for term in set(row))
    frequent = sorted(t for t, n in counts.items() if MIN_CATEGORY_ROWS <= n < len(terms))
    if not frequent:
        return {}
    counter = CountVectorizer(analyzer=list, vocabulary=frequent, binary=True, dtype=np.float64)
    present = counter.transform(terms)
    share = np.asarray(present.mean(axis=0)).ravel()
    targets = outcomes.columns(stride)
    centered = targets - targets.mean(axis=0)
    covariance = np.asarray(present.T @ centered) / len(terms)
    variance = np.outer(share * (1 - share), centered.var(axis=0))
    scores = np.divide(covariance**2, variance, out=np.zeros_like(variance), where=variance > 0)
    # Words of equal scores are in the order of the alphabet.
    ranked = np.argsort(-scores, axis=0, kind="stable").ravel()
    best = dict.fromkeys(ranked[len(terms) * scores.max(axis=1)[ranked] >= MIN_CHI2].tolist())
    limit = min(MAX_WORDS, len(terms) // ROWS_PER_WORD)
    return {frequent[i]: float(share[i]) for i in list(best)[:limit]}


def _with_pairs(words: list[str]) -> list[str]:
    return words + [" ".join(pair) for pair in pairwise(words)]
