"""Batches of a user's own loaders: what is taken for inputs, targets and row numbers."""

from typing import Any, NamedTuple

import lightning
import pytest
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from proj.errors import UserError
from proj.models import BinaryClassifier, MulticlassClassifier, MultilabelClassifier, Regressor
from proj.schema import Batch, Schema

ROWS = 24

Loader = DataLoader[Any]

pytestmark = pytest.mark.filterwarnings(
    "ignore:You defined a `validation_step`",
    "ignore:The '.*_dataloader' does not have many workers",
)


def trainer(**options: Any) -> lightning.Trainer:
    quiet = dict.fromkeys(
        ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
    )
    defaults = {"max_epochs": 1, "accelerator": "cpu", "num_sanity_val_steps": 0}
    return lightning.Trainer(**quiet, **{**defaults, **options})


class Bag(nn.Module):
    """Mean of the first ``lengths`` embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.out = nn.Embedding(20, 8), nn.Linear(8, 3)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        used = torch.arange(tokens.shape[1]) < lengths[:, None]
        return self.out((self.embedding(tokens) * used[..., None]).sum(1) / lengths[:, None])


class DictBag(Bag):
    def forward(self, x: dict[str, Tensor]) -> Tensor:  # type: ignore[override]
        return super().forward(x["tokens"], x["lengths"])


class Plain(LightningModule):
    """The reference: an ordinary module that a Lightning user writes."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        (tokens, lengths), y = batch
        return cross_entropy(self.net(tokens, lengths), y)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def rows() -> list[tuple[Tensor, Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 20, (ROWS, 9), generator=generator)
    lengths = torch.randint(1, 9, (ROWS,), generator=generator)
    return list(zip(tokens, lengths, tokens.sum(1) % 3, strict=True))


def model(net: nn.Module) -> MulticlassClassifier:
    return MulticlassClassifier(net, optimizer=lambda groups: torch.optim.SGD(groups, 0.1))


FORMS: dict[str, Any] = {
    "tuple": ([((t, n), y) for t, n, y in rows()], Bag),
    "dict": ([({"tokens": t, "lengths": n}, y) for t, n, y in rows()], DictBag),
    "Batch": ([Batch((t, n), y, torch.tensor(i)) for i, (t, n, y) in enumerate(rows())], Bag),
}


@pytest.mark.parametrize("form", FORMS)
def test_inputs_of_several_parts_train_as_with_plain_lightning(form: str) -> None:
    """The net would get one part of its inputs, or its loss another target."""
    examples, kind = FORMS[form]
    torch.manual_seed(0)
    ours = model(kind())
    reference = Plain(Bag())
    reference.net.load_state_dict(ours.net.state_dict())  # type: ignore[union-attr]
    loader: Loader = DataLoader(examples, batch_size=8)
    trainer(max_epochs=2).fit(ours, loader, loader)
    plain: Loader = DataLoader(FORMS["tuple"][0], batch_size=8)
    trainer(max_epochs=2).fit(reference, plain)
    for name, value in reference.net.state_dict().items():
        assert torch.allclose(ours.state_dict()[f"net.{name}"], value, atol=1e-6), name


def test_rows_of_a_batch_with_numbers_keep_them() -> None:
    examples = [Batch((t, n), y, torch.tensor(100 - i)) for i, (t, n, y) in enumerate(rows())]
    ours = model(Bag())
    loader: Loader = DataLoader(examples, batch_size=8)
    trainer().fit(ours, loader)
    outputs: Any = trainer().predict(ours, loader)
    assert torch.cat([output["row"] for output in outputs]).tolist() == list(range(100, 76, -1))


@pytest.mark.parametrize("in_a_tuple", [True, False])
def test_weights_of_a_batch_reach_the_loss(in_a_tuple: bool) -> None:
    """A tensor was taken for a tuple of its rows, and the first row's weight weighted all."""
    ours = model(Bag())
    tokens, numbers, y = map(torch.stack, zip(*rows(), strict=True))
    weight = torch.rand(len(y), dtype=torch.float64) + 0.1
    given: Any = (weight,) if in_a_tuple else weight
    ours.schema = Schema.of((9,), classes=range(3))
    batch = ours.to_batch(Batch((tokens, numbers), y, torch.arange(len(y)), given))
    assert torch.equal(batch.weight, weight)


class Three(NamedTuple):
    tokens: Tensor
    lengths: Tensor
    label: Tensor


REFUSED: dict[str, tuple[Any, str]] = {
    "three parts": (rows(), r"got 3 parts \(Tensor, Tensor, Tensor\); return \(\(a, b\), y\)"),
    "a weight": ([(t, y, n / 9) for t, n, y in rows()], "such as weights, override to_batch"),
    "a named tuple": ([Three(*row) for row in rows()], "got 3 parts"),
    "four parts": ([(t, n, y, y) for t, n, y in rows()], "got 4 parts"),
    "no target": ([t for t, _, _ in rows()], "got inputs only"),
    "one part": ([(t,) for t, _, _ in rows()], "got inputs only"),
    "labels in a dict": ([{"input_ids": t, "labels": y} for t, _, y in rows()], "got inputs only"),
    "a dict of targets": ([((t, n), {"y": y}) for t, n, y in rows()], "int64 .* got dict"),
}


@pytest.mark.parametrize("form", REFUSED)
def test_other_batches_are_refused(form: str) -> None:
    """A part that is no target would be trained on, or a weight would be left out."""
    examples, message = REFUSED[form]
    ours = model(Bag())
    ours.schema = Schema.of(9, classes=range(3))
    with pytest.raises(UserError, match=message):
        trainer().fit(ours, DataLoader(examples, batch_size=8))


def test_targets_of_a_users_batch_get_the_shape_of_the_outputs() -> None:
    """``y`` [rows] against outputs [rows, 1] would become a loss of all pairs of rows."""
    x, y = torch.randn(ROWS, 2), torch.randn(ROWS)
    examples = [Batch(x[i], y[i], torch.tensor(i)) for i in range(ROWS)]
    ours = Regressor(nn.Linear(2, 1), standardize_target=False)
    loader: Loader = DataLoader(examples, batch_size=ROWS)
    trainer().fit(ours, loader)
    (metrics,) = trainer().validate(ours, loader, verbose=False)
    assert isinstance(ours.net, nn.Module)
    with torch.no_grad():
        expected = (ours.net(x)[:, 0] - y).square().mean()
    assert metrics["val/mse"] == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize(("kind", "outputs"), [(Regressor, 2), (MultilabelClassifier, 3)])
def test_targets_of_another_width_are_refused(kind: Any, outputs: int) -> None:
    """One target per row would be compared with each of the outputs."""
    examples = [(torch.randn(4), torch.ones(1)) for _ in range(8)]
    options = {"standardize_target": False} if kind is Regressor else {}
    ours = kind(nn.Linear(4, outputs), **options)
    with pytest.raises(UserError, match=rf"expected targets of shape \[rows, {outputs}\], got"):
        trainer().fit(ours, DataLoader(examples, batch_size=4))


def test_predict_takes_inputs_alone() -> None:
    x = torch.randn(ROWS, 2)
    ours = BinaryClassifier(nn.Linear(2, 1))
    trainer().fit(ours, DataLoader([(row, torch.tensor(1)) for row in x], batch_size=8))
    for examples in ([(row,) for row in x], list(x)):
        outputs: Any = trainer().predict(ours, DataLoader(examples, batch_size=8))  # type: ignore
        assert torch.cat([output["row"] for output in outputs]).tolist() == list(range(ROWS))


@pytest.mark.parametrize("y", [torch.zeros(0), torch.zeros(0, 1)], ids=["[0]", "[0, 1]"])
def test_a_batch_may_be_empty(y: Tensor) -> None:
    """With several processes the last batch of a shard may have no rows."""
    ours = Regressor(nn.Linear(2, 1), standardize_target=False)
    ours.schema = Schema.of(2, targets=["a"])
    batch = ours.to_batch(Batch(torch.zeros(0, 2), y, torch.zeros(0, dtype=torch.int64)))
    assert batch.y is not None
    assert batch.y.shape == (0, 1)
