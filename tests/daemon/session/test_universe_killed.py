"""A daemon with a universe is killed in each of its moments: no choice is lost or made twice."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path

from exchange_client import candles as made_candles
from exchange_client import walk_rows
from killed_daemons import CANDLES, KilledDaemon
from several_live import check_parity
from waiting import until

from tracepaper.daemon.config.market import UniverseRule
from tracepaper.daemon.feed.universe import next_choice_ms
from tracepaper.replay.exchange.fault_kinds import Fault
from tracepaper.replay.exchange.server import EmbeddedExchange, ExchangeSettings
from tracepaper.storage.database.reader import Reader
from tracepaper.strategies.types.market import Bar, UniverseChange

NAMES = ("AAAUSDT", "BBBUSDT", "CCCUSDT")
TICKERS = "/v5/market/tickers"
EVERY = [f"{hour:02d}:{minute:02d}" for hour in range(24) for minute in range(0, 60, 4)]
RULE = UniverseRule(top=1, at=tuple(EVERY))
CONFIG = f"""
[market]
symbols = ["AAAUSDT", "BBBUSDT", "CCCUSDT"]
[market.universe]
top = 1
at = {EVERY}
[strategy]
name = "sma_cross"
fast = 3
slow = 7
long_only = false
[sizing]
mode = "notional"
notional = "1000"
[http]
port = 0
"""


async def test_a_daemon_that_is_killed_at_any_moment_of_a_choice_goes_on_with_it(
    tmp_path: Path,
) -> None:
    data = tuple(
        made_candles(walk_rows(300, seed=seed), symbol=name) for seed, name in enumerate(NAMES)
    )
    served = ExchangeSettings(candles=data, manual=True, start=200, speed=60.0)
    async with EmbeddedExchange(served) as exchange:
        exchange.faults.arm(Fault("hang", topic=TICKERS, ms=3_600_000))
        run = KilledDaemon(tmp_path, exchange, CONFIG, len(NAMES))
        try:
            # In the first choice: it is made by the next start, before any bar.
            await run.killed_when(lambda: exchange.faults.tally("hang").fired)
            # Behind the first choice, in the warm-up.
            waits = run.hangs(CANDLES)
            await run.killed_when(lambda: waits() and run.events("universe"))
            await run.trade(1)
            assert run.events("universe") == 1
            # In a choice that is due amid the run.
            waits = run.hangs(TICKERS)
            await run.trade_until(waits)
            await run.killed_when(waits)
            assert run.events("universe") == 1
            await run.trade(1)
            await until(lambda: run.events("universe") == 2)
            # Right behind one.
            await run.trade_until(lambda: run.events("universe") == 3)
            await run.killed_when(lambda: run.events("universe") == 3)
            await run.trade(2)
        finally:
            run.ended()
    with Reader.open(run.path) as reader:
        assert len(reader.run_ids()) == 1
        events = [event for _, _, event, _ in reader.events(reader.find("last"))]
    made_ms = [event.market_ms for event in events if isinstance(event, UniverseChange)]
    assert all(later_ms >= next_choice_ms(RULE, at_ms) for at_ms, later_ms in pairwise(made_ms))
    assert len(made_ms) == 3
    first = next(place for place, event in enumerate(events) if isinstance(event, UniverseChange))
    assert not any(isinstance(event, Bar) for event in events[:first])
    opened = Counter(
        (event.instrument, event.open_time_ms) for event in events if isinstance(event, Bar)
    )
    assert set(opened.values()) == {1}
    check_parity(run.path, tmp_path)
