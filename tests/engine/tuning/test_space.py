"""Search space: its settings, its corners and its error messages."""

import itertools
from typing import Any

import optuna
import pytest

from proj.engine.tuning.space import assign, corners, read_space, suggest
from proj.errors import UserError

SPACE = {
    "a": {"choice": ["x", "y"]},
    "b": {"log": [1e-4, 1e-1]},
    "c": {"int": [1, 3], "when": {"a": "y"}},
    "d": {"choice": [[1, 2], None, True], "when": {"a": ["x", "y"]}},
    "e": {"log_int": [8, 512], "when": {"d": [[1, 2]]}},
}


def test_settings_lie_in_the_space_and_meet_their_conditions() -> None:
    """Sampled values are within their limits, and conditional keys are set only when they apply."""
    space = read_space(SPACE)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    seen = set()
    for _ in range(100):
        values = suggest(study.ask(), space)
        assert 1e-4 <= values["b"] <= 1e-1
        assert ("c" in values) == (values["a"] == "y")
        assert values.get("c", 1) in (1, 2, 3)
        assert ("e" in values) == (values["d"] == [1, 2])
        seen.add((values["a"], str(values["d"]), values["b"] < 3e-3))
    # On a log scale, half of the values lie below the geometric mean.
    assert len(seen) == 2 * 3 * 2


def test_each_choice_and_each_limit_is_in_a_corner() -> None:
    """The corners together have every value, and each corner is a possible setting."""
    space = read_space(SPACE)
    all_corners = list(corners(space))
    for parameter in space:
        for value in parameter.values:
            assert any(
                parameter.key in corner and corner[parameter.key] == value for corner in all_corners
            ), parameter
    possible = [
        dict(zip(SPACE, values, strict=True))
        for values in itertools.product(*(p.values for p in space))
    ]
    allowed = [
        assign(space, lambda parameter, values=values: values[parameter.key]) for values in possible
    ]
    assert all(corner in allowed for corner in all_corners)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (None, "expected keys of the experiment"),
        ({"a": 3}, "expected one of float, log, int, log_int, choice"),
        ({"a": {"log": [1, 2], "int": [1, 2]}}, "expected one of float"),
        ({"a": {"chocie": [1]}}, "Did you mean 'choice'"),
        ({"a": {"choice": []}}, "expected a list"),
        ({"a": {"choice": [1, 1]}}, "expected different values"),
        ({"a": {"log": ["1e-4", 1]}}, "write 1.0e-4"),
        ({"a": {"log": [0, 1]}}, "above 0"),
        ({"a": {"float": [2, 1]}}, "a higher one"),
        ({"a": {"int": [1.5, 3]}}, "expected two numbers"),
        ({"a": {"int": [1, 2, 3]}}, "expected two numbers"),
        ({"a": {"int": [1, 2], "when": {"b": 1}}}, "an earlier choice"),
        ({"b": {"choice": ["x"]}, "a": {"int": [1, 2], "when": {"b": "z"}}}, "some of its values"),
    ],
)
def test_each_mistake_has_its_message(space: Any, message: str) -> None:
    """A mistake in the space is a UserError that names it."""
    with pytest.raises(UserError, match=message):
        read_space(space)
