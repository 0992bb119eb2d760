"""The verb init: look at the data and write a complete experiment for them."""

import argparse
import re
from pathlib import Path
from typing import Any

import yaml

from proj import console
from proj.data import tables
from proj.data.base import Finding, SplitData
from proj.data.doctor import examine
from proj.data.tabular import Tabular
from proj.errors import UserError
from proj.metrics import MONITOR
from proj.run import write
from proj.schema import Schema, Task

MODELS: dict[Task, str] = {
    "binary": "BinaryClassifier",
    "multiclass": "MulticlassClassifier",
    "multilabel": "MultilabelClassifier",
    "regression": "Regressor",
}


def init(args: list[str]) -> None:
    """Write ``configs/NAME.yaml`` for a table or a folder of pictures, and print what the data are."""
    given = _arguments(args)
    output = Path(given.output or f"configs/{_name(given.data)}.yaml")
    if output.exists() and not given.force:
        raise UserError(f"there is a file {output} already; name another with --output, or overwrite it with --force.")
    data = _open(given)
    data.prepare_data()
    data.setup("fit")
    console.show_data(data)
    findings = examine(data)
    console.show_findings(findings, given.strict)
    text = table_experiment(data, given, findings)
    write(output, lambda file: file.write(text.encode()))
    console.say(f"written: {output}")
    console.say(f"train: python -m {__package__} fit --config {output}")


def _arguments(args: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(f"python -m {__package__} init", description=init.__doc__, allow_abbrev=False)
    parser.add_argument("data", help="a .csv, .tsv, .txt or .parquet file, a glob of them, or a folder of pictures")
    parser.add_argument("--target", help="the column to predict, or several with commas between them")
    parser.add_argument("--task", choices=list(MODELS), help="what the targets are, if it is not what they seem")
    parser.add_argument("--output", help="the file to write; configs/NAME.yaml if not given")
    parser.add_argument("--force", action="store_true", help="overwrite the file")
    parser.add_argument("--strict", action="store_true", help="findings about the data are errors")
    parser.error = _refuse  # type: ignore[method-assign]
    given = parser.parse_args(args)
    if given.target and "," in given.target:
        given.target = given.target.split(",")
    return given


def _refuse(message: str) -> Any:
    raise UserError(f"init: {message}.")


def _name(path: str) -> str:
    """A name for the experiment, from the file's or folder's."""
    stem = Path(path).stem if "*" not in Path(path).name else Path(path).parent.name
    return re.sub(r"\W+", "_", stem).strip("_").lower() or "experiment"


def _open(given: argparse.Namespace) -> SplitData:
    if given.target is None:
        names = tables.scan(tables.files_of(given.data, "DATA")).collect_schema().names()
        raise UserError(f"--target: expected a column of {given.data}, got none; it has {', '.join(names[:30])}.")
    return Tabular(given.data, given.target, task=given.task)


def table_experiment(data: SplitData, given: argparse.Namespace, findings: list[Finding]) -> str:
    """The YAML, with the reasons for what is not obvious."""
    schema = data.schema
    assert schema is not None
    assert isinstance(data, Tabular)
    rows = schema.rows
    dropped = [re.match(r"column (.+) is left out, (.+)", f.what) for f in data.findings]
    target = _scalar(given.target) if isinstance(given.target, str) else f"[{', '.join(map(_scalar, given.target))}]"
    columns = (
        "".join(f"\n      {_scalar(m[1])}: drop # {m[2]}" for m in dropped if m)
        or " {} # NAME: number, category, date or drop"
    )
    return f"""\
# {target} from the other columns of {given.data}: {rows} training rows, {len(schema.columns)} inputs.
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
    path: {_scalar(given.data)}
    target: {target}
    task: {schema.task} # {_targets(schema)}
    columns:{columns}
    batch_size: {batch_size(rows)}
    val_fraction: 0.15
    test_fraction: 0.15 # or give rows of their own: test_path: FILE
    # group: COLUMN # where one thing has several rows, keep them in one part
    # time: COLUMN # where the future is to be told from the past, test on the latest rows
checkpoint:
  monitor: val/loss # smoother than {MONITOR[schema.task]}
early_stopping:
  patience: {patience(rows)} # epochs
"""


def batch_size(rows: int) -> int:
    """About as many rows as TabM's authors take: more where there are more."""
    return next((size for limit, size in ((2_000, 64), (10_000, 128), (80_000, 256), (300_000, 512)) if rows < limit), 1024)


def patience(rows: int) -> int:
    """Epochs of about 900 steps together: many of a small table, a few of a large one."""
    return max(4, min(60, -(-900 * batch_size(rows) // rows)))


def _imbalance(schema: Schema) -> str:
    option = {"binary": "pos_weight", "multiclass": "class_weights", "multilabel": "pos_weight"}.get(schema.task)
    return (
        f"    # {option}: auto # rare ones count more: better recall, but probabilities that are too high\n"
        if option
        else ""
    )


def _targets(schema: Schema) -> str:
    if not schema.class_counts:
        return "numbers: " + ", ".join(schema.target_names)
    shares = [
        f"{name} {count / schema.rows:.1%}" for name, count in zip(schema.class_names, schema.class_counts, strict=True)
    ]
    return ", ".join(shares[:8]) + (", …" if len(shares) > 8 else "")


def _scalar(text: str) -> str:
    return yaml.safe_dump(text, default_flow_style=True, allow_unicode=True, width=1000).removesuffix("...\n").strip()
