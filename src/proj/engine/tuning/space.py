"""Search space of a study: keys of the experiment, each with the values to try."""

import json
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from optuna.trial import BaseTrial

from proj.errors import UserError, nearest

# Optuna's method for each kind of number.
NUMBER_KINDS = {
    "float": "suggest_float",
    "log": "suggest_float",
    "int": "suggest_int",
    "log_int": "suggest_int",
}
KINDS = (*NUMBER_KINDS, "choice")


class Parameter(NamedTuple):
    """One key of the search space.

    Attributes:
        key: the key of the experiment, written as on the command line (``model.optimizer.lr``).
        kind: one of ``KINDS``.
        values: the lowest and the highest number, or the values to choose from.
        when: allowed values of other keys; with other values, the parameter is not set.
    """

    key: str
    kind: str
    values: list[Any]
    when: dict[str, list[Any]]

    def suggest(self, trial: BaseTrial) -> Any:
        """Return the value that the trial's sampler proposes."""
        if self.kind in NUMBER_KINDS:
            suggest_number = getattr(trial, NUMBER_KINDS[self.kind])
            return suggest_number(self.key, *self.values, log=self.kind.startswith("log"))
        # Optuna stores choices as text. As JSON, the list [1] differs from the text "[1]".
        choices = [json.dumps(value) for value in self.values]
        return json.loads(trial.suggest_categorical(self.key, choices))


def read_space(section: Any) -> list[Parameter]:
    """Return the parameters of the section ``space`` of a study file.

    Raises:
        UserError: the section, a kind, a value or a condition is not valid.
    """
    if not isinstance(section, dict) or not section:
        raise UserError(
            f"space: expected keys of the experiment with the values to try, got {section!r}."
        )
    space: list[Parameter] = []
    for key, entry in section.items():
        kinds = [kind for kind in entry if kind != "when"] if isinstance(entry, dict) else []
        if len(kinds) != 1:
            raise UserError(
                f"space.{key}: expected one of {', '.join(KINDS)}, as in {{log: [1e-4, 1e-1]}}, "
                f"got {entry!r}."
            )
        kind = kinds[0]
        if kind not in KINDS:
            raise UserError(f"space.{key}: no such kind {kind!r}.{nearest(kind, KINDS)}")
        conditions = _read_conditions(key, entry.get("when", {}), space)
        parameter = Parameter(key, kind, entry[kind], conditions)
        _check_values(parameter)
        space.append(parameter)
    return space


def _read_conditions(key: str, when: Any, preceding: list[Parameter]) -> dict[str, list[Any]]:
    """Return the allowed values by key; a condition refers to choices that precede it."""
    if not isinstance(when, dict):
        raise UserError(
            f"space.{key}.when: expected keys and their values, as in {{model.net: MLP}}, "
            f"got {when!r}."
        )
    conditions = {
        other: value if isinstance(value, list) else [value] for other, value in when.items()
    }
    choices = {
        parameter.key: parameter.values for parameter in preceding if parameter.kind == "choice"
    }
    for other, values in conditions.items():
        if other not in choices or not all(value in choices[other] for value in values):
            raise UserError(
                f"space.{key}.when: expected an earlier choice and some of its values, "
                f"got {other}: {values}.{nearest(other, choices)}"
            )
    return conditions


def _check_values(parameter: Parameter) -> None:
    key, kind, values = parameter.key, parameter.kind, parameter.values
    path = f"space.{key}.{kind}"
    if not isinstance(values, list) or not values:
        raise UserError(f"{path}: expected a list, got {values!r}.")
    if kind == "choice":
        if len({json.dumps(value) for value in values}) < len(values):
            raise UserError(f"{path}: expected different values, got {values}.")
        return
    number_type = int if kind.endswith("int") else int | float
    are_numbers = all(
        isinstance(value, number_type) and not isinstance(value, bool) for value in values
    )
    if len(values) != 2 or not are_numbers:
        has_text = any(isinstance(value, str) for value in values)
        hint = " (YAML reads 1e-4 as text: write 1.0e-4)" if has_text else ""
        raise UserError(f"{path}: expected two numbers, lowest and highest, got {values}{hint}.")
    low, high = values
    if not low < high or (kind.startswith("log") and low <= 0):
        limit = " above 0" if kind.startswith("log") else ""
        raise UserError(f"{path}: expected a lowest number{limit} and a higher one, got {values}.")


def assign(space: list[Parameter], value_of: Callable[[Parameter], Any]) -> dict[str, Any]:
    """Return the values, by key, of the parameters whose conditions hold."""
    values: dict[str, Any] = {}
    for parameter in space:
        if all(values.get(key) in allowed for key, allowed in parameter.when.items()):
            values[parameter.key] = value_of(parameter)
    return values


def suggest(trial: BaseTrial, space: list[Parameter]) -> dict[str, Any]:
    """Return the settings that the trial's sampler proposes."""
    return assign(space, lambda parameter: parameter.suggest(trial))


def corners(space: list[Parameter]) -> Iterator[dict[str, Any]]:
    """Yield settings that together contain each choice and both ends of each range."""
    by_key = {parameter.key: parameter for parameter in space}

    def fix_conditions(key: str, fixed: dict[str, Any]) -> None:
        """Add the first value that each condition of ``key`` allows, recursively."""
        for other, allowed in by_key[key].when.items():
            fixed.setdefault(other, allowed[0])
            fix_conditions(other, fixed)

    def fixed_or_first(fixed: dict[str, Any]) -> Callable[[Parameter], Any]:
        return lambda parameter: fixed.get(parameter.key, parameter.values[0])

    for parameter in space:
        for value in parameter.values:
            fixed = {parameter.key: value}
            fix_conditions(parameter.key, fixed)
            yield assign(space, fixed_or_first(fixed))
