"""Runs to export: a table with everything that is hard to read, images, arrays of every task."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from PIL import Image

from conftest import Cli, Once

RUN = Path("lightning_logs/version_0")
BUNDLE = RUN / "bundle"
FEW_EPOCHS = ["--trainer.max_epochs", "2", "--trainer.accelerator", "cpu"]

Exported = Callable[..., Path]


def write_table(path: str = "table.csv", rows: int = 300, typed: bool = False) -> None:
    """Write a table of numbers, dates and categories with missing, odd and rare values."""
    rng = np.random.default_rng(0)
    amounts = rng.normal(1500, 300, rows)
    days = [np.datetime64("2015-01-01") + int(day) for day in rng.integers(0, 3000, rows)]
    seconds = 1_700_000_000 + rng.integers(0, 1000, rows)
    plans: list[Any] = rng.choice(["basic", "plus", "Größe"], rows).tolist()
    for i in rng.choice(rows, 20, replace=False):
        plans[i] = f"rare{i}" if i % 2 else None
    columns: dict[str, Any] = {
        "tenure": rng.integers(1, 60, rows),
        "seconds": seconds,
        "plan": plans,
        "zip": rng.choice(["00501", "10115", "94110"], rows),
    }
    missing, odd = rng.choice(rows, 20, replace=False), rng.choice(rows, 4, replace=False)
    if typed:
        amount = np.where(np.isin(range(rows), missing), np.nan, amounts)
        moments = [day.item() if i % 7 else None for i, day in enumerate(days)]
        columns |= {"amount": amount, "since": pl.Series(moments).cast(pl.Datetime("ns"))}
        columns |= {"active": amounts > 1500, "level": rng.choice([0.1, 2.0], rows).astype("f4")}
        columns["level"] = pl.Series(columns["level"], dtype=pl.Float32)
    else:
        written = [f"€ {amount:,.2f}" for amount in amounts]
        for i in missing:
            written[i] = "n/a"
        for i in odd:
            written[i] = "oops"
        dates = [f"{d.day}.{d.month}.{d.year} 1{d.day % 10}:05" for d in (x.item() for x in days)]
        columns |= {"amount": written, "since": dates, "active": np.where(amounts > 1500, "t", "f")}
    score = columns["tenure"] + amounts / 100 + rng.normal(0, 5, rows)
    columns |= {
        "binary": np.where(score > 45, "yes", "no"),
        "multiclass": np.digitize(score, [35, 50]) * 10,
        "label_a": (score > 40).astype(int),
        "label_b": (amounts > 1500).astype(int),
        "regression": score * 1000 + 1e6 + 0.5,
        "second": -score / 7,
    }
    frame = pl.DataFrame(columns, strict=False)
    frame.write_parquet(path) if typed else frame.write_csv(path)


TARGETS = {
    "binary": "binary",
    "multiclass": "multiclass",
    "multilabel": "label_a,label_b",
    "regression": "regression,second",
}


def write_images(folder: str = "images", per_class: int = 30) -> None:
    """Write photographs of two classes in several sizes, modes and formats."""
    rng = np.random.default_rng(0)
    for label, shade in (("dark", 60), ("light", 150)):
        Path(folder, label).mkdir(parents=True)
        for i in range(per_class):
            height, width = rng.integers(20, 60, 2)
            pixels = rng.integers(0, 90, (height, width, 3)) + shade
            smooth = Image.fromarray(pixels.astype(np.uint8)).resize((width * 2, height * 2))
            mode, suffix = [("RGB", "jpg"), ("L", "png"), ("RGBA", "png"), ("P", "gif")][i % 4]
            exif = Image.Exif()
            exif[0x0112] = 1 + i % 8
            options = {"exif": exif} if suffix == "jpg" else {}
            smooth.convert(mode).save(Path(folder, label, f"{i}.{suffix}"), **options)


@pytest.fixture
def table_run(work: Path, cli: Cli, once: Once) -> Callable[..., None]:
    """Train and test a net on the table, once for each combination of the arguments."""

    def train(task: str = "binary", net: str = "TabM", typed: bool = False) -> None:
        def write() -> None:
            path = "table.parquet" if typed else "table.csv"
            write_table(path, typed=typed)
            targets = TARGETS[task]
            drop = ",".join(set(TARGETS.values()) - {targets}).split(",")
            columns = "{" + ", ".join(f"{name}: drop" for name in drop) + "}"
            options = ["--target", targets, "--output", "table.yaml"]
            cli("init", path, *options)
            small = ["--model.net", net]
            if net == "TabM":
                small += ["--model.net.members", 3, "--model.net.width", 8, "--model.net.blocks", 1]
                small += ["--model.net.embedding", 4]
            else:  # The option of TabM would hold for the other net, too.
                config = Path("table.yaml").read_text(encoding="utf-8")
                Path("table.yaml").write_text(config.replace("dropout: 0.2", "dropout: 0.0"))
            cli("fit", "--config", "table.yaml", *small, "--data.columns", columns, *FEW_EPOCHS)
            cli("test")

        once(f"table_{task}_{net}_{typed}", write)

    return train


@pytest.fixture
def image_run(work: Path, cli: Cli, once: Once) -> Callable[..., None]:
    """Train and test a net on the images, once."""

    def train(mirror: bool = True, npz: bool = False, mixed: bool = False) -> None:
        def write() -> None:
            write_images()
            data = ["--data", "Images", "--data.path", "images", "--data.size", 24]
            if npz:
                rng = np.random.default_rng(0)
                x = rng.integers(0, 255, (60, 12, 10, 3), dtype=np.uint8)
                np.savez("images.npz", x=x, y=np.arange(60) % 2)
                data = ["--data", "Images", "--data.path", "images.npz"]
            net = ["--model.net", "CNN", "--model.net.width", 4, "--model.net.mirror", mirror]
            mixing = ["--model.mixup", 0.2, "--model.cutmix", 1] if mixed else []
            model = ["--model", "BinaryClassifier", *net, *mixing]
            cli("fit", *data, *model, "--data.batch_size", 16, *FEW_EPOCHS)
            cli("test")

        once(f"images_{mirror}_{npz}_{mixed}", write)

    return train


@pytest.fixture
def table_bundle(table_run: Callable[..., None], cli: Cli, once: Once) -> None:
    """The run on the table with its bundle."""
    table_run()
    once("table_bundle", lambda: cli("export"))


@pytest.fixture
def image_bundle(image_run: Callable[..., None], cli: Cli, once: Once) -> None:
    """The run on the images with its bundle."""
    image_run()
    once("image_bundle", lambda: cli("export"))


def copy_bundle(name: str = "copy") -> Path:
    """Copy the bundle of the run, to change the copy."""
    shutil.copytree(BUNDLE, name)
    return Path(name)
