"""Comparisons equal references, and their rate of false positives is the level."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import yaml
from scipy import stats

from conftest import Cli, Once, script_of
from proj.engine.cli import main
from proj.engine.evaluation.intervals import intervals
from proj.engine.evaluation.paired import area_difference, differences, holm, mcnemar
from proj.engine.evaluation.prediction_set import PredictionSet


def test_mcnemar_mid_p_is_the_exact_p_minus_half_the_observed_probability() -> None:
    """The mid-p value equals its definition by SciPy."""
    for first, other in ((3, 12), (40, 60), (0, 5), (700, 900)):
        exact = stats.binomtest(min(first, other), first + other).pvalue
        want = exact - stats.binom.pmf(min(first, other), first + other, 0.5)
        assert mcnemar(first, other) == pytest.approx(want, rel=1e-9)
        assert mcnemar(other, first) == mcnemar(first, other)
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(4, 4) == pytest.approx(1)


def script() -> Any:
    return script_of("coverage")


def test_holm_equals_r() -> None:
    """As in R: p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm")."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([0.2]) == [0.2]


@pytest.mark.long
@pytest.mark.parametrize("task", ["regression", "binary", "multiclass"])
def test_equally_good_runs_differ_significantly_in_5_percent(task: str) -> None:
    """The rate of 250 repeats, with a standard error of 1.4 points, is between 1 and 9 %."""
    for name, rate in script().false_positives(task, 200, 250).items():
        assert 0.01 <= rate <= 0.09, (name, rate)


@pytest.mark.parametrize("task", ["regression", "binary", "multiclass"])
def test_a_better_run_is_significant_and_the_difference_is_that_of_the_metrics(task: str) -> None:
    """The sign must not be reversed."""
    first, other = script().rivals(task, 2000, np.random.default_rng(1), better=0.4)
    values = [intervals(run) for run in (first, other)]
    for name, difference in differences(first, other).items():
        before, after = values[0][name].value, values[1][name].value
        assert before is not None
        assert after is not None
        assert difference.value == pytest.approx(after - before, abs=1e-9), name
        assert difference.low <= difference.value <= difference.high
        assert difference.p < 0.05, name
        assert not difference.low <= 0 <= difference.high, name


def test_interval_and_p_value_agree() -> None:
    """A significant difference must not have an interval around 0."""
    rng = np.random.default_rng(2)
    for _ in range(30):
        for name, difference in differences(*script().rivals("multiclass", 100, rng)).items():
            if difference.test == "paired bootstrap" and abs(difference.p - 0.05) > 0.002:
                assert (difference.low <= 0 <= difference.high) == (difference.p > 0.05), (
                    name,
                    difference,
                )


def test_delong_paired_variance_equals_its_definition() -> None:
    """The covariance of the two areas must be included."""
    first, other = script().rivals("binary", 150, np.random.default_rng(3))
    hit = first.target == 1
    pairs = [(run.output[hit][:, None] > run.output[~hit]).astype(float) for run in (first, other)]
    moved = pairs[1] - pairs[0]
    m, k = moved.shape
    variance = moved.mean(1).var(ddof=1) / m + moved.mean(0).var(ddof=1) / k
    difference = differences(first, other)["auroc"]
    assert difference.value == pytest.approx(moved.mean())
    assert difference.p == pytest.approx(
        2 * stats.t.sf(abs(moved.mean()) / np.sqrt(variance), min(m, k) - 1), rel=1e-6
    )


@pytest.mark.parametrize("positives", [2, 4])
def test_equal_areas_of_few_positives_are_rarely_significant(positives: int) -> None:
    """With the normal quantile the rates would be 0.22 and 0.09 instead of 0.05."""
    rng, target = np.random.default_rng(5), np.arange(200) < positives
    significant = []
    for _ in range(400):
        base = target + rng.normal(size=200)
        pair = (stats.norm.cdf(base + 0.5 * rng.normal(size=200)) for _ in range(2))
        first, other = (
            PredictionSet("binary", ("no", "yes"), np.arange(200), target.astype(int), p)
            for p in pair
        )
        difference = area_difference(first, other, "auroc")
        assert difference is not None
        significant.append(difference.p < 0.05)
    assert np.mean(significant) < 0.07


def test_a_run_does_not_differ_from_itself() -> None:
    """Differences without variance must not raise an error."""
    for task in ("regression", "binary", "multiclass"):
        first, _ = script().rivals(task, 50, np.random.default_rng(0))
        for difference in differences(first, first).values():
            assert difference[:4] == (0.0, 0.0, 0.0, 1.0)


def test_copies_of_rows_in_groups_do_not_lower_the_p_value() -> None:
    """Copies in groups carry no additional information."""
    first, other = script().rivals("binary", 200, np.random.default_rng(4))
    times = np.repeat(np.arange(200), 8)
    many = [
        PredictionSet(
            run.task, run.names, run.row[times], run.target[times], run.output[times], times
        )
        for run in (first, other)
    ]
    plain, grouped = differences(first, other), differences(many[0], many[1])
    for name in ("precision", "f1", "auroc", "average_precision"):
        assert grouped[name].p == pytest.approx(plain[name].p, abs=0.05), name
    assert grouped["accuracy"].test == "paired bootstrap"


# The verbs


@pytest.fixture
def three(experiment: Any, cli: Cli, once: Once) -> None:
    config = experiment("binary", 400)

    def train() -> None:
        for name, epochs in (("long", "9"), ("short", "1"), ("wide", "2")):
            more = ["--model.net.hidden", "[32]"] if name == "wide" else []
            cli("fit", "--config", config, "--name", name, "--trainer.max_epochs", epochs, *more)
            cli("test", "--run", name)

    once("three", train)


@pytest.mark.usefixtures("three")
def test_compare_and_runs(cli: Cli) -> None:
    """Tables, page, conditions and order of three real runs."""
    out = cli("compare", "short", "long", "wide", "--output", "page.html")
    assert "long minus short, 60 test rows" in out
    assert "wide minus short, 60 test rows" in out
    assert "trainer.max_epochs" in out
    report = Path("page.html").read_text()
    HTMLParser().feed(report)
    assert "adjusted for 2 runs (Holm)" in report
    assert "McNemar, mid-p" in report
    short, long = (
        json.loads(Path(f"lightning_logs/{n}/test/metrics.json").read_text())
        for n in ("short", "long")
    )
    values = [f"{run['auroc']['value']:.4f}" for run in (short, long)]
    assert re.search(rf"^auroc +{values[0]} +{values[1]} +[+-]", out, re.MULTILINE)
    assert f'<td class="number">{values[0]}</td><td class="number">{values[1]}</td>' in report
    assert f"{long['auroc']['value'] - short['auroc']['value']:+.4f}"[:5] in out
    out = cli("runs", "--sort", "auroc")
    rows = [line for line in out.splitlines() if "finished" in line]
    assert len(rows) == 3
    order = sorted(
        ("long", "short", "wide"),
        key=lambda n: (
            -json.loads(Path(f"lightning_logs/{n}/test/metrics.json").read_text())["auroc"]["value"]
        ),
    )
    assert [next(n for n in order if n in row) for row in rows] == order
    assert "1 run in lightning_logs" in cli("runs", "--where", "trainer.max_epochs>5")
    assert "3 runs in lightning_logs" in cli(
        "runs", "--where", "model=BinaryClassifier", "--where", "status=finished"
    )
    assert "3 runs in lightning_logs" in cli("runs", "--where", "trainer.enable_progress_bar=false")
    assert "0 runs in lightning_logs" in cli("runs", "--where", "trainer.enable_progress_bar=True")
    assert (
        "--where: expected a metric or a setting of a run, got 'acuracy'. Did you mean 'accuracy'?"
        in cli("runs", "--where", "acuracy>1", code=2)
    )
    assert "--where: expected KEY=VALUE" in cli("runs", "--where", "f1", code=2)
    assert "expected numbers to compare, got status" in cli("runs", "--where", "status>1", code=2)
    assert "got nowhere, which does not exist; train first" in cli("runs", "nowhere", code=2)


def test_runs_sorts_by_a_metric_of_the_users_own(tmp_path: Path, cli: Cli) -> None:
    """The list has a column for the metric, and its direction is that of `checkpoint.mode`."""
    for name, value in (("good", 0.9), ("bad", 0.2), ("fair", 0.5)):
        run = tmp_path / "kappas" / name
        (run / "test").mkdir(parents=True)
        (run / "manifest.json").write_text(
            json.dumps({"start": "2026-01-01T00:00", "status": "finished"})
        )
        config = {
            "trainer": {},
            "model": {},
            "checkpoint": {"monitor": "val/kappa", "mode": "max"},
        }
        (run / "config.yaml").write_text(yaml.safe_dump(config))
        (run / "test" / "metrics.json").write_text(json.dumps({"kappa": {"value": value}}))
    lines = cli("runs", str(tmp_path / "kappas"), "--sort", "kappa").splitlines()
    assert any(line.split()[-1:] == ["kappa"] for line in lines)
    found = [line.split()[0] for line in lines if "finished" in line]
    assert found == ["good", "fair", "bad"]


@pytest.mark.usefixtures("three")
def test_runs_that_cannot_be_compared_are_an_error(experiment: Any, cli: Cli) -> None:
    """Each message names what differs between the runs."""
    assert "expected two runs or more" in cli("compare", "short", code=2)
    assert "expected different runs" in cli("compare", "short", "short", code=2)
    assert "no run shrt in lightning_logs" in cli("compare", "shrt", "long", code=2)
    assert "expected a name that ends in .html" in cli(
        "compare", "short", "long", "--output", "a.pdf", code=2
    )
    cli("test", "--run", "wide", "--data.split_seed", "3")
    assert "in common" in cli("compare", "short", "wide", code=2)
    cli("test", "--run", "wide")
    file = "lightning_logs/wide/test/predictions.parquet"
    pl.read_parquet(file).with_columns(pl.col("target").reverse()).write_parquet(file)
    assert "got different ones in short and wide" in cli("compare", "short", "wide", code=2)
    shutil.rmtree("lightning_logs/wide/test")
    assert "wide has not been tested" in cli("compare", "short", "wide", code=2)
    cli("fit", "--config", experiment("regression"), "--name", "other")
    cli("test", "--run", "other")
    assert "expected runs of one task" in cli("compare", "short", "other", code=2)


@pytest.mark.parametrize("differing", [1, 2, 3, 5])
def test_few_rows_that_differ_have_limits_of_their_size(differing: int) -> None:
    """Few differing rows, all in one direction, give limits of the size of some such rows."""
    target = (np.arange(75) < 30).astype(np.int64)
    first = np.where(target == 1, 0.9, 0.1)
    other = np.where(np.arange(75) < differing, 0.2, first)
    difference = differences(
        *(
            PredictionSet("binary", ("n", "y"), np.arange(75), target, output)
            for output in (first, other)
        )
    )["accuracy"]
    assert difference.value == pytest.approx(-differing / 75)
    assert (
        -10 * differing / 75
        < difference.low
        < difference.value
        < difference.high
        < 5 * differing / 75
    )


def test_damaged_files_and_a_calibration_are_reported(
    experiment: Any, cli: Cli, capsys: pytest.CaptureFixture[str]
) -> None:
    """A damaged run must not hide the others."""
    for name in ("one", "two"):
        cli(
            "fit",
            "--config",
            experiment("binary", 300),
            "--name",
            name,
            "--seed_everything",
            str(len(name)),
        )
        if name == "two":
            cli("validate", "--run", name, "--threshold", "f1")
        cli("test", "--run", name)
    assert re.search(r"calibration +│ none +│ threshold 0\.", cli("compare", "one", "two"))
    scored, predicted = (
        Path("lightning_logs/two/test") / name for name in ("metrics.json", "predictions.parquet")
    )
    content = predicted.read_bytes()
    predicted.write_bytes(content[:100])
    for verb in (["report", "two"], ["compare", "one", "two"]):
        assert "predictions.parquet is damaged" in cli(*verb, code=2)
    predicted.write_bytes(content)
    scored.write_text("{")
    assert "metrics.json cannot be read: it is damaged" in cli("report", "two", code=2)
    assert main(["runs"]) == 0
    printed = capsys.readouterr()
    assert "two is left out" in printed.err
    assert "1 run in" in printed.out
    cli("test", "--run", "two")
    for damaged in ("{", "{}"):
        Path("lightning_logs/two/manifest.json").write_text(damaged)
        cli("report", "one")
        assert "1 run in" in cli("runs")
    Path("lightning_logs/one/config.yaml").unlink()
    assert "0 runs" in cli("runs")


def test_few_groups_are_an_error(work: Path, cli: Cli) -> None:
    """Two test groups of ten rows each give no more information than two rows."""
    rng = np.random.default_rng(0)
    site = np.repeat(np.arange(12), 10)
    pl.DataFrame(
        {"x": rng.normal(size=120), "site": site, "y": rng.integers(2, size=120)}
    ).write_csv("table.csv")
    data = [
        "--data",
        "Tabular",
        "--data.path",
        "table.csv",
        "--data.target",
        "y",
        "--data.group",
        "site",
    ]
    flags = [*data, "--data.batch_size", "20", "--model", "BinaryClassifier", "--model.net", "MLP"]
    for name in ("one", "other"):
        cli("fit", *flags, "--trainer.max_epochs", "1", "--name", name)
        cli("test", "--run", name)
    assert "expected 5 groups of test rows or more, got 2" in cli("compare", "one", "other", code=2)


def test_a_metric_that_one_row_accounts_for_is_left_out() -> None:
    """Without the one target that is not 0 there is no variance, so R² has no standard error."""
    rng, target = np.random.default_rng(0), np.zeros((200, 1))
    target[7] = 5
    first, other = (
        PredictionSet("regression", ("y",), np.arange(200), target, rng.normal(size=(200, 1)))
        for _ in range(2)
    )
    difference = differences(first, other)
    assert "r2" not in difference
    assert 0.001 < difference["mse"].p < 1
