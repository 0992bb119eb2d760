"""A run in training: the Trainer around it, its manifest, what is said at the end."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from lightning.pytorch import Callback
from lightning.pytorch.loggers import TensorBoardLogger

from proj.engine import PACKAGE, console
from proj.engine.callbacks.best_checkpoint import BestCheckpoint
from proj.engine.config.experiment import ExperimentCLI, first_process
from proj.engine.exit_codes import as_user_error, signal_exit_codes
from proj.engine.memory import keep_freed_memory
from proj.engine.runs.run import Run, metric_entries, read_checkpoint, record_manifest

# Where process 0 tells the processes it starts which folder it claimed.
RUN_VARIABLE = f"{PACKAGE.upper()}_RUN"


def train(
    cli: ExperimentCLI,
    run: Run,
    command: list[str],
    callbacks: Sequence[Callback],
    checkpoint: Path | None,
    again: bool = False,
) -> None:
    """Train into ``run``'s folder, from a checkpoint if there is one; ``again`` if the run has been trained before."""
    first_step = read_checkpoint(checkpoint)["global_step"] if checkpoint else 0
    trainer = cli.build_trainer(
        run.path, [*cli.fit_callbacks(run.path), *callbacks], first_step + 1 if again else None
    )
    keep_freed_memory(trainer.strategy.root_device)
    if not first_process():
        with signal_exit_codes(trainer):
            trainer.fit(
                cli.model, datamodule=cli.datamodule, ckpt_path=checkpoint, weights_only=True
            )
        return
    os.environ[RUN_VARIABLE] = str(run.path)
    fingerprint = getattr(cli.datamodule, "fingerprint", "")
    device, seed = trainer.strategy.root_device, cli.experiment["seed_everything"]
    console.say(f"run: {run.path} on {trainer.num_devices} x {device.type}")
    try:
        with (
            record_manifest(run, command, seed, fingerprint, device, again),
            signal_exit_codes(trainer),
        ):
            trainer.fit(
                cli.model, datamodule=cli.datamodule, ckpt_path=checkpoint, weights_only=True
            )
    except (
        Exception
    ):  # of whatever kind, since it is raised again: here it matters only how far training came
        if trainer.global_step == first_step and not again:
            shutil.rmtree(run.path)  # what never made a step is no run
            if not any(cli.root.iterdir()):
                cli.root.rmdir()
            with as_user_error("training cannot start"):
                raise
        raise
    finally:
        del os.environ[RUN_VARIABLE]
    for saver in trainer.checkpoint_callbacks:
        if isinstance(saver, BestCheckpoint) and saver.best_metrics:
            shown = {
                n: v for n, v in saver.best_metrics.items() if not n.startswith(("train", "lr-"))
            }
            title = f"best epoch, by {saver.monitor}" if saver.monitor else "last epoch"
            console.show_metrics(title, metric_entries(shown))
    console.say(f"trained: {trainer.current_epoch} epochs, {trainer.global_step} steps")
    console.say(f"run: {run.path}")
    if any(isinstance(logger, TensorBoardLogger) for logger in trainer.loggers):
        console.say(f"watch: tensorboard --logdir {run.path.parent}")
