"""Each value of each shipped config, corrupted in six ways.

The result is an error message that names the key, or a config that works.
"""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from conftest import CONFIGS, QUIET
from proj.engine.cli import main
from proj.engine.config.arguments import read_arguments
from proj.engine.config.experiment import ExperimentCLI
from proj.errors import UserError

REMOVED = object()
MUTATED_FILE = Path("mutated.yaml")


class Mutation(NamedTuple):
    """A shipped config with one value changed.

    Attributes:
        file: the shipped config.
        path: the keys that lead to the value.
        kind: what was done to it.
        config: the changed config.
        classes: the class paths of the sections around the value.
    """

    file: Path
    path: tuple[str, ...]
    kind: str
    config: dict[str, Any]
    classes: tuple[str | None, ...]

    def __str__(self) -> str:
        return f"{self.file.stem} {'.'.join(self.path)}: {self.kind}"


def leaves(values: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the path of each value that is not a section."""
    if isinstance(values, dict) and values:
        for name, value in values.items():
            yield from leaves(value, (*path, name))
    else:
        yield path


def mutations(file: Path) -> Iterator[Mutation]:
    """Yield a config with each of its values changed in each way."""
    config = yaml.safe_load(file.read_text())
    for path in leaves(config):
        mistyped = path[-1][:-2] + path[-1][:-3:-1]  # the last two letters swapped
        for kind, value in {
            "wrong type": {"a": [1]},
            "text": "wrong",
            "null": None,
            "1e-3": "1e-3",
            "removed": REMOVED,
            "mistyped": mistyped,
        }.items():
            mutated = copy.deepcopy(config)
            section, classes = mutated, []
            for name in path[:-1]:
                section = section[name]
                classes.append(section.get("class_path"))
            old_value = section.pop(path[-1])
            if kind == "mistyped":
                section[mistyped] = old_value
            elif value is not REMOVED:
                section[path[-1]] = value
            yield Mutation(file, path, kind, mutated, tuple(classes))


MUTATIONS = [mutation for file in CONFIGS for mutation in mutations(file)]


def distinct_mutations(file: Path) -> list[Mutation]:
    """Return the mutations of a config that no config before it has.

    The same key of the same class is parsed alike, and so is the same change of it.
    """
    first: dict[Any, Mutation] = {}
    for mutation in MUTATIONS:
        first.setdefault((mutation.path, mutation.kind, mutation.classes), mutation)
    return [mutation for mutation in first.values() if mutation.file == file]


@pytest.mark.long
@pytest.mark.parametrize("file", CONFIGS, ids=lambda path: path.stem)
def test_parsing_works_or_the_error_names_the_key(file: Path, work: Path) -> None:
    """A user would get an error without knowing which line of the config is wrong."""
    for mutation in distinct_mutations(file):
        MUTATED_FILE.write_text(yaml.safe_dump(mutation.config))
        try:
            arguments = read_arguments(["--config", str(MUTATED_FILE)], "check")
            ExperimentCLI("fit", arguments.configs, arguments.flags, instantiate=False)
        except UserError as error:
            message, key = str(error), mutation.path[-1]
            section = mutation.path[-2] if len(mutation.path) > 1 else key
            named = any(text in message for text in (key, key[:-2], section))
            assert named, f"{mutation}: {message}"
            assert len(message) < 600, f"{mutation}: {message}"
        assert list(work.iterdir()) == [work / MUTATED_FILE]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("mutation", MUTATIONS, ids=str)
def test_training_works_or_exits_2_and_leaves_nothing(
    mutation: Mutation, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A mistake in a config would show a traceback, or leave half a run folder."""
    MUTATED_FILE.write_text(yaml.safe_dump(mutation.config))
    flags = ["--trainer.max_epochs", "1", "--trainer.accelerator", "cpu", *QUIET]
    code = main(["fit", "--config", str(MUTATED_FILE), *flags])
    errors = capsys.readouterr().err
    assert code in (0, 2), errors
    assert "Traceback" not in errors
    if code == 2:
        assert not Path("lightning_logs").exists()
