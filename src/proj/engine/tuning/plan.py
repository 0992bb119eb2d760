"""A study's file: the experiment, what is searched, how, and how much of it."""

import argparse
import inspect
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import optuna
import yaml
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler

from proj import metrics
from proj.engine import PACKAGE
from proj.engine.config.arguments import read_arguments
from proj.engine.config.experiment import ExperimentCLI
from proj.engine.tuning.space import Parameter, corners, flags, read_space
from proj.errors import UserError, nearest

KEYS = {
    "experiment": str,
    "metric": str,
    "mode": str,
    "trials": int,
    "minutes": int | float,
    "seed": int,
    "seeds": int,
    "folds": int,
    "sampler": dict,
    "pruner": dict,
    "space": dict,
}


class Repeat(NamedTuple):
    """One of the trainings whose mean is a trial's value."""

    suffix: str  # of the run's name
    flags: list[str]


class Plan(NamedTuple):
    name: str
    experiment: list[str]  # arguments of `fit`, for every trial
    resolved: dict[str, Any]
    metric: str
    mode: Literal["min", "max"]
    trials: int | None
    minutes: float | None
    seed: int
    repeats: list[Repeat]
    sampler: dict[str, Any]
    pruner: dict[str, Any] | None
    space: list[Parameter]
    folder: Path
    storage: str | None
    workers: int
    apart: bool  # trials on several devices, each in processes of their own

    def make_sampler(self, seed: int) -> BaseSampler:
        sampler: BaseSampler = build(self.sampler, optuna.samplers, "sampler", {"seed": seed})
        return sampler

    def make_pruner(self) -> BasePruner:
        pruner: BasePruner = (
            build(self.pruner, optuna.pruners, "pruner")
            if self.pruner
            else optuna.pruners.NopPruner()
        )
        return pruner


def threads(workers: int) -> int:
    """Of each worker: its share of the cores, or what the user has set."""
    return int(os.environ.get("OMP_NUM_THREADS", 0)) or max(1, (os.cpu_count() or 1) // workers)


def several_devices(experiment: dict[str, Any]) -> bool:
    trainer = experiment["trainer"]
    return (
        trainer["devices"] not in (1, "1", "auto")
        or trainer["num_nodes"] > 1
        or trainer["strategy"] != "auto"
    )


def read_plan(args: list[str]) -> Plan:
    """The command line of ``tune``, and the file it names. Every key of the space is tried on the parser."""
    given, rest = _arguments(args)
    file = Path(given.config)
    section = _read(file)
    experiment = ["--config", section["experiment"], *rest]
    parsed = read_arguments(experiment, "fit")
    for values in corners(space := read_space(section["space"])):
        parsed_once = read_arguments([*experiment, *flags(values)], "fit")
        ExperimentCLI("fit", parsed_once.configs, parsed_once.flags, instantiate=False)
    cli = ExperimentCLI("fit", parsed.configs, parsed.flags)
    metric = section.get("metric") or cli.monitored()["checkpoint"]
    if metric is None or metric.startswith(("train/", "test/")):
        raise UserError(
            f"{file}: metric: expected a metric of the validation part, as in val/f1, got {metric}."
        )
    known = metrics.metric_info(metric)
    mode = section.get("mode") or (known.mode if known else None)
    if mode not in ("min", "max"):
        raise UserError(f"{file}: mode: expected min or max for the metric {metric}, got {mode}.")
    plan = Plan(
        name=file.stem,
        experiment=experiment,
        resolved=cli.experiment,
        metric=metric,
        mode=mode,
        trials=given.n_trials or section.get("trials"),
        minutes=section.get("minutes"),
        seed=section.get("seed", 0),
        repeats=list(_repeats(section, cli)),
        sampler=section["sampler"],
        pruner=section.get("pruner"),
        space=space,
        folder=Path(given.output or cli.root / "studies" / file.stem),
        storage=given.storage,
        workers=given.workers,
        apart=several_devices(cli.experiment),
    )
    if (plan.trials is None) == (plan.minutes is None):
        raise UserError(
            f"{file}: expected a budget, either trials or minutes, got {'both' if plan.trials else 'neither'}."
        )
    plan.make_sampler(0), plan.make_pruner()  # so that a mistake is known now
    return plan


def _arguments(args: list[str]) -> tuple[argparse.Namespace, list[str]]:
    about = "Search for better settings. Further flags are for every trial."
    parser = argparse.ArgumentParser(
        f"python -m {PACKAGE} tune", allow_abbrev=False, description=about
    )
    parser.add_argument(
        "-c", "--config", required=True, help="the study's file, as those in configs/tune/"
    )
    parser.add_argument("--n_trials", type=from_one, help="trials in all, instead of the file's")
    parser.add_argument(
        "--storage",
        help="a database to share the study through, postgresql://…; else a file in its folder",
    )
    parser.add_argument("--workers", type=from_one, default=1, help="trials at the same time")
    parser.add_argument(
        "--output", help="the study's folder, instead of lightning_logs/studies/NAME"
    )
    parser.error = _refuse  # type: ignore[method-assign]
    return parser.parse_known_args(args)


def from_one(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected a number from 1 up, got {text}")
    return number


def _refuse(message: str) -> Any:
    raise UserError(f"tune: {message}.")


def _read(file: Path) -> dict[str, Any]:
    try:
        section = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        near = nearest(str(file), [str(path) for path in Path("configs/tune").glob("*.yaml")])
        raise UserError(f"--config: cannot read {file}: {error.strerror}.{near}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{file} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(section, dict):
        raise UserError(
            f"{file}: expected the keys of a study ({', '.join(KEYS)}), got {section!r}."
        )
    for key, value in section.items():
        if key not in KEYS:
            raise UserError(f"{file}: no such key {key!r} in a study.{nearest(str(key), KEYS)}")
        if value is not None and (not isinstance(value, KEYS[key]) or isinstance(value, bool)):
            raise UserError(f"{file}: {key}: expected {KEYS[key]}, got {value!r}.")
        least = {"seed": 0, "minutes": 0.01}.get(key, 1)
        if isinstance(value, int | float) and value < least:
            raise UserError(f"{file}: {key}: expected a number from {least} up, got {value}.")
    for key in ("experiment", "sampler", "space"):
        if not section.get(key):
            raise UserError(
                f"{file}: expected the key {key} in a study; configs/tune/ has examples."
            )
    return section


def _repeats(section: dict[str, Any], cli: ExperimentCLI) -> Iterator[Repeat]:
    """The trainings of a trial: one, or one for each seed and each fold of the rows that are not for testing."""
    seeds, folds = section.get("seeds") or 1, section.get("folds")
    first = cli.experiment["seed_everything"]
    for seed in range(first, first + seeds):
        by_seed = ["--seed_everything", str(seed)] if seeds > 1 else []
        for fold in range(folds or 1):
            by_fold = ["--data.fold", f"[val, {fold}, {folds}]"] if folds else []
            name = f"_seed_{seed}" * (seeds > 1) + f"_fold_{fold}" * bool(folds)
            yield Repeat(name, [*by_seed, *by_fold])


def build(section: Any, module: Any, where: str, given: dict[str, Any] | None = None) -> Any:
    """An object of a class of one of Optuna's modules, from its class path and options; ``given`` are ours to set."""
    names = [name for name in module.__all__ if isinstance(getattr(module, name), type)]
    if (
        not isinstance(section, dict)
        or not isinstance(section.get("class_path"), str)
        or section.keys() - {"class_path", "init_args"}
    ):
        raise UserError(f"{where}: expected class_path and init_args, got {section!r}.")
    path, options = section["class_path"], section.get("init_args") or {}
    name = path.removeprefix(f"{module.__name__}.")
    if name not in names:
        raise UserError(
            f"{where}: expected a class of {module.__name__}, got {path}.{nearest(name, names)}"
        )
    made = getattr(module, name)
    known = inspect.signature(made.__init__).parameters
    if given and (wrong := given.keys() & options.keys()):
        raise UserError(
            f"{where}.{min(wrong)}: it is made of the study's seed and the trial's number; leave it out."
        )
    for option, value in options.items():
        if option not in known:
            raise UserError(f"{where}.{option}: {name} has no such option.{nearest(option, known)}")
        if isinstance(value, dict) and "class_path" in value:
            options = {**options, option: build(value, module, f"{where}.{option}")}
    try:
        return made(
            **options, **{key: value for key, value in (given or {}).items() if key in known}
        )
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: {name} cannot be built: {error}.") from error
