"""Write the training of a run as one plain PyTorch script, with its prepared arrays beside it."""

import builtins
import hashlib
import re
import symtable
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from lightning.pytorch import seed_everything
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn

from proj.data.loader import take
from proj.engine import PACKAGE
from proj.engine.config.experiment import ExperimentCLI
from proj.engine.deployment.eject_branches import Ran
from proj.engine.deployment.eject_data import describe_splits, splits_with_rows, stored_splits
from proj.engine.deployment.eject_limits import RANKING_METRICS
from proj.engine.deployment.eject_net import Trace, check_net, schema_text, trace_net
from proj.engine.deployment.eject_settings import (
    calibration_settings,
    loss_settings,
    net_class,
    optimizer_call,
    scheduler_settings,
    selection_settings,
    trainer_settings,
)
from proj.engine.deployment.eject_source import (
    ImportedName,
    Sources,
    global_names,
    import_lines,
)
from proj.engine.deployment.eject_values import call, init_args, name_of, options, plain
from proj.engine.runs import calibration
from proj.engine.runs.checkpoint_file import read_checkpoint
from proj.engine.runs.files import atomic_write
from proj.engine.runs.run import Run
from proj.errors import UserError
from proj.metrics.stage import ranking_areas
from proj.models.mixing import mix_images
from proj.models.module import to_inputs
from proj.schema import Tensors

TEMPLATES = Path(__file__).parent / "templates"
# What the template uses, by the name in the script.
IMPORTS: dict[str, ImportedName] = {
    "copy": ("copy", None, ""),
    "fnmatchcase": ("fnmatch", "fnmatchcase", "fnmatchcase"),
    "hashlib": ("hashlib", None, ""),
    "math": ("math", None, ""),
    "nn": ("torch", "nn", "nn"),
    "Path": ("pathlib", "Path", "Path"),
    "SimpleNamespace": ("types", "SimpleNamespace", "SimpleNamespace"),
    "torch": ("torch", None, ""),
}
# The checkpoints of a run, as the variables of the script are called.
CHECKPOINTS = ("last", "best")
# Rows to compute outputs with, to see what the net runs.
EXAMPLE_ROWS = 4


class Ejected(NamedTuple):
    """The files of an ejected run: the text of the script and what it loads."""

    script: str
    data: dict[str, Any]


def write_script(run: Run, cli: ExperimentCLI, output: Path) -> tuple[Path, Path]:
    """Write the script of a run and its data, and return both paths.

    Raises:
        UserError: the script cannot repeat the run, or its net has no source that can be taken.
    """
    data_file = output.with_name(f"{output.stem}_data.pt")
    ejected = eject(run, cli, data_file.name)
    output.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(data_file, lambda file: torch.save(ejected.data, file))
    atomic_write(output, lambda file: file.write(ejected.script.encode()))
    return output, data_file


def check_output(output: Path) -> None:
    """Raise UserError unless a new script may have this path."""
    if not re.fullmatch(r"[\w.-]+\.py", output.name):
        raise UserError(
            f"--output: expected a .py file, its name of letters, digits, dots, _ and -, got "
            f"{output}; choose another name."
        )
    if output.stem in {*sys.stdlib_module_names, "torch", "numpy"}:
        raise UserError(
            f"--output: expected a name that is no module which the script imports, got "
            f"{output.name}; choose another one."
        )
    beside = [output.with_name(f"{output.stem}_{kind}.pt") for kind in ("data", "weights")]
    for path in (output, *beside):
        if path.exists():
            raise UserError(
                f"--output: expected a new file, but {path} exists; delete it, or choose another "
                "name."
            )


def eject(run: Run, cli: ExperimentCLI, data_file: str) -> Ejected:
    """Return the script of a run and what it loads.

    Args:
        run: a finished run.
        cli: its experiment, with the data set up and the model as `fit` builds it.
        data_file: name of the file beside the script.
    """
    options, mixing = _augmentation(cli)[1], _mixing(cli)
    options |= {mix_images.__name__: mixing} if mixing else {}
    data, sources = cli.datamodule, Sources(Ran(), options)
    name, net, traced, x = _trace(cli, sources)
    settings = _settings(run, cli, sources)
    definitions = sources.definitions
    schema, values = schema_text(traced.read, definitions)
    stored = {"schema": values, **settings.pop("stored"), **stored_splits(data)}
    seeding = "\n".join(_seeding(sources))
    build = "\n".join(filter(None, [seeding, schema, net]))
    header = import_lines(_imports(f"{definitions}\n{build}", sources))
    weights = _weights(run)
    seed = cli.config.seed_everything
    check_net(f"{header}\n{definitions}\n{build}", stored, seed, cli.model.net, weights["last"], x)
    context = {
        **settings,
        "net_name": name,
        # Any text may be the name of a folder, but not end the docstring.
        "run": re.sub(r"[^\w.-]", "_", run.path.name),
        "package": PACKAGE,
        "data_file": data_file,
        "weights_file": data_file.replace("_data.pt", "_weights.pt"),
        "seed": seed,
        "described": [*describe_splits(stored)],
        "definitions": definitions,
        "seeding": seeding,
        "schema": schema,
        "net": net,
        "members": traced.training_dims == 3,
        "averages": traced.evaluation_dims == 3,
        "average": cli.model.average,
        "digests": {name: _digest(values) for name, values in weights.items()},
    }
    body = _render(context, "")
    _check_names(sources, _render({**context, "definitions": ""}, ""))
    return Ejected(_render(context, import_lines(_imports(body, sources))), stored)


def _trace(cli: ExperimentCLI, sources: Sources) -> tuple[str, str, Trace, Tensors]:
    """Build the net of the run, and add the source of its class.

    Returns the name of the class, the statement that builds the net, what ran, and a few rows.
    """
    model, data = cli.model, cli.datamodule
    takes_schema = not isinstance(model.net, nn.Module)
    build = net_class(cli, takes_schema)
    model.schema = data.schema
    with isolate_rng():
        # A class that takes the schema is called when the data are known.
        seed_everything(cli.config.seed_everything, verbose=False)
        model.configure_model()
    if model.schema.net_config:
        raise UserError(
            "model.net: expected a net with random initial weights, got "
            f"{type(model.net).__name__}, which reads them from a folder; `eject` does not write a "
            "script for this run."
        )
    rows = torch.arange(min(EXAMPLE_ROWS, data.rows("train")))
    x = to_inputs(take(data.splits["train"], rows).x, torch.float32)
    if not isinstance(x, Tensor | dict):
        raise UserError(
            "data: expected inputs that are one tensor or a dict of tensors, got several; `eject` "
            "does not write a script for this run."
        )
    traced = trace_net(build, model.schema if takes_schema else None, x, sources.ran)
    name = name_of(build.func, sources)
    values = init_args(cli.config.model.init_args.net)
    arguments = options(build.func, values, sources, "model.net")
    return name, call(name, ["schema"] * takes_schema + arguments, "net"), traced, x


def _seeding(sources: Sources) -> Iterator[str]:
    """Yield the statements that seed the generators: torch's, and those that the source imports."""
    for module, name, alias in sorted(sources.imports, key=str):
        if name is None and module == "random":
            yield f"{alias or module}.seed(SEED)"
        elif name is None and module == "numpy":
            yield f"{alias or module}.random.seed(SEED)"
    yield "torch.manual_seed(SEED)"


def _augmentation(cli: ExperimentCLI) -> tuple[partial[Tensor] | None, dict[str, dict[str, Any]]]:
    """Return the augmentation of training batches, and its options by the function's name."""
    function: partial[Tensor] | None = getattr(cli.datamodule, "augmentation", None)
    return function, {function.func.__name__: function.keywords} if function else {}


def _augment_call(cli: ExperimentCLI, sources: Sources) -> str:
    """Return the call that augments a training batch; an empty text without one."""
    augmentation, _ = _augmentation(cli)
    if augmentation is None:
        return ""
    values = [f"{key}={plain(value)}" for key, value in augmentation.keywords.items()]
    return call(sources.add(augmentation.func), ["x", *values])


def _mixing(cli: ExperimentCLI) -> dict[str, Any]:
    """Return the options of the mixtures of images; empty without mixtures."""
    values = {name: getattr(cli.model, name) for name in ("mixup", "cutmix")}
    return values if any(values.values()) else {}


def _mixing_call(cli: ExperimentCLI, sources: Sources, inputs: str) -> str:
    """Return the call that mixes the images of a batch; an empty text without one."""
    options = [f"{key}={plain(value)}" for key, value in _mixing(cli).items()]
    return call(sources.add(mix_images), [inputs, *options]) if options else ""


def _check_names(sources: Sources, script: str) -> None:
    """Raise UserError if what the net needs has a name that the script uses for something else."""
    symbols = symtable.symtable(script, "script", "exec").get_symbols()
    used = {symbol.get_name() for symbol in symbols if symbol.is_assigned()}
    used |= global_names(script) & {*dir(builtins), *IMPORTS}
    # `import torch.nn as nn` is what the script itself imports.
    known = {*IMPORTS.values(), ("torch.nn", None, "nn")}
    own = {*sources.texts, *(alias or m for m, name, alias in sources.imports - known)}
    if conflicts := sorted(own & used):
        raise UserError(
            f"eject: expected names that the script does not use itself, got {conflicts[0]} among "
            "those that the net needs; rename it."
        )


def _settings(run: Run, cli: ExperimentCLI, sources: Sources) -> dict[str, Any]:
    """Return the values of the template that depend on the settings of the run."""
    model, data = cli.model, cli.datamodule
    calibration.apply(model, run.checkpoint("best"))
    rows = data.rows("train")
    size = data.batch_size or rows
    preferred = model.evaluation_batch_size(take(data.splits["train"], torch.arange(2)).x)
    splits = splits_with_rows(data)
    most = max(len(split.row) for name, split in splits.items() if name != "train")
    loss = loss_settings(cli, sources)
    is_table = isinstance(data.splits["train"].x, dict)
    is_image = not is_table and data.splits["train"].x.dtype == torch.uint8
    names = ("class_weight", "positive_weight", "target_mean", "target_std", "target_limits")
    selection = selection_settings(cli)
    schedule = scheduler_settings(cli, sources, -(-rows // size))
    read = [value["metric"] for value in selection.values() if value] + [schedule["metric"]]
    if ranking := bool({*RANKING_METRICS} & {*read}):
        sources.add(ranking_areas)
    return {
        **loss,
        **{name: name in loss["constants"] for name in names},
        **trainer_settings(cli),
        **selection,
        **schedule,
        **calibration_settings(model),
        "task": model.task,
        "ranking": ranking,
        "optimizer": optimizer_call(cli, sources),
        "batch_size": size,
        "eval_batch_size": min(max(data.batch_size or most, preferred), most),
        "threads": (run.manifest.get("hardware") or {}).get("threads", torch.get_num_threads()),
        "freeze": [plain(pattern) for pattern in model.freeze_patterns],
        "learning_rates": plain(model.learning_rates) if model.learning_rates else "",
        "is_table": is_table,
        "inputs": (inputs := "x / 255" if is_image else "x"),
        "mix": _mixing_call(cli, sources, inputs),
        "augment": _augment_call(cli, sources),
        "shuffle": data.shuffle,
        "has_test": "test" in splits,
    }


def _imports(text: str, sources: Sources) -> set[ImportedName]:
    """Return what the text imports; the sources already name the packages that they need."""
    known = {alias or module for module, _, alias in sources.imports}
    used = global_names(text)
    return sources.imports | {IMPORTS[name] for name in IMPORTS if name in used - known}


def _weights(run: Run) -> dict[str, dict[str, Tensor]]:
    """Return the weights of the net in each checkpoint of the run."""
    states = {name: read_checkpoint(run.checkpoint(name))["state_dict"] for name in CHECKPOINTS}
    return {
        name: {
            key.removeprefix("net."): value
            for key, value in state.items()
            if key.startswith("net.")
        }
        for name, state in states.items()
    }


def _digest(weights: dict[str, Tensor]) -> str:
    content = b"".join(values.numpy().tobytes() for values in weights.values())
    return hashlib.sha256(content).hexdigest()


def _render(context: dict[str, Any], imports: str) -> str:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("script.py.j2").render(**context, imports=imports)
