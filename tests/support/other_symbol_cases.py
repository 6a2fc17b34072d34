"""Two symbols of which one asks the other: the moves of ``LED`` follow those of ``LEADER``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from learning import MINUTE_MS, START_MS, minutes_of

from tracepaper.replay.archive import Candles
from tracepaper.strategies.types.market import Bar, CloseStart, Event
from tracepaper.strategies.units import iso

LEADER, LED = "BBBUSDT", "AAAUSDT"
COUNT = 2_600
"""Bars that are enough for a fit of two steps."""
ENDS = (1_500, 1_800, 2_200)
"""The bars at which its parts of time end."""
WINDOW = 80
RECIPE = f"""
[model]
kind = "cross"
[architecture]
dim = 8
layers = 2
heads = 2
bars = 9
frame = 1
tokens = {WINDOW}
other_symbol = "{LEADER}"
horizons = [5, 30]
[training]
steps = 2
length = 128
batch = 2
explained_bars = 500
threads = 1
[calibration]
horizon = 30
"""
SPLIT = "[split]\nembargo_bars = 30\n" + "\n".join(
    f'{name}_until = "{iso(START_MS + MINUTE_MS * end)}"'
    for name, end in zip(("train", "validation", "calibration"), ENDS, strict=True)
)


def candles(symbol: str, count: int, *, seed: int = 5, start: int = 0) -> Candles:
    """Return minutes of *symbol*: the leader's scale breathes at random, the led one's follows."""
    rng = np.random.default_rng(seed)
    scale = 5e-4 * np.exp(np.repeat(rng.uniform(-1.5, 1.5, -(-count // 10)), 10)[:count])
    noise = np.random.default_rng([seed, ord(symbol[0])])
    if symbol == LED:  # ten minutes after the leader
        scale = np.concatenate([np.full(10, 5e-4), scale[:-10]])
    moves = noise.normal(size=count) * scale
    return minutes_of(moves, noise, symbol=symbol, start=start, wick=100)


def closes(count: int, *, lacks: Iterable[int] = (), late: int = 0) -> Iterator[Event]:
    """Yield the events of *count* closes of both symbols, the led one's bar first.

    At those in *lacks* the leader's bar does not come, or, where *late*, so many closes later.
    """
    both = [candles(symbol, count).bars() for symbol in (LED, LEADER)]
    held: list[tuple[int, Bar]] = []
    for place, (led, leader) in enumerate(zip(*both, strict=True)):
        at_ms = led.close_time_ms
        if place in {*lacks} or held:
            yield CloseStart(led.open_time_ms, 1, (leader.instrument,), at_ms, at_ms)
            yield led
            if late:
                held.append((place, leader))
            if held and place >= held[0][0] + late:  # all that were held, one by one, in order
                yield from (bar for _, bar in held)
                held = []
        else:
            yield CloseStart(led.open_time_ms, 2, (), at_ms, at_ms)
            yield from (led, leader)
