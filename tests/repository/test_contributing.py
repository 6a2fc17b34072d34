"""CONTRIBUTING.md tells the truth: its examples use names that stand where it sends its reader."""

from __future__ import annotations

import ast
import builtins
import re
from importlib import import_module

import pytest
from programs import ROOT

TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
PLACES = {
    "A gate": ("strategies.gates.declared",),
    "A column": ("storage.record.columns",),
    "A figure or a table of the report": ("replay.report.figures",),
    "A key of the configuration": ("daemon.config.sections",),
    "A route or a fault of the exchange": (
        "replay.exchange.answers",
        "replay.exchange.fault_kinds",
    ),
    "A backend, an encoding": ("strategies.attention.backends", "strategies.networks.encodings"),
}
NEWCOMERS = {"my_kernel"}
"""What the reader is to write himself."""


def used(source: str) -> set[str]:
    """Return the global names that *source* reads and does not make."""
    nodes = list(ast.walk(ast.parse(source)))
    args = {node.arg for node in nodes if isinstance(node, ast.arg)}
    args |= {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    args |= {str(node.name) for node in nodes if isinstance(node, ast.ExceptHandler)}
    names = [node for node in nodes if isinstance(node, ast.Name)]
    args |= {node.id for node in names if isinstance(node.ctx, ast.Store)}
    return {node.id for node in names} - args - set(dir(builtins))


def sections() -> dict[str, str]:
    """Return the Python examples of each heading."""
    parts = re.split(r"^### (.+)$", TEXT, flags=re.MULTILINE)[1:]
    texts = dict(zip(parts[::2], parts[1::2], strict=True))
    return {
        heading: "\n".join(re.findall(r"```python\n(.*?)```", part, re.DOTALL))
        for heading, part in texts.items()
        if "```python" in part
    }


def test_every_example_has_a_place() -> None:
    assert set(sections()) == set(PLACES)


@pytest.mark.parametrize("heading", PLACES)
def test_an_example_uses_names_that_are_there(heading: str) -> None:
    modules = [import_module(f"tracepaper.{place}") for place in PLACES[heading]]
    there = {name for module in modules for name in vars(module)} | NEWCOMERS
    assert used(sections()[heading]) - there == set()
