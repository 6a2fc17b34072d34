"""The campaign: daemons under every fault and SIGKILL, judged by a checker of its own.

    python tests/campaigns/campaign.py --rounds 100

A round starts one embedded exchange with a seeded schedule of all faults, and four daemons: one
trades ``sma_cross`` 3/7, one a strategy with declared state, notes and a stop, one the default
model, and the last what its round draws (``drawn.py``): limits, margin, exits by configuration,
order books, a model with covariates, one that is trained anew behind it, cross margin, several
strategies on one account, a universe, hedge mode, or orders that a book fills. All are killed at
random moments and started again until the data end; then the checker reads the databases with
sqlite3 and decimal alone, against the candle files themselves. It imports nothing of ours. Every
second round trades two symbols, whose bars are taken together. What the round drew is replayed from
its record as well, to the same decisions.

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
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from decimal import ROUND_HALF_EVEN, Decimal
from functools import partial
from pathlib import Path
from typing import Any

from drawn import KINDS as DRAWN_KINDS
from drawn import PROGRAM, SMA, RoundFailed
from waiting import deadline_s

sys.path.append(str(Path(__file__).resolve().parents[1]))

from world.checker import BASE_FEES, UNIT, unequal_parts, unequal_sides, wrong_universe

ROOT = Path(__file__).resolve().parents[2]
SUMS: Mapping[str, Callable[[Path], Iterator[str]]] = {
    "several": partial(unequal_parts, is_all=True),
    "hedge": unequal_sides,
    "universe": wrong_universe,
}
"""What of a drawn kind has to add up: its sentences say what does not."""
CANDLES = ROOT / "replay" / "samples" / "binance_um_BTCUSDT_1m_2025-05-26.csv.gz"
MINUTE_MS = 60_000
WARM_BARS = 7_250
FEWEST_FILLS = 50
BARS_A_FILL = 20  # where the machine is busy and most bars come late, on which nothing is traded
FEWEST_STOPS = 3  # of the strategy with a stop, armed or filled
BARS_A_STOP = 400  # of those in time, where most bars come late
FEWEST_CLOSES = 100  # of two symbols whose bars were taken together
LIVE_BARS = 500  # of the stream, from which on the slow model, too, must have had such a close
TASK_WAIT_S = 120.0
STOP_WITHIN_S = 8.0
WRONG_USAGE = 2
REFUSED_STARTS_MOST = 10
SECOND = "ETHUSDT"
STOPPED = """name = "tracepaper.strategies.examples.rsi_reversion:RsiReversion"
options = { bars = 4, low = 40, high = 55, stop = 0.05 }"""
KINDS = (
    "drop", "delay", "duplicate", "reorder", "malformed", "stall", "disconnect", "refuse",
    "retcode_10006", "http_403", "missing_close", "revised_close", "late_close", "early_confirm",
    "off_grid", "double_close", "implausible_close", "ahead_candle", "ahead_book", "ahead_ticker",
    "ahead_trade", "foreign_frame", "crossed_book", "deep_book", "http_status", "retcode",
    "redirect", "hang", "malformed_body", "lying_time", "empty_page", "short_page", "foreign_page",
    "foreign_window", "off_grid_page", "implausible_page", "false_mark", "mark_of_one",
    "false_ticker", "absurd_rate", "false_book", "absurd_settlement", "hollow_close",
    "absurd_turnover",
)  # fmt: skip


@dataclass
class Outcome:
    """What one round shows when nothing is wrong."""

    bars: int = 0
    fills: int = 0
    late: int = 0
    closes: int = 0
    live: int = 0  # bars that the stream brought
    modelled: int = 0  # bars that the stream brought the model
    kills: int = 0
    drawn: str = ""  # what the last daemon was about
    fired: Mapping[str, int] = field(default_factory=dict)


# ---------------------------------------------------------------- the data, read by ourselves

Candles = Mapping[int, tuple[Decimal, ...]]
"""Open, high, low, close and volume by open time."""


def candles(path: Path) -> dict[int, tuple[Decimal, ...]]:
    """Return open, high, low, close, volume by open time, as the file says them."""
    with gzip.open(path, "rt", newline="") as file:
        rows = csv.DictReader(file)
        names = ("open", "high", "low", "close", "volume")
        return {int(row["open_time"]): tuple(Decimal(row[n]) for n in names) for row in rows}


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


def configuration(
    served: Mapping[str, Any], strategy: str, symbols: Sequence[str] = ("BTCUSDT",)
) -> str:
    """Return the TOML of a daemon that listens to the exchange *served*."""
    return f"""
[market]
symbols = {json.dumps(list(symbols))}
interval = "1"
[exchange]
rest_url = "{served["rest_url"]}"
stream_url = "{served["stream_url"]}"
time_scale = {served["speed"]}
ban_cooldown_s = 2.0
data_watchdog_s = 2.0
requests_per_s = 20.0
request_timeout_s = 1.0
backoff_max_s = 1.0
trades = true
[strategy]
{strategy}
[sizing]
mode = "fixed"
quantity = "0.5"
[gate]
late_ms = 300_000
[account]
cash = "1000000"
[http]
port = 0
[log]
level = "warning"
"""


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

    def __init__(
        self, folder: Path, name: str, text: str, keys: Mapping[str, object] | None = None
    ) -> None:
        self.name = name
        self.database = folder / f"{name}.db"
        self.log = folder / f"{name}.log"
        self._config = folder / f"{name}.toml"
        self._config.write_text(text)
        self._keys = [f"--set={key}={value}" for key, value in (keys or {}).items()]
        self._process: subprocess.Popen[bytes] | None = None
        self.kills = 0
        self.refused = 0  # starts that ended before anything was served

    def start(self) -> None:
        command = [*PROGRAM, "run", "-c", str(self._config), "--db", str(self.database)]
        command += self._keys
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
            return json.loads(Path(f"{self.database}.lock").read_text())["pid"] == self._process.pid
        except (OSError, ValueError, KeyError):
            return False  # not made, or being written

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


# ---------------------------------------------------------------- the checker


def check(
    path: Path,
    data: Mapping[str, Candles],
    name: str,
    *,
    with_model: bool = False,
    cash: int = 1_000_000,
) -> Outcome:
    """Judge one database; return what it holds or raise ``RoundFailed``."""
    with reading(path) as db:
        runs = db.execute("SELECT run_id FROM v_runs").fetchall()
        if len(runs) != 1:
            raise RoundFailed(f"{name} has {len(runs)} runs instead of one that went on")
        outcome = Outcome()
        for key, candles_of_key in data.items():
            decisions = db.execute(
                "SELECT open_time_ms, refused_by FROM v_decisions WHERE instrument = ?"
                " ORDER BY sequence",
                (key,),
            ).fetchall()
            times = [int(opened) for opened, _ in decisions]
            expected = [opened for opened in sorted(candles_of_key) if opened >= times[0]]
            if times != expected:
                twice = len(times) - len(set(times))
                missing = sorted(set(expected) - set(times))
                raise RoundFailed(
                    f"{name} decided {len(times)} of {len(expected)} bars of {key}: {twice} twice, "
                    f"{len(missing)} never (first {missing[:3]}), in order: "
                    f"{times == sorted(times)}"
                )
            check_bars(db, key, candles_of_key, name)
            outcome.bars += len(times)
            outcome.late += sum(refused == "late" for _, refused in decisions)
        outcome.closes = check_closes(db, sorted(data), name)
        outcome.live = db.execute(
            "SELECT count(*) FROM v_decisions JOIN v_bars USING (run_id, sequence)"
            " WHERE source = 'stream'"
        ).fetchone()[0]
        outcome.fills = check_account(db, sorted(data), name, cash)
    for verb in (["audit", "verify"], ["verify"]):
        if verb == ["verify"] and with_model:
            continue  # it takes too long for a campaign
        done = subprocess.run(
            [*PROGRAM, *verb, "last", "--db", str(path)], capture_output=True, text=True,
            check=False, env=os.environ | {"PYTHONPATH": str(path.parent)},
        )  # fmt: skip
        if done.returncode != 0:
            raise RoundFailed(f"{name}: {' '.join(verb)} says {done.stdout}{done.stderr}")
    return outcome


def check_bars(db: sqlite3.Connection, key: str, data: Candles, name: str) -> None:
    """Hold the bar that a decision saw against the file, whatever revisions came later."""
    rows = db.execute(
        "SELECT b.open_time_ms, b.open_text, b.high_text, b.low_text, b.close_text, b.volume_text"
        " FROM v_decisions d JOIN v_bars b USING (run_id, sequence) WHERE b.instrument = ?",
        (key,),
    )
    for opened, *texts in rows:
        if tuple(Decimal(text) for text in texts) != data[opened]:
            raise RoundFailed(
                f"{name}: bar {opened} of {key} is {texts}, the file says {data[opened]}"
            )


def check_closes(db: sqlite3.Connection, keys: Sequence[str], name: str) -> int:
    """Hold each close to the bars behind it; return how many had more than one."""
    events = {
        int(sequence): (kind, instrument, json.loads(content))
        for sequence, kind, instrument, content in db.execute(
            "SELECT sequence, kind, instrument, content FROM v_events"
        )
        if kind == "closed"
    }
    bars = {
        int(sequence): (instrument, int(opened), bool(accepted))
        for sequence, instrument, opened, accepted in db.execute(
            "SELECT sequence, instrument, open_time_ms, accepted FROM v_bars"
        )
    }
    for sequence, (_, _, row) in events.items():
        behind = [bars.get(sequence + 1 + place) for place in range(row["bars"])]
        names = [bar[0] for bar in behind if bar is not None]
        is_whole = all(bar is not None and bar[1:] == (row["open_time_ms"], True) for bar in behind)
        if not is_whole or names != [key for key in keys if key not in row["absent"]]:
            raise RoundFailed(f"{name}: behind the close {row} at {sequence} stands {behind}")
    return sum(event["bars"] > 1 for _, _, event in events.values())


def check_together(outcome: Outcome, name: str) -> None:
    """Hold a round of two symbols to the closes whose bars were taken together.

    The model is slower than the round. Where the machine is busy, REST brings it almost all bars,
    each alone; it is held to one such close once the stream brought it ``LIVE_BARS``.
    """
    fewest = FEWEST_CLOSES if name != "model" else int(outcome.live >= LIVE_BARS)
    if outcome.closes < fewest:
        raise RoundFailed(f"{name} took the bars of only {outcome.closes} closes together")


def check_account(db: sqlite3.Connection, keys: Sequence[str], name: str, first: int) -> int:
    """Add up fills and funding again; cash, positions and equity must be what the last rows say."""
    cash, fees = Decimal(first), Decimal(0)
    held = dict.fromkeys(keys, Decimal(0))
    count = 0
    amounts: dict[str, Decimal] = {}
    rows = db.execute(
        "SELECT instrument, order_id, side, quantity_text, price_text, fee_text, liquidity"
        " FROM v_fills ORDER BY sequence"
    )
    for key, order_id, side, quantity_text, price_text, fee_text, liquidity in rows:
        amount, price, fee = Decimal(quantity_text), Decimal(price_text), Decimal(fee_text)
        notional = amount * price
        rate = BASE_FEES["linear"][liquidity == "MAKER"]
        if fee != (notional * rate).quantize(UNIT, rounding=ROUND_HALF_EVEN):
            raise RoundFailed(f"{name}: the fee of {order_id} is {fee} on {notional}")
        signed = amount if side == "BUY" else -amount
        cash -= signed * price + fee
        held[key] += signed
        fees += fee
        amounts[order_id] = amounts.get(order_id, Decimal(0)) + amount
        count += 1
    ordered = {
        order_id: (Decimal(text), status)
        for order_id, text, status in db.execute(
            "SELECT order_id, quantity_text, status FROM v_orders"
        )
    }
    for order_id, filled in amounts.items():
        if order_id not in ordered or filled > ordered[order_id][0]:
            raise RoundFailed(f"{name}: order {order_id} was filled beyond its quantity")
        if ordered[order_id][1] == "FILLED" and filled != ordered[order_id][0]:
            raise RoundFailed(f"{name}: order {order_id} says FILLED at {filled}")
    equity, funding, fees_paid = (
        Decimal(text)
        for text in db.execute(
            "SELECT equity_text, funding_paid_text, fees_paid_text FROM v_equity"
            " ORDER BY sequence DESC LIMIT 1"
        ).fetchone()
    )
    if fees_paid != fees:
        raise RoundFailed(f"{name} has paid fees of {fees_paid}; fills say {fees}")
    least = most = Decimal(0)  # what is held is worth, at marks near the newest closes
    for key, quantity in held.items():
        sides = db.execute(
            "SELECT quantity_text FROM v_positions WHERE instrument = ?1 AND sequence ="
            " (SELECT max(sequence) FROM v_positions WHERE instrument = ?1)",
            (key,),
        ).fetchall()
        if (total := sum(Decimal(text) for (text,) in sides)) != quantity:
            raise RoundFailed(f"{name}: holds {total} of {key}; fills say {quantity}")
        closes = [
            Decimal(text)
            for (text,) in db.execute(
                "SELECT close_text FROM v_bars WHERE instrument = ?"
                " ORDER BY sequence DESC LIMIT 20",
                (key,),
            )
        ]
        worths = [
            quantity * min(closes) * Decimal("0.98"),
            quantity * max(closes) * Decimal("1.02"),
        ]
        least, most = least + min(worths), most + max(worths)
    worth = equity - (cash - funding)
    if not least <= worth <= most:
        raise RoundFailed(f"{name}: what is held is worth {worth}, not {least} to {most}")
    return count


def check_stops(path: Path, name: str, *, timely: int) -> None:
    """Hold every stop to the bars after it, and the fills while it was down to missed bars.

    A stop that a close went through is filled by the next quote: it never stands for two closes
    beyond it. On the path of a bar of REST, whose quotes were missed, it is filled at once. What
    closed before it was armed says nothing of it, however late REST brought that.
    """
    with reading(path) as db:
        stops = db.execute(
            "SELECT o.instrument, o.order_id, o.trigger_price_text, o.status, o.sequence,"
            " e.market_ms FROM v_orders o JOIN v_events e ON e.run_id = o.run_id"
            " AND e.sequence = CAST(o.order_id AS INTEGER)"
            " WHERE o.role = 'STOP' AND o.side = 'SELL'"
        ).fetchall()
        if len(stops) < min(FEWEST_STOPS, timely // BARS_A_STOP):
            raise RoundFailed(f"{name} armed only {len(stops)} stops")
        for key, order_id, trigger, status, last, armed_ms in stops:
            born = int(order_id.partition("-")[0])
            end = 2**60 if status in {"NEW", "ACCEPTED"} else last
            bars = db.execute(
                "SELECT open_time_ms, low_text, close_text, source FROM v_bars"
                " WHERE instrument = ? AND accepted AND sequence > ? AND sequence < ?",
                (key, born, end),
            ).fetchall()
            if left := stood_beyond(bars, Decimal(trigger), int(armed_ms)):
                raise RoundFailed(f"{name}: stop {order_id} at {trigger} stood for {left}")
        strange = db.execute(
            "SELECT count(*) FROM v_fills WHERE while_down AND model <> 'bar_path'"
            " AND reason NOT IN ('until', 'FLATTEN')"
        ).fetchone()[0]
        if strange:
            raise RoundFailed(f"{name}: {strange} fills while it was down are not of a bar's path")


def stood_beyond(bars: Sequence[tuple[int, str, str, str]], trigger: Decimal, armed_ms: int) -> str:
    """Return what a stop below the market stood for that it may not, in words; empty if nothing.

    *bars* are those that came while it rested: open time, low, close and source.
    """
    closes = missed = 0
    for open_ms, low, close, source in bars:
        closes += open_ms + MINUTE_MS > armed_ms and Decimal(close) < trigger
        missed += source == "rest" and open_ms >= armed_ms and Decimal(low) <= trigger
    if closes > 1:
        return f"{closes} closes beyond it"
    return f"{missed} missed bars that went through it" if missed else ""


def check_drawn(kind: str, path: Path) -> None:
    """Hold what a round drew to its own laws, and to a replay of its record."""
    for sentence in SUMS[kind](path) if kind in SUMS else ():
        raise RoundFailed(f"{kind}: {sentence}")
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
        data = {f"linear:{symbol}": candles(path) for symbol, path in files.items()}
        is_alone = bool(kind)
        kind = kind or sorted(DRAWN_KINDS)[seed % len(DRAWN_KINDS)]
        drawn = DRAWN_KINDS[kind](folder, CANDLES, rng)
        with exchange(files, speed=speed, seed=seed, start=WARM_BARS, every_s=every_s) as served:
            daemons = [
                Daemon(folder, name, configuration(served, strategy, symbols), keys)
                for name, strategy, keys, symbols in (
                    ("sma", SMA, {}, list(files)),
                    ("stopped", STOPPED, {}, list(files)),
                    ("model", 'name = "attention"', {}, list(files)),
                    (kind, drawn.strategy, drawn.keys, list(files)[: drawn.symbols]),
                )
                if name == kind or not is_alone
            ]
            try:
                last_ms = max(data["linear:BTCUSDT"])
                run_to_the_end(daemons, rng, last_ms=last_ms, bars=bars, speed=speed)
                fired = faults(served)
            finally:
                for daemon in daemons:
                    daemon.end()
        traded = dict(list(data.items())[: drawn.symbols])
        outcome = check(
            daemons[-1].database, traded, kind, with_model=drawn.with_model, cash=drawn.cash
        )
        drawn.check(kind, daemons[-1].database)
        if not drawn.with_model:
            check_drawn(kind, daemons[-1].database)
        for daemon in daemons:
            check_log(daemon)
        if not is_alone:
            outcome = check_others(daemons, data)
            check_faults(fired)
        outcome.kills, outcome.fired = sum(daemon.kills for daemon in daemons), fired
        outcome.drawn = kind
        return outcome


def check_others(daemons: Sequence[Daemon], data: Mapping[str, Candles]) -> Outcome:
    """Judge the three daemons that every round has; return what the first one holds."""
    outcome = check(daemons[0].database, data, "sma")
    stopped = check(daemons[1].database, data, "stopped")
    check_stops(daemons[1].database, "stopped", timely=stopped.bars - stopped.late)
    modelled = check(daemons[2].database, data, "model", with_model=True)
    timely = outcome.bars - outcome.late
    if outcome.fills < max(min(FEWEST_FILLS, timely // BARS_A_FILL), 1):
        raise RoundFailed(f"sma has only {outcome.fills} fills of {timely} bars in time")
    for name, outcomes in (("sma", outcome), ("stopped", stopped), ("model", modelled)):
        if len(data) > 1:
            check_together(outcomes, name)
    outcome.modelled = modelled.live
    return outcome


def check_faults(fired: Mapping[str, int]) -> None:
    """Require that every fault we know is one of the exchange's, and hit something."""
    if strange := set(fired) ^ set(KINDS):
        raise RoundFailed(f"the exchange's faults are others than ours: {sorted(strange)}")
    if silent := [kind for kind in KINDS if not fired[kind]]:
        raise RoundFailed(f"these faults never fired: {', '.join(silent)}")


def run_to_the_end(
    daemons: list[Daemon], rng: random.Random, *, last_ms: int, bars: int, speed: float
) -> None:
    """Start, kill and restart the daemons until all decided the last bar, then stop them.

    A busy machine may take its time: a round fails once no bar was decided for ``TASK_WAIT_S``,
    times the processes that share a processor. A model that was killed takes most of that to start.
    """
    for daemon in daemons:
        daemon.start()
    length_s = bars * MINUTE_MS / 1000 / speed
    deadline = time.monotonic() + length_s + deadline_s(TASK_WAIT_S)
    decided: list[int] = []
    first_ms = last_ms - bars * MINUTE_MS
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


def faults(served: Mapping[str, Any]) -> dict[str, int]:
    """Return how often each kind of fault hit something."""
    with urllib.request.urlopen(f"{served['control_url']}/faults", timeout=5) as answer:
        document = json.load(answer)
    kinds = document.get("kinds", document)
    return {kind: int(entry["fired"]) for kind, entry in kinds.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description="Daemons under every fault and SIGKILL.")
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=1, help="rounds at a time")
    parser.add_argument("--bars", type=int, default=1_500)
    parser.add_argument("--speed", type=float, default=1_200.0)
    parser.add_argument("--kind", default="", choices=sorted(DRAWN_KINDS), help="this daemon alone")
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
            f"fills, {outcome.late} late, {outcome.closes} closes together, {outcome.kills} kills, "
            f"{sum(outcome.fired.values())} faults, {outcome.modelled} bars of the model live, "
            f"{outcome.drawn}",
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
