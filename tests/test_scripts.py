"""``scripts/rename.py`` renames the whole project, ``scripts/release.py`` tags a version."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from conftest import ROOT

PACKAGE = next(path.parent for path in ROOT.glob("src/*/__main__.py"))


def rename(tree: Path, name: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "scripts/rename.py", name]
    return subprocess.run(command, cwd=tree, capture_output=True, text=True, check=False)


@pytest.fixture
def tree(work: Path) -> Path:
    ignored = shutil.ignore_patterns(
        ".git",
        ".venv",
        ".hypothesis",
        ".cache",
        "*_cache",
        "__pycache__",
        "*.egg-info",
        "_build",
        "version_*",
    )
    shutil.copytree(ROOT, work / "tree", ignore=ignored)
    for command in (["git", "init", "--quiet"], ["git", "add", "."]):
        subprocess.run(command, cwd=work / "tree", check=True)
    return work / "tree"


def test_the_renamed_package_has_no_trace_of_the_old_name(tree: Path) -> None:
    """That its own suite passes is shown by `.ci/run`."""
    done = rename(tree, "renamed_copy")
    assert done.returncode == 0, done.stderr
    for path in tree.rglob("*"):
        if {".git", "lightning_logs"} & set(path.relative_to(tree).parts):
            continue
        assert PACKAGE.name not in path.relative_to(tree).parts
        if path.is_file() and path.suffix in (".py", ".toml", ".md", ".ipynb", ".yaml", ".txt", ""):
            assert not re.search(rf"\b{PACKAGE.name}\b", path.read_text()), path
    environment = os.environ | {"PYTHONPATH": str(tree / "src")}
    command = [sys.executable, "-m", "renamed_copy", "--help"]
    done = subprocess.run(
        command, cwd=tree, env=environment, capture_output=True, text=True, check=False
    )
    assert "usage: python -m renamed_copy VERB" in done.stdout, done.stderr


def test_data_recorded_runs_and_untracked_files_stay_as_they_are(tree: Path) -> None:
    """Rewritten data, or a user's own notes, could not be recovered."""
    old = PACKAGE.name
    (tree / "data.csv").write_text(f"name\n{old}\n")
    (tree / "data").mkdir()
    (tree / "data/words.txt").write_text(f"{old}\n")
    subprocess.run(["git", "add", "."], cwd=tree, check=True)
    (tree / "notes.md").write_text(f"{old}\n")
    runs = tree / "tests/engine/runs/runs_of_0.1"
    before = {path: path.read_bytes() for path in runs.rglob("*") if path.is_file()}
    assert rename(tree, "renamed_copy").returncode == 0
    assert (tree / "data.csv").read_text() == f"name\n{old}\n"
    assert (tree / "data/words.txt").read_text() == f"{old}\n"
    assert (tree / "notes.md").read_text() == f"{old}\n"
    assert {path: path.read_bytes() for path in before} == before


def test_without_git_nothing_is_renamed(tree: Path) -> None:
    """Without git there is no list of the files that belong to the project."""
    shutil.rmtree(tree / ".git")
    done = rename(tree, "renamed_copy")
    assert done.returncode == 2
    assert "expected a git repository" in done.stderr
    assert (tree / "src" / PACKAGE.name).exists()


@pytest.mark.parametrize("name", ["Churn", "my-name", "random", "torch", "class", "1a", ""])
def test_a_name_that_python_cannot_use_is_refused(name: str, tree: Path) -> None:
    done = rename(tree, name)
    assert done.returncode == 2
    assert "expected a new name of lower-case letters" in done.stderr
    assert (tree / "src" / PACKAGE.name).exists()


def test_a_release_is_a_tag_with_the_notes_of_its_version(tree: Path) -> None:
    """Lines that begin with # are headings, not comments."""
    command = [sys.executable, "scripts/release.py"]

    def release(code: int) -> str:
        done = subprocess.run(command, cwd=tree, capture_output=True, text=True)
        assert done.returncode == code, done.stderr
        return done.stdout + done.stderr

    version = tomllib.loads((tree / "pyproject.toml").read_text())["project"]["version"]
    changelog, older = tree / "CHANGELOG.md", "## 0.0.1 (2029-01-01)\n\nOlder.\n"
    changelog.write_text(
        f"# Changelog\n\n## {version} (unreleased)\n\n### Runs\n\n- New.\n\n{older}"
    )
    assert f"expected the date of {version}, got unreleased" in release(2)
    changelog.write_text(changelog.read_text().replace("unreleased", "2030-01-02"))
    assert "expected a clean working tree" in release(2)
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", *identity, "commit", "-qam", "release"], cwd=tree, check=True)
    for key, value in (("user.name", "a"), ("user.email", "a@b")):
        subprocess.run(["git", "config", key, value], cwd=tree, check=True)
    assert f"tagged v{version}" in release(0)
    shown = subprocess.run(
        ["git", "tag", "--list", "--format=%(contents)", f"v{version}"],
        cwd=tree,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert shown.strip() == f"v{version}\n\n### Runs\n\n- New."
    assert f"expected a new version, v{version} exists" in release(2)
