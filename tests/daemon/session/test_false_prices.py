"""False prices trigger no stop and no liquidation, a true crash does; with a real daemon."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from exchange_client import FIRST_MS, candles, walk_rows
from records import check_record
from several_live import MINUTE, Live, trading

from tracepaper.replay.exchange.server import EmbeddedExchange, ExchangeSettings
from tracepaper.strategies.api.context import BarContext, Percent, Signal
from tracepaper.strategies.api.strategy import Strategy
from tracepaper.strategies.types.decisions import Action, Fill, FillModel
from tracepaper.strategies.types.market import Bar, Category, Mark, Quote, Trade

WARM = 100
QUICK = 60.0


class AlwaysUnderStop(Strategy):
    """Signals LONG or SHORT with a stop, at every bar."""

    def __init__(self, options: dict[str, Any]) -> None:
        self._signal = Signal(Action(options["action"]), "now", stop=Percent(options["stop"]))

    def decide(self, context: BarContext) -> Signal:
        del context
        return self._signal


def sections(action: str, *, stop: float = 10.0, margin: bool = True) -> dict[str, Any]:
    account = {"margin": "isolated", "leverage": "5"} if margin else {}
    strategy = {"name": f"{__name__}:AlwaysUnderStop", "options": {"action": action, "stop": stop}}
    return {
        "exchange": {"time_scale": QUICK, "backoff_max_s": 0.1},
        "market": {"category": "linear" if margin else "spot", "symbols": ["BTCUSDT"]},
        "strategy": strategy,
        "account": account,
        "sizing": {"mode": "fixed", "quantity": "0.1"},
    }


def served(
    rows: list[tuple[int, int, int, int, int]] | None = None,
    *,
    category: Category = Category.LINEAR,
    start: int = WARM,
) -> ExchangeSettings:
    data = candles(rows or walk_rows(200), symbol="BTCUSDT", category=category)
    return ExchangeSettings(candles=(data,), manual=True, start=start, speed=QUICK)


def fills(live: Live) -> list[Fill]:
    return [fill for step in live.steps for fill in step.fills]


def price_verdicts(live: Live) -> list[str]:
    return [step.price_verdict for step in live.steps if step.price_verdict is not None]


async def passes(exchange: EmbeddedExchange, seconds: int) -> None:
    for _ in range(seconds):
        await exchange.advance(1_000)
        await asyncio.sleep(0)


async def entered(live: Live) -> None:
    """Let bars close until a decision was filled."""
    await live.listening(3)
    await live.close_bar({"BTCUSDT"})
    await live.close_bar({"BTCUSDT"})
    for _ in range(30):
        if fills(live):
            break
        await passes(live.exchange, 1)
    await live.until(lambda: fills(live))
    assert len(fills(live)) == 1


FALSE = {
    "mark": ("SHORT", Mark),
    "mark_of_one": ("LONG", Mark),
    "ticker": ("SHORT", Mark),
    "low": ("LONG", Quote),
}


@pytest.mark.parametrize("form", FALSE)
async def test_one_false_frame_takes_no_position_away(tmp_path: Path, form: str) -> None:
    action, type_ = FALSE[form]
    path = tmp_path / "live.db"
    async with (
        EmbeddedExchange(served()) as exchange,
        trading(exchange, path, **sections(action)) as live,
    ):
        await entered(live)
        exchange.arm("wrong_frame", form=form)
        await passes(exchange, 20)
        await live.until(lambda: price_verdicts(live))
        for _ in range(2):
            await live.close_bar({"BTCUSDT"})
        assert exchange.faults.tally("wrong_frame").fired == 1
        assert len(fills(live)) == 1
        doubted = [step for step in live.steps if step.price_verdict is not None]
        assert {type(step.event) for step in doubted} == {type_}
        assert all(verdict.startswith("not believed: ") for verdict in price_verdicts(live))
        assert all(abs(step.account.equity - 10**14) < 10**12 for step in live.steps)
    check_record(path)


def crashing(minutes: int) -> list[tuple[int, int, int, int, int]]:
    """Return a random walk whose price falls by 30 % in the minute after *minutes*, and stays."""
    rows = walk_rows(200)
    price = rows[minutes][0]
    low = 7 * price // 10
    rows[minutes] = (price, price + 10, low, low, 50_000)
    rows[minutes + 1 :] = [(low, low + 200, low - 200, low, 5_000)] * (199 - minutes)
    return rows


@pytest.mark.parametrize("margin", [True, False])
async def test_a_crash_that_is_true_takes_it_within_its_minute(
    tmp_path: Path, margin: bool
) -> None:
    """Marks cause a liquidation; on spot, without marks, books and trades trigger a stop."""
    path = tmp_path / "live.db"
    category = Category.LINEAR if margin else Category.SPOT
    at = WARM + 4
    given = sections("LONG", stop=60.0 if margin else 10.0, margin=margin)
    async with (
        EmbeddedExchange(served(crashing(at), category=category)) as exchange,
        trading(exchange, path, **given) as live,
    ):
        await entered(live)
        while exchange.clock.now_ms() < FIRST_MS + at * MINUTE:
            await live.close_bar({"BTCUSDT"})
        bars = [step.event for step in live.steps if isinstance(step.event, Bar)]
        crash_ms = bars[-1].close_time_ms
        assert crash_ms == FIRST_MS + at * MINUTE
        await live.close_bar({"BTCUSDT"})
        _, sold, *_ = fills(live)
        assert sold.filled_ms < crash_ms + MINUTE
        assert sold.model is (FillModel.LIQUIDATION if margin else FillModel.QUOTE)
        texts = price_verdicts(live)
        assert any(
            text.startswith("believed on the ") or "is believed on" in text for text in texts
        )
        if not margin:
            assert any(isinstance(step.event, Trade) for step in live.steps)
    check_record(path)
