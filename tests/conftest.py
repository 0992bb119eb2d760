"""Fixtures that the tests share: a working folder, the command line, small data for every task."""

import gc
import importlib.util
import json
import os
import shutil
import socket
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import processes
import slurm_cluster
from proj.engine.cli import main
from proj.schema import Schema

ROOT = Path(__file__).parent.parent
TESTS = Path(__file__).parent
# The tests that render figures, by the beginning of their names: they look at figures or reports,
# or show that everything works together. In the others figures are made, but rendered blank.
RENDERED = (
    "engine/callbacks/test_monitoring",
    "engine/evaluation/test_report",
    "engine/evaluation/test_importance",
    "engine/evaluation/test_tensorboard",
    "engine/tuning/test_search.py::test_the_results_of_a_study",
    "engine/tuning/test_study_report",
    "test_configs",
    "test_cuda",
    "test_user_view",
)
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
QUIET = ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]
Cli = Callable[..., Any]
Once = Callable[[str, Callable[[], object]], None]
Trained = Callable[..., None]
SERVER = pytest.StashKey[processes.Server]()


def pytest_configure(config: pytest.Config) -> None:
    """Prepare a process that runs tests, and start the server of processes once per session."""
    if config.option.markexpr != "cuda":  # The other tests are about the CPU.
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    is_worker = hasattr(config, "workerinput")
    if not is_worker:
        config.stash[SERVER] = processes.Server()
    if is_worker or not config.getoption("numprocesses", None):
        # With xdist the first process only hands out tests: importing torch there takes seconds.
        # The garbage collector would look through the imported modules again and again.
        gc.disable()
        import torch

        torch.set_num_threads(1)  # The suite runs in two processes.


def pytest_collection_finish() -> None:
    """Exclude what was imported so far from garbage collection."""
    gc.collect()
    gc.freeze()
    # All objects are looked through ten times less often than by default.
    gc.set_threshold(700, 10, 100)
    gc.enable()


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the sums of the numbers that tests recorded, such as kills and damaged files."""
    sums: Counter[str] = Counter()
    for reports in terminalreporter.stats.values():
        for report in reports:
            if getattr(report, "when", None) == "call":
                sums.update(dict(report.user_properties))
    for name, count in sums.items():
        terminalreporter.write_line(f"{name}: {count:,}")


def pytest_unconfigure(config: pytest.Config) -> None:
    if SERVER in config.stash:
        config.stash[SERVER].close()


@pytest.fixture(autouse=True)
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Change to an empty folder for each test, and forget the modules imported from there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    yield tmp_path
    for name in sys.modules.keys() - before:
        if str(getattr(sys.modules[name], "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.fixture(scope="session", autouse=True)
def quick_commands() -> None:
    processes.save_time()


@pytest.fixture(autouse=True)
def blank_figures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Render blank figures in tests that do not look at them: rendering is most of `test`."""
    name = f"{request.path.relative_to(TESTS).as_posix()}::{request.node.name}"
    if name.startswith(RENDERED):
        return
    monkeypatch.setenv(processes.BLANK_FIGURES, "1")
    processes.render_blank_figures(monkeypatch.setattr)


@pytest.fixture
def quick_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the server start the workers of studies that run in this process."""
    monkeypatch.setattr(sys, "executable", processes.stand_in())


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    """Call the command line in this process and check its exit code.

    Returns what it printed: on standard output, or its error message for another code than 0.
    """

    def call(*args: Any, code: int = 0) -> str:
        verb, *rest = map(str, args)
        prints_help = any(arg.endswith("help") for arg in rest)
        if verb in ("fit", "test", "validate", "predict") and not prints_help:
            rest += QUIET
        capsys.readouterr()
        exit_code = main([verb, *rest])
        printed = capsys.readouterr()
        assert exit_code == code, f"exit code {exit_code}:\n{printed.out}\n{printed.err}"
        if code == 2:
            assert "Traceback" not in printed.err
            assert printed.err.count("\n") == 1, printed.err
        return printed.out if code == 0 else printed.err

    return call


def make_arrays(
    task: str, rows: int = 120, features: int = 6, seed: int = 0
) -> dict[str, np.ndarray[Any, Any]]:
    """Return ``x`` [rows, features] and ``y`` of a task, which a linear model learns in part."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, features)).astype(np.float32)
    scores = x @ rng.normal(size=(features, 3)) + rng.normal(size=(rows, 3))
    y = {
        "binary": np.where(scores[:, 0] > 0.8, "yes", "no"),
        "multiclass": scores.argmax(1) * 10,
        "multilabel": (scores > 0.5).astype(np.int64),
        "regression": 1000 + 50 * scores[:, 0],
        "regression_2": 1000 + 50 * scores[:, :2],
    }[task]
    return {"x": x, "y": y}


def plain_schema(task: str, shape: tuple[int, ...], outputs: int) -> Schema:
    """A schema without statistics, with classes 0, 1, … or targets of any name."""
    if task == "binary":
        return Schema.of(shape, classes=(0, 1))
    if task == "multiclass":
        return Schema.of(shape, classes=range(outputs), task="multiclass")
    names = ["target"] if outputs == 1 else [f"target_{i}" for i in range(outputs)]
    if task == "multilabel":
        return Schema.of(shape, labels=names)
    return Schema.of(shape, targets=names)


MODELS = {
    "binary": "BinaryClassifier",
    "multiclass": "MulticlassClassifier",
    "multilabel": "MultilabelClassifier",
    "regression": "Regressor",
    "regression_2": "Regressor",
}


@pytest.fixture
def experiment(work: Path) -> Callable[..., Path]:
    """Write data and an experiment of a task, and return the path of the experiment.

    Keyword arguments are sections of the experiment, merged over the defaults.
    """

    def write(task: str = "multiclass", rows: int = 120, **sections: dict[str, Any]) -> Path:
        np.savez(work / "data.npz", **make_arrays(task, rows))
        config: dict[str, Any] = {
            "seed_everything": 1,
            "trainer": {"max_epochs": 2, "accelerator": "cpu", "log_every_n_steps": 1},
            "model": {
                "class_path": MODELS[task],
                "init_args": {"net": {"class_path": "MLP", "init_args": {"hidden": [8]}}},
            },
            "data": {
                "class_path": "ArrayDataModule",
                "init_args": {"path": "data.npz", "batch_size": 16},
            },
        }
        for name, values in sections.items():
            target = (
                config[name]["init_args"]
                if name in ("model", "data")
                else config.setdefault(name, {})
            )
            target.update(values)
        path = work / "experiment.yaml"
        path.write_text(json.dumps(config))
        return path

    return write


@pytest.fixture(scope="session")
def kept_folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folders that ``once`` copies."""
    return tmp_path_factory.mktemp("kept_folders")


@pytest.fixture
def once(work: Path, kept_folders: Path) -> Once:
    """Call a function that writes files, or copy the files of its call in an earlier test.

    Absolute paths in a run, as in the state of a checkpoint callback, are those of that test.
    """

    def write(name: str, function: Callable[[], object]) -> None:
        kept = kept_folders / name
        if not kept.exists():
            function()
            shutil.copytree(work, kept)
        else:
            shutil.copytree(kept, work, dirs_exist_ok=True)

    return write


@pytest.fixture
def trained(experiment: Callable[..., Path], cli: Cli, once: Once) -> Trained:
    """Train the default experiment of a task once per session; its run is ``version_0``."""

    def train(task: str = "multiclass", rows: int = 120) -> None:
        config = experiment(task, rows)
        once(f"{task}_{rows}", lambda: cli("fit", "--config", config))

    return train


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Start Debian's Chromium, driven by playwright."""
    sync = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("Chromium is not installed; apt-get install chromium")
    with sync.sync_playwright() as play:
        opened = play.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield opened
        opened.close()


def watched(browser: Any, **options: Any) -> tuple[Any, list[str], list[str]]:
    """Return a new page, with lists of its errors and of the addresses it requests."""
    tab = browser.new_page(**({"viewport": {"width": 1600, "height": 1000}} | options))
    errors: list[str] = []
    requests: list[str] = []

    def on_console(message: Any) -> None:
        if message.type == "error":
            errors.append(message.text)

    tab.on("console", on_console)
    tab.on("pageerror", lambda error: errors.append(str(error)))
    tab.on("request", lambda request: requests.append(request.url))
    return tab, errors, requests


@pytest.fixture(scope="module")
def cluster() -> Iterator[slurm_cluster.Cluster]:
    """A real SLURM cluster with two nodes; each test gives its jobs a working folder."""
    if missing := slurm_cluster.missing_programs():
        pytest.skip(f"not installed: {', '.join(missing)}; apt-get install slurm-wlm munge")
    with slurm_cluster.running_cluster() as started:
        yield started


@pytest.fixture
def board(work: Path) -> Iterator[Callable[[], str]]:
    """Start a real TensorBoard on the runs in the working folder, and return its address."""
    started: list[processes.Process] = []

    def start() -> str:
        port = free_port()
        flags = f"--host 127.0.0.1 --port {port} --load_fast false".split()
        logs = work / "lightning_logs"
        started.append(processes.Process("tensorboard.main", "--logdir", logs, *flags))
        return f"http://127.0.0.1:{port}"

    yield start
    for process in started:
        process.kill()
        process.wait(timeout=30)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def ask(url: str, until: Callable[[Any], Any], body: Any = None, seconds: float = 60) -> Any:
    """Return the JSON at ``url`` once ``until`` holds: TensorBoard loads in the background."""
    data = None if body is None else json.dumps(body).encode()
    end = time.monotonic() + seconds
    while True:
        try:
            request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
            with urllib.request.urlopen(request, timeout=10) as answer:
                content = json.load(answer)
            if until(content):
                return content
        except (urllib.error.URLError, ConnectionError):
            content = None
        if time.monotonic() > end:
            raise AssertionError(f"TensorBoard did not show it within {seconds} s: {content}")
        time.sleep(0.1)


def script_of(name: str) -> Any:
    """Import a program in ``scripts/`` as a module."""
    spec = importlib.util.spec_from_file_location(f"script_{name}", ROOT / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def files_in(folder: Path) -> list[str]:
    """Return the paths of all files in a folder, relative to it and sorted."""
    return sorted(os.path.relpath(path, folder) for path in folder.rglob("*") if path.is_file())
