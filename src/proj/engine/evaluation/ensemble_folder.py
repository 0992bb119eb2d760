"""Write an ensemble as a run folder, with a folder for each member."""

from collections.abc import Sequence
from typing import Any, Literal

import torch

from proj.engine.evaluation.prediction_set import average_of
from proj.engine.evaluation.results import read_schema
from proj.engine.runs.contents import EnsembleFacts, MemberFacts
from proj.engine.runs.ensemble import copy_member, member_run
from proj.engine.runs.files import atomic_write, write_json
from proj.engine.runs.locks import lock_run
from proj.engine.runs.manifest import record_manifest
from proj.engine.runs.run import Run
from proj.engine.yaml_text import yaml_document
from proj.errors import UserError
from proj.schema import Schema


def write_ensemble(
    run: Run,
    kind: Literal["runs", "folds"],
    sources: Sequence[Run],
    weights: Sequence[float],
    command: list[str],
) -> None:
    """Write an ensemble into its new folder; sources with weight 0 are left out.

    Args:
        run: the run, whose folder is empty.
        kind: what the members are; see ``EnsembleFacts``.
        sources: runs of one task.
        weights: a weight for each, with the sum 1.
        command: the command line, for the manifest.
    """
    chosen = [(source, w) for source, w in zip(sources, weights, strict=True) if w > 0]
    members = [_member_facts(source, weight) for source, weight in chosen]
    facts: EnsembleFacts = {"kind": kind, "members": members}
    first = chosen[0][0]
    config = _config(first, members)
    if kind == "folds":
        config["data"]["init_args"]["fold"] = None
    atomic_write(run.path / "config.yaml", lambda file: file.write(yaml_document(config).encode()))
    write_json(run.path / "schema.json", read_schema(first).to_dict())
    fingerprint, cpu = first.manifest.get("data", ""), torch.device("cpu")
    seed = config["seed_everything"]
    with lock_run(run), record_manifest(run, command, seed, fingerprint, cpu, ensemble=facts):
        for i, (source, _) in enumerate(chosen):
            copy_member(source, member_run(run, i))


def _member_facts(source: Run, weight: float) -> MemberFacts:
    facts: MemberFacts = {"name": source.path.name, "weight": weight}
    return {**facts, "baseline": baseline["title"]} if (baseline := source.baseline) else facts


def _config(first: Run, members: Sequence[MemberFacts]) -> dict[str, Any]:
    """Return the config of an ensemble: members, and the data of the first one."""
    recorded = first.config
    return {
        "ensemble": {member["name"]: member["weight"] for member in members},
        "seed_everything": recorded.get("seed_everything"),
        "trainer": {},
        "model": {"class_path": "Ensemble"},
        "data": recorded.get("data"),
        "average": average_of(first),
    }


def check_same_outputs(names: Sequence[str], schemas: Sequence[Schema]) -> None:
    """Raise UserError unless all runs have one task with the same classes, labels or targets."""
    first = schemas[0]
    for name, other in zip(names[1:], schemas[1:], strict=True):
        if _outputs(other) != _outputs(first):
            raise UserError(
                f"ensemble: expected runs of one task with the same classes and targets, got "
                f"{names[0]} ({_shown(first)}) and {name} ({_shown(other)}); leave one of them out."
            )


def _outputs(schema: Schema) -> tuple[Any, ...]:
    return schema.task, tuple(schema.classes), tuple(schema.target_names)


def _shown(schema: Schema) -> str:
    names = schema.class_names or schema.target_names
    return f"{schema.task}: {', '.join(names[:5])}"
