"""Ensembles: the runs inside the folder of one, their weights, and the average of their outputs."""

import math
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl

from proj.engine.runs.contents import LOST, MemberFacts
from proj.engine.runs.files import is_present
from proj.engine.runs.predictions import frame, outputs_in
from proj.engine.runs.run import Run
from proj.errors import UserError
from proj.schema import DEFAULT_THRESHOLD, Schema

# Files of a run that an ensemble keeps of a trained member, and of a baseline.
TRAINED_FILES = ("config.yaml", "manifest.json", "checkpoints/best.ckpt")
BASELINE_FILES = (
    *("config.yaml", "manifest.json", "schema.json"),
    *("validate/predictions.parquet", "test/predictions.parquet"),
)
ROUNDING = 1e-6


class Member(NamedTuple):
    """A member of an ensemble.

    Attributes:
        run: its own run folder, inside that of the ensemble.
        name: name of the run that it was made of.
        weight: its share of the average.
        baseline: title of the learner of a baseline, which has no model; None for a trained run.
    """

    run: Run
    name: str
    weight: float
    baseline: str | None


def member_run(run: Run, number: int) -> Run:
    """Return the run of a member, by its number from 0."""
    return Run(run.path / "members" / str(number))


def members_of(run: Run) -> list[Member]:
    """Return the members of an ensemble; raise UserError if its manifest is damaged."""
    facts = run.ensemble
    assert facts is not None
    weights = [member["weight"] for member in facts["members"]]
    are_shares = all(0 < weight <= 1 for weight in weights)
    if not are_shares or not math.isclose(sum(weights), 1, abs_tol=ROUNDING):
        raise UserError(
            f"{run.path / 'manifest.json'} is damaged: expected weights above 0 with the sum 1, "
            f"got {', '.join(map(str, weights))[:100]}; {LOST}."
        )
    return [
        Member(member_run(run, i), member["name"], member["weight"], member.get("baseline"))
        for i, member in enumerate(facts["members"])
    ]


def require_models(run: Run, members: Sequence[Member]) -> None:
    """Raise UserError for an ensemble with a baseline, which cannot predict new rows."""
    names = [f"{member.name} ({member.baseline})" for member in members if member.baseline]
    if names:
        raise UserError(
            f"{run.path}: expected members that `fit` trained, got the baseline {names[0]}, which "
            "is stored without its model, so that new rows cannot be predicted; make an ensemble "
            "without it. `test`, `compare` and `report` take this one."
        )


def described(members: Sequence[MemberFacts]) -> str:
    """Return the members with their weights: ``0.6 of a, 0.4 of b (LightGBM)``."""
    return ", ".join(
        f"{member['weight']:.3g} of {member['name']}"
        + (f" ({title})" if (title := member.get("baseline")) else "")
        for member in members
    )


def copy_member(source: Run, target: Run) -> None:
    """Copy what an ensemble needs of a run into the folder of a member.

    Checkpoints become hard links, where the file system has them: no verb writes into an existing
    checkpoint, and the file stays when the run is deleted.
    """
    files = BASELINE_FILES if source.baseline else TRAINED_FILES
    for name in files:
        file, copy = source.path / name, target.path / name
        if is_present(file):
            copy.parent.mkdir(parents=True, exist_ok=True)
            _link_or_copy(file.resolve(), copy, name.endswith(".ckpt"))


def _link_or_copy(file: Path, copy: Path, link: bool) -> None:
    if link:
        try:
            os.link(file, copy)
        except OSError:  # Another device, or a file system without links.
            shutil.copyfile(file, copy)
    else:
        shutil.copyfile(file, copy)


def average_tables(
    schema: Schema, tables: Sequence[pl.DataFrame], weights: Sequence[float]
) -> pl.DataFrame:
    """Return a table of predictions with the weighted mean of probabilities or numbers.

    Args:
        schema: the schema of the members.
        tables: what ``frame`` returned for each member, of the same rows, perhaps with further
            columns; those of the first one are kept.
        weights: a weight for each table, with the sum 1.
    """
    first = tables[0]
    assert all(table["row"].equals(first["row"]) for table in tables)
    outputs = [outputs_in(schema, table).astype(np.float64) for table in tables]
    output = sum(
        (weight * output for weight, output in zip(weights, outputs, strict=True)),
        start=np.zeros_like(outputs[0]),
    )
    averaged = frame(schema, first["row"].to_numpy(), output, thresholds=DEFAULT_THRESHOLD)
    return first.with_columns(averaged.drop("row").get_columns())
