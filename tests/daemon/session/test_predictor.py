"""The predictor keeps deadlines and the order of bars, and warms the model up."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import pytest
from builders import START_MS, bars, forecast
from fakes import FixedForecaster
from waiting import deadline, deadline_s

from tracepaper.daemon.session.loop import BarHistory, InlinePredictor, Worker, WorkerPredictor
from tracepaper.strategies.errors import StrategyFailed
from tracepaper.strategies.types.decisions import Forecast, PredictionTimeout
from tracepaper.strategies.types.market import Bar, Close, CloseStart, Event, ModelChange

pytestmark = pytest.mark.sockets

KEY = "linear:BTCUSDT"


def says(history: Sequence[Bar]) -> Forecast:
    return forecast(history[-1].close / 1e9)


def start(warm_from: tuple[tuple[str, int], ...] = ()) -> ModelChange:
    return ModelChange("m", "s", "v", "step", "cpu", "float32", 1, warm_from, 0, 0)


def working(
    forecaster: FixedForecaster,
    model: Worker | None = None,
    history: BarHistory | None = None,
    *,
    period_start_ms: int = 0,
    deadline_ms: int = 60_000,
) -> WorkerPredictor:
    return WorkerPredictor(
        forecaster,
        history or BarHistory([KEY], context=1),
        model or Worker("model"),
        period_start_ms=period_start_ms,
        deadline_ms=deadline_ms,
    )


def settled(model: Worker) -> None:
    """Wait until *model* has done all submitted work, while the loop is blocked."""
    done = threading.Event()
    model.submit(done.set)
    assert done.wait(deadline_s())


class GatedForecaster(FixedForecaster):
    """Forecasts only while its gate is open."""

    def __init__(self) -> None:
        super().__init__(says, context=1)
        self.gate = threading.Event()
        self.order: list[int] = []

    def step(self, bar: Bar) -> Forecast | None:
        self.gate.wait(deadline_s())
        self.order.append(bar.open_time_ms)
        return super().step(bar)


async def test_a_late_forecast_is_dropped_but_its_bar_is_taken_in_before_the_next() -> None:
    forecaster = GatedForecaster()
    forecaster.gate.set()
    worker = working(forecaster, deadline_ms=50)
    await worker.predict(start())
    first, second = bars(2)
    forecaster.gate.clear()
    assert await worker.predict(first) == [PredictionTimeout(50)]
    forecaster.gate.set()
    async with deadline():
        (prediction,) = await worker.predict(second)
    assert forecaster.order == [first.open_time_ms, second.open_time_ms]
    assert prediction in (says([second]), PredictionTimeout(50))


async def stopped_amid(
    worker: WorkerPredictor, model: Worker, event: Event, turns: int
) -> asyncio.Task[None]:
    """Return what is driven, stopped *turns* of the loop after what *event* gives has come."""

    async def drive() -> None:
        await worker.predict(event)
        await asyncio.Event().wait()

    task = asyncio.create_task(drive())
    await asyncio.sleep(0)
    settled(model)  # the loop is blocked: the answer or error is ready when it continues
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task], timeout=deadline_s())
    return task


@pytest.mark.parametrize("turns", range(5))
async def test_a_stop_that_comes_with_the_answer_is_obeyed(turns: int) -> None:
    # An answer has just arrived, its step is not started, and SIGTERM cancels the daemon.
    model = Worker("model")
    worker = working(FixedForecaster(says, context=1), model)
    await worker.predict(start())
    assert (await stopped_amid(worker, model, bars(1)[0], turns)).cancelled()


class Breaks(FixedForecaster):
    """Fails like a user's model."""

    def __init__(self) -> None:
        super().__init__(says, context=1)

    def step(self, bar: Bar) -> Forecast | None:
        raise StrategyFailed("It failed.")

    def warm(self, instrument: str, bars: Sequence[Bar]) -> None:
        raise StrategyFailed("It failed.")


@pytest.mark.parametrize("turns", range(5))
@pytest.mark.parametrize("is_start", [False, True])
async def test_a_stop_that_comes_with_an_error_of_the_model_does_not_hide_it(
    turns: int, *, is_start: bool
) -> None:
    model = Worker("model")
    worker = working(Breaks(), model)
    (item,) = bars(1)
    await worker.predict(item)  # the bar is kept; the model runs only after a start
    if not is_start:
        await worker.predict(start())
    event = start(((KEY, item.open_time_ms),)) if is_start else bars(2)[1]
    task = await stopped_amid(worker, model, event, turns)
    with pytest.raises(StrategyFailed):
        task.result()


async def test_a_bar_before_the_start_is_remembered_before_the_start_names_it() -> None:
    kept, (first,) = BarHistory([KEY], context=1), bars(1)
    period_start_ms = first.close_time_ms
    thread = Worker("model")
    worker = working(
        FixedForecaster(says), thread, kept, period_start_ms=period_start_ms, deadline_ms=1
    )
    gate = threading.Event()
    busy = thread.submit(gate.wait, deadline_s())
    asyncio.get_running_loop().call_soon(gate.set)
    assert await worker.predict(first) == [None]
    assert kept.warm_from() == ((KEY, first.open_time_ms),)
    assert await busy


class FailsOnce(GatedForecaster):
    """Fails at its first warm-up for a late symbol."""

    def __init__(self) -> None:
        super().__init__()
        self.gate.set()
        self.failed = False

    def warm(self, instrument: str, bars: Sequence[Bar]) -> None:
        if instrument != KEY and not self.failed:
            self.failed = True
            raise StrategyFailed("It failed.")
        super().warm(instrument, bars)


async def test_an_error_at_the_last_bar_before_the_period_ends_the_run() -> None:
    history = BarHistory([KEY, "linear:ETHUSDT"], context=1)
    worker = working(FailsOnce(), history=history, period_start_ms=START_MS + 60_000)
    (first,) = bars(1)
    (late,) = bars(1, instrument_id="linear:ETHUSDT")
    await worker.predict(first)
    await worker.predict(start(((KEY, first.open_time_ms),)))
    with pytest.raises(StrategyFailed):
        await worker.predict(late)


async def test_a_close_before_the_period_has_no_deadline() -> None:
    forecaster = GatedForecaster()
    worker = working(forecaster, period_start_ms=START_MS + 2 * 60_000, deadline_ms=1)
    first, second = bars(2)
    await worker.predict(first)
    await worker.predict(start(((KEY, first.open_time_ms),)))
    answer = asyncio.ensure_future(
        worker.predict(Close(CloseStart(second.open_time_ms, 1, (), 0, 0), [second]))
    )
    await asyncio.wait({answer}, timeout=0.05)
    assert not answer.done()
    forecaster.gate.set()
    assert await answer == [None, None]


def test_warm_up_bars_are_remembered_and_the_start_warms_the_model_with_them() -> None:
    forecaster = FixedForecaster(says, context=5)
    kept = BarHistory([KEY], context=5)
    inline = InlinePredictor(forecaster, kept, period_start_ms=START_MS + 8 * 60_000)
    history = bars(12)
    for item in history[:8]:
        assert inline.predict(item) == [None]
    assert forecaster.warmed == []
    inline.predict(start(kept.warm_from()))
    assert forecaster.warmed == [5]
    assert inline.predict(history[8]) == [says(history[4:9])]


@pytest.mark.parametrize("before", [0, 1])
def test_a_warm_up_bar_after_the_start_is_taken_in_without_an_answer(before: int) -> None:
    forecaster = FixedForecaster(says, context=2)
    kept = BarHistory([KEY], context=2)
    inline = InlinePredictor(forecaster, kept, period_start_ms=START_MS + 3 * 60_000)
    history = bars(4)
    for item in history[:before]:
        inline.predict(item)
    inline.predict(start(kept.warm_from()))
    for item in history[before:3]:
        assert inline.predict(item) == [None]
    assert inline.predict(history[3]) == [says(history[2:4])]
    assert forecaster.warmed == [1] * before


def test_a_symbol_that_comes_behind_the_start_is_warmed_at_its_last_bar_before_the_period() -> None:
    forecaster = FixedForecaster(says, context=3)
    kept = BarHistory([KEY, "linear:ETHUSDT"], context=3)
    history, late = bars(6), bars(6, instrument_id="linear:ETHUSDT")
    inline = InlinePredictor(forecaster, kept, period_start_ms=START_MS + 4 * 60_000)
    for item in (*history[:4], *late[:1]):
        inline.predict(item)
    change = start(kept.warm_from({"linear:ETHUSDT"}))
    assert [key for key, _ in change.warm_from] == [KEY]
    inline.predict(change)
    assert forecaster.warmed == [3]
    assert [inline.predict(item) for item in late[1:3]] == [[None], [None]]
    assert forecaster.warmed == [3]
    assert inline.predict(late[3]) == [None]
    assert forecaster.warmed == [3, 3]
    together = [history[4], late[4]]
    answers = inline.predict(Close(CloseStart(history[4].open_time_ms, 2, (), 0, 0), together))
    assert answers == [None, says(history[2:5]), says(late[2:5])]


def test_a_symbol_that_lacks_its_last_bar_is_warmed_at_its_first_in_the_period() -> None:
    forecaster = FixedForecaster(says, context=3)
    kept = BarHistory([KEY, "linear:ETHUSDT"], context=3)
    inline = InlinePredictor(forecaster, kept, period_start_ms=START_MS + 4 * 60_000)
    (other,) = bars(1, instrument_id="linear:ETHUSDT")
    inline.predict(other)
    inline.predict(start(kept.warm_from()))
    history = bars(6)
    for item in history[:3]:
        assert inline.predict(item) == [None]
    assert inline.predict(history[4]) == [says([*history[1:3], history[4]])]
    assert forecaster.warmed == [1, 2]


def test_a_recorded_late_answer_is_given_again_and_the_ring_still_moves() -> None:
    forecaster = FixedForecaster(says, context=1)
    inline = InlinePredictor(forecaster, BarHistory([KEY], context=1), period_start_ms=0)
    inline.predict(start())
    first, second = bars(2)
    assert inline.predict(first, [PredictionTimeout(7)]) == [PredictionTimeout(7)]
    assert inline.predict(second) == [says([second])]


def test_a_revision_does_not_reach_the_model() -> None:
    forecaster = FixedForecaster(says, context=1)
    inline = InlinePredictor(forecaster, BarHistory([KEY], context=1), period_start_ms=0)
    inline.predict(start())
    first, second = bars(2)
    inline.predict(first)
    inline.predict(second)
    assert inline.predict(first) == [None]
