"""``fit --lr_find``: a learning rate to start from, by Lightning's range test (Smith 2017, "Cyclical Learning Rates")."""

import copy
import tempfile
from typing import TYPE_CHECKING

from lightning.pytorch import Trainer
from lightning.pytorch.tuner.tuning import Tuner
from lightning.pytorch.utilities.seed import isolate_rng

from proj.engine import console
from proj.engine.config.experiment import ExperimentCLI
from proj.engine.exit_codes import as_user_error, signal_exit_codes
from proj.engine.training.preflight import KEPT
from proj.errors import UserError
from proj.models.base import Model

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STEPS = 100


def find_learning_rate(cli: ExperimentCLI) -> tuple[float, "Figure"]:
    """The rate at which the loss falls most steeply while the rate grows step by step, and the curve; on copies of all."""
    if not isinstance(cli.model, Model):
        raise UserError(
            f"--lr_find: expected one of this package's models, got {type(cli.model).__name__}; "
            "Lightning's LearningRateFinder is a callback for others."
        )
    given = cli.config_init.trainer
    if (
        given.devices not in ("auto", 1, "1")
        or given.num_nodes > 1
        or str(given.strategy) != "auto"
    ):
        raise UserError(
            "--lr_find: expected one device; find the rate on one, then give it with --model.optimizer.lr."
        )
    if cli.model.scheduler is not None:
        console.warn(
            "--lr_find: model.scheduler sets rates of its own, which what is found may not change."
        )
    with (
        isolate_rng(),
        tempfile.TemporaryDirectory() as folder,
        as_user_error("no learning rate can be found"),
    ):
        model = copy.deepcopy(cli.model)
        model.compile_mode, model.scheduler = "none", None
        trainer = Trainer(
            **{name: given[name] for name in KEPT},
            devices=1,
            max_epochs=-1,
            default_root_dir=folder,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        with signal_exit_codes(trainer):
            finder = Tuner(trainer).lr_find(
                model, datamodule=cli.datamodule, num_training=STEPS, update_attr=False
            )
    rate = finder.suggestion() if finder else None
    if finder is None or rate is None:
        raise UserError(
            "--lr_find: the losses of the test tell nothing; expected finite ones, give --model.optimizer.lr."
        )
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4))
    finder.plot(suggest=True, ax=figure.subplots())
    return rate, figure
