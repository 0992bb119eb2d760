"""Import the parts of a large package when they are used, as Python 3.15 does with PEP 810.

Lightning imports torchmetrics, whose ``__init__`` imports all of its metrics, and with them
transformers, scipy.signal and matplotlib: more than a third of the time of a start. A verb needs a
few metrics, and no plots of them.
"""

import ast
import atexit
import gc
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from importlib import import_module
from importlib.abc import InspectLoader, Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec, module_from_spec
from types import ModuleType
from typing import Any


class LazyPackage(ModuleType):
    """A package that imports a name from its module when the name is used."""

    def __getattr__(self, name: str) -> Any:
        parts: Parts | None = vars(self).get("__parts__")
        if parts is not None and name in parts.imported:
            vars(self)[name] = _imported(self.__name__, *parts.imported[name])
        elif parts is not None and name in parts.deferred_names:
            self._complete(parts)
        elif parts is not None and _is_module(f"{self.__name__}.{name}"):
            # `__init__` would have imported its submodules.
            import_module(f"{self.__name__}.{name}")
        if name not in vars(self):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        return vars(self)[name]

    def __setattr__(self, name: str, value: Any) -> None:
        parts: Parts | None = vars(self).get("__parts__")
        own = (self.__name__, name)
        if parts is not None and parts.imported.get(name, own) != own:
            # The import system sets a submodule that has the name of its function. The function
            # counts, as at the end of `__init__`.
            return
        super().__setattr__(name, value)

    def _complete(self, parts: "Parts") -> None:
        """Import all names, and execute the statements that were left out."""
        del vars(self)["__parts__"]
        for name, place in parts.imported.items():
            if name not in vars(self):
                vars(self)[name] = _imported(self.__name__, *place)
        exec(parts.compiled(parts.deferred), vars(self))

    def __dir__(self) -> list[str]:
        if (parts := vars(self).get("__parts__")) is not None:
            self._complete(parts)
        return sorted(vars(self))


def _is_module(name: str) -> bool:
    return not name.endswith("__") and find_spec(name) is not None


def _imported(package: str, module: str, attribute: str) -> Any:
    """Return what ``from MODULE import ATTRIBUTE`` binds: an attribute, or a submodule."""
    if module != package:
        owner = import_module(module)
        if hasattr(owner, attribute):
            return getattr(owner, attribute)
    return import_module(f"{module}.{attribute}")


class Parts:
    """The statements of a package's ``__init__``, by when they are executed.

    Attributes:
        now: statements that cost nothing, and imports of names that ``__init__`` uses itself.
        imported: module and attribute of each name that ``from MODULE import NAME`` takes from the
            package itself. It is imported when it is used.
        deferred: other statements that import something, such as branches for optional packages.
            They are executed when a name that they bind is used.
        deferred_names: the names that they bind.
    """

    def __init__(self, source: str, file: str, package: str) -> None:
        self.file = file
        self.now: list[ast.stmt] = []
        self.imported: dict[str, tuple[str, str]] = {}
        self.deferred: list[ast.stmt] = []
        top_level = package.partition(".")[0]
        statements = ast.parse(source, file).body
        branches = [statement for statement in statements if _is_importing_branch(statement)]
        self.deferred_names = {name for branch in branches for name in _bound_names(branch)}
        used = _used(statements)
        for statement in statements:
            bound = {*_bound_names(statement)}
            if statement in branches or bound & self.deferred_names:
                self.deferred.append(statement)
            elif (names := _own_names(statement, top_level)) is None or bound & used:
                self.now.append(statement)
            else:
                self.imported |= names

    def compiled(self, statements: list[ast.stmt]) -> Any:
        return compile(ast.Module(statements, []), self.file, "exec")


def _is_importing_branch(statement: ast.stmt) -> bool:
    compound = isinstance(statement, ast.If | ast.Try | ast.With | ast.For)
    return compound and any(isinstance(n, ast.Import | ast.ImportFrom) for n in ast.walk(statement))


def _used(statements: list[ast.stmt]) -> set[str]:
    """Return the names that statements read, except branches, which are executed later."""
    read = (s for s in statements if not _is_importing_branch(s))
    nodes = (node for statement in read for node in ast.walk(statement))
    return {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}


def _own_names(statement: ast.stmt, package: str) -> dict[str, tuple[str, str]] | None:
    """Return the place of each name that a statement imports from the package; None for others."""
    if not isinstance(statement, ast.ImportFrom) or statement.level or statement.module is None:
        return None
    if statement.module.partition(".")[0] != package or statement.names[0].name == "*":
        return None
    module = statement.module
    return {alias.asname or alias.name: (module, alias.name) for alias in statement.names}


def _bound_names(statement: ast.stmt) -> Iterator[str]:
    """Yield the names that a statement binds in its module."""
    for node in ast.walk(statement):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from (alias.asname or alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name


class _LazyLoader(Loader):
    """Loader of one package that executes a part of its ``__init__``."""

    def __init__(self, loader: InspectLoader, parts: Parts) -> None:
        self.loader, self.parts = loader, parts

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return LazyPackage(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        # The package looks like any other one, for `inspect` and for tracebacks.
        module.__loader__ = self.loader
        if module.__spec__ is not None:
            module.__spec__.loader = self.loader
        vars(module)["__parts__"] = self.parts
        exec(self.parts.compiled(self.parts.now), vars(module))


class _LateLoader(Loader):
    """Loader of a module of functions, which is executed when one of them is called.

    Until then its other names, which annotations use, stand for any type.
    """

    def __init__(self, spec: ModuleSpec, source: str) -> None:
        self.spec, self.source = spec, source

    def exec_module(self, module: ModuleType) -> None:
        @cache
        def executed() -> ModuleType:
            whole = module_from_spec(self.spec)
            assert self.spec.loader is not None
            self.spec.loader.exec_module(whole)
            return whole

        for statement in ast.parse(self.source).body:
            if isinstance(statement, ast.FunctionDef):
                vars(module)[statement.name] = _forwarding(executed, statement.name)
            else:
                vars(module).update(dict.fromkeys(_bound_names(statement), Any))


def _forwarding(executed: Callable[[], ModuleType], name: str) -> Callable[..., Any]:
    def call(*args: Any, **options: Any) -> Any:
        return getattr(executed(), name)(*args, **options)

    return call


class LazyFinder(MetaPathFinder):
    """Finder of a package and its sub-packages that imports their parts when they are used.

    Args:
        package: name of a package.
        late: those of its modules that are executed when one of their functions is called.
    """

    def __init__(self, package: str, late: Sequence[str] = ()) -> None:
        self.package, self.late = package, late

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname.partition(".")[0] != self.package:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is None or not isinstance(spec.loader, InspectLoader):
            return spec
        source = spec.loader.get_source(fullname)
        if source is None:  # The package is installed as bytecode.
            return spec
        if fullname in self.late:
            return ModuleSpec(fullname, _LateLoader(spec, source), origin=spec.origin)
        if spec.submodule_search_locations is not None:
            spec.loader = _LazyLoader(spec.loader, Parts(source, str(spec.origin), fullname))
        return spec


# Lightning imports the package as a whole, and a run uses a few of its metrics. Its module of plots
# imports matplotlib.
LAZY_PACKAGES = {"torchmetrics": ("torchmetrics.utilities.plot",)}


def import_program(module: str) -> ModuleType:
    """Import the module of a verb or of a worker process, and the modules that it uses.

    The garbage collector is off meanwhile. Modules are not garbage, and searching through them
    while they are imported would take a third of the CPU time.
    """
    if module in sys.modules or not gc.isenabled():
        return import_module(module)
    for package, late in LAZY_PACKAGES.items():
        import_when_used(package, late)
    gc.disable()
    try:
        return import_module(module)
    finally:
        # Training need not search through the imported modules, either.
        gc.freeze()
        gc.enable()
        if "triton" in sys.modules:
            # At the end, it would report each of its objects that is not freed.
            atexit.register(gc.unfreeze)


def import_when_used(package: str, late: Sequence[str] = ()) -> None:
    """Import the parts of a package when they are used, unless it is already imported."""
    installed = any(isinstance(f, LazyFinder) and f.package == package for f in sys.meta_path)
    if package not in sys.modules and not installed:
        sys.meta_path.insert(0, LazyFinder(package, late))
