"""Opening and results of the report: headline metric, baseline, warnings, metrics of each class."""

from collections.abc import Iterator
from typing import Any

from matplotlib.figure import Figure

from proj.engine import html
from proj.engine.console import number, plural, shown_name, shown_unit
from proj.engine.evaluation import interval_figures
from proj.engine.evaluation.baseline import Baseline, constant_baseline
from proj.engine.evaluation.counts import headline_metric, headline_sign
from proj.engine.evaluation.interval_figures import limits_of
from proj.engine.evaluation.prediction_set import PredictionSet
from proj.engine.evaluation.scoring import Metrics, small_sample_warnings
from proj.engine.html import Html
from proj.engine.runs.contents import LOST, FindingEntry, flatten_config
from proj.engine.runs.ensemble import described
from proj.engine.runs.files import is_present, read_json
from proj.engine.runs.run import Run
from proj.schema import Schema, Task

# A figure of more classes would be too tall.
MAX_DOTS = 50
# The metric of each class, label or target that is drawn beside the headline metric.
DETAIL: dict[Task, str] = {
    "binary": "recall",
    "multiclass": "recall",
    "multilabel": "recall",
    "regression": "r2",
}


def opening(run: Run, schema: Schema, predictions: PredictionSet, metrics: Metrics) -> Html:
    """Return what a reader wants first: headline metric, baseline, best epoch and warnings."""
    name = headline_metric(schema.task)
    entry, baseline = metrics.get(name, {}), constant_baseline(predictions, schema)
    shown = f"{name} {number(entry.get('value'))}"
    limits = f", 95 % interval {_limits(entry)}" if _limits(entry) else ""
    facts = [
        html.text(_experiment(run, schema)),
        html.value(shown),
        html.text(f"on {plural(len(predictions), 'test row')}{limits}."),
    ]
    if baseline is not None:
        facts.append(html.text(f"{_capital(str(baseline))}."))
    facts.append(html.text(_training(run)))
    parts = [Html("\n").join(facts)]
    if entry.get("value") is not None:
        parts.append(_headline_figure(name, entry, baseline))
    warnings = [
        html.note(_capital(line)) for line in _warnings(run, predictions, metrics, baseline)
    ]
    return Html("\n").join([html.beside(*parts), *warnings])


def _capital(sentence: str) -> str:
    return sentence[0].upper() + sentence[1:]


def _experiment(run: Run, schema: Schema) -> str:
    config = flatten_config(run.config)
    model, net, data = (
        str(config.get(key, "")).rpartition(".")[2] for key in ("model", "model.net", "data")
    )
    with_net = f" with the net {net}" if net else ""
    kind = "Baseline: " if run.baseline else ""
    return f"{kind}{model}{with_net} on {config.get('data.path', data)}, {schema.task}."


def _training(run: Run) -> str:
    manifest = run.manifest
    if facts := run.baseline:
        return f"Fitting took {facts['seconds']:.1f} seconds."
    if ensemble := run.ensemble:
        fitted = ", with weights fitted on the validation split" * (ensemble["kind"] == "runs")
        return f"Average of {described(ensemble['members'])}{fitted}."
    status: str = manifest["status"]
    if end := manifest.get("end"):
        status += f" on {end[:16].replace('T', ' at ')} UTC"
    best = ""
    if manifest.get("best_epoch") is not None:
        best = f"The best epoch is {manifest['best_epoch']}, counted from 0. "
    return f"{best}Training {status}."


def _headline_figure(name: str, entry: dict[str, Any], baseline: Baseline | None) -> Html:
    score = None if baseline is None else baseline.scores[name]
    caption = f"{name} with its 95 % interval" if _limits(entry) else name
    if baseline is not None:
        caption += f"; the baseline is {baseline.prediction}"
    return html.figures((interval_figures.headline(limits_of(entry), name, score), f"{caption}."))


def _warnings(
    run: Run, predictions: PredictionSet, metrics: Metrics, baseline: Baseline | None
) -> Iterator[str]:
    if predictions.missing:
        yield (
            f"{predictions.missing} of {plural(len(predictions), 'prediction')} are not finite "
            "numbers; figures, mistakes and slices are left out."
        )
    name, sign = headline_metric(predictions.task), headline_sign(predictions.task)
    value = metrics.get(name, {}).get("value")
    if baseline and sign * (baseline.run_scores[name] - baseline.scores[name]) <= 0:
        yield f"the run is not better than the baseline by {name}."
    if (why := metrics.get(name, {}).get("why")) and value is not None:
        yield f"there is no interval of {name}: {why}."
    yield from small_sample_warnings(metrics, predictions.task, "test")
    yield from run.manifest.get("warnings", [])
    if count := len(read_findings(run)):
        yield f"there {'is' if count == 1 else 'are'} {plural(count, 'finding')}; see Data."


def read_findings(run: Run) -> list[FindingEntry]:
    """Return what the data checks and training found."""
    path = run.path / "findings.json"
    return read_json(path, list[FindingEntry], LOST) if is_present(path) else []


# Values with limits


def _limits(entry: dict[str, Any]) -> str:
    """Return an interval as text, empty if there is none."""
    if entry.get("low") is None:
        return ""
    return f"{number(entry['low'])} to {number(entry['high'])}"


def _with_limits(entry: dict[str, Any]) -> str:
    """Return a value followed by its interval in parentheses."""
    limits = _limits(entry)
    return number(entry.get("value")) + (f" ({limits})" if limits else "")


# Metrics


def results(metrics: Metrics, predictions: PredictionSet, run: Run) -> Iterator[Html]:
    """Yield the metrics of all rows, and those of each class, label or target."""
    methods = [html.text("How the intervals were computed:"), html.listed(_methods(metrics))]
    yield html.beside(_metrics_table(metrics, predictions, run), Html("\n").join(methods))
    if any("/" in name for name in metrics):
        yield from _class_results(metrics, predictions)


def _metrics_table(metrics: Metrics, predictions: PredictionSet, run: Run) -> Html:
    has_validation = is_present(run.path / "validate" / "metrics.json")
    validation: Metrics = run.metrics("val") if has_validation else {}
    rows = []
    for name, entry in metrics.items():
        if "/" in name:
            continue
        value = html.remarked(number(entry.get("value")), entry.get("why", ""))
        limits = [
            number(entry[side]) if entry.get(side) is not None else "" for side in ("low", "high")
        ]
        shown = shown_name(name, predictions.task)
        row = [shown, value, *limits, str(entry.get("support", ""))]
        row += [_with_limits(validation.get(name, {}))] if validation else []
        rows.append([*row, shown_unit(name, predictions.task, predictions.average)])
    header = ["metric", "value", "from", "to", "rows"]
    header += ["on the validation split"] if validation else []
    numbers = len(header) - 1
    return html.table("Metrics with 95 % intervals", [*header, "unit"], rows, numbers, texts=1)


def _methods(metrics: Metrics) -> Iterator[str]:
    """Yield the metrics of each interval method, and the limitations of the intervals."""
    methods = (entry["method"] for entry in metrics.values() if entry.get("method"))
    for method in dict.fromkeys(methods):
        names = (name for name, entry in metrics.items() if entry.get("method") == method)
        kinds = (name.split("/")[0] + ("/…" if "/" in name else "") for name in names)
        yield f"{', '.join(dict.fromkeys(kinds))}: {method}"
    if any(name.split("/")[0] == "f1" for name in metrics):
        yield (
            "The number of rows of precision and F1 depends on the predictions; the interval takes "
            "it as fixed."
        )
    else:
        yield (
            "If large errors are rare, few rows cannot show how large they may be, and the true "
            "interval is wider."
        )


def _class_results(metrics: Metrics, predictions: PredictionSet) -> Iterator[Html]:
    """Yield a figure and a table with a row for each class, label or target."""
    split_names = [name.split("/", 1) for name in metrics if "/" in name]
    kinds = list(dict.fromkeys(kind for kind, _ in split_names))
    names = list(dict.fromkeys(name for _, name in split_names))
    noun = {"multilabel": "label", "regression": "target"}.get(predictions.task, "class")
    if len(names) <= MAX_DOTS:
        shown = [headline_metric(predictions.task), DETAIL[predictions.task]]
        figures = (_dots(kind, names, noun, metrics) for kind in shown if kind in kinds)
        yield html.figures(*figures)
    rows = []
    for name in names:
        entries = [metrics.get(f"{kind}/{name}", {}) for kind in kinds]
        rows.append([name, str(entries[0].get("support", "")), *map(_with_limits, entries)])
    header = [noun, "rows", *kinds]
    title = f"For each {noun}, with 95 % intervals"
    yield html.table(title, header, rows, numbers=len(kinds) + 1)


def _dots(kind: str, names: list[str], noun: str, metrics: Metrics) -> tuple[Figure, str]:
    """Return a figure of one metric of each class with its intervals, and the caption."""
    limits = [limits_of(metrics.get(f"{kind}/{name}", {})) for name in names]
    overall = metrics.get(kind, {}).get("value")
    line = "" if overall is None else f"; the dotted line is their mean, {number(overall)}"
    caption = f"{kind} of each {noun} with 95 % intervals{line}."
    return interval_figures.dots(names, limits, kind, overall), caption
