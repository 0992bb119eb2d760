"""Values of the experiment that `init` writes for a table."""

from typing import Any

from proj.schema import Finding, Schema

# Limits of the number of rows and the batch sizes below them, as the authors of TabM choose them.
BATCH_SIZES = ((64, 8), (500, 32), (2_000, 64), (10_000, 128), (80_000, 256), (300_000, 512))
MAX_BATCH_SIZE = 1024

# Below this number of rows, the net is smaller, learns slower and is regularized more. The values
# are chosen with scripts/bench_tables.py.
SMALL_ROWS = 1_000
SMALL = {"width": 128, "dropout": 0.2, "lr": 0.0005}
LARGE = {"width": 256, "dropout": 0.1, "lr": 0.002}

# The embedding of a word, which is 0 or 1, needs no more than this width instead of 16. The figures
# of texts in docs/explanation/tables.md are with it.
TEXT_EMBEDDING = 4

# Optimizer steps without improvement before training stops.
PATIENCE_STEPS = 700


def experiment_values(
    targets: list[str], schema: Schema, findings: list[Finding], split_by: dict[str, str | None]
) -> dict[str, Any]:
    """Return the values of ``templates/experiment.yaml.j2``."""
    used = {column.source for column in schema.columns}
    return {
        "target": targets[0] if len(targets) == 1 else targets,
        "left_out": [finding for finding in findings if finding.column not in {None, *used}],
        "group": split_by["group"],
        "time": split_by["time"],
        "batch_size": batch_size(schema.rows),
        "patience": patience(schema.rows),
        "embedding": TEXT_EMBEDDING if any(c.kind == "word" for c in schema.columns) else None,
        **(SMALL if schema.rows < SMALL_ROWS else LARGE),
    }


def batch_size(rows: int) -> int:
    """Return a batch size that grows with the number of training rows."""
    return next((size for limit, size in BATCH_SIZES if rows < limit), MAX_BATCH_SIZE)


def patience(rows: int) -> int:
    """Return the epochs without improvement before training stops, more for small tables."""
    return max(4, min(60, -(-PATIENCE_STEPS * batch_size(rows) // rows)))
