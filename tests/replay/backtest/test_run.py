"""The loop over known events: each is processed after all earlier ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import pytest
from builders import bars, forecast
from exchange_client import candles as made_candles
from exchange_client import walk_rows
from fakes import FixedForecaster

from tracepaper.daemon.config.loading import load
from tracepaper.daemon.session.loop import events_of
from tracepaper.replay.backtest import predictors
from tracepaper.replay.backtest.build import build
from tracepaper.replay.backtest.market_data import MarketData
from tracepaper.replay.backtest.predictors import ScanPredictor
from tracepaper.replay.backtest.run import Tally, run_events
from tracepaper.storage.audit import SqlAuditLog
from tracepaper.strategies.types.decisions import Forecast, ForecastColumns
from tracepaper.strategies.types.market import Bar, Event, Unit


def test_an_event_is_drawn_only_when_the_one_before_was_dealt_with(tmp_path: Path) -> None:
    audit = SqlAuditLog.open(tmp_path / "run.db")
    candles = made_candles(walk_rows(300))
    replay = build(
        load(None, {"market": {"symbols": [candles.symbol]}}),
        MarketData([candles]),
        started_at_ms=0,
    )
    predicted: list[Event] = []

    class ListeningStrategy:
        is_silent = False
        columns: Mapping[str, ForecastColumns] = MappingProxyType({})

        def predict(self, unit: Unit) -> Sequence[None]:
            predicted.extend(events_of(unit))
            return [None] * len(events_of(unit))

    def source() -> Iterator[Event]:
        for count, event in enumerate(replay.feed.events()):
            assert count == replay.engine.sequence == len(predicted)
            yield event

    tally = Tally()
    audit.begin(replay.run, replay.engine.gate_sets)
    run_events(source(), ListeningStrategy(), replay.engine, audit, tally)
    audit.close()
    assert (tally.bars, tally.decisions, tally.finished) == (300, 300, True)
    assert predicted == list(replay.feed.events())


def says(history: Sequence[Bar]) -> Forecast:
    return forecast(sum(bar.close for bar in history) / 1e12)


def test_a_scan_probes_with_all_the_bars_before(monkeypatch: pytest.MonkeyPatch) -> None:
    # The probe of a later chunk needs bars of the chunk before: none of them may be missing.
    monkeypatch.setattr(predictors, "CHUNK_EVENTS", 32)
    monkeypatch.setattr(predictors, "PROBE_EVERY_CHUNKS", 1)
    forecaster, prober = (FixedForecaster(says, context=40) for _ in "ab")
    predictor = ScanPredictor(forecaster, prober, ["linear:BTCUSDT"], period_start_ms=0)
    for event in predictor.read_ahead(bars(400)):
        predictor.predict(event)
    assert predictor.probed >= 10
