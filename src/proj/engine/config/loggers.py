"""Loggers that an experiment names, beside the run's own TensorBoard."""

import os
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from jsonargparse import ArgumentParser, Namespace
from lightning.pytorch.loggers import Logger

from proj.engine.callbacks.loggers import IDENTIFIED
from proj.engine.config.build_errors import explain_unbuilt
from proj.engine.secrets import is_placeholder
from proj.engine.write_paths import check_paths, texts
from proj.errors import UserError

# Options of loggers that name a run of their service, and the options with its identity.
NAME_OPTIONS = {"MLFlowLogger": "run_name", "WandbLogger": "name", "CometLogger": "name"}
ID_OPTIONS = {"MLFlowLogger": "run_id", "WandbLogger": "id", "CometLogger": "experiment_key"}
assert set(ID_OPTIONS) == IDENTIFIED

# Loggers of a service, with the option and its value that keep them from sending anything.
SERVICES = {
    "WandbLogger": ("offline", True),
    "CometLogger": ("online", False),
    "NeptuneLogger": ("mode", "offline"),
}
WANDB_MODES_WITHOUT_SERVER = ("offline", "dryrun", "disabled")
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def named_loggers(value: Any) -> list[Namespace]:
    """Return the classes with options that a value of ``trainer.logger`` names."""
    values = value if isinstance(value, list) else [value]
    return [logger for logger in values if isinstance(logger, Namespace)]


def build_loggers(value: Any, name: str, ids: dict[str, str]) -> list[Logger]:
    """Build the loggers that a value of ``trainer.logger`` names.

    Args:
        value: the value in the parsed experiment.
        name: name of the run, for the loggers whose run has no name yet.
        ids: by the name of a logger's class, the identity of the run that it goes on with.

    Raises:
        UserError: a logger cannot be built, for instance because its package is missing.
    """
    specs = [_with_run(spec.clone(), name, ids) for spec in named_loggers(value)]
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--logger", type=list[Logger])
    named = Namespace(logger=specs)  # type: ignore[no-untyped-call]
    try:
        built: list[Logger] = parser.instantiate(named).logger
    except Exception as error:  # jsonargparse passes on what a constructor raises.
        reason = explain_unbuilt(str(error), {"trainer": named.as_dict()})
        raise UserError(reason or f"trainer.logger: cannot be built: {error}.") from error
    return built


def _with_run(spec: Namespace, name: str, ids: dict[str, str]) -> Namespace:
    kind, options = class_name(spec), spec.get("init_args")
    if options is None:
        options = Namespace()  # type: ignore[no-untyped-call]
    for option, value in ((NAME_OPTIONS.get(kind), name), (ID_OPTIONS.get(kind), ids.get(kind))):
        if option is not None and value is not None and options.get(option) is None:
            options[option] = value
    spec["init_args"] = options
    return spec


def class_name(spec: Namespace) -> str:
    """Return the name of a logger's class without its module."""
    return str(spec.class_path).rpartition(".")[2]


def unusable(spec: Namespace) -> str | None:
    """Return why a verb may not use a logger that a run has recorded, None if it may.

    A run may come from other people. What is logged, such as the report, must not leave the working
    directory or this machine unless the user asks for it.
    """
    plain = spec.as_dict()
    if any(is_placeholder(text) for _, text in texts(plain)):
        return "its secrets are not recorded"
    if address := next(_addresses(class_name(spec), plain), None):
        return f"it sends to {address}"
    try:
        check_paths({"trainer": {"logger": plain}}, [])
    except UserError:
        return "it writes outside the working directory"
    return None


def _addresses(kind: str, spec: dict[str, Any]) -> Iterator[str]:
    """Yield the servers that a logger sends to, without those of this machine."""
    options = spec.get("init_args") or {}
    own = os.environ.get("MLFLOW_TRACKING_URI")
    for _, text in texts(options):
        host = urlsplit(text).hostname if re.match("https?://", text) else None
        if host is not None and host not in LOOPBACK and text != own:
            yield host
    if kind in SERVICES:
        option, silent = SERVICES[kind]
        mode = os.environ.get("WANDB_MODE") if kind == "WandbLogger" else None
        if options.get(option) != silent and mode not in WANDB_MODES_WITHOUT_SERVER:
            yield f"the service of {kind}"
