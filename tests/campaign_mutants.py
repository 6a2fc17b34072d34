"""The detection budget: fixed mutations of the product, each of which a test must find.

    python tests/campaign_mutants.py [--only margin] [--jobs 2]

``mutations.toml`` lists them by group. A group's tests run once unmutated, which says which
functions each test runs and how long it takes. Then each mutation is made in a copy of the tree,
and the tests that run its definition are run until one fails; one that does not end has failed.
A survivor that the table does not know fails the command, so that their number cannot grow.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from queue import SimpleQueue
from types import FrameType
from typing import Any, Final, NamedTuple

import pytest

ROOT: Final = Path(__file__).resolve().parent.parent
TABLE: Final = ROOT / "tests" / "mutations.toml"
PACKAGES: Final = ("daemon", "replay", "storage", "strategies")
LEAST_LIMIT_S = 60
"""The least time in which tests must end; four times what they take unmutated comes on top."""
SURVIVED, KILLED = (
    0,
    (1, 2),
)  # exit codes of pytest: tests failed, or a module could not be imported


class MutationLost(Exception):
    """A mutation that cannot be made, in one sentence."""


class Mutation(NamedTuple):
    """A piece of a definition's source, and what replaces it."""

    group: str
    definition: str  # ``function``, ``Class.method`` or ``Class``: the end of its dotted name
    old: str
    new: str
    survives: str = ""  # why no test finds it, where none does

    def __str__(self) -> str:
        return f"{self.definition}: {self.old} -> {self.new}"


class Group(NamedTuple):
    """Mutations of one subject, and the names of the test modules that cover it."""

    tests: tuple[str, ...]
    mutations: tuple[Mutation, ...]


class Mutant(NamedTuple):
    """A module with a mutation in it."""

    path: Path  # relative to the root
    definition: str  # its whole dotted name
    source: str


def groups(table: Path = TABLE) -> dict[str, Group]:
    """Return the groups of *table* by name."""
    return {
        name: Group(
            tuple(group["tests"]), tuple(Mutation(name, *row) for row in group["mutations"])
        )
        for name, group in tomllib.loads(table.read_text(encoding="utf-8")).items()
    }


# ---------------------------------------------------------------- where a mutation belongs


@cache
def sources(root: Path) -> dict[Path, str]:
    """Return the modules of the product by path."""
    paths = [path for package in PACKAGES for path in sorted((root / package).rglob("*.py"))]
    return {path.relative_to(root): path.read_text(encoding="utf-8") for path in paths}


@cache
def definitions(source: str) -> tuple[tuple[str, int, int], ...]:
    """Return the dotted name of each class and function, and where its text begins and ends."""
    ends = [0]
    for line in source.splitlines(keepends=True):
        ends.append(ends[-1] + len(line))

    def inside(node: ast.AST, prefix: str) -> Iterator[tuple[str, int, int]]:
        for child in ast.iter_child_nodes(node):
            name = prefix
            if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                name = f"{prefix}.{child.name}"
                yield name[1:], ends[child.lineno - 1], ends[child.end_lineno or child.lineno]
            yield from inside(child, name)

    return tuple(inside(ast.parse(source), ""))


def pattern(text: str) -> re.Pattern[str]:
    """Return what matches *text* however its lines are broken."""
    tokens = re.findall(r"\w+|[^\w\s]", text)
    parts = [rf"(?:,\s*)?{re.escape(one)}" if one in ")]}" else re.escape(one) for one in tokens]
    begin = r"(?<!\w)" if re.match(r"\w", tokens[0]) else ""
    end = r"(?!\w)" if re.match(r"\w", tokens[-1]) else ""
    return re.compile(begin + r"\s*".join(parts) + end)


def find(mutation: Mutation, root: Path = ROOT) -> Mutant:
    """Return the one module that holds *mutation*; raise ``MutationLost`` where it is not one."""
    *_, last = mutation.definition.split(".")
    places: dict[tuple[Path, int], Mutant] = {}
    wanted = pattern(mutation.old)
    for path, source in sources(root).items():
        if f"def {last}(" not in source and f"class {last}" not in source:
            continue
        for name, begin, end in definitions(source):
            if f".{name}".endswith(f".{mutation.definition}"):
                for hit in wanted.finditer(source, begin, end):
                    mutated = source[: hit.start()] + mutation.new + source[hit.end() :]
                    places[path, hit.start()] = Mutant(path, name, mutated)
    if len(places) != 1:
        where = ", ".join(sorted({str(path) for path, _ in places})) or "nowhere"
        raise MutationLost(
            f"{mutation} ({mutation.group}) is found {len(places)} times ({where}): rewrite or "
            f"remove it in {TABLE.name}."
        )
    (mutant,) = places.values()
    return mutant


# ---------------------------------------------------------------- pytest, in a process of its own


class Traced:
    """Notes of each test which of the product's functions it ran, and how long it took."""

    def __init__(self) -> None:
        self.tests: dict[str, dict[str, Any]] = {}

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        codes: set[Any] = set()

        def called(frame: FrameType, _event: str, _arg: object) -> None:
            codes.add(frame.f_code)

        began = time.monotonic()
        threading.settrace(called)
        sys.settrace(called)
        yield
        sys.settrace(None)
        threading.settrace(None)
        root = f"{Path.cwd()}{os.sep}"
        ran = {
            f"{code.co_filename.removeprefix(root)}:{code.co_qualname.replace('.<locals>', '')}"
            for code in codes
            if code.co_filename.startswith(root)
        }
        self.tests[item.nodeid] = {"seconds": time.monotonic() - began, "ran": sorted(ran)}


class Chosen:
    """Runs the given tests alone, in their order."""

    def __init__(self, tests: Sequence[str]) -> None:
        self._place = {name: place for place, name in enumerate(tests)}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = [item for item in items if item.nodeid in self._place]
        items.sort(key=lambda item: self._place[item.nodeid])


def child(task: Path) -> int:
    """Run pytest in this process as *task* says; return its exit code."""
    said = json.loads(task.read_text(encoding="utf-8"))
    options = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--tb=short", *said["modules"]]
    if said["tests"] is not None:
        return int(pytest.main(["-x", *options], plugins=[Chosen(said["tests"])]))
    traced = Traced()
    code = int(pytest.main(options, plugins=[traced]))
    task.with_suffix(".traced").write_text(json.dumps(traced.tests), encoding="utf-8")
    return code


class Tree:
    """A copy of the repository, in which mutations are made and tests are run."""

    def __init__(self, folder: Path, root: Path = ROOT) -> None:
        # ``tracepaper`` is imported from the folder's parent, before what is installed.
        self.root = folder / "tracepaper"
        self._task = folder / "task.json"
        listed = subprocess.run(
            ["git", "ls-files", "-coz", "--exclude-standard"],
            cwd=root,
            capture_output=True,
            check=True,
        )
        for name in filter(None, os.fsdecode(listed.stdout).split("\0")):
            if (root / name).is_file():
                (self.root / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(root / name, self.root / name)

    def modules(self, names: Iterable[str]) -> list[str]:
        """Return the paths of the test modules with those *names*."""
        found = []
        for name in names:
            paths = sorted((self.root / "tests").rglob(f"{name}.py"))
            if not paths:
                raise MutationLost(f"There is no test module {name}: mend {TABLE.name}.")
            found += [path.relative_to(self.root).as_posix() for path in paths]
        return found

    def trace(self, modules: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Return what each test of *modules* runs, and how long it takes."""
        code, said = self._run(modules, None, None)
        if code != SURVIVED:
            raise MutationLost(f"Tests fail without any mutation; mend them first:\n{said[-3000:]}")
        traced = self._task.with_suffix(".traced").read_text(encoding="utf-8")
        found: dict[str, dict[str, Any]] = json.loads(traced)
        return found

    def kills(self, mutant: Mutant, tests: Sequence[str], limit_s: int) -> str:
        """Return which of *tests* failed with *mutant*, or that they did not end; or nothing."""
        path = self.root / mutant.path
        whole = path.read_text(encoding="utf-8")
        try:
            self._write(path, mutant.source)
            modules = list(dict.fromkeys(name.partition("::")[0] for name in tests))
            code, said = self._run(modules, tests, limit_s)
        finally:
            self._write(path, whole)
        if code is None:
            return f"no end within {limit_s} s"
        if code not in {SURVIVED, *KILLED}:
            raise MutationLost(f"pytest ended with {code}:\n{said[-3000:]}")
        failed = re.search(r"^(?:FAILED|ERROR) (.*)", said, re.MULTILINE)
        return "" if code == SURVIVED else failed[1] if failed else "an error"

    def _write(self, path: Path, source: str) -> None:
        """Write *source*, and forget what was compiled: a second tells it not from another."""
        path.write_text(source, encoding="utf-8")
        for compiled in path.parent.glob(f"__pycache__/{path.stem}.*.pyc"):
            compiled.unlink()

    def _run(
        self, modules: Sequence[str], tests: Sequence[str] | None, limit_s: int | None
    ) -> tuple[int | None, str]:
        """Return pytest's exit code, None past *limit_s*, and what it printed."""
        self._task.write_text(json.dumps({"modules": modules, "tests": tests}), encoding="utf-8")
        environment = {**os.environ, "PYTHONPATH": str(self.root.parent), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-P", __file__, "--child", str(self._task)]
        with subprocess.Popen(
            command,
            cwd=self.root,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        ) as process:
            try:
                said, _ = process.communicate(timeout=limit_s)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                return None, ""
            return process.returncode, said


# ---------------------------------------------------------------- the command


def chosen(traced: Mapping[str, Mapping[str, Any]], mutant: Mutant) -> tuple[list[str], float]:
    """Return the tests that run *mutant*'s definition, cheap modules first, and their seconds.

    Where none does, as of a class body, all are returned.
    """
    name = f"{mutant.path.as_posix()}:{mutant.definition}"
    tests = [test for test, one in traced.items() if name in one["ran"]] or list(traced)
    of_module: dict[str, float] = {}
    for test in tests:
        module = test.partition("::")[0]
        of_module[module] = of_module.get(module, 0.0) + traced[test]["seconds"]
    tests.sort(key=lambda test: (of_module[test.partition("::")[0]], traced[test]["seconds"]))
    return tests, sum(of_module.values())


def judged(group: Group, trees: Sequence[Tree], root: Path) -> Iterator[tuple[Mutation, str]]:
    """Yield each mutation of *group* and how it was found; nothing of one that survives."""
    free: SimpleQueue[Tree] = SimpleQueue()
    for tree in trees:
        free.put(tree)
    traced = trees[0].trace(trees[0].modules(group.tests))

    def judge(mutation: Mutation) -> tuple[Mutation, str]:
        mutant = find(mutation, root)
        tests, seconds = chosen(traced, mutant)
        tree = free.get()
        try:
            return mutation, tree.kills(mutant, tests, LEAST_LIMIT_S + int(4 * seconds))
        finally:
            free.put(tree)

    with ThreadPoolExecutor(len(trees)) as pool:
        yield from pool.map(judge, group.mutations)


def wanted(table: Mapping[str, Group], only: str) -> dict[str, Group]:
    """Return the groups named *only*, or those of their mutations that match it as a pattern."""
    if only in table:
        return {only: table[only]}
    found = {
        name: group._replace(
            mutations=tuple(one for one in group.mutations if fnmatch(str(one), f"*{only}*"))
        )
        for name, group in table.items()
    }
    return {name: group for name, group in found.items() if group.mutations}


def run(table: Mapping[str, Group], jobs: int, root: Path = ROOT) -> int:
    """Judge all mutations of *table*; return 1 where it does not say which of them survive."""
    for group in table.values():
        for mutation in group.mutations:
            find(mutation, root)
    tally: dict[str, int] = {}
    survivors: list[Mutation] = []
    is_wrong = False
    with tempfile.TemporaryDirectory(prefix="mutants-") as place:
        trees = [Tree(Path(place) / str(number), root) for number in range(jobs)]
        for name, group in table.items():
            for mutation, found in judged(group, trees, root):
                print(
                    f"{'killed' if found else 'SURVIVED'}  {name}  {mutation}  {found}", flush=True
                )
                tally[name] = tally.get(name, 0) + bool(found)
                if not found:
                    survivors.append(mutation)
                elif mutation.survives:
                    print(f"This is found now: take its fourth text out of {TABLE.name}.")
                is_wrong |= bool(found) is bool(mutation.survives)
    print()
    for name, killed in tally.items():
        print(f"{name:12} {killed:4} of {len(table[name].mutations)} killed")
    total = sum(len(group.mutations) for group in table.values())
    print(f"{'all':12} {total - len(survivors):4} of {total} killed")
    for mutation in survivors:
        print(f"survives: {mutation.group}: {mutation}  {mutation.survives or 'NEW: add a test'}")
    return int(is_wrong)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="a group, or a part of a mutation's name")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child is not None:
        return child(asked.child)
    table = wanted(groups(), asked.only)
    if not table:
        parser.error(f"Nothing in {TABLE.name} matches {asked.only!r}.")
    try:
        return run(table, asked.jobs)
    except MutationLost as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
