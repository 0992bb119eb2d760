"""Write the report of a tested run again, from its folder alone."""

from pathlib import Path

from proj.engine import console
from proj.engine.config.parser import VerbParser
from proj.engine.evaluation.prediction_set import load_predictions
from proj.engine.evaluation.report import write_report
from proj.engine.evaluation.results import check_tested, read_schema
from proj.engine.runs.find import find_run
from proj.engine.runs.locks import read_results
from proj.engine.write_paths import check_links


def report(args: list[str]) -> None:
    """Write report.html for a run that has been tested."""
    parser = VerbParser("report", "Write report.html for a run that has been tested.")
    parser.add_argument(
        "run", nargs="?", help="name or folder of a run; default: the newest finished one"
    )
    run = find_run(Path("lightning_logs"), parser.parse_args(args).run)
    check_links(run.path)
    schema = read_schema(run)
    with read_results(run, "test"):
        check_tested(run, "metrics.json", "predictions.parquet")
        metrics = run.metrics("test")
        predictions = load_predictions(run, "test", schema)
        console.say(f"report: {write_report(run, schema, predictions, metrics)}")
