"""The loop over known events: nothing is taken before what came earlier was dealt with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
from builders import bars, forecast
from fakes import FixedForecaster

from tracepaper.replay.backtest import scan
from tracepaper.replay.backtest.run import KnownFeed
from tracepaper.replay.backtest.scan import ScanPredictor
from tracepaper.strategies.types import Bar, Event, Forecast


async def test_an_event_is_taken_only_when_the_one_before_was_dealt_with() -> None:
    taken: list[int] = []
    dealt: list[int] = []

    def source() -> Iterator[Event]:
        for item in bars(50):
            assert len(taken) == len(dealt)
            taken.append(item.open_time_ms)
            yield item

    async for event in KnownFeed(source()):
        assert isinstance(event, Bar)
        dealt.append(event.open_time_ms)
    assert dealt == taken
    assert len(dealt) == 50


def says(seen: Sequence[Bar]) -> Forecast:
    return forecast(sum(bar.close for bar in seen) / 1e12)


async def test_a_scan_probes_with_all_the_bars_before(monkeypatch: pytest.MonkeyPatch) -> None:
    # The probe of a later chunk needs bars of the chunk before: none of them may be missing.
    monkeypatch.setattr(scan, "CHUNK_EVENTS", 32)
    monkeypatch.setattr(scan, "PROBE_EVERY_CHUNKS", 1)
    forecaster, prober = (FixedForecaster(says, context=40) for _ in "ab")
    predictor = ScanPredictor(forecaster, prober, ["linear:BTCUSDT"], period_start_ms=0)
    async for event in KnownFeed(predictor.read_ahead(bars(400))):
        predictor.predict(event)
    assert predictor.probed >= 10
