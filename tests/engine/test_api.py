"""Training from Python: `proj.fit` and `proj.load`, in scripts and in notebooks."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

import processes
import proj
from conftest import Cli, files_in
from proj.engine.api import fit
from proj.engine.runs.checkpoint_file import read_checkpoint
from proj.engine.runs.run import Run
from proj.errors import TrainingError, UserError

QUIET = {"trainer.enable_progress_bar": False, "trainer.enable_model_summary": False}


@pytest.fixture
def churn_rows() -> pl.DataFrame:
    """A table that a linear model learns, in ``churn.csv``; returns its rows without the target."""
    rng = np.random.default_rng(0)
    months = rng.integers(1, 60, 200)
    city = rng.choice(["Bergen", "Oslo"], 200)
    churned = np.where(months + 10 * (city == "Oslo") < 30, "yes", "no")
    table = pl.DataFrame({"months": months, "city": city, "churned": churned})
    table.write_csv("churn.csv")
    return table.drop("churned")


def test_the_example_of_the_guide(churn_rows: pl.DataFrame, cli: Cli) -> None:
    """The guide's lines would not work, or would predict numbers in place of the user's labels."""
    cli("init", "churn.csv", "--target", "churned")
    frame = churn_rows

    run = proj.fit("configs/churn.yaml", {"trainer.max_epochs": 5}, name="quick")
    f1 = run.metrics("test")["f1"]
    predictions = proj.load(run).predict(frame)

    assert run == Run(Path("lightning_logs/quick"))
    assert f1["low"] <= f1["value"] <= f1["high"]
    assert run.config["trainer"]["max_epochs"] == 5
    assert set(predictions["prediction"]) <= {"no", "yes"}
    assert (run.path / "report.html").is_file()


def test_it_trains_the_same_bits_as_the_verb(experiment: Any, cli: Cli) -> None:
    """A run from Python would differ from one of the command line, or could not be repeated."""
    config = experiment()
    cli("fit", "--config", config, "--trainer.max_epochs", "3", "--name", "verb")
    cli("test")
    run = proj.fit(config, {"trainer.max_epochs": 3, **QUIET}, name="python")
    verb = Run(Path("lightning_logs/verb"))
    assert run.metrics("test") == verb.metrics("test")
    ours, theirs = (read_checkpoint(item.checkpoint("last"))["state_dict"] for item in (run, verb))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert run.config == verb.config
    assert run.manifest["command"][:3] == ["fit", "--config", str(config)]


def test_overrides_are_the_flags_of_the_command_line(experiment: Any) -> None:
    """A kind of value (null, list, section, class, number) would not reach the experiment."""
    path = Path("machine.yaml")
    path.write_text("trainer: {max_epochs: 9, log_every_n_steps: 7}")
    overrides = {
        "trainer.max_epochs": 1,
        "model.net": {"class_path": "MLP", "init_args": {"hidden": [4, 4], "dropout": 0.25}},
        "model.optimizer": "SGD",
        "model.optimizer.lr": 1e-5,
        "data.predict_path": None,
        "data.shuffle": False,
        **QUIET,
    }
    run = proj.fit([experiment(), path], overrides, test=False)
    config = run.config
    assert config["trainer"]["max_epochs"] == 1
    assert config["trainer"]["log_every_n_steps"] == 7
    net = config["model"]["init_args"]["net"]
    assert net["class_path"] == "proj.nets.MLP"
    assert (net["init_args"]["hidden"], net["init_args"]["dropout"]) == ([4, 4], 0.25)
    optimizer = config["model"]["init_args"]["optimizer"]
    assert optimizer["class_path"] == "torch.optim.SGD"
    assert optimizer["init_args"]["lr"] == 1e-5
    assert config["data"]["init_args"]["predict_path"] is None
    assert config["data"]["init_args"]["shuffle"] is False
    assert not (run.path / "test").exists()


def test_data_without_a_test_split_are_not_tested(experiment: Any) -> None:
    """A training without a test split would end in an error, after all its epochs."""
    run = proj.fit(experiment(data={"test_fraction": 0}), QUIET)
    assert run.manifest["status"] == "finished"
    assert not (run.path / "test").exists()


def test_without_validation_the_last_checkpoint_is_tested(experiment: Any) -> None:
    """A run that has no best checkpoint would raise an error after training."""
    overrides = {
        "data.val_fraction": 0,
        "checkpoint.monitor": "train/loss",
        "trainer.limit_val_batches": 0,
        **QUIET,
    }
    run = proj.fit(experiment(), overrides)
    assert run.metrics("test")["accuracy"]["value"] is not None


MISTAKES: list[tuple[dict[str, Any], str]] = [
    (
        {"trainer.max_epoch": 3},
        "no option --trainer.max_epoch. Did you mean '--trainer.max_epochs'?",
    ),
    ({"model.net": "MPL"}, "no class 'MPL' is known by that short name. Did you mean 'MLP'?"),
    ({"model.net.hidden": object()}, "model.net.hidden: expected a plain value"),
    ({"model.net": type("Inner", (), {"__qualname__": "f.<locals>.Inner"})}, "define it outside"),
    ({"trainer.fast_dev_run": True}, "trainer.fast_dev_run: expected false"),
    ({"resume": "version_0"}, "resume: expected a new run"),
    ({"name": "a/b"}, "--name: expected up to 100 letters"),
]


@pytest.mark.parametrize(("overrides", "message"), MISTAKES, ids=lambda value: str(value)[:40])
def test_mistakes_are_user_errors_and_leave_nothing(
    overrides: dict[str, Any], message: str, experiment: Any
) -> None:
    """A mistake would end Python with an exit code, or leave half a run."""
    config = experiment()
    before = files_in(Path.cwd())
    with pytest.raises(UserError) as raised:
        proj.fit(config, overrides)
    assert message in str(raised.value)
    assert files_in(Path.cwd()) == before


def test_failed_training_raises_training_error(
    experiment: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failure in training would end the notebook's kernel or be taken for a mistake."""

    def train(*args: Any) -> None:
        raise TrainingError("the loss is not finite")

    monkeypatch.setattr("proj.engine.commands.fit.train", train)
    with pytest.raises(TrainingError):
        proj.fit(experiment())


def test_ctrl_c_is_a_keyboard_interrupt(experiment: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in a notebook would look like `exit()`."""
    config = experiment()
    for code, error in ((130, KeyboardInterrupt), (143, SystemExit)):

        def train(*args: Any, code: int = code) -> None:
            raise SystemExit(code)

        monkeypatch.setattr("proj.engine.commands.fit.train", train)
        with pytest.raises(error):
            proj.fit(config)


def test_load_takes_a_run_a_name_a_folder_and_a_file(experiment: Any) -> None:
    """One of the four ways to name a model would load another model, or none."""
    run = proj.fit(experiment(), QUIET, test=False)
    rows = np.load("data.npz")["x"][:5]
    expected = proj.load(run).predict(rows)
    for source in ("version_0", run.path, str(run.path), run.checkpoint("best")):
        assert proj.load(source).predict(rows).equals(expected)
    with pytest.raises(UserError, match="no run version_7"):
        proj.load("version_7")


# What a user has in the first cells of a notebook; `proj` is imported there.
CELLS = """
import logging, sys
import lightning.pytorch.cli
from jsonargparse import ArgumentParser, _common, _optionals
from torch import nn

def process():
    return (
        dict(_common.parsing_settings), _optionals._config_read_mode, list(warnings.filters),
        [logging.getLogger(name).level for name in ("lightning.pytorch", "lightning.fabric")],
    )

# The server of these tests has restricted the imports already.
_common.parsing_settings.update(import_path_verdicts={}, import_paths_enforced=False)
from proj.engine import lightning_internals
lightning_internals._object_checks.clear()

before = process()
import proj
assert process() == before

class Net(nn.Module):
    def __init__(self, schema: "proj.schema.Schema", width: int = 4):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(schema.num_features, width), nn.Linear(width, schema.num_outputs)
        )

    def forward(self, x):
        return self.layers(x)

net = {"class_path": Net, "init_args": {"width": 5}} if WHOLE else Net
width = {} if WHOLE else {"model.net.width": 5}
run = proj.fit("experiment.yaml", {"model.net": net, **width, **QUIET})
assert run.config["model"]["init_args"]["net"] == {
    "class_path": "__main__.Net", "init_args": {"width": 5}
}
assert len(proj.load(run).predict([[0.0] * 6] * 3)) == 3
assert process()[:2] + process()[3:] == before[:2] + before[3:]
parser = ArgumentParser(exit_on_error=False)
parser.add_argument("--kind", type=type)
assert parser.parse_args(["--kind", "fractions.Fraction"]).kind.__name__ == "Fraction"
"""


@pytest.mark.parametrize("whole", [True, False], ids=["a section", "the class"])
def test_a_net_of_a_notebook_trains_and_the_process_is_as_before(
    whole: bool, experiment: Any, cli: Cli
) -> None:
    """A class of the notebook would be refused, or the user's own parsers would refuse theirs."""
    experiment()
    options = f"import warnings; QUIET = {QUIET}; WHOLE = {whole}"
    Path("notebook.py").write_text(options + CELLS)
    done = processes.run("notebook.py")
    assert done.returncode == 0, done.stderr
    message = cli("test", code=2)
    assert "model.net: Net was defined in a notebook or a script, which is not this one" in message
    with pytest.raises(UserError, match=r"move it into a file, as in my_nets\.Net"):
        proj.load("version_0")


OPTIMIZER = """
import torch


class Lion(torch.optim.SGD):
    def __init__(self, params, lr=0.1):  # without types, as most optimizers are written
        super().__init__(params, lr=lr)
"""


def test_packages_of_others_are_allowed_for_one_call(experiment: Any) -> None:
    """A model with an optimizer of another package could be trained, but not loaded."""
    Path("elsewhere/lions").mkdir(parents=True)
    Path("elsewhere/lions/__init__.py").write_text(OPTIMIZER)
    sys.path.insert(0, str(Path("elsewhere").absolute()))
    config = experiment(model={"optimizer": {"class_path": "lions.Lion", "init_args": {"lr": 0.1}}})
    try:
        with pytest.raises(UserError, match="lions"):
            proj.fit(config, QUIET)
        run = proj.fit(config, QUIET, allow=["lions"], test=False)
        with pytest.raises(UserError, match="lions"):
            proj.load(run)
        assert len(proj.load(run, allow=["lions"]).predict([[0.0] * 6])) == 1
        with pytest.raises(UserError, match="--allow: expected a package"):
            proj.load(run, allow=["not a package"])
    finally:
        del sys.path[0], sys.modules["lions"]


SCRIPT = """
import warnings
warnings.simplefilter("error", UserWarning)
import proj
run = proj.fit("experiment.yaml", {overrides})
print(proj.load(run).predict([[0.0] * 6])["prediction"][0])
print(run.metrics("test")["accuracy"]["value"])
"""

# A notebook has no file and runs its cells inside an event loop.
NOTEBOOK = """
import __main__, asyncio
del __main__.__file__
async def cell():
    exec({script!r}, {{"__name__": "__main__"}})
asyncio.run(cell())
"""


@pytest.mark.parametrize("kind", ["script", "notebook"])
def test_a_script_without_main_guard_and_a_notebook(kind: str, experiment: Any) -> None:
    """A script or a notebook would start itself again, print warnings, or not train at all."""
    experiment()
    script = SCRIPT.format(overrides=QUIET)
    text = script if kind == "script" else NOTEBOOK.format(script=script)
    Path("script.py").write_text(text)
    done = processes.run("script.py")
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    label, accuracy = done.stdout.splitlines()[-2:]
    assert label in ("0", "10", "20")
    run = Run(Path("lightning_logs/version_0"))
    assert float(accuracy) == run.metrics("test")["accuracy"]["value"]
    assert run.manifest["status"] == "finished"


def test_public_names_are_imported_when_they_are_used() -> None:
    """`import proj` would take seconds, or a public name would be missing."""
    Path("names.py").write_text(
        """
import sys, processes
torch = {name: module for name, module in sys.modules.items() if name.split(".")[0] == "torch"}
processes.forget("proj", "torch")
import proj
assert "torch" not in sys.modules
sys.modules.update(torch)
assert set(proj.__all__) <= set(dir(proj)); assert proj.__version__
[getattr(proj, name) for name in proj.__all__]
assert proj.nets.__name__ == "proj.nets"; assert not hasattr(proj, "nothing")
"""
    )
    done = processes.run("names.py")
    assert done.returncode == 0, done.stderr
    assert proj.fit is fit
