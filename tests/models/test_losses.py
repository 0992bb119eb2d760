"""Losses and their options equal the written formulas; mean losses are exact over any batches."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from conftest import Cli
from proj.errors import UserError
from proj.models.base import Model
from proj.models.classification import BinaryClassifier, MulticlassClassifier, MultilabelClassifier
from proj.models.regression import Regressor
from proj.schema import Schema


def ready(kind: type[Model], schema: Schema, **options: Any) -> Model:
    model = kind(nn.Linear(3, schema.num_outputs), **options)
    model.schema = schema
    model.configure_model()
    return model


BINARY = replace(Schema.of(3, classes=(0, 1)), class_counts=(30, 10), rows=40)
MULTICLASS = replace(Schema.of(3, classes=range(3)), class_counts=(10, 20, 30), rows=60)
MULTILABEL = replace(Schema.of(3, labels=["a", "b"]), class_counts=(10, 20), rows=40)
REGRESSION = replace(
    Schema.of(3, targets=["a", "b"]),
    target_mean=(10.0, -5.0),
    target_std=(2.0, 4.0),
    rows=40,
)


def test_binary_loss_with_pos_weight_and_label_smoothing() -> None:
    logits, y = torch.randn(8, 1), torch.tensor([0, 1] * 4)
    p = logits[:, 0].sigmoid()
    plain = ready(BinaryClassifier, BINARY).compute_loss(logits, y)
    assert torch.allclose(plain, -(y * p.log() + (1 - y) * (1 - p).log()).mean())
    weighted = ready(BinaryClassifier, BINARY, pos_weight="auto").compute_loss(logits, y)
    assert torch.allclose(weighted, -(3 * y * p.log() + (1 - y) * (1 - p).log()).mean())
    smooth = ready(BinaryClassifier, BINARY, label_smoothing=0.2).compute_loss(logits, y)
    target = 0.1 + 0.8 * y
    assert torch.allclose(smooth, -(target * p.log() + (1 - target) * (1 - p).log()).mean())


def test_multiclass_loss_with_class_weights_and_label_smoothing() -> None:
    logits, y = torch.randn(9, 3), torch.arange(9) % 3
    log_p = logits.log_softmax(1)
    losses = -log_p[torch.arange(9), y]
    weights = torch.tensor([2.0, 1.0, 60 / 90])  # rows / (classes * count)
    model = ready(MulticlassClassifier, MULTICLASS, class_weights="auto")
    loss, weight = model.compute_loss(logits, y), model.loss_weight(y)
    assert torch.allclose(loss, (weights[y] * losses).sum() / weights[y].sum())
    assert torch.allclose(torch.as_tensor(weight).float(), weights[y].sum())
    smooth = ready(MulticlassClassifier, MULTICLASS, label_smoothing=0.3).compute_loss(logits, y)
    assert torch.allclose(smooth, (0.7 * losses - 0.3 * log_p.mean(1)).mean())


def test_multilabel_loss_with_pos_weight() -> None:
    logits, y = torch.randn(6, 2), torch.randint(0, 2, (6, 2)).float()
    p, weights = logits.sigmoid(), torch.tensor([3.0, 1.0])  # without it / with it
    loss = ready(MultilabelClassifier, MULTILABEL, pos_weight="auto").compute_loss(logits, y)
    assert torch.allclose(loss, -(weights * y * p.log() + (1 - y) * (1 - p).log()).mean())


def test_regression_is_trained_on_standardised_targets_and_answers_in_their_units() -> None:
    outputs, y = torch.randn(5, 2), torch.tensor([[12.0, -1.0]]).expand(5, 2)
    model = ready(Regressor, REGRESSION)
    loss = model.compute_loss(outputs, y)
    assert torch.allclose(loss, (outputs - 1).square().mean())
    # In float64, so that a target with a large mean keeps its digits.
    units = torch.tensor([[12.0, -1.0]], dtype=torch.float64)
    assert torch.allclose(model.predict_proba(torch.ones(1, 2)), units)
    raw = ready(Regressor, REGRESSION, standardize_target=False)
    assert torch.allclose(raw.compute_loss(outputs, y), (outputs - y).square().mean())
    assert torch.equal(raw.predict_proba(outputs), outputs.double())
    huber = ready(Regressor, REGRESSION, loss=nn.HuberLoss(delta=0.5)).compute_loss(outputs, y)
    error = (outputs - 1).abs()
    assert torch.allclose(
        huber, torch.where(error < 0.5, error**2 / 2, 0.5 * (error - 0.25)).mean()
    )


@pytest.mark.parametrize("weights", [None, [1.0, 5.0, 2.0]])
def test_the_mean_loss_of_a_stage_does_not_depend_on_the_batches(
    weights: list[float] | None,
) -> None:
    model = ready(MulticlassClassifier, MULTICLASS, class_weights=weights)
    x, y = torch.randn(10, 3), torch.arange(10) % 3
    total = model.compute_loss(model(x), y)
    for rows in torch.arange(10).split([1, 2, 7]):
        loss, weight = model.compute_loss(model(x[rows]), y[rows]), model.loss_weight(y[rows])
        model.split_metrics[1].update(
            model.predict_proba(model(x[rows])), y[rows], loss[None], torch.as_tensor(weight)[None]
        )
    assert torch.allclose(model.split_metrics[1].compute()["loss"].float(), total)


@pytest.mark.parametrize(
    ("kind", "schema", "options", "message"),
    [
        (
            MulticlassClassifier,
            MULTICLASS,
            {"class_weights": [1.0]},
            "expected 3 weights, one for each of 0, 1, 2, got 1",
        ),
        (MultilabelClassifier, MULTILABEL, {"pos_weight": [1.0]}, "expected 2 weights"),
        (
            BinaryClassifier,
            replace(BINARY, class_counts=()),
            {"pos_weight": "auto"},
            "give the weights as numbers",
        ),
        (
            BinaryClassifier,
            MULTICLASS,
            {},
            "expected targets for the task binary, got multiclass \\(3 classes\\)",
        ),
    ],
)
def test_options_that_do_not_fit_the_data_are_named(
    kind: Any, schema: Schema, options: Any, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        ready(kind, schema, **options)


@pytest.mark.parametrize(
    ("kind", "schema"),
    [
        (BinaryClassifier, BINARY),
        (MulticlassClassifier, MULTICLASS),
        (MultilabelClassifier, MULTILABEL),
        (Regressor, REGRESSION),
    ],
)
def test_an_ensemble_predicts_the_mean_of_its_members(kind: type[Model], schema: Schema) -> None:
    model = ready(kind, schema)
    outputs = 5 * torch.randn(6, 4, schema.num_outputs, dtype=torch.float64)
    together = model.predict_proba(model.average_members(outputs))
    members = torch.stack([model.predict_proba(outputs[:, i]) for i in range(4)])
    assert torch.allclose(together, members.mean(0))


class Members(nn.Module):
    """Two linear nets side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(6, 3), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.one(x), self.two(x)], dim=1)


def test_the_members_of_an_ensemble_learn_as_if_alone(experiment: Any, cli: Cli) -> None:
    """Each gets half of its own gradient, which Adam's steps do not depend on."""
    from proj.data.arrays import ArrayDataModule
    from proj.engine.runs.checkpoint_file import read_checkpoint

    Path("members.py").write_text("from test_losses import Members")
    flags = [
        "--model.net",
        "members.Members",
        "--model.optimizer.eps",
        "0",
        "--allow",
        "test_losses",
    ]
    cli("fit", "--config", experiment(), *flags)
    state = read_checkpoint(Path("lightning_logs/version_0/checkpoints/last.ckpt"))["state_dict"]
    torch.manual_seed(1)
    nets = Members()
    data = ArrayDataModule("data.npz", batch_size=16)
    data.seed = 1
    data.setup("fit")
    loader = data.train_dataloader()
    for net in (nets.one, nets.two):
        optimizer = torch.optim.Adam(net.parameters(), eps=0)
        for epoch in range(2):
            loader.set_epoch(epoch)
            for batch in loader:
                optimizer.zero_grad()
                torch.nn.functional.cross_entropy(net(batch.x), batch.y).backward()
                optimizer.step()
    for name, value in nets.state_dict().items():
        assert torch.allclose(state[f"net.{name}"], value, atol=1e-5)
