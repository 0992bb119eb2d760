"""Run folders: create, find and lock them, and read and write their files."""

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

from proj.engine.class_paths import update_class_paths
from proj.engine.secrets import split_words
from proj.engine.write_paths import check_callback_paths
from proj.errors import UserError, nearest

LAST, PREVIOUS = "last.ckpt", "previous.ckpt"

# Packages whose versions the manifest records.
PACKAGES = ("torch", "lightning", "torchmetrics", "jsonargparse", "numpy", "polars", "scikit-learn")


@dataclass(frozen=True)
class Run:
    """The folder of a run, and the content of its files."""

    path: Path

    @property
    def config(self) -> dict[str, Any]:
        """The experiment, with the class paths of older versions replaced by today's."""
        path = self.path / "config.yaml"
        try:
            config = yaml.safe_load(path.read_text())
        except (OSError, yaml.YAMLError) as error:
            reason = " ".join(str(error).split())
            raise UserError(
                f"{path} is damaged: {reason}; restore it or delete the run."
            ) from error
        if not isinstance(config, dict):
            raise UserError(
                f"{path} is damaged: expected an experiment, got {config!r}; restore it or delete "
                "the run."
            )
        updated: dict[str, Any] = update_class_paths(config)
        return updated

    @property
    def manifest(self) -> dict[str, Any]:
        """Command, seed, versions, commit, data fingerprint, hardware, start, end and status."""
        path = self.path / "manifest.json"
        try:
            manifest: dict[str, Any] = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise UserError(
                f"{path} cannot be read: {error}; restore it or delete the run."
            ) from error
        if not {"start", "status"} <= manifest.keys():
            raise UserError(
                f"{path} is damaged: expected a start and a status; restore it or delete the run."
            )
        return manifest

    def write_manifest(self, **changes: Any) -> None:
        """Add entries to the manifest or replace them."""
        path = self.path / "manifest.json"
        old = self.manifest if path.exists() else {}
        atomic_write(path, lambda file: file.write(json.dumps(old | changes, indent=2).encode()))

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

    def checkpoint(self, name: str) -> Path:
        """Return the file of the checkpoint ``best`` or ``last``, or a file by its path."""
        folder = self.path / "checkpoints"
        path = folder / f"{name}.ckpt" if name in ("best", "last") else Path(name)
        if not path.is_file():
            checkpoints = [str(file) for file in sorted(folder.glob("*.ckpt"))]
            raise UserError(
                f"--ckpt_path: no checkpoint {path}; expected best, last or a file."
                f"{nearest(str(path), checkpoints)}"
            )
        return path


# Creating and finding runs


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


def run_folders(root: Path) -> list[Run]:
    """Return all runs in ``root``, in no order, whether or not their files can be read."""
    return [Run(path.parent) for path in root.glob("*/manifest.json")]


def list_runs(root: Path) -> list[Run]:
    """Return all runs in ``root``, the newest first."""
    return sorted(
        run_folders(root), key=lambda run: (run.manifest["start"], run.path.name), reverse=True
    )


def find_run(root: Path, name: str | None, checkpoint: str = "best") -> Run:
    """Return the run with this name or path.

    Without a name, return the newest finished run that has the ``checkpoint``.
    """
    if name is not None:
        return _named_run(root, name)
    runs = list_runs(root)
    finished = [run for run in runs if run.manifest["status"] == "finished"]
    for run in finished:
        file = run.path / "checkpoints" / f"{checkpoint}.ckpt"
        if checkpoint not in ("best", "last") or file.is_file():
            return run
        rank_zero_warn(f"{run.path} is finished but has no {checkpoint}.ckpt: skipped.")
    if finished:
        raise UserError(
            f"--run: expected a finished run in {root} with a {checkpoint}.ckpt, got none; select "
            "a run and a checkpoint with --run and --ckpt_path."
        )
    count = f"{len(runs)} run{'s' if len(runs) > 1 else ''} in {root}, none finished"
    raise UserError(
        f"{count if runs else f'no run in {root} yet'}: expected a finished one; train first, with "
        "`fit --config FILE`, or select a run with --run."
    )


def _named_run(root: Path, name: str) -> Run:
    for path in (Path(name), root / name):
        if (path / "config.yaml").is_file():
            return Run(path)
    names = [run.path.name for run in run_folders(root)]
    raise UserError(
        f"no run {name} in {root}; expected a run's name or folder.{nearest(name, names)}"
    )


def find_matching_run(root: Path, model: Any, data: Any, files: list[str]) -> Run:
    """Return the newest finished run with this model and data config.

    ``files`` are the config files that they come from, for the message.
    """
    finished = [run for run in list_runs(root) if run.manifest["status"] == "finished"]
    for run in finished:
        if run.config.get("model") == model and run.config.get("data") == data:
            return run
    raise UserError(
        f"--config: expected a finished run in {root} with the model and data of "
        f"{' + '.join(files)}, got none among {len(finished)} finished runs; train it "
        "with `fit --config`, or select a run with --run."
    )


# Files


def atomic_write(path: Path, fill: Callable[[IO[bytes]], Any], backup: str | None = None) -> None:
    """Write a file completely or not at all.

    The content goes into a temporary file beside it, is flushed to the disk, and is renamed.

    Args:
        path: the file. Its folder is created.
        fill: writes the content.
        backup: new name of an existing file; None replaces the file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        # A file of this name may be left by a killed process, or be a link to a file elsewhere.
        temporary.unlink(missing_ok=True)
        with temporary.open("xb") as file:
            fill(file)
            file.flush()
            os.fsync(file.fileno())
        if backup and path.exists():
            path.replace(path.with_name(backup))
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    # The new names are durable only after the folder is flushed, too.
    if os.name == "posix":
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def read_json(path: Path) -> Any:
    """Return the content of a JSON file in a run's folder; raise UserError if it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(
            f"{path} is damaged: {error}; write it again with `test` or `validate`."
        ) from error


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Return a checkpoint of plain values and tensors.

    The class paths of older versions in its config are replaced by today's. Raises UserError if the
    file is missing, damaged, or holds other objects.
    """
    if not path.is_file():
        raise UserError(f"no checkpoint {path}; expected a file that `fit` wrote.")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises many kinds for a damaged file.
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"{path} cannot be read as a checkpoint: it is cut off, damaged, or holds more than "
            f"plain values and tensors ({reason[:120]}); use another checkpoint."
        ) from error
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("state_dict"), dict):
        raise UserError(
            f"{path}: expected a checkpoint with a state_dict, got a file without one; use another "
            "file."
        )
    check_callback_paths(checkpoint, path)
    if "config" in checkpoint:
        checkpoint["config"] = update_class_paths(checkpoint["config"])
    return checkpoint


def metric_entries(values: dict[str, float]) -> dict[str, dict[str, Any]]:
    """Return metrics in the form of ``metrics.json``.

    None stands for a value that is undefined or infinite, because JSON has neither.
    """
    return {
        name: {"value": value if math.isfinite(value) else None} for name, value in values.items()
    }


def write_metrics(path: Path, metrics: dict[str, dict[str, Any]]) -> None:
    """Write ``metrics.json``: ``{"f1": {"value": 0.97, "low": 0.95, "high": 0.98, …}, …}``."""
    atomic_write(path, lambda file: file.write(json.dumps(metrics, indent=2).encode()))


def flatten_config(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the leaves of a config by dotted key, without ``class_path`` and ``init_args``.

    >>> flatten_config({"model": {"class_path": "M", "init_args": {"lr": 0.1}}})
    {'model': 'M', 'model.lr': 0.1}
    """
    leaves: dict[str, Any] = {}
    for name, value in config.items():
        key = prefix if name in ("class_path", "init_args") else f"{prefix}.{name}".strip(".")
        if isinstance(value, dict):
            leaves |= flatten_config(value, key)
        elif value is not None:
            leaves[key] = value if isinstance(value, bool | int | float | str) else str(value)
    return leaves


# Training


@contextmanager
def lock_run(run: Run) -> Iterator[None]:
    """Prevent other processes from training into the run's folder.

    The system releases the lock when the process ends, however it ends. Raises UserError if another
    process holds it. Windows has no such lock.
    """
    if os.name != "posix":
        yield
        return
    import fcntl  # It exists on POSIX systems only.

    folder = os.open(run.path, os.O_RDONLY)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"{run.path} is being trained by another process: expected none; wait for it, or "
                "stop it."
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
    resumed: bool = False,
) -> Iterator[None]:
    """Write the manifest at the start of training, and its status and time at the end.

    For a resumed run, command and start time stay, and the time of the resume is added.
    """
    if resumed:
        start: dict[str, Any] = {"resumed": [*run.manifest.get("resumed", []), _now()]}
    else:
        start = {"start": _now(), "command": split_words(command)[0]}
    run.write_manifest(
        **start,
        seed=seed,
        status="running",
        end=None,
        packages={name: metadata.version(name) for name in PACKAGES},
        git=_git_state(),
        data=fingerprint,
        hardware=_hardware(device),
    )
    try:
        yield
    except BaseException as error:
        stopped = isinstance(error, KeyboardInterrupt | SystemExit)
        try:
            run.write_manifest(status="stopped" if stopped else "failed", end=_now())
        except OSError as write_error:  # Raise the first error, because it is the cause.
            rank_zero_warn(
                f"the manifest of {run.path} cannot be written: {write_error}; its status is still "
                "running."
            )
        raise
    run.write_manifest(status="finished", end=_now())


def _git_state() -> dict[str, Any] | None:
    """Return commit and uncommitted changes of the working directory.

    None outside a repository or without git.
    """

    def git(*args: str) -> str:
        done = subprocess.run(["git", *args], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.CalledProcessError):
        return None


def _hardware(device: torch.device) -> dict[str, Any]:
    gpus = []
    # The query reserves memory on the GPU, so it is made only for CUDA.
    if device.type == "cuda":
        gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "machine": platform.platform(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": gpus,
    }


def _now() -> str:
    return datetime.now(UTC).isoformat()
