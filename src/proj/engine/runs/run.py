"""Runs: one folder each, its files, and how to find it again."""

import json
import math
import os
import platform
import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import IO, Any

import torch
import yaml
from lightning.pytorch.utilities import rank_zero_warn

from proj.engine import security
from proj.engine.class_paths import update_class_paths
from proj.errors import UserError, nearest

LAST, PREVIOUS = "last.ckpt", "previous.ckpt"
PACKAGES = ("torch", "lightning", "torchmetrics", "jsonargparse", "numpy", "polars", "scikit-learn")


@dataclass(frozen=True)
class Run:
    """A run's folder; the handle for every verb after ``fit``."""

    path: Path

    @property
    def config(self) -> dict[str, Any]:
        try:
            config = yaml.safe_load((self.path / "config.yaml").read_text())
        except (OSError, yaml.YAMLError) as error:
            raise UserError(
                f"{self.path / 'config.yaml'} is damaged: {' '.join(str(error).split())}."
            ) from error
        if not isinstance(config, dict):
            raise UserError(
                f"{self.path / 'config.yaml'} is damaged: expected an experiment, got {config!r}."
            )
        updated: dict[str, Any] = update_class_paths(config)
        return updated

    @property
    def manifest(self) -> dict[str, Any]:
        try:
            manifest: dict[str, Any] = json.loads((self.path / "manifest.json").read_text())
        except (OSError, ValueError) as error:
            raise UserError(
                f"{self.path / 'manifest.json'} cannot be read: {error}; delete the run, or mend it."
            ) from error
        if not {"start", "status"} <= manifest.keys():
            raise UserError(
                f"{self.path / 'manifest.json'} is damaged: expected a start and a status; delete the run."
            )
        return manifest

    def write_manifest(self, **changes: Any) -> None:
        old = self.manifest if (self.path / "manifest.json").exists() else {}
        atomic_write(
            self.path / "manifest.json",
            lambda file: file.write(json.dumps(old | changes, indent=2).encode()),
        )

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
        if not path.is_file():
            raise UserError(
                f"{path}: expected the metrics of the {split} split, found no file; write it with "
                f"`{verb} --run {self.path.name}`."
            )
        metrics: dict[str, dict[str, Any]] = read_json(path)
        return metrics

    def checkpoint(self, which: str) -> Path:
        """The file of ``best``, ``last`` or a checkpoint named by its path."""
        path = (
            self.path / "checkpoints" / f"{which}.ckpt"
            if which in ("best", "last")
            else Path(which)
        )
        if not path.is_file():
            there = [str(p) for p in sorted((self.path / "checkpoints").glob("*.ckpt"))]
            raise UserError(
                f"--ckpt_path: no checkpoint {path}; expected best, last or a file.{nearest(str(path), there)}"
            )
        return path


def read_json(path: Path) -> Any:
    """What a file of a run's folder holds; raises UserError if it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(
            f"{path} is damaged: {error}; `test` or `validate` writes it anew."
        ) from error


def create_run(root: Path, name: str | None) -> Run:
    """Make a run's folder: ``root/name``, or the next ``root/version_N``. Two callers never get the same one."""
    check_name(root, name)
    try:
        root.mkdir(parents=True, exist_ok=True)
        if name is not None:
            (root / name).mkdir()
            return Run(root / name)
        taken = [re.fullmatch(r"version_([0-9]+)", path.name) for path in root.glob("version_*")]
        number = max((int(match[1]) for match in taken if match), default=-1) + 1
        while True:
            try:
                (root / f"version_{number}").mkdir()
                return Run(root / f"version_{number}")
            except FileExistsError:  # somebody was faster
                number += 1
    except OSError as error:
        raise UserError(
            f"cannot make the folder of a run in {root}: {error}; set trainer.default_root_dir."
        ) from error


def check_name(root: Path, name: str | None) -> None:
    """Raise UserError unless a new run may have this name; None is the next number, which it may."""
    if name is None:
        return
    if not re.fullmatch(r"\w[\w.-]{0,99}", name, re.ASCII):
        raise UserError(
            f"--name: expected up to 100 letters, digits, dots, _ and -, not a dot first, got {name!r}."
        )
    if (root / name).exists():
        raise UserError(
            f"--name: there is a run {root / name} already; choose another name, or delete it."
        )


def run_folders(root: Path) -> list[Run]:
    """All runs in ``root``, in no order, whether their files can be read or not."""
    return [Run(path.parent) for path in root.glob("*/manifest.json")]


def list_runs(root: Path) -> list[Run]:
    """All runs in ``root``, the newest first."""
    return sorted(
        run_folders(root), key=lambda run: (run.manifest["start"], run.path.name), reverse=True
    )


def find_run(root: Path, name: str | None, which: str = "best") -> Run:
    """The run of this name or path, or without one the newest that is finished and has the checkpoint ``which``."""
    if name is not None:
        for path in (Path(name), root / name):
            if (path / "config.yaml").is_file():
                return Run(path)
        there = [run.path.name for run in run_folders(root)]
        raise UserError(
            f"no run {name} in {root}; expected a run's name or folder.{nearest(name, there)}"
        )
    every = list_runs(root)
    finished = [run for run in every if run.manifest["status"] == "finished"]
    for run in finished:
        if which not in ("best", "last") or (run.path / "checkpoints" / f"{which}.ckpt").is_file():
            return run
        rank_zero_warn(f"{run.path} is finished and has no {which}.ckpt: passed over.")
    if finished:
        raise UserError(
            f"no finished run in {root} has a {which}.ckpt; name a run with --run and --ckpt_path."
        )
    state = f"{len(every)} runs in {root}, none finished" if every else f"no run in {root} yet"
    raise UserError(
        f"{state}: expected a finished one; train first, with `fit --config FILE`, or name one with --run."
    )


def find_matching_run(root: Path, model: Any, data: Any, files: list[str]) -> Run:
    """The newest finished run with this model and data."""
    finished = [run for run in list_runs(root) if run.manifest["status"] == "finished"]
    for run in finished:
        if run.config.get("model") == model and run.config.get("data") == data:
            return run
    raise UserError(
        f"no finished run in {root} has the model and data of {' + '.join(files)} ({len(finished)} finished runs); "
        "train it first, with `fit --config`, or name a run with --run."
    )


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint's content: plain values and tensors only."""
    if not path.is_file():
        raise UserError(f"no checkpoint {path}; expected a file that `fit` wrote.")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except (
        Exception
    ) as error:  # torch.load raises many kinds for a damaged file; all mean the same to the user
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"{path} cannot be read as a checkpoint: it is cut off, damaged, or holds more than plain values and tensors "
            f"({reason[:120]})."
        ) from error
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("state_dict"), dict):
        raise UserError(f"{path}: expected a checkpoint with a state_dict, got a file without one.")
    security.check_callback_paths(checkpoint, path)
    if "config" in checkpoint:
        checkpoint["config"] = update_class_paths(checkpoint["config"])
    return checkpoint


def atomic_write(path: Path, fill: Callable[[IO[bytes]], Any], keep: str | None = None) -> None:
    """Write a file atomically: into a temporary file beside it, to the disk, then under its name.

    ``keep`` is the name that the file of before gets, if it is to be kept.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            fill(file)
            file.flush()
            os.fsync(file.fileno())
        if keep and path.exists():
            path.replace(path.with_name(keep))
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    if os.name == "posix":  # the names, too
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def metric_entries(values: dict[str, float]) -> dict[str, dict[str, Any]]:
    """Metrics as they are in ``metrics.json``; None stands for a value that is not defined or infinite: JSON has neither."""
    return {
        name: {"value": value if math.isfinite(value) else None} for name, value in values.items()
    }


def write_metrics(path: Path, metrics: dict[str, dict[str, Any]]) -> None:
    """``{"f1": {"value": 0.97, …}, …}``, each with its interval where there is one."""
    atomic_write(path, lambda file: file.write(json.dumps(metrics, indent=2).encode()))


@contextmanager
def lock_run(run: Run) -> Iterator[None]:
    """Nobody else trains into this run meanwhile. The lock goes with the process, however it ends."""
    if os.name != "posix":
        yield
        return
    import fcntl

    folder = os.open(run.path, os.O_RDONLY)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"{run.path} is being trained by another process: expected it to be stopped; wait for it."
            ) from error
        yield
    finally:
        os.close(folder)


@contextmanager
def record_manifest(
    run: Run,
    command: list[str],
    seed: int,
    fingerprint: str,
    device: torch.device,
    again: bool = False,
) -> Iterator[None]:
    """Keep the manifest while the run trains: what it is at the start, how it ended at the end.

    ``again`` is for a run that is gone on with: it keeps the time of its start, and each further one is noted.
    """
    begun = (
        {"resumed": [*run.manifest.get("resumed", []), _now()]}
        if again
        else {"start": _now(), "command": command}
    )
    run.write_manifest(
        **begun,
        seed=seed,
        status="running",
        end=None,
        packages={name: metadata.version(name) for name in PACKAGES},
        git=git_state(),
        data=fingerprint,
        hardware=_hardware(device),
    )
    try:
        yield
    except BaseException as error:
        status = "stopped" if isinstance(error, KeyboardInterrupt | SystemExit) else "failed"
        try:
            run.write_manifest(status=status, end=_now())
        except OSError as full:  # the first error says more
            rank_zero_warn(
                f"the manifest of {run.path} cannot be written: {full}; it still says that the run is training."
            )
        raise
    run.write_manifest(status="finished", end=_now())


def git_state() -> dict[str, Any] | None:
    """Commit of the working directory, and whether it has changes; None outside a repository or without git."""

    def git(*args: str) -> str:
        return subprocess.run(
            ["git", *args], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.CalledProcessError):
        return None


def _hardware(device: torch.device) -> dict[str, Any]:
    on_cuda = device.type == "cuda"  # to ask for a name takes memory on the GPU
    gpus = (
        [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if on_cuda else []
    )
    return {
        "machine": platform.platform(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": gpus,
    }


def _now() -> str:
    return datetime.now(UTC).isoformat()
