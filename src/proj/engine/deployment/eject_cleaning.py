"""Clean the source text of a definition: no annotations, short docstrings, no dead branches."""

import ast
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, NamedTuple, TypeAlias

WIDTH = 100
# Remarks for linters of the source, which do not apply to the text.
REMARKS = re.compile(r"\s*# (type: ignore|noqa|fmt:).*")

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


class Cleaner:
    """Text of the definitions of one module.

    Args:
        file: file of the module.
        lines: its lines.
        ran: the lines that ran.
    """

    def __init__(self, file: str, lines: Sequence[str], ran: Ran) -> None:
        self.file, self.source, self.ran = file, lines, ran
        self.lines: list[str | None] = []

    def clean(
        self, node: ast.stmt, constants: Mapping[str, Any], dropped: Sequence[ast.stmt]
    ) -> str:
        """Return the text of a definition, with the comments above it.

        Branches of functions that ran while the net was built, and only then, are removed if they
        did not run: with the same arguments, they do not run again.

        Args:
            node: the definition.
            constants: arguments of the function that are the same in every call.
            dropped: statements to leave out.
        """
        self.lines = [*self.source]
        start = first_line(node)
        while start > 1 and self.source[start - 2].startswith("#"):
            start -= 1
        self._shorten(node)
        self._remove_annotations(node)
        for function in [n for n in ast.walk(node) if isinstance(n, Function)]:
            self._replace_signature(function)
        for chain, function, is_alone in _chains(node):
            self._prune(chain, function, constants, is_alone)
        for statement in dropped:
            self._delete(statement.lineno, statement.end_lineno or 0)
        kept = [line for line in self.lines[start - 1 : node.end_lineno] if line is not None]
        return _normalize(kept)

    def _delete(self, first: int, last: int) -> None:
        self.lines[first - 1 : last] = [None] * (last - first + 1)

    # Docstrings and annotations

    def _shorten(self, node: ast.stmt) -> None:
        """Keep the first paragraph of docstrings."""
        for inner in ast.walk(node):
            if not isinstance(inner, Function | ast.ClassDef) or not ast.get_docstring(inner):
                continue
            text = inner.body[0]
            first, last = text.lineno, text.end_lineno or 0
            blank = [n for n in range(first, last) if not self.source[n].strip()]
            if blank and self.source[first - 1].strip().startswith('"""'):
                self._delete(blank[0] + 1, last)
                self.lines[blank[0] - 1] = f'{self.source[blank[0] - 1]}"""'

    def _remove_annotations(self, node: ast.stmt) -> None:
        """Remove the annotations of variables, but not of the fields of a dataclass."""
        kept = {
            id(statement)
            for inner in ast.walk(node)
            if isinstance(inner, ast.ClassDef) and (inner.decorator_list or _is_tuple(inner))
            for statement in inner.body
        }
        annotated = [n for n in ast.walk(node) if isinstance(n, ast.AnnAssign)]
        for inner in annotated:
            if id(inner) in kept:
                continue
            if inner.value is None:
                self._delete(inner.lineno, inner.end_lineno or 0)
                continue
            end, last = inner.annotation.end_lineno or 0, inner.target.end_lineno or 0
            before = _until(self.source[last - 1], inner.target.end_col_offset or 0)
            after = _from(self.source[end - 1], inner.annotation.end_col_offset or 0)
            self._delete(last, end)
            if (returned := _returned(node, inner)) is not None:
                # The value had a name for its annotation only.
                before = f"{before[: inner.col_offset]}return"
                after = after.removeprefix(" =")
                self._delete(returned.lineno, returned.end_lineno or 0)
            self.lines[last - 1] = before + after

    def _replace_signature(self, node: Function) -> None:
        """Write the signature of a function without annotations."""
        indent = self.source[node.lineno - 1][: node.col_offset]
        parts = [*self._parameters(node.args)]
        keyword = "async def" if isinstance(node, ast.AsyncFunctionDef) else "def"
        start = f"{indent}{keyword} {node.name}("
        text = f"{start}{', '.join(parts)}):"
        if len(text) > WIDTH:
            inner = f"{indent}    {', '.join(parts)}"
            if len(inner) > WIDTH:
                inner = "\n".join(f"{indent}    {part}," for part in parts)
            text = f"{start}\n{inner}\n{indent}):"
        body = node.body[0]
        last = self._signature_end(node)
        if body.lineno == last:
            line = _from(self.source[last - 1], body.col_offset)
            text = f"{text}\n{indent}    {line}"
        self._delete(node.lineno, last)
        self.lines[node.lineno - 1] = text

    def _signature_end(self, node: Function) -> int:
        """Return the last line of the signature of a function."""
        arguments = node.args
        parts = [*arguments.defaults, *filter(None, arguments.kw_defaults)]
        named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
        extra = filter(None, [arguments.vararg, arguments.kwarg])
        nodes: list[ast.expr | ast.arg] = [*parts, *named, *extra]
        ends = [part.end_lineno or 0 for part in nodes]
        end = max([node.lineno, *ends, (node.returns.end_lineno or 0) if node.returns else 0])
        first = first_line(node.body[0])
        while end < first and not self.source[end - 1].partition("  #")[0].rstrip().endswith(":"):
            end += 1
        return end

    def _parameters(self, arguments: ast.arguments) -> Iterator[str]:
        positional = [*arguments.posonlyargs, *arguments.args]
        missing = len(positional) - len(arguments.defaults)
        defaults = [*([None] * missing), *arguments.defaults]
        for i, (argument, default) in enumerate(zip(positional, defaults, strict=True), 1):
            yield self._parameter(argument, default)
            if i == len(arguments.posonlyargs):
                yield "/"
        if arguments.vararg:
            yield f"*{arguments.vararg.arg}"
        elif arguments.kwonlyargs:
            yield "*"
        for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
            yield self._parameter(argument, default)
        if arguments.kwarg:
            yield f"**{arguments.kwarg.arg}"

    def _parameter(self, argument: ast.arg, default: ast.expr | None) -> str:
        if default is None:
            return argument.arg
        text = ast.get_source_segment("\n".join(self.source), default)
        return f"{argument.arg}={text}"

    # Branches

    def _prune(
        self, node: ast.If, function: Function, constants: Mapping[str, Any], is_alone: bool
    ) -> None:
        """Remove the branches of an ``if`` that never run, and its test if it always holds."""
        branches = [*_branches(node)]
        known = self._known(branches, function, constants)
        if known is None:
            return
        alive, always = known
        end = branches[-1].end
        if not alive:
            if is_alone:  # A block needs a statement.
                return
            first = node.lineno
            while (self.source[first - 2]).strip().startswith("#"):
                first -= 1
            self._delete(first, end)
            return
        for branch in branches:
            if branch not in alive:
                following = [b.header for b in branches if b.header > branch.header]
                self._delete(branch.header, min(following, default=end + 1) - 1)
        if always or alive[0].test is None:
            self._unwrap(alive[0], node.col_offset)
        elif (line := self.lines[alive[0].header - 1]) is not None:
            self.lines[alive[0].header - 1] = line.replace("elif ", "if ", 1)

    def _known(
        self, branches: list[Branch], function: Function, constants: Mapping[str, Any]
    ) -> tuple[list[Branch], bool] | None:
        """Return the branches that run and whether the only one always does; None if not known."""
        if any(isinstance(n, ast.NamedExpr) for b in branches if b.test for n in ast.walk(b.test)):
            return None
        place = self.file, first_line(function)
        if place in self.ran.built - self.ran.used:
            alive = [branch for branch in branches if self._runs(branch)]
            has_else = branches[-1].test is None
            once = alive and alive[0] is branches[0] and alive[0].header == alive[0].body[0].lineno
            counts = [self.ran.lines[self.file, n] for n in _first_lines(branches[0])]
            always = len(alive) == 1 and (has_else or (not once and counts[0] == counts[1]))
            return alive, always and alive[0].test is not None
        first = branches[0].test
        names = {n.id for n in ast.walk(first) if isinstance(n, ast.Name)} if first else set()
        if constants and names and names <= constants.keys() and len(branches) == 1:
            holds = eval(ast.unparse(first or ast.Constant(False)), {}, dict(constants))
            return (branches, True) if holds else ([], False)
        return None

    def _runs(self, branch: Branch) -> bool:
        lines = range(branch.body[0].lineno, branch.end + 1)
        return any(self.ran.lines[self.file, line] for line in lines)

    def _unwrap(self, branch: Branch, column: int) -> None:
        """Remove the test of a branch and the indentation of its body."""
        first = first_line(branch.body[0])
        for number in range(branch.header, first):
            if not self.source[number - 1].strip().startswith("#"):
                self.lines[number - 1] = None
        indent = branch.body[0].col_offset - column
        for number in range(branch.header - 1, branch.end):
            line = self.lines[number]
            self.lines[number] = line[indent:] if line else line


def first_line(node: ast.stmt) -> int:
    """Return the line of a statement, or of its first decorator."""
    decorators: list[ast.expr] = getattr(node, "decorator_list", [])
    return min([node.lineno, *(decorator.lineno for decorator in decorators)])


def _first_lines(branch: Branch) -> tuple[int, int]:
    return branch.header, branch.body[0].lineno


def _chains(
    node: ast.AST, function: Function | None = None
) -> Iterator[tuple[ast.If, Function, bool]]:
    """Yield each ``if`` of functions, its function, and whether it is alone in its block."""
    if isinstance(node, Function):
        function = node
    for name, value in ast.iter_fields(node):
        block = value if isinstance(value, list) else [value]
        is_elif = isinstance(node, ast.If) and name == "orelse" and _is_elif(node)
        for child in block:
            if not isinstance(child, ast.AST):
                continue
            if isinstance(child, ast.If) and function is not None and not is_elif:
                yield child, function, len(block) == 1
            yield from _chains(child, function)


def _is_elif(node: ast.If) -> bool:
    """Return whether the else of an ``if`` is an ``elif``."""
    inner = node.orelse[0] if len(node.orelse) == 1 else None
    return isinstance(inner, ast.If) and inner.col_offset == node.col_offset


def _branches(node: ast.If) -> Iterator[Branch]:
    yield Branch(node.lineno, node.test, node.body)
    if _is_elif(node):
        inner = node.orelse[0]
        assert isinstance(inner, ast.If)
        yield from _branches(inner)
    elif node.orelse:
        # The line of `else:` or of a comment above it.
        yield Branch((node.body[-1].end_lineno or 0) + 1, None, node.orelse)


def _returned(node: ast.stmt, assignment: ast.AnnAssign) -> ast.Return | None:
    """Return the statement that returns the assigned variable on the next line, if there is one."""
    for inner in ast.walk(node):
        if (
            isinstance(inner, ast.Return)
            and inner.lineno == (assignment.end_lineno or 0) + 1
            and inner.col_offset == assignment.col_offset
            and isinstance(inner.value, ast.Name)
            and ast.unparse(assignment.target) == inner.value.id
        ):
            return inner
    return None


def _is_tuple(node: ast.ClassDef) -> bool:
    return any(isinstance(base, ast.Name) and base.id == "NamedTuple" for base in node.bases)


def _until(line: str, column: int) -> str:
    """Return a line up to a column, which counts bytes."""
    return line.encode()[:column].decode()


def _from(line: str, column: int) -> str:
    return line.encode()[column:].decode()


def _normalize(lines: list[str]) -> str:
    """Return lines without remarks for linters and without blank lines that are left over."""
    kept: list[str] = []
    for line in (REMARKS.sub("", part).rstrip() for text in lines for part in text.split("\n")):
        after_opening = not kept or not kept[-1] or kept[-1].endswith((":", "(", "["))
        if line or not after_opening:
            kept.append(line)
    return "\n".join(kept).rstrip()
