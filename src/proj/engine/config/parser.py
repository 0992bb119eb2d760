"""Argument parser of the verbs that have options of their own."""

import argparse
from typing import NoReturn

from proj.engine import PACKAGE
from proj.errors import UserError


class VerbParser(argparse.ArgumentParser):
    """Parse the options of one verb; a mistake raises ``UserError``, an abbreviation is a mistake.

    Args:
        verb: the verb, as in ``python -m proj VERB``.
        description: one sentence for ``--help``.
    """

    def __init__(self, verb: str, description: str) -> None:
        super().__init__(f"python -m {PACKAGE} {verb}", description=description, allow_abbrev=False)
        self.verb = verb

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{self.verb}: {message}.")
