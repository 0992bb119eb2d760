"""Cleaned functions compute what they computed: random functions with branches and loops."""

import ast
import random
from pathlib import Path
from typing import Any

import pytest

from proj.engine.deployment.eject_branches import Ran, decided
from proj.engine.deployment.eject_cleaning import Cleaner

STATEMENTS = (
    "t.append(1)",
    "t.append(\n{0}    2\n{0})",
    "t.extend([x for x in range(a)])",
    "t.append((lambda: 3)())",
    "b = b + 1",
    "a: int = a - 1",
)
TESTS = (
    *("a > 1", "b", "a > b and c", "c == 0", "len(t) > 2", "any(x > 1 for x in t)"),
    *("(\n{0}    a\n{0}    > 2\n{0})", "(b := a)"),
)


class Writer:
    """Random functions of three numbers and a list, which they append to."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def chance(self, probability: float) -> bool:
        return self.random.random() < probability

    def test(self, pad: str) -> str:
        return self.random.choice(TESTS).format(pad)

    def block(self, depth: int, pad: str) -> list[str]:
        """Return the lines of one to three statements, indented by ``pad``."""
        lines = []
        for _ in range(self.random.randint(1, 3)):
            if self.chance(0.2):
                lines.append(f"{pad}# remark {self.random.randint(0, 99)}")
            if depth == 0 or self.chance(0.3):
                lines.append(pad + self.random.choice(STATEMENTS).format(pad))
            elif self.chance(0.7):
                lines += self.branches(depth - 1, pad)
            elif self.chance(0.5):
                lines += [f"{pad}for a in range({self.random.randint(1, 3)}):"]
                lines += self.block(depth - 1, f"{pad}    ")
            else:
                lines += [f"{pad}def inner(a: int, b: int = 2) -> int:", f"{pad}    c = 1"]
                lines += self.block(depth - 1, f"{pad}    ")
                lines += [f"{pad}    out: int = a + b", f"{pad}    return out"]
                lines += [f"{pad}t.append(inner(b))"]
        return lines

    def branches(self, depth: int, pad: str) -> list[str]:
        if self.chance(0.1):
            return [f"{pad}if {self.test(pad)}: t.append(9)"]
        lines = [f"{pad}if {self.test(pad)}:", *self.block(depth, f"{pad}    ")]
        while self.chance(0.3):
            lines += [f"{pad}elif {self.test(pad)}:", *self.block(depth, f"{pad}    ")]
        if self.chance(0.4):
            lines += [f"{pad}# before else"] if self.chance(0.2) else []
            lines += [f"{pad}else:  # remark", *self.block(depth, f"{pad}    ")]
        return lines

    def function(self) -> str:
        body = "\n".join(self.block(3, "    "))
        return f"def f(a: int, b: int, c: int, t: list) -> list:\n{body}\n    return t\n"


def clean(text: str, path: Path, calls: list[tuple[int, int, int]]) -> tuple[str, list[Any]] | None:
    """Return a function's cleaned text, and the results of its calls; None if one of them fails."""
    scope: dict[str, Any] = {}
    exec(compile(text, str(path), "exec"), scope)
    ran = Ran()
    with ran.record(ran.built):
        try:
            results = [scope["f"](*arguments, []) for arguments in calls]
        except UnboundLocalError:
            return None
    cleaner = Cleaner(str(path), text.splitlines(), ran)
    return cleaner.clean(ast.parse(text).body[0], {}, []), results


@pytest.mark.parametrize(
    "seeds", [range(60), pytest.param(range(60, 500), marks=pytest.mark.long)], ids=len
)
def test_random_functions(seeds: range, work: Path) -> None:
    """A branch that ran, or would run in another order, must not be removed."""
    cleaned, removed = 0, 0
    for seed in seeds:
        writer = Writer(seed)
        text = writer.function()
        numbers = writer.random
        calls = [
            (numbers.randint(0, 3), numbers.randint(0, 2), numbers.randint(0, 1))
            for _ in range(numbers.randint(1, 2))
        ]
        if (outcome := clean(text, work / f"{seed}.py", calls)) is None:
            continue
        short, expected = outcome
        scope: dict[str, Any] = {}
        exec(short, scope)
        assert [scope["f"](*arguments, []) for arguments in calls] == expected, seed
        assert "int" not in short
        cleaned, removed = cleaned + 1, removed + text.count("\n") - short.count("\n")
    assert cleaned > 0.8 * len(seeds)
    assert removed > 10 * cleaned


def test_a_loop_does_not_count_as_the_body_of_a_test(work: Path) -> None:
    """The first line of a loop runs more often than the loop: here, as often as the test."""
    lines = [
        *("def f(a, b, c, t):", "    for i in range(4):", "        if i == 0:"),
        *("            for j in range(3):", "                t.append(j)", "    return t"),
    ]
    outcome = clean("\n".join(lines), work / "loop.py", [(0, 0, 0)])
    assert outcome == ("\n".join(lines), [[0, 1, 2]])


def test_functions_that_run_later_keep_their_branches(work: Path) -> None:
    """A branch of `forward` may run for other rows."""
    text = "def f(a, b, c, t):\n    if a:\n        t.append(1)\n    return t"
    scope: dict[str, Any] = {}
    exec(compile(text, "later.py", "exec"), scope)
    for functions, expected in (("built", "def f(a, b, c, t):\n    return t"), ("used", text)):
        ran = Ran()
        with ran.record(ran.built):
            scope["f"](0, 0, 0, [])
        with ran.record(getattr(ran, functions)):
            scope["f"](0, 0, 0, [])
        cleaner = Cleaner("later.py", text.splitlines(), ran)
        assert cleaner.clean(ast.parse(text).body[0], {}, []) == expected


def test_functions_that_others_name_keep_their_branches(work: Path) -> None:
    """`forward` may call a function in a branch that has not run yet."""
    text = """def f(a, b, c, t):
    if a:
        t.append(1)
    return t

class Net:
    def __init__(self):
        if f(0, 0, 0, []):
            self.x = 1

def forward(x):
    if x:
        {0}
"""
    for call, kept in (("pass", set()), ("f(1, 1, 1, [])", {"f"}), ("Net()", {"__init__"})):
        scope: dict[str, Any] = {}
        exec(compile(text.format(call), "named.py", "exec"), scope)
        ran = Ran()
        with ran.record(ran.built):
            scope["Net"]()
        with ran.record(ran.used):
            scope["forward"](0)
        tree = ast.parse(text.format(call))
        places = decided(tree, "named.py", ran)
        functions = {n.lineno: n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)}
        assert {functions[line] for _, line in places} == {"f", "__init__"} - kept


def test_known_arguments_decide_tests(work: Path) -> None:
    branches = "    if flip:\n        x = -x\n    if crop:\n        x = 0\n"
    text = f"def f(x, flip, crop):\n{branches}    return x"
    cleaner = Cleaner("known.py", text.splitlines(), Ran())
    node = ast.parse(text).body[0]
    short = "def f(x, flip, crop):\n    x = -x\n    return x"
    assert cleaner.clean(node, {"flip": True, "crop": 0}, []) == short
    assert cleaner.clean(node, {"flip": True}, []) == text.replace(
        "    if flip:\n        x = -x\n", "    x = -x\n"
    )
    assert cleaner.clean(node, {}, []) == text
    changed = text.replace("    if crop", "    crop = 1\n    if crop")
    cleaner = Cleaner("known.py", changed.splitlines(), Ran())
    assert cleaner.clean(ast.parse(changed).body[0], {"crop": 0}, []) == changed
