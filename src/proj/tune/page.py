"""A study as one HTML page that needs nothing but a browser."""

import html
import io
import warnings
from collections.abc import Callable
from pathlib import Path
from string import Template
from typing import Any

import matplotlib
import optuna.visualization.matplotlib as draw
from matplotlib.figure import Figure
from optuna import Study
from optuna.trial import FrozenTrial, TrialState
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from proj.tune.plan import Plan

STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 0 auto; padding: 1rem; }
figure { margin: 1rem 0; background: white; color: black; border-radius: 6px; padding: .5rem; overflow-x: auto; }
figure svg { max-width: 100%; height: auto; }
.wide { overflow-x: auto; } table { border-collapse: collapse; } th, td { text-align: left; padding: .2rem .8rem; }
tr:nth-child(even) { background: color-mix(in srgb, currentColor 7%, transparent); }
@media print { body { max-width: none; } figure, tr { break-inside: avoid; } }
"""

PAGE = Template("""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>$title</title>
<style>$style</style>
<main>
<h1>$title</h1>
<p>$said</p>
<h2>Best settings</h2>
<div class="wide"><table>$settings</table></div>
<p>Train them with <code>fit --config $where</code>.</p>
$figures
</main>
</html>
""")


def page(study: Study, plan: Plan, trials: dict[int, FrozenTrial]) -> str:
    """History, learning curves, importance, slices and parallel coordinates of the trials that came to an end."""
    matplotlib.use("agg")
    complete = [trial for trial in trials.values() if trial.state == TrialState.COMPLETE]
    best = study.best_trial
    numbers = {state: sum(trial.state == state for trial in trials.values()) for state in TrialState}
    counts = ", ".join(f"{number} {state.name.lower()}" for state, number in numbers.items() if number)
    settings = "".join(f"<tr><th scope=row>{html.escape(key)}<td>{html.escape(str(value))}"
                       for key, value in best.user_attrs["settings"].items())  # fmt: skip
    figures = [_figure("How the value came down" if plan.mode == "min" else "How the value went up",
                       lambda: draw.plot_optimization_history(study, target_name=plan.metric)),
               _figure("Learning curves", lambda: _curves(plan, trials))]  # fmt: skip
    if len(complete) > 1:
        figures += [
            _figure("Which setting matters", lambda: draw.plot_param_importances(study, target_name=plan.metric)),
            _figure("Each setting alone", lambda: draw.plot_slice(study, target_name=plan.metric)),
            _figure("All settings together", lambda: draw.plot_parallel_coordinate(study, target_name=plan.metric)),
        ]
    said = f"{len(trials)} trials: {counts}. Best {plan.metric}: {best.value:.4f}."
    return PAGE.substitute(title=html.escape(f"Study {plan.name}"), style=STYLE, said=html.escape(said), settings=settings,
                           where=html.escape(str(plan.folder / "best.yaml")), figures="".join(figures))  # fmt: skip


def _figure(title: str, make: Callable[[], Any]) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Optuna's plots are experimental, and say so
        axes = make()
    axes = axes if not hasattr(axes, "__len__") else axes[0]
    figure: Figure = axes if isinstance(axes, Figure) else axes.figure
    figure.set_size_inches(10, 4.5)
    stream = io.StringIO()
    figure.savefig(stream, format="svg", bbox_inches="tight")
    drawing = stream.getvalue()
    return f"<h2>{title}</h2><figure role=img aria-label='{title}'>{drawing[drawing.index('<svg') :]}</figure>"


def _curves(plan: Plan, trials: dict[int, FrozenTrial]) -> Figure:
    """The metric of every trial's run, by epoch."""
    figure = Figure()
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
