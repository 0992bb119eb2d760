"""Freezing, learning rates by name, schedules, and starting from another run's weights."""

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn
from torch.optim import lr_scheduler

from conftest import Cli
from proj.engine import schedulers
from proj.engine.runs.checkpoint_file import read_checkpoint
from proj.engine.runs.find import find_run
from proj.engine.runs.run import Run
from proj.errors import UserError
from proj.models import MulticlassClassifier
from proj.models.optim import build_optimizer, freeze_matching, parameter_groups


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))


def test_groups_take_each_parameter_once_by_the_first_pattern() -> None:
    model = net()
    groups = parameter_groups(model, {"*.bias": 0.5, "2.*": 0.25})
    assert [(len(g["params"]), g.get("lr")) for g in groups] == [(2, 0.5), (1, 0.25), (1, None)]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    assert [g["lr"] for g in optimizer.param_groups] == [0.5, 0.25, 0.1]


def test_frozen_parameters_are_in_no_group() -> None:
    model = net()
    freeze_matching(model, ["0.*"])
    assert [p.requires_grad for p in model.parameters()] == [False, False, True, True]
    assert sum(len(g["params"]) for g in parameter_groups(model, {})) == 2


def test_patterns_without_effect_are_errors() -> None:
    with pytest.raises(
        UserError, match=r"matches '0.wight'; they are: 0.weight, 0.bias, 2.weight, 2.bias"
    ):
        parameter_groups(net(), {"0.wight": 0.1})
    with pytest.raises(UserError, match="leaves no parameter to train"):
        freeze_matching(net(), ["*"])


class Encoder(nn.Module):
    """Parameters named as in nets of transformers and timm."""

    def __init__(self, layers: str = "encoder.layer", count: int = 3) -> None:
        super().__init__()
        self.embeddings = nn.Linear(2, 2, bias=False)
        outer, _, inner = layers.rpartition(".")
        stack = nn.ModuleList(nn.Sequential(nn.Linear(2, 2, bias=False)) for _ in range(count))
        self.add_module(outer or inner, nn.ModuleDict({inner: stack}) if outer else stack)
        self.norm, self.classifier = nn.LayerNorm(2, bias=False), nn.Linear(2, 3, bias=False)


def rates_by_name(net: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, float]:
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    groups = optimizer.param_groups
    return {names[id(p)]: group["lr"] for group in groups for p in group["params"]}


@pytest.mark.parametrize("layers", ["encoder.layer", "blocks", "layers"])
def test_rates_decay_by_layer_as_in_beit(layers: str) -> None:
    """Layer i of L has lr * decay ** (L - i), counted from 0; embeddings one more; head and norm
    have the rate itself (arXiv:2106.08254, `get_num_layer_for_vit` in the authors' code).
    """
    net = Encoder(layers)
    optimizer = build_optimizer(lambda groups: torch.optim.AdamW(groups, lr=0.16), net, {}, 0.5)
    assert rates_by_name(net, optimizer) == {
        "embeddings.weight": 0.01,
        f"{layers}.0.0.weight": 0.02,
        f"{layers}.1.0.weight": 0.04,
        f"{layers}.2.0.weight": 0.08,
        "norm.weight": 0.16,
        "classifier.weight": 0.16,
    }


def test_a_rate_by_name_is_not_decayed() -> None:
    net = Encoder()
    freeze_matching(net, ["embeddings.*"])
    patterns = {"classifier.*": 0.3, "*.layer.0.*": 0.2}
    optimizer = build_optimizer(lambda g: torch.optim.SGD(g, lr=0.16), net, patterns, 0.5)
    assert rates_by_name(net, optimizer) == {
        "classifier.weight": 0.3,
        "encoder.layer.0.0.weight": 0.2,
        "encoder.layer.1.0.weight": 0.04,
        "encoder.layer.2.0.weight": 0.08,
        "norm.weight": 0.16,
    }


def test_a_net_whose_last_layer_is_numbered_has_its_rate_there() -> None:
    model = net()
    optimizer = build_optimizer(lambda g: torch.optim.SGD(g, lr=1.0), model, {}, 0.5)
    assert rates_by_name(model, optimizer) == {
        "0.weight": 0.5,
        "0.bias": 0.5,
        "2.weight": 1.0,
        "2.bias": 1.0,
    }


@pytest.mark.parametrize(
    ("decay", "model", "message"),
    [
        (0.0, Encoder(), "expected a number above 0 up to 1, got 0"),
        (1.5, Encoder(), "expected a number above 0 up to 1, got 1.5"),
        (0.5, nn.Linear(2, 1), "expected a net with numbered layers, .* named weight, bias"),
    ],
)
def test_a_decay_without_layers_is_an_error(decay: float, model: nn.Module, message: str) -> None:
    with pytest.raises(UserError, match=f"model.layer_decay: {message}"):
        parameter_groups(model, {}, decay)


@pytest.mark.parametrize(
    "build",
    [
        lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=5),
        lambda o: lr_scheduler.CosineAnnealingLR(o, 5),
        lambda o: lr_scheduler.LambdaLR(o, lambda step: 1 / (1 + step)),
        lr_scheduler.ReduceLROnPlateau,
    ],
    ids=["OneCycleLR", "CosineAnnealingLR", "LambdaLR", "ReduceLROnPlateau"],
)
def test_a_schedule_keeps_the_ratios_of_the_layers(build: Any) -> None:
    """The rates of a layer are those of the same schedule for one group, times its share."""
    module = MulticlassClassifier(
        Encoder(),
        optimizer=lambda groups: torch.optim.SGD(groups, lr=0.16),
        scheduler=build,
        layer_decay=0.5,
    )
    module.trainer = Trainer(accelerator="cpu", logger=False)
    configured = module.configure_optimizers()
    optimizer, scheduler = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    single = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.16)
    by_hand = build(single)
    for _ in range(4):
        rate = single.param_groups[0]["lr"]
        got = [group["lr"] for group in optimizer.param_groups]
        assert got == pytest.approx([rate / 16, rate / 8, rate / 4, rate / 2, rate])
        for each, schedule in ((optimizer, scheduler), (single, by_hand)):
            each.step()
            schedule.step(*[1.0] if isinstance(schedule, lr_scheduler.ReduceLROnPlateau) else [])


def test_a_schedule_of_one_rate_refuses_the_decay(experiment: Any, cli: Cli) -> None:
    scheduler = {"class_path": "CyclicLR", "init_args": {"base_lr": 0.01, "max_lr": 0.1}}
    config = experiment(model={"scheduler": scheduler, "layer_decay": 0.5, "optimizer": "SGD"})
    err = cli("fit", "--config", config, code=2)
    assert "model.layer_decay: CyclicLR sets one rate for all parameters" in err


def weights(run: Run, which: str = "last") -> dict[str, Any]:
    return read_checkpoint(run.checkpoint(which))["state_dict"]


def test_init_from_takes_what_fits_and_frozen_weights_stay(
    experiment: Any, cli: Cli, work: Any
) -> None:
    config = experiment(
        "multiclass", model={"net": {"class_path": "MLP", "init_args": {"hidden": [8, 8]}}}
    )
    cli("fit", "--config", config, "--name", "first")
    out = cli(
        "fit",
        "--config",
        config,
        "--name",
        "second",
        "--init_from",
        "first",
        "--seed_everything",
        "7",
        "--model.net.hidden",
        "[8, 5]",
        "--model.freeze",
        "['layers.2.*']",
    )
    first, second = (
        weights(find_run(work / "lightning_logs", name)) for name in ("first", "second")
    )
    best = weights(find_run(work / "lightning_logs", "first"), "best")
    assert torch.equal(second["net.layers.2.weight"], best["net.layers.2.weight"])
    assert first.keys() == second.keys()
    assert "5 of 8 tensors" in out  # mean, std, first layer, and the last bias
    assert "net.layers.4.weight has shape [8, 8], the model's [5, 8]" in out


def test_init_from_a_model_that_has_nothing_in_common_is_an_error(
    experiment: Any, cli: Cli, work: Any
) -> None:
    config = experiment("multiclass")
    torch.save({"state_dict": {"other": torch.zeros(1)}}, "other.ckpt")
    assert "got none in other.ckpt" in cli(
        "fit", "--config", config, "--init_from", "other.ckpt", code=2
    )
    assert not (work / "lightning_logs").exists()


def rates(run: Run) -> list[float]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run.path))
    events.Reload()
    tag = next(t for t in events.Tags()["scalars"] if t.startswith("lr-"))
    return [e.value for e in events.Scalars(tag)]


@pytest.mark.filterwarnings(
    "ignore:A `OneCycleLR` scheduler is using 'interval'"
)  # Lightning warns of it, too
@pytest.mark.parametrize("interval", ["step", "epoch"])
def test_a_schedule_of_open_length_fits_the_training(
    interval: str, experiment: Any, cli: Cli, work: Any
) -> None:
    """The logged rates are those of a OneCycleLR that is stepped for the length of the training."""
    scheduler = {"class_path": "OneCycleLR", "init_args": {"max_lr": 0.1}}
    options = {"scheduler": scheduler, "scheduler_interval": interval, "optimizer": "SGD"}
    config = experiment(
        "multiclass", model=options, trainer={"max_epochs": 4, "accumulate_grad_batches": 2}
    )
    cli("fit", "--config", config)
    batches_an_epoch = -(-84 // 16)
    steps = 4 * -(-batches_an_epoch // 2) if interval == "step" else 4
    by_hand = torch.optim.lr_scheduler.OneCycleLR(
        optimizer := torch.optim.SGD([nn.Parameter(torch.zeros(1))], 0.1), 0.1, total_steps=steps
    )
    expected = [by_hand.get_last_lr()[0]]
    for _ in range(steps - 1):
        optimizer.step()
        by_hand.step()
        expected.append(by_hand.get_last_lr()[0])
    got = list(dict.fromkeys(rates(find_run(work / "lightning_logs", None))))
    assert got == pytest.approx([v for v in expected if v in expected][: len(got)], rel=1e-5)
    assert len(got) >= steps - 1


@pytest.mark.parametrize(
    ("kind", "interval"),
    [("SequentialLR", "step"), ("torch.optim.lr_scheduler.SequentialLR", "epoch")],
)
def test_a_warm_up_before_a_cosine_is_that_of_torch(
    kind: str, interval: str, experiment: Any, cli: Cli, work: Any
) -> None:
    """A config cannot hold schedulers that exist, as torch's own class takes them."""
    parts: list[dict[str, Any]] = [
        {"class_path": "LinearLR", "init_args": {"start_factor": 0.1, "total_iters": 2}},
        {"class_path": "CosineAnnealingLR", "init_args": {"T_max": 3}},
    ]
    scheduler = {"class_path": kind, "init_args": {"schedulers": parts, "milestones": [2]}}
    options: dict[str, Any] = {"scheduler": scheduler, "scheduler_interval": interval}
    options |= {"optimizer": "SGD", "steps_per_execution": 1}
    epochs = 1 if interval == "step" else 4
    cli("fit", "--config", experiment(model=options, trainer={"max_epochs": epochs}))
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], 0.001)
    by_hand = lr_scheduler.SequentialLR(
        optimizer,
        [
            lr_scheduler.LinearLR(optimizer, 0.1, total_iters=2),
            lr_scheduler.CosineAnnealingLR(optimizer, 3),
        ],
        [2],
    )
    expected = []
    for _ in range(5):
        expected.append(by_hand.get_last_lr()[0])
        optimizer.step()
        by_hand.step()
    got = list(dict.fromkeys(rates(find_run(work / "lightning_logs", None))))
    assert got[:4] == pytest.approx(expected[:4], rel=1e-5)


def test_schedulers_at_the_same_time_are_those_of_torch() -> None:
    """The second one would replace the rate of the first, or not be stepped."""
    optimizers = [torch.optim.SGD([nn.Parameter(torch.zeros(1))], 0.1) for _ in range(2)]

    def linear(optimizer: Any) -> Any:
        return lr_scheduler.LinearLR(optimizer, 0.1, total_iters=3)

    def exponential(optimizer: Any) -> Any:
        return lr_scheduler.ExponentialLR(optimizer, 0.5)

    ours = schedulers.ChainedScheduler(optimizers[0], [linear, exponential])
    torchs = lr_scheduler.ChainedScheduler([linear(optimizers[1]), exponential(optimizers[1])])
    for _ in range(6):
        assert ours.get_last_lr() == torchs.get_last_lr()
        for optimizer in optimizers:
            optimizer.step()
        ours.step()
        torchs.step()


def test_milestones_fit_the_schedulers(experiment: Any, cli: Cli) -> None:
    """torch's message names no key of the config."""
    part = {"class_path": "LinearLR"}
    scheduler = {
        "class_path": "SequentialLR",
        "init_args": {"schedulers": [part, part], "milestones": [1, 2]},
    }
    err = cli("fit", "--config", experiment(model={"scheduler": scheduler}), code=2)
    assert "model.scheduler.milestones: expected one number less than schedulers" in err
    assert not Path("lightning_logs").exists()


def test_a_schedule_without_an_end_is_an_error(experiment: Any, cli: Cli) -> None:
    scheduler = {"class_path": "OneCycleLR", "init_args": {"max_lr": 0.1}}
    config = experiment(
        "multiclass",
        model={"scheduler": scheduler},
        trainer={"max_epochs": -1, "max_time": "00:00:00:02"},
    )
    err = cli("fit", "--config", config, code=2)
    assert "expected total_steps or a training of fixed length, got neither" in err


def test_rates_that_a_schedule_would_overrule_are_an_error(experiment: Any, cli: Cli) -> None:
    scheduler = {"class_path": "OneCycleLR", "init_args": {"max_lr": 0.1}}
    config = experiment(
        "multiclass", model={"scheduler": scheduler, "learning_rates": {"layers.2.*": 1e-4}}
    )
    err = cli("fit", "--config", config, code=2)
    assert (
        "OneCycleLR sets one rate for all parameters, so that 0.0001 for 'layers.2.*' would have "
        "no effect" in err
    )


def test_plateau_follows_its_metric(experiment: Any, cli: Cli, work: Any) -> None:
    scheduler = {
        "class_path": "ReduceLROnPlateau",
        "init_args": {"monitor": "val/loss", "patience": 0, "threshold": 1e9},
    }
    config = experiment("multiclass", model={"scheduler": scheduler}, trainer={"max_epochs": 4})
    cli("fit", "--config", config)
    assert rates(find_run(work / "lightning_logs", None))[-1] < 1e-3
    assert functools.reduce(
        lambda a, b: b <= a and b, rates(find_run(work / "lightning_logs", None))
    )


@pytest.mark.parametrize(
    ("options", "fused"),
    [
        ([], True),
        (["AdamW"], True),
        (["Adam", "--model.optimizer.fused", "false"], False),
        (["Adam", "--model.optimizer.foreach", "true"], None),
        (["SGD"], None),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_adam_is_fused_where_the_user_leaves_it_open(
    options: list[str], fused: bool | None, experiment: Any, cli: Cli, work: Any
) -> None:
    flags = ["--model.optimizer", *options] if options else []
    cli("fit", "--config", experiment(), "--trainer.max_epochs", "1", *flags)
    checkpoint = read_checkpoint(
        find_run(work / "lightning_logs", None).path / "checkpoints/last.ckpt"
    )
    assert checkpoint["optimizer_states"][0]["param_groups"][0]["fused"] is fused
