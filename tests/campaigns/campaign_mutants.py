"""The detection budget: mutations of the product, each of which a test should find.

    python tests/campaigns/campaign_mutants.py [--only broker] [--jobs 2]

``mutations.toml`` lists them by group. The tests of the groups are collected once and run once as
they are, which says which functions each test runs and how long it takes. Then each mutation is
made in a fork of that process, and no file changes: the tests that run its definition are run until
one fails, near ones first; one that does not end has failed. What a test runs in another program is
not mutated, and tests marked ``long`` are left out, but for deleted branches. A survivor fails the
command.

``--branches daemon/broker`` deletes each branch of these folders or modules instead, and judges it
by what users see: whole runs, laws over random histories, public bug reports. A branch that changes
none of that is printed; it goes, or a reason stands beside it.
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
from contextlib import suppress
from fnmatch import fnmatch
from functools import cache, partial
from importlib import import_module
from itertools import accumulate, groupby, zip_longest
from multiprocessing.connection import Connection, wait
from operator import attrgetter
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any, Final, NamedTuple

import deleted_branches
import pytest

ROOT: Final = Path(__file__).resolve().parents[2]
TABLE: Final = "tests/campaigns/mutations.toml"
PACKAGES: Final = ("daemon", "replay", "storage", "strategies")
FORK: Final = multiprocessing.get_context("fork")
PROBE: Final = "__mutant_is_run__"
NEAREST_S: Final = 5
"""A deleted branch meets its nearest tests, which take so many CPU seconds."""
OUTPUTS: Final = (
    "product/test_line", "product/test_scenarios", "product/test_examples",
    "daemon/engine/test_laws", "daemon/engine/test_histories", "daemon/engine/test_stretch",
    "daemon/broker/test_exit_orders_simulated", "daemon/broker/test_cross_margin",
    "daemon/broker/test_rules_law",
    "replay/checks/test_what_if", "cases/test_candle_files", "cases/test_commands",
    "cases/test_figures", "cases/test_models", "cases/test_orders", "world/test_world",
    "first_hour/test_answers", "first_hour/test_first_errors",
)  # fmt: skip
"""The tests of whole outputs, which judge a deleted branch."""
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

    def __str__(self) -> str:
        return f"{self.definition}: {self.old} -> {self.new}"


class Group(NamedTuple):
    """Mutations of one subject, and the test modules that cover it."""

    tests: tuple[str, ...]  # paths below tests/, without .py
    mutations: tuple[Mutation, ...]
    limit_s: float = float("inf")  # the nearest tests of a mutation run no longer

    @property
    def modules(self) -> list[str]:
        """Paths of the test modules, as pytest names them."""
        return [f"tests/{name}.py" for name in self.tests]


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
    chosen_groups = {
        name: group._replace(
            mutations=tuple(
                mutation for mutation in group.mutations if fnmatch(str(mutation), f"*{only}*")
            )
        )
        for name, group in table.items()
    }
    return {name: group for name, group in chosen_groups.items() if group.mutations}


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
    parts = [
        rf"(?:,\s*)?{re.escape(token)}" if token in ")]}" else re.escape(token) for token in tokens
    ]
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


Source = str | ast.Module
Functions = Mapping[str, Sequence[FunctionType]]


def functions(root: Path) -> Functions:
    """Import the whole product, and return its functions by the name of their file."""
    for path in sources(root):
        with suppress(ImportError):
            import_module(".".join(["tracepaper", *path.with_suffix("").parts]))
    by_file: dict[str, list[FunctionType]] = {}
    for function in gc.get_objects():
        # Some objects warn where they are asked for their class.
        if type(function) is FunctionType:
            by_file.setdefault(function.__code__.co_filename, []).append(function)
    return {name: by_file.get(name, []) for name in map(str, map(root.joinpath, sources(root)))}


def swap(name: str, functions: Iterable[FunctionType], before: Source, after: Source) -> None:
    """Have the functions of the module at *name* run what *after* says instead of *before*."""
    old, new = (codes(compile(text, name, "exec", dont_inherit=True)) for text in (before, after))
    changed = {code: new[place] for place, code in old.items() if place in new}
    for function in functions:
        try:
            function.__code__ = changed.get(function.__code__, function.__code__)
        except ValueError as error:
            raise MutationLost(
                f"{name}: {function.__qualname__} cannot be mutated: {error}."
            ) from None


def codes(code: CodeType) -> dict[tuple[str, int], CodeType]:
    """Return all that *code* defines by its dotted name and how many of that name come before."""
    by_name: dict[tuple[str, int], CodeType] = {}

    def add(code_type: CodeType) -> None:
        nth = sum(name == code_type.co_qualname for name, _ in by_name)
        by_name[code_type.co_qualname, nth] = code_type
        for inner in code_type.co_consts:
            if isinstance(inner, CodeType):
                add(inner)

    add(code)
    return by_name


# ---------------------------------------------------------------- what a fork does


class TracedTest(NamedTuple):
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
    for mutant in mutants:
        names.setdefault(mutant.path, set()).add(mutant.definition)
    trees = {}
    for path, probed_names in names.items():
        trees[path] = ast.parse(sources(root)[path])
        for name, node in nodes(trees[path]):
            if name in probed_names and not isinstance(node, ast.ClassDef):
                [tell] = ast.parse(f"{PROBE}({f'{path}:{name}'!r})").body
                node.body.insert(0, tell)
    return trees


def trace(items: Sequence[pytest.Item]) -> dict[str, TracedTest]:
    """Return which definitions of the probed modules each test runs, of those that pass."""
    by_test = {}
    for item, following in zip_longest(items, items[1:]):
        ran: set[str] = set()
        setattr(builtins, PROBE, ran.add)
        began = time.process_time()
        if run(item, following):
            by_test[item.nodeid] = TracedTest(time.process_time() - began, frozenset(ran))
        else:
            item.session.testsfailed = 0
            print(f"{item.nodeid} fails without any mutation and judges none", file=sys.__stderr__)
    return by_test


def kill(mutate: Callable[[], None], items: Sequence[pytest.Item]) -> str:
    """Return the first of the tests that fails once *mutate* was called; empty where none does."""
    mutate()
    for item, following in zip_longest(items, items[1:]):
        if not run(item, following):
            return item.nodeid
    return ""


class Verdict(NamedTuple):
    """What became of a mutation: what found it, and the seconds that its tests took."""

    cause: str
    seconds: float


class Task(NamedTuple):
    """What a fork does for somebody, and the seconds within which it must end."""

    of: Any
    work: Callable[[], Any]
    limit_s: float = float("inf")


class Fork:
    """A task in a process of its own."""

    def __init__(self, task: Task) -> None:
        self.of = task.of
        self.began_s = time.monotonic()
        self.ends_s = self.began_s + task.limit_s
        self.answer: Connection
        self.answer, sender = FORK.Pipe(duplex=False)
        self._process = FORK.Process(target=_answer, args=(task.work, sender))
        self._process.start()
        sender.close()

    def result(self) -> Any:
        """Return what it answered: text where it ended without an answer, or had to be ended."""
        try:
            outcome = self.answer.recv() if self.answer.poll() else "a test did not end"
        except EOFError:
            outcome = "a test ended the process"
        self._process.kill()
        self._process.join()
        if isinstance(outcome, MutationLost):
            raise outcome
        return outcome


def _answer(work: Callable[[], Any], sender: Connection) -> None:
    try:
        sender.send(work())
    except MutationLost as error:
        sender.send(error)


def forked(tasks: Iterable[Task], jobs: int) -> Iterator[tuple[Any, Any, float]]:
    """Yield of whom each task is, what it came to and its seconds, *jobs* of them at a time."""
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
                took_s = time.monotonic() - fork.began_s
                yield fork.of, running.pop(answer).result(), took_s


# ---------------------------------------------------------------- all of it


class Budget:
    """Judges mutations with the tests that pytest collected, instead of running these."""

    def __init__(
        self,
        table: Mapping[str, Group],
        mutants: Mapping[Mutation, Mutant],
        *,
        jobs: int,
        least_limit_s: float,
        root: Path,
    ) -> None:
        self._table = table
        self._mutants = mutants
        self._least_limit_s = least_limit_s
        self._jobs = jobs
        self._root = root
        self._probed = probed(mutants.values(), root)
        self._functions: Functions = {}
        self.verdicts: dict[Mutation, Verdict] = {}
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
        self._functions = functions(self._root)
        gc.freeze()  # forks neither walk nor copy what is here
        setattr(builtins, PROBE, set().add)
        for path, tree in self._probed.items():
            self._swap(path, sources(self._root)[path], tree)
        traced = self._traced(items)
        by_name = {item.nodeid: item for item in items}
        for mutation, verdict in self._verdicts(by_name, traced):
            self.verdicts[mutation] = verdict
            print(
                f"{'killed' if verdict.cause else 'SURVIVED':9}{mutation.group}  {mutation}  "
                f"{verdict.cause}",
                file=sys.__stderr__,
                flush=True,
            )

    def _swap(self, path: Path, before: Source, after: Source) -> None:
        name = str(self._root / path)
        swap(name, self._functions[name], before, after)

    def _traced(self, items: Sequence[pytest.Item]) -> dict[str, TracedTest]:
        """Return what each of the tests runs, which says too that they pass as they are."""
        traced: dict[str, TracedTest] = {}
        limit_s = 6 * self._least_limit_s
        tasks = (
            Task(module, partial(trace, list(tests)), limit_s)
            for module, tests in groupby(items, key=lambda item: module_of(item.nodeid))
        )
        for module, answer, seconds in forked(tasks, self._jobs):
            traced |= {} if isinstance(answer, str) else answer
            problem = f": {answer} without any mutation" if isinstance(answer, str) else ""
            print(f"traced   {module}  {seconds:.0f} s{problem}", file=sys.__stderr__, flush=True)
        return traced

    def _verdicts(
        self, items: Mapping[str, pytest.Item], traced: Mapping[str, TracedTest]
    ) -> Iterator[tuple[Mutation, Verdict]]:
        """Yield each mutation and what becomes of it."""
        near = {
            name: {test: ran for test, ran in traced.items() if module_of(test) in modules}
            for name, group in self._table.items()
            for modules in [{*group.modules}]
        }
        tasks: list[Task] = []
        requested = {mutation for group in self._table.values() for mutation in group.mutations}
        for mutation in filter(requested.__contains__, self._mutants):
            mutant, near_tests = self._mutants[mutation], near[mutation.group]
            tests = chosen(near_tests, mutant, self._table[mutation.group].limit_s)
            seconds = sum(near_tests[test].seconds for test in tests)
            mutate = partial(self._swap, mutant.path, self._probed[mutant.path], mutant.source)
            work = partial(kill, mutate, [items[test] for test in tests])
            tasks.append(Task(mutation, work, self._least_limit_s + 4 * seconds))
        for mutation, cause, seconds in forked(tasks, self._jobs):
            yield mutation, Verdict(cause, seconds)


def module_of(test: str) -> str:
    """Return the path of the module of a test."""
    return test.partition("::")[0]


def chosen(
    traced: Mapping[str, TracedTest], mutant: Mutant, limit_s: float = float("inf")
) -> list[str]:
    """Return the tests that run *mutant*'s definition: near ones first, cheap modules before dear.

    Where none does, as of a class body, all are returned. The nearest that end within *limit_s*
    are returned, but at least one.
    """
    name = f"{mutant.path}:{mutant.definition}"
    tests = [test for test, trace in traced.items() if name in trace.ran]
    if not tests and limit_s == float("inf"):
        tests = list(traced)
    seconds: dict[str, float] = {}
    for test in tests:
        module = module_of(test)
        seconds[module] = seconds.get(module, 0.0) + traced[test].seconds

    def rank(test: str) -> tuple[bool, int, bool, float, str]:
        module = module_of(test)
        near = Path(os.path.commonpath([module.removeprefix("tests/"), mutant.path])).parts
        is_long = traced[test].seconds > LONG_TEST_S
        is_other = Path(module).stem != f"test_{mutant.path.stem}"
        return is_long, -len(near), is_other, seconds[module], module

    ranked = sorted(tests, key=rank)
    ends = accumulate(traced[test].seconds for test in ranked)
    return [
        test
        for at, (test, end) in enumerate(zip(ranked, ends, strict=True))
        if end <= limit_s or not at
    ]


def by_room(
    changes: Iterable[deleted_branches.Change], tests: tuple[str, ...]
) -> tuple[dict[str, Group], dict[Mutation, Mutant]]:
    """Return the mutations of *changes* by room, which *tests* judge, and the mutant of each.

    A room is a module's folder, or the module itself where it stands beside folders.
    """
    mutants = {
        Mutation(
            "/".join(change.path.parts[:2]) if len(change.path.parts) > 2 else change.path.parts[0],
            f"{change.path}:{change.line} {change.definition}",
            change.old,
            change.new,
        ): Mutant(change.path, change.definition, change.source)
        for change in changes
    }
    table = {
        name: Group(tests, tuple(of_group), NEAREST_S)
        for name, of_group in groupby(sorted(mutants), key=attrgetter("group"))
    }
    return table, mutants


def branch_groups(
    root: Path, within: Sequence[str]
) -> tuple[dict[str, Group], dict[Mutation, Mutant]]:
    """Return a mutation for each branch of the folders or modules *within*, by room."""
    chosen_sources = {
        path: source
        for path, source in sources(root).items()
        if any(path.is_relative_to(place) for place in within)
    }
    return by_room(deleted_branches.deleted(chosen_sources), OUTPUTS)


def judge(table: Mapping[str, Group], budget: Budget, marks: str, root: Path) -> int:
    """Judge *table* with the tests of these *marks*; return 1 where a mutation survives."""
    modules = sorted({module for group in table.values() for module in group.modules})
    with tempfile.TemporaryDirectory(prefix="mutants-") as place:
        os.environ["TMPDIR"] = tempfile.tempdir = place  # of forks, which do not tidy up
        options = [f"-pno:{name}" for name in ("cacheprovider", "xdist", "terminal")]
        sys.path.insert(0, str(root))  # as `python -m pytest` has it: spawned programs import tests
        pytest.main([*options, "-m", marks, *modules], plugins=[budget])
        tempfile.tempdir = None
    if budget.problem:
        raise MutationLost(budget.problem)
    print()
    for name, group in table.items():
        print(row(name, [budget.verdicts[mutation] for mutation in group.mutations]))
    print(row("all", list(budget.verdicts.values())))
    survivors = [mutation for mutation, verdict in budget.verdicts.items() if not verdict.cause]
    for mutation in survivors:
        print(f"survives: {mutation}")
    return int(bool(survivors))


def row(name: str, verdicts: Sequence[Verdict]) -> str:
    """Return how many were found, and the seconds of their tests."""
    killed = sum(bool(verdict.cause) for verdict in verdicts)
    seconds = sum(verdict.seconds for verdict in verdicts)
    return f"{name:12} {killed:4} of {len(verdicts)} killed {seconds:6.0f} s"


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
    parser.add_argument("--branches", nargs="+", help="delete each branch of folders or modules")
    parser.add_argument("--root", type=Path, default=ROOT, help=argparse.SUPPRESS)
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    os.chdir(options.root)
    try:
        is_table = options.branches is None
        if not is_table:
            every, mutants = branch_groups(options.root, options.branches)
        else:
            every = groups(options.root)
            mutants = {
                mutation: find(mutation, options.root)
                for group in every.values()
                for mutation in group.mutations
            }
        table = wanted(every, options.only)
        if not table:
            parser.error(f"nothing in {TABLE} matches {options.only!r}")
        budget = Budget(
            table, mutants, jobs=options.jobs, least_limit_s=options.least_limit, root=options.root
        )
        marks = "not long" if is_table else ""  # laws take long
        is_wrong = judge(table, budget, marks, options.root)
    except MutationLost as error:
        print(error, file=sys.stderr)
        return 1
    return is_wrong if is_table else 0


if __name__ == "__main__":
    sys.exit(main())
