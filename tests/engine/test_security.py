"""Files from other people: configs, checkpoints and data.

None of them may run code, call a server, or write outside the working directory.
"""

import inspect
import io
import json
import os
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib import import_module
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import numpy as np
import pytest
import torch
import yaml
from jsonargparse import set_parsing_settings

import proj
from conftest import Cli, Trained
from proj.engine.class_paths import own_classes
from proj.engine.cli import main
from proj.engine.runs import checkpoint_file
from proj.errors import UserError

TOUCH = {"class_path": "os.system", "init_args": {"command": "touch canary"}}
POPEN = {"class_path": "subprocess.Popen", "init_args": {"args": ["touch", "canary"]}}
LINEAR = {"class_path": "torch.nn.Linear", "init_args": {"in_features": 6, "out_features": 3}}


@pytest.fixture
def outside(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """A folder outside the working directory, with an importable package.

    The package writes a file ``canary`` when it is imported; the test fails if that has happened.
    """
    folder = tmp_path_factory.mktemp("outside")
    (folder / "other_package.py").write_text(
        "from pathlib import Path\nfrom torch import nn\nPath('canary').touch()\n"
        "class Net(nn.Linear):\n    def __init__(self):\n        super().__init__(6, 3)\n"
        "def net(schema) -> nn.Module:\n    return Net()\n"
    )
    monkeypatch.syspath_prepend(str(folder))
    before = sorted(folder.rglob("*"))
    yield folder
    assert [path for path in sorted(folder.rglob("*")) if "__pycache__" not in path.parts] == before
    assert not Path("canary").exists()
    sys.modules.pop("other_package", None)
    set_parsing_settings(
        import_path_denylist=["other_package"]
    )  # `--allow` holds for the whole process.


NAMED = {
    "a net": {"net": {"class_path": "other_package.Net"}},
    "a net as a text": {"net": "other_package.Net"},
    "a function that makes a net": {"net": "other_package.net"},
    "torch.hub": {
        "net": {"class_path": "torch.hub.load", "init_args": {"repo_or_dir": "x", "model": "y"}}
    },
    "a command": {"net": TOUCH},
    "a process": {"net": POPEN},
    "eval": {
        "net": {"class_path": "builtins.eval", "init_args": {"source": "open('canary', 'w')"}}
    },
    "an optimizer": {"optimizer": {"class_path": "other_package.Net"}},
    "a loss": {"loss": TOUCH},
    "a scheduler": {"scheduler": {**TOUCH, "class_path": "posix.system"}},
    "a name that leads to another module": {"net": "proj.engine.runs.run.subprocess.Popen"},
    "another one": {"net": {**POPEN, "class_path": "torch.nn.init.warnings.sys.modules"}},
    "a function in a layer": {
        "net": {
            "class_path": "torch.nn.TransformerEncoderLayer",
            "init_args": {"d_model": 6, "nhead": 2, "activation": "other_package.net"},
        }
    },
    "a class where none is expected": {
        "net": {"class_path": "torch.nn.Sequential", "init_args": {"args": [LINEAR, POPEN]}}
    },
}


@pytest.mark.parametrize("model", NAMED.values(), ids=NAMED)
def test_a_config_imports_and_calls_nothing_but_known_packages(
    model: dict[str, Any], experiment: Any, cli: Cli, outside: Path
) -> None:
    """A config could run any code that is installed."""
    cli("fit", "--config", experiment(model=model), code=2)
    assert not Path("lightning_logs").exists()


@pytest.mark.parametrize(
    "trainer",
    [
        {"callbacks": [TOUCH]},
        {"callbacks": "other_package.Net"},
        {"logger": POPEN},
        {"profiler": POPEN},
        {"strategy": TOUCH},
        {"plugins": [POPEN]},
        {
            "callbacks": [
                {"class_path": "LambdaCallback", "init_args": {"on_fit_start": "os.getcwd"}}
            ]
        },
        {
            "callbacks": [
                {
                    "class_path": "LambdaCallback",
                    "init_args": {"on_fit_start": "proj.engine.class_paths.own_classes"},
                }
            ]
        },
    ],
)
def test_the_trainer_section_imports_and_calls_nothing_else(
    trainer: dict[str, Any], experiment: Any, cli: Cli, outside: Path
) -> None:
    """A callback, logger or plugin in a config could run any code."""
    cli("fit", "--config", experiment(trainer=trainer), code=2)


def test_the_data_section_imports_and_calls_nothing_else(
    experiment: Any, cli: Cli, outside: Path
) -> None:
    """A data module in a config could run any code."""
    config = yaml.safe_load(experiment().read_text())
    for data in (POPEN, {"class_path": "other_package.Net"}, "other_package.Net"):
        Path("own.yaml").write_text(yaml.safe_dump({**config, "data": data}))
        cli("fit", "--config", "own.yaml", code=2)


def test_a_flag_imports_other_packages_only_with_allow(
    experiment: Any, cli: Cli, outside: Path
) -> None:
    """A copied command line would import packages without the user's consent."""
    message = cli("fit", "--config", experiment(), "--model.net", "other_package.Net", code=2)
    assert "model.net: a config may not name other_package.Net" in message
    assert "--allow other_package" in message
    assert not Path("canary").exists()
    cli(
        "fit",
        "--config",
        experiment(),
        "--model.net",
        "other_package.Net",
        "--allow",
        "other_package",
    )
    Path("canary").unlink()  # The package does write the file when it is imported.
    assert "expected a package" in cli("fit", "--allow", "a package", code=2)
    assert "expected a package" in cli("fit", "--allow", code=2)


def test_a_config_may_name_modules_of_the_working_directory(experiment: Any, cli: Cli) -> None:
    """A config could not name the user's own net, or could name code in a folder of runs."""
    net = (
        "from torch import nn\n"
        "class Net(nn.Linear):\n    def __init__(self):\n        super().__init__(6, 3)\n"
    )
    for path in (
        "own_net.py",
        "own/deep/net.py",
        "own/__init__.py",
        "lightning_logs/net.py",
        "shutil/__init__.py",
    ):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(net)
    for known in (
        "own_net.Net",
        "own.deep.net.Net",
        "torch.nn.Linear --model.net.in_features 6 --model.net.out_features 3",
    ):
        cli("check", "--config", experiment(), "--model.net", *known.split())
    for unknown in ("lightning_logs.net.Net", "shutil.rmtree", "torch.Tensor", "jsonargparse.CLI"):
        assert "may not name" in cli(
            "check", "--config", experiment(), "--model.net", unknown, code=2
        )


@pytest.mark.parametrize(
    "path", ["os", "os.system", "system", "main", "sys.modules", "Popen"], ids=str
)
def test_the_program_itself_lends_a_config_nothing_that_it_imports(
    path: str, experiment: Any, cli: Cli, outside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A class of a notebook is in `__main__`, beside everything that the notebook imports."""
    names = {"os": os, "system": os.system, "sys": sys, "Popen": subprocess.Popen, "main": main}
    for name, value in names.items():
        monkeypatch.setattr(sys.modules["__main__"], name, value, raising=False)
    net = {"class_path": f"__main__.{path}", "init_args": {"command": "touch canary"}}
    message = cli("fit", "--config", experiment(model={"net": net}), code=2)
    assert "model.net" in message


def test_tags_in_yaml_build_no_objects(cli: Cli, outside: Path) -> None:
    """Reading a YAML file would run a command."""
    Path("tags.yaml").write_text(
        "seed_everything: !!python/object/apply:os.system ['touch canary']\n"
    )
    assert "not valid YAML" in cli("fit", "--config", "tags.yaml", code=2)


def test_no_config_is_read_from_a_server(experiment: Any, cli: Cli, outside: Path) -> None:
    """A value of a config would be fetched from a server and used."""
    requests = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requests.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(yaml.safe_dump(LINEAR).encode())

        do_HEAD = do_GET

        def log_message(self, *args: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/net.yaml"
    plain = experiment()
    try:
        cli("fit", "--config", url, code=2)
        for flag in (
            "--model.net",
            "--model",
            "--data",
            "--trainer",
            "--trainer.callbacks",
            "--model.optimizer",
        ):
            cli("fit", "--config", plain, flag, url, code=2)
        cli("fit", "--config", experiment(model={"net": url}), code=2)
        cli("fit", "--config", plain, "--ckpt_path", url, code=2)
        cli("fit", "--config", plain, "--init_from", url + ".ckpt", code=2)
        cli("test", "--run", url, code=2)
        with pytest.raises(UserError):
            proj.load(url + ".ckpt")
    finally:
        server.shutdown()
        server.server_close()
    assert requests == []


ELSEWHERE = {
    "runs": {"trainer": {"default_root_dir": "{outside}"}},
    "a step up": {"trainer": {"default_root_dir": "{inside}/../{name}"}},
    "a cache": {
        "data": {
            "class_path": "Tabular",
            "init_args": {"path": "table.csv", "target": "y", "cache_dir": "{outside}"},
        }
    },
    "a logger": {
        "trainer": {"logger": {"class_path": "CSVLogger", "init_args": {"save_dir": "{outside}"}}}
    },
    "a logger, by a URL": {
        "trainer": {
            "logger": {"class_path": "CSVLogger", "init_args": {"save_dir": "file://{outside}"}}
        }
    },
    "a logger, by a variable": {
        "trainer": {
            "logger": {"class_path": "TensorBoardLogger", "init_args": {"save_dir": "$OUTSIDE"}}
        }
    },
    **{
        f"a logger, {name}": {
            "trainer": {"logger": {"class_path": "CSVLogger", "init_args": {"save_dir": path}}}
        }
        for name, path in {
            "by a chain of file systems": "simplecache::{outside}",
            "by a chain with a URL": "blockcache::file://{outside}",
            "by a prefix": "file:{outside}",
            "by a prefix in capitals": "LOCAL:{outside}",
            "in memory": "memory://x",
            "by a home folder": "~root/x",
            "by a variable in the middle": "x/${UP}/${UP}/x",
            "by a link": "link/x",
            "by a link in a folder": "folder/link",
            "by a dangling link": "dangling",
            "by a loop of links": "loop/x",
        }.items()
    },
    "runs, by a link": {"trainer": {"default_root_dir": "link"}},
    "a callback": {
        "trainer": {
            "callbacks": [{"class_path": "ModelCheckpoint", "init_args": {"dirpath": "{outside}"}}]
        }
    },
    "a name with a folder": {
        "trainer": {
            "callbacks": [
                {"class_path": "ModelCheckpoint", "init_args": {"filename": "../../../../{name}/x"}}
            ]
        }
    },
    "a profiler": {
        "trainer": {
            "profiler": {
                "class_path": "SimpleProfiler",
                "init_args": {"dirpath": "{outside}", "filename": "x"},
            }
        }
    },
}


@pytest.mark.parametrize("section", ELSEWHERE.values(), ids=ELSEWHERE)
def test_a_config_does_not_write_outside_the_working_directory(
    section: dict[str, Any],
    experiment: Any,
    cli: Cli,
    outside: Path,
    work: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A config could overwrite files anywhere on the disk."""
    monkeypatch.setenv("OUTSIDE", str(outside))
    monkeypatch.setenv("UP", "..")
    Path("folder").mkdir()
    for link, target in {
        "link": outside,
        "folder/link": outside,
        "dangling": outside / "new",
        "loop": "loop",
    }.items():
        Path(link).symlink_to(target)
    Path("table.csv").write_text("a,y\n" + "".join(f"{i},{i % 2}\n" for i in range(60)))
    text = (
        json.dumps(section)
        .replace("{outside}", str(outside))
        .replace("{inside}", str(work))
        .replace("{name}", outside.name)
    )
    config = yaml.safe_load(experiment().read_text())
    for name, values in json.loads(text).items():
        config[name] = values if name == "data" else {**config[name], **values}
    Path("hostile.yaml").write_text(yaml.safe_dump(config))
    assert "expected a path in the working directory" in cli(
        "fit", "--config", "hostile.yaml", code=2
    )


def test_paths_on_the_command_line_may_lead_anywhere(
    experiment: Any, cli: Cli, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A user could not keep runs on another disk, or not use them again by their config."""
    folder = tmp_path_factory.mktemp("folder")
    cli("fit", "--config", experiment(), "--trainer.default_root_dir", str(folder))
    cli("test", "--run", str(folder / "lightning_logs" / "version_0"))
    cli("fit", "--config", str(folder / "lightning_logs" / "version_0" / "config.yaml"))
    assert (folder / "lightning_logs" / "version_1" / "checkpoints" / "best.ckpt").exists()


class Hostile:
    def __reduce__(self) -> Any:
        return os.system, ("touch canary",)


def train(trained: Trained) -> tuple[Path, dict[str, Any]]:
    trained()
    run = Path("lightning_logs/version_0")
    return run, torch.load(run / "checkpoints/last.ckpt", weights_only=True)


@pytest.mark.parametrize(
    "place", ["state_dict", "config", "schema", "optimizer_states", "callbacks", "more"]
)
def test_a_hostile_checkpoint_is_not_executed(
    place: str, trained: Trained, cli: Cli, outside: Path
) -> None:
    """Loading a checkpoint, in any verb, would run a command."""
    run, checkpoint = train(trained)
    checkpoint[place] = {"x": Hostile()}
    for name in ("best", "last", "previous"):
        with (run / "checkpoints" / f"{name}.ckpt").open(
            "wb"
        ) as stream:  # A valid checksum does not make a file trustworthy.
            checkpoint_file.save(checkpoint, stream)
    file = str(run / "checkpoints" / "best.ckpt")
    for args in (["test"], ["validate"], ["predict"], ["test", "--ckpt_path", file]):
        cli(*args, code=2)
    cli("fit", "--config", "experiment.yaml", "--init_from", file, code=2)
    cli("fit", "--config", "experiment.yaml", "--ckpt_path", file, code=2)
    cli("fit", "--resume", "--trainer.max_epochs", "3", code=2)
    for wanted in (file, "version_0"):
        with pytest.raises(UserError):
            proj.load(wanted)


@pytest.mark.parametrize(
    "model",
    [
        TOUCH,
        POPEN,
        {"class_path": "other_package.Net"},
        {"net": {"class_path": "other_package.Net"}},
        "net",
    ],
)
def test_classes_named_by_a_checkpoint_are_not_imported(
    model: Any, trained: Trained, cli: Cli, outside: Path
) -> None:
    """A checkpoint or a run folder could name code to be run."""
    run, checkpoint = train(trained)
    config = checkpoint["config"]
    if "net" in model:
        config["model"]["init_args"]["net"] = POPEN if model == "net" else model["net"]
    else:
        config["model"] = model
    torch.save(checkpoint, "hostile.ckpt")
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(UserError, match="may not name"):
        proj.load("hostile.ckpt")
    for args in (["test"], ["fit", "--resume"], ["fit", "--config", str(run / "config.yaml")]):
        assert "may not name" in cli(*args, code=2)


def test_a_checkpoint_cannot_have_files_deleted(experiment: Any, cli: Cli, outside: Path) -> None:
    """Training from a checkpoint would delete a file that its state names."""
    precious = outside / "precious.txt"
    precious.write_text("years of work")
    run, checkpoint = train(lambda: cli("fit", "--config", experiment()))
    folder = str((run / "checkpoints").resolve())
    for path in (
        f"{folder}/../../../../{outside.name}/precious.txt",
        str(precious),
        f"file://{precious}",
    ):
        states = checkpoint["callbacks"].values()
        (state,) = [state for state in states if "best_model_path" in state]
        assert state["dirpath"] == folder
        state.update(
            best_model_path=path,
            kth_best_model_path=path,
            last_model_path=path,
            best_k_models={path: torch.tensor(-1.0)},
            kth_value=torch.tensor(-1.0),
        )
        torch.save(checkpoint, "hostile.ckpt")
        message = cli(
            "fit",
            "--config",
            "experiment.yaml",
            "--ckpt_path",
            "hostile.ckpt",
            "--trainer.max_epochs",
            "3",
            code=2,
        )
        assert "tampered with" in message
    precious.unlink()


def test_a_hostile_npz_is_not_executed(experiment: Any, cli: Cli, outside: Path) -> None:
    """Reading data would run a command, or write files outside."""
    config = experiment()
    good = dict(np.load("data.npz"))
    pickled = np.empty(120, dtype=object)
    pickled[:] = [Hostile() for _ in range(120)]
    for name in ("x", "y"):
        np.savez("data.npz", allow_pickle=True, **(good | {name: pickled}))
        cli("fit", "--config", config, code=2)
    for member in (
        f"../{outside.name}/escaped.npy",
        f"{outside}/escaped.npy",
    ):  # Members must not be unpacked to the disk.
        with zipfile.ZipFile("data.npz", "w") as archive:
            for name, values in {**good, member.removesuffix(".npy"): good["x"]}.items():
                np.save(buffer := io.BytesIO(), values)
                archive.writestr(f"{name}.npy", buffer.getvalue())
        cli("fit", "--config", config, code=2)
    Path("data.npz").write_bytes(
        b"\x80\x04cos\nsystem\n(S'touch canary'\ntR."
    )  # a pickle in place of an archive
    cli("fit", "--config", config, code=2)
    with pytest.raises(UserError):
        proj.load("data.npz")


@pytest.mark.parametrize("path", own_classes().values())
def test_no_parameter_of_our_classes_is_a_bare_callable(path: str) -> None:
    module, _, name = path.rpartition(".")
    """A config could pass any function to such a parameter, and the program would call it."""
    cls = getattr(import_module(module), name)
    for parameter, hint in get_type_hints(cls.__init__).items():
        if parameter != "return":
            assert not list(bare_callables(hint)), f"{path}({parameter}: {hint})"


def bare_callables(hint: Any) -> Iterator[Any]:
    """Yield the types within a type that are functions of any return type, or anything."""
    if hint in (Callable, inspect.Parameter.empty, object) or get_origin(hint) in (
        Callable,
        type(Callable),
    ):
        yield from [hint] * (not get_args(hint) or get_args(hint)[-1] is Any)
    for inner in get_args(hint):
        yield from bare_callables(inner) if not isinstance(inner, list) else ()
