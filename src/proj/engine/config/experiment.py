"""An experiment on the command line: config files and flags, parsed by LightningCLI into a model, data and a Trainer."""

import json
import logging
import warnings
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import ArgumentError
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, ProgressBar
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities import rank_zero_only

from proj import metrics
from proj.engine import PACKAGE, security
from proj.engine.callbacks.best_checkpoint import BestCheckpoint, EarlyStopping
from proj.engine.callbacks.monitoring import (
    RunLogger,
    StepLogger,
    StepProgressBar,
    TensorBoardSummary,
)
from proj.engine.callbacks.non_finite import StopOnNonFinite
from proj.engine.callbacks.resume_state import ResumeCheckpoint
from proj.engine.callbacks.steps_per_execution import StepsPerExecution
from proj.engine.config.arguments import OPTIONS
from proj.engine.config.parser_errors import explain_parser_error
from proj.engine.exit_codes import as_user_error
from proj.errors import UserError

# Warnings that say nothing to the user of these verbs.
SILENT = (
    # Lightning calls what torch 2.13 deprecates: https://github.com/Lightning-AI/pytorch-lightning/issues/21326
    r".*isinstance\(treespec, LeafSpec\).*",
    # a checkpoint is evaluated without the callbacks that wrote it, on purpose
    r"Be aware that when using `ckpt_path`, callbacks used to create the checkpoint.*",
    # `fit --resume` goes on in the run's own
    r"Checkpoint directory .* exists and is not empty.*",
    # what is logged each epoch is logged however few batches it has
    r"The number of training batches \(\d+\) is smaller than the logging interval.*",
    # our loaders leave their order as it is then; Lightning knows of torch's samplers only
    r"You requested to overfit but enabled (train|val) dataloader shuffling.*",
)


class ExperimentCLI(LightningCLI):
    """Parses an experiment for one verb. The Trainer is built later, when the run's folder is known.

    Each verb has one parser with all flags, where LightningCLI would build four subparsers. Nothing read from a checkpoint
    can then override a flag (Lightning issue 20801).

    Attributes:
        experiment: the resolved experiment as plain values, fit for ``config.yaml``.
    """

    def __init__(
        self, verb: str, configs: list[dict[str, Any]], flags: list[str], instantiate: bool = True
    ) -> None:
        self.verb, self.flags, self.instantiate = verb, flags, instantiate
        security.restrict_imports()
        for message in SILENT:
            warnings.filterwarnings("ignore", message)
        for name in (
            "lightning.pytorch",
            "lightning.fabric",
        ):  # devices, seed and tips: what matters we print
            logging.getLogger(name).setLevel(logging.WARNING)
        # inline and ahead of the flags, so that flags win whatever their place on the command line
        start = (
            "init_from" in OPTIONS[verb]
        )  # only `fit` has a start; a run's config may tell of it to other verbs
        configs = [
            {key: value for key, value in config.items() if start or key != "init_from"}
            for config in configs
        ]
        self.arguments = [a for config in configs for a in ("--config", json.dumps(config))] + flags
        super().__init__(
            save_config_callback=None,
            trainer_defaults={"num_sanity_val_steps": 0},  # the preflight has done that
            parser_kwargs={
                "prog": f"python -m {PACKAGE} {verb}",
                "exit_on_error": False,
                "allow_abbrev": False,
            },
            run=False,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
        )

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
            help="How old last.ckpt may become; 0 saves after each step, or block of steps.",
        )
        parser.add_argument(
            "--checkpoint.every_n_steps",
            type=int | None,
            default=None,
            help="Optimizer steps from one last.ckpt to the next.",
        )
        parser.add_class_arguments(EarlyStopping, "early_stopping", instantiate=False)
        for option, text in OPTIONS[self.verb].items():
            parser.add_argument(f"--{option}", type=str | None, default=None, help=text)
        if self.verb == "fit":
            parser.add_argument(
                "--lr_find",
                action="store_true",
                help="Find a learning rate first, and train with it.",
            )
        if self.verb == "validate":
            parser.add_argument(
                "--importance",
                action="store_true",
                help="How much worse the metric becomes when a column's values are permuted.",
            )
        if self.verb == "check":
            parser.add_argument("--strict", action="store_true", help="Findings are errors.")
            parser.add_argument(
                "--overfit",
                action="store_true",
                help="See whether the net learns one batch by heart.",
            )

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        try:
            self.config = parser.parse_args(self.arguments)
        except ArgumentError as error:
            raise UserError(
                explain_parser_error(str(error), parser.get_defaults().keys())
            ) from error
        seed = self.config.seed_everything
        if seed is None or not 0 <= seed < 2**32:
            raise UserError(f"seed_everything: expected a number from 0 to 2**32 - 1, got {seed}.")
        plain = json.loads(
            parser.dump(self.config, skip_unset=False, skip_validation=True, format="json")
        )
        gone = {"strict", "overfit", "lr_find", "importance", *OPTIONS[self.verb]}
        gone -= {"init_from"} if plain.get("init_from") else set()
        self.experiment: dict[str, Any] = {
            key: value for key, value in plain.items() if key not in gone
        }
        security.check_paths(self.experiment, self.flags)

    def as_yaml(self) -> str:
        return yaml.safe_dump(self.experiment, sort_keys=False, allow_unicode=True)

    def instantiate_classes(self) -> None:
        if not self.instantiate:
            return
        with as_user_error("the experiment's classes cannot be built"):
            self.config_init = self.parser.instantiate(self.config)
        self.model, self.datamodule = self.config_init.model, self.config_init.get("data")
        if (
            self.verb == "fit"
            and torch.cuda.is_available()
            and self.config.trainer.accelerator != "cpu"
        ):
            torch.set_float32_matmul_precision(
                "high"
            )  # TensorFloat-32 where there is some, for twice the speed

    @property
    def root(self) -> Path:
        """The folder of the runs: ``lightning_logs`` in the Trainer's ``default_root_dir``."""
        return Path(self.config.trainer.default_root_dir or ".") / "lightning_logs"

    def option(self, name: str) -> str | None:
        value: str | None = self.config.get(name)
        return value

    def build_trainer(
        self, folder: Path | None, callbacks: list[Callback], purge_step: int | None = None
    ) -> Trainer:
        """The Trainer of the experiment, with its files in ``folder`` (None: it keeps none)."""
        given = dict(self.config_init.trainer)
        own = given.pop("callbacks") or []
        own = own if isinstance(own, list) else [own]
        if folder is not None:
            given["default_root_dir"] = folder
            if self.verb not in ("fit", "check"):
                given["logger"] = False  # a score of `test` belongs to no step of the curves
            elif given["logger"] in (None, True) and not given["barebones"]:
                given["logger"] = RunLogger(folder, purge_step)
        if given["enable_progress_bar"] in (None, True) and not given["barebones"]:
            own += (
                []
                if any(isinstance(callback, ProgressBar) for callback in own)
                else [StepProgressBar()]
            )
        with as_user_error("the Trainer cannot be built"):
            return Trainer(**given, callbacks=own + callbacks)

    def fit_callbacks(self, folder: Path) -> list[Callback]:
        """Our callbacks for ``fit``, as far as the Trainer's flags leave room for them."""
        trainer = self.config_init.trainer
        if trainer.fast_dev_run or trainer.barebones:
            return []
        callbacks: list[Callback] = [
            TensorBoardSummary(self.experiment),
            StepLogger(),
            StepsPerExecution(),
        ]
        saving = trainer.enable_checkpointing is not False
        callbacks.append(StopOnNonFinite(folder / "checkpoints" if saving else None))
        options = self.monitors()
        if "early_stopping" in options:
            callbacks.append(EarlyStopping(**options["early_stopping"]))
        if saving:
            pace = {
                name: options["checkpoint"].pop(name) for name in ("every_seconds", "every_n_steps")
            }
            folder = folder / "checkpoints"
            callbacks.append(
                BestCheckpoint(**options["checkpoint"], dirpath=folder, config=self.experiment)
            )
            callbacks.append(ResumeCheckpoint(folder, **pace))
        return callbacks

    def monitored(self) -> dict[str, str | None]:
        """The metric that the checkpoint, and early stopping if it is on, look at; None where nothing says which."""
        saving = self.config.checkpoint.monitor or getattr(self.model, "monitor", None)
        if self.config.early_stopping.patience is None:
            return {"checkpoint": saving}
        return {
            "checkpoint": saving,
            "early_stopping": self.config.early_stopping.monitor or saving,
        }

    def monitors(self) -> dict[str, dict[str, Any]]:
        """The options of the checkpoint, and of early stopping if it is on, with monitor and mode settled."""
        if not ((pace := self.config.checkpoint.every_seconds) is None or pace >= 0):
            raise UserError(
                f"checkpoint.every_seconds: expected seconds from 0 up, or null, got {pace}."
            )
        if not ((pace := self.config.checkpoint.every_n_steps) is None or pace >= 1):
            raise UserError(
                f"checkpoint.every_n_steps: expected steps from 1 up, or null, got {pace}."
            )
        options = {}
        for key, monitor in self.monitored().items():
            options[key] = {**self.config[key].as_dict(), "monitor": monitor}
            if monitor is not None:
                options[key]["mode"] = options[key]["mode"] or self._mode(key, monitor)
            elif key == "early_stopping":
                raise UserError(
                    "early_stopping.monitor: expected a metric that the model logs, got none; name one, or "
                    "set early_stopping.patience to null."
                )
        return options

    def _mode(self, key: str, monitor: str) -> str:
        if monitor == self.monitored()["checkpoint"] and self.config.checkpoint.mode is not None:
            return str(self.config.checkpoint.mode)
        if monitor == getattr(self.model, "monitor", None) and hasattr(self.model, "mode"):
            return str(self.model.mode)
        if (known := metrics.metric_info(monitor)) is None:
            raise UserError(f"{key}.mode: expected min or max for the metric {monitor}, got none.")
        return known.mode


def first_process() -> bool:
    return int(getattr(rank_zero_only, "rank", 0)) == 0


def differences(old: dict[str, Any], new: dict[str, Any], key: str = "") -> list[str]:
    """The leaves in which two configs differ, as ``key: old -> new``."""
    lines = []
    for name in old | new:
        a, b, path = old.get(name), new.get(name), f"{key}.{name}".strip(".")
        if isinstance(a, dict) and isinstance(b, dict):
            lines += differences(a, b, path)
        elif a != b and not (
            a in (None, {}) and b in (None, {})
        ):  # no options are written in two ways
            lines.append(f"{path}: {a} -> {b}")
    return lines
