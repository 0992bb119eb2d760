"""The positive class of two: its rule, the option that states it, and runs of other versions."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
import yaml
from PIL import Image
from sklearn.metrics import f1_score

import proj
from conftest import Cli
from proj.data.arrays import ArrayDataModule
from proj.data.base import DataModule
from proj.data.images.datamodule import Images
from proj.data.tabular.datamodule import Tabular
from proj.data.tabular.positive import choose_positive
from proj.data.tabular.targets import Targets
from proj.engine.callbacks.best_checkpoint import InitialWeights
from proj.engine.training.initial_weights import check_classes
from proj.errors import UserError

LABELS = ["good"] * 45 + ["bad"] * 15


def chosen(y: Any, stated: Any = None) -> Any:
    return choose_positive(Targets.from_array(np.asarray(y), None, (), "y"), stated)


@pytest.mark.parametrize(
    ("labels", "positive"),
    [
        (["no", "no", "yes", "yes", "yes"], "yes"),
        (["Y", "Y", "N"], "Y"),
        ([True, True, False], True),
        ([0, 1, 1], 1),
        ([-1, 1, 1], 1),
        ([0.0, 1.0, 1.0], 1.0),
        (["Negative", "Positive", "Positive"], "Positive"),
        (["+", "+", "-"], "+"),
        (["true", "0", "true"], "true"),
        (["good", "good", "bad"], "bad"),
        (["bad", "bad", "good"], "good"),
        (["b", "a", "a", "b"], "b"),
        ([1, 2, 2], 1),
        (["yes", "yes", "maybe"], "maybe"),
        (["a", "b", "c"], None),
        ([0.5, 1.5, 2.5], None),
    ],
)
def test_the_rule(labels: list[Any], positive: Any) -> None:
    """F1 would be of a class that nobody expects: yes before no, else the rarer, else the later."""
    assert chosen(labels) == positive


@pytest.mark.parametrize(
    ("labels", "stated", "positive"),
    [
        (["no", "yes"], True, "yes"),  # YAML reads yes without quotes as true.
        (["no", "yes"], False, "no"),
        ([True, False], "false", False),
        ([0.0, 1.0], "1", 1.0),
        ([0, 1], 0, 0),
        (["Bad", "bad"], "bad", "bad"),
        (["low ", "high"], "LOW", "low "),
    ],
)
def test_the_stated_class(labels: list[Any], stated: Any, positive: Any) -> None:
    """A flag gives text, and YAML a value of its own."""
    assert chosen(labels, stated) == positive


@pytest.mark.parametrize(
    ("labels", "stated", "message"),
    [
        (LABELS, "ok", r"got 'ok' for the task binary: 'bad', 'good'; correct it"),
        (["a", "b", "c"], "b", r"got 'b' for the task multiclass: 'a', 'b', 'c'; correct it"),
        ([0.5, 1.5, 2.5], 0.5, r"got 0.5 for the task regression; correct it"),
        (["Bad", "bad"], "BAD", r"got 'BAD' for the task binary: 'Bad', 'bad'"),
    ],
)
def test_a_class_that_is_none_of_two(labels: list[Any], stated: Any, message: str) -> None:
    with pytest.raises(UserError, match=f"data.positive: expected one of two classes, {message}"):
        chosen(labels, stated)


def make(kind: str, **options: Any) -> DataModule:
    """Return a data module of 45 good and 15 bad rows."""
    if kind == "arrays":
        np.savez("d.npz", x=np.random.default_rng(0).normal(size=(60, 3)), y=np.asarray(LABELS))
        data: DataModule = ArrayDataModule("d.npz", **options)
    elif kind == "table":
        x = np.random.default_rng(0).normal(size=60)
        pl.DataFrame({"x": x, "y": LABELS}).write_csv("d.csv")
        data = Tabular("d.csv", "y", **options)
    else:
        for i, label in enumerate(LABELS):
            Path("d", label).mkdir(parents=True, exist_ok=True)
            Image.new("L", (4, 4), 3 * i).save(f"d/{label}/{i}.png")
        data = Images("d", **options)
    data.prepare_data()
    data.setup("fit")
    return data


@pytest.mark.parametrize("kind", ["arrays", "table", "images"])
def test_every_source_has_the_positive_class_last(kind: str) -> None:
    """The class numbers of the rows follow the schema, whatever its order is."""
    for options, classes in (({}, ("good", "bad")), ({"positive": "GOOD"}, ("bad", "good"))):
        data = make(kind, **options)
        assert data.schema is not None
        assert data.schema.classes == classes
        for split in data.splits.values():
            assert split.y is not None
            if kind == "images":
                assert isinstance(data, Images)
                got = [data.files["train"][row].split("/")[0] for row in split.row.tolist()]
            else:
                got = [LABELS[row] for row in split.row.tolist()]
            assert [classes[number] for number in split.y.tolist()] == got
        counts = torch.bincount(data.splits["train"].y, minlength=2)
        assert data.schema.class_counts == tuple(counts.tolist())
        # The schema of a run decides, and another wish is an error.
        other = type(data)(*(["d.csv", "y"] if kind == "table" else [data.path]), positive="bad")
        other.schema = data.schema
        if classes[1] == "bad":
            other.prepare_data()
            other.setup("test")
            assert torch.equal(other.splits["test"].y, data.splits["test"].y)
        else:
            with pytest.raises(UserError, match="expected 'good', as in training, got 'bad'"):
                other.setup("test")


def test_folds_and_seeds_agree_in_nearly_balanced_data() -> None:
    """The mean F1 of folds would mix two classes if each fold chose the rarer one of its rows."""
    y = np.repeat(["a", "b"], [50, 51])
    arrays = {"x": np.zeros((101, 2)), "y": y}
    np.savez("d.npz", **arrays)
    found = set()
    for fold in range(5):
        for seed in range(3):
            data = ArrayDataModule("d.npz", fold=("test", fold, 5), split_seed=seed)
            data.setup("fit")
            assert data.schema is not None
            found.add(data.schema.classes)
    assert found == {("b", "a")}


@pytest.fixture
def credit(work: Path) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 2))
    y = np.where(x[:, 0] + 0.5 * rng.normal(size=300) > 0.8, "bad", "good")
    pl.DataFrame({"a": x[:, 0], "b": x[:, 1], "status": y}).write_csv("credit.csv")


def test_the_results_of_a_run_of_an_older_version(credit: None, cli: Cli) -> None:
    """Its classes are in ascending order, and it predicts and tests as before.

    `init`, `fit` and `test` name the positive class, and F1 is that of scikit-learn for it.
    """
    line = "positive class: bad (the rarer one); to change it set data.positive\n"
    assert line in cli("init", "credit.csv", "--target", "status")
    net = ("--model.net", "MLP", "--model.net.hidden", "[8]", "--model.optimizer.lr", 0.02)
    length = ("--trainer.max_epochs", 3, "--trainer.accelerator", "cpu", "--name", "old")
    printed = cli(
        "fit", "--config", "configs/credit.yaml", *net, *length, "--data.positive", "good"
    )
    assert "positive class: good (as data.positive says)" in printed
    forget_the_option(Path("lightning_logs/old"))
    assert "positive class: good; to change it set data.positive and" in cli("test")
    table = pl.read_parquet("lightning_logs/old/test/predictions.parquet")
    assert table.columns[3:5] == ["probability_bad", "probability_good"]
    assert (table["prediction"] == "good").to_list() == (table["probability_good"] > 0.5).to_list()
    metrics = json.loads(Path("lightning_logs/old/test/metrics.json").read_text())
    f1 = f1_score(table["target"], table["prediction"], pos_label="good")
    assert metrics["f1"]["value"] == pytest.approx(f1)
    assert f1_score(table["target"], table["prediction"], pos_label="bad") < f1 < 1
    predicted = proj.load("old").predict(pl.read_csv("credit.csv")[table["row"].to_list()])
    assert predicted["prediction"].to_list() == table["prediction"].to_list()
    assert np.allclose(predicted["probability_good"], table["probability_good"], atol=1e-6)


def forget_the_option(run: Path) -> None:
    """Write the files of a run as a version without data.positive did."""
    config = yaml.safe_load((run / "config.yaml").read_text())
    del config["data"]["init_args"]["positive"]
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    checkpoint = torch.load(run / "checkpoints/best.ckpt", weights_only=True)
    del checkpoint["config"]["data"]["init_args"]["positive"]
    torch.save(checkpoint, run / "checkpoints/best.ckpt")


def test_weights_that_were_trained_for_another_positive_class(work: Path) -> None:
    """They would predict the other class, without a word."""
    data = make("arrays")
    model = torch.nn.Module()
    model.net, model.schema = torch.nn.Linear(3, 1), data.schema
    state = {f"net.{name}": value for name, value in model.net.state_dict().items()}
    torch.save(
        {"state_dict": state, "schema": make("arrays", positive="good").schema.to_dict()}, "o.ckpt"
    )
    initial = InitialWeights(state, "o.ckpt", ("bad", "good"))
    initial.on_fit_start(None, model)
    assert initial.report.endswith("; its positive class is good, not bad")
    initial = InitialWeights(state, "o.ckpt", ("good", "bad"))
    initial.on_fit_start(None, model)
    assert "positive" not in initial.report
    with pytest.raises(
        UserError, match=r"expected the classes of o.ckpt, bad, good, .* got good, bad"
    ):
        check_classes(Path("o.ckpt"), data)
    check_classes(Path("o.ckpt"), make("arrays", positive="good"))


@pytest.mark.parametrize("labels", [[2, 5], [0.0, 1.0], [False, True], ["a", "b"]])
def test_class_numbers_follow_the_order_of_the_schema(labels: list[Any]) -> None:
    """Labels in descending order were looked up as if they ascended."""
    rng = np.random.default_rng(0)
    y = np.asarray(labels)[rng.integers(0, 2, 80)]
    for positive in labels:
        data = ArrayDataModule.from_arrays((rng.normal(size=(80, 2)), y), positive=positive)
        data.setup("fit")
        assert data.schema is not None
        assert data.schema.classes[1] == positive
        for split in data.splits.values():
            found = [data.schema.classes[number] for number in split.y.tolist()]
            assert found == y[split.row.numpy()].tolist()
