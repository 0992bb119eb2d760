"""Make a new project from this template."""

import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from proj.engine import PACKAGE, console
from proj.engine.config.parser import VerbParser
from proj.errors import UserError

ROOT = Path(__file__).parents[4]
# The branch that `scripts/update.py` merges newer versions of the template from.
BRANCH = "template"


def new(args: list[str]) -> None:
    """Copy the template under another name into a new git repository."""
    parser = VerbParser("new", "Make a new project from this template, in a git repository.")
    parser.add_argument("name", help="name of the package: lower-case letters, digits and _")
    parser.add_argument("--at", help="new folder; default: the name, in the working directory")
    options = parser.parse_args(args)
    target = Path(options.at or options.name)
    if target.exists():
        raise UserError(f"new: expected a new folder, got {target}, which exists; choose another.")
    if not (ROOT / ".git").exists():
        raise UserError(
            f"new: expected {PACKAGE} to be installed from a git repository of the template, got "
            f"{ROOT}; clone the template, and run `new` there."
        )
    source = _git("config", "--default", str(ROOT), "--get", "remote.origin.url", folder=ROOT)
    commit = _git("rev-parse", "HEAD", folder=ROOT)
    _git("clone", "--quiet", "--no-hardlinks", str(ROOT), str(target.absolute()), folder=ROOT)
    try:
        _rename(target, options.name)
        _start_history(target, source, commit)
    except BaseException:
        shutil.rmtree(target)
        raise
    console.say(f"project: {target} (version {commit[:12]} of the template); in it: make fit")


def _rename(target: Path, name: str) -> None:
    command = [sys.executable, "scripts/rename.py", name]
    done = subprocess.run(command, cwd=target, capture_output=True, encoding="utf-8")
    if done.returncode:
        raise UserError(f"new: {done.stderr.strip().removeprefix('error: ')}.")
    # The order of imports depends on the name. Without the extra `dev`, `make format` sorts them.
    if find_spec("ruff") is not None:
        ruff = [sys.executable, "-m", "ruff"]
        subprocess.run([*ruff, "check", "--fix", "."], cwd=target, capture_output=True)
        subprocess.run([*ruff, "format", "."], cwd=target, capture_output=True, check=True)


def _start_history(target: Path, source: str, commit: str) -> None:
    """Make the copy the first commit of the project, on which later updates build."""
    shutil.rmtree(target / ".git")
    message = f"Template {commit[:12]}\n\nTemplate-Source: {source}\nTemplate-Commit: {commit}"
    identity = ["-c", f"user.name={PACKAGE}", "-c", "user.email=template@localhost"]
    _git("init", "--quiet", "--initial-branch", BRANCH, folder=target)
    _git("add", "--all", folder=target)
    _git(*identity, "commit", "--quiet", "-m", message, folder=target)
    _git("checkout", "--quiet", "-b", "main", folder=target)


def _git(*words: str, folder: Path) -> str:
    """Run git and return its output."""
    done = subprocess.run(["git", *words], cwd=folder, capture_output=True, encoding="utf-8")
    if done.returncode:
        raise UserError(f"new: git {words[0]}: {done.stderr.strip()}.")
    return done.stdout.strip()
