"""mixup and cutmix equal loops written out, and their losses the weighted means of two losses."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from conftest import Cli
from models.test_losses import BINARY, MULTICLASS, MULTILABEL, ready
from proj.errors import UserError
from proj.models.base import Model
from proj.models.classification import BinaryClassifier, MulticlassClassifier, MultilabelClassifier
from proj.models.regression import Regressor
from proj.nets.layers import mix_rows
from proj.schema import Batch, Schema


def test_mixup_is_the_weighted_mean_of_a_row_and_the_row_before_it() -> None:
    """A wrong partner would pair images with the targets of others."""
    x = torch.rand(5, 3)
    mixed, share = mix_rows(x, 0.5, 0.0)
    for i in range(5):
        expected = share * x[i] + (1 - share) * x[i - 1]
        assert torch.allclose(mixed[i], expected)


def test_cutmix_copies_one_rectangle_whose_area_is_the_share() -> None:
    """A share other than the area would train on wrong probabilities."""
    x = torch.arange(4.0)[:, None, None, None].expand(4, 2, 12, 9)
    for _ in range(20):
        mixed, share = mix_rows(x, 0.0, 1.0)
        for i in range(4):
            copied = mixed[i, 0] == (i - 1) % 4
            assert torch.equal(mixed[i], torch.where(copied, (i - 1) % 4, i).expand(2, 12, 9))
            assert torch.isclose(1 - share, copied.float().mean())
            sides = copied.any(1).sum() * copied.any(0).sum()
            assert sides == copied.sum()


def test_shares_have_the_beta_distribution() -> None:
    """Another distribution would mix more or less than the option says."""
    torch.manual_seed(0)
    x = torch.zeros(2, 1, 64, 64)
    for options in ((0.2, 0.0), (0.0, 0.2)):
        shares = torch.stack([mix_rows(x, *options)[1] for _ in range(2000)])
        # The variance of Beta(a, a) is 1 / (8 a + 4).
        assert abs(shares.mean() - 0.5) < 0.04
        assert abs(shares.var() - 1 / 5.6) < 0.02
    # With both options, half of the batches get shares near one half.
    both = torch.stack([mix_rows(torch.rand(1, 1, 8, 8), 0.05, 50.0)[1] for _ in range(300)])
    assert 0.3 < ((both > 0.1) & (both < 0.9)).float().mean() < 0.7


@pytest.mark.parametrize(
    ("kind", "schema", "options"),
    [
        (BinaryClassifier, BINARY, {"pos_weight": 3.0}),
        (MulticlassClassifier, MULTICLASS, {"class_weights": [1.0, 5.0, 2.0]}),
        (MulticlassClassifier, MULTICLASS, {"label_smoothing": 0.1}),
        (MultilabelClassifier, MULTILABEL, {}),
    ],
)
@pytest.mark.parametrize("row_weights", [False, True])
@torch.no_grad()
def test_loss_is_the_weighted_mean_of_the_losses_for_both_targets(
    kind: type[Model], schema: Schema, options: dict[str, Any], row_weights: bool
) -> None:
    """Each task, class weights and row weights enter both losses."""
    model = ready(kind, Schema(**{**vars(schema), "weight_mean": 0.8}), mixup=1.0, **options)
    y = torch.arange(6) % (3 if schema.task == "multiclass" else 2)
    y = torch.stack([y, 1 - y], 1) if schema.task == "multilabel" else y
    weights: tuple[Tensor, ...] = (torch.rand(6),) if row_weights else ()
    batch = Batch(torch.rand(6, 3), y, torch.arange(6), weights)
    torch.manual_seed(5)
    mixed, share = mix_rows(batch.x, 1.0, 0.0)
    torch.manual_seed(5)
    outputs, loss, weight = model.forward_loss(batch, "train")
    assert torch.equal(outputs, model.net(mixed))
    model.mixup = 0.0
    order = [5, 0, 1, 2, 3, 4]
    own = model.forward_loss(batch._replace(x=mixed), "train")
    other = Batch(mixed, y[order], batch.row, tuple(w[order] for w in weights))
    expected = share * own[1] + (1 - share) * model.forward_loss(other, "train")[1]
    assert torch.allclose(loss, expected)
    assert torch.equal(torch.as_tensor(weight), torch.as_tensor(own[2]))


def test_members_of_an_ensemble_train_on_the_same_mixed_targets() -> None:
    """Rolled targets of members would otherwise be those of the same row."""

    class Two(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([x, 2 * x], 1)

    model = MulticlassClassifier(Two(), mixup=1.0)
    model.schema = MULTICLASS
    model.configure_model()
    y = torch.tensor([0, 1, 2, 2])
    x = torch.rand(4, 3)
    torch.manual_seed(5)
    mixed, share = mix_rows(x, 1.0, 0.0)
    torch.manual_seed(5)
    _, loss, _ = model.forward_loss(Batch(x, y, torch.arange(4)), "train")
    total = torch.zeros(())
    for i in range(4):
        for outputs in (mixed[i], 2 * mixed[i]):
            log_p = outputs.log_softmax(0)
            total -= share * log_p[y[i]] + (1 - share) * log_p[y[i - 1]]
    assert torch.allclose(loss, total / 8)


def test_evaluation_mixes_nothing() -> None:
    """Metrics of mixed rows would not be those of the model."""
    model = ready(BinaryClassifier, BINARY, mixup=1.0)
    batch = Batch(torch.rand(6, 3), torch.arange(6) % 2, torch.arange(6))
    assert torch.equal(model.forward_loss(batch, "val")[0].float(), model.net(batch.x))
    model.eval()
    assert torch.equal(model.forward_loss(batch, "train")[0], model.net(batch.x))


def test_what_cannot_be_mixed_is_refused() -> None:
    """One line names the option."""
    with pytest.raises(UserError, match=r"model.mixup: expected 0 for regression, got 0.2"):
        Regressor(nn.Linear(3, 1), mixup=0.2)
    with pytest.raises(UserError, match=r"model.cutmix: expected 0, or from 0.05 to 100, got -1"):
        BinaryClassifier(nn.Linear(3, 1), cutmix=-1)
    with pytest.raises(UserError, match=r"model.mixup: expected inputs that are one tensor"):
        mix_rows({"a": torch.rand(2, 3)}, 0.2, 0.0)
    with pytest.raises(UserError, match=r"model.cutmix: expected .* images, got shape \[2, 3\]"):
        mix_rows(torch.rand(2, 3), 0.2, 1.0)


def test_tables_are_refused_before_training(cli: Cli) -> None:
    """`fit` reports it as the user's mistake, before the first epoch."""
    lines = ["a,b,y", *(f"{i},{i % 7},{'no' if i % 2 else 'yes'}" for i in range(60))]
    Path("table.csv").write_text("\n".join(lines))
    data = ["--data", "Tabular", "--data.path", "table.csv", "--data.target", "y"]
    data += ["--data.batch_size", "8"]
    model = ["--model", "BinaryClassifier", "--model.net", "TabM", "--model.mixup", "0.2"]
    error = cli("fit", *data, *model, code=2)
    assert "model.mixup: expected inputs that are one tensor of numbers, got a dict" in error
