"""Tables that a source holds: what a class knows by heart may be what its bars will be.

The rule is docs/strategies.md, U10.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from importlib.util import source_from_cache
from pathlib import Path
from typing import Final

from tracepaper.daemon.session.sources import parsed

VALUES: Final = 64
"""So many in one table, or one text or number as long, are named; fewer are not looked for."""
_BYTES_OF_A_VALUE: Final = 8
_DISPLAYS: Final = (ast.Dict, ast.List, ast.Set, ast.Tuple)


def source_of(module: str) -> Path | None:
    """Return the source that a loaded file *module* was made of; None where it is not there."""
    path = Path(module)
    if path.suffix == ".pyc":
        try:
            path = Path(source_from_cache(module))
        except ValueError:
            return None
    return path if path.suffix == ".py" and path.is_file() else None


def largest_table(source: Path) -> int:
    """Return how many values the largest table of *source* holds; 0 of fewer than ``VALUES``."""
    try:
        tree = parsed(source)
    except (SyntaxError, ValueError):
        return 0  # Python ran something else, which is another file
    spoken = _docstrings(tree) if not _asks_for_docstrings(tree) else frozenset[int]()
    most = max((_size(node, spoken) for node in ast.walk(tree)), default=0)
    return most if most >= VALUES else 0


def _size(node: ast.AST, spoken: frozenset[int]) -> int:
    """Return how many values a display or a constant holds."""
    if isinstance(node, _DISPLAYS):
        return sum(_size(part, spoken) for part in _constants(node))
    if not isinstance(node, ast.Constant) or id(node) in spoken:
        return 0
    value = node.value
    if isinstance(value, (str, bytes)):
        return 1 + len(value) // _BYTES_OF_A_VALUE
    if isinstance(value, int):
        return 1 + value.bit_length() // (8 * _BYTES_OF_A_VALUE)  # 8 bits a byte
    return 1


def _constants(node: ast.AST) -> Iterator[ast.Constant]:
    return (part for part in ast.walk(node) if isinstance(part, ast.Constant))


def _docstrings(tree: ast.Module) -> frozenset[int]:
    """Return which texts stand for themselves: nothing reads them but ``__doc__``."""
    return frozenset(id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr))


def _asks_for_docstrings(tree: ast.Module) -> bool:
    names = (getattr(node, "attr", getattr(node, "id", "")) for node in ast.walk(tree))
    return "__doc__" in names or any(one.value == "__doc__" for one in _constants(tree))
