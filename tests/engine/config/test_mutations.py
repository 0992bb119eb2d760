"""Every value of every shipped config is spoilt in turn: it is an error that names the key, or all goes well."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from conftest import CONFIGS, QUIET
from proj.engine.cli import main
from proj.engine.config.arguments import read_arguments
from proj.engine.config.experiment import ExperimentCLI
from proj.errors import UserError

REMOVED = object()


def leaves(values: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    if isinstance(values, dict) and values:
        for name, value in values.items():
            yield from leaves(value, (*path, name))
    else:
        yield path


def spoilt(config: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """What was done, beginning with the key, and the config with it."""
    for path in leaves(config):
        mistyped = path[-1][:-2] + path[-1][:-3:-1]  # the last two letters in the other order
        for what, value in {
            "wrong type": {"a": [1]},
            "text": "wrong",
            "null": None,
            "1e-3": "1e-3",
            "removed": REMOVED,
            "mistyped": mistyped,
        }.items():
            new = copy.deepcopy(config)
            section = new
            for name in path[:-1]:
                section = section[name]
            old = section.pop(path[-1])
            if what == "mistyped":
                section[mistyped] = old
            elif value is not REMOVED:
                section[path[-1]] = value
            yield f"{path[-1]} ({'.'.join(path)}): {what}", new


CASES = [
    (config, what, new)
    for config in CONFIGS
    for what, new in spoilt(yaml.safe_load(config.read_text()))
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_parsed_it_is_right_or_an_error_that_names_the_key(config: Path, work: Path) -> None:
    for _, what, new in (case for case in CASES if case[0] == config):
        Path("spoilt.yaml").write_text(yaml.safe_dump(new))
        try:
            arguments = read_arguments(["--config", "spoilt.yaml"])
            ExperimentCLI("fit", arguments.configs, arguments.flags, instantiate=False)
        except UserError as error:
            message = str(error)
            key = what.split()[0]
            named = (
                key in message
                or key[:-2] in message
                or what.split("(")[1].split(")")[0].split(".")[-2] in message
            )
            assert named, f"{what}: {message}"
            assert len(message) < 600, f"{what}: {message}"
        assert sorted(path.name for path in work.iterdir()) == ["spoilt.yaml"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("config", "what", "new"), CASES, ids=[f"{c.stem} {what}" for c, what, _ in CASES]
)
def test_run_it_is_right_or_an_error_and_leaves_nothing(
    config: Path, what: str, new: Any, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("spoilt.yaml").write_text(yaml.safe_dump(new))
    code = main(
        [
            "fit",
            "--config",
            "spoilt.yaml",
            "--trainer.max_epochs",
            "1",
            "--trainer.accelerator",
            "cpu",
            *QUIET,
        ]
    )
    said = capsys.readouterr().err
    assert code in (0, 2), said
    assert "Traceback" not in said
    if code == 2:
        assert not Path("lightning_logs").exists()
