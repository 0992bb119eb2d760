"""Clean the source text of a definition: no annotations, short docstrings, no dead branches."""

import ast
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from proj.engine.deployment.eject_branches import (
    Branch,
    Function,
    Ran,
    branches_of,
    chains,
    decided,
    first_line,
    outcome,
)

WIDTH = 100
# Remarks for linters of the source, which do not apply to the text.
REMARKS = re.compile(r"\s*# (type: ignore|noqa|fmt:).*")


class Cleaner:
    """Text of the definitions of one module.

    Args:
        file: file of the module.
        lines: its lines.
        ran: the lines that ran.
    """

    def __init__(self, file: str, lines: Sequence[str], ran: Ran) -> None:
        self.file, self.source, self.counts = file, lines, ran.lines
        self.decided = decided(ast.parse("\n".join(lines)), file, ran)
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
        for chain, function in chains(node):
            self._prune(chain, function, constants)
        self._fill_blocks(node)
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

    def _prune(self, node: ast.If, function: Function, constants: Mapping[str, Any]) -> None:
        """Remove the branches of an ``if`` that never run, and its test if it always holds."""
        branches = [*branches_of(node)]
        runs_again = (self.file, first_line(function)) not in self.decided
        assigned = {
            name.id
            for name in ast.walk(function)
            if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store)
        }
        unchanged = {name: v for name, v in constants.items() if name not in assigned}
        known = outcome(branches, self.file, self.counts, unchanged if runs_again else None)
        if known is None:
            return
        alive, always = known
        end = branches[-1].end
        if not alive:
            first = node.lineno
            while self.source[first - 2].strip().startswith("#"):
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

    def _fill_blocks(self, node: ast.stmt) -> None:
        """Write `pass` into blocks that have no statement left."""
        for inner in ast.walk(node):
            if not isinstance(inner, ast.stmt):
                continue
            for name in ("body", "orelse", "finalbody"):
                block = getattr(inner, name, [])
                if not block or self._has_statement(block):
                    continue
                before = first_line(block[0]) - 1
                while before > inner.lineno and not _is_statement(self.lines[before - 1]):
                    before -= 1
                header = self.lines[before - 1] or ""
                if header.partition("  #")[0].rstrip().endswith(":"):
                    indent = len(header) - len(header.lstrip())
                    self.lines[before - 1] = f"{header}\n{' ' * (indent + 4)}pass"

    def _has_statement(self, block: list[ast.stmt]) -> bool:
        return any(map(_is_statement, self.lines[first_line(block[0]) - 1 : block[-1].end_lineno]))

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


def _is_statement(line: str | None) -> bool:
    return line is not None and not line.lstrip().startswith("#")


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
