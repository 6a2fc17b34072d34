"""A run with stretches has the digest of a run by steps; planted differences are found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from builders import START_MS, bars
from exchange_client import MINUTE
from exit_cases import flat_bars, long, machine, path, steps_of
from stretches import HistoryBothWays

from tracepaper.daemon.broker.broker import Broker, Save
from tracepaper.daemon.broker.execution import MeanRange
from tracepaper.daemon.broker.line import Line
from tracepaper.daemon.engine import engine, shadow_course
from tracepaper.daemon.engine.decider import Decider
from tracepaper.daemon.engine.history import InstrumentState
from tracepaper.daemon.engine.shadow_course import ShadowCourse
from tracepaper.daemon.engine.state import SHADOWS
from tracepaper.daemon.engine.units import UnitQueue
from tracepaper.strategies.api.columns import ColumnRecord
from tracepaper.strategies.api.context import Percent
from tracepaper.strategies.errors import DataInvalid
from tracepaper.strategies.gates.evaluator import Plausibility
from tracepaper.strategies.types.market import Unit

TWO, MORE, FAILS, NOTES, STOP = 40, 48, 33, 20, 56
MODEL, OF_TWO, SCANNED, NOTED, LESS_EDGE, BY_MONEY = 100, 1118, 111, 847, 17, 33
TRADES_OF_TWO, BY_RANGES = 85, 6
"""Histories with a model; in the last two shadow accounts trade."""
BY_ARRAY, BY_ARRAY_SIZED = 17, 45
"""Histories of a class that answers by an array; in the second prices change its size."""
CELLS_ALONE = 1
"""A history in which only the learned regime changes between two decisions that hold nothing."""


def test_a_run_with_stretches_ends_as_one_by_steps(tmp_path: Path) -> None:
    reached: Counter[str] = Counter()
    for seed in (TWO, MORE, NOTES, STOP, BY_ARRAY, BY_ARRAY_SIZED):
        reached += HistoryBothWays(seed, tmp_path).counted
    assert reached["bars in slices"] > reached["slices"] > 20
    names = {f"stretches of {count} instruments" for count in (1, 2)}
    names |= {"stretches under a stop", "stretches with notes", "failures"}
    names |= {"stretches with a position"}
    assert names <= reached.keys()


def test_a_run_with_a_model_ends_as_one_by_steps(tmp_path: Path) -> None:
    reached: Counter[str] = Counter()
    for seed in (MODEL, OF_TWO, SCANNED, NOTED, TRADES_OF_TWO, BY_RANGES, CELLS_ALONE):
        reached += HistoryBothWays(seed, tmp_path, has_model=True).counted
    names = {f"stretches of {count} instruments with a model" for count in (1, 2)}
    names |= {"stretches with several regimes", "stretches without a forecast"}
    names |= {"stretches that confirm", "stretches with a position", "answers with notes"}
    names |= {"stretches with fills in a shadow account", "states in stretches"}
    assert names <= reached.keys()


def _whole_block(self: ColumnRecord, _name: str) -> Any:
    at, bars = vars(self)["_at"], vars(self)["_bars"]
    return bars[at + 1 :] if bars else ()


def _at_any_price(self: Decider, line: Line) -> Any:
    return keeper_of(self, line) and (lambda _bars: True)


def _without_ranges(self: InstrumentState, given: Any, measures: Any) -> None:
    known, self.day_range = self.day_range, MeanRange(9)
    follow_slice(self, given, measures)
    self.day_range = known


keeper_of, follow_slice = Decider.slice_keeper, InstrumentState.follow_slice


@pytest.mark.parametrize(
    ("seed", "where", "name", "planted"),
    [
        (BY_ARRAY, ColumnRecord, "same_ahead", _whole_block),
        (BY_ARRAY_SIZED, Decider, "slice_keeper", _at_any_price),
        (BY_ARRAY, Plausibility, "measured_ahead", lambda _known, bars, _tick: [9.0] * len(bars)),
        (BY_ARRAY, Plausibility, "add_measured", lambda _known, _count: None),
        (BY_ARRAY, InstrumentState, "follow_slice", _without_ranges),
    ],
)
def test_a_loss_in_a_slice_is_seen(
    seed: int, where: object, name: str, planted: object,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(where, name, planted)
    with pytest.raises(AssertionError):
        HistoryBothWays(seed, tmp_path)


def _ask_again(self: Decider, *given: Any, is_finite: bool | None) -> object:
    answer = decide_ahead(self, *given, is_finite=is_finite)
    self.decided = None
    return answer


def _without_fills(self: ShadowCourse, _fills: object) -> object:
    return accounts_of(self, {})


def _at_first_step(self: ShadowCourse, before: Any, judged: Any, _sequence: int, at: int) -> bool:
    return take_unit(self, before, judged, 0, at)


decide_ahead, take_unit = Decider.decide_ahead, ShadowCourse.take
accounts_of = vars(ShadowCourse)["_steps"]


@pytest.mark.parametrize(
    ("seed", "where", "name", "planted"),
    [
        (MODEL, engine, "enters", lambda _intent: False),
        (MODEL, engine, "is_kept", lambda _intent, _line: True),
        (TRADES_OF_TWO, shadow_course, "enters", lambda _intent: False),
        (TRADES_OF_TWO, shadow_course, "is_kept", lambda _intent, _line: True),
        (TRADES_OF_TWO, shadow_course, "_NOW", Save.LATER),
        (TRADES_OF_TWO, shadow_course, "_NO", Save.LATER),
        (TRADES_OF_TWO, Broker, "meet", lambda _broker, _bar: None),
        (TRADES_OF_TWO, Broker, "shadows_wait", property(lambda _broker: False)),
        (TRADES_OF_TWO, ShadowCourse, "_steps", _without_fills),
        (TRADES_OF_TWO, ShadowCourse, "take", _at_first_step),
        (BY_RANGES, ShadowCourse, "_show", lambda _course, _before: None),
        (MODEL, UnitQueue, "predictions", lambda units, predict: predict(units.unit)),
        (NOTED, Decider, "decide_ahead", _ask_again),
        (LESS_EDGE, shadow_course, "FOLLOWING", frozenset(SHADOWS)),
        (BY_MONEY, Decider, "is_sized_by_signal", property(lambda _state: True)),
    ],
)
def test_a_loss_in_a_stretch_with_a_model_is_seen(
    seed: int, where: object, name: str, planted: object,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(where, name, planted)
    with pytest.raises(AssertionError):
        HistoryBothWays(seed, tmp_path, has_model=True)


@pytest.mark.parametrize(
    ("protection", "exits", "units"),
    [
        ({"stop": Percent(0.16)}, {}, 3),
        ({"stop": Percent(0.16)}, {"stop_loss": "9%"}, 0),
        ({"trailing": Percent(0.16)}, {}, 0),
        ({"until": START_MS + 4 * MINUTE}, {}, 0),
    ],
)
def test_a_repeated_entry_ends_a_stretch_where_its_exit_orders_may_change(
    protection: dict[str, Any], exits: dict[str, str], units: int
) -> None:
    signals = dict.fromkeys(range(6), long(**protection))
    # Close 9,990 is within a tick of the stop at 9,984, whose order rests at 9,980.
    events = [*flat_bars(5), path(5, 10_000, 10_000, 9_990, 9_990)]
    by_steps = steps_of(machine(signals, exits=exits), events)
    ahead = machine(signals, exits=exits)
    steps = steps_of(ahead, events[:2])
    stretch = ahead.stretch(UnitQueue(events[2:]), 9)
    assert (0 if stretch is None else stretch.units) == units
    if stretch is not None:
        steps += chain.from_iterable(map(stretch.steps, range(stretch.units)))
    assert [*steps, *steps_of(ahead, events[len(steps) :])] == by_steps


def test_a_state_that_is_not_stored_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "_LATER", Save.NO)
    with pytest.raises(AssertionError, match="head"):
        HistoryBothWays(TWO, tmp_path)


def test_a_strategy_that_is_asked_twice_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    signal = vars(Decider)["_answer_to"]

    def forgetful(self: Decider, context: object) -> object:
        self.ahead = None
        return signal(self, context)

    monkeypatch.setattr(Decider, "_answer_to", forgetful)
    with pytest.raises(AssertionError, match="calls"):
        HistoryBothWays(FAILS, tmp_path)


def test_units_are_drawn_when_asked_for_and_an_error_waits_for_what_came_before() -> None:
    drawn: list[Unit] = []
    first, second, third = bars(3)

    def source() -> Iterator[Unit]:
        for unit in (first, second, third):
            drawn.append(unit)
            yield unit
        raise DataInvalid("no more")

    units = UnitQueue(source())
    assert (units.unit, drawn) == (first, [first])
    assert (units.advance(), drawn, units.unit) == (second, [first, second], second)
    assert (units.advance(), units.error, units.advance()) == (third, None, None)
    assert isinstance(units.error, DataInvalid)
