"""What the verbs import, and packages whose parts are imported when they are used."""

import importlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import processes
from conftest import Cli, Trained
from proj.engine.lazy_packages import LazyFinder, import_when_used

# A verb in a process without any of these packages; prints the ones that it imports again.
VERB = """
import processes, sys
packages = {"lightning", "torchmetrics", "transformers", "sklearn", "jsonargparse", "tensorboard"}
packages |= {"matplotlib", "optuna"}
processes.forget("proj", *packages)
from proj.engine.cli import main
code = main(sys.argv[1:])
print("imported:", *sorted(packages & set(sys.modules)))
sys.exit(code)
"""

# The modules of `fit` in a process without the packages that torchmetrics and Lightning import.
FIT = """
import processes, sys
processes.forget("proj", "lightning", "torchmetrics", "transformers", "matplotlib", "tensorboard")
processes.forget("scipy", "sklearn", "polars", "PIL")
from proj.engine.lazy_packages import import_program
import_program("proj.engine.commands.fit")
metrics = [name for name in sys.modules if name.startswith("torchmetrics")]
unused = {"transformers", "matplotlib", "tensorboard", "scipy", "sklearn", "polars", "PIL"}
print(len(metrics), *sorted(unused & set(sys.modules)))
"""

NAMES = """
import importlib, json, sys
if "lazy" in sys.argv:
    from proj.engine.lazy_packages import LAZY_PACKAGES, import_when_used
    import_when_used("torchmetrics", LAZY_PACKAGES["torchmetrics"])
names = {}
parts = ("", ".classification", ".regression", ".functional", ".functional.classification", ".text")
for part in (*parts, ".functional.text", ".audio", ".utilities", ".wrappers", ".functional.image"):
    module = importlib.import_module(f"torchmetrics{part}")
    shown = [name for name in dir(module) if not name.startswith("_")]
    if "lazy" not in sys.argv:
        shown = [name for name in shown if name not in ("numpy", "scipy", "PIL", "os")]
    values = {name: getattr(module, name) for name in shown}
    names[module.__name__] = {
        name: getattr(value, "__name__", None) for name, value in sorted(values.items())
    }
print(json.dumps(names))
"""


@pytest.mark.parametrize(
    ("verb", "expected"), [("compare", []), ("report", ["matplotlib", "tensorboard"])]
)
def test_verbs_that_read_runs_do_not_import_lightning(
    verb: str, expected: list[str], trained: Trained, cli: Cli
) -> None:
    """`compare` and `report` would take two seconds more, because they import Lightning."""
    trained()
    cli("test", "--run", "version_0")
    runs = ["version_0"] if verb == "report" else ["version_0", "copy"]
    shutil.copytree("lightning_logs/version_0", "lightning_logs/copy")
    Path("verb.py").write_text(VERB)
    done = processes.run("verb.py", verb, *runs)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].split()[1:] == expected


def test_fit_imports_a_few_modules_of_torchmetrics() -> None:
    """A start would import all metrics, and with them transformers, SciPy and matplotlib."""
    Path("fit.py").write_text(FIT)
    done = processes.run("fit.py")
    assert done.returncode == 0, done.stderr
    count, *unused = done.stdout.split()
    assert unused == []
    assert 5 < int(count) < 40


@pytest.mark.long
def test_a_lazy_torchmetrics_has_the_names_of_the_whole_one() -> None:
    """A user's `torchmetrics.Accuracy` would be missing, or be the module of that name."""
    whole, lazy = (
        json.loads(subprocess.check_output([processes.REAL_PYTHON, "-c", NAMES, kind], text=True))
        for kind in ("whole", "lazy")
    )
    assert sum(map(len, whole.values())) > 400
    for module, names in whole.items():
        got = {name: lazy[module].get(name) for name in names}
        # Sub-packages and submodules that nobody has imported yet.
        modules = {name for name, value in names.items() if value == f"{module}.{name}"}
        assert {n: v for n, v in got.items() if n not in modules} == {
            n: v for n, v in names.items() if n not in modules
        }


@pytest.mark.long
def test_plots_and_optional_metrics_work_in_a_lazy_torchmetrics() -> None:
    """Plots need matplotlib, and metrics of texts transformers, which are not imported before."""
    program = """
import sys
from proj.engine.lazy_packages import LAZY_PACKAGES, import_when_used
import_when_used("torchmetrics", LAZY_PACKAGES["torchmetrics"])
import torch
from torchmetrics.classification import BinaryConfusionMatrix
metric = BinaryConfusionMatrix()
metric.update(torch.tensor([0.9, 0.1]), torch.tensor([1, 0]))
assert "matplotlib" not in sys.modules
figure, axes = metric.plot()
assert type(figure).__name__ == "Figure"
from torchmetrics.text import BERTScore
assert "transformers" in sys.modules
"""
    subprocess.run([processes.REAL_PYTHON, "-c", program], check=True)


# A package of the same forms, to see each rule


@pytest.fixture
def package(work: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """A package ``lazily`` that counts what it executes in ``lazily.log.executed``."""
    folder = Path("lazily")
    (folder / "inner").mkdir(parents=True)
    files = {
        "__init__.py": "import os as _os\n"
        "from lazily.about import *\n"
        "from lazily import inner\n"
        "from lazily.score import score, other as renamed\n"
        "from lazily.heavy import Heavy\n"
        "ready = 1\n"
        "__all__ = ['score', 'Heavy']\n"
        "if ready:\n"
        "    from lazily.optional import extra\n"
        "    __all__ += ['extra']\n",
        "about.py": "version = '3.1'\n",
        "log.py": "executed = []\n",
        "score.py": "from lazily.log import executed\n"
        "executed.append('score')\n"
        "def score(): return 'score'\n"
        "def other(): return 'other'\n",
        "heavy.py": "from lazily.log import executed\nexecuted.append('heavy')\nclass Heavy: ...\n",
        "optional.py": "from lazily.log import executed\nexecuted.append('optional')\nextra = 5\n",
        "inner/__init__.py": "from lazily.log import executed\nexecuted.append('inner')\n",
        "plots.py": "from lazily.log import executed\n"
        "executed.append('plots')\n"
        "Axes = executed[0]\n"
        "def draw(size, colour='red'): return size, colour\n",
    }
    for name, text in files.items():
        (folder / name).write_text(text)
    monkeypatch.syspath_prepend(work)
    import_when_used("lazily", ("lazily.plots",))
    yield importlib.import_module("lazily")
    sys.meta_path[:] = [f for f in sys.meta_path if not isinstance(f, LazyFinder)]
    processes.forget("lazily")


def executed() -> list[str]:
    return importlib.import_module("lazily.log").executed


def test_a_name_is_imported_from_its_module_when_it_is_used(package: ModuleType) -> None:
    """All modules would be executed at the start, or a name would be missing."""
    assert package.version == "3.1"
    assert package.ready == 1
    assert executed() == []
    assert package.renamed() == "other"
    assert executed() == ["score"]
    # The module `score` was imported, and `score` is still the function in it.
    assert package.score() == "score"
    namespace: dict[str, object] = {}
    exec("from lazily import Heavy, inner; from lazily.score import score", namespace)
    assert executed() == ["score", "heavy", "inner"]
    assert not hasattr(package, "nothing")
    with pytest.raises(ImportError, match="cannot import name 'nothing' from 'lazily'"):
        exec("from lazily import nothing", namespace)


def test_branches_are_executed_when_a_name_of_theirs_is_used(package: ModuleType) -> None:
    """A name of an optional package would be missing, also in ``from package import *``."""
    assert package.ready == 1
    namespace: dict[str, object] = {}
    exec("from lazily import *", namespace)
    assert namespace["extra"] == 5
    assert set(executed()) == {"inner", "score", "heavy", "optional"}
    assert {"Heavy", "extra", "score", "version", "renamed"} <= set(dir(package))


def test_a_late_module_is_executed_at_the_first_call(package: ModuleType) -> None:
    """Matplotlib would be imported for functions that nobody calls."""
    plots = importlib.import_module("lazily.plots")
    assert executed() == []
    executed().append("first")
    assert plots.draw(3, colour="blue") == (3, "blue")
    assert plots.draw(4) == (4, "red")
    assert executed() == ["first", "plots"]
    assert list[plots.Axes] is not None
