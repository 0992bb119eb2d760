"""Loggers that an experiment names: beside TensorBoard, in `test`, and with the run's name."""

import csv
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonargparse import Namespace
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from conftest import Cli
from proj.engine.config.loggers import unusable
from proj.engine.runs.run import Run

RUN = Path("lightning_logs/a")
CSV = ["--trainer.logger", "CSVLogger", "--trainer.logger.save_dir"]

# A logger of a service that gives each run an identity. The names are those of MLflow's.
SERVICE = """
import json
import sys
from pathlib import Path
from lightning.pytorch.loggers import Logger


class MLFlowLogger(Logger):
    def __init__(self, run_name: str | None = None, run_id: str | None = None):
        super().__init__()
        self.run_name, self.version = run_name, run_id or "id-1"

    name, version = "service", None

    def write(self, **entry):
        with Path("service.jsonl").open("a") as file:
            file.write(json.dumps({"run": self.run_name, "id": self.version, **entry}) + "\\n")

    def log_metrics(self, metrics, step=None):
        self.write(step=step, metrics={name: float(value) for name, value in metrics.items()})

    def log_hyperparams(self, params, *_):
        self.write(params=dict(params))
"""


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as lines:
        return list(csv.DictReader(lines))


def test_a_named_logger_is_added_to_tensorboard(experiment: Any, cli: Cli) -> None:
    """A run with a logger of its own would have no curves in its folder and its report."""
    cli("fit", "--config", experiment(), "--name", "a", *CSV, "csvs")
    folder = Path("csvs/lightning_logs/version_0")
    events = EventAccumulator(str(RUN)).Reload()
    curve = [event.value for event in events.Scalars("val/loss")]
    logged = [float(row["val/loss"]) for row in rows(folder / "metrics.csv") if row["val/loss"]]
    assert logged == pytest.approx(curve)
    assert len(curve) == 2
    values = yaml.safe_load((folder / "hparams.yaml").read_text())
    assert values["model.net.hidden"] == "[8]"
    assert values["trainer.max_epochs"] == 2


def test_test_logs_to_the_logger_that_is_named(experiment: Any, cli: Cli) -> None:
    """The flag would be ignored. Metrics would be logged twice."""
    cli("fit", "--config", experiment(), "--name", "a")
    answer = cli("test", "--run", "a", *CSV, "tested")
    assert "no effect" not in answer
    assert "not as recorded" not in answer
    metrics = Run(RUN).metrics("test")
    logged = rows(Path("tested/lightning_logs/version_0/metrics.csv"))
    for name, value in (("f1", "value"), ("f1_low", "low")):
        (number,) = (row[f"test/{name}"] for row in logged if row[f"test/{name}"])
        assert float(number) == pytest.approx(metrics["f1"][value])


def test_a_logger_elsewhere_is_checked_where_it_is_used(
    experiment: Any, cli: Cli, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """No later verb could use the run, or `test` would write to a place that a run names."""
    outside = tmp_path_factory.mktemp("outside")
    cli("fit", "--config", experiment(), "--name", "a", *CSV, outside)
    for verb in ("validate", "predict"):
        cli(verb, "--run", "a")
    answer = cli("test", "--run", "a")
    assert "CSVLogger is not used, because it writes outside the working directory" in answer
    assert [folder.name for folder in (outside / "lightning_logs").iterdir()] == ["version_0"]
    cli("test", "--run", "a", "--trainer.logger.save_dir", outside)
    assert (outside / "lightning_logs/version_1/metrics.csv").is_file()


def test_the_run_of_a_service_goes_on_in_test_and_resume(experiment: Any, cli: Cli) -> None:
    """The metrics of the test split would be in another run of the service than the curves."""
    Path("own.py").write_text(SERVICE)
    cli("fit", "--config", experiment(), "--name", "a", "--trainer.logger", "[own.MLFlowLogger]")
    recorded = json.loads((RUN / "manifest.json").read_text())["loggers"]
    assert recorded == {"MLFlowLogger": "id-1"}
    source = Path("own.py").read_text().replace("id-1", "id-2")
    Path("own.py").write_text(source)
    cli("fit", "--resume", "a", "--trainer.max_epochs", "3")
    cli("test", "--run", "a")
    cli("test", "--run", "a", "--trainer.logger", "own.MLFlowLogger")  # no list, but the same
    entries = [json.loads(line) for line in Path("service.jsonl").read_text().splitlines()]
    assert {(entry["run"], entry["id"]) for entry in entries} == {("a", "id-1")}
    experiments = [entry["params"] for entry in entries if "model.net" in entry.get("params", {})]
    assert len(experiments) == 1
    tested = [entry["metrics"] for entry in entries if "test/f1" in entry.get("metrics", {})]
    assert len(tested) == 2


OWN_TEST = """
import torch
from proj.models import MulticlassClassifier


class Own(MulticlassClassifier):
    def test_step(self, batch, batch_idx):
        self.logger.experiment.add_scalar("own", 3.0, batch_idx)
        return super().test_step(batch, batch_idx)
"""


def test_a_module_finds_a_logger_in_test(experiment: Any, cli: Cli) -> None:
    """`self.logger` would be None in a test_step that logs images."""
    Path("own.py").write_text(OWN_TEST)
    config = experiment()
    config.write_text(config.read_text().replace('"MulticlassClassifier"', '"own.Own"'))
    cli("fit", "--config", config, "--name", "a")
    before = EventAccumulator(str(RUN)).Reload().Tags()["scalars"]
    cli("test", "--run", "a")
    after = EventAccumulator(str(RUN)).Reload()
    assert {*after.Tags()["scalars"]} == {*before, "own"}
    assert after.Scalars("own")[0].value == 3.0


@pytest.mark.parametrize(
    ("kind", "options", "reason"),
    [
        ("MLFlowLogger", {"tracking_uri": "sqlite:///mlflow.db"}, None),
        ("MLFlowLogger", {"tracking_uri": "sqlite:////tmp/mlflow.db"}, "it writes outside"),
        ("MLFlowLogger", {"tracking_uri": "sqlite:///../mlflow.db"}, "it writes outside"),
        ("MLFlowLogger", {"tracking_uri": "http://127.0.0.1:5000"}, None),
        ("MLFlowLogger", {"tracking_uri": "https://mlflow.example"}, "sends to mlflow.example"),
        ("MLFlowLogger", {"save_dir": "mlruns"}, None),
        ("WandbLogger", {"offline": True}, None),
        ("WandbLogger", {"offline": False}, "it sends to the service of WandbLogger"),
        ("WandbLogger", {"offline": True, "save_dir": "/elsewhere"}, "it writes outside"),
        ("CometLogger", {"api_key": "<not recorded>", "online": False}, "secrets"),
        ("CSVLogger", {"save_dir": "csv"}, None),
    ],
)
def test_what_test_sends_without_being_asked(
    kind: str, options: dict[str, Any], reason: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run folder of other people would have the report sent to their server."""
    monkeypatch.delenv("WANDB_MODE", raising=False)
    spec = Namespace(class_path=f"lightning.pytorch.loggers.{kind}", init_args=Namespace(**options))
    answer = unusable(spec)
    assert answer is None if reason is None else reason in str(answer)


def test_a_missing_package_is_one_sentence_and_test_goes_on(experiment: Any, cli: Cli) -> None:
    """A run could be tested only where the package of its logger is installed."""
    Path("own.py").write_text(SERVICE)
    cli("fit", "--config", experiment(), "--name", "a", "--trainer.logger", "own.MLFlowLogger")
    broken = "super().__init__(); raise ModuleNotFoundError('no package service')"
    Path("own.py").write_text(SERVICE.replace("super().__init__()", broken))
    del sys.modules["own"]
    answer = cli("test", "--run", "a")
    assert "MLFlowLogger is not used, because" in answer
    assert "no package service" in answer
    assert (RUN / "report.html").is_file()


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")  # of the packages of the loggers
def test_mlflow(experiment: Any, cli: Cli) -> None:
    """A run in MLflow would lack its name, curves, test metrics or files."""
    tracking = pytest.importorskip("mlflow.tracking", reason="mlflow is not installed")
    flags = ["--trainer.logger", "MLFlowLogger"]
    flags += ["--trainer.logger.tracking_uri", "sqlite:///mlflow.db"]
    cli("fit", "--config", experiment(), "--name", "a", *flags)
    cli("fit", "--resume", "a", "--trainer.max_epochs", "3")
    cli("test", "--run", "a")
    client = tracking.MlflowClient("sqlite:///mlflow.db")
    (experiment_id,) = (e.experiment_id for e in client.search_experiments() if e.name != "Default")
    (run,) = client.search_runs([experiment_id])
    assert run.info.run_name == "a"
    assert run.data.params["model.net.hidden"] == "[8]"
    assert len(client.get_metric_history(run.info.run_id, "val/loss")) == 3
    f1 = Run(RUN).metrics("test")["f1"]
    assert run.data.metrics["test/f1"] == pytest.approx(f1["value"])
    assert run.data.metrics["test/f1_low"] == pytest.approx(f1["low"])
    files = [artifact.path for artifact in client.list_artifacts(run.info.run_id)]
    assert files == ["best.ckpt", "config.yaml", "metrics.json", "report.html"]


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")  # of the packages of the loggers
def test_wandb_offline(experiment: Any, cli: Cli) -> None:
    """A run in W&B would lack its name, test metrics or files, or two runs would be mixed."""
    pytest.importorskip("wandb", reason="wandb is not installed")
    flags = ["--trainer.logger", "WandbLogger", "--trainer.logger.offline", "true"]
    cli("fit", "--config", experiment(), "--name", "a", *flags)
    cli("fit", "--config", experiment(), "--name", "b", *flags)
    cli("test", "--run", "a")
    ids = [
        json.loads((Path("lightning_logs") / name / "manifest.json").read_text()) for name in "ab"
    ]
    first, second = (manifest["loggers"]["WandbLogger"] for manifest in ids)
    assert first != second
    fit, test = sorted(Path("wandb").glob(f"offline-run-*-{first}/run-*.wandb"))
    for file, parts in (
        (fit, ("best.ckpt", "config.yaml", "val/loss")),
        (test, ("report.html", "test/f1_low")),
    ):
        content = file.read_bytes()
        assert all(part.encode() in content for part in parts), file
