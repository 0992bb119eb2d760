"""Settings without an effect are said, and settings with one are not."""

from typing import Any

import pytest

from conftest import QUIET
from proj.engine.cli import main
from proj.engine.config.without_effect import flags_without_effect


@pytest.mark.parametrize(
    ("flags", "warnings"),
    [
        (
            ["--early_stopping.monitor", "val/f1"],
            ["early_stopping.monitor has no effect, because early_stopping.patience is null"],
        ),
        (
            ["--trainer.enable_checkpointing", "false", "--checkpoint.every_n_steps", "3"],
            ["checkpoint.every_n_steps has no effect, because trainer.enable_checkpointing is"],
        ),
        (["--early_stopping.monitor", "val/f1", "--early_stopping.patience", "3"], []),
        (["--checkpoint.monitor", "val/loss"], []),
        (["--early_stopping.min_delta", "0.0"], []),  # as older versions recorded it
    ],
)
def test_an_option_of_what_is_switched_off(
    flags: list[str],
    warnings: list[str],
    experiment: Any,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["check", "--config", str(experiment()), *flags]) == 0
    said = capsys.readouterr().err
    assert said.count("has no effect") == len(warnings)
    assert all(warning in said for warning in warnings)


def test_a_flag_about_training_in_a_verb_that_evaluates(
    experiment: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", "--config", str(experiment()), "--trainer.max_epochs", "1", *QUIET]) == 0
    capsys.readouterr()
    assert main(["test", "--trainer.max_epochs", "3", "--data.batch_size=4", *QUIET]) == 0
    said = capsys.readouterr().err
    assert said.count("has no effect") == 1
    assert "--trainer.max_epochs has no effect in test" in said
    assert not list(flags_without_effect("test", ["--trainer.devices", "2", "early_stopping.x"]))
