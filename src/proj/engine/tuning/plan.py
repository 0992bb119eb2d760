"""Plan of a study, read from the command line of ``tune`` and the study file."""

import argparse
import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, NamedTuple

import optuna
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler

from proj import metrics
from proj.engine import clock
from proj.engine.config.arguments import as_flags, read_arguments
from proj.engine.config.experiment import ExperimentCLI
from proj.engine.config.parser import VerbParser
from proj.engine.config.placeholders import show_not_recorded
from proj.engine.config.yaml_file import read_yaml
from proj.engine.tuning.slurm_array import read_launcher
from proj.engine.tuning.space import Parameter, corners, read_space
from proj.engine.write_paths import check_paths
from proj.errors import UserError, nearest

# Type of each key of a study file, for isinstance and in words.
KEYS = {
    "experiment": (str, "the path of an experiment"),
    "metric": (str, "the name of a metric"),
    "mode": (str, "min or max"),
    "trials": (int, "an integer"),
    "minutes": (int | float, "a number"),
    "seed": (int, "an integer"),
    "seeds": (int, "an integer"),
    "folds": (int, "an integer"),
    "sampler": (dict, "class_path and init_args"),
    "pruner": (dict, "class_path and init_args"),
    "space": (dict, "keys of the experiment with the values to try"),
}
LOWEST = {"seed": 0, "minutes": 0.01}
DEFAULT_LOWEST = 1


class Repeat(NamedTuple):
    """One training run of a trial; the trial's value is the mean over its repeats.

    Attributes:
        suffix: end of the name of the run's folder.
        flags: flags of ``fit`` that set the seed and the fold.
    """

    suffix: str
    flags: list[str]


class StudyPlan(NamedTuple):
    """Everything that ``tune`` needs to know about a study.

    Attributes:
        name: name of the study file without its ending.
        fit_args: arguments of ``fit`` that all trials share.
        experiment: the resolved experiment, plain values.
        metric: validation metric to optimize, in the direction ``mode``.
        n_trials: budget as a number of trials; None if it is a time.
        minutes: budget as a time; None if it is a number of trials.
        seed: seed of the sampler.
        repeats: training runs of each trial.
        sampler: class path and options of a class of ``optuna.samplers``.
        pruner: class path and options of a class of ``optuna.pruners``; None: no pruning.
        space: parameters to search.
        folder: the study's folder.
        storage: URL of a shared database; None: a journal file in ``folder``.
        workers: number of trials at the same time.
        launcher: options of ``sbatch`` for the jobs that run the trials; None: local processes.
        one_process_per_job: start a new process for each training run. Runs on several devices need
            this, because Lightning starts their further processes with the same arguments.
        within: seconds for the whole command; None: as long as the budget takes.
        escape_formulas: write trials.csv for a spreadsheet that would compute some of its texts.
    """

    name: str
    fit_args: list[str]
    experiment: dict[str, Any]
    metric: str
    mode: Literal["min", "max"]
    n_trials: int | None
    minutes: float | None
    seed: int
    repeats: list[Repeat]
    sampler: dict[str, Any]
    pruner: dict[str, Any] | None
    space: list[Parameter]
    folder: Path
    storage: str | None
    workers: int
    launcher: dict[str, Any] | None
    one_process_per_job: bool
    within: float | None
    escape_formulas: bool

    def make_sampler(self, seed: int) -> BaseSampler:
        sampler: BaseSampler = build(self.sampler, optuna.samplers, "sampler", {"seed": seed})
        return sampler

    def make_pruner(self) -> BasePruner:
        if not self.pruner:
            return optuna.pruners.NopPruner()
        pruner: BasePruner = build(self.pruner, optuna.pruners, "pruner")
        return pruner


def uses_several_devices(experiment: dict[str, Any]) -> bool:
    trainer = experiment["trainer"]
    return (
        trainer["devices"] not in (1, "1", "auto")
        or trainer["num_nodes"] > 1
        or trainer["strategy"] != "auto"
    )


def read_plan(args: list[str]) -> StudyPlan:
    """Return the plan of a command line of ``tune``.

    Raises:
        UserError: a flag, the study file, the experiment or a corner of the space is not valid.
    """
    options, experiment_flags = _parse(args)
    file = Path(options.config)
    section = _read_study_file(file)
    fit_args = ["--config", section["experiment"], *experiment_flags]
    arguments = read_arguments(fit_args, "fit")
    space = read_space(section["space"])
    _check_space(space, fit_args)
    cli = ExperimentCLI("fit", arguments.configs, arguments.flags)
    show_not_recorded(cli.secrets)
    metric, mode = _read_objective(file, section, cli)
    plan = StudyPlan(
        name=file.stem,
        fit_args=fit_args,
        experiment=cli.experiment,
        metric=metric,
        mode=mode,
        n_trials=options.n_trials or section.get("trials"),
        minutes=section.get("minutes"),
        seed=section.get("seed", 0),
        repeats=list(_repeats(section, cli.experiment["seed_everything"])),
        sampler=section["sampler"],
        pruner=section.get("pruner"),
        space=space,
        folder=Path(options.output or cli.root / "studies" / file.stem),
        storage=options.storage,
        workers=options.workers,
        launcher=read_launcher(options),
        one_process_per_job=uses_several_devices(cli.experiment),
        within=clock.read_duration(options.within, "--within") if options.within else None,
        escape_formulas=options.escape_formulas,
    )
    is_counted, is_timed = plan.n_trials is not None, plan.minutes is not None
    if is_counted == is_timed and (is_counted or plan.within is None):
        budgets = "both" if is_counted else "neither"
        raise UserError(f"{file}: expected a budget, either trials or minutes, got {budgets}.")
    # Build both now, so that a mistake in the study file ends the command before the first trial.
    plan.make_sampler(0)
    plan.make_pruner()
    return plan


def _parse(args: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Return the options of ``tune`` and the flags for the experiment."""
    parser = VerbParser(
        "tune",
        "Search for better hyperparameters. Further flags apply to the experiment of every trial.",
    )
    parser.add_argument(
        "-c", "--config", required=True, help="study file; configs/tune/ has examples"
    )
    parser.add_argument(
        "--n_trials", type=positive_int, help="total number of trials, instead of the file's"
    )
    parser.add_argument(
        "--within",
        metavar="TIME",
        help="time for the whole command, such as 30m or 1h30m: no trial starts that cannot end in "
        "it, and running trials stop then with their best score",
    )
    parser.add_argument(
        "--storage",
        help="URL of a database that shares the study between machines (postgresql://…); "
        "default: a journal file in the study's folder",
    )
    parser.add_argument(
        "--workers", type=positive_int, default=1, help="number of trials at the same time"
    )
    parser.add_argument(
        "--launcher",
        nargs="+",
        default=["local"],
        metavar=("KIND", "OPTION"),
        help="local, or submitit with options of sbatch: --workers jobs of a SLURM array run the "
        "trials, as in `--launcher submitit time=04:00:00 partition=gpu gres=gpu:1`",
    )
    parser.add_argument(
        "--output", help="folder of the study; default: lightning_logs/studies/NAME"
    )
    parser.add_argument(
        "--escape_formulas",
        action="store_true",
        help="put an apostrophe before texts in trials.csv that a spreadsheet would compute",
    )
    return parser.parse_known_args(args)


def positive_int(text: str) -> int:
    """Convert an option of the command line to an integer of at least 1."""
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected an integer of at least 1, got {text}")
    return number


def _read_study_file(file: Path) -> dict[str, Any]:
    try:
        section = read_yaml(file)
    except OSError as error:
        near = nearest(str(file), [str(path) for path in Path("configs/tune").glob("*.yaml")])
        raise UserError(f"--config: cannot read {file}: {error.strerror}.{near}") from error
    if not isinstance(section, dict):
        keys = ", ".join(KEYS)
        raise UserError(f"{file}: expected the keys of a study ({keys}), got {section!r}.")
    try:
        json.dumps(section)
    except (TypeError, ValueError, RecursionError) as error:
        # YAML has dates and other values that a study cannot store.
        raise UserError(
            f"{file}: expected texts, numbers, lists and mappings, got another value ({error}); "
            "put dates into quotes."
        ) from error
    for key, value in section.items():
        _check_key(file, key, value)
    for key in ("experiment", "sampler", "space"):
        if not section.get(key):
            raise UserError(
                f"{file}: expected the key {key} in a study, got none; configs/tune/ has examples."
            )
    return section


def _check_key(file: Path, key: Any, value: Any) -> None:
    if key not in KEYS:
        raise UserError(f"{file}: no such key {key!r} in a study.{nearest(str(key), KEYS)}")
    key_type, description = KEYS[key]
    # A bool is an instance of int.
    if value is not None and (not isinstance(value, key_type) or isinstance(value, bool)):
        raise UserError(f"{file}: {key}: expected {description}, got {value!r}.")
    lowest = LOWEST.get(key, DEFAULT_LOWEST)
    if isinstance(value, int | float) and value < lowest:
        raise UserError(f"{file}: {key}: expected a number of at least {lowest}, got {value}.")


def _check_space(space: list[Parameter], fit_args: list[str]) -> None:
    """Parse the experiment with each corner of the space; raise UserError if one is not valid."""
    # Trials get their settings as flags, which may write anywhere, but the user did not type these.
    for parameter in space:
        for value in parameter.values:
            check_paths({parameter.key: value}, fit_args)
    for settings in corners(space):
        arguments = read_arguments([*fit_args, *as_flags(settings)], "fit")
        ExperimentCLI("fit", arguments.configs, arguments.flags, instantiate=False)


def _read_objective(
    file: Path, section: dict[str, Any], cli: ExperimentCLI
) -> tuple[str, Literal["min", "max"]]:
    """Return the metric to optimize and its direction.

    By default they are those that select the best epoch.
    """
    monitored = cli.monitored()["checkpoint"]
    metric = section.get("metric") or monitored
    if metric is None or metric.startswith(("train/", "test/")):
        raise UserError(
            f"{file}: metric: expected a metric of the validation split, as in val/f1, "
            f"got {metric}."
        )
    info = metrics.metric_info(metric)
    mode = section.get("mode") or (info.mode if info else None)
    if metric == monitored:
        mode = section.get("mode") or cli.monitors()["checkpoint"]["mode"]
    if mode not in ("min", "max"):
        raise UserError(f"{file}: mode: expected min or max for the metric {metric}, got {mode}.")
    return metric, mode


def _repeats(section: dict[str, Any], first_seed: int) -> Iterator[Repeat]:
    """Yield one repeat, or one for each seed and each fold of the rows outside the test split."""
    seeds, folds = section.get("seeds") or 1, section.get("folds")
    for seed in range(first_seed, first_seed + seeds):
        seed_flags = ["--seed_everything", str(seed)] if seeds > 1 else []
        for fold in range(folds or 1):
            fold_flags = ["--data.fold", f"[val, {fold}, {folds}]"] if folds else []
            suffix = f"_seed_{seed}" * (seeds > 1) + f"_fold_{fold}" * bool(folds)
            yield Repeat(suffix, [*seed_flags, *fold_flags])


def build(section: Any, module: ModuleType, key: str, fixed: dict[str, Any] | None = None) -> Any:
    """Build an object of a class that one of Optuna's modules exports.

    Args:
        section: ``class_path`` and ``init_args``; an option may be such a section itself.
        module: ``optuna.samplers`` or ``optuna.pruners``.
        key: key of the section, for error messages.
        fixed: options that the study sets and the file must not; passed if the class takes them.

    Raises:
        UserError: the class, an option or a value is not valid.
    """
    cls, options = _read_class(section, module, key)
    accepted = inspect.signature(cls.__init__).parameters
    fixed = fixed or {}
    for option, value in options.items():
        if option in fixed:
            raise UserError(
                f"{key}.{option}: expected no value, because the study derives it from its seed "
                f"and the number of the trial, got {value!r}; leave it out."
            )
        if option not in accepted:
            raise UserError(
                f"{key}.{option}: {cls.__name__} has no such option.{nearest(option, accepted)}"
            )
        if isinstance(value, dict) and "class_path" in value:
            # An inner sampler without the study's seed would make the study random.
            options[option] = build(value, module, f"{key}.{option}", fixed)
    options |= {option: value for option, value in fixed.items() if option in accepted}
    try:
        return cls(**options)
    except ImportError as error:
        raise UserError(
            f"{key}: {cls.__name__} needs a package that is not installed: "
            f"{' '.join(str(error).split())} Install it, or choose another class."
        ) from error
    except (TypeError, ValueError) as error:
        raise UserError(f"{key}: {cls.__name__} cannot be built: {error}.") from error


def class_names(module: ModuleType) -> list[str]:
    """Return the names of the classes that a module exports and that can be built."""
    exported = ((name, getattr(module, name)) for name in module.__all__)
    return [
        name
        for name, value in exported
        if isinstance(value, type) and not inspect.isabstract(value)
    ]


def _read_class(section: Any, module: ModuleType, key: str) -> tuple[type[Any], dict[str, Any]]:
    """Return the class and a copy of the options of a ``class_path`` section."""
    if (
        not isinstance(section, dict)
        or not isinstance(section.get("class_path"), str)
        or section.keys() - {"class_path", "init_args"}
    ):
        raise UserError(f"{key}: expected class_path and init_args, got {section!r}.")
    path = section["class_path"]
    names = class_names(module)
    name = path.removeprefix(f"{module.__name__}.")
    if name not in names:
        raise UserError(
            f"{key}: expected a class of {module.__name__}, got {path}.{nearest(name, names)}"
        )
    return getattr(module, name), dict(section.get("init_args") or {})
