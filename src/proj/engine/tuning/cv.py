"""``cv``: how well an experiment does on rows it has not seen, over all rows and several seeds."""

import argparse
import json
import signal
import statistics
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
import torch
import yaml
from rich.table import Column, Table
from scipy.stats import t as student

from proj.engine import PACKAGE, console, security
from proj.engine.config.arguments import read_arguments
from proj.engine.config.experiment import ExperimentCLI, differences
from proj.engine.runs.run import Run, atomic_write, lock_run, read_checkpoint
from proj.engine.tuning.plan import from_one, several_devices, threads
from proj.engine.tuning.scores import scores
from proj.engine.tuning.worker import Job
from proj.engine.tuning.workers import Failed, Interrupted, Pool
from proj.errors import TrainingError, UserError


class Training(NamedTuple):
    """One fold of one seed."""

    seed: int
    fold: int
    folder: Path
    flags: list[str]


class Interval(NamedTuple):
    value: float  # the mean over the trainings
    std: float
    low: float
    high: float


def cv(args: list[str]) -> None:
    """Cross-validate an experiment."""
    given, rest = _arguments(args)
    experiment = ["--config", given.config, *rest]
    parsed = read_arguments(experiment, "fit")
    cli = ExperimentCLI("fit", parsed.configs, parsed.flags)
    folder = Path(given.output or cli.root / "studies" / f"{Path(given.config).stem}_cv")
    if "fold" not in cli.experiment["data"]["init_args"]:
        raise UserError(
            f"cv: expected a data module with folds, one of ours, got {cli.experiment['data']['class_path']}."
        )
    folder.mkdir(parents=True, exist_ok=True)
    with lock_run(Run(folder)):
        _claim(folder, {"folds": given.folds, "seeds": given.seeds, **cli.experiment})
        trainings = list(_trainings(cli, folder, given.folds, given.seeds))
        _train(trainings, experiment, given.workers, cli)
        _show(folder, trainings, given.folds)
        if given.refit:
            _refit(folder, trainings, experiment, cli)


def _arguments(args: list[str]) -> tuple[argparse.Namespace, list[str]]:
    about = "Cross-validate an experiment. Further flags are for every training."
    parser = argparse.ArgumentParser(
        f"python -m {PACKAGE} cv", allow_abbrev=False, description=about
    )
    parser.add_argument("-c", "--config", required=True, help="the experiment")
    parser.add_argument(
        "--folds", type=from_one, default=5, help="so many tests, each on other rows"
    )
    parser.add_argument(
        "--seeds",
        type=from_one,
        default=1,
        help="repetitions with other folds and other first weights",
    )
    parser.add_argument("--workers", type=from_one, default=1, help="trainings at the same time")
    parser.add_argument(
        "--refit", action="store_true", help="at last, train on all rows, for as long as was best"
    )
    parser.add_argument("--output", help="the folder, instead of lightning_logs/studies/NAME_cv")

    def refuse(message: str) -> Any:
        raise UserError(f"cv: {message}.")

    parser.error = refuse  # type: ignore[method-assign]
    return parser.parse_known_args(args)


def _claim(folder: Path, about: dict[str, Any]) -> None:
    """Write down what is trained here; UserError where it is something else."""
    file = folder / "cv.yaml"
    if file.exists() and (changes := differences(yaml.safe_load(file.read_text()), about)):
        raise UserError(
            f"{folder} is the cross-validation of something else: {'; '.join(changes)[:500]}. Change it back, "
            "or name another folder with --output."
        )
    atomic_write(file, lambda stream: stream.write(yaml.safe_dump(about, sort_keys=False).encode()))


def _trainings(cli: ExperimentCLI, folder: Path, folds: int, seeds: int) -> Iterator[Training]:
    split_seed = cli.experiment["data"]["init_args"]["split_seed"]
    for i in range(seeds):
        seed = cli.experiment["seed_everything"] + i
        for fold in range(folds):
            flags = [
                "--seed_everything",
                str(seed),
                "--data.split_seed",
                str(split_seed + i),
                "--data.fold",
                f"[test, {fold}, {folds}]",
            ]
            yield Training(seed, fold, folder / f"seed_{seed}_fold_{fold}", flags)


def _train(
    trainings: list[Training], experiment: list[str], workers: int, cli: ExperimentCLI
) -> None:
    pool = Pool(
        workers, several_devices(cli.experiment), threads(workers), torch.cuda.device_count()
    )

    def train(training: Training) -> str:
        """Why it failed, or nothing."""
        job = Job(
            folder=str(training.folder),
            fit=[*experiment, *training.flags],
            log=f"{training.folder}.txt",
            metric=None,
            test=True,
            allow=security.allowed_packages,
        )
        try:
            pool.run(job, lambda step, value: False)
        except Failed as failed:
            return str(failed)
        console.say(f"seed {training.seed}, fold {training.fold}: tested")
        return ""

    with _stopping(pool) as stopped, ThreadPoolExecutor(workers) as executor:
        try:
            reasons = list(executor.map(train, trainings))
        except Interrupted:
            reasons = []
        finally:
            pool.close()
    if stopped:
        console.say("stopped; the same command goes on.")
        raise SystemExit(128 + stopped[0])
    if failed := [
        f"{training.folder}: {reason}"
        for training, reason in zip(trainings, reasons, strict=True)
        if reason
    ]:
        raise TrainingError(
            f"{len(failed)} of {len(trainings)} trainings failed: {'; '.join(failed)[:500]}"
        )


@contextmanager
def _stopping(pool: Pool) -> Iterator[list[int]]:
    """SIGINT and SIGTERM stop the trainings, which are gone on with the next time; the list has the signal then."""
    stopped: list[int] = []

    def stop(number: int, frame: Any) -> None:
        stopped.append(number)
        pool.stop()

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def interval(values: list[float], folds: int) -> Interval:
    """Mean, standard deviation and 95 % interval of the scores of all folds.

    The trainings share most of their rows, so the variance of the mean is larger than that of independent scores, by the
    correction of Nadeau and Bengio (2003), "Inference for the Generalization Error": (1/n + test rows / training rows) s².
    """
    mean = statistics.fmean(values)
    if len(values) < 2:
        return Interval(mean, 0.0, mean, mean)
    std = statistics.stdev(values)
    half = student.ppf(0.975, len(values) - 1) * std * (1 / len(values) + 1 / (folds - 1)) ** 0.5
    return Interval(mean, std, mean - half, mean + half)


def _show(folder: Path, trainings: list[Training], folds: int) -> None:
    """The scores as a table, ``metrics.json``, and the predictions for all rows, each by a model that has not seen it."""
    each = [
        json.loads((training.folder / "test" / "metrics.json").read_text())
        for training in trainings
    ]
    predictions = pl.concat(map(_predictions, trainings), how="diagonal_relaxed").sort(
        "seed", "row"
    )
    atomic_write(folder / "predictions.parquet", predictions.write_parquet)
    together = scores(predictions, Run(trainings[0].folder).config["model"]["class_path"])
    found = {}
    table = Table(
        "metric",
        *(
            Column(title, justify="right")
            for title in ("mean", "std", "95 % interval", "out of fold")
        ),
    )
    for name in each[0]:
        values = [
            scored[name]["value"]
            for scored in each
            if name in scored and scored[name]["value"] is not None
        ]
        if not values:
            continue
        of = interval(values, folds)
        found[name] = {**of._asdict(), "folds": values, "out_of_fold": together.get(name)}
        if "/" not in name:
            known = f"{together[name]:.4f}" if name in together else ""
            table.add_row(
                name, f"{of.value:.4f}", f"{of.std:.4f}", f"{of.low:.4f} to {of.high:.4f}", known
            )
    atomic_write(
        folder / "metrics.json", lambda stream: stream.write(json.dumps(found, indent=2).encode())
    )
    console.show(table)
    console.say(f"metrics: {folder / 'metrics.json'}")
    console.say(f"predictions: {folder / 'predictions.parquet'}")


def _predictions(training: Training) -> pl.DataFrame:
    table = pl.read_parquet(training.folder / "test" / "predictions.parquet")
    return table.select(
        pl.lit(training.seed).alias("seed"), pl.lit(training.fold).alias("fold"), pl.all()
    )


def _refit(
    folder: Path, trainings: list[Training], experiment: list[str], cli: ExperimentCLI
) -> None:
    """Train on all rows, for as many epochs as were best in the folds: their median."""
    epochs = [
        read_checkpoint(training.folder / "checkpoints" / "best.ckpt")["epoch"] + 1
        for training in trainings
    ]
    count = round(statistics.median(epochs))
    console.say(f"refit: {count} epochs; the folds were best after {min(epochs)} to {max(epochs)}")
    flags = [
        "--data.val_fraction",
        "0",
        "--data.test_fraction",
        "0",
        "--trainer.max_epochs",
        str(count),
        "--early_stopping.patience",
        "null",
        "--checkpoint.monitor",
        "train/loss",
    ]
    job = Job(
        folder=str(folder / "refit"),
        fit=[*experiment, *flags],
        log=f"{folder / 'refit'}.txt",
        metric=None,
        test=False,
        allow=security.allowed_packages,
    )
    pool = Pool(1, apart=False, threads=threads(1))
    try:
        with _stopping(pool) as stopped:
            pool.run(job, lambda step, value: False)
    except Failed as failed:
        raise TrainingError(f"refit: {failed}") from failed
    except Interrupted:
        raise SystemExit(128 + stopped[0]) from None
    finally:
        pool.close()
    console.say(f"model: {folder / 'refit' / 'checkpoints' / 'last.ckpt'}")
