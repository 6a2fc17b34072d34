"""Classes of histories, written beside the record as a user writes his own."""

from __future__ import annotations

from typing import Final

RAISING: Final = '''"""Raises at some bars, and asks for what cannot be."""

import random

from tracepaper import Action, Signal, Strategy


class Raising(Strategy):
    warmup = 3

    def decide(self, context):
        rng = random.Random(context.exact.open_time_ms)
        roll = rng.random()
        if roll < 0.04:
            raise ValueError("a drawn error")
        if roll < 0.06:
            return None
        return Signal(rng.choice((Action.LONG, Action.SHORT, Action.FLAT)), "drawn")
'''
MENDED: Final = RAISING.replace("< 0.04", "< 0").replace("< 0.06", "< 0")
"""The same without its faults."""
DRAWN_MODEL: Final = '''"""Answers from the last closes: a number, none, or NaN."""

import random

from tracepaper import Model


class Drawn(Model):
    context = 3
    horizons = (1,)

    def predict(self, inputs):
        rng = random.Random(float(inputs.past.close.sum()))
        roll = rng.random()
        if roll < 0.05:
            return {"mean_return": float("nan")}
        if roll < 0.1:
            return None
        return {"mean_return": rng.choice((-0.05, 0.05))}
'''

HANGING: Final = '''"""Hangs when it first sees some bars: a while, or until it is ended."""

import random
import time
from pathlib import Path

from tracepaper import Action, Signal, Strategy


class Hanging(Strategy):
    warmup = 3

    def decide(self, context):
        at = context.exact.open_time_ms
        rng, mark = random.Random(at), Path(f"hung-{at}")
        action = rng.choice((Action.LONG, Action.SHORT, Action.FLAT))  # hung or not, as a replay
        if rng.random() < 0.08 and not mark.exists() and not Path("calm").exists():
            mark.touch()
            time.sleep(rng.choice((1, 5, 15, 10_000)))
        return Signal(action, "drawn")
'''
LEAKING: Final = '''"""Keeps all that it was given, and closes no file that it opens."""

import random
from pathlib import Path

from tracepaper import Action, Signal, Strategy

KEPT = []


class Leaking(Strategy):
    warmup = 3

    def decide(self, context):
        if not Path("calm").exists():
            KEPT.append((context, open(__file__)))
        rng = random.Random(context.exact.open_time_ms)
        return Signal(rng.choice((Action.LONG, Action.SHORT, Action.FLAT)), "drawn")
'''
BOOKS: Final = """from tracepaper import Action, Signal, Strategy


class Books(Strategy):
    books = 2
    warmup = 3

    def decide(self, context):
        depth = context.depth
        if depth is None or not len(depth):
            return Signal(Action.HOLD, "no book")
        bids, asks = depth.size[-1].sum(axis=1)
        action = Action.LONG if bids > asks else Action.SHORT
        return Signal(action, "more is bid" if bids > asks else "more is asked")
"""
CLASSES: Final = {
    "books": BOOKS,
    "raising": RAISING,
    "model": DRAWN_MODEL,
    "hanging": HANGING,
    "leaking": LEAKING,
}
"""The classes by the name of their module, without ``_drawn``."""
