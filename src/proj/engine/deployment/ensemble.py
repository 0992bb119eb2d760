"""Export an ensemble: all members in one graph, which answers the weighted mean."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from proj.engine.console import plural
from proj.engine.deployment.graph import AnswerGraph
from proj.engine.deployment.proof import TestRows, answer_columns
from proj.engine.deployment.spec import comparison, describe_outputs
from proj.engine.deployment.trained import (
    RunInputs,
    Trained,
    check_precision,
    load_trained,
    read_data,
    split_rows,
)
from proj.engine.evaluation.ensemble import NamedEnsemble, check_rows, named_ensemble, run_member
from proj.engine.evaluation.restore import RestoredRun, restore
from proj.engine.evaluation.results import check_tested, read_schema
from proj.engine.runs.ensemble import Member, average_tables, members_of, require_models
from proj.engine.runs.run import Run
from proj.errors import UserError
from proj.models.base import Model
from proj.schema import DEFAULT_THRESHOLD, Schema


class Source(NamedTuple):
    """What a command line names: a run, or the members of an ensemble.

    Attributes:
        restored: the run, or all members.
        ensemble: the ensemble; None for a run.
    """

    restored: list[RestoredRun]
    ensemble: NamedEnsemble | None

    @property
    def run(self) -> Run:
        """The run, or the ensemble."""
        return self.ensemble.run if self.ensemble else self.restored[0].run


class EnsembleGraph(nn.Module):
    """The weighted mean of what several graphs answer.

    Args:
        graphs: the members' graphs in evaluation mode.
        positions: for each graph, which of the inputs it takes.
        weights: the members' weights, with the sum 1.
    """

    def __init__(
        self,
        graphs: Sequence[nn.Module],
        positions: Sequence[Sequence[int]],
        weights: Sequence[float],
    ) -> None:
        super().__init__()
        self.graphs = nn.ModuleList(graphs)
        self.positions, self.weights = positions, weights

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return probabilities or numbers, of the shape that the members answer, float64."""
        members = zip(self.graphs, self.positions, self.weights, strict=True)
        parts = [graph(*(inputs[i] for i in at)).double() * w for graph, at, w in members]
        return torch.stack(parts).sum(0)


def restore_source(args: list[str]) -> Source:
    """Restore the run, or the members of the ensemble, that a command line names.

    Raises:
        UserError: if it cannot be exported.
    """
    ensemble = named_ensemble("export", args)
    if ensemble is None:
        return Source([restore("export", args)], None)
    run, members = ensemble.run, members_of(ensemble.run)
    require_models(run, members)
    if not _is_of_folds(ensemble):
        check_tested(run, "metrics.json", "predictions.parquet")
    restored = [
        restore("export", ["--run", str(member.run.path), *ensemble.flags], False)
        for member in members
    ]
    return Source(restored, ensemble)


def _is_of_folds(ensemble: NamedEnsemble) -> bool:
    facts = ensemble.run.ensemble
    assert facts is not None
    return facts["kind"] == "folds"


def load_source(source: Source, verb: str) -> Trained:
    """Load the weights of a run or of an ensemble, and its test rows with its answers.

    Raises:
        UserError: if a run has not been tested, or members read different columns.
    """
    if source.ensemble is None:
        return load_trained(source.restored[0], verb)
    run, restored = source.ensemble.run, source.restored
    schema, members = read_schema(run), members_of(run)
    models: list[Model] = [one.cli.model for one in restored]
    weights = [member.weight for member in members]
    averaged = average_tables(schema, _tables(verb, schema, members, restored), weights)
    rows, answers = averaged["row"].to_numpy(), averaged.select(answer_columns(schema))
    read = [read_data(one.cli, rows, read_schema(one.run), verb) for one in restored]
    inputs, graph = _join(models, read, weights)
    _check_columns(verb, members, read)
    outputs = {**describe_outputs(models[0]), "thresholds": list(DEFAULT_THRESHOLD)}
    return Trained(
        run,
        graph.eval(),
        inputs.example,
        inputs.section,
        outputs,
        TestRows(inputs.raw, rows, answers, comparison(schema, answers.columns)),
        f"Ensemble of {plural(len(members), 'net')}",
        schema,
        {} if _is_of_folds(source.ensemble) else split_rows(restored[0].cli),
    )


def _tables(
    verb: str, schema: Schema, members: Sequence[Member], restored: Sequence[RestoredRun]
) -> list[Any]:
    """Return what each member predicts for the test rows, which all must share."""
    tables: list[Any] = []
    for member, one in zip(members, restored, strict=True):
        check_precision(one.cli, one.run)
        tables.append(run_member("test", one, None))
        check_rows(verb, schema, members[0].name, tables[0], member.name, tables[-1])
    return tables


def _join(
    models: Sequence[Model], read: Sequence[RunInputs], weights: Sequence[float]
) -> tuple[RunInputs, EnsembleGraph]:
    """Return the inputs of an ensemble, and its graph.

    Members that encode rows alike share their inputs. Those of the others end with a number, as in
    ``numeric_1``, and the section has a list ``encodings`` of their sections.
    """
    sections: list[dict[str, Any]] = []
    example: dict[str, Tensor] = {}
    positions, graphs = [], []
    for model, inputs in zip(models, read, strict=True):
        if inputs.section not in sections:
            sections.append(inputs.section)
        number = sections.index(inputs.section)
        named = {f"{n}_{number}" if number else n: x for n, x in inputs.example.items()}
        example |= {name: x for name, x in named.items() if name not in example}
        positions.append([list(example).index(name) for name in named])
        graphs.append(AnswerGraph(model, list(inputs.example)))
    section = {**sections[0], "encodings": sections[1:]} if len(sections) > 1 else sections[0]
    return RunInputs(read[0].raw, example, section), EnsembleGraph(graphs, positions, weights)


def _check_columns(verb: str, members: Sequence[Member], read: Sequence[RunInputs]) -> None:
    """Raise UserError unless all members read the same columns."""
    columns = [{source["name"] for source in one.section.get("sources", [])} for one in read]
    for member, own in zip(members, columns, strict=True):
        if differing := sorted(own ^ columns[0]):
            raise UserError(
                f"{verb}: expected members that read the same columns, got column {differing[0]} "
                f"in only one of {members[0].name} and {member.name}; state it in data.columns of "
                "both, or make an ensemble without one of them."
            )
