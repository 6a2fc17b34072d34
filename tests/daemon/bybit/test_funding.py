"""Each settlement once, on its own schedule."""

from __future__ import annotations

from tracepaper.daemon.bybit.feed_state import FundingSchedule
from tracepaper.strategies.types import Funding

HOUR = 3_600_000


def settlement(hour: int) -> Funding:
    return Funding("linear:BTCUSDT", 1_000_000, hour * HOUR, hour * HOUR)


def schedule() -> FundingSchedule:
    return FundingSchedule(interval_minutes=480, settled_ms=8 * HOUR)


def test_a_settlement_falls_due_on_the_grid_of_its_interval() -> None:
    funding = schedule()
    assert not funding.is_overdue(16 * HOUR - 1)
    assert funding.is_overdue(16 * HOUR)
    assert funding.is_due_by(16 * HOUR)


def test_an_announced_time_off_the_grid_is_awaited_too() -> None:
    funding = schedule()
    funding.announce(12 * HOUR)
    assert funding.is_overdue(12 * HOUR)
    funding.announce(20 * HOUR)  # the next one; the first was not settled yet
    assert funding.is_overdue(12 * HOUR)
    funding.settle([settlement(12)])
    assert not funding.is_overdue(13 * HOUR)


def test_a_settlement_is_taken_once() -> None:
    funding = schedule()
    assert funding.settle([settlement(8), settlement(16)]) == [settlement(16)]
    assert funding.settle([settlement(8), settlement(16)]) == []
    assert not funding.is_overdue(24 * HOUR - 1)


def test_asking_is_remembered_but_does_not_settle() -> None:
    funding = schedule()
    funding.asked(16 * HOUR)
    assert not funding.is_due_by(23 * HOUR)
    assert funding.is_overdue(16 * HOUR)


def test_an_instrument_without_funding_is_never_due() -> None:
    funding = FundingSchedule(interval_minutes=0, settled_ms=0)
    assert not funding.is_overdue(10**15)
    assert not funding.is_due_by(10**15)
