"""The feed's state decides which quotes are events and when a closing frame is overdue."""

from __future__ import annotations

import pytest
from builders import MINUTE, START_MS, bar, bars, instrument
from msgspec import structs

from tracepaper.daemon.feed.funding import FundingSchedule
from tracepaper.daemon.feed.state import (
    PENDING_MAX,
    REMEMBERED_BARS,
    BarSequence,
    FeedState,
    MissingBars,
    PendingBars,
    Place,
)
from tracepaper.strategies.types.market import Funding, Gap, GapCause, Quote

# ---------------------------------------------------------------- bars


def sequence() -> BarSequence:
    return BarSequence(interval_ms=MINUTE, next_open_ms=START_MS)


def test_the_expected_bar_comes_next_and_a_later_one_is_ahead() -> None:
    order = sequence()
    assert order.place(bar(index=0)) is Place.NEXT
    assert order.place(bar(index=1)) is Place.AHEAD
    order.accept(bar(index=0))
    assert order.place(bar(index=1)) is Place.NEXT


def test_a_repetition_is_told_from_a_revision_once_per_value() -> None:
    order = sequence()
    order.accept(bar(close=10_100))
    assert order.place(bar(close=10_100)) is Place.REPEATED
    revised = bar(close=10_200)
    assert order.place(revised) is Place.REVISED
    order.accept(revised)
    assert order.place(revised) is Place.REPEATED
    assert order.place(bar(close=10_100)) is Place.REPEATED
    assert order.next_open_ms == START_MS + MINUTE


def test_memory_of_values_is_bounded() -> None:
    order = sequence()
    for candle in bars(REMEMBERED_BARS + 2):
        order.accept(candle)
    assert order.place(bar(index=0)) is Place.OLD
    assert order.place(bars(REMEMBERED_BARS + 2)[2]) is Place.REPEATED


def test_giving_up_never_goes_back() -> None:
    order = sequence()
    order.skip(START_MS + 3 * MINUTE)
    order.skip(START_MS)
    assert order.next_open_ms == START_MS + 3 * MINUTE


def test_an_answer_about_another_time_changes_nothing_of_it() -> None:
    missing = MissingBars(30.0, 1)
    missing.update([1, 2, 3, 4, 5, 6, 7, 8], from_ms=0, until_ms=10, now_s=0.0)
    missing.update([], from_ms=4, until_ms=6, now_s=10.0)
    missing.update([1, 2, 3, 6, 7, 8], from_ms=0, until_ms=10, now_s=30.0)
    assert missing.certain_until(1) == 4
    assert missing.certain_until(6) == 9
    missing.forget(5)
    assert missing.certain_until(1) == 1
    assert missing.certain_until(6) == 9


# ---------------------------------------------------------------- funding

HOUR = 3_600_000


def settlement(hour: int) -> Funding:
    return Funding("linear:BTCUSDT", 1_000_000, hour * HOUR, hour * HOUR)


def schedule() -> FundingSchedule:
    return FundingSchedule(interval_minutes=480, settled_ms=8 * HOUR)


def test_a_doubted_settlement_is_handed_on_once_and_asked_for_until_another_rate_comes() -> None:
    funding = schedule()
    absurd = structs.replace(settlement(16), rate=10**10)

    def doubts(funding: Funding) -> bool:
        return funding.rate > 10**9

    assert funding.settle([absurd], doubts) == [absurd]
    assert funding.is_overdue(16 * HOUR)
    assert funding.settle([absurd], doubts) == []
    other = structs.replace(absurd, rate=2 * 10**10)
    assert funding.settle([other], doubts) == [other]
    assert funding.settle([settlement(16)], doubts) == [settlement(16)]
    assert not funding.is_overdue(17 * HOUR)


def test_an_announced_time_off_the_grid_is_awaited_too() -> None:
    funding = schedule()
    funding.announce(12 * HOUR)
    assert funding.is_overdue(12 * HOUR)
    funding.announce(20 * HOUR)  # the next one; the first is not settled yet
    assert funding.is_overdue(12 * HOUR)
    funding.settle([settlement(12)])
    assert not funding.is_overdue(13 * HOUR)
    funding.announce(14 * HOUR)  # once the previous one is settled
    assert funding.is_overdue(14 * HOUR)


def test_asking_is_remembered_but_does_not_settle() -> None:
    funding = schedule()
    funding.note_request(16 * HOUR)
    funding.note_request(8 * HOUR)
    assert not funding.is_due_by(23 * HOUR)
    assert funding.is_overdue(16 * HOUR)
    funding.settle([settlement(24)])
    assert not funding.is_due_by(31 * HOUR), "one that came is not asked for again"


def missed(hour: int, *, until: int, hours: int) -> Gap:
    times = (hour * HOUR, until * HOUR)
    return Gap("linear:BTCUSDT", *times, GapCause.FUNDING, "", hours * HOUR, hours * HOUR)


def test_a_settlement_that_never_came_is_a_gap_before_the_next_one() -> None:
    funding = schedule()
    assert funding.settle([settlement(32)]) == [
        missed(16, until=24, hours=32),
        missed(24, until=32, hours=32),
        settlement(32),
    ]
    assert funding.settle([settlement(40)]) == [settlement(40)]


def test_a_settlement_that_was_announced_later_is_not_missed() -> None:
    funding = schedule()
    funding.announce(24 * HOUR)  # the interval became longer
    assert funding.settle([settlement(24)]) == [settlement(24)]


@pytest.mark.parametrize("hours", [1, 2, 4])
def test_each_symbol_has_its_own_interval_also_after_a_change_of_it(hours: int) -> None:
    state = market(funding_minutes=480)
    state.funding.settle([settlement(8)])
    assert not state.funding.is_overdue((8 + hours) * HOUR)
    state.change_filters(structs.replace(state.instrument, funding_interval_minutes=60 * hours))
    assert state.funding.is_overdue((8 + hours) * HOUR)
    assert not state.funding.is_overdue((8 + hours) * HOUR - 1)
    due = [settlement(8 + hours), settlement(8 + 2 * hours), settlement(8 + 4 * hours)]
    assert state.funding.settle(due) == [
        *due[:2],
        missed(8 + 3 * hours, until=8 + 4 * hours, hours=8 + 4 * hours),
        due[2],
    ]


CLOSE = START_MS + MINUTE


def market(*, funding_minutes: int = 0) -> FeedState:
    return FeedState(
        instrument(),
        sequence=BarSequence(interval_ms=MINUTE, next_open_ms=START_MS),
        funding=FundingSchedule(interval_minutes=funding_minutes, settled_ms=0),
    )


def quote(market_ms: int, bid: int = 100) -> Quote:
    return Quote("linear:BTCUSDT", bid, 1, bid + 1, 1, market_ms, market_ms)


def is_event(
    state: FeedState,
    quote: Quote,
    from_ms: int | None,
    *,
    evident: bool = False,
    again: bool = False,
) -> bool:
    """Return whether *quote* is an event, with an order that may fill at *from_ms*."""
    fills = from_ms is not None and state.may_fill(quote, from_ms, again=again)
    return state.keep(quote, matters=evident or fills)


def test_an_older_quote_is_a_replay_and_changes_nothing() -> None:
    state = market()
    is_event(state, quote(10), None)
    assert not is_event(state, quote(9, bid=50), 5)
    assert state.undelivered() == [quote(10)]


def test_of_two_quotes_in_one_millisecond_the_later_frame_counts() -> None:
    state = market()
    is_event(state, quote(10), None)
    is_event(state, quote(10, bid=101), None)
    assert state.undelivered() == [quote(10, bid=101)]
    assert is_event(state, quote(10, bid=102), 10)
    assert is_event(state, quote(10, bid=103), 10)


def test_a_quote_handed_on_in_time_for_the_order_is_not_handed_on_again() -> None:
    state = market()
    assert is_event(state, quote(10), 10)
    assert not is_event(state, quote(10), 10)
    assert is_event(state, quote(11), 11)  # another order may fill from here


def overdue(state: FeedState, market_ms: int, network_s: float) -> bool:
    return state.is_overdue(market_ms=market_ms, network_s=network_s, grace_ms=5_000)


def test_a_bar_that_came_ends_the_waiting() -> None:
    state = market()
    overdue(state, CLOSE + 5_000, 1.0)
    state.sequence.accept(structs.replace(bar(), open_time_ms=START_MS))
    assert not overdue(state, CLOSE + 5_000, 9.0)


def test_bars_that_wait_are_bounded_and_the_oldest_stay() -> None:
    pending = PendingBars()
    for index in reversed(range(1, PENDING_MAX + 1)):
        assert pending.add(structs.replace(bar(), open_time_ms=START_MS + index * MINUTE))
    assert not pending.add(structs.replace(bar(), open_time_ms=START_MS + 5_000 * MINUTE))
    assert not pending.add(structs.replace(bar(), open_time_ms=START_MS))
    assert pending.add(structs.replace(bar(), open_time_ms=START_MS, close=1))  # a later value
    assert len(pending) == PENDING_MAX
    popped = pending.pop_from(START_MS)
    assert popped[0].close == bar().close
    assert [each.open_time_ms for each in popped] == [
        START_MS + index * MINUTE for index in range(PENDING_MAX)
    ]
    assert not len(pending)


def test_a_cause_behind_bars_that_wait_is_of_the_next_hole() -> None:
    state = market()
    state.pending.add(bar())
    state.set_gap_cause(GapCause.STALE)
    causes = [state.cause]
    state.pending.pop_from(bar().open_time_ms)
    for _ in range(2):
        state.clear_gap_cause()
        causes.append(state.cause)
    assert causes == [GapCause.MISSED, GapCause.STALE, GapCause.MISSED]


def test_one_request_and_one_notice_of_a_cause_are_under_way_at_a_time() -> None:
    state = market()
    assert [state.claim_request(), state.claim_request()] == [True, False]
    state.end_request()
    assert state.claim_request()
    assert [state.claim_gap_cause(), state.claim_gap_cause()] == [True, False]
    state.set_gap_cause(GapCause.OVERFLOW)
    assert state.claim_gap_cause()


def test_an_overdue_settlement_is_asked_for_after_twice_the_wait_each_time() -> None:
    state = market(funding_minutes=480)
    due_ms = 480 * MINUTE
    assert not state.is_settlement_due(market_ms=due_ms - 1, network_s=0.0)
    asked_s = [
        tenth / 10
        for tenth in range(1_000)
        if state.is_settlement_due(market_ms=due_ms, network_s=tenth / 10)
    ]
    assert asked_s == [0, 1, 3, 7, 15, 31, 61, 91]
    state.funding.settle([Funding("linear:BTCUSDT", 1, due_ms, due_ms)])
    assert not state.is_settlement_due(market_ms=due_ms, network_s=200.0)
    assert [state.is_settlement_due(market_ms=2 * due_ms, network_s=at) for at in (200, 201)] == [
        True,
        True,
    ]


def test_what_one_answer_adds_is_bounded_once_it_was_delivered() -> None:
    pending = PendingBars()
    opens = [START_MS + index * MINUTE for index in range(PENDING_MAX + 500)]
    pending.add_missing(structs.replace(bar(), open_time_ms=open_ms) for open_ms in opens)
    assert len(pending) == PENDING_MAX + 500
    pending.trim()
    assert len(pending) == PENDING_MAX
    assert pending.first_open_ms() == START_MS
