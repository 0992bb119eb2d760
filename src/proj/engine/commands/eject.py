"""Write the training of a run as one plain PyTorch script."""

import shlex
from pathlib import Path

import torch

from proj.data.base import DataModule
from proj.engine import console
from proj.engine.commands.fit import parse_experiment
from proj.engine.config.arguments import read_arguments
from proj.engine.config.experiment import ExperimentCLI
from proj.engine.config.parser import VerbParser
from proj.engine.deployment.eject import CHECKPOINTS, check_output, write_script
from proj.engine.deployment.eject_limits import check_repeatable
from proj.engine.runs.environment import environment, environment_changes
from proj.engine.runs.find import find_run
from proj.engine.runs.run import Run
from proj.engine.write_paths import check_links
from proj.errors import UserError

# More changes of the environment are counted only.
MAX_CHANGES = 4


def eject(args: list[str]) -> None:
    """Write the script of a run, and its prepared arrays beside it."""
    parser = VerbParser(
        "eject", "Write the training of a run as one PyTorch script without Lightning."
    )
    parser.add_argument(
        "run", nargs="?", help="name or folder of a run; default: the newest finished one"
    )
    parser.add_argument("--output", help="the .py file; default: train.py in the run folder")
    options = parser.parse_args(args)
    run = find_run(Path("lightning_logs"), options.run)
    run.require_trained()
    if run.manifest["status"] != "finished":
        raise UserError(
            f"eject: expected a finished run, got {run.path}, which is {run.manifest['status']}; "
            f"finish it with `fit --resume {run.path.name}`."
        )
    check_links(run.path)
    output = Path(options.output or run.path / "train.py")
    check_output(output)
    if missing := [name for name in CHECKPOINTS if not _has(run, name)]:
        raise UserError(
            f"eject: expected a run with {missing[0]}.ckpt, got {run.path} without it, so the "
            "script could not be compared with the run; train with checkpoints."
        )
    words = ["--config", str(run.path / "config.yaml")]
    cli, _ = parse_experiment(read_arguments(words, "fit"))
    check_repeatable(run, cli)
    _set_up_data(run, cli)
    script, data_file = write_script(run, cli, output)
    if changes := [*environment_changes(run.manifest, environment(torch.device("cpu")))]:
        more = f"; and {len(changes) - MAX_CHANGES} more" if len(changes) > MAX_CHANGES else ""
        console.warn(
            f"not as in the run: {'; '.join(changes[:MAX_CHANGES])}{more}: the script may end with "
            "other weights, and says so."
        )
    call = f"python {shlex.quote(str(script))}"
    console.say(f"script: {script}, with its data in {data_file.name}; run it: {call}")


def _set_up_data(run: Run, cli: ExperimentCLI) -> None:
    """Set up the data module; raise UserError if the data are not those of the run."""
    data = cli.datamodule
    assert isinstance(data, DataModule)
    data.prepare_data()
    data.setup("fit")
    if data.splits["train"].weight is not None:
        raise UserError(
            "data.weight: expected rows without weights, got weights, which a script does not "
            "repeat; `eject` does not write a script for this run."
        )
    recorded = run.manifest.get("data", "")
    if data.fingerprint != recorded:
        raise UserError(
            f"eject: expected the data of {run.path}, but they have changed (fingerprint "
            f"{recorded} -> {data.fingerprint}); restore them."
        )


def _has(run: Run, checkpoint: str) -> bool:
    return (run.path / "checkpoints" / f"{checkpoint}.ckpt").is_file()
