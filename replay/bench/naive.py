"""What one bar costs where the whole context goes through the network anew."""

from __future__ import annotations

import statistics
import time

from tracepaper.strategies.networks.flash import FlashConfig
from tracepaper.strategies.networks.naive import forward_whole, whole_context


def forward_seconds(times: int) -> float:
    """Return the median wall seconds of a forward over the default network's whole context."""
    network, rows = whole_context(FlashConfig())
    forward_whole(network, rows)
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        forward_whole(network, rows)
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)
