"""Nets for tables: normalisation against scikit-learn, missing values, sizes, gradients."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.preprocessing import QuantileTransformer
from torch import nn

from proj.data.tabular.columns import BINS, quantiles
from proj.errors import UserError
from proj.nets.layers import Dropout, QuantileTransform
from proj.nets.mlp import MLP
from proj.nets.tabm import TabM
from proj.schema import Column, Schema


def number(values: np.ndarray, missing: bool = False) -> Column:
    edges, shares = quantiles(values)
    return Column(
        "n", "number", "number", missing, tuple(edges.tolist()), tuple(shares.tolist()), ()
    )


def category(count: int) -> Column:
    return Column("c", "text", "category", True, (), (), tuple(f"c{i}" for i in range(count)))


def schema(*columns: Column) -> Schema:
    return replace(Schema.of(len(columns), classes=range(3)), columns=columns)


@pytest.mark.parametrize("kind", ["lognormal", "integers"])
def test_numbers_become_normal_scores(kind: str) -> None:
    """The scores are those of scikit-learn, except in the tails, where our margin is wider."""
    rng = np.random.default_rng(0)
    values = {
        "lognormal": rng.lognormal(0, 2, 5000),
        "integers": rng.integers(0, 10, 5000).astype(float),
    }[kind].astype(np.float32)
    ours, _ = QuantileTransform((number(values),))(torch.from_numpy(values)[:, None])
    theirs = QuantileTransformer(
        n_quantiles=BINS + 1, output_distribution="normal", subsample=None
    ).fit_transform(values[:, None])
    inside = (np.abs(theirs) < 1.9)[:, 0]
    assert inside.sum() > 300
    assert np.abs(ours.numpy() - theirs)[inside].max() < 0.35
    assert np.corrcoef(ours.numpy()[inside, 0], theirs[inside, 0])[0, 1] > 0.99


def test_equal_numbers_have_the_score_in_the_middle_of_their_share() -> None:
    rng = np.random.default_rng(0)
    values = np.where(rng.random(5000) < 0.9, 0, rng.lognormal(0, 1, 5000)).astype(np.float32)
    scores = QuantileTransform((number(values),))(torch.from_numpy(np.sort(values))[:, None])[0][
        :, 0
    ]
    assert (scores.diff() >= 0).all()
    assert scores[0] == pytest.approx(float(torch.special.ndtri(torch.tensor(0.45))), abs=0.03)


def test_missing_and_extreme_numbers_have_finite_scores() -> None:
    values = np.arange(100, dtype=np.float32)
    normalize = QuantileTransform((number(values, missing=True), number(values)))
    x = torch.tensor([[np.nan, 3e38], [49.5, -3e38], [-1.0, np.nan]])
    scores, flags = normalize(x)
    assert torch.isfinite(scores).all()
    assert scores[0, 0] == scores[2, 1] == 0
    assert scores[1, 0].abs() < 1e-5  # the median
    assert scores[0, 1] == -scores[1, 1]
    assert flags.tolist() == [[1], [0], [0]]


NUMBERS = np.random.default_rng(0).normal(size=200)
SCHEMAS = [
    schema(number(NUMBERS, True), category(4), number(NUMBERS)),
    schema(number(NUMBERS), number(np.array([0.0, 1.0]))),
    schema(category(0), category(7)),
]


def rows(data: Schema) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    categories = [torch.randint(2 + len(c.categories), (64,)) for c in data.categorical]
    x = {
        "numeric": torch.randn(64, len(data.numeric)),
        "categorical": torch.stack(categories, 1).int() if categories else torch.zeros(64, 0).int(),
    }
    x["numeric"][::5] = torch.nan
    return x


@pytest.mark.parametrize("data", SCHEMAS)
@pytest.mark.parametrize("kind", [TabM, MLP])
def test_nets_take_any_mix_of_columns_and_a_gradient_reaches_every_parameter(
    kind: type[nn.Module], data: Schema
) -> None:
    net, x = (kind(data, width=8, members=4) if kind is TabM else kind(data, (8,))), rows(data)
    outputs = net(x)
    assert outputs.shape == ((64, 4, 3) if kind is TabM else (64, 3))
    outputs.square().sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in net.parameters())


@pytest.mark.parametrize("data", SCHEMAS)
def test_tabm_has_the_bits_of_the_authors_package(data: Schema) -> None:
    net, x = TabM(data, width=8, members=4, dropout=0.0), rows(data)
    numbers, categories = net.table(x)
    parts = (part if part.shape[1] else None for part in (numbers, categories))
    expected = net.ensemble(*parts)
    outputs = net(x)
    assert torch.equal(outputs, expected)
    gradients = [
        torch.autograd.grad(o.square().sum(), net.parameters()) for o in (outputs, expected)
    ]
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("data", SCHEMAS)
@pytest.mark.parametrize("strict", [False, True])
def test_tabm_is_exported_by_hand_for_any_number_of_rows(data: Schema, strict: bool) -> None:
    net, x, dim = TabM(data, width=8, members=4).eval(), rows(data), torch.export.Dim("rows")
    program = torch.export.export(
        net, (x,), dynamic_shapes=({k: {0: dim} for k in x},), strict=strict
    )
    few = {name: values[:5] for name, values in x.items()}
    torch.testing.assert_close(program.module()(few), net(few))


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:# The axis name")
@pytest.mark.parametrize("data", SCHEMAS)
def test_tabm_is_exported_to_onnx_by_hand(data: Schema, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    net, x, dim = TabM(data, width=8, members=4).eval(), rows(data), torch.export.Dim("rows")
    torch.onnx.export(
        net,
        (),
        tmp_path / "net.onnx",
        kwargs={"x": x},
        dynamic_shapes={"x": {name: {0: dim} for name in x}},
        input_names=list(x),
        dynamo=True,
    )
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx")
    few = {name: values[:5] for name, values in x.items()}
    inputs = {one.name: few[one.name].numpy() for one in session.get_inputs()}
    (outputs,) = session.run(None, inputs)
    torch.testing.assert_close(torch.from_numpy(outputs), net(few), rtol=1e-4, atol=1e-5)


def test_a_net_for_tables_refuses_other_rows() -> None:
    with pytest.raises(
        UserError, match=r"this net is for tables: expected columns, got rows of shape \(3,\)"
    ):
        TabM(Schema.of(3, classes=(0, 1)))


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_dropout_drops_and_scales_as_torchs_own(p: float) -> None:
    torch.manual_seed(0)
    x = torch.ones(999, 7, 31, requires_grad=True)
    dropout = Dropout(p)
    y = dropout(x)
    y.sum().backward()
    dropped = y == 0
    assert dropped.float().mean().item() == pytest.approx(
        p, abs=4 * (p * (1 - p) / x.numel()) ** 0.5
    )
    assert torch.equal(y, torch.where(dropped, 0.0, 1 / (1 - p)))
    assert torch.equal(x.grad, y)  # the gradient of a sum of ones
    share = dropped.float().mean(0)  # no place in a row is dropped more often than another
    assert (share - p).abs().max() < 5 * (p * (1 - p) / len(x)) ** 0.5
    assert not torch.equal(dropout(x) == 0, dropped)
    assert not Dropout(1.0)(x).any()
    assert torch.equal(dropout.eval()(x), x)
    net = TabM(schema(category(3)), dropout=p)
    assert {type(m) for m in net.modules() if isinstance(m, nn.Dropout)} == {Dropout}
