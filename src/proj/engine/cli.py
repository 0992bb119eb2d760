"""The command line: ``main(args)`` calls a verb and turns errors into messages and exit codes."""

import gc
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

from proj.engine import PACKAGE, security
from proj.errors import TrainingError, UserError, nearest

# verb: module and function that do it (imported when called), and what it does
VERBS = {
    "fit": ("commands.fit:fit", "train into a new run folder, or go on in an old one"),
    "validate": ("commands.validate:validate", "compute a run's metrics on the validation split"),
    "test": (
        "commands.test:test",
        "compute a run's metrics on the test split, and write its report",
    ),
    "predict": ("commands.predict:predict", "write a run's predictions for new rows"),
    "check": ("commands.check:check", "find what can be known before the first epoch"),
    "init": (
        "commands.init:init",
        "look at a table or a folder of pictures and write an experiment for it",
    ),
    "report": ("commands.report:report", "write the report of a tested run again"),
    "compare": ("commands.compare:compare", "test whether runs differ, on the same test rows"),
    "runs": ("commands.runs:runs", "list runs with their headline metrics"),
    "tune": ("tuning.search:tune", "search for better settings"),
    "cv": ("tuning.cv:cv", "cross-validate an experiment, with several seeds"),
}


def main(args: list[str] | None = None) -> int:
    """Run one command line and return its exit code.

    0 done, 2 the input is wrong, 3 training failed, 130 and 143 stopped by SIGINT and SIGTERM. ``sys.argv`` is set
    meanwhile: under DDP, Lightning starts the other processes with it.
    """
    args = sys.argv[1:] if args is None else args
    outer, sys.argv = sys.argv, [sys.argv[0], *args]
    try:
        return exit_code(
            lambda: _main(_allowed([arg for arg in args if arg != "--debug"])), "--debug" in args
        )
    finally:
        sys.argv = outer


def exit_code(call: Callable[[], int | None], debug: bool = False) -> int:
    """Call, and turn what it raises into a message and an exit code; with ``debug`` errors of the user are raised."""
    try:
        return call() or 0
    except (UserError, TrainingError) as error:
        if debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, UserError) else 3
    except KeyboardInterrupt:
        return 130
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1


def _main(args: list[str]) -> int:
    if not args or args[0] in ("-h", "--help"):
        print(_help())
        return 0
    if args[0] == "--version":
        from proj import __version__

        print(f"{PACKAGE} {__version__}")
        return 0
    verb, rest = args[0], args[1:]
    if verb not in VERBS:
        raise UserError(
            f"no verb {verb!r}; expected one of {', '.join(VERBS)}.{nearest(verb, [*VERBS, '--help', '--version'])}"
        )
    module, function = VERBS[verb][0].split(":")
    getattr(_imported(f"{PACKAGE}.engine.{module}"), function)(rest)
    return 0


def _imported(module: str) -> Any:
    """A verb's module. Python is kept from looking for garbage among what it imports: that takes a tenth of the start."""
    if module in sys.modules or not gc.isenabled():
        return import_module(module)
    gc.disable()
    try:
        return import_module(module)
    finally:
        gc.freeze()  # what has been imported is not looked at in training either
        gc.enable()


def _allowed(args: list[str]) -> list[str]:
    """Take ``--allow PACKAGE`` out of a command line, and do it."""
    rest, words = [], iter(args)
    for word in words:
        flag, equals, package = word.partition("=")
        if flag != "--allow":
            rest.append(word)
        else:
            security.allow_package(package if equals else next(words, ""))
    return rest


def _help() -> str:
    verbs = "\n".join(f"  {verb:10}{text}" for verb, (_, text) in VERBS.items())
    return (
        f"usage: python -m {PACKAGE} VERB [--config FILE] [--KEY VALUE]\n\n{verbs}\n\n"
        f"`python -m {PACKAGE} VERB --help` tells the options of a verb; --debug shows the traceback of an error,\n"
        "--allow PACKAGE lets a config name classes of that package."
    )
