"""The state that one object for all symbols declares: stored once, handed back at every start."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import own_strategies as own
import pytest
from pair_cases import SYMBOLS, cointegrated, configured
from recordings import record
from records import rows

from tracepaper.daemon.config.loading import Config
from tracepaper.replay.backtest.market_data import MarketData
from tracepaper.replay.checks.isolation import FreshProcesses
from tracepaper.replay.checks.recursive import recursive

COUNTING = """
from msgspec import Struct
from tracepaper.strategies.examples.pair import Pair
from tracepaper.strategies.api.context import Signal
from tracepaper.strategies.types import Action

class Openings(Struct):
    count: int = 0
    is_open: bool = False
    bars: int = 0

class Counting(Pair):
    '''Leaves out every third opening.'''

    State = Openings

    def __init__(self, options):
        super().__init__(options)
        self.other = 0

    def observe(self, bar):
        self.state.bars += 1

    def decide(self, now):
        answers = super().decide(now)
        actions = {signal.action for signal in answers.values()}
        if Action.LONG in actions and not self.state.is_open:
            self.state.is_open = True
            self.state.count += 1
            self.other += 1
        elif Action.FLAT in actions:
            self.state.is_open = False
        said = {"opened": self.COUNT, "bars": self.state.bars}
        if self.COUNT % 3 == 0:
            return {symbol: Signal(Action.FLAT, "left out", note=said) for symbol in answers}
        return {
            symbol: Signal(signal.action, signal.reason, note=said)
            for symbol, signal in answers.items()
        }
"""
DECLARED = COUNTING.replace("self.COUNT", "self.state.count")
UNDECLARED = COUNTING.replace("self.COUNT", "(self.state.count + self.other)")


@pytest.fixture(autouse=True)
def counting(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "counting.py"
    path.write_text(DECLARED)
    with own.importable(tmp_path):
        yield path
        sys.modules.pop("counting", None)


def own_pair(**sections: dict[str, Any]) -> Config:
    options = {"window": 60, "enter": 1.5}
    sections["strategy"] = {"name": "counting:Counting", "options": options}
    return configured(SYMBOLS, **sections)


def test_it_is_stored_by_the_last_step_of_the_close_in_which_it_changed(tmp_path: Path) -> None:
    path = tmp_path / "run.db"
    record(path, own_pair(), cointegrated(200))
    stored = rows(path, "SELECT step FROM states WHERE state IS NOT NULL ORDER BY step")
    closes = rows(
        path, "SELECT max(step) FROM steps WHERE open_time_ms NOT NULL GROUP BY open_time_ms"
    )
    assert {one for (one,) in closes} <= {one for (one,) in stored}


@pytest.mark.parametrize(("text", "holds"), [(DECLARED, True), (UNDECLARED, False)])
def test_a_later_start_is_handed_it_and_what_is_not_declared_is_named(
    counting: Path, text: str, holds: bool
) -> None:
    counting.write_text(text)
    with FreshProcesses() as fresh:
        found = recursive(own_pair(), MarketData(cointegrated(400)), fresh, probes=3, warmup=60)
    assert found.holds is holds, found.sentence() if found.differences else ""
    if not holds:
        assert "self.other (" in found.sentence()
        assert "its State does not declare" in found.sentence()
    else:
        assert found.compared > 300
