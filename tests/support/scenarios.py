"""One small run of each feature, for the laws that hold of every run (``test_scenarios``)."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import count as counted
from pathlib import Path
from typing import Any

import depth_cases
import explained_runs
import learning
import models
import numpy as np
import pytest
import recordings
import stock_files
from exchange_client import candles as made_candles
from exchange_client import walk_rows, wild_rows
from pair_cases import cointegrated
from records import rows

from tracepaper.daemon.config.loading import Config, load
from tracepaper.replay.archive import Candles, FundingRates
from tracepaper.replay.archive.books import read_depth
from tracepaper.replay.backtest import run as running
from tracepaper.replay.backtest.build import build
from tracepaper.replay.backtest.market_data import MarketData
from tracepaper.replay.backtest.run_spec import RunSpec
from tracepaper.storage.audit import SqlAuditLog
from tracepaper.strategies.networks.order_book import OrderBookConfig
from tracepaper.strategies.types.market import Category
from tracepaper.strategies.units import HOUR_MS, MINUTE_MS

Sections = Mapping[str, Any]
BARS = 100
WHOLE_CLOSE = "instrument IS NULL AND open_time_ms IS NOT NULL"
SHORT = 76
"""Bars that gates look back on, and some more."""
THREE = ("AAAUSDT", "BBBUSDT", "CCCUSDT")


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """A configuration, the market that it trades, and what its record shows."""

    sections: Callable[[], Sections]
    candles: Callable[[], list[Candles]]
    files: Callable[[], dict[str, Any]] = dict  # what is fed beside the candles
    shows: tuple[str, ...] = ()  # of each query the first value is true
    forged: tuple[str, ...]  # statements that change rows
    kills: tuple[float, ...] = (0.4, 0.9)  # parts of its bars
    around: str = ""  # a kind of event: then it is killed around those
    early: int = 0  # bars that are warm-up in any run
    mode: str = "scan"
    is_dear: bool = False  # then some laws are not asked of it
    is_close: bool = False  # a start moves the last bits of what its model says
    again: tuple[str, ...] = ()  # kinds of events that a start repeats

    def config(self) -> Config:
        return load(None, dict(self.sections()))

    def data(self) -> MarketData:
        """Return the market that it is fed."""
        return MarketData(self.candles(), **self.files())

    def recorded(self) -> Path:
        """Return the database of its run, which is only read."""
        return self._recorded() / "run.db"

    def killed(self) -> list[Path]:
        """Return what it leaves that is killed: behind parts of its bars, or around an event."""
        every = [*self._recorded().glob("cut-*.db")]
        cuts = sorted(every, key=lambda path: int(path.stem.partition("-")[2]))
        if not self.around:
            return cuts
        newest = [rows(cut, "SELECT kind FROM v_events ORDER BY sequence DESC") for cut in cuts]
        at = [place for place, kinds in enumerate(newest) if kinds[:1] == [(self.around,)]]
        wanted = {place + by for place in at[-1:] for by in (-1, 0, 1)}
        return [cut for place, cut in enumerate(cuts) if place in wanted]

    def _recorded(self) -> Path:
        config, candles, files = self.config(), self.candles(), self.files()
        key = (
            config.canonical_json(),
            candles,
            sorted(files.items()),
            self.mode,
            self.kills,
            self.around,
        )
        return recordings.stored(key, self._run)

    def _run(self, folder: Path) -> None:
        """Run it into *folder*, with copies of what another process would find at its kills."""
        whole = folder / "run.db"
        bars = sum(map(len, self.candles()))
        left = sorted(self.kills) if not self.around else []
        places = counted()

        def copy(done: int) -> None:
            is_wanted = bool(self.around) and rows(whole, "SELECT count(*) > 1 FROM v_events")[0][0]
            while left and done >= bars * left[0]:
                left.pop(0)
                is_wanted = True
            if is_wanted:
                cut = folder / f"cut-{next(places)}.db"
                for suffix in ("", "-wal"):
                    shutil.copy(f"{whole}{suffix}", f"{cut}{suffix}")

        log = SqlAuditLog.open(whole, group_steps=1)
        replay = build(self.config(), self.data(), started_at_ms=0, database=whole, mode=self.mode)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(running, "PROGRESS_EVENTS", 1)
            running.run_replay(replay, log, running.Tally(progress=copy))
        log.end(1)
        log.close()
        for kept in folder.glob("run.db.*/"):
            for cut in folder.glob("cut-*.db"):
                shutil.copytree(kept, folder / kept.name.replace("run.db", cut.name))


def _sections(
    strategy: Sections, *symbols: str, market: Sections | None = None, **more: Sections
) -> Callable[[], Sections]:
    """Return the sections of hours of *symbols*."""
    of = {"symbols": list(symbols or ("BTCUSDT",)), "interval": "60", **(market or {})}
    return lambda: {"market": of, "strategy": strategy, **more}


def _walk(
    count: int = BARS,
    *symbols: str,
    interval_ms: int = HOUR_MS,
    category: Category = Category.LINEAR,
) -> Callable[[], list[Candles]]:
    return lambda: [
        made_candles(
            walk_rows(count, seed=seed), symbol=symbol, interval_ms=interval_ms, category=category
        )
        for seed, symbol in enumerate(symbols or ("BTCUSDT",), 1)
    ]


def _wild() -> list[Candles]:
    return [
        made_candles(wild_rows(BARS, seed=seed), symbol=symbol, interval_ms=HOUR_MS)
        for seed, symbol in enumerate(THREE, 6)
    ]


def _holed() -> list[Candles]:
    first, second = _walk(SHORT, *THREE[:2])()
    return [first, second[np.delete(np.arange(SHORT), [70, 71])]]


def _funded() -> dict[str, Any]:
    times = _walk()()[0].open_time_ms[8:40:8]
    rates = np.array([1_000_000, -2_000_000, 500_000, 300_000])
    return {"funding": (FundingRates("builder", "BTCUSDT", times, rates),)}


FRAMED, WHOLE_FRAMES = 187, 195


def _framed() -> list[Candles]:
    whole = _walk(FRAMED + 160, interval_ms=MINUTE_MS)()[0]
    return [whole[FRAMED:]]


def _frames() -> dict[str, Any]:
    whole = _walk(FRAMED + 160, interval_ms=MINUTE_MS)()[0]
    before = whole[:WHOLE_FRAMES]
    return {
        "frames": tuple(
            replace(before.resampled(length * MINUTE_MS), path="higher") for length in (15, 5)
        )
    }


def _shares(folder: Path) -> None:
    """Write the hours of two shares, of which one lacks a day."""
    times = stock_files.opens("2014-11-17", "2014-12-12", HOUR_MS)
    stock_files.write(folder / "acme.csv", times)
    kept = [at for at in times if stock_files.date_alone(at) != "2014-12-03"]
    stock_files.write(folder / "emca.csv", kept, seed=2)


SHARES: Sections = {
    "market": {"symbols": ["ACME", "EMCA"], "interval": "60", "asset": "stock"},
    "strategy": {"name": "sma_cross", "fast": 3, "slow": 7},
    "execution": {"taker_fee": "0", "slippage_bp": "0"},
    "sizing": {
        "mode": "volatility", "lookback": 22, "volatility": "ewma", "rebalance": "0.01",
    },
    "exits": {"stop_loss": "3 atr"},
}  # fmt: skip


def _of_shares() -> list[Candles]:
    folder = recordings.stored("shares", _shares)
    files = tuple(f"{name.upper()}={folder / f'{name}.csv'}" for name in ("acme", "emca"))
    spec = RunSpec(candles=files, config=dict(SHARES))
    return list(MarketData.read(spec).candles)


BOOKS_MS = 5_000
NETWORK = OrderBookConfig(levels=5, window=16, dim=8, layers=1, heads=2, horizons=(1, 3))


def _books(folder: Path) -> None:
    """Write books around the candles, with a hole of some minutes, and a network of them."""
    first_ms, of = depth_cases.FIRST_MS, depth_cases.header(every_ms=BOOKS_MS)
    walks = [
        depth_cases.walk(
            count, seed=seed, every_ms=BOOKS_MS, first_ms=first_ms + minute * MINUTE_MS
        )
        for seed, count, minute in ((1, 624, -2), (2, 312, 54))
    ]
    depth_cases.write(folder / "btc.depth", walks[0], of=of)
    depth_cases.write(folder / "btc.depth", walks[1], of=of, cause="disconnected")
    depth_cases.trained(folder / "btc.depth", NETWORK, folder / "model")


def _by_books() -> Sections:
    options = {"checkpoint": str(recordings.stored("books", _books) / "model")}
    return {
        "market": {"symbols": ["BTCUSDT"]},
        "strategy": {"name": "orderbook", "options": options},
        "model": {"checkpoint": "none"},
        "sizing": {"mode": "fixed", "quantity": "0.1"},
    }


def _depth() -> dict[str, Any]:
    return {"depth": [read_depth(recordings.stored("books", _books) / "btc.depth")]}


OPEN_GATES: Sections = {
    "gate": {
        "horizon": 30, "confidence": "0", "collapse": "0", "shift": "1", "direction": "0.5",
        "edge": "0.0001", "regimes": ["MOMENTUM", "MIXED", "MEAN_REVERSION"],
    },
    "regime": {"momentum": "0.6", "mean_reversion": "0.3"},
}  # fmt: skip


def _by_model() -> Sections:
    checkpoint = recordings.stored("small", explained_runs.checkpoint) / "small"
    return {
        "market": {"symbols": ["AAAUSDT"]},
        "strategy": {"name": "attention", "shadows": ["ungated", "random_gate", "held"]},
        "model": {"checkpoint": str(checkpoint), "threads": 1},
        **OPEN_GATES,
    }


def _by_portfolio() -> Sections:
    checkpoint = recordings.stored("portfolio", models.together)
    return {
        "market": {"symbols": list(models.TOGETHER)},
        "strategy": {"name": "portfolio", "shadows": ["random_gate"]},
        "model": {"checkpoint": str(checkpoint), "threads": 1},
        "sizing": {"mode": "equity", "fraction": "1"},
    }


def _learnable(count: int, *symbols: str) -> Callable[[], list[Candles]]:
    return lambda: [
        learning.learnable(count, seed=at, symbol=symbol) for at, symbol in enumerate(symbols)
    ]


def _counts(*tables: str) -> tuple[str, ...]:
    return tuple(f"SELECT count(*) FROM {table}" for table in tables)


LIQUIDATED = "SELECT count(*) FROM v_fills WHERE model = 'liquidation'"
LATEST = "WHERE sequence = (SELECT max(sequence) FROM fills)"
FILLED_ORDERS = "FROM v_fills f JOIN v_orders o USING (order_id) WHERE"
SCENARIOS: dict[str, Scenario] = {
    "crossing": Scenario(
        sections=_sections(
            {
                "name": "sma_cross", "fast": 3, "slow": 7, "long_only": False,
                "shadows": ["random_gate", "held"],
            },
            sizing={"mode": "equity", "fraction": "0.5"},
            execution={"taker_fee": "0.0007"},
            risk={"max_notional": "1000000", "max_drawdown": "0.9", "max_daily_trades": 5},
        ),
        candles=_walk(),
        files=_funded,
        shows=_counts("v_fills", "v_shadow_fills WHERE shadow = 'random_gate'", "v_ledger"),
        forged=(
            f"UPDATE fills SET price = price + 1 {LATEST}",
            "UPDATE steps SET close = close - 1 WHERE sequence = (SELECT min(sequence) FROM fills)",
            "UPDATE events SET content = json_set(content, '$.rate', 7) WHERE kind = 'funding'",
            "UPDATE fills SET fee = fee - 1 WHERE account > 0",
        ),
    ),
    "a bar late": Scenario(
        sections=_sections(
            {"name": "sma_cross", "fast": 3, "slow": 7, "long_only": False},
            sizing={"mode": "equity", "fraction": "0.5"},
            execution={"delay_bars": 1},
        ),
        candles=_walk(),
        shows=(
            f"SELECT count(*) {FILLED_ORDERS} f.filled_ms = o.created_ms + 3600000",
            f"SELECT count(*) = 0 {FILLED_ORDERS} f.filled_ms != o.eligible_ms",
        ),
        forged=(f"UPDATE orders SET eligible_ms = eligible_ms - 1 {LATEST}",),
    ),
    "impact by the root": Scenario(
        sections=_sections(
            {"name": "recorded_strategies:ProtectedTurns", "options": {"bars": 12}},
            sizing={"mode": "fixed", "quantity": "30"},
            execution={"beyond_best": "square_root", "impact_bp": "9"},
            account={"cash": "100000000"},
        ),
        candles=_walk(),
        shows=(
            "SELECT count(*) FROM v_fills WHERE model = 'next_open' AND price != reference_price",
            "SELECT count(*) FROM v_fills WHERE model = 'bar_path' AND liquidity = 'TAKER'",
        ),
        forged=(f"UPDATE fills SET price = price + 1 {LATEST}",),
    ),
    "exits": Scenario(
        sections=_sections(
            {"name": "recorded_strategies:ProtectedTurns", "options": {"bars": 120}},
            sizing={"mode": "fixed", "quantity": "0.5"},
            execution={"slippage_bp": "1"},
        ),
        candles=lambda: [made_candles(walk_rows(120, seed=2), interval_ms=HOUR_MS)],
        shows=_counts(
            *(
                f"v_orders WHERE role = '{role}' AND status = 'FILLED'"
                for role in ("STOP", "TARGET", "TRAILING")
            )
        ),
        forged=(
            "UPDATE orders SET trigger = trigger + 1 WHERE trigger IS NOT NULL",
            "UPDATE orders SET kind = 'LIMIT' WHERE kind = 'STOP'",
            "UPDATE orders SET side = iif(side = 'BUY', 'SELL', 'BUY')",
        ),
    ),
    "isolated margin": Scenario(
        sections=_sections(
            {"name": "recorded_strategies:Turns", "options": {"bars": 600}},
            "AAAUSDT",
            sizing={"mode": "equity", "fraction": "15"},
            account={"cash": "100000", "margin": "isolated", "leverage": "20"},
        ),
        candles=lambda: _wild()[:1],
        shows=(LIQUIDATED,),
        forged=(
            f"UPDATE fills SET quantity = quantity - 1 {LATEST}",
            "UPDATE holdings SET margin = margin + 1 WHERE margin > 0",
        ),
    ),
    "cross margin": Scenario(
        sections=_sections(
            {"name": "recorded_strategies:Rolls"}, *THREE,
            sizing={"mode": "equity", "fraction": "6"},
            account={"cash": "10000", "margin": "cross", "leverage": "20"},
            risk={"max_daily_trades": 50, "cooldown": 2},
        ),
        candles=_wild,
        shows=(
            LIQUIDATED,
            ("SELECT count(*) FROM v_fills f JOIN v_events e ON e.sequence = f.sequence "
            "WHERE f.model = 'liquidation' AND e.instrument IS NOT f.instrument"),
        ),
        forged=(
            "UPDATE fills SET quantity = quantity - 1 WHERE model = 'liquidation'",
            "UPDATE ledger SET amount = amount + 1 WHERE kind = 'fee'",
        ),
    ),
    "orders that rest": Scenario(
        sections=_sections(
            {
                "name": "tracepaper.strategies.examples.grid:Grid",
                "options": {"bars": 40, "spacing": 0.05},
            },
            execution={"fees": {"BTCUSDT": {"taker": "0.0011", "maker": "-0.0001"}}},
        ),
        candles=_walk(),
        shows=_counts("v_fills WHERE liquidity = 'MAKER'"),
        forged=(
            "UPDATE fills SET liquidity = 'TAKER' WHERE liquidity = 'MAKER'",
            "UPDATE orders SET price = NULL WHERE kind = 'LIMIT'",
        ),
    ),
    "orders by list": Scenario(
        sections=_sections(
            {"name": "recorded_strategies:Scatter"},
            execution={"spread_bp": 1, "spread_slippage": "0.1", "latency_jitter_ms": 20},
        ),
        candles=_walk(),
        shows=_counts(
            *(f"v_orders WHERE kind = '{kind}'" for kind in ("LIMIT", "STOP", "STOP_LIMIT")),
            *(f"v_orders WHERE status = '{end}'" for end in ("CANCELED", "REJECTED")),
            "v_decisions WHERE action = 'ORDERS'",
        ),
        forged=(
            "UPDATE orders SET tag = 'none' WHERE tag = 'high'",
            "UPDATE orders SET reduce_only = 0 WHERE reduce_only = 1",
        ),
    ),
    "declared state and columns": Scenario(
        sections=_sections(
            {
                "name": "tracepaper.strategies.examples.rsi_reversion:RsiReversion",
                "options": {
                    "bars": 3, "low": 40, "high": 60, "stop": 0.03, "losses": 2, "pause": 6,
                },
            },
            sizing={"mode": "fixed", "quantity": "0.1"},
            risk={"max_daily_trades": 4},
        ),
        candles=_walk(240),  # with columns, of which a start looks back on a block
        shows=_counts("v_fills WHERE reason LIKE 'stop%'", "v_notes WHERE name = 'streak'"),
        kills=(0.25, 0.5, 0.75, 0.95),
        forged=(
            "UPDATE answers SET note = json_set(note, '$.streak', 99) WHERE note IS NOT NULL",
            "UPDATE outcomes SET reason = 'so it is said'",
        ),
    ),
    "several symbols": Scenario(
        sections=_sections(
            {"name": "recorded_strategies:ProtectedTurns", "options": {"bars": 420}},
            "AAAUSDT", "BBBUSDT",
            sizing={"mode": "notional", "notional": "20000"},
            risk={"max_daily_trades": 3},
        ),
        candles=lambda: cointegrated(BARS, interval_ms=HOUR_MS),
        shows=_counts("v_fills", "v_events WHERE kind = 'closed'"),
        forged=(
            f"UPDATE steps SET open_time_ms = open_time_ms + {HOUR_MS} WHERE {WHOLE_CLOSE}",
            f"UPDATE steps SET open_time_ms = NULL WHERE {WHOLE_CLOSE}",
            f"DELETE FROM steps WHERE {WHOLE_CLOSE}",
            ("UPDATE steps SET instrument = 1 - instrument "
            "WHERE sequence > (SELECT max(sequence) - 2 FROM steps WHERE open > 0)"),
            f"UPDATE fills SET instrument = 1 - instrument {LATEST}",
            ("UPDATE orders SET instrument = 1 - instrument "
            "WHERE sequence = (SELECT min(sequence) FROM orders)"),
            ("UPDATE ledger SET instrument = 1 - instrument "
            "WHERE sequence = (SELECT max(sequence) FROM ledger)"),
        ),
    ),
    "a limit of the whole book": Scenario(
        sections=_sections(
            {"name": "sma_cross", "fast": 3, "slow": 7, "long_only": False},
            *THREE[:2],
            market={"interval": "720"},
            risk={"max_book_shortfall": "0.00014", "book_days": 90, "book_too_few": "allow"},
        ),
        candles=_walk(220, *THREE[:2], interval_ms=12 * HOUR_MS),
        shows=(
            ("SELECT count(*) FROM v_gates WHERE gate = 'risk.book_shortfall' AND measure > 0 "
            "AND passed = 1"),
            "SELECT count(*) FROM v_decisions WHERE refused_by = 'risk.book_shortfall'",
        ),
        forged=(
            ("UPDATE answers SET measure_risk_book_shortfall = measure_risk_book_shortfall / 2 "
            "WHERE measure_risk_book_shortfall > 0"),
        ),
        kills=(0.9,),
        is_dear=True,
    ),
    "spot": Scenario(
        sections=_sections(
            {"name": "sma_cross", "fast": 3, "slow": 7},
            market={"category": "spot"},
            sizing={"mode": "equity", "fraction": "0.5"},
        ),
        candles=_walk(category=Category.SPOT),
        shows=_counts("v_fills WHERE fee_base > 0"),
        forged=("UPDATE fills SET fee_base = fee_base - 1 WHERE fee_base > 0",),
    ),
    "a pair with state": Scenario(
        sections=_sections(
            {
                "name": "recorded_strategies:CountingPair",
                "options": {"window": 30, "enter": 1.0},
            },
            "AAAUSDT", "BBBUSDT",
            sizing={"mode": "notional", "notional": "1000"},
        ),
        candles=lambda: cointegrated(BARS, interval_ms=HOUR_MS),
        shows=(
            *_counts("v_notes WHERE name = 'opened' AND number > 2"),
            "SELECT count(DISTINCT instrument || side) = 4 FROM v_fills",
        ),
        forged=("UPDATE answers SET note = json_set(note, '$.opened', 99) WHERE note IS NOT NULL",),
    ),
    "a hole": Scenario(
        sections=_sections({"name": "sma_cross", "fast": 1, "slow": 2}, *THREE[:2]),
        candles=_holed,
        around="gap",
        shows=_counts("v_gaps", "v_decisions WHERE refused_by = 'gap'"),
        forged=(
            "UPDATE events SET market_ms = market_ms + 1 WHERE kind = 'gap'",
            "UPDATE events SET content = json_set(content, '$.bars', 2) WHERE kind = 'closed'",
            ("UPDATE events SET content = json_set(content, '$.absent', json('[]')) "
            "WHERE kind = 'closed'"),
        ),
    ),
    "bars by themselves": Scenario(
        sections=_sections(
            {"name": "sma_cross", "fast": 3, "slow": 7}, *THREE[:2], market={"gather_ms": 0}
        ),
        candles=_walk(SHORT, *THREE[:2]),
        shows=("SELECT count(*) = 0 FROM v_events WHERE kind = 'closed'",),
        forged=(f"UPDATE fills SET price = price + 1 {LATEST}",),
    ),
    "drawn signals": Scenario(
        sections=_sections(
            {
                "name": "histories:DrawnSignals",
                "options": {"seed": 1, "quiet": 0.4, "lists": True},
                "shadows": ["ungated", "held"],
            },
            sizing={"mode": "notional", "notional": "40000"},
            account={"cash": "100000", "margin": "isolated", "leverage": "10"},
        ),
        candles=_walk(),
        shows=_counts(
            "v_fills WHERE side = 'BUY'", "v_fills WHERE side = 'SELL'",
            "v_shadow_fills WHERE shadow = 'ungated'",
            "v_shadow_fills WHERE shadow = 'held'",
        ),
        forged=(
            "UPDATE orders SET reduce_only = 1 WHERE role = 'LIST'",
            "UPDATE fills SET fee = fee + 1 WHERE account = 1",
            "UPDATE shadow_steps SET unrealized_pnl = 1 WHERE account = 2",
            "UPDATE holdings SET realized_pnl = realized_pnl + 1 WHERE shadow = 'held'",
            "DELETE FROM fills WHERE account = 0 AND side = 'SELL'",
            "UPDATE holdings SET realized_pnl = realized_pnl + 1 WHERE shadow = 'ungated'",
        ),
    ),
    "frames": Scenario(
        sections=_sections(
            {"name": "recorded_strategies:FramedMean"},
            market={"interval": "1"},
            sizing={"mode": "fixed", "quantity": "1"},
            account={"cash": "10000000"},
        ),
        candles=_framed,
        files=_frames,
        shows=_counts("v_events WHERE kind = 'frame_bar'", "v_fills"),
        forged=(
            "UPDATE answers SET note = json_set(note, '$.quarters', 1) WHERE note IS NOT NULL",
        ),
    ),
    "trend": Scenario(
        sections=_sections(
            {"name": "trend", "trend_windows": ["4h", "12h"], "long_only": False},
            model={"checkpoint": "none"},
            sizing={"mode": "equity", "fraction": "1"},
        ),
        candles=_walk(),
        shows=_counts("v_fills"),
        forged=("UPDATE steps SET target_quantity = target_quantity + 1",),
    ),
    "shares": Scenario(
        sections=lambda: SHARES,
        candles=_of_shares,
        shows=_counts("v_fills", "v_ledger WHERE kind = 'sold'"),
        forged=("UPDATE ledger SET amount = amount + 1 WHERE kind = 'bought'",),
    ),
    "order books": Scenario(
        sections=_by_books,
        candles=lambda: [
            made_candles(walk_rows(SHORT), first_ms=depth_cases.FIRST_MS)
        ],
        files=_depth,
        shows=_counts("v_fills", "v_events WHERE kind = 'depth'"),
        forged=(
            ("UPDATE events SET books = CAST(substr(books, 1, 40) || x'7f' || substr(books, 42) "
            "AS BLOB) WHERE sequence = (SELECT max(sequence) FROM events WHERE kind = 'depth')"),
            ("DELETE FROM events WHERE sequence = "
             "(SELECT max(sequence) FROM events WHERE kind = 'depth')"),
        ),
        again=("depth",),
    ),
    "a model with gates": Scenario(
        sections=_by_model,
        candles=_learnable(explained_runs.BARS, "AAAUSDT"),
        shows=_counts(
            "v_fills", "v_explanations", "v_shadow_fills WHERE shadow = 'ungated'",
            "v_decisions WHERE mean_return IS NOT NULL",
        ),
        forged=(
            "UPDATE answers SET mean_return = 0.01",
            "UPDATE answers SET recent_mass = 0.5",
        ),
        early=explained_runs.CONTEXT,
        mode="step",
        is_close=True,
    ),
    "a portfolio": Scenario(
        sections=_by_portfolio,
        candles=_learnable(models.TOGETHER_CONTEXT + 25, *models.TOGETHER),
        shows=_counts("v_fills", "v_notes WHERE name = 'weight'"),
        forged=(
            "UPDATE answers SET note = json_set(note, '$.weight', 0.25) WHERE note IS NOT NULL",
        ),
        early=models.TOGETHER_CONTEXT,
        kills=(0.98,),
        is_dear=True,
    ),
}  # fmt: skip
