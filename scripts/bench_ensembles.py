"""Compare an ensemble of five folds with its members on the tables of ``bench_tables.py``.

    python scripts/bench_ensembles.py [--folder FOLDER] [--only WORD] [--folds 5] [--processes 2]
                                      [--max_rows 2000] [--seeds 0 1 2]

For each seed, a random fifth of the rows is written to a test file, which no fold reads. `init`
writes the experiment for the others, `cv --folds 5 --ensemble` trains, and `test` scores the
ensemble on the test file. The members predict the same rows. The error is that of
``bench_tables.py``. The best member is the one with the smallest loss on its held-out fold, as a
user would choose it; the luckiest one has the smallest error on the test file, which nobody knows
beforehand. Errors of a table are geometric means over the seeds. Results are appended to
FOLDER/ensembles.jsonl; a second call goes on there.
"""

import argparse
import bz2
import collections
import contextlib
import gzip
import io
import json
import multiprocessing
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from bench_tables import Table, error, leave_out, read_tables
from scipy.stats import binomtest

import proj
from proj.engine.cli import main as proj_main
from proj.engine.evaluation.prediction_set import load_predictions
from proj.engine.evaluation.results import read_schema
from proj.engine.predictor import EnsemblePredictor
from proj.engine.runs.predictions import outputs_in
from proj.engine.runs.run import Run

OPENERS: dict[str, Any] = {".bz2": bz2.open, ".gz": gzip.open}
TEST_FRACTION = 0.2


def read_texts(path: Path) -> pl.DataFrame:
    """Return a CSV file with all values as texts, so that `init` reads them."""
    with OPENERS.get(path.suffix, open)(path, "rb") as file:
        return pl.read_csv(file.read(), infer_schema=False)


def run_job(job: tuple[Table, Path, int, int]) -> dict[str, Any]:
    """Return the errors of the members and of their ensemble on a table."""
    table, folder, folds, seed = job
    work = folder / "ensembles" / f"{table.name}_{seed}"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    os.chdir(work)
    rows = read_texts(table.file).sample(fraction=1, shuffle=True, seed=seed)
    count = round(TEST_FRACTION * len(rows))
    rows[count:].write_csv("train.csv")
    rows[:count].write_csv("test.csv")
    target = f'"{table.target}"' if "," in table.target else table.target
    call("init", "train.csv", "--target", target, "--output", "table.yaml")
    leave_out(Path("table.yaml"), table.left_out)
    flags = ["--data.test_path", "test.csv", "--folds", str(folds), "--ensemble"]
    call("cv", "--config", "table.yaml", *flags)
    run = Run(Path("lightning_logs/studies/table_cv/ensemble"))
    call("test", "--run", str(run.path))
    schema = read_schema(run)
    predictions = load_predictions(run, "test", schema)
    ensemble = proj.load(run)
    assert isinstance(ensemble, EnsemblePredictor)
    members = []
    for member in ensemble.members:
        predicted = member.predict(rows[:count])[predictions.row.tolist()]
        members.append(error(replace(predictions, output=outputs_in(schema, predicted))))
    fold_losses = json.loads((run.path.parent / "metrics.json").read_text(encoding="utf-8"))[
        "loss"
    ]["folds"]
    return {
        "table": table.name,
        "seed": seed,
        "rows": len(rows),
        "ensemble": error(predictions),
        "members": members,
        "chosen": int(np.argmin(fold_losses)),
    }


def call(*arguments: str) -> None:
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        code = proj_main([*arguments])
    if code:
        raise RuntimeError(f"{arguments[0]} ends with {code}: {output.getvalue()[-2000:]}")


def summarize(results: list[dict[str, Any]]) -> None:
    print("table | rows | seeds | ensemble | best member | luckiest member | mean of members")
    errors: dict[str, list[float]] = {
        "best member": [],
        "luckiest member": [],
        "mean of the members": [],
    }
    tables = collections.defaultdict(list)
    for one in sorted(results, key=lambda one: one["rows"]):
        members = one["members"]
        values = members[one["chosen"]], min(members), float(np.mean(members))
        tables[one["table"], one["rows"]].append((one["ensemble"], *values))
    for (table, rows), seeds in tables.items():
        ensemble, *values = np.exp(np.log(seeds).mean(axis=0))
        for own, value in zip(errors.values(), values, strict=True):
            own.append(ensemble / value)
        numbers = " | ".join(f"{value:.4g}" for value in (ensemble, *values))
        print(f"{table} | {rows} | {len(seeds)} | {numbers}")
    for name, ratios in errors.items():
        ahead = sum(ratio < 1 for ratio in ratios)
        low, high = binomtest(ahead, len(ratios)).proportion_ci()
        print(
            f"better than the {name} on {ahead} of {len(ratios)} tables: {ahead / len(ratios):.0%} "
            f"({low:.0%} to {high:.0%}); mean ratio of errors {np.exp(np.mean(np.log(ratios))):.3f}"
        )


def main() -> None:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", default=".cache/bench_tables", help="where all files are kept")
    parser.add_argument("--only", default="", help="a part of the name of a package or file")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the test rows")
    parser.add_argument("--processes", type=int, default=2, help="tables at the same time")
    parser.add_argument("--max_rows", type=int, default=2_000, help="leave larger tables out")
    options = parser.parse_args()
    folder = Path(options.folder).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "ensembles.jsonl"
    path.touch()
    results = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    done = {(result["table"], result["seed"]) for result in results}
    tables = read_tables(folder, options.only, [])
    tables = [one for one in tables if len(read_texts(one.file)) <= options.max_rows]
    jobs = [
        (table, folder, options.folds, seed)
        for seed in options.seeds
        for table in tables
        if (table.name, seed) not in done
    ]
    os.environ["OMP_NUM_THREADS"] = "1"
    context = multiprocessing.get_context("spawn")
    with (
        context.Pool(options.processes, maxtasksperchild=1) as pool,
        path.open("a", encoding="utf-8") as file,
    ):
        for new in pool.imap_unordered(run_job, jobs):
            file.write(json.dumps(new) + "\n")
            file.flush()
            results.append(new)
            print(new["table"], flush=True)
    summarize(results)


if __name__ == "__main__":
    main()
