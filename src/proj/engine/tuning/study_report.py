"""Report a study: live table in the terminal, ``trials.csv``, ``best.yaml``, ``report.html``."""

import csv
import io
import shlex
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
import optuna.visualization.matplotlib as optuna_plots
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import FixedFormatter, FuncFormatter, MaxNLocator
from optuna import Study
from optuna.trial import FrozenTrial, TrialState
from rich.console import Group
from rich.live import Live
from rich.table import Table
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from proj.engine import PACKAGE, console, html
from proj.engine.config.arguments import as_flags, read_arguments
from proj.engine.config.experiment import ExperimentCLI
from proj.engine.escaping import csv_cell, visible
from proj.engine.runs.files import atomic_write
from proj.engine.tuning.plan import StudyPlan
from proj.engine.tuning.pool import threads_per_worker
from proj.engine.tuning.study import trial_index, trials_by_index, was_interrupted

MAX_LIVE_ROWS = 12
FIGURE_SIZE_INCHES = (8, 4.5)
# Longer names of settings take two lines in figures.
MAX_LABEL = 18
STATE_NAMES = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
}


class StudyDisplay:
    """Show the trials of a running study.

    In a terminal this is a table of the latest trials that is refreshed each second. Otherwise it
    is one line for each trial that ends.
    """

    def __init__(self, study: Study, plan: StudyPlan) -> None:
        self.study, self.plan, self.start = study, plan, time.monotonic()
        self.ended_at_start = _count_ended(trials_by_index(study))

    @contextmanager
    def live(self) -> Iterator[None]:
        if not sys.stdout.isatty():
            yield
            return
        with Live(get_renderable=self.render, refresh_per_second=1, console=console.Terminal()):
            yield

    def render(self) -> Group:
        """Return the table and a line with the best value, the counts and the time left."""
        trials = trials_by_index(self.study)
        keys = [parameter.key for parameter in self.plan.space]
        table = Table("trial", "state", self.plan.metric, *keys, title=self.plan.name)
        for index, trial in list(trials.items())[-MAX_LIVE_ROWS:]:
            settings = trial.user_attrs.get("settings", {})
            cells = [_format_setting(settings.get(key)) for key in keys]
            table.add_row(str(index), STATE_NAMES[trial.state], _format_value(trial), *cells)
        states = Counter(STATE_NAMES[trial.state] for trial in trials.values())
        counts = ", ".join(f"{number} {state}" for state, number in states.items())
        best = _format_best(best_trial(self.study))
        return Group(table, f"best so far: {best} · {counts}{self._time_left(trials)}")

    def _time_left(self, trials: dict[int, FrozenTrial]) -> str:
        ended = _count_ended(trials)
        ended_since_start = ended - self.ended_at_start
        if self.plan.minutes is not None:
            minutes = self.plan.minutes - self.study.user_attrs.get("seconds", 0.0) / 60
        elif self.plan.n_trials is not None and ended_since_start:
            seconds_per_trial = (time.monotonic() - self.start) / ended_since_start
            minutes = (self.plan.n_trials - ended) * seconds_per_trial / 60
        else:
            return ""
        return f" · about {max(0.0, minutes):.0f} min left"

    def trial_ended(self, trial: FrozenTrial) -> None:
        """Print a line for a trial that has ended, unless there is a live table."""
        if sys.stdout.isatty() or was_interrupted(trial):
            return
        if trial.state == TrialState.FAIL:
            result = trial.user_attrs.get("reason", "")
        else:
            result = f"{self.plan.metric} {_format_value(trial)}"
        index, best = trial_index(self.study, trial), _format_best(best_trial(self.study))
        console.say(f"trial {index} {STATE_NAMES[trial.state]}: {result} (best {best})")


def write_results(study: Study, plan: StudyPlan) -> None:
    """Write ``trials.csv``, and ``best.yaml`` and ``report.html`` if a trial was completed.

    The files go to the study's folder. Their paths are printed.
    """
    trials = trials_by_index(study)
    _write(plan, "trials.csv", _trials_table(plan, trials))
    console.say(f"trials: {plan.folder / 'trials.csv'}")
    best = best_trial(study)
    if best is None:
        return
    index = trial_index(study, best)
    _write(plan, "best.yaml", _experiment_of(plan, index, best))
    console.say(f"best: trial {index}, {plan.metric} {best.value:.4f}: {plan.folder / 'best.yaml'}")
    _write(plan, "report.html", study_report(study, plan, trials))
    console.say(f"report: {plan.folder / 'report.html'}")


def _write(plan: StudyPlan, name: str, content: str) -> None:
    atomic_write(plan.folder / name, lambda file: file.write(content.encode()))


def _trials_table(plan: StudyPlan, trials: dict[int, FrozenTrial]) -> str:
    """Return the trials as CSV, one line for each."""
    buffer = io.StringIO()
    keys = [parameter.key for parameter in plan.space]
    rows: list[list[Any]] = [["trial", "state", plan.metric, *keys, "seconds", "reason"]]
    for index, trial in trials.items():
        settings = trial.user_attrs.get("settings", {})
        values = [settings.get(key) for key in keys]
        seconds = trial.duration.total_seconds() if trial.duration else None
        reason = trial.user_attrs.get("reason")
        rows.append([index, STATE_NAMES[trial.state], trial.value, *values, seconds, reason])
    if plan.escape_formulas:
        rows = [list(map(csv_cell, row)) for row in rows]
    csv.writer(buffer).writerows(rows)
    return buffer.getvalue()


def _experiment_of(plan: StudyPlan, index: int, trial: FrozenTrial) -> str:
    """Return the experiment of a trial as YAML, with the command that repeats it to the bit."""
    arguments = read_arguments([*plan.fit_args, *as_flags(trial.user_attrs["settings"])], "fit")
    cli = ExperimentCLI("fit", arguments.configs, arguments.flags, instantiate=False)
    title = f"Trial {index} of {plan.folder}, {plan.metric} {trial.value!r}."
    file = shlex.quote(str(plan.folder / "best.yaml"))
    threads = threads_per_worker(plan.workers)
    command = f"OMP_NUM_THREADS={threads} python -m {PACKAGE} fit --config {file}"
    return (
        f"# {visible(title)} This command repeats it to the bit:\n"
        f"# {visible(command)}\n"
        f"{cli.as_yaml()}"
    )


def best_trial(study: Study) -> FrozenTrial | None:
    """Return the completed trial with the best value; None if no trial was completed."""
    completed = study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
    return study.best_trial if completed else None


def study_report(study: Study, plan: StudyPlan, trials: dict[int, FrozenTrial]) -> str:
    """Return an HTML page with the best settings and the figures of a study."""
    best = study.best_trial
    states = Counter(trial.state for trial in trials.values())
    counts = ", ".join(
        f"{states[state]} {state.name.lower()}" for state in TrialState if states[state]
    )
    settings = [[key, str(value)] for key, value in best.user_attrs["settings"].items()]
    best_settings = [
        html.table("Settings of the best trial", ["setting", "value"], settings),
        html.text("Train with them:"),
        html.code(f"fit --config {shlex.quote(str(plan.folder / 'best.yaml'))}"),
    ]
    sections = [
        html.Section("Best settings", best_settings),
        html.Section("Figures", [html.figures(*_figures(study, plan, trials), tight=True)]),
    ]
    lead = html.text(
        f"{console.plural(len(trials), 'trial')}: {counts}. Best {plan.metric}: {best.value:.4f}."
    )
    return html.page(f"Study {plan.name}", lead, sections)


def _figures(
    study: Study, plan: StudyPlan, trials: dict[int, FrozenTrial]
) -> Iterator[tuple[Figure, str]]:
    """Yield the figures that the completed trials allow, each with its caption."""
    mpl.use("agg")
    metric = plan.metric

    def plot(function: Callable[..., Any]) -> Figure:
        keys = [parameter.key for parameter in plan.space]
        return _plot(lambda: function(study, target_name=metric), keys)

    yield (
        plot(optuna_plots.plot_optimization_history),
        f"{metric} of each trial and the best so far.",
    )
    yield _learning_curves(plan, trials), f"{metric} of each trial after each validation."
    if sum(trial.state == TrialState.COMPLETE for trial in trials.values()) > 1:
        yield plot(optuna_plots.plot_param_importances), "Importance of each setting."
        yield plot(optuna_plots.plot_slice), f"{metric} by each setting alone."
        yield plot(optuna_plots.plot_parallel_coordinate), f"{metric} by all settings together."


def _plot(draw: Callable[[], Any], keys: list[str]) -> Figure:
    with warnings.catch_warnings(), html.style():
        # Optuna warns that its plots are experimental.
        warnings.simplefilter("ignore")
        axes = draw()
    if hasattr(axes, "__len__"):
        axes = axes[0]
    figure: Figure = axes if isinstance(axes, Figure) else axes.figure
    figure.set_size_inches(*FIGURE_SIZE_INCHES)
    _restyle(figure, keys)
    return figure


def _restyle(figure: Figure, keys: list[str]) -> None:
    """Give a figure of Optuna the colours of our pages, and break long names into lines.

    Its grey areas and texts are hard to read on dark screens. The captions replace its titles.
    """
    figure.suptitle("")
    for axes in figure.axes:
        for place in ("left", "center", "right"):
            axes.set_title("", loc=place)
        axes.set_facecolor("none")
        axes.tick_params(which="both", colors=html.INK)
        for spine in axes.spines.values():
            spine.set_color(html.INK)
        axes.grid(visible=True, color="#888888", alpha=0.3)
        axes.set_xlabel(_broken(axes.get_xlabel()))
        for axis in (axes.xaxis, axes.yaxis):
            # matplotlib writes labels that are set by one or the other.
            if isinstance(axis.get_major_formatter(), FixedFormatter | FuncFormatter):
                labels = (label.get_text() for label in axis.get_ticklabels())
                axis.set_ticklabels([_broken(_whole(label, keys)) for label in labels])
    for text in figure.findobj(Text):
        text.set_color(html.INK)


def _whole(label: str, keys: list[str]) -> str:
    """Return the key that Optuna has cut off in a label, or the label."""
    start = label.removesuffix("...")
    return next((key for key in keys if key.startswith(start) and start != label), label)


def _broken(name: str) -> str:
    """Return a long name of a setting with a line break after its middle dot."""
    dots = [i for i, letter in enumerate(name) if letter == "." and not name[:i].isdigit()]
    if len(name) <= MAX_LABEL or not dots:
        return name
    middle = min(dots, key=lambda i: abs(2 * i - len(name)))
    return f"{name[: middle + 1]}\n{name[middle + 1 :]}"


def _learning_curves(plan: StudyPlan, trials: dict[int, FrozenTrial]) -> Figure:
    """Return the metric of each trial's first run, by the number of the validation."""
    with html.style():
        figure = Figure(FIGURE_SIZE_INCHES, layout="constrained")
        axes = figure.subplots()
    for index in trials:
        folder = plan.folder / f"trial_{index}{plan.repeats[0].suffix}"
        if not folder.is_dir():
            continue
        events = EventAccumulator(str(folder), {"scalars": 0})
        events.Reload()
        if plan.metric in events.Tags()["scalars"]:
            values = [event.value for event in events.Scalars(plan.metric)]
            axes.plot(range(len(values)), values, linewidth=1, alpha=0.7, label=str(index))
    axes.set_xlabel("validation")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylabel(plan.metric)
    return figure


def _count_ended(trials: dict[int, FrozenTrial]) -> int:
    return sum(trial.state.is_finished() for trial in trials.values())


def _format_best(trial: FrozenTrial | None) -> str:
    return "none" if trial is None else f"{trial.value:.4f}"


def _format_value(trial: FrozenTrial) -> str:
    """Return the value of a trial, or the latest intermediate value of a running trial."""
    latest = next(reversed(trial.intermediate_values.values()), None)
    value = latest if trial.value is None else trial.value
    return "" if value is None else f"{value:.4f}"


def _format_setting(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.3g}" if isinstance(value, float) else str(value)
