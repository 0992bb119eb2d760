"""`new` makes projects, and ``scripts/update.py`` brings newer versions of the template to them."""

import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ROOT, Cli
from proj.engine import PACKAGE

# The commit of a project of another layout, from which a project is updated.
OLD = "cf2e504"


def git(*words: str, folder: Path) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    command = ["git", *identity, *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout


def commit_all(folder: Path, message: str) -> None:
    git("add", "--all", folder=folder)
    git("commit", "--quiet", "-m", message, folder=folder)


def update(project: Path, *options: str, code: int = 0) -> str:
    """Run the script of a project; return what it printed."""
    for key, value in (("user.name", "a"), ("user.email", "a@b")):
        git("config", key, value, folder=project)
    command = [sys.executable, "scripts/update.py", *options]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


@pytest.fixture
def template(tmp_path: Path) -> Path:
    """A clone of this repository, to make newer versions in."""
    folder = tmp_path / "template"
    git("clone", "--quiet", str(ROOT), str(folder), folder=tmp_path)
    return folder


@pytest.mark.long
def test_a_new_project_is_updated(work: Path, cli: Cli, template: Path) -> None:
    """Changes of both sides are merged; only lines that both sides changed are asked about."""
    assert "project: bakery_forecasts" in cli("new", "bakery_forecasts")
    project = work / "bakery_forecasts"
    assert not git("status", "--porcelain", folder=project)
    assert PACKAGE not in [path.name for path in (project / "src").iterdir()]
    # A longer name makes longer lines.
    subprocess.run([sys.executable, "-m", "ruff", "check", "."], cwd=project, check=True)
    assert "already" in update(project, "--from", str(ROOT))

    net = Path("src/bakery_forecasts/nets/mlp.py")
    edit(project / "README.md", "# ", "# Bakery: ")
    edit(project / net, "class ", "OWN = 1\n\n\nclass ")
    (project / net.with_name("own.py")).write_text('"""Our own net."""\n')
    assert "uncommitted changes" in update(project, "--from", str(template), code=2)
    commit_all(project, "own changes")
    edit(template / "CONTRIBUTING.md", "# ", "# A newer version: ")
    edit(template / f"src/{PACKAGE}/nets/mlp.py", '"""', '"""Newer: ')
    (template / "new_file.md").write_text(f"import {PACKAGE}\n")
    (template / "SECURITY.md").unlink()
    commit_all(template, "newer")
    assert "Merged the version" in update(project, "--from", str(template))
    assert (project / "README.md").read_text().startswith("# Bakery: ")
    assert (project / "CONTRIBUTING.md").read_text().startswith("# A newer version: ")
    text = (project / net).read_text()
    assert text.startswith('"""Newer: ')
    assert "\nOWN = 1\n" in text
    assert (project / "new_file.md").read_text() == "import bakery_forecasts\n"
    assert not (project / "SECURITY.md").exists()
    changed = git("diff", "--name-only", "template", "HEAD", folder=project).split()
    assert changed == ["README.md", str(net), str(net.with_name("own.py"))]

    edit(template / "README.md", "# ", "# Newer: ")
    commit_all(template, "newest")
    # The repository is known from the update before.
    assert "1 files were changed here and in the template" in update(project, code=2)


@pytest.mark.long
def test_a_project_that_was_cloned_and_renamed_is_updated(tmp_path: Path, template: Path) -> None:
    """The branch of the template is made afterwards, from the commit that was cloned."""
    known = subprocess.run(["git", "cat-file", "-e", OLD], cwd=ROOT, capture_output=True)
    if known.returncode:
        pytest.skip("the history is not complete")
    project = tmp_path / "project"
    git("clone", "--quiet", str(ROOT), str(project), folder=tmp_path)
    git("checkout", "--quiet", "-b", "mine", OLD, folder=project)
    subprocess.run([sys.executable, "scripts/rename.py", "churned"], cwd=project, check=True)
    commit_all(project, "renamed")
    edit(project / "README.md", "# ", "# Churn: ")
    edit(project / "configs/digits.yaml", "max_epochs: ", "max_epochs: 1")
    (project / "src/churned/nets/own.py").write_text('"""Our own net."""\n')
    script = (ROOT / "scripts/update.py").read_text()
    (project / "scripts/update.py").write_text(script)
    commit_all(project, "own changes")
    assert "expected --base" in update(project, "--from", str(template), code=2)
    update(project, "--from", str(template), "--base", OLD)
    changed = git("diff", "--name-only", "template", "HEAD", folder=project).split()
    assert changed == ["README.md", "configs/digits.yaml", "src/churned/nets/own.py"]


def test_projects_that_cannot_be_made(work: Path, cli: Cli) -> None:
    """Nothing is left of a project that cannot be made."""
    Path("taken").mkdir()
    assert "which exists" in cli("new", "taken", code=2)
    assert "expected a new name" in cli("new", "torch", "--at", "there", code=2)
    assert not Path("there").exists()
