"""The model card of a bundle: ``README.md`` with the YAML header of Hugging Face's model cards."""

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from proj.engine import PACKAGE
from proj.engine.console import number
from proj.engine.deployment.trained import Trained
from proj.engine.escaping import visible
from proj.engine.evaluation.counts import headline_metric
from proj.engine.evaluation.prediction_set import load_predictions
from proj.engine.evaluation.report_sections import saved_columns
from proj.engine.evaluation.results import run_seed
from proj.engine.evaluation.scoring import small_sample_warnings
from proj.engine.evaluation.slices import Slices, slices
from proj.engine.runs.contents import LOST, FindingEntry
from proj.engine.runs.files import is_present, read_json
from proj.engine.yaml_text import yaml_document
from proj.schema import Finding

# Names of tasks at Hugging Face, by the kind of data and whether there are no classes.
PIPELINES = {
    ("table", False): "tabular-classification",
    ("table", True): "tabular-regression",
    ("images", False): "image-classification",
}
# Columns of the table, and slices, that a card lists.
MAX_COLUMNS, MAX_SLICES = 60, 5
MARKDOWN = re.compile(r"([\\`*_{}\[\]<>#|!~])")


def model_card(
    trained: Trained, spec: dict[str, Any], proof: dict[str, Any], is_private: bool
) -> str:
    """Return the model card of a run, from what its folder and its bundle hold.

    ``is_private`` leaves the findings out, which quote values of single rows.
    """
    sections: dict[str, Iterable[str]] = {
        "": _lead(trained, proof),
        "Use": _use(spec),
        "Inputs": _inputs(spec["inputs"]),
        "Outputs": _outputs(spec["outputs"]),
        "Training data": _data(trained),
        "Results": _results(trained),
        "Worst slices": _slices(trained),
        "Findings about the data": () if is_private else _findings(trained),
        "Limits": _limits(trained, spec),
        "Proof": _proof(trained, proof),
    }
    header = yaml_document(_header(trained, spec))
    parts = [f"---\n{header}---", f"# {text(trained.run.path.name)}"]
    for title, lines in sections.items():
        if body := "\n".join(lines):
            parts.append(f"## {title}\n\n{body}" if title else body)
    return "\n\n".join(parts) + "\n"


def text(value: object) -> str:
    """Return a text of unknown origin as one line of Markdown that shows it as it is."""
    return MARKDOWN.sub(r"\\\1", visible(str(value))).replace(r"\<", "&lt;").replace(r"\>", "&gt;")


def _is_ours(trained: Trained) -> bool:
    return trained.schema is not None


def _header(trained: Trained, spec: dict[str, Any]) -> dict[str, Any]:
    kind, is_regression = (
        spec["inputs"]["kind"],
        spec["outputs"]["task"] in ("regression", "numbers"),
    )
    task = PIPELINES.get((kind, is_regression), "other")
    header: dict[str, Any] = {"library_name": spec["model"]["format"], "pipeline_tag": task}
    header["tags"] = [PACKAGE, trained.net, spec["outputs"]["task"]]
    values = {
        name: entry["value"]
        for name, entry in _metrics(trained).items()
        if "/" not in name and entry["value"] is not None
    }
    result = {
        "task": {"type": task},
        "dataset": {"name": _source(trained), "type": kind, "split": "test"},
        "metrics": [{"type": name, "value": value} for name, value in values.items()],
    }
    if values:
        header["model-index"] = [{"name": trained.run.path.name, "results": [result]}]
    return header


def _metrics(trained: Trained) -> dict[str, dict[str, Any]]:
    path = trained.run.path / "test" / "metrics.json"
    return trained.run.metrics("test") if is_present(path) else {}


def _source(trained: Trained) -> str:
    """Return the name of the data, without the folders of this machine."""
    options = (trained.run.config.get("data") or {}).get("init_args") or {}
    return Path(str(options.get("path", "own data"))).name


def _lead(trained: Trained, proof: dict[str, Any]) -> Iterator[str]:
    what = trained.outputs["task"] if _is_ours(trained) else "a module of its own"
    yield (
        f"{text(trained.net)}, {what}, trained on {text(_source(trained))} and exported by "
        f"{PACKAGE}. It answers {proof['rows']:,} test rows as the run did ([proof](#proof))."
    )


def _use(spec: dict[str, Any]) -> Iterator[str]:
    needed = "NumPy and onnxruntime" if spec["model"]["format"] == "onnx" else "NumPy and torch"
    needed += " and Pillow" if spec["inputs"]["kind"] == "images" else ""
    yield f"This folder needs {needed} (`requirements.txt`), and nothing else."
    yield "\n```python\nimport sys\n"
    yield 'sys.path.insert(0, "BUNDLE")  # the path of this folder\nfrom runtime import load\n'
    yield f'model = load("BUNDLE")\nmodel.predict({_example(spec["inputs"])})\n```\n'
    yield (
        f"In a project with {PACKAGE}, `{PACKAGE}.deploy.load` does the same, and `python -m "
        f"{PACKAGE} verify BUNDLE` repeats the proof on your machine."
    )


def _example(inputs: dict[str, Any]) -> str:
    """Return an argument of ``predict`` as Python code."""
    if inputs["kind"] == "table":
        return repr([{source["name"]: source["example"] for source in inputs["sources"]}])
    if inputs["kind"] == "images":
        return '["photo.jpg"]'
    return "x"


def _inputs(inputs: dict[str, Any]) -> Iterator[str]:
    if inputs["kind"] == "images":
        color = "grey" if inputs["channels"] == 1 else "RGB"
        yield (
            f"Image files, {color}, scaled to {inputs['height']}×{inputs['width']} pixels "
            f"({inputs['resample']}) after their EXIF orientation is applied."
        )
    elif inputs["kind"] == "arrays":
        shape = ", ".join(map(str, inputs["shape"]))
        yield f"An array of {inputs['dtype']} [rows, {shape}]."
    else:
        yield "| column | values | missing in training |\n| --- | --- | --- |"
        for source in inputs["sources"][:MAX_COLUMNS]:
            missing = "yes" if source["missing"] else "no"
            yield f"| {text(source['name'])} | {_values(source, inputs)} | {missing} |"
        if hidden := inputs["sources"][MAX_COLUMNS:]:
            yield f"\n{len(hidden)} more columns are in `bundle.json`."


def _values(source: dict[str, Any], inputs: dict[str, Any]) -> str:
    """Return what a column may hold, in a few words."""
    for column in inputs["categorical"]:
        if column["source"] == source["name"]:
            shown = ", ".join(text(name) or "(empty)" for name in column["categories"][:8])
            return f"{shown}{', …' * (len(column['categories']) > 8)}"
    for column in inputs["numeric"]:
        if column["source"] == source["name"] and column["kind"] == "number":
            return f"numbers from {number(column['low'])} to {number(column['high'])} in training"
    return f"dates, such as {text(source['example'])}"


def _outputs(outputs: dict[str, Any]) -> Iterator[str]:
    names = ", ".join(text(name) for name in outputs["names"])
    yield {
        "binary": f"`prediction` and a probability of each class: {names}.",
        "multiclass": f"`prediction` and a probability of each class: {names}.",
        "multilabel": f"For each label 0 or 1, and its probability: {names}.",
        "regression": f"Numbers: {names}.",
        "numbers": f"Columns of numbers: {names}.",
    }[outputs["task"]]
    if outputs["task"] == "binary":
        yield (
            f"A row is {text(outputs['names'][1])} above the probability "
            f"{outputs['thresholds'][0]:.4g}."
        )
    if outputs.get("temperature", 1.0) != 1.0:
        yield f"The probabilities are calibrated: temperature {outputs['temperature']:.4g}."
    if outputs.get("conformal_limits"):
        is_interval = outputs["task"] == "regression"
        interval = "The numbers from `low` to `high` are a conformal interval"
        kind = interval if is_interval else "The classes in `set` are a conformal set"
        yield f"{kind}, fitted on the validation split; see its coverage in the results."


def _data(trained: Trained) -> Iterator[str]:
    counts = [f"{rows:,} {split}" for split, rows in trained.splits.items()]
    if counts:
        yield f"- rows: {', '.join(counts)}"
    schema = trained.schema
    if schema is not None and schema.class_counts:
        counted = zip(schema.class_names, schema.class_counts, strict=True)
        yield f"- training rows of each class: {', '.join(f'{text(n)} {c:,}' for n, c in counted)}"
    if fingerprint := trained.run.manifest.get("data"):
        yield f"- fingerprint of the source: `{visible(fingerprint)[:64]}`"


def _results(trained: Trained) -> Iterator[str]:
    if not (metrics := _metrics(trained)):
        return
    yield "On the test split, with 95 % confidence intervals:\n"
    yield "| metric | value | interval |\n| --- | --- | --- |"
    for name, entry in metrics.items():
        yield f"| {text(name)} | {number(entry['value'])} | {_limits_of(entry)} |"


def _limits_of(entry: Mapping[str, Any]) -> str:
    low, high = entry.get("low"), entry.get("high")
    return "" if low is None else f"{number(low)} to {number(high)}"


def _slices(trained: Trained) -> Iterator[str]:
    found = _find_slices(trained)
    if found is None or not found.worst:
        return
    assert trained.schema is not None
    metric, shown = headline_metric(trained.schema.task), min(MAX_SLICES, len(found.worst))
    yield (
        f"The {shown} worst of {found.scored} slices of the test rows by {metric}. The worst of "
        "many is partly the worst by chance.\n"
    )
    yield "| column | value | rows | metric | interval |\n| --- | --- | --- | --- | --- |"
    for part in found.worst[:MAX_SLICES]:
        interval = part.interval
        limits = (
            "" if interval.low is None else f"{number(interval.low)} to {number(interval.high)}"
        )
        value = number(interval.value)
        yield f"| {text(part.column)} | {text(part.value)} | {part.rows} | {value} | {limits} |"


def _find_slices(trained: Trained) -> Slices | None:
    if trained.schema is None or not _metrics(trained):
        return None
    predictions = load_predictions(trained.run, "test", trained.schema)
    columns = saved_columns(trained.run, predictions)
    if columns is None or trained.inputs["kind"] != "table":
        return None
    return slices(predictions, columns, run_seed(trained.run), MAX_SLICES)


def _findings(trained: Trained) -> Iterator[str]:
    path = trained.run.path / "findings.json"
    entries = read_json(path, list[FindingEntry], LOST) if is_present(path) else []
    for entry in entries:
        yield f"- {text(Finding(**entry))}"


def _limits(trained: Trained, spec: dict[str, Any]) -> Iterator[str]:
    if trained.schema is not None:
        for warning in small_sample_warnings(_metrics(trained), trained.schema.task, "test"):
            yield f"- {text(warning)}"
    if spec["inputs"]["kind"] == "table":
        yield "- A category that training did not have counts as one other category."
    yield "- The results hold for rows like those of the test split."


def _proof(trained: Trained, proof: dict[str, Any]) -> Iterator[str]:
    versions = ", ".join(f"{name} {version}" for name, version in proof["versions"].items())
    source, reference = "their source has them", "the run's"
    if trained.schema is None:
        source, reference = "the loader yields them", "the module's"
    largest, allowed = f"{proof['largest_difference']:.1e}", f"{proof['tolerance']:g}"
    yield (
        f"All {proof['rows']:,} rows of the test split, as {source}, passed through this bundle in "
        "a process without the project. Labels are equal. Each other answer differs from "
        f"{reference} by at most {largest}, where {allowed} is allowed: "
        "|got - expected| / max(|expected|, 0.1 s), with s = 1 for probabilities and the standard "
        "deviation in training for numbers. Batches of 1, 7 and 1,000 rows agree "
        f"({versions}, Python {proof['python']}, {proof['machine']})."
    )
