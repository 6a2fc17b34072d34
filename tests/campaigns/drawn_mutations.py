"""Mutations of every function of the product: drawn at random, or each of its branches deleted."""

from __future__ import annotations

import ast
import random
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple

OPERATORS: Final[Mapping[type[ast.AST], tuple[str, str]]] = {
    ast.Lt: ("<", "<="),
    ast.LtE: ("<=", "<"),
    ast.Gt: (">", ">="),
    ast.GtE: (">=", ">"),
    ast.Eq: ("==", "!="),
    ast.NotEq: ("!=", "=="),
    ast.Is: ("is", "is not"),
    ast.IsNot: ("is not", "is"),
    ast.In: ("in", "not in"),
    ast.NotIn: ("not in", "in"),
    ast.And: ("and", "or"),
    ast.Or: ("or", "and"),
    ast.Add: ("+", "-"),
    ast.Sub: ("-", "+"),
    ast.Mult: ("*", "/"),
    ast.Div: ("/", "*"),
    ast.FloorDiv: ("//", "*"),
    ast.Mod: ("%", "+"),
}
"""The text of each operator, and of the operator that replaces it."""
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

    def between(self, left: ast.expr, right: ast.expr, operator: ast.AST) -> Iterator[_Edit]:
        """Yield the edit of the *operator* that stands between two operands."""
        if type(operator) not in OPERATORS:
            return
        old, new = OPERATORS[type(operator)]
        begin = self.end(left)
        pattern = rb"\s+".join(re.escape(word.encode()) for word in old.split())
        hit = re.search(pattern, self.content[begin : self.begin(right)])
        if hit is not None:
            yield _Edit(begin + hit.start(), begin + hit.end(), new.encode())

    def edits(self, node: ast.AST) -> Iterator[_Edit]:
        """Yield the edits of *node* itself."""
        yield from self._of_operators(node)
        match node:
            case ast.Constant(value=bool() as value):
                yield self.replaced(node, str(not value))
            case ast.Constant(value=int() as value):
                yield self.replaced(node, str(value + 1))
            case ast.Return(value=ast.expr() as value) if not _is_none(value):
                yield self.replaced(value, "None")
            case ast.AugAssign() | ast.Expr(value=ast.Call() | ast.Await()):
                yield self.replaced(node, "pass")
            case ast.Assign(targets=[ast.Attribute() | ast.Subscript()]):
                yield self.replaced(node, "pass")

    def _of_operators(self, node: ast.AST) -> Iterator[_Edit]:
        match node:
            case ast.Compare(left=left, ops=operators, comparators=others):
                operands = [left, *others]
                for first, second, operator in zip(operands, others, operators, strict=False):
                    yield from self.between(first, second, operator)
            case ast.BoolOp(op=operator, values=[first, second, *_]):
                yield from self.between(first, second, operator)
            case ast.BinOp(left=left, op=operator, right=right):
                if not any(_is_text(side) for side in (left, right)):
                    yield from self.between(left, right, operator)
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                kept = self.content[self.begin(operand) : self.end(operand)].decode()
                yield self.replaced(node, f"({kept})")

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


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.JoinedStr) or (
        isinstance(node, ast.Constant) and isinstance(node.value, str)
    )


def _is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


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


def edits(source: str, *, deletes: bool = False) -> Iterator[tuple[str, _Edit]]:
    """Yield the dotted name of every function of the module *source*, and an edit of it.

    With *deletes*, an edit deletes a branch.
    """
    text = _Text(source)
    of_node = text.deletions if deletes else text.edits

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
                            yield from ((name, edit) for edit in of_node(node))
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
        for name, edit in edits(source, deletes=True)
    ]


def drawn(sources: Mapping[Path, str], number: int, seed: int) -> list[Change]:
    """Return *number* changes, every change of every function as likely as any other."""
    every = [(path, *edit) for path, source in sources.items() for edit in edits(source)]
    return [
        _changed(path, name, sources[path].encode(), edit)
        for path, name, edit in random.Random(seed).sample(every, number)
    ]
