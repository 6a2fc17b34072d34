"""``recursive``: what remembers more than it says is found; what an account holds is not it."""

from __future__ import annotations

from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import own_strategies as own
import pytest
from exchange_client import candles as made_candles
from exchange_client import walk_rows

from tracepaper.daemon.config.loading import Config, load
from tracepaper.replay.archive import Candles
from tracepaper.replay.checks.recursive import RecursiveFinding, recursive
from tracepaper.strategies.errors import DataInvalid

_NUMBERS = count()
HOLD = "Signal(Action.HOLD, 'nothing new')"


@pytest.fixture(scope="module")
def walk() -> Candles:
    return made_candles(walk_rows(300))


def configured(name: str, **sections: dict[str, Any]) -> Config:
    fixed = {"mode": "fixed", "quantity": "1"}
    strategy = {"name": name, "fast": 5, "slow": 20}
    return load(None, {"strategy": strategy, "sizing": fixed, **sections})


def found(folder: Path, walk: Candles, sections: dict[str, Any], **bodies: str) -> RecursiveFinding:
    name = f"starts_{next(_NUMBERS)}"
    (folder / f"{name}.py").write_text(own.source(**bodies))
    with own.importable(folder):
        return recursive(configured(f"{name}:Mine", **sections), [walk], probes=4, warmup=60)


REMEMBERS: dict[str, dict[str, str]] = {
    "a count of all bars": {
        "init": "self.count = 0",
        "observe": "self.count += 1",
        "decide": "return by(self.count % 7 < 3)",
    },
    "a count, told by holding": {
        "init": "self.count = 0",
        "observe": "self.count += 1",
        "decide": f"return by(True) if self.count % 7 < 3 else {HOLD}",
    },
    "a count, told by holding or leaving": {
        "init": "self.count = 0",
        "observe": "self.count += 1",
        "decide": f"return by(False) if self.count % 7 < 3 else {HOLD}",
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
def test_a_memory_longer_than_the_warm_up_is_found(
    tmp_path: Path, walk: Candles, name: str
) -> None:
    said = found(tmp_path, walk, {}, **REMEMBERS[name])
    assert not said.holds
    assert said.differences[0].field in ("signal", "strength")


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
def test_what_the_account_alone_explains_is_no_difference(
    tmp_path: Path, walk: Candles, name: str
) -> None:
    sections, bodies = FAIR[name]
    said = found(tmp_path, walk, sections, **bodies)
    assert said.holds, said.differences
    assert said.probes == 4
    assert said.compared > 100


@pytest.mark.parametrize("name", ["sma_cross", "persistence"])
def test_a_strategy_of_ours_passes(walk: Candles, name: str) -> None:
    assert recursive(configured(name), [walk], probes=4, warmup=60).holds


@pytest.fixture(scope="module")
def walks(walk: Candles) -> list[Candles]:
    """Return the candles of two symbols, of which the second begins and ends earlier."""
    other = replace(made_candles(walk_rows(320, seed=2)), symbol="ETHUSDT")
    shifted = other.open_time_ms - 40 * other.interval_ms
    return [walk, replace(other, open_time_ms=shifted)]


SYMBOLS = {"market": {"symbols": ["BTCUSDT", "ETHUSDT"]}}


def test_several_symbols_start_later_at_one_time(tmp_path: Path, walks: list[Candles]) -> None:
    said = recursive(configured("sma_cross", **SYMBOLS), walks, probes=4, warmup=60)
    assert said.holds
    assert (said.probes, said.compared > 400) == (4, True)
    (tmp_path / "counts.py").write_text(own.source(**REMEMBERS["a count of all bars"]))
    with own.importable(tmp_path):
        config = configured("counts:Mine", **SYMBOLS)
        assert not recursive(config, walks, probes=4, warmup=60).holds


def test_symbols_that_have_no_time_in_common_are_refused(walks: list[Candles]) -> None:
    one, two = walks
    later = replace(one, open_time_ms=one.open_time_ms + 10**9)
    with pytest.raises(DataInvalid, match="of one time"):
        recursive(configured("sma_cross", **SYMBOLS), [later, two], probes=4, warmup=60)


def test_too_little_data_is_refused_with_a_sentence(walk: Candles) -> None:
    with pytest.raises(DataInvalid, match="give more data"):
        recursive(configured("persistence"), [walk], probes=1, warmup=300)
