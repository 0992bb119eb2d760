"""Keep the models of a cross-validation as one ensemble."""

import shutil
from pathlib import Path

from proj.engine import console
from proj.engine.evaluation.ensemble_folder import check_same_outputs, write_ensemble
from proj.engine.evaluation.results import read_schema
from proj.engine.runs.run import Run
from proj.engine.tuning.fold_scores import FoldRun


def write_fold_ensemble(folder: Path, fold_runs: list[FoldRun], args: list[str]) -> None:
    """Keep the models of all folds and seeds as an ensemble, unless an earlier call has done so."""
    run, sources = Run(folder / "ensemble"), [Run(fold_run.folder) for fold_run in fold_runs]
    is_written = (run.path / "manifest.json").is_file() and run.manifest["status"] == "finished"
    if not is_written:
        names = [source.path.name for source in sources]
        check_same_outputs(names, [read_schema(source) for source in sources])
        if run.path.exists():  # An earlier call was killed while it wrote.
            shutil.rmtree(run.path)
        run.path.mkdir()
        weights = [1 / len(sources)] * len(sources)
        write_ensemble(run, "folds", sources, weights, ["cv", *args])
    console.say(f"ensemble: {run.path}; `predict --run {run.path}` and proj.load take it")
