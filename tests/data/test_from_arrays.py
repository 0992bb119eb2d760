"""Arrays and tensors from Python: the same schema, splits and weights as an .npz file of them."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer, seed_everything

import processes
import proj
from conftest import MODELS, Cli, make_arrays
from proj.data.arrays import ArrayDataModule, Arrays
from proj.engine.runs.checkpoint_file import read_checkpoint
from proj.errors import UserError
from proj.models import MulticlassClassifier
from proj.nets import MLP

QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


def ready(data: ArrayDataModule) -> ArrayDataModule:
    data.setup("fit")
    assert data.schema is not None
    return data


def from_file(**arrays: Any) -> ArrayDataModule:
    np.savez("data.npz", **arrays)
    return ready(ArrayDataModule("data.npz"))


def assert_same(data: ArrayDataModule, reference: ArrayDataModule) -> None:
    assert data.schema == reference.schema
    assert data.fingerprint == reference.fingerprint
    for name, split in reference.splits.items():
        assert (data.splits[name].weight is None) == (split.weight is None)
        for tensor, expected in zip(data.splits[name][:3], split[:3], strict=True):
            assert tensor.dtype == expected.dtype
            assert torch.equal(tensor, expected)


@pytest.mark.parametrize("task", MODELS)
def test_schema_and_splits_are_those_of_the_file(task: str) -> None:
    """A difference would give other results from Python than from the command line."""
    arrays = make_arrays(task)
    data = ready(ArrayDataModule.from_arrays(train=(arrays["x"], arrays["y"])))
    assert_same(data, from_file(**arrays))


def test_splits_of_their_own_are_used_as_they_are() -> None:
    """Rows of a given split must not move to another split."""
    arrays = {name: make_arrays("multiclass", 40, seed=i) for i, name in enumerate("abc")}
    train, val, test = ((a["x"], a["y"]) for a in arrays.values())
    data = ready(ArrayDataModule.from_arrays(train=train, val=val, test=test))
    assert [data.rows(name) for name in ("train", "val", "test")] == [40, 40, 40]
    assert np.array_equal(data.splits["test"].x.numpy(), test[0])
    no_val = ready(ArrayDataModule.from_arrays(train=train, test=test, val_fraction=0))
    assert [no_val.rows(name) for name in ("train", "val", "test")] == [40, 0, 40]
    assert no_val.val_dataloader() == []


def test_torch_tensors_are_arrays() -> None:
    """Also tensors that require gradients, whose values NumPy refuses without a detach."""
    arrays = make_arrays("multiclass")
    x, y = torch.from_numpy(arrays["x"]).requires_grad_(), torch.from_numpy(arrays["y"])
    assert_same(ready(ArrayDataModule.from_arrays(train=(x, y))), from_file(**arrays))


@pytest.mark.parametrize("as_tensor", [False, True])
def test_uint8_images_become_images(as_tensor: bool) -> None:
    """Image nets need [rows, channels, height, width] and statistics per channel."""
    x = np.random.default_rng(0).integers(0, 256, size=(40, 9, 8, 3), dtype=np.uint8)
    y = np.arange(40) % 2
    images = torch.from_numpy(x) if as_tensor else x
    data = ready(ArrayDataModule.from_arrays(train=(images, y)))
    assert data.schema is not None
    assert (data.schema.input_shape, data.schema.input_type) == ((3, 9, 8), "uint8")
    assert_same(data, from_file(x=x, y=y))


@pytest.mark.parametrize(
    "labels",
    [
        ["no", "yes"] * 20,
        np.array(["no", "yes"] * 20, dtype=object),
        np.array([False, True] * 20),
        torch.tensor([0, 1] * 20),
        [0.0, 1.0] * 20,
    ],
    ids=["list", "object", "bool", "tensor", "float"],
)
def test_labels_of_any_kind_are_classes(labels: Any) -> None:
    """Reports and predictions name the classes as the user does."""
    data = ready(ArrayDataModule.from_arrays(train=(np.ones((40, 2)), labels)))
    assert data.schema is not None
    assert data.schema.task == "binary"
    assert list(data.schema.classes) == sorted({labels[0], labels[1]})


def test_names_and_options_reach_the_schema() -> None:
    """Importance and reports name features and targets."""
    x, y = np.random.default_rng(0).normal(size=(40, 2)), np.arange(40)
    data = ready(
        ArrayDataModule.from_arrays(
            train=(x, y), task="regression", input_names=["a", "b"], target_names=["c"]
        )
    )
    assert data.schema is not None
    assert data.schema.task == "regression"
    assert (data.schema.input_names, data.schema.target_names) == (("a", "b"), ("c",))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"train": (np.ones((9, 2)), np.arange(8))}, "a target for each of the 9 rows of x_train"),
        (
            {"train": (np.ones((9, 2)), np.arange(9)), "val": (np.ones((9, 3)), np.arange(9))},
            r"one shape and type, got \(2,\) float32 in x_train and \(3,\) float32 in x_val",
        ),
    ],
)
def test_arrays_that_do_not_fit_are_named(arrays: dict[str, Any], message: str) -> None:
    """The message names the array as the file would."""
    with pytest.raises(UserError, match=message):
        ArrayDataModule.from_arrays(**arrays).setup("fit")


def test_training_from_python_gives_the_weights_of_the_verb(cli: Cli, experiment: Any) -> None:
    """The order of batches and the initial weights depend on the seed only. No warning is shown."""
    config = experiment(
        data={"batch_size": 16},
        model={"optimizer": {"class_path": "Adam", "init_args": {"lr": 0.01}}},
    )
    cli("fit", "--config", config)
    recorded = read_checkpoint(Path("lightning_logs/version_0/checkpoints/last.ckpt"))
    with np.load("data.npz") as file:
        x, y = file["x"], file["y"]
    seed_everything(1, verbose=False)
    model = MulticlassClassifier(
        net=partial(MLP, hidden=[8]), optimizer=partial(torch.optim.Adam, lr=0.01)
    )
    data = ArrayDataModule.from_arrays(train=(x, y), batch_size=16)
    trainer = Trainer(max_epochs=2, log_every_n_steps=1, **QUIET)
    trainer.fit(model, data)
    weights = {name: value for name, value in model.state_dict().items() if name.startswith("net.")}
    assert weights
    assert all(torch.equal(recorded["state_dict"][name], value) for name, value in weights.items())
    trainer.test(model, data, verbose=False)


def test_the_package_imports_its_data_modules_when_they_are_used() -> None:
    """Arrays must not take the time of importing polars, tables and images."""
    Path("names.py").write_text("""
import json, processes, sys
processes.forget("proj", "polars")
import proj.data
arrays = proj.data.ArrayDataModule
unused = ("polars", "proj.data.tabular.datamodule", "proj.data.images")
print(json.dumps([name for name in unused if name in sys.modules]))
assert proj.data.Tabular.__name__ == "Tabular" and proj.data.Images.__name__ == "Images"
try:
    proj.data.Tables
except AttributeError as error:
    assert "has no attribute 'Tables'" in str(error)
""")
    result = processes.run("names.py")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == []


def test_the_name_of_version_0_1_still_works() -> None:
    """Scripts import ``Arrays``."""
    assert Arrays is ArrayDataModule is proj.data.ArrayDataModule
