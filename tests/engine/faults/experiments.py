"""Scenarios of the campaign of interruptions: the data, experiments and studies of each kind."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from PIL import Image

from conftest import MODELS, make_arrays

TRAINED = [["fit", "--config", "experiment.yaml", "--name", "run"]]
FIT = TRAINED[0]
TWO_PROCESSES = {"devices": 2, "strategy": "ddp"}


class Scenario(NamedTuple):
    """One row of the table.

    Attributes:
        name: what is special about it.
        command: the command line that is interrupted.
        prepare: writes the data and the experiment into a folder.
        before: command lines that are run first, undisturbed.
        processes: whether there are others than the first process that can be killed.
        timeout: seconds after which an attempt hangs.
        repeats_points: whether a curve may have a point twice: a callback logs at the start of a
            step, under the number of the step of the checkpoint, so a resumed run logs it again.
        most_kills: limit of the interruptions, for a scenario that takes long.
    """

    name: str
    command: list[str]
    prepare: Callable[[Path], None]
    before: Sequence[list[str]] = ()
    processes: int = 1
    timeout: float = 120
    repeats_points: bool = False
    most_kills: int = 100


# Data


def write_table(path: Path, rows: int = 90) -> None:
    """Write a table of numbers, categories, dates and missing values, in CSV."""
    rng = np.random.default_rng(0)
    lines = ["amount,colour,day,weight,label"]
    for i in range(rows):
        amount, weight = rng.normal(size=2)
        colour = rng.choice(["red", "green", "blue"])
        day = f"2024-{1 + i % 12:02}-{1 + i % 28:02}"
        label = "yes" if amount + (colour == "red") > rng.normal() else "no"
        lines.append(f"{amount:.3f},{colour},{day},{'' if i % 7 == 0 else f'{weight:.2f}'},{label}")
    path.write_text("\n".join(lines) + "\n")


def write_pictures(folder: Path, each: int = 16) -> None:
    """Write noisy pictures of two classes, in a folder for each."""
    rng = np.random.default_rng(0)
    for brightness, name in ((40, "dark"), (160, "light")):
        (folder / name).mkdir(parents=True)
        for i in range(each):
            pixels = rng.normal(brightness, 60, (8, 8, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")


def arrays(folder: Path, task: str) -> dict[str, Any]:
    np.savez(folder / "data.npz", **make_arrays(task))
    return {"class_path": "ArrayDataModule", "init_args": {"path": "data.npz", "batch_size": 8}}


def table(folder: Path, task: str) -> dict[str, Any]:
    write_table(folder / "table.csv")
    return {
        "class_path": "Tabular",
        "init_args": {"path": "table.csv", "target": "label", "batch_size": 8},
    }


def pictures(folder: Path, task: str) -> dict[str, Any]:
    write_pictures(folder / "pictures")
    augmentation = {"flip": True, "crop": 2, "erase": 0.5}
    return {
        "class_path": "Images",
        "init_args": {"path": "pictures", "batch_size": 4, **augmentation},
    }


def own_loader(folder: Path, task: str) -> dict[str, Any]:
    return {"class_path": "engine.faults.own_code.Own"}


# Experiments


def writer(
    task: str = "multiclass",
    source: Callable[[Path, str], dict[str, Any]] = arrays,
    **sections: dict[str, Any],
) -> Callable[[Path], None]:
    """Return a function that writes data and ``experiment.yaml``; sections override the default."""

    def write(folder: Path) -> None:
        config: dict[str, Any] = {
            "seed_everything": 1,
            "trainer": {"max_epochs": 3, "accelerator": "cpu", "log_every_n_steps": 1},
            "model": {
                "class_path": MODELS[task],
                "init_args": {
                    "net": {
                        "class_path": "engine.faults.victim.Noisy",
                        "init_args": {"hidden": [8], "dropout": 0.2},
                    },
                    # "auto" measures, so the curves may differ between runs.
                    "steps_per_execution": 4,
                },
            },
            "data": source(folder, task),
            "checkpoint": {"every_seconds": None, "every_n_steps": 3},
        }
        for name, values in sections.items():
            section = config.setdefault(name, {})
            if "class_path" in values:
                config[name] = values
            elif name in ("model", "data"):
                section["init_args"] |= values
            else:
                section |= values
        (folder / "experiment.yaml").write_text(json.dumps(config))

    return write


def fit(name: str, *args: Any, **sections: Any) -> Scenario:
    """Return a scenario that trains; ``processes`` may be among the sections."""
    processes = sections.pop("processes", 1)
    return Scenario(name, FIT, writer(*args, **sections), processes=processes)


def net(class_path: str, **options: Any) -> dict[str, Any]:
    return {"class_path": class_path, "init_args": options}


def optimizer(name: str, **options: Any) -> Scenario:
    extra = " ".join(f"{key}={value}" for key, value in options.items())
    chosen = {"class_path": f"torch.optim.{name}", "init_args": options}
    return fit(f"optimizer {name} {extra}".strip(), model={"optimizer": chosen})


def scheduler(name: str, interval: str = "epoch", **options: Any) -> Scenario:
    chosen = {"class_path": name, "init_args": options}
    title = f"scheduler {name.rpartition('.')[2]} per {interval}"
    return fit(title, model={"scheduler": chosen, "scheduler_interval": interval})


def callback(name: str, callbacks: list[Any], **sections: Any) -> Scenario:
    trainer = {"callbacks": callbacks, **sections.pop("trainer", {})}
    return fit(f"callback {name}", trainer=trainer, **sections)


def precision(name: str) -> Scenario:
    return fit(f"precision {name}", trainer={"precision": name})


def verb(name: str, *command: str, before: list[list[str]] = TRAINED, **sections: Any) -> Scenario:
    return Scenario(name, list(command), writer(**sections), before)


def study(name: str, *flags: str, workers: int = 1, **keys: Any) -> Scenario:
    """Return a scenario of ``tune`` with four trials."""
    write_experiment = writer(
        trainer={"max_epochs": 2},
        model={"net": net("MLP", hidden=[8]), "steps_per_execution": 4},
        checkpoint={"every_seconds": None, "every_n_steps": 6},
    )
    section = {
        "experiment": "experiment.yaml",
        "trials": 4,
        "sampler": {"class_path": "RandomSampler"},
        "space": {
            "model.optimizer.lr": {"log": [1e-3, 1e-1]},
            "model.net.hidden": {"choice": [[8], [16, 8], []]},
        },
        **keys,
    }

    def write(folder: Path) -> None:
        write_experiment(folder)
        (folder / "study.yaml").write_text(yaml.safe_dump(section))

    command = ["tune", "--config", "study.yaml", "--workers", str(workers), *flags]
    return Scenario(name, command, write, processes=2)


def folds(name: str, *flags: str, **sections: Any) -> Scenario:
    write = writer(trainer={"max_epochs": 2}, **sections)
    command = ["cv", "--config", "experiment.yaml", "--folds", "3", *flags]
    return Scenario(name, command, write, processes=2)


def write_sources(folder: Path) -> None:
    write_table(folder / "table.csv")
    write_pictures(folder / "pictures")


def preparation(name: str, **sections: Any) -> Scenario:
    return Scenario(name, ["check", "--config", "experiment.yaml"], writer(**sections))
