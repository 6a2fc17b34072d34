"""What a streaming forecaster remembers of one instrument."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from tracepaper.strategies import features
from tracepaper.strategies.errors import InvariantBroken
from tracepaper.strategies.features import FeatureSchema, FeatureStream
from tracepaper.strategies.networks.flash import FlashNetwork
from tracepaper.strategies.networks.state import StreamState
from tracepaper.strategies.types import Bar

Rows = NDArray[np.float32]
Floats = NDArray[np.float64]
Ids = NDArray[np.int64]


class InstrumentMemory:
    """The memory of one instrument: its features' lookback and its network's rings."""

    def __init__(self, network: FlashNetwork, schema: FeatureSchema) -> None:
        self.state = StreamState(network)
        self.features = FeatureStream(schema)
        self.tail: list[Bar] = []  # the newest bars, as many as a feature row looks back on
        self.features_current = True  # False while only ``tail`` knows the newest bars
        self.aged: Floats | None = None  # the last bar's rollout by age
        self.interval_ms = 0

    def admit(self, bars: Sequence[Bar]) -> None:
        """Raise ``InvariantBroken`` unless *bars* follow what is known, in order."""
        last = self.tail[-1:]
        for before, bar in pairwise([*last, *bars]):
            if bar.open_time_ms <= before.open_time_ms or bar.interval_ms != before.interval_ms:
                raise InvariantBroken(
                    f"{bar.instrument}: the bar at {bar.open_time_ms} does not follow the one at "
                    f"{before.open_time_ms}; feed bars of one interval, oldest first."
                )
        if bars:
            self.interval_ms = bars[-1].interval_ms

    def take(self, bar: Bar) -> tuple[NDArray[np.float32] | None, float]:
        """Take in an admitted *bar*; return its feature row and σ, None while bars are missing."""
        if not self.features_current:
            self.features.warm(self.tail)
            self.features_current = True
        row, sigma = self.features.step(bar)
        self._remember([bar])
        return row, sigma

    def take_all(self, bars: Sequence[Bar]) -> tuple[Rows, Floats, Ids]:
        """Take in *bars*; return rows, σ and positions of the last of them: those with a row."""
        self.admit(bars)
        schema = self.features.schema
        block = features.compute(schema, features.columns([*self.tail, *bars]))
        first = max(len(self.tail), block.first)
        positions = np.array([b.open_time_ms // b.interval_ms for b in bars], dtype=np.int64)
        self._remember(bars)
        self.features_current = False
        rows = block.values[first:]
        return rows, block.sigma[first:], positions[len(bars) - len(rows) :]

    def _remember(self, bars: Sequence[Bar]) -> None:
        """Keep the newest bars that a feature row looks back on, the last one included."""
        self.tail = [*self.tail, *bars][-self.features.schema.lookback :]

    def clear(self) -> None:
        """Forget everything."""
        self.state.clear()
        self.features.warm([])
        self.tail = []
        self.features_current = True
        self.aged = None
