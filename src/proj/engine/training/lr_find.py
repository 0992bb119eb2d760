"""Find an initial learning rate with Lightning's range test, for ``fit --lr_find``.

Smith 2017, "Cyclical Learning Rates for Training Neural Networks".
"""

import copy
import tempfile
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Trainer
from lightning.pytorch.tuner.tuning import Tuner
from lightning.pytorch.utilities.seed import isolate_rng

from proj.engine import console
from proj.engine.config.experiment import ExperimentCLI
from proj.engine.exit_codes import as_user_error, signal_exit_codes
from proj.engine.training.preflight import STEP_FLAGS
from proj.engine.training.trial_callbacks import copies_of_lazy_buffers
from proj.errors import UserError
from proj.models.base import Model

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STEPS = 100


def find_learning_rate(cli: ExperimentCLI) -> tuple[float, "Figure"]:
    """Return the learning rate at which the loss falls most steeply, and the curve.

    The rate grows from step to step. The test trains a copy of the model and writes no files.
    """
    _check_supported(cli)
    with isolate_rng(), as_user_error("no learning rate can be found"):
        finder = _range_test(cli)
    rate = finder.suggestion() if finder else None
    if finder is None or rate is None:
        raise UserError(
            "--lr_find: expected finite losses that fall at some rate, got none; set "
            "--model.optimizer.lr."
        )
    # Importing matplotlib takes a second, and other trainings do not need it.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4))
    finder.plot(suggest=True, ax=figure.subplots())
    return float(rate), figure


def _check_supported(cli: ExperimentCLI) -> None:
    """Raise UserError unless the experiment has one of our models on one device."""
    if not isinstance(cli.model, Model):
        raise UserError(
            f"--lr_find: expected a model of this package, got {type(cli.model).__name__}; use "
            "Lightning's callback LearningRateFinder for other models."
        )
    flags = cli.config_init.trainer
    one_device = flags.devices in ("auto", 1, "1") and flags.num_nodes <= 1
    if not one_device or str(flags.strategy) != "auto":
        raise UserError(
            "--lr_find: expected one device, got several or a strategy; find the rate on one "
            "device, then set it with --model.optimizer.lr."
        )
    if cli.model.scheduler is not None:
        console.warn(
            "--lr_find: model.scheduler sets learning rates of its own, which the found rate may "
            "not change."
        )


def _range_test(cli: ExperimentCLI) -> Any:
    """Run Lightning's range test on a copy of the model; None if it was interrupted."""
    assert isinstance(cli.model, Model)
    model = copy.deepcopy(cli.model, copies_of_lazy_buffers(cli.model))
    model.compile_mode, model.scheduler = "none", None
    flags = {flag: cli.config_init.trainer[flag] for flag in STEP_FLAGS}
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            **flags,
            devices=1,
            max_epochs=-1,
            default_root_dir=folder,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        with signal_exit_codes(trainer):
            return Tuner(trainer).lr_find(
                model, datamodule=cli.datamodule, num_training=STEPS, update_attr=False
            )
