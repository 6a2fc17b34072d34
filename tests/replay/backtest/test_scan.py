"""One pass over known bars: every bar gets its own row, and a network that peeks is caught."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from builders import bar, bars, forecast
from fakes import FixedForecaster

from tracepaper.replay.backtest import predictors
from tracepaper.replay.backtest.predictors import ScanPredictor
from tracepaper.strategies.errors import InvariantBroken
from tracepaper.strategies.types.decisions import Forecast, Prediction
from tracepaper.strategies.types.market import Bar, Event, Gap, GapCause, ModelChange

KEY = "linear:BTCUSDT"
CONTEXT = 20


def says(history: Sequence[Bar]) -> Forecast:
    return forecast((history[-1].close - history[0].close) / 1e7)


class PeekingForecaster(FixedForecaster):
    """Looks one bar ahead wherever a batch shows it one."""

    def scan(self, bars: Sequence[Bar]) -> list[Forecast | None]:
        honest = super().scan(bars)
        return [*honest[1:], honest[-1]]


def predictor(forecaster: FixedForecaster, *, period_start_ms: int = 0) -> ScanPredictor:
    prober = FixedForecaster(says, context=CONTEXT)
    return ScanPredictor(forecaster, prober, [KEY], period_start_ms=period_start_ms)


def answers(machine: ScanPredictor, events: Sequence[Event]) -> list[Prediction]:
    return [machine.predict(event)[0] for event in machine.read_ahead(events)]


def test_every_bar_is_answered_as_if_it_came_alone() -> None:
    history = bars(300)
    alone = FixedForecaster(says, context=CONTEXT)
    machine = predictor(FixedForecaster(says, context=CONTEXT))
    assert answers(machine, history) == [alone.step(item) for item in history]
    assert machine.probed == 1


def test_a_network_that_sees_later_bars_is_caught() -> None:
    with pytest.raises(InvariantBroken, match="saw later bars"):
        answers(predictor(PeekingForecaster(says, context=CONTEXT)), bars(300))


def test_a_probe_is_made_up_for_and_each_takes_another_instrument(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No bar of the first chunks has a whole context, so the first probe waits for one."""
    monkeypatch.setattr(predictors, "CHUNK_EVENTS", 16)
    monkeypatch.setattr(predictors, "PROBE_EVERY_CHUNKS", 4)
    keys = [KEY, "linear:ETHUSDT"]
    prober = FixedForecaster(says, context=CONTEXT)
    forecaster = FixedForecaster(says, context=CONTEXT)
    machine = ScanPredictor(forecaster, prober, keys, period_start_ms=0)
    pairs = zip(*(bars(96, instrument_id=key) for key in keys), strict=True)
    probed, warmed = [], []
    warm = prober.warm

    def noted(instrument: str, bars: Sequence[Bar]) -> None:
        warmed.append(instrument)
        warm(instrument, bars)

    monkeypatch.setattr(prober, "warm", noted)
    for number, event in enumerate(machine.read_ahead([item for pair in pairs for item in pair])):
        machine.predict(event)
        if number % 16 == 0:
            probed.append(machine.probed)
    assert probed == [0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3]
    assert warmed == [keys[0], keys[1], keys[0]]


def test_many_instruments_are_read_ahead_by_whole_stretches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(predictors, "CHUNK_EVENTS", 12)
    monkeypatch.setattr(predictors, "CHUNK_INSTRUMENTS", 2)
    keys = [f"linear:{name}USDT" for name in "ABC"]
    counts: list[int] = []

    class CountingBars(FixedForecaster):
        def scan(self, bars: Sequence[Bar]) -> list[Forecast | None]:
            counts.append(len(bars))
            return super().scan(bars)

    forecaster = CountingBars(says, context=CONTEXT)
    machine = ScanPredictor(
        forecaster, FixedForecaster(says, context=CONTEXT), keys, period_start_ms=0
    )
    pairs = zip(*(bars(16, instrument_id=key) for key in keys), strict=True)
    answers(machine, [item for pair in pairs for item in pair])
    assert counts == [8] * 6


def test_chunks_do_not_change_the_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    history = bars(300)
    whole = answers(predictor(FixedForecaster(says, context=CONTEXT)), history)
    monkeypatch.setattr(predictors, "CHUNK_EVENTS", 64)
    assert answers(predictor(FixedForecaster(says, context=CONTEXT)), history) == whole


def test_bars_before_the_period_are_taken_in_and_not_answered() -> None:
    history = bars(60)
    machine = predictor(
        FixedForecaster(says, context=CONTEXT), period_start_ms=history[30].open_time_ms
    )
    got = answers(machine, history)
    assert got[:30] == [None] * 30
    assert None not in got[30:]


@pytest.mark.parametrize("chunk", [8, 45, 46, 8_192])
@pytest.mark.parametrize("late", [1, 2, 5])
def test_revisions_inside_and_at_the_edge_of_a_chunk_get_no_forecast(
    monkeypatch: pytest.MonkeyPatch, chunk: int, late: int
) -> None:
    monkeypatch.setattr(predictors, "CHUNK_EVENTS", chunk)
    history = bars(60)
    plain = answers(predictor(FixedForecaster(says, context=CONTEXT)), history)
    revised = [bar(history[45 - late].close + rise, index=45 - late) for rise in (5, 6)]
    events = [*history[:45], *revised, *history[45:]]
    got = answers(predictor(FixedForecaster(says, context=CONTEXT)), events)
    assert got[45:47] == [None, None]
    assert [*got[:45], *got[47:]] == plain


def test_other_events_pass_through_unanswered() -> None:
    history = bars(30)
    gap = Gap(KEY, 0, 60_000, GapCause.ARCHIVE, "", 0, 0)
    events: list[Event] = [*history[:10], gap, *history[10:]]
    machine = predictor(FixedForecaster(says, context=CONTEXT))
    assert list(machine.read_ahead(events[:0])) == []
    assert answers(machine, events)[10] is None


def test_a_recorded_start_warms_the_model_with_the_bars_it_names() -> None:
    history = bars(120)
    change = ModelChange(
        "m", "s", "v", "scan", "cpu", "float32", 1, ((KEY, history[60].open_time_ms),), 0, 0
    )
    forecaster = FixedForecaster(says, context=CONTEXT)
    answers(predictor(forecaster), [*history[:80], change, *history[80:]])
    assert forecaster.warmed == [20]


def test_a_network_that_is_not_causal_is_refused() -> None:
    forecaster = FixedForecaster(says, context=CONTEXT)
    forecaster.causal = False
    with pytest.raises(InvariantBroken, match="causal"):
        predictor(forecaster)


def test_the_row_of_another_bar_is_never_handed_out() -> None:
    history = bars(40)
    machine = predictor(FixedForecaster(says, context=CONTEXT))
    events = machine.read_ahead(history)
    next(events)
    with pytest.raises(InvariantBroken, match="not this bar"):
        machine.predict(history[3])
