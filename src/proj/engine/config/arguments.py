"""A command line taken apart: config files, flags, and which run. Nothing heavy is imported for it."""

import argparse
import json
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from proj.engine.class_paths import add_working_directory, resolve_classes, resolve_flag
from proj.errors import UserError, nearest

SECTIONS = ("trainer", "model", "data", "checkpoint", "early_stopping")

# What a verb takes beside the experiment itself; a run's config.yaml has none of it but `init_from`.
OPTIONS = {
    "fit": {
        "name": "Name of the run; null means the next version_N.",
        "init_from": "Run, or checkpoint file, whose weights to start from, as far as they fit.",
        "ckpt_path": "Checkpoint file to go on training from, in a new run.",
        "resume": "Go on with a run where it was stopped, in its own folder; without a name, the newest.",
    },
    "check": {"init_from": "Run, or checkpoint file, whose weights are to fit."},
    "validate": {},
    "test": {},
    "predict": {
        "output": "File for the predictions, .parquet or .csv; null means predict/ in the run's folder.",
        "keep": "Columns of the source to write beside the predictions, with commas between them.",
    },
}
for _verb in ("validate", "test", "predict"):
    OPTIONS[_verb] |= {
        "run": "Run to use, by name or folder; null means the newest finished one, or the newest like --config.",
        "ckpt_path": "Checkpoint to use: best (if null), last, or a file.",
    }
OPTIONS["validate"] |= {
    "calibrate": "temperature: fit one number that makes probabilities come true; `test` and `predict` apply it then.",
    "threshold": "Fit from which probability on a row is of the positive class, or has a label: f1 for the largest F1, "
    "precision=0.9 for the largest recall with that precision.",
}


class Arguments(NamedTuple):
    """A command line, taken apart before anything is imported for it."""

    files: list[str]
    configs: list[dict[str, Any]]  # their content, in the same order, with full class paths
    flags: list[str]
    run: str | None
    resume: str | None  # a run's name, or "" for the newest

    @property
    def root(self) -> Path:
        """Where to look for runs: ``lightning_logs`` in the Trainer's ``default_root_dir``, which is not parsed yet."""
        folder = None
        for config in self.configs:
            folder = config.get("trainer", {}).get("default_root_dir", folder)
        return Path(self.flag("--trainer.default_root_dir") or folder or ".") / "lightning_logs"

    def flag(self, wanted: str) -> str | None:
        """The value of a flag before the command line is parsed as a whole; the last one counts."""
        found = None
        for flag, following in zip(self.flags, [*self.flags[1:], None], strict=False):
            name, equals, inline = flag.partition("=")
            if name == wanted:
                found = inline if equals else following
        return found


def read_arguments(args: list[str], verb: str = "") -> Arguments:
    add_working_directory()
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("-c", "--config", action="append", default=[])
    parser.add_argument("--run")
    if verb == "fit":
        parser.add_argument("--resume", nargs="?", const="")
    try:
        known, flags = parser.parse_known_args(args)
    except argparse.ArgumentError as error:
        raise UserError(f"{error}.") from error
    for i, flag in enumerate(flags):
        name, equals, value = flag.partition("=")
        if name.startswith("--") and equals:
            flags[i] = f"{name}={resolve_flag(name, value)}"
        elif name.startswith("--") and i + 1 < len(flags):
            flags[i + 1] = resolve_flag(name, flags[i + 1])
    return Arguments(
        known.config,
        [read_config(Path(file)) for file in known.config],
        flags,
        known.run,
        getattr(known, "resume", None),
    )


def read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        folder = path if path.is_dir() else path.parent if path.parent.is_dir() else Path("configs")
        near = nearest(str(path), [str(file) for file in sorted(folder.glob("*.yaml"))])
        what = "a folder" if path.is_dir() else "which is no file"
        raise UserError(f"--config: expected a YAML file, got {path}, {what}.{near}")
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(config, dict):
        raise UserError(
            f"{path}: expected the keys of an experiment (trainer, model, data, …), got {type(config).__name__}."
        )
    keys = ("seed_everything", *SECTIONS, "init_from")
    for key, value in config.items():
        if key not in keys:
            raise UserError(
                f"{path}: no such key {key!r} in an experiment.{nearest(str(key), keys)}"
            )
        if key in SECTIONS and not isinstance(value, dict):
            raise UserError(f"{path}: {key}: expected a section of keys and values, got {value!r}.")
    try:
        json.dumps(config)
    except (TypeError, ValueError) as error:  # a date, or an alias that contains itself
        raise UserError(
            f"{path}: expected texts, numbers, lists and sections: {error}; put quotes around it."
        ) from error
    resolved: dict[str, Any] = resolve_classes(config)
    return resolved
