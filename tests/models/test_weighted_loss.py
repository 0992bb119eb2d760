"""The loss of rows with weights: that of repeated rows, with unbiased gradients of batches."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from conftest import plain_schema
from proj.errors import UserError
from proj.models import BinaryClassifier, MulticlassClassifier, MultilabelClassifier, Regressor
from proj.schema import Batch

MODELS: dict[str, tuple[type[Any], int, dict[str, Any]]] = {
    "binary": (BinaryClassifier, 1, {"pos_weight": 3.0, "label_smoothing": 0.1}),
    "multiclass": (
        MulticlassClassifier,
        3,
        {"class_weights": [1.0, 5.0, 2.0], "label_smoothing": 0.2},
    ),
    "multilabel": (MultilabelClassifier, 2, {"pos_weight": [1.0, 4.0]}),
    "regression": (Regressor, 2, {"loss": nn.HuberLoss(), "standardize_target": False}),
}


def model_of(task: str, mean: float = 1.0, **changes: Any) -> Any:
    kind, outputs, options = MODELS[task]
    torch.manual_seed(0)
    model = kind(nn.Linear(4, outputs), **{**options, **changes})
    model.schema = replace(plain_schema(task, (4,), outputs), weight_mean=mean)
    model.configure_model()
    return model


def batch_of(task: str, rows: int = 24) -> Batch:
    torch.manual_seed(1)
    outputs = MODELS[task][1]
    y = {
        "binary": torch.randint(2, (rows,)),
        "multiclass": torch.randint(3, (rows,)),
        "multilabel": torch.randint(2, (rows, outputs)),
        "regression": torch.randn(rows, outputs, dtype=torch.float64),
    }[task]
    return Batch(torch.randn(rows, 4), y, torch.arange(rows))


def gradient(model: Any, batch: Batch) -> tuple[Tensor, Tensor, Any]:
    model.zero_grad()
    _, loss, weight = model.forward_loss(batch, "train")
    loss.backward()
    return model.net.weight.grad.clone(), loss.detach(), weight


@pytest.mark.parametrize("task", MODELS)
def test_a_weight_of_2_is_a_doubled_row(task: str) -> None:
    """The mean over an epoch and its gradient must be those of repeated rows, for each option."""
    batch, times = batch_of(task), torch.randint(0, 4, (24,))
    repeated = Batch(*(values.repeat_interleave(times, dim=0) for values in batch[:3]))
    expected_gradient, expected, _ = gradient(model_of(task, 0.0), repeated)
    model = model_of(task, times.double().mean().item())
    found, loss, (factor, divisor) = gradient(model, batch._replace(weights=(times.double(),)))
    assert float(loss * factor / divisor) == pytest.approx(float(expected), rel=1e-5)
    assert torch.allclose(found * factor / divisor, expected_gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("task", MODELS)
def test_equal_weights_change_nothing(task: str) -> None:
    """Only ratios of weights matter: weights of 8 with mean 8 are no weights."""
    batch = batch_of(task)
    plain, loss, _ = gradient(model_of(task), batch)
    eight = batch._replace(weights=(torch.full((24,), 8.0, dtype=torch.float64),))
    found, weighted, _ = gradient(model_of(task, 8.0), eight)
    assert torch.allclose(found, plain, rtol=1e-4, atol=1e-6)
    assert float(weighted) == pytest.approx(float(loss), rel=1e-5)


def test_the_mean_gradient_of_batches_is_that_of_the_split() -> None:
    """Division by the weights of each batch would count rows of light batches too much."""
    batch = batch_of("regression")
    weight = torch.rand(24, dtype=torch.float64) ** 3
    model = model_of("regression", weight.mean().item())
    whole, *_ = gradient(model, batch._replace(weights=(weight,)))
    parts = [
        gradient(model, Batch(*(v[i : i + 6] for v in batch[:3]), (weight[i : i + 6],)))[0]
        for i in range(0, 24, 6)
    ]
    assert torch.allclose(torch.stack(parts).mean(0), whole, rtol=1e-4, atol=1e-6)


def test_a_model_without_weights_refuses_them() -> None:
    """The loss would be of another scale than in training."""
    batch = batch_of("binary")._replace(weights=(torch.ones(24),))
    with pytest.raises(UserError, match=r"data.weight: expected rows without weights"):
        model_of("binary", 0.0).forward_loss(batch, "val")
