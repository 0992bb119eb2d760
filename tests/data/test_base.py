"""What all data modules share: findings, and the hooks that `init` calls."""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from conftest import Cli
from proj.data.arrays import ArrayDataModule
from proj.data.base import Finding


def test_findings_of_older_runs_have_no_column() -> None:
    """A report must still read a findings.json with three fields."""
    finding = Finding(what="odd", effect="bad", remedy="change it")
    assert finding.column is None
    assert str(finding) == "odd: bad; change it."


class Tones(ArrayDataModule):
    """A user's own data module, which `init` asks."""

    @classmethod
    def for_source(cls, path: str, target: Any, task: Any) -> Any:
        if not path.endswith(".tones"):
            return None
        x = np.random.default_rng(0).normal(size=(60, 2))
        return cls.from_arrays(train=(x, np.where(x[:, 0] > 0, "high", "low")))

    def experiment_template(self, path: str) -> tuple[Path, dict[str, Any]]:
        template = Path("tones.yaml.j2").resolve()
        template.write_text("# {{ path | comment }}: {{ classes | comment }}\n")
        assert self.schema is not None
        return template, {"classes": ", ".join(map(str, self.schema.classes))}


def test_init_asks_the_data_modules_of_the_package(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A user's data module needs no change in the engine to work with `init`."""
    module = ModuleType("proj.data.tones")
    monkeypatch.setattr(module, "Tones", Tones, raising=False)
    monkeypatch.setitem(sys.modules, "proj.data.tones", module)
    classes = {"Finding": "proj.data.base.Finding", "Tones": "proj.data.tones.Tones"}
    monkeypatch.setattr("proj.engine.commands.init.own_classes", lambda: classes)
    assert "rows: 42 train, 9 val, 9 test" in cli("init", "bells.tones")
    assert Path("configs/bells.yaml").read_text() == "# bells.tones: high, low\n"
    assert "init: expected a .csv, .tsv, .txt or .parquet file" in cli("init", "a.wav", code=2)
