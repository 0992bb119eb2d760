"""Names in a config: which classes and functions it may name, at which places."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import processes
import proj
from conftest import Cli
from proj.engine.class_paths import resolve_class
from proj.errors import UserError

OWN = """
import functools, os
import yaml
from torch import nn
from torch.hub import load
from torch.optim import SGD
from torch.optim.lr_scheduler import StepLR

partial_load = functools.partial(yaml.unsafe_load)
net = nn.Linear(6, 3)

def make(width=8):
    return nn.Sequential(nn.Linear(6, width), nn.Linear(width, 3))

def make_annotated(width: int = 8) -> nn.Sequential:
    return make(width)

def warm_up(epoch: int) -> float:
    return min(1.0, (epoch + 1) / 5)

def make_warm_up(epochs: int = 5):
    return lambda epoch: min(1.0, (epoch + 1) / epochs)

class WarmUp:
    def __init__(self, epochs: int = 5):
        self.epochs = epochs

    def __call__(self, epoch: int) -> float:
        return min(1.0, (epoch + 1) / self.epochs)

def schedule(optimizer, epochs=5):
    return StepLR(optimizer, epochs)

def make_net(schema, width=4):
    return nn.Linear(6, 3)

def sgd(parameters):
    return SGD(parameters, lr=0.1)

def write(path: str) -> int:
    return open(path, "w").write("")
"""

# A YAML text that runs a command when it is loaded with yaml.unsafe_load.
UNSAFE = {
    "class_path": "yaml.unsafe_load",
    "init_args": {"stream": "!!python/object/apply:os.system [touch canary]"},
}
WRITE = {"class_path": "own.write", "init_args": {"path": "canary"}}
LOAD = "load_from_checkpoint"
LOAD_ARGS = {"checkpoint_path": "second.ckpt", "weights_only": False}


def lr_lambda(value: Any) -> dict[str, Any]:
    return {"scheduler": {"class_path": "LambdaLR", "init_args": {"lr_lambda": value}}}


@pytest.mark.parametrize(
    "model",
    [
        {"net": {"class_path": "own.make", "init_args": {"width": 4}}},
        {"net": {"class_path": "own.make_annotated"}},
        {"net": "own.net"},
        lr_lambda("own.warm_up"),
        lr_lambda({"class_path": "own.make_warm_up", "init_args": {"epochs": 3}}),
        lr_lambda({"class_path": "own.WarmUp"}),
        {"net": "own.make_net", "optimizer": "own.sgd", "scheduler": "own.schedule"},
        {"scheduler": {"class_path": "own.schedule", "init_args": {"epochs": 3}}},
        {"net": {"class_path": "own.make_net", "init_args": {"width": 5}}},
        {"loss": "torch.nn.CrossEntropyLoss"},
        {"metrics": {"a": {"class_path": "torchmetrics.classification.MulticlassCohenKappa"}}},
    ],
)
def test_what_a_config_may_name(model: Any, experiment: Any, cli: Cli) -> None:
    """A user could not use a function or a class of their own, or a loss of torch."""
    Path("own.py").write_text(OWN)
    cli("check", "--config", experiment(model=model))


@pytest.mark.parametrize(
    "model",
    [
        *({key: UNSAFE} for key in ("net", "optimizer", "scheduler", "loss")),
        {"metrics": {"a": UNSAFE}},
        lr_lambda(UNSAFE),
        lr_lambda("yaml.unsafe_load"),
        # An instance of a class of a library where a function is expected.
        lr_lambda({"class_path": "torch.nn.ReLU"}),
        lr_lambda(WRITE),
        {"net": WRITE},
        {"net": "own.partial_load"},
        {"net": "own.load"},
        {"net": {"class_path": "own.os.system", "init_args": {"command": "touch canary"}}},
        # A function of torch, and one of this package that takes a command line.
        {"net": {"class_path": "torch.nn.init.ones_", "init_args": {"tensor": 1}}},
        {"net": {"class_path": "proj.engine.cli.main", "init_args": {"args": ["--version"]}}},
        *(
            {"net": {"class_path": f"{base}.{LOAD}", "init_args": LOAD_ARGS}}
            for base in ("lightning.pytorch.LightningModule", "proj.models.MulticlassClassifier")
        ),
        {"net": "numpy.f2py.__main__.main"},
        # A class of the right kind that loads a model from a folder.
        {"metrics": {"a": {"class_path": "torchmetrics.text.infolm.InfoLM"}}},
    ],
)
def test_what_a_config_may_not_name(model: Any, experiment: Any, cli: Cli) -> None:
    """A config would call a function with arguments of its choice."""
    Path("own.py").write_text(OWN)
    message = cli("check", "--config", experiment(model=model), code=2)
    assert any(text in message for text in ("may not name", "may call", "cannot be imported"))
    assert not Path("canary").exists()


def test_a_class_of_a_file_beside_the_project_has_a_short_name(work: Path) -> None:
    """A class of the package of the same name comes first; two files with one name are named."""
    (work / "beside.py").write_text("class Beside: pass\n\nclass MLP: pass\n\nclass Both: pass\n")
    (work / "other-file.py").write_text("class Hidden: pass\n")
    assert resolve_class("Beside", "model.net") == "beside.Beside"
    assert resolve_class("MLP", "model.net") == "proj.nets.mlp.MLP"
    with pytest.raises(UserError, match="no class 'Hidden'"):
        resolve_class("Hidden", "model.net")
    (work / "second.py").write_text("class Both: pass\n")
    with pytest.raises(UserError, match=r"got beside.Both and second.Both; write its path"):
        resolve_class("Both", "model.net")


def test_options_of_a_function_are_flags(experiment: Any, cli: Cli) -> None:
    """A schedule of a function could have no options on the command line."""
    Path("own.py").write_text(OWN)
    flags = "--model.scheduler own.schedule --model.scheduler.epochs 3 --trainer.max_epochs 4"
    cli("fit", "--config", experiment(), *flags.split())
    folder = Path("lightning_logs/version_0")
    state = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["lr_schedulers"][0]
    assert state["step_size"] == 3
    assert state["_last_lr"] == [pytest.approx(1e-4)]
    cli("test", "--run", "version_0")


@pytest.mark.parametrize("name", ["optimizer", "scheduler"])
def test_a_function_that_returns_nothing_is_named(name: str, experiment: Any, cli: Cli) -> None:
    """Lightning would train without an optimizer, and the net would learn nothing."""
    Path("own.py").write_text("def nothing(first):\n    pass\n")
    answer = cli("fit", "--config", experiment(), f"--model.{name}", "own.nothing", code=2)
    assert f"model.{name}: expected {name} of torch.optim, got None from nothing" in answer


def test_a_plateau_over_a_metric_of_the_epoch_is_refused(experiment: Any, cli: Cli) -> None:
    """Training would end with a traceback at its first step."""
    plateau = {"class_path": "ReduceLROnPlateau", "init_args": {"monitor": "val/loss"}}
    config = experiment(model={"scheduler": plateau, "scheduler_interval": "step"})
    answer = cli("fit", "--config", config, code=2)
    assert "model.scheduler_interval: expected epoch for ReduceLROnPlateau, got step" in answer
    cli("fit", "--config", config, "--model.scheduler_interval", "epoch")


def test_allow_lets_a_config_name_functions(experiment: Any, cli: Cli, work: Path) -> None:
    """A user could not use the functions of a package that makes nets."""
    Path("packages").mkdir()
    Path("packages/zoo.py").write_text(OWN)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(work / "packages"))
        net = {"class_path": "zoo.make", "init_args": {"width": 4}}
        path = experiment(model={"net": net})
        assert "--allow zoo" in cli("check", "--config", path, code=2)
        cli("check", "--config", path, "--allow", "zoo")


def test_a_checkpoint_names_no_function(experiment: Any, cli: Cli) -> None:
    """``proj.load`` and the verbs would load a second checkpoint without ``weights_only``."""
    cli("fit", "--config", experiment())
    run = Path("lightning_logs/version_0")
    checkpoint = torch.load(run / "checkpoints/best.ckpt", weights_only=True)
    for path in (f"lightning.pytorch.LightningModule.{LOAD}", f"proj.models.Model.{LOAD}"):
        model = {"class_path": path, "init_args": LOAD_ARGS}
        for config in (
            {"model": model, "data": checkpoint["config"]["data"]},
            {"model": checkpoint["config"]["model"], "data": model},
        ):
            torch.save({**checkpoint, "config": {**checkpoint["config"], **config}}, "own.ckpt")
            with pytest.raises(UserError, match="may not name"):
                proj.load("own.ckpt")
            (run / "config.yaml").write_text(yaml.safe_dump({**checkpoint["config"], **config}))
            for verb in ("test", "validate", "predict"):
                assert "may not name" in cli(verb, code=2)
            assert "may not name" in cli("fit", "--resume", code=2)


@pytest.mark.parametrize(
    "text",
    [
        "Problem with given class_path '{0}.x': module '{0}' has no attribute 'x'",
        "Problem with given class_path '{0}.x'; Option 'y' is not accepted",
        "Importing '{0}.x' is not allowed",
        "No module named '{0}'",
    ],
)
def test_a_value_that_looks_like_an_error_imports_nothing(
    text: str, experiment: Any, cli: Cli
) -> None:
    """The explanation of an error would import a module of a run folder by its name."""
    Path("lightning_logs/run").mkdir(parents=True)
    Path("lightning_logs/run/code.py").write_text("open('canary', 'w')")
    model = {"label_smoothing": text.format("lightning_logs.run.code")}
    cli("check", "--config", experiment(model=model), code=2)
    assert not Path("canary").exists()


def fuzz(task: str, *sources: Any) -> list[Any]:
    """Run the fuzzer in one process for each source; return their results."""
    targets = [Path(f"result_{number}.json") for number in range(len(sources))]
    running = [
        processes.Process("engine.name_fuzzer", task, source, target)
        for source, target in zip(sources, targets, strict=True)
    ]
    assert [process.wait(timeout=7200) for process in running] == [0] * len(running)
    return [json.loads(target.read_text()) for target in targets]


def test_names_of_dependencies_run_nothing() -> None:
    """A sample of the slow test."""
    (result,) = fuzz("sample", 6)
    assert result["trials"] > 1000
    assert (result["accepted"], result["events"]) == ([], [])


@pytest.mark.slow
def test_all_names_of_all_dependencies_run_nothing() -> None:
    """A config would call a function, or build a class where another kind is expected.

    Tries some 20,000 functions and classes in 24 places, in two processes.
    """
    (names,) = fuzz("list", "all")
    assert {"yaml.unsafe_load", "numpy.load", "torch.hub.load"} < names.keys()
    for half in (0, 1):
        Path(f"names_{half}.json").write_text(json.dumps(dict([*names.items()][half::2])))
    results = fuzz("try", "names_0.json", "names_1.json")
    assert sum(result["trials"] for result in results) > 500_000
    for result in results:
        assert (result["accepted"], result["events"]) == ([], [])
