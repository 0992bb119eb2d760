"""Texts in tables: the most informative words are inputs, and their choice uses no test rows."""

import random
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from scipy.stats import chi2_contingency, pearsonr
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from test_readings import columns, ready

from proj.data.tabular import words
from proj.data.tabular.datamodule import Tabular
from proj.data.tabular.words import Outcomes, choose_words, is_free_text
from proj.engine.training.data_checks import check_data
from proj.errors import UserError
from proj.nets.layers import FittedLinear, TableInputs

GOOD = ["lovely", "superb", "charming", "reliable", "friendly"]
BAD = ["awful", "broken", "dirty", "stale", "rude"]
OTHERS = [f"topic{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"]


def reviews(rows: int, seed: int = 0) -> pl.DataFrame:
    """Return reviews whose label follows words of praise and blame, with exceptions."""
    draw = random.Random(seed)
    texts, labels = [], []
    for _ in range(rows):
        label = draw.random() < 0.5
        is_typical = draw.random() < 0.85
        signal = draw.choice(GOOD if label == is_typical else BAD)
        others = [draw.choice(OTHERS) for _ in range(draw.randint(4, 12))]
        others.insert(draw.randrange(len(others) + 1), signal)
        texts.append(" ".join(others).capitalize() + draw.choice(".!"))
        labels.append("yes" if label else "no")
    return pl.DataFrame({"review": texts, "size": [draw.random() for _ in texts], "y": labels})


def text_inputs(data: Tabular) -> list[str]:
    return [c.categories[0] for c in columns(data).values() if c.kind == "word"]


def test_words_are_chosen_by_chi2_of_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another order would give the net less informative words."""
    table = reviews(300)
    y = (table["y"] == "yes").to_numpy()
    chosen = choose_words(table["review"], Outcomes(y.astype(np.uint32), is_classes=True))
    counter = CountVectorizer(ngram_range=(1, 2), min_df=5, binary=True)
    present = counter.fit_transform(table["review"].to_list()).toarray().astype(bool)
    expected = {}
    for term, has_term in zip(counter.get_feature_names_out(), present.T, strict=True):
        counts = [[np.sum((has_term == a) & (y == b)) for b in (0, 1)] for a in (0, 1)]
        expected[term] = chi2_contingency(counts, correction=False).statistic
    assert {*GOOD, *BAD} <= set(chosen)
    found = [expected[term] for term in chosen]
    assert found == sorted(expected.values(), reverse=True)[: len(found)]
    assert len(chosen) == min(300 // 4, sum(value >= 1 for value in expected.values()))
    shares = dict(zip(counter.get_feature_names_out(), present.mean(axis=0), strict=True))
    assert all(share == pytest.approx(shares[term]) for term, share in chosen.items())
    monkeypatch.setattr(words, "CHOICE_ROWS", 150)
    assert choose_words(table["review"], Outcomes(y, is_classes=True)) == choose_words(
        table["review"][::2], Outcomes(y[::2], is_classes=True)
    )


def test_several_targets_choose_words_in_turns() -> None:
    """A target that is hard to predict gets words, too. The reference is Pearson's correlation."""
    draw = np.random.default_rng(0)
    present = draw.random((200, 6)) < 0.5
    names = np.array(["aa", "bb", "cc", "dd", "ee", "ff"])
    texts = [" ".join(names[row]) for row in present]
    y = np.column_stack([3.0 * present[:, 0], present[:, 2] + draw.normal(size=200)])
    chosen = list(choose_words(pl.Series(texts), Outcomes(y, is_classes=False)))
    has_term = {term: [f" {term} " in f" {text} " for text in texts] for term in chosen}
    correlations = np.array([[abs(pearsonr(x, t)[0]) for t in y.T] for x in has_term.values()])
    assert chosen[0] == "aa"
    assert correlations.argmax(axis=0).tolist() == [0, 1]
    assert correlations[0, 1] < correlations[1, 1] < correlations[0, 0]


@pytest.mark.parametrize(
    ("make", "is_text"),
    [
        (lambda i: f"The {OTHERS[i % 26]} was number {i}, and it broke.", True),
        (lambda i: f"これは{i}番の良い本です", True),
        (lambda i: f"Braund, Mr. Owen {OTHERS[i % 26]} {i}", True),
        (lambda i: f"user{i}", False),
        (lambda i: f"user.{i}@example.org", False),
        (lambda i: f"https://example.org/the/page/of/{i}", False),
        (lambda i: f"/data/my photos/img {i}.jpg", False),
        (lambda i: f"0b5c-{i}-11ec-9621", False),
        (lambda i: f"AB {i} - 0034 - X", False),
        (lambda i: f"Ana Diaz{i}", False),
        (lambda i: f"the value of row {i % 20}", False),
    ],
)
def test_free_text_is_several_words(make: object, is_text: bool) -> None:
    """Identifiers, addresses and names have no words that other rows have."""
    assert callable(make)
    assert is_free_text(pl.Series([make(i) for i in range(100)])) == is_text


def test_words_of_other_splits_are_not_chosen(work: Path) -> None:
    """A word that tells the target of the test rows would make the result look better."""
    table = reviews(200)
    marked = pl.when(pl.col("y") == "yes").then(pl.lit("zebra ")).otherwise(pl.lit("yak "))
    split = pl.Series("part", ["train"] * 120 + ["val"] * 40 + ["test"] * 40)
    table = table.with_columns(split).with_columns(
        review=pl.when(pl.col("part") == "train").then(pl.lit("")).otherwise(marked)
        + pl.col("review")
    )
    table.write_csv("t.csv")
    data = ready("t.csv", split="part")
    chosen = text_inputs(data)
    assert set(GOOD) <= set(chosen)
    assert not {"zebra", "yak"} & {part for term in chosen for part in term.split()}


def test_texts_predict_the_target_as_tfidf_does(work: Path) -> None:
    """Without the text the size is left, which says nothing."""
    table = reviews(500)
    table.write_csv("t.csv")

    def auroc(**options: object) -> float:
        data = ready("t.csv", **options)
        assert data.schema is not None
        x, y = data.splits["test"].x, data.splits["test"].y
        assert isinstance(x, dict)
        assert y is not None
        table = TableInputs(data.schema)
        _, categories = table(x)
        with torch.no_grad():
            outputs = FittedLinear(data.schema, table.cardinalities)(x["numeric"], categories)
        return float(roc_auc_score(y, outputs))

    data = ready("t.csv")
    (finding,) = data.findings
    assert finding.column == "review"
    assert finding.what.startswith(f"column review is text: the {len(text_inputs(data))} most")
    train, test = (table[data.splits[name].row.tolist()] for name in ("train", "test"))
    vectorizer = TfidfVectorizer()
    logistic = LogisticRegression().fit(vectorizer.fit_transform(train["review"]), train["y"])
    decisions = logistic.decision_function(vectorizer.transform(test["review"]))
    reference = roc_auc_score(test["y"] == "yes", decisions)
    assert auroc(columns={"review": "drop"}) < 0.65
    assert auroc(columns={"review": "text"}) > max(0.75, reference - 0.03)


def test_data_columns_states_texts(work: Path) -> None:
    """A kind that the values do not have is an error; a stated one has no finding."""
    table = reviews(100).with_columns(code=pl.Series([f"k{i}" for i in range(100)]))
    table.write_parquet("t.parquet")
    data = ready("t.parquet", columns={"review": "text", "code": "drop"})
    assert text_inputs(data)
    assert data.findings == []
    assert data.experiment_template("t.parquet")[1]["embedding"] == 4
    with pytest.raises(UserError, match=r"data\.columns: size: expected text, got Float64"):
        ready("t.parquet", columns={"size": "text"})
    with pytest.raises(UserError, match=r"data\.columns: code: expected text with a word"):
        ready("t.parquet", columns={"code": "text"})


def test_missing_texts_have_no_words(work: Path) -> None:
    """A missing text sets the flag of its length, and prepared rows equal those of `encode`."""
    table = reviews(200)
    row = pl.int_range(pl.len())
    text = (
        pl.when(row % 9 == 0).then(None).when(row % 9 == 1).then(pl.lit("?!")).otherwise("review")
    )
    table = table.with_columns(review=text)
    table.write_parquet("t.parquet")
    data = ready("t.parquet")
    assert data.schema is not None
    assert [c.name for c in data.schema.columns if c.missing] == ["review.length"]
    prepared = data.splits["train"]
    assert isinstance(prepared.x, dict)
    numbers = prepared.x["numeric"].numpy()
    encoded = Tabular.encode(table[prepared.row.tolist()], data.schema)["numeric"].numpy()
    names = [c.name for c in data.schema.numeric]
    # The scores of training rows are cross-fitted (test_text_scores.py).
    fixed = [i for i, name in enumerate(names) if not name.startswith("review.score ")]
    assert len(fixed) == len(names) - 1
    np.testing.assert_array_equal(numbers[:, fixed], encoded[:, fixed])
    test = data.splits["test"]
    assert isinstance(test.x, dict)
    encoded = Tabular.encode(table[test.row.tolist()], data.schema)["numeric"].numpy()
    np.testing.assert_array_equal(test.x["numeric"].numpy(), encoded)
    is_missing = prepared.row.numpy() % 9 < 2
    lengths = numbers[:, names.index("review.length")]
    np.testing.assert_array_equal(np.isnan(lengths), is_missing)
    others = [i for i, c in enumerate(data.schema.numeric) if c.kind == "word"]
    assert not numbers[is_missing][:, others].any()
    assert numbers[:, others].any(axis=0).all()


@pytest.mark.parametrize("test_file", ["test.csv", "test.parquet"])
def test_copies_have_the_same_words(work: Path, test_file: str) -> None:
    """Different reviews are no copies in any file; one with other capitals and signs is."""
    table = reviews(120).with_columns(size=pl.lit(1.0))
    unknown = pl.format("{} unseen{} here", pl.col("review"), pl.int_range(pl.len()))
    other = table.with_columns(review=unknown)
    table.write_csv("t.csv")

    def copies(rows: pl.DataFrame) -> list[str]:
        rows.write_csv(test_file) if "csv" in test_file else rows.write_parquet(test_file)
        data = ready("t.csv", test_path=test_file, val_fraction=0.0)
        return [finding.what for finding in check_data(data) if "cop" in finding.what]

    assert copies(other) == []
    shouted = table[:7].with_columns(review=pl.col("review").str.to_uppercase() + "!!")
    assert copies(pl.concat([other, shouted])) == [
        "7 of 127 test rows are copies of train rows with the same words in texts"
    ]
