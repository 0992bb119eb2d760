"""Experiment that `init` writes for a table, with comments on each choice."""

from proj.data.base import (
    MODEL_CLASSES,
    Finding,
    class_weight_line,
    summarize_targets,
    yaml_text,
)
from proj.schema import Schema

# Limits of the number of rows and the batch sizes below them, as the authors of TabM choose them.
BATCH_SIZES = ((64, 8), (500, 32), (2_000, 64), (10_000, 128), (80_000, 256), (300_000, 512))
MAX_BATCH_SIZE = 1024

# Optimizer steps without improvement before training stops.
PATIENCE_STEPS = 700


def write_experiment(path: str, targets: list[str], schema: Schema, findings: list[Finding]) -> str:
    """Return the experiment as commented YAML."""
    rows, target = schema.rows, yaml_text(targets[0] if len(targets) == 1 else targets)
    used = {column.source for column in schema.columns}
    left_out = [finding for finding in findings if finding.column and finding.column not in used]
    dropped = "".join(
        f"\n      {yaml_text(str(finding.column))}: drop # {finding.effect}" for finding in left_out
    )
    metric = "val/rmse" if schema.task == "regression" else "val/f1"
    return f"""\
# {target} from the other columns of {path}: {rows} training rows, {len(schema.columns)} inputs.
# Written by `init`; change it as you like. Each key is also a flag: --model.optimizer.lr 0.001
seed_everything: 0
trainer:
  max_epochs: {20 * patience(rows)} # early stopping usually ends it sooner
  gradient_clip_val: 1.0
model:
  class_path: {MODEL_CLASSES[schema.task]}
  init_args:
    net: {{class_path: TabM, init_args: {{members: 16, width: 256}}}} # smaller: net: MLP
    optimizer: {{class_path: AdamW, init_args: {{lr: 0.002, weight_decay: 0.0003}}}}
{class_weight_line(schema)}data:
  class_path: Tabular
  init_args:
    path: {yaml_text(path)}
    target: {target}
    task: {schema.task} # {summarize_targets(schema)}
    columns:{dropped or " {} # NAME: number, category, date or drop"}
    batch_size: {batch_size(rows)}
    val_fraction: 0.15
    test_fraction: 0.15 # or use rows of another file: test_path: FILE
    # group: COLUMN # keeps rows with equal values in one split, such as rows of one customer
    # time: COLUMN # tests on the latest rows, to predict the future from the past
checkpoint:
  monitor: val/loss # smoother than {metric}
early_stopping:
  patience: {patience(rows)} # epochs
"""


def batch_size(rows: int) -> int:
    """Return a batch size that grows with the number of training rows."""
    return next((size for limit, size in BATCH_SIZES if rows < limit), MAX_BATCH_SIZE)


def patience(rows: int) -> int:
    """Return the epochs without improvement before training stops, more for small tables."""
    return max(4, min(60, -(-PATIENCE_STEPS * batch_size(rows) // rows)))
