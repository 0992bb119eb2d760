"""What is odd about a data set: findings that make a result worse than it could be, or better than it should be."""

from typing import Any

import numpy as np
import torch

from proj.data.base import DataModule, Finding
from proj.schema import Batch, Schema

Array = np.ndarray[Any, Any]

FEW = 10  # training rows below which a class is too rare to say much of
SAMPLE = 100_000  # rows that single columns are judged on
COMPARED = 4_000_000  # rows compared with one another; of more, a share chosen by their inputs, equal ones all or none
GIVEN_AWAY = 0.99  # share of the rows, or of the variance, that one column alone explains


def check_data(data: DataModule) -> list[Finding]:
    """All findings on data that are set up."""
    schema = data.schema
    assert schema is not None
    parts = {
        stage: part for stage, part in data.splits.items() if stage != "predict" and len(part.row)
    }
    every = -(-sum(len(part.row) for part in parts.values()) // COMPARED)
    inputs, targets = {}, {}
    for stage, part in parts.items():
        keys = digests(part)
        chosen = slice(None) if every == 1 else keys % np.uint64(every) == 0
        inputs[stage], targets[stage] = keys[chosen], _digest(_targets(part)[chosen].view(np.uint8))
    findings = [*data.findings, *duplicates(inputs, targets), *rare_classes(schema)]
    if schema.task != "regression":
        findings += contradictions(inputs, targets)
    if schema.columns and "val" in parts:
        findings += given_away(schema, parts["train"], parts["val"])
    return findings


def digests(part: Batch, chunk: int = 65_536) -> Array:
    """A 64-bit number for each row's inputs: equal rows have equal ones, others hardly ever."""
    tensors = list(part.x.values()) if isinstance(part.x, dict) else [part.x]
    found = np.zeros(len(part.row), np.uint64)
    for start in range(0, len(found), chunk):
        for tensor in tensors:
            rows = tensor[start : start + chunk].numpy().reshape(min(chunk, len(found) - start), -1)
            found[start : start + chunk] += _digest(np.ascontiguousarray(rows).view(np.uint8))
    return found


def _digest(rows: Array) -> Array:
    """Sums of mixed words (the mixing is SplitMix64's, Steele et al. 2014) times random odd numbers, modulo 2^64."""
    words = np.pad(rows, ((0, 0), (0, -rows.shape[1] % 8))).view(np.uint64)
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    odd = np.random.default_rng(words.shape[1]).integers(
        0, 2**63, words.shape[1], dtype=np.uint64
    ) * np.uint64(2) + np.uint64(1)
    mixed: Array = (words ^ (words >> np.uint64(31))) * odd
    return np.asarray(mixed.sum(axis=1, dtype=np.uint64))


def duplicates(inputs: dict[str, Array], targets: dict[str, Array]) -> list[Finding]:
    """Rows of one part that are in an earlier one too, with the same target."""
    keys = {stage: inputs[stage] + targets[stage] for stage in inputs}
    findings = []
    for later, earlier in (("val", "train"), ("test", "train"), ("test", "val")):
        if (
            later in keys
            and earlier in keys
            and (again := int(np.isin(keys[later], keys[earlier]).sum()))
        ):
            findings.append(
                Finding(
                    f"{again} of {len(keys[later])} {later} rows are exact copies of {earlier} rows",
                    "they are scored on what was learned by heart, so the result looks better than it is",
                    "drop the copies, or where one thing has several rows name its column in data.group",
                )
            )
    return findings


def _targets(part: Batch) -> Array:
    assert part.y is not None
    return np.ascontiguousarray(part.y.numpy().reshape(len(part.row), -1))


def contradictions(inputs: dict[str, Array], targets: dict[str, Array]) -> list[Finding]:
    """Rows with the same inputs and different labels."""
    keys, labels = np.concatenate(list(inputs.values())), np.concatenate(list(targets.values()))
    order = np.argsort(keys, kind="stable")
    keys, labels = keys[order], labels[order]
    starts = np.flatnonzero(np.append(True, keys[1:] != keys[:-1]))
    mixed = np.minimum.reduceat(labels, starts) != np.maximum.reduceat(labels, starts)
    count = int(np.diff(np.append(starts, len(keys)))[mixed].sum())
    if not count:
        return []
    return [
        Finding(
            f"{count} of {len(keys)} rows have the inputs of another row and a different label",
            "no model can get all of them right",
            "correct the labels, or add a column that tells them apart",
        )
    ]


def rare_classes(schema: Schema) -> list[Finding]:
    rare = [
        f"{n} ({c})"
        for n, c in zip(schema.class_names, schema.class_counts, strict=True)
        if c < FEW
    ]
    if not rare:
        return []
    return [
        Finding(
            f"fewer than {FEW} training rows of {', '.join(rare[:10])}",
            "too few to learn from, and their metrics are mostly chance",
            "collect more, merge classes, or drop them",
        )
    ]


def given_away(schema: Schema, train: Batch, val: Batch) -> list[Finding]:
    """Columns that by themselves tell the target: by the mean or the commonest label for each of their values."""
    assert isinstance(train.x, dict)
    assert isinstance(val.x, dict)
    y, y_val = (_sample(torch.from_numpy(_targets(part))) for part in (train, val))
    findings = []
    for kind, some in (("numeric", schema.numeric), ("categorical", schema.categorical)):
        rows, rows_val = _sample(train.x[kind]), _sample(val.x[kind])
        for i, column in enumerate(some):
            x, x_val = rows[:, i], rows_val[:, i]
            if kind == "numeric":
                x, x_val = np.searchsorted(column.edges, x), np.searchsorted(column.edges, x_val)
            share = min(
                explained(x, x_val, y[:, j], y_val[:, j], schema.task) for j in range(y.shape[1])
            )
            if share >= GIVEN_AWAY:
                findings.append(
                    Finding(
                        f"column {column.name} alone explains {share:.1%} of the target on the validation part",
                        "if it is known only after the target is, the model is of no use on new rows",
                        f"if so, drop it: data.columns: {{{column.source}: drop}}",
                    )
                )
    return findings


def _sample(values: torch.Tensor) -> Array:
    return values[:: -(-len(values) // SAMPLE)].numpy()


def explained(train: Array, val: Array, y: Array, y_val: Array, task: str) -> float:
    """What the groups of equal ``train`` values say of ``y_val``, beyond saying the same of all rows: from 0 to 1."""
    groups, place = np.unique(train, return_inverse=True)
    where = np.searchsorted(groups, val).clip(max=len(groups) - 1)
    if task == "regression":
        means = np.bincount(place, y) / np.bincount(place)
        guess = np.where(groups[where] == val, means[where], y.mean())
        return 1 - float(((y_val - guess) ** 2).sum()) / max(
            float(((y_val - y.mean()) ** 2).sum()), 1e-30
        )
    counts = np.zeros((len(groups), int(y.max()) + 1))
    np.add.at(counts, (place, y.astype(np.int64)), 1)
    common = counts.sum(axis=0).argmax()
    guess = np.where(groups[where] == val, counts.argmax(axis=1)[where], common)
    right, base = float((guess == y_val).mean()), float((y_val == common).mean())
    return (right - base) / (1 - base) if base < 1 else 0.0
