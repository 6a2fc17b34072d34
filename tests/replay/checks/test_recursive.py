"""``recursive``: what remembers more than it says is found; what an account holds is not it."""

from __future__ import annotations

from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import user_strategies as users
from exchange_client import candles as made_candles
from exchange_client import walk_rows

from tracepaper.daemon.config.loading import Config, load
from tracepaper.replay.archive import Candles
from tracepaper.replay.backtest.market_data import MarketData
from tracepaper.replay.checks.compare import CheckFinding
from tracepaper.replay.checks.isolation import FreshProcesses
from tracepaper.replay.checks.lookahead import recursive
from tracepaper.strategies.errors import DataInvalid

_NUMBERS = count()
HOLD = "Signal(Action.HOLD, 'nothing new')"


@pytest.fixture(scope="module")
def walk() -> Candles:
    return made_candles(walk_rows(300))


def configured(name: str, **sections: dict[str, Any]) -> Config:
    fixed = {"mode": "fixed", "quantity": "1"}
    strategy = {"name": name} | ({"fast": 5, "slow": 20} if name == "sma_cross" else {})
    return load(None, {"strategy": strategy, "sizing": fixed, **sections})


class Starts:
    """Checks classes that are written into files of one folder."""

    def __init__(self, folder: Path, fresh: FreshProcesses, walk: Candles) -> None:
        self._folder, self._fresh, self._walk = folder, fresh, walk

    def __call__(self, sections: dict[str, Any], **bodies: str) -> CheckFinding:
        name = f"starts_{next(_NUMBERS)}"
        (self._folder / f"{name}.py").write_text(users.source(**bodies))
        config = configured(f"{name}:Mine", **sections)
        with users.importable(self._folder):
            return recursive(config, MarketData([self._walk]), self._fresh, probes=4, warmup=60)


@pytest.fixture
def starts(tmp_path: Path, fresh: FreshProcesses, walk: Candles) -> Starts:
    return Starts(tmp_path, fresh, walk)


REMEMBERS: dict[str, dict[str, str]] = {
    "a count, told by holding": {
        "init": "self.count = 0",
        "observe": "self.count += 1",
        "decide": f"return by(True) if self.count % 7 < 3 else {HOLD}",
    },
    "a position of its own, held where it stands": {
        "init": "self.long = False",
        "decide": f"if self.long or bar.close < bar.open + 385:\n    return {HOLD}\n"
        "self.long = True\nreturn by(True)",
    },
    "bars since its entry": {
        "init": "self.since = None",
        "decide": "if self.since is None and bar.close > bar.open + 300:\n    self.since = 0\n"
        "if self.since is None:\n    return by(False)\n"
        "self.since = self.since + 1 if self.since < 200 else None\nreturn by(True)",
    },
    "a size that grows": {
        "init": "self.count = 0",
        "observe": "self.count += 1",
        "decide": "return Signal(Action.LONG, 'grows', self.count / 1_000)",
    },
}


@pytest.mark.parametrize("name", REMEMBERS)
def test_a_memory_longer_than_the_warm_up_is_found(starts: Starts, name: str) -> None:
    finding = starts({}, **REMEMBERS[name])
    assert not finding.passes
    assert finding.differences[0].field in ("signal", "strength")


SEVENTH = "return by(self.state.count % 7 < 3)"
BY_COUNT = "return by({} % 7 < 3)"
ENTRIES = (
    "held = now.account.position\n"
    "if held.quantity and held.bars_held == 1:\n    ENTRIES += 1\n"
    "return by(not held.quantity or held.bars_held < 3 + ENTRIES % 5)"
)
UNDECLARED: dict[str, tuple[str, dict[str, str]]] = {
    "an attribute": (
        "self.count (",
        {
            "init": "self.count = 0",
            "observe": "self.count += 1",
            "decide": BY_COUNT.format("self.count"),
        },
    ),
    "an attribute of an object that it holds": (
        "self.kept.total (",
        {
            "top": "class Kept:\n    __slots__ = ('total',)",
            "init": "self.kept = Kept()\nself.kept.total = 0",
            "observe": "self.kept.total += 1",
            "decide": BY_COUNT.format("self.kept.total"),
        },
    ),
    "a counter beside the declared one": (
        "self.other (",
        {
            "top": "from msgspec import Struct\nclass Memory(Struct):\n    count: int = 0",
            "head": "State = Memory",
            "init": "self.other = 0",
            "observe": "self.state.count += 1\nself.other += 1",
            "decide": BY_COUNT.format("(self.state.count + self.other)"),
        },
    ),
    "a module's global": (
        "COUNT of module",
        {
            "top": "COUNT = 0",
            "observe": "global COUNT\nCOUNT += 1",
            "decide": BY_COUNT.format("COUNT"),
        },
    ),
    "a class's attribute": (
        "Mine.count (",
        {
            "head": "count = 0",
            "observe": "Mine.count += 1",
            "decide": BY_COUNT.format("Mine.count"),
        },
    ),
    "an iterator": (
        "self.numbers (",
        {
            "top": "import itertools",
            "init": "self.numbers = itertools.count()",
            "decide": BY_COUNT.format("next(self.numbers)"),
        },
    ),
    "the best price of the position that is held": (
        "self.best (",
        {
            "head": "sees_account = True",
            "init": "self.best = 0.0",
            "decide": (
                "held = now.account.position\n"
                "self.best = max(self.best, now.close) if held.quantity else 0.0\n"
                "return by(now.close > self.best - 100)"
            ),
        },
    ),
}


@pytest.mark.parametrize("name", UNDECLARED)
def test_state_that_is_not_declared_is_found_and_named(starts: Starts, name: str) -> None:
    named, bodies = UNDECLARED[name]
    finding = starts({}, **bodies)
    assert not finding.passes
    assert named in finding.sentence()
    assert "its State does not declare" in finding.sentence()


@pytest.mark.parametrize(
    "bodies",
    [
        {"head": "State = Memory", "observe": "self.state.count += 1", "decide": SEVENTH},
        {  # with the account that stood
            "head": "sees_account = True; State = Memory",
            "decide": ENTRIES.replace("ENTRIES", "self.state.count"),
        },
    ],
)
def test_state_that_is_declared_is_handed_to_a_later_start(
    starts: Starts, bodies: dict[str, str]
) -> None:
    top = "from msgspec import Struct\nclass Memory(Struct):\n    count: int = 0"
    finding = starts({}, top=top, **bodies)
    assert finding.passes, finding.sentence()
    assert finding.compared > 100


FALLS = f"return by(True) if bar.close > bar.open + 350 else {HOLD}"
CROSSES = (
    "if bar.close > bar.open + 300:\n    return by(True)\n"
    f"return by(False) if bar.close < bar.open - 300 else {HOLD}"
)
FAIR: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    "a full run still holds what a later start never bought": ({}, {"decide": FALLS}),
    "a full run left what a later start holds on to": ({}, {"decide": CROSSES}),
    "a horizon closes what only the full run bought": (
        {},
        {"init": "self.horizon = 40", "decide": FALLS},
    ),
    "a limit of the account refuses one of the two": (
        {"risk": {"max_daily_trades": 3, "max_drawdown": "0.001"}},
        {"decide": CROSSES},
    ),
    "a size stands, as its change is too small": (
        {"sizing": {"mode": "notional", "notional": "100000", "rebalance": "0.5"}},
        {"decide": "return by(bar.close > 0)"},
    ),
}


@pytest.mark.parametrize("name", FAIR)
def test_what_the_account_alone_explains_is_no_difference(starts: Starts, name: str) -> None:
    sections, bodies = FAIR[name]
    finding = starts(sections, **bodies)
    assert finding.passes, finding.differences
    assert finding.probes == 4
    assert finding.compared > 100


@pytest.mark.parametrize("name", ["sma_cross", "persistence"])
def test_a_strategy_of_ours_passes(walk: Candles, fresh: FreshProcesses, name: str) -> None:
    assert recursive(configured(name), MarketData([walk]), fresh, probes=4, warmup=60).passes


@pytest.fixture(scope="module")
def walks(walk: Candles) -> list[Candles]:
    """Return the candles of two symbols, of which the second begins and ends earlier."""
    other = replace(made_candles(walk_rows(320, seed=2)), symbol="ETHUSDT")
    shifted = other.open_time_ms - 40 * other.interval_ms
    return [walk, replace(other, open_time_ms=shifted)]


SYMBOLS = {"market": {"symbols": ["BTCUSDT", "ETHUSDT"]}}


def test_several_symbols_start_later_at_one_time(
    tmp_path: Path, walks: list[Candles], fresh: FreshProcesses
) -> None:
    finding = recursive(
        configured("sma_cross", **SYMBOLS), MarketData(walks), fresh, probes=4, warmup=60
    )
    assert finding.passes
    assert (finding.probes, finding.compared > 400) == (4, True)
    (tmp_path / "counts.py").write_text(users.source(**REMEMBERS["a count, told by holding"]))
    with users.importable(tmp_path):
        config = configured("counts:Mine", **SYMBOLS)
        assert not recursive(config, MarketData(walks), fresh, probes=4, warmup=60).passes


def test_symbols_that_have_no_time_in_common_are_refused(
    walks: list[Candles], fresh: FreshProcesses
) -> None:
    candles, two = walks
    later = replace(candles, open_time_ms=candles.open_time_ms + 10**9)
    with pytest.raises(DataInvalid, match="of one time"):
        recursive(
            configured("sma_cross", **SYMBOLS), MarketData([later, two]), fresh, probes=4, warmup=60
        )


def test_too_little_data_is_refused_with_a_sentence(walk: Candles, fresh: FreshProcesses) -> None:
    with pytest.raises(DataInvalid, match="give more data"):
        recursive(configured("persistence"), MarketData([walk]), fresh, probes=1, warmup=300)
