"""Secrets that a run has not recorded, and that its config needs again."""

import re
from typing import Any

from proj.engine import console
from proj.engine.config.arguments import as_flags
from proj.engine.secrets import is_placeholder
from proj.engine.write_paths import flag_key, texts
from proj.errors import UserError


def fill_placeholders(
    verb: str, configs: list[dict[str, Any]], flags: list[str]
) -> list[dict[str, Any]]:
    """Return configs without the placeholders that a later config or a flag overrides.

    Raises:
        UserError: if the value of a placeholder is missing. The Trainer's loggers and callbacks
            need none in the verbs that do not train.
    """
    given = [{flag_key(word.partition("=")[0][2:]) for word in flags if word.startswith("--")}]
    filled: list[dict[str, Any]] = []
    for config in reversed(configs):
        missing = []
        for key, text in texts(config):
            if not is_placeholder(text) or _is_given(flag_key(key), given):
                continue
            if verb in ("fit", "check") or not key.startswith("trainer."):
                missing.append(key)
        if missing:
            raise UserError(
                f"{', '.join(missing)}: expected the value, got a config without it, because the "
                f"run did not record it; add --{flag_key(missing[0])} VALUE, or a file with it "
                "after this one, --config FILE."
            )
        filled.insert(0, _without(config, "", given))
        given.append({flag_key(key) for key, text in texts(config) if not is_placeholder(text)})
    return filled


def _is_given(key: str, given: list[set[str]]) -> bool:
    """Return whether a key is given, or a class or section that replaces the one it belongs to."""
    names = key.split(".")
    # A class at the top, `--data Tabular`, replaces nothing.
    sections = {".".join(names[:end]) for end in range(2, len(names))}
    return any(keys & {key, *sections} for keys in given)


def _without(value: Any, key: str, given: list[set[str]]) -> Any:
    """Return a copy of nested values without the placeholders that are given elsewhere."""
    if isinstance(value, dict):
        return {
            name: _without(inner, f"{key}.{name}".strip("."), given)
            for name, inner in value.items()
            if not (is_placeholder(inner) and _is_given(flag_key(f"{key}.{name}"), given))
        }
    if isinstance(value, list):
        return [_without(item, key, given) for item in value]
    return value


def secret_flags(secrets: dict[str, Any]) -> list[str]:
    """Return secrets by key as flags, except for those in lists, for which there are no flags."""
    return as_flags({key: value for key, value in secrets.items() if not re.search(r"\.\d", key)})


def show_not_recorded(secrets: dict[str, Any]) -> None:
    """Tell the user once which values a run does not record."""
    if secrets:
        console.say(
            f"not recorded: {', '.join(secrets)}; give the value again to repeat or resume the run."
        )
