"""Finds where the product asks which kind a model is, instead of what it can do.

Counted outside the module that defines what is asked for: comparisons with a kind's name, look-ups
in a collection of such names, ``isinstance`` of a forecaster, network, recipe or estimator, and
calls of the predicates that do either for their callers.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

KINDS: Final = frozenset(
    {"flash", "informer", "linear", "multiscale", "cross", "trading", "lstm"}
    | {"crossasset", "portfolio", "tree", "glm", "ensemble", "orderbook"}
)
"""Every kind that a card may name."""
PREDICATES: Final = frozenset({"is_together", "is_ensemble", "row_kind"})
"""Functions that say which kind a card is of."""
LISTED: Final = frozenset({"network_kinds"})
"""Functions that return some kinds: whether a name is among them is asked by a comparison."""
_CLASS: Final = re.compile(r"(Forecaster|Recipe|Estimator|Network)$")
_UNION: Final = re.compile(r"(Forecaster|Recipe|Estimator|Network)\b")
_NETWORK_CONFIG: Final = re.compile(r"Config$")
_FOREIGN: Final = re.compile(r"category")  # Bybit's categories include "linear" as well
_FEATURES: Final = "tracepaper.strategies.features"  # a recipe of features is no model's


@dataclass(frozen=True, slots=True, order=True)
class Switch:
    """One place that asks for a kind."""

    path: str
    definition: str  # the function or method, by its qualified name; empty at a module's top
    line: int
    text: str


@dataclass
class _Module:
    """One module, and what of it names kinds."""

    path: Path
    name: str
    tree: ast.Module
    names: set[str] = field(default_factory=set)  # of values that are kinds' names, or list some
    classes: set[str] = field(default_factory=set)
    unions: set[str] = field(default_factory=set)  # names of unions of such classes
    imported: dict[str, tuple[str, str]] = field(default_factory=dict)  # from which module, what


def find_switches(sources: Mapping[Path, str], kinds: Collection[str] = KINDS) -> list[Switch]:
    """Return each switch in *sources*, by path below the root; *kinds* are the kinds' names."""
    modules = {}
    for path, source in sources.items():
        name = ".".join(("tracepaper", *path.with_suffix("").parts)).removesuffix(".__init__")
        modules[name] = _read(_Module(path, name, ast.parse(source)), kinds)
    found: list[Switch] = []
    for module in modules.values():
        found += _Finder(module, modules, kinds).switches()
    return sorted(found)


def _read(module: _Module, kinds: Collection[str]) -> _Module:
    """Note the constants, classes and imports of *module*."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                module.imported[alias.asname or alias.name] = (node.module, alias.name)
    is_networks = ".networks." in module.name
    for statement in module.tree.body:
        match statement:
            case ast.ClassDef(name=name) if _CLASS.search(name) and _FEATURES not in module.name:
                module.classes.add(name)
            case ast.ClassDef(name=name) if is_networks and _NETWORK_CONFIG.search(name):
                module.classes.add(name)
            case (
                ast.Assign(targets=[ast.Name(id=name)], value=value)
                | ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value)
            ):
                if _is_of_kinds(value, kinds):
                    module.names.add(name)
                if isinstance(value, ast.BinOp) and _UNION.search(ast.unparse(value)):
                    module.unions.add(name)
    return module


def _is_of_kinds(value: ast.expr, kinds: Collection[str]) -> bool:
    """Return whether *value* is a kind's name, or a collection of nothing else."""
    match value:
        case ast.Constant(value=text):
            return isinstance(text, str) and text in kinds
        case ast.Tuple(elts=items) | ast.List(elts=items) | ast.Set(elts=items):
            return bool(items) and all(_is_of_kinds(item, kinds) for item in items)
        case ast.Dict(keys=keys):
            return bool(keys) and all(key is not None and _is_of_kinds(key, kinds) for key in keys)
    return False


class _Finder:
    """Walks one module, with the constants and classes of all."""

    def __init__(
        self, module: _Module, modules: Mapping[str, _Module], kinds: Collection[str]
    ) -> None:
        self._module, self._modules, self._kinds = module, modules, kinds

    def switches(self) -> Iterator[Switch]:
        """Yield each switch of the module."""
        yield from self._within(self._module.tree, "")

    def _within(self, node: ast.AST, definition: str) -> Iterator[Switch]:
        for child in ast.iter_child_nodes(node):
            if self._asks(child):
                line = getattr(child, "lineno", 0)
                yield Switch(str(self._module.path), definition, line, ast.unparse(child))
            inner = definition
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                inner = f"{definition}.{child.name}" if definition else child.name
            yield from self._within(child, inner)

    def _asks(self, node: ast.AST) -> bool:
        match node:
            case ast.Compare(left=left, comparators=others):
                asks = any(map(self._names_a_kind, (left, *others)))
                return asks and _FOREIGN.search(ast.unparse(node)) is None
            case ast.MatchValue(value=value):
                return self._names_a_kind(value)
            case ast.Subscript(value=ast.Name() | ast.Attribute() as value, ctx=ast.Load()):
                return self._names_a_kind(value)
            case ast.MatchClass(cls=made_of):
                return self._is_a_class(made_of)
            case ast.Call():
                return self._calls(node)
        return False

    def _calls(self, call: ast.Call) -> bool:
        match call:
            case ast.Call(func=ast.Name(id="isinstance" | "issubclass"), args=[_, made_of]):
                return self._is_a_class(made_of)
            case ast.Call(func=ast.Attribute(value=value, attr="get")):
                return self._names_a_kind(value)
        return _last(call.func) in PREDICATES

    def _names_a_kind(self, node: ast.expr) -> bool:
        match node:
            case ast.Constant(value=text):
                return isinstance(text, str) and text in self._kinds
            case ast.Tuple(elts=items) | ast.List(elts=items) | ast.Set(elts=items):
                return any(map(self._names_a_kind, items))
            case ast.Starred(value=value) | ast.NamedExpr(value=value):
                return self._names_a_kind(value)
            case ast.Call(func=function):
                return _last(function) in LISTED
            case ast.Name() | ast.Attribute():
                where, name = self._defined(node)
                return where in self._modules and name in self._modules[where].names
        return False

    def _is_a_class(self, node: ast.expr) -> bool:
        """Return whether *node* names a class that another module defines, or a union with one."""
        match node:
            case ast.Tuple(elts=items):
                return any(map(self._is_a_class, items))
            case ast.BinOp(left=left, right=right):
                return self._is_a_class(left) or self._is_a_class(right)
            case ast.Name() | ast.Attribute():
                where, name = self._defined(node)
                if (defined := self._modules.get(where)) is None:
                    return False
                return name in defined.unions or (
                    name in defined.classes and defined is not self._module
                )
        return False

    def _defined(self, node: ast.Name | ast.Attribute) -> tuple[str, str]:
        """Return the module and the name that *node* was defined by."""
        if isinstance(node, ast.Name):
            return self._module.imported.get(node.id, (self._module.name, node.id))
        if isinstance(node.value, ast.Name) and node.value.id in self._module.imported:
            return ".".join(self._module.imported[node.value.id]), node.attr
        return "", node.attr


def _last(function: ast.expr) -> str:
    """Return the name by which a function is called."""
    match function:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
    return ""
