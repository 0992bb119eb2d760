"""Temperatures equal SciPy's optimum, thresholds a brute-force search; flags to report."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import expit, log_softmax, logit, softmax
from sklearn import metrics as sk

import proj
from conftest import QUIET, Cli, Trained, make_arrays, plain_schema
from proj.engine.cli import main
from proj.engine.commands.validate import show_calibration
from proj.engine.console import number
from proj.engine.evaluation import curves
from proj.engine.evaluation.calibrate import (
    CalibrationRequest,
    apply_temperature,
    calibrated,
    compare_calibration,
    fit_calibration,
    fit_temperature,
    fit_threshold,
    logits,
    parse_request,
    uncalibrated,
)
from proj.engine.evaluation.prediction_set import PredictionSet
from proj.engine.runs.calibration import Calibration
from proj.errors import UserError
from proj.schema import Array, Schema

RUN = Path("lightning_logs/version_0")
TASKS = ("binary", "multiclass", "multilabel")


def of_logits(task: str, z: Array, target: Array) -> PredictionSet:
    output = softmax(z, axis=1) if task == "multiclass" else expit(z)
    names = {
        "binary": ("no", "yes"),
        "multiclass": tuple("abcd"),
        "multilabel": ("target_0", "target_1", "target_2"),
    }
    rows = np.arange(len(z))
    return PredictionSet(task, names[task], rows, target, output)  # type: ignore[arg-type]


def make_predictions(
    task: str, rows: int = 400, temperature: float = 2.0, seed: int = 0
) -> tuple[Array, PredictionSet]:
    """Raw outputs that are ``temperature`` times too large, and their predictions."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(rows, 4)) * 2
    if task == "multiclass":
        target = np.array([rng.choice(4, p=p) for p in softmax(z, axis=1)])
    else:
        z = z[:, 0] if task == "binary" else z[:, :3]
        target = (rng.random(z.shape) < expit(z)).astype(np.int64)
    return temperature * z, of_logits(task, temperature * z, target)


def likelihood(task: str, z: Array, target: Array) -> float:
    """Mean negative log likelihood by its definition, from raw outputs."""
    if task == "multiclass":
        return float(-log_softmax(z, axis=1)[np.arange(len(z)), target].mean())
    return float(np.logaddexp(0, np.where(target == 1, -z, z)).mean())


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("temperature", [0.2, 1.0, 2.0, 5.0])
def test_the_temperature_equals_scipy(task: str, temperature: float) -> None:
    """A wrong derivative or bracket would miss the minimum of the likelihood."""
    z, predictions = make_predictions(task, temperature=temperature)
    fitted = fit_temperature(predictions)
    best = minimize_scalar(
        lambda t: likelihood(task, z / t, predictions.target),
        bounds=(0.01, 100),
        method="bounded",
        options={"xatol": 1e-9},
    )
    assert fitted == pytest.approx(best.x, rel=1e-5)
    assert likelihood(task, z / fitted, predictions.target) <= best.fun + 1e-12
    assert fitted == pytest.approx(temperature, rel=0.2)
    grid = [likelihood(task, z / t, predictions.target) for t in np.geomspace(0.05, 50, 200)]
    assert likelihood(task, z / fitted, predictions.target) <= min(grid)
    assert curves.log_losses(apply_temperature(predictions, fitted)).mean() == pytest.approx(
        best.fun
    )


@pytest.mark.parametrize("task", TASKS)
def test_probabilities_determine_the_outputs(task: str) -> None:
    """The inverse of the temperature must restore the probabilities."""
    z, predictions = make_predictions(task)
    softer = apply_temperature(predictions, 1.7)
    assert np.allclose(
        softer.output, of_logits(task, z / 1.7, predictions.target).output, atol=1e-12
    )
    assert np.allclose(apply_temperature(softer, 1 / 1.7).output, predictions.output, atol=1e-12)
    assert apply_temperature(predictions, 1).output is predictions.output


@pytest.mark.parametrize("task", TASKS)
def test_probabilities_of_0_and_1_count_as_the_nearest_other_number(task: str) -> None:
    """The temperature and the losses stay finite, also for wrong predictions."""
    z, predictions = make_predictions(task)
    predictions = of_logits(task, 20 * z, predictions.target)
    assert (predictions.output == 1).any()
    assert np.isfinite(logits(predictions)).all()
    fitted = fit_temperature(predictions)
    assert 1 < fitted < 100
    assert np.isfinite(apply_temperature(predictions, fitted).output).all()
    assert np.isfinite(curves.log_losses(apply_temperature(predictions, fitted))).all()


def candidates(score: Array) -> Array:
    """A threshold in each gap, and below all."""
    levels = np.unique(score)
    return np.append(levels[0] / 2, (levels[1:] + levels[:-1]) / 2)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("digits", [1, 2, 16])
def test_thresholds_equal_a_brute_force_search(seed: int, digits: int) -> None:
    """Ties and rounded scores must not lead to another threshold."""
    rng = np.random.default_rng(seed)
    hit = (rng.random(120) < 0.3).astype(np.int64)
    score = np.round(expit(rng.normal(size=120) + 1.5 * hit), digits).clip(0.05, 0.95)
    at = fit_threshold(score, hit, "f1", "yes")
    f1 = np.array([sk.f1_score(hit, score > threshold) for threshold in candidates(score)])
    assert sk.f1_score(hit, score > at) == f1.max()
    assert at == pytest.approx(candidates(score)[f1 == f1.max()].max())
    for least in (0.4, 0.5, 0.6):
        at = fit_threshold(score, hit, f"precision={least}", "yes")
        precision, recall, _ = sk.precision_recall_curve(hit, score)
        most = recall[:-1][precision[:-1] >= least].max()
        assert sk.precision_score(hit, score > at) >= least
        assert sk.recall_score(hit, score > at) == most
        sufficient = [
            threshold
            for threshold in candidates(score)
            if sk.precision_score(hit, score > threshold) >= least
        ]
        assert at == pytest.approx(min(sufficient))


def test_a_precision_that_is_not_reached_is_an_error() -> None:
    """The message gives the best precision, without rounding it up."""
    score, hit = np.array([0.9, 0.8, 0.7, 0.6, 0.5]), np.array([0, 1, 1, 1, 0])
    message = (
        "expected a threshold with precision=0.8 for yes on the validation split, got 0.7500 at "
        "best; ask for less."
    )
    with pytest.raises(UserError, match=re.escape(message)):
        fit_threshold(score, hit, "precision=0.8", "yes")
    assert fit_threshold(score, hit, "precision=0.75", "yes") == pytest.approx(0.55)


def test_a_threshold_separates_neighbouring_floats() -> None:
    """The number halfway between them would be rounded to one of them."""
    first = np.float64(0.5)
    second, third = np.nextafter(first, 1), np.nextafter(np.nextafter(first, 1), 1)
    for low, high in ((first, second), (second, third)):
        at = fit_threshold(np.array([low, high]), np.array([0, 1]), "f1", "yes")
        assert low <= at < high
    assert (
        fit_threshold(np.array([0.0, 0.4]), np.array([1, 0]), "f1", "yes") > 0
    )  # a row with probability 0 is never predicted


def schema(task: str) -> Schema:
    outputs = {"binary": 1, "multiclass": 4, "multilabel": 3}[task]
    plain = plain_schema(task, (1,), outputs)
    classes = {"binary": ["no", "yes"], "multiclass": list("abcd"), "multilabel": []}[task]
    return Schema.from_dict({**plain.to_dict(), "classes": classes})


@pytest.mark.parametrize("task", ["binary", "multilabel"])
def test_thresholds_are_of_the_calibrated_probabilities(task: str, work: Path) -> None:
    """Thresholds of uncalibrated probabilities would not apply."""
    (work / "best.ckpt").write_bytes(b"weights")
    z, predictions = make_predictions(task)
    fitted = fit_calibration(
        CalibrationRequest(True, "f1"), predictions, schema(task), work / "best.ckpt"
    )
    assert fitted.temperature == pytest.approx(fit_temperature(predictions))
    assert fitted.thresholds is not None
    p = expit(z / fitted.temperature).reshape(len(z), -1)
    hits = predictions.target.reshape(len(z), -1)
    for i, at in enumerate(fitted.thresholds.values()):
        f1 = max(sk.f1_score(hits[:, i], p[:, i] > threshold) for threshold in candidates(p[:, i]))
        assert sk.f1_score(hits[:, i], p[:, i] > at) == f1
    after = calibrated(predictions, fitted, schema(task))
    rows = {name: values for name, *values in compare_calibration(predictions, after, fitted)}
    assert rows["negative log likelihood"] == pytest.approx(
        [
            likelihood(task, z, predictions.target),
            likelihood(task, z / fitted.temperature, predictions.target),
        ]
    )
    average = "binary" if task == "binary" else "macro"
    decisions = (p > np.array(list(fitted.thresholds.values()))).reshape(z.shape)
    assert rows["f1"] == pytest.approx(
        [
            sk.f1_score(predictions.target, decided, average=average)
            for decided in (z > 0, decisions)
        ]
    )
    back = uncalibrated(after, fitted)
    assert np.allclose(back.output, predictions.output, atol=1e-12)
    assert (back.predicted == predictions.predicted).all()


def refused(predictions: PredictionSet, request: CalibrationRequest, message: str) -> None:
    Path("best.ckpt").write_bytes(b"weights")
    with pytest.raises(UserError, match=re.escape(message)) as raised:
        fit_calibration(request, predictions, schema(predictions.task), Path("best.ckpt"))
    assert "expected" in str(raised.value)


@pytest.mark.parametrize("task", TASKS)
def test_predictions_that_cannot_be_calibrated_give_the_reason(task: str) -> None:
    """Newton's method would diverge on these predictions."""
    z, predictions = make_predictions(task)
    request = CalibrationRequest(True, None)
    refused(predictions[np.arange(9)], request, "10 validation rows or more, got 9.")
    broken = of_logits(
        task,
        np.where(np.arange(len(z)).reshape(-1, *[1] * (z.ndim - 1)) == 3, np.nan, z),
        predictions.target,
    )
    refused(broken, request, "got other values in 1 of 400 validation rows")
    refused(of_logits(task, z, np.zeros_like(predictions.target)), request, "got a single one")
    right = z.argmax(axis=1) if task == "multiclass" else (z > 0).astype(np.int64)
    for factor in (0.001, 1, 100):
        refused(
            of_logits(task, factor * z, right),
            request,
            "got 0, so that every lower temperature, down to 0.01, is better",
        )
    wrong = z.argmin(axis=1) if task == "multiclass" else 1 - right
    refused(of_logits(task, z, wrong), request, "every higher temperature, up to 100, is better")
    refused(
        of_logits(task, np.zeros_like(z), predictions.target),
        request,
        "every lower temperature, down to 0.01, is better",
    )


def test_labels_without_rows_of_both_kinds_have_no_threshold() -> None:
    """F1 of such a label has no maximum."""
    z, predictions = make_predictions("multilabel")
    for value in (0, 1):
        target = predictions.target.copy()
        target[:, 1] = value
        refused(
            of_logits("multilabel", z, target),
            CalibrationRequest(False, "f1"),
            "with and without target_1, and probabilities above 0, got "
            f"{400 * value} rows with it of 400",
        )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("platt", None, "binary"), "--calibrate: expected temperature, got platt."),
        (
            (None, "0.4", "binary"),
            "--threshold: expected f1, or precision=P with P between 0 and 1, got 0.4.",
        ),
        ((None, "precision=1", "binary"), "got precision=1."),
        ((None, "precision=0.0", "binary"), "got precision=0.0."),
        ((None, "precision=", "multilabel"), "got precision=."),
        (
            (None, "f1", "multiclass"),
            "which predicts the most probable one; leave --threshold out.",
        ),
        (
            (None, "f1", "regression"),
            "--threshold: expected a model of classes or labels, got a regression model;",
        ),
        (
            ("temperature", None, "regression"),
            "--calibrate: expected a model of classes or labels, got a regression model;",
        ),
        (("temperature", None, None), "got a model of your own;"),
    ],
)
def test_wrong_flags_are_an_error(flags: Any, message: str) -> None:
    """Each message names the flag, what it expects and what it got."""
    with pytest.raises(UserError, match=re.escape(message)):
        parse_request(*flags)


def test_right_flags() -> None:
    """Flags are normalized, so that .90 and 0.9 are one rule."""
    assert parse_request("temperature", None, "multiclass") == CalibrationRequest(True, None)
    assert parse_request(None, "precision=.90", "multilabel") == CalibrationRequest(
        False, "precision=0.9"
    )
    assert parse_request(None, None, "regression") is None


def test_a_threshold_that_few_rows_exceed_gives_a_warning(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A metric of three rows would look certain."""
    _, predictions = make_predictions("binary")
    Path("best.ckpt").write_bytes(b"weights")
    for rule, warns in (("precision=0.999", True), ("f1", False)):
        hit = predictions.target.copy()
        hit[np.argsort(predictions.output)[-8:-3]] = 0
        hit[np.argsort(predictions.output)[-3:]] = 1
        rare = replace(predictions, target=hit)
        show_calibration(
            fit_calibration(
                CalibrationRequest(False, rule), rare, schema("binary"), Path("best.ckpt")
            ),
            rare,
            schema("binary"),
        )
        assert (
            "only 3 validation rows are above the threshold of yes" in capsys.readouterr().err
        ) is warns


def written(verb: str = "test") -> pl.DataFrame:
    return pl.read_parquet(RUN / verb / "predictions.parquet")


def values(verb: str = "test") -> dict[str, Any]:
    return {
        name: entry["value"]
        for name, entry in json.loads((RUN / verb / "metrics.json").read_text()).items()
    }


def separate_splits(task: str, rows: int = 150) -> dict[str, Array]:
    """Arrays with separate rows for each of the three splits."""
    indices = np.array_split(np.arange(3 * rows), 3)
    splits = dict(zip(("train", "val", "test"), indices, strict=True))
    data = make_arrays(task, 3 * rows)
    return {
        f"{name}_{split}": data[name][chosen]
        for name in ("x", "y")
        for split, chosen in splits.items()
    }


SURE = [
    "--trainer.max_epochs",
    "20",
    "--trainer.check_val_every_n_epoch",
    "20",
    "--model.optimizer.lr",
    "0.03",
    "--checkpoint.monitor",
    "train/loss",
]  # too sure


@pytest.mark.long
@pytest.mark.parametrize("task", TASKS)
def test_from_flags_to_the_report(task: str, experiment: Any, cli: Cli) -> None:
    """`validate` fits, the other verbs apply; all numbers equal scikit-learn."""
    config = experiment(task)
    np.savez("data.npz", **separate_splits(task))
    cli("fit", "--config", config, *SURE)
    cli("test")
    raw, before = written(), values()
    flags = ["--calibrate", "temperature", *([] if task == "multiclass" else ["--threshold", "f1"])]
    said = cli("validate", *flags)
    assert "fitted on 150 rows: temperature" in said
    assert "negative log likelihood" in said
    plain = values("validate")
    fitted = Calibration(**json.loads((RUN / "checkpoints/calibration.json").read_text()))
    assert fitted.temperature is not None
    assert fitted.temperature > 1
    assert "is not applied to the split it was fitted on" in cli("validate")
    assert values("validate") == plain  # those of the model as it is
    said = cli("test")
    assert f"calibrated: {fitted}" in said
    table, after = written(), values()

    columns = [name for name in table.columns if name.startswith("probability")]
    p, was = table.select(columns).to_numpy(), raw.select(columns).to_numpy()
    if task == "multiclass":
        assert np.allclose(np.diff(np.log(p)), np.diff(np.log(was)) / fitted.temperature)
        assert table["prediction"].equals(raw["prediction"])
        assert after["loss"] == pytest.approx(sk.log_loss(table["target"], p))
        assert after["f1"] == pytest.approx(
            sk.f1_score(table["target"], table["prediction"], average="macro")
        )
    else:
        assert fitted.thresholds is not None
        at = np.array(list(fitted.thresholds.values()))
        hits = table.select("^target.*$").to_numpy()
        hits, p, was = (hits == "yes", p[:, 1:], was[:, 1:]) if task == "binary" else (hits, p, was)
        assert np.allclose(p, expit(logit(was) / fitted.temperature), atol=1e-9)
        decided = table.select("^prediction.*$").to_numpy()
        assert (
            ((decided == "yes") == (p > at)).all()
            if task == "binary"
            else (decided == (p > at)).all()
        )
        for name, score in (
            ("precision", sk.precision_score),
            ("recall", sk.recall_score),
            ("f1", sk.f1_score),
        ):
            mean = {} if task == "binary" else {"average": "macro"}
            assert after[name] == pytest.approx(score(hits, p > at, **mean))
            assert before[name] == pytest.approx(score(hits, was > 0.5, **mean))
        assert after["accuracy"] == pytest.approx(sk.accuracy_score(hits, p > at))
    assert after["loss"] < before["loss"]
    assert task == "multiclass" or after["auroc"] == pytest.approx(before["auroc"])
    for name, entry in json.loads((RUN / "test/metrics.json").read_text()).items():
        assert entry["low"] <= entry["value"] <= entry["high"], (
            name
        )  # of the calibrated predictions

    report = (RUN / "report.html").read_text()
    section = report[
        report.index("<h2 id=", report.index(">Calibration</h2>") - 40) : report.index(
            ">Mistakes</h2>"
        )
    ]
    cells = re.findall(
        r'row">([^<]+)</th><td class="number">([^<]+)</td><td class="number">([^<]+)<', section
    )
    shown = {name: (one, other) for name, one, other in cells}
    changed = {"negative log likelihood": "loss"} | (
        {} if task == "multiclass" else {"f1": "f1", "recall": "recall"}
    )
    for name, metric in changed.items():
        assert shown[name] == (number(before[metric]), number(after[metric])), name
    assert "expected calibration error" in shown
    assert ("f1" in shown) is (task != "multiclass")
    assert section.count("<svg") == 2
    if task == "binary":
        assert f"{fitted.thresholds['yes']:.3g} is used." in report  # type: ignore[index]
        assert "0.5 is used" not in report

    x = np.load("data.npz")["x_test"]
    np.savez("new.npz", x=x)
    assert f"calibrated: {fitted}" in cli(
        "predict", "--data.predict_path", "new.npz", "--output", "new.parquet"
    )
    for other in (pl.read_parquet("new.parquet"), proj.load("version_0").predict(x)):
        assert np.allclose(other.select(columns), table.select(columns), atol=1e-6)
        assert other.select("^prediction.*$").equals(table.select("^prediction.*$"))


def test_the_calibration_does_not_depend_on_the_test_split(experiment: Any, cli: Cli) -> None:
    """Test rows in the fit would make test metrics optimistic."""
    config, file = experiment("binary"), RUN / "checkpoints/calibration.json"
    arrays = separate_splits("binary")
    np.savez("data.npz", **arrays)
    cli("fit", "--config", config, *SURE)
    flags = ["--calibrate", "temperature", "--threshold", "precision=0.7"]
    cli("validate", *flags)
    fitted = file.read_text()
    others = make_arrays("binary", 70, seed=9)
    flipped = np.where(arrays["y_test"] == "yes", "no", "yes")
    for test in ({"y_test": flipped}, {"x_test": others["x"], "y_test": others["y"]}):
        file.unlink()
        np.savez("data.npz", **(arrays | test))
        cli("validate", *flags)
        assert file.read_text() == fitted
        cli("test")
        assert file.read_text() == fitted
    arrays["y_val"][:10] = "no"
    np.savez("data.npz", **arrays)
    cli("validate", *flags)
    assert file.read_text() != fitted  # the validation split does change it


def test_wrong_flags_are_an_error_before_the_work(trained: Trained, cli: Cli) -> None:
    """An error after the evaluation would waste its time."""
    trained("multiclass")
    assert "--threshold: expected a model of two classes" in cli(
        "validate", "--threshold", "f1", code=2
    )
    assert "--calibrate: expected temperature, got platt." in cli(
        "validate", "--calibrate", "platt", code=2
    )
    said = cli("validate", "--calibrate", "temperature", "--trainer.fast_dev_run", "true", code=2)
    assert "expected the whole validation split" in said
    assert "threshold" in cli("test", "--threshold", "f1", code=2)  # `test` has no such flag
    assert not (RUN / "validate").exists()


def test_a_failed_fit_writes_no_calibration(experiment: Any, cli: Cli) -> None:
    """The most probable validation row is negative, so no threshold has precision 0.999."""
    config, arrays = experiment("binary"), separate_splits("binary")
    np.savez("data.npz", **arrays)
    cli("fit", "--config", config)
    cli("validate")
    arrays["y_val"][written("validate")["probability_yes"].arg_max()] = "no"
    np.savez("data.npz", **arrays)
    assert main(["validate", "--threshold", "precision=0.999", *QUIET]) == 2
    assert not (RUN / "checkpoints/calibration.json").exists()
