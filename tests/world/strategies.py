"""Strategies of histories, written beside the record as a user writes his own."""

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
