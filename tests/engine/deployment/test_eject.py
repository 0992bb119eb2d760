"""`eject` writes a script of plain PyTorch that ends with the bits of the run, or says why not."""

import ast
import importlib
import json
import math
import runpy
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from jsonargparse import Namespace
from lightning.pytorch.callbacks import LearningRateMonitor, StochasticWeightAveraging

import processes
from conftest import CONFIGS, Cli, Once, Trained
from engine.deployment.conftest import FEW_EPOCHS, TARGETS
from engine.deployment.test_own_code import WAVES
from proj.engine.config.arguments import read_arguments
from proj.engine.config.experiment import ExperimentCLI
from proj.engine.deployment.eject import _check_names
from proj.engine.deployment.eject_branches import Ran
from proj.engine.deployment.eject_limits import obstacles
from proj.engine.deployment.eject_net import check_net, trace_net
from proj.engine.deployment.eject_source import Sources, import_lines
from proj.engine.deployment.eject_values import plain, value_text
from proj.engine.runs.run import Run
from proj.errors import UserError
from proj.schema import Schema

RUN = Path("lightning_logs/version_0")
SCRIPT = RUN / "train.py"
SHIPPED = {path.stem: path for path in CONFIGS}
FORBIDDEN = ("lightning", "pytorch_lightning", "proj", "polars", "jsonargparse")
# Runs a script in an interpreter that cannot import this package, nor Lightning.
BLOCKED = f"""
import runpy, sys

class Block:
    def find_spec(self, name, *others):
        if name.partition(".")[0] in {FORBIDDEN}:
            raise ImportError(f"{{name}} is blocked")

sys.meta_path.insert(0, Block())
runpy.run_path(sys.argv[1], run_name="__main__")
"""


def compare(weights: dict[str, dict[str, torch.Tensor]], run: Path = RUN) -> None:
    """The weights of a script are those in the checkpoints of its run, to the bit."""
    assert sorted(weights) == ["best", "last"]
    for name, got in weights.items():
        state = torch.load(run / "checkpoints" / f"{name}.ckpt", weights_only=True)["state_dict"]
        expected = {k.removeprefix("net."): v for k, v in state.items() if k.startswith("net.")}
        assert list(got) == list(expected)
        for key, values in expected.items():
            assert values.numpy().tobytes() == got[key].numpy().tobytes(), f"{name} {key}"


def check_output(printed: str, run: Path = RUN) -> None:
    """A script says that its weights are those of the run, and prints the run's test metrics."""
    lines = printed.splitlines()
    assert "last weights: identical to those of the run" in lines
    assert "NOT" not in printed
    metrics = json.loads((run / "test/metrics.json").read_text())
    (line,) = [line for line in lines if line.startswith("test: ")]
    shown = dict(part.split(" ") for part in line.removeprefix("test: ").split(", "))
    names = {"loss", "accuracy", "precision", "recall", "f1", "mse", "rmse", "mae", "r2"}
    if "auroc" in shown:  # They are computed if they choose the epoch.
        names |= {"auroc", "average_precision"}
    assert set(shown) == names & metrics.keys()
    for name, value in shown.items():
        assert float(value) == pytest.approx(metrics[name]["value"], rel=1e-5)


def run_alone(script: Path = SCRIPT, run: Path = RUN) -> None:
    """Run a script in a new interpreter, elsewhere and without this package, and compare."""
    options = {"env": {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}, "cwd": "/"}
    command = [processes.REAL_PYTHON, "-c", BLOCKED, str(script.absolute())]
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, done.stderr
    check_output(done.stdout, run)
    compare(torch.load(script.with_name(f"{script.stem}_weights.pt"), weights_only=True), run)


def run_here(capsys: pytest.CaptureFixture[str]) -> None:
    """Run the script in this process, which is quicker, and compare."""
    capsys.readouterr()
    scope = runpy.run_path(str(SCRIPT), run_name="__main__")
    check_output(capsys.readouterr().out)
    compare({name: scope[name] for name in ("last", "best")})


def check_style(script: Path = SCRIPT) -> None:
    """A script is formatted and free of mistakes that a linter finds, such as unused imports."""
    ruff = [processes.REAL_PYTHON, "-m", "ruff"]
    options = ["--isolated", "--line-length", "100", str(script)]
    for verb in (["check", "--select", "E,F,I,UP,B,SIM"], ["format", "--diff"]):
        done = subprocess.run([*ruff, *verb, *options], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout


def test_the_script_ends_with_the_bits_of_the_run(
    tested: None, cli: Cli, capsys: pytest.CaptureFixture[str]
) -> None:
    """A difference in seed, order, loss, optimizer or choice of the epoch shows in the weights."""
    assert "python lightning_logs/version_0/train.py" in cli("eject")
    run_here(capsys)
    text = SCRIPT.read_text()
    assert len(text.splitlines()) <= 200
    assert not [name for name in FORBIDDEN if f"import {name}" in text or f"from {name}" in text]
    check_style()
    # The comparison in the script notices another seed.
    assert "SEED = 1\n" in text
    SCRIPT.write_text(text.replace("SEED = 1\n", "SEED = 2\n"))
    capsys.readouterr()
    runpy.run_path(str(SCRIPT), run_name="__main__")
    printed = capsys.readouterr().out
    assert "last weights: NOT those of the run" in printed
    assert "best weights: NOT those of the run" in printed
    assert "expected a new file, but" in cli("eject", code=2)


WHOLE = [
    pytest.param(name, [], marks=[pytest.mark.slow] if name != "simple_nn" else [])
    for name in SHIPPED
]
SHORT = [(name, ["--trainer.max_epochs", 4]) for name in SHIPPED if name != "simple_nn"]


@pytest.mark.long
@pytest.mark.parametrize(("name", "flags"), [*WHOLE, *SHORT])
def test_shipped_experiments(name: str, flags: list[Any], cli: Cli) -> None:
    cli("fit", "--config", SHIPPED[name], *flags)
    cli("test")
    cli("eject", "version_0", "--output", "own/script.py")
    script = Path("own/script.py")
    run_alone(script)
    check_style(script)
    assert len(script.read_text().splitlines()) <= 215


@pytest.mark.long
@pytest.mark.parametrize("task", TARGETS)
def test_tables(table_run: Callable[..., None], cli: Cli, task: str) -> None:
    """Tables with dates, categories and missing values, of every task."""
    table_run(task, "MLP")
    cli("eject")
    run_alone()
    check_style()
    assert len(SCRIPT.read_text().splitlines()) <= 230


@pytest.mark.long
def test_an_ensemble(table_run: Callable[..., None], cli: Cli) -> None:
    """Each member of a TabM has its own loss, and the members are averaged in evaluation."""
    table_run("multiclass", "TabM")
    cli("eject")
    run_alone()
    check_style()


@pytest.mark.long
@pytest.mark.parametrize("mixed", [False, True])
def test_images(image_run: Callable[..., None], cli: Cli, mixed: bool) -> None:
    """Augmented images, evaluated with their mirror images; mixtures of two images."""
    image_run(mixed=mixed)
    cli("eject")
    run_alone()
    check_style()


STEPS = {"scheduler_interval": "step"}
BALANCED = {"class_weights": "auto", "label_smoothing": 0.2}
SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "weights of the classes": ("multiclass", {"model": BALANCED}),
    "weight of the positive": ("binary", {"model": {"pos_weight": "auto", "label_smoothing": 0.1}}),
    "weights of the labels": ("multilabel", {"model": {"pos_weight": [1.0, 2.0, 0.5]}}),
    "a loss": ("regression_2", {"model": {"loss": "torch.nn.L1Loss"}}),
    "a loss of classes": (
        "multiclass",
        {"model": {"loss": {"class_path": "torch.nn.MultiMarginLoss", "init_args": {"p": 2}}}},
    ),
    "batch normalization": (
        "multiclass",
        {"model": {"net": {"class_path": "MLP", "init_args": {"norm": "batch", "dropout": 0.3}}}},
    ),
    "frozen parameters": ("multiclass", {"model": {"freeze": ["layers.2.*"]}}),
    "learning rates": (
        "multiclass",
        {
            "model": {
                "learning_rates": {"layers.4.*": 0.1, "layers.*.bias": 0.02, "layers.4.bias": 9.0},
                "freeze": ["layers.2.bias"],
            },
            "trainer": {"gradient_clip_val": 0.5},
        },
    ),
    "clipping by norm": ("regression", {"trainer": {"gradient_clip_val": 0.1}}),
    "clipping by value": (
        "multiclass",
        {"trainer": {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"}},
    ),
    "deterministic": ("multiclass", {"trainer": {"deterministic": True}}),
    "all rows at once": ("multiclass", {"data": {"batch_size": None, "shuffle": False}}),
    "early stopping": (
        "multiclass",
        {
            "trainer": {"max_epochs": 12},
            "early_stopping": {"patience": 2, "min_delta": 0.01},
            "model": {"optimizer": {"class_path": "SGD", "init_args": {"lr": 0.01}}},
        },
    ),
    "a metric that does not move": (
        "binary",
        {
            "trainer": {"max_epochs": 12},
            "early_stopping": {"patience": 3},
            "model": {"optimizer": {"class_path": "SGD", "init_args": {"lr": 0.001}}},
        },
    ),
    "r2": (
        "regression",
        {"checkpoint": {"monitor": "val/r2"}, "early_stopping": {"patience": 1}},
    ),
    **{
        f"{metric} of {task}": (
            task,
            {
                "trainer": {"max_epochs": 6},
                "checkpoint": {"monitor": f"val/{metric}"},
                "early_stopping": {"patience": 2},
            },
        )
        for metric, task in [
            ("auroc", "binary"),
            ("auroc", "multilabel"),
            ("average_precision", "multiclass"),
        ]
    },
    **{
        f"{metric} by a {average} average of {task}": (
            task,
            {"model": {"average": average}, "checkpoint": {"monitor": f"val/{metric}"}},
        )
        for metric, average, task in [
            ("f1", "micro", "multilabel"),
            ("auroc", "micro", "multiclass"),
            ("f1", "weighted", "multiclass"),
            ("average_precision", "weighted", "multilabel"),
        ]
    },
    "a schedule of epochs": (
        "multiclass",
        {"model": {"scheduler": {"class_path": "CosineAnnealingLR", "init_args": {"T_max": 2}}}},
    ),
    "a schedule of steps": (
        "multiclass",
        {
            "model": {
                "scheduler": {"class_path": "OneCycleLR", "init_args": {"max_lr": 0.1}},
                **STEPS,
            }
        },
    ),
    "several schedules": (
        "multiclass",
        {
            "model": {
                "scheduler": {
                    "class_path": "SequentialLR",
                    "init_args": {
                        "schedulers": [
                            {"class_path": "LinearLR", "init_args": {"total_iters": 3}},
                            {"class_path": "CosineAnnealingLR", "init_args": {"T_max": 9}},
                        ],
                        "milestones": [3],
                    },
                },
                **STEPS,
            }
        },
    ),
    "a schedule by a metric": (
        "regression",
        {
            "trainer": {"max_epochs": 6},
            "model": {
                "scheduler": {
                    "class_path": "ReduceLROnPlateau",
                    "init_args": {"monitor": "val/loss", "patience": 0, "threshold": 0.5},
                }
            },
        },
    ),
}


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:val/f1 was .* in each of the:UserWarning")
@pytest.mark.parametrize("name", SETTINGS)
def test_settings(
    name: str,
    experiment: Callable[..., Path],
    cli: Cli,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A setting that the script leaves out, or repeats in another place, changes the weights."""
    task, sections = SETTINGS[name]
    cli("fit", "--config", experiment(task, **sections))
    cli("test")
    cli("eject")
    run_here(capsys)
    check_style()


OWN_NET = '''
from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn

from proj.nets.layers import Standardize
from proj.schema import Schema

WIDE, NARROW = 16, 8
# Functions between
# the layers.
KINDS = {"gelu": F.gelu, "relu": F.relu}


@dataclass
class Sizes:
    """Sizes of the layers.

    A longer text.
    """

    hidden: int
    depth: int = 1


def unused(x: Tensor) -> Tensor:
    return x


class Base(nn.Module):
    kind: str
    scale: float = 2.0

    def activate(self, x: Tensor, *, times: int = 1) -> Tensor:
        result: Tensor = times * KINDS[self.kind](x)
        return result


class Own(Base):
    def __init__(
        self,
        schema: Schema,
        sizes: Literal["wide", "narrow"] = "wide",
        last: nn.Module | None = None,
        *more: int,
        norm: bool = False,
        **others: float,
    ) -> None:
        super().__init__()
        self.kind = "gelu"
        if sizes == "wide":
            chosen = Sizes(WIDE)
        elif sizes == "narrow":
            # A small net.
            chosen = Sizes(NARROW)
        else:
            raise ValueError(sizes)
        inner: list[nn.Module] = [Standardize(schema)]
        # Not in this run.
        if norm:
            inner.append(nn.BatchNorm1d(schema.num_features))
        if last is not None:
            inner.append(last)
        self.first = nn.Sequential(*inner, nn.Linear(schema.num_features, chosen.hidden))
        self.second = nn.Linear(chosen.hidden, schema.num_outputs)
        nn.init.constant_(self.second.bias, random.random() + np.random.rand())

    def forward(self, x: Tensor) -> Tensor:
        x = self.activate(self.first(x))  # type: ignore[no-any-return]
        if x.isnan().any():
            raise ValueError("not a number")
        return self.second(x * self.scale)


class Plain(nn.Module):
    def __init__(self, activation: nn.Module, size: int = 8) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, size), activation, nn.Linear(size, 3))

    def forward(self, x: Tensor) -> Tensor: return self.layers(x)
'''
EXPECTED_PARTS = (
    "WIDE, NARROW = 16, 8\n",
    '# Functions between\n# the layers.\nKINDS = {"gelu": F.gelu, "relu": F.relu}\n',
    'class Sizes:\n    """Sizes of the layers."""\n\n    hidden: int\n    depth: int = 1\n',
    "class Base(nn.Module):\n    scale = 2.0\n\n    def activate(self, x, *, times=1):\n",
    "        return times * KINDS[self.kind](x)\n",
    'def __init__(self, schema, sizes="wide", last=None, *more, norm=False, **others):\n',
    "        # A small net.\n        chosen = Sizes(NARROW)\n        inner = [Stand",
    "        inner.append(last)\n        self.first =",
)


@pytest.fixture
def own_net(work: Path, request: pytest.FixtureRequest) -> str:
    """Write the module under the test's name, because Python caches modules."""
    name = "own_" + "".join(c if c.isalnum() else "_" for c in request.node.name)
    (work / f"{name}.py").write_text(OWN_NET)
    return name


def source_of(module: str, name: str, x: torch.Tensor, **options: Any) -> Sources:
    """Return the source of a net in a module, which is built for 6 features and 3 classes."""
    net = getattr(importlib.import_module(module), name)
    sources = Sources(Ran(), {})
    trace_net(partial(net, **options), Schema.of(6, classes="abc"), x, sources.ran)
    sources.add(net)
    return sources


def test_the_source_of_an_own_net(own_net: str) -> None:
    """The source has the classes, functions and constants that a net needs, and no others."""
    sources = source_of(own_net, "Own", torch.randn(4, 6), sizes="narrow", last=torch.nn.Tanh())
    text = f"{import_lines(sources.imports)}\n\nSEED = 1\n\n\n{sources.definitions}\n"
    for part in EXPECTED_PARTS:
        assert part in text
    for word in ("unused", "A longer text", "sizes ==", "ValueError(sizes)", "norm:", "Not in"):
        assert word not in text
    assert "not a number" in text  # A branch of `forward` may run for other rows.
    assert "Literal" not in text
    Path("script.py").write_text(text)
    check_style(Path("script.py"))


@pytest.mark.long
def test_an_own_net(
    own_net: str,
    experiment: Callable[..., Path],
    cli: Cli,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = {"sizes": "narrow", "last": {"class_path": "torch.nn.Tanh"}}
    net = {"class_path": f"{own_net}.Own", "init_args": options}
    cli("fit", "--config", experiment("multiclass", model={"net": net}))
    cli("test")
    cli("eject")
    run_here(capsys)
    check_style()
    text = SCRIPT.read_text()
    assert "np.random.seed(SEED)\nrandom.seed(SEED)\ntorch.manual_seed(SEED)\n" in text
    assert 'net = Own(schema, sizes="narrow", last=nn.Tanh())\n' in text


@pytest.mark.parametrize("name", ["evaluate", "best", "sum", "hashlib"])
def test_names_that_the_script_uses(name: str) -> None:
    """The loop would call a function of the user in place of its own, or of Python's."""
    sources = Sources(Ran(), {}, set(), {"Net": "class Net: ...", name: "def ..."})
    script = "import hashlib\ndef evaluate():\n    sum(hashlib)\nbest = Net()"
    with pytest.raises(UserError, match=f"got {name} among those that the net needs"):
        _check_names(sources, script)
    sources = Sources(Ran(), {}, {("torch.nn", None, "nn")}, {"Net": "", "other": ""})
    _check_names(sources, script)


@pytest.mark.long
@pytest.mark.parametrize("task", ["binary", "multilabel", "multiclass"])
def test_a_calibrated_run(
    task: str, experiment: Callable[..., Path], cli: Cli, capsys: pytest.CaptureFixture[str]
) -> None:
    """The test metrics have the temperature and the thresholds, those of the epochs have not."""
    cli("fit", "--config", experiment(task))
    thresholds = ["--threshold", "f1"] if task != "multiclass" else []
    cli("validate", "--calibrate", "temperature", *thresholds)
    cli("test")
    cli("eject")
    assert "TEMPERATURE = " in SCRIPT.read_text()
    assert ("THRESHOLD = " in SCRIPT.read_text()) == (task != "multiclass")
    run_here(capsys)
    check_style()


@pytest.mark.long
def test_data_of_an_own_class(work: Path, cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    """Rows of a subclass of DataModule, and a net of an installed package."""
    (work / "own_waves.py").write_text(WAVES)
    sizes = ["--model.net.in_features", 1, "--model.net.out_features", 1]
    model = ["--model", "Regressor", "--model.net", "torch.nn.Linear", *sizes]
    plain = ["--model.standardize_target", "false"]
    cli("fit", *model, *plain, "--data", "own_waves.Waves", *FEW_EPOCHS)
    cli("test")
    cli("eject")
    assert "net = nn.Linear(in_features=1, out_features=1)\n" in SCRIPT.read_text()
    run_here(capsys)
    check_style()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import {other}\nfrom torch import nn", "an import of a module or under another name"),
        ("from {other} import helper as {other}\nfrom torch import nn", "under another name"),
        ("from lightning.pytorch import Trainer as {other}\nfrom torch import nn", "no Lightning"),
    ],
)
def test_imports_that_a_script_cannot_repeat(text: str, message: str, own_net: str) -> None:
    other = f"{own_net}_helpers"
    Path(f"{other}.py").write_text("def helper():\n    pass\n")
    net = f"""{text.format(other=other)}

class Net(nn.Module):
    def __init__(self, schema):
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, x):
        {other}
        return self.layer(x)
"""
    Path(f"{own_net}_net.py").write_text(net)
    with pytest.raises(UserError, match=message):
        source_of(f"{own_net}_net", "Net", torch.randn(4, 6))


def test_two_definitions_of_one_name(own_net: str) -> None:
    """One of the two functions would be called in place of the other."""
    other = f"{own_net}_helpers"
    functions = "def scale():\n    return 2\n\ndef twice():\n    return scale()\n"
    Path(f"{other}.py").write_text(functions)
    net = f"""from torch import nn
from {other} import twice

def scale():
    return 3

class Net(nn.Linear):
    def __init__(self, schema):
        super().__init__(6, 3 + 0 * scale() * twice())
"""
    Path(f"{own_net}_net.py").write_text(net)
    with pytest.raises(UserError, match="expected one definition of scale, got two"):
        source_of(f"{own_net}_net", "Net", torch.randn(4, 6))


def test_a_source_that_builds_another_net(own_net: str) -> None:
    """A constant that was changed after the import is not in the source."""
    initial = torch.nn.Linear(6, 3)
    weights, x = initial.state_dict(), torch.randn(4, 6)
    script = "from torch import nn\n{}\nnet = nn.Linear(6, 3{})"
    with pytest.raises(UserError, match="weight begins with other values"):
        check_net(script.format("", ""), {}, 0, initial, weights, x)
    with pytest.raises(UserError, match="it has other weights"):
        check_net(script.format("", ", False"), {}, 0, initial, weights, x)
    torch.manual_seed(3)
    initial = torch.nn.Linear(6, 3)
    seed = "import torch\ntorch.manual_seed(SEED)"
    check_net(script.format(seed, ""), {}, 3, initial, weights, x)
    torch.manual_seed(3)
    initial = torch.nn.Linear(6, 3)
    twice = f"{script.format(seed, '')}\nnet.register_forward_hook(lambda net, x, y: 2 * y)"
    with pytest.raises(UserError, match="it computes other outputs"):
        check_net(twice, {}, 3, initial, weights, x)


@pytest.mark.long
def test_a_net_of_fixed_sizes(
    own_net: str,
    experiment: Callable[..., Path],
    cli: Cli,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = {"activation": {"class_path": "torch.nn.ELU", "init_args": {"alpha": 0.5}}}
    net = {"class_path": f"{own_net}.Plain", "init_args": options}
    cli("fit", "--config", experiment("multiclass", model={"net": net}))
    cli("test")
    cli("eject")
    run_here(capsys)
    check_style()
    assert "net = Plain(activation=nn.ELU(alpha=0.5))" in SCRIPT.read_text()


REFUSED = {
    "devices": 2,
    "strategy": "ddp",
    "num_nodes": 2,
    "precision": "16-mixed",
    "accumulate_grad_batches": 2,
    "max_steps": 3,
    "min_epochs": 2,
    "max_time": "00:00:01:00",
    "limit_train_batches": 1,
    "limit_val_batches": 0.5,
    "overfit_batches": 2,
    "val_check_interval": 0.5,
    "check_val_every_n_epoch": 2,
    "max_epochs": -1,
}


@pytest.fixture
def tested(trained: Trained, cli: Cli, once: Once) -> None:
    """The run that the other tests eject, with its test metrics."""
    trained("multiclass")
    once("tested_multiclass", lambda: cli("test"))


@pytest.fixture
def parsed(trained: Trained) -> ExperimentCLI:
    """The experiment of the run, to change it."""
    trained("multiclass")
    words = ["--config", str(RUN / "config.yaml")]
    arguments = read_arguments(words, "fit")
    return ExperimentCLI("fit", arguments.configs, arguments.flags)


def reasons(parsed: ExperimentCLI) -> list[str]:
    return [*obstacles(Run(RUN), parsed)]


def test_flags_of_the_trainer_that_change_the_training(parsed: ExperimentCLI) -> None:
    """A script that ignores one of them would end with other weights."""
    assert reasons(parsed) == []
    for flag, value in REFUSED.items():
        before, parsed.config.trainer[flag] = parsed.config.trainer[flag], value
        (reason,) = reasons(parsed)
        assert reason.startswith(f"trainer.{flag}: expected ")
        assert reason.endswith(f", got {value}")
        parsed.config.trainer[flag] = before
    for flag, value in {"limit_train_batches": 1.0, "precision": "32-true", "devices": 1}.items():
        parsed.config.trainer[flag] = value
    assert reasons(parsed) == []


def test_callbacks_that_may_change_the_training(parsed: ExperimentCLI) -> None:
    parsed.config_init.trainer["callbacks"] = [LearningRateMonitor()]
    assert reasons(parsed) == []
    parsed.config_init.trainer["callbacks"] = StochasticWeightAveraging(1e-2)
    (reason,) = reasons(parsed)
    assert reason == (
        "trainer.callbacks: expected none that may change the training, got "
        "StochasticWeightAveraging"
    )


def test_starts_that_are_no_start(parsed: ExperimentCLI) -> None:
    """The script would begin with random weights."""
    parsed.config.init_from = "version_1"
    Run(RUN).write_manifest(command=["fit", "--ckpt_path", "a.ckpt"], hardware={"gpus": ["H100"]})
    assert [reason.partition(":")[0] for reason in reasons(parsed)] == [
        "trainer.accelerator",
        "--ckpt_path",
        "init_from",
    ]


def test_models_and_data_of_the_user(parsed: ExperimentCLI) -> None:
    """Their code is not in the script."""
    model, data = parsed.model, parsed.datamodule
    model.compile_mode = "step"
    assert reasons(parsed) == ["model.compile: expected none, got step"]
    model.compile_mode = "none"

    class Own(type(model)):  # type: ignore[misc]
        pass

    class Augmented(type(data)):  # type: ignore[misc]
        def augment_batch(self, batch: Any) -> Any:
            return batch

    data.__class__ = Augmented
    (reason,) = reasons(parsed)
    assert "or a property `augmentation`, got an augment_batch of Augmented" in reason
    model.__class__ = Own
    assert reasons(parsed) == ["model: expected a model of this package as it is, got Own"]


def test_metrics_that_the_script_does_not_compute(parsed: ExperimentCLI) -> None:
    parsed.config.checkpoint.monitor = "val/f1/0"
    (reason,) = reasons(parsed)
    assert reason == (
        "checkpoint.monitor: expected one of val/loss, val/accuracy, val/precision, val/recall, "
        "val/f1, val/auroc, val/average_precision, got val/f1/0"
    )
    parsed.config.checkpoint.monitor = "train/loss"
    assert reasons(parsed)[0].endswith("got train/loss")


@pytest.mark.usefixtures("tested")
def test_refusals_of_the_verb(cli: Cli) -> None:
    """A refused run leaves no file."""
    config = RUN / "config.yaml"
    text = config.read_text()
    config.write_text(text.replace("accumulate_grad_batches: 1", "accumulate_grad_batches: 2"))
    assert cli("eject", code=2) == (
        "error: trainer.accumulate_grad_batches: expected 1, got 2; `eject` does not write a "
        "script for this run.\n"
    )
    config.write_text(text)
    assert "expected a .py file, its name of letters" in cli("eject", "--output", "train", code=2)
    assert "no module which the script imports" in cli("eject", "--output", "copy.py", code=2)
    Run(RUN).write_manifest(status="stopped")
    assert "expected a finished run, got" in cli("eject", "version_0", code=2)
    Run(RUN).write_manifest(status="finished", data="another")
    assert "they have changed (fingerprint another" in cli("eject", "version_0", code=2)
    (RUN / "checkpoints/best.ckpt").unlink()
    assert "expected a run with best.ckpt" in cli("eject", "version_0", code=2)
    assert not list(RUN.glob("*.py"))


@pytest.mark.long
def test_evaluation_in_several_batches(
    experiment: Callable[..., Path],
    cli: Cli,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The mean of the batches' losses is weighted, and outputs depend on the size of a batch."""
    monkeypatch.setattr("proj.models.checks.EVALUATION_BYTES", 1)
    sections = {"checkpoint": {"monitor": "val/loss"}, "trainer": {"max_epochs": 8}}
    cli("fit", "--config", experiment("multiclass", model=BALANCED, **sections))
    cli("test")
    cli("eject")
    assert "EVAL_BATCH_SIZE = 16\n" in SCRIPT.read_text()
    run_here(capsys)


@pytest.mark.parametrize("path", ["os.system", "subprocess.Popen", "torch.nn.Gone", "gone.Net"])
def test_classes_that_a_config_may_not_name(path: str) -> None:
    """A config of somebody else would run a command."""
    with pytest.raises(UserError, match=r"model\.net\.option: "):
        value_text(Namespace(class_path=path), Sources(Ran(), {}), "model.net.option")


def test_values_are_literals() -> None:
    """A text of the config would be code in the script."""
    values = ['"; import os', "it's", "a\nb", "\\", "\"'", (1,), [None, True], {"a": (1.5, "b")}]
    for value in values:
        assert ast.literal_eval(plain(value)) == value
    assert plain((math.inf, -math.inf, math.nan)) == "(math.inf, -math.inf, math.nan)"
    with pytest.raises(UserError, match="expected a plain value or a class with options"):
        value_text(Path("a"), Sources(Ran(), {}), "model.net.path")
