"""A new run that takes over an account catches up what a resumed run would have caught up."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import pytest
from builders import bar, instrument
from bybit_server import MINUTE, START_MS, ScriptedServer, turnover
from daemon_under_test import RunningDaemon, daemon, price

from tracepaper.daemon.config.loading import load
from tracepaper.daemon.session.build import resolved
from tracepaper.daemon.session.resume import Opening, open_run
from tracepaper.replay.checks.verify import verify_run
from tracepaper.storage.audit import SqlAuditLog
from tracepaper.storage.chain.verify import verify_chain
from tracepaper.storage.database.reader import Reader
from tracepaper.strategies.types.decisions import FillModel, Step
from tracepaper.strategies.types.market import Event, InstrumentChange, RunKind
from tracepaper.strategies.units import interval_start

STOPPED: Final = 11
"""The minute at which the daemon stops, with a short position."""
SETTLED: Final = 16
MET: Final = 17
"""The minute in which the price reaches the stop."""
AGAIN: Final = 20
"""The minute at which it starts again."""
EXITS: Final = {"stop_loss": "10%"}
EDITED: Final = {"gate": {"late_ms": 59_000}}

VIEWS: Final = {
    "ledger": (
        "SELECT market_ms, kind, instrument, amount_text, balance_text FROM v_ledger "
        "WHERE market_ms > ? AND kind <> 'taken_over' ORDER BY market_ms, sequence, ordinal"
    ),
    "fills": (
        "SELECT side, quantity_text, price_text, reference_price_text, fee_text, reason, model, "
        "filled_ms, while_down FROM v_fills WHERE filled_ms > ? ORDER BY filled_ms"
    ),
    "gaps": (
        "SELECT instrument, from_ms, until_ms, cause, repaired_by FROM v_gaps "
        "WHERE until_ms > ? ORDER BY from_ms"
    ),
    "decisions": (
        "SELECT open_time_ms, action, refused_by, target_quantity_text, p.quantity_text, "
        "realized_pnl_text, fees_paid_text, funding_paid_text, unrealized_pnl_text "
        "FROM v_decisions d JOIN v_positions p USING (run_id, sequence) "
        "WHERE open_time_ms >= ? ORDER BY open_time_ms"
    ),
}


async def caught_up(path: Path, **edited: Any) -> dict[str, list[tuple[Any, ...]]]:
    """Return what a daemon stored of the time in which it was down, by view.

    The price reaches a stop and a settlement passes then; it starts again as *edited*.
    """
    async with ScriptedServer() as server:
        server.filters[0]["fundingInterval"] = 15
        server.funding = [(START_MS + at * MINUTE, "0.01") for at in (1, SETTLED)]
        async with daemon(server, path, exits=EXITS) as running:
            await running.close_bars(STOPPED)
        passed = RunningDaemon(server, running.task)
        passed.minute = STOPPED
        passed.pass_bars(AGAIN - STOPPED)
        server.server_ms += 3_000  # the last of them is final
        met_ms, close = START_MS + MET * MINUTE, price(MET)
        server.rows["BTCUSDT"][met_ms] = (
            met_ms,
            close,
            "150",
            close,
            close,
            "1.5",
            turnover(close),
        )
        async with daemon(server, path, exits=EXITS, **edited) as running:
            await running.until(lambda: running.decided() == AGAIN - STOPPED)
    since_ms = START_MS + STOPPED * MINUTE
    with closing(sqlite3.connect(path)) as db:
        return {name: db.execute(query, (since_ms,)).fetchall() for name, query in VIEWS.items()}


async def test_a_new_run_fills_stops_and_pays_settlements_as_a_resumed_one_does(
    tmp_path: Path,
) -> None:
    resumed = await caught_up(tmp_path / "resumed.db")
    edited = await caught_up(tmp_path / "edited.db", **EDITED)
    for name, rows in resumed.items():
        assert edited[name] == rows, name
    settled_ms, met_ms = START_MS + SETTLED * MINUTE, START_MS + (MET + 1) * MINUTE
    assert [row[:2] for row in edited["ledger"]] == [
        (settled_ms, "funding"),
        (met_ms, "realized"),
        (met_ms, "fee"),
    ]
    ((side, _, _, _, _, reason, model, filled_ms, is_while_down),) = edited["fills"]
    assert (side, reason, model) == ("BUY", "exits.stop_loss 10 %", "bar_path")
    assert (filled_ms, is_while_down) == (met_ms - 1, 1)


async def test_a_run_that_caught_up_is_derived_from_its_record(tmp_path: Path) -> None:
    path = tmp_path / "run.db"
    await caught_up(path, **EDITED)
    with Reader.open(path) as reader:
        first, second = map(reader.run, reader.run_ids())
        assert (first.parent_run_id, second.parent_run_id) == (None, first.run_id)
        assert second.period_start_ms == START_MS + STOPPED * MINUTE
        for run in (first, second):
            assert verify_chain(reader.connection, run.run_id).passes
            assert verify_run(reader, path, run.run_id).differences == []


ITEMS: Final = (instrument(), instrument("ETHUSDT"))
BITCOIN, ETHER = (item.id for item in ITEMS)


class Started:
    """A start on the database *path* while the bar of the minute *now* is open."""

    def __init__(self, path: Path, now: int, **sections: Any) -> None:
        market = {"symbols": ["BTCUSDT", "ETHUSDT"], **sections.pop("market", {})}
        strategy = {"name": "sma_cross", "fast": 3, "slow": 7}
        config = load(None, {"market": market, "strategy": strategy, **sections})
        interval_ms = config.market.interval_ms
        self.audit = SqlAuditLog.open(path)
        self.opened = open_run(
            Opening(
                config=resolved(config, FillModel.QUOTE),
                kind=RunKind.LIVE,
                database=path,
                instruments=ITEMS,
                forecaster=None,
                period_start_ms=interval_start(START_MS + now * MINUTE, interval_ms),
                wall_ms=1,
            ),
            self.audit,
        )
        self.first = {
            key: (first_ms - START_MS) // MINUTE
            for key, first_ms in self.opened.known.first_ms.items()
        }

    async def through(self, *events: Event) -> list[Step]:
        """Store what the start and *events* cause, and end in good order."""
        change = InstrumentChange(ITEMS[0], START_MS, START_MS)
        steps = [
            self.opened.engine.step(event, None)
            for event in (change, self.opened.started(START_MS), *events)
        ]
        await self.audit.append(*steps)
        self.audit.end(2)
        self.audit.close()
        return steps[2:]


def of_minutes(key: str, *minutes: int) -> list[Event]:
    """Return the bars of *key* that opened in *minutes*."""
    return [bar(index=minute, instrument_id=key) for minute in minutes]


async def test_each_symbol_is_caught_up_from_the_bar_that_the_run_before_left_undecided(
    tmp_path: Path,
) -> None:
    path = tmp_path / "run.db"
    first = Started(path, 2)
    assert first.first == {BITCOIN: 2, ETHER: 2}
    await first.through(*of_minutes(BITCOIN, 0, 1, 2, 3, 4, 5), *of_minutes(ETHER, 0, 1, 2, 3))
    second = Started(path, 30, **EDITED)
    assert second.first == {BITCOIN: 6, ETHER: 4}
    assert second.opened.run.period_start_ms == START_MS + 6 * MINUTE
    assert second.opened.known.takes_over
    assert second.opened.known.known_funding == dict.fromkeys((BITCOIN, ETHER), at_minute(2))
    # It is ended before it has caught up, then resumed, and then edited again.
    events = *of_minutes(ETHER, 3, 4), *of_minutes(BITCOIN, 5)
    decided = [step.decision is not None for step in await second.through(*events)]
    assert decided == [False, True, False]
    third = Started(path, 30, **EDITED)
    assert third.opened.resumed
    assert third.first == {BITCOIN: 6, ETHER: 4}
    assert third.opened.known.takes_over
    await third.through()
    fourth = Started(path, 30)
    assert fourth.first == {BITCOIN: 6, ETHER: 5}
    await fourth.through()
    with Reader.open(path) as reader:
        for run_id in reader.run_ids():
            assert verify_run(reader, path, run_id).differences == []


@pytest.mark.parametrize(
    ("interval", "now", "expected"),
    [
        ("5", 30, 6),  # it opened when the last minute closed
        ("15", 40, 16),  # the first that opened after that
        ("15", 10, 1),  # the one that is open
        ("1", 4, 4),  # the exchange's time is behind the record
    ],
)
async def test_bars_of_another_interval_follow_the_last_close(
    tmp_path: Path, interval: str, now: int, expected: int
) -> None:
    path = tmp_path / "run.db"
    bars = (*of_minutes(BITCOIN, *range(6)), *of_minutes(ETHER, *range(6)))
    await Started(path, 0).through(*bars)
    second = Started(path, now, **EDITED, market={"interval": interval})
    assert second.first == {BITCOIN: expected, ETHER: expected}
    await second.through()


def at_minute(minute: int) -> int:
    """Return the time at which the bar of *minute* opens."""
    return START_MS + minute * MINUTE
