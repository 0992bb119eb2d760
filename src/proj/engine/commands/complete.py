"""Completion of verbs, flags, classes and runs in bash, zsh and fish."""

from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

from proj.engine import PACKAGE
from proj.engine.config.flag_index import (
    GROUPS,
    Index,
    build_in_background,
    build_index,
    class_of,
    read_index,
)
from proj.engine.config.options import OPTIONS
from proj.engine.config.parser import VerbParser
from proj.engine.config.yaml_file import read_yaml
from proj.engine.verbs import VERBS
from proj.errors import UserError

# Each calls `PROGRAM complete --words WORD...` with the words before the cursor, the last of which
# is the one to complete and may be empty. Where nothing is offered, the shell offers files.
SHELLS = {
    "bash": """
_{name}() {{
    local IFS=$'\\n'
    COMPREPLY=($({name} complete --words "${{COMP_WORDS[@]:1:COMP_CWORD}}" 2>/dev/null))
}}
complete -o default -o bashdefault -F _{name} {name}
""",
    "zsh": """
_{name}() {{
    local -a offers
    offers=("${{(@f)$({name} complete --words "${{(@)words[2,CURRENT]}}" 2>/dev/null)}}")
    [[ -n "$offers" ]] && compadd -a offers || _files
}}
compdef _{name} {name}
""",
    "fish": """
complete --command {name} --arguments \\
    '({name} complete --words (commandline -opc)[2..] (commandline -ct) 2>/dev/null)'
""",
}

# Flags whose value is a run, and verbs whose first words are runs.
RUN_FLAGS = ("--run", "--resume", "--init_from")
RUN_VERBS = ("compare", "ensemble", "report", "reproduce", "eject")
# Folders in the folder of runs that are no runs.
NO_RUNS = ("studies", "cv")


def complete(args: list[str]) -> None:
    """Print the completion script of a shell, or what may come next on a command line."""
    parser = VerbParser("complete", "Print the completion of a shell.")
    parser.add_argument("shell", nargs="?", choices=sorted(SHELLS), help="shell to print it for")
    parser.add_argument("--build", action="store_true", help="build the index of flags now")
    if args[:1] == ["--words"]:  # The words of another command line, as the shell has them.
        print("\n".join(offers(args[1:] or [""])))
        return
    options = parser.parse_args(args)
    if options.build:
        build_index(VERBS)
    elif options.shell:
        print(SHELLS[options.shell].format(name=PACKAGE).strip())
        if read_index() is None:
            build_in_background()
    else:
        raise UserError(f"complete: expected a shell, got none; choose {', '.join(SHELLS)}.")


def offers(words: list[str]) -> list[str]:
    """Return what may stand in place of the last word, which may be the beginning of it."""
    *before, last = words
    if not before:
        return _starting(last, [*VERBS, "--help", "--version"])
    verb = before[0]
    index = read_index()
    if index is None:
        build_in_background()
        return []
    if verb not in VERBS:
        return []
    if last.startswith("-"):
        return _starting(last, _flags(index, verb, before[1:], last))
    return _starting(last, _values(index, verb, before[1:]))


def _flags(index: Index, verb: str, before: list[str], last: str) -> list[str]:
    """Return the flags of a verb; options of a class once the flag begins with its key."""
    flags = [f"--{key}" for key in (*index.flags[verb], "help")]
    if verb not in OPTIONS:
        return flags
    files = [value for flag, value in pairwise(before) if flag == "--config"]
    configs = [content for file in files if (content := _read(file))]
    for key in GROUPS:
        if last.startswith(f"--{key}.") and (entry := class_of(index, key, before, configs)):
            flags += [f"--{key}.{option}" for option in entry.options]
    return flags


def _values(index: Index, verb: str, before: list[str]) -> list[str]:
    """Return the values of the flag before the cursor: classes and runs."""
    flag = before[-1].removesuffix("=") if before else ""
    key = flag.removeprefix("--")
    if key in GROUPS:
        return sorted(name for name, entry in index.classes.items() if key in entry.groups)
    if flag in RUN_FLAGS or (verb in RUN_VERBS and not flag.startswith("--")):
        return _runs()
    return sorted(SHELLS) if verb == "complete" else []


def _runs() -> list[str]:
    folder = Path("lightning_logs")
    if not folder.is_dir():
        return []
    return sorted(p.name for p in folder.iterdir() if p.is_dir() and p.name not in NO_RUNS)


def _starting(beginning: str, words: Iterable[str]) -> list[str]:
    return sorted({word for word in words if word.startswith(beginning)})


def _read(file: str) -> dict[str, object]:
    """Return an experiment, or nothing if it cannot be read: the verb says why."""
    try:
        content = read_yaml(Path(file))
    except UserError:
        return {}
    return content if isinstance(content, dict) else {}
