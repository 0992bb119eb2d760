"""Convert the nested error texts of jsonargparse to one sentence about one key.

The sentence names the key, the value, and the nearest valid name. The texts are not a public
interface of jsonargparse. A text that is not recognised is passed on as it is. A text may quote
values of a config, so nothing is imported by a name that was found in it.
"""

import inspect
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from inspect import isroutine
from itertools import takewhile
from pathlib import Path

from proj.engine.class_paths import CLASS_KEYS, own_classes, public_classes
from proj.engine.security import PARTLY_ALLOWED
from proj.errors import nearest

# Where options are that other programs have as flags of one word.
FULL_KEYS = {
    "batch_size": "data.batch_size",
    "devices": "trainer.devices",
    "dropout": "model.net.dropout",
    "epochs": "trainer.max_epochs",
    "gpus": "trainer.devices",
    "hidden": "model.net.hidden",
    "learning_rate": "model.optimizer.lr",
    "lr": "model.optimizer.lr",
    "max_epochs": "trainer.max_epochs",
    "momentum": "model.optimizer.momentum",
    "monitor": "checkpoint.monitor",
    "net": "model.net",
    "num_epochs": "trainer.max_epochs",
    "optimizer": "model.optimizer",
    "path": "data.path",
    "patience": "early_stopping.patience",
    "precision": "trainer.precision",
    "scheduler": "model.scheduler",
    "seed": "seed_everything",
    "target": "data.target",
    "weight_decay": "model.optimizer.weight_decay",
}

# Keys whose value is a class with options, or something else.
OPTIONAL_CLASS_KEYS = {*CLASS_KEYS, "accelerator", "plugins", "profiler", "strategy"}


@dataclass(frozen=True)
class Cause:
    """The line of an error text that names the mistake, with the context of the other lines.

    Attributes:
        match: the pattern found in the line.
        key: dotted key of the value.
        owner: import path of the class that has the key as an option; empty outside a class.
        valid_keys: all dotted keys of the parser.
        lines: the line and those after it.
    """

    match: re.Match[str]
    key: str
    owner: str
    valid_keys: list[str]
    lines: list[str]

    @property
    def owner_name(self) -> str:
        return self.owner.rpartition(".")[2]

    @property
    def value(self) -> str:
        """The value that was given, shortened."""
        pattern = r"Given value: (?:NestedArg\(key='[^']*', val='?(.*?)'?\)|(.*))$"
        for line in self.lines:
            if match := re.search(pattern, line):
                text = match[1] if match[1] is not None else match[2]
                return _shortened(text.split(". Got value: ")[0])
        return "another type"

    @property
    def given(self) -> str:
        """The line with the value that was given; empty if there is none."""
        return next((line for line in self.lines if "Given value: " in line), "")

    @property
    def option(self) -> str | None:
        """The option that was given where a class was expected; None if a value was given."""
        match = re.search(r"Given value: NestedArg\(key='([^']*)'", self.given)
        if match is None or match[1].rpartition(".")[2] == self.key.rpartition(".")[2]:
            return None
        return match[1].rpartition(".")[2]


def explain_parser_error(text: str, valid_keys: Iterable[str]) -> str:
    """Return one sentence for the first cause in an error text of jsonargparse.

    Args:
        text: the error text.
        valid_keys: all dotted keys of the parser.
    """
    # In a union, the texts of the other types may come before the refusal of a name.
    refused = any(re.search(pattern, text) for pattern in REFUSALS)
    explanations = REFUSALS if refused else EXPLANATIONS
    keys: list[str] = []
    owner = ""
    lines = list(_most_specific(text.splitlines()))
    for number, line in enumerate(lines):
        keys += re.findall(r'Parser key "([^"]+)"', line)
        owner_pattern = (
            r"(?:Problem with given class_path |Got value: Namespace\(class_path=)'([^']+)'"
        )
        if owner_match := re.search(owner_pattern, line):
            owner = owner_match[1]
        for pattern, explain in explanations.items():
            if match := re.search(pattern, line):
                cause = Cause(match, ".".join(keys), owner, list(valid_keys), lines[number:])
                return explain(cause)
    return " ".join(text.split()) + ("" if text.endswith(".") else ".")


def _most_specific(lines: list[str]) -> Iterator[str]:
    """Yield the lines without the refusals of types of a union, if a later type gets further.

    Of ``list[Callback] | Callback``, the second type names what is wrong with the callback.
    """
    skipped = -1
    for number, line in enumerate(lines):
        if skipped >= 0 and _depth(line) > skipped:
            continue
        skipped = -1
        if re.match(r"\s*- (Expected a <class|Not a valid subclass)", line) and any(
            other.lstrip().startswith(("- Problem with given class_path", "- Import path"))
            for other in _alternatives_after(lines[number:])
        ):
            skipped = _depth(line)
            continue
        yield line


def _alternatives_after(lines: list[str]) -> Iterator[str]:
    """Yield the first lines of the later types of the union that the first line belongs to."""
    depth = _depth(lines[0])
    for line in takewhile(lambda line: _depth(line) >= depth, lines[1:]):
        if _depth(line) == depth:
            yield line


def _depth(line: str) -> int:
    return len(line) - len(line.lstrip())


def _shortened(text: str) -> str:
    """Return a value as the user knows it, without jsonargparse's types, in 80 columns."""
    if match := re.match(r"Namespace\(class_path='([^']+)'", text):
        text = match[1]
    elif "Namespace(" in text:
        text = "a list of classes" if text.startswith("[") else "a section of keys and values"
    return text if len(text) < 80 else f"{text[:77]}..."


def _import_not_allowed(cause: Cause) -> str:
    if cause.option:
        return _option_before_class(cause)
    path = cause.match[1]
    # The base class of the place, which the user has not named.
    if "Given value: {" in cause.given and "class_path" not in cause.given:
        return f"{cause.key}: expected class_path and init_args, got {cause.value}."
    package = path.split(".")[0]
    if package.isidentifier() and package not in sys.modules and find_spec(package) is None:
        return (
            f"{cause.key}: {path} cannot be imported, there is no module {package}."
            f"{_nearest_class(path)}"
        )
    package = path.rpartition(".")[0] if package in PARTLY_ALLOWED else package
    return (
        f"{cause.key}: a config may not name {path}; if you trust it, and know what it does, add "
        f"--allow {package}."
    )


def _option_before_class(cause: Cause) -> str:
    key, option = cause.key, cause.option
    return (
        f"{key}.{option}: expected a class before its options, got none; name it first, as in "
        f"--{key} CLASS --{key}.{option} {cause.value}."
    )


def _abstract(cause: Cause) -> str:
    if cause.option:
        return _option_before_class(cause)
    name = cause.match[1] or cause.value
    return (
        f"{cause.key}: expected a class that can be built, got {name}, which is abstract; define "
        "its missing methods and properties, or name a subclass."
    )


def _no_section(cause: Cause) -> str:
    if cause.option:
        return _option_before_class(cause)
    return f"{cause.key}: expected class_path and init_args, got {cause.value}."


def _no_import_path(cause: Cause) -> str:
    value = _shortened(cause.match[1])
    return f"{cause.key}: expected a function or class by its import path, got {value}."


def _other_function(cause: Cause) -> str:
    made = _type_name(cause.match[2].rstrip(".").removeprefix("Union[").removesuffix("]"))
    return (
        f"{cause.key}: expected a function that makes {made.replace(', ', ' or ')}, got "
        f"{cause.match[1]}, whose return annotation names another type; correct the annotation."
    )


def _no_annotation(cause: Cause) -> str:
    return (
        f"{cause.key}: a config may call the function {cause.match[1]} only if its return "
        "annotation names what it makes, such as nn.Module."
    )


def _unknown_option(cause: Cause) -> str:
    if cause.owner_name in ("LightningModule", "LightningDataModule", "Module"):
        if cause.option:
            return _option_before_class(cause)
        return f"{cause.key}: expected class_path and init_args, got {cause.match[1]}."
    if cause.match[1].split(".")[0] in ("class_path", "init_args"):
        return (
            f"{cause.key}: expected class_path and init_args alone; put the options of the class "
            "under init_args."
        )
    return _unknown_option_of_class(cause, cause.match[1])


def _unknown_in_group(cause: Cause) -> str:
    group, key = cause.match[1], f"{cause.match[1]}.{cause.match[2]}"
    keys = [valid for valid in cause.valid_keys if valid.startswith(f"{group}.")]
    return f"{key}: no such key.{nearest(key, keys)}"


def _unknown_flag(cause: Cause) -> str:
    flag = cause.match[1].split("=")[0]
    if cause.owner:
        return _unknown_option_of_class(cause, flag.lstrip("-"))
    if not flag.startswith("-"):
        hint = f" Did you mean --config {flag}?" if flag.endswith((".yaml", ".yml")) else ""
        return f"expected an option, --KEY VALUE, got {flag}.{hint}"
    return unknown_flag(flag, cause.valid_keys)


def unknown_flag(flag: str, valid_keys: Iterable[str]) -> str:
    """Return the message about a flag that no verb or section has."""
    name = flag.lstrip("-").replace("-", "_")
    if name in FULL_KEYS:
        return f"no option {flag}. Did you mean --{FULL_KEYS[name]}?"
    options = [f"--{key}" for key in (*valid_keys, "print_config", "config", "debug")]
    return f"no option {flag}.{nearest(flag, options)}"


def _unknown_option_of_class(cause: Cause, option: str) -> str:
    name = option.split(".")[0]
    key = FULL_KEYS.get(name)
    if key is not None and key.rpartition(".")[0] != cause.key:
        return (
            f"{cause.key}.{option}: {cause.owner_name} has no option {name!r}; did you mean {key}?"
        )
    return unknown_option(cause.key, option, cause.owner_name, class_options(cause.owner))


def unknown_option(key: str, option: str, owner: str, valid_names: Iterable[str]) -> str:
    """Return the message about an option that a class does not have."""
    name = option.split(".")[0]
    return f"{key}.{option}: {owner} has no option {name!r}.{nearest(name, valid_names)}"


def _required(cause: Cause) -> str:
    names = [name for name in cause.match[1].split(", ") if not name.startswith("schema.")]
    if not names:
        return (
            f"{cause.key}: {cause.owner} is a function that takes the schema; write a class whose "
            "first argument is the schema."
        )
    key = f"{cause.key}.{names[0]}".strip(".")
    if key == "model":
        configs = [*sorted(Path("configs").glob("*.yaml")), Path("configs/mine.yaml")]
        return (
            f"model: expected a class, got none; give an experiment, as in --config {configs[0]}, "
            "or write one for your data with init."
        )
    return f"{key}: a value is required; set it in the config or with --{key}."


def _no_attribute(cause: Cause) -> str:
    module, name = cause.match[1], cause.match[2]
    path = cause.value if cause.value.startswith(f"{module}.") else cause.owner
    # The error is inside the module, or in the middle of the path.
    if path != f"{module}.{name}":
        return (
            f"{cause.key}: {path} cannot be imported: module {module} has no {name}."
            f"{_nearest_class(path)}"
        )
    if module == "__main__":
        return (
            f"{cause.key}: {name} was defined in a notebook or a script, which is not this one; "
            f"move it into a file, as in my_nets.{name}, and train again."
        )
    classes = public_classes(module) if module in sys.modules else []
    return f"{cause.key}: no class {name} in {module}.{nearest(name, classes)}"


def _no_module(cause: Cause) -> str:
    return (
        f"{cause.key}: {cause.owner or cause.match[1]} cannot be imported, there is no module "
        f"{cause.match[1]}.{_nearest_class(cause.owner)}"
    )


def _wrong_class(cause: Cause) -> str:
    path, base = cause.match[1] or cause.value, cause.match[2].replace(", ", " or ")
    module, _, name = path.rpartition(".")
    if isroutine(getattr(sys.modules.get(module), name, None)):
        path += f", a function without that return annotation; declare it with `-> {base}`"
    return f"{cause.key}: expected a class derived from {base}, got {path}."


def _not_a_class(cause: Cause) -> str:
    return f"{cause.key}: expected a class_path, got {cause.value}."


def _wrong_type(cause: Cause) -> str:
    if cause.option and cause.key.rpartition(".")[2] in OPTIONAL_CLASS_KEYS:
        return _option_before_class(cause)
    if cause.match[2] is not None:
        kind = _type_name(cause.match[1])
        if nested := re.match(r"NestedArg\(key='([^']*)'", cause.match[2]):
            return _no_keys(cause, nested[1], kind)
        return f"{cause.key}: expected {kind}, got {_shortened(cause.match[2])}."
    types = []
    for line in cause.lines:
        pattern = r"\s*- Expected (?:a |an )?(.*?)(?:\. Got value: .*)?$"
        if not (match := re.match(pattern, line)):
            break
        types.append(_type_name(match[1]))
    # The other types are the likely ones: nobody writes a tensor as a learning rate in a config.
    if len(types) > 1 and "a class" in types:
        types.remove("a class")
    expected = " or ".join(dict.fromkeys(types))
    if cause.option and not any(kind.startswith(("dict", "a class")) for kind in types):
        return _no_keys(cause, cause.option, expected)
    return f"{cause.key}: expected {expected}, got {cause.value}."


def _no_function(cause: Cause) -> str:
    return (
        f"{cause.key}: expected a class or a function, got {cause.value}, an object of type "
        f"{cause.match[1]}; define a function with def."
    )


def _no_keys(cause: Cause, option: str, kind: str) -> str:
    return f"{cause.key}.{option}: no such key; {cause.key} is a value, {kind}, without keys."


def _binary_file(cause: Cause) -> str:
    return (
        f"{cause.key}: expected a class, got a file that is not text; did you mean "
        f"--{cause.key}.path?"
    )


def _other(cause: Cause) -> str:
    return f"{cause.key}: {cause.match[1]}, got {cause.value}."


# Patterns in the order in which they are tried on each line.
REFUSALS: dict[str, Callable[[Cause], str]] = {
    r"Importing '([^']+)' is not allowed": _import_not_allowed,
    r"The function '([^']+)' needs a return annotation": _no_annotation,
}
EXPLANATIONS: dict[str, Callable[[Cause], str]] = {
    r"Option '([^']+)' is not accepted": _unknown_option,
    r"Group '([^']+)' does not accept option '([^']+)'": _unknown_in_group,
    r"[Uu]nrecognized arguments: (\S+)": _unknown_flag,
    r"the following arguments are required: (.+)$": _required,
    r"module '([^']+)' has no attribute '([^']+)'": _no_attribute,
    r"No module named '([^']+)'": _no_module,
    r"Import path (\S+ )?does not correspond to a subclass of (\w+)": _wrong_class,
    r"Expected '([^']+)' to be a subclass of <class '(\w+)'>": _wrong_class,
    r"Expected '([^']+)' to be a subclass of Union\[([^\]]+)\]": _wrong_class,
    r"Expected an import path or a subclass spec, but got (.+?)\.?(?: Got value: .*)?$": (
        _no_import_path
    ),
    r"Not a valid subclass of": _not_a_class,
    r"Expected an instantiatable class, but (?:(\S+) )?is (?:abstract|a protocol)": _abstract,
    r"Dict must include a class_path": _no_section,
    r"^\s*Expected a dot import path string: (.+)$": _no_import_path,
    r"Expected '([^']+)' to be a function that returns (.+)$": _other_function,
    r"object has no attribute 'keys'": _not_a_class,
    r"Expected (?!a path|Expected)(?:a |an )?(.*?)(?:\. Got value: (.*))?$": _wrong_type,
    r"expects a function or a callable class: '([\w.]+)' object has no attribute": _no_function,
    r"codec can't decode": _binary_file,
    r"^\s*- (?!Parser key|Problem with |Expected a path |Does not |Type )(.+?)\.?$": _other,
}


def _type_name(text: str) -> str:
    """Return a short name of a type: ``int``, ``null``, ``'min' or 'max'``, ``a class``."""
    text = re.sub(r"<class '(?:[\w.]*\.)?(\w+)'>", r"\1", text.strip())
    if literal := re.search(r"Literal\[(.*)\]", text):
        return literal[1].replace(", ", " or ")
    return "a class" if text.startswith("dot import path") else {"NoneType": "null"}.get(text, text)


def class_options(class_path: str) -> list[str]:
    """Return the options of a class: all arguments of its constructor and of its bases'."""
    module, _, name = class_path.rpartition(".")
    owner = getattr(sys.modules.get(module), name, None)
    if not isinstance(owner, type):
        return []
    bases = inspect.getmro(owner)
    constructors = [vars(base)["__init__"] for base in bases if "__init__" in vars(base)]
    names = [
        name for constructor in constructors for name in inspect.signature(constructor).parameters
    ]
    # The program passes these arguments. A class without a net is a scheduler, and its optimizer is
    # passed, too.
    passed = {"self", "args", "kwargs", "schema", "params", "defaults"}
    if "net" not in names:
        passed.add("optimizer")
    return [name for name in dict.fromkeys(names) if name not in passed]


def _nearest_class(class_path: str) -> str:
    return nearest(class_path.rpartition(".")[2], own_classes()) if class_path else ""
