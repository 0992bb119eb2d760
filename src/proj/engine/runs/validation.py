"""Types of plain values: what a JSON or YAML file must hold, and what is wrong with it."""

import reprlib
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints, is_typeddict

# A config has some hundred values, at most ten levels deep. Aliases can make a small file huge.
MAX_NODES, MAX_DEPTH = 100_000, 100
# Larger integers are no floats.
LARGEST = 2**1023

WORDS: dict[Any, str] = {
    str: "text",
    int: "an integer",
    float: "a number",
    bool: "true or false",
    NoneType: "null",
    dict: "a mapping",
    list: "a list",
}
_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxlong = 2, 60, 60


def mismatch(value: Any, kind: Any, key: str = "") -> str | None:
    """Return what is wrong with a plain value, or None if it is of a type.

    Args:
        value: what ``json.loads`` returns.
        kind: ``Any``, ``str``, ``int``, ``float``, ``bool``, ``None``, a ``TypedDict``, a
            ``Literal`` of texts, or a union, list or dict of these. As in Python, an integer is a
            float, too. A mapping may have more keys than its ``TypedDict``.
        key: dotted key of the value, for the message.

    >>> mismatch({"start": None}, dict[str, str])
    'start: expected text, got None'
    """
    origin, arguments, place = get_origin(kind), get_args(kind), f"{key}: " if key else ""
    parts: list[tuple[str, Any, Any]] = []
    if origin in (Union, UnionType):
        problems = [mismatch(value, alternative, key) for alternative in arguments]
        # A problem inside the value says more than the list of alternatives.
        inside = [text for text in problems if text and not text.startswith(f"{place}expected")]
        is_valid = None in problems
        if inside and not is_valid:
            return inside[0]
    elif is_typeddict(kind):
        is_valid = isinstance(value, dict)
        if is_valid and (missing := sorted(kind.__required_keys__ - value.keys())):
            return f"{place}expected the key {missing[0]}, got none"
        hints = _hints(kind) if is_valid else {}
        parts = [(name, value[name], hint) for name, hint in hints.items() if name in value]
    elif origin is dict:
        is_valid = isinstance(value, dict)
        parts = [(name, value[name], arguments[1]) for name in value] if is_valid else []
    elif origin is list:
        is_valid = isinstance(value, list)
        parts = [(str(i), value[i], arguments[0]) for i in range(len(value))] if is_valid else []
    else:
        is_valid = _is_scalar(value, kind)
    if not is_valid:
        return f"{place}expected {_words(kind)}, got {shown(value)}"
    for name, inner, inner_kind in parts:
        if inner_kind is not Any and (problem := mismatch(inner, inner_kind, _join(key, name))):
            return problem
    return None


def _is_scalar(value: Any, kind: Any) -> bool:
    if get_origin(kind) is Literal:
        return isinstance(value, str) and value in get_args(kind)
    if kind is float:
        return type(value) in (int, float) and abs(value) < LARGEST
    return kind is Any or type(value) is kind


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)


def _join(key: str, name: str) -> str:
    return f"{key}.{shown(name)[1:-1]}".strip(".")


def _words(kind: Any) -> str:
    if get_origin(kind) in (Union, UnionType, Literal):
        return " or ".join(a if isinstance(a, str) else _words(a) for a in get_args(kind))
    return WORDS.get(get_origin(kind) or kind, "a mapping")


def shown(value: Any) -> str:
    """Return the beginning of a value in one line of printable characters.

    It stays short for values that aliases in YAML have made huge.
    """
    return _SHORT.repr(value)


def check_tree(value: dict[str, Any]) -> None:
    """Raise ValueError if nested values are too deep or too many, where each alias counts again.

    The values are those of YAML: an integer in hexadecimal digits may be too large to be printed.
    """
    stack: list[tuple[Any, int]] = [(value, 0)]
    nodes = 0
    while stack:
        inner, depth = stack.pop()
        nodes += 1
        if depth > MAX_DEPTH or nodes > MAX_NODES:
            limit = f"{MAX_DEPTH} levels" if depth > MAX_DEPTH else f"{MAX_NODES:,} values"
            raise ValueError(f"expected at most {limit}, got more")
        if isinstance(inner, dict):
            stack += [(child, depth + 1) for pair in inner.items() for child in pair]
        elif isinstance(inner, list):
            stack += [(child, depth + 1) for child in inner]
        elif isinstance(inner, int) and abs(inner) >= LARGEST:
            raise ValueError("expected a number, got an integer with too many digits")
