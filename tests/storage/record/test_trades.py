"""The trades of one book, by rows of its fills."""

from __future__ import annotations

import storage_cases as cases
from builders import instrument

from tracepaper.storage.record.columns import stored_columns
from tracepaper.storage.record.trades import TradeBooks
from tracepaper.strategies.types.market import Category

TRADES = stored_columns("trades")


def row(table: str, **values: object) -> tuple[object, ...]:
    return tuple(values.get(name) for name in stored_columns(table))


def books(config: str = cases.CONFIG, **changes: object) -> TradeBooks:
    scales = {"price_decimals": 0, "quantity_decimals": 0, "quantity_step": 1} | changes
    instruments = (instrument(**scales),)  # type: ignore[arg-type]
    return TradeBooks(cases.run(config=config, instruments=instruments))


def closed(
    of: TradeBooks,
    *moves: tuple[int, int, int] | tuple[int, int, int, int],
    shadow: str | None = None,
) -> list[dict[str, int]]:
    """Return the trades that *moves* close: signed quantity, notional, fee and fee in base."""
    trades = []
    for place, (quantity, notional, fee, *base) in enumerate(moves):
        fill = row(
            "fills", run_key=1, sequence=place, account=0, ordinal=0, instrument=0,
            side="BUY" if quantity > 0 else "SELL", quantity=abs(quantity), reference_price=0,
            notional=notional, fee=fee, fee_base=sum(base), shadow=shadow,
        )  # fmt: skip
        if (trade := of.fill(fill)) is not None:
            trades.append(
                {name: int(value or 0) for name, value in zip(TRADES, trade, strict=True)}
            )
    return trades


def earned(trade: dict[str, int], *, is_short: bool = False) -> int:
    moved = trade["exit_notional"] - trade["entry_notional"]
    return (-moved if is_short else moved) - trade["fees"]


def test_a_fill_that_turns_the_position_is_shared_by_quantity_and_what_is_open_is_none() -> None:
    first, second = closed(books(), (2, 200, 1), (-3, 330, 3), (1, 105, 2), (1, 100, 0))
    assert (first["quantity"], first["exit_notional"], earned(first)) == (2, 220, 220 - 200 - 3)
    assert (first["opened_sequence"], first["sequence"]) == (0, 1)
    assert (second["quantity"], second["entry_notional"]) == (1, 110)
    assert earned(second, is_short=True) == 110 - 105 - 3
    assert (second["opened_sequence"], second["sequence"], second["stake"]) == (1, 2, 110)


def test_what_a_fee_leaves_below_a_step_does_not_keep_a_trade_open() -> None:
    coarse = books(category=Category.SPOT, quantity_decimals=4, quantity_step=10)
    moves = (10_000, 100, 0, 5), (-9_990, 120, 1), (10_000, 110, 0, 5)
    (trade,) = closed(coarse, *moves)
    assert (trade["quantity"], earned(trade)) == (9_995, 120 - 1 - 100)


def test_what_fees_left_of_earlier_trades_makes_no_short_of_a_spot_sale() -> None:
    coarse = books(category=Category.SPOT, quantity_decimals=4, quantity_step=10)
    moves = (10_000, 100, 0, 6), (-9_990, 120, 1), (10_000, 110, 0, 6), (-10_000, 130, 1)
    assert [trade["quantity"] for trade in closed(coarse, *moves)] == [9_994, 9_994]


def test_the_stake_is_of_the_largest_quantity_and_funding_counts_while_it_is_held() -> None:
    held = books()
    assert closed(held, (4, 400, 0)) == []
    for paid in (1, 3):
        held.settle(row("holdings", instrument=0, quantity=4, funding_paid=paid))
    (trade,) = closed(held, (-2, 220, 0), (3, 320, 0), (-5, 600, 0))
    assert (trade["quantity"], trade["entry_quantity"], trade["funding"]) == (5, 7, 3)
    assert trade["stake"] == 514  # five of seven that were bought for 720
