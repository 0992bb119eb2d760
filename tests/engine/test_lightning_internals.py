"""Each undocumented attribute of Lightning and jsonargparse that the package touches.

A test here fails when a new version of a library removes or changes such an attribute.
"""

import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from jsonargparse import ArgumentError, ArgumentParser
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, StochasticWeightAveraging
from lightning.pytorch.callbacks.progress import rich_progress
from lightning.pytorch.plugins import TorchCheckpointIO
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from proj.engine import lightning_internals as internals
from proj.engine import security
from proj.engine.runs.checkpoint_file import read_checkpoint
from proj.models.regression import Regressor
from proj.schema import Batch

pytestmark = pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers")

BATCHES = 6


RELU, GAIN = "torch.nn.ReLU", "torch.nn.init.calculate_gain"
LINEAR = {"class_path": "torch.nn.Linear", "init_args": {"out_features": 1}}


@pytest.mark.parametrize(
    ("kind", "accepted", "refused"),
    [
        (nn.Module, RELU, GAIN),
        (Callable[[int], nn.Module], RELU, GAIN),
        # A class that is called later, and a class whose instance would be the function.
        (Callable[[int], nn.Module], LINEAR, GAIN),
        (Callable[[int], int], None, RELU),
        (Callable[[int], int], None, GAIN),
        (type[nn.Module], RELU, GAIN),
        (type, RELU, "torch.nn.modules.module.OrderedDict"),
        (list[nn.Module], [RELU], [GAIN]),
        (dict[str, nn.Module | int], {"a": RELU}, {"a": GAIN}),
    ],
)
def test_check_imports(kind: Any, accepted: Any, refused: Any) -> None:
    """jsonargparse would import, or call, an object that nobody checked."""
    security.restrict_imports()
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--x", type=kind | None)
    if accepted is not None:
        assert parser.instantiate(parser.parse_object({"x": accepted})).x is not accepted
    spec = {"class_path": refused, "init_args": {"nonlinearity": "relu"}}
    takes_spec = isinstance(refused, str) and kind not in (type, type[nn.Module])
    for value in [refused, spec] if takes_spec else [refused]:
        with pytest.raises(ArgumentError, match=r"Importing '.*' is not allowed"):
            parser.parse_object({"x": value})
    checked = vars(sys.modules["jsonargparse._util"])["import_object"]
    for name, module in sys.modules.items():
        if name.startswith("jsonargparse.") and "import_object" in vars(module):
            assert vars(module)["import_object"] is checked, name


class StatefulLoader(DataLoader[Tensor]):
    """A loader with a state, which Lightning saves in checkpoints."""

    def state_dict(self) -> dict[str, int]:
        return {"position": 7}

    def load_state_dict(self, state: dict[str, int]) -> None:
        pass


class Line(LightningModule):
    """A model of one weight, with ReduceLROnPlateau if ``plateau``."""

    def __init__(self, plateau: bool = False) -> None:
        super().__init__()
        self.layer, self.plateau = nn.Linear(1, 1), plateau

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss: Tensor = self.layer(batch).square().mean()
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("score", torch.tensor(1.0))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), 0.1)
        if not self.plateau:
            return optimizer
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, factor=0.5)
        return [optimizer], [{"scheduler": scheduler, "interval": "epoch", "monitor": "score"}]

    def train_dataloader(self) -> StatefulLoader:
        return StatefulLoader(torch.ones(BATCHES, 1))  # type: ignore[arg-type]

    def val_dataloader(self) -> DataLoader[Tensor]:
        return DataLoader(torch.ones(2, 1))  # type: ignore[arg-type]


def trainer_of(*callbacks: Callback, **flags: Any) -> Trainer:
    return Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=any(isinstance(c, ModelCheckpoint) for c in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=list(callbacks),
        **{"max_epochs": 1, **flags},
    )


class Hook(Callback):
    """Call a function after each training batch."""

    def __init__(self, function: Any) -> None:
        self.function = function

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.function(trainer, batch_idx)


def test_counted_steps_are_in_global_step_and_in_the_checkpoint() -> None:
    trainer = trainer_of(Hook(lambda trainer, _: internals.count_optimizer_steps(trainer, 3)))
    trainer.fit(Line())
    assert trainer.global_step == BATCHES * 4
    trainer.save_checkpoint("a.ckpt")
    checkpoint = read_checkpoint(Path("a.ckpt"))
    assert checkpoint["global_step"] == BATCHES * 4
    counts = checkpoint["loops"]["fit_loop"]["epoch_loop.state_dict"]
    assert counts["_batches_that_stepped"] == BATCHES * 4


def test_an_epoch_without_optimizer_steps_is_known() -> None:
    skips: list[bool] = []

    def record(trainer: Trainer, batch_idx: int) -> None:
        skips.append(internals.skips_optimizer_steps(trainer))

    trainer = trainer_of(Hook(record), StochasticWeightAveraging(0.1, 1), max_epochs=2)
    model = Line()
    model.norm = nn.BatchNorm1d(1)
    trainer.fit(model)
    assert skips == [False] * BATCHES * 2 + [True] * BATCHES


def test_the_frequency_of_a_scheduler_is_known() -> None:
    def frequency(interval: str) -> int:
        class Scheduled(Line):
            def configure_optimizers(self) -> Any:
                optimizer = torch.optim.SGD(self.parameters())
                scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
                config = {"scheduler": scheduler, "interval": interval, "frequency": 3}
                return {"optimizer": optimizer, "lr_scheduler": config}

        trainer = trainer_of()
        trainer.fit(Scheduled())
        return internals.steps_between_schedules(trainer)

    assert (frequency("step"), frequency("epoch")) == (3, 1)


def test_a_checkpoint_by_steps_is_known() -> None:
    assert internals.saves_by_steps(ModelCheckpoint(every_n_train_steps=2))
    assert not internals.saves_by_steps(ModelCheckpoint())


def test_a_step_limit_that_is_set_late_ends_training() -> None:
    trainer = trainer_of(Hook(lambda trainer, _: internals.set_step_limit(trainer, 4)))
    trainer.fit(Line())
    assert trainer.global_step == 4


def test_an_epoch_that_is_resumed_is_restarting() -> None:
    def save(trainer: Trainer, batch_idx: int) -> None:
        if batch_idx == 3:
            trainer.save_checkpoint("a.ckpt")

    trainer_of(Hook(save)).fit(Line())
    restarting: list[bool] = []

    class Record(Callback):
        def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            restarting.append(internals.is_restarting(trainer))

    trainer_of(Record(), max_epochs=2).fit(Line(), ckpt_path="a.ckpt", weights_only=True)
    assert restarting == [True, False]


@pytest.mark.parametrize("late", [False, True])
def test_accumulation_is_seen_and_can_be_set(late: bool) -> None:
    waiting: list[bool] = []
    steps: list[int] = []

    def record(trainer: Trainer, batch_idx: int) -> None:
        if late:
            internals.set_accumulation(trainer, 3)
        waiting.append(internals.is_accumulating(trainer))
        steps.append(trainer.global_step)

    trainer = trainer_of(Hook(record), accumulate_grad_batches=1 if late else 3)
    trainer.fit(Line())
    assert waiting == [True, True, False] * 2
    assert steps == ([1, 1, 2, 2, 2, 3] if late else [0, 0, 1, 1, 1, 2])


def test_restored_metrics_can_be_read() -> None:
    trainer = trainer_of()
    internals.restore_metrics(trainer, {"score": torch.tensor(0.25)})
    assert trainer.callback_metrics["score"] == 0.25


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({}, [6]),
        ({"val_check_interval": 2}, [2, 4, 6]),
        ({"val_check_interval": 0.5}, [3, 6]),
        ({"check_val_every_n_epoch": 2}, [12]),
        ({"check_val_every_n_epoch": None, "val_check_interval": 4}, [4, 8, 12]),
        ({"limit_val_batches": 0}, []),
    ],
)
def test_it_is_known_whether_a_validation_follows(
    flags: dict[str, Any], expected: list[int]
) -> None:
    """The forecast is compared with the validations that Lightning runs."""
    forecast: list[int] = []
    validated: list[int] = []

    class Record(Callback):
        def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
            if internals.validation_follows(trainer, args[-1]):
                forecast.append(trainer.global_step)

        def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            validated.append(trainer.global_step)

    trainer_of(Record(), **{"max_epochs": 2, **flags}).fit(Line())
    per_epoch = [step for step in expected if step <= BATCHES]
    if flags.get("check_val_every_n_epoch", 1) == 1:
        expected = [step + epoch * BATCHES for epoch in range(2) for step in per_epoch]
    assert forecast == validated == expected


def test_the_validation_interval_can_be_set_before_training() -> None:
    validated: list[int] = []

    class Record(Callback):
        def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            internals.set_validation_interval(trainer, 2)

        def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            validated.append(trainer.global_step)

    trainer_of(Record()).fit(Line())
    assert validated == [2, 4, 6]


def test_plateau_schedulers_are_found_and_stepped() -> None:
    trainer = trainer_of()
    trainer.fit(Line(plateau=True))
    ((scheduler, interval),) = internals.schedulers(trainer)
    assert isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau)
    assert interval == "epoch"
    assert scheduler.get_last_lr() == [0.1]
    internals.step_plateau_schedulers(trainer, 1)  # a second epoch without improvement
    assert scheduler.get_last_lr() == [0.05]


@pytest.mark.parametrize(
    ("precision", "input_dtype", "output_dtype"),
    [
        ("32-true", torch.float32, torch.float32),
        ("bf16-mixed", torch.float32, torch.bfloat16),
        ("64-true", torch.float64, torch.float64),
    ],
)
def test_the_precision_plugin_casts_inputs_and_operations(
    precision: Any, input_dtype: torch.dtype, output_dtype: torch.dtype
) -> None:
    plugin = internals.precision_plugin(trainer_of(precision=precision))
    model = plugin.convert_module(nn.Linear(1, 1))
    x = plugin.convert_input(torch.ones(1, 1))
    assert x.dtype == input_dtype
    with plugin.val_step_context():
        assert model(x).dtype == output_dtype


def test_our_batches_are_not_converted_but_others_are() -> None:
    trainer = trainer_of(precision="bf16-true")
    internals.keep_batches(trainer)
    plugin = internals.precision_plugin(trainer)
    exact = torch.tensor([[1000.3]], dtype=torch.float64)
    batch = Batch(exact, exact, torch.zeros(1))
    assert plugin.convert_input(batch) is batch
    assert plugin.convert_input([exact])[0].dtype == torch.bfloat16
    # A module of the user's has weights of this type and expects such inputs.
    trainer.strategy.connect(Line())
    assert plugin.convert_input(batch).x.dtype == torch.bfloat16
    # Our models convert the inputs of a user's loader, too, and keep the targets.
    trainer.strategy.connect(Regressor(torch.nn.Linear(1, 1)))
    assert plugin.convert_input([exact, exact])[1].dtype == torch.float64


def test_weights_are_loaded_in_the_precision_of_the_trainer() -> None:
    """Lightning itself rounds them to float32; this fails when it no longer does."""
    trainer = trainer_of(precision="64-true")
    trainer.fit(Line())
    trainer.save_checkpoint("a.ckpt")
    exact = trainer.lightning_module.layer.weight.detach().clone()
    assert exact.dtype == torch.float64
    assert exact != exact.float().double()
    for keep in (True, False):
        trainer = trainer_of(precision="64-true")
        if keep:
            internals.convert_before_loading(trainer)
        trainer.validate(Line(), ckpt_path="a.ckpt", verbose=False, weights_only=True)
        assert torch.equal(trainer.lightning_module.layer.weight, exact) == keep


def test_ddp_runs_any_method_of_the_model_as_its_forward_pass() -> None:
    """Otherwise the steps inside an execution could not average their gradients."""
    trainer = Trainer(strategy="ddp", devices=2, accelerator="cpu", logger=False, barebones=True)
    strategy: Any = trainer.strategy
    model = trainer.strategy._lightning_module = Line()
    calls: list[str] = []

    def wrapper(*args: Any) -> Any:
        calls.append("wrapper")
        return model.forward(*args)

    strategy.model = wrapper
    model.double = lambda number: 2 * number  # type: ignore[method-assign, assignment]
    assert internals.averaging_method(trainer, "double")(21) == 42
    assert calls == ["wrapper"]
    assert internals.averages_gradients(trainer)
    alone = trainer_of()
    assert not internals.averages_gradients(alone)


def test_a_forward_pass_is_prepared_as_by_ddp(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the last step of an execution would begin with buffers of its own process."""
    # torch replaces the hook when processes begin to communicate, and leaves its own behind.
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    torch.distributed.init_process_group("gloo", f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        for net, count in ((nn.BatchNorm1d(1), 1), (nn.Linear(1, 1), 0)):
            wrapper, calls = DistributedDataParallel(net), []
            wrapper._sync_module_buffers = calls.append  # type: ignore[method-assign]
            trainer: Any = SimpleNamespace(strategy=SimpleNamespace(model=wrapper))
            wrapper(torch.ones(2, 1))
            assert calls == [0] * count  # the number of the process that has the right ones
            internals.prepare_forward(trainer)
            assert calls == [0] * 2 * count
            # The last step of an execution of two is the second backward pass of all.
            wrapper(torch.ones(2, 1)).sum().backward()
            internals.prepare_forward(trainer)
            wrapper._post_forward(net(torch.ones(2, 1))).sum().backward()
            wrapper(torch.ones(2, 1))  # torch fails here if the gradients were not grouped anew.
            (group,) = internals.gradient_groups(
                cast(Any, SimpleNamespace(world_size=2, **vars(trainer)))
            )
            assert {id(one) for one in group} == {id(one) for one in net.parameters()}
            one_process = SimpleNamespace(world_size=1, **vars(trainer))
            assert internals.gradient_groups(cast(Any, one_process)) == []
    finally:
        torch.distributed.destroy_process_group()
    internals.prepare_forward(cast(Any, SimpleNamespace(strategy=SimpleNamespace(model=net))))


def test_processes_that_python_starts_are_told_from_programs() -> None:
    """The result of a spawned process would be looked for in this one."""
    for strategy, method in (("auto", None), ("ddp", None), ("ddp_spawn", "spawn")):
        devices = 1 if strategy == "auto" else 2
        trainer = Trainer(
            strategy=strategy, devices=devices, accelerator="cpu", logger=False, barebones=True
        )
        assert internals.start_method(trainer) == method


def test_the_checkpoint_io_can_be_replaced() -> None:
    saved: list[str] = []

    class Recording(TorchCheckpointIO):
        def save_checkpoint(
            self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
        ) -> None:
            saved.append(Path(path).name)

    trainer = trainer_of()
    assert internals.has_default_checkpoint_io(trainer)
    internals.set_checkpoint_io(trainer, Recording())
    assert not internals.has_default_checkpoint_io(trainer)
    trainer.fit(Line())
    trainer.save_checkpoint("a.ckpt")
    assert saved == ["a.ckpt"]


def test_the_loaders_state_is_in_the_checkpoint() -> None:
    trainer = trainer_of()
    trainer.fit(Line())
    trainer.save_checkpoint("a.ckpt")
    assert internals.train_loader_state(read_checkpoint(Path("a.ckpt"))) == {"position": 7}


def test_the_best_score_is_restored_in_a_folder_that_moved(work: Path) -> None:
    def saver(folder: str) -> ModelCheckpoint:
        return ModelCheckpoint(work / folder, filename="best", monitor="score", mode="max")

    before = saver("before")
    trainer_of(before).fit(Line())
    (work / "before").rename(work / "after")
    after = saver("after")
    file = work / "after" / "best.ckpt"
    internals.restore_model_checkpoint(after, before.state_dict(), file)
    assert after.best_model_score == after.current_score == 1.0
    assert after.best_model_path == after.kth_best_model_path == str(file)
    assert after.best_k_models == {str(file): torch.tensor(1.0)}


def test_validations_without_improvement_are_counted() -> None:
    stopping = EarlyStopping("score", patience=9, mode="max")
    trainer_of(stopping, max_epochs=4).fit(Line())
    assert internals.validations_without_improvement(stopping) == 3


def test_hyperparameters_that_are_logged() -> None:
    """A logger would get the secrets among the arguments that a model saves."""

    class WithToken(Line):
        def __init__(self, token: str) -> None:
            super().__init__()
            self.save_hyperparameters()

    model = WithToken("S3CRET")
    internals.set_logged_hyperparameters(model, {"token": "hidden"})
    assert model.hparams == {"token": "S3CRET"}
    assert model.hparams_initial == {"token": "hidden"}


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [("auto", True), ("ddp", False), ("ddp_find_unused_parameters_true", True)],
)
def test_takes_frozen_parameters(strategy: str, expected: bool) -> None:
    """Otherwise a training on several devices would stop in its first step."""
    trainer = Trainer(accelerator="cpu", devices=1, strategy=strategy, logger=False)
    assert internals.takes_frozen_parameters(trainer) == expected


def test_base_rates() -> None:
    """Otherwise a scheduler would undo the lower rates of an unfrozen backbone."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.5)
    inner = [torch.optim.lr_scheduler.ConstantLR(optimizer) for _ in range(2)]
    both = torch.optim.lr_scheduler.SequentialLR(optimizer, inner, [1])
    trainer: Any = SimpleNamespace(
        lr_scheduler_configs=[SimpleNamespace(scheduler=both, interval="epoch")]
    )
    assert list(internals.base_rates(trainer)) == [[0.5], [0.5]]


def test_the_thread_of_a_progress_bar_ends_when_it_is_stopped() -> None:
    """Each run would wait for a tenth of a second at its end."""
    internals.end_bars_at_once()
    refreshed = threading.Event()
    live: Any = SimpleNamespace(_lock=threading.Lock(), refresh=refreshed.set)
    thread = rich_progress._RefreshThread(live, 0.001)  # once in a thousand seconds
    thread.refresh_cond = True
    thread.start()
    assert refreshed.wait(60)
    thread.stop()
    thread.join(60)
    assert not thread.is_alive()
    assert not thread.refresh_cond
