"""``lookahead`` and ``recursive``: planted classes and their verdicts, a law, and the commands."""

from __future__ import annotations

import gzip
import json
import random
import socket
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import user_strategies as users
from depth_cases import FIRST_MS as BOOKS_MS
from depth_cases import walk as book_walk
from depth_cases import write
from exchange_client import candles as made_candles
from exchange_client import walk_rows
from vector_cases import CONTEXT, sections

from tracepaper.daemon.cli import invoke
from tracepaper.daemon.clock import SystemClock
from tracepaper.daemon.config.loading import Config, load
from tracepaper.replay.archive import Candles
from tracepaper.replay.archive.books import read_depth
from tracepaper.replay.backtest import tracks
from tracepaper.replay.backtest.market_data import MarketData
from tracepaper.replay.checks.compare import CheckFinding
from tracepaper.replay.checks.isolation import FreshProcesses
from tracepaper.replay.checks.lookahead import (
    AGAIN,
    CHANGED,
    CUT,
    ELSEWHERE,
    FILES_END,
    MODEL,
    NOT_WARM,
    Limits,
    lookahead,
    recursive,
)
from tracepaper.strategies.errors import ConfigInvalid, DataInvalid, StrategyFailed

MINUTE_MS = 60_000
HOLD = "Signal(Action.HOLD, 'nothing new')"
PASSES, DIFFERS, READ = "nothing differs", "differs", "read"
_NUMBERS = count()
TOMORROW = str(SystemClock().wall_ms() // 1_000 + 86_400)
"""No run here reaches it, and every jump of the clocks passes it."""


class Planted(NamedTuple):
    """A class by the bodies of its methods, and what a check has to find."""

    verdict: str
    cause: str
    bodies: Mapping[str, str]
    symbols: int = 1
    allow: str = ""


LAST = "before, self.kept = self.kept, now.history.close\n"
FAIR: dict[str, dict[str, str]] = {
    "the last bar": {"decide": "return by(bar.close > bar.open)"},
    "a helper beside it": {
        "top": "import own_helper",
        "decide": "return by(own_helper.rises(bar))",
    },
    "polars without a file": {
        "top": "import polars",
        "decide": "return by(polars.Series([bar.open, bar.close]).mean() > bar.open)",
    },
    "a database in memory": {
        "top": "import sqlite3",
        "init": "self.table = sqlite3.connect(':memory:')",
        "decide": "rows = self.table.execute('SELECT ? > ?', (bar.close, bar.open))\n"
        "return by(rows.fetchone()[0])",
    },
    "history": {
        "init": "self.warmup = 9",
        "decide": "return by(now.close > now.history.close.mean())",
    },
    "declared columns, one of which is smoothed endlessly": {
        "top": "from tracepaper.strategies.indicators import ema, highest",
        "init": "self.warmup = 9",
        "columns": "return {'mean': ema(history.close, 4), 'high': highest(history.high, 9)}",
        "decide": "of = now.columns\nreturn by(2 * now.close > of['mean'][-1] + of['high'][-2])",
    },
    "a kept view of history and its base": {
        "top": "import numpy as np",
        "init": "self.warmup, self.kept = 9, None",
        "decide": LAST + "return by(before is None or now.close > np.frombuffer(before.base)[-1])",
    },
}
LEAKS: dict[str, tuple[str, dict[str, str]]] = {
    "a note of the time": (
        ELSEWHERE,
        {
            "top": "from datetime import datetime",
            "decide": "seen = datetime.now().timestamp() > " + TOMORROW + "\n"
            "return Signal(Action.HOLD, 'so', note={'tomorrow': seen})",
        },
    ),
    "the time of its making": (
        ELSEWHERE,
        {
            "top": "import time",
            "init": "self.late = time.time() > " + TOMORROW,
            "decide": "return by((bar.close > bar.open) is self.late)",
        },
    ),
    "memory of earlier runs": (
        AGAIN,
        {
            "top": "KNOWN = {}\nLAST = [0]",
            "observe": "KNOWN[LAST[0]] = bar.close\nLAST[0] = bar.open_time_ms",
            "decide": "return by(KNOWN.get(bar.open_time_ms, 0) > bar.close)",
        },
    ),
    "an environment variable": (
        ELSEWHERE,
        {
            "top": "import os",
            "decide": "return by(bar.close > int(os.environ.get('OWN_FUTURE', '0')))",
        },
    ),
    "an environment variable that must be there": (
        ELSEWHERE,
        {
            "top": "import os\nKNOWN = int(os.environ['OWN_FUTURE'])",
            "decide": "return by(bar.close > KNOWN)",
        },
    ),
    "the working folder": (
        ELSEWHERE,
        {"top": "import os", "decide": "return by(os.path.exists('future.flag'))"},
    ),
    "the order of a set": (
        ELSEWHERE,
        {"decide": "return by(next(iter({f'{bar.close} up', f'{bar.close} down'})).endswith('p'))"},
    ),
    "an unseeded draw": (
        AGAIN,
        {"top": "import random", "decide": "return by(random.random() < 0.5)"},
    ),
    "the bytes it was given at its import": (
        AGAIN,
        {
            "top": "import hashlib, os\nKEY = os.urandom(8)",
            # Two draws of the key agree at each bar by a toss: never at all 160 of them. Not so by
            # hash((bar.close, KEY)): of two near products with its constant, one in 161 pairs of
            # keys, the low bit agrees at all bars.
            "decide": "return by(hashlib.sha256(b'%d %b' % (bar.close, KEY)).digest()[0] % 2 == 0)",
        },
    ),
}
JOINED = {
    "top": "import csv, pathlib",
    "init": "with pathlib.Path({}).open() as file:\n"
    "    self.hours = {int(r['open_time']): int(r['close']) for r in csv.DictReader(file)}",
    "decide": "hour = (bar.open_time_ms // 3_600_000 - 0) * 3_600_000\n"
    "return by(self.hours.get(hour, 0) > bar.close)",
}


def joined(path: str, head: str = "pass", back: int = 0) -> dict[str, str]:
    decide = JOINED["decide"].replace("- 0", f"- {back}")
    init = JOINED["init"].replace("{}", path, 1)
    return {**JOINED, "head": head, "init": init, "decide": decide}


OPENS = {
    "hourly closes joined on their open time": joined("'{here}/hourly.csv'"),
    "another file than the declared one": joined("'{here}/hourly.csv'", "files = ('mine.npy',)"),
    "an array": {"observe": "import numpy; numpy.load('{here}/mine.npy', mmap_mode='r')"},
    "a database": {"observe": "import sqlite3; sqlite3.connect('{here}/mine.db').close()"},
    "a program": {"observe": "import subprocess; subprocess.run(['true'])"},
    "an address": {
        "init": "import socket; socket.create_connection(('127.0.0.1', {port})).close()"
    },
}
PAIR = (
    "LAST[bar.instrument] = bar\n"
    "other = LAST.get('linear:ETHUSDT' if 'BTC' in bar.instrument else 'linear:BTCUSDT')\n"
    "if other is None or other.open_time_ms != bar.open_time_ms:\n"
    f"    return {HOLD}\n"
    "return by(other.close % 1_000 > bar.close % 1_000)"
)
LOOKAHEAD: dict[str, Planted] = {
    **{name: Planted(PASSES, "", bodies) for name, bodies in FAIR.items()},
    **{name: Planted(DIFFERS, cause, bodies) for name, (cause, bodies) in LEAKS.items()},
    **{name: Planted(READ, "", bodies) for name, bodies in OPENS.items()},
    "an allowed file": Planted(DIFFERS, FILES_END, joined("'{here}/hourly.csv'"), 1, "{here}"),
    "a declared file": Planted(
        DIFFERS, FILES_END, joined("self.files['hourly.csv']", "files = ('hourly.csv',)")
    ),
    "closed hours of a declared file": Planted(
        PASSES, "", joined("self.files['hourly.csv']", "files = ('hourly.csv',)", 1)
    ),
    "a frame by opens, looked up by the close": Planted(
        DIFFERS,
        FILES_END,
        {
            "top": "import pandas",
            "head": "files = ('minutes.csv.gz',)",
            "init": "table = pandas.read_csv(self.files['minutes.csv.gz'])\n"
            "table.index = pandas.to_datetime(table['open_time'], unit='ms')\n"
            "self.table = table['close']",
            "decide": "at = pandas.Timestamp(bar.close_time_ms, unit='ms')\n"
            "return by(self.table.asof(at) > bar.close)",
        },
    ),
    "an allowed variable": Planted(
        PASSES, "", {"top": "import os\nos.environ['OWN_FUTURE']"}, 1, "OWN_FUTURE"
    ),
    "a global of two symbols": Planted(DIFFERS, CHANGED, {"top": "LAST = {}", "decide": PAIR}, 2),
    "an attribute that two objects share": Planted(
        DIFFERS,
        CHANGED,
        {
            "init": "type(self).last = 0",
            "observe": "self.before, type(self).last = type(self).last, bar.close",
            "decide": "return by(self.before % 1_000 > bar.close % 1_000)",
        },
        2,
    ),
    "each of two symbols by itself": Planted(PASSES, "", FAIR["history"], 2),
    "a class that fails on changed bars alone": Planted(
        PASSES, "", {"decide": "return by(1 / bar.close > 0 and bar.close < 5_000_000 or 1 / 0)"}
    ),
    "an hour's last close at each of its minutes": Planted(
        DIFFERS,
        CUT,
        {
            "init": "self.warmup = 9",
            "columns": "of = history.time // 3_600_000\n"
            "last = dict(zip(of, history.close))\n"
            "return {'hour': np.array([last[each] for each in of], float)}",
            "top": "import numpy as np",
            "decide": "return by(now.columns['hour'][-1] > now.close)",
        },
    ),
}
BY_COUNT = "return by({} % 7 < 3)"
MEMORY = "from msgspec import Struct\nclass Memory(Struct):\n    count: int = 0"
CROSSES = (
    "if bar.close > bar.open + 300:\n    return by(True)\n"
    f"return by(False) if bar.close < bar.open - 300 else {HOLD}"
)
RECURSIVE: dict[str, Planted] = {
    "a count, told by holding": Planted(
        DIFFERS,
        NOT_WARM,
        {
            "init": "self.count = 0",
            "observe": "self.count += 1",
            "decide": f"return by(True) if self.count % 7 < 3 else {HOLD}",
        },
    ),
    "a size that grows": Planted(
        DIFFERS,
        NOT_WARM,
        {
            "init": "self.count = 0",
            "observe": "self.count += 1",
            "decide": "return Signal(Action.LONG, 'grows', self.count / 1_000)",
        },
    ),
    "a global of the module": Planted(
        DIFFERS,
        NOT_WARM,
        {
            "top": "COUNT = 0",
            "observe": "global COUNT\nCOUNT += 1",
            "decide": BY_COUNT.format("COUNT"),
        },
    ),
    "the best price of the position that is held": Planted(
        DIFFERS,
        NOT_WARM,
        {
            "head": "sees_account = True",
            "init": "self.best = 0.0",
            "decide": "held = now.account.position\n"
            "self.best = max(self.best, now.close) if held.quantity else 0.0\n"
            "return by(now.close > self.best - 100)",
        },
    ),
    "a note of a count": Planted(
        DIFFERS,
        NOT_WARM,
        {
            "init": "self.count = 0",
            "observe": "self.count += 1",
            "decide": "return Signal(Action.LONG, 'so', note={'count': self.count})",
        },
    ),
    "declared state": Planted(
        PASSES,
        "",
        {
            "top": MEMORY,
            "head": "State = Memory",
            "observe": "self.state.count += 1",
            "decide": BY_COUNT.format("self.state.count"),
        },
    ),
    "what the account holds": Planted(PASSES, "", {"decide": CROSSES}),
    "a horizon that closes": Planted(PASSES, "", {"init": "self.horizon = 40", "decide": CROSSES}),
    "history": Planted(PASSES, "", FAIR["history"], 2),
}


# ---------------------------------------------------------------- fixtures


def walk(bars: int, symbol: str = "BTCUSDT", seed: int = 1) -> Candles:
    return replace(made_candles(walk_rows(bars, seed=seed)), symbol=symbol)


def data_of(symbols: int, bars: int) -> MarketData:
    """Return two walks of which the second has begun and ends earlier, or the first one alone."""
    other = walk(bars, "ETHUSDT", 2)
    other = replace(other, open_time_ms=other.open_time_ms - 20 * MINUTE_MS)
    return MarketData([walk(bars), other][:symbols])


def configured(strategy: Mapping[str, Any], data: MarketData, **more: Any) -> Config:
    market = {"symbols": [part.symbol for part in data.candles]}
    sizing = {"mode": "fixed", "quantity": "1"}
    return load(None, {"strategy": strategy, "sizing": sizing, "market": market, **more})


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FreshProcesses]:
    """Start children with a variable, and in a folder, that tell something of the walk."""
    folder = tmp_path_factory.mktemp("working")
    (folder / "future.flag").touch()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OWN_FUTURE", str(int(walk(160).close[80])))
        patch.chdir(folder)
        with FreshProcesses() as server:
            yield server


class Checks:
    """Checks classes that are written into files of one folder."""

    def __init__(self, folder: Path, fresh: FreshProcesses) -> None:
        self.folder, self._fresh = folder, fresh
        self.limits = Limits(probes=4)

    def _written(self, bodies: Mapping[str, str]) -> dict[str, Any]:
        name = f"own_{next(_NUMBERS)}"
        (self.folder / f"{name}.py").write_text(users.source(**bodies))
        return {"name": f"{name}:Mine"}

    def lookahead(
        self, bodies: Mapping[str, str], data: MarketData, allow: str = "", **more: Any
    ) -> CheckFinding:
        config = configured(self._written(bodies), data, **more)
        with users.importable(self.folder):
            return lookahead(config, data, self._fresh, self.limits, allow=[allow])

    def recursive(self, bodies: Mapping[str, str], data: MarketData) -> CheckFinding:
        config = configured(self._written(bodies), data)
        with users.importable(self.folder):
            return recursive(config, data, self._fresh, probes=4, warmup=60)


@pytest.fixture
def checks(tmp_path: Path, fresh: FreshProcesses) -> Checks:
    part = walk(160)
    hours = zip(part.open_time_ms[::60].tolist(), part.close[59::60].tolist(), strict=False)
    lines = ["open_time,close", *(f"{at},{close}" for at, close in hours)]
    (tmp_path / "hourly.csv").write_text("\n".join(lines))
    minutes = zip(part.open_time_ms.tolist(), part.close.tolist(), strict=True)
    lines = ["open_time,close", *(f"{at},{close}" for at, close in minutes)]
    (tmp_path / "minutes.csv.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    (tmp_path / "own_helper.py").write_text("def rises(bar):\n    return bar.close > bar.open")
    np.save(tmp_path / "mine.npy", part.close)
    return Checks(tmp_path, fresh)


# ---------------------------------------------------------------- planted classes


@pytest.mark.parametrize("name", LOOKAHEAD)
def test_lookahead_judges_a_planted_class(checks: Checks, name: str) -> None:
    """Public reports: TorchTrade#10, freqtrade#11346 and #11642, pandas#26754, Lean#80."""
    planted, here = LOOKAHEAD[name], str(checks.folder)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        bodies = {
            part: text.replace("{here}", here).replace("{port}", port)
            for part, text in planted.bodies.items()
        }
        allow = planted.allow.replace("{here}", here)
        finding = checks.lookahead(bodies, data_of(planted.symbols, 160), allow)
    assert (finding.verdict, finding.cause) == (planted.verdict, planted.cause), finding
    assert finding.passes is (planted.verdict == PASSES)
    assert bool(finding.opened) is (planted.verdict == READ)
    if finding.passes:
        probes = 4 * (1 + ("files" in planted.bodies.get("head", "")))  # files are cut apart
        assert (finding.probes, finding.without_later) == (probes, 160 * planted.symbols)


@pytest.mark.parametrize("name", RECURSIVE)
def test_recursive_judges_a_planted_class(checks: Checks, name: str) -> None:
    planted = RECURSIVE[name]
    finding = checks.recursive(planted.bodies, data_of(planted.symbols, 300))
    assert (finding.verdict, finding.cause) == (planted.verdict, planted.cause), finding
    if finding.passes:
        assert finding.probes == 4
        assert finding.compared > 300


def test_a_class_that_asks_for_nothing_proves_nothing(checks: Checks) -> None:
    finding = checks.lookahead({"decide": f"return {HOLD}"}, data_of(1, 160))
    assert finding.passes
    assert "asked for no position on 160 of 160 bars" in " ".join(finding.unproved)


# ---------------------------------------------------------------- a law over random strategies


def expression(rng: random.Random, depth: int = 3) -> str:
    """Return a random causal expression over arrays, whose last value any row may use."""
    if depth == 0:
        return rng.choice(("close", "high", "low", "volume"))
    part, number = expression(rng, depth - 1), rng.randint(1, 5)
    return rng.choice(
        (
            f"lag({part}, {number})",
            f"mean({part}, {number + 1})",
            f"np.maximum.accumulate({part})",
            f"({part} - {expression(rng, depth - 1)})",
        )
    )


LOOKS_AHEAD = ("lag({}, -1)", "lag({}, -3)", "({} - np.mean({}))", "np.cumsum({}[::-1])[::-1]")
TOOLS = """
import numpy as np

def lag(values, rows):
    return np.roll(values, rows)[np.clip(np.arange(len(values)), rows, len(values) + rows - 1)] \\
        if abs(rows) < len(values) else values * 0

def mean(values, rows):
    sums = np.cumsum(values.astype(float))
    return (sums - lag(sums, rows)) / rows
"""


@pytest.mark.parametrize("seed", range(4))
def test_a_strategy_looks_ahead_if_and_only_if_it_was_made_so(checks: Checks, seed: int) -> None:
    """Public reports: time-series-forecasting-pytorch#19, teach-machine-to-trade#3, trading#476."""
    rng = random.Random(seed)
    causal, data = expression(rng), data_of(1 + seed % 2, 160)
    names = "close, high, low, volume = history.close, history.high, history.low, history.volume\n"

    def checked(text: str) -> CheckFinding:
        columns = f"{names}return {{'value': ({text}).astype(float)}}"
        decide = "return by(now.columns['value'][-1] > now.columns['value'][-2])"
        bodies = {"top": TOOLS, "head": "warmup = 20", "columns": columns, "decide": decide}
        return checks.lookahead(bodies, data)

    finding = checked(causal)
    assert finding.passes, (causal, finding.sentence())
    ahead = rng.choice(LOOKS_AHEAD).replace("{}", f"({causal} + 7.5 * close)")
    finding = checked(ahead)
    assert (finding.verdict, finding.cause) == (DIFFERS, CUT), ahead


# ---------------------------------------------------------------- frames, books, covariates


def with_frames(_: Path) -> tuple[MarketData, dict[str, Any], dict[str, str]]:
    """Return candles with higher ones from before, two symbols of them, and who reads both."""
    whole = data_of(2, 200).candles
    late = [part[67:] for part in whole]
    frames = [replace(part.resampled(5 * MINUTE_MS), path="fives") for part in whole]
    decide = "close = now.timeframe('5').close\nreturn by(close.size and close[-1] % 2 > 1)"
    bodies = {"head": "frames = ('5',)", "decide": decide}
    return MarketData(late, frames=frames), {}, bodies


def with_books(folder: Path) -> tuple[MarketData, dict[str, Any], dict[str, str]]:
    write(folder / "btc.depth", book_walk(3_600, first_ms=BOOKS_MS + 60 * MINUTE_MS))
    part = walk(120)
    moved = part.open_time_ms + BOOKS_MS - int(part.open_time_ms[0])
    data = MarketData([replace(part, open_time_ms=moved)], depth=[read_depth(folder / "btc.depth")])
    decide = (
        "books = now.depth\n"
        "return by(books is not None and books.size[:, 0, 0].sum() > books.size[:, 1, 0].sum())"
    )
    market = {"market": {"symbols": ["BTCUSDT"], "depth": 5}}
    return data, market, {"head": "books = 20", "decide": decide}


SOURCES = {"frames": with_frames, "books": with_books}
EARLY = """
from dataclasses import replace
from tracepaper.replay.backtest import tracks
from tracepaper.strategies.order_book import Books
honest = getattr(tracks, "honest", tracks.depth_track)
def early(recorded, *given, **named):
    def part(start, stop):
        books = recorded.part(start, stop)
        seen_ms, market_ms = books.seen_ms - 30_000, books.market_ms - 30_000
        return Books(seen_ms, market_ms, books.price, books.size)
    moved = replace(recorded)
    vars(moved).update(times=recorded.times - 30_000, part=part)
    return honest(moved, *given, **named)
tracks.honest, tracks.depth_track = honest, early
"""


@pytest.mark.parametrize("source", SOURCES)
def test_who_reads_frames_or_books_as_they_are_handed_on_passes(
    checks: Checks, tmp_path: Path, source: str
) -> None:
    data, more, bodies = SOURCES[source](tmp_path)
    finding = checks.lookahead(bodies, data, **more)
    assert finding.passes, finding.sentence()
    assert finding.without_later == sum(map(len, data.candles))


def test_a_feed_that_hands_books_on_too_early_is_found(
    checks: Checks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Planted: books of the next half a minute are dated back to the bar's close."""
    for name in ("depth_track", "honest"):  # the plant changes them here as well
        monkeypatch.setattr(tracks, name, tracks.depth_track, raising=False)
    data, more, bodies = with_books(tmp_path)
    checks.limits = Limits(probes=12)
    finding = checks.lookahead({**bodies, "top": EARLY}, data, **more)
    assert (finding.verdict, finding.cause) in {(DIFFERS, CUT), (DIFFERS, CHANGED)}


def test_a_model_with_covariates_passes(tmp_path: Path) -> None:
    part = walk(CONTEXT + 50)
    rows = [f"{at + 1_000},{at % 7}" for at in part.open_time_ms[::3].tolist()]
    (tmp_path / "news.csv").write_text("\n".join(["time,mood", *rows]))
    given = sections(tmp_path, tmp_path / "news.csv")
    config = load(None, {**given, "market": {"symbols": ["BTCUSDT"]}})
    with FreshProcesses(MODEL) as server:
        finding = lookahead(config, MarketData([part]), server, Limits(probes=1))
    assert finding.passes, finding.differences


# ---------------------------------------------------------------- errors, time, the command


@pytest.mark.parametrize("decide", ["raise ValueError('no')", "exit(3)", "now.close = 0"])
def test_a_class_that_fails_ends_the_check(checks: Checks, decide: str) -> None:
    with pytest.raises(StrategyFailed, match="Mine"):
        checks.lookahead({"decide": decide}, data_of(1, 160))
    assert checks.lookahead({}, data_of(1, 160)).passes  # and the server goes on


def test_a_class_that_hangs_is_not_probed_to_the_end(checks: Checks) -> None:
    checks.limits = Limits(seconds=0.2)
    hangs = "import threading; threading.Event().wait()"
    finding = checks.lookahead({"decide": hangs}, data_of(1, 160))
    assert (finding.verdict, finding.passes) == ("nothing differs so far", False)
    assert finding.unfinished == ["the whole run"]
    assert "give more --seconds" in finding.sentence()


def test_too_little_data_is_refused(checks: Checks, fresh: FreshProcesses) -> None:
    far = {"name": "sma_cross", "fast": 5, "slow": 400}
    data = data_of(1, 160)
    with pytest.raises(ConfigInvalid, match="warm after 400 bars"):
        lookahead(configured(far, data), data, fresh, Limits())
    with pytest.raises(DataInvalid, match="give more data"):
        recursive(configured(far, data), data, fresh, probes=1, warmup=159)


@pytest.fixture
def folder(here: Path) -> Iterator[Path]:
    """Write two files of candles and two classes, one of which reads a file; work there."""
    for part in data_of(2, 160).candles:
        columns = (part.open_time_ms, part.open, part.high, part.low, part.close, part.volume)
        rows = zip(*(column.tolist() for column in columns), strict=True)
        lines = ["open_time,open,high,low,close,volume", *(",".join(map(str, row)) for row in rows)]
        (here / f"{part.symbol}.csv").write_text("\n".join(lines))
    (here / "honest.py").write_text(users.source(decide="return by(bar.close > bar.open)"))
    (here / "peeking.py").write_text(users.source(init="open('BTCUSDT.csv').close()"))
    (here / "drawing.py").write_text(users.source(**LEAKS["an unseeded draw"][1]))
    with users.importable(here):
        yield here


@pytest.mark.parametrize(
    ("line", "code", "verdict"),
    [
        ("lookahead --strategy honest:Mine", 0, PASSES),
        ("lookahead --strategy drawing:Mine", 1, DIFFERS),
        ("lookahead --strategy peeking:Mine", 1, READ),
        ("lookahead --strategy peeking:Mine --allow-reading BTCUSDT.csv", 0, PASSES),
        ("lookahead --strategy honest:Mine --seconds 1", 1, "nothing differs so far"),
        ("recursive --strategy honest:Mine", 0, PASSES),
        ("recursive --strategy drawing:Mine", 1, DIFFERS),
    ],
)
def test_the_command_exits_by_its_verdict(
    folder: Path, capsys: pytest.CaptureFixture[str], line: str, code: int, verdict: str
) -> None:
    data = ["--data", "BTCUSDT.csv", "--data", "ETHUSDT.csv", "--probes", "1", "--bars", "100"]
    words = [*line.split(), *data, "--set", "sizing.mode=fixed", "--set", "sizing.quantity=1"]
    assert invoke([*words, "--json"]) == code
    document = json.loads(capsys.readouterr().out)
    assert (document["verdict"], document["passes"]) == (verdict, not code)
    assert bool(document["differences"]) is (verdict == DIFFERS)
    assert bool(document["opened"]) is (verdict == READ)
    if "allow" in line:
        assert [Path(item["name"]).name for item in document["allowed"]] == ["BTCUSDT.csv"]
    if verdict == READ:
        assert invoke(words) == code
        printed = capsys.readouterr().out
        assert f"{folder}/BTCUSDT.csv" in printed
        assert "--allow-reading" in printed
