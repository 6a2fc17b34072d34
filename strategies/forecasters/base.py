"""The base of all forecasters with a checkpoint: it takes in bars, keeps features, and answers.

A subclass defines how bars become answers, for a group of instruments or for known bars of one, and
what it keeps of warm-up bars. Features are computed once, for all instruments together; an
instrument's features do not depend on the others of its group.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tracepaper.strategies.api.strategy import SCANNED_AT_ONCE
from tracepaper.strategies.errors import InvariantBroken
from tracepaper.strategies.features import rows as features
from tracepaper.strategies.features.rows import FeatureRows, FeatureSchema, FeatureStreams
from tracepaper.strategies.forecasters.outputs import TrainedModel
from tracepaper.strategies.networks.architecture import AttendedPart, Outputs
from tracepaper.strategies.other_symbol import OtherColumns
from tracepaper.strategies.types.decisions import BLOCK_BARS, Forecast
from tracepaper.strategies.types.market import Bar

if TYPE_CHECKING:
    from tracepaper.strategies.covariates import CovariateSource

Rows = NDArray[np.float32]
Floats = NDArray[np.float64]
Ids = NDArray[np.int64]
NO_ROWS: Final = FeatureRows(np.empty((0, 0), np.float32), np.empty(0), np.empty(0, np.int64))
"""The rows before the first call."""


@dataclass(frozen=True, slots=True)
class Attribution:
    """The attention of the last decision, bar by bar (oldest first).

    ``weights`` cover the whole receptive field and sum to 1 within ``l1_error``.
    """

    instrument: str
    open_time_ms: tuple[int, ...]
    weights: tuple[float, ...]
    l1_error: float
    parts: tuple[AttendedPart, ...] = ()
    """The shares of the network's tokens; empty if these are single rows."""
    outputs: Outputs | None = None
    """The network's outputs, if it has auxiliary heads."""


def bars_needed(rows: int, schema: FeatureSchema, wider: FeatureSchema) -> int:
    """Return how many bars an answer from *rows* rows of *schema* needs.

    *wider* is *schema*, or a wider schema of which only the newest row must be complete.
    """
    return max(rows + schema.lookback - 1, wider.lookback)


def positions_of(bars: Sequence[Bar]) -> Ids:
    """Return the absolute number of each of *bars*."""
    return np.array([bar.open_time_ms // bar.interval_ms for bar in bars], dtype=np.int64)


class InstrumentMemory:
    """The memory of one instrument: its newest bars, for features, and its last rollout."""

    def __init__(
        self,
        instrument: str,
        schema: FeatureSchema,
        stream: int = 0,
        *,
        part: FeatureSchema | None = None,
    ) -> None:
        self.instrument = instrument
        self.stream = stream  # its place among the features, and in a network's state
        self.tail: deque[Bar] = deque(maxlen=schema.lookback)  # the bars of a feature row
        self.features_current = True  # False while only ``tail`` has the newest bars
        self.by_age: Floats | None = None  # the last bar's rollout by age
        self._schema = schema
        self._part = part or schema  # the columns that a row must have

    def admit(self, bars: Sequence[Bar]) -> None:
        """Raise ``InvariantBroken`` unless *bars* follow the known ones, in order."""
        last = [self.tail[-1]] if self.tail else []
        for before, bar in pairwise([*last, *bars]):
            if bar.open_time_ms <= before.open_time_ms or bar.interval_ms != before.interval_ms:
                raise InvariantBroken(
                    f"{bar.instrument}: the bar at {bar.open_time_ms} does not follow the one at "
                    f"{before.open_time_ms}; feed bars of one interval, oldest first."
                )

    def take_all(self, bars: Sequence[Bar]) -> FeatureRows:
        """Take in *bars*; return the rows of the last ones, which have enough history."""
        self.admit(bars)
        before = len(self.tail)
        columns = features.columns([*self.tail, *bars])
        if before < self._schema.lookback - 1:
            block = features.compute_part(self._schema, self._part, columns)
        else:
            block = features.compute(self._schema, columns)
        first = max(before, block.first)
        self.tail.extend(bars)
        self.features_current = False
        count = np.arange(first + 1, before + len(bars) + 1)
        return FeatureRows(
            block.values[first:], block.sigma[first:], np.minimum(count, self._schema.lookback)
        )

    def follow(self, by_age: Floats) -> Floats:
        """Return the rollout before each of *by_age* [bar, cell], NaN at first; keep the last."""
        first = np.full_like(by_age[:1], np.nan) if self.by_age is None else self.by_age
        self.by_age = by_age[-1:]
        return np.concatenate((first, by_age[:-1]))

    def clear(self) -> None:
        """Forget everything."""
        self.tail.clear()
        self.features_current = False
        self.by_age = None


class FeatureMemory:
    """The feature rows of many instruments: for a group bar by bar, or for many known bars."""

    def __init__(
        self, schema: FeatureSchema, part: FeatureSchema | None = None, *, expected: int = 1
    ) -> None:
        """Compute *schema*, whose first columns are those of *part*, for *expected* instruments."""
        self._schema, self._part, self._expected = schema, part, expected
        self._features = FeatureStreams(schema, streams=0, part=part)
        self._instruments: dict[str, InstrumentMemory] = {}
        self._room = 0

    def of(self, instrument: str) -> InstrumentMemory:
        """Return the memory of *instrument*."""
        if (memory := self._instruments.get(instrument)) is None:
            used = len(self._instruments)
            if used == self._room:
                # Double the room, so that copies stay few, but not beyond the expected number.
                more = max(1, min(used, self._expected - used))
                self._features.extend(more)
                self._room += more
            memory = InstrumentMemory(instrument, self._schema, used, part=self._part)
            self._instruments[instrument] = memory
        return memory

    def take_group(self, bars: Sequence[Bar]) -> FeatureRows:
        """Take in one bar of each of several instruments; return their rows.

        Raises ``InvariantBroken`` for one that does not follow; nothing is taken in then.
        """
        memories = [self.of(bar.instrument) for bar in bars]
        for memory, bar in zip(memories, bars, strict=True):
            memory.admit([bar])
        for memory in memories:
            if not memory.features_current:
                self._features.warm(memory.stream, list(memory.tail))
                memory.features_current = True
        taken = self._features.step(bars, [memory.stream for memory in memories])
        for memory, bar in zip(memories, bars, strict=True):
            memory.tail.append(bar)
        return taken


def neutral(rows: Rows) -> Rows:
    """Return *rows* for a network: values that are not finite become neutral."""
    return np.nan_to_num(rows, nan=0.0, posinf=0.0, neginf=0.0)


def usable(rows: Rows, sigmas: Floats) -> Floats:
    """Return *sigmas*, NaN if the row is not finite: the gate then refuses the forecast."""
    return np.where(np.isfinite(rows).all(axis=1), sigmas, np.nan)


class FeatureWindow:
    """One instrument's newest feature rows, each with the open time and position of its bar."""

    def __init__(self, window: int, schema: FeatureSchema) -> None:
        self._window, self._schema = window, schema
        covariates = schema.covariates
        self._other = covariates if isinstance(covariates, OtherColumns) else None
        # Twice the window, so that rows rarely move to the front.
        self._rows = np.empty((2 * window, len(schema.names)), dtype=np.float32)
        self._times = np.empty((2 * window, 3), dtype=np.int64)  # opening, position, close
        self._lacks = np.zeros(2 * window, dtype=np.bool_)  # another symbol's bar
        self._end = 0

    @property
    def is_full(self) -> bool:
        """Whether there are as many rows as the network takes."""
        return self._end >= self._window

    @property
    def _newest(self) -> slice:
        return slice(max(self._end - self._window, 0), self._end)

    @property
    def rows(self) -> Rows:
        """The rows, oldest first: [row, feature]; a view that the next ``take`` changes."""
        return self._rows[self._newest]

    @property
    def opened(self) -> Ids:
        """The open times of their bars: [row]."""
        return self._times[self._newest, 0]

    @property
    def positions(self) -> Ids:
        """The absolute numbers of their bars: [row]."""
        return self._times[self._newest, 1].copy()

    def take(self, bar: Bar, taken: FeatureRows, at: int) -> float | None:
        """Append row *at* of *taken*, that of *bar*; return its σ, NaN if it is not finite.

        *taken* may be of a wider schema. A row without its full lookback is left out: None. A value
        that is not finite becomes neutral for later bars.
        """
        if taken.bars[at] < self._schema.lookback:
            return None
        if self._end == len(self._rows):
            for kept in (self._rows, self._times, self._lacks):
                kept[: self._window] = kept[self._window :]
            self._end = self._window
        row = taken.values[at, : len(self._schema.names)]
        self._rows[self._end] = neutral(row)
        place = bar.open_time_ms // bar.interval_ms
        self._times[self._end] = bar.open_time_ms, place, bar.closed_ms
        self._lacks[self._end] = True
        self._end += 1
        if self._other is not None:
            self._amend(bar, self._other)
        return float(taken.sigma[at]) if np.isfinite(row).all() else float("nan")

    def fill(self, bars: Sequence[Bar], taken: FeatureRows) -> None:
        """Append the rows *taken*, which are those of the last *bars*, by ``take``."""
        for at, bar in enumerate(bars[len(bars) - len(taken.values) :]):
            self.take(bar, taken, at)

    def _amend(self, bar: Bar, other: OtherColumns) -> None:
        """Fill earlier rows with another symbol's bars that arrived by the close of *bar*."""
        at = np.flatnonzero(self._lacks[: self._end])
        at = at[at >= self._newest.start]
        symbol = bar.instrument.rpartition(":")[2]
        rows = other.rows_by(symbol, self._times[at, 2], bar.closed_ms)
        is_known = np.isfinite(rows).all(axis=1)
        self._rows[at[is_known], len(self._schema.recipe.names) :] = rows[is_known]
        self._lacks[at[is_known]] = False


FeatureWindows = defaultdict[str, FeatureWindow]
"""The windows of instruments, each made at its first use."""


def feature_windows(window: int, schema: FeatureSchema) -> FeatureWindows:
    """Return empty windows of *window* rows of *schema*."""
    return defaultdict(lambda: FeatureWindow(window, schema))


def full_windows(
    windows: FeatureWindows, bars: Sequence[Bar], taken: FeatureRows
) -> Iterator[tuple[int, FeatureWindow, float]]:
    """Take in *bars*, whose last ones have the rows *taken*; yield each bar with a full window.

    It yields the bar's place, its window, which the next step changes, and its σ.
    """
    first = len(bars) - len(taken.values)
    for at, bar in enumerate(bars[first:]):
        window = windows[bar.instrument]
        sigma = window.take(bar, taken, at)
        if sigma is not None and window.is_full:
            yield first + at, window, sigma


class RowPasses(ABC):
    """The newest rows of each instrument, and passes over them that extend an answer."""

    def __init__(self, model: TrainedModel) -> None:
        self._model = model
        self._windows = feature_windows(model.network.config.receptive_field, model.schema)

    def warm(self, instrument: str, bars: Sequence[Bar], taken: FeatureRows) -> None:
        """Forget *instrument*, then take in *bars* (oldest first) with their rows *taken*."""
        self._windows.pop(instrument, None)
        self._windows[instrument].fill(bars, taken)

    def completed(
        self, bars: Sequence[Bar], answers: Sequence[Forecast | None], taken: FeatureRows
    ) -> list[Forecast | None]:
        """Take in *bars*; return their *answers*, each extended by its passes."""
        completed = list(answers)
        for place, window, sigma in full_windows(self._windows, bars, taken):
            if (answer := answers[place]) is not None:
                completed[place] = self._extended(answer, window, sigma)
        return completed

    @abstractmethod
    def _extended(self, answer: Forecast, window: FeatureWindow, sigma: float) -> Forecast:
        """Return *answer* extended; it is for the newest bar of a full *window*, with *sigma*."""

    def _inputs(self, window: FeatureWindow) -> tuple[Tensor, Tensor]:
        """Return the rows [bar, feature] and their positions [bar], where the network is."""
        device = self._model.network.device
        return torch.from_numpy(window.rows).to(device), torch.from_numpy(window.positions).to(
            device
        )


class CheckpointForecaster(ABC):
    """A checkpoint behind the ``Forecaster`` protocol, for many instruments."""

    device = "cpu"
    dtype = "float32"
    causal = True
    is_outside = False
    bucket_bars: int = BLOCK_BARS
    scanned_at_once = SCANNED_AT_ONCE
    warms_by_all: bool = False
    """Whether warm-up takes all bars, not only the last ``context``."""

    @property
    def vectors(self) -> CovariateSource | None:
        """The source of its covariates; None if it uses bars alone."""
        return None

    def __init__(
        self,
        model: Any,  # noqa: ANN401 - a checkpoint's identity and calibration
        memory: FeatureMemory,
        *,
        context: int,
        horizons: tuple[int, ...],
        measures: frozenset[str],
        mode: str,
        threads: int,
        backend: str,
    ) -> None:
        self.model_id = model.model_id
        self.model_sha256 = model.sha256
        self.calibration = model.calibration
        self.context = context
        self.horizons = horizons
        self.measures = measures
        self.mode = mode
        self.threads = threads
        self.backend = backend
        self.memory = memory
        self.passes: tuple[RowPasses, ...] = ()
        """Passes over the newest rows that extend each answer."""
        self.newest = NO_ROWS
        """The rows of the last call: one per bar of a group, or those of a scan's last bars."""

    def warm(self, instrument: str, bars: Sequence[Bar]) -> None:
        """Forget *instrument*, then take in *bars* (oldest first); only the last ones matter."""
        given = bars if self.warms_by_all else bars[-self.context :]
        memory = self.memory.of(instrument)
        memory.clear()
        taken = memory.take_all(given)
        self.remember(memory, given, taken)
        for passes in self.passes:
            passes.warm(instrument, given, taken)

    def step(self, bar: Bar) -> Forecast | None:
        """Take in one bar; return its forecast, or None while fewer than ``context`` are known."""
        return self.predict_many([bar])[0]

    def predict_many(self, bars: Sequence[Bar]) -> list[Forecast | None]:
        """Take in one bar of each of several instruments; return their forecasts.

        The instruments may have different histories. Raises ``InvariantBroken`` for two bars of one
        instrument, and for one that does not follow; nothing is taken in then.
        """
        taken = self.newest = self.memory.take_group(bars)
        return self._completed(bars, self.answer(bars, taken, is_group=True))

    def scan(self, bars: Sequence[Bar]) -> list[Forecast | None]:
        """Take in known *bars* of one instrument; return the forecast of each.

        An answer takes about a kilobyte: pass a long archive in parts.
        """
        if not bars:
            return []
        taken = self.newest = self.memory.of(bars[0].instrument).take_all(bars)
        return self._completed(bars, self.answer(bars, taken, is_group=False))

    @abstractmethod
    def remember(self, memory: InstrumentMemory, bars: Sequence[Bar], taken: FeatureRows) -> None:
        """Restart an instrument with *bars*, whose last ones have the rows *taken*."""

    @abstractmethod
    def answer(
        self, bars: Sequence[Bar], taken: FeatureRows, *, is_group: bool
    ) -> list[Forecast | None]:
        """Return the answers to *bars*, whose last ones have the rows *taken*.

        With *is_group* they are one bar of each of several instruments, else known bars of one.
        """

    def _completed(
        self, bars: Sequence[Bar], answers: list[Forecast | None]
    ) -> list[Forecast | None]:
        for passes in self.passes:
            answers = passes.completed(bars, answers, self.newest)
        return answers

    def _undecided(self, instrument: str) -> InvariantBroken:
        """Return the error of an explanation before the first decision."""
        return InvariantBroken(
            f"{instrument} has no decision to explain yet; warm it with {self.context} bars."
        )
