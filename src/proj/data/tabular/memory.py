"""Bounds on the memory that data may take, checked before they are read."""

import os
import sys
from pathlib import Path

from proj.errors import UserError

# The environment variable that replaces the measured limit, in GB.
VARIABLE = f"{__name__.partition('.')[0].upper()}_MEMORY_GB"

# The limit and the use of a control group, by the name of its controller; version 2 has no name.
CGROUP_FILES = {
    "": ("memory.max", "memory.current"),
    "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes"),
}


def requested_limit() -> int | None:
    """Return the bytes that the user allows in the environment; None if there is no such limit."""
    if not (text := os.environ.get(VARIABLE)):
        return None
    try:
        limit = float(text)
    except ValueError:
        limit = 0
    if not 0 < limit < 1e9:
        raise UserError(f"{VARIABLE}: expected the GB of memory that data may take, got {text!r}.")
    return int(limit * 1e9)


def memory_limit() -> int:
    """Return the bytes that data may take: what the user allows, or what is free.

    Free is what the machine, the control groups of the process and its address space have left.
    """
    if (limit := requested_limit()) is not None:
        return limit
    free = _free_in_cgroups()
    for line in _lines("/proc/meminfo"):
        if line.startswith("MemAvailable:"):
            free.append(int(line.split()[1]) * 1024)
    if os.name == "posix":
        import resource  # It exists on POSIX systems only.

        allowed, pages = resource.getrlimit(resource.RLIMIT_AS)[0], _lines("/proc/self/statm")
        if allowed != resource.RLIM_INFINITY and pages:
            free.append(allowed - int(pages[0].split()[0]) * resource.getpagesize())
    return max(0, min(free, default=sys.maxsize))


def check_memory(needed: int, source: str) -> None:
    """Raise UserError if a source needs more bytes of memory than it may take."""
    if needed > (limit := memory_limit()):
        raise UserError(
            f"{source}: expected data that need up to {limit / 1e9:.1f} GB of memory, got at least "
            f"{needed / 1e9:.1f} GB; use fewer rows, or allow more: {VARIABLE}=NUMBER"
        )


def _free_in_cgroups() -> list[int]:
    """Return the bytes that each control group of this process has left."""
    free = []
    for line in _lines("/proc/self/cgroup"):
        _, controller, path = line.split(":", 2)
        if controller not in CGROUP_FILES:
            continue
        root = Path("/sys/fs/cgroup", controller)
        group = root / path.lstrip("/")
        # In a container the path may be that of the host, whose root is the container's group.
        for folder in (group, *group.parents):
            limit, used = (_lines(folder / name) for name in CGROUP_FILES[controller])
            if limit and used and limit[0].isdigit():
                caches = [li.split()[1] for li in _lines(folder / "memory.stat") if _is_cache(li)]
                free.append(int(limit[0]) - int(used[0]) + sum(map(int, caches)))
            if folder == root:
                break
    return free


def _is_cache(line: str) -> bool:
    """Return whether a line of ``memory.stat`` counts files that the system can forget."""
    return line.split()[0] == "inactive_file"


def _lines(path: str | Path) -> list[str]:
    """Return the lines of a file of the system; none if it does not exist."""
    try:
        return Path(path).read_text(encoding="ascii").splitlines()
    except OSError:
        return []
