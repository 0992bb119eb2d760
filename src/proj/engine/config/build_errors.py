"""Convert the error of a class whose constructor has failed to one sentence about its key."""

import re
from collections.abc import Iterator
from typing import Any


def explain_unbuilt(text: str, experiment: dict[str, Any]) -> str | None:
    """Return one sentence for a class whose constructor has failed, None for another error text.

    Args:
        text: the error text of jsonargparse, in which the reason is one of many lines.
        experiment: the experiment, for the key that names the class.
    """
    if match := re.search(r"Problem with given class_path '([^']+)':\s+(?:- )?(.+)", text):
        path, reason = match[1], match[2]
    elif match := re.search(
        r"Errors:\n(?:\s*- Expected .*\n)*\s*- (?!Expected|Not a valid)(.+)", text
    ):
        # The constructor's own text, among the refusals of the other types of a union.
        given = re.search(r"\nGiven value: .*?class_path='([^']+)'", text)
        path, reason = given[1] if given else "", match[1]
    else:
        return None
    reason = reason.strip().rstrip(".")
    key, name = next(_keys_of(path, experiment), "the experiment"), path.rpartition(".")[2] or "it"
    if needed := re.match(r"Requirement '(.+?)' not met", reason):
        return (
            f"{key}: {name} needs {needed[1]}, which is not installed; install it with "
            f"`pip install '{needed[1]}'`, or choose another."
        )
    return f"{key}: {name} cannot be built: {reason}."


def _keys_of(class_path: str, value: Any, key: str = "") -> Iterator[str]:
    """Yield the dotted keys whose value is a class of this path."""
    if isinstance(value, dict):
        if value.get("class_path") == class_path:
            yield key
        for name, inner in value.items():
            yield from _keys_of(class_path, inner, f"{key}.{name}".strip("."))
    elif isinstance(value, list):
        for inner in value:
            yield from _keys_of(class_path, inner, key)
