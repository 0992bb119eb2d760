"""Find runs by name, by config or by age, and skip those that are damaged."""

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from proj.engine import console
from proj.engine.runs.contents import LOST, Manifest, flatten_config, parse_config, parse_manifest
from proj.engine.runs.files import is_present
from proj.engine.runs.index import FileIndex, run_names
from proj.engine.runs.run import Run
from proj.errors import UserError, nearest

# Reasons for skipped runs that an error message repeats.
MAX_SKIPPED = 3


def list_runs(root: Path, skipped: list[str] | None = None) -> list[Run]:
    """Return the runs in ``root`` that `fit` made, the newest first.

    A message for each run whose manifest is damaged is added to ``skipped``.
    """
    return [Run(root / name) for name, _ in _newest_first(root, [] if skipped is None else skipped)]


def _names(root: Path) -> list[str]:
    return run_names(root) if root.is_dir() else []


def _newest_first(root: Path, skipped: list[str]) -> list[tuple[str, Manifest]]:
    """Return the names of the trained runs in ``root`` with start and status, the newest first."""
    names = _names(root)
    outcomes = manifest_index(root).read_all(names)
    skipped += [error for _, error in outcomes.values() if error is not None]
    skipped += without_manifest(root, set(names) - outcomes.keys()).values()
    readable = [
        (name, facts)
        for name, (facts, error) in outcomes.items()
        if error is None and not {"baseline", "ensemble"} & facts.keys()
    ]
    return sorted(readable, key=lambda run: (run[1]["start"], run[0]), reverse=True)


def without_manifest(root: Path, names: Iterable[str]) -> dict[str, str]:
    """Return a message for each folder that has a config but no manifest; others are no runs."""
    return {
        name: f"{root / name / 'manifest.json'} cannot be read: there is none; {LOST}."
        for name in names
        if is_present(root / name / "config.yaml")
    }


def manifest_index(root: Path) -> FileIndex:
    """Return the index of the runs' start, end and status, and what is no trained run.

    A baseline has the name of its learner, an ensemble the number of its members.
    """

    def parse(content: bytes, path: Path) -> dict[str, Any]:
        manifest = parse_manifest(content, path)
        facts: dict[str, Any] = {key: manifest.get(key) for key in ("start", "end", "status")}
        if "baseline" in manifest:
            facts["baseline"] = manifest["baseline"]["learner"]
        if "ensemble" in manifest:
            facts["ensemble"] = len(manifest["ensemble"]["members"])
        return facts

    return FileIndex(root, "manifest.json", parse, LOST)


def find_run(
    root: Path,
    name: str | None,
    checkpoint: str = "best",
    read: Callable[[Run], Any] = lambda run: run.config,
) -> Run:
    """Return the run with this name or path.

    Without a name, return the newest finished run that has the ``checkpoint``, no baseline and no
    ensemble. Runs for which ``read`` raises UserError, because a file is damaged, are skipped with
    a warning.
    """
    if name is not None:
        return _named_run(root, name)
    skipped: list[str] = []
    runs = _newest_first(root, skipped)
    finished = [Run(root / name) for name, manifest in runs if manifest["status"] == "finished"]
    for run in finished:
        file = run.path / "checkpoints" / f"{checkpoint}.ckpt"
        try:
            if checkpoint in ("best", "last") and not file.is_file():
                raise UserError(f"{run.path} is finished but has no {checkpoint}.ckpt: skipped.")
            read(run)
        except UserError as error:
            skipped.append(str(error))
        else:
            warn_of_skipped(skipped)
            return run
    if finished:
        raise UserError(
            f"--run: expected a finished run in {root} with a {checkpoint}.ckpt, got none; select "
            f"a run and a checkpoint with --run and --ckpt_path.{and_skipped(skipped)}"
        )
    count = f"{len(runs)} run{'s' if len(runs) > 1 else ''} in {root}, none finished"
    raise UserError(
        f"{count if runs else f'no run in {root} yet'}: expected a finished one; train first, with "
        f"`fit --config FILE`, or select a run with --run.{and_skipped(skipped)}"
    )


def baseline_runs(root: Path, skipped: list[str]) -> list[Run]:
    """Return the finished runs in ``root`` that `baseline` wrote, the newest first.

    A message for each run whose manifest is damaged is added to ``skipped``.
    """
    outcomes = manifest_index(root).read_all(_names(root))
    skipped += [error for _, error in outcomes.values() if error is not None]
    found = [
        (facts["start"], name)
        for name, (facts, error) in outcomes.items()
        if error is None and "baseline" in facts and facts["status"] == "finished"
    ]
    return [Run(root / name) for _, name in sorted(found, reverse=True)]


def warn_of_skipped(skipped: list[str]) -> None:
    """Print a line for each run that is skipped, in the first process of several only."""
    ranks = (os.environ.get(name, "0") for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"))
    for reason in skipped if all(rank == "0" for rank in ranks) else []:
        console.warn(reason if reason.endswith("skipped.") else f"run skipped: {reason}")


def _named_run(root: Path, name: str) -> Run:
    for path in (Path(name), root / name):
        if is_present(path / "config.yaml"):
            return Run(path)
    names = [name for name in _names(root) if is_present(root / name / "manifest.json")]
    raise UserError(
        f"no run {name} in {root}; expected a run's name or folder.{nearest(name, names)}"
    )


def and_skipped(skipped: list[str]) -> str:
    """Return the first reasons why runs were skipped, as the end of an error message."""
    return "".join(f" {reason}" for reason in skipped[:MAX_SKIPPED])


def find_matching_run(root: Path, model: Any, data: Any, files: list[str]) -> Run:
    """Return the newest finished run with this model and data config.

    ``files`` are the config files that they come from, for the message. Runs with a damaged
    manifest or config are skipped with a warning.
    """
    skipped: list[str] = []
    runs = _newest_first(root, skipped)
    finished = [name for name, manifest in runs if manifest["status"] == "finished"]
    configs, wanted = config_index(root).read_all(finished, True), digest([model, data])
    skipped += [error for _, error in configs.values() if error is not None]
    for name in finished:
        facts, error = configs[name]
        if error is None and facts["digest"] == wanted:
            warn_of_skipped(skipped)
            return Run(root / name)
    raise UserError(
        f"--config: expected a finished run in {root} with the model and data of "
        f"{' + '.join(files)}, got none among {len(finished)} finished runs; train it "
        f"with `fit --config`, or select a run with --run.{and_skipped(skipped)}"
    )


def config_index(root: Path) -> FileIndex:
    """Return the index of the runs' settings by dotted key, with a digest of model and data."""

    def parse(content: bytes, path: Path) -> dict[str, Any]:
        config = parse_config(content, path)
        return {
            "settings": flatten_config(config),
            "digest": digest([config.get("model"), config.get("data")]),
        }

    return FileIndex(root, "config.yaml", parse, LOST)


def digest(values: Any) -> str:
    """Return a hash of plain values that is the same for equal values, as 1 and 1.0 are."""

    def canonical(value: Any) -> Any:
        if isinstance(value, dict):
            return {str(name): canonical(inner) for name, inner in value.items()}
        if isinstance(value, list | tuple):
            return [canonical(inner) for inner in value]
        return float(value) if isinstance(value, int | float) else value

    text = json.dumps(canonical(values), sort_keys=True, default=str)
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()
