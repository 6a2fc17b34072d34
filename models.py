"""Ready models for ``[model] class``: gradient boosted trees of LightGBM, with contributions.

The rule is docs/own_models.md, N15.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tracepaper.strategies.api.model import Model, ModelInput
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.extras import require

if TYPE_CHECKING:
    import lightgbm
    from numpy.typing import NDArray

BASE = "base value"
"""The name of the base value among the contributions."""


def tree_shap(booster: lightgbm.Booster, row: NDArray[np.float32]) -> dict[str, float]:
    """Return the contribution of each feature of *row* [feature] to the prediction, and ``BASE``.

    They are exact Shapley values of trees (``pred_contrib``), which sum to the prediction.
    """
    values: Any = booster.predict(row.reshape(1, -1), pred_contrib=True, num_threads=1)
    return dict(zip([*booster.feature_name(), BASE], np.asarray(values)[0].tolist(), strict=True))


class LightGBM(Model):
    """Mean return by a booster's text file, the only one of ``[model] files``.

    ``[features] schema`` names the features that it was fitted on; *options* may hold ``horizon``,
    bars ahead (30). Raises ``ConfigInvalid`` without LightGBM or with another number of files.
    """

    measures = ("mean_return",)

    def __init__(self, options: Mapping[str, Any], files: Mapping[str, Path]) -> None:
        super().__init__(options, files)
        require("lightgbm", "model.class tracepaper.models:LightGBM")
        import lightgbm

        if len(files) != 1:
            raise ConfigInvalid(
                f"[model] files names {len(files)} files; name the booster's text file alone."
            )
        self.horizons = (options.get("horizon", 30),)
        [path] = files.values()
        self.booster = lightgbm.Booster(model_str=path.read_text("utf-8"))

    def predict_rows(self, rows: NDArray[np.float32]) -> Mapping[str, Any]:
        """Return the mean log return of each row of features."""
        return {"mean_return": self.booster.predict(rows, num_threads=1)}

    def contributions(self, inputs: ModelInput) -> Mapping[str, float]:
        """Return the contribution of each feature of the newest row to the mean log return."""
        return tree_shap(self.booster, inputs.features[-1])
