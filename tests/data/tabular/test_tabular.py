"""Tables: columns, splits, statistics of the training split, caching, and messages."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conftest import Cli
from proj.data.tabular import prepare, typed
from proj.data.tabular.columns import BINS, MIN_CATEGORY_ROWS, encode_column, quantiles
from proj.data.tabular.datamodule import Tabular
from proj.errors import UserError
from proj.schema import Column, Schema


def people(rows: int = 200, seed: int = 0) -> pl.DataFrame:
    """Return a table with each kind of column; ``bought`` depends on ``age`` and ``city``."""
    rng = np.random.default_rng(seed)
    age = rng.integers(18, 90, rows).astype(float)
    city = rng.choice(["Oslo", "Bergen", "Tromsø"], rows)
    score = age / 30 + 2 * (city == "Oslo") + rng.normal(size=rows)
    return pl.DataFrame(
        {
            "customer": [f"c{i:05}" for i in range(rows)],
            "age": np.where(rng.random(rows) < 0.1, np.nan, age),
            "city": pl.Series(city).set(pl.Series(rng.random(rows) < 0.1), None),
            "member": rng.random(rows) < 0.5,
            "joined": pl.Series(rng.integers(15000, 19000, rows)).cast(pl.Date),
            "same": ["x"] * rows,
            "bought": np.where(score > 3, "yes", "no"),
            "spent": np.round(100 * score + 500, 2),
        }
    ).with_columns(pl.col("age").fill_nan(None))


def ready(path: str = "people.csv", target: Any = "bought", **options: Any) -> Tabular:
    data = Tabular(path, target, **{"batch_size": 32, **options})
    data.prepare_data()
    data.setup("fit")
    return data


@pytest.fixture
def table(work: Path) -> pl.DataFrame:
    table = people()
    table.write_csv("people.csv")
    return table


def decoded(data: Tabular, split_name: str) -> dict[str, list[Any]]:
    """Decode a split with the schema only."""
    split, schema = data.splits[split_name], data.schema
    assert schema is not None
    assert isinstance(split.x, dict)
    found: dict[str, list[Any]] = {}
    for i, column in enumerate(schema.numeric):
        found[column.name] = [
            None if math.isnan(v) else v for v in split.x["numeric"][:, i].tolist()
        ]
    for i, column in enumerate(schema.categorical):
        names = [None, "other", *column.categories]
        found[column.name] = [names[code] for code in split.x["categorical"][:, i].tolist()]
    return found


def test_each_kind_of_column_is_encoded(table: pl.DataFrame) -> None:
    """The encoded splits decode to the values of the file."""
    data = ready()
    assert data.schema is not None
    kinds = {column.name: column.kind for column in data.schema.columns}
    assert kinds == {
        "age": "number",
        "city": "category",
        "member": "category",
        "joined": "days",
        "joined.month": "month",
        "joined.weekday": "weekday",
        "spent": "number",
    }
    assert {f.what for f in data.findings} == {
        "column customer is left out",
        "column same is left out",
    }
    for name in ("train", "val", "test"):
        rows = table[data.splits[name].row.numpy()]
        got = decoded(data, name)
        assert got["age"] == rows["age"].to_list()
        assert got["city"] == rows["city"].to_list()
        assert got["member"] == rows["member"].cast(pl.String).to_list()
        assert got["joined"] == rows["joined"].to_physical().to_list()
        assert got["joined.weekday"] == rows["joined"].dt.weekday().to_list()
        assert [data.schema.classes[i] for i in data.splits[name].y.tolist()] == rows[
            "bought"
        ].to_list()


@pytest.mark.parametrize("ending", ["tsv", "parquet", "*.csv", ";"])
def test_other_file_formats_give_the_same_arrays(ending: str, table: pl.DataFrame) -> None:
    """A separator or format must not change the data."""
    path = {"*.csv": "part_*.csv", ";": "semi.csv"}.get(ending, f"other.{ending}")
    if ending == "tsv":
        table.write_csv(path, separator="\t")
    elif ending == "parquet":
        table.write_parquet(path)
    elif ending == ";":
        table.write_csv(path, separator=";")
    else:
        table[:70].write_csv("part_1.csv")
        table[70:].write_csv("part_2.csv")
    first, second = ready(), ready(path)
    assert first.schema == second.schema
    for name in ("train", "val", "test"):
        assert torch.equal(first.splits[name].row, second.splits[name].row)
        assert torch.equal(
            first.splits[name].x["categorical"], second.splits[name].x["categorical"]
        )
        assert torch.equal(
            first.splits[name].x["numeric"].nan_to_num(-1),
            second.splits[name].x["numeric"].nan_to_num(-1),
        )


def test_a_type_that_appears_late_applies_to_the_whole_column(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Types inferred from the first rows would turn later values into missing ones."""
    monkeypatch.setattr(typed, "SAMPLE_ROWS", 5)
    late = [None] * 100
    frame = pl.DataFrame(
        {
            "whole": pl.Series([*map(str, range(100)), *["0.5"] * 100]),
            "empty": [*late, *range(100)],
            "word": [*map(str, range(100)), *["x", "y"] * 50],
            "y": ["a", "b"] * 100,
        }
    )
    frame.write_csv("late.csv")
    data = ready(
        "late.csv", "y", columns={"word": "category", "whole": "number", "empty": "number"}
    )
    assert data.schema is not None
    assert {c.source: c.type for c in data.schema.columns} == {
        "whole": "number",
        "empty": "number",
        "word": "text",
    }


def test_text_that_is_not_a_number_is_counted() -> None:
    """Values must not become missing without a finding."""
    values = [*map(str, range(95)), "many", "few", None, "1.5", "-2"]
    pl.DataFrame({"n": values, "y": ["a", "b"] * 50}).write_csv("odd.csv")
    data = ready("odd.csv", "y", columns={"n": "number"}, val_fraction=0.0, test_fraction=0.0)
    (finding,) = data.findings
    assert (
        finding.what
        == "2 of 100 values of column n cannot be read as data.columns says, such as 'many'"
    )
    numbers = data.splits["train"].x["numeric"][:, 0]
    assert numbers.isnan().sum() == 3
    assert numbers.nansum() == sum(range(95)) - 0.5


def test_column_kinds_can_be_set(table: pl.DataFrame) -> None:
    """A wrong inference can be corrected. The only findings count the categories that merge."""
    data = ready(
        columns={"age": "category", "customer": "category", "joined": "drop", "same": "drop"}
    )
    assert data.schema is not None
    kinds = {column.name: column.kind for column in data.schema.columns}
    assert kinds == {
        "customer": "category",
        "age": "category",
        "city": "category",
        "member": "category",
        "spent": "number",
    }
    age = next(c for c in data.schema.columns if c.name == "age")
    counts = table[data.splits["train"].row.numpy()]["age"].drop_nulls().cast(int).value_counts()
    assert set(age.categories) == {str(v) for v, n in counts.rows() if n >= MIN_CATEGORY_ROWS}
    rare = [n for _, n in counts.rows() if n < MIN_CATEGORY_ROWS]
    assert [f.what.split(", such as")[0] for f in data.findings] == [
        "140 of 140 values of column customer, in 140 of 140 training rows, count as one",
        f"{len(rare)} of {len(counts)} values of column age, in {sum(rare)} of 140 training rows, "
        "count as one",
    ]


def test_quantiles_separate_rare_values_from_a_frequent_one() -> None:
    """A column of 90 % zeros still has many edges above zero, and all edges are values."""
    rng = np.random.default_rng(0)
    values = np.where(rng.random(20_000) < 0.9, 0, rng.lognormal(0, 1, 20_000))
    edges, shares = quantiles(values)
    assert len(edges) == BINS + 1
    assert set(edges) <= set(values)
    assert (edges[0], edges[-1]) == (0, values.max())
    assert shares == pytest.approx(
        [((values < e).mean() + (values <= e).mean()) / 2 for e in edges]
    )
    distinct = rng.integers(0, 9, 500).astype(float)
    assert quantiles(distinct)[0].tolist() == list(range(9))


def test_rare_and_unseen_categories_share_a_code(table: pl.DataFrame) -> None:
    """A net could not use a category that it never saw."""
    city = [f"village {i}" if i < 3 else c for i, c in enumerate(table["city"])]
    table.with_columns(pl.Series("city", city)).write_csv("people.csv")
    data = ready()
    assert data.schema is not None
    frame = table[:3].with_columns(city=pl.Series(["Atlantis", None, "Oslo"]))
    codes = Tabular.encode(frame, data.schema)["categorical"][:, 0]
    known = data.schema.categorical[0].categories
    assert "village 1" not in known
    assert codes.tolist() == [1, 0, 2 + known.index("Oslo")]


def test_the_schema_is_fitted_on_the_training_split_only(table: pl.DataFrame) -> None:
    """Validation and test rows must not leak into the statistics."""
    before = ready()
    others = torch.cat([before.splits["val"].row, before.splits["test"].row]).tolist()
    changed = table.with_row_index().with_columns(
        pl.when(pl.col("index").is_in(others)).then(1e6).otherwise("age").alias("age"),
        pl.when(pl.col("index").is_in(others))
        .then(pl.lit("Nowhere"))
        .otherwise("city")
        .alias("city"),
    )
    changed.drop("index").write_csv("changed.csv")
    assert ready("changed.csv").schema == before.schema


def test_several_targets(table: pl.DataFrame) -> None:
    """Columns of 0 and 1 are labels, others are numbers to predict."""
    two = table.with_columns(
        a=pl.col("age").fill_null(0) > 40, b=pl.col("member").cast(int), c=pl.col("spent") * 2
    )
    two.write_parquet("two.parquet")
    labels, numbers = ready("two.parquet", ["a", "b"]), ready("two.parquet", ["spent", "c"])
    assert labels.schema is not None
    assert numbers.schema is not None
    assert (labels.schema.task, numbers.schema.task) == ("multilabel", "regression")
    rows = labels.splits["test"].row.numpy()
    assert np.array_equal(
        labels.splits["test"].y, two[rows].select(pl.col("a", "b").cast(int)).to_numpy()
    )
    train = two[numbers.splits["train"].row.numpy()]
    assert numbers.schema.target_mean == pytest.approx([train["spent"].mean(), train["c"].mean()])


@pytest.mark.parametrize(
    ("values", "task"),
    [
        ([True, False], "binary"),
        (["a", "b", "c"], "multiclass"),
        ([1, 2, 3], "multiclass"),
        ([1.0, 2.0], "binary"),
        (list(range(50)), "regression"),
        ([0.5, 1.0], "regression"),
    ],
)
def test_the_task_is_inferred(values: list[Any], task: str) -> None:
    """A wrong task would train with the wrong loss."""
    rows = 200
    pl.DataFrame(
        {"x": np.arange(rows) % 7, "y": [values[i % len(values)] for i in range(rows)]}
    ).write_csv("t.csv")
    data = ready("t.csv", "y")
    assert data.schema is not None
    assert data.schema.task == task


def test_nan_is_missing_and_an_infinite_target_is_refused(
    table: pl.DataFrame,
) -> None:
    """Other programs write NaN into Parquet files; a NaN target would give NaN weights."""
    odd = table.with_columns(
        pl.col("age").fill_null(float("nan")),
        pl.when(pl.int_range(pl.len()) < 7).then(float("nan")).otherwise("spent").alias("spent"),
    )
    odd.write_parquet("odd.parquet")
    data = ready("odd.parquet", "spent")
    assert sum(len(p.row) for p in data.splits.values()) == 193
    assert all(torch.isfinite(p.y).all() for p in data.splits.values())
    assert any("7 of 200 rows of odd.parquet have no target" in str(f) for f in data.findings)
    assert (
        sum(decoded(data, name)["age"].count(None) for name in data.splits)
        == odd[7:]["age"].is_nan().sum()
    )
    assert torch.equal(
        Tabular.encode(odd, data.schema)["numeric"].isnan(),
        Tabular.encode(table, data.schema)["numeric"].isnan(),
    )
    odd.with_columns(
        pl.when(pl.int_range(pl.len()) == 9).then(float("inf")).otherwise("spent").alias("spent")
    ).write_parquet("inf.parquet")
    with pytest.raises(UserError, match="column spent: expected finite targets, got inf in row 9"):
        ready("inf.parquet", "spent")


@pytest.mark.parametrize("labels", [["2020-01-01", "2020-01-02"], ["a", "7"]])
def test_a_test_file_may_have_some_of_the_labels_only(
    labels: list[str],
) -> None:
    """Its labels must be read as the type that they have in training."""
    rng = np.random.default_rng(0)
    for name, rows in (("train.csv", labels * 50), ("test.csv", labels[1:] * 20)):
        pl.DataFrame({"x": rng.normal(size=len(rows)), "y": rows}).write_csv(name)
    data = ready("train.csv", "y", test_path="test.csv", task="binary")
    assert data.schema is not None
    assert data.schema.classes == tuple(sorted(labels))
    assert data.splits["test"].y.tolist() == [data.schema.classes.index(labels[1])] * 20


def test_splits_by_group_time_and_column(table: pl.DataFrame) -> None:
    """Each row is in one split, and groups and times do not overlap."""
    day = pl.Series("day", np.repeat(np.arange(50), 4))
    family = pl.Series("family", np.random.default_rng(1).integers(0, 40, 200))
    subset = pl.Series("subset", np.random.default_rng(2).choice(["train", "val", "test"], 200))
    table.with_columns(day, family, subset).write_csv("people.csv")
    by_group, by_time, by_column = ready(group="family"), ready(time="day"), ready(split="subset")
    families = [set(family[p.row.numpy()]) for p in by_group.splits.values()]
    assert not families[0] & families[1]
    assert not families[0] & families[2]
    assert not families[1] & families[2]
    days = [day[p.row.numpy()] for p in by_time.splits.values()]
    assert days[0].max() < days[1].min() <= days[1].max() < days[2].min()
    assert len(days[2]) == 32  # 30 rows, and the two others of the first day
    for name, p in by_column.splits.items():
        assert p.row.tolist() == [i for i, v in enumerate(subset) if v == name]
    for data in (by_group, by_time, by_column):
        rows = torch.cat([p.row for p in data.splits.values()])
        assert torch.equal(rows.sort().values, torch.arange(200))
        assert "subset" not in {c.source for c in data.schema.columns} or data is not by_column
    assert "family" not in {c.source for c in by_group.schema.columns}


def test_a_leaking_split_is_found(table: pl.DataFrame) -> None:
    """A split column may divide groups or mix up times."""
    subset = pl.Series("subset", (["train"] * 3 + ["val", "test"]) * 40)
    table.with_columns(
        subset, day=pl.Series(range(200)), family=pl.Series([i // 2 for i in range(200)])
    ).write_csv("people.csv")
    assert any(
        "values of family are both in train and in test" in str(f)
        for f in ready(split="subset", group="family").findings
    )
    assert any(
        "earlier than the latest training row by day" in str(f)
        for f in ready(split="subset", time="day").findings
    )


def test_a_test_file(table: pl.DataFrame) -> None:
    """A test file needs the columns and types of training."""
    test = people(60, seed=5)
    test.write_csv("test.csv")
    data = ready(test_path="test.csv")
    assert [len(p.row) for p in data.splits.values()] == [170, 30, 60]
    assert decoded(data, "test")["age"] == test["age"].to_list()
    test.drop("city").write_csv("test.csv")
    with pytest.raises(
        UserError, match=r"test.csv: expected a column city, as in training, got none"
    ):
        ready(test_path="test.csv")
    test.with_columns(age=pl.lit("old")).write_csv("test.csv")
    with pytest.raises(
        UserError,
        match=r"column age: expected values of type number, as in training, "
        r"got text, 'old' in row 0",
    ):
        ready(test_path="test.csv")


def test_prepared_arrays_are_reused_unless_interrupted(
    table: pl.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half-written arrays would be trained on."""

    def die(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(prepare, "check_finite", die)
        with pytest.raises(KeyboardInterrupt):
            ready()
    first = ready()
    monkeypatch.setattr(prepare, "check_finite", die)  # preparing anew would show
    again = ready()
    assert again.schema == first.schema
    assert torch.equal(again.splits["val"].x["categorical"], first.splits["val"].x["categorical"])
    assert [p for p in Path(".cache/proj").iterdir() if p.name.startswith(".")] == []
    with pytest.raises(KeyboardInterrupt):
        ready(split_seed=1)


def bad(name: str, text: str | bytes) -> str:
    Path(name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return name


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected a header and rows of data, got an empty file"),
        ("a,bought\n", "expected rows of data, got a header only"),
        ("a,b,a,bought\n1,2,3,4\n", "expected different names for all columns, got 'a' 2 times"),
        (
            "a,b,bought\n1,2,x\n1,2\n3,4,y\n",
            "expected 3 fields per line, as in the header, got 2 in line 3",
        ),
        (
            "a,b,bought\n1,2,x\n1,2,y,9\n",
            "expected 3 fields per line, as in the header, got 4 in line 3",
        ),
        (
            "a,bought\n1,é\n".encode("latin-1"),
            "expected text in UTF-8, got the byte 0xe9 in line 2; convert it",
        ),
        (
            "a,bought\n" + "1,x\n2,x\n" * 9,
            "column bought: expected two classes or more for the task multiclass, got 1 (x)",
        ),
        (
            "a,bought\n" + "1,\n2,\n" * 9,
            "column bought: expected targets, got missing values only",
        ),
        ("a,brought\n1,x\n", "data.target: t.csv has no column 'bought'. Did you mean 'brought'?"),
        (
            "a,bought\n" + "5,x\n5,y\n" * 20,
            "expected a column to learn from, got none: a: constant",
        ),
        (
            "a,bought\n" + "1,x\n2,y\ninf,y\n" * 20,
            "column a: expected finite numbers, got an infinite one in row 2",
        ),
    ],
)
def test_unusable_tables_are_named(text: str | bytes, message: str, cli: Cli) -> None:
    """The message says what is wrong, in which file, and nothing is written."""
    err = cli("init", bad("t.csv", text), "--target", "bought", code=2)
    assert message in err
    assert "t.csv" in err
    assert not Path("configs").exists()


def test_init_fit_test_predict_and_load(table: pl.DataFrame, cli: Cli) -> None:
    """All verbs work on one table, and `load` predicts like `predict`."""
    out = cli("init", "people.csv", "--target", "bought")
    assert "rows: 140 train, 30 val, 30 test" in out
    assert "inputs: 2 numbers (age, spent); 2 categories (city, member); 3 parts of dates" in out
    assert "missing values in age, city" in out
    config = Path("configs/people.yaml")
    assert (
        "customer: drop # an identifier or free text: 140 different values in 140 training rows"
        in config.read_text()
    )
    assert "expected a new file, got configs/people.yaml, which exists" in cli(
        "init", "people.csv", "--target", "bought", code=2
    )
    cli("fit", "--config", config, "--trainer.max_epochs", "2", "--trainer.accelerator", "cpu")
    cli("test")
    new = people(20, seed=3).drop("bought")
    new.write_csv("new.csv")
    Path("people.csv").unlink()
    cli("predict", "--data.predict_path", "new.csv", "--keep", "customer", "--output", "out.csv")
    written = pl.read_csv("out.csv")
    assert written["customer"].to_list() == new["customer"].to_list()
    import proj

    for rows in (new, new.to_dict(as_series=False)):
        assert proj.load("version_0").predict(rows)["probability_yes"].to_list() == pytest.approx(
            written["probability_yes"].to_list(), abs=1e-5
        )
    assert "--keep: new.csv has no column 'custommer'. Did you mean 'customer'" in cli(
        "predict", "--data.predict_path", "new.csv", "--keep", "custommer", code=2
    )
    new.drop("age").write_csv("new.csv")
    assert "new.csv: expected a column age" in cli(
        "predict", "--data.predict_path", "new.csv", code=2
    )


odd = st.one_of(
    st.none(),
    st.sampled_from(['"', "a,b", "x\ny", "🙂", "7", "007", "1e5", " pad ", "long" * 99, "true"]),
    st.text(),
)
numbers = st.one_of(st.none(), st.floats(allow_nan=False, allow_infinity=False, width=32))


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    values=st.lists(
        st.tuples(odd, numbers, st.one_of(st.none(), st.booleans())), min_size=8, max_size=30
    ),
    seed=st.integers(0, 3),
)
def test_encoded_values_decode_to_the_originals(
    values: list[Any], seed: int, tmp_path_factory: Any
) -> None:
    """Also odd texts and numbers, and each row is in exactly one split."""
    folder = tmp_path_factory.mktemp("odd")
    # No category is rare.
    rows = values * MIN_CATEGORY_ROWS
    frame = pl.DataFrame(
        rows, schema={"t": pl.String, "n": pl.Float32, "b": pl.Boolean}, orient="row"
    )
    frame = frame.with_columns(
        y=pl.Series([i % 2 for i in range(len(rows))]),
        sure=pl.Series([i % 3 for i in range(len(rows))]),
    )
    frame.write_parquet(folder / "odd.parquet")
    columns = {"t": "category", "n": "number", "b": "category"}
    usable = {name: kind for name, kind in columns.items() if frame[name].null_count() < len(frame)}
    data = ready(
        str(folder / "odd.parquet"),
        "y",
        columns=usable,
        split_seed=seed,
        cache_dir=str(folder / "cache"),
    )
    assert torch.equal(
        torch.cat([p.row for p in data.splits.values()]).sort().values, torch.arange(len(rows))
    )
    assert data.schema is not None
    assert Schema.from_dict(json.loads(json.dumps(data.schema.to_dict()))) == data.schema
    for split_name, split in data.splits.items():
        got, were = decoded(data, split_name), frame[split.row.numpy()]
        rare = {c.name: c for c in data.schema.columns}
        for name in usable:
            # Of a column with a single number, only whether it is missing is encoded.
            if name == "n" and name in {c.name for c in data.schema.categorical}:
                continue
            expected = were[name].cast(pl.String).to_list() if name != "n" else were[name].to_list()
            for value, wanted in zip(got[name], expected, strict=True):
                assert value == wanted or (value == "other" and wanted not in rare[name].categories)


def test_whole_numbers_read_alike_from_all_files(work: Path) -> None:
    """A category has the same code in a file with 7 and in a file with 7.0."""
    column = Column("a", "number", "category", False, (), (), ("7", "8"))
    for values in ([7, 8, 9, None], [7.0, 8.0, 9.5, None]):
        assert pl.DataFrame({"a": values}).select(encode_column(column)).to_series().to_list() == [
            2,
            3,
            1,
            0,
        ]
