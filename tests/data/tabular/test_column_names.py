"""Names of columns are names: never patterns, YAML, or lists."""

import csv
import json
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
import yaml
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

import proj
from conftest import Cli
from proj.data.base import split_names
from proj.data.tabular.datamodule import Tabular
from proj.data.tabular.dialect import find_dialect
from proj.engine.callbacks.prediction_writer import _rename_taken
from proj.engine.class_paths import resolve_classes
from proj.engine.config.arguments import as_flags
from proj.errors import UserError

PLAIN = ["number", "category", "boolean", "class", "group", "count"]
NAMES = ["^y.*$", "*", "[x]", "a,b", '"', 'a"b', "a:b", "a\nb", " a ", "row", "_row", "len"]
NAMES += ["null", "NA", "1", "true", "a;b;c", "column_1", "literal", "^", "$", "^.*$", "target 0"]


def rows() -> list[list[Any]]:
    draw = random.Random(0)
    return [
        [
            round(draw.gauss(0, 1), 4),
            draw.choice("vwxyz"),
            draw.random() < 0.5,
            draw.choice("pq"),
            draw.choice("ABCDEFGHIJ"),
            i,
        ]
        for i in range(100)
    ]


def write(path: str, names: list[str]) -> None:
    with Path(path).open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([names, *rows()])


def load(path: str, names: list[str]) -> tuple[Tabular, pl.DataFrame]:
    data = Tabular(path, names[3], group=names[4], columns={names[1]: "category"}, batch_size=8)
    data.prepare_data()
    data.setup("fit")
    return data, data.source_columns([names[0], names[3]], np.arange(5), "val")


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(
        st.sampled_from(NAMES)
        | st.text(
            # A column without a name gets one: see test_readings.
            st.characters(exclude_categories=["Cs"], exclude_characters="\ufeff"),
            min_size=1,
            max_size=6,
        ),
        min_size=6,
        max_size=6,
        unique=True,
    )
)
@example(["#", "b", "c", "d", "e", "f"])
def test_any_names_give_the_result_of_plain_names(names: list[str]) -> None:
    # "#a,b" is a header behind the sign of comments, whose first name is a.
    assume(not names[0].startswith("#") or names[0] == "#")
    write("plain.csv", PLAIN)
    write("any.csv", names)
    (plain, plain_kept), (data, kept) = load("plain.csv", PLAIN), load("any.csv", names)
    assert kept.columns == [names[0], names[3]]
    assert kept.rows() == plain_kept.rows()
    assert data.schema is not None
    assert plain.schema is not None
    sources = [names[PLAIN.index(column.source)] for column in plain.schema.columns]
    assert [column.source for column in data.schema.columns] == sources
    for split, expected in plain.splits.items():
        actual = data.splits[split]
        for values, expected_values in ((actual.x, expected.x),):
            assert torch.equal(values["numeric"], expected_values["numeric"])
            assert torch.equal(values["categorical"], expected_values["categorical"])
        assert torch.equal(actual.y, expected.y)
        assert torch.equal(actual.row, expected.row)


def test_a_run_on_columns_with_odd_names(cli: Cli) -> None:
    """One run from `init` to the report: the names pass through configs, flags and files."""
    names = ["^y.*$", "{a: 1}", "loss", "[y]", "kept_row", "*"]
    write("t.csv", names)
    cli("init", "t.csv", "--target", "[y]")
    path = Path("configs/t.yaml")
    config = yaml.safe_load(path.read_text())
    assert config["data"]["init_args"]["target"] == "[y]"
    config["data"]["init_args"] |= {"group": names[4], "columns": {"loss": "category", "*": "drop"}}
    config["trainer"] = {"max_epochs": 1, "accelerator": "cpu"}
    config["model"]["init_args"]["net"] = {"class_path": "MLP", "init_args": {"hidden": [4]}}
    path.write_text(json.dumps(config))
    cli("fit", "--config", path, "--name", "a")
    assert "not as recorded" not in cli("test", "--run", "a")
    cli("predict", "--run", "a", "--keep", '"^y.*$",[y]', "--output", "o.parquet")
    kept, table = pl.read_parquet("o.parquet"), rows()
    assert kept.get_column("^y.*$").to_list() == [str(table[i][0]) for i in kept["row"]]
    assert kept.get_column("[y]").to_list() == [table[i][3] for i in kept["row"]]
    report = Path("lightning_logs/a/report.html").read_text()
    assert "^y.*$" in report


def test_lists_of_names() -> None:
    assert split_names('a,"b,c",[d]', "--keep") == ["a", "b,c", "[d]"]
    assert split_names('"say ""so""", x', "--keep") == ['say "so"', " x"]
    with pytest.raises(UserError, match="--keep: expected names separated by commas"):
        split_names('"a', "--keep")


def test_a_target_with_a_comma_needs_no_quotes() -> None:
    write("t.csv", ["a", "b", "c", "income, yearly", "e", "f"])
    data = Tabular.for_source("t.csv", "income, yearly", None)
    assert data is not None
    assert data.plan.targets == ["income, yearly"]


def test_settings_from_python_keep_texts() -> None:
    assert as_flags({"data.target": "[x]"}) == ['--data.target=["[x]"]']
    with pytest.raises(UserError, match=r"data.group: expected a name that does not mean null"):
        as_flags({"data.group": "~"})


def test_a_column_may_have_the_name_of_a_key() -> None:
    config = {"data": {"init_args": {"columns": {"loss": "drop", "net": "number"}}}}
    assert resolve_classes(config) == config


def test_kept_columns_never_take_the_name_of_another() -> None:
    source = pl.DataFrame({"row": [1], "kept_row": [2], "x": [3]})
    renamed = _rename_taken(source, ["row", "prediction"])
    assert renamed.columns == ["kept_kept_row", "kept_row", "x"]


def test_no_name_reaches_an_expression_parser() -> None:
    """``pl.col`` with a variable reads the user's names as patterns; ``by_name`` does not."""
    package = Path(proj.__file__).parent
    found = [
        f"{path.relative_to(package)}: {match[0]}"
        for path in package.rglob("*.py")
        for match in re.finditer(r'pl\.col\((?!"|pl\.)[^)]*\)', path.read_text(encoding="utf-8"))
    ]
    assert found == []


@pytest.mark.parametrize("separator", [",", "\t", ";"])
def test_a_first_column_named_by_the_sign_of_comments(separator: str) -> None:
    """Its table was read without a header, or its column lost its name."""
    lines = [["#", "a", "b"], *([str(i), "x", str(i % 3)] for i in range(9))]
    text = "".join(separator.join(line) + "\n" for line in lines)
    for before in ("", "# made by X\n"):
        dialect = find_dialect((before + text).splitlines(keepends=True), "t.csv")
        assert dialect.names == ("#", "a", "b")
        assert dialect.separator == separator
