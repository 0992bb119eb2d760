"""Compiled steps equal eager steps up to rounding, or the reason why there are none is printed."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conftest import Cli
from engine.callbacks.test_steps_per_execution import ONE_CYCLE, equal, left_behind
from proj.engine.runs.checkpoint_file import read_checkpoint

STEP = ["--model.compile", "step"]

NETS = """
import torch
from torch import nn
from proj.nets.layers import Dropout
from proj.schema import Schema

# A step changes its buffers, and it has dropout.
class Normed(nn.Sequential):
    def __init__(self, schema: Schema) -> None:
        super().__init__(nn.Linear(6, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), Dropout(0.2),
                         nn.Linear(8, schema.num_outputs))

# Its compiled outputs are wrong, as after a mistake of the compiler.
class Broken(nn.Sequential):
    def __init__(self, schema: Schema) -> None:
        super().__init__(nn.Linear(6, schema.num_outputs))

    def forward(self, x):
        return super().forward(x) * (0.98 if torch.compiler.is_compiling() else 1.0)

class BrokenBackward(Broken):
    def forward(self, x):
        y = nn.Sequential.forward(self, x)
        return 1.02 * y - 0.02 * y.detach() if torch.compiler.is_compiling() else y

# It cannot be compiled as one graph.
class Branching(nn.Sequential):
    def __init__(self, schema: Schema) -> None:
        super().__init__(nn.Linear(6, schema.num_outputs))

    def forward(self, x):
        return super().forward(x * (1.0 if x.mean().item() else 1.0))
"""


def last_checkpoint(name: str) -> dict[str, Any]:
    return dict(read_checkpoint(Path("lightning_logs") / name / "checkpoints" / "last.ckpt"))


@pytest.mark.long
@pytest.mark.parametrize(
    "flags",
    [
        [
            "--model.optimizer",
            "SGD",
            "--model.optimizer.lr",
            "0.1",
            "--model.optimizer.momentum",
            "0.9",
            "--model.optimizer.nesterov",
            "true",
            "--model.optimizer.weight_decay",
            "0.01",
        ],
        [
            "--model.optimizer",
            "AdamW",
            "--trainer.gradient_clip_val",
            "0.1",
            *ONE_CYCLE,
            "--model.learning_rates",
            "{}",
            "--model.freeze",
            "['4.bias']",
        ],
        [
            "--model.optimizer.weight_decay",
            "0.01",
            "--trainer.gradient_clip_val",
            "0.01",
            "--trainer.gradient_clip_algorithm",
            "value",
        ],
    ],
    ids=["SGD", "AdamW", "Adam"],
)
def test_compiled_steps_equal_eager_steps_up_to_rounding(
    flags: list[str], experiment: Any, cli: Cli
) -> None:
    Path("mine.py").write_text(NETS)
    config = experiment(rows=250)  # 10 full batches, and one of 15 rows for an eager step
    flags = ["--model.net", "mine.Normed", *flags]
    assert "not compiled" not in cli("fit", "--config", config, "--name", "eager", *flags)
    assert "not compiled" not in cli("fit", "--config", config, "--name", "whole", *flags, *STEP)
    eager, compiled = last_checkpoint("eager"), last_checkpoint("whole")
    assert compiled["global_step"] == eager["global_step"] == 22
    differs = False
    for name, value in eager["state_dict"].items():
        assert torch.allclose(compiled["state_dict"][name], value, rtol=1e-3, atol=1e-4), name
        differs |= not torch.equal(compiled["state_dict"][name], value)
    assert differs, "the steps were not compiled"
    for ours, theirs in zip(compiled["optimizer_states"], eager["optimizer_states"], strict=True):
        assert ours["param_groups"] == theirs["param_groups"]
        assert [state.keys() for state in ours["state"].values()] == [
            state.keys() for state in theirs["state"].values()
        ]
        for mine, other in zip(ours["state"].values(), theirs["state"].values(), strict=True):
            assert "step" not in mine or mine["step"] == other["step"]


@pytest.mark.long
def test_the_bits_do_not_depend_on_the_execution_or_a_resume(experiment: Any, cli: Cli) -> None:
    config = experiment(rows=250, trainer={"max_epochs": 4})
    flags = [*STEP, "--trainer.val_check_interval", "0.5"]
    for size in ("1", "3", "500"):
        cli(
            "fit",
            "--config",
            config,
            "--name",
            f"by_{size}",
            "--model.steps_per_execution",
            size,
            *flags,
        )
    for size in ("3", "500"):
        assert equal(left_behind(f"by_{size}"), left_behind("by_1")), size

    cli("fit", "--config", config, "--name", "half", "--trainer.max_epochs", "2", *flags)
    half = Path("lightning_logs/half/checkpoints/last.ckpt")
    cli("fit", "--config", config, "--name", "resumed", "--ckpt_path", half, *flags)
    assert equal(last_checkpoint("resumed")["state_dict"], last_checkpoint("by_1")["state_dict"])
    assert equal(
        last_checkpoint("resumed")["optimizer_states"], last_checkpoint("by_1")["optimizer_states"]
    )
    cli(
        "fit",
        "--config",
        config,
        "--name",
        "eager",
        "--ckpt_path",
        half,
        *flags,
        "--model.compile",
        "none",
    )
    for name, value in last_checkpoint("eager")["state_dict"].items():
        assert torch.allclose(
            value, last_checkpoint("by_1")["state_dict"][name], rtol=1e-3, atol=1e-4
        ), name


@pytest.mark.long
@pytest.mark.parametrize(
    ("flags", "why"),
    [
        (
            ["--model.optimizer", "RMSprop"],
            "steps are not compiled: RMSprop has no compiled form; SGD, Adam and AdamW have",
        ),
        (
            ["--model.optimizer.amsgrad", "true"],
            "steps are not compiled: Adam with amsgrad has no compiled form",
        ),
        (
            ["--model.net", "mine.Broken"],
            "steps are not compiled: the outputs of compiled and eager steps differ, by ",
        ),
        (
            ["--model.net", "mine.BrokenBackward"],
            "steps are not compiled: exp_avg of net.0.weight of compiled and eager ",
        ),
        (
            ["--model.net", "mine.Branching"],
            "steps are not compiled: torch cannot compile the net (GuardOnDataDependent",
        ),
        (
            ["--trainer.accumulate_grad_batches", "2"],
            "one optimizer step at a time, not compiled: ",
        ),
    ],
    ids=lambda value: value[1] if isinstance(value, list) else "",
)
def test_what_cannot_be_compiled_is_eager_and_the_reason_is_printed(
    flags: list[str], why: str, experiment: Any, cli: Cli
) -> None:
    Path("mine.py").write_text(NETS)
    config = experiment(rows=250)
    cli("fit", "--config", config, "--name", "eager", *flags)
    said = cli("fit", "--config", config, "--name", "requested", *flags, *STEP)
    assert why in " ".join(said.split())
    assert equal(left_behind("requested"), left_behind("eager"))


@pytest.mark.long
def test_a_table_and_an_ensemble_can_be_compiled(cli: Cli) -> None:
    rng = np.random.default_rng(0)
    lines = [
        f"{a:.3f},{'xyz'[i % 3]},{a + rng.normal():.3f}" for i, a in enumerate(rng.normal(size=150))
    ]
    Path("t.csv").write_text("\n".join(["a,b,y", *lines]))
    flags = [
        "--data",
        "Tabular",
        "--data.path",
        "t.csv",
        "--data.target",
        "y",
        "--data.batch_size",
        "16",
        "--model",
        "Regressor",
        "--model.net",
        "TabM",
        "--model.net.members",
        "3",
        "--trainer.max_epochs",
        "2",
        "--trainer.accelerator",
        "cpu",
    ]
    cli("fit", *flags, "--name", "eager")
    assert "not compiled" not in cli("fit", *flags, "--name", "whole", *STEP)
    for name, value in last_checkpoint("eager")["state_dict"].items():
        assert torch.allclose(
            last_checkpoint("whole")["state_dict"][name], value, rtol=1e-2, atol=1e-3
        ), name


def _compilations() -> int:
    """Return how often this process has compiled something, by torch's record."""
    seconds = torch._dynamo.utils.compilation_time_metrics.get("_compile.compile_inner", [])
    return len(seconds)


@pytest.mark.long
def test_each_training_of_a_process_compiles_its_step_once(experiment: Any, cli: Cli) -> None:
    """With guards, the step would be compiled again whenever a tensor of the model is replaced."""
    config = experiment(rows=100, trainer={"max_epochs": 3})
    for name in ("first", "second"):
        before = _compilations()
        cli("fit", "--config", config, "--name", name, *STEP)
        after = _compilations()
        assert after - before == 1, name


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:.*WeightAveraging")
@pytest.mark.filterwarnings("ignore:SWA is currently only supported every epoch")
@pytest.mark.parametrize(
    "callback",
    [
        ["EMAWeightAveraging", "--trainer.callbacks.decay", "0.9"],
        [
            "StochasticWeightAveraging",
            "--trainer.callbacks.swa_lrs",
            "0.02",
            "--trainer.callbacks.swa_epoch_start",
            "1",
        ],
    ],
    ids=lambda value: value[0],
)
def test_compiled_steps_are_averaged(callback: list[str], experiment: Any, cli: Cli) -> None:
    """An added epoch for the statistics of batch norm would be trained, or steps left out."""
    Path("nets.py").write_text(NETS)
    config = experiment(rows=250, trainer={"max_epochs": 3})
    flags = ["--config", config, "--trainer.callbacks", *callback]
    flags += ["--model.net", "nets.Normed", *ONE_CYCLE]
    for size in ("1", "4"):
        steps = [*STEP, "--model.steps_per_execution", size]
        assert "compiled" not in cli("fit", *flags, *steps, "--name", f"by_{size}")
    assert equal(left_behind("by_4"), left_behind("by_1"))
    cli("fit", *flags, "--model.steps_per_execution", "4", "--name", "eager")
    eager, compiled = last_checkpoint("eager"), last_checkpoint("by_4")
    assert compiled["global_step"] == eager["global_step"]
    torch.testing.assert_close(
        dict(compiled["state_dict"]), dict(eager["state_dict"]), rtol=1e-3, atol=1e-4
    )


def test_pruned_models_are_not_compiled(experiment: Any, cli: Cli) -> None:
    flags = ["--trainer.callbacks", "ModelPruning", "--trainer.callbacks.pruning_fn"]
    said = cli("fit", "--config", experiment(), *flags, "l1_unstructured", *STEP)
    assert "steps are not compiled: ModelPruning changes the parameters during training." in said
