"""The documents: commands and Python blocks run, links lead somewhere, maps are complete."""

import importlib
import importlib.util
import json
import re
import shlex
import shutil
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import pytest
import yaml
from PIL import Image

import processes
import proj
from conftest import CONFIGS, ROOT, Cli
from proj.engine import PACKAGE, class_paths
from proj.engine.cli import VERBS
from proj.engine.config.arguments import read_arguments
from proj.engine.config.experiment import ExperimentCLI

DOCS = ROOT / "docs"
PAGES = [path for path in sorted(DOCS.rglob("*.md")) if "_build" not in path.parts]
ROOT_PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
RUN_PAGES = [ROOT / "README.md", DOCS / "tutorial.md", *sorted((DOCS / "guides").glob("*.md"))]

BLOCK = re.compile(
    r"(?:<!-- test: (?P<mode>parse|skip) \((?P<reason>.+?)\) -->\n)?"
    r"```(?P<language>\w+)\n(?P<text>.*?)^```$",
    re.DOTALL | re.MULTILINE,
)
FILE = re.compile(r"# ([\w/.]+\.(?:py|yaml))\b")
PROGRAM = f"python -m {PACKAGE} "
# Commands that need an installation, a server or a cluster. `.ci/run` runs those of make.
OTHER_PROGRAMS = (
    "make ",
    "python3 -m venv ",
    ".venv/bin/python -m pip ",
    "source ",
    "tensorboard ",
)

# Flags that make a command of the documents quick.
EPOCHS = ["--trainer.max_epochs", "1"]
TRIMMED = {
    "fit": EPOCHS,
    "tune": ["--n_trials", "1", *EPOCHS],
    "cv": ["--folds", "2", "--seeds", "1", *EPOCHS],
}


class Block(NamedTuple):
    """A fenced block of a document."""

    mode: str  # run, parse or skip
    language: str
    text: str


def blocks_of(page: Path) -> list[Block]:
    matches = BLOCK.finditer(page.read_text(encoding="utf-8"))
    return [Block(match["mode"] or "run", match["language"], match["text"]) for match in matches]


def commands_of(block: Block) -> Iterator[str]:
    text = block.text.replace("\\\n", " ")
    for line in text.splitlines():
        if command := line.split("  # ")[0].strip():
            yield command


def docs_module(name: str) -> Any:
    """A program in ``docs/`` as a module."""
    spec = importlib.util.spec_from_file_location(f"docs_{name}", DOCS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def project(work: Path) -> Path:
    """A folder with the shipped configs and the data that the documents name."""
    shutil.copytree(ROOT / "configs", work / "configs")
    rng = np.random.default_rng(0)
    rows = 150
    tenure = rng.integers(1, 60, rows)
    table = pl.DataFrame(
        {
            "customer": [f"c{i % 50}" for i in range(rows)],
            "tenure": tenure,
            "fee": rng.normal(50, 10, rows).round(2),
            "plan": rng.choice(["basic", "plus", "pro"], rows),
            "churned": np.where(tenure + rng.normal(0, 10, rows) < 25, "yes", "no"),
        }
    )
    table.write_csv("churn.csv")
    table.head(9).drop("churned").write_csv("new.csv")
    np.savez("my.npz", x=rng.normal(size=(rows, 4)), y=rng.integers(0, 3, rows))
    for folder in ("my_images/cat", "my_images/dog", "new_images"):
        Path(folder).mkdir(parents=True)
        for i in range(24):
            pixels = rng.integers(0, 200, (12, 12, 3), dtype=np.uint8)
            pixels[:6] += 50 * folder.endswith("dog")
            Image.fromarray(pixels).save(f"{folder}/{i}.png")
    return work


@pytest.fixture
def add_module(project: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Write a file that a document names. A file of the package is found there by its short names,
    as if it stood in ``src/``.
    """
    shipped = class_paths.own_classes()
    added: dict[str, str] = {}
    monkeypatch.setattr(class_paths, "own_classes", lambda: shipped | added)

    def add(name: str, text: str) -> None:
        path = project / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        importlib.invalidate_caches()
        if name.startswith(f"src/{PACKAGE}/"):
            module = ".".join(path.relative_to(project / "src").with_suffix("").parts)
            package = importlib.import_module(module.rpartition(".")[0])
            monkeypatch.setattr(package, "__path__", [*package.__path__, str(path.parent)])
            classes = re.findall(r"^class (\w+)", text, re.MULTILINE)
            added.update({name: f"{module}.{name}" for name in classes})

    return add


def parse(verb: str, args: list[str]) -> None:
    """Check a command without running it: raises UserError or SystemExit if it is wrong."""
    if verb in ("tune", "cv"):
        parsed, rest = docs_module("verb_tables").parser_of(verb).parse_known_args(args)
        study = yaml.safe_load(Path(parsed.config).read_text())
        verb, args = "fit", ["--config", study.get("experiment", parsed.config), *rest]
    arguments = read_arguments(args, verb)
    ExperimentCLI(verb, arguments.configs, arguments.flags, instantiate=False)


def run_shell(block: Block, cli: Cli) -> None:
    for command in commands_of(block):
        if command.startswith(OTHER_PROGRAMS):
            continue
        assert command.startswith(PROGRAM), f"not a command of this project: {command}"
        verb, *args = shlex.split(command.removeprefix(PROGRAM))
        if block.mode == "parse":
            parse(verb, args)
        elif any(arg.endswith((".help", "--print_config")) for arg in args):
            assert cli(verb, *args)
        else:
            resumed = ["--trainer.max_epochs", "2"] if "--resume" in args else []
            cli(verb, *args, *(resumed or TRIMMED.get(verb, [])))


@pytest.mark.long
@pytest.mark.filterwarnings(
    "ignore:The '.*_dataloader' does not have many workers",
    "ignore::optuna.exceptions.ExperimentalWarning",
    # The workers of `tune` and `cv` end with the program, which is the test process here.
    "ignore::pytest.PytestUnraisableExceptionWarning",
    # `--help` lists subclasses, those of other tests in this process too.
    "ignore:\\s+Hit failing import",
)
@pytest.mark.parametrize("page", RUN_PAGES, ids=lambda page: page.stem)
@pytest.mark.usefixtures("quick_workers")
def test_the_blocks_of_a_page_run_in_order(
    page: Path, project: Path, cli: Cli, add_module: Callable[[str, str], None]
) -> None:
    """A command or an example that no longer works fails here."""
    namespace: dict[str, Any] = {"rows": pl.read_csv("new.csv")}
    for block in blocks_of(page):
        named = FILE.match(block.text)
        if block.mode == "skip":
            continue
        if block.language == "shell":
            run_shell(block, cli)
        elif named and block.language in ("python", "yaml"):
            add_module(named[1], block.text)
        elif block.language == "python":
            exec(compile(block.text, page.name, "exec"), namespace)
        elif block.language == "yaml":
            yaml.safe_load(block.text)


def test_every_shell_block_outside_the_run_pages_names_commands_that_exist() -> None:
    """A verb that is misspelled in the reference or the explanation fails here."""
    for page in {*PAGES, *ROOT_PAGES} - set(RUN_PAGES):
        for verb in re.findall(rf"{PROGRAM}([a-z]+)", page.read_text(encoding="utf-8")):
            assert verb in VERBS, f"{page.name} calls {PROGRAM}{verb}"


@pytest.mark.long
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the notebook's libraries
def test_the_notebook_runs_and_its_outputs_are_the_stored_ones(project: Path) -> None:
    """A change of the Python API that the notebook does not follow fails here."""
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    (project / "docs").mkdir()
    notebook = nbformat.read(DOCS / "from_python.ipynb", as_version=4)
    stored = [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]
    client = nbclient.NotebookClient(
        notebook, timeout=120, resources={"metadata": {"path": str(project / "docs")}}
    )
    # The kernel is a process of the server. It would end because its parent is not this process.
    options = ["-f", "{connection_file}", "--IPKernelApp.parent_handle=0"]
    kernel = [processes.stand_in(), "-m", "ipykernel_launcher", *options]
    client.create_kernel_manager().kernel_spec.argv = kernel
    client.execute()
    # Lightning's hint on machines that have the programs of SLURM.
    executed = [
        [output for output in cell.outputs if "`srun` command" not in output.get("text", "")]
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]
    for outputs in executed:
        for output in outputs:
            assert output.get("name") != "stderr", output.text
    assert _results(executed) == _results(stored)


def _results(cells: list[list[Any]]) -> list[str]:
    """Values of expressions, without what was printed: that names folders and times."""
    outputs = [output for cell in cells for output in cell]
    return ["".join(o.data["text/plain"]) for o in outputs if o.output_type == "execute_result"]


@pytest.mark.parametrize("page", [*PAGES, *ROOT_PAGES], ids=lambda page: page.stem)
def test_links_lead_to_files(page: Path) -> None:
    """A page or a file that moved fails here."""
    for link in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8")):
        assert link.startswith("https://") or (page.parent / link).exists(), link


@pytest.mark.parametrize("page", [*PAGES, *ROOT_PAGES[:2]], ids=lambda page: page.stem)
def test_files_that_a_page_names_exist(page: Path) -> None:
    """A file that was moved or renamed fails here."""
    text = BLOCK.sub("", page.read_text(encoding="utf-8"))
    folders = "src|tests|scripts|engine|config|training|runs|callbacks|models|data"
    for name in re.findall(rf"`((?:{folders})/[\w/]+\.\w+)`", text):
        places = (ROOT, ROOT / "src" / PACKAGE, ROOT / "src" / PACKAGE / "engine")
        assert any((place / name).exists() for place in places), name


def test_every_config_and_script_is_linked() -> None:
    """A shipped config or script that no document mentions fails here."""
    links = {
        (page.parent / link).resolve()
        for page in [*PAGES, *ROOT_PAGES]
        for link in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8"))
    }
    for path in [*CONFIGS, *ROOT.glob("configs/*/*.yaml"), *ROOT.glob("scripts/*.*")]:
        assert path.resolve() in links, path


def test_every_page_can_be_reached_from_the_readme_or_the_index() -> None:
    """A page that no other page links to fails here."""
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    for page in [*PAGES, DOCS / "from_python.ipynb"]:
        name = str(page.relative_to(DOCS).with_suffix(""))
        assert name == "index" or re.search(rf"^{name}$", index, re.MULTILINE), name


def test_the_readme_is_short() -> None:
    """The limits keep it an introduction; the rest belongs into docs/."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 130
    assert len(text.split()) <= 1000


def test_the_readme_lists_the_files_of_the_users_part() -> None:
    """A renamed file outside engine/ fails here. A file that a user adds needs no line."""
    package = ROOT / "src" / PACKAGE
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    tree = text[text.index(f"src/{PACKAGE}/\n") :].split("```")[0]
    listed = {line.split()[0] for line in tree.splitlines()[1:] if line.startswith("  ")}
    file_map = docs_module("file_map")
    ours = {
        str(path.relative_to(package))
        for path in file_map.files()
        if path.relative_to(package).parts[0] != "engine"
        and path.parent.name not in ("tabular", "images")
        and (path.name != "__init__.py" or path.parent.name in (PACKAGE, "metrics"))
    }
    packages = {f"data/{name}/" for name in ("tabular", "images")}
    assert listed <= ours | packages
    # Those that mypy checks strictly are the template's own.
    strict = strict_modules()
    modules = {name: name.removesuffix(".py").replace("/", ".") for name in ours}
    assert {name for name, module in modules.items() if module in strict} <= listed


def strict_modules() -> set[str]:
    """Return the modules of the user's part that mypy checks strictly, without the package."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    (modules,) = (
        override["module"]
        for override in settings["tool"]["mypy"]["overrides"]
        if "warn_return_any" in override
    )
    return {module.removeprefix(f"{PACKAGE}.") for module in modules}


def test_the_file_map_is_complete() -> None:
    """A module of the template that is missing, or whose docstring has changed, fails here."""
    file_map = docs_module("file_map")
    listed = set(re.findall(r"^\| `.*$", file_map.PAGE.read_text(encoding="utf-8"), re.MULTILINE))
    current = {line.strip() for line in list(file_map.table())[1:]}
    how = "the file map of the architecture page is not up to date; run: python docs/file_map.py"
    assert not listed - current, how
    missing = {
        line.split("`")[1].removesuffix(".py").replace("/", ".") for line in current - listed
    }
    inner = ("engine.", "data.tabular.", "data.images.")
    assert not {m for m in missing if m in strict_modules() or m.startswith(inner)}, how


def test_the_reference_has_every_flag_of_every_verb() -> None:
    """The generator reads the parsers; a verb whose parser it cannot read fails here."""
    reference = docs_module("verb_tables").markdown()
    for verb in VERBS:
        assert f"\n## {verb}\n" in reference
    for flag in ("--resume", "--n_trials", "--folds", "--keep", "--where", "--checkpoint.monitor"):
        assert f"`{flag}" in reference, flag


def test_the_version_of_the_package_has_an_entry_in_the_changelog() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"\n## {proj.__version__}" in text


def test_the_notebook_is_stored_with_outputs() -> None:
    """The site shows the stored outputs: a notebook saved without them fails here."""
    notebook = json.loads((DOCS / "from_python.ipynb").read_text(encoding="utf-8"))
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(cell["execution_count"] for cell in code)
