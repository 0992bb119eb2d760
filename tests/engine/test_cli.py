"""The command line: output, error messages, exit codes, and the files it leaves."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import processes
from conftest import CONFIGS, ROOT, Cli, files_in, make_arrays
from proj.engine.cli import main
from proj.errors import UserError

WITHOUT_TORCH = (
    "import sys; from proj.engine.cli import main; code = main({args}); "
    "heavy = {{'torch', 'lightning', 'numpy'}} & set(sys.modules); "
    "sys.exit(f'imported: {{heavy}}' if heavy else code)"
)


@pytest.mark.parametrize(
    ("args", "code", "text"),
    [
        ([], 0, "usage:"),
        (["--help"], 0, "validate"),
        (["--version"], 0, "0."),
        (["tets"], 2, "Did you mean 'test'?"),
    ],
)
def test_help_version_and_mistyped_verbs_answer_without_torch(
    args: list[str], code: int, text: str
) -> None:
    """`--help` would take seconds, because it imports torch."""
    script = WITHOUT_TORCH.format(args=args)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == code, done.stderr
    assert text in done.stdout + done.stderr


def test_a_missing_extra_is_an_error_that_says_what_to_install(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the check, `tune` and `cv` end with a traceback where Optuna is not installed."""
    # The user's cache may hold the help of both, kept while Optuna was importable.
    monkeypatch.setenv("XDG_CACHE_HOME", str(work / "cache"))
    Path("without.py").write_text(
        "import processes, sys; processes.forget('proj', 'optuna'); sys.modules['optuna'] = None; "
        "from proj.engine.cli import main; "
        "sys.exit(main(['tune', '--help']) + main(['cv', '--help']))"
    )
    done = processes.run("without.py")
    assert done.returncode == 4, done.stderr
    for verb in ("tune", "cv"):
        assert f"error: {verb}: the package optuna is not installed; install" in done.stderr


@pytest.mark.long
def test_fit_imports_what_it_uses_and_nothing_else(experiment: Any, work: Path) -> None:
    """`fit` on split arrays would import scikit-learn or polars, which takes a second."""
    config = experiment()
    arrays = dict(np.load("data.npz"))
    np.savez(
        "data.npz",
        **{
            f"{name}_{split}": array
            for name, array in arrays.items()
            for split in ("train", "val", "test")
        },
    )
    script = (
        "import gc, sys; from proj.engine.cli import main; "
        f"code = main(['fit', '--config', {str(config)!r}]); "
        "assert gc.isenabled() and gc.get_freeze_count() > 100_000, 'modules are not frozen'; "
        "unused = {'sklearn', 'polars', 'tabm', 'rtdl_num_embeddings', 'optuna', 'pandas'}; "
        "unused |= {'matplotlib', 'scipy', 'transformers'}; "
        "unused &= set(sys.modules); sys.exit(f'imported: {unused}' if unused else code)"
    )
    done = subprocess.run(
        # Lightning warns of a SLURM that is installed.
        [sys.executable, "-W", "error::UserWarning", "-W", "ignore:The `srun`", "-c", script],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr


# Help lists all subclasses in memory. Some may be from modules that an earlier test has deleted.
@pytest.mark.filterwarnings(r"ignore:\s*Hit failing import")
def test_the_help_of_a_verb_lists_trainer_flags_and_our_options(cli: Cli) -> None:
    """A user could not find a flag or an option of a class."""
    text = cli("fit", "--help")
    for option in (
        "Train into a new run folder, or resume an existing run.",
        "--trainer.max_epochs",
        "--early_stopping.patience",
        "--checkpoint.monitor",
        "--init_from",
        "--name",
    ):
        assert option in text
    assert "--output" in cli("predict", "--help")
    assert "--run" in cli("test", "--help")
    assert "label_smoothing" in cli("fit", "--model.help", "MulticlassClassifier")
    assert "weight_decay" in cli("fit", "--model", "Regressor", "--model.optimizer.help", "AdamW")


def test_print_config_shows_the_resolved_experiment(cli: Cli) -> None:
    """A user could not see what a short class name or a flag resolves to."""
    text = cli(
        "fit",
        "--config",
        ROOT / "configs/digits.yaml",
        "--trainer.max_epochs",
        "3",
        "--print_config",
    )
    config = yaml.safe_load(text)
    assert config["model"]["init_args"]["net"]["class_path"] == "proj.nets.CNN"
    assert config["model"]["init_args"]["optimizer"]["class_path"] == "torch.optim.AdamW"
    assert config["trainer"]["max_epochs"] == 3


def test_config_files_merge_in_order_and_flags_win_wherever_they_stand(
    experiment: Any, cli: Cli
) -> None:
    """A setting on the command line or in the last file would be ignored."""
    Path("machine.yaml").write_text("trainer: {max_epochs: 7, log_every_n_steps: 5}")
    args = [
        "--trainer.log_every_n_steps",
        "9",
        "--data.path",
        "other.npz",
        "--config",
        experiment(),
        "--config",
        "machine.yaml",
    ]
    config = yaml.safe_load(cli("fit", *args, "--print_config"))
    assert config["trainer"]["max_epochs"] == 7
    assert config["trainer"]["log_every_n_steps"] == 9
    assert config["data"]["init_args"]["path"] == "other.npz"


WRONG_FLAGS = [
    (
        ["--trainer.max_epoch", "3"],
        "no option --trainer.max_epoch. Did you mean '--trainer.max_epochs'?",
    ),
    (["--epochs", "3"], "no option --epochs. Did you mean --trainer.max_epochs?"),
    (["--batch-size", "3"], "no option --batch-size. Did you mean --data.batch_size?"),
    (["--model.lr", "1"], "has no option 'lr'; did you mean model.optimizer.lr?"),
    (["--model.net.lr", "1"], "MLP has no option 'lr'; did you mean model.optimizer.lr?"),
    (["--trainer.max_epochs", "three"], "trainer.max_epochs: expected int or null, got three."),
    (
        ["--model.net.hiden", "[3]"],
        "model.net.hiden: MLP has no option 'hiden'. Did you mean 'hidden'?",
    ),
    (["--model.net.hidden", "abc"], "model.net.hidden: expected"),
    (
        ["--model.optimizer.lrr", "1"],
        "model.optimizer.lrr: Adam has no option 'lrr'. Did you mean 'lr'?",
    ),
    (["--model.optimizer.lr", "fast"], "model.optimizer.lr: expected float, got fast."),
    (
        ["--model.scheduler_interval", "stepp"],
        "model.scheduler_interval: expected 'step' or 'epoch', got stepp.",
    ),
    (["--model.net", "MPL"], "no class 'MPL' is known by that short name. Did you mean 'MLP'?"),
    # torch.nn.Tanh is as similar, but classes of this package come first.
    (["--model.net", "TabN"], "no class 'TabN' is known by that short name. Did you mean 'TabM'?"),
    (
        ["--model", "proj.models.classification.BinaryClasifier"],
        "Did you mean 'BinaryClassifier'?",
    ),
    (["--model.net", "nowhere.Net"], "there is no module nowhere"),
    (["--data.batch_size", "0"], "data.batch_size: expected a number from 1"),
    (
        ["--data.batch_size", "500"],
        "data.batch_size: expected at most 84 (84 training rows), got 500",
    ),
    (
        ["--data.path", "data.npy"],
        "expected an .npz file or a data set of scikit-learn, got data.npy",
    ),
    (["--data.path", "dta.npz"], "no file dta.npz. Did you mean 'data.npz'?"),
    (["--data.val_fraction", "0.6", "--data.test_fraction", "0.6"], "expected a sum below 1"),
    (
        ["--data.val_fraction", "0"],
        "checkpoint.monitor: expected a logged metric, got 'val/f1', but the val split has no rows",
    ),
    (
        ["--checkpoint.monitor", "val/f2"],
        "expected a metric that fit logs, got 'val/f2'. Did you mean 'val/f1'?",
    ),
    (
        ["--checkpoint.monitor", "val/acuracy", "--checkpoint.mode", "max"],
        "Did you mean 'val/accuracy'?",
    ),
    (
        ["--early_stopping.patience", "3", "--early_stopping.monitor", "val/los"],
        "Did you mean 'val/loss'?",
    ),
    (
        [
            "--model.net",
            "torch.nn.Linear",
            "--model.net.in_features",
            "6",
            "--model.net.out_features",
            "2",
        ],
        "net Linear: expected outputs of shape [16, 3] (3 classes), got [16, 2]",
    ),
    (
        [
            "--model.net",
            "torch.nn.Linear",
            "--model.net.in_features",
            "5",
            "--model.net.out_features",
            "3",
        ],
        "the first batch fails",
    ),
    (
        ["--model", "Regressor", "--model.net", "MLP"],
        "expected targets for the task regression, got multiclass",
    ),
    (
        ["--config", "experimnt.yaml"],
        "got experimnt.yaml, which does not exist. Did you mean 'experiment.yaml'?",
    ),
    (
        ["--ckpt_path", "nowhere.ckpt"],
        "no checkpoint nowhere.ckpt; expected a file that `fit` wrote.",
    ),
    (
        ["--init_from", "nothing"],
        "no run nothing in lightning_logs; expected a run's name or folder.",
    ),
    (["--seed_everything", "true"], "seed_everything: expected int, got"),
    (["--seed_everything", "-1"], "seed_everything: expected a number from 0 to 2**32 - 1, got -1"),
    (["--trainer.devices", "0"], "the Trainer cannot be built"),
    (["--trainer.strategy", "nope"], "the Trainer cannot be built"),
    (["--trainer.profiler", "foo"], "the Trainer cannot be built"),
    (["--trainer.accelerator", "gpu"], "the Trainer cannot be built"),
    (
        ["--trainer.val_check_interval", "100"],
        "`val_check_interval` (100) must be less than or equal to the number",
    ),
    (
        ["--trainer.callbacks+=BatchSizeFinder"],
        "trainer.callbacks: BatchSizeFinder is not supported",
    ),
    (
        ["--trainer.logger", "WandbLogger"],
        "error: trainer.logger: WandbLogger needs wandb>=",
    ),
    (
        ["--trainer.logger", "[MLFlowLogger]"],
        "error: trainer.logger: MLFlowLogger needs mlflow>=",
    ),
    (["--name", "a/b"], "--name: expected up to 100 letters"),
    (["stray"], "expected an option, --KEY VALUE, got stray."),
]


@pytest.mark.parametrize(
    ("flags", "message"), WRONG_FLAGS, ids=lambda v: " ".join(v) if isinstance(v, list) else ""
)
def test_wrong_flags_exit_2_with_one_message_and_no_folder(
    flags: Any, message: str, experiment: Any, cli: Cli
) -> None:
    """A mistake would show a traceback, name another key, or leave half a run."""
    config = experiment()
    before = files_in(Path.cwd())
    assert message in cli("fit", "--config", config, *flags, code=2)
    assert files_in(Path.cwd()) == before
    assert not Path("lightning_logs").exists()


WRONG_CONFIGS = [
    ("trainer: [", "is not valid YAML"),
    ("- 1", "expected the keys of an experiment"),
    (
        "trainer: {max_epoch: 3}",
        "trainer.max_epoch: no such key. Did you mean 'trainer.max_epochs'?",
    ),
    ("modle: {}", "no such key 'modle' in an experiment. Did you mean 'model'?"),
    ("model: null", "model: expected a section of keys and values, got None"),
    ("model: {init_args: {lr: 1}}", "model: expected class_path and init_args, got lr."),
    ("model: {class_path: Regressor}", "model.net: a value is required"),
    (
        "trainer: {max_epochs: 1}",
        "model: expected a class, got none; give an experiment, as in --config configs/",
    ),
    ("model: {class_path: Regresor}", "Did you mean 'Regressor'?"),
    ("name: zebra", "no such key 'name' in an experiment."),
    (
        "data: {init_args: {path: 2020-01-01}}",
        "got a date; put quotes around it",
    ),
    (
        "early_stopping: {patiense: 3}",
        "early_stopping.patiense: no such key. Did you mean 'early_stopping.patience'?",
    ),
]


@pytest.mark.parametrize(("text", "message"), WRONG_CONFIGS)
def test_wrong_configs_exit_2_with_one_message(text: str, message: str, cli: Cli) -> None:
    """A mistake in a file would show a traceback, name another key, or leave half a run."""
    Path("wrong.yaml").write_text(text)
    assert message in cli("fit", "--config", "wrong.yaml", code=2)
    assert files_in(Path.cwd()) == ["wrong.yaml"]


def test_labels_out_of_range_and_unseen_are_named(experiment: Any, cli: Cli) -> None:
    """A label that training has not seen would be counted as another class."""
    arrays = make_arrays("multiclass", 120)
    config = experiment()
    np.savez(
        "data.npz",
        x_train=arrays["x"],
        y_train=arrays["y"],
        x_test=arrays["x"][:4],
        y_test=np.array([0, 10, 77, 20]),
    )
    label = "class 77 has no training rows, but 1 test row, such as row 2; training has 0, 10, 20"
    assert label in cli("fit", "--config", config, code=2)


def test_an_empty_test_split_is_named(experiment: Any, cli: Cli) -> None:
    """`test` would report metrics of no rows."""
    cli("fit", "--config", experiment(data={"test_fraction": 0}))
    assert "the test split has no rows; expected at least one row, set data.test_fraction" in cli(
        "test", code=2
    )


def test_evaluating_without_a_run_says_what_to_do(cli: Cli, work: Path) -> None:
    """A new user would get a traceback, or a folder that is not a run."""
    for verb in ("test", "validate", "predict"):
        assert "no run in lightning_logs yet: expected a finished one; train first" in cli(
            verb, code=2
        )
    assert files_in(work) == []


def test_checkpoints_that_cannot_be_used_are_named(experiment: Any, cli: Cli) -> None:
    """Metrics would be those of another model, or of a damaged file."""
    cli("fit", "--config", experiment())
    best = Path("lightning_logs/version_0/checkpoints/best.ckpt")
    assert "best.ckpt: expected a checkpoint of" in cli("test", "--model.net.hidden", "[9]", code=2)
    assert "no checkpoint bst; expected best, last or a file" in cli(
        "test", "--ckpt_path", "bst", code=2
    )
    content = best.read_bytes()
    best.write_bytes(content[: len(content) // 2])
    assert "best.ckpt cannot be read as a checkpoint: it is cut off" in cli("test", code=2)
    best.unlink()
    assert "no checkpoint lightning_logs/version_0/checkpoints/best.ckpt" in cli(
        "test", "--run", "version_0", code=2
    )
    cli("test", "--ckpt_path", "last")
    assert not Path("lightning_logs/version_1").exists()


def test_a_hostile_checkpoint_is_not_executed(experiment: Any, cli: Cli) -> None:
    """Starting from a checkpoint's weights would run a command."""

    class Hostile:
        def __reduce__(self) -> Any:
            return os.system, ("touch canary",)

    torch.save({"state_dict": {}, "x": Hostile()}, "hostile.ckpt")
    cli("fit", "--config", experiment(), "--init_from", "hostile.ckpt", code=2)
    assert not Path("canary").exists()


def test_a_loss_that_is_not_finite_exits_3_and_keeps_the_last_good_checkpoint(
    experiment: Any, cli: Cli
) -> None:
    """A diverged training would look finished, or overwrite a good checkpoint."""
    optimizer = {"class_path": "SGD", "init_args": {"lr": 1e30}}
    config = experiment("regression", model={"optimizer": optimizer})
    assert "step 2 (epoch 0) gave a number that is not finite" in cli(
        "fit", "--config", config, code=3
    )
    manifest = json.loads(Path("lightning_logs/version_0/manifest.json").read_text())
    assert manifest["status"] == "failed"
    assert "none finished" in cli("test", code=2)
    # The only epoch had weights that are not finite.
    assert not Path("lightning_logs/version_0/checkpoints/best.ckpt").exists()


def test_debug_shows_the_traceback(experiment: Any) -> None:
    """A user could not see where an error was raised."""
    with pytest.raises(UserError):
        main(["fit", "--config", str(experiment()), "--data.path", "dta.npz", "--debug"])


def test_an_error_in_user_code_is_named_with_its_line(experiment: Any, cli: Cli) -> None:
    """An error in the user's own net would not say in which line it is."""
    Path("broken_net.py").write_text(
        "from torch import nn\n"
        "class Broken(nn.Linear):\n"
        "    def __init__(self):\n        super().__init__(6, 3)\n"
        "    def forward(self, x):\n        return x.nope\n"
    )
    args = ["fit", "--config", str(experiment()), "--model.net", "broken_net.Broken"]
    assert "(broken_net.py, line 6): 'Tensor' object has no attribute 'nope'" in cli(*args, code=2)
    with pytest.raises(UserError) as raised:  # --debug shows the whole traceback.
        main([*args, "--debug"])
    assert isinstance(raised.value.__cause__, AttributeError)
    assert not Path("lightning_logs").exists()


def test_a_net_with_lazy_layers_is_refused(experiment: Any, cli: Cli) -> None:
    """A checkpoint could not be loaded, as sizes would be known after the first batch only."""
    text = (
        "from torch import nn\nfrom proj.schema import Schema\n"
        "class Lazy(nn.Sequential):\n"
        "    def __init__(self, schema: Schema):\n"
        "        super().__init__(nn.LazyLinear(schema.num_outputs))\n"
    )
    Path("lazy_net.py").write_text(text)
    err = cli("fit", "--config", experiment(), "--model.net", "lazy_net.Lazy", code=2)
    assert "net Lazy: expected layers of known size, got lazy ones" in err


def test_fast_dev_run_leaves_nothing(experiment: Any, cli: Cli) -> None:
    """A trial run would leave a folder, or overwrite metrics and predictions."""
    config = experiment()
    before = files_in(Path.cwd())
    cli("fit", "--config", config, "--trainer.fast_dev_run", "true")
    assert files_in(Path.cwd()) == before
    cli("fit", "--config", config)
    cli("test")
    before = {path: Path(path).read_bytes() for path in files_in(Path.cwd())}
    for verb in ("test", "validate", "predict"):
        cli(verb, "--trainer.fast_dev_run", "true")
    assert {path: Path(path).read_bytes() for path in files_in(Path.cwd())} == before


def test_check_leaves_no_run_folder(cli: Cli) -> None:
    """A check would create a run, or not pass for a shipped experiment."""
    for config in CONFIGS:
        out = cli("check", "--config", config)
        assert "one batch of each stage runs without an error" in out
    assert "rows: 1257 train, 270 val, 270 test" in cli(
        "check", "--config", ROOT / "configs/digits.yaml"
    )
    assert not Path("lightning_logs").exists()


@pytest.mark.parametrize(
    ("args", "message", "imports_torch"),
    [
        (["--config", "nope.yaml"], "expected a YAML file, got nope.yaml", False),
        (["--config=wrong.yaml"], "no such key 'modle' in an experiment", False),
        ([], "", True),
        (["--config"], "expected one argument", True),
    ],
    ids=["missing", "wrong key", "none", "no value"],
)
def test_a_wrong_config_is_answered_without_importing_torch(
    args: list[str], message: str, imports_torch: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer to a mistyped file would take seconds; other answers come as before."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(Path("cache").resolve()))
    Path("wrong.yaml").write_text("modle: 1\n")
    program = (
        "import sys; from proj.engine.cli import main; "
        "code = main(['fit', *sys.argv[1:]]); print(code, 'torch' in sys.modules)"
    )
    command = [processes.REAL_PYTHON, "-c", program, *args]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["2", str(imports_torch)]
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
