"""Public reports about orders, fills and money, as backtests of a few bars."""

from __future__ import annotations

import math
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from public_cases import (
    DAY,
    HOUR,
    MINUTE,
    START,
    always,
    at_bar,
    columns,
    fills,
    play,
    records,
    scripted,
)

import tracepaper
from tracepaper import Action, Orders, Signal, buy, sell
from tracepaper.replay.samples import samples

ONE = {"sizing": {"mode": "fixed", "quantity": "1"}}
ENTER = Signal(Action.LONG, "in")


@pytest.mark.parametrize(
    ("side", "exits", "bar", "price"),
    [
        (Action.LONG, {"target": 105.0}, (110, 111, 109, 110), 105.0),
        (Action.LONG, {"stop": 97.5}, (85, 86, 84, 85), 85.0),
        (Action.SHORT, {"trailing": 5.0}, (200, 201, 199, 200), 200.0),
    ],
)
def test_an_exit_behind_a_gap_fills_at_what_the_market_gave(
    side: Action, exits: dict[str, Any], bar: tuple[float, float, float, float], price: float
) -> None:
    """Case 40: vectorbt#652, TorchTrade#280, nautilus_trader#2397."""
    data = columns([100, 100, 100, bar, bar[3]])
    run = play(at_bar({1: Signal(side, "in", **exits)}), data, ONE)
    assert fills(run)[-1][2] == price


def test_a_stop_after_a_target_is_for_what_is_left() -> None:
    """Case 42: jesse#510. Two are held, and one is sold at the target."""
    protection = (
        sell(1, limit=105.0, reduce_only=True, tag="tp"),
        sell(2, stop=95.0, reduce_only=True, tag="sl"),
    )
    plan = {1: Orders((buy(2),), "in"), 2: Orders(protection, "protect")}
    run = play(at_bar(plan), columns([100, 100, 100, (100, 106, 100, 104), (104, 104, 94, 94), 94]))
    assert fills(run) == [("BUY", 2.0, 100.0), ("SELL", 1.0, 105.0), ("SELL", 1.0, 95.0)]


def test_the_margin_of_a_limit_is_that_at_its_own_price() -> None:
    """Case 43: Lean#7726. 1,000 of cash buy 15 at 50 while the market is at 100."""
    run = play(
        at_bar({1: Orders((buy(15, limit=50.0),), "far")}),
        columns([100, 100, 100, (100, 100, 49, 60), 60]),
        {"account": {"cash": "1000", "margin": "isolated", "leverage": "1"}},
    )
    assert (fills(run), run.summary["end"]) == ([("BUY", 15.0, 50.0)], 1150.0)


def test_a_flip_realizes_what_was_held_and_opens_the_rest() -> None:
    """Case 45: nautilus_trader#1083, #933 and #963."""
    orders = [buy(100), sell(150), sell(50)]
    plan = {place: Orders((order,), "x") for place, order in enumerate(orders, 1)}
    run = play(
        at_bar(plan),
        columns([100, 100, 100, 110, 120, 120, 130]),
        {"account": {"cash": "1000000"}},
    )
    last = records(run.positions)[-1]
    assert (last["quantity"], last["average_price"]) == (-100.0, 115.0)
    assert (last["realized_pnl"], last["unrealized_pnl"]) == (1000.0, -1500.0)
    assert [trade["profit"] for trade in records(run.trades)] == [1000.0]


def test_a_reduce_only_order_closes_what_is_left_and_opens_nothing() -> None:
    """Case 101: BYTEX#26. Half of the position is sold before the limit is reached."""
    plan = {
        1: Orders((buy(0.134),), "in"),
        2: Orders((sell(0.134, limit=105.0, reduce_only=True),), "target"),
        3: Orders((sell(0.067, reduce_only=True),), "half"),
        7: Orders((buy(1),), "again"),
        8: Orders((sell(3, reduce_only=True),), "too much"),
    }
    run = play(at_bar(plan), columns([*[100] * 5, (100, 110, 100, 108), *[108] * 6]))
    traded = [(side, round(quantity, 6)) for side, quantity, _ in fills(run)]
    assert traded[:3] == [("BUY", 0.134), ("SELL", 0.067), ("SELL", 0.067)]
    held = [row["quantity"] for row in records(run.equity) if not math.isnan(row["quantity"])]
    assert min(held) >= 0
    assert held[-1] == 0


@pytest.mark.parametrize(
    ("side", "bars", "price"),
    [
        (Action.LONG, [100, 100, (100, 108, 99, 105), (105, 106, 97, 99), 99], 98.0),
        (Action.SHORT, [100, 100, (100, 101, 92, 95), (95, 103, 94, 101), 101], 102.0),
    ],
)
def test_a_trailing_stop_follows_the_best_price_of_a_bar(
    side: Action, bars: list[Any], price: float
) -> None:
    """Case 102: backtrader2#98. The high of 108 moves a stop of 10 to 98, not the close to 95."""
    run = play(at_bar({1: Signal(side, "x", trailing=10.0)}), columns(bars), ONE)
    assert [at for _, _, at in fills(run)] == [100.0, price]


@pytest.mark.parametrize(
    ("order", "side", "price", "minute"),
    [
        (buy(1, stop=16.0), "BUY", 16.0, 1),
        (buy(1, stop=16.0, limit=12.0), "BUY", 12.0, 2),
        (sell(1, stop=12.0), "SELL", 12.0, 2),
    ],
)
def test_a_stop_is_triggered_in_the_bar_after_it_was_sent(
    order: Any, side: str, price: float, minute: int
) -> None:
    """Case 104: backtesting.py#1157. A high of exactly 16 triggers a buy stop at 16."""
    bars: list[Any] = [(14, 15, 13, 14), (15, 16, 13, 14), (14, 15, 11, 13), (13, 13, 11, 11)]
    run = play(at_bar({0: Orders((order,), "x")}), columns(bars))
    (fill,) = records(run.fills)
    assert (fill["side"], fill["price"]) == (side, price)
    assert (fill["filled_ms"] - START) // MINUTE == minute


@pytest.mark.parametrize(("enter", "leave"), [(buy, sell), (sell, buy)])
def test_an_average_price_is_weighted_and_survives_a_partial_exit(enter: Any, leave: Any) -> None:
    """Case 106: TorchTrade#171, jesse#52, profit-trailer#2148."""
    plan = {
        0: Orders((enter(1),), "a"),
        1: Orders((enter(0.5),), "b"),
        3: Orders((leave(0.6),), "c"),
    }
    run = play(
        at_bar(plan),
        columns([50_000, 50_000, 60_000, 60_000, 55_000, 55_000, 55_000]),
        {"account": {"cash": "1000000"}},
    )
    averages = [row["average_price"] for row in records(run.equity) if abs(row["quantity"]) > 0]
    assert [round(average, 2) for average in averages[-3:]] == [53_333.33] * 3


@pytest.mark.parametrize(
    ("bar", "price"), [((90, 99, 90, 98), 98.8), ((90, 90, 70, 70), 76.0)], ids=["target", "stop"]
)
def test_exits_follow_the_average_entry(
    bar: tuple[float, float, float, float], price: float
) -> None:
    """Case 107: BYTEX#94. One is bought at 100 and one at 90; the target is 4 %, the stop 20 %."""
    plan = {0: Signal(Action.LONG, "in", strength=0.5), 2: Signal(Action.LONG, "more")}
    run = play(
        at_bar(plan),
        columns([100, 100, 90, 90, bar]),
        {
            "sizing": {"mode": "fixed", "quantity": "2"},
            "exits": {"take_profit": "4%", "stop_loss": "20%"},
        },
    )
    assert fills(run) == [("BUY", 1.0, 100.0), ("BUY", 1.0, 90.0), ("SELL", 2.0, price)]


@pytest.mark.parametrize(
    ("margin", "other", "sides", "end"),
    [
        ("isolated", 100, ["BUY", "SELL"], 950.0),
        ("isolated", 130, ["BUY", "SELL"], 1250.0),
        ("cross", 130, ["BUY"], 1200.0),
    ],
)
def test_a_gap_through_the_liquidation_price_costs_the_posted_margin(
    margin: str, other: float, sides: list[str], end: float
) -> None:
    """Case 108: TorchTrade#314, FLOX#311. A gain elsewhere shelters with cross margin alone."""
    data = {
        "LUNAUSDT": columns([100, 100, 100, 90, 90, 90]),
        "BTCUSDT": columns([100, 100, 100, *[other] * 3]),
    }
    config = {
        "sizing": {"mode": "fixed", "quantity": "10"},
        "account": {"cash": "1000", "margin": margin, "leverage": "20"},
    }
    run = play(at_bar({1: ENTER}), data, config)
    traded = [row["side"] for row in records(run.fills) if "LUNA" in row["instrument"]]
    assert traded == sides
    assert run.summary["end"] == pytest.approx(end)


def test_the_order_of_frames_decides_nothing() -> None:
    """Case 110: freqtrade#8709. Two symbols signal at one close, and the cash buys one."""
    prices = {"BTCUSDT": [100, 100, 100, 130, 130], "ETHUSDT": [100, 100, 100, 80, 80]}
    config = {
        "market": {"category": "spot"},
        "sizing": {"mode": "fixed", "quantity": "10"},
        "account": {"cash": "1000"},
    }
    ends, bought = [], []
    for names in (["BTCUSDT", "ETHUSDT"], ["ETHUSDT", "BTCUSDT"]):
        run = play(at_bar({1: ENTER}), {name: columns(prices[name]) for name in names}, config)
        ends.append(run.summary["end"])
        bought.append([(row["instrument"], row["quantity"]) for row in records(run.fills)])
    assert ends[0] == ends[1]
    assert bought[0] == bought[1]


def test_an_order_of_the_last_bar_has_no_bar_to_fill_it() -> None:
    """Case 125: backtesting.py-oz#7, freqtrade's force_exit."""
    run = play(at_bar({4: ENTER}), columns([100, 101, 102, 103, 104]), ONE)
    assert fills(run) == []
    assert (run.summary["end"], run.summary["trades"]) == (100_000.0, 0)


def test_all_of_the_cash_buys_what_it_leaves_after_the_fee() -> None:
    """Case 17: rqalpha#366 and #381, Lean#7157. Spot, with the fees of the defaults."""
    run = tracepaper.backtest(
        scripted(always(Action.LONG)),
        {"BTCUSDT": columns([100.0] * 50)},
        config={
            "market": {"category": "spot"},
            "sizing": {"mode": "equity", "fraction": "1"},
            "account": {"cash": "1000"},
        },
        frames="numpy",
        progress=False,
    )
    assert 9.9 <= fills(run)[0][1] <= 10.0


COIN = columns([60_000.0] * 6)


@pytest.mark.parametrize(
    ("category", "answer", "fraction", "least", "most"),
    [
        ("spot", ENTER, "1", 0.0160, 0.0167),
        ("linear", Orders((buy(0.01),), "in"), "1", 0.01, 0.01),
        ("linear", ENTER, "0.01", 0, 0),
    ],
)
def test_a_small_account_buys_a_part_of_a_large_coin_or_says_why_not(
    category: str, answer: Signal | Orders, fraction: str, least: float, most: float
) -> None:
    """Public reports: backtesting.py#509, #151, #1187 and #1329, freqtrade#5468, #6441 and #5428.

    The account has 1,000.
    """
    config: dict[str, dict[str, object]] = {
        "market": {"category": category},
        "sizing": {"mode": "equity", "fraction": fraction},
        "account": {"cash": "1000"},
        "execution": {"taker_fee": "0.001"},
    }
    run = play(at_bar({1: answer}), COIN, config)
    assert least <= sum(quantity for _, quantity, _ in fills(run)) <= most
    assert ("size below the step 0.001" in str(run)) is (most == 0)


def test_a_rebate_is_income() -> None:
    """Public reports: backtesting.py#248, #300, #301 and #958, nautilus_trader#29, ccxt#4074."""
    plan = {
        1: Orders((buy(1, limit=99.0),), "bid"),
        3: Orders((sell(1, limit=103.0, reduce_only=True),), "ask"),
    }
    bars: list[Any] = [100, 100, (100, 100, 98, 100), 100, (100, 104, 100, 100), 100]
    run = play(at_bar(plan), columns(bars), {"execution": {"maker_fee": "-0.00025"}})
    assert [round(fill["fee"], 6) for fill in records(run.fills)] == [-0.02475, -0.02575]
    (trade,) = records(run.trades)
    assert (trade["profit"], trade["net"]) == pytest.approx((4.0505, 4.0505))
    assert trade["fees"] == pytest.approx(-0.0505)
    assert run.summary["end"] == pytest.approx(100_004.0505)


TOUCHES: dict[str, tuple[list[Any], list[tuple[float, str]]]] = {
    "touched": ([(102, 103, 100, 101), 102], []),
    "passed": ([(102, 103, 99.9, 101), 102], [(100.0, "MAKER")]),
    "rests below a gap": ([102, (95, 96, 94, 95), 95], [(100.0, "MAKER")]),
    "arrives below a gap": ([(95, 96, 94, 95), 95], [(95.0, "TAKER")]),
}


@pytest.mark.parametrize("is_sale", [False, True], ids=["buy", "sell"])
@pytest.mark.parametrize("name", TOUCHES)
def test_a_limit_fills_behind_its_touch_and_never_better_where_it_rested(
    name: str, *, is_sale: bool
) -> None:
    """Public reports: backtesting.py#83 and #1195, zipline#1369, Lean#5337, #7012 and #5164.

    And bbgo#2555, backtrader#415, backtrader2#22, pybroker#188. A sale is its mirror at 100.
    """
    after, expected = TOUCHES[name]
    bars: list[Any] = [bar if isinstance(bar, tuple) else (bar,) * 4 for bar in [102, 102, *after]]
    if is_sale:
        bars = [(200 - o, 200 - low, 200 - high, 200 - c) for o, high, low, c in bars]
        expected = [(200 - price, liquidity) for price, liquidity in expected]
    order = (sell if is_sale else buy)(1, limit=100.0)
    run = play(at_bar({1: Orders((order,), "x")}), columns(bars))
    assert [(fill["price"], fill["liquidity"]) for fill in records(run.fills)] == expected


def test_spot_is_never_sold_short() -> None:
    """Public reports: jesse#171, backtesting.py#352, #864 and #1049, OctoBot-Script#37.

    And fastquant#262, tinvest#156, etoro-api#20. A sale of more than is held sells what is.
    """
    prices = columns([100.0, 100, 100, 95, 90, 90])
    spot = {"market": {"category": "spot"}, "account": {"cash": "1000"}, **ONE}
    short = at_bar({1: Signal(Action.SHORT, "down")})
    run = play(short, prices, spot)
    assert fills(run) == []
    assert "spot: " in records(run.decisions)[1]["reason"]
    plan = {1: Orders((buy(1),), "in"), 3: Orders((sell(5),), "all and more")}
    assert fills(play(at_bar(plan), prices, spot)) == [("BUY", 1.0, 100.0), ("SELL", 1.0, 90.0)]
    assert fills(play(short, prices, ONE)) == [("SELL", 1.0, 100.0)]


def test_an_entry_with_all_of_the_cash_does_not_wait_for_a_discount(tmp_path: Path) -> None:
    """Case 63: rqalpha#381, Lean#7157. Each entry pays its fee with the bar after its signal."""
    run = tracepaper.backtest(
        "sma_cross",
        {"BTCUSDT": samples("BTCUSDT", "15m")},
        config={"market": {"category": "spot"}, "sizing": {"mode": "equity", "fraction": "1"}},
        params={"fast": 20, "slow": 100},
        db=tmp_path / "run.db",
        frames="numpy",
        progress=False,
    )
    with sqlite3.connect(f"{run.database.as_uri()}?mode=ro", uri=True) as db:
        entered = {
            sequence
            for sequence, side, fee in db.execute(
                "SELECT decision_sequence, side, fee_base FROM v_fills"
            )
            if side == "BUY" and float(fee) > 0
        }
        actions = db.execute(
            "SELECT sequence, action FROM v_decisions ORDER BY sequence"
        ).fetchall()
    before = ""
    signalled = set()
    for sequence, action in actions:
        if action == "LONG" and before != "LONG":
            signalled.add(sequence)
        before = action
    assert len(signalled) > 10
    assert signalled <= entered


def test_prices_of_eleven_decimals_are_exact() -> None:
    """Case 50: freqtrade#5686, ninjabot#72."""
    run = play(
        at_bar({1: ENTER, 3: Signal(Action.FLAT, "out")}),
        {"SHIBUSDT": columns([7.98374e-06] * 3 + [7.99372e-06] * 3)},
        {"sizing": {"mode": "notional", "notional": "1000"}},
    )
    (_, quantity, bought), (_, _, sold) = fills(run)
    assert (bought, sold) == (7.98374e-06, 7.99372e-06)
    assert run.summary["end"] == pytest.approx(100_000 + quantity * (sold - bought), abs=1e-6)


def test_a_symbol_that_ends_keeps_its_last_value() -> None:
    """Case 53: freqtrade#11414. A delisting made figures NaN."""
    run = play(
        at_bar({2: ENTER}),
        {
            "BTCUSDT": columns([100.0 + place for place in range(30)]),
            "LUNAUSDT": columns([50.0 + place for place in range(12)]),
        },
        {**ONE, "account": {"cash": "1000"}},
    )
    assert run.summary["end"] == 1034.0
    assert all(math.isfinite(row["equity"]) for row in records(run.equity))


def test_an_account_may_count_in_small_money() -> None:
    """Case 32: ccxt#3108 and #29557. A Bitcoin costs 1.7e9 rupiah."""
    run = play(
        always(Action.LONG),
        {"BTCIDR": columns([1.7e9, 1.7e9, 1.7e9, 1.8e9, 1.8e9])},
        {**ONE, "account": {"cash": "2000000000"}},
    )
    assert run.summary["end"] == pytest.approx(2.1e9, abs=1)


@pytest.mark.parametrize(
    ("step", "enter", "leave", "hours"),
    [(DAY, 48, 96, [56, 64, 72, 80, 88, 96]), (6 * HOUR, 12, 36, [16, 24, 32])],
    ids=["days", "six hours"],
)
def test_funding_within_a_bar_follows_the_times_of_the_fills(
    step: int, enter: int, leave: int, hours: list[int], tmp_path: Path
) -> None:
    """Case 61: freqtrade#7291 and #5779. Settlements at 0, 8 and 16 o'clock, and longer bars."""
    bars = 12 if step < DAY else 8
    due = list(range(0, bars * step // HOUR + 1, 8))
    rates = [f"{START + hour * HOUR},{(place + 1) * 1e-6:.6f}" for place, hour in enumerate(due)]
    path = tmp_path / "BTCUSDT-fundingRate.csv"
    path.write_text("\n".join(["calc_time,last_funding_rate", *rates]) + "\n")
    plan = {
        enter * HOUR // step - 1: ENTER,
        leave * HOUR // step - 1: Signal(Action.FLAT, "out"),
    }
    run = play(
        at_bar(plan, step),
        columns([100.0] * bars, step),
        {"sizing": {"mode": "fixed", "quantity": "100"}},
        funding=[str(path)],
    )
    paid = [row["amount"] for row in records(run.ledger) if row["kind"] == "funding"]
    assert [due[round(-amount / 1e4 / 1e-6) - 1] for amount in paid] == hours
