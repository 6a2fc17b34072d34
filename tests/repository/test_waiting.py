"""No test fails because the machine is busy: its deadlines grow with the load."""

from __future__ import annotations

import ast
import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from waiting import deadline, deadline_s

TESTS = Path(__file__).parents[1]
OF_THEIR_OWN = ("campaigns/campaign*.py", "clients/programs/*.py", "peers/programs/*.py")
"""Programs that import nothing of the tests."""
TAKES_SECONDS = {"wait", "join", "receive", "result", "wait_for", "communicate"}


def fixed_waits(source: str) -> list[int]:
    """Return the lines with a loop that sleeps, or a deadline that no load moves."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.While):
            found |= {
                one.lineno
                for one in ast.walk(node)
                if isinstance(one, ast.Call) and called(one) == "sleep" and not is_below_1(one.args)
            }
        elif isinstance(node, ast.Call):
            given = [one.value for one in node.keywords if one.arg in {"timeout", "total"}]
            if called(node) in TAKES_SECONDS:
                given += [one for one in node.args if isinstance(one, ast.Constant)]
            fixed = [one for one in given if is_seconds(one) and not is_below_1([one])]
            if fixed or ast.unparse(node.func) == "asyncio.timeout":
                found.add(node.lineno)
    return sorted(found)


def called(node: ast.Call) -> str:
    match node.func:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
        case _:
            return ""


def is_seconds(node: ast.expr) -> bool:
    """Whether *node* is a number or a named constant."""
    match node:
        case ast.Constant(value=int() | float()):
            return True
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name.isupper()
        case _:
            return False


def is_below_1(nodes: list[ast.expr]) -> bool:
    """Whether a wait is over at once, or is itself what a test is about."""
    return all(isinstance(one, ast.Constant) and float(str(one.value)) < 1 for one in nodes)


def test_every_wait_of_the_tests_grows_with_the_load() -> None:
    left_out = {path for pattern in OF_THEIR_OWN for path in TESTS.glob(pattern)}
    left_out.add(TESTS / "support" / "waiting.py")
    found = {
        f"{path.relative_to(TESTS)}:{line}"
        for path in TESTS.rglob("*.py")
        if path not in left_out
        for line in fixed_waits(path.read_text(encoding="utf-8"))
    }
    assert found == set(), "give them a deadline of tests/support/waiting.py"


def loads(monkeypatch: pytest.MonkeyPatch, *given: float) -> None:
    """Let the machine have the load of each of *given* in turn, and then of the last."""

    def read() -> Iterator[float]:
        yield from given
        while True:
            yield given[-1]

    told = read()
    monkeypatch.setattr(os, "getloadavg", lambda: (next(told), 0.0, 0.0))
    monkeypatch.setattr(os, "cpu_count", lambda: 2)


def test_a_deadline_is_multiplied_by_the_processes_of_each_processor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loads(monkeypatch, 0.5, 2.0, 8.0)
    assert [deadline_s(10.0) for _ in range(3)] == [10.0, 10.0, 40.0]


async def test_a_deadline_is_put_off_while_the_load_grows_and_then_ends_the_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loop = asyncio.get_running_loop()
    loads(monkeypatch, 0.0, 20.0)
    begun_s = loop.time()
    with pytest.raises(TimeoutError):
        async with deadline(0.01):
            await asyncio.Event().wait()
    assert loop.time() - begun_s >= 0.1
