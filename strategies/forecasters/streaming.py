"""The streaming forecaster: one ring-buffer step a live bar, one padded pass over known bars."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, ClassVar, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tracepaper.strategies.api.strategy import SCANNED_AT_ONCE
from tracepaper.strategies.attention.layer import Layer
from tracepaper.strategies.attention.masks import Mask
from tracepaper.strategies.attention.methods import rollout
from tracepaper.strategies.attention.time_buckets import cells_by_age
from tracepaper.strategies.errors import InvariantBroken
from tracepaper.strategies.features import rows as features
from tracepaper.strategies.features.rows import FeatureRows, FeatureSchema, FeatureStreams
from tracepaper.strategies.forecasters.outputs import (
    TrainedModel,
    explanations,
    forecasts,
    require_one_of_each,
)
from tracepaper.strategies.gates.gate import MEASURES
from tracepaper.strategies.networks.architecture import (
    AttendedPart,
    LayerAttribution,
    Outputs,
    Trace,
)
from tracepaper.strategies.networks.attribution import STORED, AttributionMethod
from tracepaper.strategies.networks.flash import TILES, FlashNetwork
from tracepaper.strategies.networks.stream import (
    CHUNK_BARS,
    Advance,
    StreamingNetwork,
    StreamState,
)
from tracepaper.strategies.types.decisions import Forecast
from tracepaper.strategies.types.market import Bar

if TYPE_CHECKING:
    from tracepaper.strategies.forecasters.dropout import DropoutPasses

Rows = NDArray[np.float32]
Floats = NDArray[np.float64]
Ids = NDArray[np.int64]


NO_ROWS: Final = FeatureRows(np.empty((0, 0), np.float32), np.empty(0), np.empty(0, np.int64))
"""The rows of a call that nothing has made yet."""


def bars_needed(rows: int, own: FeatureSchema, seen: FeatureSchema) -> int:
    """Return the bars on which an answer by *rows* rows of *own* and one row of *seen* depends.

    *seen* is *own*, or a wider schema of which only the newest row is needed whole.
    """
    return max(rows + own.lookback - 1, seen.lookback)


class InstrumentMemory:
    """What is remembered of one instrument beside its stream: the lookback of its features."""

    def __init__(
        self, schema: FeatureSchema, stream: int, *, part: FeatureSchema | None = None
    ) -> None:
        self.stream = stream  # its place in the network's state and among the features
        self.tail: deque[Bar] = deque(maxlen=schema.lookback)  # what a feature row looks back on
        self.features_current = True  # False while only ``tail`` knows the newest bars
        self.by_age: Floats | None = None  # the last bar's rollout by age
        self.interval_ms = 0
        self._schema = schema
        self._part = part or schema  # whose columns a row needs to be given

    def admit(self, bars: Sequence[Bar]) -> None:
        """Raise ``InvariantBroken`` unless *bars* follow what is known, in order."""
        last = [self.tail[-1]] if self.tail else []
        for before, bar in pairwise([*last, *bars]):
            if bar.open_time_ms <= before.open_time_ms or bar.interval_ms != before.interval_ms:
                raise InvariantBroken(
                    f"{bar.instrument}: the bar at {bar.open_time_ms} does not follow the one at "
                    f"{before.open_time_ms}; feed bars of one interval, oldest first."
                )
        if bars:
            self.interval_ms = bars[-1].interval_ms

    def take_all(self, bars: Sequence[Bar]) -> tuple[FeatureRows, Ids]:
        """Take in *bars*; return rows and positions of the last of them: those with a row."""
        self.admit(bars)
        known = len(self.tail)
        columns = features.columns([*self.tail, *bars])
        if known < self._schema.lookback - 1:
            block = features.compute_part(self._schema, self._part, columns)
        else:
            block = features.compute(self._schema, columns)
        first = max(known, block.first)
        positions = _positions(bars)
        self.tail.extend(bars)
        self.features_current = False
        count = np.arange(first + 1, known + len(bars) + 1)
        rows = FeatureRows(
            block.values[first:],
            block.sigma[first:],
            np.minimum(count, self._schema.lookback),
        )
        return rows, positions[len(bars) - len(rows.values) :]

    def clear(self) -> None:
        """Forget everything."""
        self.tail.clear()
        self.features_current = False
        self.by_age = None


def take_rows(
    streams: FeatureStreams, memories: Sequence[InstrumentMemory], bars: Sequence[Bar]
) -> FeatureRows:
    """Take in admitted *bars*, one of each of *memories*; return their features."""
    for known in memories:
        if not known.features_current:
            streams.warm(known.stream, list(known.tail))
            known.features_current = True
    taken = streams.step(bars, [known.stream for known in memories])
    for known, bar in zip(memories, bars, strict=True):
        known.tail.append(bar)
    return taken


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

    streams: ClassVar[bool] = True
    """Whether it keeps queries, keys and values from bar to bar, explained by its own way."""

    def __init__(
        self,
        model: TrainedModel,
        *,
        mode: str,
        threads: int,
        instruments: int = 1,
        backend: str = TILES,
        way: AttributionMethod = STORED,
    ) -> None:
        """Answer by *model* where its weights are; *instruments* is how many are expected.

        *backend* is one of ``stream_backends``; *way* is how every bar is explained. Raises
        ``ConfigInvalid`` for one that no stream takes.
        """
        network = model.network
        assert isinstance(network, FlashNetwork), "the only kind that streams"
        config = network.config
        self.model = model
        self.model_id = model.model_id
        self.model_sha256 = model.sha256
        self.receptive_field = config.receptive_field
        self.context = bars_needed(self.receptive_field, model.schema, model.computed)
        self.horizons = config.horizons
        self.calibration = model.calibration
        self.mode = mode
        self.device = str(network.device)
        self.dtype = "float32"
        self.causal = True
        self.scanned_at_once = SCANNED_AT_ONCE
        self.measures = MEASURES | network.given_heads
        self.is_outside = False
        self.threads = threads
        self.backend = backend
        self.way = way
        self.network = StreamingNetwork(network, way, backend=backend)
        self._expected = instruments
        self._state = StreamState(network, streams=0, by_norm=self.network.fusion.by_norm)
        self._features = FeatureStreams(model.computed, streams=0, part=model.schema)
        self._instruments: dict[str, InstrumentMemory] = {}
        self.dropout: DropoutPasses | None = None
        """What adds the spread over passes with dropout to each answer; None: nothing does."""
        self.newest = NO_ROWS
        """The rows of the last call: of each bar of a group, of the last bars of a scan."""

    @property
    def attended_pairs(self) -> int:
        """Pairs of query and visible key over all layers and instruments: the work done."""
        return self._state.attended_pairs

    def history(self, instrument: str) -> tuple[Ids, list[tuple[Tensor, Tensor, Tensor]]]:
        """Return what *instrument*'s stream attended with; see ``StreamingNetwork.history``."""
        return self.network.history(self._state, self._of(instrument).stream)

    def warm(self, instrument: str, bars: Sequence[Bar]) -> None:
        """Forget *instrument*, then take in *bars* (oldest first) in chunks of a fixed size."""
        known = self._of(instrument)
        known.clear()
        self._state.clear(known.stream)
        taken, positions = known.take_all(bars)
        for part, advanced in self._chunks(known, self._own(taken.values), positions):
            known.by_age = cells_by_age(advanced.rollout[0, -1:], positions[part][-1:])
        if self.dropout is not None:
            self.dropout.warm(instrument, bars)

    def step(self, bar: Bar) -> Forecast | None:
        """Take in one bar; return its forecast, or None while fewer than ``context`` are known."""
        return self.predict_many([bar])[0]

    def predict_many(self, bars: Sequence[Bar]) -> list[Forecast | None]:
        """Take in one bar of each of several instruments in one pass; return their forecasts.

        Equal to ``step`` on each within 1e-4 of scale, for matrix products of another size round
        in another order. The instruments may differ in age and in the bars that they have.
        Raises ``InvariantBroken`` for two bars of one instrument, and for one that does not
        follow; nothing is taken in then.
        """
        answers = self._predicted(bars)
        return answers if self.dropout is None else self.dropout.completed(bars, answers)

    def _predicted(self, bars: Sequence[Bar]) -> list[Forecast | None]:
        require_one_of_each(bars)
        memories = [self._of(bar.instrument) for bar in bars]
        for known, bar in zip(memories, bars, strict=True):
            known.admit([bar])
        taken = self.newest = take_rows(self._features, memories, bars)
        ready = np.flatnonzero(taken.complete(self.model.schema)).tolist()
        answers: list[Forecast | None] = [None] * len(bars)
        if not ready:
            return answers
        chosen = [memories[at] for at in ready]
        rows = self._own(taken.values[ready])
        sigmas = _usable(rows, taken.sigma[ready])[:, None]
        positions = _positions([bars[at] for at in ready])[:, None]
        advanced = self.network.advance(
            self._state, _tensor(rows)[:, None], positions, streams=[x.stream for x in chosen]
        )
        made = self._forecasts(chosen, advanced, sigmas, positions)
        for at, [forecast] in zip(ready, made, strict=True):
            answers[at] = forecast
        return answers

    def scan(self, bars: Sequence[Bar]) -> list[Forecast | None]:
        """Take in known *bars* of one instrument; return the forecast of each.

        The work is done in chunks of a fixed, padded shape that start at the first of *bars*, so
        bars that are cut off or corrupted change no bit of the answers before them. An answer
        takes about a kilobyte: hand over a long archive in parts.
        """
        if not bars:
            return []
        known = self._of(bars[0].instrument)
        taken, positions = known.take_all(bars)
        self.newest = taken
        rows = self._own(taken.values)
        answers: list[Forecast | None] = [None] * (len(bars) - len(rows))
        usable = _usable(rows, taken.sigma)
        for part, advanced in self._chunks(known, rows, positions):
            answers += self._forecasts(
                [known], advanced, usable[None, part], positions[None, part]
            )[0]
        return answers if self.dropout is None else self.dropout.completed(bars, answers)

    def explain(self, instrument: str) -> Attribution:
        """Return the attribution of *instrument*'s last decision, bar by bar.

        One backward pass through the kept queries, keys and logsumexps; no forward pass.
        Raises ``InvariantBroken`` before the first decision.
        """
        known = self._decided(instrument)
        positions, layers = self._layers(instrument)
        found = rollout(
            layers,
            [len(positions) - 1],
            self.way.rollout,
            backend="auto" if self.device != "cpu" else self.backend,
        )
        weights = found.weights["bars"][0, 0].tolist()
        times = (positions * known.interval_ms).tolist()
        return Attribution(instrument, tuple(times), tuple(weights), float(found.l1_error[0, 0]))

    def _layers(self, instrument: str) -> tuple[Ids, list[Layer]]:
        """Return the positions of *instrument*'s stream, and its layers over them."""
        positions, history = self.history(instrument)
        mask, fusion = Mask.window(self.network.config.window), self.network.fusion
        kept = self._of(instrument).stream
        norms = self.network.lengths(self._state, kept) if fusion.by_norm else [None] * len(history)
        return positions, [
            Layer(query, key, None, logsumexp, mask, norms=lengths, layer=depth, step=depth)
            for depth, ((query, key, logsumexp), lengths) in enumerate(
                zip(history, norms, strict=True)
            )
        ]

    def attribution(self, instrument: str, bars: Sequence[Bar]) -> Attribution:
        """Return ``explain``'s answer, whose times are those of the last of *bars*."""
        del bars  # a stream knows the positions of what it keeps
        return self.explain(instrument)

    def parts(self, instrument: str) -> tuple[AttendedPart, ...]:
        """Return what the network saw instead of single rows: nothing."""
        del instrument
        return ()

    def further_outputs(self, instrument: str) -> Outputs | None:
        """Return the outputs of heads that only some networks have: None."""
        del instrument
        return None

    def attribution_by_layer(self, instrument: str) -> list[LayerAttribution]:
        """Return what each layer did at *instrument*'s last decision, the lowest first.

        Carried down as the stored explanation is. No forward pass. Raises ``InvariantBroken``
        before the first decision.
        """
        self._decided(instrument)
        trace = Trace()
        for layer in self._layers(instrument)[1]:
            trace.attend(layer)
        return trace.by_layer(self.way.rollout)

    def _decided(self, instrument: str) -> InstrumentMemory:
        """Return what is known of *instrument*; raise ``InvariantBroken`` before a decision."""
        known = self._of(instrument)
        if self._state.counts[known.stream] < self.receptive_field:
            raise InvariantBroken(
                f"{instrument} has no decision to explain yet; warm it with {self.context} bars."
            )
        return known

    def _of(self, instrument: str) -> InstrumentMemory:
        used = len(self._instruments)
        if instrument not in self._instruments:
            if used == len(self._state.counts):
                # By as many as there are, so that copies stay few, but not beyond those expected.
                more = max(1, min(used, self._expected - used))
                self._state.extend(more)
                self._features.extend(more)
            self._instruments[instrument] = InstrumentMemory(
                self.model.computed, used, part=self.model.schema
            )
        return self._instruments[instrument]

    def _own(self, rows: Rows) -> Rows:
        return rows[:, : len(self.model.schema.names)]

    def _chunks(
        self, known: InstrumentMemory, rows: Rows, positions: Ids
    ) -> Iterator[tuple[slice, Advance]]:
        """Take in *rows* chunk by chunk; yield which rows, and what the network says of them."""
        done = 0
        while done < len(rows):
            part = slice(done, done + CHUNK_BARS)
            advanced = self.network.advance(
                self._state,
                _tensor(rows[part])[None],
                positions[None, part],
                streams=[known.stream],
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

        *sigmas* and *positions* are [instrument, bars]. None stands where the context is short.
        """
        streams, bars, _ = advanced.rollout.shape
        by_age = cells_by_age(advanced.rollout.reshape(streams * bars, -1), positions.ravel())
        by_age = by_age.reshape(streams, bars, -1)
        unknown = np.full_like(by_age[0, :1], np.nan)
        first = np.stack([unknown if x.by_age is None else x.by_age for x in memories])
        before = np.concatenate([first, by_age[:, :-1]], axis=1)
        made = self._answers(advanced, by_age, before, sigmas.ravel())
        answers: list[list[Forecast | None]] = []
        for at, known in enumerate(memories):
            known.by_age = by_age[at, -1:]
            short = self.receptive_field - 1 - (self._state.counts[known.stream] - bars)
            own = made[at * bars : (at + 1) * bars]
            answers.append([None if index < short else one for index, one in enumerate(own)])
        return answers

    def _answers(
        self, advanced: Advance, by_age: Floats, before: Floats, sigmas: Floats
    ) -> list[Forecast]:
        """Return what the network said as forecasts, one instrument's bars after another's.

        *by_age* and *before*, each bar's row by age and that of the bar before it, are
        [instrument, bars, cell]; *sigmas* are [instrument * bars].
        """
        model = self.model
        cells = by_age.shape[-1]
        explained = explanations(
            advanced,
            by_age.reshape(-1, cells),
            before.reshape(-1, cells),
            content_free=model.content_free,
            context=self.receptive_field,
        )
        return forecasts(
            advanced.outputs,
            sigmas,
            explained,
            horizons=self.horizons,
            temperature=model.temperature,
            model_id=model.model_id,
            levels=model.levels,
        )


def _positions(bars: Sequence[Bar]) -> Ids:
    return np.array([bar.open_time_ms // bar.interval_ms for bar in bars], dtype=np.int64)


def _tensor(rows: Rows) -> Tensor:
    """Return *rows* for the network; a value that is not finite is neutral for later bars."""
    return torch.from_numpy(np.nan_to_num(rows, nan=0.0, posinf=0.0, neginf=0.0))


def _usable(rows: Rows, sigmas: Floats) -> Floats:
    """Return *sigmas*, NaN where the row is not finite: the gate then refuses the forecast."""
    return np.where(np.isfinite(rows).all(axis=1), sigmas, np.nan)
