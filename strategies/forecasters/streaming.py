"""The streaming forecaster: one ring step a live bar, one padded pass for many known bars."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from tracepaper.strategies import features
from tracepaper.strategies.attention.blocks import by_age
from tracepaper.strategies.attention.masks import Mask
from tracepaper.strategies.attention.rollout import rollout_rows
from tracepaper.strategies.errors import InvariantBroken
from tracepaper.strategies.features import FeatureSchema, FeatureStream
from tracepaper.strategies.forecasters.answers import explanations, forecasts
from tracepaper.strategies.networks.flash import FlashNetwork
from tracepaper.strategies.networks.stream import (
    CHUNK_BARS,
    RESIDUAL,
    AbreastNetwork,
    Advance,
    StateStack,
    StreamState,
)
from tracepaper.strategies.types import Bar, Calibration, Forecast

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
        self.device = str(model.network.slopes.device)
        self.dtype = "float32"
        self.causal = True
        self.chunk_bars = CHUNK_BARS  # scan in multiples of it: a shorter part costs as much
        self.threads = threads
        self.backend = BACKEND
        self.network = AbreastNetwork(model.network)
        self._instruments: dict[str, InstrumentMemory] = {}
        self._stack = StateStack([])  # of the instruments that were stepped together
        self._places: dict[str, int] = {}  # of their states in it

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
        rows, _, positions = known.take_all(bars)
        for part, told in self._chunks(known, rows, positions):
            known.aged = by_age(told.rollout[-1:], positions[part][-1:])

    def step(self, bar: Bar) -> Forecast | None:
        """Take in one bar; return its forecast, or None while fewer than ``context`` are known."""
        known = self._of(bar.instrument)
        known.admit([bar])
        row, sigma = known.take(bar)
        if row is None:
            return None
        rows, sigmas, positions = _one_each([bar], [row], [sigma])
        told = self.network.advance(known.state, _tensor(rows), positions, padded=False)
        return self._forecasts(known, told, sigmas, positions)[0]

    def step_many(self, bars: Sequence[Bar]) -> list[Forecast | None]:
        """Take in one bar of each of several instruments in one pass; return their forecasts.

        Equal to ``step`` on each within 1e-6 of scale, for matrix products of another size round
        in another order. The instruments may differ in age and in the bars that they have. The
        states of those that were ever together lie side by side, so keep their set the same:
        one more costs a copy of all. Raises ``InvariantBroken`` for two bars of one instrument.
        """
        names = [bar.instrument for bar in bars]
        if len(set(names)) < len(names):
            raise InvariantBroken(
                "Two bars of one instrument cannot be stepped at once; hand over one of each."
            )
        if len(bars) == 1:
            return [self.step(bars[0])]
        for bar in bars:
            self._of(bar.instrument).admit([bar])
        taken = {bar.instrument: (bar, *self._of(bar.instrument).take(bar)) for bar in bars}
        ready = {name: (bar, row, s) for name, (bar, row, s) in taken.items() if row is not None}
        answers: dict[str, Forecast | None] = {}
        for first, together in self._side_by_side(ready):
            rows, sigmas, positions = _one_each(*zip(*(ready[x] for x in together), strict=True))
            streams = self._stack.abreast(first, first + len(together))
            told = self.network.advance_each(streams, _tensor(rows), positions)
            answers |= self._forecasts_of_each(together, told, sigmas, positions)
        return [answers.get(name) for name in names]

    def scan(self, bars: Sequence[Bar]) -> list[Forecast | None]:
        """Take in known *bars* of one instrument; return the forecast of each.

        The work is done in chunks of a fixed, padded shape that start at the first of *bars*, so
        bars that are cut off or corrupted change no bit of the answers before them. An answer
        takes about a kilobyte: hand over a long archive in parts.
        """
        if not bars:
            return []
        known = self._of(bars[0].instrument)
        rows, sigmas, positions = known.take_all(bars)
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

    def _of(self, instrument: str) -> InstrumentMemory:
        if instrument not in self._instruments:
            self._instruments[instrument] = InstrumentMemory(self.model.network, self.model.schema)
        return self._instruments[instrument]

    def _chunks(
        self, known: InstrumentMemory, rows: Rows, positions: Ids
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

    def _side_by_side(self, names: Collection[str]) -> Iterator[tuple[int, list[str]]]:
        """Yield the stretches of the stack that *names* fill: the first place, and the names."""
        if new := [name for name in names if name not in self._places]:
            stacked = [*self._places, *new]
            self._places = {name: place for place, name in enumerate(stacked)}
            self._stack = StateStack([self._of(name).state for name in stacked])
        ordered = sorted(names, key=self._places.__getitem__)
        # Names without a gap between them keep their place's distance to their index.
        for _, group in groupby(enumerate(ordered), lambda at: self._places[at[1]] - at[0]):
            together = [name for _, name in group]
            yield self._places[together[0]], together

    def _forecasts(
        self, known: InstrumentMemory, told: Advance, sigmas: Floats, positions: Ids
    ) -> list[Forecast | None]:
        """Return the forecasts of the bars just taken in; None where the context is short."""
        aged = by_age(told.rollout, positions)
        before = np.full_like(aged[:1], np.nan) if known.aged is None else known.aged
        made = self._answers(told, aged, np.concatenate([before, aged[:-1]]), sigmas)
        known.aged = aged[-1:]
        short = self.receptive_field - 1 - (known.state.count - len(made))
        return [None if index < short else one for index, one in enumerate(made)]

    def _forecasts_of_each(
        self, names: Sequence[str], told: Advance, sigmas: Floats, positions: Ids
    ) -> dict[str, Forecast | None]:
        """Return the forecast of the bar just taken in of each of *names*, as ``_forecasts``."""
        memories = [self._of(name) for name in names]
        aged = by_age(told.rollout, positions)
        unknown = np.full_like(aged[:1], np.nan)
        before = [unknown if known.aged is None else known.aged for known in memories]
        made = self._answers(told, aged, np.concatenate(before), sigmas)
        for at, known in enumerate(memories):
            known.aged = aged[at : at + 1]
        enough = [known.state.count >= self.receptive_field for known in memories]
        return {name: made[at] if enough[at] else None for at, name in enumerate(names)}

    def _answers(
        self, told: Advance, aged: Floats, before: Floats, sigmas: Floats
    ) -> list[Forecast]:
        """Return what the network said as forecasts; *before* is each bar's earlier row by age."""
        model = self.model
        explained = explanations(
            told, aged, before, content_free=model.content_free, context=self.receptive_field
        )
        return forecasts(
            told.outputs, sigmas, explained, horizons=self.horizons,
            temperature=model.temperature, model_id=model.model_id,
        )  # fmt: skip


def _one_each(
    bars: Sequence[Bar], rows: Sequence[Rows], sigmas: Sequence[float]
) -> tuple[Rows, Floats, Ids]:
    """Return rows, σ where the row is usable, and positions of single *bars*."""
    stacked = np.stack(rows)
    positions = np.array([bar.open_time_ms // bar.interval_ms for bar in bars], dtype=np.int64)
    return stacked, _usable(stacked, np.array(sigmas)), positions


def _tensor(rows: Rows) -> torch.Tensor:
    """Return *rows* for the network; a value that is not finite is neutral for later bars."""
    return torch.from_numpy(np.nan_to_num(rows, nan=0.0, posinf=0.0, neginf=0.0))


def _usable(rows: Rows, sigmas: Floats) -> Floats:
    """Return *sigmas*, NaN where the row is not finite: the gate then refuses the forecast."""
    return np.where(np.isfinite(rows).all(axis=1), sigmas, np.nan)
