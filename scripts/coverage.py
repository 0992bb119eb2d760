"""How often the 95 % intervals of `evaluate/` hold the true value: data drawn again and again from named generators.

    python scripts/coverage.py [--repeats 1000] [--rows 200 2000] [--only NAME] [--compare] [--importance]

The true value is that of a million rows. With 1,000 repeats a coverage is known to some 1.4 points. `--compare` shows how
often `compare` tells two runs apart that are equally good: 0.05 is right. `--importance` shows how often the intervals of
permutation importance hold that of a million rows.
"""

import argparse
from collections.abc import Callable

import numpy as np

from proj.engine.evaluation.importance import REPEATS, Importance, importance
from proj.engine.evaluation.intervals import intervals
from proj.engine.evaluation.paired import differences
from proj.engine.evaluation.prediction_set import Array, PredictionSet
from proj.schema import Task

Draw = Callable[[int, np.random.Generator], PredictionSet]
TRUTH = 1_000_000


def binormal(prevalence: float, distance: float, center: float = 0.0) -> Draw:
    """Scores of two normal distributions so far apart, as probabilities."""

    def draw(rows: int, rng: np.random.Generator) -> PredictionSet:
        target = (rng.random(rows) < prevalence).astype(np.int64)
        score = rng.normal(size=rows) + distance * target - center
        return PredictionSet(
            "binary", ("no", "yes"), np.arange(rows), target, 1 / (1 + np.exp(-score))
        )

    return draw


def classes(shares: list[float], right: float) -> Draw:
    """Each class predicted rightly that often, else as any other one."""

    def draw(rows: int, rng: np.random.Generator) -> PredictionSet:
        count = len(shares)
        target = rng.choice(count, size=rows, p=shares)
        other = (target + rng.integers(1, count, rows)) % count
        predicted = np.where(rng.random(rows) < right, target, other)
        output = rng.random((rows, count)) / 2
        output[np.arange(rows), predicted] += 0.5
        names = tuple(f"class_{i}" for i in range(count))
        return PredictionSet("multiclass", names, np.arange(rows), target, output)

    return draw


def labels(shares: list[float], noise: float) -> Draw:
    """Labels that occur together, through a normal score in common."""

    def draw(rows: int, rng: np.random.Generator) -> PredictionSet:
        limits = np.quantile(rng.normal(size=200_000) * np.sqrt(2), 1 - np.array(shares))
        score = rng.normal(size=(rows, 1)) + rng.normal(size=(rows, len(shares)))
        output = 1 / (1 + np.exp(-(score + noise * rng.normal(size=score.shape) - limits)))
        names = tuple(f"label_{i}" for i in range(len(shares)))
        return PredictionSet(
            "multilabel", names, np.arange(rows), (score > limits).astype(np.int64), output
        )

    return draw


def errors(of: Callable[[np.random.Generator, int], Array], size: int = 1) -> Draw:
    """A target of variance 1 and errors of half its size; in groups of ``size`` rows half of their variance is shared."""

    def draw(rows: int, rng: np.random.Generator) -> PredictionSet:
        error, target, group = of(rng, rows), rng.normal(size=rows), np.arange(rows) // size
        if size > 1:
            error = (error + of(rng, int(group.max()) + 1)[group]) / np.sqrt(2)
        output = (target + error / 2)[:, None]
        groups = None if size == 1 else group
        return PredictionSet("regression", ("y",), np.arange(rows), target[:, None], output, groups)

    return draw


def grouped(size: int) -> Draw:
    """Two classes, in groups of ``size`` rows of which some are easy and some hard."""

    def draw(rows: int, rng: np.random.Generator) -> PredictionSet:
        group = np.arange(rows) // size
        ease = rng.normal(1.2, 0.8, int(group.max()) + 1)[group]
        target = (rng.random(rows) < 0.4).astype(np.int64)
        score = rng.normal(size=rows) + ease * (2 * target - 1)
        return PredictionSet(
            "binary", ("no", "yes"), np.arange(rows), target, 1 / (1 + np.exp(-score)), group
        )

    return draw


GENERATORS: dict[str, tuple[Draw, tuple[str, ...]]] = {
    "binormal, 30 % positive, AUROC 0.86": (
        binormal(0.3, 1.5, 1.0),
        ("accuracy", "precision", "recall", "f1", "auroc", "average_precision"),
    ),
    "binormal, 10 % positive, AUROC 0.96": (
        binormal(0.1, 2.5, 1.8),
        ("accuracy", "precision", "recall", "f1", "auroc", "average_precision"),
    ),
    "binormal, 30 % positive, accuracy 0.98": (
        binormal(0.3, 4.2, 2.2),
        ("accuracy", "f1", "auroc"),
    ),
    "3 classes of 60, 30, 10 %, 80 % right": (
        classes([0.6, 0.3, 0.1], 0.8),
        ("accuracy", "precision", "recall", "f1", "f1/class_2"),
    ),
    "10 classes, 95 % right": (
        classes([0.1] * 10, 0.95),
        ("accuracy", "precision", "recall", "f1", "f1/class_2", "auroc"),
    ),
    "4 labels of 50 to 10 %": (
        labels([0.5, 0.3, 0.2, 0.1], 0.7),
        ("accuracy", "f1", "f1/label_3", "auroc", "average_precision"),
    ),
    "normal errors": (errors(lambda rng, n: rng.normal(size=n)), ("mse", "rmse", "mae", "r2")),
    "Laplace errors": (errors(lambda rng, n: rng.laplace(size=n)), ("rmse", "mae", "r2")),
    "errors of Student's t with 5": (
        errors(lambda rng, n: rng.standard_t(5, size=n)),
        ("rmse", "mae", "r2"),
    ),
    "normal errors in groups of 5 rows": (
        errors(lambda rng, n: rng.normal(size=n), 5),
        ("rmse", "mae", "r2"),
    ),
    "two classes in groups of 5 rows": (
        grouped(5),
        ("accuracy", "precision", "f1", "auroc", "average_precision"),
    ),
}


def coverage(
    draw: Draw, metrics: tuple[str, ...], rows: int, repeats: int, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """Shares of the repeats in which the interval lies above the true value, and below it, by metric."""
    rng = np.random.default_rng(seed)
    every = intervals(draw(TRUTH, rng))
    truth = {name: every[name].value for name in metrics}
    above, below = dict.fromkeys(metrics, 0), dict.fromkeys(metrics, 0)
    for repeat in range(repeats):
        found = intervals(draw(rows, rng), seed=repeat)
        for name in metrics:
            low, high, true = found[name].low, found[name].high, truth[name]
            assert true is not None
            above[name] += low is None or low > true  # no interval holds nothing
            below[name] += high is not None and high < true
    return {name: (above[name] / repeats, below[name] / repeats) for name in metrics}


def rivals(
    task: Task, rows: int, rng: np.random.Generator, better: float = 0.0
) -> tuple[PredictionSet, PredictionSet]:
    """Two runs on the same rows, off by independent noise of the same size; the second one's may be smaller."""
    names = {"regression": ("y",), "binary": ("no", "yes"), "multiclass": tuple("abc")}[task]
    noise = [rng.normal(size=(rows, 3)) * size for size in (1, 1 - better)]
    if task == "regression":
        target = rng.normal(size=(rows, 1))
        outputs = [target + of[:, :1] for of in noise]
    elif task == "binary":
        target = (rng.random(rows) < 0.3).astype(np.int64)
        outputs = [1 / (1 + np.exp(-(1.5 * target - 1 + of[:, 0]))) for of in noise]
    else:
        target = rng.integers(3, size=rows)
        scores = [np.exp(1.5 * np.eye(3)[target] + of) for of in noise]
        outputs = [of / of.sum(1, keepdims=True) for of in scores]
    one, other = (PredictionSet(task, names, np.arange(rows), target, output) for output in outputs)
    return one, other


def false_positives(task: Task, rows: int, repeats: int, seed: int = 0) -> dict[str, float]:
    """How often runs that are equally good are told apart at a level of 5 %, by metric."""
    rng = np.random.default_rng(seed)
    found = [differences(*rivals(task, rows, rng), seed=repeat) for repeat in range(repeats)]
    return {name: float(np.mean([of[name].p < 0.05 for of in found])) for name in found[0]}


def strong_column(task: Task, rows: int, rng: np.random.Generator, seed: int = 0) -> Importance:
    """The importance of a column that decides nearly all, for the model that is true."""
    x, less = rng.normal(size=rows), 0.3 * rng.normal(size=rows)
    orders = [rng.permutation(rows) for _ in range(REPEATS)]
    if task == "regression":
        target, names = (2 * x + less + rng.normal(size=rows))[:, None], ("y",)
    else:
        target, names = (
            (2 * x + less + rng.logistic(size=rows) > 0.8).astype(np.int64),
            ("no", "yes"),
        )

    def outcomes(x: Array) -> PredictionSet:
        score = 2 * x + less
        output = score[:, None] if task == "regression" else 1 / (1 + np.exp(0.8 - score))
        return PredictionSet(task, names, np.arange(rows), target, output)

    return importance(outcomes(x), (outcomes(x[order]) for order in orders), orders, seed)


def importance_coverage(task: Task, rows: int, repeats: int, seed: int = 0) -> tuple[float, float]:
    """The importance of a million rows, and the share of the repeats whose interval holds it."""
    rng = np.random.default_rng(seed)
    truth = strong_column(task, TRUTH, rng).value
    found = [strong_column(task, rows, rng, repeat) for repeat in range(repeats)]
    assert truth is not None
    return truth, float(
        np.mean([of.low is not None and of.low <= truth <= (of.high or 0.0) for of in found])
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=1000)
    parser.add_argument("--rows", type=int, nargs="+", default=[200, 2000])
    parser.add_argument("--only", default="", help="a part of a generator's name")
    parser.add_argument(
        "--compare", action="store_true", help="false positives of comparisons instead"
    )
    parser.add_argument(
        "--importance", action="store_true", help="intervals of permutation importance instead"
    )
    given = parser.parse_args()
    if given.importance:
        print("| task | rows | importance | coverage |\n| --- | --- | --- | --- |")
        for task in ("binary", "regression"):
            for rows in given.rows:
                truth, held = importance_coverage(task, rows, given.repeats)
                print(f"| {task} | {rows} | {truth:.3f} | {held:.3f} |", flush=True)
        return
    if given.compare:
        print("| task | rows | metric | told apart |\n| --- | --- | --- | --- |")
        for task in ("binary", "multiclass", "regression"):
            for rows in given.rows:
                for metric, rate in false_positives(task, rows, given.repeats).items():
                    print(f"| {task} | {rows} | {metric} | {rate:.3f} |", flush=True)
        return
    print(
        "| generator | rows | metric | coverage | too high | too low |\n| --- | --- | --- | --- | --- | --- |"
    )
    for name, (draw, metrics) in GENERATORS.items():
        for rows in given.rows if given.only in name else []:
            for metric, (above, below) in coverage(draw, metrics, rows, given.repeats).items():
                print(
                    f"| {name} | {rows} | {metric} | {1 - above - below:.3f} | {above:.3f} | {below:.3f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
