"""A run's model as a Python object."""

from pathlib import Path
from typing import Any

import polars as pl
import torch
from jsonargparse import ArgumentError, ArgumentParser
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.utilities import rank_zero_warn

from proj.data.base import DataModule
from proj.data.loader import take
from proj.engine import security
from proj.engine.class_paths import add_working_directory
from proj.engine.config.parser_errors import explain_parser_error
from proj.engine.runs import calibration
from proj.engine.runs.predictions import frame
from proj.engine.runs.run import find_run, read_checkpoint
from proj.engine.runs.weights import check_weights, give_schema
from proj.errors import UserError
from proj.models.base import Model
from proj.schema import Batch


class Predictor:
    """A trained model with all it needs to work on raw rows. Made by ``proj.load``.

    Attributes:
        model: the model, in evaluation mode, on the CPU; move it with ``.model.to(device)``.
        calibration: the temperature and thresholds that were fitted for the checkpoint, and are applied; None without.
    """

    def __init__(self, checkpoint: dict[str, Any], path: Path) -> None:
        config, source = checkpoint["config"], str(path)
        parser = ArgumentParser(exit_on_error=False)
        parser.add_subclass_arguments(LightningModule, "model")
        parser.add_argument("--data", type=type[LightningDataModule])
        classes = {"model": config["model"], "data": config["data"]["class_path"]}
        add_working_directory()
        security.restrict_imports()
        try:
            made = parser.instantiate(parser.parse_object(classes))
        except ArgumentError as error:
            raise UserError(f"{source}: {explain_parser_error(str(error), [])}") from error
        if not (isinstance(made.model, Model) and issubclass(made.data, DataModule)):
            raise UserError(
                f"{source}: expected a model and a data module built on this package's bases, got "
                f"{classes['model']['class_path']} and {classes['data']}."
            )
        self.model: Model = made.model
        self._encode = made.data.encode
        give_schema(self.model, checkpoint)
        check_weights(self.model, checkpoint["state_dict"], source)
        self.model.load_state_dict(checkpoint["state_dict"])
        self.model.eval()
        self.calibration, why = calibration.apply(self.model, path)
        if why:
            rank_zero_warn(why)

    def predict(self, rows: Any, batch_size: int = 1024) -> pl.DataFrame:
        """Raw rows, as the data module's source has them, to a table: ``row``, ``prediction``, ``probability_…``.

        Raises UserError where the rows are not like those of the training data.
        """
        schema = self.model.schema
        assert schema is not None
        x = self._encode(rows, schema)
        row = torch.arange(len(next(iter(x.values())) if isinstance(x, dict) else x))
        outputs = []
        with torch.inference_mode():
            for start in range(0, len(row), batch_size):
                batch = self.model.transfer_batch_to_device(
                    take(Batch(x, None, row), row[start : start + batch_size]), self.model.device, 0
                )
                outputs.append(self.model.predict_step(batch, 0)["output"].cpu())
        return frame(
            schema, row.numpy(), torch.cat(outputs).numpy(), thresholds=self.model.thresholds
        )


def load(run: str | Path) -> Predictor:
    """The best model of a run (its name in ``lightning_logs``, or its folder), or of a checkpoint file."""
    path = Path(run)
    if path.suffix != ".ckpt":
        path = find_run(Path("lightning_logs"), str(run)).checkpoint("best")
    checkpoint = read_checkpoint(path)
    if "config" not in checkpoint or checkpoint.get("schema") is None:
        raise UserError(
            f"{path}: expected a checkpoint that `fit` wrote for one of this package's models."
        )
    return Predictor(checkpoint, path)
