"""Slices equal scikit-learn on filtered tables, the worst first; what is left out is counted."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from sklearn import metrics as sk

from conftest import Cli
from proj.engine.evaluation.artifacts import OTHER
from proj.engine.evaluation.intervals import intervals
from proj.engine.evaluation.prediction_set import PredictionSet
from proj.engine.evaluation.slices import (
    MAX_CATEGORIES,
    MISSING,
    SHOWN_SLICES,
    binned,
    slices,
)

RUN = Path("lightning_logs/version_0")


def table(rows: int = 700) -> pl.DataFrame:
    """Every kind of column, with missing values; the target is noisy for Bergen."""
    rng = np.random.default_rng(0)
    size, city = rng.normal(size=rows), rng.choice(["Oslo", "Bergen", "Roros"], rows)
    score = 2 * size + np.where(city == "Bergen", 3, 0.3) * rng.normal(size=rows)
    return pl.DataFrame(
        {
            "size": pl.Series(size).set(pl.Series(rng.random(rows) < 0.15), None),
            "city": pl.Series(city).set(pl.Series(rng.random(rows) < 0.15), None),
            "count": rng.integers(0, 3, rows),
            "member": rng.random(rows) < 0.5,
            "joined": pl.Series(rng.integers(15000, 19000, rows)).cast(pl.Date),
            "kind": np.where(score > 1, "high", np.where(score < -1, "low", "middle")),
            "spent": 100 * score + 500,
        }
    )


def fit(cli: Cli, target: str, model: str, *flags: str) -> None:
    cli(
        "fit",
        "--data",
        "Tabular",
        "--data.path",
        "table.csv",
        "--data.target",
        target,
        "--data.batch_size",
        "64",
        "--model",
        model,
        "--model.net",
        "MLP",
        "--trainer.max_epochs",
        "2",
        "--trainer.accelerator",
        "cpu",
        "--trainer.log_every_n_steps",
        "1",
        *flags,
    )


@pytest.mark.parametrize("target", ["kind", "spent"])
def test_slices_equal_scikit_learn_on_filtered_rows(target: str, cli: Cli) -> None:
    """Saved columns must belong to the predicted rows."""
    table().write_csv("table.csv")
    other = "spent" if target == "kind" else "kind"
    model = "MulticlassClassifier" if target == "kind" else "Regressor"
    fit(cli, target, model, "--data.columns", f"{{{other}: drop}}", "--data.test_fraction", "0.4")
    cli("test")
    written, saved = (
        pl.read_parquet(RUN / "test/predictions.parquet"),
        pl.read_parquet(RUN / "test/columns.parquet"),
    )
    source = pl.read_csv("table.csv", try_parse_dates=True)[written["row"].to_list()]
    assert saved.columns == ["size", "city", "count", "member", "joined"]
    assert saved["city"].to_list() == source["city"].to_list()
    assert saved["member"].to_list() == source["member"].cast(pl.String).to_list()
    assert saved["joined"].cast(pl.Date).to_list() == source["joined"].to_list()
    assert np.allclose(
        saved["size"].to_numpy(), source["size"].to_numpy(), equal_nan=True
    )  # float32 beside float64

    def score(rows: pl.DataFrame) -> float:
        truth, predicted = rows["target"].to_numpy(), rows["prediction"].to_numpy()
        if target == "spent":
            return float(sk.root_mean_squared_error(truth, predicted))
        occurring = sorted(set(truth) | set(predicted))
        return float(
            sk.f1_score(truth, predicted, labels=occurring, average="macro", zero_division=0)
        )

    quarters = np.nanquantile(source["size"].to_numpy(), [0.25, 0.5, 0.75], method="inverted_cdf")
    size, city = source["size"], source["city"]
    expected = {
        ("city", "Bergen"): score(written.filter(city == "Bergen")),
        ("city", MISSING): score(written.filter(city.is_null())),
        ("count", "2"): score(written.filter(source["count"] == 2)),
        ("size", f"up to {quarters[0]:.6g}"): score(written.filter(size <= quarters[0])),
        ("size", f"above {quarters[2]:.6g}"): score(written.filter(size > quarters[2])),
    }
    names = ("high", "low", "middle")
    if target == "kind":
        classes = written["target"].replace_strict(names, range(3), return_dtype=pl.Int64)
        output = written.select(f"probability_{name}" for name in names).to_numpy()
        predictions = PredictionSet(
            "multiclass", names, written["row"].to_numpy(), classes.to_numpy(), output
        )
    else:
        predictions = PredictionSet(
            "regression",
            ("spent",),
            written["row"].to_numpy(),
            written.select("target").to_numpy(),
            written.select("prediction").to_numpy(),
        )
    all_slices = slices(predictions, saved, limit=1000)
    result = {(row.column, row.value): row for row in all_slices.worst}
    assert len(result) == all_slices.scored == 5 + 4 + 3 + 2 + 4
    for key, value in expected.items():
        assert result[key].interval.value == pytest.approx(value, rel=1e-6), key
        assert result[key].interval.low is not None
    values = [row.interval.value for row in all_slices.worst]
    assert values == sorted(values, reverse=target == "spent")
    worst = slices(predictions, saved).worst
    assert worst == all_slices.worst[:SHOWN_SLICES]
    text = (RUN / "report.html").read_text()
    assert f"Of {all_slices.scored} slices, the 15 worst are shown." in " ".join(text.split())
    assert "partly the worst by chance" in " ".join(text.split())
    assert f"<td>{worst[0].value}</td>" in text
    assert '<th scope="col">city</th>' in text  # beside each mistake
    for name, lost in source.null_count().select("size", "city").row(0, named=True).items():
        cells = [name, "yes", str(lost), f"{lost / len(source):.1%}"]
        assert re.search(".*".join(f">{re.escape(cell)}<" for cell in cells), text), name
    assert len(re.findall(">yes</td><td", text)) == 2


def make_predictions(rows: int, group: Any = None) -> PredictionSet:
    rng = np.random.default_rng(1)
    return PredictionSet(
        "binary",
        ("no", "yes"),
        np.arange(rows),
        rng.integers(2, size=rows),
        rng.random(rows),
        group,
    )


def test_what_is_left_out_is_counted() -> None:
    """A slice that is dropped silently could be the worst one."""
    target, output = np.array([0, 1] * 50), np.tile([0.1, 0.9], 50)
    few, none = ["a"] * 91 + ["b"] * 9, ["x", "y"] * 50  # no row of x is positive, or predicted so
    predictions = PredictionSet("binary", ("no", "yes"), np.arange(100), target, output)
    empty = {
        f"empty {dtype}": pl.Series([None] * 100, dtype=dtype) for dtype in (pl.String, pl.Float32)
    }
    result = slices(
        predictions, pl.DataFrame({"few": few, "none": none, "same": [1.5] * 100, **empty})
    )
    assert [(row.column, row.value, row.rows) for row in result.worst] == [
        ("few", "a", 91),
        ("none", "y", 50),
    ]
    assert (result.scored, result.small, result.undefined, result.constant) == (2, 1, 1, 3)
    single = PredictionSet("binary", ("no", "yes"), np.arange(1), target[:1], output[:1])
    assert slices(single, pl.DataFrame({"few": ["a"]})).worst == []


def test_a_slice_with_one_class_has_the_f1_of_that_class() -> None:
    """Classes that do not occur in a slice must not count."""
    rng = np.random.default_rng(0)
    target = np.repeat([0, 1, 2], 40)
    predictions = PredictionSet(
        "multiclass",
        ("a", "b", "c"),
        np.arange(120),
        target,
        rng.dirichlet(np.ones(3), 120) + np.eye(3)[target] / 3,
    )
    for slice_ in slices(
        predictions, pl.DataFrame({"class": np.array(["a", "b", "c"])[target]})
    ).worst:
        rows = target == "abc".index(slice_.value)
        predicted = predictions.predicted[rows]
        want = sk.f1_score(
            target[rows],
            predicted,
            labels=sorted(set(predicted) | set(target[rows])),
            average="macro",
            zero_division=0,
        )
        assert slice_.interval.value == pytest.approx(want)


def test_a_slice_resamples_its_own_groups() -> None:
    """A slice has the interval of its rows alone, without groups that do not occur in it."""
    predictions = make_predictions(400, np.arange(400) // 4)
    half = np.arange(400) >= 200
    result = slices(predictions, pl.DataFrame({"half": np.where(half, "b", "a")})).worst
    alone = PredictionSet(
        predictions.task,
        predictions.names,
        predictions.row[half],
        predictions.target[half],
        predictions.output[half],
        (np.arange(400) // 4)[half] - 50,
    )
    want = intervals(alone)["f1"]
    got = next(slice_ for slice_ in result if slice_.value == "b").interval
    assert got == want
    assert "50 groups" in got.method


def test_many_levels_and_skewed_numbers() -> None:
    """Every row must be in exactly one slice."""
    values = pl.Series([f"c{i:02}" for i in range(30) for _ in range(30 - i)] + [None, OTHER])
    code, names = binned(values)
    assert names == [*(f"c{i:02}" for i in range(MAX_CATEGORIES)), OTHER, MISSING]
    assert code[-2:].tolist() == [MAX_CATEGORIES + 1, MAX_CATEGORIES]
    assert (code == MAX_CATEGORIES).sum() == sum(range(1, 11)) + 1
    for numbers, want in (
        ([0.0] * 90 + list(range(1, 11)), ["up to 0", "above 0", MISSING]),
        ([9.0] * 90 + list(range(8)), ["up to 7", "above 7", MISSING]),
    ):
        code, names = binned(pl.Series(numbers))
        assert names == want
        assert sorted(np.bincount(code).tolist()) == sorted([90, len(numbers) - 90])
    moments = pl.Series(range(0, 80, 10)).cast(pl.Date).cast(pl.Datetime("ms"))
    assert binned(moments)[1] == [
        "up to 1970-01-11",
        "above 1970-01-11 up to 1970-01-31",
        "above 1970-01-31 up to 1970-02-20",
        "above 1970-02-20",
        MISSING,
    ]


def test_too_many_columns_give_a_message(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the message the missing section would be unexplained."""
    monkeypatch.setattr("proj.engine.evaluation.artifacts.MAX_COLUMNS", 3)
    table(100).write_csv("table.csv")
    fit(cli, "kind", "MulticlassClassifier")
    assert "the report has no slices: " in cli("test")
    assert not (RUN / "test/columns.parquet").exists()
    assert ">Slices<" not in (RUN / "report.html").read_text()


def test_every_slice_of_20_columns_is_scored() -> None:
    """All slices compete, not only those of the first columns."""
    rng, rows = np.random.default_rng(0), 10_000
    numbers = {f"n{i}": rng.normal(size=rows).astype(np.float32) for i in range(10)}
    categories = {f"c{i}": rng.choice(list("abcdefghijklmnopqrstuvwxyz"), rows) for i in range(10)}
    target = rng.normal(size=(rows, 1))
    predictions = PredictionSet(
        "regression", ("y",), np.arange(rows), target, target + rng.normal(size=(rows, 1))
    )
    assert slices(predictions, pl.DataFrame(numbers | categories)).scored == 250


def test_missing_dates_are_counted_once(cli: Cli) -> None:
    """The inputs of a date are missing together."""
    gone = np.random.default_rng(1).random(700) < 0.2
    rows = table().with_columns(pl.when(~pl.lit(pl.Series(gone))).then("joined"))
    rows.write_csv("table.csv")
    fit(cli, "kind", "MulticlassClassifier", "--data.columns", "{spent: drop}")
    cli("test")
    count = sum(gone[row] for row in pl.read_parquet(RUN / "test/predictions.parquet")["row"])
    result = (
        (RUN / "report.html")
        .read_text()
        .partition("Where values are missing</caption>")[2]
        .partition("</table>")[0]
    )
    assert re.search(rf"joined</th><td>yes</td><td class=.number.>{count}</td>", result)
    assert "joined." not in result
    path = RUN / "test/columns.parquet"
    path.write_bytes(path.read_bytes()[:100])
    assert "columns.parquet is damaged" in cli("report", code=2)
