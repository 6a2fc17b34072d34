"""Memory estimates are near the truth."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from waiting import deadline_s

from tracepaper.strategies.attention.memory import rollout_bytes

SHAPE = (4, 4, 64)  # layers, heads, dim


def test_the_dense_route_at_8k_bars_is_the_known_four_gigabytes() -> None:
    assert rollout_bytes(*SHAPE, 8_192) < 4 * 4 * 8_192**2 * 4 / 90  # four matrices of four heads


SCRIPT = """
from pathlib import Path
import torch
from tracepaper.strategies.attention.layer import Layer
from tracepaper.strategies.attention.masks import Mask
from tracepaper.strategies.attention.methods import rollout
torch.set_num_threads(1)
def run(time):
    # Equal inputs: every score is 4, so the logsumexp is known without a forward pass.
    made = [torch.ones(1, 4, time, 16) for _ in range(8)]
    counts = torch.arange(1, time + 1).clamp_max(500).log() + 4.0
    sums = [counts.expand(1, 4, time).clone() for _ in range(4)]
    mask = Mask.window(500)
    layers = [Layer(made[at], made[4 + at], made[at], sums[at], mask) for at in range(4)]
    rollout(layers, [time - 1])
def kib(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))
run(1_000)
before = kib("VmRSS")
run(65_536)
print((kib("VmHWM") - before) * 1024)
"""


@pytest.mark.slow
def test_the_estimate_of_a_rollout_is_near_what_a_process_takes() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        check=True,
        timeout=deadline_s(120),
    )
    estimate = rollout_bytes(*SHAPE, 65_536)
    assert 0.7 * estimate < int(done.stdout) < 1.1 * estimate
