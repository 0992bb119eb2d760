"""What the result of a run depends on beside its config: versions, code, hardware, flags."""

import functools
import os
import platform
import subprocess
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

# Packages whose versions a reader of the manifest looks for first.
PACKAGES = ("torch", "lightning", "torchmetrics", "jsonargparse", "numpy", "polars", "scikit-learn")

# Beside its commit, the code of a run is known by the changes of its Python files.
CODE_FILES = "*.py"
MAX_DIFF_BYTES = 5_000_000


def environment(device: torch.device) -> dict[str, Any]:
    """Return the entries of a manifest about the environment of this process."""
    return {
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in PACKAGES},
        "distributions": distributions(),
        "git": git_state(),
        "hardware": _hardware(device),
        "flags": {
            "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
            "cudnn_benchmark": torch.backends.cudnn.benchmark,
            "cudnn_deterministic": torch.backends.cudnn.deterministic,
            "float32_matmul_precision": torch.get_float32_matmul_precision(),
        },
    }


@functools.cache
def distributions() -> dict[str, str]:
    """Return the versions of all installed distributions by name."""
    # What an interrupted or present installation leaves has no name or no version.
    installed = {
        name: d.version or "unknown"
        for d in metadata.distributions()
        if (name := d.metadata["Name"])
    }
    return dict(sorted(installed.items(), key=lambda item: item[0].lower()))


def git_state() -> dict[str, Any] | None:
    """Return commit and uncommitted changes of the working directory.

    None outside a repository or without git.
    """
    try:
        return {
            "commit": _git("rev-parse", "HEAD").strip(),
            "dirty": bool(_git("status", "--porcelain").strip()),
        }
    except (OSError, subprocess.CalledProcessError):
        return None


def uncommitted_code() -> str:
    """Return the changes of Python files since the last commit as a patch, new files included.

    Configs are left out: a run has its own, and a file may hold a password. Empty outside a
    repository, without a change, or for changes of more than ``MAX_DIFF_BYTES``.
    """
    try:
        top = ("-C", _git("rev-parse", "--show-toplevel").rstrip("\n"))
        patch = _git(*top, "diff", "HEAD", "--", CODE_FILES)
        others = ("ls-files", "--others", "--exclude-standard", "-z", "--", CODE_FILES)
        for name in filter(None, _git(*top, *others).split("\0")):
            # `git diff` of a file with nothing ends with 1, as it differs.
            patch += _git(*top, "diff", "--no-index", "--", os.devnull, name, codes=(0, 1))
    except (OSError, subprocess.CalledProcessError):
        return ""
    return patch if len(patch.encode()) <= MAX_DIFF_BYTES else ""


def _git(*args: str, codes: tuple[int, ...] = (0,)) -> str:
    done = subprocess.run(["git", *args], capture_output=True, check=False)
    if done.returncode not in codes:
        raise subprocess.CalledProcessError(done.returncode, ["git", *args])
    return done.stdout.decode(errors="replace")


def _hardware(device: torch.device) -> dict[str, Any]:
    gpus = []
    # The query reserves memory on the GPU, so it is made only for CUDA.
    if device.type == "cuda":
        gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "machine": platform.platform(),
        "cpu": _cpu_model(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": gpus,
    }


def _cpu_model() -> str:
    """Return the name of the processor, which decides the instructions that torch uses."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def environment_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    """Yield what differs between the environments of two manifests, as ``name: old -> new``.

    What one of them does not record is left out, as older manifests record less.
    """
    for section in ("python", "packages", "distributions", "git", "hardware", "flags"):
        before, after = old.get(section), new.get(section)
        if not (isinstance(before, Mapping) and isinstance(after, Mapping)):
            if before and after and before != after:
                yield f"{section}: {before} -> {after}"
            continue
        for name in dict.fromkeys([*before, *after]):
            is_listed = section == "distributions" and name in PACKAGES
            values = before.get(name), after.get(name)
            both = name in before and name in after
            if values[0] != values[1] and not is_listed and (both or section == "distributions"):
                shown = [value if value is not None else "not installed" for value in values]
                yield f"{name}: {shown[0]} -> {shown[1]}"
