"""Executions of several steps give the bits of single steps, or the reason against is printed."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import fp16_compress_hook

import processes
from conftest import Cli
from proj.data.loader import ArrayLoader
from proj.engine.callbacks import steps_per_execution
from proj.engine.callbacks.single_steps import _trainer_obstacles
from proj.engine.callbacks.steps_per_execution import StepsPerExecution
from proj.engine.cli import main
from proj.engine.lightning_internals import averages_gradients
from proj.engine.runs.checkpoint_file import read_checkpoint
from proj.errors import UserError
from proj.schema import Batch

ONE_CYCLE = [
    "--model.scheduler",
    "OneCycleLR",
    "--model.scheduler.max_lr",
    "0.01",
    "--model.scheduler_interval",
    "step",
]
SIZES = ["1", "2", "7", "32", "500"]  # Only 1 divides the 11 batches of an epoch.


def left_behind(name: str) -> Any:
    """The results of a training run that must not depend on the size of executions.

    These are the checkpoints, without Lightning's counts of executions, and the curves by epoch.
    """
    run = Path("lightning_logs") / name
    state = {}
    for which in ("best", "last"):
        checkpoint = read_checkpoint(run / "checkpoints" / f"{which}.ckpt")
        loops = checkpoint["loops"]["fit_loop"]
        state[which] = [
            checkpoint["state_dict"],
            checkpoint["optimizer_states"],
            checkpoint["lr_schedulers"],
            checkpoint["epoch"],
            checkpoint["global_step"],
            loops["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]["step"]["total"],
        ]
    events = EventAccumulator(str(run))
    events.Reload()
    tags = [tag for tag in events.Tags()["scalars"] if tag.startswith(("train/", "val/", "epoch"))]
    return state, {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in tags}


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return bool(a == b)


@pytest.mark.long
@pytest.mark.parametrize(
    ("task", "flags"),
    [
        ("multiclass", ["--model.net.dropout", "0.2"]),
        ("multiclass", [*ONE_CYCLE, "--trainer.max_steps", "26", "--model.class_weights", "auto"]),
        ("binary", ["--trainer.val_check_interval", "0.3", "--trainer.gradient_clip_val", "0.1"]),
        (
            "multilabel",
            [
                "--trainer.val_check_interval",
                "4",
                "--trainer.max_steps",
                "19",
                "--model.optimizer",
                "SGD",
            ],
        ),
        (
            "regression_2",
            [
                "--model.scheduler",
                "lightning.pytorch.cli.ReduceLROnPlateau",
                "--model.scheduler.monitor",
                "val/loss",
                "--model.scheduler.patience",
                "0",
            ],
        ),
    ],
    ids=[
        "dropout",
        "OneCycleLR, max_steps",
        "within the epoch, clipped",
        "within the epoch, max_steps",
        "plateau",
    ],
)
def test_the_bits_do_not_depend_on_the_steps_per_execution(
    task: str, flags: list[str], experiment: Any, cli: Cli
) -> None:
    config = experiment(task, rows=250, trainer={"max_epochs": 3})
    for size in SIZES:
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
    single = left_behind("by_1")
    assert len(single[1]["val/loss"]) >= 2
    for size in SIZES[1:]:
        assert equal(left_behind(f"by_{size}"), single), size


@pytest.mark.long
@pytest.mark.parametrize(
    ("world", "flags"),
    [
        (2, ["--trainer.val_check_interval", "0.5", *ONE_CYCLE]),
        (2, ["--trainer.strategy", "ddp_find_unused_parameters_true"]),
        pytest.param(4, ["--trainer.max_steps", "19"], marks=pytest.mark.slow),
    ],
    ids=["two", "two, unused parameters", "four"],
)
def test_several_processes_average_the_gradients_of_each_step(
    world: int, flags: list[str], work: Path
) -> None:
    """Batch normalization and dropout differ between processes; clipping needs the mean.

    DDP groups the gradients anew after the first step, which is the last but one of two.
    """
    config = Path(__file__).parents[3] / "configs" / "digits.yaml"
    small = ["--model.net.width", 4, "--model.net.dropout", 0.2, "--trainer.max_epochs", 2]
    devices = ["--trainer.devices", world, "--trainer.accelerator", "cpu"]
    common = [*small, *devices, "--trainer.gradient_clip_val", 0.5, "--data.batch_size", 32, *flags]
    for steps in (1, 2, 5):
        options = [*common, "--model.steps_per_execution", steps, "--name", f"by_{steps}"]
        done = processes.run("proj", "fit", "--config", config, *options)
        assert done.returncode == 0, done.stderr
        assert "one optimizer step at a time" not in done.stdout
    for steps in (2, 5):
        assert equal(left_behind(f"by_{steps}"), left_behind("by_1"))
    averaged = read_checkpoint(Path("lightning_logs/by_5/checkpoints/last.ckpt"))
    alone = ["fit", "--config", config, *small, "--data.batch_size", 32, "--name", "alone"]
    assert processes.run("proj", *alone).returncode == 0
    other = read_checkpoint(Path("lightning_logs/alone/checkpoints/last.ckpt"))
    assert not equal(averaged["state_dict"], other["state_dict"])


@pytest.mark.long
def test_each_step_of_several_processes_begins_with_the_same_buffers(work: Path) -> None:
    """This net reads its buffer in training, unlike batch normalization, and each process has rows
    of its own. So the weights show whether the last step of an execution got the first's buffer.
    """
    Path("carried.py").write_text(
        "import torch\n"
        "class Carried(torch.nn.Linear):\n"
        "    def __init__(self, sizes: list[int]) -> None:\n"
        "        super().__init__(*sizes)\n"
        "        self.register_buffer('mean', torch.zeros(sizes[0]))\n"
        "    def forward(self, x):\n"
        "        outputs = super().forward(x.flatten(1) - self.mean)\n"
        "        if self.training:\n"
        "            self.mean.lerp_(x.flatten(1).mean(0), 0.3)\n"
        "        return outputs\n"
    )
    config = Path(__file__).parents[3] / "configs" / "digits.yaml"
    net = ["--model.net", "carried.Carried", "--model.net.sizes", "[64, 10]", "--allow", "carried"]
    flags = ["--trainer.devices", 2, "--trainer.accelerator", "cpu", "--trainer.max_epochs", 1]
    for steps in (1, 5):
        options = [*net, *flags, "--model.steps_per_execution", steps, "--name", f"by_{steps}"]
        done = processes.run("proj", "fit", "--config", config, *options)
        assert done.returncode == 0, done.stderr
        assert "one optimizer step at a time" not in done.stdout
    assert equal(left_behind("by_5"), left_behind("by_1"))


def test_processes_measure_equally_many_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step may wait for the other processes. So the first process's times count, here 1 s."""
    steps = []

    def step(*_: Any) -> tuple[torch.Tensor, ...]:
        steps.append(1)
        return (torch.zeros(()),) * 3

    monkeypatch.setattr(steps_per_execution, "eager_step", step)
    model = SimpleNamespace(compiled_step=None, split_metrics=[])
    data = SimpleNamespace(augment_batch=lambda batch: batch)
    for seconds, count in ((1.0, 1), (0.001, steps_per_execution.TIMINGS)):
        steps.clear()
        first = lambda trainer, own, seconds=seconds: [seconds]  # noqa: E731
        monkeypatch.setattr(steps_per_execution, "from_first", first)
        trainer: Any = SimpleNamespace(datamodule=data)
        measured = steps_per_execution._step_seconds(trainer, cast(Any, model), cast(Any, None))
        assert (measured, len(steps)) == (seconds, count)


@pytest.mark.parametrize(
    ("seconds", "batch_bytes", "steps"),
    [
        (1e-6, 1000, 512),
        (0.003, 1000, 64),
        (0.05, 1000, 4),
        (0.5, 1000, 1),
        (5.0, 1000, 1),
        (0.003, 40_000_000, 3),
        (0.003, 500_000_000, 1),
    ],
)
def test_executions_take_less_than_a_third_of_a_second_and_128_megabytes(
    seconds: float, batch_bytes: int, steps: int
) -> None:
    assert steps_per_execution._steps_for(seconds, batch_bytes) == steps
    assert steps == 1 or (steps * seconds < 0.6 and steps * batch_bytes <= 2**27)


@pytest.mark.parametrize(
    ("strategy", "averages"),
    [
        (DDPStrategy(), True),
        (DDPStrategy(static_graph=True), False),
        (DDPStrategy(ddp_comm_hook=fp16_compress_hook), False),
        (type("Own", (DDPStrategy,), {})(), False),
    ],
    ids=["ddp", "static graph", "hook", "own"],
)
def test_other_ways_to_exchange_gradients_need_single_steps(strategy: Any, averages: bool) -> None:
    trainer = Trainer(accelerator="cpu", devices=2, strategy=strategy, logger=False)
    assert averages_gradients(trainer) == averages
    reasons = [*_trainer_obstacles(trainer)]
    assert reasons == [] if averages else "exchanges gradients in a way of its own" in reasons[0]


def test_images_are_augmented_batch_by_batch(cli: Cli) -> None:
    rng = np.random.default_rng(0)
    for i in range(60):
        path = Path(f"images/{'ab'[i % 2]}/{i}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8), np.uint8)).save(path)
    flags = [
        "--data",
        "Images",
        "--data.path",
        "images",
        "--data.erase",
        "0.5",
        "--data.batch_size",
        "8",
        "--model",
        "BinaryClassifier",
        "--model.net",
        "MLP",
        "--model.mixup",
        "0.4",
        "--model.cutmix",
        "0.4",
        "--trainer.max_epochs",
        "2",
        "--trainer.accelerator",
        "cpu",
    ]
    for size in ("1", "3"):
        cli("fit", *flags, "--name", f"by_{size}", "--model.steps_per_execution", size)
    assert equal(left_behind("by_3"), left_behind("by_1"))


def test_tables_and_ensembles_give_the_same_bits(cli: Cli) -> None:
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
        "--model.net.dropout",
        "0.1",
        "--trainer.max_epochs",
        "2",
        "--trainer.accelerator",
        "cpu",
    ]
    for size in ("1", "4"):
        cli("fit", *flags, "--name", f"by_{size}", "--model.steps_per_execution", size)
    assert equal(left_behind("by_4"), left_behind("by_1"))


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        (
            ["--trainer.accumulate_grad_batches", "2"],
            "trainer.accumulate_grad_batches 2 counts batches",
        ),
        (["--trainer.limit_train_batches", "3"], "trainer.limit_train_batches 3 counts batches"),
        (
            ["--trainer.precision", "bf16-mixed"],
            "trainer.precision bf16-mixed is made for single steps",
        ),
        (
            ["--trainer.callbacks", "mine.Counts"],
            "Counts has a on_train_batch_end, which needs single batches",
        ),
        (
            ["--trainer.callbacks", "SpikeDetection"],
            "SpikeDetection has a on_train_batch_end",
        ),
        (["--model", "mine.Own"], "Own has a training_step of its own"),
        (["--model", "mine.Weighted"], "Weighted has a to_batch of its own"),
        (["--model", "mine.Clipping"], "Clipping has a configure_gradient_clipping of its own"),
        (["--data", "mine.Moved"], "Moved has a on_after_batch_transfer of its own"),
        (["--model.optimizer", "LBFGS"], "LBFGS may compute the loss of a step several times"),
    ],
    ids=lambda value: value[1] if isinstance(value, list) else "",
)
@pytest.mark.filterwarnings("ignore:.*WeightAveraging")
def test_single_steps_where_they_are_needed(
    flags: list[str], why: str, experiment: Any, cli: Cli
) -> None:
    Path("mine.py").write_text("""
from lightning.pytorch import Callback
from proj.data.arrays import ArrayDataModule
from proj.models.classification import MulticlassClassifier

class Counts(Callback):
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        print("batch of", len(batch.row))

class Own(MulticlassClassifier):
    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx)

class Weighted(MulticlassClassifier):
    def to_batch(self, batch):
        return super().to_batch(batch)

class Clipping(MulticlassClassifier):
    def configure_gradient_clipping(self, optimizer, **kwargs):
        super().configure_gradient_clipping(optimizer, **kwargs)

class Moved(ArrayDataModule):
    def on_after_batch_transfer(self, batch, dataloader_idx):
        return batch
""")
    config = experiment(rows=100)
    said = cli("fit", "--config", config, *flags)
    assert f"one optimizer step at a time: {why}" in said
    if "mine.Counts" in flags:
        assert said.count("batch of") >= 2 * 5  # 70 rows in batches of 16, two epochs


def test_the_progress_bar_counts_steps_and_shows_the_loss(
    experiment: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    config = experiment(rows=250, trainer={"max_epochs": 1})
    assert main(["fit", "--config", str(config), "--model.steps_per_execution", "4"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert " 11/11 " in shown  # batches, in three executions
    assert re.search(r" loss: \d", shown)


def test_nothing_is_printed_without_an_obstacle(experiment: Any, cli: Cli) -> None:
    config = experiment()
    assert "at a time" not in cli("fit", "--config", config)
    assert "expected auto or a number from 1 up" in cli(
        "fit", "--config", config, "--model.steps_per_execution", "0", code=2
    )


@pytest.mark.parametrize("steps", [1, 2, 7, 32, 1000])
@pytest.mark.parametrize("rows", [4, 43, 44, 161])
@pytest.mark.parametrize("period", [None, 1, 2, 3, 5, 10, 11, 40])
def test_executions_hold_the_batches_in_order_and_end_at_validations(
    steps: int, rows: int, period: int | None
) -> None:
    split = Batch(torch.arange(rows), torch.arange(rows), torch.arange(rows))
    single = ArrayLoader(split, 4, shuffle=True, exact=False)
    loader = ArrayLoader(split, 4, shuffle=True, exact=False, steps=steps, period=period)
    executions: Any = list(loader)
    assert len(executions) == len(loader)
    batches = [batch for execution in executions for batch in execution.batches()]
    assert [b.row.tolist() for b in batches] == [b.row.tolist() for b in single]
    if period is not None and period < single.batches:
        cuts, periods = loader.cuts(), single.batches // period
        per_period = cuts.index(period)
        assert [cuts[i * per_period] for i in range(1, periods + 1)] == [
            i * period for i in range(1, periods + 1)
        ]
        assert (
            len(cuts) - 1 - periods * per_period < per_period
        )  # Otherwise Lightning would validate again at the end of the epoch.


@pytest.mark.parametrize("steps", [-1, 0, 1.5, "4"])
def test_steps_of_a_damaged_checkpoint_are_refused(steps: Any) -> None:
    """With -1 the loader would yield batches without an end."""
    callback = StepsPerExecution()
    for valid in (None, 4):
        callback.load_state_dict({"steps": valid})
    with pytest.raises(UserError, match="number of steps per execution from 1 up, got"):
        callback.load_state_dict({"steps": steps})
