"""Predict and score an ensemble: the weighted mean of its members' predictions."""

from typing import Any, Literal, NamedTuple

import numpy as np
import polars as pl

from proj.data.base import DataModule, split_names
from proj.engine import console
from proj.engine.baselines.run_folder import metrics_of
from proj.engine.callbacks.prediction_writer import PredictionWriter
from proj.engine.config.arguments import Arguments, read_arguments
from proj.engine.evaluation.artifacts import save_artifacts
from proj.engine.evaluation.baseline import constant_baseline
from proj.engine.evaluation.leaderboard import compare_with_best
from proj.engine.evaluation.prediction_set import PredictionSet, predictions_in, read_table
from proj.engine.evaluation.report import write_report
from proj.engine.evaluation.restore import RestoredRun, restore, run_loop
from proj.engine.evaluation.results import read_schema, run_seed, save_metrics, show_location
from proj.engine.evaluation.scoring import add_intervals, small_sample_warnings
from proj.engine.runs.ensemble import Member, average_tables, described, members_of
from proj.engine.runs.files import atomic_write, is_present
from proj.engine.runs.find import find_run
from proj.engine.runs.locks import replace_results
from proj.engine.runs.run import Run
from proj.engine.write_paths import check_links
from proj.errors import UserError
from proj.schema import Schema

Loop = Literal["validate", "test", "predict"]
Verb = Literal["validate", "test", "predict", "export"]
# Flags of the verbs that an ensemble does not take.
UNSUPPORTED = ("--ckpt_path", "--calibrate", "--threshold", "--coverage", "--importance")


class NamedEnsemble(NamedTuple):
    """The ensemble that a command line names, and the flags for its members."""

    run: Run
    flags: list[str]


def named_ensemble(verb: Verb, args: list[str]) -> NamedEnsemble | None:
    """Return the ensemble that ``--run`` names; None for another run.

    Raises:
        UserError: if it cannot be used with the flags.
    """
    arguments = read_arguments(args, verb)
    if arguments.run is None or {"-h", "--help"} & set(arguments.flags):
        return None
    run = find_run(arguments.root, arguments.run)
    if run.ensemble is None:
        return None
    check_links(run.path)
    _check_flags(verb, run, arguments)
    flags = arguments.flags
    if run.ensemble["kind"] == "folds":
        flags = [*_whole_data(verb, run, arguments), *flags]
    return NamedEnsemble(run, flags)


def _check_flags(verb: Verb, run: Run, arguments: Arguments) -> None:
    given = [word.partition("=")[0] for word in arguments.flags]
    unsupported = [name for name in UNSUPPORTED if name in given]
    if arguments.files:
        unsupported.append("--config")
    if unsupported:
        raise UserError(
            f"{unsupported[0]}: expected a run that `fit` trained, got the ensemble {run.path}; "
            f"leave it out, or call `{verb}` for a member."
        )


def _whole_data(verb: Verb, run: Run, arguments: Arguments) -> list[str]:
    """Return the flag that makes the members of a cross-validation read the same rows.

    Raises UserError unless these are rows on which no member was trained.
    """
    if verb == "export":  # The proof compares answers; it scores none.
        return ["--data.fold=null"]
    recorded = ((run.config.get("data") or {}).get("init_args")) or {}
    option = "predict_path" if verb == "predict" else "test_path"
    given = arguments.flag(f"--data.{option}") or recorded.get(option)
    if verb == "validate" or given is None:
        is_option = verb != "validate" and option in recorded
        call = f"--data.{option} FILE" if is_option else "`predict --data.predict_path FILE`"
        raise UserError(
            f"{run.path}: expected rows that no member was trained on, got those of the "
            f"cross-validation, each of which trained some member; give other rows with {call}. "
            "The metrics of the cross-validation are in its metrics.json."
        )
    return ["--data.fold=null"]


# Predictions of members


class MemberTable(NamedTuple):
    """Predictions of a member, and what they were made with; None for a baseline."""

    table: pl.DataFrame
    restored: RestoredRun | None


def predict_member(verb: Loop, member: Member, flags: list[str], shared_rows: bool) -> MemberTable:
    """Return what a member predicts for the split of a verb, without its calibration.

    Args:
        verb: the verb whose split is predicted.
        member: the member. Of a baseline the predictions are read, which it has stored.
        flags: flags for its experiment.
        shared_rows: whether the rows are those of the member's own split.
    """
    if member.baseline is not None:
        path = member.run.path / verb / "predictions.parquet"
        if not is_present(path):
            raise UserError(
                f"{path}: expected the predictions of the baseline {member.name}, found no file; "
                "fit the baselines with such a split, or leave it out."
            )
        return MemberTable(read_table(path), None)
    restored = restore(verb, ["--run", str(member.run.path), *flags], shared_rows)
    if restored.fast_dev_run:
        raise UserError(
            "trainer.fast_dev_run: expected false, because an ensemble needs all predictions, got "
            "true; leave it out."
        )
    keep = restored.cli.option("keep") if verb == "predict" else None
    table = run_member(verb, restored, str(keep) if keep else None)
    return MemberTable(table, restored)


def run_member(verb: Loop, restored: RestoredRun, keep: str | None) -> pl.DataFrame:
    """Run the loop of a verb, and return the predictions without the member's calibration.

    Raises:
        UserError: for several processes, and models whose outputs cannot be averaged.
    """
    path = restored.run.path / verb / "predictions.parquet"
    writer = PredictionWriter(path, split_names(keep, "--keep") if keep else [], deferred=True)
    trainer = run_loop(verb, restored, writer, log=False)
    if trainer.world_size > 1:
        raise UserError(
            f"trainer.devices: expected one device for an ensemble, got {trainer.world_size} "
            "processes; add --trainer.devices 1 --trainer.num_nodes 1."
        )
    if writer.table is None or not writer.has_answers:
        name = type(restored.cli.model).__name__
        raise UserError(
            f"{restored.run.path}: expected a model of this package, got {name}, whose outputs "
            "cannot be averaged; leave it out."
        )
    return writer.table


def predict_ensemble(
    verb: Loop, run: Run, flags: list[str]
) -> tuple[pl.DataFrame, RestoredRun | None]:
    """Return the averaged predictions of an ensemble, and the first member that has a model.

    Raises:
        UserError: if a member has other rows or targets than the first one.
    """
    facts = run.ensemble
    assert facts is not None
    members, schema = members_of(run), read_schema(run)
    predicted: list[MemberTable] = []
    first = members[0]
    for member in members:
        console.say(f"member: {member.weight:.3g} of {member.name}")
        predicted.append(predict_member(verb, member, flags, facts["kind"] == "runs"))
        check_rows(verb, schema, first.name, predicted[0].table, member.name, predicted[-1].table)
    tables = [one.table for one in predicted]
    averaged = average_tables(schema, tables, [member.weight for member in members])
    return averaged, next((one.restored for one in predicted if one.restored), None)


def check_rows(
    verb: str,
    schema: Schema,
    first_name: str,
    first: pl.DataFrame,
    name: str,
    other: pl.DataFrame,
) -> None:
    """Raise UserError unless two tables have the same rows, targets and weights of rows."""
    # A column of the source may begin with "target_", too.
    targets = ["target", *(f"target_{target}" for target in schema.target_names)]
    for column in (c for c in ("row", "weight", *targets) if c in first.columns):
        same = column in other.columns and np.array_equal(
            first[column].to_numpy(), other[column].to_numpy()
        )
        if not same:
            what = {"row": "rows", "weight": "weights of rows"}.get(column, "targets")
            raise UserError(
                f"{verb}: expected members with the same {what}, got different ones in "
                f"{first_name} and {name}; leave one of them out, or train it on the same splits."
            )


# Results


def evaluate_ensemble(verb: Literal["validate", "test"], ensemble: NamedEnsemble) -> None:
    """Compute the metrics of an ensemble on a split, save the predictions; for `test`, report."""
    run, schema = ensemble.run, read_schema(ensemble.run)
    facts = run.ensemble
    assert facts is not None
    table, restored = predict_ensemble(verb, run, ensemble.flags)
    predictions = predictions_in(table, run, schema, None)
    metrics = metrics_of(run, predictions, schema, "val" if verb == "validate" else "test")
    metrics = add_intervals(metrics, predictions, schema, run_seed(run))
    name = "validation" if verb == "validate" else "test"
    warnings = list(small_sample_warnings(metrics, schema.task, name))
    with replace_results(run, verb):
        atomic_write(run.path / verb / "predictions.parquet", table.write_parquet)
        remarks = [f"members: {described(facts['members'])}"]
        if verb == "validate":
            remarks.append(
                "the weights were fitted on these rows, so this result is too optimistic; `test` "
                "gives an unbiased result"
            )
        else:
            remarks += _test_remarks(run, schema, predictions, restored)
        title = console.plural(len(facts["members"]), "member")
        save_metrics(run, verb, title, metrics, warnings, True, schema.task, remarks)
        if verb == "test":
            console.say(f"report: {write_report(run, schema, predictions, metrics)}")
    show_location(run)


def _test_remarks(
    run: Run, schema: Schema, predictions: PredictionSet, restored: RestoredRun | None
) -> list[str]:
    """Save the artifacts of the test split; return what `test` says beside the metrics."""
    remarks = []
    data: Any = None if restored is None else restored.cli.datamodule
    if isinstance(data, DataModule):
        remarks += list(save_artifacts(run, data, schema, predictions))
    if (baseline := constant_baseline(predictions, schema)) is not None:
        remarks.append(str(baseline))
    return [*remarks, compare_with_best(run, predictions)]
