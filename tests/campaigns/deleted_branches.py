"""Mutations of every function of the product: each of its branches is deleted."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple

_DEFINITIONS: Final = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


class Change(NamedTuple):
    """A mutated module: where it was changed, and its source."""

    path: Path
    definition: str  # dotted name of the function
    line: int
    old: str
    new: str
    source: str


class _Edit(NamedTuple):
    begin: int  # bytes from the start of the module
    end: int
    new: bytes


class _Text:
    """A module's bytes, and where the nodes of its tree stand in them."""

    def __init__(self, source: str) -> None:
        self.content = source.encode()
        self._lines = [0]
        for line in self.content.splitlines(keepends=True):
            self._lines.append(self._lines[-1] + len(line))

    def begin(self, node: ast.expr | ast.stmt | ast.pattern) -> int:
        return self._lines[node.lineno - 1] + node.col_offset

    def end(self, node: ast.expr | ast.stmt | ast.pattern) -> int:
        return self._lines[(node.end_lineno or 0) - 1] + (node.end_col_offset or 0)

    def replaced(self, node: ast.expr | ast.stmt | ast.pattern, new: str) -> _Edit:
        return _Edit(self.begin(node), self.end(node), new.encode())

    def deletions(self, node: ast.AST) -> Iterator[_Edit]:
        """Yield the edits that delete the branches of *node*; conditions are still evaluated."""
        match node:
            case ast.If(test=test) | ast.IfExp(test=test) | ast.While(test=test):
                kept = self.content[self.begin(test) : self.end(test)].decode()
                yield self.replaced(test, f"(({kept}) and False)")
            case ast.Match(cases=cases):
                for case in cases[:-1]:
                    guard = case.guard or case.pattern
                    words = "" if case.guard else " if False"
                    kept = self.content[self.begin(guard) : self.end(guard)].decode()
                    yield self.replaced(guard, f"{kept}{words}" if words else "False")


def _bodies(node: ast.AST) -> Iterator[ast.AST]:
    """Yield what a function runs: no annotations, messages of errors, or functions inside it."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (*_DEFINITIONS, ast.Raise)):
            continue
        yield child
        if isinstance(child, ast.AnnAssign):
            if child.value is not None:
                yield child.value
                yield from _bodies(child.value)
        elif not isinstance(child, ast.JoinedStr):
            yield from _bodies(child)


def edits(source: str) -> Iterator[tuple[str, _Edit]]:
    """Yield the dotted name of every function of the module *source*, and a deletion in it."""
    text = _Text(source)

    def walk(tree: ast.AST, prefix: str) -> Iterator[tuple[str, _Edit]]:
        for child in ast.iter_child_nodes(tree):
            if not isinstance(child, _DEFINITIONS):
                yield from walk(child, prefix)
                continue
            name = f"{prefix}{child.name}"
            if not isinstance(child, ast.ClassDef):
                for statement in child.body:
                    if not isinstance(statement, _DEFINITIONS):
                        for node in (statement, *_bodies(statement)):
                            yield from ((name, edit) for edit in text.deletions(node))
            yield from walk(child, f"{name}.")

    yield from walk(ast.parse(source), "")


def _changed(path: Path, name: str, content: bytes, edit: _Edit) -> Change:
    mutated = content[: edit.begin] + edit.new + content[edit.end :]
    line = content.count(b"\n", 0, edit.begin) + 1
    old = " ".join(content[edit.begin : edit.end].decode().split())
    return Change(path, name, line, old, edit.new.decode(), mutated.decode())


def deleted(sources: Mapping[Path, str]) -> list[Change]:
    """Return one change for each branch of every function: it is never taken."""
    return [
        _changed(path, name, source.encode(), edit)
        for path, source in sources.items()
        for name, edit in edits(source)
    ]
