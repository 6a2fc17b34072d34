"""What every test run shares: the option that rewrites golden files, and where GPU tests run."""

from __future__ import annotations

import os
import socket
import sys
from asyncio import AbstractEventLoop, new_event_loop
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Final

import psutil
import pytest
from _pytest.fixtures import FixtureDef
from command_line import Cli
from hypothesis import HealthCheck, settings
from postgres_server import fleet_url, postgres  # noqa: F401 - fixtures
from wheels import InstalledWheel, installed_with_all
from world import client as world_client
from world.loop import loop_without_delays

world_client.install()

COSTS: Final = Path(__file__).parent / "data" / "costs.tsv"
"""CPU seconds, name and mark of each test that `make costs` saw take a quarter of one or more, or
open a socket or start a process."""
REAL_TIME: Final = {"socket.bind", "socket.connect", "subprocess.Popen", "os.fork"}
"""What Python audits where a test's course comes to depend on how busy the machine is."""
LIMITS_S: Final = {"slow": (0.25, 1.0), "long": (0.5, 10.0)}
"""Above what cost a test has the mark, and the cheapest test of a module: a module is a subject."""
KEPT: Final = ("tests/repository/test_readme.py", "tests/world/")
"""They are never slow: what a page costs follows from whether it was changed, and histories stand
for the tests that are."""


def pytest_asyncio_loop_factories(
    item: pytest.Item,
) -> Mapping[str, Callable[[], AbstractEventLoop]]:
    """Give tests a loop in which no time passes and nothing has a socket, but those of sockets."""
    is_real = item.get_closest_marker("sockets")
    return {"loop": new_event_loop if is_real else loop_without_delays}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark by measured cost what is ``slow`` or ``long``, and what asks for a PostgreSQL.

    What asks for the wheel comes first: begun last, it would work alone at the end.
    """
    items.sort(key=lambda item: "installed" not in getattr(item, "fixturenames", ()))
    lines = COSTS.read_text(encoding="utf-8").splitlines()
    rows = [line.split("\t") for line in lines]
    costs = {row[1]: float(row[0]) for row in rows}
    marks = {row[1]: row[2] for row in rows if len(row) > 2}
    cheapest: dict[Path, str] = {}
    for item in sorted(items, key=lambda item: costs.get(item.nodeid, 0.0)):
        cheapest.setdefault(item.path, item.nodeid)
    for item in items:
        is_cheapest = cheapest[item.path] == item.nodeid
        cost = 0.0 if item.nodeid.startswith(KEPT) else costs.get(item.nodeid, 0.0)
        for mark, limits_s in LIMITS_S.items():
            if cost > limits_s[is_cheapest]:
                item.add_marker(mark)
        if item.nodeid in marks:
            item.add_marker(marks[item.nodeid])
        if "postgres" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.postgres)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let `make golden` rewrite the golden files, and `make costs` the table of costs."""
    parser.addoption("--rewrite-golden", action="store_true", help="rewrite tests/data/golden_*")
    parser.addoption("--costs", metavar="FILE", help="append CPU seconds and name of each test")


class Costs:
    """CPU seconds of each test, and whether it opens a socket or starts a process.

    A fixture that tests share counts in equal parts for those of its users that are fast, since
    it is made for them even where no other test runs.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._tests: dict[pytest.Item, float] = {}
        self._fixtures: dict[FixtureDef[object], float] = {}
        self._real_time: set[pytest.Item | FixtureDef[object]] = set()
        self._real_time_events = 0
        sys.addaudithook(self._audit)

    def _audit(self, event: str, arguments: tuple[object, ...]) -> None:
        if event in REAL_TIME:  # a datagram waits for nobody
            of = arguments[0] if arguments else None
            is_datagram = isinstance(of, socket.socket) and of.type == socket.SOCK_DGRAM
            self._real_time_events += not is_datagram

    @staticmethod
    def _cpu_s() -> float:
        """Return the CPU seconds of this process and of all that it began, ended or not."""
        spent = sum(os.times()[:4])
        for child in psutil.Process().children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                spent += sum(child.cpu_times()[:4])
        return spent

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        """Measure a test, without the fixtures that it shares with others."""
        before, shared = self._cpu_s(), sum(self._fixtures.values())
        events = self._real_time_events
        done = yield
        shared = sum(self._fixtures.values()) - shared
        self._tests[item] = self._cpu_s() - before - shared
        if self._real_time_events > events:
            self._real_time.add(item)
        return done

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(
        self, fixturedef: FixtureDef[object]
    ) -> Generator[None, object, object]:
        """Measure what sets up a fixture of a module or of the session."""
        before, inner = self._cpu_s(), sum(self._fixtures.values())
        events = self._real_time_events
        done = yield
        if self._real_time_events > events:
            self._real_time.add(fixturedef)
        if fixturedef.scope != "function":
            inner = sum(self._fixtures.values()) - inner
            cost = self._cpu_s() - before - inner
            self._fixtures[fixturedef] = self._fixtures.get(fixturedef, 0.0) + cost
        return done

    def pytest_sessionfinish(self) -> None:
        """Append the costs to the table."""
        costs = dict(self._tests)
        for fixture, cost in self._fixtures.items():
            users = [
                item
                for item in costs
                if fixture.argname in getattr(item, "fixturenames", ())
                and item.nodeid.startswith(fixture.baseid)
            ]
            if fixture in self._real_time:
                self._real_time.update(users)
            users = [item for item in users if costs[item] <= LIMITS_S["slow"][0]] or users
            for item in users:
                costs[item] += cost / len(users)
        with self._path.open("a", encoding="utf-8") as table:
            for item, cost in costs.items():
                mark = "\treal_time" if item in self._real_time else ""
                table.write(f"{cost:.2f}\t{item.nodeid}{mark}\n")


def pytest_configure(config: pytest.Config) -> None:
    """Measure the tests where ``--costs`` asks for it."""
    if (path := config.getoption("--costs")) is not None:
        config.pluginmanager.register(Costs(Path(path)))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say in one line each what this machine could not test."""
    skipped = terminalreporter.stats.get("skipped", ())
    reasons = Counter(report.longrepr[2].removeprefix("Skipped: ") for report in skipped)
    for reason, count in sorted(reasons.items()):
        terminalreporter.write_line(f"Not tested ({count}): {reason}")


@pytest.fixture
def rewrite_golden(request: pytest.FixtureRequest) -> bool:
    """Whether golden files are to be written from what was found."""
    return bool(request.config.getoption("--rewrite-golden"))


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    """Return what calls the program's commands."""
    return Cli(capsys)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty folder, in which the test runs."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Let torch compute on one thread."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> InstalledWheel:
    """Build the wheel once for all workers, and install it beside every package that is here."""
    own, base = tmp_path_factory.mktemp("wheel"), tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    return replace(installed_with_all(shared / "shared_wheel"), folder=own)


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep features below the tests' own folder, not in the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


def pytest_pycollect_makeitem(
    collector: pytest.Module | pytest.Class, obj: object
) -> list[pytest.Item] | None:
    """Make no test of what is marked ``gpu`` unless CUDA is there; torch is asked only then."""
    marks = [*collector.iter_markers(), *getattr(obj, "pytestmark", ())]
    if "gpu" not in {mark.name for mark in marks}:
        return None
    import torch

    return None if torch.cuda.is_available() else []


# The same examples on every machine and in every run; a campaign of chance is `--hypothesis-seed`.
# Nor does a busy machine, which draws them slowly, fail a test.
settings.register_profile(
    "repository",
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("repository")
