"""Load a run's model for predictions in Python."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from inspect import signature
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
from proj.engine.runs.checkpoint_file import read_checkpoint
from proj.engine.runs.ensemble import average_tables, members_of, require_models
from proj.engine.runs.find import find_run
from proj.engine.runs.predictions import frame
from proj.engine.runs.run import Run
from proj.engine.runs.weights import check_weights, give_schema, weight_type
from proj.errors import UserError
from proj.models.base import Model
from proj.schema import Batch


class Predictor:
    """Trained model with everything it needs to predict from raw rows. Made by ``proj.load``.

    Attributes:
        model: the model in evaluation mode, on the CPU; move it with ``.model.to(device)``.
        calibration: the temperature, thresholds and conformal limits that were fitted for the
            checkpoint and are applied; None if there are none.
    """

    def __init__(self, checkpoint: dict[str, Any], path: Path) -> None:
        self.model, self._encode = _build_classes(checkpoint["config"], str(path))
        precision = checkpoint["config"].get("trainer", {}).get("precision")
        give_schema(self.model, checkpoint, weight_type(precision))
        check_weights(self.model, checkpoint["state_dict"], str(path))
        self.model.load_state_dict(checkpoint["state_dict"])
        self.model.eval()
        self.calibration, warning = calibration.apply(self.model, path)
        if warning:
            rank_zero_warn(warning)

    def predict(self, rows: Any, batch_size: int = 1024) -> pl.DataFrame:
        """Predict raw rows.

        Args:
            rows: rows as the source of the data module has them, such as a data frame or an array.
            batch_size: rows per forward pass.

        Returns:
            A table with the columns ``row``, ``prediction`` and ``probability_CLASS``; predictions
            are labels, or numbers in the unit of the target. If conformal limits were fitted, also
            ``low`` and ``high``, or ``set``.

        Raises:
            UserError: if the rows do not have the form of the training data.
        """
        schema = self.model.schema
        assert schema is not None
        x = self._encode(rows, schema)
        row = torch.arange(len(next(iter(x.values())) if isinstance(x, dict) else x))
        outputs = []
        with torch.inference_mode():
            # Without rows, one empty batch gives the outputs their shape.
            for start in range(0, max(1, len(row)), batch_size):
                batch = take(Batch(x, None, row), row[start : start + batch_size])
                batch = self.model.transfer_batch_to_device(batch, self.model.device, 0)
                outputs.append(self.model.predict_step(batch, 0)["output"].cpu())
        return frame(
            schema,
            row.numpy(),
            torch.cat(outputs).numpy(),
            thresholds=self.model.thresholds,
            conformal_limits=self.model.conformal_limits,
        )


class EnsemblePredictor:
    """Weighted mean of several trained models. Made by ``proj.load`` for an ensemble.

    Attributes:
        members: the predictors of the members.
        weights: their weights, with the sum 1.
    """

    def __init__(self, members: Sequence[Predictor], weights: Sequence[float]) -> None:
        self.members, self.weights = list(members), list(weights)

    def predict(self, rows: Any, batch_size: int = 1024) -> pl.DataFrame:
        """Predict raw rows: the weighted mean of the members' probabilities or numbers.

        Arguments, columns and errors are those of ``Predictor.predict``.
        """
        schema = self.members[0].model.schema
        assert schema is not None
        tables = [member.predict(rows, batch_size) for member in self.members]
        return average_tables(schema, tables, self.weights)


def load(run: Run | str | Path, *, allow: Iterable[str] = ()) -> Predictor | EnsemblePredictor:
    """Load a trained model, or an ensemble, for prediction.

    Args:
        run: a run, its name in ``lightning_logs``, its folder, or a checkpoint file (``.ckpt``).
            Of a run, the best checkpoint is loaded; of an ensemble, all members.
        allow: packages whose classes the checkpoint may name, such as that of its optimizer; see
            the flag ``--allow``.

    Raises:
        UserError: if there is no such run or file, the checkpoint is of another model, or it names
            a class that is not allowed.
    """
    if not isinstance(run, Run) and Path(run).suffix == ".ckpt":
        return _load_file(Path(run), allow)
    found = run if isinstance(run, Run) else find_run(Path("lightning_logs"), str(run))
    if found.ensemble is None:
        return _load_file(found.checkpoint("best"), allow)
    members = members_of(found)
    require_models(found, members)
    predictors = [_load_file(member.run.checkpoint("best"), allow) for member in members]
    return EnsemblePredictor(predictors, [member.weight for member in members])


def _load_file(path: Path, allow: Iterable[str]) -> Predictor:
    """Load the model of a checkpoint file."""
    checkpoint = read_checkpoint(path)
    if "config" not in checkpoint or checkpoint.get("schema") is None:
        raise UserError(
            f"{path}: expected a checkpoint that `fit` wrote for one of this package's models."
        )
    with security.restored():
        for package in allow:
            security.allow_package(package)
        return Predictor(checkpoint, path)


def _build_classes(config: dict[str, Any], source: str) -> tuple[Model, Callable[..., Any]]:
    """Build an experiment's model, without its net, and return it with ``encode`` of its data."""
    add_working_directory()
    security.restrict_imports()
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(LightningModule, "model", fail_untyped=False)
    parser.add_argument("--data", type=type[LightningDataModule])
    built = _build(parser, {"model": config["model"], "data": config["data"]["class_path"]}, source)
    if not (isinstance(built.model, Model) and issubclass(built.data, DataModule)):
        raise UserError(
            f"{source}: expected a model and a data module built on this package's bases, got "
            f"{config['model']['class_path']} and {config['data']['class_path']}."
        )
    # The data module itself is not built, because its source may not be here.
    given = config["data"].get("init_args") or {}
    names = list(signature(built.data.encode).parameters)[2:]
    options = {name: given[name] for name in names if name in given}
    if not options:
        return built.model, built.data.encode
    parser = ArgumentParser(exit_on_error=False)
    parser.add_method_arguments(built.data, "encode", "data", skip={2}, fail_untyped=False)
    kept = vars(_build(parser, {"data": options}, source).data)
    return built.model, partial(built.data.encode, **kept)


def _build(parser: ArgumentParser, values: dict[str, Any], source: str) -> Any:
    """Build the objects of a checkpoint's config. Raises UserError if it names others."""
    try:
        return parser.instantiate(parser.parse_object(values))
    except ArgumentError as error:
        raise UserError(f"{source}: {explain_parser_error(str(error), [])}") from error
