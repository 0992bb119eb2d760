"""Average runs of one task, with weights fitted on the validation split."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from proj.engine import console
from proj.engine.config.parser import VerbParser
from proj.engine.console import number, plural
from proj.engine.evaluation.ensemble import check_rows, predict_member
from proj.engine.evaluation.ensemble_folder import check_same_outputs, write_ensemble
from proj.engine.evaluation.ensemble_weights import greedy_weights, mean_loss
from proj.engine.evaluation.prediction_set import PredictionSet, predictions_in
from proj.engine.evaluation.results import read_schema
from proj.engine.runs.ensemble import Member
from proj.engine.runs.find import find_run
from proj.engine.runs.run import Run, check_name, create_run
from proj.errors import UserError
from proj.schema import Schema

ROOT = Path("lightning_logs")
QUIET = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]


def ensemble(args: list[str]) -> None:
    """Fit the weights of runs on the validation split, and write the ensemble as a run."""
    options = _parse(args)
    check_name(ROOT, options.name)
    runs = _find_runs(options.runs)
    names = [run.path.name for run in runs]
    schemas = [read_schema(run) for run in runs]
    check_same_outputs(names, schemas)
    candidates = _validation_predictions(runs, names, schemas[0])
    weights = greedy_weights(candidates, schemas[0])
    result = create_run(ROOT, options.name)
    write_ensemble(result, "runs", runs, weights, ["ensemble", *args])
    _show(names, candidates, weights, schemas[0])
    console.say(f"run: {result.path}; score it with `test --run {result.path.name}`")


def _parse(args: list[str]) -> argparse.Namespace:
    parser = VerbParser(
        "ensemble", "Average runs of one task, with weights fitted on the validation split."
    )
    parser.add_argument("runs", nargs="+", help="names or folders of two runs or more")
    parser.add_argument("--name", help="name of the ensemble; default: the next version_N")
    return parser.parse_args(args)


def _find_runs(names: Sequence[str]) -> list[Run]:
    """Return the runs; raise UserError unless they are two or more that can be members."""
    runs = [find_run(ROOT, name) for name in names]
    if len({run.path.resolve() for run in runs}) < max(2, len(runs)):
        raise UserError(f"ensemble: expected two different runs or more, got {' '.join(names)}.")
    for run in runs:
        if run.baseline is None:
            run.require_trained()
        if (status := run.manifest["status"]) != "finished":
            raise UserError(
                f"ensemble: expected finished runs, got {run.path}, whose status is {status}; "
                "finish it with `fit --resume`, or leave it out."
            )
    return runs


def _validation_predictions(
    runs: Sequence[Run], names: Sequence[str], schema: Schema
) -> list[PredictionSet]:
    """Return what each run predicts for the validation split, which all must share."""
    tables, candidates = [], []
    for run, name in zip(runs, names, strict=True):
        facts = run.baseline
        member = Member(run, name, 1.0, facts["title"] if facts else None)
        tables.append(predict_member("validate", member, QUIET, True).table)
        check_rows("ensemble", schema, names[0], tables[0], name, tables[-1])
        candidates.append(predictions_in(tables[-1], run, schema, None))
        if count := candidates[-1].missing:
            raise UserError(
                f"ensemble: expected finite predictions, got {plural(count, 'other')} in {name}; "
                "leave it out."
            )
    return candidates


def _show(
    names: Sequence[str],
    candidates: Sequence[PredictionSet],
    weights: Sequence[float],
    schema: Schema,
) -> None:
    """Print the weight of each run, and its loss on the validation split."""
    losses = [mean_loss(one, schema, one.output) for one in candidates]
    rows = [
        [name, number(loss), number(weight)]
        for name, loss, weight in zip(names, losses, weights, strict=True)
    ]
    outputs = np.stack([one.output for one in candidates])
    average = np.average(outputs, axis=0, weights=weights)
    rows.append(["ensemble", number(mean_loss(candidates[0], schema, average)), number(1.0)])
    metric = "squared error" if schema.task == "regression" else "log loss"
    console.show_lines(["run", f"{metric}, validation", "weight"], rows, numbers=2)
    console.say("the weights were fitted on the validation split; the test split was not read")
