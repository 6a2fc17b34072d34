"""Counts what the code costs its readers: `make ledger` prints it by room and in all."""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from collections import Counter, defaultdict
from pathlib import Path

from bar_path import paths
from kind_switches import find_switches
from programs import ROOT

PACKAGES = ("strategies", "storage", "daemon", "replay")
LONG, VERY_LONG, PARAMETERS_MOST, MODULE_MOST = 40, 80, 8, 600
SUPPRESSION = re.compile(r"#\s*(noqa|fmt:|type: ignore|pyright|ruff:)")


class Ledger:
    """The figures of the modules under *root*."""

    def __init__(self, root: Path) -> None:
        self.sources = {
            path.relative_to(root): path.read_text(encoding="utf-8")
            for package in PACKAGES
            for path in sorted((root / package).rglob("*.py"))
        }
        self.names = {
            ".".join(("tracepaper", *path.with_suffix("").parts)).removesuffix(".__init__"): path
            for path in self.sources
        }
        self.figures: Counter[str] = Counter()
        self.importers: dict[Path, set[Path]] = defaultdict(set)
        for path, source in self.sources.items():
            self._read(path, source)
        modules = [path for path in self.sources if path.name != "__init__.py"]
        self.figures["modules"] = len(modules)
        self.figures["modules with one importer"] = sum(
            len(self.importers[path]) == 1 for path in modules
        )

    def _read(self, path: Path, source: str) -> None:
        tree, figures = ast.parse(source), self.figures
        lines = len(source.splitlines())
        figures["lines"] += lines
        figures[f"modules over {MODULE_MOST} lines"] += lines > MODULE_MOST
        used: Counter[str] = Counter()
        private: list[str] = []
        for node in ast.walk(tree):
            match node:
                case ast.FunctionDef() | ast.AsyncFunctionDef():
                    length = (node.end_lineno or node.lineno) - node.lineno + 1
                    given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                    figures[f"functions over {LONG} lines"] += length > LONG
                    figures[f"functions over {VERY_LONG} lines"] += length > VERY_LONG
                    figures[f"functions of over {PARAMETERS_MOST} parameters"] += (
                        len(given) > PARAMETERS_MOST
                    )
                    figures["imports inside functions"] += sum(
                        isinstance(inner, (ast.Import, ast.ImportFrom)) for inner in ast.walk(node)
                    )
                    if node.name.startswith("_") and not node.name.startswith("__"):
                        private.append(node.name)
                case ast.ImportFrom(module=str(module)) if module.startswith("tracepaper"):
                    for alias in node.names:
                        target = self.names.get(f"{module}.{alias.name}", self.names.get(module))
                        if target is not None and target != path:
                            self.importers[target].add(path)
                case ast.Name(id=name) | ast.Attribute(attr=name):
                    used[name] += 1
        figures["Any"] += used["Any"]
        figures["private functions"] += len(private)
        figures["private functions called once"] += sum(used[name] == 1 for name in private)
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            if token.type == tokenize.COMMENT:
                is_one = SUPPRESSION.match(token.string) is not None
                figures["suppressions" if is_one else "lines with a comment"] += 1

    def rooms(self) -> dict[str, int]:
        """Return the lines of each room, a folder below a package."""
        found: Counter[str] = Counter()
        for path, source in self.sources.items():
            found["/".join(path.parent.parts[:2])] += len(source.splitlines())
        return dict(sorted(found.items()))


def main() -> None:
    """Print the lines by room, and the figures of all."""
    ledger = Ledger(ROOT)
    switches = {"switches on a model's kind": len(find_switches(ledger.sources))}
    for name, count in (ledger.rooms() | ledger.figures | switches).items():
        sys.stdout.write(f"{count:>9,}  {name}\n")
    for kind, path in paths().items():
        for count, what in zip(
            path, ("modules entered", "modules come back to", "names"), strict=True
        ):
            sys.stdout.write(f"{count:>9,}  {what} by a bar {kind}\n")


if __name__ == "__main__":
    main()
