"""Argument parser of a verb that takes no experiment on its command line."""

import argparse
from typing import Any, NoReturn

from proj.engine import PACKAGE
from proj.engine.config.help_cache import keep_help
from proj.errors import UserError


class VerbParser(argparse.ArgumentParser):
    """Parser of one verb that raises ``UserError`` where argparse prints a usage message and exits.

    Args:
        verb: name of the verb; messages begin with it.
        description: one sentence for ``--help``.
        add_help: whether the parser answers ``--help`` itself.
    """

    def __init__(self, verb: str, description: str = "", add_help: bool = True) -> None:
        super().__init__(
            prog=f"python -m {PACKAGE} {verb}",
            description=description,
            allow_abbrev=False,
            add_help=add_help,
        )
        self.verb = verb

    def print_help(self, file: Any = None) -> None:
        keep_help(self.verb, self.format_help())
        super().print_help(file)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{self.verb}: {message}.")
