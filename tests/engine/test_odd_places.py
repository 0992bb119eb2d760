"""Names, places and files that cannot be used: one message and exit code 2, and no waiting."""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from PIL import Image

from conftest import Cli
from processes import REAL_PYTHON

NOT_UTF8 = os.fsdecode(b"caf\xe9")
NET = ["--model.net", "MLP", "--model.net.hidden", "[4]", "--trainer.accelerator", "cpu"]


def write_table(path: str = "t.csv", names: str = "a,b,y") -> None:
    rows = [f"{i % 7},{i * 5 % 11},{'pq'[i % 2]}" for i in range(60)]
    Path(path).write_text("\n".join([names, *rows]), encoding="utf-8")


def table_flags(path: str = "t.csv") -> list[str]:
    return [
        "--data",
        "Tabular",
        "--data.path",
        path,
        "--data.target",
        "y",
        "--data.batch_size",
        "8",
        *NET,
    ]


def write_images() -> None:
    for label in "ab":
        Path("pics", label).mkdir(parents=True)
        for i in range(10):
            Image.fromarray(np.full((8, 8), 20 * i, np.uint8)).save(f"pics/{label}/{i}.png")


@pytest.mark.parametrize("verb", ["fit", "init", "report", "runs", "zebra"])
def test_an_argument_that_is_not_utf8_is_refused(verb: str, cli: Cli) -> None:
    assert "expected words in utf-8, the encoding of this process, got 'caf\\udce9'" in cli(
        verb, NOT_UTF8, code=2
    )


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("name", "expected file and folder names in UTF-8, got 'pics/a/caf\\udce9.png'; rename"),
        ("folder", "expected file and folder names in UTF-8, got 'pics/caf\\udce9/0.png'; rename"),
        ("pipe", "pics/a/x.png is a named pipe; remove it"),
        ("socket", "pics/a/x.png is a socket; remove it"),
        ("device", "pics/a/x.png is a device; remove it"),
        ("link", "pics/a/x.png is a link to a file that does not exist; remove it"),
    ],
)
def test_odd_files_among_images_are_refused(kind: str, message: str, cli: Cli) -> None:
    write_images()
    odd = "pics/a/x.png"
    if kind == "name":
        Path("pics/a/0.png").rename(f"pics/a/{NOT_UTF8}.png")
    elif kind == "folder":
        Path("pics/b").rename(f"pics/{NOT_UTF8}")
    elif kind == "pipe":
        os.mkfifo(odd)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(odd)
    else:
        Path(odd).symlink_to("/dev/zero" if kind == "device" else "/nowhere/x.png")
    assert message in cli("init", "pics", code=2)


@pytest.mark.parametrize("kind", ["pipe", "device", "link", "folder"])
@pytest.mark.parametrize("ending", ["csv", "parquet", "npz", "yaml"])
def test_odd_files_in_place_of_a_source_are_refused(kind: str, ending: str, cli: Cli) -> None:
    odd = f"x.{ending}"
    if kind == "pipe":
        os.mkfifo(odd)
    elif kind == "folder":
        Path(odd).mkdir()
    else:
        Path(odd).symlink_to("/dev/zero" if kind == "device" else "/nowhere")
    flags = ["--config", odd] if ending == "yaml" else table_flags(odd)
    if ending == "npz":
        flags = ["--data", "ArrayDataModule", "--data.path", odd, *NET]
    flags += [] if ending == "yaml" else ["--model", "BinaryClassifier"]
    assert odd in cli("check", *flags, code=2)


def test_a_table_of_the_target_alone_is_refused(cli: Cli) -> None:
    Path("t.csv").write_text("y\n1.5\n2.5\n3.5\n" * 1 + "4.5\n" * 20, encoding="utf-8")
    message = "t.csv: expected a column to learn from, got y only, the target; add the inputs"
    assert message in cli("init", "t.csv", "--target", "y", code=2)
    pl.DataFrame({"y": [1.5, 2.5] * 10}).write_parquet("t.parquet")
    assert "got y only, the target" in cli("init", "t.parquet", "--target", "y", code=2)


@pytest.mark.parametrize("text", ["a,y\n", "", "\n\n"])
def test_a_table_without_rows_is_refused(text: str, cli: Cli) -> None:
    Path("t.csv").write_text(text, encoding="utf-8")
    assert "expected" in cli("init", "t.csv", "--target", "y", code=2)


# Places


@pytest.mark.parametrize(
    ("args", "place"),
    [
        (["init", "t.csv", "--target", "y", "--output", "t.csv/x.yaml"], "t.csv"),
        (["init", "t.csv", "--target", "y", "--output", "/proc/x/y.yaml"], "/proc/x"),
        (["init", "t.csv", "--target", "y", "--output", "folder", "--force"], "folder"),
        (["check", *table_flags(), "--model", "BinaryClassifier", "--data.cache_dir", "t.csv"], ""),
        (["fit", *table_flags(), "--model", "BinaryClassifier"], "lightning_logs"),
    ],
)
def test_a_place_that_cannot_be_written_is_one_message(
    args: list[Any], place: str, cli: Cli
) -> None:
    write_table()
    Path("folder").mkdir()
    Path("lightning_logs").write_text("a file in the place of the folder", encoding="utf-8")
    said = cli(*args, code=2)
    assert place in said
    assert not Path("configs").exists()


@pytest.mark.long
@pytest.mark.skipif(os.name != "posix" or os.getuid() != 0, reason="needs another user")
def test_read_only_folders_of_another_user_are_one_message(work: Path, cli: Cli) -> None:
    """Permissions do not bind root, so another user runs the verbs, in a process of its own."""
    write_table()
    flags = [*table_flags(), "--model", "BinaryClassifier", "--trainer.max_epochs", "1"]
    cli("fit", *flags, "--name", "r")
    cli("test", "--run", "r")
    for path in [*work.rglob("*"), work]:
        path.chmod(0o755 if path.is_dir() else 0o644)
    for parent in work.parents[:3]:
        parent.chmod(parent.stat().st_mode | 0o055)
    code = f"""
import os, sys
sys.path[:0] = {sys.path!r}
from proj.engine.cli import main
import encodings.utf_8_sig  # The other user cannot read the files of the interpreter.
import polars, proj.engine.commands.fit, proj.engine.commands.test, proj.engine.tuning.cv
import torch.utils.tensorboard
os.setgid(65534); os.setuid(65534)
os.environ.update(HOME="/nowhere", MPLCONFIGDIR="/tmp")
flags = {flags!r}
for args in (["fit", "--resume", "r", "--trainer.max_epochs", "2"], ["fit", *flags],
             ["test", "--run", "r"], ["report", "r"],
             ["cv", "--config", "lightning_logs/r/config.yaml", "--folds", "2"],
             ["init", "t.csv", "--target", "y", "--output", "x.yaml"],
             ["predict", "--run", "r", "--output", "p.csv"]):
    print(args[0], main(args), flush=True)
"""
    done = subprocess.run(
        [REAL_PYTHON, "-c", code], capture_output=True, encoding="utf-8", timeout=300
    )
    verbs = ["fit", "fit", "test", "report", "cv", "init", "predict"]
    lines = [line for line in done.stdout.splitlines() if line.split(" ")[0] in verbs]
    assert lines == [f"{verb} 2" for verb in verbs], done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("error: ") == len(verbs)


# Order of flags


@pytest.mark.parametrize(
    "order",
    [
        "--model.net.hidden [4] --model.net MLP --model BinaryClassifier --data.path d.npz "
        "--data ArrayDataModule",
        "--data.path=d.npz --model.net=MLP --data=ArrayDataModule --model=BinaryClassifier "
        "--model.net.hidden=[4]",
    ],
)
def test_options_may_stand_before_their_class(order: str, cli: Cli) -> None:
    np.savez("d.npz", x=np.random.default_rng(0).normal(size=(64, 3)), y=np.arange(64) % 2)
    options = "--model.optimizer.lr 0.5 --model.optimizer SGD --model.scheduler.step_size 3 "
    options += "--model.scheduler StepLR --trainer.accelerator cpu --print_config"
    printed = cli("fit", *options.split(), *order.split())
    for line in ("lr: 0.5", "step_size: 3", "torch.optim.SGD", "path: d.npz"):
        assert line in printed, line


def test_the_last_of_several_classes_counts(cli: Cli) -> None:
    flags = "--model.net MLP --model BinaryClassifier --model Regressor --data ArrayDataModule"
    printed = cli("fit", *flags.split(), "--data.path", "d.npz", "--print_config")
    assert "Regressor" in printed
    assert "BinaryClassifier" not in printed


def test_a_flag_that_is_nested_too_deep_is_one_message(cli: Cli) -> None:
    deep = "[" * 3000 + "]" * 3000
    message = cli("fit", "--trainer.callbacks", deep, code=2)
    # A newer PyYAML reads it, and the parser refuses it.
    assert "nested too deep" in message or "expected list or null" in message
    assert message.count("\n") == 1


# Locales


@pytest.mark.long
@pytest.mark.parametrize("name", ["latin1", pytest.param("C", marks=pytest.mark.slow)])
def test_names_outside_ascii_work_in_every_locale(name: str, work: Path) -> None:
    """In a real process: the locale is read when Python starts."""
    write_table("t.csv", "größe,b,ziel")
    Path("c.yaml").write_text(
        "trainer: {max_epochs: 1, accelerator: cpu, enable_progress_bar: false, "
        "enable_model_summary: false}\n"
        "model: {class_path: BinaryClassifier, init_args: {net: MLP}}\n"
        "data: {class_path: Tabular, init_args: {path: t.csv, target: ziel, batch_size: 8, "
        "columns: {größe: number}}}\n",
        encoding="utf-8",
    )
    locale = {"LC_ALL": "C"}
    if name == "latin1":
        if shutil.which("localedef") is None:
            pytest.skip("localedef is not installed")
        made = ["localedef", "-i", "de_DE", "-f", "ISO-8859-1", str(work / "de_DE.ISO-8859-1")]
        if subprocess.run(made, capture_output=True).returncode:
            pytest.skip("the sources of locales are not installed")
        locale = {"LC_ALL": "de_DE.ISO-8859-1", "LOCPATH": str(work)}
    environment = {**os.environ, **locale, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    program = (
        "import sys\n"
        "from proj.engine.cli import main\n"
        "for args in (['fit', '--config', 'c.yaml', '--name', 'r'], ['test', '--run', 'r'], "
        "['report', 'r'], ['runs'], ['init', 't.csv', '--target', 'ziel']):\n"
        "    code = main(args)\n"
        "    assert code == 0, (args, code)\n"
    )
    done = subprocess.run(
        [REAL_PYTHON, "-c", program], env=environment, capture_output=True, timeout=300
    )
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    assert "größe" in Path("lightning_logs/r/config.yaml").read_text(encoding="utf-8")
