"""What each test costs: the table, the marks that follow from it, and the tests that lack a row.

``make costs`` measures every test and writes ``tests/data/costs.tsv``. ``make costs ONLY=FOLDER``
measures a part anew and keeps the other rows. As a program, this merges what was measured into the
table.
"""

from __future__ import annotations

import os
import re
import socket
import sys
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

import psutil
import pytest
from _pytest.fixtures import FixtureDef
from _pytest.runner import runtestprotocol

TABLE: Final = Path(__file__).parents[1] / "data" / "costs.tsv"
"""CPU seconds, key and mark of each test of a function that holds a test of a quarter of a second
or more, or one that opens a socket or starts a process."""
ROW_S: Final = 0.25
"""What a test may take without a row."""
REAL_TIME: Final = {"socket.bind", "socket.connect", "subprocess.Popen", "os.fork"}
"""What Python audits where a test's course comes to depend on how busy the machine is."""
LIMITS_S: Final = {"slow": (ROW_S, 1.0), "long": (0.5, 10.0)}
"""Above what cost a test has the mark, and the cheapest test of a module: a module is a subject."""
KEPT: Final = ("tests/repository/test_readme.py", "tests/world/")
"""They are never slow: what a page costs follows from whether it was changed, and histories stand
for the tests that are."""
PROMISES: Final = (
    "tests/daemon/engine/test_limits.py::test_a_breach_ends_new_exposure",
    "tests/daemon/feed/test_feed_holes.py::test_a_settlement_that_nobody_answers",
    "tests/daemon/feed/test_feed_holes.py::test_what_waits_behind_a_hole",
    "tests/daemon/session/test_daily_parity.py::test_a_day_is_checked_once",
    "tests/daemon/session/test_resume.py::test_a_halt_is_seen",
    "tests/daemon/session/test_supervisor.py::test_a_strategy_that_fails_in_the_step_of_a_stop",
    "tests/daemon/session/test_warming.py::test_a_listing_without_a_past",
    "tests/product/test_bad_days.py::test_a_restart_waits_for_an_exchange",
    "tests/product/test_bad_days.py::test_a_stop_drops_what_waits",
    "tests/product/test_bad_days.py::test_the_token_of_a_command",
    "tests/product/test_restore.py::test_a_copy_has_the_models",
    "tests/product/test_scenarios.py::test_killed_at_a_step_and_resumed",
    "tests/replay/report/test_states.py::test_a_halt_lasts",
    "tests/replay/test_damage.py::test_a_checkpoint_that_is_not_kept",
    "tests/storage/database/test_lock.py::test_a_second_writer_is_refused",
    "tests/storage/database/test_lock.py::test_no_step_is_acknowledged",
    "tests/storage/test_audit.py::test_a_full_disk_stops_the_log",
)
"""Each alone holds a promise of a page about running: under a second it is never slow either."""
_SHORT_ID: Final = re.compile(r"[\w./:+=,-]{1,40}")


def function_of(key: str) -> str:
    """Return the file and the function of a test, without its parameters."""
    return key.partition("[")[0]


def key_of(item: pytest.Item) -> str:
    """Return the name of *item* in the table.

    Of a test with parameters it holds their id, or their place where the id is a sentence.
    """
    function = function_of(item.nodeid)
    if (parameters := getattr(item, "callspec", None)) is None:
        return function
    if _SHORT_ID.fullmatch(parameters.id):
        return f"{function}[{parameters.id}]"
    places = dict.fromkeys(map(str, parameters.indices.values()))
    return f"{function}[#{'-'.join(places)}]"


class Known:
    """What the table says of each test: one that it lacks is like the dearest of its function."""

    def __init__(self, lines: Iterable[str]) -> None:
        self._costs: dict[str, float] = {}
        self._marks: dict[str, str] = {}
        for line in lines:
            cost, key, *marks = line.split("\t")
            function = function_of(key)
            self._costs[key] = float(cost)
            self._costs[function] = max(float(cost), self._costs.get(function, 0.0))
            for mark in marks:
                self._marks[key] = self._marks[function] = mark
            self._marks.setdefault(key, "")

    def cost_s(self, key: str) -> float:
        """Return the CPU seconds of the test *key*."""
        return self._costs.get(key, self._costs.get(function_of(key), 0.0))

    def mark(self, key: str) -> str:
        """Return the mark of the test *key*, which may be empty."""
        return self._marks.get(key, self._marks.get(function_of(key), ""))


def known() -> Known:
    """Return what the table in the repository says."""
    return Known(TABLE.read_text(encoding="utf-8").splitlines())


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark by known cost what is ``slow`` or ``long``, and what depends on the machine's haste."""
    table = known()
    keys = {item: key_of(item) for item in items}
    cheapest: dict[Path, pytest.Item] = {}
    for item in sorted(items, key=lambda item: table.cost_s(keys[item])):
        cheapest.setdefault(item.path, item)
    for item, key in keys.items():
        cost = table.cost_s(key)
        if key.startswith(KEPT) or (cost < 1 and key.startswith(PROMISES)):
            cost = 0.0
        for mark, limits_s in LIMITS_S.items():
            if cost > limits_s[cheapest[item.path] is item]:
                item.add_marker(mark)
        if mark := table.mark(key):
            item.add_marker(mark)


class Meter:
    """CPU seconds of each test, without the fixtures that it shares with others, and of these."""

    def __init__(self) -> None:
        self.tests: dict[pytest.Item, float] = {}
        self.fixtures: dict[FixtureDef[object], float] = {}

    def cpu_s(self) -> float:
        """Return the CPU seconds of this process and of all that it began and that ended."""
        return sum(os.times()[:4])

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(
        self, item: pytest.Item, nextitem: pytest.Item | None
    ) -> Generator[None, object, object]:
        """Measure a test."""
        before, shared = self.cpu_s(), sum(self.fixtures.values())
        done = yield
        shared = sum(self.fixtures.values()) - shared
        self.tests[item] = self.cpu_s() - before - shared
        return done

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(
        self, fixturedef: FixtureDef[object]
    ) -> Generator[None, object, object]:
        """Measure what sets up a fixture of a module or of the session."""
        before, inner = self.cpu_s(), sum(self.fixtures.values())
        done = yield
        if fixturedef.scope != "function":
            inner = sum(self.fixtures.values()) - inner
            cost = self.cpu_s() - before - inner
            self.fixtures[fixturedef] = self.fixtures.get(fixturedef, 0.0) + cost
        return done


def users_of(fixture: FixtureDef[object], items: Iterable[pytest.Item]) -> list[pytest.Item]:
    """Return those of *items* that ask for *fixture*."""
    return [
        item
        for item in items
        if fixture.argname in getattr(item, "fixturenames", ())
        and item.nodeid.startswith(fixture.baseid)
    ]


class Costs(Meter):
    """Also counts processes that go on, and finds what opens a socket or starts a process.

    A fixture that tests share counts in equal parts for those of its users that are fast, since
    it is made for them even where no other test runs.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        self._real_time: set[pytest.Item | FixtureDef[object]] = set()
        self._real_time_events = 0
        sys.addaudithook(self._audit)

    def _audit(self, event: str, arguments: tuple[object, ...]) -> None:
        if event in REAL_TIME:  # a datagram waits for nobody
            of = arguments[0] if arguments else None
            is_datagram = isinstance(of, socket.socket) and of.type == socket.SOCK_DGRAM
            self._real_time_events += not is_datagram

    def cpu_s(self) -> float:
        """Return the CPU seconds of this process and of all that it began, ended or not."""
        spent = super().cpu_s()
        for child in psutil.Process().children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                spent += sum(child.cpu_times()[:4])
        return spent

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(
        self, item: pytest.Item, nextitem: pytest.Item | None
    ) -> Generator[None, object, object]:
        """Measure a test, and note whether it opens a socket or starts a process."""
        events = self._real_time_events
        done = yield from super().pytest_runtest_protocol(item, nextitem)
        if self._real_time_events > events:
            self._real_time.add(item)
        return done

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(
        self, fixturedef: FixtureDef[object]
    ) -> Generator[None, object, object]:
        """Measure a fixture, and note whether it opens a socket or starts a process."""
        events = self._real_time_events
        done = yield from super().pytest_fixture_setup(fixturedef)
        if self._real_time_events > events:
            self._real_time.add(fixturedef)
        return done

    def pytest_sessionfinish(self) -> None:
        """Append every test to the file."""
        costs = dict(self.tests)
        for fixture, cost in self.fixtures.items():
            users = users_of(fixture, costs)
            if fixture in self._real_time:
                self._real_time.update(users)
            users = [item for item in users if costs[item] <= ROW_S] or users
            for item in users:
                costs[item] += cost / len(users)
        with self._path.open("a", encoding="utf-8") as table:
            for item, cost in costs.items():
                if cost < 0:  # a child had ended before its seconds were read: the cost is unknown
                    continue
                mark = "\treal_time" if item in self._real_time else ""
                table.write(f"{cost:.2f}\t{key_of(item)}{mark}\n")


class Unknown(Meter):
    """Fails a test that is dear and that the table does not know as such.

    What a test is the first of its process to import or to compute once counts for none, so a test
    that is dear runs again, and the cheaper run counts. Of a shared fixture each user without a row
    has an equal part.
    """

    def __init__(self, most_s: float) -> None:
        super().__init__()
        self._most_s = most_s
        self._known = known()

    def _is_cheap(self, item: pytest.Item) -> bool:
        key = key_of(item)
        return self._known.cost_s(key) <= ROW_S and not key.startswith(KEPT)

    def _share_s(self, made: Mapping[FixtureDef[object], float], item: pytest.Item) -> float:
        """Return the part of what was *made* in a test that counts for each of its cheap users."""
        return sum(
            cost / len([*filter(self._is_cheap, users_of(fixture, item.session.items))] or [item])
            for fixture, cost in made.items()
        )

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(
        self, item: pytest.Item, nextitem: pytest.Item | None
    ) -> Generator[None, object, object]:
        """Measure a test, once more if it is dear, and fail it if it still is."""
        failed, before = item.session.testsfailed, dict(self.fixtures)
        done = yield from super().pytest_runtest_protocol(item, nextitem)
        if item.session.testsfailed > failed or not self._is_cheap(item):
            return done
        made = {
            fixture: cost - before.get(fixture, 0.0)
            for fixture, cost in self.fixtures.items()
            if cost > before.get(fixture, 0.0)
        }
        own, share = self.tests[item], self._share_s(made, item)
        if own + share > self._most_s:
            start, shared = self.cpu_s(), sum(self.fixtures.values())
            runtestprotocol(item, log=False, nextitem=nextitem)
            again = self.cpu_s() - start - (sum(self.fixtures.values()) - shared)
            if (cost := min(own, again) + share) > self._most_s:
                self._fail(item, cost)
        return done

    @staticmethod
    def _fail(item: pytest.Item, cost_s: float) -> None:
        file = item.nodeid.partition("::")[0]
        report = pytest.TestReport(
            nodeid=item.nodeid,
            location=item.location,
            keywords={},
            outcome="failed",
            longrepr=f"{item.nodeid} takes {cost_s:.2f} CPU seconds and has no row in "
            f"tests/data/costs.tsv: make it cheaper, or run `make costs ONLY={file}`.",
            when="call",
        )
        item.ihook.pytest_runtest_logreport(report=report)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let `make costs` measure, and `make test` fail what the table does not know as dear."""
    parser.addoption("--costs", metavar="FILE", help="append CPU seconds and key of each test")
    parser.addoption(
        "--unknown-costs", metavar="S", type=float, help="fail a test above S without a row"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Measure the tests where an option asks for it."""
    if (path := config.getoption("--costs")) is not None:
        config.pluginmanager.register(Costs(Path(path)))
    if (most_s := config.getoption("--unknown-costs")) is not None:
        config.pluginmanager.register(Unknown(most_s))


def merged(old: Iterable[str], measured: Iterable[str], parts: Sequence[str]) -> list[str]:
    """Return the lines of the table: those *measured*, and the *old* ones of no part of *parts*.

    A function has either a line for each of its tests or none.
    """
    lines = [line.split("\t") for line in measured]
    named = {function_of(key) for cost, key, *marks in lines if float(cost) >= ROW_S or marks}
    kept = [line for line in old if parts and not line.split("\t")[1].startswith(tuple(parts))]
    new = ["\t".join(line) for line in lines if function_of(line[1]) in named]
    return sorted({*kept, *new}, key=lambda line: line.partition("\t")[2])


def main(measured: str, *parts: str) -> None:
    """Write the table."""
    old = TABLE.read_text(encoding="utf-8").splitlines()
    lines = merged(old, Path(measured).read_text(encoding="utf-8").splitlines(), parts)
    TABLE.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
