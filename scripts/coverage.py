"""Measure how often the 95 % intervals of `test` contain the true value.

    python scripts/coverage.py [--repeats 1000] [--rows 200 2000] [--only NAME]
                               [--compare | --importance | --conformal]

Data are drawn repeatedly from named generators; the true value is that of a million rows. With
1,000 repeats the 95 % interval of a coverage is 1.4 points wide on either side. `--compare`
measures how often `compare` finds a significant difference between two equally good runs: 0.05 is
correct. `--importance` measures the coverage of the intervals of permutation importance.
`--conformal` measures that of conformal intervals and sets of small nets, at 0.9.
"""

import argparse
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from proj.engine.evaluation.conformal import conformal_metrics, fit_limits
from proj.engine.evaluation.dominant_rows import dominant_rows
from proj.engine.evaluation.importance import REPEATS, Importance, importance
from proj.engine.evaluation.intervals import intervals
from proj.engine.evaluation.paired import differences
from proj.engine.evaluation.prediction_set import PredictionSet
from proj.schema import Array, Average, Task

Draw = Callable[[int, np.random.Generator], PredictionSet]
# The true value of a metric is that of this number of rows.
TRUTH_ROWS = 1_000_000


def binormal(prevalence: float, distance: float, center: float = 0.0) -> Draw:
    """Return a generator of probabilities: two classes with normal scores at a distance."""

    def draw(rows: int, rng: np.random.Generator) -> PredictionSet:
        target = (rng.random(rows) < prevalence).astype(np.int64)
        score = rng.normal(size=rows) + distance * target - center
        return PredictionSet(
            "binary", ("no", "yes"), np.arange(rows), target, 1 / (1 + np.exp(-score))
        )

    return draw


def classes(shares: list[float], correct: float) -> Draw:
    """Return a generator of classes, each predicted correctly with probability ``correct``."""

    def draw(rows: int, rng: np.random.Generator) -> PredictionSet:
        count = len(shares)
        target = rng.choice(count, size=rows, p=shares)
        other = (target + rng.integers(1, count, rows)) % count
        predicted = np.where(rng.random(rows) < correct, target, other)
        output = rng.random((rows, count)) / 2
        output[np.arange(rows), predicted] += 0.5
        names = tuple(f"class_{i}" for i in range(count))
        return PredictionSet("multiclass", names, np.arange(rows), target, output)

    return draw


def labels(shares: list[float], noise: float) -> Draw:
    """Return a generator of correlated labels, which share a normal score."""

    def draw(rows: int, rng: np.random.Generator) -> PredictionSet:
        limits = np.quantile(rng.normal(size=200_000) * np.sqrt(2), 1 - np.array(shares))
        score = rng.normal(size=(rows, 1)) + rng.normal(size=(rows, len(shares)))
        output = 1 / (1 + np.exp(-(score + noise * rng.normal(size=score.shape) - limits)))
        names = tuple(f"label_{i}" for i in range(len(shares)))
        return PredictionSet(
            "multilabel", names, np.arange(rows), (score > limits).astype(np.int64), output
        )

    return draw


def averaged(draw: Draw, average: Average) -> Draw:
    """Another average of the metrics of the classes or labels."""
    return lambda rows, rng: replace(draw(rows, rng), average=average)


def errors(sample: Callable[[np.random.Generator, int], Array], size: int = 1) -> Draw:
    """Return a generator of a target of variance 1 and ``sample`` errors of half its size.

    In groups of ``size`` rows, half of the variance is common to the group.
    """

    def draw(rows: int, rng: np.random.Generator) -> PredictionSet:
        error, target, group = sample(rng, rows), rng.normal(size=rows), np.arange(rows) // size
        if size > 1:
            error = (error + sample(rng, int(group.max()) + 1)[group]) / np.sqrt(2)
        output = (target + error / 2)[:, None]
        groups = None if size == 1 else group
        return PredictionSet("regression", ("y",), np.arange(rows), target[:, None], output, groups)

    return draw


def one_wild_row(size: float) -> Draw:
    """Return a generator of normal errors of deviation 1, but for one row with ``size``.

    The interval of all rows is missing then. What is measured is the interval of the others.
    """

    def draw(rows: int, rng: np.random.Generator) -> PredictionSet:
        target, error = 5 * rng.normal(size=(rows, 1)), rng.normal(size=(rows, 1))
        error[0] = size * np.sqrt(rows)
        every = PredictionSet("regression", ("y",), np.arange(rows), target, target + error)
        found = dominant_rows((error**2).sum(axis=1))
        return every[np.delete(np.arange(rows), found.indices)]

    return draw


def grouped(size: int) -> Draw:
    """Return a generator of two classes in groups of ``size`` rows of different difficulty."""

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
    "3 classes of 60, 30, 10 %, weighted": (
        averaged(classes([0.6, 0.3, 0.1], 0.8), "weighted"),
        ("precision", "recall", "f1", "auroc", "average_precision"),
    ),
    "4 labels of 50 to 10 %, weighted": (
        averaged(labels([0.5, 0.3, 0.2, 0.1], 0.7), "weighted"),
        ("f1", "auroc", "average_precision"),
    ),
    "3 classes of 60, 30, 10 %, micro": (
        averaged(classes([0.6, 0.3, 0.1], 0.8), "micro"),
        ("precision", "f1", "auroc", "average_precision"),
    ),
    "4 labels of 50 to 10 %, micro": (
        averaged(labels([0.5, 0.3, 0.2, 0.1], 0.7), "micro"),
        ("precision", "f1", "auroc", "average_precision"),
    ),
    "normal errors": (errors(lambda rng, n: rng.normal(size=n)), ("mse", "rmse", "mae", "r2")),
    "Laplace errors": (errors(lambda rng, n: rng.laplace(size=n)), ("rmse", "mae", "r2")),
    "errors of Student's t with 5": (
        errors(lambda rng, n: rng.standard_t(5, size=n)),
        ("rmse", "mae", "r2"),
    ),
    "normal errors without the row that has half of the squared error": (
        one_wild_row(1.0),
        ("mse", "rmse", "mae", "r2"),
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
    """Return the shares of repeats with the interval above and below the true value, by metric."""
    rng = np.random.default_rng(seed)
    exact = intervals(draw(TRUTH_ROWS, rng))
    truth = {name: exact[name].value for name in metrics}
    above, below = dict.fromkeys(metrics, 0), dict.fromkeys(metrics, 0)
    for repeat in range(repeats):
        estimates = intervals(draw(rows, rng), seed=repeat)
        for name in metrics:
            low, high, true = estimates[name].low, estimates[name].high, truth[name]
            assert true is not None
            # A missing interval counts as a miss.
            above[name] += low is None or low > true
            below[name] += high is not None and high < true
    return {name: (above[name] / repeats, below[name] / repeats) for name in metrics}


def rivals(
    task: Task, rows: int, rng: np.random.Generator, better: float = 0.0
) -> tuple[PredictionSet, PredictionSet]:
    """Return two runs on the same rows, with independent errors of the same size.

    The errors of the second run are smaller by the share ``better``.
    """
    names = {"regression": ("y",), "binary": ("no", "yes"), "multiclass": tuple("abc")}[task]
    noise = [rng.normal(size=(rows, 3)) * size for size in (1, 1 - better)]
    if task == "regression":
        target = rng.normal(size=(rows, 1))
        outputs = [target + error[:, :1] for error in noise]
    elif task == "binary":
        target = (rng.random(rows) < 0.3).astype(np.int64)
        outputs = [1 / (1 + np.exp(-(1.5 * target - 1 + error[:, 0]))) for error in noise]
    else:
        target = rng.integers(3, size=rows)
        scores = [np.exp(1.5 * np.eye(3)[target] + error) for error in noise]
        outputs = [score / score.sum(1, keepdims=True) for score in scores]
    first, other = (
        PredictionSet(task, names, np.arange(rows), target, output) for output in outputs
    )
    return first, other


def false_positives(task: Task, rows: int, repeats: int, seed: int = 0) -> dict[str, float]:
    """Return how often equally good runs differ significantly at a level of 5 %, by metric."""
    rng = np.random.default_rng(seed)
    compared = [differences(*rivals(task, rows, rng), seed=repeat) for repeat in range(repeats)]
    return {name: float(np.mean([run[name].p < 0.05 for run in compared])) for name in compared[0]}


def strong_column(task: Task, rows: int, rng: np.random.Generator, seed: int = 0) -> Importance:
    """Return the importance of a column that determines most of the target, for the true model."""
    x, minor = rng.normal(size=rows), 0.3 * rng.normal(size=rows)
    orders = [rng.permutation(rows) for _ in range(REPEATS)]
    if task == "regression":
        target, names = (2 * x + minor + rng.normal(size=rows))[:, None], ("y",)
    else:
        target, names = (
            (2 * x + minor + rng.logistic(size=rows) > 0.8).astype(np.int64),
            ("no", "yes"),
        )

    def predict(x: Array) -> PredictionSet:
        score = 2 * x + minor
        output = score[:, None] if task == "regression" else 1 / (1 + np.exp(0.8 - score))
        return PredictionSet(task, names, np.arange(rows), target, output)

    return importance(predict(x), (predict(x[order]) for order in orders), orders, seed)


def importance_coverage(task: Task, rows: int, repeats: int, seed: int = 0) -> tuple[float, float]:
    """Return the importance of a million rows, and the coverage of its intervals."""
    rng = np.random.default_rng(seed)
    truth = strong_column(task, TRUTH_ROWS, rng).value
    estimates = [strong_column(task, rows, rng, repeat) for repeat in range(repeats)]
    assert truth is not None
    covered = [
        interval.low is not None and interval.low <= truth <= (interval.high or 0.0)
        for interval in estimates
    ]
    return truth, float(np.mean(covered))


def conformal_data(kind: str, shape: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return inputs [repeats, rows, 5] and targets [repeats, rows] of a generator."""
    x = torch.randn(*shape, 5)
    if kind == "4 classes":
        scores = torch.stack([x[..., i] + x[..., 4] * (i - 1.5) / 2 for i in range(4)], dim=-1)
        gumbel = -torch.log(-torch.log(torch.rand(scores.shape)))
        return x, (1.5 * scores + gumbel).argmax(-1)
    size = 0.2 + x[..., 0].abs() if "hetero" in kind else torch.ones(shape)
    return x, torch.sin(2 * x[..., 1]) + x[..., 2] + 0.5 * size * torch.randn(shape)


def conformal_coverage(kind: str, rows: int, repeats: int) -> list[tuple[float, float]]:
    """Return mean coverage and mean width or size, for limits from two splits of ``rows`` rows.

    A net of each repeat is trained on ``rows`` rows. The best of 150 epochs is chosen by the loss
    of the first split, and the second one is used for nothing else.
    """
    torch.manual_seed(0)
    outputs = 4 if kind == "4 classes" else 1
    splits = [conformal_data(kind, (repeats, count)) for count in (rows, rows, rows, 1000)]
    shapes = [(5, 32), (1, 32), (32, outputs), (1, outputs)]
    weights = [torch.randn(repeats, *shape) / shape[0] ** 0.5 for shape in shapes]
    weights = [weight.requires_grad_() for weight in weights]
    optimizer = torch.optim.Adam(weights, lr=0.02)

    def net(x: torch.Tensor) -> torch.Tensor:
        hidden = torch.relu(x @ weights[0] + weights[1])
        return hidden @ weights[2] + weights[3]

    def loss(output: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        if outputs == 1:
            return ((output[..., 0] - y) ** 2).mean(1)
        return cross_entropy(output.transpose(1, 2), y, reduction="none").mean(1)

    best = torch.full((repeats,), torch.inf)
    kept = [torch.zeros(*y.shape, outputs) for _, y in splits]
    for _ in range(150):
        optimizer.zero_grad()
        loss(net(splits[0][0]), splits[0][1]).sum().backward()
        optimizer.step()
        with torch.no_grad():
            now = [net(x) for x, _ in splits]
            value = loss(now[1], splits[1][1])
            better = value < best
            best = torch.where(better, value, best)
            kept = [
                torch.where(better[:, None, None], a, b) for a, b in zip(now, kept, strict=True)
            ]
    results = []
    for split in (1, 2):
        values = []
        for repeat in range(repeats):
            fitted, test = (
                _conformal_set(kept[i][repeat], splits[i][1][repeat]) for i in (split, 3)
            )
            metrics = conformal_metrics(test, fit_limits(fitted, 0.9), ("y",), repeat)
            values.append([entry["value"] for entry in metrics.values()])
        coverage, width = np.mean(values, axis=0).tolist()
        results.append((coverage, width))
    return results


def _conformal_set(output: torch.Tensor, target: torch.Tensor) -> PredictionSet:
    rows = np.arange(len(target))
    if output.shape[1] == 1:
        y = target[:, None].double().numpy()
        return PredictionSet("regression", ("y",), rows, y, output.double().numpy())
    p = output.double().softmax(1).numpy()
    return PredictionSet("multiclass", tuple("abcd"), rows, target.numpy(), p)


def show_conformal(rows: list[int], repeats: int) -> None:
    print("| generator | rows | limits from | coverage | width or size |")
    print("| --- | --- | --- | --- | --- |")
    for kind in ("homoscedastic numbers", "heteroscedastic numbers", "4 classes"):
        for count in rows:
            results = conformal_coverage(kind, count, repeats)
            for source, (covered, width) in zip(
                ("the validation split", "unused rows"), results, strict=True
            ):
                print(f"| {kind} | {count} | {source} | {covered:.3f} | {width:.2f} |", flush=True)


def show_importance(rows: list[int], repeats: int) -> None:
    print("| task | rows | importance | coverage |\n| --- | --- | --- | --- |")
    for task in ("binary", "regression"):
        for count in rows:
            truth, covered = importance_coverage(task, count, repeats)
            print(f"| {task} | {count} | {truth:.3f} | {covered:.3f} |", flush=True)


def show_false_positives(rows: list[int], repeats: int) -> None:
    print("| task | rows | metric | significant |\n| --- | --- | --- | --- |")
    for task in ("binary", "multiclass", "regression"):
        for count in rows:
            for metric, rate in false_positives(task, count, repeats).items():
                print(f"| {task} | {count} | {metric} | {rate:.3f} |", flush=True)


def show_coverage(rows: list[int], repeats: int, only: str) -> None:
    print("| generator | rows | metric | coverage | too high | too low |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, (draw, metrics) in GENERATORS.items():
        for count in rows if only in name else []:
            for metric, (above, below) in coverage(draw, metrics, count, repeats).items():
                shares = f"{1 - above - below:.3f} | {above:.3f} | {below:.3f}"
                print(f"| {name} | {count} | {metric} | {shares} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=1000)
    parser.add_argument("--rows", type=int, nargs="+", default=[200, 2000])
    parser.add_argument("--only", default="", help="part of a generator's name")
    parser.add_argument(
        "--compare", action="store_true", help="measure the false positives of comparisons"
    )
    parser.add_argument("--importance", action="store_true", help="measure permutation importance")
    parser.add_argument("--conformal", action="store_true", help="measure intervals and sets")
    arguments = parser.parse_args()
    if arguments.conformal:
        show_conformal(arguments.rows, arguments.repeats)
    elif arguments.importance:
        show_importance(arguments.rows, arguments.repeats)
    elif arguments.compare:
        show_false_positives(arguments.rows, arguments.repeats)
    else:
        show_coverage(arguments.rows, arguments.repeats, arguments.only)


if __name__ == "__main__":
    main()
