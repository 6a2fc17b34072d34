"""``MarketData``: all that a run is fed, read and checked."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, fields, replace
from itertools import chain
from typing import Any, Self

import numpy as np

from tracepaper.daemon.config.loading import load_with_origins
from tracepaper.replay.archive import Candles, FundingRates, slice_candles
from tracepaper.replay.archive.books import RecordedDepth
from tracepaper.replay.archive.corporate_actions import ActionRow
from tracepaper.replay.archive.sessions import SessionsFor
from tracepaper.replay.backtest.book_feed import FillSource
from tracepaper.replay.backtest.run_spec import RunSpec
from tracepaper.replay.backtest.sources import SOURCES, Cutoff, MarketSource, SourceReader
from tracepaper.replay.backtest.tracks import BarSpan, Track


@dataclass(frozen=True, eq=False)
class MarketData:
    """Candles, and what else was recorded of their market; ``SOURCES`` has a row for each."""

    candles: Sequence[Candles]
    _: KW_ONLY
    funding: Sequence[FundingRates] = ()
    actions: Sequence[ActionRow] = ()  # splits and dividends
    frames: Sequence[Candles] = ()  # of higher timeframes, from before the candles
    depth: Sequence[RecordedDepth] = ()  # order books, of which those until a bar's close are read
    events: Sequence[FillSource] = ()  # of order books that fill orders

    @classmethod
    def read(cls, spec: RunSpec, *, sessions_for: SessionsFor | None = None) -> Self:
        """Read what *spec* names; shares upon the sessions of its calendar or of *sessions_for*.

        Raises ``DataInvalid`` or ``ConfigInvalid`` with one sentence for what cannot be believed.
        """
        config, origins = load_with_origins(spec.given, spec.sections, caller=spec.caller)
        symbols = config.market.symbols
        is_chosen = ("market", "symbols") in origins and len(symbols) == 1
        reading = SourceReader(spec, config.market, sessions_for, symbols[0] if is_chosen else None)
        candles = tuple(SOURCES["candles"].read(spec.candles, reading))
        reading = reading._replace(candles=candles)
        rest = [field.name for field in fields(cls) if field.name != "candles"]
        return cls(
            candles,
            **{name: tuple(SOURCES[name].read(getattr(spec, name), reading)) for name in rest},
        )

    def within(self, spec: RunSpec) -> RunSpec:
        """Return *spec* with these data in place of the names of their files."""
        data: dict[str, Any] = {
            field.name: tuple(getattr(self, field.name)) for field in fields(self)
        }
        return replace(spec, columns=(), **data)

    def _changed(self, change: Callable[[MarketSource, Sequence[Any]], Sequence[Any]]) -> Self:
        changed: dict[str, Any] = {
            field: change(source, getattr(self, field)) for field, source in SOURCES.items()
        }
        return replace(self, **changed)

    def close_of(self, at_ms: int) -> int:
        """Return when the last of the bars closed that opened at *at_ms*."""
        return max(
            int(part.closes_ms[np.searchsorted(part.open_time_ms, at_ms)])
            for part in self.candles
            if at_ms in part.open_time_ms
        )

    def until(self, at_ms: int, *, cut: bool) -> Self:
        """Return what is known with the bars that opened at *at_ms*.

        The rest is left out, or has nonsense in its place where it is not *cut*.
        """
        cutoff = Cutoff(at_ms, self.close_of(at_ms), self.candles, cut)
        return self._changed(lambda source, given: source.until(given, cutoff))

    def opening(self, from_ms: int, until_ms: int | None = None) -> Self:
        """Return it with the candles alone that open from *from_ms* until *until_ms*, included."""
        cut = []
        for part in self.candles:
            first, last = int(np.searchsorted(part.open_time_ms, from_ms)), len(part)
            if until_ms is not None:
                last = int(np.searchsorted(part.open_time_ms, until_ms, side="right"))
            cut.append(slice_candles(part, slice(first, last)))
        return replace(self, candles=[part for part in cut if len(part)])

    def first(self, bars: int) -> Self:
        """Return it with so many *bars* of each of its candles."""
        return replace(self, candles=[slice_candles(part, slice(0, bars)) for part in self.candles])

    def shifted(self, weeks: int) -> Self:
        """Return all of it so many *weeks* later."""
        return self._changed(lambda source, given: [source.shift(part, weeks) for part in given])

    def scaled(self, factor: int) -> Self:
        """Return it with all prices times *factor*."""
        return self._changed(lambda source, given: [source.scale(part, factor) for part in given])

    def tracks(self, bars: BarSpan) -> list[Track]:
        """Return the events of every source, laid between *bars*."""
        of_each = (source.tracks(getattr(self, field), bars) for field, source in SOURCES.items())
        return list(chain.from_iterable(of_each))

    def sha256(self) -> dict[str, str]:
        """Return the hash of each source that there is, whatever the order of its files."""
        return {
            field: hashlib.sha256("".join(sorted(map(source.digest, given))).encode()).hexdigest()
            for field, source in SOURCES.items()
            if (given := getattr(self, field))
        }
