"""A real TensorBoard process, asked over HTTP for what people look at."""

import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from conftest import Cli


@pytest.fixture
def board(experiment: Any, cli: Cli) -> Iterator[str]:
    cli("fit", "--config", experiment("binary"), "--name", "one")
    cli(
        "fit",
        "--config",
        experiment("binary"),
        "--name",
        "two",
        "--model.optimizer.lr",
        "0.1",
        "--data.batch_size",
        "8",
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", "lightning_logs", "--host", "127.0.0.1",
               "--port", str(port), "--load_fast", "false"]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(timeout=30)


def ask(url: str, until: Any, body: Any = None, seconds: float = 60) -> Any:
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


def test_tensorboard_serves_scalars_text_and_hparams(board: str) -> None:
    tags = ask(f"{board}/data/plugin/scalars/tags", lambda c: {"one", "two"} <= c.keys() and "best/val/f1" in c["two"])
    wanted = {
        "train/loss",
        "train/loss_step",
        "train/f1",
        "val/loss",
        "val/f1",
        "val/auroc",
        "lr-Adam",
        "gradient_norm",
    }
    assert wanted <= tags["one"].keys()
    curve = ask(f"{board}/data/plugin/scalars/scalars?run=one&tag=val%2Ff1", lambda c: len(c) == 2)
    assert all(0 <= value <= 1 for _, _, value in curve)
    texts = ask(f"{board}/data/plugin/text/tags", lambda c: len(c) == 2)
    assert "config/text_summary" in texts["one"]
    text = ask(f"{board}/data/plugin/text/text?run=one&tag=config%2Ftext_summary", lambda c: c)
    assert "BinaryClassifier" in text[0]["text"]
    experiment = ask(f"{board}/data/plugin/hparams/experiment", lambda c: c.get("hparamInfos"), body={})
    names = {info["name"] for info in experiment["hparamInfos"]}
    assert {"model.optimizer.lr", "data.batch_size", "seed_everything"} <= names
    groups = ask(
        f"{board}/data/plugin/hparams/session_groups",
        lambda c: len(c.get("sessionGroups", [])) == 2,
        body={"startIndex": 0, "sliceSize": 10, "allowedStatuses": ["STATUS_SUCCESS", "STATUS_UNKNOWN", "STATUS_RUNNING"],
              "colParams": [{"metric": {"tag": "best/val/f1", "group": ""}}]},
    )  # fmt: skip
    rates = {group["hparams"]["model.optimizer.lr"] for group in groups["sessionGroups"]}
    assert rates == {0.001, 0.1}
    assert all(g["metricValues"] for g in groups["sessionGroups"])
