"""Run folders: create, find and lock them, and read and write their files."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from proj.engine.runs.contents import (
    COMPUTED,
    LOST,
    BaselineFacts,
    EnsembleFacts,
    Manifest,
    parse_config,
    parse_manifest,
    parse_metrics,
)
from proj.engine.runs.files import is_present, read_bytes, write_json
from proj.errors import UserError, nearest

LAST, PREVIOUS = "last.ckpt", "previous.ckpt"


@dataclass(frozen=True)
class Run:
    """The folder of a run, and the content of its files."""

    path: Path

    @property
    def config(self) -> dict[str, Any]:
        """The experiment, with the class paths of older versions replaced by today's."""
        path = self.path / "config.yaml"
        return parse_config(read_bytes(path, LOST)[0], path)

    @property
    def manifest(self) -> Manifest:
        """Command, seed, versions, commit, data fingerprint, hardware, start, end and status."""
        path = self.path / "manifest.json"
        return parse_manifest(read_bytes(path, LOST)[0], path)

    @property
    def baseline(self) -> BaselineFacts | None:
        """The standard learner in a run that `baseline` wrote; None in a trained run."""
        return self.manifest.get("baseline") if is_present(self.path / "manifest.json") else None

    @property
    def ensemble(self) -> EnsembleFacts | None:
        """The members of an ensemble; None in another run."""
        return self.manifest.get("ensemble") if is_present(self.path / "manifest.json") else None

    def require_trained(self) -> None:
        """Raise UserError for a baseline and for an ensemble: they have no checkpoint."""
        if self.ensemble:
            raise UserError(
                f"{self.path}: expected a run that `fit` trained, got an ensemble, which has no "
                "checkpoint of its own; name one of its members. `test`, `validate`, `predict`, "
                "`proj.load`, `runs`, `compare` and `report` take ensembles."
            )
        if facts := self.baseline:
            raise UserError(
                f"{self.path}: expected a run that `fit` trained, got a baseline "
                f"({facts['title']}), which is stored without its model; choose another run. "
                "`runs`, `compare` and `report` read baselines."
            )

    def write_manifest(self, **changes: Any) -> None:
        """Add entries to the manifest or replace them."""
        path = self.path / "manifest.json"
        write_json(path, {**self.manifest, **changes} if path.exists() else changes)

    def metrics(self, split: str) -> dict[str, dict[str, Any]]:
        """Return the metrics of the split ``val`` or ``test``, as ``metrics.json`` holds them.

        Returns:
            By metric name the ``value``, None if it is not defined, and where they are known the
            limits ``low`` and ``high`` of its 95 % confidence interval and the ``support``.

        Raises:
            UserError: the verb that computes them has not been run, or the file is damaged.
        """
        verb = {"val": "validate", "test": "test"}.get(split)
        if verb is None:
            raise UserError(f"metrics: expected the split val or test, got {split!r}; change it.")
        path = self.path / verb / "metrics.json"
        if not is_present(path):
            raise UserError(
                f"{path}: expected the metrics of the {split} split, found no file; write it with "
                f"`{verb} --run {self.path.name}`."
            )
        return parse_metrics(read_bytes(path, COMPUTED)[0], path)

    def checkpoint(self, name: str) -> Path:
        """Return the file of the checkpoint ``best`` or ``last``, or a file by its path."""
        folder = self.path / "checkpoints"
        path = folder / f"{name}.ckpt" if name in ("best", "last") else Path(name)
        if not path.is_file():
            self.require_trained()
            checkpoints = [str(file) for file in sorted(folder.glob("*.ckpt"))]
            raise UserError(
                f"--ckpt_path: no checkpoint {path}; expected best, last or a file."
                f"{nearest(str(path), checkpoints)}"
            )
        return path


# Creating


def create_run(root: Path, name: str | None) -> Run:
    """Create the folder ``root/name``, or the next ``root/version_N``.

    Two processes never get the same folder.
    """
    check_name(root, name)
    try:
        root.mkdir(parents=True, exist_ok=True)
        if name is not None:
            (root / name).mkdir()
            return Run(root / name)
        versions = [re.fullmatch(r"version_([0-9]+)", path.name) for path in root.glob("version_*")]
        number = max((int(match[1]) for match in versions if match), default=-1) + 1
        while True:
            try:
                (root / f"version_{number}").mkdir()
                return Run(root / f"version_{number}")
            except FileExistsError:  # Another process was faster.
                number += 1
    except OSError as error:
        raise UserError(
            f"cannot create the folder of a run in {root}: {error}; set trainer.default_root_dir."
        ) from error


def check_name(root: Path, name: str | None) -> None:
    """Raise UserError unless a new run may have this name; None means the next number."""
    if name is None:
        return
    if not re.fullmatch(r"\w[\w.-]{0,99}", name, re.ASCII):
        raise UserError(
            "--name: expected up to 100 letters, digits, dots, _ and -, starting with a letter, a "
            f"digit or _, got {name!r}; choose another name."
        )
    if (root / name).exists():
        raise UserError(
            f"--name: expected a new name, got {root / name}, which exists; choose another name, "
            "or delete that run."
        )
