"""What is damaged, and the command lines that read it: a table."""

import io
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import torch
import yaml

from conftest import MODELS, make_arrays
from engine.faults.experiments import write_pictures, write_table
from engine.fuzz.mutations import (
    damage_arrays,
    damage_bytes,
    damage_table,
    damage_text,
    damage_value,
    damage_zip,
    deep,
)
from proj.engine.runs import checkpoint_file

Damage = Callable[[bytes, Random], bytes]
RUN = "lightning_logs/run"
TRAINED = ["fit", "--config", "experiment.yaml", "--name", "run"]
TESTED = [TRAINED, ["test", "--run", "run"]]
TABLE_TESTED = [
    *TESTED,
    ["validate", "--run", "run", "--calibrate", "temperature", "--threshold", "f1"],
    ["validate", "--run", "run", "--importance"],
]


class Target(NamedTuple):
    """One row of the table.

    Attributes:
        name: what is damaged.
        files: a glob of the files, of which one is damaged.
        damages: ways to damage it; one of them is drawn.
        commands: command lines, of which one is drawn.
        prepare: writes what is needed into a folder.
        before: command lines that are run first, without damage.
        share: share of all files.
    """

    name: str
    files: str
    damages: tuple[Damage, ...]
    commands: tuple[str, ...]
    prepare: Callable[[Path], None]
    before: Sequence[list[str]] = ()
    share: float = 1.0


# Damage to the values of a format


def damage_json(content: bytes, rng: Random) -> bytes:
    return json.dumps(damage_value(json.loads(content), rng)).encode()


def damage_yaml(content: bytes, rng: Random) -> bytes:
    value = damage_value(yaml.safe_load(content), rng)
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True).encode()


def deep_text(content: bytes, rng: Random) -> bytes:
    return deep(rng)


def damage_checkpoint(content: bytes, rng: Random) -> bytes:
    """Change values in a checkpoint, and give it the checksum of the new content."""
    checkpoint = damage_value(torch.load(io.BytesIO(content), weights_only=True), rng)
    out = io.BytesIO()
    checkpoint_file.save(checkpoint, out)
    return out.getvalue()


def damage_parquet(content: bytes, rng: Random) -> bytes:
    """Change types, names, values and the order of columns and rows."""
    table = pl.read_parquet(io.BytesIO(content))
    name = rng.choice(table.columns)
    column = pl.col(name)
    changes: list[Callable[[], pl.DataFrame]] = [
        lambda: table.drop(name),
        lambda: table.rename({name: rng.choice(("", "other", "x" * 500, "a\nb", "row "))}),
        lambda: table.with_columns(pl.lit(None).alias(name)),
        lambda: table.with_columns(column.cast(pl.String)),
        lambda: table.with_columns(column.cast(pl.String).cast(pl.Binary)),
        lambda: table.with_columns(pl.concat_list(column, column).alias(name)),
        lambda: table.with_columns(pl.struct(column, b=column).alias(name)),
        lambda: table.with_columns(column.cast(pl.String).cast(pl.Categorical)),
        lambda: table.with_columns(pl.lit(float(rng.choice(("nan", "inf", "1e308")))).alias(name)),
        lambda: table.with_columns(pl.lit(-1).alias(name)),
        lambda: table.with_columns(pl.duration(days=pl.int_range(len(table))).alias(name)),
        lambda: table.with_columns(pl.lit(0).cast(pl.Time).alias(name)),
        lambda: table.with_columns(pl.lit("1.5").cast(pl.Decimal(10, 2)).alias(name)),
        lambda: table.clear(),
        lambda: table.head(1),
        lambda: pl.concat([table, table]),
        lambda: table.reverse(),
        lambda: table.select(reversed(table.columns)),
    ]
    out = io.BytesIO()
    rng.choice(changes)().write_parquet(out)
    return out.getvalue()


# Folders


def experiment(folder: Path, task: str, data: dict[str, Any], **net: Any) -> None:
    chosen = {"class_path": "MLP", "init_args": {"hidden": [4]}}
    config = {
        "seed_everything": 1,
        "trainer": {"max_epochs": 1, "accelerator": "cpu", "log_every_n_steps": 1},
        "model": {
            "class_path": MODELS[task],
            "init_args": {"net": net or chosen, "steps_per_execution": 4},
        },
        "data": data,
    }
    (folder / "experiment.yaml").write_text(yaml.safe_dump(config, sort_keys=False))


def of_arrays(folder: Path) -> None:
    np.savez(folder / "data.npz", **make_arrays("multiclass", 60))
    np.savez(folder / "rows.npz", x=make_arrays("multiclass", 9)["x"])
    data = {"class_path": "ArrayDataModule", "init_args": {"path": "data.npz", "batch_size": 16}}
    experiment(folder, "multiclass", data)


def of_table(folder: Path) -> None:
    write_table(folder / "table.csv", 90)
    table = pl.read_csv(folder / "table.csv", try_parse_dates=True)
    table.write_csv(folder / "table.tsv", separator="\t")
    table.write_parquet(folder / "table.parquet")
    table.drop("label").head(9).write_csv(folder / "rows.csv")
    options = {"path": "table.csv", "target": "label", "batch_size": 16}
    experiment(folder, "binary", {"class_path": "Tabular", "init_args": options})


def of_pictures(folder: Path) -> None:
    write_pictures(folder / "pictures", 8)
    rng = np.random.default_rng(0)
    pixels = (rng.random((16, 8, 8)) * 255).astype(np.uint8)
    np.savez(folder / "pictures.npz", x=pixels, y=np.arange(16) % 2)
    from PIL import Image

    for i, suffix in enumerate(("jpg", "gif", "bmp", "webp", "tif", "png")):
        mode = ("RGB", "P", "L", "RGB", "I;16", "RGBA")[i]
        picture = (
            Image.fromarray(pixels[i]).convert(mode) if mode != "I;16" else Image.new(mode, (8, 8))
        )
        picture.save(folder / "pictures" / "dark" / f"other.{suffix}")
    shutil.copytree(folder / "pictures" / "light", folder / "rows")
    options = {"path": "pictures", "batch_size": 8}
    net = {"class_path": "CNN", "init_args": {"width": 2}}
    experiment(folder, "binary", {"class_path": "Images", "init_args": options}, **net)


def of_study(folder: Path) -> None:
    of_arrays(folder)
    section = {
        "experiment": "experiment.yaml",
        "trials": 3,
        "sampler": {"class_path": "TPESampler", "init_args": {"n_startup_trials": 1}},
        "pruner": {"class_path": "MedianPruner", "init_args": {"n_startup_trials": 1}},
        "space": {
            "model.optimizer.lr": {"log": [0.001, 0.1]},
            "model.net.hidden": {"choice": [[8], [16, 8], []]},
            "data.batch_size": {"int": [8, 16]},
            "model.net.dropout": {"float": [0.0, 0.5], "when": {"model.net.hidden": [[8]]}},
        },
    }
    (folder / "study.yaml").write_text(yaml.safe_dump(section, sort_keys=False))


# The table

TEXT = (damage_table, damage_table, damage_table, damage_text, damage_bytes)
CHECK = "check --config experiment.yaml"
OF_A_RUN = (
    "runs",
    "report run",
    "test --run run",
    "compare run run2",
    "test",
    "validate --run run",
)
INIT = "init {file} --target label --output out.yaml"

TARGETS = [
    Target("CSV", "table.csv", TEXT, (INIT, CHECK), of_table, share=3),
    Target("TSV", "table.tsv", TEXT, (INIT,), of_table),
    Target("Parquet", "table.parquet", (damage_bytes, damage_parquet), (INIT,), of_table, share=2),
    Target(
        "new rows in CSV",
        "rows.csv",
        TEXT,
        ("predict --run run --data.predict_path rows.csv",),
        of_table,
        [TRAINED],
        share=0.5,
    ),
    Target(
        "arrays in .npz",
        "data.npz",
        (damage_bytes, damage_zip, damage_arrays),
        (CHECK,),
        of_arrays,
        share=2,
    ),
    Target(
        "new rows in .npz",
        "rows.npz",
        (damage_bytes, damage_zip, damage_arrays),
        ("predict --run run --data.predict_path rows.npz",),
        of_arrays,
        [TRAINED],
        share=0.5,
    ),
    Target(
        "pictures",
        "pictures/*/*",
        (damage_bytes,),
        ("init pictures --output out.yaml", CHECK, f"{CHECK} --data.skip_unreadable true"),
        of_pictures,
        share=3,
    ),
    Target(
        "pictures in .npz",
        "pictures.npz",
        (damage_bytes, damage_zip, damage_arrays),
        ("init pictures.npz --output out.yaml",),
        of_pictures,
    ),
    Target(
        "new pictures",
        "rows/*",
        (damage_bytes,),
        ("predict --run run --data.predict_path rows",),
        of_pictures,
        [TRAINED],
        share=0.5,
    ),
    Target(
        "cache of a table",
        ".cache/**/*",
        (damage_bytes, damage_text),
        (CHECK,),
        of_table,
        [CHECK.split()],
        share=0.5,
    ),
    Target(
        "experiment",
        "experiment.yaml",
        (damage_text, damage_yaml, damage_yaml, damage_bytes, deep_text),
        (CHECK,),
        of_arrays,
        share=3,
    ),
    Target(
        "experiment of a table",
        "experiment.yaml",
        (damage_text, damage_yaml, damage_yaml, damage_bytes),
        (CHECK,),
        of_table,
    ),
    Target(
        "study",
        "study.yaml",
        (damage_text, damage_yaml, damage_yaml, damage_bytes, deep_text),
        ("tune --config study.yaml",),
        of_study,
        share=2,
    ),
    Target(
        "journal of a study",
        "lightning_logs/studies/study/study.journal",
        (damage_text, damage_bytes),
        ("tune --config study.yaml --n_trials 5",),
        of_study,
        [["tune", "--config", "study.yaml"]],
        share=0.5,
    ),
    Target(
        "checkpoint",
        f"{RUN}/checkpoints/best.ckpt",
        (damage_bytes, damage_zip, damage_checkpoint, damage_checkpoint),
        ("test --run run", "predict --run run", "validate --run run", "report run"),
        of_arrays,
        TESTED,
        share=3,
    ),
    Target(
        "checkpoint for a resume",
        f"{RUN}/checkpoints/last.ckpt",
        (damage_bytes, damage_zip, damage_checkpoint, damage_checkpoint),
        (
            "fit --resume run --trainer.max_epochs 2",
            "fit --config experiment.yaml --init_from lightning_logs/run/checkpoints/last.ckpt",
        ),
        of_arrays,
        [TRAINED],
        share=1,
    ),
    Target(
        "checkpoint of a table",
        f"{RUN}/checkpoints/best.ckpt",
        (damage_zip, damage_checkpoint, damage_checkpoint),
        ("predict --run run", "predict --run run --data.predict_path rows.csv", "report run"),
        of_table,
        TESTED,
    ),
    Target(
        "manifest.json",
        f"{RUN}/manifest.json",
        (damage_text, damage_json, damage_json, damage_bytes, deep_text),
        (*OF_A_RUN, "fit --resume run --trainer.max_epochs 2"),
        of_arrays,
        TESTED,
    ),
    Target(
        "config.yaml of a run",
        f"{RUN}/config.yaml",
        (damage_text, damage_yaml, damage_yaml, damage_bytes, deep_text),
        OF_A_RUN,
        of_arrays,
        TESTED,
    ),
    Target(
        "JSON files of a run",
        f"{RUN}/**/*.json",
        (damage_text, damage_json, damage_json, damage_bytes, deep_text),
        (*OF_A_RUN, "predict --run run"),
        of_table,
        TABLE_TESTED,
        share=2,
    ),
    Target(
        "predictions.parquet",
        f"{RUN}/*/predictions.parquet",
        (damage_bytes, damage_parquet, damage_parquet),
        ("report run", "compare run run2", "runs"),
        of_table,
        TABLE_TESTED,
        share=2,
    ),
    Target(
        "artifacts of a run",
        f"{RUN}/test/*",
        (damage_bytes, damage_text),
        ("report run",),
        of_pictures,
        TESTED,
        share=0.5,
    ),
    Target(
        "curves of a run",
        f"{RUN}/events.out.tfevents*",
        (damage_bytes,),
        ("report run",),
        of_arrays,
        TESTED,
        share=0.5,
    ),
]
