"""What the tests share: a folder of their own to work in, the command line, and small data of every task."""

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from proj.engine.cli import main
from proj.schema import Schema

torch.set_num_threads(1)  # the suite runs in two processes

ROOT = Path(__file__).parent.parent
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
QUIET = ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]
Cli = Callable[..., int]


def pytest_configure(config: pytest.Config) -> None:
    if config.option.markexpr != "cuda":  # the other tests are about the CPU, and fork
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


@pytest.fixture(autouse=True)
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Each test works in an empty folder, and what it imports from there is forgotten after it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    here = [
        name
        for name, module in sys.modules.items()
        if str(getattr(module, "__file__", None)).startswith(str(tmp_path))
    ]
    for name in here:
        del sys.modules[name]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    """The command line in this process; raises unless the exit code is the expected one."""

    def call(*args: str, code: int = 0) -> str:
        verb, *rest = map(str, args)
        quiet = (
            []
            if any(arg.endswith("help") for arg in rest)
            or verb not in ("fit", "test", "validate", "predict")
            else QUIET
        )
        capsys.readouterr()
        got = main([verb, *rest, *quiet])
        printed = capsys.readouterr()
        assert got == code, f"exit code {got}:\n{printed.out}\n{printed.err}"
        if code == 2:
            assert "Traceback" not in printed.err
            assert printed.err.count("\n") == 1, printed.err
        return printed.out if code == 0 else printed.err

    return call


def make_arrays(
    task: str, rows: int = 120, features: int = 6, seed: int = 0
) -> dict[str, np.ndarray[Any, Any]]:
    """Data that a linear model learns somewhat: ``x`` [rows, features] and ``y`` of the task."""
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
    """Write data and an experiment of a task; returns the config's path. Options: sections merged over the default."""

    def write(task: str = "multiclass", rows: int = 120, **sections: dict[str, Any]) -> Path:
        np.savez(work / "data.npz", **make_arrays(task, rows))
        config: dict[str, Any] = {
            "seed_everything": 1,
            "trainer": {"max_epochs": 2, "accelerator": "cpu", "log_every_n_steps": 1},
            "model": {
                "class_path": MODELS[task],
                "init_args": {"net": {"class_path": "MLP", "init_args": {"hidden": [8]}}},
            },
            "data": {"class_path": "Arrays", "init_args": {"path": "data.npz", "batch_size": 16}},
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


@pytest.fixture
def browser() -> Iterator[Any]:
    """Debian's Chromium, driven by playwright."""
    sync = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("there is no chromium; apt-get install chromium")
    with sync.sync_playwright() as play:
        opened = play.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield opened
        opened.close()


def watched(browser: Any, **options: Any) -> tuple[Any, list[str], list[str]]:
    """A new page, the errors it will tell, and the addresses it will ask for."""
    tab = browser.new_page(**({"viewport": {"width": 1600, "height": 1000}} | options))
    said: list[str] = []
    requests: list[str] = []
    tab.on(
        "console", lambda message: said.append(message.text) if message.type == "error" else None
    )
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.on("request", lambda request: requests.append(request.url))
    return tab, said, requests


@pytest.fixture
def board(work: Path) -> Iterator[Callable[[], str]]:
    """Starts a real TensorBoard on the runs that there are, and gives its address."""
    started: list[subprocess.Popen[bytes]] = []

    def start() -> str:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [
            sys.executable,
            "-m",
            "tensorboard.main",
            "--logdir",
            str(work / "lightning_logs"),
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
            "--load_fast",
            "false",
        ]
        started.append(
            subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        )
        return f"http://127.0.0.1:{port}"

    yield start
    for process in started:
        process.terminate()
        process.wait(timeout=30)


def ask(url: str, until: Callable[[Any], Any], body: Any = None, seconds: float = 60) -> Any:
    """The JSON at ``url``, asked for again until it is complete: TensorBoard loads runs in the background."""
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
        time.sleep(0.5)


def script_of(name: str) -> Any:
    """A program in ``scripts/`` as a module."""
    spec = importlib.util.spec_from_file_location(f"script_{name}", ROOT / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def files_in(folder: Path) -> list[str]:
    return sorted(os.path.relpath(p, folder) for p in folder.rglob("*") if p.is_file())
