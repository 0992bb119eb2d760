"""Cross-validate an experiment, over all rows and several seeds."""

import argparse
import json
import shlex
import signal
import statistics
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import polars as pl
from rich.table import Column, Table

from proj.engine import PACKAGE, console
from proj.engine.config.arguments import read_arguments
from proj.engine.config.experiment import ExperimentCLI, differences
from proj.engine.config.parser import VerbParser
from proj.engine.config.placeholders import show_not_recorded
from proj.engine.config.yaml_file import read_yaml
from proj.engine.exit_codes import stop_signals
from proj.engine.runs.checkpoint_file import read_checkpoint
from proj.engine.runs.files import atomic_write
from proj.engine.runs.locks import lock_run
from proj.engine.runs.run import Run
from proj.engine.tuning.fold_ensemble import write_fold_ensemble
from proj.engine.tuning.fold_scores import (
    FoldRun,
    Metrics,
    out_of_fold_metrics,
    summarize_folds,
)
from proj.engine.tuning.plan import positive_int, uses_several_devices
from proj.engine.tuning.pool import JobFailed, JobInterrupted, Pool
from proj.engine.tuning.worker import make_job
from proj.engine.write_paths import check_links
from proj.engine.yaml_text import yaml_document
from proj.errors import TrainingError, UserError
from proj.models.base import Model


def cv(args: list[str]) -> None:
    """Cross-validate an experiment."""
    options, experiment_flags = _parse(args)
    fit_args = ["--config", options.config, *experiment_flags]
    arguments = read_arguments(fit_args, "fit")
    cli = ExperimentCLI("fit", arguments.configs, arguments.flags)
    folder = Path(options.output or cli.root / "studies" / f"{Path(options.config).stem}_cv")
    options_of_data = _data_options(cli.experiment)
    if "fold" not in options_of_data:
        data = cli.experiment.get("data") or {"class_path": "none"}
        raise UserError(
            "data: expected a data module with the option fold, such as Tabular, Images or "
            f"ArrayDataModule, got {data['class_path']}; use one of these."
        )
    if options.ensemble and not isinstance(cli.model, Model):
        raise UserError(
            f"--ensemble: expected a model of this package, got {type(cli.model).__name__}, whose "
            "outputs cannot be averaged; leave it out."
        )
    show_not_recorded(cli.secrets)
    test_path = options_of_data.get("test_path")
    if test_path is not None:
        console.say(
            f"data.test_path: the folds are parts of data.path; no fold reads {test_path}, which "
            "stays for a final test."
        )
    folder.mkdir(parents=True, exist_ok=True)
    check_links(folder)
    one_process_per_job = uses_several_devices(cli.experiment)
    with lock_run(Run(folder)):
        _record(folder, {"folds": options.folds, "seeds": options.seeds, **cli.experiment})
        fold_runs = list(_plan_runs(cli.experiment, folder, options.folds, options.seeds))
        _train(fold_runs, fit_args, options.workers, one_process_per_job)
        _write_results(folder, fold_runs, options.folds, isinstance(cli.model, Model))
        if options.ensemble:
            write_fold_ensemble(folder, fold_runs, args)
        if options.refit:
            _refit(folder, fold_runs, fit_args, one_process_per_job, cli.experiment["data"])


def _parse(args: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Return the options of ``cv`` and the flags for the experiment."""
    parser = VerbParser(
        "cv", "Cross-validate an experiment. Further flags apply to the experiment of every run."
    )
    parser.add_argument("-c", "--config", required=True, help="the experiment")
    parser.add_argument("--folds", type=_fold_count, default=5, help="number of folds")
    parser.add_argument(
        "--seeds",
        type=positive_int,
        default=1,
        help="number of repetitions, each with other folds and other initial weights",
    )
    parser.add_argument(
        "--workers", type=positive_int, default=1, help="number of runs at the same time"
    )
    parser.add_argument(
        "--refit",
        action="store_true",
        help="afterwards train on all rows, for the median of the folds' best numbers of epochs",
    )
    parser.add_argument(
        "--ensemble",
        action="store_true",
        help="keep the models of all folds and seeds as one ensemble with equal weights",
    )
    parser.add_argument(
        "--output", help="folder of the results; default: lightning_logs/studies/NAME_cv"
    )
    return parser.parse_known_args(args)


def _record(folder: Path, settings: dict[str, Any]) -> None:
    """Write ``cv.yaml``; raise UserError if the folder has another cross-validation."""
    file = folder / "cv.yaml"
    if file.exists():
        changes = differences(read_yaml(file), settings)
        if changes:
            raise UserError(
                f"{folder}: expected the settings with which this cross-validation began, got "
                f"different settings: {'; '.join(changes)[:500]}; undo the changes, or choose "
                "another folder with --output."
            )
    content = yaml_document(settings).encode()
    atomic_write(file, lambda stream: stream.write(content))


def _fold_count(text: str) -> int:
    """Parse a number of folds, at least two: one fold would leave no rows to train on."""
    count = positive_int(text)
    if count < 2:
        raise argparse.ArgumentTypeError(f"expected a number from 2 up, got {text}")
    return count


def _data_options(experiment: dict[str, Any]) -> dict[str, Any]:
    """Return the options of the data module, empty if it has none or there is no data module."""
    return (experiment.get("data") or {}).get("init_args") or {}


def _plan_runs(
    experiment: dict[str, Any], folder: Path, folds: int, seeds: int
) -> Iterator[FoldRun]:
    first_seed = experiment["seed_everything"]
    # A data module of the user may have no such option.
    first_split_seed = _data_options(experiment).get("split_seed")
    for repetition in range(seeds):
        seed = first_seed + repetition
        seed_flags = ["--seed_everything", str(seed)]
        if first_split_seed is not None:
            seed_flags += ["--data.split_seed", str(first_split_seed + repetition)]
        for fold in range(folds):
            flags = [*seed_flags, "--data.fold", f"[test, {fold}, {folds}]"]
            yield FoldRun(seed, fold, folder / f"seed_{seed}_fold_{fold}", flags)


def _train(
    fold_runs: list[FoldRun], fit_args: list[str], workers: int, one_process_per_job: bool
) -> None:
    """Train and test all fold runs; raise TrainingError if any failed."""
    pool = Pool(workers, one_process_per_job)

    def train(fold_run: FoldRun) -> str:
        """Return an empty string, or the reason of a failure."""
        try:
            pool.run(make_job(fold_run.folder, [*fit_args, *fold_run.flags], test=True))
        except JobFailed as failed:
            return f"{fold_run.folder}: {failed}"
        except JobInterrupted:
            return f"{fold_run.folder}: stopped by a signal"
        console.say(f"seed {fold_run.seed}, fold {fold_run.fold}: tested")
        return ""

    with stop_signals(pool.stop), ThreadPoolExecutor(workers) as executor:
        try:
            failures = [failure for failure in executor.map(train, fold_runs) if failure]
        finally:
            pool.close()
    if pool.signal:
        console.say("stopped; run the same command again to continue.")
        raise SystemExit(128 + pool.signal)
    if failures:
        raise TrainingError(
            f"{len(failures)} of {len(fold_runs)} runs failed: {'; '.join(failures)[:500]}"
        )


def _write_results(
    folder: Path, fold_runs: list[FoldRun], folds: int, has_predictions: bool
) -> None:
    """Write ``metrics.json`` and ``predictions.parquet`` and print a table of the metrics.

    The predictions have each row once for each seed, by a model that was not trained on it.
    """
    entries = _summarize(
        fold_runs, folds, out_of_fold_metrics(fold_runs) if has_predictions else {}
    )
    content = json.dumps(entries, indent=2).encode()
    atomic_write(folder / "metrics.json", lambda stream: stream.write(content))
    console.show(_metrics_table(entries))
    console.say(f"metrics: {folder / 'metrics.json'}")
    if has_predictions:
        tables = [fold_run.predictions() for fold_run in fold_runs]
        table = pl.concat(tables, how="diagonal_relaxed").sort("seed", "row")
        atomic_write(folder / "predictions.parquet", table.write_parquet)
        console.say(f"predictions: {folder / 'predictions.parquet'}")


def _summarize(fold_runs: list[FoldRun], folds: int, out_of_fold: dict[str, float]) -> Metrics:
    """Return the entries of ``metrics.json``, without metrics that no fold defines."""
    run_metrics = [fold_run.metrics() for fold_run in fold_runs]
    entries: Metrics = {}
    for name in run_metrics[0]:
        values = [
            metrics[name]["value"]
            for metrics in run_metrics
            if name in metrics and metrics[name]["value"] is not None
        ]
        if values:
            mean, std, low, high = summarize_folds(values, folds)
            entries[name] = {
                "value": mean,
                "std": std,
                "low": low,
                "high": high,
                "folds": values,
                "out_of_fold": out_of_fold.get(name),
            }
    return entries


def _metrics_table(entries: Metrics) -> Table:
    """Return a table of the metrics, without those of single classes and targets."""
    titles = ("mean", "std", "95 % interval", "out of fold")
    table = Table("metric", *(Column(title, justify="right") for title in titles))
    for name, entry in entries.items():
        if "/" not in name:
            pooled = "" if entry["out_of_fold"] is None else f"{entry['out_of_fold']:.4f}"
            interval = f"{entry['low']:.4f} to {entry['high']:.4f}"
            table.add_row(name, f"{entry['value']:.4f}", f"{entry['std']:.4f}", interval, pooled)
    return table


def _refit(
    folder: Path,
    fold_runs: list[FoldRun],
    fit_args: list[str],
    one_process_per_job: bool,
    data: dict[str, Any],
) -> None:
    """Train on all rows, for the median of the folds' best numbers of epochs.

    ``data`` is the section of the experiment.
    """
    epochs = [
        read_checkpoint(Run(fold_run.folder).checkpoint("best"))["epoch"] + 1
        for fold_run in fold_runs
    ]
    median = round(statistics.median(epochs))
    length, first, last = console.plural(median, "epoch"), min(epochs), max(epochs)
    console.say(f"refit: {length}; the folds were best after {first} to {last}")
    run_folder = folder / "refit"
    refit_args = [*fit_args, *_refit_flags(data, median)]
    pool = Pool(1, one_process_per_job)
    try:
        with stop_signals(pool.stop):
            pool.run(make_job(run_folder, refit_args))
    except JobFailed as failed:
        raise TrainingError(f"refit: {failed}") from failed
    except JobInterrupted:
        console.say("stopped; run the same command again to continue.")
        raise SystemExit(128 + (pool.signal or signal.SIGTERM)) from None
    finally:
        pool.close()
    console.say(f"model: {run_folder / 'checkpoints' / 'last.ckpt'}")
    if data["init_args"].get("test_path") is not None:
        name = shlex.quote(str(run_folder))
        console.say(f"final test: python -m {PACKAGE} test --run {name} --ckpt_path last")


def _refit_flags(data: dict[str, Any], epochs: int) -> list[str]:
    """Return the flags of a training on all rows, for data with this section of the experiment."""
    fractions = [name for name in ("val_fraction", "test_fraction") if name in data["init_args"]]
    flags = {
        **{f"--data.{name}": "0" for name in fractions},
        "--trainer.max_epochs": str(epochs),
        "--early_stopping.patience": "null",
        "--checkpoint.monitor": "train/loss",
    }
    return [word for flag in flags.items() for word in flag]
