"""Put the names of all functions and classes of all dependencies into all places of a config.

A program for two processes: ``list`` imports every module of every dependency and writes the names
that it finds, ``try`` parses and builds each name in each place. ``sample`` tries names that are
known to be dangerous and some others. An audit hook records what the names have done: started
programs, connections, written files, unpickled objects, executed code and imported modules.
"""

import contextlib
import importlib
import inspect
import io
import json
import os
import random
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from importlib import metadata
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any, get_type_hints

import torch
from jsonargparse import ArgumentParser
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.accelerators import Accelerator
from lightning.pytorch.loggers import Logger
from lightning.pytorch.profilers import Profiler
from lightning.pytorch.strategies import Strategy
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics import Metric

from conftest import plain_schema
from proj.data.tabular.text_encoder import TextEncoder
from proj.engine import PACKAGE, security
from proj.engine.config.parser_errors import explain_parser_error
from proj.models.base import Model

MARK = "canary_of_the_fuzzer"
CODE = f"__import__('os').system('touch {MARK}')"
# jsonargparse runs this program to find the types of a library.
OWN_PROGRAM = "import sys, json; print(json.dumps(sys.path))"
YAML_CODE = f"!!python/object/apply:os.system ['touch {MARK}']"

# Modules whose import ends the process, opens a window, takes minutes, or is of tests.
SKIPPED = re.compile(
    r"(^|\.)(__main__|setup|conftest|tests?|testing|_.*)(\.|$)|^torch\.(utils\.(hipify|benchmark)"
    r"|distributed\.(elastic|rpc|launch)|onnx)|^antigravity|^this$"
)


# The names


def dependencies() -> list[str]:
    """Return the import names of everything that the package depends on."""
    requirements = [text for text in metadata.requires(PACKAGE) or [] if "extra ==" not in text]
    required = {normalized(re.split(r"[^\w.-]", text)[0]) for text in requirements}
    return sorted(
        name
        for name, distributions in metadata.packages_distributions().items()
        if name.isidentifier()
        and not name.startswith("_")
        and required & set(map(normalized, distributions))
    )


def normalized(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()


def modules_in(package: str) -> Iterator[str]:
    """Yield the public modules of a package, found by their files."""
    spec = importlib.util.find_spec(package)
    yield package
    for folder in (spec and spec.submodule_search_locations) or []:
        for file in sorted(Path(folder).rglob("*.py")):
            path = file.relative_to(folder).with_suffix("")
            parts = path.parts[:-1] if path.name == "__init__" else path.parts
            name = ".".join((package, *parts))
            if all(part.isidentifier() for part in parts) and not SKIPPED.search(name):
                yield name


def import_quietly(name: str) -> ModuleType | None:
    """Import a module, whatever it prints or raises."""
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
        contextlib.suppress(BaseException),
    ):
        warnings.simplefilter("ignore")
        return importlib.import_module(name)
    return None


def list_names(only_imported: bool) -> dict[str, dict[str, Any]]:
    """Return the path of each function and class, with values for its required parameters."""
    modules = [name for package in dependencies() for name in modules_in(package)]
    found: dict[str, dict[str, Any]] = {}
    seen: set[int] = set()
    for module in modules:
        if only_imported and module not in sys.modules:
            continue
        contents = vars(import_quietly(module) or ModuleType("none"))
        for name, value in list(contents.items()):
            if name.startswith("_") or not name.isidentifier() or isinstance(value, ModuleType):
                continue
            # One path to each object, and one more to those that other modules export.
            is_own = getattr(value, "__module__", module) == module
            if callable(value) and (id(value) not in seen or is_own):
                seen.add(id(value))
                found[f"{module}.{name}"] = arguments_for(value)
                for method in methods_of(value):
                    found[f"{module}.{name}.{method}"] = arguments_for(getattr(value, method))
    return found


def methods_of(value: Any) -> list[str]:
    """Return the functions that can be called on a class itself."""
    if not isinstance(value, type):
        return []
    return [
        name
        for name, member in vars(value).items()
        if isinstance(member, classmethod | staticmethod) and not name.startswith("_")
    ]


def arguments_for(value: Any) -> dict[str, Any]:
    """Return an argument for each required parameter: code where a text may be given."""
    try:
        parameters = inspect.signature(value).parameters.values()
    except (TypeError, ValueError):
        return {"stream": YAML_CODE}
    chosen: dict[str, Any] = {}
    for parameter in parameters:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        hint = str(parameter.annotation)
        text = "file" in parameter.name or "path" in parameter.name or "dir" in parameter.name
        if parameter.default is parameter.empty or "str" in hint:
            numeric = ("int" in hint or "float" in hint) and "str" not in hint
            chosen[parameter.name] = 1 if numeric else f"../{MARK}" if text else YAML_CODE
    return chosen


# The places


def places() -> dict[str, tuple[Any, Callable[[Any], Any], type | tuple[()]]]:
    """Return the places of a config that take a class.

    Each has a type, a function that puts a value there, and the base of what is expected; an empty
    tuple if no class of a library is.
    """

    def inside(outer: str, option: str, key: str = "init_args") -> Callable[[Any], Any]:
        return lambda value: {"class_path": outer, key: {option: value}}

    def same(value: Any) -> Any:
        return value

    model, trainer = get_type_hints(Model.__init__), get_type_hints(Trainer.__init__)
    scheduler, nothing = "torch.optim.lr_scheduler", ()
    callbacks = "lightning.pytorch.callbacks"
    metrics = model["metrics"]
    return {
        "model": (LightningModule, same, LightningModule),
        "data": (LightningDataModule, same, LightningDataModule),
        "data of proj.load": (type[LightningDataModule], same, LightningDataModule),
        "text encoder": (TextEncoder | None, same, TextEncoder),
        "net": (model["net"], same, nn.Module),
        "loss": (model["loss"], same, nn.Module),
        "optimizer": (model["optimizer"], same, Optimizer),
        "scheduler": (model["scheduler"], same, LRScheduler),
        "metrics": (metrics, lambda value: {"a": value}, Metric),
        "callbacks": (trainer["callbacks"], lambda value: [value], Callback),
        "a callback": (trainer["callbacks"], same, Callback),
        "logger": (trainer["logger"], same, Logger),
        "loggers": (trainer["logger"], lambda value: [value], Logger),
        "profiler": (trainer["profiler"], same, Profiler),
        "strategy": (trainer["strategy"], same, Strategy),
        "accelerator": (trainer["accelerator"], same, Accelerator),
        "plugins": (trainer["plugins"], lambda value: [value], object),
        "lr_lambda": (
            model["scheduler"],
            inside(f"{scheduler}.LambdaLR", "lr_lambda"),
            nothing,
        ),
        "activation": (
            model["net"],
            lambda value: {
                "class_path": "torch.nn.TransformerEncoderLayer",
                "init_args": {"d_model": 4, "nhead": 2, "activation": value},
            },
            nothing,
        ),
        "distance": (
            model["loss"],
            inside("torch.nn.TripletMarginWithDistanceLoss", "distance_function"),
            nothing,
        ),
        "dist_sync_fn": (
            metrics,
            lambda value: {
                "a": {
                    "class_path": "torchmetrics.classification.MulticlassF1Score",
                    "init_args": {"num_classes": 3, "dist_sync_fn": value},
                }
            },
            nothing,
        ),
        "pruning_fn": (
            trainer["callbacks"],
            inside(f"{callbacks}.ModelPruning", "pruning_fn"),
            nothing,
        ),
        "layers": (model["net"], inside("torch.nn.Sequential", "args"), nothing),
        "keywords": (model["net"], inside("torch.nn.Sequential", "x", "dict_kwargs"), nothing),
    }


def forms(name: str, arguments: dict[str, Any], place: str) -> Iterator[Any]:
    """Yield the ways to write a name."""
    yield name
    yield {"class_path": name, "init_args": arguments}
    if place in ("net", "optimizer"):
        yield {"class_path": name}
        yield {"class_path": name, "dict_kwargs": arguments | {"code": CODE}}


# The trial


class Canary:
    """Audit hook that records what a name does while it is tried."""

    def __init__(self) -> None:
        self.name, self.events = "", set[str]()
        self.inside = str(Path.cwd())
        sys.addaudithook(self)

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        if self.name and (what := self.describe(event, args)):
            self.events.add(f"{self.name}: {event} {what}"[:300])

    def describe(self, event: str, args: tuple[Any, ...]) -> str:
        """Return what an event did if it is one that no name may cause."""
        kind = event.split(".")[0]
        if kind in ("subprocess", "socket", "urllib", "http", "ftplib", "smtplib", "pty", "winreg"):
            harmless = event == "socket.gethostname" or OWN_PROGRAM in str(args[:2])
            return "" if harmless else str(args[:2])
        if event in ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork"):
            return str(args[:1])
        if event in ("pickle.find_class", "marshal.loads", "code.__new__", "webbrowser.open"):
            return str(args) if event != "marshal.loads" else ""
        if event in ("compile", "exec"):
            return MARK if MARK in repr(args[0]) else ""
        if event == "import":
            module = self.name.rpartition(".")[0]
            return module if args[0] == module and not is_allowed(self.name) else ""
        if event == "open":
            flags = args[2] if len(args) > 2 and isinstance(args[2], int) else 0
            writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            return self.outside(args[0]) if writes else ""
        if event in ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink"):
            return self.outside(args[0])
        return str(args) if kind == "shutil" else ""

    def outside(self, path: Any) -> str:
        if not isinstance(path, str | bytes):
            return ""
        resolved = os.path.realpath(os.fsdecode(path))
        bytecode = "__pycache__" in resolved or resolved == os.devnull
        return "" if bytecode or resolved.startswith(self.inside) else resolved


def is_allowed(name: str) -> bool:
    """Return whether a config may have this name imported."""
    parts = (*security.ALLOWED_PARTS, "torchmetrics", "tabm", "rtdl_num_embeddings")
    return any(f"{name}.".startswith(f"{part}.") for part in parts)


def try_names(names: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Try each name in each form in each place; return what was accepted and what was seen."""
    security.restrict_imports()
    canary, accepted, trials = Canary(), [], 0
    warnings.simplefilter("ignore")
    for place, (hint, put, base) in places().items():
        parser = ArgumentParser(exit_on_error=False)
        parser.add_argument("--place", type=hint)
        for name, arguments in names.items():
            for form in forms(name, arguments, place):
                trials += 1
                canary.name = name
                built = build(parser, put(form))
                canary.name = ""
                if built is not None and runs(name, built, base):
                    accepted.append((name, place, str(form)))
    return {"trials": trials, "accepted": accepted, "events": sorted(canary.events)}


def build(parser: ArgumentParser, value: Any) -> Any:
    """Parse and build a value, and call what is called later; None if that is refused."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            built = parser.instantiate(parser.parse_object({"place": value})).place
        except BaseException as error:
            explain_parser_error(str(error), [])
            return None
        if isinstance(built, partial):
            for argument in (plain_schema("binary", (4,), 1), [nn.Parameter(torch.ones(1))], 3):
                with contextlib.suppress(BaseException):
                    built(argument)
    return built


def runs(name: str, built: Any, base: Any) -> bool:
    """Return whether a name was used that does not derive from what its place expects."""
    if isinstance(built, str | dict | list) and not contains_object(built):
        return False  # A name that stayed a text.
    value = resolve(name)
    if value is None:
        return False
    if not base:
        return contains_named(built, value)
    return not (isinstance(value, type) and issubclass(value, base))


def contains_object(value: Any) -> bool:
    """Return whether a value holds anything but texts and numbers."""
    if isinstance(value, dict):
        return any(map(contains_object, value.values()))
    if isinstance(value, list):
        return any(map(contains_object, value))
    return not isinstance(value, str | int | float | None)


def contains_named(built: Any, value: Any) -> bool:
    """Return whether an object keeps the named object, or an instance of it, in an attribute."""
    items = list(built.values()) if isinstance(built, dict) else [built]
    items = built if isinstance(built, list) else items
    kept = [
        inner
        for item in items
        for inner in (*vars(item).values(), *getattr(item, "keywords", {}).values())
        if hasattr(item, "__dict__")
    ]
    return any(
        inner is value or (isinstance(value, type) and type(inner) is value and callable(inner))
        for inner in kept
    )


def resolve(name: str) -> Any:
    """Return the object of a path; None if its module has not been imported."""
    parts = name.split(".")
    for length in range(len(parts) - 1, 0, -1):
        if module := sys.modules.get(".".join(parts[:length])):
            value: Any = module
            for part in parts[length:]:
                value = getattr(value, part, None)
            return value
    return None


# Functions of dependencies that run code, start programs, or load pickled files.
DANGEROUS = (
    "jinja2.loaders.ModuleLoader",
    "lightning.pytorch.LightningModule.load_from_checkpoint",
    "lightning.pytorch.cli.instantiate_class",
    "lightning.pytorch.callbacks.LambdaCallback",
    "matplotlib.cbook.get_sample_data",
    "numpy.f2py.main",
    "numpy.load",
    "numpy.vectorize",
    "rich.console.Console",
    "sklearn.datasets.fetch_openml",
    "tensorboard.program.TensorBoard",
    "torch.hub.load",
    "torch.jit.load",
    "torch.load",
    "torch.nn.init.kaiming_normal_",
    "torch.nn.utils.rnn.pack_sequence",
    "torch.optim.swa_utils.get_ema_multi_avg_fn",
    "torch.package.PackageImporter",
    "torch.utils.cpp_extension.load_inline",
    "torchmetrics.utilities.data.apply_to_collection",
    "yaml.unsafe_load",
)


def sample(count: int) -> dict[str, dict[str, Any]]:
    """Return the dangerous names and some others of modules that are imported already."""
    packages = tuple(f"{package}." for package in dependencies())
    names = [
        f"{module}.{name}"
        for module, contents in sys.modules.items()
        if module.startswith(packages) and not SKIPPED.search(module)
        for name, value in vars(contents).items()
        if isinstance(value, type | FunctionType) and not name.startswith("_")
    ]
    code = {"stream": YAML_CODE, "init": {"class_path": "yaml.unsafe_load"}, "file": MARK}
    others = random.Random(0).sample(sorted(names), count)
    return dict.fromkeys(DANGEROUS, code) | {name: arguments_for(resolve(name)) for name in others}


if __name__ == "__main__":
    task, source, target = sys.argv[1:4]
    if task == "list":
        result: Any = list_names(only_imported=source == "imported")
    elif task == "sample":
        result = try_names(sample(int(source)))
    else:
        result = try_names(json.loads(Path(source).read_text()))
    Path(target).write_text(json.dumps(result))
