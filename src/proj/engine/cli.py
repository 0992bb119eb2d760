"""Command line: ``main(args)`` calls a verb and converts errors to messages and exit codes."""

import io
import os
import sys

from proj.engine import PACKAGE, clock, security
from proj.engine.config.arguments import check_configs
from proj.engine.config.flag_index import check_flags
from proj.engine.config.help_cache import HELP, kept_help
from proj.engine.config.options import COMMON_OPTIONS, OPTIONS
from proj.engine.exit_codes import exit_code, keep_interrupts
from proj.engine.lazy_packages import import_program
from proj.engine.secrets import hide, split_words
from proj.engine.terminal import escape_output
from proj.engine.verbs import EXTRAS, VERBS
from proj.errors import UserError, nearest

# The exit code of a program that writes to a pipe whose reader has ended, as shells report it.
BROKEN_PIPE = 141


def main(args: list[str] | None = None) -> int:
    """Run one command line and return its exit code.

    Args:
        args: the words after the program's name; ``sys.argv[1:]`` by default.

    Returns:
        0 done, 2 the input is wrong, 3 training failed, 130 and 143 stopped by SIGINT and SIGTERM.
    """
    clock.start()
    args = sys.argv[1:] if args is None else args
    # Under DDP, Lightning starts the other processes with sys.argv.
    outer_argv, sys.argv = sys.argv, [sys.argv[0], *args]
    words = [word for word in args if word != "--debug"]
    hide(split_words(words)[1])
    replace_unprintable()
    try:
        with keep_interrupts():
            code = exit_code(lambda: _call_verb(_take_allow(words)), debug="--debug" in args)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader has ended, as with `| head -1`. Python flushes stdout again when it ends, so
        # the remaining output goes to the null device.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    finally:
        sys.argv = outer_argv
    return code


def replace_unprintable() -> None:
    """Print ``?`` for characters that the encoding of standard output does not have."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def _check_encodable(args: list[str]) -> None:
    """Raise UserError for a word that is no text in the encoding of the system, such as a path."""
    for word in args:
        if any("\ud800" <= character <= "\udfff" for character in word):
            encoding = sys.getfilesystemencoding()
            raise UserError(
                f"expected words in {encoding}, the encoding of this process, got {word!a}; rename "
                "the file, or set the environment variable PYTHONUTF8=1 or LC_ALL=C.UTF-8."
            )


def _call_verb(args: list[str]) -> None:
    _check_encodable(args)
    if not args or args[0] in ("-h", "--help"):
        print(_help())
        return
    if args[0] == "--version":
        from proj import __version__

        print(f"{PACKAGE} {__version__}")
        return
    verb, *verb_args = args
    if verb not in VERBS:
        raise UserError(
            f"expected a verb, got {verb!r}.{nearest(verb, [*VERBS, '--help', '--version'])}"
        )
    name, function = VERBS[verb][0].split(":")
    # The modules of most verbs import torch, which takes seconds.
    is_first = f"{PACKAGE}.engine.{name}" not in sys.modules
    if is_first and verb_args in HELP and (text := kept_help(verb)):
        print(text, end="")
        return
    if is_first and verb in OPTIONS:
        check_flags(verb, verb_args, check_configs(verb_args))
    try:
        module = import_program(f"{PACKAGE}.engine.{name}")
    except ModuleNotFoundError as error:
        if error.name not in EXTRAS:
            raise
        raise UserError(
            f"{verb}: the package {error.name} is not installed; install the extra "
            f"{EXTRAS[error.name]}: python -m pip install --constraint constraints.txt --editable "
            f"'.[{EXTRAS[error.name]}]'."
        ) from error
    escape_output()
    getattr(module, function)(verb_args)


def _take_allow(args: list[str]) -> list[str]:
    """Apply each ``--allow PACKAGE`` of a command line; return the other words."""
    other_words, words = [], iter(args)
    for word in words:
        flag, equals, package = word.partition("=")
        if flag != "--allow":
            other_words.append(word)
        else:
            security.allow_package(package if equals else next(words, ""))
    return other_words


def _help() -> str:
    verbs = "\n".join(f"  {verb:10}{description}" for verb, (_, description) in VERBS.items())
    common = "\n".join(f"  {option.usage:18}{option.help}" for option in COMMON_OPTIONS)
    return (
        f"usage: python -m {PACKAGE} VERB [--config FILE] [--KEY VALUE]\n\n{verbs}\n\n"
        f"`python -m {PACKAGE} VERB --help` lists the options of a verb. Every verb also takes:\n\n"
        f"{common}"
    )
