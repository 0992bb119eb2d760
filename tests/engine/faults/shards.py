"""Evaluate data sets of 1 to 40 rows in one process group and write the results. For torchrun."""

import json
import logging
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Trainer

from conftest import make_arrays
from proj.data.base import DataModule
from proj.engine.callbacks.prediction_writer import PredictionWriter
from proj.models.classification import MulticlassClassifier
from proj.nets.mlp import MLP
from proj.schema import Batch, Schema

TRAINED = (1, 2, 3, 7, 40)  # sizes that are also evaluated within fit


class Rows(DataModule):
    """A data module with ``rows`` rows in each evaluated split and 23 to train on."""

    def __init__(self, rows: int) -> None:
        super().__init__(batch_size=4, shuffle=True)
        arrays = make_arrays("multiclass", 64)
        all_rows = Batch(
            torch.from_numpy(arrays["x"]), torch.from_numpy(arrays["y"] // 10), torch.arange(64)
        )
        splits = {
            "train": slice(41, 64),
            "val": slice(rows),
            "test": slice(rows),
            "predict": slice(rows),
        }
        assert isinstance(all_rows.x, torch.Tensor)
        assert all_rows.y is not None
        self.splits = {
            name: Batch(
                all_rows.x[rows_of_split], all_rows.y[rows_of_split], all_rows.row[rows_of_split]
            )
            for name, rows_of_split in splits.items()
        }
        self.schema = Schema(
            task="multiclass",
            input_shape=(6,),
            input_type="float32",
            input_names=tuple("abcdef"),
            input_mean=(0.0,) * 6,
            input_std=(1.0,) * 6,
            target_names=("y",),
            classes=("r", "s", "t"),
            class_counts=(8, 8, 7),
            target_mean=(),
            target_std=(),
            rows=23,
            columns=(),
        )

    @classmethod
    def encode(cls, rows: Any, schema: Schema) -> Any:
        raise AssertionError("the test encodes no raw rows")


def model() -> MulticlassClassifier:
    torch.manual_seed(0)
    return MulticlassClassifier(
        net=lambda schema: MLP(schema, hidden=(8,)), optimizer=lambda p: torch.optim.SGD(p, 0.5)
    )


def trainer(world: int, *callbacks: Any, **options: Any) -> Trainer:
    return Trainer(
        accelerator="cpu",
        devices=world,
        strategy="ddp" if world > 1 else "auto",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        use_distributed_sampler=False,
        callbacks=list(callbacks),
        **options,
    )


def main(folder: Path, world: int, numbers_of_rows: list[int]) -> None:
    results: dict[str, Any] = {}
    for rows in numbers_of_rows:
        tests = trainer(world, PredictionWriter(folder / f"test_{rows}.parquet"))
        tests.test(model(), datamodule=Rows(rows), verbose=False)
        results[f"test {rows}"] = {
            name: value.item() for name, value in tests.callback_metrics.items()
        }
        trainer(world, PredictionWriter(folder / f"predict_{rows}.parquet")).predict(
            model(), datamodule=Rows(rows), return_predictions=False
        )
    for rows in TRAINED:
        fits, trained, data = trainer(world, max_epochs=2), model(), Rows(rows)
        fits.fit(trained, datamodule=data)
        with torch.no_grad():
            outputs = trained.cpu().eval()(data.splits["val"].x)
        results[f"fit {rows}"] = {
            name: value.item() for name, value in fits.callback_metrics.items()
        }
        results[f"fit {rows}"]["direct"] = float(
            (outputs.argmax(1) == data.splits["val"].y).double().mean()
        )
    if tests.is_global_zero:
        (folder / "results.json").write_text(json.dumps(results))


if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    np.seterr(all="raise")
    main(Path(sys.argv[1]), int(sys.argv[2]), list(map(int, sys.argv[3:])))
