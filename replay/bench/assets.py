"""``bench assets``: a hundred assets at once on generated prices, the forward and its explanation.

It is a test of size: the weights are untrained and the prices drawn, so that nothing of what is
said is worth anything. The measuring is done in a process of its own, whose peak is that of this
work and of the imports that it needs.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tracepaper.replay.bench.machine import machine_line, most_resident_mb
from tracepaper.replay.training.pipeline import use_threads
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.features import Columns, compute, schema
from tracepaper.strategies.networks.workloads import SeveralAssets

REACH_BYTES: Final = 1_200_000_000
_PROGRAM: Final = "from tracepaper.replay.bench.assets import told; told({assets}, {bars}, {seed})"


def measure(assets: int = 100, bars: int = 2_048, *, seed: int = 0) -> dict[str, Any]:
    """Return seconds and peak memory of *assets* x *bars* tokens, every asset explained.

    One thread; the peak is that of a fresh process, its imports included, and beside it stands
    what the imports alone hold. Raises ``ConfigInvalid`` where that process fails.
    """
    made = _PROGRAM.format(assets=assets, bars=bars, seed=seed)
    done = subprocess.run(  # noqa: S603 - our own interpreter and our own words
        [sys.executable, "-c", made], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise ConfigInvalid(
            f"{assets:,} assets of {bars:,} bars could not be measured "
            f"({(done.stderr.strip().splitlines() or ['no word'])[-1]}); give fewer."
        )
    found: dict[str, Any] = json.loads(done.stdout)
    return {**found, "machine": machine_line()}


def told(assets: int, bars: int, seed: int) -> None:
    """Print the figures of ``measure`` as JSON; in the process that is measured."""
    use_threads(1)
    imports = round(most_resident_mb() * 1e6)
    work = SeveralAssets(_drawn(assets, bars, seed), seed=seed)
    forward, _ = _timed(work.forward)
    explained, missed = _timed(work.explained)
    figures = {
        "tokens": assets * bars,
        "network": f"crossasset, {work.config.layers} layers, window {bars}, width "
        f"{work.config.dim}",
        "forward_minutes": forward / 60.0,
        "forward_explained_minutes": explained / 60.0,
        "peak_bytes": round(most_resident_mb() * 1e6),
        "imports_bytes": imports,
        "reach_bytes": REACH_BYTES,
        "largest_row_error": missed,
    }
    sys.stdout.write(json.dumps(figures))


def _drawn(assets: int, bars: int, seed: int) -> NDArray[np.float32]:
    """Return feature rows [asset, bar, feature] of walks that mean nothing."""
    rows, generator = schema("v1"), np.random.default_rng(seed)
    count = bars + rows.lookback - 1
    found = np.empty((assets, bars, len(rows.names)), dtype=np.float32)
    for asset in range(assets):
        close = 100.0 * np.exp(np.cumsum(generator.normal(0.0, 1e-3, count)))
        times = 60_000 * np.arange(count, dtype=np.int64)
        volume = generator.uniform(1.0, 2.0, count)
        drawn = Columns(times, close, close * 1.001, close * 0.999, close, volume, 60_000)
        found[asset] = compute(rows, drawn).values[-bars:]
    return found


def _timed(work: Callable[[], float]) -> tuple[float, float]:
    """Return the seconds of wall time that *work* took, and what it returned."""
    begun = time.perf_counter()
    found = work()
    return time.perf_counter() - begun, found
