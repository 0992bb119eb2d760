"""Two functions of jsonargparse, with the same results in less time.

The suite parses about 1,500 command lines. jsonargparse looks through all options of a parser for
each key of a config, and splits each key again and again: two fifths of the time of a command line.
Processes that a user starts do not need this, because they parse one command line.
"""

import sys
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

from jsonargparse import Namespace, _actions, _namespace, _subcommands

find_by_search = _subcommands.find_action_and_subcommand
parse_key = Namespace._parse_key
MISSING = object()


class Actions(NamedTuple):
    """Actions of a parser by what may be written for them, and those to try if there is none."""

    count: int
    by_name: dict[str, Any]
    fallbacks: list[Any]


def install(set_attribute: Callable[[Any, str, Any], None] = setattr) -> None:
    """Replace the functions in all modules of jsonargparse."""
    name = "find_action_and_subcommand"
    for module in list(sys.modules.values()):
        if vars(module).get(name) is find_by_search:
            set_attribute(module, name, find_action)
    set_attribute(Namespace, "_parse_key", parse_known_key)


def find_action(parser: Any, dest: str, exclude: Any = None) -> tuple[Any, str | None]:
    """Return the action for a key. This project's parsers have no subcommands."""
    actions = parser.__dict__.get("actions by name")
    if actions is None or actions.count != len(parser._actions):
        actions = parser.__dict__["actions by name"] = list_actions(parser)
    action = actions.by_name.get(dest)
    if action is not None and (exclude is None or not isinstance(action, exclude)):
        return action, None
    if action is not None or actions.fallbacks:
        found: tuple[Any, str | None] = find_by_search(parser, dest, exclude=exclude)
        return found
    return None, None


def list_actions(parser: Any) -> Actions:
    """Return the actions of a parser; the first of a name counts, as in a search."""
    by_name: dict[str, Any] = {}
    fallbacks = []
    for action in parser._actions:
        assert not isinstance(action, _subcommands.ActionSubCommands)
        if isinstance(action, _actions._ActionConfigLoad | _actions.ActionFail):
            fallbacks.append(action)
        elif not isinstance(action, _actions.non_parsing_actions):
            options = [option[2:] for option in action.option_strings if option.startswith("--")]
            for name in (action.dest, *options):
                by_name.setdefault(name, action)
    return Actions(len(parser._actions), by_name, fallbacks)


@cache
def split_key(key: str) -> tuple[str, tuple[str, ...], str] | None:
    """Return the last part of a dotted key, the others, and these as a key; None if it is wrong."""
    parts = [_namespace.add_clash_mark(part) for part in key.split(".")]
    if " " in key or "" in parts:
        return None
    return parts[-1], tuple(parts[:-1]), ".".join(parts[:-1])


def parse_known_key(namespace: Namespace, key: Any) -> tuple[str, Any, str]:
    """Return the last part of a key, the namespace that holds it, and that one's key."""
    split = split_key(key) if isinstance(key, str) else None
    if split is None:
        return parse_key(namespace, key)
    leaf, branches, branch_key = split
    inner: Any = namespace
    for branch in branches:
        if type(inner) is not Namespace:
            return parse_key(namespace, key)
        inner = inner.__dict__.get(branch, MISSING)
        if type(inner) is not Namespace and inner is not None and not isinstance(inner, dict):
            return leaf, None, branch_key
    return leaf, inner, branch_key
