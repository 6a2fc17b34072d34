"""No modules import each other in a circle, not for types either."""

from __future__ import annotations

from graphlib import TopologicalSorter

import grimp


def test_no_module_imports_in_a_circle() -> None:
    graph = grimp.build_graph("tracepaper", cache_dir=None)
    imported = {name: graph.find_modules_directly_imported_by(name) for name in graph.modules}
    TopologicalSorter(imported).prepare()  # raises CycleError, which names the circle
