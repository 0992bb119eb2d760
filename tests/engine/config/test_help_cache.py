"""The help of a verb and the answer to a mistyped flag, without importing torch."""

import subprocess
from pathlib import Path
from typing import Any

import pytest

import processes
from conftest import Cli
from proj.engine.config import experiment as experiment_module
from proj.engine.config import help_cache, parser
from proj.engine.config.flag_index import check_flags
from proj.errors import UserError

PROGRAM = (
    "import sys; from proj.engine.cli import main; code = main(sys.argv[1:]); "
    "heavy = {'torch', 'lightning', 'numpy', 'jsonargparse'} & set(sys.modules); "
    "sys.exit(f'imported: {heavy}' if heavy else code)"
)


@pytest.fixture(autouse=True)
def cache(work: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own, which the parsers write as they do for a user."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(work / "cache"))
    monkeypatch.setenv("COLUMNS", "100")
    for module in (experiment_module, parser):
        monkeypatch.setattr(module, "keep_help", help_cache.keep_help)
    return work / "cache"


def test_kept_help_answers_without_torch() -> None:
    """`fit --help` and a mistyped flag would take seconds each time."""
    help_cache.keep_help("fit", "usage: fit [--trainer.max_epochs N] [--model CONFIG]\n")
    command = [processes.REAL_PYTHON, "-c", PROGRAM, "fit"]
    done = subprocess.run([*command, "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "usage: fit [--trainer.max_epochs N] [--model CONFIG]\n"
    typo = subprocess.run(
        [*command, "--trainer.max_epoch", "3"], capture_output=True, text=True, check=False
    )
    assert typo.returncode == 2, typo.stderr
    assert typo.stderr == (
        "error: no option --trainer.max_epoch. Did you mean '--trainer.max_epochs'?\n"
    )


# Help lists all subclasses in memory. Some may be from modules that an earlier test has deleted.
@pytest.mark.filterwarnings(r"ignore:\s*Hit failing import")
@pytest.mark.parametrize("verb", [pytest.param("test", marks=pytest.mark.long), "compare"])
def test_help_is_kept_as_it_was_printed(verb: str, cli: Cli) -> None:
    """The second `--help` would differ from the first."""
    printed = cli(verb, "--help")
    assert "--run" in printed or "RUN" in printed or "runs" in printed
    assert help_cache.kept_help(verb) == printed


def test_the_answer_to_a_mistyped_flag_keeps_the_flags(experiment: Any, cli: Cli) -> None:
    """Each mistyped flag would take seconds for a user who never asks for help."""
    config = experiment()
    known = ["--trainer.max_epochs=1", "--model.net.hidden=[8]", "--data.batch_size", "8"]
    wrong = ["--trainer.max_epoch", "1"]
    check_flags("fit", wrong, [])
    answer = cli("fit", "--config", config, *wrong, code=2)
    with pytest.raises(UserError) as caught:
        check_flags("fit", wrong, [])
    assert answer == f"error: {caught.value}\n"
    # A help that is printed later must not list the modules of this experiment.
    assert help_cache.kept_help("fit") is None
    # What the parser takes is not refused.
    check_flags("fit", ["--name", "a", "--config", str(config), *known, "--resume=b"], [])


def test_help_of_another_state_is_not_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A new version, a changed source or a wider terminal would show old help."""
    help_cache.keep_help("fit", "one")
    help_cache.keep_help("test", "two")
    assert (help_cache.kept_help("fit"), help_cache.kept_help("test")) == ("one", "two")
    monkeypatch.setenv("COLUMNS", "80")
    assert help_cache.kept_help("fit") is None
    monkeypatch.setenv("COLUMNS", "100")
    assert help_cache.kept_help("fit") == "one"
    with monkeypatch.context() as patch:
        patch.setattr(help_cache, "package_versions", lambda: ["torch 99"])
        assert help_cache.kept_help("fit") is None
    source = Path("package/source.py")
    source.parent.mkdir()
    source.write_text("")
    monkeypatch.setattr(help_cache, "ROOT", source.parent)
    help_cache.keep_help("fit", "three")
    assert help_cache.kept_help("fit") == "three"
    source.with_name("other.py").write_text("")
    assert help_cache.kept_help("fit") is None


@pytest.mark.parametrize("content", ["", "[]", '{"state": 3}', '{"help": {}}', "\0"])
def test_a_damaged_cache_is_written_anew(content: str) -> None:
    """A process that was killed while it wrote would take help from all later ones."""
    help_cache.keep_help("fit", "one")
    help_cache.cache_file("help").write_text(content)
    assert help_cache.kept_help("fit") is None
    help_cache.keep_help("fit", "two")
    assert help_cache.kept_help("fit") == "two"


def test_a_cache_that_cannot_be_written_changes_nothing(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`compare --help` would fail where the home folder is read-only."""
    Path("file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(Path("file").resolve()))
    assert "usage" in cli("compare", "--help")

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", homeless)
    assert "usage" in cli("compare", "--help")
