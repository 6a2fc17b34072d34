"""A LightGBM model as a strategy's forecaster; docs/own_models.md shows how it was fitted."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
from numpy.typing import NDArray

from tracepaper.strategies.api.model import Model


class BoostedTree(Model):
    """Mean return over 30 bars, from the features ``v2`` of the closed bar alone."""

    features = "v2"
    horizons = (30,)
    measures = ("mean_return",)
    trained_until = "2025-05-30T11:32"  # the first 6,000 bars of the bundled candles

    def __init__(self, options: Mapping[str, Any], files: Mapping[str, Path]) -> None:
        super().__init__(options, files)
        self._trees = lightgbm.Booster(model_str=files["boosted_tree.txt"].read_text("utf-8"))

    def predict_rows(self, rows: NDArray[np.float32]) -> Mapping[str, Any]:
        """Return the mean log return of each row of features."""
        return {"mean_return": self._trees.predict(rows, num_threads=1)}
