"""Experiments as YAML text, with the reasons for what is not obvious: what ``init`` writes."""

import re

import yaml

from proj.data.images.datamodule import Images
from proj.data.tabular.datamodule import Tabular
from proj.metrics import DEFAULT_MONITOR
from proj.schema import Schema, Task

PICTURES = 400_000  # that a training sees, each of them several times
LONG = 15  # epochs; in shorter trainings no picture is learned by heart

MODELS: dict[Task, str] = {
    "binary": "BinaryClassifier",
    "multiclass": "MulticlassClassifier",
    "multilabel": "MultilabelClassifier",
    "regression": "Regressor",
}


def table_experiment(data: Tabular, path: str, target: str | list[str]) -> str:
    """The YAML, with the reasons for what is not obvious."""
    schema = data.schema
    assert schema is not None
    rows = schema.rows
    dropped = [re.match(r"column (.+) is left out, (.+)", f.what) for f in data.findings]
    named = _scalar(target) if isinstance(target, str) else f"[{', '.join(map(_scalar, target))}]"
    columns = (
        "".join(f"\n      {_scalar(m[1])}: drop # {m[2]}" for m in dropped if m)
        or " {} # NAME: number, category, date or drop"
    )
    return f"""\
# {named} from the other columns of {path}: {rows} training rows, {len(schema.columns)} inputs.
# Written by `init`; it is yours to change. Each key is a flag, too: --model.optimizer.lr 0.001
seed_everything: 0
trainer:
  max_epochs: {20 * patience(rows)} # early stopping ends it sooner
  gradient_clip_val: 1.0
model:
  class_path: {MODELS[schema.task]}
  init_args:
    net: {{class_path: TabM, init_args: {{members: 16, width: 256}}}} # lighter: net: MLP
    optimizer: {{class_path: AdamW, init_args: {{lr: 0.002, weight_decay: 0.0003}}}}
{_imbalance(schema)}data:
  class_path: Tabular
  init_args:
    path: {_scalar(path)}
    target: {named}
    task: {schema.task} # {_targets(schema)}
    columns:{columns}
    batch_size: {batch_size(rows)}
    val_fraction: 0.15
    test_fraction: 0.15 # or give rows of their own: test_path: FILE
    # group: COLUMN # where one thing has several rows, keep them in one part
    # time: COLUMN # where the future is to be told from the past, test on the latest rows
checkpoint:
  monitor: val/loss # smoother than {DEFAULT_MONITOR[schema.task]}
early_stopping:
  patience: {patience(rows)} # epochs
"""


def picture_experiment(data: Images, path: str) -> str:
    schema = data.schema
    assert schema is not None
    size, letters = (
        data.size[0] if data.size else None,
        all(len(name) == 1 for name in schema.class_names),
    )
    epochs = max(7, min(60, PICTURES // schema.rows))
    flip = not letters or path.endswith(".npz")
    mirror = ", mirror: true" if flip else ""
    crop = min(schema.input_shape[1:]) // 14
    smoothing = "    label_smoothing: 0.1\n" if schema.task == "multiclass" else ""
    longer = (
        ""
        if epochs >= LONG
        else f" # three times as many and crop: {crop} get better, in three times the time"
    )
    return f"""\
# Pictures of {path}: {schema.rows} to train on, {len(schema.class_names)} classes.
# Written by `init`; it is yours to change. Each key is a flag, too: --model.net.width 32
seed_everything: 0
trainer:
  max_epochs: {epochs}{longer}
model:
  class_path: {MODELS[schema.task]} # {_targets(schema)}
  init_args:
    net: {{class_path: CNN, init_args: {{width: 40{mirror}}}}}
    optimizer: {{class_path: AdamW, init_args: {{weight_decay: 0.01}}}}
    scheduler: {{class_path: OneCycleLR, init_args: {{max_lr: 0.01}}}} # its length is filled in
    scheduler_interval: step
{smoothing}{_imbalance(schema)}data:
  class_path: Images
  init_args:
    path: {_scalar(path)}
    size: {"null # all are alike" if size is None else f"{size} # height and width that all are scaled to"}
    flip: {str(flip).lower()} # left to right; not for writing, or where the side means something
    crop: {crop if epochs >= LONG else 0} # pixels to shift pictures by; pays in long trainings
    batch_size: {min(128, batch_size(schema.rows))}
    val_fraction: {data.val_fraction} # of what has no folder val
    test_fraction: 0.15 # of what has no folder test
"""


def batch_size(rows: int) -> int:
    """About as many rows as TabM's authors take: more where there are more."""
    sizes = ((64, 8), (500, 32), (2_000, 64), (10_000, 128), (80_000, 256), (300_000, 512))
    return next((size for limit, size in sizes if rows < limit), 1024)


def patience(rows: int) -> int:
    """Epochs of about 700 steps together: many of a small table, a few of a large one."""
    return max(4, min(60, -(-700 * batch_size(rows) // rows)))


def _imbalance(schema: Schema) -> str:
    option = {
        "binary": "pos_weight",
        "multiclass": "class_weights",
        "multilabel": "pos_weight",
    }.get(schema.task)
    return (
        f"    # {option}: auto # rare ones count more: better recall, but probabilities that are too high\n"
        if option
        else ""
    )


def _targets(schema: Schema) -> str:
    if not schema.class_counts:
        return "numbers: " + ", ".join(schema.target_names)
    shares = [
        f"{name} {count / schema.rows:.1%}"
        for name, count in zip(schema.class_names, schema.class_counts, strict=True)
    ]
    return ", ".join(shares[:8]) + (", …" if len(shares) > 8 else "")


def _scalar(text: str) -> str:
    return (
        yaml.safe_dump(text, default_flow_style=True, allow_unicode=True, width=1000)
        .removesuffix("...\n")
        .strip()
    )
