"""jsonargparse's nested error texts, said in one sentence that names the key and the nearest valid one.

The texts are not a public interface; a text that is not recognised is passed on with its key. Tests hold every kind.
"""

import inspect
import re
import sys
from collections.abc import Callable, Iterable
from importlib import import_module
from importlib.util import find_spec

from proj.engine.class_paths import own_classes
from proj.engine.security import IN_PARTS
from proj.errors import nearest


def explain_parser_error(text: str, valid_keys: Iterable[str]) -> str:
    """The first cause in an error text of jsonargparse. ``valid_keys`` are all dotted keys of the parser."""
    keys, owner = [], ""  # the way down to the cause, and the last class on it
    lines = text.splitlines()
    for number, line in enumerate(lines):
        keys += re.findall(r'Parser key "([^"]+)"', line)
        if inner := re.search(
            r"(?:Problem with given class_path |Got value: Namespace\(class_path=)'([^']+)'", line
        ):
            owner = inner[1]
        for pattern, say in CAUSES.items():
            if found := re.search(pattern, line):
                return say(found, ".".join(keys), owner, list(valid_keys), lines[number:])
    return " ".join(text.split()) + ("" if text.endswith(".") else ".")


Say = Callable[[re.Match[str], str, str, list[str], list[str]], str]


def _unknown_option(
    found: re.Match[str], key: str, owner: str, valid: list[str], rest: list[str]
) -> str:
    if owner.rpartition(".")[2] in ("LightningModule", "LightningDataModule", "Module"):
        return f"{key}: expected class_path and init_args, got {found[1]}."
    first = found[1].split(".")[0]
    if first in ("class_path", "init_args"):
        return f"{key}: expected class_path and init_args alone; put the options of the class under init_args."
    return f"{key}.{found[1]}: {owner.rpartition('.')[2]} has no option {first!r}.{nearest(first, _options(owner))}"


def _unknown_in_group(
    found: re.Match[str], key: str, owner: str, valid: list[str], rest: list[str]
) -> str:
    group, option = found[1], found[2]
    return f"{group}.{option}: no such key.{nearest(f'{group}.{option}', (k for k in valid if k.startswith(f'{group}.')))}"


def _unknown_flag(
    found: re.Match[str], key: str, owner: str, valid: list[str], rest: list[str]
) -> str:
    flag = found[1].split("=")[0]
    if owner:
        first = flag.lstrip("-").split(".")[0]
        return f"{key}.{flag.lstrip('-')}: {owner.rpartition('.')[2]} has no option {first!r}.{nearest(first, _options(owner))}"
    if not flag.startswith("-"):
        hint = f" Did you mean --config {flag}?" if flag.endswith((".yaml", ".yml")) else ""
        return f"expected an option, --KEY VALUE, got {flag}.{hint}"
    return (
        f"no option {flag}.{nearest(flag.lstrip('-'), [*valid, 'print_config', 'config', 'debug'])}"
    )


def _required(found: re.Match[str], key: str, owner: str, valid: list[str], rest: list[str]) -> str:
    names = [name for name in found[1].split(", ") if not name.startswith("schema.")]
    name = f"{key}.{names[0]}".strip(".")
    return f"{name}: a value is required; set it in the config or with --{name}."


def _no_attribute(
    found: re.Match[str], key: str, owner: str, valid: list[str], rest: list[str]
) -> str:
    if owner != f"{found[1]}.{found[2]}":  # an error inside the module, or a part of the path
        return f"{key}: {owner} cannot be imported: module {found[1]} has no {found[2]}.{_near_class(owner)}"
    return f"{key}: no class {found[2]} in {found[1]}.{nearest(found[2], _classes(found[1]))}"


def _no_module(
    found: re.Match[str], key: str, owner: str, valid: list[str], rest: list[str]
) -> str:
    return f"{key}: {owner or found[1]} cannot be imported, there is no module {found[1]}.{_near_class(owner)}"


def _wrong_class(
    found: re.Match[str], key: str, owner: str, valid: list[str], rest: list[str]
) -> str:
    return f"{key}: expected a class derived from {found[2]}, got {found[1] or _given(rest)}."


def _not_a_class(
    found: re.Match[str], key: str, owner: str, valid: list[str], rest: list[str]
) -> str:
    return f"{key}: expected a class_path, got {_given(rest)}."


def _wrong_type(
    found: re.Match[str], key: str, owner: str, valid: list[str], rest: list[str]
) -> str:
    if found[2] is not None:
        return f"{key}: expected {_type(found[1])}, got {found[2]}."
    types = []
    for line in rest:
        if not (match := re.match(r"\s*- Expected (?:a |an )?(.*?)(?:\. Got value: .*)?$", line)):
            break
        types.append(_type(match[1]))
    if (
        len(types) > 1 and "a class" in types
    ):  # a tensor for a learning rate, say, which nobody writes in a config
        types.remove("a class")
    return f"{key}: expected {' or '.join(dict.fromkeys(types))}, got {_given(rest)}."


def _not_text(found: re.Match[str], key: str, owner: str, valid: list[str], rest: list[str]) -> str:
    return f"{key}: expected a class, got a file that is no text; did you mean --{key}.path?"


def _anything(found: re.Match[str], key: str, owner: str, valid: list[str], rest: list[str]) -> str:
    return f"{key}: {found[1]}, got {_given(rest)}."


def _not_allowed(
    found: re.Match[str], key: str, owner: str, valid: list[str], rest: list[str]
) -> str:
    package = found[1].split(".")[0]
    if package not in sys.modules and find_spec(package) is None:
        return f"{key}: {found[1]} cannot be imported, there is no module {package}.{_near_class(found[1])}"
    package = found[1].rpartition(".")[0] if package in IN_PARTS else package
    return f"{key}: a config may not name {found[1]}; if you trust it, and know what it does, add --allow {package}."


CAUSES: dict[str, Say] = {
    r"Importing '([^']+)' is not allowed": _not_allowed,
    r"Option '([^']+)' is not accepted": _unknown_option,
    r"Group '([^']+)' does not accept option '([^']+)'": _unknown_in_group,
    r"[Uu]nrecognized arguments: (\S+)": _unknown_flag,
    r"the following arguments are required: (.+)$": _required,
    r"module '([^']+)' has no attribute '([^']+)'": _no_attribute,
    r"No module named '([^']+)'": _no_module,
    r"Import path (\S+ )?does not correspond to a subclass of (\w+)": _wrong_class,
    r"Expected '([^']+)' to be a subclass of <class '(\w+)'>": _wrong_class,
    r"Not a valid subclass of": _not_a_class,
    r"object has no attribute 'keys'": _not_a_class,
    r"Expected (?!a path|Expected)(?:a |an )?(.*?)(?:\. Got value: (.*))?$": _wrong_type,
    r"codec can't decode": _not_text,
    r"^\s*- (?!Problem with |Expected a path |Does not validate |Type )(.+?)\.?$": _anything,
}


def _type(text: str) -> str:
    text = re.sub(r"<class '(?:[\w.]*\.)?(\w+)'>", r"\1", text.strip())
    if literal := re.search(r"Literal\[(.*)\]", text):
        return literal[1].replace(", ", " or ")
    return "a class" if text.startswith("dot import path") else {"NoneType": "null"}.get(text, text)


def _given(rest: list[str]) -> str:
    for line in rest:
        if found := re.search(
            r"Given value: (?:NestedArg\(key='[^']*', val='?(.*?)'?\)|(.*))$", line
        ):
            value = str(found[1] if found[1] is not None else found[2]).split(". Got value: ")[0]
            return value if len(value) < 80 else f"{value[:77]}..."
    return "another type"


def _options(class_path: str) -> list[str]:
    """Names of all arguments of a class' constructor, those it hands on to its bases included."""
    module, _, name = class_path.rpartition(".")
    bases = inspect.getmro(getattr(import_module(module), name))
    makers = [vars(base)["__init__"] for base in bases if "__init__" in vars(base)]
    names = [name for maker in makers for name in inspect.signature(maker).parameters]
    given_by_us = ("self", "args", "kwargs", "schema", "params", "defaults", "optimizer")
    return [
        n
        for n in dict.fromkeys(names)
        if n not in given_by_us or (n == "optimizer" and "net" in names)
    ]


def _near_class(class_path: str) -> str:
    return nearest(class_path.rpartition(".")[2], own_classes()) if class_path else ""


def _classes(module: str) -> list[str]:
    return [name for name, value in vars(import_module(module)).items() if isinstance(value, type)]
