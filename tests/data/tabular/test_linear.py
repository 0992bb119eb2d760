"""The linear model of a small table, against scikit-learn on one-hot columns made by polars."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.preprocessing import StandardScaler

from proj.data.tabular import linear
from proj.data.tabular.datamodule import Tabular
from proj.nets.layers import FittedLinear, TableInputs
from proj.nets.tabm import TabM
from proj.schema import Schema

ROWS = 400


def write_table(folder: Path, task: str) -> pl.DataFrame:
    rng = np.random.default_rng(0)
    number, other = rng.lognormal(0, 1, ROWS), rng.normal(size=ROWS)
    color = rng.choice(["red", "green", "blue"], ROWS)
    score = np.log(number) + (color == "red") + rng.normal(size=ROWS)
    targets = {
        "regression": score,
        "binary": np.where(score > 0.3, "yes", "no"),
        "multiclass": np.digitize(score, [-0.5, 0.8]).astype(str),
    }
    split = np.repeat(["train", "val", "test"], [300, 50, 50])
    table = pl.DataFrame(
        {"number": number, "other": other, "color": color, "split": split, "y": targets[task]}
    ).with_columns(other=pl.when(pl.int_range(ROWS) % 7 > 0).then("other"))
    table.write_csv(folder / "table.csv")
    return table


def prepared(**options: Any) -> Tabular:
    data = Tabular("table.csv", "y", split="split", **options)
    data.prepare_data()
    data.setup("fit")
    return data


def expected_inputs(table: pl.DataFrame) -> np.ndarray:
    """Return scaled numbers, one-hot colors and the flag of missing numbers."""
    train = table.filter(pl.col("split") == "train")
    numbers = np.column_stack([table["number"], table["other"].fill_null(train["other"].mean())])
    low, high = numbers[:300].min(axis=0), numbers[:300].max(axis=0)
    scaler = StandardScaler().fit(train.select("number").to_numpy())
    scaled = np.column_stack(
        [
            scaler.transform(numbers.clip(low, high)[:, :1])[:, 0],
            (numbers.clip(low, high)[:, 1] - train["other"].mean()) / train["other"].std(ddof=0),
        ]
    )
    one_hot = table["color"].to_dummies().to_numpy()
    missing = table["other"].is_null().to_numpy()
    return np.column_stack([scaled, one_hot, missing, ~missing])


@pytest.mark.parametrize("task", ["regression", "binary", "multiclass"])
def test_outputs_are_those_of_scikit_learn(task: str, tmp_path: Path) -> None:
    """Wrong codes or scales would start half of the members from a wrong model."""
    table = write_table(tmp_path, task)
    data = prepared()
    schema, test = data.schema, data.splits["test"]
    assert schema is not None
    assert isinstance(test.x, dict)
    x, y = expected_inputs(table), table["y"].to_numpy()
    candidates = []
    for power in range(-3, 3):
        if task == "regression":
            scale = StandardScaler().fit(y[:300, None])
            scaled = scale.transform(y[:, None])[:, 0]
            ridge = Ridge(alpha=10.0**-power).fit(x[:300], scaled[:300])
            loss = np.mean((ridge.predict(x[300:350]) - scaled[300:350]) ** 2)
            candidates.append((loss, ridge.predict(x[350:])[:, None]))
        else:
            logistic = LogisticRegression(C=10.0**power, max_iter=1000).fit(x[:300], y[:300])
            chosen = np.searchsorted(logistic.classes_, y[300:350])
            loss = -logistic.predict_log_proba(x[300:350])[np.arange(50), chosen].mean()
            outputs = logistic.decision_function(x[350:]).reshape(50, -1)
            candidates.append((loss, outputs))
    net = TabM(schema, linear=True)
    assert net.linear is not None
    _, categories = net.table(test.x)
    outputs = net.linear(test.x["numeric"], categories).numpy()
    best = min(candidates, key=lambda candidate: candidate[0])[1]
    np.testing.assert_allclose(outputs, best, atol=0.02)


def test_a_new_net_predicts_as_the_linear_model_in_half_of_its_members(tmp_path: Path) -> None:
    write_table(tmp_path, "binary")
    data = prepared()
    assert data.schema is not None
    x = data.splits["val"].x
    assert isinstance(x, dict)
    net = TabM(data.schema, members=4, linear=True).eval()
    outputs, (_, categories) = net(x), net.table(x)
    assert net.linear is not None
    expected = net.linear(x["numeric"], categories)
    torch.testing.assert_close(outputs[:, 0], expected)
    torch.testing.assert_close(outputs[:, 1], expected)
    assert not torch.allclose(outputs[:, 2], expected, atol=0.1)
    loss = outputs.square().mean()
    loss.backward()  # type: ignore[no-untyped-call]
    weight = dict(net.ensemble.output.named_parameters())["weight"]
    assert weight.grad is not None
    assert weight.grad[0].abs().sum() > 0


def test_missing_and_unknown_values_and_far_numbers_give_bounded_outputs(tmp_path: Path) -> None:
    """A number of 1e30 would outvote all else; a training row holds the largest one."""
    write_table(tmp_path, "regression")
    schema = prepared().schema
    assert schema is not None
    layer = FittedLinear(schema, TableInputs(schema).cardinalities)
    categories = torch.tensor([[0, 0], [1, 1], [2, 0]])
    numbers = torch.tensor([[torch.nan, torch.nan], [1e30, -1e30], [-1e30, 1e30]])
    assert layer(numbers, categories).abs().max() < 20


def test_the_schema_survives_json(tmp_path: Path) -> None:
    write_table(tmp_path, "multiclass")
    schema = prepared().schema
    assert schema is not None
    assert Schema.from_dict(schema.to_dict()) == schema


def test_large_tables_have_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_table(tmp_path, "binary")
    monkeypatch.setattr(linear, "MAX_ROWS", 299)
    schema = prepared().schema
    assert schema is not None
    assert schema.linear == ()
    assert TabM(schema, linear=True).linear is None
