"""Bring a newer version of the template into this project, by a three-way merge.

usage: python scripts/update.py [--from SOURCE] [--version REF] [--base REF]

The branch `template` holds unchanged copies of the template under this project's name. An update
adds the newer version to it and merges it, so that git only asks about lines that both sides
changed. `python -m PACKAGE new` makes this branch. For a project that was cloned and renamed, name
the template's repository and the commit that was cloned:

    python scripts/update.py --from URL --base COMMIT

Afterwards `git merge --abort` undoes a merge with conflicts, and `git reset --hard ORIG_HEAD` one
without.
"""

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parent.parent
NAME = next(path.parent.name for path in ROOT.glob("src/*/__main__.py"))
BRANCH = "template"
# In the message of each commit of the branch.
SOURCE, VERSION = "Template-Source", "Template-Commit"
# Runs the script for renaming of the template's version, which refuses the names of installed
# packages: this project is one.
RENAME = """
import importlib.util, runpy, sys
importlib.util.find_spec = lambda name: None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def stop(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def git(*words: str, folder: Path = ROOT) -> str:
    """Run git and return its output."""
    done = subprocess.run(["git", *words], cwd=folder, capture_output=True, encoding="utf-8")
    if done.returncode:
        stop(f"git {words[0]}: {done.stderr.strip()}")
    return done.stdout.strip()


def succeeds(*words: str) -> bool:
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True).returncode == 0


def pristine_copy(source: str, version: str, target: Path, is_formatted: bool) -> str:
    """Write a version of the template under this project's name; return the commit.

    Args:
        source: URL or folder of the template's repository.
        version: branch, tag or commit.
        target: new folder.
        is_formatted: sort the imports, whose order depends on the name, as `make format` does.
    """
    git("clone", "--quiet", "--no-checkout", source, str(target), folder=target.parent)
    git("checkout", "--quiet", version, folder=target)
    commit = git("rev-parse", "HEAD", folder=target)
    names = [path.parent.name for path in target.glob("src/*/__main__.py")]
    if names != [NAME]:
        command = [sys.executable, "-c", RENAME, "scripts/rename.py", NAME]
        done = subprocess.run(command, cwd=target, capture_output=True, encoding="utf-8")
        if done.returncode:
            stop(f"the template cannot be renamed: {done.stderr.strip()}")
    if is_formatted:
        ruff = [sys.executable, "-m", "ruff"]
        # What it cannot fix is for `make lint`.
        subprocess.run([*ruff, "check", "--fix", "."], cwd=target, capture_output=True)
        subprocess.run([*ruff, "format", "."], cwd=target, capture_output=True, check=True)
    shutil.rmtree(target / ".git")
    return commit


def add_to_branch(copy: Path, message: str, parent: str | None) -> None:
    """Commit a folder as the next state of the branch."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder, "tree")
        git("worktree", "add", "--quiet", "--detach", "--no-checkout", str(tree))
        try:
            # The index of the worktree takes the files of the copy, whatever was there before.
            git("--work-tree", str(copy), "add", "--all", "--force", folder=tree)
            contents = git("write-tree", folder=tree)
            parents = ["-p", parent] if parent else []
            commit = git("commit-tree", contents, *parents, "-m", message)
        finally:
            git("worktree", "remove", "--force", str(tree))
    git("branch", "--force", BRANCH, commit)


def tracked_hashes(revision: str) -> dict[str, str]:
    """Return the hash of each file in a commit."""
    lines = git("ls-tree", "-r", "-z", revision).split("\0")
    return {line.split("\t")[1]: line.split()[2] for line in lines if line}


def record_base(source: str, base: str) -> None:
    """Make the branch from the version that this project was cloned at.

    The project may have been formatted after it was renamed, or not: the copy that has more files
    in common with its first commits is taken.
    """
    counts = {}
    for is_formatted in (True, False):
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder, "copy")
            commit = pristine_copy(source, base, copy, is_formatted)
            add_to_branch(copy, message_of(source, commit), None)
        own = tracked_hashes("HEAD")
        same = sum(own.get(name) == value for name, value in tracked_hashes(BRANCH).items())
        counts[is_formatted] = same, git("rev-parse", BRANCH)
    _, best = max(counts.values())
    git("branch", "--force", BRANCH, best)
    message = "Record the version of the template that this project began with"
    words = ("--strategy", "ours", "--allow-unrelated-histories", "--no-edit", "-m", message)
    git("merge", "--quiet", *words, BRANCH)


def message_of(source: str, commit: str) -> str:
    return f"Template {commit[:12]}\n\n{SOURCE}: {source}\n{VERSION}: {commit}"


def trailer(name: str) -> str | None:
    found = re.search(rf"^{name}: (.+)$", git("log", "-1", "--format=%B", BRANCH), re.MULTILINE)
    return found[1] if found else None


def main() -> None:
    parser = argparse.ArgumentParser(description="Bring a newer version of the template.")
    parser.add_argument("--from", dest="source", help="repository of the template, URL or folder")
    parser.add_argument("--version", default="HEAD", help="branch, tag or commit of the template")
    parser.add_argument("--base", help="commit that this project was cloned at")
    options = parser.parse_args()
    if git("status", "--porcelain", "--untracked-files=no"):
        stop("expected a repository without uncommitted changes; commit them first.")
    has_branch = succeeds("rev-parse", "--verify", "--quiet", f"refs/heads/{BRANCH}")
    source = options.source or (trailer(SOURCE) if has_branch else None)
    if source is None:
        stop("expected --from with the repository of the template.")
    source = str(Path(source).resolve()) if Path(source).exists() else source
    if not has_branch:
        if options.base is None:
            stop("expected --base with the commit of the template that this project began with.")
        record_base(source, options.base)
    before = trailer(VERSION)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "copy")
        commit = pristine_copy(source, options.version, copy, is_formatted=True)
        if commit == before:
            print(f"This project has the version {commit[:12]} of the template already.")
            return
        add_to_branch(copy, message_of(source, commit), git("rev-parse", BRANCH))
    merged = subprocess.run(["git", "merge", "--quiet", "--no-edit", BRANCH], cwd=ROOT)
    if merged.returncode:
        conflicts = git("diff", "--name-only", "--diff-filter=U").splitlines()
        stop(
            f"{len(conflicts)} files were changed here and in the template; edit them, then: "
            "git add FILE && git commit"
        )
    print(f"Merged the version {commit[:12]} of the template. Run: make format test")


if __name__ == "__main__":
    main()
