"""The Forecaster protocol, defined without torch so that the engine's side never imports it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from tracepaper.strategies.types import Bar, Calibration, Forecast


class Forecaster(Protocol):
    """A model of one or more instruments, fed closed bars in order.

    Its answer to a bar depends on the last ``context`` bars of that instrument alone, so a
    forecaster warmed with exactly that many bars equals one that has run for a year.
    """

    model_id: str
    model_sha256: str
    context: int  # bars of one instrument that its answer depends on, features included
    horizons: tuple[int, ...]
    calibration: Calibration | None
    path: str  # "step": bar by bar; "scan": known bars in one causal pass
    device: str
    dtype: str
    threads: int
    backend: str  # what attends, chosen once when it was built: "tiles" for a stream
    causal: bool  # True where ``scan`` may serve it

    def warm(self, instrument: str, bars: Sequence[Bar]) -> None:
        """Forget *instrument*, then take in *bars* (oldest first) in fixed-size chunks."""
        ...

    def step(self, bar: Bar) -> Forecast | None:
        """Take in one bar; return its forecast, or None while fewer than ``context`` are known."""
        ...

    def scan(self, bars: Sequence[Bar]) -> list[Forecast | None]:
        """Take in many known bars of one instrument at once; equal to ``step`` on each within 1e-4.

        Only for causal networks; raises ``InvariantBroken`` elsewhere.
        """
        ...


class BatchedForecaster(Forecaster, Protocol):
    """A forecaster that takes in a bar of each of several instruments in one pass."""

    def step_many(self, bars: Sequence[Bar]) -> list[Forecast | None]:
        """Take in one bar of each instrument; equal to ``step`` on each within 1e-6 of scale."""
        ...
