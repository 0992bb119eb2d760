"""Give the experiment's loggers what the run's own TensorBoard gets: config, name and files."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import (
    CometLogger,
    Logger,
    MLFlowLogger,
    TensorBoardLogger,
    WandbLogger,
)

from proj.engine.runs.contents import flatten_config
from proj.engine.runs.run import Run

# Loggers whose ``version`` identifies a run of their service, so that `test` can go on with it.
IDENTIFIED = {"MLFlowLogger", "WandbLogger", "CometLogger"}


class ConfigLogger(Callback):
    """Log the experiment as hyper-parameters at the start, to all loggers but TensorBoard.

    ``TensorBoardSummary`` logs it to TensorBoard. The manifest gets the identities of the loggers'
    runs, for a resume and for `test`.

    Args:
        config: the experiment.
        run: the run.
        resumed: the run was begun before, so that loggers which go on have the experiment.
    """

    def __init__(self, config: dict[str, Any], run: Run, resumed: bool) -> None:
        self.config, self.run, self.resumed = config, run, resumed

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        ids = {
            type(logger).__name__: str(logger.version)
            for logger in trainer.loggers
            if type(logger).__name__ in IDENTIFIED
        }
        previous = self.run.manifest.get("loggers", {}) if self.resumed else {}
        if ids and trainer.is_global_zero:
            self.run.write_manifest(loggers={**previous, **ids})
        values = flatten_config(self.config)
        for logger in trainer.loggers:
            kind = type(logger).__name__
            if isinstance(logger, TensorBoardLogger) or (
                kind in previous and previous[kind] == ids.get(kind)
            ):
                continue
            if isinstance(logger, MLFlowLogger):
                # It refuses other characters in names.
                logger.log_hyperparams(
                    {re.sub(r"[^\w./ :-]", "_", name): value for name, value in values.items()}
                )
            else:
                logger.log_hyperparams(values)


def log_files(loggers: Iterable[Logger], files: Iterable[Path], name: str) -> None:
    """Give files that exist to the loggers that keep files.

    Args:
        loggers: loggers of a Trainer; others than of Comet, MLflow and W&B are left out.
        files: checkpoints, reports and other files of a run.
        name: name of the run.
    """
    existing = [file for file in files if file.is_file()]
    for logger in loggers if existing else ():
        if isinstance(logger, MLFlowLogger):
            for file in existing:
                logger.experiment.log_artifact(logger.run_id, str(file))
        elif isinstance(logger, CometLogger):
            for file in existing:
                logger.experiment.log_asset(str(file))
        elif isinstance(logger, WandbLogger):
            _log_to_wandb(logger, existing, name)


def _log_to_wandb(logger: WandbLogger, files: list[Path], name: str) -> None:
    # The package is there if its logger could be built.
    import wandb

    for file in files:
        kind = "model" if file.suffix == ".ckpt" else "run-file"
        artifact = wandb.Artifact(re.sub(r"[^\w.-]", "_", f"{name}-{file.name}"), type=kind)
        artifact.add_file(str(file))
        logger.experiment.log_artifact(artifact)
        if file.suffix == ".html":
            logger.experiment.log({file.stem: wandb.Html(file.read_text(encoding="utf-8"))})


def finish(loggers: Iterable[Logger]) -> None:
    """End the runs of W&B, which belong to the process, so that the next one gets its own."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.experiment.finish()
