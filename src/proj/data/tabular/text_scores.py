"""Fit the scores of text columns: linear models of TF-IDF or of an encoder, cross-fitted."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import polars as pl

from proj.data.tabular.columns import quantiles
from proj.data.tabular.files import nameless
from proj.data.tabular.text_encoder import TextEncoder, describe_encoder, embed
from proj.data.tabular.text_model import part_terms, word_terms
from proj.data.tabular.words import Outcomes
from proj.schema import Array, Column, Schema

# Scores of a text column: one for each target, or for each of the most frequent classes.
MAX_SCORES: Final = 10
# Terms of a score; fewer if there are several.
MAX_WORDS: Final = 10_000
MAX_PARTS: Final = 20_000
# Training rows and their characters, of all scores together, that a model is fitted on.
MAX_ROWS: Final = 50_000
MAX_CHARACTERS: Final = 20_000_000
# Above, parts of words would take long, and the words are frequent enough.
MAX_PART_CHARACTERS: Final = 5_000_000
# A term of a single row has no effect on others.
MIN_TERM_ROWS: Final = 2
FOLDS: Final = 5
# Inverse strengths of the regularization, tried in this order while the loss falls.
STRENGTHS: Final = (0.3, 1.0, 3.0, 10.0, 30.0)
# The same for the standardized vectors of an encoder, which are as long as the square root of their
# dimensions, where those of TF-IDF have the length 1.
ENCODER_STRENGTHS: Final = (1e-4, 1e-3, 1e-2, 0.1, 1.0)


class TextScore(NamedTuple):
    """A score of a text column.

    Attributes:
        column: the input, with the model.
        rows: positions of the training rows that the model is fitted on.
        values: their scores by models that were not fitted on them: float64.
    """

    column: Column
    rows: Array
    values: Array


class _Vectors(NamedTuple):
    """Texts as vectors, which the models of scores are fitted on.

    Attributes:
        x: [rows, terms], sparse for TF-IDF.
        terms: what a column has as its terms.
        strengths: strengths of the regularization to try.
        label: what is added to the labels of the scores.
        weights: function from the weights of a model and its bias [terms + 1] to what a column has.
    """

    x: Any
    terms: str
    strengths: tuple[float, ...]
    label: str
    weights: Callable[[Array], str]


def fit_scores(
    sample: pl.DataFrame,
    sources: Sequence[str],
    outcomes: Outcomes,
    groups: Array | None,
    encoder: TextEncoder | None = None,
) -> list[TextScore]:
    """Return the scores of text columns that predict the target better than a constant.

    The scores of the training rows are cross-fitted, as in scikit-learn's TargetEncoder: those of a
    model that was fitted on the row itself would look better than those of new rows.

    Args:
        sample: training rows.
        sources: names of the text columns.
        outcomes: the targets of the rows.
        groups: the group of each row [rows], whose rows are in one fold; None without groups.
    """
    labels, targets = _numbers(outcomes)
    scores = []
    for name in sources:
        texts = nameless(sample, name).cast(pl.String).fill_null("")
        scores += _fit_source(name, texts, labels, targets, groups, None)
        if encoder is not None:
            scores += _fit_source(name, texts, labels, targets, groups, encoder)
    return scores


def _fit_source(
    name: str,
    texts: pl.Series,
    labels: list[str],
    targets: Array,
    groups: Array | None,
    encoder: TextEncoder | None,
) -> list[TextScore]:
    """Return the scores of one text column by an encoder, or else by TF-IDF."""
    rows = np.arange(len(texts))[:: _stride(texts, len(labels) if encoder is None else 1)]
    texts, y = texts.gather(rows), targets[rows]
    folds = _folds(texts.to_numpy() if groups is None else groups[rows])
    vectors = _tfidf(texts, len(labels)) if encoder is None else _encoded(texts, y, encoder)
    scores = []
    for label, number in zip(labels, y.T, strict=True):
        if vectors is not None and (fitted := _fit(vectors, number, folds)):
            values, model = fitted
            edges, shares = quantiles(values.astype(np.float32).astype(np.float64))
            ranges = tuple(edges.tolist()), tuple(shares.tolist())
            parts = (label + vectors.label, vectors.terms, vectors.weights(model))
            column = Column(name, "text", "score", False, *ranges, parts)
            scores.append(TextScore(column, rows, values))
    return scores


def add_columns(columns: tuple[Column, ...], scores: list[TextScore]) -> tuple[Column, ...]:
    """Return the columns with the scores of a text before its words, or at the end without any."""
    added: list[Column] = []
    for column in columns:
        if column.source not in {c.source for c in added}:
            added += [s.column for s in scores if s.column.source == column.source]
        added.append(column)
    sources = {column.source for column in columns}
    added += [score.column for score in scores if score.column.source not in sources]
    return tuple(added)


def write_cross_fitted(
    folder: Path, schema: Schema, scores: list[TextScore], sampled: Array
) -> None:
    """Replace the scores of training rows in the prepared arrays by those of cross-fitting.

    A schema of other rows stays as it is: its scores are new to these rows.

    Args:
        folder: the prepared arrays.
        schema: the schema that they are encoded with.
        scores: scores that were fitted on these rows.
        sampled: positions in the training split of the rows that they were fitted on.
    """
    # The terms of other rows differ. Weights may differ in the last digit on another processor.
    places = {(c.source, *c.categories[:2]): i for i, c in enumerate(schema.numeric)}
    numbers = np.load(folder / "train_numeric.npy", mmap_mode="r+")
    for score in scores:
        column = score.column
        if (place := places.get((column.source, *column.categories[:2]))) is not None:
            numbers[sampled[score.rows], place] = score.values
    numbers.flush()


def _numbers(outcomes: Outcomes) -> tuple[list[str], Array]:
    """Return what each score predicts, and the numbers of it: [rows, scores] float64."""
    values = outcomes.values
    if not outcomes.is_classes:
        values = values[:, :MAX_SCORES]
        names = outcomes.names or tuple(map(str, range(values.shape[1])))
        return list(names[:MAX_SCORES]), values
    classes, counts = np.unique(values, return_counts=True)
    chosen = classes[np.argsort(-counts, kind="stable")[:MAX_SCORES]]
    chosen = classes[-1:] if len(classes) == 2 else chosen
    labels = [outcomes.names[i] if outcomes.names else str(i) for i in chosen]
    return labels, (values[:, None] == chosen).astype(np.float64)


def _stride(texts: pl.Series, scores: int) -> int:
    """Return the distance between the rows that a model is fitted on."""
    characters = int(texts.str.len_chars().sum()) * scores
    return max(1, -(-len(texts) // MAX_ROWS), -(-characters // MAX_CHARACTERS))


def _folds(values: Array) -> Array:
    """Return the fold of each row. Rows with equal values are in one fold."""
    distinct, numbers = np.unique(values, return_inverse=True)
    folds: Array = np.random.default_rng(0).permutation(len(distinct))[numbers] % FOLDS
    return folds


def _tfidf(texts: pl.Series, scores: int) -> _Vectors | None:
    """Return the TF-IDF of texts; None if no term is in two texts."""
    # scikit-learn and SciPy take long to import, and most tables do not need them.
    from scipy.sparse import hstack
    from sklearn.feature_extraction.text import TfidfVectorizer

    share = min(1.0, 2 / scores)
    kinds = {"words": (word_terms, MAX_WORDS), "parts": (part_terms, MAX_PARTS)}
    if int(texts.str.len_chars().sum()) * scores > MAX_PART_CHARACTERS:
        del kinds["parts"]
    terms: dict[str, Mapping[str, float]] = {"words": {}, "parts": {}}
    vectors = []
    for kind, (analyzer, limit) in kinds.items():
        vectorizer = TfidfVectorizer(
            analyzer=analyzer,
            sublinear_tf=True,
            min_df=MIN_TERM_ROWS,
            max_features=round(limit * share),
        )
        try:
            vectors.append(vectorizer.fit_transform(texts.to_list()))
        except ValueError:  # No term is in two texts.
            continue
        idf = map(_short, vectorizer.idf_)
        terms[kind] = dict(zip(vectorizer.get_feature_names_out(), idf, strict=True))
    if not vectors:
        return None
    described = json.dumps(terms, ensure_ascii=False)
    return _Vectors(hstack(vectors).tocsr(), described, STRENGTHS, "", _short_numbers)


def _encoded(texts: pl.Series, targets: Array, encoder: TextEncoder) -> _Vectors:
    """Return the vectors of texts by an encoder, each dimension standardized."""
    listed = texts.to_list()
    rows = hashlib.sha256(json.dumps(listed).encode() + targets.tobytes()).hexdigest()[:16]
    vectors = embed(encoder, listed)
    mean, std = vectors.mean(axis=0), vectors.std(axis=0)
    std[std == 0] = 1.0
    vectors = (vectors - mean) / std

    def unscaled(weights: Array) -> str:
        """Return the weights of vectors that are not standardized."""
        of_vectors = weights[:-1] / std
        return json.dumps([*of_vectors.tolist(), float(weights[-1] - of_vectors @ mean)])

    terms, label = describe_encoder(encoder, rows), f" by {type(encoder).__name__}"
    return _Vectors(vectors, terms, ENCODER_STRENGTHS, label, unscaled)


def _fit(vectors: _Vectors, y: Array, folds: Array) -> tuple[Array, Array] | None:
    """Return the cross-fitted scores [rows], and the weights and bias of a model of all rows.

    The strength of the regularization is that with the lowest loss of the cross-fitted scores.
    Returns None if a constant is as good.
    """
    x, is_class = vectors.x, set(np.unique(y).tolist()) == {0.0, 1.0}
    if not is_class and y.std() > 0:
        y = (y - y.mean()) / y.std()
    best_loss, best = _constant_loss(y, is_class), None
    for strength in vectors.strengths:
        scores = np.zeros(len(y))
        for fold in np.unique(folds):
            held = folds == fold
            scores[held] = _predict(x[~held], y[~held], x[held], strength, is_class)
        loss = float(_losses(scores, y, is_class).mean())
        if loss >= best_loss and best is not None:
            break
        if loss < best_loss:
            best_loss, best = loss, (scores, strength)
    if best is None:
        return None
    scores, strength = best
    model = _estimator(strength, is_class).fit(x, y)
    return scores, np.append(np.ravel(model.coef_), model.intercept_)


def _constant_loss(y: Array, is_class: bool) -> float:
    mean = y.mean()
    constant = np.log(mean / (1 - mean)) if is_class else mean
    return float(_losses(np.full(len(y), constant), y, is_class).mean())


def _losses(scores: Array, y: Array, is_class: bool) -> Array:
    losses: Array = np.logaddexp(0, scores) - y * scores if is_class else (scores - y) ** 2
    return losses


def _predict(x: Any, y: Array, x_new: Any, strength: float, is_class: bool) -> Array:
    """Return the scores of rows by a model of other rows; 0 if these have one target only."""
    if not len(y) or y.min() == y.max():
        return np.zeros(x_new.shape[0])
    model = _estimator(strength, is_class).fit(x, y)
    scores: Array = x_new @ np.ravel(model.coef_) + model.intercept_
    return scores


def _estimator(strength: float, is_class: bool) -> Any:
    # scikit-learn takes long to import, and most tables do not need it.
    from sklearn.linear_model import LogisticRegression, Ridge

    if is_class:
        return LogisticRegression(C=strength, max_iter=1000, tol=1e-3)
    return Ridge(alpha=1 / strength, solver="sparse_cg", tol=1e-3)


def _short_numbers(numbers: Array) -> str:
    return json.dumps(list(map(_short, numbers)))


def _short(number: float) -> float:
    """Return a number with the digits that matter, so that checkpoints are smaller."""
    return float(f"{number:.6g}")
