"""Monte-Carlo dropout: how far a network's means spread when it drops as in training.

Each bar is asked by itself, so that a live step, a scan and a run that was resumed agree: the masks
come from a generator that is seeded by the bar's open time, and no other draw is moved.

Source: Gal and Ghahramani, 2016. The rules are docs/decisions.md, G40.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from msgspec.structs import replace

from tracepaper.strategies.features.rolling import Array
from tracepaper.strategies.features.rows import FeatureRows
from tracepaper.strategies.forecasters.base import FeatureWindow, feature_windows, row_at
from tracepaper.strategies.forecasters.outputs import TrainedModel
from tracepaper.strategies.types.decisions import Forecast, HeadForecasts
from tracepaper.strategies.types.market import Bar

DROPOUT_SPREAD: Final = "dropout_spread"
"""The measure that it gives, a field of ``HeadForecasts``."""


class DropoutPasses:
    """The newest rows of each instrument, and the passes over them in which the network drops."""

    def __init__(self, model: TrainedModel, passes: int) -> None:
        """Ask *model*, whose network has modules that drop, *passes* times at each bar."""
        self._model = model
        self._passes = passes
        self._windows = feature_windows(model.network.config.receptive_field, model.schema)

    def warm(self, instrument: str, bars: Sequence[Bar], taken: FeatureRows) -> None:
        """Forget *instrument*, then take in *bars* (oldest first) with their rows *taken*."""
        self._windows.pop(instrument, None)
        for _ in self._windows[instrument].take(bars, taken):
            pass

    def completed(
        self, bars: Sequence[Bar], answers: Sequence[Forecast | None], taken: FeatureRows
    ) -> list[Forecast | None]:
        """Take in *bars*; return their *answers*, each with the spread at its horizons."""
        completed = list(answers)
        first = len(bars) - len(taken.values)
        for at, (bar, answer) in enumerate(zip(bars[first:], answers[first:], strict=True)):
            window = self._windows[bar.instrument]
            for sigma in window.take([bar], row_at(taken, at)):
                if answer is not None and window.is_full:
                    # A standard deviation in log returns: outputs are in units of σ √horizon.
                    spread = self._spread(window, bar.open_time_ms)
                    spread = spread * sigma * np.sqrt(answer.horizons)
                    heads = replace(
                        answer.heads or HeadForecasts(),
                        dropout_spread=spread.astype("<f4").tobytes(),
                    )
                    completed[first + at] = replace(answer, heads=heads)
        return completed

    def _spread(self, window: FeatureWindow, seed: int) -> Array:
        """Return the sample standard deviation over passes of each horizon's mean: [horizon]."""
        network = self._model.network
        rows = torch.from_numpy(window.rows).to(network.device)
        positions = torch.from_numpy(window.positions).to(network.device)
        dropping = network.dropping()
        cuda = [network.device] if network.device.type == "cuda" else []
        try:
            for module in dropping:
                module.train()
            with torch.random.fork_rng(devices=cuda), torch.inference_mode():
                torch.manual_seed(seed)
                several = rows.expand(self._passes, -1, -1)
                means = network(several, positions).mean[:, -1].double().cpu().numpy()
        finally:
            for module in dropping:
                module.eval()
        spread: Array = means.std(axis=0, ddof=1)
        return spread
