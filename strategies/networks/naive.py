"""The naive route: the whole context through the network for one bar, for comparison."""

from __future__ import annotations

import torch

from tracepaper.strategies.networks.flash import FlashConfig, FlashNetwork

SEED = 7


def whole_context(config: FlashConfig) -> tuple[FlashNetwork, torch.Tensor]:
    """Return a network and one context of random features: [1, receptive field, features]."""
    generator = torch.Generator().manual_seed(SEED)
    rows = torch.randn(1, config.receptive_field, config.features, generator=generator)
    return FlashNetwork(config).eval(), rows


def forward_whole(network: FlashNetwork, rows: torch.Tensor) -> None:
    """Run *rows* through *network* once, keeping no gradient."""
    with torch.inference_mode():
        network(rows)
