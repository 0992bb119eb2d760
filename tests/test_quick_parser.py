"""The quick functions of the tests give what those of jsonargparse give."""

from typing import Any

import pytest
from jsonargparse import Namespace

import quick_parser
from conftest import ROOT
from proj.engine.config.arguments import read_arguments
from proj.engine.config.experiment import ExperimentCLI


def outcome(function: Any, *arguments: Any) -> Any:
    try:
        return function(*arguments)
    except KeyError as error:
        return str(error)


def test_actions_and_keys_are_found_as_jsonargparse_finds_them() -> None:
    """A config would be read in another way than by the program that a user starts."""
    arguments = read_arguments(["--config", str(ROOT / "configs/digits.yaml")], "fit")
    experiment = ExperimentCLI("fit", arguments.configs, arguments.flags, instantiate=False)
    parser, config = experiment.parser, experiment.config
    options = [option[2:] for a in parser._actions for option in a.option_strings]
    keys = [*config.keys(branches=True), *options, "", "model.", "a b", "model.nothing.x", "items"]
    assert len(keys) > 100
    for key in keys:
        for exclude in (None, type(quick_parser.find_action(parser, "model")[0])):
            found = quick_parser.find_action(parser, key, exclude)
            assert found == quick_parser.find_by_search(parser, key, exclude), key
        assert outcome(quick_parser.parse_known_key, config, key) == outcome(
            quick_parser.parse_key, config, key
        ), key


@pytest.mark.parametrize("value", [None, {"b": 1}, 3, Namespace(b=Namespace(c=1))])
def test_keys_below_other_values(value: Any) -> None:
    namespace = Namespace(a=value)
    for key in ("a", "a.b", "a.b.c", "a.b.c.d", "x.y"):
        quick, slow = (
            outcome(function, namespace, key)
            for function in (quick_parser.parse_known_key, quick_parser.parse_key)
        )
        assert quick == slow, key
