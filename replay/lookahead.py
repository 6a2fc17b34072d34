"""The future perturbed, and the past cut off: what a decision may and may not depend on.

``lookahead``: at many bars everything later is corrupted or cut off; no earlier step may move.
``recursive``: the data start later; after the stated warm-up no forecast, measure or wish may
differ. A strategy or network that peeks, or remembers more than it says, is named with the bar.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Final

import numpy as np

from tracepaper.daemon.config import Config
from tracepaper.daemon.describing import started
from tracepaper.replay.assembly import build
from tracepaper.replay.backtest import thinking_over
from tracepaper.replay.compare import (
    Difference,
    answers_agree,
    decision_differences,
    measures_agree,
    step_differences,
)
from tracepaper.replay.importers import Candles, slice_candles
from tracepaper.strategies.errors import DataInvalid
from tracepaper.strategies.types import RISK_GATES, Action, Bar, Step

BEYOND_BARS: Final = 512
"""Corrupted bars that follow a probe: a batched pass sees them together with the bars before."""

Tell = Callable[[str], None]


@dataclass
class Finding:
    """What a check found: how many probes, how many steps compared, the first difference."""

    check: str
    probes: int = 0
    compared: int = 0
    differences: list[Difference] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        """Whether nothing moved."""
        return not self.differences


def derive(config: Config, candles: Candles, *, path: str) -> list[Step]:
    """Return every step of a replay of *candles*; nothing is stored."""
    replay = build(config, [candles], started_at_ms=0, path=path)
    thinking = thinking_over(replay)
    start = started(replay.forecaster, warm_from=(), market_ms=replay.feed.period_start_ms)
    events = thinking.ahead(chain((start,), replay.feed.events()))
    steps = [replay.engine.step(event, thinking.now(event)) for event in events]
    return [step for step in steps if isinstance(step.event, Bar)]


def lookahead(
    config: Config,
    candles: Candles,
    *,
    probes: int,
    path: str = "scan",
    seed: int = 0,
    tell: Tell = lambda _: None,
) -> Finding:
    """Corrupt or cut everything after *probes* seeded bars; compare every step up to each."""
    found = Finding("lookahead")
    places = _places(len(candles), probes, seed)
    whole = derive(config, candles, path=path)
    for number, place in enumerate(places):
        tell(f"probe {number + 1} of {len(places)}: after bar {place}")
        cut = number % 2 == 1
        until = place + 1 if cut else min(place + 1 + BEYOND_BARS, len(candles))
        perturbed = slice_candles(candles, slice(0, until))
        if not cut:
            perturbed = _corrupted(perturbed, place + 1)
        found.probes += 1
        steps = derive(config, perturbed, path=path)
        for one, two in zip(whole[: place + 1], steps[: place + 1], strict=True):
            found.compared += 1
            if one != two:
                found.differences.append(_first_difference(one, two))
                return found
    return found


def recursive(
    config: Config,
    candles: Candles,
    *,
    probes: int,
    warmup: int,
    path: str = "scan",
    tell: Tell = lambda _: None,
) -> Finding:
    """Start at *probes* later bars; after *warmup* bars nothing but the account may differ."""
    found = Finding("recursive")
    room = len(candles) - warmup
    if room < 2:  # noqa: PLR2004 - one bar to start later by, one to compare
        raise DataInvalid(
            f"{candles.path} holds {len(candles)} bars and the warm-up alone takes {warmup}; "
            "give more data."
        )
    whole = derive(config, candles, path=path)
    starts = sorted({max(1, round(room * (turn + 1) / (probes + 1))) for turn in range(probes)})
    for number, start in enumerate(starts):
        tell(f"probe {number + 1} of {len(starts)}: starting at bar {start}")
        steps = derive(config, slice_candles(candles, slice(start, len(candles))), path=path)
        found.probes += 1
        for one, two in zip(whole[start + warmup :], steps[warmup:], strict=True):
            found.compared += 1
            if not _same_judgement(one, two):
                found.differences.append(_first_difference(one, two))
                return found
    return found


def _places(bars: int, probes: int, seed: int) -> list[int]:
    """Return seeded bars to probe, in order; never the last one."""
    if bars < 3:  # noqa: PLR2004 - a past, a probe and a future
        raise DataInvalid(f"{bars} bars have no future to perturb; give more data.")
    drawn = np.random.default_rng(seed).choice(
        np.arange(bars // 4, bars - 1), size=min(probes, bars - 1 - bars // 4), replace=False
    )
    return sorted(int(place) for place in drawn)


def _corrupted(candles: Candles, start: int) -> Candles:
    """Return *candles* with nonsense from *start* on: prices tenfold, volumes gone."""
    later = np.arange(len(candles)) >= start
    factor = np.where(later, 10, 1)
    return replace(
        candles,
        open=candles.open * factor,
        high=candles.high * factor * np.where(later, 2, 1),
        low=candles.low,
        close=candles.close * factor,
        volume=np.where(later, 0, candles.volume),
    )


def _first_difference(one: Step, two: Step) -> Difference:
    assert isinstance(one.event, Bar)
    key = one.event.instrument, one.event.open_time_ms
    for name, first, second in step_differences(one, two):
        return Difference(*key, name, first, second)
    return Difference(*key, "step", "", "")


def _same_judgement(one: Step, two: Step) -> bool:
    """Return whether two steps forecast, measure and wish the same, whatever was held before."""
    a, b = one.decision, two.decision
    if a is None or b is None:
        return a is b
    moved = Action.HOLD not in (a.action, b.action)
    if moved and (a.action, a.target_quantity) != (b.action, b.target_quantity):
        return False
    differing = {name for name, _, _ in decision_differences(a, b)}
    judged = a.refused_by not in RISK_GATES and b.refused_by not in RISK_GATES
    if judged and differing & {"refused_by", "regime"} and not _at_threshold(one, two):
        return False
    return answers_agree(one.answer, two.answer) and measures_agree(a, b)


def _at_threshold(one: Step, two: Step) -> bool:
    """Return whether a gate that only one of the two passes stands within 1e-4 of its threshold."""
    a, b = one.decision, two.decision
    assert a is not None
    assert b is not None
    for place, threshold in enumerate(a.gate_set.thresholds):
        bit = 1 << place
        if (a.passed ^ b.passed) & bit:
            first, second = a.measures[place], b.measures[place]
            if first is None or second is None:
                return False
            if abs(first - threshold) > 1e-4 * max(abs(threshold), 1.0):
                return False
    return True
