"""A fleet that ships to one PostgreSQL while its processes are killed, against its own files.

    PYTHONPATH=tests:tests/support python tests/campaigns/campaign_fleet.py
        [--daemons 10 --symbols 50]

Daemons trade ``sma_cross``, which is cheap, at one embedded exchange, each with ``ship_to``. From a
seed, at moments of the data's own time, a daemon or its shipper gets SIGKILL, and the server ends
without a shutdown. At the end all go on to the last bar, stop, and what is left is shipped. Then
each file is compared with what the server holds of it, with sqlite3 and psycopg alone: the steps
where they lie, every row of every table after a pull, and both chains. Imports nothing of ours but
the server's start.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from postgres_server import Cluster, a_cluster
from world.spec import MINUTE_MS, SMA, Section

from tracepaper.daemon.config.loading import load, render

PROGRAM = [sys.executable, "-m", "tracepaper.daemon.cli"]
WARM_BARS = 100
START_MS = 1_748_736_000_000
BEHIND_WITHIN_S = 180.0
"""Wall seconds within which some daemon must decide, and what is left must be shipped."""
KINDS = ("daemon", "shipper", "daemon", "shipper", "server")
"""What is killed, in turn."""
DOWN_S = 3.0
"""The longest that the server stays down."""
STOP_WITHIN_S = 8.0


class RoundFailed(Exception):
    """What a round found wrong, in one sentence."""


def candles(path: Path, rng: random.Random, bars: int) -> Path:
    """Write a random walk of *bars* minutes."""
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("timestamp", "open", "high", "low", "close", "volume"))
        last = 1_000_000
        for number in range(bars):
            first, last = last, last + rng.randint(-400, 400)
            high, low = max(first, last) + rng.randint(0, 99), min(first, last) - rng.randint(0, 99)
            prices = [f"{price / 10:.1f}" for price in (first, high, low, last)]
            rows.writerow((START_MS + number * MINUTE_MS, *prices, rng.randint(1, 9_999) / 1_000))
    return path


@dataclass
class Fleet:
    """What a round shows when nothing is wrong."""

    kills: Counter[str] = field(default_factory=Counter)
    steps: int = 0
    decisions: int = 0
    drained: int = 0  # steps that were shipped only at the end
    minutes: float = 0.0


# ---------------------------------------------------------------- the processes


@contextmanager
def exchange(data: Mapping[str, Path], *, speed: float, seed: int) -> Iterator[dict[str, Any]]:
    """Run the embedded exchange, without faults."""
    command = [*PROGRAM, "exchange", "--category", "linear", "--hold", "--until-eof"]
    command += ["--speed", str(speed), "--seed", str(seed), "--start", str(WARM_BARS)]
    command += [f"--data={symbol}={path}" for symbol, path in data.items()]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())
    finally:
        process.terminate()
        process.wait(10)


class Daemon:
    """A daemon under test: started, killed, started again, at last stopped in good order."""

    def __init__(self, folder: Path, name: str, sections: Section) -> None:
        self.name = name
        self.database = folder / f"{name}.db"
        self.log = folder / f"{name}.log"
        self._config = folder / f"{name}.toml"
        self._config.write_text(render(load(None, sections)))
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [*PROGRAM, "run", "-c", str(self._config), "--db", str(self.database)]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command, cwd=self._config.parent, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def kill(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def check_alive(self) -> None:
        assert self._process is not None
        if (code := self._process.poll()) is not None:
            raise RoundFailed(f"{self.name} ended by itself with {code}: {self.tail()}")

    def tail(self) -> str:
        """Return the end of the log from the last traceback on, or its last lines."""
        text = self.log.read_text(errors="replace")
        return text[max(text.rfind("Traceback"), len(text) - 3_000, 0) :]

    def stop(self) -> None:
        """Stop by SIGTERM; it must end within 8 s with exit code 0."""
        assert self._process is not None
        self._process.terminate()
        try:
            code = self._process.wait(STOP_WITHIN_S)
        except subprocess.TimeoutExpired:
            self.kill()
            raise RoundFailed(f"{self.name} did not stop within {STOP_WITHIN_S} s") from None
        if code != 0:
            raise RoundFailed(f"{self.name} stopped with {code}: {self.tail()}")

    def end(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self.kill()

    def newest_ms(self) -> int:
        """Return the open time up to which every symbol's bars are decided, or 0."""
        if not self.database.exists():
            return 0
        try:
            with reading(self.database) as db:
                (value,) = db.execute(
                    "SELECT min(newest) FROM (SELECT max(open_time_ms) AS newest FROM v_decisions"
                    " GROUP BY instrument)"
                ).fetchone()
        except sqlite3.OperationalError:
            return 0  # not made yet
        return int(value or 0)


@contextmanager
def reading(path: Path) -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=10)
    try:
        yield connection
    finally:
        connection.close()


def called(*words: str) -> tuple[int, str]:
    """Return exit code and output of the program."""
    done = subprocess.run([*PROGRAM, *words], capture_output=True, text=True, check=False)
    return done.returncode, (done.stdout or done.stderr).strip()


def shippers(database: Path) -> list[int]:
    """Return the processes that ship *database* for a daemon."""
    pids = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            words = (folder / "cmdline").read_bytes().split(b"\0")
            if b"--service" in words and os.fsencode(database) in words:
                pids.append(int(folder.name))
    return pids


def last_step(daemon: Daemon) -> int:
    with reading(daemon.database) as db:
        return int(db.execute("SELECT max(sequence) FROM steps").fetchone()[0])


class Killer:
    """Kills what a seed says when the daemon that it names has decided the bar that it names."""

    def __init__(
        self, daemons: Sequence[Daemon], cluster: Cluster, rng: random.Random, kills: int, bars: int
    ) -> None:
        self.done: Counter[str] = Counter()
        self._cluster, self._rng = cluster, rng
        first_ms = START_MS + WARM_BARS * MINUTE_MS
        self._due: dict[str, list[tuple[int, str]]] = {daemon.name: [] for daemon in daemons}
        for number in range(kills):
            at_ms = first_ms + int(rng.uniform(0.02, 1) * bars) * MINUTE_MS
            kind = KINDS[number % len(KINDS)]
            self._due[daemons[rng.randrange(len(daemons))].name].append((at_ms, kind))
        for due in self._due.values():
            due.sort()
        self._up_at_s: float | None = None
        self._killed_at: dict[Daemon, int] = {}  # the last step of each that was killed

    def is_over(self) -> bool:
        """Return whether nothing is due, the server is up and each daemon went on."""
        due = sum(map(len, self._due.values())) + (self._up_at_s is not None)
        return not due and all(last_step(name) > at for name, at in self._killed_at.items())

    def look(self, daemon: Daemon, newest_ms: int) -> None:
        """Kill what is due of *daemon*, which decided *newest_ms*."""
        self.restart_server()
        due = self._due[daemon.name]
        if not due or newest_ms < due[0][0]:
            return
        kind = due[0][1]
        if kind == "server" and self._up_at_s is not None:
            return  # it is down already: the next kill waits until it is up
        if kind == "daemon":
            daemon.kill()
            self._killed_at[daemon] = last_step(daemon)
            daemon.start()
        elif kind == "server":
            self._cluster.stop("immediate")
            self._up_at_s = time.monotonic() + self._rng.uniform(0, DOWN_S)
        elif not (pids := shippers(daemon.database)):
            return  # between two of them
        else:
            with suppress(ProcessLookupError):
                os.kill(pids[0], signal.SIGKILL)
        due.pop(0)
        self.done[kind] += 1

    def restart_server(self, *, at_once: bool = False) -> None:
        if self._up_at_s is not None and (at_once or time.monotonic() >= self._up_at_s):
            self._cluster.start()
            self._up_at_s = None


def run_to_the_end(daemons: Sequence[Daemon], killer: Killer, last_ms: int) -> None:
    """Start the daemons, kill what is due, and stop them when all decided the bar *last_ms*."""
    for daemon in daemons:
        daemon.start()
    decided: list[int] = []
    until_s = time.monotonic() + BEHIND_WITHIN_S
    while True:
        newest = [daemon.newest_ms() for daemon in daemons]
        if newest != decided:
            decided, until_s = newest, time.monotonic() + BEHIND_WITHIN_S
        if time.monotonic() > until_s:
            minutes = [(last_ms - newest_ms) // MINUTE_MS for newest_ms in newest]
            raise RoundFailed(
                f"no bar was decided for {BEHIND_WITHIN_S:.0f} s; minutes behind: {minutes}"
            )
        for daemon, newest_ms in zip(daemons, newest, strict=True):
            daemon.check_alive()
            killer.look(daemon, newest_ms)
        if killer.is_over() and min(daemon.newest_ms() for daemon in daemons) >= last_ms:
            break
        time.sleep(0.1)
    for daemon in daemons:
        daemon.stop()


def drain(database: Path, url: str) -> int:
    """Ship what is left of *database*, once its own shipper has ended; return the steps."""
    until_s = time.monotonic() + BEHIND_WITHIN_S
    while True:
        before = shipped_steps(database, url)
        code, output = called("db", "ship", "--to", url, "--db", str(database), "--once")
        if not code:
            return shipped_steps(database, url) - before
        if time.monotonic() > until_s:
            raise RoundFailed(f"{database.stem} could not be shipped: {output}")
        time.sleep(0.5)


# ---------------------------------------------------------------- the comparison


def identity(database: Path) -> str:
    with reading(database) as db:
        return str(db.execute("SELECT database_id FROM databases").fetchone()[0])


def commits_there(database: Path, url: str) -> list[tuple[int, int, bytes]]:
    """Return run, last step and digest of each commit that the server holds of *database*."""
    import psycopg

    query = (
        "SELECT run_key, last_sequence, digest FROM tracepaper.commits "
        "WHERE database_id = %s ORDER BY 1, 2"
    )
    with psycopg.connect(url) as server:
        rows = server.execute(query, (identity(database),)).fetchall()
    return [(run_key, last, bytes(digest)) for run_key, last, digest in rows]


def shipped_steps(database: Path, url: str) -> int:
    newest = {run_key: last for run_key, last, _ in commits_there(database, url)}
    return sum(last + 1 for last in newest.values())


def compare_steps(database: Path, url: str) -> int:
    """Hold each commit of the server against the file's; return the number of steps."""
    with reading(database) as db:
        query = "SELECT run_key, last_sequence, digest FROM commits ORDER BY 1, 2"
        commits = db.execute(query).fetchall()
        (steps,) = db.execute("SELECT count(*) FROM steps").fetchone()
    there = commits_there(database, url)
    name = database.stem
    if lost := set(commits) - set(there):
        raise RoundFailed(f"{name}: {len(lost)} of {len(commits)} commits are not on the server")
    if commits != there:
        wrong = next((a for a, b in zip(commits, there, strict=False) if a != b), there[-1])
        raise RoundFailed(f"{name}: the server has other commits from step {wrong[1]} on")
    return int(steps)


def compare_tables(database: Path, back: Path) -> int:
    """Hold every row of every table of *back* against the file's; return the rows."""
    listed = "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite%'"
    count = 0
    with reading(database) as connection, reading(back) as pulled:
        tables = [{name for (name,) in db.execute(listed)} for db in (connection, pulled)]
        if tables[0] != tables[1]:
            raise RoundFailed(f"{database.stem}: other tables came back: {tables[0] ^ tables[1]}")
        for table in sorted(tables[0]):
            names = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
            quoted = ", ".join(f'"{name}"' for name in names)
            typed = ", ".join(f'typeof("{name}")' for name in names)
            query = f'SELECT {quoted}, {typed} FROM "{table}" ORDER BY {quoted}'
            mine, theirs = connection.execute(query), pulled.execute(query)
            for row in mine:
                count += 1
                if row != (other := theirs.fetchone()):
                    raise RoundFailed(f"{database.stem}: {table} has {row}, the server {other}")
            if (other := theirs.fetchone()) is not None:
                raise RoundFailed(f"{database.stem}: {table} of the server has {other} too")
    return count


def compare(database: Path, url: str, folder: Path) -> int:
    """Hold what the server has of *database* against it in every way; return its steps."""
    steps = compare_steps(database, url)
    back = folder / f"{database.stem}-back.db"
    own_id = identity(database)
    code, output = called("db", "pull", "--from", url, "--db", str(back), "--database", own_id)
    if code:
        raise RoundFailed(f"{database.stem} is not pulled: {output}")
    compare_tables(database, back)
    back.unlink()
    for words in (("--db", str(database)), ("--from", url, "--database", own_id)):
        code, output = called("audit", "verify", *words)
        if code:
            raise RoundFailed(f"{database.stem}: audit verify {words[0]} says {output}")
    return steps


def compare_list(databases: Sequence[Path], url: str) -> None:
    """Hold the fleet's list against the files: each is there, ended in good order, no alarm."""
    code, output = called("fleet", url, "--json")
    try:
        runs = json.loads(output)
    except ValueError:
        raise RoundFailed(f"fleet says {output}") from None
    listed = {run["database_id"] for run in runs}
    if listed != {identity(database) for database in databases}:
        raise RoundFailed(f"fleet lists {len(listed)} of {len(databases)} databases")
    strange = [(run["file"], run["health"], run["alarms"]) for run in runs if run["alarms"]]
    strange += [(run["file"], run["health"], "") for run in runs if run["health"] != "ended"]
    if strange or code:
        raise RoundFailed(f"fleet does not show all as ended: {strange}")


# ---------------------------------------------------------------- rounds


def play(
    seed: int, *, daemons: int, symbols: int, bars: int, speed: float, kills: int,
    cluster: Cluster | None = None,
) -> Fleet:  # fmt: skip
    """Play one round; raise ``RoundFailed`` with what is wrong."""
    rng, began = random.Random(seed), time.monotonic()
    names = [f"S{number:02}USDT" for number in range(symbols)]
    server = a_cluster() if cluster is None else nullcontext(cluster)
    with tempfile.TemporaryDirectory(prefix="fleet-") as place, server as postgres:
        folder = Path(place)
        url = postgres.empty()
        code, output = called("db", "create", "--to", url)
        if code:
            raise RoundFailed(f"the tables are not made: {output}")
        data = candles(folder / "walk_1m.csv", rng, WARM_BARS + bars)
        of = dict.fromkeys(names, data)
        with exchange(of, speed=speed, seed=seed) as served:
            fleet = []
            for number in range(daemons):
                sections: Section = {
                    "market": {"symbols": names, "interval": "1"},
                    "exchange": {  # ten daemons on two cores answer late
                        "rest_url": served["rest_url"],
                        "stream_url": served["stream_url"],
                        "time_scale": served["speed"],
                        "request_timeout_s": 20.0,
                        "connect_timeout_s": 60.0,
                        "data_watchdog_s": 60.0,
                        "requests_per_s": 100.0,
                    },
                    "strategy": {**SMA, "fast": 3 + number, "slow": 9 + 2 * number},
                    "sizing": {"mode": "fixed", "quantity": "0.5"},
                    "gate": {"late_ms": 300_000},
                    "account": {"cash": "1000000"},
                    "storage": {"ship_to": url},
                    "http": {"port": 0},
                    "log": {"level": "warning"},
                }
                fleet.append(Daemon(folder, f"daemon-{number}", sections))
            killer = Killer(fleet, postgres, rng, kills, bars)
            try:
                run_to_the_end(fleet, killer, START_MS + (WARM_BARS + bars - 1) * MINUTE_MS)
            finally:
                for daemon in fleet:
                    daemon.end()
                killer.restart_server(at_once=True)
        totals = Fleet(killer.done)
        for daemon in fleet:
            totals.drained += drain(daemon.database, url)
        for daemon in fleet:
            if "Traceback" in daemon.tail():
                raise RoundFailed(f"{daemon.name} logged a traceback: {daemon.tail()}")
            totals.steps += compare(daemon.database, url, folder)
            with reading(daemon.database) as db:
                totals.decisions += db.execute("SELECT count(*) FROM v_decisions").fetchone()[0]
        compare_list([daemon.database for daemon in fleet], url)
    totals.minutes = (time.monotonic() - began) / 60
    return totals


def main() -> int:
    parser = argparse.ArgumentParser(description="A fleet whose processes are killed.")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--daemons", type=int, default=10)
    parser.add_argument("--symbols", type=int, default=50, help="of each daemon")
    parser.add_argument("--bars", type=int, default=120, help="minutes of market time")
    parser.add_argument("--speed", type=float, default=20.0)
    parser.add_argument("--kills", type=int, default=40)
    wanted = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    failed = 0
    for seed in range(wanted.seed, wanted.seed + wanted.rounds):
        sizes = {"daemons": wanted.daemons, "symbols": wanted.symbols, "bars": wanted.bars}
        try:
            fleet = play(seed, **sizes, speed=wanted.speed, kills=wanted.kills)
        except RoundFailed as failure:
            failed += 1
            print(f"seed {seed}: FAILED, {failure}", flush=True)
            continue
        killed = ", ".join(f"{count} of a {kind}" for kind, count in sorted(fleet.kills.items()))
        print(
            f"seed {seed}: {wanted.daemons} daemons of {wanted.symbols} symbols, {wanted.bars} "
            f"bars; kills: {killed}; {fleet.decisions:,} decisions, {fleet.steps:,} steps once "
            f"each and in order, {fleet.drained:,} of them after the end; "
            f"{fleet.minutes:.1f} minutes",
            flush=True,
        )
    print(f"{wanted.rounds - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
