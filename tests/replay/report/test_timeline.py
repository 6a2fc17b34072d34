"""The notices that the events of a recorded run would send."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from exchange_client import FIRST_MS, walk_rows
from exchange_client import candles as made_candles
from recordings import commanded

from tracepaper.daemon.config.loading import load
from tracepaper.daemon.session.notices import Notices
from tracepaper.replay.backtest.build import Replay, build
from tracepaper.replay.backtest.market_data import MarketData
from tracepaper.replay.report.record import read_record
from tracepaper.replay.report.timeline import LABELS, Timeline, read_timeline
from tracepaper.storage.audit import SqlAuditLog
from tracepaper.storage.database.reader import Reader
from tracepaper.strategies.types.decisions import Step
from tracepaper.strategies.types.market import Command, CommandKind

HOUR = 3_600_000
BARS = 160
CROSS = {"name": "sma_cross", "fast": 3, "slow": 7, "long_only": False}
TIGHT = {"max_drawdown": "0.003"}
CASES: Mapping[str, tuple[dict[str, Any], dict[int, CommandKind], dict[str, int]]] = {
    "halted, resumed and halted again": (
        {"strategy": CROSS, "risk": TIGHT},
        {90: CommandKind.RESUME, 150: CommandKind.FLATTEN},
        {"limits": 2, "halt": 2},
    ),
    "refused each day": (
        {"strategy": CROSS, "risk": {**TIGHT, "on_breach": "refuse"}},
        {},
        {"limits": 5},
    ),
    "stopped out": ({"strategy": CROSS, "exits": {"stop_loss": "0.1 %"}}, {}, {"stops": 1}),
}


class WatchedLog(SqlAuditLog):
    """A log that shows each step to ``notices`` when it is appended, as the daemon does."""

    replay: Replay
    notices: Notices
    made: list[tuple[int, str, str]]

    def append_now(self, *steps: Step) -> None:
        super().append_now(*steps)
        section = self.replay.config.notify
        for step in steps:
            for notice in self.notices.of_step(step):
                if notice.kind in LABELS:
                    text = section.wording(notice.kind).format_map(notice.fields)
                    self.made.append((notice.market_ms, notice.kind, text))


def ran(
    path: Path, sections: dict[str, Any], commands: Mapping[int, CommandKind]
) -> list[tuple[int, str, str]]:
    """Run hours without five of them, with *commands* after so many; return the notices."""
    market = {"symbols": ["BTCUSDT"], "interval": "60"}
    sizing = {"mode": "equity", "fraction": "0.5"}
    config = load(None, {"market": market, "sizing": sizing, **sections})
    times_ms = [FIRST_MS + place * HOUR for place in range(BARS + 5) if not 60 <= place < 65]
    candles = [made_candles(walk_rows(BARS), interval_ms=HOUR, times_ms=times_ms)]
    replay = build(config, MarketData(candles), started_at_ms=1, database=path)
    log = WatchedLog.open(path)
    log.replay, log.made = replay, []
    log.notices = Notices(config.notify, replay.run, on_breach=config.risk.on_breach)
    commanded(replay, log, {at: Command(kind, "", 0, 0) for at, kind in commands.items()})
    return log.made


def timeline_of(path: Path) -> Timeline:
    with Reader.open(path) as reader:
        return read_timeline(reader, read_record(reader, path, reader.find("last")))


@pytest.mark.parametrize("case", CASES)
def test_a_timeline_has_the_notices_that_were_made_while_it_ran(tmp_path: Path, case: str) -> None:
    sections, commands, expected = CASES[case]
    made = ran(tmp_path / "run.db", sections, commands)
    timeline = timeline_of(tmp_path / "run.db")
    assert [tuple(event) for event in timeline.events] == made
    assert timeline.left_out == 0
    counts = Counter(kind for _, kind, _ in made)
    assert counts["feed"] == 1
    assert counts["fills"] > 1
    assert {kind: counts[kind] for kind in expected} == expected
