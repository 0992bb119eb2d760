"""Curves equal scikit-learn; figures of every size; the report as a document and in a browser."""

import base64
import hashlib
import io
import json
import re
import shutil
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import polars as pl
import pytest
import torch
from PIL import Image
from sklearn import metrics as sk
from sklearn.calibration import calibration_curve

from conftest import Cli, Trained, plain_schema, watched
from proj.data.arrays import ArrayDataModule
from proj.engine import html
from proj.engine.console import number
from proj.engine.evaluation import curves, figure_sets, figures, interval_figures
from proj.engine.evaluation.artifacts import save_artifacts, thumbnails
from proj.engine.evaluation.figures import Curve
from proj.engine.evaluation.prediction_set import PredictionSet, load_predictions
from proj.engine.evaluation.report import write_report
from proj.engine.evaluation.scoring import Metrics, add_intervals
from proj.engine.runs.contents import write_metrics
from proj.engine.runs.run import Run
from proj.schema import Batch, Schema

RUN = Path("lightning_logs/version_0")
TASKS = ("binary", "multiclass", "multilabel", "regression", "regression_2")
VOID = {"meta", "link", "br", "input", "img"}


class Document(HTMLParser):
    """The elements of a page; raises if an element is not closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.labels: list[str] = []
        self.cells: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        attributes = {name: value or "" for name, value in attrs}
        self.ids += [attributes["id"]] if "id" in attributes else []
        self.links += [
            attributes[name] for name in ("href", "src", "xlink:href") if name in attributes
        ]
        self.labels += [attributes["aria-label"]] if tag == "svg" else []
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("td", "small"):
            self.cells.append(data)


@pytest.fixture
def scores() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    rng = np.random.default_rng(0)
    hit = (rng.random(500) < 0.4).astype(np.int64)
    return np.round(1 / (1 + np.exp(-rng.normal(size=500) - hit)), 2), hit


def test_curves_equal_scikit_learn(scores: Any) -> None:
    """Ties between scores must give one point of the curve."""
    score, hit = scores
    result = curves.thresholds(score, hit)
    false, true, at = sk.roc_curve(hit, score, drop_intermediate=False)
    assert np.allclose(result.false_rate, false)
    assert np.allclose(result.recall, true)
    assert np.allclose(result.at[1:], at[1:])
    precision, recall, _ = sk.precision_recall_curve(hit, score)
    assert np.allclose(result.precision[:0:-1], precision[:-1])
    assert np.allclose(result.recall[:0:-1], recall[:-1])
    for i in (1, 20, 50):
        assert result.f1[i] == pytest.approx(sk.f1_score(hit, score >= result.at[i]))


def test_reliability_equals_scikit_learn_and_its_error_its_definition(scores: Any) -> None:
    """Scores of 0 and 1 belong to the outer bins."""
    score, hit = scores
    result = curves.reliability(score, hit)
    happened, predicted = calibration_curve(hit, score - 1e-12, n_bins=10)
    filled = result.rows > 0
    assert np.allclose(result.observed[filled], happened, atol=0.05)
    assert np.allclose(result.predicted[filled], predicted, atol=0.05)
    where = np.minimum((score * 10).astype(int), 9)
    bins = [where == b for b in range(10) if (where == b).any()]
    assert result.error == pytest.approx(
        sum(abs(score[b].mean() - hit[b].mean()) * b.mean() for b in bins)
    )
    assert curves.reliability(np.array([1.0, 0.0]), np.array([1, 0])).error == 0


def test_confusion_equals_scikit_learn() -> None:
    """Rows are targets and columns are predictions."""
    rng = np.random.default_rng(0)
    output = rng.random((300, 4))
    predictions = PredictionSet(
        "multiclass", tuple("abcd"), np.arange(300), rng.integers(4, size=300), output
    )
    assert (
        curves.confusion(predictions) == sk.confusion_matrix(predictions.target, output.argmax(1))
    ).all()


def test_deciles_contain_every_row_once() -> None:
    """Tenths of unequal size must not lose rows."""
    rng = np.random.default_rng(0)
    target, predicted = rng.normal(size=103), rng.normal(size=103)
    result = curves.deciles(target, predicted)
    assert len(result.low) == 10
    assert (result.low[1:] >= result.high[:-1]).all()
    first = np.argsort(target)[:11]
    assert result.absolute[0] == pytest.approx(np.abs(target - predicted)[first].mean())
    assert len(curves.deciles(target[:3], predicted[:3]).low) == 3


def test_the_most_confident_mistakes_come_first() -> None:
    """Correct rows must not be among the mistakes."""
    output = np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.05, 0.95]])
    predictions = PredictionSet(
        "multiclass", ("a", "b"), np.arange(4), np.array([1, 1, 1, 0]), output
    )
    assert curves.mistakes(predictions).tolist() == [3, 0, 1]
    binary = PredictionSet("binary", ("a", "b"), np.arange(4), np.array([1, 1, 1, 0]), output[:, 1])
    assert curves.mistakes(binary).tolist() == [3, 0, 1]


@pytest.mark.parametrize("classes", [2, 10, 15, 16, 50])
def test_a_confusion_matrix_has_every_name_and_up_to_15_classes_every_number(
    classes: int,
) -> None:
    """The cells of larger matrices are too small for numbers."""
    matrix = np.random.default_rng(0).integers(1, 1000, (classes, classes))
    names = [f"class {i}" for i in range(classes)]
    figure = figures.confusion_matrix(matrix, names, shares=False)
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert texts == (
        [str(count) for count in matrix.ravel()] if classes <= figures.MAX_NUMBERED_CLASSES else []
    )
    drawing = html.svg(figure, "matrix")
    assert all(f">{name}<" in drawing for name in names)


def test_figures_do_not_change_matplotlib_and_are_deterministic() -> None:
    """Global state would change a user's own figures."""
    import sys

    before, had = dict(mpl.rcParams), "matplotlib.pyplot" in sys.modules
    curve = Curve("a $x$ name_1", np.linspace(0, 1, 5000), np.linspace(0, 1, 5000))
    first, second = (html.svg(figures.roc([curve, curve]), "ROC") for _ in range(2))
    assert first == second
    assert dict(mpl.rcParams) == before
    assert ("matplotlib.pyplot" in sys.modules) is had
    assert "a $x$ name_1" in first
    assert len(first) < 60_000  # thinned


def own_script(page: str) -> str:
    """Return the one script element of a page; its hash is the only one that the policy allows."""
    scripts = re.findall(r"<script.*?</script>", page, re.DOTALL)
    assert len(scripts) == 1
    content = scripts[0].removeprefix("<script>").removesuffix("</script>")
    digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
    (policy,) = re.findall(r'"Content-Security-Policy" content="([^"]*)"', page)
    assert f"default-src 'none'; script-src 'sha256-{digest}'; style-src" in policy
    return str(scripts[0])


@pytest.mark.long
@pytest.mark.parametrize("task", TASKS)
def test_the_report_of_a_run(task: str, trained: Trained, cli: Cli) -> None:
    """A report works offline, has unique ids and contains every metric."""
    trained(task, 300)
    cli("validate")
    assert "report: lightning_logs/version_0/report.html" in cli("test")
    text = (RUN / "report.html").read_text()
    document = Document(text)
    assert len(document.ids) == len(set(document.ids))
    assert all(link.startswith(("#", "data:")) for link in document.links)
    script = own_script(text)
    assert not re.search(r"url\((?!#)|@import|<script", text.replace(script, ""))
    # The first is the headline metric, and several classes or targets have two figures of dots.
    expected = {
        "binary": 10,
        "multiclass": 11,
        "multilabel": 14,
        "regression": 6,
        "regression_2": 11,
    }[task]
    assert document.tags["svg"] == document.tags["figcaption"] == expected
    assert all(document.labels)
    metrics = json.loads((RUN / "test/metrics.json").read_text())
    for name, entry in metrics.items():
        # The interval of a class follows in the same cell.
        starts = {cell.partition(" (")[0] for cell in document.cells}
        assert number(entry["value"]) in starts, name
    before = text
    assert "report: lightning_logs/version_0/report.html" in cli("report", "version_0")
    assert (RUN / "report.html").read_text() == before


def test_a_run_that_was_not_tested_has_no_report(trained: Trained, cli: Cli) -> None:
    """The message says which files are missing and how to get them."""
    trained()
    assert "version_0 has not been tested: expected" in cli("report", code=2)
    assert "no run versoin_0 in lightning_logs" in cli("report", "versoin_0", code=2)
    assert "report: unrecognized arguments: --nonsense" in cli("report", "--nonsense", code=2)


def fake(work: Path, predictions: PredictionSet, schema: Schema) -> Run:
    """A tested run with these predictions, without training."""
    run = Run(work / "run")
    run.path.mkdir()
    (run.path / "config.yaml").write_text("seed_everything: 0\ntrainer: {}\nmodel: {}\n")
    run.write_manifest(status="finished", start="2026-11-26T00:00:00", end="2026-11-26T00:01:00")
    columns: dict[str, Any] = {
        "row": predictions.row,
        "target": np.asarray(schema.classes)[predictions.target],
        "prediction": np.asarray(schema.classes)[predictions.predicted],
    }
    probabilities = (
        predictions.output
        if predictions.task == "multiclass"
        else np.column_stack([1 - predictions.output, predictions.output])
    )
    columns |= {
        f"probability_{name}": probabilities[:, i] for i, name in enumerate(predictions.names)
    }
    (run.path / "test").mkdir()
    pl.DataFrame(columns).write_parquet(run.path / "test/predictions.parquet")
    return run


def write_scored(run: Run, schema: Schema, metrics: Metrics) -> None:
    """Write metrics with their intervals into the folder of a run."""
    predictions = load_predictions(run, "test", schema)
    scored = add_intervals(metrics, predictions, schema, seed=0)
    write_metrics(run.path / "test/metrics.json", scored)


def report_of(run: Run, schema: Schema) -> Path:
    """Write the report of a run and return its path."""
    predictions = load_predictions(run, "test", schema)
    return write_report(run, schema, predictions, run.metrics("test"))


def classes_schema(names: tuple[str, ...]) -> Schema:
    task = "binary" if len(names) == 2 else "multiclass"
    plain = plain_schema(task, (1,), len(names))
    return Schema.from_dict(
        {**plain.to_dict(), "classes": list(names), "class_counts": [10] * len(names), "rows": 10}
    )


def test_names_are_escaped(work: Path) -> None:
    """Class names come from the data and could hold HTML."""
    names = ("<b>bold</b>", "a & b", "$x$ 'q' \"q\"", "é_1^2", "日本")
    rng = np.random.default_rng(0)
    predictions = PredictionSet(
        "multiclass",
        names,
        np.arange(100),
        rng.integers(5, size=100),
        rng.dirichlet(np.ones(5), 100),
    )
    schema = classes_schema(names)
    run = fake(work, predictions, schema)
    write_scored(run, schema, {"f1/<b>bold</b>": {"value": None}})
    text = report_of(run, schema).read_text()
    Document(text)
    assert "<b>" not in text
    assert "&lt;b&gt;bold" in text


def test_every_element_escapes_its_texts() -> None:
    """A text that is not HTML could close an attribute or open an element."""
    hostile = "<b> & \"q\" 'q' {{ 1 }}"
    figure = figures.roc([Curve(hostile, np.array([0.0, 1.0]), np.array([0.0, 1.0]))])
    elements = [
        html.text(hostile),
        html.note(hostile),
        html.value(hostile),
        html.code(hostile),
        html.listed([hostile]),
        html.beside(html.text(hostile), html.text(hostile)),
        html.folded(hostile, html.text(hostile)),
        html.remarked(hostile, hostile),
        html.table(hostile, [hostile, hostile], [[hostile, hostile]], numbers=1),
        html.figures((figure, hostile)),
        html.image(np.zeros((2, 2), np.uint8), hostile),
    ]
    for element in elements:
        assert "<b>" not in element
        assert '"q"' not in element
        assert "{{ 1 }}" in element
    text = html.page(hostile, elements[0], [html.Section(hostile, elements)])
    assert "<b>" not in text
    document = Document(text)
    assert document.labels == [hostile]
    assert hostile in document.cells


@pytest.mark.parametrize("case", ["one class", "constant", "one row", "perfect", "no number"])
def test_degenerate_predictions_have_a_report(case: str, work: Path) -> None:
    """Undefined metrics and figures must not raise an error."""
    rows = 1 if case == "one row" else 40
    target = np.zeros(rows, np.int64) if case == "one class" else np.arange(rows) % 2
    output = (
        np.full(rows, 0.3) if case == "constant" else np.where(target == 1, 0.9, 0.1).astype(float)
    )
    if case == "no number":
        output[3] = np.nan
    predictions, schema = (
        PredictionSet("binary", ("no", "yes"), np.arange(rows), target, output),
        classes_schema(("no", "yes")),
    )
    run = fake(work, predictions, schema)
    values: dict[str, dict[str, Any]] = {
        name: {"value": None} for name in ("accuracy", "f1", "auroc")
    }
    write_scored(run, schema, values)
    text = report_of(run, schema).read_text()
    Document(text)
    if case == "no number":
        assert "1 of 40 predictions are not finite numbers; figures" in text


@pytest.fixture(scope="module")
def large_report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the report of 100,000 rows of ten classes and return its path."""
    rng = np.random.default_rng(0)
    names, rows = tuple("abcdefghij"), 100_000
    target = rng.integers(10, size=rows)
    score = np.exp(rng.normal(size=(rows, 10)) + 2 * np.eye(10)[target])
    predictions = PredictionSet(
        "multiclass", names, np.arange(rows), target, score / score.sum(1, keepdims=True)
    )
    schema = classes_schema(names)
    run = fake(tmp_path_factory.mktemp("large"), predictions, schema)
    predicted = predictions.predicted
    values = {
        "accuracy": {"value": float((predicted == target).mean())},
        "f1": {"value": float(sk.f1_score(target, predicted, average="macro"))},
    }
    write_scored(run, schema, values)
    return report_of(run, schema)


def test_the_report_of_100_000_rows_is_below_1_mb(large_report: Path) -> None:
    """Points of large splits are thinned; `scripts/bench.py --work report` measures the time."""
    assert len(large_report.read_text()) < 1_000_000


def test_the_report_opens_with_the_headline_metric_and_folds_the_long_parts(
    trained: Trained, cli: Cli
) -> None:
    """A reader would look for the result, and scroll past a hundred settings."""
    trained("binary", 300)
    cli("test")
    text = (RUN / "report.html").read_text()
    opening = text[: text.index("<nav")]
    entry = json.loads((RUN / "test/metrics.json").read_text())["f1"]
    assert f'<p class="value">f1 {number(entry["value"])}</p>' in opening
    assert f"95 % interval {number(entry['low'])} to {number(entry['high'])}" in opening
    assert opening.count("<svg") == 1
    assert "Baseline, always no, the most frequent class in training: f1 0.0000" in opening
    assert "The best epoch is " in opening
    assert "With 45 test rows the 95 % interval of f1 is" in opening
    for long in ("optimizer.lr", "seed_everything: 1\n"):
        before = text[: text.index(long)]
        assert before.count("<details>") == before.count("</details>") + 1


def test_a_run_that_is_no_better_than_the_baseline_is_a_warning(work: Path) -> None:
    """Every row is predicted as the most frequent class, with an accuracy of 0.9."""
    target = (np.arange(100) % 10 == 0).astype(np.int64)
    predictions = PredictionSet("binary", ("no", "yes"), np.arange(100), target, np.full(100, 0.1))
    schema = classes_schema(("no", "yes"))
    run = fake(work, predictions, schema)
    write_scored(run, schema, {"f1": {"value": 0.0}, "accuracy": {"value": 0.9}})
    text = report_of(run, schema).read_text()
    assert "The run is not better than the baseline by f1." in text
    assert "accuracy 0.9000 (as this run)" in text


def test_an_error_without_an_interval_says_why_in_the_opening(work: Path) -> None:
    """The reader would look for the interval."""
    rng = np.random.default_rng(0)
    target = rng.normal(size=(80, 1))
    output = target + 0.1 * rng.normal(size=(80, 1))
    output[5] += 50
    schema = plain_schema("regression", (1,), 1)
    run = Run(work / "run")
    (run.path / "test").mkdir(parents=True)
    (run.path / "config.yaml").write_text("seed_everything: 0\ntrainer: {}\nmodel: {}\n")
    run.write_manifest(status="finished", start="2026-11-26T00:00:00")
    columns = {"row": np.arange(80), "target": target[:, 0], "prediction": output[:, 0]}
    pl.DataFrame(columns).write_parquet(run.path / "test/predictions.parquet")
    write_scored(run, schema, {"rmse": {"value": float(np.sqrt(((output - target) ** 2).mean()))}})
    text = report_of(run, schema).read_text()
    assert "There is no interval of rmse: row 5 makes up more than 99 % of the squared" in text


def test_a_spike_does_not_flatten_a_learning_curve() -> None:
    """One value of a million would make the others a line at the bottom."""
    steps = np.arange(50)
    loss = 1 / (1 + steps / 10)
    assert curves.spike_limit([loss, loss]) is None
    spiked = np.where(steps == 20, 1e6, loss)
    limit = curves.spike_limit([spiked, loss])
    assert limit is not None
    assert loss.max() <= limit < 10
    scalars = {"train/loss": (steps * 5, spiked), "val/loss": (steps * 5, loss)}
    ((figure, caption),) = figure_sets.learning(scalars, ["loss"])
    assert figure.axes[0].get_ylim()[1] == limit
    assert "1 value above" in caption
    assert "is beyond the axis, the largest 1e+06 of train at step 100." in caption.replace(
        "1000000", "1e+06"
    )
    for odd in (np.array([]), np.full(9, 2.0), np.array([np.nan, 1.0]), np.array([1.0])):
        assert curves.spike_limit([odd]) is None


def test_classes_without_a_value_or_an_interval_have_a_figure() -> None:
    """A class that does not occur has neither."""
    limits = [(0.5, 0.4, 0.6), (0.5, None, None), (None, None, None)]
    figure = interval_figures.dots(["a", "b" * 40, "<c>"], limits, "f1", 0.5)
    drawing = html.svg(figure, "dots")
    assert "&lt;c&gt;" in drawing
    assert figure.axes[0].get_ylim() == (2.6, -0.6)
    for headline in ((0.5, 0.4, 0.6), (0.5, None, None), (0.0, 0.0, 0.0)):
        for baseline in (None, 0.5, -3.0):
            axes = interval_figures.headline(headline, "f1", baseline).axes[0]
            low, high = axes.get_xlim()
            assert all(low < x < high for x in (*headline, baseline) if x is not None)


@pytest.mark.long
def test_columns_that_are_left_out_are_beside_the_mistakes(work: Path, cli: Cli) -> None:
    """A reader recognises a row by its name, which is no input of the net."""
    rng = np.random.default_rng(0)
    x, noise = rng.normal(size=(2, 200))
    table = pl.DataFrame(
        {
            "row": [f"<i>{i}</i>" for i in range(200)],
            "x": x,
            "note": ["word " * 30 + str(i) for i in range(200)],
            "y": np.where(x + noise > 0, "yes", "no"),
        }
    )
    table.write_csv("table.csv")
    flags = "--data Tabular --data.path table.csv --data.target y --data.batch_size 32"
    flags += " --model BinaryClassifier --model.net MLP --trainer.max_epochs 1"
    cli("fit", *flags.split(), "--trainer.accelerator", "cpu")
    cli("test")
    text = (RUN / "report.html").read_text()
    assert ">row (left out)</th>" in text
    assert ">note (left out)</th>" in text
    predictions = pl.read_parquet(RUN / "test/predictions.parquet")
    wrong = predictions.filter(pl.col("target") != pl.col("prediction"))
    assert len(wrong)
    for index in wrong["row"][:20]:
        assert f"<td>&lt;i&gt;{index}&lt;/i&gt;</td>" in text
    assert max(map(len, re.findall(r"<td>(word [^<]*)</td>", text))) <= 61
    # An older run, or one whose test was killed, has no such file.
    (RUN / "test/mistakes.parquet").unlink()
    cli("report")
    assert "(left out)" not in (RUN / "report.html").read_text()


# Images of mistakes


def images_in(text: str) -> dict[str, np.ndarray[Any, Any]]:
    """The decoded images of a page by their text alternatives."""
    result = re.findall(r'<img src="data:image/png;base64,([^"]+)" alt="([^"]+)">', text)
    return {
        words: np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))) for data, words in result
    }


@pytest.mark.parametrize("data", ["Arrays", "Images"])
def test_images_of_mistakes_equal_the_source(data: str, experiment: Any, cli: Cli) -> None:
    """Random images, some of which an untrained net predicts wrongly."""
    config = experiment("binary", 120)
    shape = (120, 9, 7) if data == "Arrays" else (120, 120, 60, 3)
    x = np.random.default_rng(0).integers(256, size=shape).astype(np.uint8)
    np.savez("data.npz", x=x, y=np.load("data.npz")["y"])
    cli(
        "fit",
        "--config",
        config,
        "--data",
        data,
        "--data.path",
        "data.npz",
        "--trainer.max_epochs",
        "1",
    )
    cli("test")
    text = (RUN / "report.html").read_text()
    document, shown = Document(text), images_in(text)
    table = pl.read_parquet(RUN / "test/predictions.parquet").filter(
        pl.col("target") != pl.col("prediction")
    )
    assert document.tags["img"] == len(shown) == min(20, len(table))
    assert len(shown) > 0
    sure = table.select(pl.max_horizontal("probability_no", "probability_yes")).to_series()
    for i in sure.arg_sort(descending=True)[:20]:
        row, target, predicted = table.row(i)[:3]
        pixels = shown[f"target {target}, predicted {predicted}, probability {sure[i]:.3f}"]
        if data == "Arrays":
            assert (pixels == x[row]).all()
        else:
            assert (
                pixels
                == np.asarray(Image.fromarray(x[row]).resize((48, 96), Image.Resampling.BICUBIC))
            ).mean() > 0.5
            assert pixels.shape == (96, 48, 3)
    np.savez(
        "data.npz",
        x=x[..., :2].reshape(120, -1)[:, :14].astype(np.float32),
        y=np.load("data.npz")["y"],
    )
    assert "not as recorded" not in cli("report", "version_0")  # the folder is all it needs
    assert (RUN / "report.html").read_text() == text
    saved = RUN / "test/mistakes.npz"
    saved.write_bytes(saved.read_bytes()[:100])
    assert "mistakes.npz is damaged" in cli("report", "version_0", code=2)


def test_dark_images_are_brightened_by_one_factor() -> None:
    """Separate factors would make images incomparable."""
    x = np.array([[[[0, 16], [8, 4]]], [[[1, 2], [3, 0]]]], np.uint8)
    assert thumbnails(x).tolist() == [[[0, 240], [120, 60]], [[15, 30], [45, 0]]]
    assert thumbnails(np.zeros((1, 3, 5, 5), np.uint8)).shape == (1, 5, 5, 3)
    assert thumbnails(np.full((1, 1, 200, 10), 200, np.uint8)).shape == (1, 96, 5)


def test_without_mistakes_there_are_no_images(work: Path) -> None:
    """Images of an earlier test must not remain."""
    x = torch.zeros(6, 1, 4, 4, dtype=torch.uint8)
    target = np.arange(6) % 2
    schema = Schema.from_dict(
        {**classes_schema(("no", "yes")).to_dict(), "input_shape": [1, 4, 4], "input_type": "uint8"}
    )
    for output, said in ((target * 0.8 + 0.1, 0), (0.9 - target * 0.8, 6), (np.full(6, np.nan), 0)):
        predictions = PredictionSet(
            "binary", ("no", "yes"), np.arange(6), target, output.astype(float)
        )
        run = Run(work / "run")
        if run.path.exists():
            shutil.rmtree(run.path)
        run = fake(work, predictions, schema)
        data = ArrayDataModule("digits")
        data.splits["test"] = Batch(
            x, None, torch.arange(6).flip(0)
        )  # in another order than the predictions
        assert list(save_artifacts(run, data, schema, predictions)) == []
        write_scored(run, schema, {"f1": {"value": None}})
        assert Document(report_of(run, schema).read_text()).tags["img"] == said
    odd = Schema.from_dict({**schema.to_dict(), "input_shape": [4, 4, 4]})
    predictions = PredictionSet("binary", ("no", "yes"), np.arange(6), target, target * 0.8 + 0.1)
    assert list(save_artifacts(run, data, odd, predictions)) == [
        "the report has no images of mistakes: expected 1 or 3 channels, they have 4"
    ]


# In a real browser


def test_a_click_on_a_heading_sorts_the_table(browser: Any, work: Path) -> None:
    """Numbers sort by size, texts by the alphabet, cells without a number come last."""
    rows = [
        ["b", "9", "x"],
        ["a", "10 (8 to 12)", "z"],
        ["c", "not defined", "y"],
        ["d", "1,000", ""],
    ]
    table = html.table("caption", ["name", "value", "text"], rows, numbers=1, texts=1)
    single = html.table("other", ["name"], [["a"]])
    page = html.page("title", html.text("lead"), [html.Section("s", [table, single])])
    # A script that gets into the page by a name does not run.
    page = page.replace("</main>", "<script>document.title = 'hostile'</script></main>")
    (work / "page.html").write_text(page)
    tab, messages, _ = watched(browser)
    tab.goto((work / "page.html").as_uri())
    assert tab.title() == "title"
    assert len(messages) == 1
    assert "Content Security Policy" in messages[0]

    def order(heading: str) -> str:
        tab.click(f"th button:text-is('{heading}')")
        return "".join(tab.eval_on_selector_all("tbody th", "all => all.map(e => e.innerText)"))[:4]

    assert order("value") == "dabc"
    assert order("value") == "badc"
    assert order("name") == "abcd"
    assert order("name") == "dcba"
    assert order("text") == "dbca"
    assert tab.eval_on_selector_all("th button", "all => all.length") == 3
    assert tab.eval_on_selector("th[aria-sort]", "e => [e.innerText, e.ariaSort].join()") == (
        "text,ascending"
    )
    tab.close()


@pytest.mark.parametrize(("width", "in_a_row"), [(400, 1), (1400, 2)])
def test_figures_stand_two_in_a_row_on_a_wide_screen(
    width: int, in_a_row: int, browser: Any, large_report: Path
) -> None:
    """Half of a wide page would be empty."""
    tab, *_ = watched(browser, viewport={"width": width, "height": 900})
    tab.goto(large_report.as_uri())
    boxes = tab.eval_on_selector_all(
        "section .figures figure", "all => all.map(e => e.getBoundingClientRect().toJSON())"
    )
    tops = Counter(box["top"] for box in boxes)
    assert set(tops.values()) == {in_a_row}
    used = max(box["right"] for box in boxes) - min(box["left"] for box in boxes)
    assert used > 0.9 * width
    tab.close()


@pytest.mark.parametrize("width", [400, 1600])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_report_in_chromium(width: int, scheme: str, browser: Any, large_report: Path) -> None:
    """No console message, no request except the file, all figures visible, nothing too wide."""
    tab, messages, requests = watched(
        browser, viewport={"width": width, "height": 900}, color_scheme=scheme
    )
    tab.goto(large_report.as_uri())
    assert messages == []
    assert [url for url in requests if not url.startswith("data:")] == [large_report.as_uri()]
    sizes = tab.eval_on_selector_all(
        "svg", "all => all.map(one => [one.clientWidth, one.clientHeight])"
    )
    assert len(sizes) >= 6
    assert all(100 < w <= width and h > 100 for w, h in sizes)
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.className") == "skip"
    tab.close()


def test_all_figures_of_a_task_have_captions(work: Path) -> None:
    """Captions are the text alternatives of figures."""
    rng = np.random.default_rng(0)
    predictions = PredictionSet(
        "multilabel", ("a", "b"), np.arange(80), rng.integers(2, size=(80, 2)), rng.random((80, 2))
    )
    captions = [caption for *_, caption in figure_sets.figures_of(predictions)]
    assert len(captions) == len(set(captions)) == 7
    assert all(caption.endswith(".") for caption in captions)
