"""Write plain values of unknown origin as YAML that is read back as the same values."""

import sys
from typing import Any

import yaml

from proj.engine.escaping import visible


class _Dumper(yaml.SafeDumper):
    """A dumper that puts double quotes around texts with hidden characters.

    PyYAML itself writes some line breaks as they are, and reads them as others.
    """


def _represent_text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    style = None if visible(text) == text else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style)


_Dumper.add_representer(str, _represent_text)


def yaml_document(value: Any, **options: Any) -> str:
    """Return plain values as YAML with one line for each text; ``options`` are PyYAML's."""
    # The key order of experiments has a meaning for their readers.
    options = {"sort_keys": False, "width": sys.maxsize, **options}
    text: str = yaml.dump(value, Dumper=_Dumper, allow_unicode=True, **options)
    if visible(text, keep="\n") != text:
        text = yaml.dump(value, Dumper=_Dumper, allow_unicode=False, **options)
    return text


def yaml_value(value: Any) -> str:
    r"""Return a plain value as YAML on one line, for any place that takes a value.

    >>> print(yaml_value(["a: b", "c\n"]))
    ['a: b', "c\n"]
    """
    # In a list, texts with a comma get quotes.
    return yaml_document([value], default_flow_style=True).strip()[1:-1]


def yaml_key(name: str) -> str:
    """Return a key of a block mapping with its colon; long ones take two lines."""
    return yaml_document({name: None}).removesuffix(" null\n")
