"""Access to undocumented attributes of Lightning and jsonargparse, one function for each.

No other module accesses one. ``tests/engine/test_lightning_internals.py`` fails when a new version
of a library removes or changes any of them.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from inspect import isroutine, signature
from pathlib import Path
from typing import Any, Protocol, cast

from lightning.fabric.utilities.data import AttributeDict
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.callbacks.progress import rich_progress
from lightning.pytorch.plugins import (
    CheckpointIO,
    DoublePrecision,
    HalfPrecision,
    Precision,
    TorchCheckpointIO,
)
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, SingleDeviceStrategy
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from proj.models.module import SchemaModule
from proj.schema import Batch, Execution

# Objects that values of a config name


class ObjectCheck(Protocol):
    """Function that raises ``ImportError`` if a value may not name an object."""

    def __call__(
        self, path: str, value: object, called: bool = ..., has_base: bool = ..., /
    ) -> None: ...


# The check of `check_imports`; without one, jsonargparse works as it does by itself.
_object_checks: list[ObjectCheck] = []


def check_imports(check: ObjectCheck) -> None:
    """Let jsonargparse call ``check`` for each object that a value of a config names.

    It is called with the path and the object after the import, and once more, with the other two
    arguments, before the object is called with arguments of the config. jsonargparse itself checks
    names only.
    """
    from jsonargparse import _typehints, _util

    _object_checks[:] = [check]
    import_object: Any = _util.import_object
    as_spec: Any = _typehints.subclass_spec_as_namespace
    build: Any = _typehints.adapt_class_type
    if hasattr(import_object, "checked"):
        return

    def checked_import(name: str, check_path: bool = True) -> Any:
        value = import_object(name, check_path)
        # Paths that do not come from a value are not checked.
        for check in _object_checks if check_path else []:
            check(name, value)
        return value

    def checked_build(value: Any, *args: Any, **options: Any) -> Any:
        for check in _object_checks:
            spec = as_spec(value)
            given = [options.get(name) for name in ("typehint", "partial_skip_args")]
            has_base = any(option is not None for option in given)
            check(spec.class_path, import_object(spec.class_path), True, has_base)
        return build(value, *args, **options)

    checked_import.checked = True  # type: ignore[attr-defined]
    _typehints.adapt_class_type = checked_build
    for name, module in list(sys.modules.items()):
        if name.startswith("jsonargparse.") and vars(module).get("import_object") is import_object:
            vars(module)["import_object"] = checked_import


@contextmanager
def restored_parser_settings() -> Iterator[None]:
    """Restore the settings of jsonargparse, which hold for the whole process, at the end."""
    from jsonargparse import _common, _optionals

    modules: Any = (_common, _optionals)
    settings, mode = dict(modules[0].parsing_settings), modules[1]._config_read_mode
    checks = list(_object_checks)
    try:
        yield
    finally:
        modules[0].parsing_settings.update(settings)
        modules[1]._config_read_mode = mode
        _object_checks[:] = checks


def accept_functions(is_accepted: Callable[[Any], bool]) -> None:
    """Let jsonargparse take functions without a return annotation where it expects a callable.

    With ``class_path`` and ``init_args``, a function whose first argument is open gets its options,
    as a class does; the argument is passed when the function is called. A second call of this
    function changes nothing.
    """
    from jsonargparse import Namespace, _typehints

    internals: Any = _typehints
    returns_class, as_partial = (
        internals.function_returns_subclass,
        internals.adapt_partial_callable_class,
    )
    as_spec = internals.subclass_spec_as_namespace
    if hasattr(returns_class, "accepting"):
        return

    def accepting_returns_class(function: Any, types: Any, logger: Any) -> bool:
        accepts = bool(_object_checks) and is_accepted(function)
        return accepts or bool(returns_class(function, types, logger))

    def function_as_partial(callable_type: Any, spec: Any) -> Any:
        spec, skipped = as_partial(callable_type, spec)
        made = internals.get_callable_return_type(callable_type)
        named = internals.import_object(spec.class_path)
        types = internals.get_subclass_types(made) if made else None
        makes_class = types and isroutine(named) and accepting_returns_class(named, types, None)
        if skipped is None and makes_class and _takes_argument(named, spec.get("init_args")):
            skipped = {len(callable_type.__args__) - 1}
        return spec, skipped

    def function_as_spec(value: Any, previous: Any = None) -> Any:
        # An option after a function, as in `--model.scheduler own.warmup --model.scheduler.steps`.
        if isroutine(previous):
            path = internals.get_import_path(previous)
            previous = Namespace(class_path=path)  # type: ignore[no-untyped-call]
        return as_spec(value, previous)

    accepting_returns_class.accepting = True  # type: ignore[attr-defined]
    internals.function_returns_subclass = accepting_returns_class
    internals.adapt_partial_callable_class = function_as_partial
    internals.subclass_spec_as_namespace = function_as_spec


def _takes_argument(function: Any, options: Any) -> bool:
    """Return whether a function's first argument is open: not an option, and without a default."""
    first = next(iter(signature(function).parameters.values()), None)
    return first is not None and first.default is first.empty and first.name not in (options or ())


# Progress of the training loop


def count_optimizer_steps(trainer: Any, steps: int) -> None:
    """Add ``steps`` to ``trainer.global_step``, for optimizer steps that Lightning did not make.

    The second counter is that of loggers and of ``LearningRateMonitor``.
    """
    epoch_loop = trainer.fit_loop.epoch_loop
    epoch_loop.automatic_optimization.optim_progress.optimizer.step.increment_by(steps)
    epoch_loop._batches_that_stepped += steps


def skips_optimizer_steps(trainer: Any) -> bool:
    """Return whether the current epoch has forward passes only.

    ``StochasticWeightAveraging`` adds such an epoch for the statistics of batch normalization.
    """
    return bool(trainer.fit_loop._skip_backward)


def averages_gradients(trainer: Trainer) -> bool:
    """Return whether several processes average their gradients as ``averaging_method`` does it."""
    strategy: Any = trainer.strategy
    if type(strategy) is not DDPStrategy:
        return False
    is_plain = strategy._ddp_comm_hook is None and strategy._model_averaging_period is None
    return is_plain and not strategy._ddp_kwargs.get("static_graph", False)


def averaging_method(trainer: Trainer, name: str) -> Callable[..., Any]:
    """Return a method of the model after whose call the backward pass averages the gradients.

    With one process it is the method itself. ``training_step`` itself runs inside the forward pass
    of DistributedDataParallel, which averages the gradients of one backward pass. So the steps
    inside an execution get forward passes of their own.
    """
    strategy: Any = trainer.strategy
    if isinstance(strategy, DDPStrategy):
        wrapped: Any = strategy.model
        return partial(strategy._forward_redirection, wrapped, trainer.lightning_module, name)
    method: Callable[..., Any] = getattr(trainer.lightning_module, name)
    return method


def prepare_forward(trainer: Trainer) -> None:
    """Do what DDP does before each forward pass.

    All processes get the buffers of the first one. After the first backward pass the gradients are
    grouped anew; torch fails if another backward pass comes before that. A forward pass inside an
    execution that does not go through ``averaging_method`` needs both. With one process this does
    nothing.
    """
    wrapper: Any = trainer.strategy.model
    is_wrapper = isinstance(trainer.strategy.model, DistributedDataParallel)
    if is_wrapper:
        wrapper.reducer._rebuild_buckets()
        if wrapper._check_sync_bufs_pre_fwd():
            wrapper._sync_buffers()


def gradient_groups(trainer: Trainer) -> list[list[nn.Parameter]]:
    """Return the parameters whose gradients DDP averages together, group by group, in its order.

    The groups are those of its first step until ``prepare_forward`` is called after that. They are
    empty with one process, and where DDP searches for parameters without a gradient.
    """
    wrapper: Any = trainer.strategy.model
    is_wrapper = isinstance(trainer.strategy.model, DistributedDataParallel)
    if not is_wrapper or wrapper.find_unused_parameters or trainer.world_size == 1:
        return []
    return [group.parameters() for group in wrapper.reducer._get_zeros_like_grad_buckets()]


def set_step_limit(trainer: Trainer, max_steps: int) -> None:
    """Set the number of optimizer steps after which training ends; -1 for no limit."""
    trainer.fit_loop.epoch_loop.max_steps = max_steps


def is_restarting(trainer: Trainer) -> bool:
    """Return whether the current epoch is resumed from a checkpoint that was written during it."""
    return bool(trainer.fit_loop.restarting)


def is_accumulating(trainer: Trainer) -> bool:
    """Return whether the gradients of the current batch wait for an optimizer step."""
    return (trainer.fit_loop.batch_idx + 1) % trainer.accumulate_grad_batches > 0


def set_accumulation(trainer: Trainer, batches: int) -> None:
    """Set the number of batches whose gradients are summed for one optimizer step."""
    trainer.accumulate_grad_batches = batches


def restore_metrics(trainer: Trainer, metrics: dict[str, Any]) -> None:
    """Put logged metrics back, so that callbacks and schedulers can read them after a resume."""
    trainer.callback_metrics.update(metrics)


# Progress bar


def end_bars_at_once() -> None:
    """Let the thread that refreshes Lightning's progress bar end as soon as it should.

    It sleeps between two refreshes, and the end of each run waits for it: a tenth of a second.
    """
    cast(Any, rich_progress)._RefreshThread.run = _refresh_until_done


def _refresh_until_done(thread: Any) -> None:
    """Do what Lightning's thread does, but wait for its end instead of sleeping."""
    while not thread.done.is_set():
        if thread.refresh_cond:
            with thread.live._lock:
                thread.live.refresh()
            thread.refresh_cond = False
        thread.done.wait(1 / thread.refresh_per_second)


# Validation


def validation_follows(trainer: Any, batch_idx: int) -> bool:
    """Return whether Lightning validates after this training batch.

    The rule is that of ``_TrainingEpochLoop._should_check_val_fx``. False for validations at
    certain times, because they are not known in advance.
    """
    interval = trainer.val_check_batch
    if not trainer.enable_validation or interval in (None, float("inf")):
        return False
    if trainer.check_val_every_n_epoch is None:
        batch_idx = trainer.fit_loop.total_batch_idx
    elif (trainer.current_epoch + 1) % trainer.check_val_every_n_epoch:
        return False
    return bool((batch_idx + 1) % interval == 0)


def validates_by_time(trainer: Any) -> bool:
    """Return whether ``val_check_interval`` is a time; then the Trainer has no such attribute."""
    return trainer._val_check_time_interval is not None


def set_validation_interval(trainer: Any, batches: int) -> None:
    """Validate after each ``batches`` calls of ``training_step``. Set it before training."""
    trainer.val_check_interval = batches


# Learning-rate schedulers


def schedulers(trainer: Trainer) -> list[tuple[LRScheduler | ReduceLROnPlateau, str]]:
    """Return each scheduler of the run with its interval, ``step`` or ``epoch``."""
    return [(config.scheduler, config.interval) for config in trainer.lr_scheduler_configs]


def base_rates(trainer: Trainer) -> Iterator[list[float]]:
    """Yield the lists of rates by parameter group that the schedulers of a run compute from."""
    found: list[Any] = [scheduler for scheduler, _ in schedulers(trainer)]
    while found:
        scheduler = found.pop()
        found += getattr(scheduler, "_schedulers", [])  # SequentialLR, ChainedScheduler
        yield from (vars(scheduler)[k] for k in ("base_lrs", "max_lrs") if k in vars(scheduler))


def replace_scheduler(config: Any, scheduler: Any) -> None:
    """Let ``scheduler`` take the place of the one in an entry of ``lr_scheduler_configs``.

    Lightning calls its ``step``, ``state_dict`` and ``load_state_dict``, and reads its
    ``optimizer``.
    """
    config.scheduler = scheduler


def steps_between_schedules(trainer: Trainer) -> int:
    """Return the largest number of steps from one step of a scheduler by steps to its next one."""
    configs = trainer.lr_scheduler_configs
    return max((config.frequency for config in configs if config.interval == "step"), default=1)


def step_plateau_schedulers(trainer: Trainer, epochs: int) -> None:
    """Step each ``ReduceLROnPlateau`` that is due after ``epochs`` epochs.

    Lightning does this at the end of an epoch, after all callbacks.
    """
    for config in trainer.lr_scheduler_configs:
        due = config.interval == "epoch" and epochs % config.frequency == 0
        if not (config.reduce_on_plateau and due):
            continue
        value = trainer.callback_metrics.get(str(config.monitor))
        if value is not None or config.strict:
            trainer.lightning_module.lr_scheduler_step(config.scheduler, value)


# Building the model


def configure_model(trainer: Trainer) -> None:
    """Call ``configure_model`` as Lightning does later: on the device, in the given precision."""
    with (
        trainer.strategy.tensor_init_context(),
        trainer.strategy.model_sharded_context(),
        trainer.precision_plugin.module_init_context(),
    ):
        trainer.lightning_module.configure_model()


def shard_over_all_processes(strategy: ModelParallelStrategy) -> None:
    """Let FSDP2 shard over all processes; Lightning's default is tensor parallelism in a node."""
    strategy._data_parallel_size = strategy.num_nodes * strategy.num_processes
    strategy._tensor_parallel_size = 1


# Precision


def precision_plugin(trainer: Trainer) -> Precision:
    """Return the plugin that casts inputs, and casts operations in its ``val_step_context``."""
    return trainer.precision_plugin


def keep_batches(trainer: Trainer) -> None:
    """Let the Trainer pass the batches of our models on; the models convert the inputs themselves.

    Lightning would round the targets, too, to a few digits in half precision. Modules of the user's
    get what Lightning converts.
    """
    plugin = precision_plugin(trainer)
    # Not a bound method and no local function: the processes of `ddp_spawn` get a pickled Trainer.
    convert = partial(_convert_for_others, type(plugin).convert_input, plugin, trainer)
    plugin.convert_input = convert  # type: ignore[method-assign]


def _convert_for_others(
    convert: Callable[[Precision, Any], Any], plugin: Precision, trainer: Trainer, data: Any
) -> Any:
    model: Any = trainer.lightning_module  # None before the first loop
    if isinstance(data, Batch | Execution):
        keeps = model is None or isinstance(model, SchemaModule)
    else:
        keeps = isinstance(plugin, HalfPrecision) and isinstance(model, SchemaModule)
    return data if keeps else convert(plugin, data)


def convert_before_loading(trainer: Trainer) -> None:
    """Convert the model to the Trainer's precision before the weights of a checkpoint are loaded.

    Lightning loads them first, into float32 weights, which round those of 64-true.
    """
    strategy, plugin = trainer.strategy, precision_plugin(trainer)
    if not isinstance(plugin, DoublePrecision | HalfPrecision):
        return
    load = strategy.load_model_state_dict

    def convert_and_load(*args: Any, **options: Any) -> None:
        plugin.convert_module(trainer.lightning_module)
        load(*args, **options)

    strategy.load_model_state_dict = convert_and_load  # type: ignore[method-assign]


# Processes


def start_method(trainer: Trainer) -> str | None:
    """Return ``spawn``, ``fork`` or ``forkserver`` if Lightning starts processes by Python's means.

    None if it starts programs, or no process.
    """
    launcher = trainer.strategy.launcher
    # The launcher of TPUs is a subclass.
    if not isinstance(launcher, _MultiProcessingLauncher) or "XLA" in type(launcher).__name__:
        return None
    return launcher._start_method


# Checkpoints


def has_default_checkpoint_io(trainer: Trainer) -> bool:
    """Return whether checkpoints are written by Lightning's default plugin, not a user's own."""
    return type(trainer.strategy.checkpoint_io) is TorchCheckpointIO


def set_checkpoint_io(trainer: Trainer, checkpoint_io: CheckpointIO) -> None:
    """Let ``checkpoint_io`` read and write the checkpoints of a Trainer that is already built."""
    trainer.strategy.checkpoint_io = checkpoint_io


def train_loader_state(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Return the state of the training data loader in a checkpoint."""
    state: dict[str, Any] = checkpoint["loops"]["fit_loop"]["state_dict"]["combined_loader"][0]
    return state


def restore_model_checkpoint(callback: ModelCheckpoint, state: dict[str, Any], file: Path) -> None:
    """Load the state of a ``ModelCheckpoint`` of one ``file``, whose folder may have moved.

    ``ModelCheckpoint.load_state_dict`` forgets the best score when the folder's path has changed,
    and it does not restore ``current_score``.
    """
    path = str(file) if state["best_model_path"] else ""
    moved = {
        "dirpath": callback.dirpath,
        "best_model_path": path,
        "kth_best_model_path": path if state["kth_best_model_path"] else "",
        "best_k_models": {str(file): score for score in state["best_k_models"].values()},
    }
    ModelCheckpoint.load_state_dict(callback, {**state, **moved})
    callback.current_score = state["current_score"]


def restore_current_scores(trainer: Any, states: dict[str, Any]) -> None:
    """Restore the last score of each ``ModelCheckpoint``, which its ``load_state_dict`` leaves out.

    It does not choose a checkpoint, but the next checkpoint holds it.
    """
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.state_key in states:
            callback.current_score = states[callback.state_key]["current_score"]


def saves_by_steps(callback: ModelCheckpoint) -> bool:
    """Return whether a ``ModelCheckpoint`` saves after certain numbers of steps."""
    return callback._every_n_train_steps > 0


def validations_without_improvement(callback: EarlyStopping) -> int:
    """Return the number of consecutive validations without an improvement."""
    return callback.wait_count


# Hyperparameters


def set_logged_hyperparameters(module: Any, values: dict[str, Any]) -> None:
    """Set what Lightning logs of the arguments that a module saved; ``hparams`` stays as it is."""
    module._hparams_initial = AttributeDict(values)


def takes_frozen_parameters(trainer: Trainer) -> bool:
    """Return whether parameters may be without gradients at first, and have them later."""
    strategy = trainer.strategy
    if isinstance(strategy, SingleDeviceStrategy):
        return True
    options: dict[str, Any] = getattr(strategy, "_ddp_kwargs", {})
    return bool(options.get("find_unused_parameters"))
