"""Runs with an encoder of texts that is defined in the user's own module."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
import yaml
from polars.testing import assert_frame_equal

import proj
from conftest import Cli
from proj.engine.runs.checkpoint_file import read_checkpoint
from proj.errors import UserError

OWN = """
from pathlib import Path

import numpy as np
from proj.data.tabular.text_encoder import TextEncoder

class Letters(TextEncoder):
    def __init__(self, path: str, size: int = 26) -> None:
        self.path, self.size = path, size

    def encode(self, texts):
        start = int(Path(self.path).read_text())
        letters = [chr(start + i) for i in range(self.size)]
        return np.array([[t.lower().count(c) for c in letters] for t in texts], dtype=np.float32)
"""
GOOD, BAD = ["zzz", "zyz", "xyz"], ["zzz", "zxz", "zxy"]
NAME = "review.score yes by Letters"
LETTERS = {"class_path": "Letters", "init_args": {"path": "first_letter.txt"}}


def write_experiment(encoder: Any = LETTERS, **options: Any) -> str:
    """Write a module, a table whose targets follow the letters of its texts, and an experiment."""
    Path("own.py").write_text(OWN)
    Path("first_letter.txt").write_text("97")
    draw = np.random.default_rng(0)
    labels = draw.integers(0, 2, 240)
    texts = [
        " ".join(
            "".join(draw.choice(list("abcdefgh" if y else "efghijkl"), 4))
            for _ in range(draw.integers(4, 8))
        )
        for y in labels
    ]
    named = np.where(labels, "yes", "no")
    size = draw.normal(size=240)
    texts = [f"{t} {draw.choice(GOOD if y else BAD)}" for t, y in zip(texts, labels, strict=True)]
    table = pl.DataFrame({"review": texts, "size": size, "y": named})
    table.write_csv("table.csv")
    data = {
        "class_path": "Tabular",
        "init_args": {
            "path": "table.csv",
            "target": "y",
            "batch_size": 32,
            "columns": {"review": "text"},
            "text_encoder": encoder,
            **options,
        },
    }
    model = {"class_path": "BinaryClassifier", "init_args": {"net": "MLP"}}
    config = {"trainer": {"max_epochs": 3, "accelerator": "cpu"}, "model": model, "data": data}
    Path("experiment.yaml").write_text(json.dumps(config))
    return "experiment.yaml"


def inputs(run: str) -> list[str]:
    return list(
        read_checkpoint(Path(f"lightning_logs/{run}/checkpoints/best.ckpt"))["schema"][
            "input_names"
        ]
    )


@pytest.mark.long
def test_all_verbs_that_read_rows_use_the_encoder(cli: Cli) -> None:
    """A verb that forgot the encoder would predict from other inputs."""
    cli("fit", "--config", write_experiment(), "--name", "run")
    assert NAME in inputs("run")
    cli("test", "--run", "run")
    tested = pl.read_parquet("lightning_logs/run/test/predictions.parquet")
    table = pl.read_csv("table.csv").drop("y")
    rows = table[tested["row"].to_numpy()]
    rows.write_csv("new.csv")
    cli("predict", "--run", "run", "--data.predict_path", "new.csv", "--output", "new.parquet")
    shutil.rmtree(".cache")
    Path("table.csv").rename("moved.csv")
    loaded = proj.load("run").predict(rows)
    expected = tested.select(loaded.columns).with_columns(
        row=pl.int_range(len(tested), dtype=pl.Int64)
    )
    for found in (loaded, pl.read_parquet("new.parquet")):
        assert_frame_equal(found, expected, abs_tol=1e-6)
    Path("moved.csv").rename("table.csv")
    cli("test", "--run", "run")
    again = pl.read_parquet("lightning_logs/run/test/predictions.parquet")
    assert_frame_equal(again, tested)
    cli("validate", "--run", "run", "--importance")
    cli("report", "run")
    cli("cv", "--config", "experiment.yaml", "--folds", "2", "--output", "folds")
    cli("baseline", "--run", "run")


def test_another_encoder_is_refused(cli: Cli) -> None:
    """The net would get numbers that it was not trained with."""
    cli("fit", "--config", write_experiment(), "--name", "run")
    pl.read_csv("table.csv").drop("y").write_csv("new.csv")
    rows = pl.read_csv("new.csv")
    Path("first_letter.txt").write_text("98")
    predict = ("predict", "--run", "run", "--data.predict_path", "new.csv")
    resume = ("fit", "--resume", "run", "--trainer.max_epochs", "4")
    for args in (("test", "--run", "run"), predict, resume):
        message = cli(*args, code=2)
        assert f"expected the encoder that {NAME} was trained with, got Letters with" in message
    with pytest.raises(UserError, match="expected the encoder that"):
        proj.load("run").predict(rows)
    message = cli("test", "--run", "run", "--data.text_encoder", "null", code=2)
    assert "was trained with, got none" in message
    Path("first_letter.txt").unlink()
    message = cli("test", "--run", "run", code=2)
    assert "got first_letter.txt, which is not there or empty" in message
    Path("moved.txt").write_text("97")
    cli("test", "--run", "run", "--data.text_encoder.path", "moved.txt")


@pytest.mark.long
def test_a_resumed_run_ends_with_the_same_weights(cli: Cli) -> None:
    config = write_experiment()
    cli("fit", "--config", config, "--name", "whole", "--trainer.max_epochs", "4")
    cli("fit", "--config", config, "--name", "parts", "--trainer.max_epochs", "2")
    shutil.rmtree(".cache")
    cli("fit", "--resume", "parts", "--trainer.max_epochs", "4")
    states = [
        read_checkpoint(Path(f"lightning_logs/{name}/checkpoints/last.ckpt"))["state_dict"]
        for name in ("whole", "parts")
    ]
    for key, value in states[0].items():
        assert torch.equal(value, states[1][key]), key


@pytest.mark.long
def test_export_says_what_to_do(cli: Cli) -> None:
    config = write_experiment()
    cli("fit", "--config", config, "--name", "run")
    cli("test", "--run", "run")
    message = cli("export", "--run", "run", "--output", "bundle", code=2)
    assert f"a bundle holds no encoder, got a run with the input {NAME}" in message
    assert not Path("bundle").exists()
    cli("fit", "--config", config, "--data.text_encoder", "null", "--name", "plain")
    assert NAME not in inputs("plain")
    cli("test", "--run", "plain")
    cli("export", "--run", "plain", "--output", "bundle")


def test_the_option_is_a_flag(cli: Cli) -> None:
    config = write_experiment(encoder=None)
    flags = ["--data.text_encoder", "Letters", "--data.text_encoder.path", "first_letter.txt"]
    cli("fit", "--config", config, *flags, "--data.text_encoder.size", "12", "--name", "run")
    assert NAME in inputs("run")
    recorded = yaml.safe_load(Path("lightning_logs/run/config.yaml").read_text())
    arguments = {"path": "first_letter.txt", "size": 12}
    expected = {"class_path": "own.Letters", "init_args": arguments}
    assert recorded["data"]["init_args"]["text_encoder"] == expected


@pytest.mark.parametrize(
    "encoder",
    [
        {"class_path": "os.system", "init_args": {"command": "touch canary"}},
        {"class_path": "subprocess.Popen", "init_args": {"args": ["touch", "canary"]}},
        {"class_path": "outside_encoder.Encoder"},
        # A class of a kind that other places take.
        {"class_path": "torch.nn.Linear", "init_args": {"in_features": 2, "out_features": 3}},
        {"class_path": "model2vec.StaticModel.from_pretrained", "init_args": {"path": "x"}},
    ],
)
def test_a_config_or_checkpoint_cannot_name_other_code(
    encoder: Any,
    cli: Cli,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Somebody else's experiment or run would run code, also in proj.load."""
    outside = tmp_path_factory.mktemp("outside")
    (outside / "outside_encoder.py").write_text(
        "from pathlib import Path\nfrom proj.data.tabular.text_encoder import TextEncoder\n"
        f"Path({str(Path('canary').resolve())!r}).touch()\n"
        "class Encoder(TextEncoder):\n    def encode(self, texts): return [[1.0]] * len(texts)\n"
    )
    monkeypatch.syspath_prepend(str(outside))
    cli("fit", "--config", write_experiment(), "--name", "run")
    checkpoint = read_checkpoint(Path("lightning_logs/run/checkpoints/best.ckpt"))
    checkpoint["config"]["data"]["init_args"]["text_encoder"] = encoder
    torch.save(checkpoint, "hostile.ckpt")
    rows = pl.read_csv("table.csv").drop("y")
    with pytest.raises(UserError):
        proj.load("hostile.ckpt").predict(rows)
    cli("fit", "--config", write_experiment(encoder), code=2)
    assert not Path("canary").exists()
