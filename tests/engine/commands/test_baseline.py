"""The verb `baseline`, and the other verbs on the runs that it writes."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from conftest import Cli, Trained
from proj.engine.baselines import fitting
from proj.engine.predictor import load
from proj.engine.runs.find import find_run
from proj.engine.runs.run import Run
from proj.errors import UserError

LOGS = Path("lightning_logs")


@pytest.fixture(autouse=True)
def only_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the optional packages: the quick tests are the same wherever they run."""
    optional = ("lightgbm", "xgboost", "catboost")
    monkeypatch.setattr(fitting, "find_spec", lambda name: None if name in optional else object())


def test_a_run_is_compared_with_its_baselines(trained: Trained, cli: Cli) -> None:
    """`test`, `report`, `runs` and `compare` read them; the newest run is still the net's."""
    trained()
    before = cli("test")
    assert "compare with standard learners: python -m proj baseline --run version_0" in before
    output = cli("baseline", "--run", "version_0")
    assert "LightGBM, XGBoost, CatBoost: not installed; python -m pip install" in output
    assert "best on the validation split: version_0_" in output
    assert find_run(LOGS, None).path.name == "version_0"
    tested = cli("test")
    assert "run: lightning_logs/version_0" in tested
    line = next(line for line in tested.splitlines() if "the best baseline (" in line)
    verdict, _, result = line.partition(": ")
    assert verdict.split(" the best")[0] in (
        "better than",
        "worse than",
        "not significantly different from",
    )
    best = next(line for line in output.splitlines() if line.startswith("best on")).split()[-1]
    table = cli("compare", best, "version_0")
    row = next(line for line in table.splitlines() if line.startswith("f1 ")).split()
    # `compare` adjusts p for several runs, of which there is one here.
    other, own, difference, low, _, high, p = row[1:8]
    assert f"f1 {own} vs {other}, difference {difference} [{low}, {high}]" in result
    assert result.endswith(f"p {'<' if p == '<' else '='} {row[8] if p == '<' else p}")
    report = (LOGS / "version_0" / "report.html").read_text()
    for title in ("Leaderboard", "HistGradientBoosting", "linear model", "constant", "this run"):
        assert title in report
    listed = cli("runs", "--where", "baseline=linear")
    assert "version_0_linear" in listed
    assert "1 run in" in listed
    cli("report", "version_0_linear")
    page = (LOGS / "version_0_linear" / "report.html").read_text()
    assert "baseline --run version_0" in page
    assert "Leaderboard" in page


def test_verbs_that_need_a_checkpoint_refuse_a_baseline(trained: Trained, cli: Cli) -> None:
    """Each says what the run is, in place of a missing file or an unknown class."""
    trained()
    cli("baseline", "--run", "version_0", "--name", "a")
    for words in (
        ["test", "--run", "a_linear"],
        ["validate", "--run", "a_linear"],
        ["predict", "--run", "a_linear"],
        ["export", "--run", "a_linear"],
        ["fit", "--resume", "a_linear"],
        ["fit", "--config", "experiment.yaml", "--init_from", "a_linear"],
        ["reproduce", "a_linear"],
        ["eject", "a_linear"],
        ["baseline", "--run", "a_linear"],
    ):
        message = cli(*words, code=2)
        assert "expected a run that `fit` trained, got a baseline (linear model)" in message, words
    with pytest.raises(UserError, match="got a baseline"):
        load("a_linear")
    message = cli("fit", "--config", LOGS / "a_linear" / "config.yaml", code=2)
    assert "expected an experiment, got the config of a baseline" in message
    assert "complete" in cli("fit", "--resume")  # the newest run that was trained


def test_mistakes_are_one_message(
    experiment: Callable[..., Path], cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is fitted before the names of the runs are known to be free."""
    config = experiment()
    assert "expected --config FILE or --run RUN, got neither" in cli("baseline", code=2)
    both = cli("baseline", "--config", config, "--run", "version_0", code=2)
    assert "expected --config FILE or --run RUN, got both" in both
    cli("baseline", "--config", config, "--name", "a")
    again = cli("baseline", "--config", config, "--name", "a", code=2)
    assert "--name: expected a new name" in again
    assert "--name: expected up to 100 letters" in cli(
        "baseline", "--config", config, "--name", "../a", code=2
    )
    no_rows = ["--data.val_fraction", "0", "--data.test_fraction", "0"]
    assert "got neither a test split nor a val split" in cli(
        "baseline", "--config", config, *no_rows, code=2
    )


def test_without_validation_rows_nothing_is_chosen(
    experiment: Callable[..., Path], cli: Cli
) -> None:
    """The learners keep their defaults, and no best one is named."""
    config = experiment("binary", data={"val_fraction": 0.0})
    output = cli("baseline", "--config", config, "--name", "a")
    assert "best on" not in output
    settings = yaml.safe_load((LOGS / "a_linear" / "config.yaml").read_text())
    assert settings["model"]["init_args"]["C"] == 1.0
    assert not (LOGS / "a_linear" / "validate").exists()
    assert Run(LOGS / "a_linear").metrics("test")["f1"]["value"] is not None


@pytest.mark.long
def test_a_damaged_or_other_baseline_is_left_out(trained: Trained, cli: Cli) -> None:
    """It must not stop `test`, and one of other rows must not be compared."""
    trained()
    cli("baseline", "--run", "version_0")
    cli("baseline", "--run", "version_0", "--name", "other", "--data.split_seed", "5")
    for learner in ("constant", "linear"):
        (LOGS / f"version_0_{learner}" / "test" / "predictions.parquet").write_bytes(b"PAR1")
    output = cli("test", "--run", "version_0")
    assert "the best baseline (HistGradientBoosting)" in output
