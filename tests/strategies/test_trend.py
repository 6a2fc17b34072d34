"""The trend: what it votes, how large it is, when it decides, and what it refuses."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from builders import MINUTE, bar, bars, explanation, forecast, instrument, present
from engines import engine_of
from fakes import FixedForecaster
from msgspec.structs import replace

from tracepaper.daemon.config.loading import load
from tracepaper.daemon.engine.engine import Engine
from tracepaper.daemon.session.build import needs_forecaster
from tracepaper.strategies.api.context import BarContext, Signal
from tracepaper.strategies.api.sizing import NoTradeBand, VolatilityKind, WindowedVolatility
from tracepaper.strategies.builtin import ClosesVolatility, SizedBy, TrendStrategy, windows_within
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.types.calibration import Calibration
from tracepaper.strategies.types.decisions import Action, Forecast, Step
from tracepaper.strategies.types.market import Bar

HOUR = 60 * MINUTE
DAY = 24 * HOUR
YEAR = 365 * DAY
CALIBRATION = Calibration(
    {
        name: tuple(index / 100 for index in range(1, 100))
        for name in ("confidence_entropy", "collapsed", "shift", "recent_mass", "direction", "edge")
    },
    {30: 1.0},
    0.0,
)
GATES = {"confidence": "0.1", "collapse": "0.0", "shift": "0.5", "horizon": 30}
REGIME = {"momentum": "0.5", "mean_reversion": "0.3"}


def hourly(closes: list[int]) -> list[Bar]:
    return [bar(close, index=index, interval_ms=HOUR) for index, close in enumerate(closes)]


def trend(**options: Any) -> TrendStrategy:
    given: dict[str, Any] = {
        "windows_ms": [2 * HOUR, 4 * HOUR, 8 * HOUR],
        "interval_ms": HOUR,
        "long_only": True,
        "target_volatility": 0.4,
        "sized_by": SizedBy.EWMA,
        "band": NoTradeBand(cost=1e-9, risk_aversion=10.0),
    }
    return TrendStrategy(**(given | options))


def signal_of(strategy: TrendStrategy, history: list[Bar]) -> Signal:
    answer = strategy.decide(BarContext.of(history[-strategy.warmup :], instrument()))
    assert isinstance(answer, Signal)
    return answer


def dense(closes: list[int], windows: list[int], *, long_only: bool, target: float) -> float:
    """Return the signed size, by definition, in floats."""
    last = np.array(closes[-max(windows) :], dtype=float)
    moves = np.floor((last[1:] - last[:-1]) * 1e9 / last[:-1]) / 1e9
    ages = np.arange(moves.size)[::-1]
    weights = np.round(2.0 ** (24 - ages / (moves.size / 5)))
    deviation = math.sqrt((weights * moves**2).sum() / weights.sum())
    votes = []
    for window in windows:
        part = last[-window:]
        away = (part[-1] / part.mean() - 1) / (deviation * math.sqrt(window / 3))
        votes.append(min(max(away, 0.0 if long_only else -1.0), 1.0))
    return float(np.mean(votes) * min(target / (deviation * math.sqrt(YEAR / HOUR)), 1.0))


@pytest.mark.parametrize("long_only", [True, False])
def test_direction_and_size_are_what_the_closes_say(long_only: bool) -> None:
    closes = [candle.close for candle in bars(200, seed=3)]
    history = hourly(closes)
    strategy = trend(long_only=long_only, target_volatility=0.1)
    volatility = set()
    for end in range(8, 200):
        answer = signal_of(strategy, history[:end])
        wanted = dense(closes[:end], [2, 4, 8], long_only=long_only, target=0.1)
        sign = {Action.LONG: 1, Action.SHORT: -1, Action.FLAT: 0}[answer.action]
        size = sign * answer.strength if sign else 0.0
        assert size == pytest.approx(wanted, abs=1e-9)
        assert present(answer.note)["size"] == pytest.approx(wanted, abs=1e-9)
        volatility.add(answer.action)
    assert volatility == {Action.LONG, Action.FLAT if long_only else Action.SHORT}


def test_what_it_decides_is_noted() -> None:
    history = hourly([1_000_000 + 1_000 * place for place in range(8)])
    answer = signal_of(trend(), history)
    assert answer.note is not None
    assert list(answer.note) == [
        "trend_2h", "trend_4h", "trend_8h", "trend", "volatility", "target_volatility", "size",
        "band",
    ]  # fmt: skip
    volatility, size = answer.note["volatility"], answer.note["size"]
    assert isinstance(volatility, float)
    assert isinstance(size, float)
    assert (answer.action, answer.reason, answer.strength) == (Action.LONG, "trend up", size)
    assert 0.09 < volatility < 0.1  # a tenth of a percent an hour


def test_the_band_is_that_of_how_the_trend_moves_with_the_price() -> None:
    """By definition: the trend at each close of the newer half, from the closes known here."""
    closes = [candle.close for candle in bars(100, seed=5)]
    banded = 0
    for end in range(8, 100):
        answer = signal_of(trend(), hourly(closes[:end]))
        assert answer.note is not None
        if answer.action is Action.FLAT:
            assert answer.band is None
            continue
        values = np.array(closes[end - 8 : end], dtype=float)
        trends = []
        for last in range(3, 8):
            votes = []
            for window in (2, 4, 8):
                part = values[max(last + 1 - window, 0) : last + 1]
                away = part[-1] / part.mean() - 1
                # The distance that was noted, of the newest close, says the deviation used.
                votes.append((away, part.size))
            trends.append(votes)
        newest_away, newest_count = trends[-1][0]
        noted = answer.note["trend_2h"]
        assert isinstance(noted, float)
        deviation = newest_away / (noted * math.sqrt(newest_count / 3))
        levels = [
            np.mean([min(max(away / (deviation * math.sqrt(n / 3)), 0), 1) for away, n in votes])
            for votes in trends
        ]
        returns = np.diff(values[3:]) / values[3:-1]
        sensitivity = math.sqrt((np.diff(levels) ** 2).sum() / (returns**2).sum())
        share = answer.strength / float(str(answer.note["trend"]))
        wanted = (1.5 * 1e-9 * (share * sensitivity) ** 2 / 10.0) ** (1 / 3)
        assert answer.band == answer.note["band"]
        assert answer.band == pytest.approx(wanted, rel=1e-6)
        banded += 1
    assert banded > 30


def test_a_dearer_trade_widens_the_band_and_a_colder_mind_narrows_it() -> None:
    history = hourly([candle.close for candle in bars(40, seed=3)])

    def width(cost: float, risk_aversion: float) -> float:
        bands = (
            signal_of(trend(band=NoTradeBand(cost, risk_aversion)), history[:end]).band
            for end in range(8, 40)
        )
        return math.fsum(band for band in bands if band is not None)

    assert width(8e-9, 10.0) == pytest.approx(2 * width(1e-9, 10.0))
    assert width(1e-9, 80.0) == pytest.approx(width(1e-9, 10.0) / 2)


def test_a_constant_size_follows_no_volatility() -> None:
    wild = [1_000_000 + 400 * place + 60_000 * (place % 2) for place in range(8)]
    note = present(signal_of(trend(sized_by=SizedBy.CONSTANT), hourly(wild)).note)
    assert "volatility" not in note
    assert note["size"] == note["trend"]


def test_constant_prices_are_held() -> None:
    answer = signal_of(trend(), hourly([1_000_000] * 8))
    assert (answer.action, answer.reason) == (Action.HOLD, "no volatility is known")


def test_a_volatility_that_grows_by_closes_equals_one_made_anew() -> None:
    closes = np.array([candle.close for candle in bars(60, seed=2)])
    times = np.arange(60) * HOUR
    grown = ClosesVolatility()
    for end in (*range(10, 20), 25, *range(26, 40)):
        window = slice(end - 9 if end < 30 else end - 7, end)
        fresh = WindowedVolatility(VolatilityKind.EWMA, closes[window].size - 1)
        for close in closes[window].tolist():
            fresh.add(close)
        assert grown.of_close(closes[window], times[window]) == fresh.of_bars(1)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"windows_ms": [HOUR, 8 * HOUR]}, "has 1h, but closes of 1h make windows of 2h to"),
        ({"windows_ms": [20_001 * HOUR]}, "has 20001h, but"),
        ({"windows_ms": [24 * HOUR], "interval_ms": 24 * HOUR}, "closes of 1d make windows of 2d"),
        ({"sized_by": SizedBy.FORECAST}, "needs a model that gives volatility"),
    ],
)
def test_windows_and_sizes_that_cannot_be_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigInvalid, match=words):
        trend(**options)


@pytest.mark.parametrize(
    ("span_ms", "bar_ms", "hours"),
    [
        (128 * DAY, HOUR, [192, 384, 768, 1536]),
        (128 * DAY - 1, HOUR, [96, 192, 384, 768]),
        (12_000 * MINUTE, MINUTE, [12, 24, 48, 96]),
        (60 * DAY, DAY, [48, 96, 192, 384]),
        (10 * DAY, 12 * HOUR, [24, 48, 96]),  # 12 hours are one close
        (3_000 * DAY, 7 * DAY, [384, 768, 1536]),  # 8 days are one close
        (20 * DAY, 7 * DAY, [384]),  # a half of it would be one close
        (2 * HOUR, HOUR, [3]),
        (MINUTE, MINUTE, [3]),
    ],
)
def test_windows_are_halved_until_the_longest_is_half_of_the_span(
    span_ms: int, bar_ms: int, hours: list[int]
) -> None:
    usual = [8 * DAY, 16 * DAY, 32 * DAY, 64 * DAY]
    windows = windows_within(usual, span_ms, bar_ms)
    assert [window_ms / HOUR for window_ms in windows] == hours
    # What is taken can be made.
    trend(windows_ms=windows, interval_ms=bar_ms)


# ---------------------------------------------------------------- configured


def configured(**sections: dict[str, Any]) -> Any:
    strategy = {"name": "trend", "trend_windows": ["2h", "4h"], **sections.pop("strategy", {})}
    return load(None, {"strategy": strategy, **sections})


def test_windows_are_read_as_times_in_order() -> None:
    config = configured(strategy={"trend_windows": "48h, 1d"})
    assert config.strategy.trend_windows == ("1d", "2d")


def test_a_size_by_volatility_is_not_made_smaller_twice() -> None:
    config = configured(model={"checkpoint": "none"}, sizing={"mode": "volatility"})
    with pytest.raises(ConfigInvalid, match="volatility a second time"):
        needs_forecaster(config)


def model(volatility: float | None = 0.005, *, confidence: float = 0.2) -> FixedForecaster:
    """Return a model that always says the same, or nothing."""
    answer = forecast(explained=explanation(confidence_entropy=confidence))
    scaled = None if volatility is None else replace(answer, volatility=(volatility,))
    return FixedForecaster(lambda _bars: scaled, calibration=CALIBRATION)


def engine(forecaster: FixedForecaster | None, **sections: dict[str, Any]) -> Engine:
    config = configured(
        sizing={"mode": "equity", "fraction": "1", **sections.pop("sizing", {})},
        account={"cash": "1000000"},
        gate=GATES,
        regime=REGIME,
        model={"checkpoint": "default" if forecaster else "none"},
        **sections,
    )
    return engine_of(config, forecaster=forecaster)


def stepped(machine: Engine, history: list[Bar], answer: Forecast | None = None) -> list[Step]:
    return [machine.step(candle, answer) for candle in history]


def notes(step: Step) -> dict[str, float | str | None]:
    return present(present(step.decision).note)


def test_minutes_are_decided_on_closed_hours_and_held_in_between() -> None:
    history = bars(6 * 60 + 30)
    steps = stepped(engine(None), history)
    for candle, step in zip(history, steps, strict=True):
        assert step.decision is not None
        outcome = step.decision.outcome
        closed_ms = candle.open_time_ms + MINUTE
        if outcome.refused_by == "warm":
            assert outcome.action is Action.HOLD
        elif closed_ms % HOUR:
            assert (outcome.action, outcome.reason) == (Action.HOLD, "no hour has closed")
            assert step.decision.note is None
        else:
            assert outcome.reason in {"trend up", "no trend up"}
            assert step.decision.note is not None
    warm = [s for s in steps if s.decision and s.decision.outcome.refused_by == "warm"]
    hours = [s for s in steps if s.decision and s.decision.note is not None]
    assert len(warm) >= 4 * 60 - 1
    assert len(hours) >= 2


def test_an_hour_with_a_hole_decides_nothing() -> None:
    history = bars(7 * 60)
    whole = stepped(engine(None), history)
    last = max(at for at, step in enumerate(whole) if step.decision and step.decision.note)
    holed = stepped(engine(None), history[: last - 10] + history[last - 9 :])[last - 1]
    assert present(holed.decision).outcome.reason == "no hour has closed"


def test_the_models_volatility_sizes_and_its_gates_judge_without_its_direction() -> None:
    forecaster = model(0.005)
    chosen = {"trend_volatility": "0.1", "trend_sized_by": "forecast"}
    machine = engine(forecaster, strategy=chosen)
    steps = stepped(machine, bars(7 * 60), forecaster._answer([]))  # noqa: SLF001 - a fake
    last = next(s for s in reversed(steps) if s.decision and s.decision.note)
    gates = set(present(last.decision).outcome.gate_set.gates)
    assert {"confidence_entropy", "collapsed", "shifted", "regime", "deadline", "finite"} <= gates
    assert not {"direction", "edge"} & gates
    # Half an hour's deviation of 0.5 % is one of a year by the root of the half-hours in it.
    annual = 0.005 * math.sqrt(2 * 24 * 365)
    assert notes(last)["volatility"] == pytest.approx(annual)
    trend_ = notes(last)["trend"]
    assert isinstance(trend_, float)
    assert notes(last)["size"] == pytest.approx(trend_ * 0.1 / annual)


def test_shadow_accounts_show_what_the_band_and_the_usual_volatility_are_worth() -> None:
    """One trades by ``rebalance``, one is sized by the model, as ungated runs of their own are."""
    forecaster = model(0.005)

    def held(*shadows: str, **sections: dict[str, Any]) -> list[list[int]]:
        strategy = {
            "trend_volatility": "0.1",
            "shadows": list(shadows),
            **sections.pop("strategy", {}),
        }
        machine = engine(forecaster, strategy=strategy, **sections)
        steps = stepped(machine, bars(30 * 60, seed=11), forecaster._answer([]))  # noqa: SLF001
        return [
            [
                shadow.position.quantity
                for step in steps
                for shadow in step.shadows
                if shadow.shadow == name
            ]
            for name in shadows
        ]

    usual, by_rebalance, by_forecast = held("ungated", "fixed_band", "sized_by_forecast")
    assert [by_rebalance] == held("ungated", sizing={"rebalance": "0.25"})
    assert [by_forecast] == held("ungated", strategy={"trend_sized_by": "forecast"})
    assert len({tuple(quantities) for quantities in (usual, by_rebalance, by_forecast)}) == 3


def test_without_an_answer_of_the_model_nothing_is_decided() -> None:
    steps = stepped(engine(model(None)), bars(7 * 60))
    assert not [s for s in steps if s.decision and s.decision.note]
    assert {s.decision.outcome.action for s in steps if s.decision} == {Action.HOLD}


def test_the_gates_hold_up_entries_and_never_an_exit() -> None:
    closes = [1_000_000 + 700 * place for place in range(8 * 60)]
    closes += [closes[-1] - 1_000 * place for place in range(3 * 60)]
    history = [bar(close, index=at, high=close + 500) for at, close in enumerate(closes)]
    sure, unsure = (model(confidence=it)._answer([]) for it in (0.2, 0.01))  # noqa: SLF001
    machine = engine(model(), strategy={"shadows": ["random_gate"]})
    entered = stepped(machine, history[: 8 * 60], sure)
    assert entered[-1].account is not None
    held = present(entered[-1].position)
    assert held.quantity > 0
    left = stepped(machine, history[8 * 60 :], unsure)
    out = next(s for s in left if s.decision and s.decision.outcome.action is Action.FLAT)
    assert present(out.decision).outcome.refused_by == "confidence_entropy"
    assert present(out.decision).outcome.reason == "no trend up"
    assert present(left[-1].position).quantity == 0
    # Refused all along, it is never entered.
    refused = stepped(engine(model()), history, unsure)
    assert {s.decision.target_quantity for s in refused if s.decision} == {0}
