"""LightningCLI for one experiment: from YAML and flags to a model, data and a Trainer."""

import json
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from copy import deepcopy
from datetime import timedelta
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentError
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelSummary, ProgressBar
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from proj.engine import PACKAGE, security
from proj.engine.callbacks.best_checkpoint import BestCheckpoint, EarlyStopping
from proj.engine.callbacks.build_model import BuildModel
from proj.engine.callbacks.monitoring import RunLogger
from proj.engine.callbacks.progress import ParameterSummary, StepProgressBar
from proj.engine.class_paths import update_class_paths
from proj.engine.config.arguments import keep_text
from proj.engine.config.build_errors import explain_unbuilt
from proj.engine.config.callbacks import fit_callbacks, monitor_options, monitored_metrics
from proj.engine.config.experiment_parser import ExperimentParser
from proj.engine.config.help_cache import HELP, keep_flags, keep_help
from proj.engine.config.options import FIT_KEYS, OPTIONS
from proj.engine.config.parser_errors import explain_parser_error
from proj.engine.config.placeholders import fill_placeholders
from proj.engine.config.unsupported import check_supported
from proj.engine.config.world import starts_with_python, torchrun_options
from proj.engine.exit_codes import as_user_error
from proj.engine.lightning_internals import (
    convert_before_loading,
    keep_batches,
    set_logged_hyperparameters,
)
from proj.engine.runs.weights import has_lazy_parameters
from proj.engine.secrets import hide, split_secrets
from proj.engine.verbs import VERBS
from proj.engine.write_paths import check_paths
from proj.engine.yaml_text import yaml_document
from proj.errors import UserError

# The text that jsonargparse writes for an object that YAML cannot hold.
UNSERIALIZABLE = "Unable to serialize instance"

# Warnings that a user of the verbs cannot act on.
IGNORED_WARNINGS = (
    # Lightning calls what torch 2.13 deprecates:
    # https://github.com/Lightning-AI/pytorch-lightning/issues/21326
    r".*isinstance\(treespec, LeafSpec\).*",
    # The evaluating verbs do not need the callbacks that wrote the checkpoint.
    r"Be aware that when using `ckpt_path`, callbacks used to create the checkpoint.*",
    # `fit --resume` continues in the run's own folder.
    r"Checkpoint directory .* exists and is not empty.*",
    # Values of an epoch are logged however few batches it has.
    r"The number of training batches \(\d+\) is smaller than the logging interval.*",
    # `BuildModel` has built the net; sharded models are refused by the callback itself.
    r"You're using the WeightAveraging callback with a model that overrides.*",
    # The state of the average is not needed: the checkpoint holds the averaged weights.
    r"You're using the WeightAveraging callback, but loading a checkpoint outside.*",
    # Our loaders do not shuffle then; Lightning knows of torch's samplers only.
    r"You requested to overfit but enabled (train|val) dataloader shuffling.*",
)
# It applies inside a job of SLURM only, but every machine of a cluster has the command.
SRUN_WARNING = "The `srun` command is available on your system but is not used.*"


class ExperimentCLI(LightningCLI):
    """Parser of an experiment for one verb, with the objects that it builds.

    Each verb has one parser with all flags instead of the four subparsers of LightningCLI, so that
    no value in a checkpoint can override a flag (Lightning issue 20801). The Trainer is built
    later, when the run's folder is known.

    Args:
        verb: one of the keys of ``OPTIONS``.
        configs: experiments, whole or in part; later ones override earlier ones.
        flags: words of the command line, which override the configs wherever they stand.
        instantiate: build the model and the data module.

    Attributes:
        config: the parsed experiment.
        config_init: the same with objects in place of class paths.
        model: the model, if it was built.
        datamodule: the data module, if it was built; None if the experiment has none.
        experiment: the resolved experiment as plain values, the content of ``config.yaml``.
        secrets: the values that ``experiment`` leaves out, such as passwords, by key.

    Raises:
        UserError: if the experiment is wrong, or a class cannot be built.
    """

    def __init__(
        self, verb: str, configs: list[dict[str, Any]], flags: list[str], instantiate: bool = True
    ) -> None:
        self.verb, self.flags, self.instantiate = verb, flags, instantiate
        self.options = OPTIONS[verb]
        for config in configs:
            hide(split_secrets(config)[1])
        configs = fill_placeholders(verb, configs, flags)
        self.arguments = [*_inline(configs, self._recorded_options()), *flags]
        security.restrict_imports()
        _silence_lightning()
        super().__init__(
            save_config_callback=None,
            # The preflight has already run a validation batch.
            trainer_defaults={"num_sanity_val_steps": 0},
            parser_kwargs={
                "prog": f"python -m {PACKAGE} {verb}",
                "description": _sentence(VERBS[verb][1]),
                "exit_on_error": False,
                "allow_abbrev": False,
            },
            parser_class=ExperimentParser,
            run=False,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
        )

    # LightningCLI calls these four methods in this order.

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--seed_everything", type=int, default=0, help="Seed of every random generator."
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_class_arguments(
            BestCheckpoint, "checkpoint", instantiate=False, skip={"dirpath", "config"}
        )
        parser.add_argument(
            "--checkpoint.every_seconds",
            type=float | None,
            default=10.0,
            help="Seconds between two saves of last.ckpt; 0 saves after each training step.",
        )
        parser.add_argument(
            "--checkpoint.every_n_steps",
            type=int | None,
            default=None,
            help="Optimizer steps between two saves of last.ckpt.",
        )
        parser.add_class_arguments(EarlyStopping, "early_stopping", instantiate=False)
        assert isinstance(parser, ExperimentParser)
        recorded = self._recorded_options()
        parser.recorded_if_set = frozenset(recorded)
        parser.unrecorded = frozenset({option.name for option in self.options} - recorded)
        for option in self.options:
            if option.is_switch:
                parser.add_argument(f"--{option.name}", action="store_true", help=option.help)
            else:
                parser.add_argument(
                    f"--{option.name}",
                    type=option.type,
                    default=None,
                    help=option.help,
                    metavar=option.metavar or None,
                )

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        if self.arguments in HELP:
            keep_help(self.verb, parser.format_help())
        try:
            self.config = parser.parse_args(self.arguments)
        except ArgumentError as error:
            # The next mistyped flag is answered without torch.
            keep_flags(self.verb, parser.format_help())
            message = explain_parser_error(str(error), parser.get_defaults().keys())
            raise UserError(message) from error
        except RecursionError as error:
            raise UserError(
                "expected values of flags nested a few levels deep, got one that is nested too "
                "deep to be read; write it in a config file."
            ) from error
        seed = self.config.seed_everything
        if seed is None or not 0 <= seed < 2**32:
            raise UserError(f"seed_everything: expected a number from 0 to 2**32 - 1, got {seed}.")
        self.experiment = self._plain_values(parser)
        # The verbs that evaluate check the loggers that they use: evaluation/loggers.py.
        written = self.experiment if self.trains else without_loggers(self.experiment)
        check_paths(written, self.flags)

    def instantiate_classes(self) -> None:
        if not self.instantiate:
            return
        config = self.config.clone()
        if not self.trains:
            config.trainer.logger = None
        with as_user_error("the experiment's classes cannot be built"):
            try:
                self.config_init = self.parser.instantiate(config)
            except Exception as error:  # jsonargparse passes on what a constructor raises.
                if reason := explain_unbuilt(str(error), self.experiment):
                    raise UserError(reason) from error
                raise
        self.model, self.datamodule = self.config_init.model, self.config_init.get("data")
        for module in filter(None, (self.model, self.datamodule)):
            set_logged_hyperparameters(module, split_secrets(dict(module.hparams_initial))[0])
        on_gpu = torch.cuda.is_available() and self.config.trainer.accelerator != "cpu"
        if self.verb == "fit" and on_gpu:
            # TensorFloat-32 doubles the speed on GPUs that support it.
            torch.set_float32_matmul_precision("high")

    def _recorded_options(self) -> set[str]:
        return {option.name for option in self.options if option.recorded}

    def _plain_values(self, parser: LightningArgumentParser) -> dict[str, Any]:
        """Return the experiment as plain values, without secrets and options not recorded."""
        try:
            text = parser.dump(self.config, skip_unset=False, skip_validation=True, format="json")
        except TypeError:
            text = UNSERIALIZABLE
        if UNSERIALIZABLE in text and (objects := list(_objects(self.config.as_dict()))):
            raise UserError(_no_plain_value(*objects[0]))
        values: dict[str, Any] = json.loads(text)
        public, self.secrets = split_secrets(values)
        hide(self.secrets)
        # The parser writes one of several paths of a class, and recorded configs have this one.
        plain: dict[str, Any] = update_class_paths(public)
        return plain

    def as_yaml(self) -> str:
        """Return the resolved experiment as the text of ``config.yaml``."""
        return yaml_document(self.experiment)

    @property
    def root(self) -> Path:
        """The folder of the runs: ``lightning_logs`` in the Trainer's ``default_root_dir``."""
        return Path(self.config.trainer.default_root_dir or ".") / "lightning_logs"

    def option(self, name: str) -> str | None:
        """Return the value of an option; None if it was not given or the verb does not have it."""
        value: str | None = self.config.get(name)
        return value

    @property
    def trains(self) -> bool:
        """Whether the verb trains, so that the experiment's loggers are used as they are."""
        return self.verb in ("fit", "check")

    def build_trainer(
        self,
        folder: Path | None,
        callbacks: list[Callback],
        purge_step: int | None = None,
        loggers: Sequence[Logger] = (),
    ) -> Trainer:
        """Build the experiment's Trainer.

        Args:
            folder: the run's folder; None for a Trainer that writes no files.
            callbacks: callbacks beside those of the experiment.
            purge_step: for a resumed run, the step from which TensorBoard discards older values.
            loggers: loggers beside the run's own TensorBoard, from ``build_loggers``.

        Raises:
            UserError: if Lightning refuses the flags, or a run cannot use what they name.
        """
        options = dict(self.config_init.trainer)
        options |= torchrun_options(options)
        # A strategy keeps the accelerator and the model of its first Trainer.
        options["strategy"] = deepcopy(options["strategy"])
        if not self.trains and starts_with_python(options["strategy"]):
            # The predictions of such processes would not come back.
            options |= {"strategy": "auto", "devices": 1}
        configured = options.pop("callbacks") or []
        own_callbacks = [*configured] if isinstance(configured, list) else [configured]
        if folder is not None:
            options["default_root_dir"] = folder
            # A metric of `test` belongs to no step of the training curves.
            if self.trains and options["logger"] is not False and not options["barebones"]:
                # The experiment's loggers come first: `self.logger` is one of them.
                loggers = [*loggers, RunLogger(folder, purge_step)]
            options["logger"] = list(loggers) or False
        own_callbacks += _terminal_callbacks(options, own_callbacks)
        if self.verb == "fit" and has_lazy_parameters(self.model):
            # Lightning's default: the batches of the check give the parameters their shapes.
            options["num_sanity_val_steps"] = options["num_sanity_val_steps"] or 2
        with as_user_error("the Trainer cannot be built"):
            trainer = Trainer(**options, callbacks=[BuildModel(), *own_callbacks, *callbacks])
        for logger in trainer.loggers:
            if isinstance(logger, RunLogger):
                logger.trainer = trainer
        check_supported(trainer)
        keep_batches(trainer)
        convert_before_loading(trainer)
        return trainer

    # The callbacks of `fit` and their metrics. The functions of config/callbacks.py do the work.

    def fit_callbacks(self, folder: Path, resumed: bool = False) -> list[Callback]:
        return fit_callbacks(self.config, self.model, self.experiment, folder, resumed)

    def monitored(self) -> dict[str, str | None]:
        return monitored_metrics(self.config, self.model)

    def monitors(self) -> dict[str, dict[str, Any]]:
        return monitor_options(self.config, self.model)


def _terminal_callbacks(options: dict[str, Any], own: list[Callback]) -> list[Callback]:
    """Return our progress bar and summary, unless they are switched off or the user has others."""
    kinds: dict[str, tuple[type[Callback], type[Callback]]] = {
        "enable_progress_bar": (ProgressBar, StepProgressBar),
        "enable_model_summary": (ModelSummary, ParameterSummary),
    }
    return [
        ours()
        for option, (kind, ours) in kinds.items()
        if options[option] in (None, True)
        and not options["barebones"]
        and not any(isinstance(callback, kind) for callback in own)
    ]


def _objects(value: Any, key: str = "", owner: str = "") -> Iterator[tuple[str, str, Any]]:
    """Yield key, class path of the owner and value of each object that YAML cannot hold."""
    if isinstance(value, dict):
        owner = value.get("class_path", owner)
        for name, inner in value.items():
            yield from _objects(inner, f"{key}.{name}".strip("."), owner)
    elif isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            yield from _objects(inner, f"{key}.{number}", owner)
    elif not isinstance(value, str | int | float | Path | Enum | timedelta | None):
        yield key, owner, value


def _no_plain_value(key: str, owner: str, value: Any) -> str:
    return (
        f"{key}: expected a value that config.yaml can hold, got {value!r}, a default of {owner}; "
        "name a subclass of your own without it, because the config could not repeat the run."
    )


def _inline(configs: list[dict[str, Any]], recorded_options: set[str]) -> list[str]:
    """Return configs as words of a command line, so that the flags after them override them.

    A run's config may hold an option of ``fit`` that other verbs do not have; it is left out.
    """
    words = []
    for config in configs:
        known = {
            key: value
            for key, value in config.items()
            if key not in FIT_KEYS or key in recorded_options
        }
        data = known.get("data")
        if isinstance(data, dict) and isinstance(options := data.get("init_args"), dict):
            kept = {
                key: keep_text(f"data.{key}", value) if isinstance(value, str) else value
                for key, value in options.items()
            }
            known["data"] = data | {"init_args": kept}
        words += ["--config", json.dumps(known)]
    return words


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _silence_lightning() -> None:
    """Ignore warnings that do not apply, and log messages about devices, the seed and tips."""
    outside_slurm = () if "SLURM_JOB_ID" in os.environ else (SRUN_WARNING,)
    for message in (*IGNORED_WARNINGS, *outside_slurm):
        warnings.filterwarnings("ignore", message)
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # A profiler logs its table at the end, and only on request.
    logging.getLogger("lightning.pytorch.profilers").setLevel(logging.INFO)


def without_loggers(experiment: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of an experiment without the loggers of its Trainer."""
    trainer = {name: value for name, value in experiment["trainer"].items() if name != "logger"}
    return {**experiment, "trainer": trainer}


def first_process() -> bool:
    """Return whether this is process 0 of a training on several devices, or the only process."""
    return int(getattr(rank_zero_only, "rank", 0)) == 0


# Options that newer versions have added, with the value that older runs were trained with.
ADDED = {
    "model.init_args.average": "macro",
    "model.init_args.clip": True,  # without effect, because their schemas have no limits
    "model.init_args.mixup": 0.0,
    "model.init_args.cutmix": 0.0,
    "model.init_args.net.init_args.linear": False,
}


def differences(old: dict[str, Any] | None, new: dict[str, Any] | None, key: str = "") -> list[str]:
    """Return the values in which two configs differ, each as ``key: old -> new``."""
    lines = []
    old, new = old or {}, new or {}
    for name in old | new:
        before, after, path = old.get(name), new.get(name), f"{key}.{name}".strip(".")
        before = ADDED.get(path) if name not in old else before
        # Both null and an empty section mean no options.
        both_empty = before in (None, {}) and after in (None, {})
        if isinstance(before, dict) and isinstance(after, dict):
            lines += differences(before, after, path)
        elif before != after and not both_empty:
            lines.append(f"{path}: {before} -> {after}")
    return lines
