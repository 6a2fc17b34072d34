"""ARCHITECTURE.md names files, tests and definitions that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from programs import ROOT

TEXT = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")


def test_the_tests_that_the_plan_names_exist() -> None:
    named = set(re.findall(r"`(test_\w+)`", TEXT))
    assert "test_line" in named
    there = {path.stem for path in (ROOT / "tests").rglob("test_*.py")}
    assert named - there == set()


def test_the_loop_that_the_plan_shows_is_the_loop_that_runs() -> None:
    source = " ".join((ROOT / "daemon" / "session" / "loop.py").read_text(encoding="utf-8").split())
    block = re.search(r"async for unit in _gathered.*?```", TEXT, re.DOTALL)
    assert block is not None
    for line in block.group(0).removesuffix("```").splitlines():
        assert line.split("#")[0].strip() in source, line


def places() -> list[tuple[str, str]]:
    """Return what the last table places: files with a definition each, such as ``Class.method``."""
    table = TEXT.partition("### Where is")[2]
    pairs, file = [], ""
    for name in re.findall(r"`([\w/.]+)`", table):
        if "/" in name:
            file = name
        else:
            pairs.append((file, name))
    return pairs


def definitions(path: Path) -> set[str]:
    """Return the classes, functions and constants of a module, and the methods by their class."""
    body = ast.parse(path.read_text(encoding="utf-8")).body
    kinds = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    constants = {
        node.target.id
        for node in body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }
    there = {node.name: node for node in body if isinstance(node, kinds)}
    inner = {
        f"{name}.{node.name}"
        for name, outer in there.items()
        for node in outer.body
        if isinstance(node, kinds)
    }
    return there.keys() | inner | constants


def test_what_the_last_table_places_is_there() -> None:
    assert ("daemon/broker/orders.py", "touched") in places()
    assert [place for place in places() if place[1] not in definitions(ROOT / place[0])] == []
