"""What a study searches through: keys of an experiment, each with its values."""

import json
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from optuna.trial import BaseTrial

from proj.errors import UserError, nearest

NUMBERS = {
    "float": "suggest_float",
    "log": "suggest_float",
    "int": "suggest_int",
    "log_int": "suggest_int",
}
KINDS = (*NUMBERS, "choice")


class Parameter(NamedTuple):
    """A key, as a flag has it, and its values: ``low`` and ``high`` of numbers, or the values to choose from.

    ``when`` says which values other keys must have for this one to be there at all.
    """

    key: str
    kind: str
    values: list[Any]
    when: dict[str, list[Any]]

    def suggest(self, trial: BaseTrial) -> Any:
        if self.kind in NUMBERS:
            suggest = getattr(trial, NUMBERS[self.kind])
            return suggest(self.key, *self.values, log=self.kind.startswith("log"))
        return json.loads(
            trial.suggest_categorical(self.key, [json.dumps(value) for value in self.values])
        )


def read_space(section: Any) -> list[Parameter]:
    """The section ``space`` of a study's file; UserError where it does not say what it should."""
    if not isinstance(section, dict) or not section:
        raise UserError(
            f"space: expected keys of the experiment and what to try for each, got {section!r}."
        )
    space: list[Parameter] = []
    for key, value in section.items():
        if (
            not isinstance(value, dict)
            or len(kinds := [kind for kind in value if kind != "when"]) != 1
        ):
            raise UserError(
                f"space.{key}: expected one of {', '.join(KINDS)}, as in {{log: [1e-4, 1e-1]}}, got {value!r}."
            )
        if kinds[0] not in KINDS:
            raise UserError(f"space.{key}: no such kind {kinds[0]!r}.{nearest(kinds[0], KINDS)}")
        parameter = Parameter(
            key, kinds[0], value[kinds[0]], _conditions(key, value.get("when", {}), space)
        )
        _check(parameter)
        space.append(parameter)
    return space


def _conditions(key: str, when: Any, before: list[Parameter]) -> dict[str, list[Any]]:
    if not isinstance(when, dict):
        raise UserError(
            f"space.{key}.when: expected keys and their values, as in {{model.net: MLP}}, got {when!r}."
        )
    conditions = {
        other: value if isinstance(value, list) else [value] for other, value in when.items()
    }
    choices = {
        parameter.key: parameter.values for parameter in before if parameter.kind == "choice"
    }
    for other, values in conditions.items():
        if other not in choices or not all(value in choices[other] for value in values):
            raise UserError(
                f"space.{key}.when: expected a choice that stands before it and some of its values, "
                f"got {other}: {values}.{nearest(other, choices)}"
            )
    return conditions


def _check(parameter: Parameter) -> None:
    key, kind, values = parameter.key, parameter.kind, parameter.values
    where = f"space.{key}.{kind}"
    if not isinstance(values, list) or not values:
        raise UserError(f"{where}: expected a list, got {values!r}.")
    if kind == "choice":
        if len({json.dumps(value) for value in values}) < len(values):
            raise UserError(f"{where}: expected different values, got {values}.")
        return
    wanted = int if kind.endswith("int") else int | float
    if len(values) != 2 or not all(
        isinstance(value, wanted) and not isinstance(value, bool) for value in values
    ):
        hint = (
            " (YAML takes 1e-4 for a text: write 1.0e-4)"
            if any(isinstance(value, str) for value in values)
            else ""
        )
        raise UserError(
            f"{where}: expected two numbers, the least and the largest, got {values}{hint}."
        )
    if not values[0] < values[1] or (kind.startswith("log") and values[0] <= 0):
        raise UserError(
            f"{where}: expected a least number{' above 0' if kind.startswith('log') else ''} and a larger one, "
            f"got {values}."
        )


def assign(space: list[Parameter], value_of: Callable[[Parameter], Any]) -> dict[str, Any]:
    """A value for every parameter whose conditions hold."""
    values: dict[str, Any] = {}
    for parameter in space:
        if all(values.get(key) in allowed for key, allowed in parameter.when.items()):
            values[parameter.key] = value_of(parameter)
    return values


def suggest(trial: BaseTrial, space: list[Parameter]) -> dict[str, Any]:
    return assign(space, lambda parameter: parameter.suggest(trial))


def corners(space: list[Parameter]) -> Iterator[dict[str, Any]]:
    """Assignments in which each choice and each end of a range comes up at least once."""
    by_key = {parameter.key: parameter for parameter in space}
    for parameter in space:
        for value in parameter.values:
            fixed = {parameter.key: value}
            for key in list(fixed):  # what has to be chosen for it to be there
                wanted = [key]
                while wanted:
                    for other, allowed in by_key[wanted.pop()].when.items():
                        fixed.setdefault(other, allowed[0])
                        wanted.append(other)
            yield assign(space, lambda other, fixed=fixed: fixed.get(other.key, other.values[0]))  # type: ignore[misc]


def flags(values: dict[str, Any]) -> list[str]:
    """Values as flags of the command line."""
    texts = {
        key: value if isinstance(value, str) else json.dumps(value) for key, value in values.items()
    }
    return [word for key, text in texts.items() for word in (f"--{key}", text)]
