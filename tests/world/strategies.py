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
