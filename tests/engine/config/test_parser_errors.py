"""Mistakes of the command line whose message of jsonargparse names the wrong thing."""

from pathlib import Path
from typing import Any

import pytest

from conftest import Cli

OWN = """
import functools
from lightning.pytorch import Callback
from lightning.pytorch.loggers import Logger
class Abstract(Logger):
    pass
def callback():
    return Callback()
def number(optimizer) -> int:
    return 3
half = functools.partial(number, factor=0.5)
"""

# Words that no message may hold, because only jsonargparse knows them.
INSIDES = (
    "Namespace(",
    "NestedArg(",
    "Union subtypes",
    "expected ,",
    "typing.",
    "--allow lightning",
)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--trainer.callbacks ModelPruning", "trainer.callbacks.pruning_fn: a value is required"),
        ("--trainer.callbacks [EarlyStopping]", "trainer.callbacks.monitor: a value is required"),
        ("--trainer.logger [CSVLogger]", "trainer.logger.save_dir: a value is required"),
        ("--trainer.callbacks [Timerr]", "no class 'Timerr' is known by that short name"),
        ("--trainer.callbacks own.callback", "a function without that return annotation"),
        ("--model.scheduler own.number", "a function that makes LRScheduler or ReduceLROnPlateau"),
        ("--model.scheduler own.half", "a class or a function, got own.half, an object of type"),
        ("--trainer.callbacks [Timer,3]", "trainer.callbacks: expected classes, got 3 as item 2"),
        (
            '--model.metrics={"k":{"class_path":"torchmetrics.CohenKapa"}}',
            "no class CohenKapa in torchmetrics. Did you mean 'CohenKappa'?",
        ),
        ("--model.scheduler own.numbr", "model.scheduler: no class numbr in own."),
        ("--model missing.yaml", "model: expected a class or a YAML file, got missing.yaml"),
        (
            "--trainer.callbacks ModelPruning --trainer.callbacks.pruning_fn nope",
            "error: trainer.callbacks: ModelPruning cannot be built: The provided `pruning_fn`",
        ),
        (
            '--trainer.callbacks={"class_path":"ThroughputMonitor",'
            '"init_args":{"batch_size_fn":"len"}}',
            "trainer.callbacks.batch_size_fn: expected a function or class by its import path",
        ),
        ("--trainer.logger own.Abstract", "own.Abstract, which is abstract"),
        (
            "--trainer.num_nodes.x 3",
            "trainer.num_nodes.x: no such key; trainer.num_nodes is a value",
        ),
        ("--trainer.max_epochs.x 3", "trainer.max_epochs.x: no such key"),
        ("--model.scheduler={a:1}", "model.scheduler: expected"),
        ("--model.scheduler=[1]", "expected a function or class by its import path, got [1]."),
        ("--model.scheduler torch.nn.Linear", "derived from LRScheduler or ReduceLROnPlateau"),
        ('--model.scheduler={"a":1}', "model.scheduler: expected class_path and init_args"),
        ('--trainer.callbacks={"a":1}', "trainer.callbacks: expected class_path and init_args"),
        ("--trainer.callbacks 3", "trainer.callbacks: expected list or null, got 3."),
    ],
)
def test_the_message_names_what_is_wrong(
    flags: str, message: str, experiment: Any, cli: Cli
) -> None:
    """The message of another type of a union would be shown, or the text of jsonargparse."""
    Path("own.py").write_text(OWN)
    answer = cli("fit", "--config", experiment(), *flags.split(), code=2)
    assert message in answer
    assert not any(word in answer for word in INSIDES)


@pytest.mark.parametrize(
    "key",
    [
        *("trainer.callbacks.patience", "trainer.logger.save_dir", "trainer.profiler.filename"),
        *("trainer.strategy.find_unused_parameters", "model.scheduler.gamma", "model.loss.weight"),
    ],
)
def test_an_option_without_its_class_asks_for_the_class(
    key: str, experiment: Any, cli: Cli
) -> None:
    """The message would advise to allow a package, or show the base class that is abstract."""
    answer = cli("fit", "--config", experiment(), f"--{key}", "3", code=2)
    assert f"{key}: expected a class before its options" in answer
    assert f"--{key.rpartition('.')[0]} CLASS --{key} 3" in answer
