"""``TogetherStrategy``: trade all symbols of a close by the weights of one network over them.

The network is the run's model: it answers within the deadline, its forecasts are gated symbol by
symbol, and the weight that it gives a symbol is the size of that symbol's signal.

The rules are docs/several.md, P26 to P28.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np

from tracepaper.strategies.errors import ConfigInvalid, shown
from tracepaper.strategies.outlook import Outlook
from tracepaper.strategies.portfolio import SHARE_OF, PortfolioStrategy
from tracepaper.strategies.signals import Signal
from tracepaper.strategies.strategy import MODEL_GATES
from tracepaper.strategies.types import Action, Bar, Forecast

OPTIONS: Final = ("every", "long_only")
SHARES_NOTED: Final = 8
"""Symbols whose share of where a symbol looked is noted with its decision, the largest first."""
WITHOUT_ANSWER: Final = "no_answer"
"""The note that says why the network gave none."""
_BASIS_POINTS: Final = 1e4
_FLOATS: Final = np.dtype("<f8")
_BETWEEN: Final = Signal(Action.HOLD, "between two decisions")
_UNANSWERED: Final = Signal(Action.HOLD, "no forecast")
CAME_LATE: Final = "a bar came after the others of its close"


class SymbolAnswer(NamedTuple):
    """What a network over several symbols says of one of them beside its forecast."""

    weight: float  # in [-1, 1], before ``long_only``
    relative: tuple[float, ...]  # expected log return less the mean over the symbols, a horizon
    shares: tuple[float, ...]  # of where it looked, one a symbol of the run; they sum to 1

    def encoded(self) -> bytes:
        """Return it as ``Forecast.further`` holds it."""
        return np.array((self.weight, *self.relative, *self.shares), _FLOATS).tobytes()

    @classmethod
    def of(cls, forecast: Forecast) -> SymbolAnswer:
        """Read it back from a forecast of such a network."""
        weight, *others = np.frombuffer(forecast.further, _FLOATS).tolist()
        count = len(forecast.horizons)
        return cls(weight, tuple(others[:count]), tuple(others[count:]))


class CommonBars:
    """Of several symbols, how many bars are known up to the newest without a hole.

    It follows from the last *count* bars of each symbol.
    """

    def __init__(self, symbols: Sequence[str], count: int) -> None:
        self.count = count
        self.newest_ms: dict[str, int] = dict.fromkeys(symbols, -1)
        self._known = dict.fromkeys(symbols, 0)
        self._in_a_row = dict.fromkeys(symbols, 0)

    def take(self, bar: Bar) -> None:
        """Count a bar of any of the symbols."""
        symbol = symbol_of(bar)
        follows = bar.open_time_ms == self.newest_ms[symbol] + bar.interval_ms
        self._known[symbol] = min(self._known[symbol] + 1, self.count)
        self._in_a_row[symbol] = min(self._in_a_row[symbol] + 1, self.count) if follows else 1
        self.newest_ms[symbol] = bar.open_time_ms

    def forget(self, symbol: str) -> None:
        """Count the bars of *symbol* anew."""
        self.newest_ms[symbol], self._known[symbol], self._in_a_row[symbol] = -1, 0, 0

    def lacking(self) -> str:
        """Return in a sentence what is not known of which symbol; empty where all is."""
        for symbol, known in self._known.items():
            if known < self.count:
                return f"{symbol} has {known:,} of the {self.count:,} bars that are looked back on"
        for symbol, known in self._in_a_row.items():
            if known < self.count:
                return f"{symbol} lacks one of the last {self.count:,} bars"
        return CAME_LATE if len(set(self.newest_ms.values())) > 1 else ""


class TogetherStrategy(PortfolioStrategy):
    """Hold every symbol by the weight that the run's network over all of them gives it.

    With ``[sizing] mode = "equity"`` a weight is a share of equity. *every* is how many bars lie
    between decisions. Where the network has no answer for a close, or none in time, all symbols
    hold; a symbol that a gate refuses holds alone.
    """

    gates = MODEL_GATES - {"direction", "edge"}  # of the forecast's own sign, which decides nothing
    needs_forecast = True
    reads_history = False
    twins = ("ungated",)

    def __init__(
        self,
        symbols: Sequence[str],
        options: Mapping[str, object],
        *,
        context: int,
        every: int,
        horizon_index: int,
    ) -> None:
        if unknown := sorted(set(options) - set(OPTIONS)):
            raise ConfigInvalid(
                f"strategy.options.{unknown[0]} is unknown; use {', '.join(OPTIONS)}."
            )
        self.symbols = tuple(symbols)
        self.warmup = context
        self._every = _every(options.get("every", every))
        long_only = options.get("long_only", False)
        if type(long_only) is not bool:
            raise ConfigInvalid("strategy.options.long_only must be true or false.")
        self._long_only = long_only
        self._index = horizon_index
        self._bars = CommonBars(self.symbols, context)

    def observe(self, bar: Bar) -> None:
        """Count a closed bar of any symbol."""
        self._bars.take(bar)

    def decide(self, now: Mapping[str, Outlook]) -> Mapping[str, Signal]:
        """Answer for all symbols at a close of every so many bars; elsewhere all hold."""
        bar = next(iter(now.values())).exact
        if why := self._why_not(now, bar.open_time_ms):
            return dict.fromkeys(now, Signal(Action.HOLD, why, note={WITHOUT_ANSWER: why}))
        if (bar.open_time_ms // bar.interval_ms + 1) % self._every:
            return dict.fromkeys(now, _BETWEEN)
        return {
            symbol: _UNANSWERED
            if seen.forecast is None
            else self._signal(SymbolAnswer.of(seen.forecast))
            for symbol, seen in now.items()
        }

    def _why_not(self, now: Mapping[str, Outlook], open_ms: int) -> str:
        """Return why the network could not be asked about this close; empty where it could."""
        missing = [one for one, at_ms in self._bars.newest_ms.items() if at_ms < open_ms]
        if missing:
            return f"{missing[0]} has no bar at this close"
        return self._bars.lacking() or (CAME_LATE if len(now) < len(self.symbols) else "")

    def _signal(self, said: SymbolAnswer) -> Signal:
        """Return the signal of one symbol, its size the weight, with what it follows from."""
        weight = max(said.weight, 0.0) if self._long_only else said.weight
        note = {"weight": weight, "relative_bp": said.relative[self._index] * _BASIS_POINTS}
        order = np.argsort(-np.array(said.shares), kind="stable")[:SHARES_NOTED].tolist()
        note |= {f"{SHARE_OF}{self.symbols[at]}": said.shares[at] for at in order}
        if weight == 0.0:
            return Signal(Action.FLAT, "no weight", note=note)
        action = Action.LONG if weight > 0.0 else Action.SHORT
        return Signal(action, "held by its weight", min(abs(weight), 1.0), note=note)


def symbol_of(bar: Bar) -> str:
    """Return the symbol of a bar's instrument."""
    return bar.instrument.partition(":")[2]


def _every(value: object) -> int:
    if type(value) is not int or value < 1:
        raise ConfigInvalid(
            f"strategy.options.every is {shown(value)}; it must be a whole number of bars."
        )
    return value
