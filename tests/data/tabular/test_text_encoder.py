"""Scores of texts by an encoder, against linear models of scikit-learn on its vectors."""

import json
import re
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import log_loss, mean_squared_error
from sklearn.model_selection import PredefinedSplit, cross_val_predict
from sklearn.preprocessing import StandardScaler
from test_readings import ready
from test_words import GOOD, reviews
from torch import nn

from proj.data.tabular import text_scores
from proj.data.tabular.datamodule import Tabular
from proj.data.tabular.text_encoder import Model2Vec, TextEncoder, embed, fill_scores
from proj.data.tabular.text_scores import ENCODER_STRENGTHS, TextScore, fit_scores
from proj.data.tabular.words import Outcomes
from proj.errors import UserError
from proj.schema import Column

CLASSES = ("no", "yes")


class Counts(TextEncoder):
    """Counts of some words, and of one that no text has: that number has no deviation."""

    def __init__(self, words: int = 40, scale: float = 1.0) -> None:
        self.words, self.scale = words, scale
        self.calls = 0

    def encode(self, texts: list[str]) -> np.ndarray:
        self.calls += 1
        known = [*GOOD, "awful", "broken", *(f"topic{c}" for c in "abcdefghijklmnopqrstuvwxyz")]
        lists = [re.findall(r"\w+", text.lower()) for text in texts]
        known = [*known, "absent"][: self.words]
        return np.array([[words.count(k) * self.scale for k in known] for words in lists])


class File(Counts):
    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path


def by_encoder(
    table: pl.DataFrame, outcomes: Outcomes, encoder: TextEncoder, groups: Any = None
) -> list[TextScore]:
    scores = fit_scores(table, ["review"], outcomes, groups, encoder)
    return [score for score in scores if " by " in score.column.name]


def classes(table: pl.DataFrame) -> Outcomes:
    return Outcomes((table["y"] == "yes").to_numpy().astype(np.uint32), True, CLASSES)


def new_scores(score: TextScore, table: pl.DataFrame, encoder: TextEncoder) -> np.ndarray:
    frame = table.select(pl.col("review").alias("0"))
    return fill_scores(frame, [score.column], encoder)["0"].to_numpy()


def test_scores_of_classes_are_those_of_logistic_regression() -> None:
    """Another strength, scale or fold would predict worse, or differently for new rows."""
    table, new, encoder = reviews(300), reviews(50, seed=1), Counts()
    (score,) = by_encoder(table, classes(table), encoder)
    assert score.column.name == "review.score yes by Counts"
    scaler = StandardScaler()
    x, y = scaler.fit_transform(encoder.encode(table["review"].to_list())), table["y"] == "yes"
    split = PredefinedSplit(text_scores._folds(table["review"].to_numpy()))
    by_strength = {}
    for strength in ENCODER_STRENGTHS:
        model = LogisticRegression(C=strength, max_iter=1000, tol=1e-3)
        values = cross_val_predict(model, x, y, cv=split, method="decision_function")
        by_strength[strength] = log_loss(y, 1 / (1 + np.exp(-values))), values
    best = min(by_strength, key=lambda strength: by_strength[strength][0])
    assert best not in (ENCODER_STRENGTHS[0], ENCODER_STRENGTHS[-1])
    np.testing.assert_allclose(score.values, by_strength[best][1], atol=1e-6)
    model = LogisticRegression(C=best, max_iter=1000, tol=1e-3).fit(x, y)
    expected = model.decision_function(scaler.transform(encoder.encode(new["review"].to_list())))
    np.testing.assert_allclose(new_scores(score, new, encoder), expected, atol=1e-5)


def test_scores_of_numbers_are_those_of_ridge_regression() -> None:
    table, new, encoder = reviews(250), reviews(40, seed=1), Counts(scale=7.0)
    y = table["review"].str.count_matches("|".join(GOOD)).to_numpy() * 10.0
    y += np.random.default_rng(0).normal(size=250) * 5
    outcomes = Outcomes(y[:, None], is_classes=False, names=("price",))
    (score,) = by_encoder(table, outcomes, encoder)
    assert score.column.name == "review.score price by Counts"
    scaler, scaled = StandardScaler(), (y - y.mean()) / y.std()
    x = scaler.fit_transform(encoder.encode(table["review"].to_list()))
    split = PredefinedSplit(text_scores._folds(table["review"].to_numpy()))
    errors = {
        strength: mean_squared_error(
            scaled, cross_val_predict(Ridge(alpha=1 / strength), x, scaled, cv=split)
        )
        for strength in ENCODER_STRENGTHS
    }
    best = min(errors, key=lambda strength: errors[strength])
    np.testing.assert_allclose(mean_squared_error(scaled, score.values), errors[best], rtol=1e-3)
    model = Ridge(alpha=1 / best).fit(x, scaled)
    expected = model.predict(scaler.transform(encoder.encode(new["review"].to_list())))
    np.testing.assert_allclose(new_scores(score, new, encoder), expected, atol=0.01)


def test_an_encoder_is_called_once_for_all_classes() -> None:
    """Ten classes would take ten times as long."""
    table = reviews(240).with_columns(
        y=pl.when(pl.int_range(240) % 6 == 0).then(pl.lit("spam")).otherwise("y"),
        review=pl.when(pl.int_range(240) % 6 == 0)
        .then(pl.lit("lovely lovely "))
        .otherwise(pl.lit(""))
        + pl.col("review"),
    )
    labels, codes = np.unique(table["y"].to_numpy(), return_inverse=True)
    outcomes, encoder = Outcomes(codes.astype(np.uint32), True, tuple(labels)), Counts()
    scores = by_encoder(table, outcomes, encoder)
    assert len(scores) == 3
    assert encoder.calls == 1
    columns = [score.column for score in scores]
    frame = table.select(pl.col("review").alias(str(i)) for i in range(3))
    filled = fill_scores(frame, columns, encoder)
    assert encoder.calls == 2
    for i, score in enumerate(scores):
        np.testing.assert_array_equal(filled[str(i)], new_scores(score, table, encoder))
    assert fill_scores(frame.head(0), columns, encoder).shape == (0, 3)


def test_random_targets_have_no_score() -> None:
    table = reviews(300)
    outcomes = Outcomes(np.random.default_rng(0).integers(0, 2, 300), is_classes=True)
    assert by_encoder(table, outcomes, Counts()) == []


def test_training_rows_have_scores_of_models_without_them(work: Path) -> None:
    """A net would trust scores that know the targets too much."""
    table = reviews(200)
    table.write_csv("t.csv")
    data = ready("t.csv", text_encoder=Counts())
    place, column = score_of(data)
    inputs = {name: x(data, name)[:, place] for name in ("train", "test")}
    rows = {name: table[data.splits[name].row.numpy()] for name in ("train", "test")}
    (score,) = by_encoder(rows["train"], classes(rows["train"]), Counts())
    assert column == score.column
    np.testing.assert_array_equal(inputs["train"], score.values.astype(np.float32))
    np.testing.assert_array_equal(inputs["test"], new_scores(score, rows["test"], Counts()))
    assert np.abs(inputs["train"] - new_scores(score, rows["train"], Counts())).max() > 0.01


def score_of(data: Tabular) -> tuple[int, Column]:
    assert data.schema is not None
    ((place, column),) = ((i, c) for i, c in enumerate(data.schema.numeric) if " by " in c.name)
    return place, column


def x(data: Tabular, split: str) -> np.ndarray:
    inputs = data.splits[split].x
    assert isinstance(inputs, dict)
    return np.asarray(inputs["numeric"])


def test_a_known_schema_prepares_the_same_rows(work: Path) -> None:
    """A resumed run whose cache is gone would go on with other inputs."""
    reviews(200).write_csv("t.csv")
    data = ready("t.csv", text_encoder=Counts(), cache_dir="first")
    other = Tabular("t.csv", "y", text_encoder=Counts(), cache_dir="second")
    other.schema = data.schema
    other.prepare_data()
    other.setup("fit")
    for split in ("train", "val", "test"):
        np.testing.assert_array_equal(x(data, split), x(other, split))


def test_rows_of_another_table_have_scores_of_the_known_model(work: Path) -> None:
    """A run that starts from another one would get scores of models that its net never saw."""
    reviews(200).write_csv("t.csv")
    reviews(200, seed=3).write_csv("other.csv")
    data = ready("t.csv", text_encoder=Counts())
    other = Tabular("other.csv", "y", text_encoder=Counts())
    other.schema = data.schema
    other.prepare_data()
    other.setup("fit")
    place, column = score_of(data)
    rows = reviews(200, seed=3)[other.splits["train"].row.numpy()]
    expected = new_scores(TextScore(column, np.array([]), np.array([])), rows, Counts())
    np.testing.assert_array_equal(x(other, "train")[:, place], expected)


def test_new_rows_are_encoded_as_prepared_ones(work: Path) -> None:
    table = reviews(200).with_columns(
        review=pl.when(pl.int_range(200) % 9 > 0).then("review")  # missing texts
    )
    table.write_csv("t.csv")
    data = ready("t.csv", text_encoder=Counts())
    assert data.schema is not None
    rows = table[data.splits["test"].row.numpy()]
    encoded = Tabular.encode(rows, data.schema, Counts())["numeric"]
    np.testing.assert_array_equal(encoded, x(data, "test"))
    assert Tabular.encode([], data.schema, Counts())["numeric"].shape == (0, encoded.shape[1])
    with pytest.raises(UserError, match=r"expected the encoder that review\.score.*got none"):
        Tabular.encode(rows, data.schema)
    with pytest.raises(UserError, match="got Counts with other files or options"):
        Tabular.encode(rows, data.schema, Counts(words=9))


def test_another_encoder_prepares_other_rows(work: Path) -> None:
    """Rows of the encoder before would be used without a word."""
    reviews(200).write_csv("t.csv")
    Path("weights.bin").write_bytes(b"1")
    first = ready("t.csv", text_encoder=File("weights.bin"))
    unchanged = File("weights.bin")
    ready("t.csv", text_encoder=unchanged)
    assert unchanged.calls == 0
    Path("weights.bin").write_bytes(b"2")
    changed = File("weights.bin")
    second = ready("t.csv", text_encoder=changed)
    assert changed.calls > 0
    assert score_of(first)[1].categories[1] != score_of(second)[1].categories[1]
    assert first.schema is not None
    with pytest.raises(UserError, match="got File with other files or options"):
        Tabular.encode(reviews(3), first.schema, changed)


def test_the_cache_of_rows_without_an_encoder_is_as_before() -> None:
    """Each table would be prepared again after an update."""
    plan = Tabular("t.csv", "y").plan
    assert "text_encoder" not in plan.to_dict()
    with_encoder = Tabular("t.csv", "y", text_encoder=Counts()).plan.to_dict()
    assert {n: v for n, v in with_encoder.items() if n != "text_encoder"} == plan.to_dict()


def test_a_changed_class_prepares_rows_again(work: Path) -> None:
    """A correction of `encode` would have no effect."""
    keys = []
    for factor in (1, 2):
        source = (
            "from proj.data.tabular.text_encoder import TextEncoder\n"
            "class Lengths(TextEncoder):\n"
            f"    def encode(self, texts): return [[len(text) * {factor}] for text in texts]\n"
        )
        Path("lengths.py").write_text(source)
        sys.modules.pop("lengths", None)
        module = types.ModuleType("lengths")
        module.__file__ = str(Path("lengths.py").resolve())
        sys.modules["lengths"] = module
        exec(source, vars(module))
        keys.append(module.Lengths().cache_key)
    assert keys[0][0] == keys[1][0]
    assert keys[0][1] != keys[1][1]


def test_identity_is_of_class_arguments_and_files(work: Path) -> None:
    """A run would go on with other vectors, or refuse a folder that was moved."""
    assert Counts().identity == Counts(40, scale=1.0).identity
    assert len({Counts().identity, Counts(words=3).identity, Counts(scale=2.0).identity}) == 3
    for name in ("first", "moved"):
        Path(name, "part").mkdir(parents=True)
        Path(name, "a.bin").write_bytes(b"weights")
        Path(name, "part", "a.bin").write_bytes(b"more")
        Path(name, ".hidden").write_text(name)
    assert File("first").identity == File("moved").identity
    Path("moved", "part", "a.bin").write_bytes(b"less")
    assert File("first").identity != File("moved").identity
    with pytest.raises(UserError, match="got absent, which is not there or empty"):
        _ = File("absent").identity


def test_identity_needs_plain_arguments() -> None:
    """An object would have another identity in each process."""

    class Lost(Counts):
        def __init__(self, size: int) -> None:
            super().__init__()

    class Net(Counts):
        def __init__(self, net: nn.Module) -> None:
            super().__init__()
            self.net = net

    with pytest.raises(UserError, match=r"set self\.size in Lost\.__init__"):
        _ = Lost(3).identity
    with pytest.raises(UserError, match="expected texts, numbers, lists and dicts"):
        _ = Net(nn.Linear(1, 1)).identity


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        ([[1.0, 2.0]], r"expected numbers of shape \(2, dimensions\).*float64 of shape \(1, 2\)"),
        ([1.0, 2.0], r"of shape \(2,\)"),
        ([["a"], ["b"]], "got <U1"),
        ([[1.0], [float("nan")]], "others for the text 'second'"),
    ],
)
def test_other_vectors_are_refused(vectors: Any, message: str) -> None:
    class Other(TextEncoder):
        def encode(self, texts: list[str]) -> Any:
            return vectors

    with pytest.raises(UserError, match=message):
        embed(Other(), ["first", "second"])


def test_a_table_without_text_has_a_finding(work: Path) -> None:
    """The user would believe that the encoder is used."""
    rows = range(100)
    pl.DataFrame({"a": rows, "b": [i * 7 % 11 for i in rows], "y": ["s", "t"] * 50}).write_csv(
        "t.csv"
    )
    findings = [str(finding) for finding in ready("t.csv", text_encoder=Counts()).findings]
    assert any("data.text_encoder is not used" in finding for finding in findings)
    assert not any("text_encoder" in str(f) for f in ready("t.csv").findings)


def test_a_stated_text_without_frequent_words_has_a_score(work: Path) -> None:
    """Codes whose letters tell the target have no words in common."""

    class Letters(TextEncoder):
        def encode(self, texts: list[str]) -> Any:
            return [[text.count(letter) for letter in "abcdef"] for text in texts]

    draw = np.random.default_rng(0)
    labels = ["yes" if i % 2 else "no" for i in range(150)]
    letters = {"yes": list("abcd"), "no": list("cdef")}
    texts = ["".join(draw.choice(letters[y], draw.integers(20, 30))) for y in labels]
    spaced = [f"{text[:9]} {text[9:]}" if i % 3 else text for i, text in enumerate(texts)]
    pl.DataFrame({"code": spaced, "size": range(150), "y": labels}).write_csv("t.csv")
    data = ready("t.csv", columns={"code": "text"}, text_encoder=Letters())
    assert score_of(data)[1].name == "code.score yes by Letters"
    with pytest.raises(UserError, match="expected text with a word that is in 5"):
        ready("t.csv", columns={"code": "text"})
    # Of equally long codes the length is no input. The scores may be the only ones.
    pl.DataFrame({"code": [text[:20] for text in texts], "y": labels}).write_csv("same.csv")
    data = ready("same.csv", columns={"code": "text"}, text_encoder=Letters())
    assert data.schema is not None
    names = ["code.score yes", "code.score yes by Letters"]
    assert [column.name for column in data.schema.columns] == names
    # Each text is in a row of either class.
    noise = {"code": [text[:20] for text in texts] * 2, "size": draw.random(300)}
    noise["y"] = ["yes"] * 150 + ["no"] * 150
    pl.DataFrame(noise).write_csv("noise.csv")
    findings = ready("noise.csv", columns={"code": "text"}, text_encoder=Letters()).findings
    assert any("code" in str(f) and "no score predicts" in str(f) for f in findings)


# model2vec


@pytest.fixture
def static_model(work: Path) -> tuple[Path, dict[str, np.ndarray]]:
    """Write a static model; return its folder and its vectors by word."""
    model2vec = pytest.importorskip(
        "model2vec", reason="model2vec is not installed; it is in the extra text"
    )
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    words = ["[UNK]", *GOOD, "awful", "broken", *(f"topic{c}" for c in "abcdefghijklmnopqrst")]
    tokenizer = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]")
    )
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    vectors = np.random.default_rng(0).normal(size=(len(words), 16)).astype(np.float32)
    model2vec.StaticModel(vectors, tokenizer).save_pretrained("static")
    return Path("static"), dict(zip(words, vectors, strict=True))


def test_model2vec_gives_the_mean_of_known_words(static_model: Any) -> None:
    folder, known = static_model
    texts = ["Lovely topica!", "broken", "nothing known", ""]
    means = [known["lovely"] + known["topica"], 2 * known["broken"], 0 * known["broken"]]
    expected = np.array([*means, means[-1]]) / 2
    np.testing.assert_allclose(embed(Model2Vec(str(folder)), texts), expected, atol=1e-6)


def test_model2vec_gives_a_score(static_model: Any) -> None:
    folder, known = static_model
    table, encoder = reviews(300), Model2Vec(str(folder))
    scores = by_encoder(table, classes(table), encoder)
    assert [score.column.name for score in scores] == ["review.score yes by Model2Vec"]
    weights = np.array(json.loads(scores[0].column.categories[2]))
    new = reviews(20, seed=1)
    lists = [re.findall(r"\w+", text.lower()) for text in new["review"]]
    means = [np.mean([known[w] for w in words if w in known], axis=0) for words in lists]
    expected = np.array(means) @ weights[:-1] + weights[-1]
    np.testing.assert_allclose(new_scores(scores[0], new, encoder), expected, atol=1e-4)


def test_identity_of_a_static_model_is_that_of_its_weights(static_model: Any) -> None:
    folder, _ = static_model
    before = Model2Vec(str(folder)).identity
    (folder / "README.md").write_text("a model card\n", encoding="utf-8")
    assert Model2Vec(str(folder)).identity == before
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (folder / "model.safetensors").write_bytes(weights)
    assert Model2Vec(str(folder)).identity != before


def test_a_damaged_static_model_is_one_message(static_model: Any) -> None:
    folder, _ = static_model
    (folder / "model.safetensors").write_bytes(b"\xff" * 20)
    with pytest.raises(UserError, match=r"expected the folder of a model of model2vec.*got static"):
        embed(Model2Vec(str(folder)), ["text"])


def test_a_missing_package_is_one_message(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "model2vec", None)
    Path("folder").mkdir()
    with pytest.raises(UserError, match=r"needs the package model2vec.*pip install '\.\[text\]'"):
        embed(Model2Vec("folder"), ["text"])


def test_a_missing_model_is_one_message(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub would be asked for a name that somebody else's config holds."""
    monkeypatch.setenv("HF_HUB_CACHE", str(work / "hub"))
    connections: list[Any] = []
    monkeypatch.setattr("socket.socket.connect", lambda *place: connections.append(place))
    for name in ("nobody/no-such-model", "../absent"):
        with pytest.raises(UserError, match="expected a folder, or a model that `hf download`"):
            _ = Model2Vec(name).identity
    assert connections == []
    Path("empty").mkdir()
    with pytest.raises(UserError, match="got empty, which is not there or empty"):
        _ = Model2Vec("empty").identity
