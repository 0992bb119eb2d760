"""Mixed training images: the loss by hand, steps in executions, and what is refused."""

from collections.abc import Callable
from pathlib import Path

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


def build(mixup: float, cutmix: float) -> MulticlassClassifier:
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(6 * 5, 3))
    model = MulticlassClassifier(net, mixup=mixup, cutmix=cutmix)
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
    _, share = mix_images(model, x)
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
    model, shares = build(0.0, 1.0), []
    x = torch.arange(4, dtype=torch.uint8)[:, None, None, None].expand(4, 1, 20, 20)
    torch.manual_seed(0)
    for _ in range(400):
        mixed, share = mix_images(model, x)
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
    model, x = build(0.2, 1.0), torch.rand(2, 1, 6, 5)
    torch.manual_seed(0)
    cuts = [bool((mix_images(model, x)[0] == x).any()) for _ in range(300)]
    assert np.mean(cuts) == pytest.approx(0.5, abs=0.12)


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
        (["--model.mixup", "-1"], "model.mixup: expected a number from 0 up, got -1.0"),
        (["--model.cutmix", ".inf"], "model.cutmix: expected a number from 0 up, got inf"),
    ],
)
def test_wrong_alphas_are_one_message(cli: Cli, options: list[str], message: str) -> None:
    assert message in cli("fit", "--config", CONFIG, *SMALL, *options, code=2)


def test_inputs_that_are_no_images_are_refused(experiment: Callable[..., Path], cli: Cli) -> None:
    config = experiment("multiclass")
    message = cli("fit", "--config", config, "--model.mixup", "0.2", code=2)
    assert "model.mixup: expected images [channels, height, width], got other inputs" in message
