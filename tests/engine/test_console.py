"""Tables and lines that the verbs print."""

from typing import Any

import pytest

from proj.data.base import Finding
from proj.engine import console
from proj.errors import UserError


@pytest.mark.parametrize(
    ("count", "nouns", "text"),
    [
        (1, ("run",), "1 run"),
        (0, ("run",), "0 runs"),
        (1200, ("row",), "1,200 rows"),
        (2, ("category", "categories"), "2 categories"),
    ],
)
def test_a_noun_agrees_with_its_count(count: int, nouns: Any, text: str) -> None:
    """Output would say "1 runs"."""
    assert console.plural(count, *nouns) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "not defined"),
        (0.0, "0.0000"),
        (0.97, "0.9700"),
        (0.01234567, "0.012346"),
        (1234.5678, "1234.6"),
        (144490.4, "144490"),
        (2.5e10, "2.5e+10"),
        (-5.0, "-5.0000"),
    ],
)
def test_numbers_keep_enough_digits(value: float | None, text: str) -> None:
    """Small and large numbers would lose the digits that distinguish them."""
    assert console.number(value) == text


def test_metrics_are_printed_with_classes_intervals_and_reasons(capsys: Any) -> None:
    """A value, an interval or the reason for a missing value would not be shown."""
    metrics = {
        "f1": {"value": 0.5, "low": 0.25, "high": 0.75},
        "val/loss": {"value": 2.0},
        "f1/[red] :cat:": {"value": 0.125, "low": None, "why": "there are no positive rows"},
        "recall/[red] :cat:": {"value": None, "why": "there are no positive rows"},
    }
    console.show_metrics("test", metrics)
    printed = capsys.readouterr().out
    for text in ("test\n", "0.5000", "0.2500 – 0.7500", "2.0000", "[red] :cat:", "not defined"):
        assert text in printed
    assert "f1/[red] :cat:, recall/[red] :cat:: there are no positive rows." in printed


def per_class_metrics(count: int = 3) -> dict[str, dict[str, Any]]:
    """Metrics of classes with long names, with intervals of F1."""
    metrics: dict[str, dict[str, Any]] = {"f1": {"value": 0.5, "low": 0.4, "high": 0.6}}
    for i in range(count):
        name = f"class number {i}"
        metrics[f"f1/{name}"] = {"value": 0.5 + i / 10, "low": 0.25, "high": 0.75, "support": 7 + i}
        for kind in ("precision", "recall", "auroc", "average_precision"):
            metrics[f"{kind}/{name}"] = {"value": 0.25 + i / 10, "low": 0.1, "high": 0.9}
    return metrics


@pytest.mark.parametrize("width", [80, 200])
def test_each_class_has_one_line_with_its_rows(
    width: int, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three lines for each class would fill the terminal, and rows would have to be counted."""
    monkeypatch.setenv("COLUMNS", str(width))
    console.show_metrics("test", per_class_metrics())
    lines = capsys.readouterr().out.splitlines()
    assert all(len(line) <= width for line in lines)
    (line,) = [line for line in lines if "class number 2" in line]
    assert line.split()[3:9] == ["9", "0.7000", "0.2500", "–", "0.7500", "0.4500"]
    left_out = [line for line in lines if line.startswith("too wide to show")]
    assert left_out == (
        []
        if width == 200
        else ["too wide to show: average_precision; metrics.json and the report have them"]
    )


def test_columns_are_left_out_until_a_table_fits(capsys: Any) -> None:
    """Lines would be wrapped, or names and numbers be cut."""
    header, rows = ["run", "net", "f1"], [["a", "x" * 30, "0.5"], ["b", "y", "0.25"]]
    assert console.fitting(header, rows, ["net"], 80) == (header, rows, [])
    narrow = ["run", "f1"], [["a", "0.5"], ["b", "0.25"]], ["net"]
    assert console.fitting(header, rows, ["start", "net"], 20) == narrow
    assert console.fitting(header, rows, ["net"], 3) == narrow  # the rest is never left out
    assert console.fitting(header, [], ["net"], 80) == (header, [], [])


def test_the_accuracy_of_several_labels_is_called_exact_match(capsys: Any) -> None:
    """A reader would take it for the share of correct labels."""
    console.show_metrics("test", {"accuracy": {"value": 0.5}}, "multilabel")
    assert "accuracy (exact match)" in capsys.readouterr().out
    console.show_metrics("best epoch", {"val/accuracy": {"value": 0.5}}, "multilabel")
    assert "val/accuracy (exact match)" in capsys.readouterr().out
    console.show_metrics("test", {"accuracy": {"value": 0.5}}, "multiclass")
    assert "exact match" not in capsys.readouterr().out


def test_importance_says_in_which_direction_the_metric_changes(capsys: Any) -> None:
    """The rise of an error would be shown as a drop, or columns be left out silently."""
    columns = {f"column_{i}": {"value": 0.1, "low": 0.0, "high": 0.2} for i in range(3)}
    console.show_importance("rmse", columns, limit=2)
    printed = capsys.readouterr().out
    assert "rise of rmse" in printed
    assert "column_2" not in printed
    assert "1 more column in the file." in printed
    console.show_importance("f1", columns)
    assert "drop of f1" in capsys.readouterr().out


def test_findings_are_warnings_or_one_error(capsys: Any) -> None:
    """`--strict` would pass on odd data, or a finding would go unseen without it."""
    findings = [Finding("column id is unique", "it identifies rows", "drop it")]
    console.show_findings(findings)
    assert capsys.readouterr().err == (
        "warning: column id is unique: it identifies rows; drop it.\n"
    )
    with pytest.raises(UserError, match="--strict: expected no findings, got 1: column id"):
        console.show_findings(findings, strict=True)
    console.show_findings([], strict=True)


@pytest.mark.parametrize(
    ("name", "task", "unit"),
    [
        ("val/accuracy", "multiclass", "share of rows"),
        ("recall", "binary", "share of actual"),
        ("val/recall", "multiclass", "mean over classes"),
        ("f1", "multilabel", "mean over labels"),
        ("loss", "multilabel", "the loss"),
        ("val/rmse", "regression", "target units"),
        # A module of the user's may log the mean over classes by this name.
        ("val/accuracy", None, ""),
        ("val/loss", None, "the loss"),
        ("val/kappa", "multiclass", ""),
        ("f1", ("multiclass", "micro"), "rows of all classes"),
        ("f1", ("multilabel", "weighted"), "mean over labels, by rows"),
    ],
)
def test_the_unit_of_a_metric(name: str, task: Any, unit: str) -> None:
    """A mean over the classes would be called a share of rows."""
    arguments = task if isinstance(task, tuple) else (task,)
    assert console.shown_unit(name, *arguments) == unit
