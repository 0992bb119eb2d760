"""The rows of a run as a script loads them: inputs and targets of each split, encoded."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from proj.data.base import DataModule
from proj.schema import SPLITS, Batch


def stored_splits(data: DataModule) -> dict[str, Any]:
    """Return inputs and targets of each split that has rows."""
    assert data.schema is not None
    is_regression = data.schema.task == "regression"
    splits = splits_with_rows(data).items()
    return {name: _stored(split, is_regression) for name, split in splits}


def splits_with_rows(data: DataModule) -> dict[str, Batch]:
    splits = {name: data.splits[name] for name in SPLITS if name in data.splits}
    return {name: split for name, split in splits.items() if len(split.row)}


def _stored(split: Batch, is_regression: bool) -> dict[str, Any]:
    """Return the rows of a split; numbers to predict are float64, as in the metrics of a run."""
    x, y = split.x, split.y
    assert y is not None
    y = y.double() if is_regression else y.long() if y.dtype == torch.uint8 else y
    compact = {name: _compact(v) for name, v in x.items()} if isinstance(x, dict) else _compact(x)
    return {"x": compact, "y": _compact(y)}


def _compact(values: Tensor) -> Tensor:
    """Return a tensor in memory of its own, so that it is saved alone."""
    return values if values.untyped_storage().nbytes() == values.nbytes else values.clone()


def describe_splits(stored: dict[str, Any]) -> Iterator[str]:
    """Yield a line for each split: types and shapes of its tensors."""
    for name in SPLITS:
        if name in stored:
            x, y = stored[name]["x"], stored[name]["y"]
            named = {**x, "y": y} if isinstance(x, dict) else {"x": x, "y": y}
            shapes = (
                f"{key} {str(v.dtype).removeprefix('torch.')} {list(v.shape)}"
                for key, v in named.items()
            )
            yield f"{name}: {', '.join(shapes)}"
