"""Read YAML files strictly: a mistake in a file is one message with the line."""

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml
from yaml.constructor import ConstructorError
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from proj.errors import UserError

# An experiment nests about ten levels. Reading and checking takes a function call for each.
MAX_DEPTH = 100
# Values after each alias is replaced by what it stands for.
MAX_VALUES = 100_000

PLAIN_TYPES = ("null", "bool", "int", "float", "str", "seq", "map")
# YAML 1.1 also reads 1:30 as 90 and 016 as 14.
DECIMAL = re.compile(r"[-+]?(0|[1-9][0-9_]*)|[-+]?0x[0-9a-fA-F_]+")
LARGEST = 2**63 - 1


def read_yaml(path: Path) -> Any:
    """Return the content of a YAML file: texts, numbers, booleans, lists and dictionaries.

    Raises:
        OSError: the file cannot be opened.
        UserError: it is not UTF-8 or not YAML, or it holds a duplicate key, a number in another
            form than plain decimal, a value of another type, or too much.
    """
    content = path.read_bytes()
    try:
        return yaml.load(content.decode("utf-8-sig"), _StrictLoader)
    except UnicodeDecodeError as error:
        problem, line = f"{error.reason} in UTF-8; save it as UTF-8", _line(content, error.start)
    except yaml.reader.ReaderError as error:
        problem = f"the character #x{error.character:04x} is not allowed"
        line = _line(content.decode("utf-8-sig")[: error.position].encode(), error.position)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = " ".join(filter(None, (error.context, error.problem)))
        if "'\\t'" in problem:
            problem += "; indent with spaces"
        line = mark.line + 1 if mark else 1
    raise UserError(f"{path} is not valid YAML: line {line}: {problem}.")


def _line(content: bytes, position: int) -> int:
    """Return the number of the line at a position, counted from 1."""
    return content.count(b"\n", 0, position) + 1


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader of plain values, with limits on depth and size, and without duplicate keys."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.depth = 0

    def compose_node(self, parent: Node | None, index: int) -> Node | None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise _error(f"nested more than {MAX_DEPTH} levels deep", mark)
        node: Node | None = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def get_single_data(self) -> Any:
        node = self.get_single_node()
        if node is None:
            return None
        _check_size(node, {})
        return self.construct_document(node)

    def construct_object(self, node: Node, deep: bool = False) -> Any:
        kind = str(node.tag).rpartition(":")[2]
        if node.tag != f"tag:yaml.org,2002:{kind}" or kind not in PLAIN_TYPES:
            kind = {"timestamp": "a date", "binary": "binary data"}.get(kind, str(node.tag))
            raise _error(
                f"expected texts, numbers, lists and sections, got {kind}; put quotes around it",
                node.start_mark,
            )
        if isinstance(node, ScalarNode) and kind == "int":
            _check_integer(node)
        try:
            return super().construct_object(node, deep)
        except ValueError as error:
            raise _error(f"cannot be read: {error}", node.start_mark) from error

    def construct_mapping(self, node: MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if not isinstance(key, ScalarNode):
                continue
            name = (key.tag, key.value)
            if name in lines:
                raise _error(
                    f"the key {key.value} is already in line {lines[name]}; keep one of them",
                    key.start_mark,
                )
            lines[name] = key.start_mark.line + 1
        return super().construct_mapping(node, deep)


def _error(problem: str, mark: Any) -> ConstructorError:
    return ConstructorError(None, None, problem, mark)


def _check_integer(node: ScalarNode) -> None:
    """Raise ConstructorError unless an integer is plain decimal or hexadecimal, of 64 bits."""
    text = node.value if len(node.value) < 40 else f"{node.value[:30]}…"
    if not DECIMAL.fullmatch(node.value):
        raise _error(
            f"expected a decimal number, got {text}, which YAML reads in another base; write it "
            "without leading zeros and colons, or put quotes around a text",
            node.start_mark,
        )
    digits = node.value.replace("_", "")
    if len(digits) > 30 or abs(int(digits, 0)) > LARGEST:
        raise _error(f"expected a number of at most 64 bits, got {text}", node.start_mark)


def _check_size(node: Node, sizes: dict[int, int]) -> int:
    """Return the number of values in a node with its aliases replaced.

    ``sizes`` holds those of the nodes that were counted, by identity; 0 while one is counted.

    Raises ConstructorError if an alias is inside its own value, or there are too many values.
    """
    if id(node) in sizes:
        if not sizes[id(node)]:
            raise _error("an alias stands inside its own value", node.start_mark)
        return sizes[id(node)]
    sizes[id(node)] = 0
    inner: list[Node] = []
    if isinstance(node, SequenceNode):
        inner = node.value
    elif isinstance(node, MappingNode):
        inner = [part for pair in node.value for part in pair]
    size = 1 + sum(_check_size(part, sizes) for part in inner)
    if size > MAX_VALUES:
        raise _error(f"more than {MAX_VALUES:,} values, with those of aliases", node.start_mark)
    sizes[id(node)] = size
    return size
