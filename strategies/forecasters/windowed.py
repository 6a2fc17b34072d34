"""The windowed forecaster: one whole forward pass a bar, for networks that rank or see all of it.

ProbSparse ranks every query of the window and full attention lets a bar see later ones, so both
answer for the window that ends at the decided bar and for nothing else: known bars cannot be
taken in one causal pass, and ``scan`` refuses.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tracepaper.strategies.attention.blocks import bucket_count, cells_by_age, recent_mass, shift
from tracepaper.strategies.attention.methods import TIME_MAX
from tracepaper.strategies.attention.rollout import Rollout
from tracepaper.strategies.errors import ConfigInvalid, InvariantBroken
from tracepaper.strategies.features import FeatureRows, FeatureStreams
from tracepaper.strategies.forecasters.answers import TrainedModel, forecasts, require_one_of_each
from tracepaper.strategies.forecasters.streaming import NO_ROWS, bars_needed
from tracepaper.strategies.gates import MEASURES
from tracepaper.strategies.networks.architecture import LayerLook, Look
from tracepaper.strategies.networks.looked import Way, look_by
from tracepaper.strategies.networks.stream import STORED
from tracepaper.strategies.types import BLOCK_BARS, Bar, Explanation, Forecast


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

    def view(self) -> NDArray[np.float64]:
        """Return the rows held, oldest first, as a read-only view of shape [len, width]."""
        end = (self._written - 1) % self._capacity + 1 + self._capacity if self._written else 0
        rows = self._rows[end - len(self) : end]
        rows.flags.writeable = False
        return rows


CONTENT_FREE: Final = 0.0
"""Neither network has a bias towards near bars, so attention without content is even."""


class FeatureWindow:
    """One instrument's newest feature rows, each with its position in its last column."""

    def __init__(self, model: TrainedModel) -> None:
        self.features = FeatureStreams(model.computed, part=model.schema)
        self.rows = Ring(capacity=model.network.config.window, width=len(model.schema.names) + 1)
        self.newest = NO_ROWS  # of the last bar, whole
        self._schema = model.schema
        self.last: Bar | None = None
        self.by_age: NDArray[np.float64] | None = None  # the last bar's rollout by age

    def take(self, bar: Bar) -> float:
        """Take in *bar* and return its σ; raise ``InvariantBroken`` if it does not follow."""
        before = self.last
        if before is not None and (
            bar.open_time_ms <= before.open_time_ms or bar.interval_ms != before.interval_ms
        ):
            raise InvariantBroken(
                f"{bar.instrument}: the bar at {bar.open_time_ms} does not follow the one at "
                f"{before.open_time_ms}; feed bars of one interval, oldest first."
            )
        self.last = bar
        self.newest = self.features.step([bar])
        if not self.newest.complete(self._schema)[0]:
            return float("nan")
        row, sigma = self.newest.values[0, : len(self._schema.names)], self.newest.sigma[0]
        is_usable = bool(np.isfinite(row).all())
        # A value that is not finite is neutral for later bars, and this bar's forecast is refused.
        known = np.nan_to_num(row, nan=0.0, posinf=0.0, neginf=0.0).astype(np.float64)
        self.rows.push(np.append(known, bar.open_time_ms // bar.interval_ms))
        return float(sigma) if is_usable else float("nan")

    @property
    def is_full(self) -> bool:
        """Whether as many rows are known as the network takes."""
        return len(self.rows) == self.rows.capacity


class WindowedForecaster:
    """A window network behind the ``Forecaster`` protocol, for many instruments."""

    def __init__(
        self,
        model: TrainedModel,
        *,
        threads: int,
        backend: str,
        dtype: str = "float32",
        way: Way = STORED,
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
        self.mode = "step"
        self._place = model.network.device
        self.device = str(self._place)
        self.dtype = dtype
        self.threads = threads
        self.backend = backend
        self.causal = False
        self.measures = MEASURES
        self.is_outside = False
        self._network = model.network.eval()
        self._windows: dict[str, FeatureWindow] = {}
        if way != STORED:
            self._require_way()
        self.newest = NO_ROWS
        """The rows of the last call, of each bar."""

    def warm(self, instrument: str, bars: Sequence[Bar]) -> None:
        """Forget *instrument*, then take in *bars* (oldest first); only the last ones matter."""
        window = self._windows[instrument] = FeatureWindow(self.model)
        for bar in bars[-self.context :]:
            window.take(bar)
        if window.is_full and bars:
            # The shift of the next bar needs this bar's rollout.
            window.by_age = self._by_age(window, self._look(window))

    def step(self, bar: Bar) -> Forecast | None:
        """Take in one bar; return its forecast, or None while fewer than ``context`` are known."""
        if (window := self._windows.get(bar.instrument)) is None:
            window = self._windows[bar.instrument] = FeatureWindow(self.model)
        sigma = window.take(bar)
        self.newest = window.newest
        if not window.is_full:
            return None
        seen = self._look(window)
        return forecasts(
            seen.outputs,
            np.array([sigma]),
            [self._explain(window, seen)],
            horizons=self.horizons,
            temperature=self.model.temperature,
            model_id=self.model_id,
        )[0]

    def predict_many(self, bars: Sequence[Bar]) -> list[Forecast | None]:
        """Take in one bar of each of several instruments, one after the other, as ``step`` does.

        Raises ``InvariantBroken`` for two bars of one instrument.
        """
        require_one_of_each(bars)
        found = [self.step(bar) for bar in bars]
        self.newest = rows_together([self._windows[bar.instrument].newest for bar in bars])
        return found

    def scan(self, bars: Sequence[Bar]) -> list[Forecast | None]:
        """Refuse: a batched pass would let bars see their future; raise ``InvariantBroken``."""
        raise InvariantBroken(
            f"The model {self.model_id} is not causal and cannot take {len(bars)} bars in one "
            "pass; step it bar by bar."
        )

    def explain(self, instrument: str) -> Rollout:
        """Return the last decision's rollout bar by bar: weights [1, 1, window], oldest first.

        Raises ``InvariantBroken`` before the first decision.
        """
        return self.look(instrument).rollout

    def look(self, instrument: str) -> Look:
        """Return what the network says of the last decision, and where it looked.

        Raises ``InvariantBroken`` before the first decision.
        """
        return self._look(self._decided(instrument))

    def look_by_layer(self, instrument: str) -> list[LayerLook]:
        """Return what each layer did at the last decision, the lowest first.

        Raises ``InvariantBroken`` before the first decision.
        """
        x, positions = self._inputs(self._decided(instrument))
        with torch.inference_mode():
            return self._network.look_by_layer(x, positions, half=self.dtype == "bfloat16")

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

    def _look(self, window: FeatureWindow) -> Look:
        x, positions = self._inputs(window)
        with torch.inference_mode():
            seen = self._network.look(x, positions, half=self.dtype == "bfloat16")
        if self.way != STORED:
            by = look_by(self._network, x, positions, self.way)
            seen = seen._replace(rollout=Rollout(by.weights, by.l1_error), parts=by.parts)
        rollout = Rollout(seen.rollout.weights.cpu(), seen.rollout.l1_error.cpu())
        return Look(seen.outputs.cpu(), rollout, seen.confidence.float().cpu(), seen.parts)

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
        look_by(self._network, rows, positions, self.way)

    def _by_age(self, window: FeatureWindow, seen: Look) -> NDArray[np.float64]:
        positions = window.rows.view()[:, -1].astype(np.int64)
        return cells_by_age(_buckets(seen.rollout, positions)[None], positions[-1:])

    def _explain(self, window: FeatureWindow, seen: Look) -> Explanation:
        positions = window.rows.view()[:, -1].astype(np.int64)
        row = _buckets(seen.rollout, positions)
        by_age = cells_by_age(row[None], positions[-1:])
        before, window.by_age = window.by_age, by_age
        return Explanation(
            confidence=float(seen.confidence.double().mean()),
            content_free=CONTENT_FREE,
            recent_mass=float(recent_mass(by_age, len(positions))[0]),
            older_mass=float(row[-1]),
            shift=None if before is None else float(shift(before, by_age)[0]),
            l1_error=float(seen.rollout.l1_error[0, 0]),
            entropy=seen.confidence.numpy().astype("<f4").tobytes(),
            buckets=row[:-1].astype("<f4").tobytes(),
        )


def rows_together(parts: Sequence[FeatureRows]) -> FeatureRows:
    """Return the rows of some bars as those of one group."""
    if not parts:
        return NO_ROWS
    return FeatureRows(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _buckets(rollout: Rollout, positions: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return the row over absolute 64-bar blocks, newest first, and "older" as its last entry."""
    count = bucket_count(len(positions))
    block = positions // BLOCK_BARS
    # Holes in time push bars beyond the last block that an explanation names.
    at = np.minimum(block[-1] - block, count)
    weights = rollout.weights[0, 0].double().numpy()
    return np.bincount(at, weights=weights, minlength=count + 1).astype(np.float32)
