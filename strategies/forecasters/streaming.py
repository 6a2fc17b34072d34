"""The streaming forecaster: one ring-buffer step per live bar, padded passes over known bars."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar

import numpy as np
import torch

from tracepaper.strategies.attention.layer import Layer
from tracepaper.strategies.attention.methods import PLAIN, Rollout, rollout
from tracepaper.strategies.features.rows import FeatureRows
from tracepaper.strategies.forecasters.base import (
    Attribution,
    CheckpointForecaster,
    FeatureMemory,
    Floats,
    Ids,
    InstrumentMemory,
    Rows,
    bars_needed,
    neutral,
    positions_of,
    usable,
)
from tracepaper.strategies.forecasters.outputs import TrainedModel, explanations, forecasts
from tracepaper.strategies.gates.gate import MEASURES
from tracepaper.strategies.networks.architecture import LayerAttribution, Trace
from tracepaper.strategies.networks.flash import TILES, FlashNetwork
from tracepaper.strategies.networks.stream import CHUNK_BARS, Advance, StreamingNetwork, StreamState
from tracepaper.strategies.time_buckets import bucket_bars, cells_by_age
from tracepaper.strategies.types.decisions import Forecast
from tracepaper.strategies.types.market import Bar


class StreamingForecaster(CheckpointForecaster):
    """A causal-window flash network behind the ``Forecaster`` protocol, for many instruments.

    A group is answered in one pass: equal to ``step`` on each within 1e-4 of scale, because matrix
    products of another size round in another order. Known bars are answered in chunks of a fixed,
    padded shape that start at the first bar, so missing or corrupt later bars change no bit of the
    answers before them.
    """

    streams: ClassVar[bool] = True
    """Whether it keeps queries, keys and values from bar to bar."""
    warms_by_all = True

    def __init__(
        self,
        model: TrainedModel,
        *,
        mode: str,
        threads: int,
        instruments: int = 1,
        backend: str = TILES,
        method: Rollout = PLAIN,
    ) -> None:
        """Answer by *model* on the device of its weights; *instruments* is their expected number.

        *backend* is one of ``stream_backends``; *method* explains every bar. Raises
        ``ConfigInvalid`` for a method that no stream supports.
        """
        network = model.network
        assert isinstance(network, FlashNetwork), "the only kind that streams"
        config = network.config
        super().__init__(
            model,
            FeatureMemory(model.computed, model.schema, expected=instruments),
            context=bars_needed(config.receptive_field, model.schema, model.computed),
            horizons=config.horizons,
            measures=MEASURES | network.given_heads,
            mode=mode,
            threads=threads,
            backend=backend,
        )
        self.model = model
        self.receptive_field = config.receptive_field
        self.bucket_bars = bucket_bars(config.receptive_field)
        self.device = str(network.device)
        self.method = method
        self.network = StreamingNetwork(network, method, backend=backend)
        self._expected = instruments
        self._state = StreamState(network, streams=0, by_norm=self.network.fusion.by_norm)

    @property
    def attended_pairs(self) -> int:
        """Pairs of query and visible key over all layers and instruments: the work done."""
        return self._state.attended_pairs

    def history(self, instrument: str) -> tuple[Ids, list[Layer]]:
        """Return the positions of *instrument*'s stream, and its layers over them."""
        return self.network.history(self._state, self._stream(self.memory.of(instrument)))

    def remember(self, memory: InstrumentMemory, bars: Sequence[Bar], taken: FeatureRows) -> None:
        """Restart its stream, in chunks of a fixed size."""
        self._state.clear(self._stream(memory))
        positions = positions_of(bars[len(bars) - len(taken.values) :])
        for part, advanced in self._chunks(memory, self._inputs(taken.values), positions):
            newest = advanced.rollout[0, -1:]
            memory.by_age = cells_by_age(newest, positions[part][-1:], self.bucket_bars)

    def answer(
        self, bars: Sequence[Bar], taken: FeatureRows, *, is_group: bool
    ) -> list[Forecast | None]:
        """Return the answers: for a group by one pass, for known bars chunk by chunk."""
        answers: list[Forecast | None] = [None] * len(bars)
        if not is_group:
            memory, first = self.memory.of(bars[0].instrument), len(bars) - len(taken.values)
            rows, positions = self._inputs(taken.values), positions_of(bars[first:])
            sigmas = usable(rows, taken.sigma)
            for part, advanced in self._chunks(memory, rows, positions):
                [answers[first + part.start : first + part.stop]] = self._forecasts(
                    [memory], advanced, sigmas[None, part], positions[None, part]
                )
            return answers
        ready = np.flatnonzero(taken.complete(self.model.schema)).tolist()
        if not ready:
            return answers
        chosen = [self.memory.of(bars[at].instrument) for at in ready]
        rows = self._inputs(taken.values[ready])
        sigmas = usable(rows, taken.sigma[ready])[:, None]
        positions = positions_of([bars[at] for at in ready])[:, None]
        advanced = self.network.advance(
            self._state,
            torch.from_numpy(neutral(rows))[:, None],
            positions,
            streams=[self._stream(memory) for memory in chosen],
        )
        answered = self._forecasts(chosen, advanced, sigmas, positions)
        for at, [forecast] in zip(ready, answered, strict=True):
            answers[at] = forecast
        return answers

    def explain(self, instrument: str) -> Attribution:
        """Return the attribution of *instrument*'s last decision, bar by bar.

        One backward pass through the kept queries, keys and logsumexps; no forward pass.
        Raises ``InvariantBroken`` before the first decision.
        """
        self._require_decision(instrument)
        positions, layers = self.history(instrument)
        attended = rollout(
            layers,
            [len(positions) - 1],
            self.method,
            backend="auto" if self.device != "cpu" else self.backend,
        )
        weights = attended.weights["tokens"][0, 0].tolist()
        times = (positions * self.memory.of(instrument).tail[-1].interval_ms).tolist()
        return Attribution(instrument, tuple(times), tuple(weights), float(attended.l1_error[0, 0]))

    def attribution_by_layer(self, instrument: str) -> list[LayerAttribution]:
        """Return the attribution of each layer at *instrument*'s last decision, the lowest first.

        They use the method of the stored explanation and no forward pass. Raises
        ``InvariantBroken`` before the first decision.
        """
        self._require_decision(instrument)
        trace = Trace()
        for layer in self.history(instrument)[1]:
            trace.attend(layer)
        return trace.by_layer(self.method)

    def _require_decision(self, instrument: str) -> None:
        """Raise ``InvariantBroken`` before the first decision of *instrument*."""
        if self._state.counts[self._stream(self.memory.of(instrument))] < self.receptive_field:
            raise self._undecided(instrument)

    def _stream(self, memory: InstrumentMemory) -> int:
        """Return an instrument's place in the state; make room for it if needed."""
        while memory.stream >= (room := len(self._state.counts)):
            self._state.extend(max(1, min(room, self._expected - room)))
        return memory.stream

    def _inputs(self, rows: Rows) -> Rows:
        return rows[:, : len(self.model.schema.names)]

    def _chunks(
        self, memory: InstrumentMemory, rows: Rows, positions: Ids
    ) -> Iterator[tuple[slice, Advance]]:
        """Take in *rows* chunk by chunk; yield the slice of rows and the network's answers."""
        done = 0
        while done < len(rows):
            part = slice(done, done + CHUNK_BARS)
            advanced = self.network.advance(
                self._state,
                torch.from_numpy(neutral(rows[part]))[None],
                positions[None, part],
                streams=[self._stream(memory)],
                padded=True,
            )
            part = slice(done, done + advanced.rollout.shape[1])
            yield part, advanced
            done = part.stop

    def _forecasts(
        self,
        memories: Sequence[InstrumentMemory],
        advanced: Advance,
        sigmas: Floats,
        positions: Ids,
    ) -> list[list[Forecast | None]]:
        """Return the forecasts of the bars just taken in, by instrument.

        *sigmas* and *positions* are [instrument, bars]. A bar without full context has None.
        """
        streams, bars, _ = advanced.rollout.shape
        rows = advanced.rollout.reshape(streams * bars, -1)
        by_age = cells_by_age(rows, positions.ravel(), self.bucket_bars)
        each = zip(memories, np.split(by_age, streams), strict=True)
        before = np.concatenate([memory.follow(of_stream) for memory, of_stream in each])
        model = self.model
        explained = explanations(
            rows,
            advanced.confidence.reshape(len(by_age), -1).numpy(),  # [bar, layer * head]
            by_age,
            before,
            errors=np.abs(1.0 - rows.sum(axis=1, dtype=np.float64)).tolist(),
            content_free=model.content_free,
            context=self.receptive_field,
        )
        by_bar = forecasts(
            advanced.outputs,
            sigmas.ravel(),
            explained,
            horizons=self.horizons,
            temperature=model.temperature,
            levels=model.levels,
        )
        answers: list[list[Forecast | None]] = []
        for at, memory in enumerate(memories):
            short = self.receptive_field - 1 - (self._state.counts[memory.stream] - bars)
            of_stream = by_bar[at * bars : (at + 1) * bars]
            answers.append(
                [None if index < short else forecast for index, forecast in enumerate(of_stream)]
            )
        return answers
