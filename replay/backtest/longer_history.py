"""Lets fresh objects of a run's class decide its first bars again with longer histories (U7)."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

from tracepaper.daemon.clock import SystemClock
from tracepaper.daemon.session.build import Strategies
from tracepaper.daemon.session.longer_history import (
    BARS_TRIED,
    Answers,
    Lookback,
    ShortHistory,
    doubled,
    is_tried,
    may_be_short,
    short_history,
)
from tracepaper.daemon.session.loop import gathered, steps_of
from tracepaper.daemon.session.user_class import guard_of
from tracepaper.replay.backtest.build import Replay, rehearsal
from tracepaper.replay.backtest.market_data import MarketData
from tracepaper.storage.checks import WARMUP, StoredCheck, store_check
from tracepaper.storage.database.reader import Reader
from tracepaper.strategies.errors import TracepaperError
from tracepaper.strategies.types.market import ParityCheck, ParityOutcome
from tracepaper.strategies.without_fills import ASKING

Found = TypeVar("Found")
LONGEST_S: Final = 60.0
"""Seconds that deciding again may take, besides those of the run."""


class _Overdue(Exception):
    """Deciding again took too long."""


class Rehearsal(NamedTuple):
    """A run to decide again, and the data from which it was built."""

    replay: Replay
    data: MarketData

    @property
    def strategies(self) -> Strategies:
        """The strategies of the run, by instrument."""
        return {key: each.strategy for key, each in self.replay.engine.deciders.items()}

    def short_history(
        self, *, seconds: float = LONGEST_S, tried: int = BARS_TRIED
    ) -> ShortHistory | None:
        """Return the history that is too short, if one is found within *seconds*."""
        try:
            return self._compared(short_history, seconds, tried)
        except (_Overdue, TracepaperError):
            return None

    def doubled(self, tried: int) -> tuple[int, int]:
        """Return how many of *tried* decisions differ with twice the history, and of how many."""
        return self._compared(doubled, math.inf, tried) or (0, 0)

    def _compared(self, compare: Callable[..., Found], seconds: float, tried: int) -> Found | None:
        """Return what *compare* finds; None for a class whose history is not tried."""
        if (guard := guard_of(self.strategies)) is None or not is_tried(self.strategies):
            return None
        clock = SystemClock()
        until_s = clock.network_s() + seconds

        def decide(lookback: Lookback, bars: int) -> Answers:
            strategies, engine, events = rehearsal(self.replay, self.data, lookback, bars)
            answers = Answers()
            with answers.taken(strategies):
                for unit in gathered(events):
                    for step in steps_of(engine, unit, None):
                        answers.add(step, engine)
                    if clock.network_s() > until_s:
                        raise _Overdue
            return answers

        given, interval_ms = min(map(len, self.data.candles)), self.replay.config.market.interval_ms
        return compare(decide, guard, interval_ms=interval_ms, given=given, tried=tried)

    def keep(self, database: Path, run_id: str, *, seconds: float) -> None:
        """Store with the run that its history is too short, if that is likely and so."""
        if not is_tried(self.strategies):
            return  # before the record is read
        with Reader.open(database) as reader:
            stored = reader.stored_run(run_id)
            outcomes = reader.run_rows(stored.run_key).outcomes
            asks = any(outcome.action in ASKING for outcome in outcomes)
            decided = reader.decided_within(stored.run_key, None, None)
        if decided is None or not may_be_short(self.strategies, asks=asks):
            return
        if (found := self.short_history(seconds=seconds)) is None:
            return
        check = ParityCheck(
            ParityOutcome.DIFFERENT, found.sentence, decided[0], decided[1], found.compared,
            found.compared - found.changed, 0,
        )  # fmt: skip
        store_check(database, stored, StoredCheck(WARMUP, SystemClock().wall_ms(), check))
