"""Options of the verbs, and the early reading of the command line."""

import argparse
from pathlib import Path
from typing import Any

import pytest
import yaml

from conftest import Cli
from proj.engine.config.arguments import as_flags, read_arguments
from proj.engine.config.experiment import ExperimentCLI
from proj.engine.config.options import OPTIONS
from proj.engine.config.parser import VerbParser
from proj.errors import UserError


@pytest.mark.filterwarnings(r"ignore:\s*Hit failing import")
@pytest.mark.parametrize("verb", OPTIONS)
def test_help_has_every_option_and_its_text(verb: str, cli: Cli) -> None:
    """An option would be missing from the help, or be explained differently in the reference."""
    text = " ".join(cli(verb, "--help").split())
    for option in OPTIONS[verb]:
        assert f"--{option.name}" in text
        assert option.help in text


@pytest.mark.parametrize("verb", OPTIONS)
def test_only_recorded_options_are_in_the_config(verb: str, experiment: Any) -> None:
    """`fit --config` on a run's config would find again, or name, what only that call asked for."""
    values = {"name": "x", "init_from": "y", "calibrate": "temperature"}
    flags = []
    for option in OPTIONS[verb]:
        flags += [f"--{option.name}"] if option.is_switch else []
        flags += [f"--{option.name}", values.get(option.name, "z")] if not option.is_switch else []
    arguments = read_arguments(["--config", str(experiment()), *flags], verb)
    recorded = ExperimentCLI(verb, arguments.configs, arguments.flags, instantiate=False).experiment
    for option in OPTIONS[verb]:
        assert (option.name in recorded) is option.recorded, option.name
    unset = ExperimentCLI(verb, arguments.configs, [], instantiate=False).experiment
    assert not {option.name for option in OPTIONS[verb]} & unset.keys()


def test_the_options_that_select_a_run_are_read_early(experiment: Any) -> None:
    """A verb would look for the wrong run, or pass the flag on to the parser of the experiment."""
    arguments = read_arguments(["--run", "a", "--trainer.max_epochs", "3"], "test")
    assert (arguments.run, arguments.flags) == ("a", ["--trainer.max_epochs", "3"])
    assert read_arguments(["--resume"], "fit").resume == ""
    assert read_arguments(["--resume", "a"], "fit").resume == "a"
    assert read_arguments([], "fit").resume is None
    assert read_arguments(["--run", "a"], "fit").flags == ["--run", "a"]
    with pytest.raises(UserError, match=r"^test: argument --run: expected one argument\.$"):
        read_arguments(["--run"], "test")


def test_an_option_of_another_verb_is_refused(experiment: Any, cli: Cli) -> None:
    """`fit --run` would train a new run and ignore the name."""
    assert "no option --run." in cli("fit", "--config", experiment(), "--run", "a", code=2)
    assert "no option --resume." in cli("check", "--config", experiment(), "--resume", code=2)


def test_the_last_of_repeated_flags_counts() -> None:
    """Runs would be looked for in another folder than the one they are written to."""
    arguments = read_arguments(["--a", "1", "--trainer.default_root_dir=x", "--a=2"], "test")
    assert arguments.flag("--a") == "2"
    assert arguments.flag("--b") is None
    assert arguments.root == Path("x/lightning_logs")


def test_values_as_flags() -> None:
    """Settings of `proj.fit` and of trials would arrive as other values."""
    values = {
        "a.b": 5,
        "c": None,
        "d": True,
        "e": [1, 2.5],
        "f": "text",
        "g": Path("x/y"),
        "h": 1e-4,
    }
    assert as_flags(values) == [
        "--a.b=5",
        "--c=null",
        "--d=true",
        "--e=[1, 2.5]",
        "--f=text",
        "--g=x/y",
        "--h=0.0001",
    ]
    assert as_flags({"model.net": {"class_path": "MLP"}}) == [
        '--model.net={"class_path": "proj.nets.mlp.MLP"}'
    ]


def test_a_verb_parser_raises_user_errors(capsys: Any) -> None:
    """A mistake would print argparse's usage text and exit, also from a notebook."""
    parser = VerbParser("runs", "List runs.")
    parser.add_argument("--sort")
    for args, message in (
        (["--sort"], r"^runs: argument --sort: expected one argument\.$"),
        (["--so", "f1"], r"^runs: unrecognized arguments: --so f1\.$"),
    ):
        with pytest.raises(UserError, match=message):
            parser.parse_args(args)
    assert isinstance(parser, argparse.ArgumentParser)
    assert parser.format_help().startswith("usage: python -m proj runs ")
    assert capsys.readouterr().err == ""


def test_an_object_that_a_config_cannot_hold_is_refused(experiment: Any, cli: Cli) -> None:
    """The run's own config could not be read again."""
    text = (
        "import torch\nfrom typing import Any\nfrom lightning.pytorch import Callback\n"
        "class Stateful(Callback):\n"
        "    def __init__(self, generator: Any = torch.Generator()): ...\n"
    )
    Path("stateful.py").write_text(text)
    flags = ["--trainer.callbacks", "stateful.Stateful"]
    message = cli("fit", "--config", experiment(), *flags, code=2)
    assert "trainer.callbacks.init_args.generator: expected a value" in message
    assert "Stateful" in message
    assert not Path("lightning_logs").exists()


def test_a_device_is_a_value_of_a_config(experiment: Any, cli: Cli) -> None:
    """Callbacks of Lightning with a device as a default could not be used."""
    flags = ["--trainer.callbacks", "StochasticWeightAveraging", "--trainer.callbacks.swa_lrs", "1"]
    config = yaml.safe_load(cli("fit", "--config", experiment(), *flags, "--print_config"))
    assert config["trainer"]["callbacks"][0]["init_args"]["device"] == "cpu"
