"""Inspect data and write a complete experiment for them."""

import argparse
import re
import shlex
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import get_args

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from proj.data.base import DataModule
from proj.engine import PACKAGE, console
from proj.engine.class_paths import own_classes
from proj.engine.config.parser import VerbParser
from proj.engine.escaping import visible
from proj.engine.runs.files import atomic_write
from proj.engine.training.data_checks import check_data, describe_positive
from proj.engine.yaml_text import yaml_key, yaml_value
from proj.errors import UserError
from proj.schema import Schema, Task

# Parts of experiments that the templates of the data modules include.
TEMPLATES = Path(__file__).parent.parent / "templates"


def init(args: list[str]) -> None:
    """Write ``configs/NAME.yaml`` for a table or a folder of images, and describe the data."""
    options = _parse(args)
    output = Path(options.output or f"configs/{_experiment_name(options.data)}.yaml")
    if output.exists() and not options.force:
        raise UserError(
            f"--output: expected a new file, got {output}, which exists; choose another name, or "
            "overwrite it with --force."
        )
    data = _open_data(options.data, options.target, options.task)
    data.prepare_data()
    data.setup("fit")
    data = _split_honestly(data)
    console.show_data(data)
    if line := describe_positive(data):
        console.say(line)
    console.show_findings(check_data(data), options.strict)
    text = _experiment_yaml(data, options.data)
    atomic_write(output, lambda file: file.write(text.encode()))
    console.say(f"written: {output}")
    console.say(f"train: python -m {PACKAGE} fit --config {shlex.quote(str(output))}")


def _split_honestly(data: DataModule) -> DataModule:
    """Return the data, split by group or by time if a random split would clearly claim too much."""
    if not getattr(data, "candidates", None):
        return data
    # It imports scikit-learn, which takes a second, and most data have no candidates.
    from proj.engine.baselines.optimism import HasCandidates, measure_optimism

    measured = measure_optimism(data)
    for optimism in measured:
        console.say(f"optimism of a random split: {optimism}")
    strong = [optimism for optimism in measured if optimism.is_strong]
    if not strong:
        return data
    largest = max(strong, key=lambda optimism: optimism.gap)
    option, column = largest.option, largest.column
    assert isinstance(data, HasCandidates)
    honest = data.split_by(option, column)
    try:
        honest.prepare_data()
        honest.setup("fit")
    except UserError as error:
        console.warn(f"the rows are split at random, since data.{option} is not possible: {error}")
        return data
    what, known = {
        "group": (f"rows of one {column} are alike", f"more rows of the same values of {column}"),
        "time": ("rows near in time are alike", "rows between the times of these rows"),
    }[option]
    console.say(
        f"the rows are split by data.{option}: {yaml_value(column)}, because {what}, and a random "
        f"split would claim {largest.metric} {largest.random:.3f} instead of {largest.honest:.3f}. "
        f"If the model will predict {known}, remove `{option}` from the experiment."
    )
    return honest


def _parse(args: list[str]) -> argparse.Namespace:
    parser = VerbParser("init", "Inspect data and write an experiment for them.")
    parser.add_argument(
        "data", help="a .csv, .tsv, .txt or .parquet file, a glob of them, or a folder of images"
    )
    parser.add_argument(
        "--target",
        help="the column to predict, or several, separated by commas; a name with a comma in "
        "double quotes",
    )
    parser.add_argument(
        "--task", choices=get_args(Task), help="what the targets are, if it is inferred wrongly"
    )
    parser.add_argument("--output", help="the file to write; default: configs/NAME.yaml")
    parser.add_argument("--force", action="store_true", help="overwrite the file")
    parser.add_argument("--strict", action="store_true", help="findings about the data are errors")
    return parser.parse_args(args)


def _experiment_name(path: str) -> str:
    """Return a name for the experiment, from the name of the file or folder."""
    stem = Path(path).stem if "*" not in Path(path).name else Path(path).parent.name
    return re.sub(r"\W+", "_", stem).strip("_").lower() or "experiment"


def _experiment_yaml(data: DataModule, path: str) -> str:
    """Return the commented experiment, rendered from the template of the data module.

    Each value is written as YAML on one line, or with the filter ``comment`` as a part of a
    comment, whatever characters it holds.
    """
    assert data.schema is not None
    template, values = data.experiment_template(path)
    # Autoescape marks the values that are YAML already, such as the results of macros.
    environment = Environment(
        loader=FileSystemLoader([template.parent, TEMPLATES]),
        autoescape=True,
        finalize=lambda value: value if isinstance(value, Markup) else Markup(yaml_value(value)),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["comment"] = lambda text: Markup(visible(text))
    environment.filters["key"] = lambda name: Markup(yaml_key(name)).replace("\n", "\n      ")
    return environment.get_template(template.name).render(
        **values, path=path, schema=data.schema, target_summary=_target_summary(data.schema)
    )


def _target_summary(schema: Schema) -> str:
    """Return the classes with their shares of the training rows, or targets with limits."""
    if not schema.class_counts:
        limits = _limit_texts(schema) or [""] * len(schema.target_names)
        return "numbers: " + ", ".join(map("".join, zip(schema.target_names, limits, strict=True)))
    counts = zip(schema.class_names, schema.class_counts, strict=True)
    shares = [f"{name} {count / schema.rows:.1%}" for name, count in counts]
    return ", ".join(shares[:8]) + (", …" if len(shares) > 8 else "")


def _limit_texts(schema: Schema) -> list[str]:
    """Return what to say of each target's limits; empty if no target has one."""
    limits = zip(schema.target_low, schema.target_high, strict=True)
    return [_limit_text(low, high) for low, high in limits]


def _limit_text(low: float, high: float) -> str:
    texts = [f"at least {low:g}"] if low > -sys.float_info.max else []
    texts += [f"at most {high:g}"] if high < sys.float_info.max else []
    return f" ({', '.join(texts)})" if texts else ""


def _open_data(path: str, target: str | list[str] | None, task: Task | None) -> DataModule:
    """Return a data module of the first class that reads the source."""
    for data_class in _data_modules():
        if (data := data_class.for_source(path, target, task)) is not None:
            return data
    raise UserError(
        "init: expected a .csv, .tsv, .txt or .parquet file, a glob of such files, an .npz file or "
        f"an existing folder of images, got {path}."
    )


def _data_modules() -> Iterator[type[DataModule]]:
    """Yield the data modules of this package, also a user's own, without naming any of them."""
    for path in own_classes().values():
        module, name = path.rsplit(".", 1)
        if module.startswith(f"{PACKAGE}.data."):
            own_class = getattr(import_module(module), name)
            if isinstance(own_class, type) and issubclass(own_class, DataModule):
                yield own_class
