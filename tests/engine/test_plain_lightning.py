"""The same experiment in `fit` and in plain Lightning: whether it runs, and the final weights.

Plain Lightning is a ``LightningCLI`` with the same config, which this package does not touch.
"""

import copy
import warnings
from collections.abc import Callable
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import (
    Callback,
    LightningDataModule,
    LightningModule,
    Trainer,
    callbacks,
)
from lightning.pytorch.cli import LightningCLI
from torch import Tensor

from proj.engine.commands.fit import fit
from proj.engine.config.arguments import read_config
from proj.models.base import Model

OWN = """
import torch
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.callbacks import BackboneFinetuning, ThroughputMonitor
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Data(LightningDataModule):
    def setup(self, stage):
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(70, 6, generator=generator)
        self.rows = TensorDataset(x, x[:, :1] - x[:, 1:2] + 0.1)

    def train_dataloader(self):
        return DataLoader(self.rows, batch_size=16, shuffle=True)

    def val_dataloader(self):
        return DataLoader(self.rows, batch_size=32)


class Unfreeze(BackboneFinetuning):
    def __init__(self):
        super().__init__(unfreeze_backbone_at_epoch=1, lambda_func=lambda epoch: 1.5)


class Throughput(ThroughputMonitor):
    def __init__(self):
        super().__init__(batch_size_fn=lambda batch: len(batch[0]))


class Plain(LightningModule):
    def __init__(self, schedule: bool = True, skip: int = 0, lazy: bool = False):
        super().__init__()
        self.schedule, self.skip, self.lr = schedule, skip, 0.05
        first = nn.LazyLinear(5) if lazy else nn.Linear(6, 5)
        self.backbone = nn.Sequential(first, nn.BatchNorm1d(5), nn.ReLU(), nn.Dropout(0.2))
        self.head = nn.Linear(5, 1)

    def forward(self, x):
        return self.head(self.backbone(x))

    def loss(self, batch, name):
        x, y = batch
        loss = (self(x) - y).square().mean()
        self.log(name, loss, on_step=name == "train/loss", on_epoch=True)
        return loss

    def training_step(self, batch, batch_idx):
        if self.skip and batch_idx % self.skip == 0:
            return None
        return self.loss(batch, "train/loss")

    def validation_step(self, batch, batch_idx):
        self.loss(batch, "val/loss")

    def configure_optimizers(self):
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        optimizer = torch.optim.SGD(trained, lr=self.lr, momentum=0.9)
        if not self.schedule:
            return optimizer
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)]


class Two(Plain):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.other = nn.Linear(6, 1)

    def training_step(self, batch, batch_idx):
        first, second = self.optimizers()
        loss = self.loss(batch, "train/loss")
        first.zero_grad()
        self.manual_backward(loss)
        first.step()
        second.zero_grad()
        self.manual_backward((self.other(batch[0]) - batch[1]).square().mean())
        second.step()
        if self.trainer.is_last_batch:
            self.lr_schedulers().step()

    def configure_optimizers(self):
        optimizers, schedulers = super().configure_optimizers()
        return [*optimizers, torch.optim.Adam(self.other.parameters())], schedulers
"""

# The models: one of this package, a plain module, and one with two optimizers.
MODELS = ("ours", "own.Plain", "own.Two")
Run = Callable[..., tuple[str, dict[str, Tensor]]]


@pytest.fixture
def experiment_of(experiment: Any) -> Callable[..., Path]:
    """Write an experiment with one of ``MODELS``; keyword arguments are flags of its Trainer."""

    def write(model: str, init_args: dict[str, Any] | None = None, **trainer: Any) -> Path:
        Path("own.py").write_text(OWN)
        quiet = {"enable_progress_bar": False, "enable_model_summary": False}
        path: Path = experiment("regression", trainer={"max_epochs": 3, **quiet, **trainer})
        config = yaml.safe_load(path.read_text())
        if model == "ours":
            config["model"]["init_args"]["net"]["init_args"]["dropout"] = 0.2
            config["model"]["init_args"] |= init_args or {}
        else:
            config["model"] = {"class_path": model, "init_args": init_args or {}}
            config["data"] = {"class_path": "own.Data"}
        path.write_text(yaml.safe_dump(config))
        return path

    return write


class Weights(Callback):
    """The weights after training."""

    state: dict[str, Tensor] | None = None

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        self.state = copy.deepcopy(pl_module.state_dict())


def fit_ours(config: Path) -> tuple[str, dict[str, Tensor]]:
    """Return why `fit` has failed, or nothing, and the weights, which last.ckpt holds, too."""
    weights = Weights()
    try:
        fit(["--config", str(config), "--name", "ours"], callbacks=[weights])
    except (Exception, SystemExit) as error:
        return f"{type(error).__name__}: {error}", {}
    file = Path("lightning_logs/ours/checkpoints/last.ckpt")
    if file.exists():
        saved = torch.load(file, weights_only=True)["state_dict"]
        assert weights.state is not None
        assert all(torch.equal(saved[name], value) for name, value in weights.state.items())
    return "", weights.state or {}


def fit_plain(config: Path, built: bool) -> tuple[str, dict[str, Tensor]]:
    """Return why plain Lightning has failed, or nothing, and the weights after training.

    ``built`` builds the net of a model of this package before training.
    """
    values = read_config(config)
    values["trainer"]["default_root_dir"] = "plain"
    try:
        cli = LightningCLI(
            LightningModule,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=None,
            run=False,
            auto_configure_optimizers=False,
            parser_kwargs={"exit_on_error": False},
            args=values,
        )
        if built and isinstance(cli.model, Model):
            build(cli.model, cli.datamodule)
        cli.trainer.fit(cli.model, datamodule=cli.datamodule)
    except (Exception, SystemExit) as error:
        return f"{type(error).__name__}: {error}", {}
    return "", cli.model.state_dict()


def build(model: Model, data: Any) -> None:
    """Build the net before training, as a plain module has it.

    Lightning calls ``configure_model`` after the ``setup`` of the callbacks.
    """
    data.setup("fit")
    model.schema = data.schema
    model.configure_model()


def check_same(config: Path, fails: bool = False, built: bool = False) -> None:
    """Check that both run, or fail, and that they end with the same weights."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        failure, ours = fit_ours(config)
        plain_failure, plain = fit_plain(config, built)
    assert bool(failure) == fails, failure
    assert bool(plain_failure) == fails, plain_failure
    if ours:  # `fast_dev_run` keeps nothing.
        assert ours.keys() == plain.keys()
        differing = [name for name in ours if not torch.equal(ours[name], plain[name])]
        assert not differing, differing


def with_callback(name: str, **options: Any) -> dict[str, Any]:
    return {"callbacks": [{"class_path": name, "init_args": options}]}


# Every callback of Lightning that a config can build, by name; the values are flags of the Trainer.
CALLBACKS = {
    "BackboneFinetuning": with_callback("own.Unfreeze"),
    "DeviceStatsMonitor": with_callback("DeviceStatsMonitor"),
    "EarlyStopping": with_callback("EarlyStopping", monitor="val/loss", patience=1),
    "EMAWeightAveraging": with_callback("EMAWeightAveraging", decay=0.5),
    "GradientAccumulationScheduler": with_callback(
        "GradientAccumulationScheduler", scheduling={0: 2, 2: 1}
    ),
    "LearningRateFinder": with_callback("LearningRateFinder", num_training_steps=5),
    "LearningRateMonitor": with_callback("LearningRateMonitor", logging_interval="step"),
    "ModelCheckpoint": with_callback("ModelCheckpoint", monitor="val/loss", save_top_k=2),
    "ModelPruning": with_callback("ModelPruning", pruning_fn="l1_unstructured", amount=0.3),
    "ModelSummary": with_callback("ModelSummary", max_depth=2),
    "OnExceptionCheckpoint": with_callback("OnExceptionCheckpoint", dirpath="exceptions"),
    "RichModelSummary": with_callback("RichModelSummary"),
    "RichProgressBar": with_callback("RichProgressBar") | {"enable_progress_bar": True},
    "SpikeDetection": with_callback("SpikeDetection"),
    "StochasticWeightAveraging": with_callback("StochasticWeightAveraging", swa_lrs=0.01),
    "StochasticWeightAveraging linear": with_callback(
        "StochasticWeightAveraging", swa_lrs=0.01, swa_epoch_start=1, annealing_strategy="linear"
    ),
    "ThroughputMonitor": with_callback("own.Throughput"),
    "Timer": with_callback("Timer", duration={"minutes": 5}, interval="epoch"),
    "TQDMProgressBar": with_callback("TQDMProgressBar") | {"enable_progress_bar": True},
    "WeightAveraging": with_callback("WeightAveraging"),
}

# Every flag of the Trainer with a value other than its default.
FLAGS: dict[str, dict[str, Any]] = {
    "accumulate_grad_batches": {"accumulate_grad_batches": 2},
    "barebones": {"barebones": True, "log_every_n_steps": None},
    "benchmark": {"benchmark": True},
    "check_val_every_n_epoch": {"check_val_every_n_epoch": 2},
    "default_root_dir": {"default_root_dir": "runs"},
    "detect_anomaly": {"detect_anomaly": True},
    "deterministic": {"deterministic": True},
    "deterministic warn": {"deterministic": "warn"},
    "devices": {"devices": 1},
    "enable_autolog_hparams": {"enable_autolog_hparams": False},
    "enable_checkpointing": {"enable_checkpointing": False},
    "enable_model_summary": {"enable_model_summary": True},
    "fast_dev_run": {"fast_dev_run": True},
    "fast_dev_run 2": {"fast_dev_run": 2},
    "gradient_clip_val": {"gradient_clip_val": 0.01},
    "gradient_clip value": {"gradient_clip_val": 0.001, "gradient_clip_algorithm": "value"},
    "inference_mode": {"inference_mode": False},
    "limit_train_batches": {"limit_train_batches": 2},
    "limit_train_batches share": {"limit_train_batches": 0.5, "limit_val_batches": 0.5},
    "limit_train_batches 0": {"limit_train_batches": 0},
    "limit_val_batches": {"limit_val_batches": 0},
    "log_every_n_steps": {"log_every_n_steps": 0},
    "logger": {"logger": False},
    "max_epochs -1": {"max_epochs": -1, "max_steps": 7},
    "max_epochs 0": {"max_epochs": 0},
    "max_epochs null": {"max_epochs": None, "max_steps": 7},
    "max_steps": {"max_steps": 7},
    "max_time": {"max_time": "00:00:05:00"},
    "min_epochs": {"min_epochs": 2},
    "min_steps": {"min_steps": 7},
    "num_sanity_val_steps": {"num_sanity_val_steps": -1},
    "overfit_batches": {"overfit_batches": 2},
    "overfit_batches share": {"overfit_batches": 0.5},
    "precision 64-true": {"precision": "64-true"},
    "precision bf16-true": {"precision": "bf16-true"},
    "precision bf16-mixed": {"precision": "bf16-mixed"},
    "precision 16-true": {"precision": "16-true"},
    "profiler": {"profiler": "simple"},
    "profiler advanced": {"profiler": "advanced"},
    "reload_dataloaders_every_n_epochs": {"reload_dataloaders_every_n_epochs": 1},
    "strategy": {"strategy": "ddp_find_unused_parameters_true", "devices": 1},
    "sync_batchnorm": {"sync_batchnorm": True},
    "use_distributed_sampler": {"use_distributed_sampler": False},
    "val_check_interval share": {"val_check_interval": 0.5},
    "val_check_interval": {"val_check_interval": 2},
    "val_check_interval over epochs": {"val_check_interval": 7, "check_val_every_n_epoch": None},
    "val_check_interval time": {"val_check_interval": "00:00:00:00"},
    "val_check_interval time over epochs": {
        "val_check_interval": "00:00:00:00",
        "check_val_every_n_epoch": None,
    },
}


# What Lightning refuses, and we do, too.
REFUSED = {
    # It has no `backbone`.
    ("BackboneFinetuning", "ours"),
    ("GradientAccumulationScheduler", "own.Two"),
    # It has no `lr`.
    ("LearningRateFinder", "ours"),
    ("LearningRateFinder", "own.Two"),
    ("SpikeDetection", "own.Two"),
    ("StochasticWeightAveraging", "own.Two"),
    ("StochasticWeightAveraging linear", "own.Two"),
    ("accumulate_grad_batches", "own.Two"),
    ("gradient_clip_val", "own.Two"),
    ("gradient_clip value", "own.Two"),
}
# Callbacks that need a model whose net is built already.
ON_BUILT_MODELS = {"ModelPruning", "StochasticWeightAveraging", "StochasticWeightAveraging linear"}
# What is different on purpose.
DIFFERENT = {
    # The targets are not rounded.
    ("precision bf16-true", "ours"),
    # A loss that is not finite ends the training.
    ("precision 16-true", "ours"),
}
CASES = [
    (name, model)
    for name in (*CALLBACKS, *FLAGS)
    for model in MODELS
    if (name, model) not in DIFFERENT
]


def check_case(name: str, model: str, experiment_of: Callable[..., Path]) -> None:
    config = experiment_of(model, **{**CALLBACKS, **FLAGS}[name])
    check_same(config, fails=(name, model) in REFUSED, built=name in ON_BUILT_MODELS)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "model"), CASES)
def test_every_callback_and_every_flag(
    name: str, model: str, experiment_of: Callable[..., Path]
) -> None:
    """A callback or a flag of Lightning would not work here, or would train another model."""
    check_case(name, model, experiment_of)


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("StochasticWeightAveraging", "ours"),
        ("StochasticWeightAveraging", "own.Plain"),
        ("EMAWeightAveraging", "ours"),
        ("val_check_interval time", "own.Two"),
    ],
)
def test_some_callbacks_and_flags(
    name: str, model: str, experiment_of: Callable[..., Path]
) -> None:
    """A callback or a flag of Lightning would not work here, or would train another model."""
    check_case(name, model, experiment_of)


@pytest.mark.parametrize("options", [{"skip": 2}, {"skip": 1}, {"lazy": True}])
def test_ordinary_modules(options: dict[str, Any], experiment_of: Callable[..., Path]) -> None:
    """A `training_step` without a loss, or lazy layers, would end the training."""
    check_same(experiment_of("own.Plain", {"schedule": False, **options}))


def test_every_callback_of_lightning_is_tried() -> None:
    """A new version of Lightning would add one that nobody has tried."""
    abstract = {"BaseFinetuning", "BasePredictionWriter", "Callback", "Checkpoint", "ProgressBar"}
    refused = {"BatchSizeFinder", "LambdaCallback"}
    assert set(callbacks.__all__) - abstract - refused <= set(CALLBACKS)


def test_every_flag_of_the_trainer_is_tried() -> None:
    """A new version of Lightning would add one that nobody has tried."""
    tried = {flag for flags in (*FLAGS.values(), *CALLBACKS.values()) for flag in flags}
    flags = set(signature(Trainer.__init__).parameters) - {"self"}
    # They need other hardware or a service, are objects, or belong to other verbs.
    others = {"accelerator", "num_nodes", "plugins", "model_registry"}
    others |= {"limit_test_batches", "limit_predict_batches"}
    assert flags - others <= tried
