"""The data module for arrays: the schema, the contents of a file, and messages about mistakes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_breast_cancer, load_linnerud
from sklearn.preprocessing import StandardScaler

from conftest import make_arrays
from proj.data.arrays import ArrayDataModule
from proj.data.tabular.array_source import BUNDLED
from proj.errors import UserError
from proj.schema import Schema


def ready(path: str, **options: Any) -> ArrayDataModule:
    data = ArrayDataModule(path, **{"batch_size": 8, **options})
    data.setup("fit")
    return data


def save(**arrays: Any) -> str:
    np.savez("data.npz", **arrays)
    return "data.npz"


@pytest.mark.parametrize("name", BUNDLED)
def test_bundled_sets_are_loaded_and_split(name: str) -> None:
    """Each row of a data set of scikit-learn is in exactly one split."""
    data = ready(name)
    assert data.schema is not None
    rows = torch.cat([split.row for split in data.splits.values()])
    assert torch.equal(rows.sort().values, torch.arange(len(rows)))
    assert data.schema.rows == len(data.splits["train"].row)
    assert Schema.from_dict(json.loads(json.dumps(data.schema.to_dict()))) == data.schema


def test_tasks_and_names_of_bundled_sets() -> None:
    """Reports show these class and feature names."""
    cancer, digits, linnerud = (ready(n).schema for n in ("breast_cancer", "digits", "linnerud"))
    assert (cancer.task, cancer.classes, cancer.num_outputs) == (
        "binary",
        ("benign", "malignant"),
        1,
    )
    assert cancer.input_names == tuple(load_breast_cancer().feature_names)
    assert (digits.task, digits.classes, digits.input_shape) == (
        "multiclass",
        tuple(range(10)),
        (1, 8, 8),
    )
    assert (linnerud.task, linnerud.target_names) == (
        "regression",
        tuple(load_linnerud().target_names),
    )


def test_inputs_and_labels_are_those_of_the_source() -> None:
    """A row number that does not match its row would mix up labels."""
    data = ready("breast_cancer")
    bunch = load_breast_cancer()
    split = data.splits["test"]
    names = [data.schema.classes[i] for i in split.y.tolist()]
    assert names == bunch.target_names[bunch.target[split.row]].tolist()
    assert np.array_equal(split.x.numpy(), bunch.data[split.row].astype(np.float32))


def test_statistics_are_fitted_on_training_rows_only() -> None:
    """Other rows must not leak into the statistics. Compared with scikit-learn's StandardScaler."""
    arrays = make_arrays("regression_2")
    before = ready(save(**arrays))
    rows = before.splits["train"].row.numpy()
    scaler = StandardScaler().fit(arrays["x"][rows].astype(np.float64))
    assert np.allclose(before.schema.input_mean, scaler.mean_)
    assert np.allclose(before.schema.input_std, scaler.scale_)
    target = StandardScaler().fit(arrays["y"][rows])
    assert np.allclose(before.schema.target_mean, target.mean_)
    assert np.allclose(before.schema.target_std, target.scale_)
    others = np.setdiff1d(np.arange(120), rows)
    arrays["x"][others] += 100
    arrays["y"][others] -= 100
    assert ready(save(**arrays)).schema == before.schema


def test_image_statistics_are_per_channel_on_a_scale_from_0_to_1() -> None:
    """Nets standardize images with them."""
    images = np.random.default_rng(0).integers(0, 256, size=(40, 6, 5, 3), dtype=np.uint8)
    data = ready(save(x=images, y=np.arange(40) % 2))
    x = images[data.splits["train"].row.numpy()] / 255
    assert data.splits["train"].x.dtype == torch.uint8
    assert data.schema.input_shape == (3, 6, 5)
    assert np.allclose(data.schema.input_mean, x.mean(axis=(0, 1, 2)))
    assert np.allclose(data.schema.input_std, x.std(axis=(0, 1, 2)))


def test_splits_of_a_file_are_used_as_they_are() -> None:
    """Rows of a given test split must not be trained on."""
    one, two, three = (
        make_arrays("multiclass", rows, seed=s) for s, rows in enumerate((60, 20, 30))
    )
    data = ready(
        save(
            x_train=one["x"],
            y_train=one["y"],
            x_val=two["x"],
            y_val=two["y"],
            x_test=three["x"],
            y_test=three["y"],
        )
    )
    assert [len(data.splits[s].row) for s in ("train", "val", "test")] == [60, 20, 30]
    assert np.array_equal(data.splits["test"].x.numpy(), three["x"])
    only_test = ready(
        save(x_train=one["x"], y_train=one["y"], x_test=three["x"], y_test=three["y"]),
        val_fraction=0.5,
    )
    assert [len(only_test.splits[s].row) for s in ("train", "val", "test")] == [30, 30, 30]


@pytest.mark.parametrize(
    ("y", "task"),
    [
        (np.arange(40) % 2 == 0, "binary"),
        (np.arange(40) % 3, "multiclass"),
        (np.array(list("abcd") * 10), "multiclass"),
        (np.arange(80).reshape(40, 2) % 2, "multilabel"),
        (np.arange(80).reshape(40, 2), "regression"),
        (np.arange(40) / 7, "regression"),
        (np.arange(40)[:, None] % 2, "binary"),
        (np.arange(40) % 2.0, "binary"),
        (np.arange(80).reshape(40, 2) % 2.0, "multilabel"),
    ],
)
def test_the_task_is_inferred_from_the_targets(y: np.ndarray, task: str) -> None:
    """A wrong task would train with the wrong loss."""
    assert ready(save(x=np.ones((40, 2)), y=y)).schema.task == task


def test_the_task_can_be_set() -> None:
    """Counts are classes unless the task is set."""
    counts = np.arange(40) % 5
    data = ready(save(x=np.ones((40, 2)), y=counts), task="regression")
    assert data.schema.target_mean == pytest.approx([counts[data.splits["train"].row].mean()])


def test_a_given_schema_is_not_fitted_again() -> None:
    """A checkpoint's schema must stay that of its training data."""
    schema = ready(save(**make_arrays("multiclass"))).schema
    data = ArrayDataModule(save(**make_arrays("multiclass", seed=3)))
    data.schema = schema
    data.setup("test")
    assert data.schema is schema


NUMBERS = np.ones((40, 2))
LABELS = np.arange(40) % 3


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": NUMBERS}, "expected an array named y_train"),
        (
            {"x": NUMBERS, "y": LABELS, "x_tset": NUMBERS},
            "no use for an array named x_tset. Did you mean 'x_test'",
        ),
        (
            {"x": NUMBERS, "y": LABELS, "x_train": NUMBERS, "y_train": LABELS},
            "got both; the arrays are x, y, x_train",
        ),
        ({"x": NUMBERS, "y": LABELS, "y_val": LABELS}, "an array named x_val beside y_val"),
        ({"x": NUMBERS, "y": LABELS[:39]}, "a target for each of the 40 rows"),
        (
            {"x": NUMBERS[:, 0], "y": LABELS},
            "at least one more axis, got float64 of shape \\(40,\\)",
        ),
        ({"x": NUMBERS.astype(str), "y": LABELS}, "expected numbers"),
        (
            {"x": np.where(np.arange(80).reshape(40, 2) == 7, np.nan, 1.0), "y": LABELS},
            "missing or infinite one in row 3",
        ),
        ({"x": NUMBERS, "y": np.zeros(40, int)}, "expected two classes or more"),
        ({"x": NUMBERS, "y": np.full(40, np.nan)}, "expected finite targets, got nan"),
        (
            {"x": NUMBERS, "y": LABELS, "x_val": NUMBERS, "y_val": LABELS + 1},
            "class 3 has no training rows, but 13 val rows, such as row 2",
        ),
        (
            {"x": NUMBERS, "y": LABELS, "x_val": np.ones((9, 3)), "y_val": LABELS[:9]},
            "rows of one shape",
        ),
        ({"x": np.zeros((40, 9, 9, 7), np.uint8), "y": LABELS}, "1, 3 or 4 channels"),
    ],
)
def test_unusable_arrays_are_named(arrays: dict[str, Any], message: str) -> None:
    """The message says which array is wrong, and how."""
    with pytest.raises(UserError, match=message):
        ready(save(**arrays))


def test_unreadable_files_are_named() -> None:
    """The message suggests a similar name, or says that the file is damaged."""
    save(**make_arrays("binary"))
    with pytest.raises(UserError, match=r"no file dta\.npz\. Did you mean 'data.npz'"):
        ready("dta.npz")
    with pytest.raises(UserError, match="Did you mean 'digits'"):
        ready("digit")
    Path("cut.npz").write_bytes(Path("data.npz").read_bytes()[:-200])
    with pytest.raises(UserError, match=r"cut\.npz: cannot be read as \.npz"):
        ready("cut.npz")


def test_pickled_objects_are_not_loaded() -> None:
    """Loading a pickle would run code from the file."""
    np.savez("data.npz", x=NUMBERS, y=np.array([{"a": 1}] * 40, dtype=object))
    with pytest.raises(UserError, match="allow_pickle"):
        ready("data.npz")


def test_a_batch_larger_than_the_split_is_an_error() -> None:
    """An epoch would have no full batch."""
    data = ready(save(**make_arrays("binary")), batch_size=85)
    with pytest.raises(UserError, match=r"batch_size: expected at most 84 .* got 85"):
        data.train_dataloader()
    assert len(ready("data.npz", batch_size=None).train_dataloader()) == 1


def test_rows_of_another_type_than_in_training_are_refused() -> None:
    """Images as numbers from 0 to 255 would be accepted, and every prediction would be wrong."""
    images = np.random.default_rng(0).integers(0, 256, size=(40, 6, 5), dtype=np.uint8)
    schema = ready(save(x=images, y=np.arange(40) % 2)).schema
    assert schema is not None
    assert torch.equal(ArrayDataModule.encode(images, schema)[:, 0], torch.from_numpy(images))
    for wrong in (images.astype(np.int64), images / 255):
        with pytest.raises(UserError, match="expected rows of uint8, as in training, got"):
            ArrayDataModule.encode(wrong, schema)


def test_labels_of_a_test_split_may_have_another_type() -> None:
    """Booleans and 0 and 1 are one label; text and numbers are not."""
    x, y = np.ones((40, 2)), np.arange(40) % 2
    data = ready(save(x_train=x, y_train=y == 1, x_test=x, y_test=y))
    assert data.schema.classes == (False, True)
    assert data.splits["test"].y.tolist() == y.tolist()
    with pytest.raises(UserError, match="expected labels such as False, as in training, got '0'"):
        ready(save(x_train=x, y_train=y == 1, x_test=x, y_test=y.astype(str)))


def test_class_numbers_take_a_byte_in_a_split_and_are_int64_in_a_batch(work: Any) -> None:
    """Losses of torch take int64; of ten million rows, that would be 80 MB."""
    x, y = np.zeros((600, 2), np.float32), np.arange(600) % 300
    few, many = (
        ArrayDataModule.from_arrays(train=(x, labels), val_fraction=0, test_fraction=0)
        for labels in (y % 256, y)
    )
    for data, dtype in ((few, torch.uint8), (many, torch.int64)):
        data.setup("fit")
        split = data.splits["train"]
        assert split.y is not None
        assert split.y.dtype == dtype
        batches = list(data._loader("train"))
        assert {batch.y.dtype for batch in batches} == {torch.int64}
        assert torch.equal(torch.cat([batch.y for batch in batches]), split.y.long())
