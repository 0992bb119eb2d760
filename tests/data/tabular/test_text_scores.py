"""Scores of texts, against TfidfVectorizer and linear models of scikit-learn."""

import json
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import log_loss, roc_auc_score
from sklearn.model_selection import PredefinedSplit, cross_val_predict
from sklearn.pipeline import FeatureUnion, make_union
from test_readings import ready
from test_words import BAD, GOOD, reviews

from proj.data.tabular import text_scores
from proj.data.tabular.datamodule import Tabular
from proj.data.tabular.text_model import TextModel
from proj.data.tabular.text_scores import STRENGTHS, TextScore, fit_scores
from proj.data.tabular.words import Outcomes


def fitted(table: pl.DataFrame, groups: np.ndarray | None = None) -> list[TextScore]:
    y = (table["y"] == "yes").to_numpy().astype(np.uint32)
    outcomes = Outcomes(y, is_classes=True, names=("no", "yes"))
    return fit_scores(table, ["review"], outcomes, groups)


def model_of(score: TextScore) -> TextModel:
    return TextModel(*score.column.categories[1:])


def tfidf(words: int = 10_000, parts: int = 20_000) -> FeatureUnion:
    options = {"sublinear_tf": True, "min_df": 2}
    pattern = r"(?u)\b\w+\b"
    return make_union(
        TfidfVectorizer(ngram_range=(1, 2), token_pattern=pattern, max_features=words, **options),
        TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), max_features=parts, **options),
    )


def test_scores_are_those_of_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other terms, weights or strengths would predict worse, or differently in a bundle."""
    monkeypatch.setattr(text_scores, "MAX_WORDS", 150)
    monkeypatch.setattr(text_scores, "MAX_PARTS", 200)
    table, new = reviews(300), reviews(50, seed=1)
    x = tfidf(150, 200)
    vectors, texts, y = x.fit_transform(table["review"]), table["review"], table["y"] == "yes"
    (score,) = fitted(table)
    assert score.column.name == "review.score yes"
    folds = text_scores._folds(texts.to_numpy())
    assert np.bincount(folds).min() > 50
    by_strength = {}
    for strength in STRENGTHS:
        model = LogisticRegression(C=strength, max_iter=1000, tol=1e-3)
        split = PredefinedSplit(folds)
        values = cross_val_predict(model, vectors, y, cv=split, method="decision_function")
        by_strength[strength] = log_loss(y, 1 / (1 + np.exp(-values))), values
    best = min(by_strength, key=lambda strength: by_strength[strength][0])
    np.testing.assert_allclose(score.values, by_strength[best][1], atol=1e-6)
    model = LogisticRegression(C=best, max_iter=1000, tol=1e-3).fit(vectors, y)
    expected = model.decision_function(x.transform(new["review"]))
    scores = list(map(model_of(score).score, new["review"]))
    np.testing.assert_allclose(scores, expected, atol=1e-3)


def test_scores_of_numbers_are_those_of_ridge_regression() -> None:
    table, new = reviews(200), reviews(40, seed=1)
    y = table["review"].str.count_matches("|".join(GOOD)).to_numpy() * 10.0 + table["size"]
    outcomes = Outcomes(y.to_numpy()[:, None], is_classes=False, names=("price",))
    (score,) = fit_scores(table, ["review"], outcomes, None)
    assert score.column.name == "review.score price"
    scores = list(map(model_of(score).score, new["review"]))
    scaled = (y - y.mean()) / y.std(ddof=0)
    x = tfidf()
    vectors, vectors_new = x.fit_transform(table["review"]), x.transform(new["review"])
    references = [Ridge(alpha=1 / strength).fit(vectors, scaled) for strength in STRENGTHS]
    errors = [np.abs(scores - r.predict(vectors_new)).max() for r in references]
    assert min(errors) < 0.02


def test_training_scores_are_those_of_new_rows() -> None:
    """Scores of a model that saw the row would look better, and a net would trust them too much."""
    table, new = reviews(400), reviews(2_000, seed=1)
    (score,) = fitted(table)
    model = model_of(score)

    def area(rows: pl.DataFrame, scores: object) -> float:
        return float(roc_auc_score(rows["y"] == "yes", scores))

    in_sample = area(table, list(map(model.score, table["review"])))
    on_new = area(new, list(map(model.score, new["review"])))
    assert abs(area(table, score.values) - on_new) < 0.06
    assert in_sample > on_new + 0.1


def test_random_targets_have_no_score() -> None:
    """A score that knows nothing would only be noise."""
    table = reviews(300)
    y = np.random.default_rng(0).integers(0, 2, 300)
    assert fit_scores(table, ["review"], Outcomes(y, is_classes=True), None) == []


def test_rows_of_a_group_are_in_one_fold() -> None:
    """The label of a group in another fold would be known from words that only it has."""
    table = reviews(100)
    twice = pl.concat([table, table])
    folds = text_scores._folds(twice["review"].to_numpy())
    np.testing.assert_array_equal(folds[:100], folds[100:])
    draw = np.random.default_rng(0)
    group = np.repeat(np.arange(60), 5)
    labels = np.repeat(draw.integers(0, 2, 60), 5)
    names = ["".join(draw.choice(list("bcdfghklmnprstvwz"), 6)) for _ in range(60)]
    named = pl.DataFrame(
        {
            "review": [f"{names[g]} says word{i % 7} of it" for i, g in enumerate(group)],
            "y": np.where(labels, "yes", "no"),
        }
    )
    assert roc_auc_score(labels, fitted(named)[0].values) > 0.9
    assert all(roc_auc_score(labels, score.values) < 0.6 for score in fitted(named, group))


def test_classes_have_a_score_each(work: Path) -> None:
    table = reviews(240).with_columns(
        y=pl.when(pl.int_range(240) % 6 == 0).then(pl.lit("spam")).otherwise("y"),
        review=pl.when(pl.int_range(240) % 6 == 0).then(pl.lit("buy now ")).otherwise(pl.lit(""))
        + pl.col("review"),
    )
    table.write_csv("t.csv")
    schema = ready("t.csv").schema
    assert schema is not None
    names = [c.name for c in schema.columns if c.kind == "score"]
    assert sorted(names) == [f"review.score {label}" for label in ("no", "spam", "yes")]
    assert len({c.categories[1] for c in schema.columns if c.kind == "score"}) == 1


def test_a_known_schema_prepares_the_same_training_rows(work: Path) -> None:
    """A resumed run whose cache is gone would go on with scores that know the targets."""
    table = reviews(200).with_columns(shop=pl.int_range(200) % 50)
    table.write_csv("t.csv")
    data = ready("t.csv", group="shop", cache_dir="first")
    other = Tabular("t.csv", "y", group="shop", cache_dir="second")
    other.schema = data.schema
    other.prepare_data()
    other.setup("fit")
    for split in ("train", "val", "test"):
        first, second = data.splits[split].x, other.splits[split].x
        assert isinstance(first, dict)
        assert isinstance(second, dict)
        assert first["numeric"].equal(second["numeric"]) or bool(
            first["numeric"].nan_to_num(9).equal(second["numeric"].nan_to_num(9))
        )
    assert data.schema is not None
    assert any(c.kind == "score" for c in data.schema.columns)
    shutil.rmtree("second")


def test_texts_without_known_terms_have_the_score_of_an_empty_one() -> None:
    (score,) = fitted(reviews(300))
    model = model_of(score)
    assert model.score("") == model.score("\u3000 ") == model.bias
    assert model.score(GOOD[0]) > model.bias > model.score(BAD[0])
    assert model.score(f"{GOOD[0].upper()}") == model.score(GOOD[0])
    assert len(json.loads(score.column.categories[2])) == len(model.words) + len(model.parts) + 1
