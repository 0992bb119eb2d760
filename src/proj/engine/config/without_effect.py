"""Settings that have no effect, because what they set is switched off or is not part of a verb."""

from collections.abc import Iterator
from typing import Any

from jsonargparse import Namespace

# By section, the key and its value that switch the section off.
SWITCHES: dict[str, tuple[str, bool | None]] = {
    "early_stopping": ("early_stopping.patience", None),
    "checkpoint": ("trainer.enable_checkpointing", False),
}

# Beginnings of the flags that change only training.
TRAINING_FLAGS = (
    "checkpoint.",
    "early_stopping.",
    "model.optimizer",
    "model.scheduler",
    "trainer.accumulate_grad_batches",
    "trainer.gradient_clip",
    "trainer.max_epochs",
    "trainer.max_steps",
    "trainer.max_time",
    "trainer.min_epochs",
    "trainer.min_steps",
    "trainer.val_check_interval",
)


def settings_without_effect(config: Namespace, defaults: Namespace) -> Iterator[str]:
    """Yield a sentence for each setting of an experiment that does not change its training.

    Args:
        config: the parsed experiment.
        defaults: the defaults of its parser.
    """
    for section, (needed, off) in SWITCHES.items():
        if config.get(needed) is not off:
            continue
        value = "null" if off is None else "false"
        for name in _changed(config[section].as_dict(), defaults[section].as_dict()):
            yield (
                f"{section}.{name} has no effect, because {needed} is {value}; change {needed}, or "
                f"leave {name} out."
            )


def flags_without_effect(verb: str, flags: list[str]) -> Iterator[str]:
    """Yield a sentence for each flag of a verb that evaluates a run, if it is about training."""
    for word in flags:
        key = word.removeprefix("--").partition("=")[0]
        if word.startswith("--") and key.startswith(TRAINING_FLAGS):
            yield f"--{key} has no effect in {verb}, which does not train; leave it out."


def _changed(values: dict[str, Any], defaults: dict[str, Any]) -> list[str]:
    # Older versions recorded 0 for a number that is not given.
    return [name for name, value in values.items() if (value or None) != (defaults[name] or None)]
