"""Compute metrics of the rows of several processes, and compare their bits. For torchrun."""

import os
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from itertools import chain, product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torchmetrics import Metric, MetricCollection, PearsonCorrCoef, classification
from torchmetrics.wrappers import MinMaxMetric

from conftest import plain_schema
from proj.engine.callbacks.metric_messages import compute_together
from proj.engine.callbacks.process_messages import (
    FIRST_BYTES,
    from_first,
    gather_tensors,
    largest,
)
from proj.metrics.stage import StageMetrics

ROWS = 211
OUTPUTS = {"binary": 1, "multiclass": 3, "multilabel": 3, "regression": 2}
# Task, whether rows have weights, and split.
KINDS = [*product(OUTPUTS, (False, True), ("train", "test"))]
# Extra metrics that differ between processes.
UNSHARED = ("own_sync", "local")


class Largest(Metric):
    """The largest probability, and the sum of a metric inside, which is computed twice."""

    full_state_update = False
    largest: Tensor
    each: list[Tensor]

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.add_state("largest", torch.tensor(0.0), dist_reduce_fx="max")
        self.add_state("each", [], dist_reduce_fx="cat")
        self.inside = classification.MulticlassAccuracy(classes, average="micro")
        self.inside.compute_with_cache = False
        self.several = MetricCollection(
            [
                classification.MulticlassF1Score(classes),
                classification.MulticlassRecall(classes),
            ]
        )

    def update(self, preds: Tensor, target: Tensor) -> None:
        self.largest = torch.maximum(self.largest, preds.max().float())
        self.each.append(preds[:, 0])
        self.inside.update(preds, target)
        self.several.update(preds, target)

    def compute(self) -> Tensor:
        each: Any = self.each
        first = torch.cat(each) if isinstance(each, list) else each
        others = sum(self.several.compute().values())
        return self.largest + first.sum() + self.inside.compute() * self.inside.compute() + others


class Correlation(PearsonCorrCoef):
    """A metric whose states are stacked, not added."""

    def update(self, preds: Tensor, target: Tensor) -> None:
        super().update(preds[:, 0], (target == 0).to(preds.dtype))


def extra_metrics() -> dict[str, Metric]:
    """Return metrics as a user may give them, for three classes."""
    return {
        "kappa": classification.MulticlassCohenKappa(3),
        "sum": classification.MulticlassRecall(3) + classification.MulticlassPrecision(3),
        "calibration": classification.MulticlassCalibrationError(3, n_bins=10),
        "largest": Largest(3),
        "correlation": Correlation(),
        "own_sync": classification.MulticlassF1Score(3, dist_sync_fn=lambda x, group: [x, x]),
        "local": classification.MulticlassF1Score(3, sync_on_compute=False),
        "bounded": Value(MinMaxMetric(classification.MulticlassAccuracy(3))),
    }


class Value(Metric):
    """One value of a wrapper that returns several."""

    full_state_update = False

    def __init__(self, wrapper: Metric) -> None:
        super().__init__()
        self.wrapper = wrapper

    def update(self, preds: Tensor, target: Tensor) -> None:
        self.wrapper.update(preds, target)

    def compute(self) -> Tensor:
        value: Tensor = self.wrapper.compute()["max"]
        return value


def all_rows(task: str) -> tuple[Tensor, Tensor, Tensor]:
    """Return predictions, with ties, targets and weights of the rows of all processes."""
    torch.manual_seed(0)
    shape = (ROWS,) if task == "binary" else (ROWS, OUTPUTS[task])
    scores = torch.randint(1, 9, shape).double()
    weights = torch.rand(ROWS, dtype=torch.float64)
    if task == "regression":
        return scores, scores + torch.randn(shape, dtype=torch.float64), weights
    if task == "multiclass":
        return scores / scores.sum(1, keepdim=True), torch.randint(0, 3, (ROWS,)), weights
    return scores / 9.5, torch.randint(0, 2, shape), weights


def shard(values: Tensor) -> Tensor:
    """Return the rows of this process. Of three processes the last one has none."""
    if not dist.is_initialized():
        return values
    rank, shards = dist.get_rank(), 2
    return values[rank::shards] if rank < shards else values[:0]


def computed(
    task: str, weighted: bool, split: str, compute: Callable[[StageMetrics], dict[str, Tensor]]
) -> dict[str, Tensor]:
    """Return the metrics of the rows, which this process adds in two parts."""
    schema = replace(plain_schema(task, (1,), OUTPUTS[task]), weight_mean=float(weighted))
    metrics = StageMetrics(
        schema, split, extra_metrics() if task == "multiclass" and not weighted else {}
    )
    preds, target, weights = map(shard, all_rows(task))
    values: dict[str, Tensor] = {}
    for _ in range(2):  # The first time leaves no states behind.
        for part in (slice(70), slice(70, None)):
            losses = preds[part].flatten()[:3]
            row_weights = weights[part] if weighted else None
            metrics.update(
                preds[part], target[part], losses, torch.ones_like(losses), row_weights=row_weights
            )
        values = compute(metrics)
    return values


def same_bits(a: Tensor, b: Tensor) -> bool:
    equal = a.dtype == b.dtype and torch.equal(a, b)
    return equal or bool(a.isnan().all() and b.isnan().all())


def check_messages() -> None:
    """Send numbers, and tensors of several dtypes and shapes, in one message and in two."""
    rank, world = dist.get_rank(), dist.get_world_size()
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    trainer: Any = SimpleNamespace(world_size=world, strategy=strategy)
    assert largest(trainer, rank == 1, rank, -rank, 0) == [1, world - 1, 0, 0]
    assert from_first(trainer, rank + 0.1, rank == 0, 2**53) == [0.1, 1, 2**53]

    def sent(rank: int, rows: int) -> list[Tensor]:
        generator = torch.Generator().manual_seed(rank)
        random = torch.randn(rows + rank, 3, generator=generator, dtype=torch.float64)
        dtypes = (torch.float16, torch.bfloat16, torch.int32, torch.uint8, torch.bool)
        special = torch.tensor([torch.nan, -0.0, torch.inf])
        return [
            *(random.to(dtype) for dtype in dtypes),
            *(random, random.T, random[:0], random.sum(), random.to(torch.complex64), special),
            *[random.long()] * rank,
        ]

    for rows in (0, 2, FIRST_BYTES):
        gathered = gather_tensors(sent(rank, rows), torch.device("cpu"))
        assert len(gathered) == world
        for other, tensors in enumerate(gathered):
            for got, want in zip(tensors, sent(other, rows), strict=True):
                assert got.dtype == want.dtype
                assert torch.equal(got.nan_to_num(7), want.nan_to_num(7)), (rows, other)
                assert torch.equal(got.float().signbit(), want.float().signbit())


def main(folder: Path) -> None:
    results: dict[tuple[str, bool, str], dict[str, Tensor]] = {}
    for kind in KINDS:
        results[kind] = values = computed(*kind, compute_together)
        first, *others = gather_tensors(list(values.values()), torch.device("cpu"))
        assert all(map(same_bits, first * len(others), chain(*others))), kind
        if dist.get_world_size() > 2:
            continue  # torchmetrics itself fails if a process has no rows.
        expected = computed(*kind, StageMetrics.compute)
        assert list(values) == list(expected)
        for name, value in values.items():
            # The values of a metric that is not synchronized are those of process 0.
            is_equal = same_bits(value, expected[name])
            assert is_equal or (name in UNSHARED and dist.get_rank() > 0), (*kind, name)
    check_messages()
    if dist.get_rank() == 0:
        torch.save(results, folder / "results.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    dist.init_process_group("gloo", world_size=int(os.environ["WORLD_SIZE"]))
    main(Path(sys.argv[1]))
    dist.barrier()
    dist.destroy_process_group()
