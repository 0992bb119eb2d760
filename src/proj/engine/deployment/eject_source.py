"""Source text of classes and functions with all that it needs, as text that stands alone."""

import ast
import importlib
import importlib.util
import symtable
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from proj.engine import PACKAGE
from proj.engine.deployment.eject_branches import Ran
from proj.engine.deployment.eject_cleaning import Cleaner
from proj.errors import UserError

# Packages that the text must not need.
FORBIDDEN = ("lightning", "pytorch_lightning", "lightning_fabric")

ImportedName = tuple[str, str | None, str]  # module, name in it (None: the module itself), alias


class ModuleText(NamedTuple):
    """The text of a module with its statements at the top level, by the names that they define."""

    name: str
    file: str
    lines: list[str]
    definitions: dict[str, ast.stmt]
    imports: dict[str, ImportedName]


@cache
def read_module(name: str) -> ModuleText:
    """Return the text of a module that has been imported.

    Raises UserError if it is not in a file of Python source.
    """
    file = getattr(importlib.import_module(name), "__file__", None)
    if file is None or not file.endswith(".py"):
        raise UserError(
            f"eject: expected source code of the module {name}, found none; put its classes into a "
            ".py file."
        )
    text = Path(file).read_text(encoding="utf-8")
    definitions: dict[str, ast.stmt] = {}
    imports: dict[str, ImportedName] = {}
    for node in ast.parse(text).body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            imports |= imported_names(node, name)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            definitions[node.name] = node
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for inner in (inner for target in targets for inner in ast.walk(target)):
                if isinstance(inner, ast.Name) and node.value is not None:
                    definitions[inner.id] = node
    return ModuleText(name, file, text.splitlines(), definitions, imports)


def imported_names(node: ast.Import | ast.ImportFrom, module: str) -> dict[str, ImportedName]:
    """Return what an import statement of ``module`` makes known, by its name there."""
    if isinstance(node, ast.Import):
        names = [(alias.name, alias.asname) for alias in node.names]
        return {known or name.partition(".")[0]: (name, None, known or "") for name, known in names}
    source = node.module or ""
    if node.level:
        package = importlib.import_module(module).__package__ or ""
        source = importlib.util.resolve_name("." * node.level + source, package)
    return {
        alias.asname or alias.name: (source, alias.name, alias.asname or alias.name)
        for alias in node.names
    }


@cache
def is_own(module: str) -> bool:
    """Return whether a module is of this package or of the user, not of an installed package."""
    top = module.partition(".")[0]
    if top == PACKAGE:
        return True
    if top in sys.stdlib_module_names:
        return False
    spec = importlib.util.find_spec(top)
    folders = [*(spec.submodule_search_locations or [])] if spec else []
    place = (spec.origin if spec else None) or next(iter(folders), "")
    installed = {sysconfig.get_path(name) for name in ("purelib", "platlib", "stdlib")}
    # Debian's Python has packages of the system in one of the latter.
    return not any(place.startswith(folder) for folder in installed) and not (
        {"site-packages", "dist-packages"} & {*Path(place).parts}
    )


@dataclass
class Sources:
    """Definitions of classes and functions, in an order in which each finds what it needs.

    Attributes:
        ran: the lines that ran while the net was built and used.
        constants: arguments of functions by name that are known and the same in every call.
        imports: what is imported from installed packages.
        texts: definitions by name.
    """

    ran: Ran
    constants: Mapping[str, Mapping[str, Any]]
    imports: set[ImportedName] = field(default_factory=set)
    texts: dict[str, str] = field(default_factory=dict)
    origins: dict[str, tuple[str, int]] = field(default_factory=dict)

    def add(self, value: Any) -> str:
        """Add a class or function with all that it needs, and return its name.

        One of an installed package is imported. Raises UserError if the source cannot be taken.
        """
        name, module = value.__qualname__, value.__module__
        if "." in name or module == "__main__":
            raise UserError(
                f"eject: expected {name} at the top level of a module that can be imported, got "
                f"one of {module}; move it to the top level of a .py file."
            )
        self._import("the experiment", module, name, name)
        return str(name)

    def _add(self, module: str, name: str) -> None:
        text = read_module(module)
        if name in text.definitions:
            self._define(text, name)
        elif name in text.imports:
            self._import(module, *text.imports[name])
        else:
            raise UserError(
                f"eject: expected {name} at the top level of the module {module}, found none; "
                "define or import it there."
            )

    def _define(self, module: ModuleText, name: str) -> None:
        node = module.definitions[name]
        origin = (module.name, node.lineno)
        if self.origins.setdefault(name, origin) != origin:
            raise UserError(
                f"eject: expected one definition of {name}, got two, in {module.name} and "
                f"{self.origins[name][0]}; rename one of them."
            )
        if name in self.texts:
            return
        self.texts[name] = ""  # A function may call itself.
        inner = [
            (statement, imported_names(statement, module.name))
            for statement in ast.walk(node)
            if isinstance(statement, ast.Import | ast.ImportFrom)
        ]
        own = [(n, names) for n, names in inner if any(is_own(m) for m, _, _ in names.values())]
        for _, names in own:
            for imported in names.values():
                self._import(module.name, *imported)
        cleaner = Cleaner(module.file, module.lines, self.ran)
        constants = self.constants.get(name, {})
        cleaned = cleaner.clean(node, constants, [statement for statement, _ in own])
        known = module.definitions.keys() | module.imports.keys()
        for used in sorted(global_names(cleaned) & known - {name}):
            self._add(module.name, used)
        # Behind what it needs.
        del self.texts[name]
        self.texts[name] = cleaned

    def _import(self, module: str, source: str, original: str | None, alias: str) -> None:
        if source.partition(".")[0] in FORBIDDEN:
            raise UserError(
                f"eject: expected classes that need no Lightning, but {module} names "
                f"{original or source} of {source}; write it with torch."
            )
        if not is_own(source):
            self.imports.add((source, original, alias))
        elif original is None or alias != original:
            raise UserError(
                f"eject: expected `from {source} import NAME` in {module}, got an import of a "
                "module or under another name, which one script cannot repeat; change it."
            )
        else:
            self._add(source, original)

    @property
    def definitions(self) -> str:
        """All definitions, formatted."""
        joined, previous = "", False
        for text in self.texts.values():
            is_block = any(line.startswith(("def ", "class ")) for line in text.splitlines())
            between = "\n\n\n" if is_block or previous else "\n"
            joined, previous = f"{joined}{between if joined else ''}{text}", is_block
        return joined


def global_names(text: str) -> set[str]:
    """Return the names of a text that are looked up at the top level of its module."""

    def walk(table: symtable.SymbolTable) -> set[str]:
        at_top = table.get_type() == "module"
        found = {
            symbol.get_name()
            for symbol in table.get_symbols()
            if symbol.is_referenced() and (at_top or symbol.is_global())
        }
        return found.union(*map(walk, table.get_children()))

    return walk(symtable.symtable(text, "source", "exec"))


def import_lines(imports: set[ImportedName]) -> str:
    """Return import statements in ruff's order: the standard library, then other packages."""
    plain = {
        f"import {module}" + (f" as {alias}" if alias else "")
        for module, name, alias in imports
        if name is None
    }
    named: dict[str, set[str]] = {}
    for module, name, alias in imports:
        if name is not None:
            named.setdefault(module, set()).add(name if name == alias else f"{name} as {alias}")
    lines = [(line.split()[1], False, line) for line in plain]
    lines += [
        (module, True, f"from {module} import {', '.join(sorted(names, key=_import_order))}")
        for module, names in named.items()
    ]
    groups: tuple[list[str], list[str]] = ([], [])
    for module, _, line in sorted(lines, key=lambda entry: (entry[1], entry[0])):
        groups[module.partition(".")[0] not in sys.stdlib_module_names].append(line)
    return "\n\n".join("\n".join(group) for group in groups if group)


def _import_order(name: str) -> tuple[int, str]:
    """Return ruff's order of names: constants, classes, then others."""
    return (0 if name.isupper() else 1 if name[:1].isupper() else 2, name)
