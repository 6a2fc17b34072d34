"""The Triton rollout kernel: in Triton's interpreter everywhere, on a device where there is one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import attention_cases
import pytest
import torch
from attention_cases import case, layers_of, rolled
from waiting import deadline_s

from tracepaper.strategies.attention import triton_rollout
from tracepaper.strategies.attention.masks import Mask
from tracepaper.strategies.attention.methods import confidence, entropy, rollout
from tracepaper.strategies.errors import AttentionInvalid


@pytest.mark.slow
def test_the_triton_kernel_equals_the_stored_matrices_bit_for_bit_twice() -> None:
    pytest.importorskip("triton")  # published for Linux alone
    script = Path(__file__).with_name("interpreted_triton.py")
    done = subprocess.run(
        [sys.executable, str(script)],
        env=os.environ
        | {
            "TRITON_INTERPRET": "1",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(Path(attention_cases.__file__).parent),
        },
        capture_output=True,
        check=True,
        timeout=deadline_s(120),
    )
    cases_run = json.loads(done.stdout)
    assert len(cases_run) == 3 * (7 + len(attention_cases.LAYOUTS))
    wrong = [row for row in cases_run if not row["repeats"] or row["error"] > 3e-7]
    assert not wrong


def test_the_triton_kernel_is_refused_where_it_cannot_run() -> None:
    sample = case(Mask(), dtype=torch.float32)
    with pytest.raises(AttentionInvalid, match="cannot run on cpu"):
        rolled(sample.layers, [3], backend="triton")


@pytest.mark.gpu
def test_the_triton_kernel_equals_the_tiles_on_a_device() -> None:
    sample = case(Mask.window(700), time=2_000, dim=64, heads=2, dtype=torch.float32)
    queries, keys, sums = ([tensor.cuda() for tensor in part] for part in sample[:3])
    first, again = (
        rolled(layers_of(queries, keys, sums, sample.mask), [5, 1_999], backend="triton").weights
        for _ in range(2)
    )
    plain = rolled(sample.layers, [5, 1_999]).weights
    assert torch.equal(first, again)
    assert float((first.cpu() - plain).abs().max()) < 1e-6
    layers = layers_of(queries, keys, sums, sample.mask)
    entropies = torch.stack(entropy(layers)).cpu()
    assert float((entropies - torch.stack(entropy(sample.layers))).abs().max()) < 1e-5
    layers[0] = replace(layers[0], logsumexp=layers[0].logsumexp + 0.1)  # the lowest is asked last
    for explain in (rollout, confidence):
        with pytest.raises(AttentionInvalid, match="Head 0 did not keep its attention mass"):
            explain(layers, [1_999])


@pytest.mark.parametrize(
    ("dtype", "dim", "device", "chosen"),
    [
        (torch.float32, 64, "cuda", "triton"),
        (torch.float32, 256, "cuda", "triton"),
        (torch.float32, 257, "cuda", "tiles"),
        (torch.float64, 64, "cuda", "tiles"),
        (torch.float32, 64, "cpu", "tiles"),
    ],
)
def test_auto_takes_the_kernel_only_where_it_runs(
    dtype: torch.dtype, dim: int, device: str, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton_rollout, "is_available", lambda: True)
    monkeypatch.setattr(triton_rollout, "generation_of", lambda _: (9, 0))
    query = SimpleNamespace(device=torch.device(device), shape=(1, 1, 8, dim), dtype=dtype)
    layer: Any = SimpleNamespace(query=query, kind=dtype, mask=Mask(), queries=8, keys=8)
    takes_triton = device == "cuda" and triton_rollout.takes(layer)
    assert ("triton" if takes_triton else "tiles") == chosen
