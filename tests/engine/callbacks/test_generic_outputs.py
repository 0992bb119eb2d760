"""Outputs of a user's own steps as a table."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from conftest import Cli
from proj.engine.callbacks.generic_outputs import (
    NoTable,
    columns_of,
    described,
    left_out,
    rows_in,
    table_of,
)
from proj.engine.runs.predictions import writer
from proj.schema import Batch

LOGS = Path("lightning_logs/version_0")


def table(*batches: Any) -> pl.DataFrame:
    chunks = []
    for i, batch in enumerate(batches):
        columns = columns_of(batch)
        assert columns is not None
        size = len(next(iter(columns.values())))
        chunks.append({"row": np.arange(size) + 10 * i, **columns})
    return table_of(chunks)


def test_arrays_of_equal_shape_are_numbered_columns() -> None:
    made = table(torch.arange(4).view(2, 2), torch.arange(2).view(1, 2))
    assert made.to_dict(as_series=False) == {
        "row": [0, 1, 10],
        "prediction_0": [0, 2, 0],
        "prediction_1": [1, 3, 1],
    }


def test_many_columns_are_arrays() -> None:
    """A segmentation would become a table of 131,072 columns."""
    masks = torch.rand(3, 2, 64, 64)
    made = table({"mask": masks})
    assert made.columns == ["row", "mask"]
    file = io.BytesIO()
    made.write_parquet(file)
    file.seek(0)
    read = pl.read_parquet(file)["mask"]
    assert np.array_equal(np.array(read.to_list(), np.float32), masks.numpy())


def test_arrays_of_unequal_shape_are_lists() -> None:
    """The tags of sentences of several lengths: the whole pass would run and then fail."""
    made = table({"tags": torch.ones(2, 3, dtype=torch.int32)}, {"tags": torch.zeros(1, 5).int()})
    assert made["tags"].to_list() == [[1, 1, 1], [1, 1, 1], [0, 0, 0, 0, 0]]
    assert made["tags"].dtype == pl.List(pl.Int32)
    scores = table(torch.zeros(1, 2, 4), torch.ones(2, 3, 4))
    assert scores["prediction"].dtype == pl.List(pl.List(pl.Float32))
    assert scores["prediction"].list.len().to_list() == [2, 3, 3]


BOXES = [
    {"boxes": torch.zeros(2, 4), "labels": torch.tensor([1, 2])},
    {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)},
]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([torch.tensor([1, 2]), torch.tensor([3])], [[1, 2], [3]]),
        (["a", "b"], ["a", "b"]),
        ([torch.tensor(1.5), torch.tensor(2.5)], [1.5, 2.5]),
        ([[1, 2], []], [[1, 2], []]),
        (np.array([3, 4]), [3, 4]),
        (torch.tensor([1.5, 2.5]).bfloat16(), [1.5, 2.5]),
        (
            BOXES,
            [{"boxes": [[0.0] * 4] * 2, "labels": [1, 2]}, {"boxes": [], "labels": []}],
        ),
    ],
    ids=["tensors", "texts", "scalars", "lists", "an array", "bfloat16", "boxes"],
)
def test_values_of_rows(values: Any, expected: list[Any]) -> None:
    assert table({"a": values})["a"].to_list() == expected


@pytest.mark.parametrize(
    "outputs",
    [
        None,
        torch.tensor(1.0),
        {},
        {"loss": torch.tensor(1.0)},
        {"a": torch.zeros(2), "b": torch.zeros(3)},
        (torch.zeros(2), torch.zeros(2)),
        {"a": "text"},
    ],
    ids=repr,
)
def test_other_outputs_are_no_rows(outputs: Any) -> None:
    assert columns_of(outputs) is None


def test_entries_without_rows_are_left_out() -> None:
    """A step that returns its loss beside the predictions would leave no predictions file."""
    outputs = {"a": torch.zeros(2), "loss": torch.tensor(1.0), "note": "x", "b": ["u", "v"]}
    columns = columns_of(outputs)
    assert columns is not None
    assert [*columns] == ["a", "b"]
    assert described(left_out(outputs)) == "loss: Tensor [], note: str"
    assert described({"a": [1, 2], "b": np.zeros((3, 4))}) == "a: list of 2, b: ndarray [3, 4]"


def test_the_rows_of_a_batch() -> None:
    """Outputs of too many rows would be written with the numbers of other rows."""
    x = torch.zeros(35, 3, 6)
    stacked = DataLoader(TensorDataset(x), batch_size=16)
    assert [rows_in(batch, stacked, i) for i, batch in enumerate(stacked)] == [16, 16, 3]
    assert rows_in({"x": x[:16], "mask": x[:5]}, stacked, 0) == 16
    assert rows_in(Batch(x, None, torch.arange(35)), None, 0) == 35
    # The first axis of these is not the rows.
    assert rows_in(list(x[:16]), stacked, 0) is None
    assert rows_in(x[:16].transpose(0, 1), stacked, 0) is None
    assert rows_in(x, DataLoader(x, batch_size=None), 0) is None
    assert rows_in(["a", "b"], stacked, 0) is None


def test_batches_of_other_names_are_no_table() -> None:
    with pytest.raises(NoTable, match="names differ"):
        table({"a": torch.zeros(2)}, {"b": torch.zeros(2)})
    with pytest.raises(NoTable, match="a holds values of several types"):
        table({"a": ["x", 1]})


def test_csv_holds_lists_as_json(work: Path) -> None:
    """polars refuses to write lists as CSV, after all forward passes."""
    made = table({"tags": [torch.tensor([1, 2]), torch.tensor([3])], "mask": torch.zeros(2, 200)})
    with Path("a.csv").open("wb") as file:
        writer(Path("a.csv"))(made, file)
    read = pl.read_csv("a.csv")
    assert [json.loads(text) for text in read["tags"]] == [[1, 2], [3]]
    assert json.loads(read["mask"][0]) == [0.0] * 200


OWN = """
import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import nn
from torch.utils.data import DataLoader


class Rows(LightningDataModule):
    def setup(self, stage):
        self.x = torch.arange(120.0).view(20, 6) / 100

    def train_dataloader(self):
        return DataLoader(self.x, batch_size=8)

    val_dataloader = test_dataloader = predict_dataloader = train_dataloader


class Tagger(LightningModule):
    def __init__(self, outputs: str = "ragged"):
        super().__init__()
        self.net, self.outputs = nn.Linear(6, 1), outputs

    def training_step(self, batch, batch_idx):
        return self.net(batch).square().mean()

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", self.net(batch).square().mean())

    def test_step(self, batch, batch_idx):
        self.log("test/loss", batch.mean())
        if self.outputs == "sometimes" and batch_idx == 1:
            return None
        if self.outputs == "unequal":
            return {"a": batch, "b": batch[:1]}
        if self.outputs == "loss":
            return {"test_loss": batch.mean(), "tags": batch}
        return {"tags": batch[:, : 2 + batch_idx]}

    def predict_step(self, batch, batch_idx):
        if self.outputs == "boxes":
            return {"boxes": batch.repeat(2, 1)}
        return self.test_step(batch, batch_idx)["tags"]

    def log(self, *args, **kwargs):
        if not self.trainer.predicting:
            super().log(*args, **kwargs)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.01)
"""


@pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers")
def test_metrics_are_kept_whatever_the_outputs_are(cli: Cli, work: Path) -> None:
    """`test` would end in an error after the whole pass, or give rows to the wrong numbers."""
    (work / "own.py").write_text(OWN)
    flags = ["--trainer.accelerator", "cpu", "--trainer.max_epochs", "1"]
    cli(
        "fit",
        "--model",
        "own.Tagger",
        "--data",
        "own.Rows",
        *flags,
    )
    x = torch.arange(120.0).view(20, 6) / 100
    rows = [x[i, : 2 + i // 8].tolist() for i in range(20)]
    test, predict = LOGS / "test", LOGS / "predict/predictions.parquet"
    cli("test")
    made = pl.read_parquet(test / "predictions.parquet")
    assert made["row"].to_list() == list(range(20))
    assert [pytest.approx(tags) for tags in made["tags"].to_list()] == rows
    cli("predict")
    assert [pytest.approx(tags) for tags in pl.read_parquet(predict)["prediction"]] == rows
    cli("predict", "--output", "p.csv")
    assert json.loads(pl.read_csv("p.csv")["prediction"][19]) == pytest.approx(rows[19])
    for outputs, warns in (
        ("sometimes", "some batches have no outputs"),
        ("unequal", r"got a: Tensor \[8, 6\], b: Tensor \[1, 6\], for a batch of 8 rows"),
    ):
        (test / "metrics.json").unlink()
        test_args = ("test", "--model.outputs", outputs)
        with pytest.warns(UserWarning, match=warns):
            cli(*test_args)
        metrics = json.loads((test / "metrics.json").read_text())
        assert metrics["loss"]["value"] == pytest.approx(x.mean().item())
        assert not (test / "predictions.parquet").exists()
    with pytest.warns(UserWarning, match=r"test_loss: Tensor \[\], .* without test_loss"):
        cli("test", "--model.outputs", "loss")
    assert pl.read_parquet(test / "predictions.parquet").columns[:2] == ["row", "tags_0"]
    message = cli("predict", "--model.outputs", "boxes", code=2)
    assert "got a dict of boxes: Tensor [16, 6] for a batch of 8 rows" in message


SUBCLASS = """
import torch
from proj.models.base import Net
from proj.models.classification import MulticlassClassifier


class More(MulticlassClassifier):
    def __init__(self, net: Net, more: str = "equal", **kwargs):
        super().__init__(net, **kwargs)
        self.more = more

    def test_step(self, batch, batch_idx):
        outputs = super().test_step(batch, batch_idx)
        rows = outputs["row"]
        if self.more == "equal":
            return {**outputs, "twice": 2 * rows, "prediction": rows}
        if self.more == "ragged":
            return {**outputs, "attention": torch.ones(len(rows), 2 + batch_idx)}
        return {"own": rows}
"""


@pytest.mark.parametrize("more", ["equal", "ragged", "own"])
def test_a_model_that_returns_more_or_other_than_ours(
    more: str, experiment: Any, cli: Cli, work: Path, once: Any
) -> None:
    """`test` would end in an error after the whole pass, or lose intervals and report."""
    (work / "own.py").write_text(SUBCLASS)
    config = experiment()
    once("own_outputs", lambda: cli("fit", "--config", config, "--model", "own.More"))
    cli("test", "--model.more", more, "--trainer.limit_test_batches", "1.0")
    metrics = json.loads((LOGS / "test/metrics.json").read_text())
    made = pl.read_parquet(LOGS / "test/predictions.parquet")
    assert ("low" in metrics["f1"]) == (more != "own")
    if more == "equal":
        assert made["twice"].to_list() == [2 * row for row in made["row"].to_list()]
        assert made["kept_prediction"].to_list() == made["row"].to_list()
    elif more == "ragged":
        assert {"prediction", "probability_0", "attention_0"} <= {*made.columns}
    else:
        assert made.columns == ["row", "own"]
    assert (LOGS / "report.html").is_file() == (more != "own")
