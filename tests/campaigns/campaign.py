"""The rounds: daemons in real processes under every fault and SIGKILL, judged by the world's laws.

    python tests/campaigns/campaign.py --rounds 100

A round starts one embedded exchange with a seeded schedule of all faults, and four daemons: one
trades ``sma_cross`` 3/7, one a strategy with declared state, notes and a stop, one the default
model, and the last what its round draws (``drawn.py``). All are killed at random moments and
started again until the data end; then ``world.checker``, which imports nothing of ours, holds the
databases to what the exchange served. Every second round trades two symbols. What the round drew is
replayed from its record as well, to the same decisions.

``--kind hedge --speed 300 --bars 300`` plays that daemon alone, in a minute or two, also on a busy
machine: at the default speed most bars would come late there, and nothing is traded on them.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS), str(TESTS / "campaigns")]

import drawn  # noqa: E402 - after their folder
from drawn import PROGRAM, RoundFailed  # noqa: E402
from waiting import deadline_s  # noqa: E402
from world.checker import Truth, totals, violations  # noqa: E402
from world.history import Altered, served_by  # noqa: E402
from world.life import ALTERING  # noqa: E402
from world.spec import ALWAYS_ONE, SMA, Section  # noqa: E402

from tracepaper.daemon.config.loading import load, render  # noqa: E402
from tracepaper.replay.exchange.fault_kinds import FAULTS  # noqa: E402
from tracepaper.replay.exchange.server import EmbeddedExchange, ExchangeSettings  # noqa: E402
from tracepaper.strategies.types.market import Category  # noqa: E402

ROOT = TESTS.parent
CANDLES = ROOT / "replay" / "samples" / "binance_um_BTCUSDT_1m_2025-05-26.csv.gz"
MINUTE_MS = 60_000
FIRST_MS = 1_748_244_720_000
"""The first candle of the bundled file."""
WARM_BARS = 7_250
TASK_WAIT_S = 120.0
STOP_WITHIN_S = 8.0
WRONG_USAGE = 2
REFUSED_STARTS_MOST = 10
SECOND = "ETHUSDT"
STOPPED = {
    "name": "tracepaper.strategies.examples.rsi_reversion:RsiReversion",
    "options": {"bars": 4, "low": 40, "high": 55, "stop": 0.05},
}
MODEL = {"name": "attention"}


@dataclass
class Outcome:
    """What one round shows when nothing is wrong."""

    bars: int = 0
    fills: int = 0
    kills: int = 0
    drawn: str = ""  # what the last daemon was about
    fired: Mapping[str, int] = field(default_factory=dict)


# ---------------------------------------------------------------- the data


def piece(path: Path, bars: int) -> None:
    """Write the bundled candles up to *bars* after the warm-up into *path*."""
    with gzip.open(CANDLES, "rt") as source, gzip.open(path, "wt") as target:
        for number, line in enumerate(source):
            if number > WARM_BARS + bars:
                break
            target.write(line)


def backwards(path: Path, target: Path) -> None:
    """Write the candles of *path* into *target* as another market's: the same walk, backwards."""
    with gzip.open(path, "rt", newline="") as source:
        head, *rows = csv.reader(source)
    with gzip.open(target, "wt", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(head)
        for (opened, *_), (_, first, high, low, last, volume) in zip(rows, rows[::-1], strict=True):
            writer.writerow((opened, last, high, low, first, volume))


# ---------------------------------------------------------------- the processes


def configuration(served: Mapping[str, Any], symbols: Sequence[str] = ("BTCUSDT",)) -> Section:
    """Return the sections of a daemon that listens to the exchange *served*."""
    return {
        "market": {"symbols": list(symbols), "interval": "1"},
        "exchange": {
            "rest_url": served["rest_url"],
            "stream_url": served["stream_url"],
            "time_scale": served["speed"],
            "ban_cooldown_s": 2.0,
            "data_watchdog_s": 2.0,
            "requests_per_s": 20.0,
            "request_timeout_s": 1.0,
            "backoff_max_s": 1.0,
            "trades": True,
        },
        "strategy": SMA,
        "sizing": {"mode": "fixed", "quantity": "0.5"},
        "gate": {"late_ms": 300_000},
        "account": {"cash": "1000000"},
        "http": {"port": 0},
        "log": {"level": "warning"},
    }


@contextmanager
def exchange(
    data: Mapping[str, Path],
    *,
    speed: float,
    seed: int = 0,
    start: int | None = None,
    every_s: float = 0.0,
) -> Iterator[dict[str, Any]]:
    """Run the embedded exchange, with a schedule of faults where they come each *every_s*."""
    command = [*PROGRAM, "exchange", "--category", "linear", "--hold", "--until-eof"]
    command += ["--speed", str(speed), "--seed", str(seed)]
    command += [f"--data={symbol}={path}" for symbol, path in data.items()]
    command += [] if start is None else ["--start", str(start)]
    if every_s:
        command += ["--fault-seed", str(seed), "--fault-every", str(every_s)]
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
        self.name, self.sections = name, sections
        self.database = folder / f"{name}.db"
        self.log = folder / f"{name}.log"
        self._config = folder / f"{name}.toml"
        self._config.write_text(render(load(None, sections)))
        self._process: subprocess.Popen[bytes] | None = None
        self.kills = 0
        self.refused = 0  # starts that ended before anything was served

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
        self.kills += 1

    def check_alive(self) -> None:
        assert self._process is not None
        if (code := self._process.poll()) is None:
            return
        if code == WRONG_USAGE and not self.was_served() and self.refused < REFUSED_STARTS_MOST:
            # Before the first success ever, a refusal is a mistake of the address: as an operator
            # would, start it again. Afterwards nothing that the network says may end it.
            self.refused += 1
            self.start()
            return
        tail = self.log.read_text(errors="replace")[-600:]
        raise RoundFailed(f"{self.name} ended by itself with {code}: {tail}")

    def was_served(self) -> bool:
        """Return whether the daemon ever opened a run."""
        if not self.database.is_file():
            return False
        database = sqlite3.connect(f"{self.database.as_uri()}?mode=ro", uri=True)
        try:
            return bool(database.execute("SELECT count(*) FROM runs").fetchone()[0])
        except sqlite3.OperationalError:
            return False  # it was killed while it made its tables
        finally:
            database.close()

    def tail(self) -> str:
        """Return the end of the log from the last traceback on, or its last lines."""
        text = self.log.read_text(errors="replace")
        return text[max(text.rfind("Traceback"), len(text) - 3_000, 0) :]

    def is_serving(self) -> bool:
        """Return whether the process that was started last has come up, and named its address."""
        assert self._process is not None
        try:
            return f'"pid":{self._process.pid},' in Path(f"{self.database}.lock").read_text()
        except OSError:
            return False  # not made

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
            tail = self.log.read_text(errors="replace")[-600:]
            raise RoundFailed(f"{self.name} stopped with {code}: {tail}")

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


# ---------------------------------------------------------------- the judgement


def truth_of(
    daemon: Daemon, files: Mapping[str, Path], seed: int, struck_ms: frozenset[int]
) -> Truth:
    """Return what the exchange of *seed* served of *files*, for the checker."""
    given = tuple(f"{symbol}={path}" for symbol, path in files.items())
    settings = ExchangeSettings(data=given, category=Category.LINEAR, seed=seed, start=WARM_BARS)
    markets = EmbeddedExchange(settings).venue.markets.values()
    return Truth(
        configs=[daemon.sections],
        instruments={f"linear:{market.symbol}": served_by(market) for market in markets},
        answered=[],
        sent=[],
        altered=Altered(struck_ms, MINUTE_MS),
    )


def check(daemon: Daemon, truth: Truth, *, with_model: bool = False) -> Outcome:
    """Judge one database; return what it holds or raise ``RoundFailed``."""
    name, path = daemon.name, daemon.database
    with reading(path) as db:
        runs = db.execute("SELECT count(*) FROM v_runs").fetchone()[0]
        if runs != 1:
            raise RoundFailed(f"{name} has {runs} runs instead of one that went on")
        for key, served in truth.instruments.items():
            query = "SELECT open_time_ms FROM v_decisions WHERE instrument = ? ORDER BY sequence"
            times = [at for (at,) in db.execute(query, (key,))]
            if times != [at for at in sorted(served.candles) if at >= times[0]]:
                raise RoundFailed(f"{name} did not decide each bar of {key} once, in order")
    for law, sentence in violations(path, truth):
        raise RoundFailed(f"{name} breaks the law of {law}: {sentence}")
    for verb in (["audit", "verify"], ["verify"]):
        if verb == ["verify"] and with_model:
            continue  # it takes too long for a campaign
        done = subprocess.run(
            [*PROGRAM, *verb, "last", "--db", str(path)], capture_output=True, text=True,
            check=False, env=os.environ | {"PYTHONPATH": str(path.parent)},
        )  # fmt: skip
        if done.returncode != 0:
            raise RoundFailed(f"{name}: {' '.join(verb)} says {done.stdout}{done.stderr}")
    counts = totals(path)
    return Outcome(bars=counts["decisions"], fills=counts["fills"])


def check_again(kind: str, path: Path) -> None:
    """Hold what a round drew to a replay of its record."""
    again = path.with_name("again.db")
    for words in (
        ("replay", "--data", f"{path}#last", "--db", str(again), "--json"),
        ("parity", f"{path}#last", f"{again}#last"),
    ):
        done = subprocess.run(
            [*PROGRAM, *words], capture_output=True, text=True, check=False, cwd=path.parent,
        )  # fmt: skip
        if done.returncode:
            raise RoundFailed(f"{kind}: {words[0]} says {done.stdout[-600:]}{done.stderr[-600:]}")


def check_log(daemon: Daemon) -> None:
    """Look for tracebacks: what goes wrong is said in sentences."""
    if "Traceback (most recent call last)" in daemon.log.read_text(errors="replace"):
        raise RoundFailed(f"{daemon.name} logged a traceback, see below\n{daemon.tail()}")


# ---------------------------------------------------------------- rounds


def play(seed: int, *, bars: int, speed: float, every_s: float, kind: str = "") -> Outcome:
    """Play one round, or that of a daemon of *kind* alone; raise ``RoundFailed`` if it is wrong."""
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="campaign-") as place:
        folder = Path(place)
        files = {"BTCUSDT": folder / "BTCUSDT_1m.csv.gz"}
        piece(files["BTCUSDT"], bars)
        if seed % 2 == 0:
            files[SECOND] = folder / f"{SECOND}_1m.csv.gz"
            backwards(files["BTCUSDT"], files[SECOND])
        is_alone = bool(kind)
        kind = kind or sorted(drawn.KINDS)[seed % len(drawn.KINDS)]
        with exchange(files, speed=speed, seed=seed, start=WARM_BARS, every_s=every_s) as served:
            daemons = [
                Daemon(folder, name, {**configuration(served, list(files)), "strategy": strategy})
                for name, strategy in (("sma", SMA), ("stopped", STOPPED), ("model", MODEL))
                if not is_alone
            ]
            sections = configuration(served, list(files)[: 1 if kind in ALWAYS_ONE else 2])
            drawn.KINDS[kind](sections, rng, folder)
            daemons.append(Daemon(folder, kind, sections))
            try:
                run_to_the_end(daemons, rng, bars=bars, speed=speed)
                fired, struck_ms = faults(served)
            finally:
                for daemon in daemons:
                    daemon.end()
        for daemon in daemons:
            check_log(daemon)
            of = dict(list(files.items())[: len(daemon.sections["market"]["symbols"])])
            with_model = daemon.name in {"model", *drawn.MODELS}
            outcome = check(daemon, truth_of(daemon, of, seed, struck_ms), with_model=with_model)
        if kind not in drawn.MODELS:
            check_again(kind, daemons[-1].database)
        if kind in drawn.MET:
            with reading(daemons[-1].database) as db:
                if not db.execute(drawn.MET[kind]).fetchone()[0]:
                    raise RoundFailed(f"{kind} met nothing of what it draws: {drawn.MET[kind]}")
        if not is_alone and (silent := [name for name in FAULTS if not fired.get(name)]):
            raise RoundFailed(f"these faults never fired: {', '.join(silent)}")
        outcome.kills, outcome.fired = sum(daemon.kills for daemon in daemons), fired
        outcome.drawn = kind
        return outcome


def run_to_the_end(daemons: list[Daemon], rng: random.Random, *, bars: int, speed: float) -> None:
    """Start, kill and restart the daemons until all decided the last bar, then stop them.

    A busy machine may take its time: a round fails once no bar was decided for ``TASK_WAIT_S``,
    times the processes that share a processor. A model that was killed takes most of that to start.
    """
    for daemon in daemons:
        daemon.start()
    length_s = bars * MINUTE_MS / 1000 / speed
    deadline = time.monotonic() + length_s + deadline_s(TASK_WAIT_S)
    decided: list[int] = []
    first_ms = FIRST_MS + WARM_BARS * MINUTE_MS
    last_ms = first_ms + (bars - 1) * MINUTE_MS
    # Kills are placed on the data's own time, so a slow machine kills as often as a fast one.
    places = {
        daemon.name: sorted(first_ms + int(rng.uniform(0.05, 0.9) * bars) * MINUTE_MS for _ in "ab")
        for daemon in daemons
    }
    pending = list(daemons)
    while pending:
        newest_of = [daemon.newest_ms() for daemon in daemons]
        if newest_of != decided:
            decided = newest_of
            deadline = max(deadline, time.monotonic() + deadline_s(TASK_WAIT_S))
        if time.monotonic() > deadline:
            raise RoundFailed(
                f"no bar was decided for {deadline_s(TASK_WAIT_S):.0f} s: "
                + ", ".join(
                    f"{daemon.name} is {(last_ms - daemon.newest_ms()) // MINUTE_MS} bars behind"
                    for daemon in pending
                )
            )
        for daemon in list(pending):
            daemon.check_alive()
            newest = daemon.newest_ms()
            if places[daemon.name] and newest >= places[daemon.name][0]:
                places[daemon.name].pop(0)
                daemon.kill()
                daemon.start()
            elif newest >= last_ms and daemon.is_serving():  # it may have been killed just now
                pending.remove(daemon)
        time.sleep(0.02 + rng.random() * 0.1)
    for daemon in daemons:
        daemon.stop()


def faults(served: Mapping[str, Any]) -> tuple[dict[str, int], frozenset[int]]:
    """Return how often each kind hit something, and when one that may alter a candle did."""
    with urllib.request.urlopen(f"{served['control_url']}/faults", timeout=5) as answer:
        kinds = json.load(answer)
    kinds = kinds.get("kinds", kinds)
    altering = [kind for kind in kinds if FAULTS[kind].stage in ALTERING]
    struck_ms = frozenset(at for kind in altering for at in kinds[kind]["times"])
    return {kind: int(entry["fired"]) for kind, entry in kinds.items()}, struck_ms


def main() -> int:
    parser = argparse.ArgumentParser(description="Daemons under every fault and SIGKILL.")
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=1, help="rounds at a time")
    parser.add_argument("--bars", type=int, default=1_500)
    parser.add_argument("--speed", type=float, default=1_200.0)
    parser.add_argument("--kind", default="", choices=sorted(drawn.KINDS), help="this daemon alone")
    parser.add_argument("--fault-every", type=float, default=0.6)
    wanted = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    began = time.monotonic()

    def played(number: int) -> bool:
        seed = wanted.seed + number
        try:
            outcome = play(
                seed,
                bars=wanted.bars,
                speed=wanted.speed,
                every_s=wanted.fault_every,
                kind=wanted.kind,
            )
        except RoundFailed as failure:
            print(f"round {number + 1} (seed {seed}): FAILED, {failure}", flush=True)
            return False
        print(
            f"round {number + 1} (seed {seed}): {outcome.bars} bars once each, {outcome.fills} "
            f"fills, {outcome.kills} kills, {sum(outcome.fired.values())} faults, {outcome.drawn}",
            flush=True,
        )
        return True

    with ThreadPoolExecutor(wanted.jobs) as pool:
        good = sum(pool.map(played, range(wanted.rounds)))
    minutes = (time.monotonic() - began) / 60
    print(f"{good} passed, {wanted.rounds - good} failed in {minutes:.1f} minutes")
    return 0 if good == wanted.rounds else 1


if __name__ == "__main__":
    sys.exit(main())
