"""What each category's connection subscribes to."""

from __future__ import annotations

from tracepaper.daemon.bybit.websocket import topics
from tracepaper.strategies.types import Category


def test_linear_needs_candles_quotes_and_marks() -> None:
    wanted = topics(Category.LINEAR, "BTCUSDT", interval="5", trades=False)
    assert wanted == ["kline.5.BTCUSDT", "orderbook.1.BTCUSDT", "tickers.BTCUSDT"]


def test_spot_has_no_mark_to_listen_to() -> None:
    wanted = topics(Category.SPOT, "BTCUSDT", interval="D", trades=False)
    assert wanted == ["kline.D.BTCUSDT", "orderbook.1.BTCUSDT"]


def test_trades_are_listened_to_on_request() -> None:
    assert "publicTrade.X" in topics(Category.SPOT, "X", interval="1", trades=True)
