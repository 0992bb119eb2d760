"""Mixed training images: the loss by hand, steps in executions, and what is refused."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from conftest import Cli, plain_schema
from proj.models.classification import MulticlassClassifier
from proj.models.mixing import mix_images
from proj.schema import Batch

CONFIG = Path(__file__).parents[2] / "configs" / "digits.yaml"
SMALL = ["--model.net.width", "4", "--trainer.max_epochs", "1", "--data.batch_size", "32"]


def build(mixup: float, cutmix: float, **options: Any) -> MulticlassClassifier:
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(6 * 5, 3))
    model = MulticlassClassifier(net, mixup=mixup, cutmix=cutmix, **options)
    model.schema = plain_schema("multiclass", (1, 6, 5), 3)
    model.configure_model()
    return model


def test_mixup_is_the_weighted_mean_of_two_images_and_of_their_losses() -> None:
    model, generator = build(0.4, 0.0), torch.Generator().manual_seed(1)
    x = torch.randint(256, (7, 1, 6, 5), generator=generator, dtype=torch.uint8)
    y = torch.randint(3, (7,), generator=generator)
    torch.manual_seed(5)
    outputs, loss, weight = model.forward_loss(Batch(x, y, torch.arange(7)), "train")
    torch.manual_seed(5)
    _, share = mix_images(x / 255, 0.4, 0.0)
    assert 0 < share < 1
    other = [6, 0, 1, 2, 3, 4, 5]
    mixed = share * x / 255 + (1 - share) * x[other] / 255
    expected = model.net(mixed)
    torch.testing.assert_close(outputs, expected)
    by_hand = share * cross_entropy(expected, y) + (1 - share) * cross_entropy(expected, y[other])
    torch.testing.assert_close(loss, by_hand)
    assert weight == 7
    # Validation is not mixed.
    plain = model.forward_loss(Batch(x, y, torch.arange(7)), "val")[1]
    torch.testing.assert_close(plain.float(), cross_entropy(model.net(x / 255), y))


def test_cutmix_replaces_a_rectangle_whose_share_it_returns() -> None:
    """Over many batches, the shares are spread evenly, as those of Beta(1, 1)."""
    shares = []
    x = torch.arange(4.0)[:, None, None, None].expand(4, 1, 20, 20)
    torch.manual_seed(0)
    for _ in range(400):
        mixed, share = mix_images(x, 0.0, 1.0)
        own = mixed == x
        assert ((mixed == x.roll(1, 0)) ^ own).all()
        assert own[0].float().mean().item() == pytest.approx(share)
        replaced = torch.nonzero(~own[0, 0])
        if len(replaced):
            height, width = (replaced.amax(0) - replaced.amin(0) + 1).tolist()
            assert height * width == len(replaced)
        shares.append(share)
    assert np.quantile(shares, [0.25, 0.5, 0.75]) == pytest.approx([0.25, 0.5, 0.75], abs=0.08)


def test_both_are_used_for_half_of_the_batches_each() -> None:
    x = torch.rand(2, 1, 6, 5)
    torch.manual_seed(0)
    cuts = [bool((mix_images(x, 0.2, 1.0)[0] == x).any()) for _ in range(300)]
    assert np.mean(cuts) == pytest.approx(0.5, abs=0.12)


@pytest.mark.parametrize("options", [{}, {"class_weights": [1.0, 5.0, 2.0]}])
@torch.no_grad()
def test_row_and_class_weights_enter_both_losses(options: dict[str, Any]) -> None:
    """The loss is written out row by row."""
    model = build(0.4, 0.0, **options)
    assert model.schema is not None
    model.schema = replace(model.schema, weight_mean=0.8)
    x, y, weight = torch.rand(6, 1, 6, 5), torch.arange(6) % 3, torch.rand(6) + 0.1
    torch.manual_seed(5)
    mixed, share = mix_images(x, 0.4, 0.0)
    torch.manual_seed(5)
    _, loss, _ = model.forward_loss(Batch(x, y, torch.arange(6), (weight,)), "train")
    log_p = model.net(mixed).log_softmax(1)
    factor = torch.tensor(options.get("class_weights", [1.0, 1.0, 1.0]))
    total = torch.zeros(())
    for i in range(6):
        for j, part in ((i, share), (i - 1, 1 - share)):
            total -= part * weight[j] * factor[y[j]] * log_p[i, y[j]]
    torch.testing.assert_close(loss, total / (0.8 * factor[y].sum()))


def test_a_model_that_evaluates_mixes_nothing() -> None:
    model, x = build(0.2, 1.0).eval(), torch.rand(2, 1, 6, 5)
    outputs, _, _ = model.forward_loss(Batch(x, torch.tensor([0, 1]), torch.arange(2)), "train")
    assert torch.equal(outputs, model.net(x))


@pytest.mark.long
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_mixtures_have_the_bits_of_eager_ones() -> None:
    """`model.compile: step` needs one graph with the same random numbers."""
    x = torch.rand(6, 1, 6, 5)
    options = {"fallback_random": True}
    compiled = torch.compile(lambda x: mix_images(x, 0.4, 1.0), fullgraph=True, options=options)
    for seed in range(4):
        results = []
        for function in (lambda x: mix_images(x, 0.4, 1.0), compiled):
            torch.manual_seed(seed)
            results.append(function(x))
        torch.testing.assert_close(results[0], results[1])


@pytest.mark.long
def test_executions_have_the_bits_of_single_steps(cli: Cli, work: Path) -> None:
    weights = []
    for steps in ("1", "8"):
        alphas = ["--model.mixup", "0.2", "--model.cutmix", "1"]
        options = [*SMALL, *alphas, "--model.steps_per_execution", steps, "--name", steps]
        cli("fit", "--config", CONFIG, *options)
        path = work / "lightning_logs" / steps / "checkpoints" / "last.ckpt"
        weights.append(torch.load(path, weights_only=True)["state_dict"])
    assert all(torch.equal(values, weights[1][name]) for name, values in weights[0].items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--model.mixup", "-1"],
            "model.mixup: expected 0, which is off, or a number from 0.01 up, got -1.0",
        ),
        (["--model.mixup", "0.001"], "or a number from 0.01 up, got 0.001"),
        (["--model.cutmix", ".inf"], "or a number from 0.01 up, got inf"),
    ],
)
def test_wrong_alphas_are_one_message(cli: Cli, options: list[str], message: str) -> None:
    assert message in cli("fit", "--config", CONFIG, *SMALL, *options, code=2)


def test_inputs_that_are_no_images_are_refused(experiment: Callable[..., Path], cli: Cli) -> None:
    config = experiment("multiclass")
    message = cli("fit", "--config", config, "--model.mixup", "0.2", code=2)
    assert "model.mixup: expected images [channels, height, width], got other inputs" in message
