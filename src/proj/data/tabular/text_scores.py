"""Fit the scores of text columns: TF-IDF with a linear model, cross-fitted on the training rows."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import polars as pl

from proj.data.tabular.columns import quantiles
from proj.data.tabular.files import nameless
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


def fit_scores(
    sample: pl.DataFrame, sources: Sequence[str], outcomes: Outcomes, groups: Array | None
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
        rows = np.arange(len(texts))[:: _stride(texts, len(labels))]
        texts = texts.gather(rows)
        folds = _folds(texts.to_numpy() if groups is None else groups[rows])
        terms, x = _vectorize(texts, len(labels))
        if x is None:
            continue
        for label, y in zip(labels, targets[rows].T, strict=True):
            if fitted := _fit(x, y, folds):
                values, weights = fitted
                edges, shares = quantiles(values.astype(np.float32).astype(np.float64))
                ranges = tuple(edges.tolist()), tuple(shares.tolist())
                model = (label, terms, weights)
                column = Column(name, "text", "score", False, *ranges, model)
                scores.append(TextScore(column, rows, values))
    return scores


def add_columns(columns: tuple[Column, ...], scores: list[TextScore]) -> tuple[Column, ...]:
    """Return the columns with the scores of a text before its words."""
    added: list[Column] = []
    for column in columns:
        if column.source not in {c.source for c in added}:
            added += [s.column for s in scores if s.column.source == column.source]
        added.append(column)
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


def _vectorize(texts: pl.Series, scores: int) -> tuple[str, Any]:
    """Return the terms, as TextModel reads them, and the sparse vectors of the texts.

    The vectors are None if no term is in two texts.
    """
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
    return json.dumps(terms, ensure_ascii=False), hstack(vectors).tocsr() if vectors else None


def _fit(x: Any, y: Array, folds: Array) -> tuple[Array, str] | None:
    """Return the cross-fitted scores [rows], and the weights of a model of all rows.

    The strength of the regularization is that with the lowest loss of the cross-fitted scores.
    Returns None if a constant is as good.
    """
    is_class = set(np.unique(y).tolist()) == {0.0, 1.0}
    if not is_class and y.std() > 0:
        y = (y - y.mean()) / y.std()
    best_loss, best = _constant_loss(y, is_class), None
    for strength in STRENGTHS:
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
    weights = [*np.ravel(model.coef_), float(np.ravel(model.intercept_)[0])]
    return scores, json.dumps(list(map(_short, weights)))


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


def _short(number: float) -> float:
    """Return a number with the digits that matter, so that checkpoints are smaller."""
    return float(f"{number:.6g}")
