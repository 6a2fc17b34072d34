"""The same candles and orders through other backtesters, where their rules agree with ours.

What is compared: market orders of fixed size, decided at a bar's close and filled at the next
open, a fee in the quote currency, no spread, no slippage, no funding. There the fills must be equal
to the digit and the accounts as near as the peer computes. Elsewhere the rules differ:

- **backtesting.py** counts in floats, takes whole units, and closes and reopens on a reversal, as
  two trades. It sends nothing on the first bar. Its limit and stop orders may fill in the bar of
  their own order's fill; ours follow the bar's worse path. It has no funding, no quotes, and no
  maintenance margin.
- **NautilusTrader** rounds money to the currency's eight decimals as ours does, each fee half to
  even. After a bar it fills a market order at that bar's close, which ours never does, so it is
  given the opens as quotes. Its margin is that of the whole account, and nothing is liquidated.
"""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pytest
from other_backtesters import Ours, Peer, signed

pytestmark = [pytest.mark.peers, pytest.mark.timeout(1_800)]


def test_backtesting_py_comes_to_the_same_equity_at_every_close(peer: Peer, tmp_path: Path) -> None:
    ours = Ours(tmp_path, "1")
    assert len(ours.fills) > 200
    theirs = peer("backtesting", ours.task())
    decided = [row["equity"] for row in ours.equity if row["instrument"] is not None]
    closes = decided[-len(ours.bars) :]
    assert theirs["equity"] == pytest.approx(closes, rel=1e-12)
    entered = {(place, price) for place, _, _, price, _ in theirs["trades"]}
    left = {(place, price) for _, place, _, _, price in theirs["trades"]}
    filled = [(ours.place(fill), float(fill["price_text"])) for fill in ours.fills]
    assert entered <= set(filled)
    assert left <= set(filled)
    assert len(entered) >= len(filled) - 1  # the last one is still open


def test_nautilus_fills_the_same_orders_at_the_same_prices_and_fees(
    peer: Peer, tmp_path: Path
) -> None:
    ours = Ours(tmp_path, "0.123")
    assert len(ours.fills) > 200
    theirs = peer("nautilus", ours.task())
    fills = [(ours.place(fill), signed(fill), Decimal(fill["price_text"])) for fill in ours.fills]
    assert [(at, Decimal(q), Decimal(price)) for at, q, price, _ in theirs["fills"]] == fills
    eighth = Decimal("1e-8")
    for (*_, fee), fill in zip(theirs["fills"], ours.fills, strict=True):
        assert abs(Decimal(fee) - Decimal(fill["fee_text"])) <= eighth
    left = Decimal(ours.ledger[-1]["balance_text"])
    assert abs(Decimal(theirs["cash"]) - left) <= eighth * len(ours.fills) * 2
