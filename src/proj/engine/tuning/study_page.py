"""A study as one HTML page."""

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matplotlib as mpl
import optuna.visualization.matplotlib as draw
from matplotlib.figure import Figure
from optuna import Study
from optuna.trial import FrozenTrial, TrialState
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from proj.engine import html
from proj.engine.html import Section
from proj.engine.tuning.plan import Plan


def study_page(study: Study, plan: Plan, trials: dict[int, FrozenTrial]) -> str:
    """History, learning curves, importance, slices and parallel coordinates of the trials that came to an end."""
    best = study.best_trial
    numbers = {
        state: sum(trial.state == state for trial in trials.values()) for state in TrialState
    }
    counts = ", ".join(
        f"{number} {state.name.lower()}" for state, number in numbers.items() if number
    )
    settings = [[key, str(value)] for key, value in best.user_attrs["settings"].items()]
    sections = [
        Section(
            "Best settings",
            [
                html.table("Settings of the best trial", ["setting", "value"], settings),
                html.text("Train with them:"),
                html.code(f"fit --config {plan.folder / 'best.yaml'}"),
            ],
        ),
        Section("Figures", [html.figures(*_figures(study, plan, trials))]),
    ]
    lead = html.text(f"{len(trials)} trials: {counts}. Best {plan.metric}: {best.value:.4f}.")
    return html.page(f"Study {plan.name}", lead, sections)


def _figures(
    study: Study, plan: Plan, trials: dict[int, FrozenTrial]
) -> Iterator[tuple[Figure, str]]:
    mpl.use("agg")
    name = plan.metric
    way = "down" if plan.mode == "min" else "up"
    yield (
        _drawn(lambda: draw.plot_optimization_history(study, target_name=name)),
        f"How {name} went {way}, trial by trial.",
    )
    yield _curves(plan, trials), f"{name} of every trial, by validations."
    if sum(trial.state == TrialState.COMPLETE for trial in trials.values()) > 1:
        yield (
            _drawn(lambda: draw.plot_param_importances(study, target_name=name)),
            "Which setting matters.",
        )
        yield _drawn(lambda: draw.plot_slice(study, target_name=name)), "Each setting alone."
        yield (
            _drawn(lambda: draw.plot_parallel_coordinate(study, target_name=name)),
            "All settings together.",
        )


def _drawn(make: Callable[[], Any]) -> Figure:
    with warnings.catch_warnings(), html.style():
        warnings.simplefilter("ignore")  # Optuna's plots are experimental, and say so
        axes = make()
    axes = axes if not hasattr(axes, "__len__") else axes[0]
    figure: Figure = axes if isinstance(axes, Figure) else axes.figure
    figure.set_size_inches(10, 4.5)
    return figure


def _curves(plan: Plan, trials: dict[int, FrozenTrial]) -> Figure:
    """The metric of every trial's run, by epoch."""
    with html.style():
        figure = Figure((10, 4.5), layout="constrained")
        axes = figure.subplots()
    for here in trials:
        for folder in sorted(Path(plan.folder).glob(f"trial_{here}{plan.repeats[0].suffix}")):
            events = EventAccumulator(str(folder), {"scalars": 0})
            events.Reload()
            if plan.metric in events.Tags()["scalars"]:
                values = [event.value for event in events.Scalars(plan.metric)]
                axes.plot(range(len(values)), values, linewidth=1, alpha=0.7, label=str(here))
    axes.set_xlabel("validation")
    axes.set_ylabel(plan.metric)
    return figure
