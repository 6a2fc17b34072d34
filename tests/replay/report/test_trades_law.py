"""Closed trades equal those recomputed from fills in exact fractions and from the ledger."""

from __future__ import annotations

import random
import sqlite3
from contextlib import closing
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from exchange_client import candles as made_candles
from records import rows
from report_cases import BTC
from stock_files import HOUR_MS, opens, write

from tracepaper import Action, Orders, Signal, Strategy, backtest, buy, sell
from tracepaper.storage.chain.integrity import audit
from tracepaper.storage.database.reader import Reader
from tracepaper.storage.database.trade_rows import trades_until
from tracepaper.storage.record.encode import StepEncoder


@dataclass
class Book:
    """One position with its open trade."""

    held: Fraction = Fraction(0)
    entries: list[tuple[Fraction, Fraction]] = field(default_factory=list)
    exits: list[tuple[Fraction, Fraction]] = field(default_factory=list)
    cash: Fraction = Fraction(0)
    most: Fraction = Fraction(0)
    opened: tuple[int, str] = (0, "")

    def fill(self, row: dict[str, Any]) -> list[tuple[Any, ...]]:
        size, price = Fraction(row["quantity_text"]), Fraction(row["price_text"])
        fee, sign = Fraction(row["fee_text"]), 1 if row["side"] == "BUY" else -1
        parts = [size]
        if 0 < -self.held * sign < size:
            parts = [abs(self.held), size - abs(self.held)]
        closed = []
        for part in parts:
            if not self.held:
                self.__init__()  # type: ignore[misc]
                self.opened = row["filled_ms"], row["reason"]
            (self.exits if self.held * sign < 0 else self.entries).append((price, part))
            self.held += sign * part
            self.cash -= sign * part * price + fee * part / size
            self.most = max(self.most, abs(self.held))
            if not self.held:
                ends = row["filled_ms"], row["reason"]
                side = "SHORT" if sign > 0 else "LONG"
                prices = (mean(self.entries), mean(self.exits))
                closed.append((side, *self.opened, *ends, self.most, *prices, self.cash))
        return closed


def mean(parts: list[tuple[Fraction, Fraction]]) -> Fraction:
    return sum((p * q for p, q in parts), Fraction(0)) / sum(q for _, q in parts)


def ledger(path: Path) -> tuple[list[tuple[Any, ...]], Fraction]:
    """Return the closed trades by fills, and the amounts of open ones."""
    with closing(sqlite3.connect(path)) as connection:
        connection.row_factory = sqlite3.Row
        query = "SELECT * FROM v_fills ORDER BY sequence, ordinal"
        fills = [dict(row) for row in connection.execute(query)]
    books: dict[str, Book] = {}
    closed = []
    for row in fills:
        book = books.setdefault(row["instrument"], Book())
        closed += [(row["instrument"], *trade) for trade in book.fill(row)]
    left = sum((book.cash for book in books.values() if book.held), Fraction(0))
    return sorted(closed, key=lambda trade: (trade[4], trade[0], trade[1])), left


MOVED = "SELECT sum(amount) FROM v_ledger WHERE kind NOT IN ('opened', 'funding')"
FUNDED = """SELECT f.shadow,
sum(t.funding) OVER (PARTITION BY f.shadow, f.instrument
ORDER BY t.sequence, t.ordinal), (SELECT h.funding_paid FROM holdings h
WHERE h.shadow IS f.shadow AND h.instrument = f.instrument
AND h.sequence <= t.sequence ORDER BY h.sequence DESC LIMIT 1)
FROM trades t JOIN fills f USING (sequence, account, ordinal)"""
ENTERED = """SELECT coalesce(sum(entry_notional), 0) FROM v_positions p
WHERE instrument NOT LIKE 'stock:%' AND sequence =
(SELECT max(sequence) FROM v_positions n WHERE n.instrument = p.instrument)"""
OF_ACCOUNT = """SELECT t.sequence, f.side, t.funding FROM trades t
JOIN fills f USING (sequence, account, ordinal) WHERE f.shadow IS ? ORDER BY 1, 2"""


def check(path: Path, least: int) -> None:
    names = (
        "instrument, side, opened_ms, entry_reason, closed_ms, exit_reason, quantity, "
        "entry_price, exit_price, profit"
    )
    view = rows(path, f"SELECT {names} FROM v_trades ORDER BY closed_ms, instrument, side")
    exact, left = ledger(path)
    assert len(exact) >= least
    assert [trade[:6] for trade in view] == [trade[:6] for trade in exact]
    for of_record, of_ledger in zip(view, exact, strict=True):
        assert of_record[6:] == pytest.approx([float(part) for part in of_ledger[6:]], abs=1e-6)
    ((profit,),), ((moved,),), ((entered,),) = (
        rows(path, query) for query in ("SELECT sum(profit) FROM v_trades", MOVED, ENTERED)
    )
    # What a position has paid when a trade of it closes is that trade's and those before it.
    assert all(of_trades == paid for _, of_trades, paid in rows(path, FUNDED))
    assert profit + float(left) + entered == pytest.approx(moved, abs=1e-6)
    with Reader.open(path) as reader:
        assert audit(reader.connection, reader.find("last")).passes
        stored = reader.stored_run(reader.find("last"))
        steps, sets = list(reader.steps(stored.run.run_id)), reader.gate_sets(stored.run_key)
        kept = trades_until(reader.connection, stored.run_key, stored.run)[1]
        acted = [step.sequence for step in steps if step.fills or step.ledger]
        for after in acted[1 :: len(acted) // 5]:
            trades, closed = trades_until(reader.connection, stored.run_key, stored.run, after)
            encoder = StepEncoder(stored.run, stored.run_key, sets, first=after + 1, trades=trades)
            for step in steps[after + 1 :]:
                encoder.add(step)
            assert [*closed, *encoder.take()["trades"]] == kept


class Adds(Strategy):
    """Buys, sells and goes flat at random, in parts."""

    warmup = 1
    sees_account = True

    def decide(self, context: Any) -> Orders | Signal:
        rng = random.Random(context.time)
        held = context.account.position.quantity
        if rng.random() < 0.6:
            return Signal(Action.HOLD, "dice")
        if held >= 2 and rng.random() < 0.5:
            size = held if rng.random() < 0.5 else rng.randint(1, int(held))
            return Orders((sell(size),), "less")
        return Orders((buy(rng.randint(2, 9)),), "more")


def test_of_shares_in_parts(here: Path) -> None:
    times = opens("2014-11-03", "2014-12-31", HOUR_MS)
    prices = [1 + 0.01 * (row % 7) for row in range(len(times))]
    write(here / "acme.csv", times, prices=prices.__getitem__)
    config = {"market": {"asset": "stock"}, "execution": {"fee_per_share": "0.01"}}
    with backtest(Adds, {"ACME": "acme.csv"}, config=config, db="a.db"):
        check(Path("a.db"), 10)


class Dice(Strategy):
    """Goes long, short or flat at random, on thin margin."""

    warmup = 1

    def decide(self, context: Any) -> Signal:
        roll = random.Random(f"{context.time}{context.symbol}").randrange(6)
        return Signal((Action.LONG, Action.SHORT, Action.FLAT, *[Action.HOLD] * 3)[roll], "dice")


@pytest.mark.parametrize("margin", ["cross", "isolated"])
def test_over_liquidations_of_three_symbols(tmp_path: Path, margin: str) -> None:
    data = []
    for seed, symbol in enumerate(("BTCUSDT", "ETHUSDT", "SOLUSDT")):
        rng, price, candles = random.Random(seed + 6), 10_000, []
        for _ in range(160):
            jump = rng.choice((-1, 1)) * rng.randint(0, 2_000) * (rng.random() < 0.1)
            close = max(price + rng.randint(-250, 250) + jump * price // 10_000, 500)
            top, low = max(price, close) + rng.randint(0, 99), min(price, close)
            candles.append((price, top, max(low - rng.randint(0, 99), 400), close, 5_000))
            price = close
        data.append(made_candles(candles, symbol=symbol, interval_ms=HOUR_MS))
    config: dict[str, dict[str, Any]] = {
        "sizing": {"mode": "equity", "fraction": "0.3" if margin == "isolated" else "5"},
        "account": {"cash": "100000", "margin": margin, "leverage": "20"},
        "risk": {"max_daily_trades": 50, "cooldown": 2},
    }
    path = tmp_path / "a.db"
    with backtest(Dice, data, config=config, db=path):
        check(path, 20)


def test_with_funding_and_a_shadow_account_that_does_what_the_run_does(tmp_path: Path) -> None:
    """Public reports: freqtrade#3575, #3729 and #7178, trade-executor#430, profit-trailer#126."""
    config: dict[str, Any] = {
        "sizing": {"mode": "fixed", "quantity": "0.1"},
        "strategy": {"shadows": ["ungated"]},
    }
    first = 1_746_373_500_000  # a quarter of an hour after the first candle
    rates = [f"{first + 900_000 * place},0.000{1 + place % 3}" for place in range(17)]
    funding = tmp_path / "BTCUSDT.csv"
    funding.write_text("\n".join(("open_time,funding_rate", *rates)) + "\n")
    path = tmp_path / "run.db"
    with backtest(Dice, BTC, config=config, db=path, end="2025-05-04T20:00", funding=(funding,)):
        check(path, 5)
    of_own, of_shadow = (rows(path, OF_ACCOUNT, of) for of in (None, "ungated"))
    assert of_own == of_shadow
    assert {side for _, side, paid in of_own if paid} == {"BUY", "SELL"}
