"""Tables of every verb's flags, read from the parsers, for docs/reference/command_line.md."""

import argparse
import io
import re
from collections.abc import Iterable
from contextlib import redirect_stderr, redirect_stdout
from typing import Any
from unittest.mock import patch

from proj.engine import cli
from proj.engine.cli import VERBS, main

Flag = tuple[str, str, str, str]  # name, values, default, help

# Flags that all verbs that read an experiment have. They are listed once.
SHARED = {
    "Flags of the experiment": ("config", "print_config", "seed_everything", "model", "data"),
    "Flags of the best checkpoint and of saving": ("checkpoint",),
    "Flags of early stopping": ("early_stopping",),
    "Flags of Lightning's Trainer": ("trainer",),
}


def parser_of(verb: str) -> argparse.ArgumentParser:
    """Return the parser that a verb builds when it is called with ``--help``."""
    parsers: list[argparse.ArgumentParser] = []

    def record(parser: argparse.ArgumentParser, *args: Any, **kwargs: Any) -> None:
        parsers.append(parser)

    with (
        patch.object(argparse.ArgumentParser, "print_help", record),
        # A help that was kept is printed without building the parser.
        patch.object(cli, "kept_help", return_value=None),
        redirect_stdout(io.StringIO()),
        redirect_stderr(io.StringIO()),
    ):
        code = main([verb, "--help"])
    assert code == 0, f"{verb} --help ended with exit code {code}"
    assert parsers, f"{verb} --help built no parser"
    return parsers[-1]


def flags_of(parser: argparse.ArgumentParser) -> list[Flag]:
    """Return name, values, default and help text of each option and argument of a parser."""
    flags = []
    for action in parser._actions:
        if action.help == argparse.SUPPRESS or isinstance(action, argparse._HelpAction):
            continue
        name = ", ".join(action.option_strings) or str(action.metavar or action.dest).upper()
        flags.append((name, _values(action), _default(action), _help(parser, action)))
    return flags


def _values(action: argparse.Action) -> str:
    if action.choices:
        return " | ".join(map(str, action.choices))
    if action.nargs == 0:
        return ""
    kind = getattr(action, "_typehint", None) or action.type
    name = str(kind) if getattr(kind, "__args__", None) else getattr(kind, "__name__", "text")
    if name in ("str", "positive_int"):
        return {"str": "text", "positive_int": "int"}[name]
    # Remove the modules of classes.
    name = re.sub(r"\b[a-z_.]+\.(?=[A-Z])", "", name)
    name = re.sub(r"^Optional\[(.*)\]$", r"\1, null", name)
    name = re.sub(r"^Union\[(.*)\]", r"\1", name)
    name = re.sub(r"Literal\[(.*?)\]", r"\1", name).replace("'", "")
    return name.replace(", ", " | ").replace("NoneType", "null").replace("None", "null")


def _default(action: argparse.Action) -> str:
    if action.default is None or action.default == argparse.SUPPRESS or action.nargs == 0:
        return ""
    return str(action.default)


def _help(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    return (action.help or "").split(" (type: ")[0].replace("%(default)s", str(action.default))


def _section(flag: Flag) -> str:
    return flag[0].rsplit("--", 1)[-1].split(".")[0]


def _table(flags: Iterable[Flag]) -> list[str]:
    lines = ["| flag | values | default | meaning |", "| --- | --- | --- | --- |"]
    for name, values, default, text in flags:
        cells = (_code(name), _code(values), _code(default), _plain(text))
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _code(text: str) -> str:
    return f"`{_plain(text)}`" if text else ""


def _plain(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("``", "`")


def markdown() -> str:
    """Return the reference of all verbs as Markdown."""
    lines: list[str] = []
    shared: list[Flag] = []
    names = [name for section in SHARED.values() for name in section]
    for verb, (_, description) in VERBS.items():
        flags = flags_of(parser_of(verb))
        if any(_section(flag) == "trainer" for flag in flags):
            shared = shared or [flag for flag in flags if _section(flag) in names]
            flags = [flag for flag in flags if _section(flag) not in names]
            reads = "It also takes [the flags of an experiment](#flags-of-the-experiment)."
        else:
            reads = ""
        lines += ["", f"## {verb}", "", f"{description[0].upper()}{description[1:]}. {reads}", ""]
        lines += _table(flags) if flags else []
    for title, section in SHARED.items():
        lines += ["", f"## {title}", ""]
        lines += _table(flag for flag in shared if _section(flag) in section)
    return "\n".join(lines)
