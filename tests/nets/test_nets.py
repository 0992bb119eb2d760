"""Nets: shapes for the inputs they are meant for, statistics inside, gradients everywhere."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from proj.errors import UserError
from proj.models.classification import MulticlassClassifier
from proj.nets.cnn import CNN
from proj.nets.layers import Standardize
from proj.nets.mlp import MLP
from proj.schema import Schema


def schema(shape: tuple[int, ...], classes: int = 4) -> Schema:
    channels = shape[0]
    plain = Schema.of(shape, classes=range(classes))
    return replace(
        plain, input_mean=tuple(range(channels)), input_std=tuple(range(1, channels + 1))
    )


@pytest.mark.parametrize("size", [8, 12, 16, 28, 32, 64])
@pytest.mark.parametrize("channels", [1, 3])
def test_cnn_takes_pictures_from_8_to_64(size: int, channels: int) -> None:
    net = CNN(schema((channels, size, size)), width=4)
    assert net(torch.rand(2, channels, size, size)).shape == (2, 4)


def test_a_mirrored_cnn_predicts_the_same_for_both_sides_and_means_both() -> None:
    net = CNN(schema((1, 9, 9)), width=4, mirror=True).eval()
    plain = CNN(schema((1, 9, 9)), width=4).eval()
    plain.load_state_dict(net.state_dict())
    x = torch.rand(3, 1, 9, 9)
    pair = MulticlassClassifier(net).average_members(net(x)).softmax(1)
    mean = (plain(x).softmax(1) + plain(x.flip(3)).softmax(1)) / 2
    assert torch.allclose(pair, mean, atol=1e-6)
    assert torch.allclose(
        MulticlassClassifier(net).average_members(net(x.flip(3))).softmax(1), mean, atol=1e-6
    )
    assert net.train()(x).shape == (3, 4)


@pytest.mark.parametrize("norm", [None, "batch", "layer"])
@pytest.mark.parametrize("hidden", [(), (5,), (5, 3)])
def test_mlp_takes_any_shape(norm: str | None, hidden: tuple[int, ...]) -> None:
    net = MLP(schema((3, 2)), hidden, "gelu", 0.1, norm)
    assert net(torch.rand(6, 3, 2)).shape == (6, 4)
    assert [m.out_features for m in net.modules() if isinstance(m, nn.Linear)] == [*hidden, 4]


@pytest.mark.parametrize("net", [CNN(schema((2, 16, 16)), width=4, blocks=2), MLP(schema((6,)))])
def test_a_gradient_reaches_every_parameter(net: nn.Module) -> None:
    x = torch.rand(4, 2, 16, 16) if isinstance(net, CNN) else torch.rand(4, 6)
    net(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


@pytest.mark.parametrize("width", [4, 5, 8, 16])
def test_cnn_has_the_gradients_of_the_plain_memory_format(width: int) -> None:
    """A kernel for 1×1 convolutions with a stride wrote past its memory in channels_last."""
    torch.manual_seed(0)
    x = torch.rand(7, 3, 13, 12)
    fast = CNN(schema((3, 13, 12)), width=width)
    plain = copy.deepcopy(fast).to(memory_format=torch.contiguous_format)
    assert not fast.layers[2].residual[0].weight.is_contiguous()
    for net in (fast, plain):
        net(x).square().sum().backward()
    for a, b in zip(fast.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(a.grad, b.grad, rtol=1e-3, atol=1e-3 * b.grad.abs().max())


def test_standardize_uses_the_schemas_statistics_a_channel() -> None:
    layer = Standardize(schema((2, 3, 3)))
    x = torch.rand(5, 2, 3, 3)
    assert torch.allclose(layer(x)[:, 1], (x[:, 1] - 1) / 2)
    assert set(layer.state_dict()) == {"mean", "std"}


def test_cnn_says_which_net_takes_rows_of_numbers() -> None:
    with pytest.raises(UserError, match="use the net MLP"):
        CNN(schema((7,)))
