"""The streaming forecaster: one ring step a live bar, one padded pass for many known bars."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from tracepaper.strategies import features
from tracepaper.strategies.attention.masks import Mask
from tracepaper.strategies.attention.rollout import rollout_rows
from tracepaper.strategies.errors import InvariantBroken
from tracepaper.strategies.features import FeatureSchema, FeatureStream
from tracepaper.strategies.forecasters import measures
from tracepaper.strategies.forecasters.answers import explanations, forecasts
from tracepaper.strategies.networks.flash import FlashNetwork
from tracepaper.strategies.networks.stream import (
    CHUNK_BARS,
    RESIDUAL,
    Advance,
    StreamingNetwork,
    StreamState,
)
from tracepaper.strategies.types import Bar, Calibration, Forecast

Rows = NDArray[np.float32]
Floats = NDArray[np.float64]
Ids = NDArray[np.int64]

BACKEND: Final = "tiles"
"""What attends in a stream: each tile's scores are there, and give its explanation as well."""


@dataclass(frozen=True, slots=True)
class Model:
    """What a checkpoint adds to the network: identity, features and calibration."""

    network: FlashNetwork
    schema: FeatureSchema
    model_id: str
    sha256: str
    temperature: tuple[float, ...]  # of the direction head, one a horizon
    content_free: float
    calibration: Calibration | None


@dataclass(frozen=True, slots=True)
class Attribution:
    """Where the last decision looked, bar by bar (oldest first).

    ``weights`` cover the whole receptive field and sum to 1 within ``l1_error``.
    """

    instrument: str
    open_time_ms: tuple[int, ...]
    weights: tuple[float, ...]
    l1_error: float


class _Instrument:
    """The memory of one instrument: its features' lookback and its network's rings."""

    def __init__(self, model: Model) -> None:
        self.state = StreamState(model.network)
        self.features = FeatureStream(model.schema)
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

    def remember(self, bars: Sequence[Bar], lookback: int) -> None:
        """Keep the newest bars that a feature row looks back on, the last one included."""
        self.tail = [*self.tail, *bars][-lookback:]

    def clear(self) -> None:
        """Forget everything."""
        self.state.clear()
        self.features.warm([])
        self.tail = []
        self.features_current = True
        self.aged = None


class StreamingForecaster:
    """A causal-window flash network behind the ``Forecaster`` protocol, for many instruments."""

    def __init__(self, model: Model, *, path: str, threads: int) -> None:
        config = model.network.config
        self.model = model
        self.model_id = model.model_id
        self.model_sha256 = model.sha256
        self.receptive_field = config.receptive_field
        self.context = config.receptive_field + model.schema.lookback - 1
        self.horizons = config.horizons
        self.calibration = model.calibration
        self.path = path
        self.device = "cpu"
        self.dtype = "float32"
        self.causal = True
        self.chunk_bars = CHUNK_BARS  # scan in multiples of it: a shorter part costs as much
        self.threads = threads
        self.backend = BACKEND
        self.network = StreamingNetwork(model.network)
        self._instruments: dict[str, _Instrument] = {}

    @property
    def attended_pairs(self) -> int:
        """Pairs of query and visible key over all layers and instruments: the work done."""
        return sum(known.state.attended_pairs for known in self._instruments.values())

    def state(self, instrument: str) -> StreamState:
        """Return the network's memory of *instrument*."""
        return self._of(instrument).state

    def warm(self, instrument: str, bars: Sequence[Bar]) -> None:
        """Forget *instrument*, then take in *bars* (oldest first) in chunks of a fixed size."""
        known = self._of(instrument)
        known.clear()
        rows, _, positions = self._rows(known, bars)
        for part, told in self._chunks(known, rows, positions):
            known.aged = measures.by_age(told.rollout[-1:], positions[part][-1:])

    def step(self, bar: Bar) -> Forecast | None:
        """Take in one bar; return its forecast, or None while fewer than ``context`` are known."""
        known = self._of(bar.instrument)
        known.admit([bar])
        if not known.features_current:
            known.features.warm(known.tail)
            known.features_current = True
        row, sigma = known.features.step(bar)
        known.remember([bar], self.model.schema.lookback)
        if row is None:
            return None
        rows, sigmas = row[None], np.array([sigma])
        positions = np.array([bar.open_time_ms // bar.interval_ms])
        told = self.network.advance(known.state, _tensor(rows), positions, padded=False)
        return self._forecasts(known, told, _usable(rows, sigmas), positions)[0]

    def scan(self, bars: Sequence[Bar]) -> list[Forecast | None]:
        """Take in known *bars* of one instrument; return the forecast of each.

        The work is done in chunks of a fixed, padded shape that start at the first of *bars*, so
        bars that are cut off or corrupted change no bit of the answers before them. An answer
        takes about a kilobyte: hand over a long archive in parts.
        """
        if not bars:
            return []
        known = self._of(bars[0].instrument)
        rows, sigmas, positions = self._rows(known, bars)
        answers: list[Forecast | None] = [None] * (len(bars) - len(rows))
        usable = _usable(rows, sigmas)
        for part, told in self._chunks(known, rows, positions):
            answers += self._forecasts(known, told, usable[part], positions[part])
        return answers

    def explain(self, instrument: str) -> Attribution:
        """Return the attribution of *instrument*'s last decision, bar by bar.

        One backward pass through the kept queries, keys and logsumexps; no forward pass.
        Raises ``InvariantBroken`` before the first decision.
        """
        known = self._of(instrument)
        if known.state.count < self.receptive_field:
            raise InvariantBroken(
                f"{instrument} has no decision to explain yet; warm it with {self.context} bars."
            )
        positions, layers = self.network.history(known.state)
        queries, keys, logsumexps = zip(*layers, strict=True)
        rollout = rollout_rows(
            queries, keys, logsumexps, [len(positions) - 1],
            Mask.window(self.model.network.config.window), residual_weight=RESIDUAL,
        )  # fmt: skip
        weights = rollout.weights[0, 0].tolist()
        times = (positions * known.interval_ms).tolist()
        return Attribution(instrument, tuple(times), tuple(weights), float(rollout.l1_error[0, 0]))

    def _of(self, instrument: str) -> _Instrument:
        if instrument not in self._instruments:
            self._instruments[instrument] = _Instrument(self.model)
        return self._instruments[instrument]

    def _rows(self, known: _Instrument, bars: Sequence[Bar]) -> tuple[Rows, Floats, Ids]:
        """Return feature rows, σ and positions of the last of *bars*: those that have a row."""
        known.admit(bars)
        schema = self.model.schema
        block = features.compute(schema, features.columns([*known.tail, *bars]))
        first = max(len(known.tail), block.first)
        positions = np.array([b.open_time_ms // b.interval_ms for b in bars], dtype=np.int64)
        known.remember(bars, schema.lookback)
        known.features_current = False
        rows = block.values[first:]
        return rows, block.sigma[first:], positions[len(bars) - len(rows) :]

    def _chunks(
        self, known: _Instrument, rows: Rows, positions: Ids
    ) -> Iterator[tuple[slice, Advance]]:
        """Take in *rows* chunk by chunk; yield which rows, and what the network says of them."""
        done = 0
        while done < len(rows):
            part = slice(done, done + CHUNK_BARS)
            told = self.network.advance(
                known.state, _tensor(rows[part]), positions[part], padded=True
            )
            part = slice(done, done + len(told.rollout))
            yield part, told
            done = part.stop

    def _forecasts(
        self, known: _Instrument, told: Advance, sigmas: Floats, positions: Ids
    ) -> list[Forecast | None]:
        """Return the forecasts of the bars just taken in; None where the context is short."""
        model = self.model
        aged = measures.by_age(told.rollout, positions)
        explained = explanations(
            told, aged, known.aged, content_free=model.content_free, context=self.receptive_field
        )
        known.aged = aged[-1:]
        made = forecasts(
            told.outputs, sigmas, explained, horizons=self.horizons,
            temperature=model.temperature, model_id=model.model_id,
        )  # fmt: skip
        short = self.receptive_field - 1 - (known.state.count - len(made))
        return [None if index < short else one for index, one in enumerate(made)]


def _tensor(rows: Rows) -> torch.Tensor:
    """Return *rows* for the network; a value that is not finite is neutral for later bars."""
    return torch.from_numpy(np.nan_to_num(rows, nan=0.0, posinf=0.0, neginf=0.0))


def _usable(rows: Rows, sigmas: Floats) -> Floats:
    """Return *sigmas*, NaN where the row is not finite: the gate then refuses the forecast."""
    return np.where(np.isfinite(rows).all(axis=1), sigmas, np.nan)
