"""Branches of functions that ran, and those that did not, while a net was built and used."""

import ast
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, NamedTuple, TypeAlias

Function: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef
Place: TypeAlias = tuple[str, int]  # file, line


@dataclass
class Ran:
    """The lines and functions that ran while a net was built and used.

    Attributes:
        lines: number of runs of each line.
        built: functions, by their first line, that ran while the net was built.
        used: functions that ran while it computed outputs.
    """

    lines: Counter[Place] = field(default_factory=Counter)
    built: set[Place] = field(default_factory=set)
    used: set[Place] = field(default_factory=set)

    @contextmanager
    def record(self, functions: set[Place]) -> Iterator[None]:
        """Count lines, and add the functions that run to ``functions``."""

        def trace(frame: FrameType, event: str, argument: Any) -> Any:
            code = frame.f_code
            if code.co_name.startswith("<"):
                # A comprehension runs the line of its statement once more.
                return None
            if event == "call":
                functions.add((code.co_filename, code.co_firstlineno))
            elif event == "line":
                self.lines[code.co_filename, frame.f_lineno] += 1
            return trace

        outer = sys.gettrace()
        sys.settrace(trace)
        try:
            yield
        finally:
            sys.settrace(outer)


class Branch(NamedTuple):
    """A branch of an ``if``, ``elif`` or ``else``: its line, its test (None: else), its body."""

    header: int
    test: ast.expr | None
    body: list[ast.stmt]

    @property
    def end(self) -> int:
        return self.body[-1].end_lineno or 0


class Outcome(NamedTuple):
    """The branches that run, and whether the only one of them always does."""

    alive: list[Branch]
    always: bool


def decided(tree: ast.Module, file: str, ran: Ran) -> set[Place]:
    """Return the functions of a module that ran while the net was built, and run only then.

    A function that another one names, one that did not run then, may run later.
    """
    only_built = ran.built - ran.used
    functions = [node for node in ast.walk(tree) if isinstance(node, Function)]
    later = [node for node in functions if (file, first_line(node)) not in only_built]
    parts = [part for node in later for part in ast.walk(node)]
    named = {part.id for part in parts if isinstance(part, ast.Name)}
    named |= {part.attr for part in parts if isinstance(part, ast.Attribute)} - {"__init__"}
    classes = [n for n in ast.walk(tree) if isinstance(n, ast.ClassDef) and n.name in named]
    built_later = {id(statement) for node in classes for statement in node.body}
    return {
        (file, first_line(node))
        for node in functions
        if node.name not in named and id(node) not in built_later
    } & only_built


def outcome(
    branches: list[Branch], file: str, lines: Counter[Place], constants: Mapping[str, Any] | None
) -> Outcome | None:
    """Return which branches of an ``if`` run; None if that is not known.

    Args:
        branches: the branches.
        file: file of the module.
        lines: number of runs of each line.
        constants: arguments of the function that are the same in every call; None for a function
            that does not run again.
    """
    if any(isinstance(n, ast.NamedExpr) for b in branches if b.test for n in ast.walk(b.test)):
        return None
    if constants is None:
        alive = [branch for branch in branches if _has_run(branch, file, lines)]
        if len(alive) != 1 or alive[0].test is None:
            return Outcome(alive, False)
        has_else = branches[-1].test is None
        return Outcome(alive, has_else or _always_holds(branches[0], file, lines))
    test = branches[0].test
    names = {n.id for n in ast.walk(test) if isinstance(n, ast.Name)} if test else set()
    if test and names and names <= constants.keys() and len(branches) == 1:
        holds = eval(ast.unparse(test), {}, dict(constants))
        return Outcome(branches if holds else [], bool(holds))
    return None


def _has_run(branch: Branch, file: str, lines: Counter[Place]) -> bool:
    return any(lines[file, line] for line in range(branch.body[0].lineno, branch.end + 1))


def _always_holds(branch: Branch, file: str, lines: Counter[Place]) -> bool:
    """Return whether the body of an ``if`` ran as often as its test.

    Lines of statements that stand on several lines, or have a body, run more often than once.
    """
    assert branch.test is not None
    first = branch.body[0]
    is_simple = not hasattr(first, "body") and first.lineno == first.end_lineno
    test = {branch.header, branch.test.lineno, branch.test.end_lineno or 0}
    if not is_simple or len(test) > 1 or first.lineno == branch.header:
        return False
    return lines[file, branch.header] == lines[file, first.lineno]


def first_line(node: ast.stmt) -> int:
    """Return the line of a statement, or of its first decorator."""
    decorators: list[ast.expr] = getattr(node, "decorator_list", [])
    return min([node.lineno, *(decorator.lineno for decorator in decorators)])


def chains(node: ast.AST, function: Function | None = None) -> Iterator[tuple[ast.If, Function]]:
    """Yield each ``if`` of functions that is no ``elif``, with its function."""
    if isinstance(node, Function):
        function = node
    for name, value in ast.iter_fields(node):
        block = value if isinstance(value, list) else [value]
        is_elif = isinstance(node, ast.If) and name == "orelse" and _is_elif(node)
        for child in block:
            if not isinstance(child, ast.AST):
                continue
            if isinstance(child, ast.If) and function is not None and not is_elif:
                yield child, function
            yield from chains(child, function)


def _is_elif(node: ast.If) -> bool:
    """Return whether the else of an ``if`` is an ``elif``."""
    inner = node.orelse[0] if len(node.orelse) == 1 else None
    return isinstance(inner, ast.If) and inner.col_offset == node.col_offset


def branches_of(node: ast.If) -> Iterator[Branch]:
    """Yield the branches of an ``if`` with its ``elif`` and ``else``."""
    yield Branch(node.lineno, node.test, node.body)
    if _is_elif(node):
        inner = node.orelse[0]
        assert isinstance(inner, ast.If)
        yield from branches_of(inner)
    elif node.orelse:
        # The line of `else:` or of a comment above it.
        yield Branch((node.body[-1].end_lineno or 0) + 1, None, node.orelse)
