"""Checks of a data set for findings that make a result worse than possible, or better than true."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from proj.data.base import DataModule
from proj.engine.console import plural
from proj.engine.yaml_text import yaml_value
from proj.errors import UserError
from proj.schema import Array, Batch, Finding, Schema, Task, is_pair

# A class with fewer training rows is too rare to learn.
MIN_CLASS_ROWS = 10

# Rows of a split that the check of single columns uses.
COLUMN_SAMPLE = 100_000

# Rows that are compared with each other. If there are more, a share of them is chosen by the hash
# of the inputs, so that of equal rows all or none are chosen.
MAX_COMPARED_ROWS = 4_000_000

# A column that alone explains this share of the target probably contains it.
LEAK_THRESHOLD = 0.99

# Arrays are float32. A step above this share of the standard deviation hides differences.
MAX_ROUNDING = 0.01

# Rows hashed at once.
CHUNK = 65_536

# The hashes of the rows of each split: [rows] uint64.
Hashes = dict[str, Array]


def check_data(data: DataModule) -> list[Finding]:
    """Return all findings about a data module after ``setup``."""
    schema = data.schema
    assert schema is not None
    if is_streamed(data):
        return [*data.findings, *find_rare_classes(schema)]
    labelled = {
        name: split for name, split in data.splits.items() if name != "predict" and len(split.row)
    }
    inputs, targets = hash_splits(labelled)
    # Rows that differ in the source may be equal as inputs: columns are left out, and values merge.
    if _any_equal(inputs) and (source := _source_hashes(data, labelled)):
        inputs, targets = hash_splits(labelled, source)
    findings = [
        *data.findings,
        *find_duplicates(inputs, targets, has_texts=_has_texts(schema)),
        *find_rare_classes(schema),
        *find_classes_without_rows(schema, labelled),
        *find_rounded_inputs(schema),
    ]
    if schema.task != "regression":
        findings += find_contradictions(inputs, targets)
    if schema.columns and "val" in labelled:
        findings += find_leaking_columns(schema, labelled["train"], labelled["val"])
    return findings


def is_streamed(data: object) -> bool:
    """Return whether the splits of a data module hold some rows only; the others are streamed."""
    return bool(getattr(data, "is_streamed", False))


def require_whole_splits(data: object, verb: str) -> None:
    """Raise UserError if the splits of a data module are not in memory as a whole."""
    if is_streamed(data):
        raise UserError(
            f"{verb}: expected a data module whose splits fit into memory, such as Tabular, got "
            f"{type(data).__name__}, which streams its rows; use Tabular on a part of them."
        )


def describe_positive(data: object, schema: Schema | None = None, training: str = "") -> str:
    """Return a line about the positive class of two, and how to change it; else nothing.

    Args:
        data: the data module.
        schema: the schema of its data; None means that of the data module.
        training: what must follow a change.
    """
    schema = schema or getattr(data, "schema", None)
    if not isinstance(schema, Schema) or schema.task != "binary":
        return ""
    (negative, positive), reason = schema.class_names, ""
    if getattr(data, "positive", None) is not None:
        reason = " (as data.positive says)"
    elif is_pair(schema.classes[1], schema.classes[0]):
        reason = f" ({positive} against {negative})"
    elif schema.class_counts and schema.class_counts[1] < schema.class_counts[0]:
        reason = " (the rarer one)"
    change = f"; to change it set data.positive{training}" if hasattr(data, "positive") else ""
    return f"positive class: {positive}{reason}{change}"


def _any_equal(inputs: Hashes) -> bool:
    hashes = np.concatenate(list(inputs.values()))
    return len(np.unique(hashes)) < len(hashes)


def _source_hashes(data: DataModule, splits: dict[str, Batch]) -> Hashes | None:
    """Return hashes of the rows of each split in the source, None if the inputs are enough."""
    hashes = {name: data.source_hashes(name) for name in splits}
    known = {name: values for name, values in hashes.items() if values is not None}
    return known if len(known) == len(splits) else None


def hash_splits(splits: dict[str, Batch], source: Hashes | None = None) -> tuple[Hashes, Hashes]:
    """Return hashes of the inputs and of the targets of each split's compared rows.

    With ``source``, the hashes of the rows in the source, rows with equal inputs have equal hashes
    only if they are equal in the source, too.
    """
    rows = sum(len(split.row) for split in splits.values())
    stride = -(-rows // MAX_COMPARED_ROWS)
    inputs, targets = {}, {}
    for name, split in splits.items():
        hashes, compared = hash_inputs(split, stride)
        inputs[name] = hashes + (source[name][compared] if source else np.uint64(0))
        targets[name] = _hash_rows(_targets(split)[compared].view(np.uint8))
    return inputs, targets


def hash_inputs(split: Batch, stride: int = 1, chunk: int = CHUNK) -> tuple[Array, Array]:
    """Return 64-bit hashes of the inputs of some rows: uint64, and which rows: [rows] bool.

    Equal rows have equal hashes, and different rows practically never do. The rows are those whose
    hash is a multiple of ``stride``.
    """
    tensors = list(split.x.values()) if isinstance(split.x, dict) else [split.x]
    compared, parts = np.ones(len(split.row), bool), [np.zeros(0, np.uint64)]
    for start in range(0, len(compared), chunk):
        size = min(chunk, len(compared) - start)
        hashes = np.zeros(size, np.uint64)
        for tensor in tensors:
            rows = np.ascontiguousarray(tensor[start : start + size].numpy().reshape(size, -1))
            hashes += _hash_rows(rows.view(np.uint8))
        if stride > 1:
            compared[start : start + size] = hashes % np.uint64(stride) == 0
        parts.append(hashes[compared[start : start + size]])
    return np.concatenate(parts), compared


def _hash_rows(rows: Array) -> Array:
    """Return hashes of byte rows [rows, bytes].

    They are sums, modulo 2^64, of mixed words times random odd numbers. The mixing function is that
    of SplitMix64 (Steele et al. 2014).
    """
    words = np.pad(rows, ((0, 0), (0, -rows.shape[1] % 8))).view(np.uint64)
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    generator = np.random.default_rng(words.shape[1])
    random = generator.integers(0, 2**63, words.shape[1], dtype=np.uint64)
    factors = random * np.uint64(2) + np.uint64(1)
    mixed: Array = (words ^ (words >> np.uint64(31))) * factors
    return np.asarray(mixed.sum(axis=1, dtype=np.uint64))


def _targets(split: Batch) -> Array:
    assert split.y is not None
    return np.ascontiguousarray(split.y.numpy().reshape(len(split.row), -1))


def _has_texts(schema: Schema) -> bool:
    return any(column.kind == "word" for column in schema.columns)


def find_duplicates(inputs: Hashes, targets: Hashes, has_texts: bool = False) -> list[Finding]:
    """Find rows that occur in an earlier split, too, with the same target.

    With ``has_texts``, the hashes of the inputs are equal for texts of the same words.
    """
    exact = "" if has_texts else "exact "
    same = " with the same words in texts" if has_texts else ""
    hashes = {name: inputs[name] + targets[name] for name in inputs}
    findings = []
    for later, earlier in (("val", "train"), ("test", "train"), ("test", "val")):
        if later not in hashes or earlier not in hashes:
            continue
        if copies := int(np.isin(hashes[later], hashes[earlier]).sum()):
            equal = f"is {'a' if has_texts else 'an'} {exact}copy of a {earlier} row{same}"
            if copies > 1:
                equal = f"are {exact}copies of {earlier} rows{same}"
            finding = Finding(
                f"{copies} of {len(hashes[later])} {later} rows {equal}",
                "if they are records of one thing, the model may have memorized them, and the "
                "result looks better than it is",
                "in that case keep one of each, or keep them in one split with data.group",
            )
            findings.append(finding)
    return findings


def find_contradictions(inputs: Hashes, targets: Hashes) -> list[Finding]:
    """Find rows with equal inputs and different labels."""
    hashes, labels = np.concatenate(list(inputs.values())), np.concatenate(list(targets.values()))
    order = np.argsort(hashes, kind="stable")
    hashes, labels = hashes[order], labels[order]
    starts = np.flatnonzero(np.append(True, hashes[1:] != hashes[:-1]))
    differ = np.minimum.reduceat(labels, starts) != np.maximum.reduceat(labels, starts)
    rows = int(np.diff(np.append(starts, len(hashes)))[differ].sum())
    if not rows:
        return []
    return [
        Finding(
            f"{rows} of {plural(len(hashes), 'row')} have the inputs of another row and a "
            "different label",
            "no model can predict all of them correctly",
            "add a column in which the rows differ, or correct labels that are wrong",
        )
    ]


def find_rare_classes(schema: Schema) -> list[Finding]:
    """Find classes with fewer than ``MIN_CLASS_ROWS`` training rows."""
    counts = zip(schema.class_names, schema.class_counts, strict=True)
    rare = [f"{name} ({count})" for name, count in counts if count < MIN_CLASS_ROWS]
    if not rare:
        return []
    return [
        Finding(
            f"fewer than {MIN_CLASS_ROWS} training rows of {', '.join(rare[:10])}",
            "they are too few to learn from, and their metrics are mostly chance",
            "collect more, merge classes, or drop them",
        )
    ]


def find_classes_without_rows(schema: Schema, splits: dict[str, Batch]) -> Iterator[Finding]:
    """Find classes without validation rows, or without test rows."""
    if schema.task not in ("binary", "multiclass"):
        return
    names, trained = schema.class_names, schema.class_counts
    splits_by_classes: dict[tuple[int, ...], list[str]] = {}
    for split in ("val", "test"):
        if split in splits:
            rows = np.bincount(_targets(splits[split])[:, 0], minlength=len(names))
            if absent := tuple(np.flatnonzero(rows[: len(names)] == 0).tolist()):
                splits_by_classes.setdefault(absent, []).append(f"no {split}")
    for absent, without in splits_by_classes.items():
        listed = [f"{names[i]} ({trained[i]})" if trained else names[i] for i in absent[:10]]
        yield Finding(
            f"{' and '.join(without)} rows of {', '.join(listed)}{', …' * (len(absent) > 10)}",
            "nothing shows how well they are predicted",
            "collect more (in parentheses: training rows), or merge classes",
        )


def find_rounded_inputs(schema: Schema) -> Iterator[Finding]:
    """Find features of arrays that float32 cannot tell apart. Tables have a check of their own."""
    if schema.input_type != "float32":
        return
    for i, (mean, std) in enumerate(zip(schema.input_mean, schema.input_std, strict=True)):
        step = float(np.spacing(np.float32(abs(mean))))
        if step > MAX_ROUNDING * std:
            name = schema.input_names[i] if schema.input_names else str(i)
            yield Finding(
                f"the values of feature {name}, around {mean:.10g}, are rounded to steps of "
                f"{step:.3g} (float32)",
                "the model cannot learn from smaller differences",
                "subtract a constant from the feature, such as its smallest value",
            )


def find_leaking_columns(schema: Schema, train: Batch, val: Batch) -> Iterator[Finding]:
    """Find columns that alone predict the target of the validation and of the training rows.

    The prediction is the mean or most frequent target of the training rows with an equal value, or
    for numbers a value between the same edges. A few validation rows may agree by chance.
    """
    assert isinstance(train.x, dict)
    assert isinstance(val.x, dict)
    y, y_val = (_sample(torch.from_numpy(_targets(split))) for split in (train, val))
    found: set[str] = set()
    for kind, columns in (("numeric", schema.numeric), ("categorical", schema.categorical)):
        x, x_val = _sample(train.x[kind]), _sample(val.x[kind])
        for i, column in enumerate(columns):
            values, values_val = x[:, i], x_val[:, i]
            if kind == "numeric":
                values = np.searchsorted(column.edges, values)
                values_val = np.searchsorted(column.edges, values_val)
            share = _least_explained(values, values_val, y, y_val, schema.task)
            if share < LEAK_THRESHOLD or column.source in found:
                continue
            if _least_explained(values, values, y, y, schema.task) >= LEAK_THRESHOLD:
                found.add(column.source)
                yield Finding(
                    f"column {column.name} alone explains {share:.1%} of the target on the "
                    "validation split",
                    "if it is known only after the target, the model is useless on new rows",
                    f"in that case drop it: data.columns: {yaml_value({column.source: 'drop'})}",
                    column.source,
                )


def _least_explained(x: Array, x_val: Array, y: Array, y_val: Array, task: Task) -> float:
    """Return the share of the target that ``x`` explains worst; ``y`` is [rows, targets]."""
    return min(explained_share(x, x_val, y[:, j], y_val[:, j], task) for j in range(y.shape[1]))


def _sample(values: Tensor) -> Array:
    return values[:: -(-len(values) // COLUMN_SAMPLE)].numpy()


def explained_share(x: Array, x_val: Array, y: Array, y_val: Array, task: Task) -> float:
    """Return how much better equal values of ``x`` predict ``y_val`` than no input does.

    All arrays are [rows]. 0 means not better than the mean or most frequent ``y``, and 1 means
    without error: this is R² for regression, and the share of avoided errors for classes.
    """
    groups, group = np.unique(x, return_inverse=True)
    nearest = np.searchsorted(groups, x_val).clip(max=len(groups) - 1)
    is_known = groups[nearest] == x_val
    if task == "regression":
        means = np.bincount(group, y) / np.bincount(group)
        prediction = np.where(is_known, means[nearest], y.mean())
        error = float(((y_val - prediction) ** 2).sum())
        return 1 - error / max(float(((y_val - y.mean()) ** 2).sum()), 1e-30)
    counts = np.zeros((len(groups), int(y.max()) + 1))
    np.add.at(counts, (group, y.astype(np.int64)), 1)
    most_frequent = counts.sum(axis=0).argmax()
    prediction = np.where(is_known, counts.argmax(axis=1)[nearest], most_frequent)
    accuracy, base = (float((guess == y_val).mean()) for guess in (prediction, most_frequent))
    return (accuracy - base) / (1 - base) if base < 1 else 0.0
