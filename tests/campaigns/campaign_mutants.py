"""The detection budget: fixed mutations of the product, each of which a test must find.

    python tests/campaigns/campaign_mutants.py [--only broker] [--jobs 2]

``mutations.toml`` lists them by group. The tests of the groups are collected once and run once as
they are, which says which functions each test runs and how long it takes. Then each mutation is
made in a fork of that process, and no file changes: the tests that run its definition are run
until one fails; one that does not end has failed. What a test runs in another program is not
mutated. A survivor that the table does not know fails the command: their number cannot grow.
"""

from __future__ import annotations

import argparse
import ast
import builtins
import gc
import multiprocessing
import os
import re
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatch
from functools import cache, partial
from itertools import accumulate, zip_longest
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any, Final, NamedTuple

import pytest

ROOT: Final = Path(__file__).resolve().parents[2]
TABLE: Final = "tests/campaigns/mutations.toml"
PACKAGES: Final = ("daemon", "replay", "storage", "strategies")
FORK: Final = multiprocessing.get_context("fork")
PROBE: Final = "__mutant_is_run__"
LONG_TEST_S: Final = 2
"""Tests that take longer are run after all others."""


class MutationLost(Exception):
    """What keeps mutations from being judged, in one sentence."""


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


def groups(root: Path = ROOT) -> dict[str, Group]:
    """Return the groups of the table by name."""
    return {
        name: Group(
            tuple(group["tests"]), tuple(Mutation(name, *row) for row in group["mutations"])
        )
        for name, group in tomllib.loads((root / TABLE).read_text(encoding="utf-8")).items()
    }


def wanted(table: Mapping[str, Group], only: str) -> dict[str, Group]:
    """Return the group named *only*, or all with those mutations that it is a part of."""
    if only in table:
        return {only: table[only]}
    found = {
        name: group._replace(
            mutations=tuple(one for one in group.mutations if fnmatch(str(one), f"*{only}*"))
        )
        for name, group in table.items()
    }
    return {name: group for name, group in found.items() if group.mutations}


# ---------------------------------------------------------------- where a mutation belongs


@cache
def sources(root: Path) -> dict[Path, str]:
    """Return the modules of the product by path."""
    paths = [path for package in PACKAGES for path in sorted((root / package).rglob("*.py"))]
    return {path.relative_to(root): path.read_text(encoding="utf-8") for path in paths}


Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def nodes(tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, Definition]]:
    """Yield the dotted name of each class and function of *tree*, and where it is defined."""
    for child in ast.iter_child_nodes(tree):
        name = prefix
        if isinstance(child, Definition):
            name = f"{prefix}{child.name}"
            yield name, child
            name += "."
        yield from nodes(child, name)


@cache
def definitions(source: str) -> tuple[tuple[str, int, int], ...]:
    """Return the dotted name of each class and function, and where its text begins and ends."""
    lines = source.splitlines(keepends=True)
    ends = [0, *accumulate(map(len, lines))]
    return tuple(
        (name, ends[node.lineno - 1], ends[node.end_lineno or node.lineno])
        for name, node in nodes(ast.parse(source))
    )


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
            f"remove it in {TABLE}."
        )
    (mutant,) = places.values()
    return mutant


def swap(path: Path, mutated: str | ast.Module, root: Path) -> None:
    """Have every function of the module at *path* run its *mutated* code in this process."""
    name = str(root / path)
    before, after = (
        codes(compile(source, name, "exec", dont_inherit=True))
        for source in (sources(root)[path], mutated)
    )
    changed = {old: after[place] for place, old in before.items() if place in after}
    for one in gc.get_objects():
        # Some objects warn where they are asked for their class.
        if type(one) is FunctionType and one.__code__.co_filename == name:
            try:
                one.__code__ = changed.get(one.__code__, one.__code__)
            except ValueError as error:
                raise MutationLost(
                    f"{path}: {one.__qualname__} cannot be mutated: {error}."
                ) from None


def codes(code: CodeType) -> dict[tuple[str, int], CodeType]:
    """Return all that *code* defines by its dotted name and how many of that name come before."""
    found: dict[tuple[str, int], CodeType] = {}

    def add(one: CodeType) -> None:
        nth = sum(name == one.co_qualname for name, _ in found)
        found[one.co_qualname, nth] = one
        for inner in one.co_consts:
            if isinstance(inner, CodeType):
                add(inner)

    add(code)
    return found


# ---------------------------------------------------------------- what a fork does


class Traced(NamedTuple):
    """Which definitions of mutations a test runs, and how long it takes."""

    seconds: float
    ran: frozenset[str]


def run(item: pytest.Item, following: pytest.Item | None) -> bool:
    """Run one test, and return whether it passed."""
    item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
    return not item.session.testsfailed


def probed(mutants: Iterable[Mutant], root: Path) -> dict[Path, ast.Module]:
    """Return the modules of *mutants*, where each of their definitions tells that it is run."""
    names: dict[Path, set[str]] = {}
    for one in mutants:
        names.setdefault(one.path, set()).add(one.definition)
    found = {}
    for path, own in names.items():
        found[path] = ast.parse(sources(root)[path])
        for name, node in nodes(found[path]):
            if name in own and not isinstance(node, ast.ClassDef):
                [tell] = ast.parse(f"{PROBE}({f'{path}:{name}'!r})").body
                node.body.insert(0, tell)
    return found


def trace(
    items: Sequence[pytest.Item], modules: Mapping[Path, ast.Module], root: Path
) -> dict[str, Traced]:
    """Return which definitions of the probed *modules* each test runs."""
    for path, tree in modules.items():
        swap(path, tree, root)
    found = {}
    for item, following in zip_longest(items, items[1:]):
        seen: set[str] = set()
        setattr(builtins, PROBE, seen.add)
        began = time.monotonic()
        if not run(item, following):
            raise MutationLost(f"{item.nodeid} fails without any mutation; mend it first.")
        found[item.nodeid] = Traced(time.monotonic() - began, frozenset(seen))
    return found


def kill(mutant: Mutant, items: Sequence[pytest.Item], root: Path) -> str:
    """Return the first of the tests that fails with *mutant*; empty where none does."""
    swap(mutant.path, mutant.source, root)
    for item, following in zip_longest(items, items[1:]):
        if not run(item, following):
            return item.nodeid
    return ""


class Task(NamedTuple):
    """What a fork does for somebody, and the seconds within which it must end."""

    of: Any
    work: Callable[[], Any]
    limit_s: float = float("inf")


class Fork:
    """A task in a process of its own."""

    def __init__(self, task: Task) -> None:
        self.of = task.of
        self.ends_s = time.monotonic() + task.limit_s
        self.answer: Connection
        self.answer, sender = FORK.Pipe(duplex=False)
        self._process = FORK.Process(target=_answer, args=(task.work, sender))
        self._process.start()
        sender.close()

    def result(self) -> Any:
        """Return what it answered: text where it ended without an answer, or had to be ended."""
        try:
            found = self.answer.recv() if self.answer.poll() else "a test did not end"
        except EOFError:
            found = "a test ended the process"
        self._process.kill()
        self._process.join()
        if isinstance(found, MutationLost):
            raise found
        return found


def _answer(work: Callable[[], Any], sender: Connection) -> None:
    try:
        sender.send(work())
    except MutationLost as error:
        sender.send(error)


def forked(tasks: Iterable[Task], jobs: int) -> Iterator[tuple[Any, Any]]:
    """Yield of whom each task is, and what it came to, *jobs* of them at a time."""
    waiting = iter(tasks)
    running: dict[Connection, Fork] = {}
    while True:
        while len(running) < jobs and (task := next(waiting, None)) is not None:
            fork = Fork(task)
            running[fork.answer] = fork
        if not running:
            return
        left_s = min(fork.ends_s for fork in running.values()) - time.monotonic()
        wait(list(running), timeout=None if left_s == float("inf") else max(left_s, 0))
        for answer, fork in list(running.items()):
            if answer.poll() or time.monotonic() >= fork.ends_s:
                yield fork.of, running.pop(answer).result()


# ---------------------------------------------------------------- all of it


class Budget:
    """Judges mutations with the tests that pytest collected, instead of running these."""

    def __init__(
        self, table: Mapping[str, Group], jobs: int, least_limit_s: float, root: Path
    ) -> None:
        self._table = table
        self._least_limit_s = least_limit_s
        self._jobs = jobs
        self._root = root
        self.found: dict[Mutation, str] = {}
        self.problem = ""

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Say what cannot be collected."""
        if report.failed:
            self.problem = f"{report.nodeid} cannot be collected; mend it first: {report.longrepr}"

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Judge all mutations."""
        if self.problem:
            return True
        try:
            self._judge(session.items)
        except MutationLost as error:
            self.problem = str(error)
        return True

    def _judge(self, items: Sequence[pytest.Item]) -> None:
        of_module: dict[str, list[pytest.Item]] = {}
        for item in items:
            of_module.setdefault(item.nodeid.partition("::")[0], []).append(item)
        traced: dict[str, Traced] = {}
        mutants = (find(one, self._root) for one in self._mutations())
        trees = probed(mutants, self._root)
        tracing = (
            Task(name, partial(trace, own, trees, self._root)) for name, own in of_module.items()
        )
        for name, found in forked(tracing, self._jobs):
            if isinstance(found, str):
                raise MutationLost(f"{name}: {found} without any mutation; mend it first.")
            traced |= found
        by_name = {item.nodeid: item for item in items}
        for mutation, found in forked(self._tasks(by_name, traced), self._jobs):
            self.found[mutation] = found
            print(
                f"{'killed' if found else 'SURVIVED':9}{mutation.group}  {mutation}  {found}",
                file=sys.__stderr__,
                flush=True,
            )

    def _mutations(self) -> Iterator[Mutation]:
        for group in self._table.values():
            yield from group.mutations

    def _tasks(
        self, items: Mapping[str, pytest.Item], traced: Mapping[str, Traced]
    ) -> Iterator[Task]:
        for group in self._table.values():
            own = {
                name: one
                for name, one in traced.items()
                if Path(name.partition("::")[0]).stem in group.tests
            }
            for mutation in group.mutations:
                mutant = find(mutation, self._root)
                tests = chosen(own, mutant)
                seconds = sum(own[test].seconds for test in tests)
                work = partial(kill, mutant, [items[test] for test in tests], self._root)
                yield Task(mutation, work, self._least_limit_s + 4 * seconds)


def chosen(traced: Mapping[str, Traced], mutant: Mutant) -> list[str]:
    """Return the tests that run *mutant*'s definition, cheap ones first.

    Where none does, as of a class body, all are returned.
    """
    name = f"{mutant.path}:{mutant.definition}"
    tests = [test for test, one in traced.items() if name in one.ran] or list(traced)
    return sorted(
        tests, key=lambda test: (traced[test].seconds > LONG_TEST_S, test.partition("::")[0])
    )


def judge(table: Mapping[str, Group], jobs: int, least_limit_s: float, root: Path) -> int:
    """Judge all mutations of *table*; return 1 where it does not say which of them survive."""
    for group in table.values():
        for mutation in group.mutations:
            find(mutation, root)
    names = {name for group in table.values() for name in group.tests}
    modules = [str(path) for path in sorted((root / "tests").rglob("*.py")) if path.stem in names]
    budget = Budget(table, jobs, least_limit_s, root)
    with tempfile.TemporaryDirectory(prefix="mutants-") as place:
        os.environ["TMPDIR"] = tempfile.tempdir = place  # of forks, which do not tidy up
        options = ["-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:terminal"]
        sys.path.insert(
            0, str(root)
        )  # as `python -m pytest` has it: spawned processes import tests
        pytest.main([*options, *modules], plugins=[budget])
        tempfile.tempdir = None
    if budget.problem:
        raise MutationLost(budget.problem)
    is_wrong = False
    print()
    for name, group in table.items():
        killed = sum(bool(budget.found[one]) for one in group.mutations)
        print(f"{name:12} {killed:4} of {len(group.mutations)} killed")
    print(f"{'all':12} {sum(map(bool, budget.found.values())):4} of {len(budget.found)} killed")
    for mutation, found in budget.found.items():
        if not found:
            print(f"survives: {mutation}  {mutation.survives or 'NEW: add a test that finds it'}")
        elif mutation.survives:
            print(f"is found now: {mutation}  take its fourth text out of {TABLE}")
        is_wrong |= bool(found) is bool(mutation.survives)
    return int(is_wrong)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="a group, or a part of a mutation's name")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument(
        "--least-limit",
        type=float,
        default=60,
        help="seconds within which the tests of a mutation must end, beside four times their own",
    )
    parser.add_argument("--root", type=Path, default=ROOT, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    os.chdir(asked.root)
    table = wanted(groups(asked.root), asked.only)
    if not table:
        parser.error(f"nothing in {TABLE} matches {asked.only!r}")
    try:
        return judge(table, asked.jobs, asked.least_limit, asked.root)
    except MutationLost as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
