"""Parser of an experiment that prints a config without the options of its verb."""

from enum import Enum
from typing import Any

import torch
from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser


class ExperimentParser(LightningArgumentParser):
    """LightningCLI's parser; what it writes is an experiment, which ``--config`` reads again.

    Attributes:
        unrecorded: options of the verb, such as the name of a run, that no experiment holds.
        recorded_if_set: options that an experiment holds only with a value.
    """

    unrecorded: frozenset[str] = frozenset()
    recorded_if_set: frozenset[str] = frozenset()

    def dump(self, cfg: Namespace, *args: Any, **options: Any) -> str:
        unset = {name for name in self.recorded_if_set if not cfg.get(name)}
        experiment = _plain(cfg)
        for name in self.unrecorded | unset:
            experiment.pop(name, None)
        text: str = super().dump(experiment, *args, **options)
        return text


def _plain(value: Any) -> Any:
    """Return a copy with texts in place of devices, and of members of enumerations of texts.

    They are defaults of Lightning's callbacks that YAML cannot hold.
    """
    if isinstance(value, torch.device):
        return str(value)
    if isinstance(value, Namespace):
        copy = Namespace()  # type: ignore[no-untyped-call]
        for name, inner in vars(value).items():
            copy[name] = _plain(inner)
        return copy
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(_plain, value)) if type(value) in (list, tuple) else value
    return str(value.value) if isinstance(value, str) and isinstance(value, Enum) else value
