"""The verb init: look at the data and write a complete experiment for them."""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from proj.data.images import sources
from proj.data.images.datamodule import Images
from proj.data.images.decode import Picture, in_parallel, look
from proj.data.tabular import files
from proj.data.tabular.datamodule import Tabular
from proj.engine import PACKAGE, console
from proj.engine.commands.experiment_templates import MODELS, picture_experiment, table_experiment
from proj.engine.runs.run import atomic_write
from proj.engine.training.data_checks import check_data
from proj.errors import UserError

CHOOSING = 5_000  # pictures to choose the best epoch by, where there are many: more would be missed in training


def init(args: list[str]) -> None:
    """Write ``configs/NAME.yaml`` for a table or a folder of pictures, and print what the data are."""
    given = _arguments(args)
    output = Path(given.output or f"configs/{_name(given.data)}.yaml")
    if output.exists() and not given.force:
        raise UserError(
            f"there is a file {output} already; name another with --output, or overwrite it with --force."
        )
    data = _open(given)
    data.prepare_data()
    data.setup("fit")
    console.show_data(data)
    findings = check_data(data)
    console.show_findings(findings, given.strict)
    text = (
        table_experiment(data, given.data, given.target)
        if isinstance(data, Tabular)
        else picture_experiment(data, given.data)
    )
    atomic_write(output, lambda file: file.write(text.encode()))
    console.say(f"written: {output}")
    console.say(f"train: python -m {PACKAGE} fit --config {output}")


def _arguments(args: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        f"python -m {PACKAGE} init",
        description="Look at data and write an experiment for them.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "data", help="a .csv, .tsv, .txt or .parquet file, a glob of them, or a folder of pictures"
    )
    parser.add_argument(
        "--target", help="the column to predict, or several with commas between them"
    )
    parser.add_argument(
        "--task", choices=list(MODELS), help="what the targets are, if it is not what they seem"
    )
    parser.add_argument("--output", help="the file to write; configs/NAME.yaml if not given")
    parser.add_argument("--force", action="store_true", help="overwrite the file")
    parser.add_argument("--strict", action="store_true", help="findings about the data are errors")
    parser.error = _refuse  # type: ignore[method-assign]
    given = parser.parse_args(args)
    if given.target and "," in given.target:
        given.target = given.target.split(",")
    return given


def _refuse(message: str) -> Any:
    raise UserError(f"init: {message}.")


def _name(path: str) -> str:
    """A name for the experiment, from the file's or folder's."""
    stem = Path(path).stem if "*" not in Path(path).name else Path(path).parent.name
    return re.sub(r"\W+", "_", stem).strip("_").lower() or "experiment"


def _open(given: argparse.Namespace) -> Tabular | Images:
    if Path(given.data).is_dir() or given.data.endswith(".npz"):
        if given.target or given.task:
            raise UserError(
                "--target and --task are for tables; the class of a picture is its folder's name, or in y."
            )
        source = sources.pictures_of(
            given.data, sources.folder_of(given.data, predict=False), predict=False
        )
        share = min(0.15, round(CHOOSING / max(1, (source.parts == "train").sum()), 3))
        return Images(given.data, size=fitting_size(source.items), val_fraction=share)
    if given.target is None:
        names = files.scan(files.files_of(given.data, "DATA")).collect_schema().names()
        raise UserError(
            f"--target: expected a column of {given.data}, got none; it has {', '.join(names[:30])}."
        )
    return Tabular(given.data, given.target, task=given.task)


def fitting_size(items: Sequence[Picture]) -> int | None:
    """What to scale pictures to that are not small and all alike: 32 or 64 pixels, by the size that is in the middle."""
    items = items[:: -(-len(items) // 500)]
    sizes = np.zeros((len(items), 2), np.int64)

    def measure(i: int) -> None:
        sizes[i] = look(items[i])[1:]

    failed = in_parallel(measure, len(items), "looking at pictures")  # preparing will name them
    sizes = np.delete(sizes, list(failed), axis=0)
    if not len(sizes) or ((sizes == sizes[0]).all() and sizes.max() <= 64):
        return None
    return 32 if np.median(sizes.min(axis=1)) < 48 else 64
