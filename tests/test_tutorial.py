"""The tutorial: `fit` gives the weights of its loop, to the bit; its commands serve a model."""

import json
import os
import re
import shutil
import socket
import subprocess
import time
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from sklearn.datasets import load_diabetes
from sklearn.model_selection import train_test_split
from torch import nn

import processes
import proj
from conftest import ROOT, Cli
from proj.nets.mlp import SimpleNN


class TutorialNN(nn.Module):
    """The net as the tutorial writes it."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(10, 50)
        self.relu = nn.ReLU()
        self.fc2 = nn.Linear(50, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.relu(self.fc1(x)))


def train_with_plain_loop(seed: int, epochs: int) -> dict[str, torch.Tensor]:
    x, y = load_diabetes(return_X_y=True)
    # The split of the template: 15 % of all rows for test, 15 % of all rows for validation.
    rest, _ = train_test_split(np.arange(len(x)), test_size=round(0.15 * len(x)), random_state=0)
    train, _ = train_test_split(np.sort(rest), test_size=round(0.15 * len(x)), random_state=0)
    inputs = torch.from_numpy(x[np.sort(train)]).float()
    targets = torch.from_numpy(y[np.sort(train)]).float()[:, None]
    torch.manual_seed(seed)
    model = TutorialNN()
    criterion = nn.MSELoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(epochs):
        outputs = model(inputs)
        loss = criterion(outputs, targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.state_dict()


def test_fit_gives_the_weights_of_the_plain_loop(cli: Cli) -> None:
    """The template must train as the loop that its users know."""
    cli("fit", "--config", ROOT / "configs/simple_nn.yaml")
    checkpoint = torch.load("lightning_logs/version_0/checkpoints/last.ckpt", weights_only=True)
    weights = train_with_plain_loop(seed=42, epochs=100)
    for name, expected in weights.items():
        assert torch.equal(checkpoint["state_dict"][f"net.{name}"], expected), name


def test_another_seed_gives_other_weights(cli: Cli) -> None:
    """The test above would pass for nothing if the weights did not depend on the seed."""
    flags = ["--seed_everything", "43", "--trainer.max_epochs", "2"]
    cli("fit", "--config", ROOT / "configs/simple_nn.yaml", *flags)
    checkpoint = torch.load("lightning_logs/version_0/checkpoints/last.ckpt", weights_only=True)
    weight = checkpoint["state_dict"]["net.fc1.weight"]
    assert not torch.equal(weight, train_with_plain_loop(42, 2)["fc1.weight"])


def test_simple_nn_is_the_net_of_the_tutorial() -> None:
    """The experiment would no longer be that of the tutorial."""
    torch.manual_seed(0)
    ours = SimpleNN()
    torch.manual_seed(0)
    theirs = TutorialNN()
    x = torch.randn(5, 10)
    assert torch.equal(ours(x), theirs(x))


@pytest.mark.long
def test_the_journey_from_a_table_to_a_served_model(work: Path) -> None:
    """The commands run as they are printed, and the answer is that of the run."""
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    rng = np.random.default_rng(0)
    tenure = rng.integers(1, 60, 200)
    columns = {
        "tenure": tenure,
        "fee": rng.normal(50, 10, 200).round(2),
        "plan": rng.choice(["basic", "plus", "pro"], 200),
        "churned": np.where(tenure + rng.normal(0, 10, 200) < 25, "yes", "no"),
    }
    pl.DataFrame(columns).write_csv("churn.csv")
    text = (ROOT / "docs/tutorial.md").read_text().partition("## From a table")[2]
    _, journey, request = re.findall(r"```shell\n(.*?)```", text, re.DOTALL)
    *commands, serve = journey.splitlines()
    # Another program may use the port that is printed.
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
    env = {**os.environ, "PATH": f"{Path(processes.stand_in()).parent}:{os.environ['PATH']}"}
    shell = ["bash", "-euo", "pipefail", "-c"]
    subprocess.run([*shell, "\n".join(commands)], check=True, env=env, capture_output=True)
    server = subprocess.Popen([*shell, f"exec {serve} --port {port}"], env=env)
    try:
        for _ in range(600):
            ask = [*shell, request.replace("8000", port)]
            process = subprocess.run(ask, env=env, capture_output=True, text=True)
            if not process.returncode:
                break
            time.sleep(0.1)
    finally:
        server.terminate()
        assert server.wait(20) == 0
    answer = json.loads(process.stdout)["predictions"][0]
    row = pl.DataFrame({"tenure": [36], "fee": [49.9], "plan": ["plus"]})
    expected = proj.load("version_0").predict(row).to_dicts()[0]
    assert answer["prediction"] == expected["prediction"]
    assert answer["probability_yes"] == pytest.approx(expected["probability_yes"], rel=1e-5)
