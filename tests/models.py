"""Small networks with seeded weights, their cards and their forecasters, for tests."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch

from tracepaper.strategies.forecasters.build import build
from tracepaper.strategies.forecasters.streaming import StreamingForecaster
from tracepaper.strategies.networks.flash import FlashConfig, FlashNetwork

SMALL = FlashConfig(dim=16, layers=3, heads=2, window=50)
"""A receptive field of 148 rows."""


def network(config: FlashConfig = SMALL, *, seed: int = 1) -> FlashNetwork:
    """Return a network whose every weight is random, heads included, so that all outputs move."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = FlashNetwork(config).eval()
        with torch.no_grad():
            for parameter in made.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return made


def card(config: FlashConfig = SMALL, **calibration: Any) -> dict[str, Any]:
    """Return the card of a checkpoint, as it is read from TOML: tuples are lists."""
    architecture = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(config).items()}
    return {
        "model": {"kind": "flash", "id": "0123456789ab", "sha256": "01" * 32},
        "architecture": architecture,
        "features": {"schema_id": "v1"},
        "market": {"interval": "1"},
        "calibration": calibration,
    }


def forecaster(
    config: FlashConfig = SMALL, *, seed: int = 1, path: str = "step", **calibration: Any
) -> StreamingForecaster:
    """Return the streaming forecaster of such a checkpoint, on the CPU."""
    made = build(card(config, **calibration), network(config, seed=seed).state_dict(), mode=path)
    assert isinstance(made, StreamingForecaster)
    return made
