"""Files that stand for a class or a section of an experiment, and configs that were printed."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from conftest import Cli

MODEL = """
class_path: MulticlassClassifier
init_args:
  net: net.yaml
  optimizer: {class_path: SGD, init_args: {lr: 0.1}}
"""


def write_files() -> None:
    Path("parts").mkdir()
    Path("parts/model.yaml").write_text(MODEL)
    Path("parts/net.yaml").write_text("class_path: MLP\ninit_args: {hidden: [4]}")
    # jsonargparse knows two classes of this name.
    stop = "- {class_path: EarlyStopping, init_args: {monitor: val/loss}}\n- Timer"
    Path("parts/callbacks.yaml").write_text(stop)
    Path("parts/trainer.yaml").write_text("max_epochs: 3\ncallbacks: callbacks.yaml")
    Path("whole.yaml").write_text("model: parts/model.yaml\ntrainer: parts/trainer.yaml")


def printed(cli: Cli, *args: Any) -> Any:
    return yaml.safe_load(cli("fit", *args, "--print_config"))


@pytest.mark.parametrize(
    "flags",
    [
        ["--model", "parts/model.yaml", "--trainer=parts/trainer.yaml"],
        ["--config", "whole.yaml"],
    ],
)
def test_a_file_stands_for_its_content(flags: list[str], experiment: Any, cli: Cli) -> None:
    """Short class names in such a file would be unknown, or ambiguous."""
    write_files()
    config = printed(cli, "--config", experiment(), *flags)
    assert config["model"]["init_args"]["optimizer"]["class_path"] == "torch.optim.SGD"
    assert config["model"]["init_args"]["net"]["init_args"]["hidden"] == [4]
    assert [callback["class_path"] for callback in config["trainer"]["callbacks"]] == [
        "lightning.pytorch.callbacks.EarlyStopping",
        "lightning.pytorch.callbacks.Timer",
    ]
    assert config["trainer"]["max_epochs"] == 3


def test_a_file_that_includes_itself_is_refused(experiment: Any, cli: Cli) -> None:
    """The command would not end."""
    Path("net.yaml").write_text("class_path: MLP\nnet: net.yaml")
    answer = cli("fit", "--config", experiment(), "--model.net", "net.yaml", code=2)
    assert "net.yaml: expected a file that does not include itself" in answer


@pytest.mark.parametrize("flags", [[], ["--name", "a", "--init_from", "b"], ["--lr_find"]])
def test_a_printed_config_is_an_experiment(flags: list[str], experiment: Any, cli: Cli) -> None:
    """A config that `--print_config` has written could not be read again."""
    args = ["--config", experiment(), *flags]
    text = cli("fit", *args, "--print_config")
    Path("printed.yaml").write_text(text)
    assert cli("fit", "--config", "printed.yaml", "--print_config") == text
    assert ("init_from" in yaml.safe_load(text)) == ("--init_from" in flags)
    assert "name" not in yaml.safe_load(text)


def test_a_class_alone_stands_for_a_section(experiment: Any, cli: Cli) -> None:
    """LightningCLI takes a class path where a class has no options."""
    config = yaml.safe_load(experiment().read_text())
    Path("short.yaml").write_text(yaml.safe_dump({**config, "model": "Regressor"}))
    found = cli("fit", "--config", "short.yaml", "--model.net", "MLP", "--print_config")
    assert yaml.safe_load(found)["model"]["class_path"].endswith(".Regressor")
