"""Fills at an order book: a hand-made book of cases, their fills written by hand from M61 on."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from queue_cases import KEY, Say, book, gap, played, send, shows, trade

from tracepaper.daemon.broker.book_fills import (
    UNKNOWN,
    BookLevel,
    QueueModel,
    QueuePlace,
    QueueRules,
    Queues,
    QueueState,
    after_change,
    after_trade,
    walk_levels,
)
from tracepaper.strategies.api.context import Cancel, buy, sell
from tracepaper.strategies.types.market import Side

BIDS, ASKS = {99: 10, 98: 20, 97: 30}, {101: 5, 102: 7, 103: 9}
B = book(0, BIDS, ASKS)
BID = send(10, buy(4, limit=99.0))  # behind ten
POWER: dict[str, Any] = {"model": QueueModel.POWER_PROB}

# Of each: the script, the settings, the fills (at, side, price, quantity, Maker or Taker), and of
# each order how it stands in the end and what of it was filled.
CASES: dict[str, tuple[list[Say], dict[str, Any], list[Any], list[Any]]] = {
    # ------------------------------------------------------------ takers
    "a market order at the touch": (
        [B, send(10, buy(5)), shows(20)], {},
        [(10, "buy", 101, 5, "T")], [("FILLED", 5)],
    ),
    "a market order walks the levels": (
        [B, send(10, buy(14)), shows(20)], {},
        [(10, "buy", 101, 5, "T"), (10, "buy", 102, 7, "T"), (10, "buy", 103, 2, "T")],
        [("FILLED", 14)],
    ),
    "a sale walks the bids": (
        [B, send(10, sell(15)), shows(20)], {},
        [(10, "sell", 99, 10, "T"), (10, "sell", 98, 5, "T")], [("FILLED", 15)],
    ),
    "what the whole side does not cover waits for a frame": (
        [B, send(10, buy(25)), shows(20, asks={104: 3}), shows(30, asks={104: 9})], {},
        [(10, "buy", 101, 5, "T"), (10, "buy", 102, 7, "T"), (10, "buy", 103, 9, "T"),
         (20, "buy", 104, 3, "T"), (30, "buy", 104, 1, "T")], [("FILLED", 25)],
    ),
    "a market order that no frame fills in time": (
        [B, send(10, buy(25)), shows(10_020)], {"fill_within_ms": 10_000},
        [(10, "buy", 101, 5, "T"), (10, "buy", 102, 7, "T"), (10, "buy", 103, 9, "T")],
        [("CANCELED", 21)],
    ),
    "a limit takes up to its price and no further": (
        [B, send(10, buy(20, limit=102.0)), shows(20)], {},
        [(10, "buy", 101, 5, "T"), (10, "buy", 102, 7, "T")], [("PARTIALLY_FILLED", 12)],
    ),
    "what is left of it rests with nobody ahead": (
        [B, send(10, buy(14, limit=102.0)), shows(20, asks={101: 0, 102: 0}),
         trade(30, "Sell", 102, 1), trade(40, "Sell", 102, 9)], {},
        [(10, "buy", 101, 5, "T"), (10, "buy", 102, 7, "T"), (30, "buy", 102, 1, "M"),
         (40, "buy", 102, 1, "M")], [("FILLED", 14)],
    ),
    "depth that was taken stays taken": (
        [B, send(10, buy(5)), shows(20, bids={97: 1}), send(30, buy(5)), shows(40)], {},
        [(10, "buy", 101, 5, "T"), (30, "buy", 102, 5, "T")], [("FILLED", 5), ("FILLED", 5)],
    ),
    "a part of it too": (
        [B, send(10, buy(2)), send(30, buy(6)), shows(40)], {},
        [(10, "buy", 101, 2, "T"), (30, "buy", 101, 3, "T"), (30, "buy", 102, 3, "T")],
        [("FILLED", 2), ("FILLED", 6)],
    ),
    "until a frame sets that level": (
        [B, send(10, buy(5)), shows(20, asks={101: 4}), send(30, buy(5)), shows(40)], {},
        [(10, "buy", 101, 5, "T"), (30, "buy", 101, 4, "T"), (30, "buy", 102, 1, "T")],
        [("FILLED", 5), ("FILLED", 5)],
    ),
    "or a whole book comes": (
        [B, send(10, buy(5)), book(20, BIDS, ASKS), send(30, buy(5)), shows(40)], {},
        [(10, "buy", 101, 5, "T"), (30, "buy", 101, 5, "T")], [("FILLED", 5), ("FILLED", 5)],
    ),
    "an order meets the book that stood when it arrived": (
        [B, send(10, buy(5)), shows(50, asks={101: 1}), shows(70, asks={101: 9})],
        {"latency_ms": 50}, [(60, "buy", 101, 1, "T"), (60, "buy", 102, 4, "T")], [("FILLED", 5)],
    ),
    "frames of that very time count": (
        [B, send(10, buy(5)), shows(60, asks={101: 2}), shows(70)],
        {"latency_ms": 50}, [(60, "buy", 101, 2, "T"), (60, "buy", 102, 3, "T")], [("FILLED", 5)],
    ),
    "post-only that would take": (
        [B, send(10, buy(5, limit=101.0, post_only=True)), shows(20)], {}, [], [("REJECTED", 0)],
    ),
    "post-only between the sides rests until the far side comes to it": (
        [B, send(10, buy(4, limit=100.0, post_only=True)), shows(20), shows(30, asks={100: 3}),
         shows(40, asks={100: 0}), trade(50, "Sell", 99, 9)], {},
        [(30, "buy", 100, 3, "M"), (50, "buy", 100, 1, "M")], [("FILLED", 4)],
    ),
    "post-only that the far side reaches before it arrives": (
        [B, send(10, buy(4, limit=100.0, post_only=True)), shows(20, asks={100: 3}), shows(70)],
        {"latency_ms": 50}, [], [("REJECTED", 0)],
    ),
    "reduce-only sells what is held": (
        [B, send(10, buy(3)), send(20, sell(9, reduce_only=True)), shows(30)], {},
        [(10, "buy", 101, 3, "T"), (20, "sell", 99, 3, "T")], [("FILLED", 3), ("FILLED", 3)],
    ),
    "a stop takes when the far side touches it": (
        [B, send(10, buy(6, stop=102.0)), shows(20, asks={101: 0}), shows(30)], {},
        [(20, "buy", 102, 6, "T")], [("FILLED", 6)],
    ),
    "a stop-limit becomes a limit there": (
        [B, send(10, buy(9, stop=102.0, limit=102.0)), shows(20, asks={101: 0}), shows(30)], {},
        [(20, "buy", 102, 7, "T")], [("PARTIALLY_FILLED", 7)],
    ),
    # ------------------------------------------------------------ queues
    "trades at the price first take what is ahead": (
        [B, BID, trade(20, "Sell", 99, 10), trade(30, "Sell", 99, 3), trade(40, "Sell", 99, 9)], {},
        [(30, "buy", 99, 3, "M"), (40, "buy", 99, 1, "M")], [("FILLED", 4)],
    ),
    "a trade reaches past what is ahead": (
        [B, BID, trade(20, "Sell", 99, 12)], {},
        [(20, "buy", 99, 2, "M")], [("PARTIALLY_FILLED", 2)],
    ),
    "a trade is not counted again when the level shrinks": (
        [B, BID, trade(20, "Sell", 99, 6), shows(21, bids={99: 4}), trade(30, "Sell", 99, 4),
         shows(31, bids={99: 0}), trade(40, "Sell", 99, 1)], {},
        [(40, "buy", 99, 1, "M")], [("PARTIALLY_FILLED", 1)],
    ),
    "cancellations behind do not move it": (
        [B, BID, shows(20, bids={99: 30}), shows(30, bids={99: 12}), trade(40, "Sell", 99, 9),
         trade(50, "Sell", 99, 2)], {},
        [(50, "buy", 99, 1, "M")], [("PARTIALLY_FILLED", 1)],
    ),
    "no more is ahead than the level shows": (
        [B, BID, shows(20, bids={99: 3}), trade(30, "Sell", 99, 5)], {},
        [(30, "buy", 99, 2, "M")], [("PARTIALLY_FILLED", 2)],
    ),
    "a buyer's trade at the price moves no bid": (
        [B, BID, trade(20, "Buy", 99, 50)], {}, [], [("ACCEPTED", 0)],
    ),
    "a trade beyond the price fills for its size": (
        [B, BID, trade(20, "Sell", 98, 3)], {}, [(20, "buy", 99, 3, "M")],
        [("PARTIALLY_FILLED", 3)],
    ),
    "two orders share a trade, the better price first": (
        [B, send(10, buy(4, limit=98.0), buy(4, limit=99.0)), trade(20, "Sell", 97, 6)], {},
        [(20, "buy", 99, 4, "M"), (20, "buy", 98, 2, "M")],
        [("PARTIALLY_FILLED", 2), ("FILLED", 4)],
    ),
    "two orders at a price share what is left of a trade, the older first": (
        [B, send(10, buy(2, limit=99.0), buy(4, limit=99.0)), trade(20, "Sell", 99, 13)], {},
        [(20, "buy", 99, 2, "M"), (20, "buy", 99, 1, "M")],
        [("FILLED", 2), ("PARTIALLY_FILLED", 1)],
    ),
    "the far side at the price fills for what it shows": (
        [B, BID, shows(20, bids={99: 0}, asks={99: 3}), shows(30), shows(40, asks={99: 2})], {},
        [(20, "buy", 99, 3, "M"), (40, "buy", 99, 1, "M")], [("FILLED", 4)],
    ),
    "block and RPI trades move no queue": (
        [B, BID, trade(20, "Sell", 99, 50, BT=True), trade(30, "Sell", 98, 50, RPI=True),
         trade(40, "Sell", 99, 11)], {},
        [(40, "buy", 99, 1, "M")], [("PARTIALLY_FILLED", 1)],
    ),
    "a price out of view joins behind what it shows then": (
        [B, send(10, buy(4, limit=96.0)), trade(20, "Sell", 96, 9), shows(30, bids={96: 8}),
         trade(40, "Sell", 96, 9)], {},
        [(40, "buy", 96, 1, "M")], [("PARTIALLY_FILLED", 1)],
    ),
    "a level that leaves the view leaves its place": (
        [B, send(10, buy(4, limit=97.0)), shows(20, bids={97: 0}), shows(30, bids={97: 25}),
         trade(40, "Sell", 97, 26)], {},
        [(40, "buy", 97, 1, "M")], [("PARTIALLY_FILLED", 1)],
    ),
    "an empty price between the sides has no queue": (
        [B, send(10, buy(4, limit=100.0)), trade(20, "Sell", 100, 3)], {},
        [(20, "buy", 100, 3, "M")], [("PARTIALLY_FILLED", 3)],
    ),
    "a replaced order is at the back": (
        [B, send(10, buy(4, limit=99.0, tag="a")), trade(20, "Sell", 99, 9),
         shows(21, bids={99: 6}), send(30, buy(5, limit=99.0, tag="a")),
         trade(40, "Sell", 99, 7)], {},
        [(40, "buy", 99, 1, "M")], [("CANCELED", 0), ("PARTIALLY_FILLED", 1)],
    ),
    "a cancellation takes the latency": (
        [B, send(10, buy(4, limit=99.0, tag="a")), shows(50), send(60, Cancel("a")),
         trade(90, "Sell", 99, 11), shows(120), trade(130, "Sell", 99, 9)], {"latency_ms": 40},
        [(90, "buy", 99, 1, "M")], [("CANCELED", 1)],
    ),
    "what happened is known the response later": (
        [B, BID, trade(45, "Sell", 99, 11), send(50, Cancel("")), trade(70, "Sell", 99, 9)],
        {"latency_ms": 5, "response_ms": 20},
        [(45, "buy", 99, 1, "M")], [("CANCELED", 1)],
    ),
    # ------------------------------------------------------------ PowerProbQueueModel
    "cancellations are shared by what is ahead and behind": (
        # 10 ahead, 10 behind; 8 canceled: half of them ahead, so 6 are left
        [B, BID, shows(20, bids={99: 20}), shows(30, bids={99: 12}), trade(40, "Sell", 99, 7)],
        POWER, [(40, "buy", 99, 1, "M")], [("PARTIALLY_FILLED", 1)],
    ),
    "the exponent weighs them": (
        # 10 ahead, 20 behind; 10 canceled: 1000 of 9000 parts, rounded down to 1, so 9 are left
        [B, BID, shows(20, bids={99: 30}), shows(30, bids={99: 20}), trade(40, "Sell", 99, 10)],
        {**POWER, "exponent": 3}, [(40, "buy", 99, 1, "M")], [("PARTIALLY_FILLED", 1)],
    ),
    "a trade is no cancellation": (
        # 10 ahead, 10 behind; 6 traded, then the level shows 14: nothing was canceled, 4 are left
        [B, BID, shows(20, bids={99: 20}), trade(30, "Sell", 99, 6), shows(31, bids={99: 14}),
         trade(40, "Sell", 99, 5)],
        POWER, [(40, "buy", 99, 1, "M")], [("PARTIALLY_FILLED", 1)],
    ),
    # ------------------------------------------------------------ gaps
    "nothing is filled in a gap, and after it the order is at the back": (
        [B, BID, trade(20, "Sell", 99, 9), gap(30), trade(35, "Sell", 99, 90),
         book(50, {99: 8, 98: 1}, ASKS), trade(60, "Sell", 99, 8), trade(70, "Sell", 99, 1)], {},
        [(70, "buy", 99, 1, "M")], [("PARTIALLY_FILLED", 1)],
    ),
    "an order that was on its way arrives after the gap": (
        [B, gap(5), send(10, buy(3)), book(50, BIDS, {104: 9}), shows(60)], {},
        [(50, "buy", 104, 3, "T")], [("FILLED", 3)],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_case_of_the_hand_made_book(tmp_path: Path, case: str) -> None:
    script, keys, fills, ends = CASES[case]
    outcome = played(tmp_path / "book.events", script, **keys)
    assert outcome.rows == fills
    assert outcome.ends == ends


# ---------------------------------------------------------------- properties


def scripts(draw: Any, length: int = 25) -> list[Say]:
    """Draw a script of frames, trades, gaps and orders that an exchange could have sent."""
    bids, asks = dict(BIDS), dict(ASKS)
    script, at = [book(0, dict(bids), dict(asks))], 0
    for _ in range(draw(st.integers(3, length))):
        at += 10
        what = draw(
            st.sampled_from(["set", "set", "set", "trade", "trade", "send", "cancel", "gap"])
        )
        price = draw(st.integers(96, 105))
        size = draw(st.integers(0, 12))
        is_bid = draw(st.booleans())
        if what == "set":
            same, far = (bids, asks) if is_bid else (asks, bids)
            crossed = [
                level for level in far if size and (level <= price if is_bid else level >= price)
            ]
            kept = {name: of for name, of in same.items() if name != price} | (
                {price: size} if size else {}
            )
            if len(crossed) == len(far) or not kept:
                continue
            for level in crossed:
                del far[level]
            same.clear()
            same.update(kept)
            gone = dict.fromkeys(crossed, 0)
            sides = ({price: size}, gone) if is_bid else (gone, {price: size})
            script.append(shows(at, *sides))
        elif what == "trade":
            script.append(trade(at, "Buy" if is_bid else "Sell", price, size + 1))
        elif what == "send":
            ask = buy if is_bid else sell
            limit = draw(st.sampled_from([None, float(price)]))
            tag = draw(st.sampled_from(["", "a", "b"]))
            script.append(send(at, ask(size + 1, limit=limit, tag=tag)))
        elif what == "cancel":
            script.append(send(at, Cancel(draw(st.sampled_from(["", "a"])))))
        else:
            script += [gap(at), book(at + 5, dict(bids), dict(asks))]
    return [*script, shows(at + 10_000)]


composed = st.composite(scripts)
KEYS = st.fixed_dictionaries(
    {
        "model": st.sampled_from(QueueModel),
        "exponent": st.integers(1, 3),
        "latency_ms": st.sampled_from([0, 5, 35]),
        "response_ms": st.sampled_from([0, 15]),
    }
)
quick = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@quick
@given(composed(), KEYS)
def test_no_more_is_filled_than_was_shown_or_traded(
    tmp_path: Path, script: list[Say], keys: dict[str, Any]
) -> None:
    outcome = played(tmp_path / "drawn.events", script, **keys)
    filled: dict[str, int] = {}
    for fill in outcome.fills:
        filled[fill.order_id] = filled.get(fill.order_id, 0) + fill.quantity
        assert fill.quantity > 0
        assert fill.notional == fill.price * fill.quantity * 10**8
    orders = outcome.orders
    assert all(
        filled.get(key, 0) == order.filled <= order.quantity for key, order in orders.items()
    )
    signed = sum(order.quantity * (1 if order.side is Side.BUY else -1) for order in outcome.fills)
    assert signed == outcome.broker.account.held(KEY)
    for say in script:
        if say.what != "trade":
            continue
        ((taker, _, size, _),) = say.content
        side = "sell" if taker == "Buy" else "buy"
        at_once = [row for row in outcome.rows if row[0] == say.at and row[4] == "M"]
        assert {row[1] for row in at_once} <= {side}
        assert sum(row[3] for row in at_once) <= size
    for side, prices in _shown(script).items():
        for price, sizes in prices.items():
            takers = [
                row for row in outcome.rows if row[4] == "T" and (row[1], row[2]) == (side, price)
            ]
            for (since, size), (until, _) in pairwise([*sizes, (10**9, 0)]):
                # Both ends: an order that arrives at the time of a frame meets it.
                inside = [row[3] for row in takers if since < row[0] < until]
                assert sum(inside) <= size


def _shown(script: list[Say]) -> dict[str, dict[int, list[tuple[int, int]]]]:
    """Return the size that each level showed to a buyer or a seller, and from when on."""
    sizes: dict[str, dict[int, list[tuple[int, int]]]] = {"buy": {}, "sell": {}}
    for say in script:
        if say.what not in {"set", "book"}:
            continue
        for side, levels in zip(("sell", "buy"), say.content, strict=True):
            for price, size in levels.items():
                sizes[side].setdefault(price, []).append((say.at, size))
    return sizes


@quick
@given(composed(), KEYS)
def test_what_no_event_holds_changes_nothing(
    tmp_path: Path, script: list[Say], keys: dict[str, Any]
) -> None:
    path = tmp_path / "drawn.events"
    few = played(path, script, **keys)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("tracepaper.daemon.broker.book_matching.BookWatch.acts", lambda *_: True)
        every = played(path, script, **keys)
    assert len(few.updates) <= len(every.updates)
    assert few.rows == every.rows
    assert few.ends == every.ends
    assert few.broker.state()[0].books[KEY].holding == every.broker.state()[0].books[KEY].holding
    places = [
        [(place.ahead, place.level, place.traded) for place in played_so.places]
        for played_so in (few, every)
    ]
    assert places[0] == places[1]


SIZES = st.integers(0, 40)


@given(
    st.sampled_from(QueueModel),
    st.integers(1, 8),
    SIZES,
    st.lists(st.tuples(st.booleans(), SIZES), max_size=30),
)
def test_a_place_improves_by_a_cause_alone(
    model: QueueModel, exponent: int, quantity: int, happens: list[tuple[bool, int]]
) -> None:
    rules, place = QueueRules(model, exponent), QueuePlace("1-0", quantity, quantity)
    for is_trade, size in happens:
        before = place
        if is_trade:
            place, reached = after_trade(place, size)
            assert place.ahead + size == before.ahead + reached
            assert reached == max(size - before.ahead, 0)
            continue
        place = after_change(place, size, rules)
        assert 0 <= place.ahead <= min(before.ahead, size)
        if size >= before.level and size >= before.ahead:
            assert place.ahead == before.ahead  # nothing left the queue
        canceled = before.level - size - before.traded
        if model is QueueModel.RISK_ADVERSE or canceled <= 0:
            assert place.ahead == min(before.ahead, size)
        else:
            assert before.ahead - place.ahead <= max(canceled, before.ahead - size)


def test_power_prob_is_that_of_hftbacktest_rounded_down() -> None:
    for exponent in (1, 2, 3):
        for ahead, behind, left in ((10, 10, 12), (9, 31, 22), (30, 1, 3), (1, 30, 0), (5, 0, 2)):
            level = ahead + behind
            share = behind**exponent / (behind**exponent + ahead**exponent)
            lost = level - left
            theirs = ahead - (1 - share) * lost + min(behind - share * lost, 0.0)
            place = after_change(
                QueuePlace("1-0", ahead, level), left, QueueRules(QueueModel.POWER_PROB, exponent)
            )
            assert max(min(theirs, left), 0) - 1e-9 <= place.ahead < max(min(theirs, left), 0) + 2


def test_nobody_knows_a_place_before_its_level_was_seen() -> None:
    unknown = QueuePlace("1-0", UNKNOWN, 0)
    assert after_trade(unknown, 50) == (unknown, 0)
    assert after_change(unknown, 7, QueueRules()).ahead == 7


def test_a_walk_leaves_what_was_taken() -> None:
    levels, used = [BookLevel(101, 5, 1), BookLevel(102, 7, 3)], Queues(QueueRules())
    used.frame = 2
    used.take(Side.SELL, levels[0], 2)
    walk = walk_levels(levels, used, Side.BUY, 9, None)
    assert [(level.price, part) for level, part in walk] == [(101, 3), (102, 6)]
    assert used.left(Side.SELL, BookLevel(101, 5, 3)) == 5  # a later frame set it
    used.forget_renewed(Side.SELL, [BookLevel(101, 5, 3)])
    assert used.state() == QueueState(2)
