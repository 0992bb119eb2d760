"""Where training starts, if not from nothing: from weights, or from a checkpoint that it goes on from."""

from pathlib import Path

from proj.engine.callbacks.best_checkpoint import InitialWeights
from proj.engine.config.experiment import ExperimentCLI, differences
from proj.engine.runs.run import find_run, read_checkpoint
from proj.errors import UserError


def initial_weights(cli: ExperimentCLI) -> list[InitialWeights]:
    """The run or checkpoint of ``--init_from``."""
    source = cli.option("init_from")
    if source is None:
        return []
    path = (
        Path(source) if source.endswith(".ckpt") else find_run(cli.root, source).checkpoint("best")
    )
    return [InitialWeights(read_checkpoint(path)["state_dict"], str(path))]


def checkpoint_to_continue(cli: ExperimentCLI) -> Path | None:
    """The checkpoint of ``fit --ckpt_path``, if it is one of this very model: its optimizer and schedule go on."""
    if (given := cli.option("ckpt_path")) is None:
        return None
    path = Path(given)
    checkpoint = read_checkpoint(path)
    if "loops" not in checkpoint or "optimizer_states" not in checkpoint:
        raise UserError(
            f"--ckpt_path: {path} holds weights only; start from them with --init_from."
        )
    before = checkpoint.get("config", cli.experiment)
    changes = differences(before["model"], cli.experiment["model"])
    changes = [
        line for line in changes if not line.startswith("init_args.compile:")
    ]  # the weights are interchangeable
    if getattr(cli.model, "scheduler", None) is not None:
        keys = ("max_epochs", "max_steps")  # a schedule's length
        lengths = [
            {key: config["trainer"][key] for key in keys} for config in (before, cli.experiment)
        ]
        changes += differences(lengths[0], lengths[1])
    if changes:
        raise UserError(
            f"--ckpt_path: training goes on with the model, optimizer and schedule of {path}, and these differ: "
            f"{'; '.join(changes)}. Leave the settings as they were, or use --init_from."
        )
    return path
