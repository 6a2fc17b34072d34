"""The forecaster of whole windows: one forward pass per bar, over the rows that end at it.

A network without attention answers many windows at once, and gives no measure of attention.

The rules are docs/attention.md, A19, and docs/models.md, L26.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import ClassVar, Final, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tracepaper.strategies.api.model import EXPLAINED
from tracepaper.strategies.api.strategy import SCANNED_AT_ONCE
from tracepaper.strategies.attention.methods import PLAIN, TIME_MAX, Rollout
from tracepaper.strategies.covariates import CovariateSource
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.features.rows import FeatureRows
from tracepaper.strategies.forecasters.base import (
    NO_ROWS,
    Attribution,
    CheckpointForecaster,
    FeatureMemory,
    FeatureWindow,
    InstrumentMemory,
    Rows,
    bars_needed,
    feature_windows,
    full_windows,
)
from tracepaper.strategies.forecasters.outputs import TrainedModel, explanations, forecasts
from tracepaper.strategies.gates.gate import MEASURES
from tracepaper.strategies.networks.architecture import (
    ExplainedOutputs,
    LayerAttribution,
    Outputs,
    together,
)
from tracepaper.strategies.time_buckets import bucket_bars, buckets_of, cells_by_age
from tracepaper.strategies.types.decisions import Explanation, Forecast
from tracepaper.strategies.types.market import Bar

WINDOWS_AT_ONCE: Final = 256
"""Bars of one scan: enough that features cost little, few enough to answer within seconds."""
CONTENT_FREE: Final = 0.0
"""No network of whole windows has a bias towards near bars: without content it attends evenly."""


class _NetworkAnswer(NamedTuple):
    """The network's output for one bar, and its attention."""

    outputs: Outputs  # [1, 1, ...]
    row: Rows  # the rollout over blocks of time, newest first, then the older mass
    position: int  # of the bar
    confidence: Rows  # [layer, head]
    l1_error: float


class _FullWindow(NamedTuple):
    """A bar whose window is full."""

    place: int  # among the bars of the call
    instrument: str
    sigma: float
    rows: Rows  # [window, feature]; empty with attention
    answer: _NetworkAnswer | None  # None without attention, whose windows share a pass


class WindowedForecaster(CheckpointForecaster):
    """A network over whole windows behind the ``Forecaster`` protocol, for many instruments."""

    streams: ClassVar[bool] = False
    """Whether it keeps queries, keys and values from bar to bar."""

    def __init__(
        self,
        model: TrainedModel,
        *,
        threads: int,
        backend: str,
        dtype: str = "float32",
        method: Rollout = PLAIN,
        mode: str = "step",
    ) -> None:
        """Answer by *model* on the device of its weights; *dtype* bfloat16 multiplies in bfloat16.

        *method* explains each bar. Raises ``ConfigInvalid`` or ``AttentionInvalid`` for a method
        that this network does not support.
        """
        network, config = model.network, model.network.config
        self.attends = network.has_attention
        super().__init__(
            model,
            FeatureMemory(model.computed, model.schema),
            context=bars_needed(config.window, model.schema, model.computed),
            horizons=config.horizons,
            measures=(MEASURES | network.given_heads)
            - frozenset(() if self.attends else EXPLAINED),
            mode="scan" if mode == "scan" else "step" if self.attends else mode,
            threads=threads,
            backend=backend,
        )
        self.model = model
        self.method = method
        self.receptive_field = config.window
        self.bucket_bars = bucket_bars(config.window)
        self._place = network.device
        self.device = str(self._place)
        self.dtype = dtype
        self.scanned_at_once = WINDOWS_AT_ONCE if self.attends else SCANNED_AT_ONCE
        self._network = network.eval()
        self._windows = feature_windows(config.window, model.schema)
        if method != PLAIN:
            self._require_method()

    def explain(self, instrument: str) -> Attribution:
        """Return the attention of the last decision, bar by bar.

        Raises ``InvariantBroken`` before the first decision, and without attention.
        """
        window = self._decided(instrument)
        explained = self._explain(window)
        weights = explained.rollout.weights[0, 0].tolist()
        return Attribution(
            instrument,
            tuple(window.opened[-len(weights) :].tolist()),
            tuple(weights),
            float(explained.rollout.l1_error[0, 0]),
            explained.parts,
            explained.outputs if self._network.auxiliary_heads else None,
        )

    def attribution_by_layer(self, instrument: str) -> list[LayerAttribution]:
        """Return the attribution of each layer at the last decision, the lowest first.

        Raises ``InvariantBroken`` before the first decision.
        """
        x, positions = self._inputs(self._decided(instrument))
        with torch.inference_mode():
            return self._network.attribution_by_layer(x, positions, half=self.dtype == "bfloat16")

    @property
    def vectors(self) -> CovariateSource | None:
        """The covariates that a user supplies; None if the network was trained without."""
        covariates = self.model.schema.covariates
        return None if covariates is None else covariates.source

    def remember(self, memory: InstrumentMemory, bars: Sequence[Bar], taken: FeatureRows) -> None:
        """Restart its window."""
        self._windows.pop(memory.instrument, None)
        window = self._windows[memory.instrument]
        window.fill(bars, taken)
        if self.attends and window.is_full:
            # The shift of the next bar needs this bar's rollout.
            self._explained(memory, [self._answered(window)])

    def answer(
        self, bars: Sequence[Bar], taken: FeatureRows, *, is_group: bool
    ) -> list[Forecast | None]:
        """Return the answer to each full window."""
        del is_group
        answers: list[Forecast | None] = [None] * len(bars)
        windows = full_windows(self._windows, bars, taken)
        for _, group in groupby(windows, lambda full: full[0] // WINDOWS_AT_ONCE):
            ready = [
                _FullWindow(
                    place,
                    bars[place].instrument,
                    sigma,
                    NO_ROWS.values if self.attends else window.rows.copy(),
                    self._answered(window) if self.attends else None,
                )
                for place, window, sigma in group
            ]
            explained: list[Explanation | None] = [None] * len(ready)
            answered = [window.answer for window in ready if window.answer is not None]
            if answered:
                outputs = together([answer.outputs for answer in answered])
                explained.clear()
                # The shift of each bar is from the last bar of its own instrument.
                for instrument, same in groupby(ready, lambda window: window.instrument):
                    answered = [window.answer for window in same if window.answer is not None]
                    explained += self._explained(self.memory.of(instrument), answered)
            else:
                x = torch.from_numpy(np.stack([window.rows for window in ready])).to(self._place)
                with torch.inference_mode():
                    outputs = self._network(x).cpu()
            predictions = forecasts(
                outputs,
                np.array([window.sigma for window in ready]),
                explained,
                horizons=self.horizons,
                temperature=self.model.temperature,
                levels=self.model.levels,
            )
            for window, forecast in zip(ready, predictions, strict=True):
                answers[window.place] = forecast
        return answers

    def _decided(self, instrument: str) -> FeatureWindow:
        """Return the window of *instrument*; raise ``InvariantBroken`` before it is full."""
        window = self._windows.get(instrument)
        if window is None or not window.is_full:
            raise self._undecided(instrument)
        return window

    def _inputs(self, window: FeatureWindow) -> tuple[Tensor, Tensor]:
        """Return the rows [1, window, features] and their positions [window]."""
        x = torch.from_numpy(window.rows)[None].to(self._place)
        return x, torch.from_numpy(window.positions).to(self._place)

    def _explain(self, window: FeatureWindow) -> ExplainedOutputs:
        x, positions = self._inputs(window)
        explained = self._network.explain(x, positions, self.method, half=self.dtype == "bfloat16")
        return explained._replace(
            outputs=explained.outputs.map(lambda part: part.detach().cpu()),
            rollout=explained.rollout._replace(weights=explained.rollout.weights.cpu()),
            confidence=explained.confidence.float().cpu(),
        )

    def _require_method(self) -> None:
        """Explain neutral rows once, so that an unsupported method raises at the start."""
        window = self.receptive_field
        if self.method.name == "flow" and window > TIME_MAX:
            raise ConfigInvalid(
                f"Attention flow is stored for windows of up to {TIME_MAX} bars, and this model's "
                f"is {window}; choose another method, and ask `explain --method flow` for one "
                "decision."
            )
        rows = torch.zeros(1, window, len(self.model.schema.names), device=self._place)
        positions = torch.arange(window, device=self._place)
        self._network.explain(rows, positions, self.method)

    def _answered(self, window: FeatureWindow) -> _NetworkAnswer:
        explained = self._explain(window)
        positions = window.positions
        return _NetworkAnswer(
            explained.outputs,
            buckets_of(explained.rollout.weights[0, 0].double().numpy(), positions),
            int(positions[-1]),
            explained.confidence.numpy(),
            float(explained.rollout.l1_error[0, 0]),
        )

    def _explained(
        self, memory: InstrumentMemory, answers: Sequence[_NetworkAnswer]
    ) -> list[Explanation]:
        """Return the explanations of consecutive bars; the last one's rollout is kept."""
        rows = np.array([answer.row for answer in answers])
        positions = np.array([answer.position for answer in answers])
        by_age = cells_by_age(rows, positions, self.bucket_bars)
        return explanations(
            rows,
            np.array([answer.confidence.ravel() for answer in answers]),
            by_age,
            memory.follow(by_age),
            errors=[answer.l1_error for answer in answers],
            content_free=CONTENT_FREE,
            context=self.receptive_field,
        )
