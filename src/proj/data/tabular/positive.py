"""The positive class of two, for every kind of data: the rule, and the option that states it."""

from proj.data.tabular.targets import Targets, listed
from proj.errors import UserError
from proj.schema import Label, Schema, Task, is_pair, label_word

# Words that YAML reads as booleans where they stand without quotes.
BOOLEANS = {True: ("true", "yes", "on"), False: ("false", "no", "off")}


def choose_positive(targets: Targets, stated: Label | None) -> Label | None:
    """Return the positive class of two, None for other tasks.

    It is the one ``stated`` in data.positive; else yes, true or 1 against no, false or 0; else the
    rarer one of these rows; else the later one. The rows are those before a split: all folds and
    seeds agree.
    """
    counts = targets.columns[0].label_counts if targets.is_classes else {}
    if stated is not None:
        return find_positive(stated, targets.task, tuple(counts))
    if targets.task != "binary":
        return None
    first, second = counts
    for label, other in ((first, second), (second, first)):
        if is_pair(label, other):
            return label
    return first if counts[first] < counts[second] else second


def find_positive(stated: Label, task: Task, labels: tuple[Label, ...]) -> Label:
    """Return the label that data.positive names; raise UserError if it is none of two classes."""
    words = BOOLEANS[stated] if isinstance(stated, bool) else (label_word(stated),)
    alike = [label for label in labels if label_word(label) in words]
    found = [label for label in alike if label == stated] or alike
    if task != "binary" or len(found) != 1:
        classes = f": {listed(labels)}" if labels else ""
        raise UserError(
            f"data.positive: expected one of two classes, got {stated!r} for the task "
            f"{task}{classes}; correct it, or leave it out."
        )
    return found[0]


def check_positive(stated: Label | None, schema: Schema) -> None:
    """Raise UserError unless data.positive, if it is set, is the positive class of a schema."""
    if stated is None:
        return
    if (label := find_positive(stated, schema.task, schema.classes)) != schema.classes[1]:
        raise UserError(
            f"data.positive: expected {schema.classes[1]!r}, as in training, got {label!r}; leave "
            "it out, or train another run."
        )
