"""A small network of vectors of the user, and what a configuration says to trade by it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import models

from tracepaper.storage import checkpoints
from tracepaper.strategies.features.rows import schema
from tracepaper.strategies.networks.trading import TradingConfig, by_names

NAMES = (*schema("v2-1m").names, "vector_mood", "vector_age")
CONTEXT = 480 + 8
"""Bars that it is warmed with."""


def checkpoint(folder: Path) -> Path:
    """Write it, with weights that were never trained; return its folder."""
    given = by_names({}, NAMES)
    config = TradingConfig(
        features=len(NAMES),
        dim=8,
        layers=2,
        heads=2,
        window=9,
        modalities=tuple(given["modalities"]),
        columns=tuple(given["columns"]),
        horizons=(5, 30),
    )
    card = models.card(config, temperature=1.0, content_free=0.0)
    card["features"]["vectors"] = {"columns": ["mood"], "centre": [0.0], "scale": [1.0]}
    card["model"] = {"kind": "trading", "name": "small"}
    checkpoints.save(folder / "small", models.weights(config), card)
    return folder / "small"


def sections(folder: Path, file: Path) -> dict[str, Any]:
    """Return the configuration of a run that trades by *file*."""
    return {
        "strategy": {"name": "attention"},
        "model": {
            "checkpoint": str(checkpoint(folder)),
            "covariates": str(file),
            "threads": 1,
            "deadline_ms": 60_000,
        },
        "regime": {"momentum": "0.6", "mean_reversion": "0.3"},
        "gate": {"horizon": 30, "direction": "0.3", "edge": "0", "confidence": "0",
                 "collapse": "0", "shift": "1"},
    }  # fmt: skip
