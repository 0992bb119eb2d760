"""The lists of locked versions: complete, with hashes, and of the versions that the tests use."""

import re

import pytest

from conftest import ROOT

HASHES = r"((?:    --hash=sha256:[0-9a-f]{64}(?: \\\n|\n|$))+)"
PINNED = re.compile(rf"^([\w.-]+)==(\S+) \\\n{HASHES}", re.M)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_every_package_has_its_version_and_hashes(device: str) -> None:
    """After a change of constraints.txt: make lock-cpu lock-cuda."""
    text = (ROOT / f"requirements-{device}.txt").read_text(encoding="utf-8")
    pinned = {name.lower(): version for name, version, _ in PINNED.findall(text)}
    lines = [line for line in text.splitlines() if line and line[0] not in " #"]
    assert len(lines) == len(pinned), set(lines)
    constraints = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    tested = dict(re.findall(r"^([\w-]+)==(\S+)", constraints, re.M))
    shared = {name: version for name, version in tested.items() if name.lower() in pinned}
    assert shared.keys() >= {"torch", "lightning", "torchmetrics", "polars", "optuna", "fastapi"}
    for name, version in shared.items():
        assert pinned[name.lower()].removesuffix("+cpu") == version, name
    assert ("triton" in pinned) == (device == "cuda")
