"""The windowed forecaster: one forward pass a bar over a whole window.

ProbSparse ranks every query of the window and full attention lets a bar see later ones, so both
answer for the window that ends at the decided bar and for nothing else. Of known bars the features
alone are computed together.

It gives returns, odds and volatility, and no measure of attention: the gates of confidence,
collapse, shift and regime are not declared. Windows of known bars are answered many at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import repeat
from typing import TYPE_CHECKING, ClassVar, Final, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tracepaper.strategies.api.model import EXPLAINED
from tracepaper.strategies.api.strategy import SCANNED_AT_ONCE
from tracepaper.strategies.attention.methods import TIME_MAX
from tracepaper.strategies.attention.time_buckets import (
    bucket_count,
    cells_by_age,
    recent_mass,
    shift,
)
from tracepaper.strategies.covariates import CovariateSource
from tracepaper.strategies.errors import ConfigInvalid, InvariantBroken
from tracepaper.strategies.features.rows import FeatureRows, FeatureSchema, FeatureStreams
from tracepaper.strategies.forecasters.outputs import TrainedModel, forecasts, require_one_of_each
from tracepaper.strategies.forecasters.streaming import (
    NO_ROWS,
    Attribution,
    Ids,
    InstrumentMemory,
    bars_needed,
    take_rows,
)
from tracepaper.strategies.gates.gate import MEASURES
from tracepaper.strategies.networks.architecture import (
    AttendedPart,
    BarWeights,
    ExplainedOutputs,
    LayerAttribution,
    Outputs,
    together,
)
from tracepaper.strategies.networks.attribution import STORED, AttributionMethod
from tracepaper.strategies.other_symbol import OtherColumns
from tracepaper.strategies.types.decisions import BLOCK_BARS, Explanation, Forecast
from tracepaper.strategies.types.market import Bar

if TYPE_CHECKING:
    from tracepaper.strategies.forecasters.dropout import DropoutPasses


class Ring:
    """The newest *capacity* rows of *width* floats.

    Each row is written twice, *capacity* rows apart, so that the newest rows are one contiguous
    view at any moment: no copy when reading, two small ones when writing.
    """

    def __init__(self, *, capacity: int, width: int) -> None:
        if capacity < 1 or width < 1:
            raise ConfigInvalid(f"A ring of {capacity} rows of {width} holds nothing; enlarge it.")
        self._rows: NDArray[np.float64] = np.zeros((2 * capacity, width))
        self._capacity = capacity
        self._written = 0

    @property
    def capacity(self) -> int:
        """How many rows it can hold."""
        return self._capacity

    def __len__(self) -> int:
        """Return how many rows it holds."""
        return min(self._written, self._capacity)

    def push(self, row: NDArray[np.float64]) -> None:
        """Append *row* of shape [width]; the oldest row leaves once the ring is full."""
        slot = self._written % self._capacity
        self._rows[slot] = row
        self._rows[slot + self._capacity] = row
        self._written += 1

    def amend(self, age: int, cut: slice, values: NDArray[np.float32]) -> None:
        """Put *values* into the columns *cut* of the row pushed *age* rows before the newest."""
        slot = (self._written - 1 - age) % self._capacity
        self._rows[slot, cut] = self._rows[slot + self._capacity, cut] = values

    def view(self) -> NDArray[np.float64]:
        """Return the rows held, oldest first, as a read-only view of shape [len, width]."""
        end = (self._written - 1) % self._capacity + 1 + self._capacity if self._written else 0
        rows = self._rows[end - len(self) : end]
        rows.flags.writeable = False
        return rows


WINDOWS_AT_ONCE: Final = 256
"""Bars of one scan: its features then cost next to nothing, and its answers come within seconds."""
CONTENT_FREE: Final = 0.0
"""Neither network has a bias towards near bars, so attention without content is even."""


class FeatureWindow:
    """One instrument's newest feature rows, each with its position in its last column."""

    def __init__(
        self, window: int, schema: FeatureSchema, computed: FeatureSchema | None = None
    ) -> None:
        """Hold *window* rows of *schema*, the first columns of *computed* where that is wider."""
        self.rows = Ring(capacity=window, width=len(schema.names) + 1)
        self.newest = NO_ROWS  # of the bars last taken in, whole
        self.by_age: NDArray[np.float64] | None = None  # the last bar's rollout by age
        self._schema = schema
        self._features = FeatureStreams(computed or schema, part=schema)
        self._memory = InstrumentMemory(computed or schema, 0, part=schema)
        joined = schema.covariates
        self._other = joined if isinstance(joined, OtherColumns) else None
        self._pushed = 0
        self._lacking: dict[int, int] = {}  # rows without another symbol's bar: number, and close

    @classmethod
    def of(cls, model: TrainedModel) -> Self:
        """Return the empty window of a network that sees one instrument."""
        return cls(model.network.config.window, model.schema, model.computed)

    def take(self, bar: Bar) -> float:
        """Take in *bar* and return its σ, NaN where its row cannot be used.

        Raises ``InvariantBroken`` if it does not follow.
        """
        self._memory.admit([bar])
        self.newest = take_rows(self._features, [self._memory], [bar])
        for row, sigma in self._known(np.array([bar.open_time_ms // bar.interval_ms])):
            self._push(row, bar)
            return sigma
        return float("nan")

    def take_all(self, bars: Sequence[Bar]) -> Iterator[float]:
        """Take in *bars*, features at once and rows one by one; yield σ of each that has a row.

        These are the last of them. Raises ``InvariantBroken`` if one does not follow.
        """
        self.newest, positions = self._memory.take_all(bars)
        of_rows = bars[len(bars) - int(self.newest.complete(self._schema).sum()) :]
        for (row, sigma), bar in zip(self._known(positions), of_rows, strict=True):
            self._push(row, bar)
            yield sigma

    def _push(self, row: NDArray[np.float64], bar: Bar) -> None:
        """Append *row*, of *bar*; give earlier ones another symbol's bars that came late."""
        self.rows.push(row)
        if self._other is None:
            return
        symbol, close_ms = bar.instrument.rpartition(":")[2], bar.closed_ms
        self._pushed += 1
        self._lacking[self._pushed] = close_ms
        own = len(self._schema.recipe.names)
        numbers = [one for one in self._lacking if self._pushed - one < self.rows.capacity]
        closes = np.array([self._lacking[one] for one in numbers])
        rows = self._other.known(symbol, closes, close_ms)
        is_known = np.isfinite(rows).all(axis=1)
        for number, values in zip(
            np.array(numbers)[is_known].tolist(), rows[is_known], strict=True
        ):
            self.rows.amend(self._pushed - number, slice(own, -1), values)
        still = np.array(numbers)[~is_known].tolist()
        self._lacking = {number: self._lacking[number] for number in still}

    def _known(self, positions: Ids) -> Iterator[tuple[NDArray[np.float64], float]]:
        """Yield each complete row of ``newest`` with its position, and its σ.

        A value that is not finite is neutral for later bars, and its own bar's forecast is refused.
        """
        complete = self.newest.complete(self._schema)
        rows = self.newest.values[complete, : len(self._schema.names)]
        usable = np.isfinite(rows).all(axis=1)
        known = np.empty((len(rows), rows.shape[1] + 1))
        known[:, :-1] = np.nan_to_num(rows, nan=0.0, posinf=0.0, neginf=0.0)
        known[:, -1] = positions[complete]
        sigmas = np.where(usable, self.newest.sigma[complete], np.nan)
        return zip(known, sigmas.tolist(), strict=True)

    @property
    def is_full(self) -> bool:
        """Whether as many rows are known as the network takes."""
        return len(self.rows) == self.rows.capacity


class _Seen(NamedTuple):
    """What the network said of one bar."""

    outputs: Outputs  # [1, 1, ...]
    row: NDArray[np.float32]  # the rollout over 64-bar blocks, newest first, and what is older
    position: int  # of the bar
    confidence: NDArray[np.float32]  # [layer, head]
    l1_error: float


class WindowedForecaster:
    """A window network behind the ``Forecaster`` protocol, for many instruments."""

    streams: ClassVar[bool] = False
    """Whether it keeps queries, keys and values from bar to bar, explained by its own way."""

    def __init__(
        self,
        model: TrainedModel,
        *,
        threads: int,
        backend: str,
        dtype: str = "float32",
        way: AttributionMethod = STORED,
        mode: str = "step",
    ) -> None:
        """Answer by *model* where its weights are; *dtype* bfloat16 multiplies in half numbers.

        *way* is how each bar is explained. Raises ``ConfigInvalid`` or ``AttentionInvalid`` for a
        way that this network cannot be asked by.
        """
        self.model = model
        self.way = way
        self.model_id = model.model_id
        self.model_sha256 = model.sha256
        self.receptive_field = model.network.config.window
        self.context = bars_needed(self.receptive_field, model.schema, model.computed)
        self.horizons = model.network.config.horizons
        self.calibration = model.calibration
        self.mode = "scan" if mode == "scan" else "step"
        self._place = model.network.device
        self.device = str(self._place)
        self.dtype = dtype
        self.threads = threads
        self.backend = backend
        self.causal = True
        self.scanned_at_once = WINDOWS_AT_ONCE
        self.measures = MEASURES | model.network.given_heads
        self.is_outside = False
        self._network = model.network.eval()
        self._windows: dict[str, FeatureWindow] = {}
        if way != STORED:
            self._require_way()
        self.dropout: DropoutPasses | None = None
        """What adds the spread over passes with dropout to each answer; None: nothing does."""
        self.newest = NO_ROWS
        """The rows of the last call, of each bar."""

    @property
    def vectors(self) -> CovariateSource | None:
        """The covariates that a user supplies; None where the network was trained without."""
        joined = self.model.schema.covariates
        return None if joined is None else joined.source

    def warm(self, instrument: str, bars: Sequence[Bar]) -> None:
        """Forget *instrument*, then take in *bars* (oldest first); only the last ones matter."""
        window = self._windows[instrument] = FeatureWindow.of(self.model)
        for _ in window.take_all(bars[-self.context :]):
            pass
        if window.is_full:
            # The shift of the next bar needs this bar's rollout.
            self._explained(window, [self._see(window)])
        if self.dropout is not None:
            self.dropout.warm(instrument, bars[-self.context :])

    def step(self, bar: Bar) -> Forecast | None:
        """Take in one bar; return its forecast, or None while fewer than ``context`` are known."""
        window = self._of(bar.instrument)
        sigma = window.take(bar)
        self.newest = window.newest
        answer = self._answers(window, [sigma])[0] if window.is_full else None
        return answer if self.dropout is None else self.dropout.completed([bar], [answer])[0]

    def predict_many(self, bars: Sequence[Bar]) -> list[Forecast | None]:
        """Take in one bar of each of several instruments, one after the other, as ``step`` does.

        Raises ``InvariantBroken`` for two bars of one instrument.
        """
        require_one_of_each(bars)
        found = [self.step(bar) for bar in bars]
        self.newest = rows_together([self._windows[bar.instrument].newest for bar in bars])
        return found

    def scan(self, bars: Sequence[Bar]) -> list[Forecast | None]:
        """Take in known *bars* of one instrument; return the forecast of each.

        Their features are computed at once. Each window is a pass of its own: ProbSparse ranks
        queries, so in a product of another size another query might win a tie.
        """
        if not bars:
            return []
        window = self._of(bars[0].instrument)
        answers = self._answers(window, window.take_all(bars))
        self.newest = window.newest
        found = [*repeat(None, len(bars) - len(answers)), *answers]
        return found if self.dropout is None else self.dropout.completed(bars, found)

    def _of(self, instrument: str) -> FeatureWindow:
        if instrument not in self._windows:
            self._windows[instrument] = FeatureWindow.of(self.model)
        return self._windows[instrument]

    def _answers(self, window: FeatureWindow, taken: Iterable[float]) -> list[Forecast | None]:
        """Return the answer to each bar of *taken*, σ of bars that *window* is taking in.

        None stands where the window is not full.
        """
        sigmas: list[float] = []
        seen: list[_Seen] = []
        unknown = 0
        for sigma in taken:
            if not window.is_full:
                unknown += 1
                continue
            seen.append(self._see(window))
            sigmas.append(sigma)
        answers: list[Forecast | None] = [None] * unknown
        if sigmas:
            answers += forecasts(
                together([one.outputs for one in seen]),
                np.array(sigmas),
                self._explained(window, seen),
                horizons=self.horizons,
                temperature=self.model.temperature,
                model_id=self.model_id,
                levels=self.model.levels,
            )
        return answers

    def explain(self, instrument: str) -> BarWeights:
        """Return the last decision's rollout bar by bar: weights [1, 1, window], oldest first.

        Raises ``InvariantBroken`` before the first decision.
        """
        return self.look(instrument).rollout

    def attribution(self, instrument: str, bars: Sequence[Bar]) -> Attribution:
        """Return ``explain``'s answer with the times of the last of *bars*, the window's."""
        rollout = self.explain(instrument)
        weights = tuple(rollout.weights[0, 0].tolist())
        times = tuple(bar.open_time_ms for bar in bars[-len(weights) :])
        return Attribution(instrument, times, weights, float(rollout.l1_error[0, 0]))

    def parts(self, instrument: str) -> tuple[AttendedPart, ...]:
        """Return what the network saw instead of single rows; empty where it saw these."""
        return self.look(instrument).parts

    def further_outputs(self, instrument: str) -> Outputs | None:
        """Return the outputs where the network has heads that only some have; else None."""
        return self.look(instrument).outputs if self.model.network.further_heads else None

    def look(self, instrument: str) -> ExplainedOutputs:
        """Return what the network says of the last decision, and where it looked.

        Raises ``InvariantBroken`` before the first decision.
        """
        return self._look(self._decided(instrument))

    def attribution_by_layer(self, instrument: str) -> list[LayerAttribution]:
        """Return what each layer did at the last decision, the lowest first.

        Raises ``InvariantBroken`` before the first decision.
        """
        x, positions = self._inputs(self._decided(instrument))
        with torch.inference_mode():
            return self._network.attribution_by_layer(x, positions, half=self.dtype == "bfloat16")

    def _decided(self, instrument: str) -> FeatureWindow:
        """Return the window of *instrument*; raise ``InvariantBroken`` before it is full."""
        window = self._windows.get(instrument)
        if window is None or not window.is_full:
            raise InvariantBroken(
                f"{instrument} has no decision to explain yet; warm it with {self.context} bars."
            )
        return window

    def _inputs(self, window: FeatureWindow) -> tuple[Tensor, Tensor]:
        """Return the rows [1, window, features] and their positions [window]."""
        known = window.rows.view()
        x = torch.from_numpy(known[:, :-1].astype(np.float32))[None].to(self._place)
        return x, torch.from_numpy(known[:, -1].astype(np.int64)).to(self._place)

    def _look(self, window: FeatureWindow) -> ExplainedOutputs:
        x, positions = self._inputs(window)
        seen = self._network.explain(x, positions, self.way, half=self.dtype == "bfloat16")
        rollout = BarWeights(seen.rollout.weights.cpu(), seen.rollout.l1_error.cpu())
        return ExplainedOutputs(
            seen.outputs.map(lambda part: part.detach().cpu()),
            rollout,
            seen.confidence.float().cpu(),
            seen.parts,
        )

    def _require_way(self) -> None:
        """Ask once, of rows that say nothing: what cannot be had is said at the start."""
        window = self.receptive_field
        if self.way.method == "flow" and window > TIME_MAX:
            raise ConfigInvalid(
                f"Attention flow is stored of windows of up to {TIME_MAX} bars, and this model's "
                f"is {window}; choose another method, and ask `explain --method flow` for one "
                "decision."
            )
        rows = torch.zeros(1, window, len(self.model.schema.names), device=self._place)
        positions = torch.arange(window, device=self._place)
        self._network.explain(rows, positions, self.way)

    def _see(self, window: FeatureWindow) -> _Seen:
        look = self._look(window)
        positions = window.rows.view()[:, -1].astype(np.int64)
        return _Seen(
            look.outputs,
            buckets_of(look.rollout.weights[0, 0].double().numpy(), positions),
            int(positions[-1]),
            look.confidence.numpy(),
            float(look.rollout.l1_error[0, 0]),
        )

    def _explained(self, window: FeatureWindow, seen: Sequence[_Seen]) -> list[Explanation]:
        """Return the explanations of bars that followed each other; the last one's row is kept."""
        rows = np.array([one.row for one in seen])
        by_age = cells_by_age(rows, np.array([one.position for one in seen]))
        first = np.full_like(by_age[:1], np.nan) if window.by_age is None else window.by_age
        shifts = shift(np.concatenate((first, by_age[:-1])), by_age).tolist()
        if window.by_age is None:
            shifts[0] = None
        window.by_age = by_age[-1:]
        heads = np.array([one.confidence.ravel() for one in seen])
        sure = heads.astype(np.float64).mean(axis=1).tolist()
        recent = recent_mass(by_age, self.receptive_field).tolist()
        older = rows[:, -1].tolist()
        return [
            Explanation(
                confidence=sure[at],
                content_free=CONTENT_FREE,
                recent_mass=recent[at],
                older_mass=older[at],
                shift=shifts[at],
                l1_error=one.l1_error,
                entropy=one.confidence.astype("<f4").tobytes(),
                buckets=one.row[:-1].astype("<f4").tobytes(),
            )
            for at, one in enumerate(seen)
        ]


def rows_together(parts: Sequence[FeatureRows]) -> FeatureRows:
    """Return the rows of some bars as those of one group."""
    if not parts:
        return NO_ROWS
    return FeatureRows(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def buckets_of(weights: NDArray[np.float64], positions: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return *weights* [bar] over absolute 64-bar blocks, newest first, "older" the last entry."""
    count = bucket_count(len(positions))
    block = positions // BLOCK_BARS
    # Holes in time push bars beyond the last block that an explanation names.
    at = np.minimum(block[-1] - block, count)
    return np.bincount(at, weights=weights, minlength=count + 1).astype(np.float32)


_WINDOWS_AT_ONCE: Final = 256  # bounds memory


class PlainForecaster:
    """A network without attention behind the ``Forecaster`` protocol, for many instruments."""

    def __init__(self, model: TrainedModel, *, mode: str, threads: int, backend: str) -> None:
        """Answer by *model* where its weights are."""
        self.model = model
        self.model_id = model.model_id
        self.model_sha256 = model.sha256
        self.context = bars_needed(model.network.config.window, model.schema, model.computed)
        self.horizons = model.network.config.horizons
        self.calibration = model.calibration
        self.mode = mode
        self.device = str(model.network.device)
        self.dtype = "float32"
        self.threads = threads
        self.backend = backend
        self.causal = True
        self.scanned_at_once = SCANNED_AT_ONCE
        self.measures = (MEASURES | model.network.given_heads) - frozenset(EXPLAINED)
        self.is_outside = False
        self._network = model.network.eval()
        self._windows: dict[str, FeatureWindow] = {}
        self.dropout: DropoutPasses | None = None
        """What adds the spread over passes with dropout to each answer; None: nothing does."""
        self.newest = NO_ROWS
        """The rows of the last call, of each bar."""

    def warm(self, instrument: str, bars: Sequence[Bar]) -> None:
        """Forget *instrument*, then take in *bars* (oldest first); only the last ones matter."""
        window = self._windows[instrument] = FeatureWindow.of(self.model)
        for bar in bars[-self.context :]:
            window.take(bar)
        if self.dropout is not None:
            self.dropout.warm(instrument, bars[-self.context :])

    def step(self, bar: Bar) -> Forecast | None:
        """Take in one bar; return its forecast, or None while fewer than ``context`` are known."""
        return self._answered([bar])[0]

    def predict_many(self, bars: Sequence[Bar]) -> list[Forecast | None]:
        """Take in one bar of each of several instruments; their windows are answered at once.

        Raises ``InvariantBroken`` for two bars of one instrument.
        """
        require_one_of_each(bars)
        return self._answered(bars)

    def scan(self, bars: Sequence[Bar]) -> list[Forecast | None]:
        """Take in known bars of one instrument; their windows are answered many at once."""
        found: list[Forecast | None] = []
        seen: list[FeatureRows] = []
        for start in range(0, len(bars), _WINDOWS_AT_ONCE):
            found += self._answered(bars[start : start + _WINDOWS_AT_ONCE])
            seen.append(self.newest)
        self.newest = rows_together(seen)
        return found

    def explain(self, instrument: str) -> BarWeights:
        """Raise ``InvariantBroken``: there is nowhere it looked."""
        del instrument
        raise InvariantBroken(
            f"The network of {self.model_id} has no attention, so there is nowhere it looked; ask "
            "its features."
        )

    def _answered(self, bars: Sequence[Bar]) -> list[Forecast | None]:
        """Take in *bars*, in order, and answer those whose window is full."""
        seen: list[FeatureRows] = []
        rows: list[NDArray[np.float32]] = []
        sigmas: list[float] = []
        places: list[int] = []
        for place, bar in enumerate(bars):
            if (window := self._windows.get(bar.instrument)) is None:
                window = self._windows[bar.instrument] = FeatureWindow.of(self.model)
            sigma = window.take(bar)
            seen.append(window.newest)
            if window.is_full:
                rows.append(window.rows.view()[:, :-1].astype(np.float32))
                sigmas.append(sigma)
                places.append(place)
        self.newest = rows_together(seen)
        found: list[Forecast | None] = [None] * len(bars)
        if rows:
            for place, forecast in zip(places, self._said(rows, sigmas), strict=True):
                found[place] = forecast
        return found if self.dropout is None else self.dropout.completed(bars, found)

    def _said(self, rows: Sequence[NDArray[np.float32]], sigmas: Sequence[float]) -> list[Forecast]:
        x = torch.from_numpy(np.stack(rows)).to(self.model.network.device)
        with torch.inference_mode():
            outputs = self._network(x).cpu()
        return forecasts(
            outputs,
            np.array(sigmas),
            repeat(None, len(rows)),
            horizons=self.horizons,
            temperature=self.model.temperature,
            model_id=self.model_id,
            levels=self.model.levels,
        )
