"""Shipping through what goes wrong: nothing lost, nothing twice, nothing out of order."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from fleet_cases import assert_same, grown
from postgres_server import Cluster
from records import rows
from storage_cases import CROSS_GATES, plain_steps, rich_steps, run, write_run
from waiting import deadline_s

from tracepaper.daemon.clock import SystemClock
from tracepaper.storage.audit import SqlAuditLog
from tracepaper.storage.fleet.follow import Follower, ship_once
from tracepaper.storage.fleet.pull import pull
from tracepaper.storage.fleet.server import ShipProgress, checked, connect
from tracepaper.storage.fleet.ship import Shipper
from tracepaper.storage.fleet.tables import make_schema
from tracepaper.storage.record.rows import SCHEMA
from tracepaper.strategies import extras
from tracepaper.strategies.errors import ConfigInvalid, DataInvalid, ServerLost

# ---------------------------------------------------------------- crashes of the shipper

KILLED_AT = """
import os, signal, sys
from pathlib import Path
from tracepaper.storage.fleet.ship import Shipper
path, url, point, number = sys.argv[1:]
hits = 0
def at(name):
    global hits
    hits += name == point
    if hits == int(number):
        os.kill(os.getpid(), signal.SIGKILL)
shipper = Shipper(Path(path), url, group_steps=16, at=at)
shipper.open()
shipper.ship()
"""
POINTS = ("before copy", "after steps", "after ledger", "before commit", "after commit")


def killed(path: Path, url: str, point: str, number: int) -> int:
    """Ship in a process that is killed at the *number*th time that it reaches *point*."""
    command = (sys.executable, "-c", KILLED_AT, str(path), url, point, str(number))
    return subprocess.run(command, check=False, capture_output=True).returncode


def test_a_shipper_that_is_killed_goes_on_behind_the_last_group(
    tmp_path: Path, postgres: Cluster, fleet_url: str
) -> None:
    path, back = tmp_path / "a.db", tmp_path / "b.db"
    write_run(path, plain_steps(200), group_steps=8)
    write_run(path, rich_steps(), of=run("r-2"))
    arrived = []
    for number, point in enumerate(POINTS, 1):
        assert killed(path, fleet_url, point, number) == -signal.SIGKILL
        query = "SELECT count(*), coalesce(max(sequence), -1) FROM steps"
        assert postgres.sql(fleet_url, query)[0][0] == postgres.sql(fleet_url, query)[0][1] + 1
        (marked,) = postgres.sql(fleet_url, "SELECT max(sequence) FROM marks")
        arrived.append((marked[0] or -1) + 1)
    # Groups that were committed before each kill: none, one, two, three and, at the end, five.
    assert arrived == [0, 16, 48, 96, 176]
    assert ship_once(path, fleet_url).steps == 24 + len(rich_steps())
    pull(fleet_url, back)
    assert_same(path, back)


# ---------------------------------------------------------------- crashes of the server


def test_a_server_that_is_killed_in_mid_copy_has_whole_groups(
    tmp_path: Path, postgres: Cluster, fleet_url: str
) -> None:
    path, back = tmp_path / "a.db", tmp_path / "b.db"
    write_run(path, plain_steps(200), group_steps=10)
    groups = 0

    def at(point: str) -> None:
        nonlocal groups
        groups += point == "after steps"
        if groups == 3 and point == "after steps":
            postgres.stop("immediate")

    shipper = Shipper(path, fleet_url, group_steps=50, at=at)
    shipper.open()
    try:
        with pytest.raises(ServerLost, match="broke off"):
            shipper.ship()
        assert not shipper.is_open
        with pytest.raises(ServerLost, match="does not take the connection"):
            shipper.open()
    finally:
        postgres.start()
    assert postgres.sql(fleet_url, "SELECT count(*) FROM steps") == [(100,)]
    shipper.open()
    assert shipper.ship().steps == 100
    shipper.close()
    pull(fleet_url, back)
    assert_same(path, back)


class FollowerThread:
    """A follower in a thread of its own, and what it reports."""

    def __init__(self, path: Path, url: str, group_steps: int = 50) -> None:
        self.reports: list[ShipProgress] = []
        self.stop, self._heard = threading.Event(), threading.Condition()
        self.error: Exception | None = None
        self._follower = Follower(
            path,
            url,
            stop=self.stop,
            seconds=SystemClock().network_s,
            report=self._hear,
            group_steps=group_steps,
        )
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._follower.run()
        except Exception as error:  # noqa: BLE001 - a test looks at it
            self.error = error
        with self._heard:
            self._heard.notify_all()

    def _hear(self, progress: ShipProgress) -> None:
        with self._heard:
            self.reports.append(progress)
            self._heard.notify_all()

    def until(self, condition: Callable[[ShipProgress], object]) -> ShipProgress:
        with self._heard:
            assert self._heard.wait_for(
                lambda: self.error or any(map(condition, self.reports)), timeout=deadline_s(120)
            )
        assert self.error is None
        return next(state for state in self.reports if condition(state))

    def end(self) -> None:
        self.stop.set()
        self._thread.join()


def test_a_follower_waits_for_a_server_that_is_away_and_goes_on(
    tmp_path: Path, postgres: Cluster, fleet_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tracepaper.storage.fleet.follow.PAUSE_S", (0.05, 0.2))
    monkeypatch.setattr("tracepaper.storage.fleet.follow.HEARTBEAT_S", 0.1)
    path, back = tmp_path / "a.db", tmp_path / "b.db"
    write_run(path, plain_steps(100))
    following = FollowerThread(path, fleet_url)
    following.until(lambda progress: progress.steps == 100)
    postgres.stop("immediate")
    try:
        grown(path, 150, seed=1, since=100)
        away = following.until(lambda progress: progress.error)
        assert "does not take the connection" in away.error or "broke off" in away.error
        lagging = following.until(lambda progress: progress.error and progress.lag_steps == 50)
        assert lagging.errors >= 1
        following.until(lambda progress: progress.lag_steps == 50 and progress.lag_s > 0)
    finally:
        postgres.start()
    following.until(lambda state: state.steps == 150 and not state.error and not state.lag_steps)
    grown(path, 170, seed=1, since=150)
    following.end()  # which ships what is there
    assert following.reports[-1].steps == 170
    pull(fleet_url, back)
    assert_same(path, back)
    shippers = postgres.sql(fleet_url, "SELECT host, file, lag_steps FROM shippers")
    assert shippers == [(socket.gethostname(), str(path), 0)]


def test_a_follower_waits_for_the_end_of_another_and_takes_over(
    tmp_path: Path, fleet_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tracepaper.storage.fleet.follow.PAUSE_S", (0.05, 0.2))
    path = tmp_path / "a.db"
    write_run(path, plain_steps(100))
    first = Shipper(path, fleet_url)
    first.open()
    following = FollowerThread(path, fleet_url)
    try:
        following.until(lambda progress: progress.errors == 4)
        # One sentence, however often it tried: a log has one line of it.
        (sentence,) = {progress.error for progress in following.reports}
        assert "without --once waits for its end" in sentence
        first.close()
        following.until(lambda progress: progress.steps == 100 and not progress.error)
    finally:
        first.close()
        following.end()


# ---------------------------------------------------------------- a line that is cut


class Line:
    """A connection of a client through the proxy; cut where *cut* says so of bytes so far."""

    def __init__(self, client: socket.socket, port: int, cut: Callable[[int, bytes], bool]) -> None:
        self._client, self._cut = client, cut
        self._server = socket.create_connection(("127.0.0.1", port))
        self._is_muted = threading.Event()
        self._answering = threading.Thread(target=self._answer)
        self._answering.start()

    def serve(self, passed: int) -> int:
        """Pass on what the client sends; return the bytes that were passed in all."""
        with suppress(OSError):
            while data := self._client.recv(65536):
                passed += len(data)
                is_last = self._cut(passed, data)
                if is_last:
                    self._is_muted.set()
                self._server.sendall(data)
                if is_last:
                    if b"COMMIT" in data:
                        self._answering.join()  # which ends once the server has committed
                    break
        with suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._answering.join()
        self._client.close()
        self._server.close()
        return passed

    def _answer(self) -> None:
        with suppress(OSError):
            while data := self._server.recv(65536):
                if not self._is_muted.is_set():
                    self._client.sendall(data)
                elif b"COMMIT" in data:
                    break
        with suppress(OSError):
            self._client.shutdown(socket.SHUT_RDWR)


@contextmanager
def proxy(port: int, cut: Callable[[int, bytes], bool]) -> Iterator[int]:
    """Pass bytes on to *port*; cut the line after a message of the client for which *cut* says so.

    The message itself reaches the server, whose answer does not come back.
    """
    listener = socket.create_server(("127.0.0.1", 0))

    def accept() -> None:
        passed = 0
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                passed = Line(client, port, cut).serve(passed)

    accepting = threading.Thread(target=accept)
    accepting.start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        accepting.join()


def ship_through(path: Path, url: str) -> int:
    """Ship until all is there, opening again whenever the line is cut; return the cuts."""
    cuts = 0
    while True:
        shipper = Shipper(path, url, group_steps=40)
        try:
            shipper.open()
            shipper.ship()
        except ServerLost:
            cuts += 1
            assert cuts < 60
        else:
            return cuts
        finally:
            shipper.close()


def test_a_line_that_is_cut_anywhere_loses_and_doubles_nothing(
    tmp_path: Path, postgres: Cluster, fleet_url: str
) -> None:
    path, back = tmp_path / "a.db", tmp_path / "b.db"
    write_run(path, plain_steps(200))
    limit = 6_000

    def after_some(passed: int, _data: bytes) -> bool:
        nonlocal limit
        if passed < limit:
            return False
        limit = passed + 9_000 + limit // 4  # longer each time, so that it comes to an end
        return True

    with proxy(postgres.port, after_some) as port:
        name = fleet_url.rpartition("/")[2]
        assert ship_through(path, postgres.url(name, port=port)) >= 3
    pull(fleet_url, back)
    assert_same(path, back)


# ---------------------------------------------------------------- a server that is slow, or full


def test_a_server_that_does_not_answer_holds_nobody_up(
    tmp_path: Path, postgres: Cluster, fleet_url: str
) -> None:
    path = tmp_path / "a.db"
    log = SqlAuditLog.open(path)
    log.begin(run(), (CROSS_GATES,))
    for step in plain_steps(50):
        log.append_now(step)
    log.flush()
    import psycopg

    with psycopg.connect(fleet_url) as blocking:
        blocking.execute("LOCK TABLE tracepaper.steps IN ACCESS EXCLUSIVE MODE")
        following = FollowerThread(path, fleet_url)
        waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted AND database = (SELECT oid FROM "
        waiting += "pg_database WHERE datname = current_database())"
        while postgres.sql(fleet_url, waiting) != [(1,)]:
            pass
        # It waits for the server now, and holds nothing of the file.
        for step in plain_steps(80)[50:]:
            log.append_now(step)
        log.flush()
        assert rows(path, "PRAGMA wal_checkpoint(TRUNCATE)")[0] == (0, 0, 0)
        blocking.rollback()
    following.until(lambda progress: progress.steps == 80)
    following.end()
    log.close()


# ---------------------------------------------------------------- who may not


PASSWORD = "geheim-3141"


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://user:{PASSWORD}@127.0.0.1/fleet",
        f"postgresql://:{PASSWORD}@127.0.0.1/fleet",
        f"postgresql://user%3A{PASSWORD}@127.0.0.1/fleet",
        f"postgresql://127.0.0.1/fleet?password={PASSWORD}",
        f"postgresql://127.0.0.1/fleet?pass%77ord={PASSWORD}",
        f"postgresql://127.0.0.1/fleet?sslpassword={PASSWORD}",
        f"postgresql://127.0.0.1/fleet?PASSWORD={PASSWORD}",
        f"postgresql://127.0.0.1/fleet?user=a:{PASSWORD}",
        f"postgresql://127.0.0.1/fleet?options=-c%20password={PASSWORD}",
        f"postgresql://user:{PASSWORD}@[::1",
        f"postgresql:// user:{PASSWORD}@127.0.0.1/fleet",
        f"postgres//user:{PASSWORD}@127.0.0.1/fleet",
        f"host=127.0.0.1 password={PASSWORD}",
        f"postgresql://127.0.0.1/user:{PASSWORD}@fleet",
        f"postgresql://127.0.0.1/fleet#{PASSWORD}",
        f"mysql://user:{PASSWORD}@127.0.0.1/fleet",
        f"postgresql://a@127.0.0.1,b:{PASSWORD}@127.0.0.2/fleet",
        f"postgresql://a@127.0.0.1/fleet&password={PASSWORD}",
        f"postgresql://a@127.0.0.1/fleet;Passwd = {PASSWORD}".replace(" ", "%20"),
        f"postgresql://127.0.0.1/fleet?dbname=a%20password%3D{PASSWORD}",
        f"postgresql://127.0.0.1/fleet?dbname=postgresql://a:{PASSWORD}%40h/fleet",
        f"postgresql://127.0.0.1/fleet?host=a:{PASSWORD}%40h",
    ],
)
def test_an_address_with_a_password_is_refused_and_never_shown(url: str, tmp_path: Path) -> None:
    from tracepaper.daemon.config.loading import load

    with pytest.raises(ConfigInvalid) as refused:
        connect(url)
    assert PASSWORD not in str(refused.value)
    assert refused.value.__cause__ is None
    with pytest.raises(ConfigInvalid) as refused:
        load(None, {"storage": {"ship_to": url}})
    assert PASSWORD not in str(refused.value)
    assert "storage" in str(refused.value)
    file = tmp_path / "a.toml"
    file.write_text(f"[storage]\nship_to = '{url}'\n")
    with pytest.raises(ConfigInvalid) as refused:
        load(file)
    assert PASSWORD not in str(refused.value)


def test_what_is_missing_is_named(
    postgres: Cluster, fleet_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(ServerLost, match=r"at 127.0.0.1:\d+/fleet does not take the connection"):
        connect(postgres.url("fleet", port=port))
    with pytest.raises(ServerLost, match=r'"nowhere" does not exist\): create it'):
        connect(postgres.url("nowhere"))
    for host in ("a" * 64, "\udcff"):
        with pytest.raises(ServerLost, match="does not take the connection"):
            connect(f"postgresql://owner@{host}/fleet")
    path = tmp_path / "a.db"
    write_run(path, plain_steps(20))
    with pytest.raises(DataInvalid, match="holds no record of a fleet: make its tables"):
        ship_once(path, postgres.empty())
    postgres.sql(fleet_url, "UPDATE schema_version SET version = 1")
    for doing in (
        lambda: ship_once(path, fleet_url),
        lambda: pull(fleet_url, tmp_path / "b.db"),
        lambda: make_schema(fleet_url),
    ):
        with pytest.raises(
            DataInvalid, match=f"has schema 1, and this version reads {SCHEMA}: use the"
        ):
            doing()
    monkeypatch.setattr(extras, "find_spec", lambda _name: None)
    with pytest.raises(ConfigInvalid, match=r"--to needs psycopg: .*'tracepaper\[fleet\]'"):
        connect(fleet_url)
    assert checked(fleet_url, "--to") == fleet_url
