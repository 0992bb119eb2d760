"""Passwords, keys and tokens: neither printed nor recorded."""

import json
import logging
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import yaml

import proj
from conftest import Cli, files_in
from proj.engine.secrets import hide, is_secret_name, mask_urls, split_secrets, split_words
from proj.engine.terminal import escape_output

SECRETS = ["S3CRET-1", "S3CRET-2", "S3CRET-3", "S3CRET-4"]
OWN = """
from collections.abc import Callable
from proj.schema import Schema
from torch import nn
from lightning.pytorch.loggers import CSVLogger
import proj.data.arrays, proj.models.classification

class Data(proj.data.arrays.ArrayDataModule):
    def __init__(self, path: str, password: str, source: str, batch_size: int = 16):
        assert password == "S3CRET-1", password
        assert source == "postgresql://bob:S3CRET-2@host/db", source
        super().__init__(path, batch_size=batch_size)

class Logger(CSVLogger):
    def __init__(self, save_dir: str, api_key: str):
        super().__init__(save_dir)

class Model(proj.models.classification.MulticlassClassifier):
    def __init__(self, net: Callable[[Schema], nn.Module], hub_token: str = ""):
        super().__init__(net)
        self.save_hyperparameters("hub_token")
"""


@pytest.fixture
def flags(experiment: Any, work: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The command line of an experiment with secrets in its file and in flags."""
    (work / "own_parts.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(work))
    monkeypatch.delitem(sys.modules, "own_parts", raising=False)
    config = yaml.safe_load(experiment().read_text())
    config["trainer"]["max_epochs"] = 1
    config["data"]["class_path"] = "own_parts.Data"
    config["data"]["init_args"]["source"] = f"postgresql://bob:{SECRETS[1]}@host/db"
    config["model"]["class_path"] = "own_parts.Model"
    Path("secret.yaml").write_text(yaml.safe_dump(config))
    return [
        *["--config", "secret.yaml", "--data.password", SECRETS[0]],
        f"--model.hub_token={SECRETS[3]}",
    ]


LOGGER = {
    "class_path": "own_parts.Logger",
    "init_args": {"save_dir": "csv", "api_key": SECRETS[2]},
}


def assert_nothing_recorded(*texts: str) -> None:
    for secret in SECRETS:
        for text in texts:
            assert secret not in text
        for file in [*files_in(Path("lightning_logs")), *files_in(Path("csv"))]:
            folder = "lightning_logs" if Path("lightning_logs", file).exists() else "csv"
            assert secret.encode() not in Path(folder, file).read_bytes(), file


def test_a_run_records_no_secret(flags: list[str], cli: Cli) -> None:
    """Whoever gets the run would get the password of the database."""
    out = cli("fit", *flags)
    keys = "model.init_args.hub_token, data.init_args.password, data.init_args.source"
    assert "not recorded: " in out
    assert "data.init_args.password" in out
    config = yaml.safe_load(Path("lightning_logs/version_0/config.yaml").read_text())
    assert config["data"]["init_args"]["password"] == "<not recorded>"
    assert config["data"]["init_args"]["source"] == "postgresql://bob:***@host/db"
    missing = cli("test", code=2)
    assert f"{keys}: expected the value" in missing
    given = [
        "--data.password",
        SECRETS[0],
        "--data.source",
        f"postgresql://bob:{SECRETS[1]}@host/db",
    ]
    given += ["--model.hub_token", SECRETS[3]]
    assert_nothing_recorded(out, missing, cli("test", *given))


def test_the_config_of_a_run_names_the_missing_value(flags: list[str], cli: Cli) -> None:
    """A run would be repeated with a placeholder as its password."""
    flags = [*flags, "--trainer.logger", json.dumps(LOGGER)]
    out = cli("fit", *flags)
    assert_nothing_recorded(out)
    run = Path("lightning_logs/version_0/config.yaml")
    for words in (["fit", "--config", run], ["fit", "--resume", "version_0"]):
        message = cli(*words, code=2)
        assert "data.init_args.password" in message
        assert "trainer.logger.init_args.api_key" in message
        assert "because the run did not record it" in message
    # Another file and flags give the values again.
    cli("fit", "--config", run, *flags)


def test_python_trains_and_tests_with_secrets(flags: list[str], cli: Cli) -> None:
    """`proj.fit` would not test the run, because the password is not in its config."""
    run = proj.fit(
        "secret.yaml",
        {"data.password": SECRETS[0], "model.hub_token": SECRETS[3], "trainer.logger": LOGGER},
    )
    assert run.metrics("test")
    assert_nothing_recorded()


def test_an_error_masks_secrets(flags: list[str], cli: Cli) -> None:
    """A message about a wrong setting would show the password."""
    wrong = ["--data.batch_size", f"postgresql://bob:{SECRETS[1]}@host/db"]
    assert_nothing_recorded(
        cli("fit", *flags, *wrong, code=2),
        cli("fit", *flags, "--data.passwort", SECRETS[0], code=2),
        cli("fit", *flags, "--model.hub_token", f"[{SECRETS[3]}]", "--model.nets", "x", code=2),
    )


NAMES = {
    True: "api_key key token password wandb_api_key apiKey secretKey AWS_SECRET_ACCESS_KEY "
    "hf_token credentials db_passwd Authorization X-Api-Key secret_key_base password1 "
    "access_tokens key_value",
    False: "monitor_key sort_key tokenizer num_tokens max_tokens pad_token keys key_dim n_keys "
    "password_file token_path passes author target_key public_key monkey",
}


@pytest.mark.parametrize(
    ("name", "secret"), [(name, secret) for secret in NAMES for name in NAMES[secret].split()]
)
def test_names_of_secrets(name: str, secret: bool) -> None:
    """A key would be recorded, or a harmless setting would be missing."""
    assert is_secret_name(f"data.init_args.{name}") is secret


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("postgresql://bob:S3@CRET@h/db", "postgresql://bob:***@h/db"),
        ("mysql+x://u:p/w@h:1/d?password=x&a=b", "mysql+x://u:***@h:1/d?password=***&a=b"),
        ("see a://u:p@h and me@x.y", "see a://u:***@h and me@x.y"),
        ('{"u":"a://u:p@h","m":"x@y"}', '{"u":"a://u:***@h","m":"x@y"}'),
        ("https://ghp_x@github.com/a", "https://***@github.com/a"),
        ("http://host:80/path", "http://host:80/path"),
        ("sqlite:///x.db", "sqlite:///x.db"),
    ],
)
def test_passwords_in_urls_are_masked(text: str, masked: str) -> None:
    """The password of a database would be printed with its URL."""
    assert mask_urls(text) == masked


def test_names_of_columns_and_variables_are_no_secrets() -> None:
    """A column named password could not be dropped, or a harmless value would be missing."""
    harmless = {
        "data": {"init_args": {"columns": {"password": "drop", "api_key": "number"}}},
        "model": {"key": "$KEY", "token": None, "password": True, "class_weights": {"token": 2.0}},
    }
    assert split_secrets(harmless) == (harmless, {})
    words = ["fit", "--data.columns.password", "drop", "--data.columns", '{"token": "drop"}']
    assert split_words([*words, "--lr_find"]) == ([*words, "--lr_find"], {})


def test_secrets_in_a_command_line() -> None:
    """The manifest would record a key that was given as a flag."""
    words = [
        "tune",
        "--x.token",
        "abc",
        "--x.api_key=abc",
        "--s=db://u:abc@h",
        "--l",
        "[{key: abc}]",
    ]
    public, secrets = split_words(words)
    assert "abc" not in " ".join(public)
    assert public[:3] == ["tune", "--x.token", "<not recorded>"]
    assert set(secrets) == {"x.token", "x.api_key", "s", "l.0.key"}


def test_tracebacks_warnings_and_logs_are_printed_without_secrets(capsys: Any) -> None:
    """A library would print the password, or a name that the terminal obeys."""
    hide({"data.password": "S3CRET-9", "model.key": "word", "x.key": "monitor"})
    escape_output()
    text = "S3CRET-9 db://bob:pw@host \x1b[2J\u202e monitor\nforged"
    shown = "*** db://bob:***@host \\x1b[2J\\u202e monitor\n"
    try:
        raise ValueError(text)
    except ValueError as error:
        sys.excepthook(type(error), error, error.__traceback__)
    assert f"ValueError: {shown}forged" in capsys.readouterr().err
    record = logging.getLogRecordFactory()("x", 30, "x.py", 1, "%s", (text,), None)
    assert record.getMessage() == f"{shown}  forged"
    assert f"UserWarning: {shown}  forged" in warnings.formatwarning(text, UserWarning, "x.py", 1)
