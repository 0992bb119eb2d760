"""Completion in real shells, and mistyped flags that are answered without importing torch."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import processes
from conftest import CONFIGS, Cli, Once
from proj.engine import PACKAGE
from proj.engine.commands.complete import offers
from proj.engine.config import flag_index
from proj.engine.config.experiment import ExperimentCLI
from proj.engine.verbs import VERBS
from proj.errors import UserError

DIGITS = next(path for path in CONFIGS if path.stem == "digits")


@pytest.fixture
def index(work: Path, once: Once, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An index in a folder of the test, built once by a process."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(work / "cache"))
    monkeypatch.setattr(sys, "prefix", "/same")

    def build() -> None:
        flag_index.build_index(VERBS)

    once("flag_index", build)
    return flag_index.index_path()


def test_offers(index: Path) -> None:
    """Verbs, flags of the verb, options of the class in effect, classes, and runs."""
    assert offers(["ex"]) == ["export"]
    assert offers(["fit", "--trainer.max_e"]) == ["--trainer.max_epochs"]
    assert offers(["runs", "--trainer"]) == []
    assert "--where" in offers(["runs", "--"])
    assert offers(["serve", "b", "--po"]) == ["--port"]
    assert {"CNN", "MLP", "TabM"} <= set(offers(["fit", "--model.net", ""]))
    assert "Adam" in offers(["fit", "--model.optimizer", ""])
    assert "MLP" not in offers(["fit", "--model.optimizer", ""])
    assert offers(["fit", "--model.net", "MLP", "--model.net.hid"]) == ["--model.net.hidden"]
    words = ["fit", "--config", str(DIGITS), "--model.net.wi"]
    assert offers(words) == ["--model.net.width"]
    assert offers([*words[:3], "--model.net", "MLP", "--model.net.wi"]) == []
    for name in ("version_0", "other", "studies"):
        Path("lightning_logs", name).mkdir(parents=True)
    assert offers(["test", "--run", ""]) == ["other", "version_0"]
    assert offers(["compare", "version_0", "o"]) == ["other"]
    assert offers(["fit", "--config", "x"]) == []


@pytest.mark.parametrize(
    "flags",
    [
        ["--trainer.max_epoch", "3"],
        ["--trainer.max_epoch=3"],
        ["--modle.net", "MLP"],
        ["--lr", "3"],
        ["--model.nett", "MLP"],
        ["--model.net.hiden", "[3]"],
        ["--model.net", "MLP", "--model.net.width", "3"],
        ["--data.batchsize", "3"],
        ["--model.optimizer.lrr", "3"],
    ],
)
def test_a_mistyped_flag_gets_the_answer_of_the_parser(index: Path, flags: list[str]) -> None:
    """Two answers to one mistake would confuse, and one that is wrong would block a right flag."""
    configs = flag_index_configs()
    with pytest.raises(UserError) as quick:
        flag_index.check_flags("fit", ["--config", str(DIGITS), *flags], configs)
    from proj.engine.config.arguments import read_arguments

    arguments = read_arguments(["--config", str(DIGITS), *flags], "fit")
    with pytest.raises(UserError) as slow:
        ExperimentCLI("fit", arguments.configs, arguments.flags)
    assert str(quick.value) == str(slow.value)


def flag_index_configs() -> list[dict[str, object]]:
    from proj.engine.config.arguments import check_configs

    return check_configs(["--config", str(DIGITS)])


@pytest.mark.parametrize(
    "flags",
    [
        ["--trainer.max_epochs", "3", "--seed_everything=1", "--name", "x", "--debug"],
        ["--trainer.callbacks+=DeviceStatsMonitor", "--trainer.callbacks.cpu_stats", "true"],
        ["--trainer.strategy.find_unused_parameters", "true"],
        ["--model.net.init_args.width", "3", "--model.net.class_path", "CNN"],
        ["--model.net", "my_nets.Net", "--model.net.any", "3"],
        ["--model.optimizer", "torch.optim.SGD", "--model.optimizer.momentum", "0.9"],
        ["--data", '{"class_path": "Tabular"}', "--data.path", "x"],
        ["--model.net.help", "MLP", "--print_config"],
        ["-c", "x", "--", "y", "-1"],
    ],
)
def test_flags_that_may_be_right_are_left_to_the_parser(index: Path, flags: list[str]) -> None:
    """The index does not know every class."""
    flag_index.check_flags("fit", ["--config", str(DIGITS), *flags], flag_index_configs())


def test_an_index_of_other_versions_is_not_used(
    index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flags of an older version would be refused, or offered."""
    content = json.loads(index.read_text())
    index.write_text(json.dumps({**content, "versions": ["torch 1"]}))
    assert flag_index.read_index() is None
    index.write_text("{")
    assert flag_index.read_index() is None
    index.unlink()
    assert flag_index.read_index() is None
    flag_index.check_flags("fit", ["--modle", "x"], [])
    started = []
    monkeypatch.setattr(
        "proj.engine.commands.complete.build_in_background", lambda: started.append(1)
    )
    assert offers(["fit", "--model"]) == []
    assert started == [1]


def test_without_an_extra_the_index_is_built(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`make fit` installs no server, and builds the index."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(work / "cache"))
    import_module = flag_index.import_module

    def without_uvicorn(name: str) -> ModuleType:
        if name.endswith("commands.serve"):
            raise ModuleNotFoundError("No module named 'uvicorn'", name="uvicorn")
        return import_module(name)

    monkeypatch.setattr(flag_index, "import_module", without_uvicorn)
    verbs = {verb: VERBS[verb] for verb in ("serve", "runs")}
    monkeypatch.setattr(flag_index, "_classes", lambda: iter(()))
    flag_index.build_index(verbs)
    content = json.loads(flag_index.index_path().read_text())
    assert content["flags"]["serve"] == []
    assert "where" in content["flags"]["runs"]


def test_a_changed_class_is_left_to_the_parser(
    index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An option that was added since the index was built must not be refused."""
    words = ["--model.net", "MLP", "--model.net.new_option", "1"]
    with pytest.raises(UserError, match="new_option"):
        flag_index.check_flags("fit", words, [])
    monkeypatch.setattr(flag_index, "_changed", lambda path: 1)
    flag_index.check_flags("fit", words, [])


def test_complete_imports_no_torch(index: Path) -> None:
    """An answer to a key press would take seconds."""
    program = (
        f"import sys; sys.prefix = '/same'; from {PACKAGE}.engine.cli import main; "
        "code = main(sys.argv[1:]); print(code, 'torch' in sys.modules, 'polars' in sys.modules)"
    )
    for words, answer in (
        (["complete", "--words", "fit", "--model.net", "TabM", "--model.net.mem"], "members"),
        (["fit", "--config", str(DIGITS), "--trainer.max_epoch", "3"], ""),
    ):
        command = [processes.REAL_PYTHON, "-c", program, *words]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        *lines, last = done.stdout.splitlines()
        assert last in ("0 False False", "2 False False")
        assert answer in "".join(lines)
    assert "Did you mean '--trainer.max_epochs'?" in done.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells(work: Path, cli: Cli, shell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The script of the shell calls the program and offers what it prints."""
    monkeypatch.setattr("proj.engine.commands.complete.build_in_background", lambda: None)
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    Path("script").write_text(cli("complete", shell))
    program = Path("bin", PACKAGE)
    program.parent.mkdir()
    # Stands for the program: its offers show which words the shell has passed.
    program.write_text('#!/bin/sh\nshift 2\nprintf "%s\\n" "--got.$#" "--last.$3"\n')
    program.chmod(0o755)
    tests = {
        "bash": f"source ./script; COMP_WORDS=({PACKAGE} fit --config --l); COMP_CWORD=3; "
        f'_{PACKAGE}; printf "%s\\n" "${{COMPREPLY[@]}}"',
        "zsh": f"compdef() {{}}; compadd() {{ print -l -- $offers; }}; source ./script; "
        f"words=({PACKAGE} fit --config --l); CURRENT=4; _{PACKAGE}",
        "fish": f"source ./script; complete --do-complete '{PACKAGE} fit --config --l'",
    }
    env = {"PATH": f"{program.parent.absolute()}:/usr/local/bin:/usr/bin:/bin", "HOME": str(work)}
    done = subprocess.run(
        [shell, "-c", tests[shell]], env=env, capture_output=True, text=True, check=True
    )
    assert "--last.--l" in done.stdout
    assert "expected a shell" in cli("complete", code=2)
