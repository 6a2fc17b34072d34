"""Exit orders, compared with an independent simulator that is written from docs/."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from builders import START_MS, bar, forecast, present, quote
from engines import engine_of
from fakes import FixedForecaster
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from reference_protection import (
    KEYS,
    ForecastReturn,
    ReferenceExits,
    ReferenceFill,
    ReferenceProtection,
)

from tracepaper.daemon.broker import broker, exit_orders, exit_plans, matching
from tracepaper.daemon.broker.execution import Executor
from tracepaper.daemon.broker.exit_plans import ExitDistance, Exits, Planner
from tracepaper.daemon.broker.line import Line
from tracepaper.daemon.broker.orders import PROTECTIVE
from tracepaper.daemon.config.loading import Config, load
from tracepaper.daemon.engine.decider import Decider
from tracepaper.daemon.engine.engine import Engine
from tracepaper.daemon.engine.restart import Restart
from tracepaper.daemon.engine.state import decode_state
from tracepaper.strategies.api.context import BarContext, Percent, Signal, Volatility
from tracepaper.strategies.api.strategy import Strategy
from tracepaper.strategies.errors import InvariantBroken
from tracepaper.strategies.types.calibration import Calibration
from tracepaper.strategies.types.decisions import (
    Action,
    FillModel,
    Forecast,
    Liquidity,
    Order,
    OrderRole,
    Step,
)
from tracepaper.strategies.types.market import Bar, Event, Gap, GapCause, Quote, Side

KEY = "linear:BTCUSDT"
WIDTH = 240 * 60_000  # bars of four hours: fourteen of them are a range
QUANTITY = 1_000
BARS = 60


SLOPE = 0.5  # by which the model's card multiplies its mean
DISTANCES: dict[str, tuple[tuple[str, tuple[str, float]], ...]] = {
    "%": (("0.5%", ("%", 0.5)), ("2%", ("%", 2)), ("4%", ("%", 4))),
    "atr": (("0.5 atr", ("atr", 0.5)), ("2 atr", ("atr", 2))),
    "volatility": (("0.5 volatility", ("volatility", 0.5)), ("2 volatility", ("volatility", 2))),
    "q": (("q0.02", ("q", 0.02)), ("q0.3", ("q", 0.3)), ("q0.4", ("q", 0.4))),
}
ROI: tuple[tuple[dict[str, str], tuple[tuple[int, float], ...]], ...] = (
    ({"0": "4%", "4h": "2%", "720": "0.3%"}, ((0, 4), (WIDTH, 2), (3 * WIDTH, 0.3))),
    ({"480": "0%"}, ((2 * WIDTH, 0),)),
)


def drawn_exits(rng: random.Random) -> tuple[dict[str, Any], ReferenceExits]:
    """Draw the ``[exits]`` of a configuration, and what the simulator makes of them."""
    section: dict[str, Any] = {"reenter": rng.random() < 0.4}
    read: dict[str, Any] = {"reenter": section["reenter"]}
    for name, key in KEYS.items():
        if rng.random() < 0.4:
            text, (unit, number) = rng.choice(DISTANCES[rng.choice(list(DISTANCES))])
            if name == "target" and unit == "q":  # a gain
                number = 1 - number
                text = f"q{number:g}"
            section[key], read[name] = text, (unit, number)
    if rng.random() < 0.3:
        section["minimal_roi"], read["roi"] = rng.choice(ROI)
    if rng.random() < 0.3:
        section["time_limit"], bars = rng.choice((("4h", 1), ("1d", 6)))
        read["limit_ms"] = bars * WIDTH
    return section, ReferenceExits(**read)


def configured(execution: FillModel, exits: dict[str, Any]) -> Config:
    """Return the configuration of a story, without costs and with every quote believed."""
    costs = {"taker_fee": "0", "maker_fee": "0", "slippage_bp": "0", "spread_bp": "0"}
    given: dict[str, dict[str, Any]] = {
        "market": {"interval": "240"},
        "sizing": {"mode": "fixed", "quantity": "1", "rebalance": "0"},
        "account": {"cash": "1000000"},
        "execution": {**costs, "model": execution.value, "latency_ms": 0, "plausible": 1e9},
        "exits": exits,
    }
    return load(None, given)


class SignalsByBar(Strategy):
    """Answers each bar with its scripted signal."""

    gates = frozenset({"operator"})

    def __init__(self, signals: dict[int, Signal]) -> None:
        self.signals = signals

    def decide(self, context: BarContext) -> Signal:
        return self.signals[(context.exact.open_time_ms - START_MS) // WIDTH]


class Story:
    """Random signals and market events, determined by a seed."""

    def __init__(self, seed: int, execution: FillModel) -> None:
        self.rng = random.Random(f"{seed} {execution}")
        self.execution = execution
        self.signals: dict[int, Signal] = {}
        self.close = 10_000
        rng = random.Random(f"exits {seed} {execution}")  # no other draw depends on it
        section, self.exits = drawn_exits(rng) if rng.random() < 0.5 else ({}, ReferenceExits())
        self.config = configured(execution, section)

    def engine(self) -> Engine:
        """Return the engine of this story at its start."""
        calibration = Calibration({}, {30: SLOPE}, 0.0)
        return engine_of(
            self.config,
            execution=self.execution,
            strategy=SignalsByBar(self.signals),
            forecaster=FixedForecaster(lambda _bars: None, calibration=calibration),
        )

    def forecast(self) -> Forecast | None:
        """Draw what the model says of a bar: now and then nothing."""
        rng = self.rng
        if rng.random() < 0.1:
            return None
        drawn = rng.gauss(0, 0.01), rng.choice((0.004, 0.02)), rng.choice((0.005, 0.02))
        mean, stdev, volatility = ((number,) for number in drawn)
        return replace(forecast(), mean_return=mean, stdev_return=stdev, volatility=volatility)

    def events(self) -> Iterator[Event]:
        """Yield bars, some of them missed, and the quotes between them if quotes fill orders."""
        rng = self.rng
        for index in range(BARS):
            opens_ms = START_MS + index * WIDTH
            is_missed = self.execution is FillModel.QUOTE and rng.random() < 0.2
            if is_missed:
                at = opens_ms + WIDTH
                yield Gap(KEY, opens_ms, at, rng.choice(list(GapCause)), "rest", at, at)
            elif self.execution is FillModel.QUOTE:
                yield from self._quotes(opens_ms)
            candle = self._bar(index)
            self.signals[index] = self._says(candle)
            yield candle

    def _moved(self, widest: int) -> int:
        return max(self.close + 10 * self.rng.randint(-widest, widest), 5_000)

    def _bar(self, index: int) -> Bar:
        gap = self.rng.choice((0, 0, 8, 40))
        opened = self._moved(gap)
        prices = [opened, *(self._moved(self.rng.choice((3, 20, 45))) for _ in range(3))]
        self.close = prices[-1]
        return bar(
            prices[-1], index=index, open_=opened, high=max(prices), low=min(prices),
            interval_ms=WIDTH,
        )  # fmt: skip

    def _quotes(self, opens_ms: int) -> Iterator[Quote]:
        at_ms = opens_ms + self.rng.choice((0, 500, 11_000))
        for _ in range(self.rng.randint(0, 5)):
            self.close = self._moved(self.rng.choice((2, 15, 40)))
            size = self.rng.choice((0, 130, 700, 10**6))
            between = quote(self.close, self.close + self.rng.choice((10, 10, 50)), at_ms=at_ms)
            other = self.rng.choice((0, size, 10**6))
            yield replace(between, bid_size=size, ask_size=other)
            at_ms += self.rng.choice((10, 3_000, 60_000, 2_000_000))

    def _says(self, candle: Bar) -> Signal:
        rng = self.rng
        action = rng.choice((*[Action.HOLD] * 3, Action.LONG, Action.LONG, Action.SHORT,
                             Action.SHORT, Action.FLAT))  # fmt: skip
        if action in {Action.HOLD, Action.FLAT}:
            return Signal(action, "told")
        sign = 1 if action is Action.LONG else -1

        def level(direction: int) -> Any:
            away = 10 * rng.randint(-1, 50)
            price = (candle.close + direction * away) / 100
            odd = rng.choice((math.nan, math.inf, -3.0, Percent(math.nan), Volatility(math.inf),
                              Percent(0), Percent(100)))  # fmt: skip
            percent, wild = Percent(rng.choice((0.5, 1.0, 3.0))), rng.random() < 0.03
            return odd if wild else rng.choice((None, price, percent, Volatility(0.5)))

        trail = (None, None, rng.randint(1, 40) / 10, Percent(rng.choice((0.5, 1.0, 2.0))),
                 Volatility(rng.choice((0.25, 1.0))))  # fmt: skip
        return Signal(
            action,
            "told",
            rng.choice((1.0, 0.5)),
            stop=level(-sign),
            target=level(sign),
            trailing=rng.choice(trail),
            until=candle.close_time_ms + rng.randint(0, 3) * WIDTH // 2
            if rng.random() < 0.2
            else None,
            reenter=rng.random() < 0.4,
        )


def filled_of(steps: list[Step]) -> list[ReferenceFill]:
    """Return the fills of the last of *steps* in the simulator's form."""
    roles = {order.order_id: order.role for step in steps for order in step.orders}
    return [
        ReferenceFill(
            roles[fill.order_id].value,
            fill.quantity if fill.side is Side.BUY else -fill.quantity,
            fill.price,
            fill.liquidity is Liquidity.MAKER,
        )
        for fill in steps[-1].fills
    ]


def stands(order: Order, names: dict[str, set[str]]) -> tuple[Any, ...]:
    """Return the protective *order* in the simulator's form; it is for one of *names* by role."""
    assert order.reason.split()[0] in names.get(order.role.value, ()), order.reason
    signed = 1 if order.side is Side.BUY else -1
    return (
        order.role.value, signed * (order.quantity - order.filled),
        order.trigger or order.price or 0, order.triggered,
    )  # fmt: skip


def restarted(story: Story, steps: list[Step]) -> Engine:
    """Return an engine that was started from the record so far."""
    engine = story.engine()
    stored = next((step.state for step in reversed(steps) if step.state is not None), None)
    if stored is not None:
        Restart(engine).restore(decode_state(stored), next_sequence=len(steps))
    else:
        engine.begin(len(steps))
    for step in steps:
        if isinstance(step.event, Bar):
            Restart(engine).recall(step.event)
    return engine


def compared(seed: int, execution: FillModel) -> Counter[str]:
    """Run engine and simulator through one story; count the cases that occurred, by name."""
    story, met = Story(seed, execution), Counter[str]()
    reference = ReferenceProtection(QUANTITY, story.exits)
    engine, steps, missed_until = story.engine(), list[Step](), 0
    cuts = random.Random(seed)
    for event in story.events():
        if cuts.random() < 0.1 and steps and not isinstance(steps[-1].event, Gap):
            engine = restarted(story, steps)
            met["a restart"] += 1
        predicted = story.forecast() if isinstance(event, Bar) else None
        if predicted is None:
            reference.forecast = None
        else:
            mean, stdev, volatility = (
                column[0]
                for column in (
                    predicted.mean_return, predicted.stdev_return, predicted.volatility,
                )
            )  # fmt: skip
            reference.forecast = ForecastReturn(SLOPE * mean, stdev, volatility)
        is_asked = not isinstance(event, Quote) or engine.broker.quote_from_ms(event) is not None
        steps.append(engine.step(event, predicted))
        assert is_asked or not (steps[-1].orders or steps[-1].fills), "a feed leaves it out"
        reference.fills = []
        is_missed = isinstance(event, Bar) and event.open_time_ms < missed_until
        assert all(fill.while_down is is_missed for fill in steps[-1].fills)
        if isinstance(event, Gap):
            missed_until = event.until_ms
        elif isinstance(event, Quote):
            reference.quote(event)
        elif isinstance(event, Bar):
            met["a missed bar"] += is_missed
            if is_missed or execution is FillModel.NEXT_OPEN:
                reference.bar(event, is_missed=is_missed)
            reference.bars.append(event)
            is_refused = reference.decide(event, story.signals[len(reference.bars) - 1])
            decision = present(steps[-1].decision)
            assert is_refused is (decision.unfilled_reason is not None), decision.unfilled_reason
            met["refused"] += is_refused
        assert filled_of(steps) == reference.fills
        book = engine.state().account.lines[KEY]
        assert book.holding.quantity == reference.held
        assert book.orders.target == reference.wanted
        names = {order.role: order.names for order in reference.orders}
        resting = [stands(other, names) for other in book.orders.others if other.role in PROTECTIVE]
        assert sorted(resting) == sorted(
            (order.role, -reference.held, order.price, order.is_triggered)
            for order in reference.orders
        )
        for fill in reference.fills:
            met[f"{fill.role} {'made' if fill.is_maker else 'took'}"] += 1
        met.update(fill.reason.split()[0] for fill in steps[-1].fills)
    return met


def all_compared(stories: int, execution: FillModel) -> None:
    """Compare so many stories."""
    for seed in range(stories):
        compared(seed, execution)


MODELS = pytest.mark.parametrize("execution", [FillModel.NEXT_OPEN, FillModel.QUOTE])


@MODELS
def test_protection_is_what_its_sentences_say(execution: FillModel) -> None:
    """Public reports: zipline#366, Lean#9635 and #9666, flox#290, btoandav20#39, backtrader#292."""
    met = Counter[str]()

    @settings(max_examples=60, deadline=None)
    @given(st.integers(0, 2**32))
    def lived(seed: int) -> None:
        met.update(compared(seed, execution))

    lived()
    wanted = {"SIGNAL took", "STOP took", "TRAILING took", "UNTIL took", "TARGET took",
              "TARGET made", "a restart", "refused", "exits.stop_loss", "exits.take_profit",
              "exits.trailing", "exits.minimal_roi", "exits.time_limit"}  # fmt: skip
    if execution is FillModel.QUOTE:
        wanted |= {"a missed bar"}
    assert wanted - met.keys() == set(), "the examples do not reach everything"


# ---------------------------------------------------------------- the simulator says no


def _back_too(_honest: Any) -> Any:
    def trailed(order: Order, bid: int, ask: int, trail: int) -> int | None:
        if order.role is not OrderRole.TRAILING or order.triggered:
            return None
        return bid - trail if order.side is Side.SELL else ask + trail

    return trailed


def _always(_honest: Any) -> Any:
    return lambda *_given: True


def _at_entry(honest: Any) -> Any:
    def arm(line: Line, *given: Any, is_nearer: bool | None = None, **named: Any) -> Any:
        return honest(line, *given, is_nearer=None if is_nearer else is_nearer, **named)

    return arm


def _at_once(honest: Any) -> Any:
    def leave(line: Line, reason: str) -> None:
        line.protect_by(replace(line.protection, plan=None, trail=0, next_plan=None))
        exit_orders.cancel_protection(line, reason)

    del honest
    return leave


def _canceled(honest: Any) -> Any:
    def closed_first(self: Line, order: Order) -> Any:
        self.target = self.held
        return honest(self, order)

    return closed_first


def _at_the_open(honest: Any) -> Any:
    def at_open(self: Any, order: Order, *given: Any) -> Any:
        return replace(honest(self, order, *given), price=(order.price or 0) + 10)

    return at_open


def _mistaken(unit: str) -> Callable[[Any], Any]:
    def plant(honest: Any) -> Any:
        def of(key: str, text: str | None) -> ExitDistance | None:
            distance: ExitDistance | None = honest(key, text)
            if distance is None or distance.unit != unit:
                return distance
            return distance._replace(number=1 - distance.number if unit == "q" else 3.0)

        return of

    plant.__name__ = f"_mistaken_{unit}"
    return plant


def _as_of_a_long(honest: Any) -> Any:
    return lambda self, _sign, *given: honest(self, 1, *given)


def _set_anew(honest: Any) -> Any:
    return lambda *given: honest(*given[:7])


def _farthest(_honest: Any) -> Any:
    def farthest(levels: Any, entry: int, direction: int) -> Any:
        chosen = [level for level in levels if level is not None]
        return max(chosen, key=lambda level: direction * level.at(entry, direction), default=None)

    return farthest


def _at_any_age(_honest: Any) -> Any:
    return lambda self, _age: self.roi[0][1] if self.roi else None


def _none(_honest: Any) -> Any:
    return lambda *_given, **_named: None


def _never(_honest: Any) -> Any:
    return lambda *_given: False


def _raw(honest: Any) -> Any:
    def expected(self: Any, forecast: Forecast | None) -> Any:
        read = honest(self, forecast)
        return read and read._replace(mean=read.mean / SLOPE)

    return expected


def _unasked(honest: Any) -> Any:
    def refusal(line: Line, signal: Signal) -> str | None:
        return None if line.exits is not None else honest(line, signal)

    return refusal


PLANTED: list[tuple[Any, str, Callable[[Any], Any], FillModel]] = [
    (matching, "trailed_to", _back_too, FillModel.NEXT_OPEN),
    (exit_orders, "_is_nearer", _always, FillModel.NEXT_OPEN),
    (exit_orders, "_place", _at_entry, FillModel.NEXT_OPEN),
    (broker, "leave", _at_once, FillModel.NEXT_OPEN),
    (Line, "_close_first", _canceled, FillModel.QUOTE),
    (Executor, "fill_resting", _at_the_open, FillModel.QUOTE),
    *((ExitDistance, "of", _mistaken(unit), FillModel.NEXT_OPEN) for unit in DISTANCES),
    (ExitDistance, "share", _as_of_a_long, FillModel.NEXT_OPEN),
    (Planner, "_configured", _set_anew, FillModel.NEXT_OPEN),
    (exit_plans, "nearest", _farthest, FillModel.NEXT_OPEN),
    (Decider, "_expected", _raw, FillModel.NEXT_OPEN),
    (Exits, "roi_at", _at_any_age, FillModel.NEXT_OPEN),
    (Exits, "next_age_ms", _none, FillModel.QUOTE),
    (matching, "is_timed", _never, FillModel.NEXT_OPEN),
    (exit_orders, "_has_time_limits", _never, FillModel.NEXT_OPEN),
    (broker, "entry_refusal", _unasked, FillModel.NEXT_OPEN),
]


@pytest.mark.parametrize(("where", "name", "plant", "execution"), PLANTED, ids=[
    f"{row[1]}{row[2].__name__}" for row in PLANTED
])  # fmt: skip
def test_the_simulator_refutes_an_engine_that_is_wrong(
    monkeypatch: pytest.MonkeyPatch, where: Any, name: str, plant: Any, execution: FillModel
) -> None:
    monkeypatch.setattr(where, name, plant(getattr(where, name)))
    with pytest.raises((AssertionError, InvariantBroken)):
        all_compared(100, execution)
