"""`eject` writes a script of plain PyTorch that ends with the bits of the run, or says why not."""

import json
import runpy
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import processes
from conftest import CONFIGS, Cli, Trained
from engine.deployment.conftest import TARGETS

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
    trained: Trained, cli: Cli, capsys: pytest.CaptureFixture[str]
) -> None:
    """A difference in seed, order, loss, optimizer or choice of the epoch shows in the weights."""
    trained("multiclass")
    cli("test")
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


@pytest.mark.long
@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_experiments(name: str, cli: Cli) -> None:
    cli("fit", "--config", SHIPPED[name])
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
def test_images(image_run: Callable[..., None], cli: Cli) -> None:
    """Augmented images, evaluated with their mirror images."""
    image_run()
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
