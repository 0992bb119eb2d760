"""Training: early stopping, Trainer flags, accumulation, compiling, several processes, signals."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import processes
from conftest import ROOT, Cli, files_in
from proj.engine.runs.checkpoint_file import read_checkpoint, read_weights

LOGS = Path("lightning_logs")


def checkpoint(name: str = "version_0", which: str = "last") -> dict[str, Any]:
    return read_checkpoint(LOGS / name / "checkpoints" / f"{which}.ckpt")


def test_early_stopping_waits_for_its_patience(experiment: Any, cli: Cli) -> None:
    """Nothing counts as an improvement, so training stops when the patience is used up."""
    config = experiment(trainer={"max_epochs": 9})
    cli(
        "fit",
        "--config",
        config,
        "--early_stopping.patience",
        "2",
        "--early_stopping.min_delta",
        "1",
    )
    assert checkpoint()["epoch"] == 2
    cli("fit", "--config", config, "--early_stopping.patience", "null")
    assert checkpoint("version_1")["epoch"] == 8


def test_monitor_and_mode_default_to_the_task_and_can_be_set(experiment: Any, cli: Cli) -> None:
    def states(name: str) -> dict[str, Any]:
        return {key.split("{")[0]: state for key, state in checkpoint(name)["callbacks"].items()}

    config = experiment("regression", early_stopping={"patience": 5})
    cli("fit", "--config", config, "--name", "own")
    assert "'monitor': 'val/rmse', 'mode': 'min'" in str(list(checkpoint("own")["callbacks"]))
    cli("fit", "--config", config, "--name", "set", "--checkpoint.monitor", "val/r2")
    assert "Checkpoint{'monitor': 'val/r2', 'mode': 'max'" in str(
        list(checkpoint("set")["callbacks"])
    )
    assert "EarlyStopping{'monitor': 'val/r2', 'mode': 'max'" in str(
        list(checkpoint("set")["callbacks"])
    )


@pytest.mark.filterwarnings("ignore:You are trying to `self.log")  # what barebones means
@pytest.mark.parametrize(
    "flags",
    [
        ["--trainer.precision", "bf16-mixed"],
        ["--trainer.gradient_clip_val", "0.5"],
        ["--trainer.accumulate_grad_batches", "2"],
        ["--trainer.max_time", "00:00:00:30"],
        ["--trainer.profiler", "simple"],
        ["--trainer.deterministic", "true"],
        ["--trainer.max_steps", "7"],
        ["--trainer.val_check_interval", "2"],
        ["--trainer.limit_train_batches", "2"],
        ["--trainer.overfit_batches", "2"],
        ["--trainer.enable_checkpointing", "false"],
        ["--trainer.callbacks", "Timer"],
        [
            "--trainer.barebones",
            "true",
            "--trainer.enable_progress_bar",
            "null",
            "--trainer.enable_model_summary",
            "null",
        ],
    ],
    ids=lambda flags: " ".join(flags[:2]),
)
def test_the_trainers_flags_work(
    flags: list[str], experiment: Any, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = experiment()
    if "barebones" in flags[0]:
        monkeypatch.setattr("conftest.QUIET", [])
        config = experiment(trainer={"log_every_n_steps": None})
    cli("fit", "--config", config, *flags)
    assert json.loads((LOGS / "version_0/manifest.json").read_text())["status"] == "finished"
    torch.use_deterministic_algorithms(False)
    if flags[0] == "--trainer.max_steps":
        assert checkpoint()["global_step"] == 7
    if flags[0] == "--trainer.accumulate_grad_batches":
        assert checkpoint()["global_step"] == 2 * 3  # 6 batches an epoch
    assert (LOGS / "version_0/checkpoints").exists() == (
        flags[0] not in ("--trainer.enable_checkpointing", "--trainer.barebones")
    )


def test_a_profiler_prints_its_table(
    experiment: Any, caplog: pytest.LogCaptureFixture, cli: Cli
) -> None:
    """Lightning logs it at a level that is silenced for its other messages."""
    config = experiment(trainer={"max_epochs": 1})
    cli("fit", "--config", config, "--trainer.profiler", "simple")
    assert "run_training_epoch" in caplog.text
    assert caplog.text.count("Profiler Report") == 1


def test_overfitting_sees_the_same_batches_each_epoch(experiment: Any, cli: Cli) -> None:
    """With a learning rate of 0 the training loss can only change with the rows."""
    config = experiment(
        model={"optimizer": {"class_path": "SGD", "init_args": {"lr": 0.0}}},
        trainer={"max_epochs": 3},
    )

    def losses(name: str, *flags: str) -> set[float]:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        cli("fit", "--config", config, "--name", name, *flags)
        events = EventAccumulator(str(LOGS / name))
        events.Reload()
        return {e.value for e in events.Scalars("train/loss")}

    assert len(losses("overfit", "--trainer.overfit_batches", "2")) == 1
    assert len(losses("limited", "--trainer.limit_train_batches", "2")) == 3


def test_accumulated_batches_equal_one_large_batch(experiment: Any, cli: Cli) -> None:
    """Four batches of 21 make one step with all 84 training rows."""
    config = experiment(model={"optimizer": {"class_path": "SGD", "init_args": {"lr": 0.1}}})
    cli(
        "fit",
        "--config",
        config,
        "--data.batch_size",
        "21",
        "--trainer.accumulate_grad_batches",
        "4",
    )
    cli("fit", "--config", config, "--data.batch_size", "null")
    small, large = checkpoint(), checkpoint("version_1")
    assert small["global_step"] == large["global_step"] == 2
    for name, weight in large["state_dict"].items():
        assert torch.allclose(small["state_dict"][name], weight, atol=1e-6)


@pytest.mark.long
@pytest.mark.skipif(
    os.system("which g++ > /dev/null") != 0, reason="torch.compile needs a C++ compiler"
)
def test_a_compiled_net_learns_the_same_and_its_checkpoint_has_plain_names(
    experiment: Any, cli: Cli
) -> None:
    config = experiment()
    cli("fit", "--config", config)
    cli("fit", "--config", config, "--model.compile", "net")
    eager, compiled = checkpoint()["state_dict"], checkpoint("version_1")["state_dict"]
    assert eager.keys() == compiled.keys()
    assert all(torch.allclose(eager[name], compiled[name], atol=1e-5) for name in eager)
    cli("test", "--run", "version_1", "--model.compile", "none")
    for size in (
        "8",
        "4",
    ):  # In one process: torch.compile makes the batch size a symbol at the second size.
        cli("fit", "--config", config, "--model.compile", "net", "--data.batch_size", size)


def test_continuing_a_checkpoint_equals_uninterrupted_training(experiment: Any, cli: Cli) -> None:
    config = experiment()
    cli("fit", "--config", config, "--trainer.max_epochs", "4", "--name", "whole")
    cli("fit", "--config", config, "--trainer.max_epochs", "2", "--name", "half")
    cli(
        "fit",
        "--config",
        config,
        "--trainer.max_epochs",
        "4",
        "--ckpt_path",
        LOGS / "half/checkpoints/last.ckpt",
        "--name",
        "rest",
    )
    uninterrupted, resumed = checkpoint("whole"), checkpoint("rest")
    assert resumed["epoch"] == 3
    assert all(
        torch.equal(uninterrupted["state_dict"][k], resumed["state_dict"][k])
        for k in uninterrupted["state_dict"]
    )


def test_continuing_the_best_checkpoint_keeps_the_metrics_of_its_epoch(
    experiment: Any, cli: Cli
) -> None:
    """best.ckpt is written after the last batch of an epoch, and before the end of the epoch."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = experiment(model={"steps_per_execution": 2})
    seen = {}
    for name, flags in (
        ("whole", ["--trainer.max_epochs", "3"]),
        ("half", ["--trainer.max_epochs", "2", "--checkpoint.monitor", "val/loss"]),
        ("rest", ["--ckpt_path", LOGS / "half/checkpoints/best.ckpt"]),
    ):
        length = ["--trainer.max_epochs", "3"] if name == "rest" else []
        cli("fit", "--config", config, "--name", name, *flags, *length)
        events = EventAccumulator(str(LOGS / name)).Reload()
        seen[name] = {e.step: e.value for e in events.Scalars("train/loss")}
    assert checkpoint("half", "best")["epoch"] == 1
    assert seen["rest"] == {step: seen["whole"][step] for step in seen["rest"]}
    assert len(seen["rest"]) == 2
    state = [checkpoint(name)["callbacks"]["ResumeCheckpoint"] for name in ("whole", "rest")]
    assert state[0]["metrics"] == state[1]["metrics"]


def test_continuing_with_another_model_or_schedule_is_an_error(experiment: Any, cli: Cli) -> None:
    scheduler = {"class_path": "CosineAnnealingLR", "init_args": {"T_max": 2}}
    config = experiment(model={"scheduler": scheduler})
    cli("fit", "--config", config)
    continued = ["fit", "--config", config, "--ckpt_path", LOGS / "version_0/checkpoints/last.ckpt"]
    assert "optimizer.init_args.lr: 0.001 -> 0.5. Leave" in cli(
        *continued, "--model.optimizer.lr", "0.5", code=2
    )
    assert "max_epochs: 2 -> 4" in cli(*continued, "--trainer.max_epochs", "4", code=2)
    torch.save({"state_dict": {}}, "weights.ckpt")
    assert "got weights only" in cli(
        "fit", "--config", config, "--ckpt_path", "weights.ckpt", code=2
    )
    assert [p.name for p in LOGS.iterdir()] == ["version_0"]


def test_weights_of_a_file_with_a_state_dict(trained: Any, cli: Cli) -> None:
    """`torch.save(net.state_dict())` is how PyTorch users keep weights."""
    trained()
    state = checkpoint()["state_dict"]
    net = {name.removeprefix("net."): value for name, value in state.items()}
    torch.save(net, "net.pt")
    torch.save(dict(state), "model.pth")
    for file in ("net.pt", "model.pth"):
        args = ("--init_from", file, "--trainer.fast_dev_run", "true")
        printed = cli("fit", "--config", "experiment.yaml", *args)
        assert f"initialized from {len(state)} of {len(state)} tensors from {file}" in printed
    loaded = read_weights(Path("net.pt"))["state_dict"]
    assert all(torch.equal(loaded[name], value) for name, value in net.items())
    torch.save({"epoch": 3}, "other.pt")
    message = cli("fit", "--config", "experiment.yaml", "--init_from", "other.pt", code=2)
    assert (
        "other.pt cannot be read as a checkpoint: expected a tensor for epoch, got int" in message
    )


def test_training_without_a_validation_has_no_best_checkpoint_and_says_so(
    experiment: Any, cli: Cli
) -> None:
    config = experiment()
    with pytest.warns(UserWarning, match="no validation took place, so there is no best.ckpt"):
        cli("fit", "--config", config, "--trainer.max_steps", "3")
    message = cli("test", code=2)
    assert "expected a finished run in lightning_logs with a best.ckpt, got none; select" in message
    assert "version_0 is finished but has no best.ckpt: skipped" in message
    cli("test", "--ckpt_path", "last")


def test_the_preflight_leaves_no_trace_in_the_weights(experiment: Any, cli: Cli) -> None:
    """A plain training loop over the same loader, from the same seed, gives the same bits.

    It has no preflight, and the net has dropout, so the random generators matter.
    """
    from lightning.pytorch import seed_everything

    from proj.data.arrays import ArrayDataModule
    from proj.nets.mlp import MLP

    net_config = {"class_path": "MLP", "init_args": {"hidden": [8], "dropout": 0.5}}
    cli("fit", "--config", experiment(model={"net": net_config}))
    seed_everything(1, verbose=False)
    data = ArrayDataModule("data.npz", batch_size=16)
    data.setup("fit")
    net = MLP(data.schema, (8,), dropout=0.5)
    optimizer, loader = torch.optim.Adam(net.parameters(), fused=True), data.train_dataloader()
    for epoch in range(2):
        loader.set_epoch(epoch)
        for batch in loader:
            loss = torch.nn.functional.cross_entropy(net(batch.x), batch.y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    state = checkpoint()["state_dict"]
    assert all(torch.equal(state[f"net.{name}"], value) for name, value in net.state_dict().items())


TWO = ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--trainer.accelerator", "cpu"]


def run(*args: Any) -> str:
    done = processes.run("proj", *args)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def scores(name: str, verb: str) -> dict[str, float]:
    return {
        k: v["value"]
        for k, v in json.loads((LOGS / name / verb / "metrics.json").read_text()).items()
    }


@pytest.mark.long
def test_two_processes_train_and_agree_with_one_on_every_metric(experiment: Any, cli: Cli) -> None:
    """The sizes of the splits are odd, so the two processes get different numbers of rows."""
    import polars as pl

    config = experiment("multiclass", 121, data={"val_fraction": 0.16, "test_fraction": 0.14})
    run("fit", "--config", config, *TWO, "--trainer.enable_progress_bar", "false")
    assert [p.name for p in LOGS.iterdir()] == ["version_0"]
    run("test", "--trainer.enable_progress_bar", "false")  # on two processes, as the run records
    two, table = (
        scores("version_0", "test"),
        pl.read_parquet(LOGS / "version_0/test/predictions.parquet"),
    )
    one_device = ["--trainer.devices", "1", "--trainer.strategy", "auto"]
    cli("test", *one_device)
    assert scores("version_0", "test") == pytest.approx(two, abs=1e-6)
    alone = pl.read_parquet(LOGS / "version_0/test/predictions.parquet")
    assert alone["row"].equals(table["row"])
    assert alone["prediction"].equals(table["prediction"])
    # The validation within fit, on two processes, equals that of one process.
    state = next(
        v
        for k, v in checkpoint(which="best")["callbacks"].items()
        if k.startswith("BestCheckpoint")
    )
    cli("validate", *one_device)
    assert scores("version_0", "validate")["f1"] == pytest.approx(
        float(state["best_model_score"]), abs=1e-6
    )


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_with_its_exit_code_and_the_run_says_so(
    number: int, code: int, experiment: Any
) -> None:
    config = experiment(trainer={"max_epochs": 100000})
    with Path("errors.txt").open("w") as errors:
        process = processes.Process(
            "proj",
            "fit",
            "--config",
            config,
            "--trainer.enable_progress_bar",
            "false",
            stderr=errors,
        )
    end = time.monotonic() + 120
    while not (LOGS / "version_0/checkpoints/last.ckpt").exists() and time.monotonic() < end:
        time.sleep(0.1)
    process.send_signal(number)
    assert process.wait(60) == code
    assert "Traceback" not in Path("errors.txt").read_text()
    assert json.loads((LOGS / "version_0/manifest.json").read_text())["status"] == "stopped"
    read_checkpoint(LOGS / "version_0/checkpoints/last.ckpt")


@pytest.mark.long
def test_the_console_script_runs_an_experiment(work: Path) -> None:
    script = Path(sys.executable).parent / "proj"
    done = subprocess.run(
        [script, "check", "--config", str(ROOT / "configs/linnerud.yaml")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert files_in(work) == []


def test_lr_find_sets_the_learning_rate_of_the_run(experiment: Any, cli: Cli) -> None:
    config = experiment(rows=1000)
    said = cli("fit", "--config", config, "--lr_find", "--model.optimizer", "SGD")
    run = Path("lightning_logs/version_0")
    rate = yaml.safe_load((run / "config.yaml").read_text())["model"]["init_args"]["optimizer"][
        "init_args"
    ]["lr"]
    assert f"learning rate: {rate:.2g}" in said
    assert 1e-8 < rate < 1
    assert (run / "lr_find.png").read_bytes().startswith(b"\x89PNG")
    cli("fit", "--config", config, "--model.optimizer", "SGD", "--model.optimizer.lr", repr(rate))
    weights = [
        read_checkpoint(Path(f"lightning_logs/version_{i}/checkpoints/last.ckpt"))["state_dict"]
        for i in (0, 1)
    ]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    assert "expected one device" in cli(
        "fit", "--config", config, "--lr_find", "--trainer.devices", "2", code=2
    )
