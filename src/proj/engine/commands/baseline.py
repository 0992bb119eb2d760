"""Fit standard learners on the splits and columns of an experiment."""

import re
import time
from pathlib import Path
from typing import NamedTuple

from proj.data.base import DataModule
from proj.engine import console
from proj.engine.baselines.fitting import (
    CONSTANT,
    FittedBaseline,
    constant,
    fit_baseline,
    learners_for,
)
from proj.engine.baselines.learners import Learner
from proj.engine.baselines.run_folder import write_run
from proj.engine.config.arguments import Arguments, read_arguments
from proj.engine.config.experiment import ExperimentCLI
from proj.engine.console import number, plural
from proj.engine.evaluation.counts import headline_metric
from proj.engine.evaluation.leaderboard import best_of, read_rival
from proj.engine.evaluation.scoring import Metrics
from proj.engine.exit_codes import as_user_error
from proj.engine.runs.find import find_run
from proj.engine.runs.manifest import now
from proj.engine.runs.run import Run, check_name, create_run
from proj.engine.training.data_checks import require_whole_splits
from proj.engine.write_paths import check_links
from proj.errors import UserError
from proj.schema import Schema


class Source(NamedTuple):
    """What the baselines are compared with.

    Attributes:
        cli: the experiment, of which the data, the seed and the average of metrics are used.
        root: folder of the new runs.
        name: default beginning of their names.
        run: the run that was named; None for a config.
    """

    cli: ExperimentCLI
    root: Path
    name: str
    run: Run | None


def baseline(args: list[str]) -> None:
    """Fit standard learners to an experiment's data, and write each as a run."""
    source = _read_source(read_arguments(args, "baseline"))
    data, schema = _set_up(source)
    learners, missing = learners_for(schema)
    names = [CONSTANT, *(learner.name for learner in learners)]
    base = _base_name(source, names)
    console.say(
        f"{schema.task}: {plural(data.rows('train'), 'training row')}, "
        f"{data.rows('val'):,} for validation, {data.rows('test'):,} for the test"
    )
    if not data.rows("val"):
        console.warn(
            "the val split has no rows: the baselines train with default settings, without early "
            "stopping, and `test` cannot tell which of them is the best; set data.val_fraction."
        )
    runs = []
    for learner in (None, *learners):
        start, begin = now(), time.perf_counter()
        fitted = _fit(learner, data, schema, source.cli.experiment["seed_everything"])
        seconds = time.perf_counter() - begin
        run = create_run(source.root, f"{base}_{fitted.name}")
        words = ["baseline", *args]
        write_run(run, fitted, source.cli.experiment, data, words, start, seconds)
        runs.append(run)
        console.say(f"{fitted.title}: {seconds:.1f} s, {run.path}")
    _show(runs, schema)
    if missing:
        titles = ", ".join(learner.title for learner in missing)
        console.say(
            f"{titles}: not installed; python -m pip install --constraint constraints.txt "
            "--editable '.[baselines]'"
        )


def _fit(learner: Learner | None, data: DataModule, schema: Schema, seed: int) -> FittedBaseline:
    """Fit a learner, or the constant for None, to the training split."""
    if learner is None:
        return constant(data.splits["train"], schema)
    return fit_baseline(learner, data.splits["train"], data.splits["val"], schema, seed)


def _read_source(arguments: Arguments) -> Source:
    """Return the experiment of ``--config`` or of ``--run``."""
    if {"-h", "--help"} & set(arguments.flags):
        # This prints the help and exits.
        ExperimentCLI("baseline", [], ["--help"])
    if bool(arguments.files) == (arguments.run is not None):
        got = "both" if arguments.files else "neither"
        raise UserError(f"baseline: expected --config FILE or --run RUN, got {got}; give one.")
    if arguments.run is None:
        cli = ExperimentCLI("baseline", arguments.configs, arguments.flags)
        return Source(cli, cli.root, Path(arguments.files[0]).stem, None)
    run = find_run(arguments.root, arguments.run)
    run.require_trained()
    check_links(run.path)
    cli = ExperimentCLI("baseline", [run.config], arguments.flags)
    return Source(cli, run.path.parent, run.path.name, run)


def _set_up(source: Source) -> tuple[DataModule, Schema]:
    """Return the data module with its splits, and its schema."""
    data = source.cli.datamodule
    if not isinstance(data, DataModule):
        raise UserError(
            f"baseline: expected a data module on this package's base, got {type(data).__name__}; "
            "standard learners need whole splits."
        )
    require_whole_splits(data, "baseline")
    with as_user_error("the data cannot be read"):
        data.prepare_data()
        data.setup("fit")
    assert data.schema is not None
    if not data.rows("test") and not data.rows("val"):
        raise UserError(
            "baseline: expected rows to compare on, got neither a test split nor a val split; set "
            "data.test_fraction."
        )
    run = source.run
    if run is not None and run.manifest.get("data") != data.fingerprint:
        console.warn(
            f"the source has changed since {run.path} was trained: the baselines have other rows, "
            "so `test` does not compare the run with them."
        )
    return data, data.schema


def _base_name(source: Source, learners: list[str]) -> str:
    """Return the beginning of the runs' names; by default one that no run has."""

    def first_taken(base: str) -> str | None:
        names = (f"{base}_{learner}" for learner in learners)
        return next((name for name in names if (source.root / name).exists()), None)

    stated = source.cli.option("name")
    if stated is not None:
        check_name(source.root, f"{stated}_{learners[0]}")
        check_name(source.root, first_taken(stated))
        return stated
    # A config may have any name, and the longest learner's name is 22 letters.
    name = re.sub(r"[^\w.-]|^[.-]", "_", source.name[:60], flags=re.ASCII)
    base, number_ = name, 1
    while first_taken(base) is not None:
        number_ += 1
        base = f"{name}_{number_}"
    return base


def _show(runs: list[Run], schema: Schema) -> None:
    """Print the headline metric of each baseline, and the best one by the validation split."""
    metric = headline_metric(schema.task)
    rivals = [read_rival(run) for run in runs]
    rows = []
    for rival in rivals:
        test = rival.test.get(metric, {})
        cells = [_value(rival.validation, metric), _value(rival.test, metric)]
        limits = (
            "" if test.get("low") is None else f"{number(test['low'])} to {number(test['high'])}"
        )
        rows.append([rival.title, *cells, limits, f"{rival.seconds:.1f}"])
    header = ["baseline", f"{metric}, validation", f"{metric}, test", console.INTERVAL, "seconds"]
    console.show_lines(header, rows, numbers=4)
    if best := best_of(rivals, metric):
        console.say(f"best on the validation split: {best.run.path.name}")


def _value(metrics: Metrics, name: str) -> str:
    return number(metrics[name].get("value")) if name in metrics else ""
