"""Drawn backtests of every kind, recorded in this process: what the checker learns to judge from.

A backtest takes a tenth of a second, so what no network and no kill can change is tried with these.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import numpy as np
from recordings import record
from world.checker import Served, Truth

from tracepaper.daemon.config.loading import load
from tracepaper.replay.archive import Candles, FundingRates
from tracepaper.strategies.types.market import Category
from tracepaper.strategies.units import HOUR_MS, MINUTE_MS

FIRST_MS: Final = 1_749_945_600_000  # 2025-06-15 00:00 UTC
BARS: Final = 120
SMA: Final = {"name": "sma_cross", "fast": 3, "slow": 7, "long_only": False}
GRID: Final = "tracepaper.strategies.examples.grid:Grid"


def drawn_candles(
    rng: random.Random, symbol: str, bars: int, category: Category = Category.LINEAR
) -> Candles:
    """Return hours of a heavy-tailed walk in cents, some of which open far from the last close."""
    draw = np.random.default_rng(rng.getrandbits(32))
    steps = draw.standard_t(4, bars) * 0.004
    close = (60_000_00 * np.exp(np.cumsum(steps))).astype(np.int64) // 10 * 10
    jumps = np.where(draw.random(bars) < 0.05, draw.normal(0, 0.015, bars), 0)
    opened = np.concatenate(([60_000_00], close[:-1])) * (1 + jumps)
    opened = opened.astype(np.int64) // 10 * 10 + draw.integers(-200, 200, bars) * 10
    wick = (np.abs(draw.normal(0, 0.002, (2, bars))) * close).astype(np.int64) // 10 * 10
    high, low = np.maximum(opened, close) + wick[0], np.minimum(opened, close) - wick[1]
    times = FIRST_MS + np.arange(bars, dtype=np.int64) * HOUR_MS
    volume = draw.integers(1_000, 900_000, bars)
    return Candles(
        "drawn", category, symbol, HOUR_MS, 2, 3, 2, times, opened, high, low, close, volume, None
    )


Sections = dict[str, Any]


def _plain(rng: random.Random, config: Sections) -> None:
    config["strategy"]["long_only"] = rng.random() < 0.5
    config["sizing"] = {"mode": "equity", "fraction": rng.choice(("0.5", "3"))}


def _limits(rng: random.Random, config: Sections) -> None:
    options = {"bars": rng.choice((8, 30)), "levels": 3, "spacing": 0.3, "quantity": 0.05}
    config["strategy"] = {"name": GRID, "options": options}


def _lists(_rng: random.Random, config: Sections) -> None:
    config["strategy"] = {"name": "recorded_strategies:Scatter"}


def _margin(rng: random.Random, config: Sections) -> None:
    config["account"] |= {"margin": "isolated", "leverage": rng.choice((20, 50, 100))}
    config["account"]["cash"] = rng.choice(("1000000", "40000"))
    config["sizing"]["quantity"] = str(rng.choice((2, 20)))


def _cross(rng: random.Random, config: Sections) -> None:
    leverage = rng.choice((50, 75, 100))
    config["account"] |= {"margin": "cross", "leverage": leverage, "cash": "100000"}
    config["sizing"]["quantity"] = str(rng.choice((20, 40, 60)))


def _exits(rng: random.Random, config: Sections) -> None:
    returns = {"0": 0.03, "240": 0.01}
    config["exits"] = {"stop_loss": rng.choice(("0.5%", "2%")), "minimal_roi": returns}
    if rng.random() < 0.5:
        config["exits"]["trailing"] = "1%"


def _protected(_rng: random.Random, config: Sections) -> None:
    config["strategy"] = {
        "name": "recorded_strategies:ProtectedTurns",
        "options": {"bars": 120},
    }


def _two(rng: random.Random, config: Sections) -> None:
    config["market"]["symbols"] = ["BTCUSDT", "ETHUSDT"]
    if rng.random() < 0.5:
        config["exits"] = {"stop_loss": "2%"}


def _spot(_rng: random.Random, config: Sections) -> None:
    config["market"]["category"] = "spot"
    config["sizing"] = {"mode": "equity", "fraction": "0.5"}
    config["strategy"]["long_only"] = True
    config.pop("execution", None)


KINDS: Final[Mapping[str, Callable[[random.Random, Sections], None]]] = {
    each.__name__[1:]: each
    for each in (
        *(_plain, _limits, _lists, _margin, _cross, _exits, _protected),
        *(_two, _spot),
    )
}


def sections_of(kind: str, rng: random.Random) -> Sections:
    """Return the drawn configuration of *kind*."""
    config: Sections = {
        "market": {"symbols": ["BTCUSDT"], "interval": "60"},
        "strategy": dict(SMA),
        "sizing": {"mode": "fixed", "quantity": "0.5"},
        "account": {"cash": "1000000"},
    }
    if rng.random() < 0.5:
        config["execution"] = {
            "taker_fee": rng.choice(("0.00055", "0.0007")),
            "maker_fee": rng.choice(("0.0002", "-0.0001", "0.00013")),
            "slippage_bp": rng.choice(("0", "1.5")),
            "spread_bp": rng.choice(("0", "2")),
            "beyond_best": rng.choice(("wait", "impact", "square_root")),
            "impact_bp": "30",
        }
    KINDS[kind](rng, config)
    return config


def recorded_backtest(kind: str, seed: int, folder: Path) -> tuple[Path, Truth]:
    """Record a drawn backtest of *kind* in *folder*; return its database and what was served."""
    rng = random.Random(f"{kind}:{seed}")
    sections = sections_of(kind, rng)
    category = Category(sections["market"].get("category", "linear"))
    beside: dict[str, Any] = {}
    rates: dict[str, dict[int, Decimal]] = {}
    series = [
        drawn_candles(rng, symbol, BARS, category) for symbol in sections["market"]["symbols"]
    ]
    if category is Category.LINEAR:
        drawn = [_drawn_rates(rng, each) for each in series]
        beside["funding"] = tuple(drawn)
        for candles, funding in zip(series, drawn, strict=True):
            times = map(int, funding.time_ms)
            values = (Decimal(int(rate)).scaleb(-10) for rate in funding.rate)
            rates[candles.instrument] = dict(zip(times, values, strict=True))
    database = folder / f"{kind}-{seed}.db"
    record(database, load(None, sections), series, **beside)
    served = {each.instrument: served_by(each, rates.get(each.instrument, {})) for each in series}
    return database, Truth((sections,), served, (), (), frozenset())


def _drawn_rates(rng: random.Random, candles: Candles) -> FundingRates:
    """Return a settlement every eight hours, some of them inside a bar."""
    times = [int(at) for at in candles.open_time_ms[8::8]]
    times = [at + rng.choice((0, 0, 3, 20 * MINUTE_MS)) for at in times]
    rates = [rng.choice((1_000_000, -2_000_000, 500_000, 7_654_321)) for _ in times]
    return FundingRates("drawn", candles.symbol, np.array(times), np.array(rates))


def served_by(candles: Candles, settlements: Mapping[int, Decimal]) -> Served:
    """Return *candles* as the exchange serves them, in decimals."""
    prices = -candles.price_decimals
    rows = {
        int(at): (
            *(Decimal(int(price)).scaleb(prices) for price in row),
            Decimal(int(volume)).scaleb(-candles.volume_decimals),
        )
        for at, *row, volume in zip(
            candles.open_time_ms,
            candles.open,
            candles.high,
            candles.low,
            candles.close,
            candles.volume,
            strict=True,
        )
    }
    return Served(candles.interval_ms, rows, settlements)  # type: ignore[arg-type]
