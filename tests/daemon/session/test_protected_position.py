"""What a position is protected by, in words: in notices and in the status of a daemon."""

from __future__ import annotations

from typing import Final

from builders import MINUTE, START_MS, run
from engines import engine_of
from exit_cases import COSTLESS, FLAT, KEY, Says, flat_bars, long, machine, path, short
from fakes import ManualClock

from tracepaper.daemon.config.notify import WORDINGS, NotifySection
from tracepaper.daemon.http.monitor import Monitor
from tracepaper.daemon.session.notices import Notices

CLOSED: Final = "BTCUSDT target: sold 1 at 100.1 (exits.minimal_roi 0.1 % after 2m)"


def test_notices_and_status_say_what_protects_a_position_and_what_its_end_brought() -> None:
    exits = {"stop_loss": "0.3%", "minimal_roi": {"0": "4%", "2m": "0.1%"}}
    engine = machine({1: long()}, exits=exits)
    bars = flat_bars(5)
    notices = Notices(NotifySection(), run(), on_breach="halt")
    monitor = Monitor(run=run(), clock=ManualClock(START_MS + 9 * MINUTE))
    monitor.resting_orders = engine.broker.resting_orders
    texts: list[str] = []
    held: list[object] = []
    for event in (*bars, path(5, 10_000, 10_020, 9_990, 10_015)):
        step = engine.step(event, None)
        monitor.observe(step)
        held.append(monitor.instrument(KEY)["position"])
        texts += [
            WORDINGS[notice.kind].template.format_map(notice.fields)
            for notice in notices.of_step(step)
        ]
    entered = "long 1 BTC from 100, stop 99.7, target 104, +0.00 %"
    assert held[2] == entered
    assert held[4] == entered.replace("104", "100.1")
    assert held[5] == "flat"
    assert texts == [
        f"BTCUSDT bought 1 at 100 (up); {entered}; equity 1,000,000.00",
        f"{CLOSED}, profit +0.08; flat; equity 1,000,000.08",
    ]


def test_each_trade_of_turns_has_its_own_profit_with_its_share_of_the_fee() -> None:
    """Long at 100, short at 102, long at 99, out at 103, each at .1 %."""
    given = {
        "sizing": {"mode": "fixed", "quantity": "1"},
        "account": {"cash": "1000000"},
        "execution": {**COSTLESS, "model": "next_open", "taker_fee": "0.001"},
    }
    engine = engine_of(given, strategy=Says({0: long(), 1: short(), 2: long(), 3: FLAT}))
    notices = Notices(NotifySection(), run(), on_breach="halt")
    prices = (10_000, 10_000, 10_200, 9_900, 10_300)
    said = []
    for index, price in enumerate(prices):
        step = engine.step(path(index, price, price, price, price), None)
        said += [notice.fields["profit"] for notice in notices.of_step(step)]
    # 2 - .1 - .102, 3 - .102 - .099, 4 - .099 - .103
    assert said == ["", ", profit +1.80", ", profit +2.80", ", profit +3.80"]
