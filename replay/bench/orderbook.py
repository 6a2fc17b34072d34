"""What 100,000 tokens of an order book cost with their map: memory and CPU time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

import numpy as np

from tracepaper.replay.bench.machine import machine_line, most_resident_mb, resident_mb
from tracepaper.strategies.books import SIDES, Books, tokens_of
from tracepaper.strategies.networks.workloads import BookWorkload

WARM_BOOKS: Final = 32
_FIRST_MS: Final = 1_735_689_600_000
_EVERY_MS: Final = 1_000


def generated(count: int, levels: int, seed: int = 0) -> Books:
    """Return *count* books of *levels* a side around a seeded walk of the mid."""
    rng = np.random.default_rng(seed)
    bid = 650_000 + np.cumsum(rng.integers(-2, 3, count))
    ask = bid + rng.integers(1, 3, count)
    away = np.arange(levels)
    price = np.stack((bid[:, None] - away, ask[:, None] + away), axis=1)
    size = rng.integers(1, 100_000, (count, len(SIDES), levels))
    seen_ms = _FIRST_MS + _EVERY_MS * np.arange(count, dtype=np.int64)
    age_ms = rng.integers(0, 100, (count,))
    return Books(seen_ms, seen_ms - age_ms, price, size)


def measure(books: int, levels: int, *, tell: Callable[[str], None]) -> dict[str, Any]:
    """Return what *books* of *levels* a side cost, beyond what the process held before them.

    The books are generated and the network is untrained: it is a test of size. Memory is the most
    that the process ever held less what it held before, so it is never told too small.
    """
    tell(f"{len(SIDES) * levels * books:,} tokens of generated books, untrained")
    workload = BookWorkload(levels, books)
    workload.look(tokens_of(generated(WARM_BOOKS, levels)))
    before = resident_mb()
    started = time.process_time()
    seen = workload.look(tokens_of(generated(books, levels)))
    seconds = time.process_time() - started
    return {
        "machine": machine_line(),
        "tokens": len(SIDES) * levels * books,
        "memory_mb": most_resident_mb() - before,
        "cpu_s": seconds,
        "map_sums_to": float(seen.weights.double().sum()),
        "l1_error": seen.l1_error,
    }
