"""Rollout of chosen rows against stored matrices, by every backend and option."""

from __future__ import annotations

import os
import subprocess
import sys

import dense_attention as reference
import pytest
import torch
from attention_cases import Case, case, cases, layers_of, rolled
from hypothesis import given, settings
from hypothesis import strategies as st
from waiting import deadline_s

from tracepaper.strategies.attention import tiles
from tracepaper.strategies.attention.compiled import available as loops
from tracepaper.strategies.attention.kernels import attend
from tracepaper.strategies.attention.masks import Mask
from tracepaper.strategies.attention.memory import rollout_bytes
from tracepaper.strategies.attention.methods import Rollout
from tracepaper.strategies.attention.reads import Fusion
from tracepaper.strategies.attention.tiles import FADE
from tracepaper.strategies.errors import AttentionInvalid

MASKS = (Mask.full(), Mask(), Mask.window(37), Mask.window(5_000))
torch.set_num_threads(1)


def ends(drawn: Case) -> list[int]:
    time = drawn.queries[0].shape[2]
    return sorted({0, time // 2, time - 1})


@settings(max_examples=40, deadline=None)
@given(
    cases(),
    st.sampled_from(["mean", "max", "min"]),
    st.sampled_from([0.0, 0.3, 0.9]),
    st.sampled_from([0.1, 0.5, 1.0]),
)
def test_fusions_and_discarding_equal_the_stored_matrices(
    drawn: Case, fusion: Fusion, ratio: float, residual: float
) -> None:
    wanted = reference.rollout(
        drawn.matrices,
        drawn.mask,
        fusion=fusion,
        discard_ratio=ratio,
        residual_weight=residual,
        slacks=drawn.slacks,
    )
    result = rolled(
        drawn.layers,
        ends(drawn),
        Rollout(fusion=fusion, discard_ratio=ratio, residual_weight=residual),
    )
    drawn.hold(result.weights, wanted[:, ends(drawn)], ratio=ratio)
    if fusion == "mean" and not ratio:
        assert float(result.l1_error.max()) < drawn.rounding()


@pytest.mark.parametrize("mask", [*MASKS, Mask.window(7)])
@pytest.mark.parametrize("fusion", ["mean", "max"])
@pytest.mark.parametrize("dim", [3, 8])
def test_discarding_drops_the_same_in_every_type(mask: Mask, fusion: Fusion, dim: int) -> None:
    """Scores that are whole numbers tie, and large ones give entries that float32 takes for 1.

    Among 720 such cases with sharp edges, an entry that lay as far below the threshold as ties may
    went in one type and stayed in the other in 3, and moved a weight by .33.
    """
    for seed in range(13):
        drawn = case(mask, seed=seed, time=30, dim=dim, size=3.0, dtype=torch.float32, ties=True)
        queries, keys = ([x.double() for x in part] for part in (drawn.queries, drawn.keys))
        sums = [attend(q, k, k, mask).logsumexp for q, k in zip(queries, keys, strict=True)]
        exact, single = (
            rolled(
                layers_of(*layers, mask), [0, 29], Rollout(fusion=fusion, discard_ratio=0.9)
            ).weights
            for layers in ((queries, keys, sums), drawn[:3])
        )
        # A slack is four roundings. An entry and the threshold are off by one each, which moves an
        # entry by half a slack of those over which it fades; so in each of three layers.
        assert float((single - exact).abs().max()) < 3 / (2 * FADE)


@pytest.mark.parametrize("start_layer", [0, 1, 2])
def test_start_layer_leaves_out_the_layers_below(start_layer: int) -> None:
    drawn = case(Mask())
    result = rolled(drawn.layers, [39], Rollout(start_layer=start_layer))
    wanted = reference.rollout(drawn.matrices[start_layer:], drawn.mask)[:, [39]]
    drawn.hold(result.weights, wanted)


def test_head_weights_weigh_each_layers_heads() -> None:
    drawn = case(Mask.full(), heads=3)
    weights = [[1.0, 0.0, 0.0], [1.0, 2.0, 1.0], [0.0, 0.0, 5.0]]
    shares = torch.tensor([[1.0, 0, 0], [0.25, 0.5, 0.25], [0, 0, 1.0]], dtype=torch.float64)
    result = rolled(drawn.layers, [7, 8], Rollout(head_weights=weights))
    wanted = reference.rollout(drawn.matrices, drawn.mask, shares=shares)[:, [7, 8]]
    drawn.hold(result.weights, wanted)


def test_head_weights_have_the_digits_of_the_layers() -> None:
    """Weights that float32 rounds: a layer of float64 gets all of their digits."""
    drawn = case(Mask(), heads=3, dtype=torch.float64)
    shares = torch.tensor([0.1, 0.2, 0.7], dtype=torch.float64)
    wanted = reference.rollout(drawn.matrices, drawn.mask, shares=shares.expand(3, -1))[:, [39]]
    for weights in ([0.1, 0.2, 0.7], shares):
        weighed = rolled(drawn.layers, [39], Rollout(head_weights=weights)).weights
        assert (weighed - wanted).abs().max() < 1e-14


# ---------------------------------------------------------------- the mass check


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("backend", ["tiles", "auto"])
def test_a_logsumexp_of_base_two_is_refused(mask: Mask, backend: str) -> None:
    drawn = case(mask, time=64, dtype=torch.float32)
    wrong = [sums * 1.442695 for sums in drawn.sums]
    layers = layers_of(drawn.queries, drawn.keys, wrong, mask)
    for rows, method, by in (
        ([63], Rollout(), backend), ([63], Rollout(fusion="max"), "auto"),
        (list(range(20, 64)), Rollout(), "auto"),
    ):  # fmt: skip
        with pytest.raises(AttentionInvalid, match="did not keep its attention mass"):
            rolled(layers, rows, method, by)


def test_the_mass_is_checked_by_head_even_where_head_weights_hide_it() -> None:
    drawn = case(Mask(), heads=2, layers=1)
    drawn.sums[0][:, 1] += 0.1
    with pytest.raises(AttentionInvalid, match="Head 1 did not keep"):
        rolled(drawn.layers, [39], Rollout(head_weights=[1.0, 0.0]))


def test_a_wrong_logsumexp_of_huge_scores_is_refused() -> None:
    drawn = case(Mask(), size=1_000.0, dtype=torch.float32)
    wrong = [sums * 1.442695 for sums in drawn.sums]
    with pytest.raises(AttentionInvalid, match="not that of this query"):
        rolled(layers_of(drawn.queries, drawn.keys, wrong, drawn.mask), [39])


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"rows": []}, "no row"),
        ({"rows": [40]}, "Row 40 is out of range"),
        ({"fusion": "median"}, "no head fusion 'median'"),
        ({"fusion": "max", "head_weights": [1, 1]}, "weigh a mean"),
        ({"fusion": "norm", "discard_ratio": 0.1}, "set it to 0"),
        *[({"fusion": "min", "backend": name}, "choose tiles") for name in loops()],
        ({"head_weights": [1, 1, 1]}, "2 head weights"),
        ({"discard_ratio": 1.0}, "discard_ratio must be at least 0 and below 1"),
        ({"start_layer": 3}, "leaves nothing to explain"),
        ({"backend": "dense"}, "no rollout backend 'dense'"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, object], sentence: str) -> None:
    drawn = case(Mask())
    rows, backend = options.pop("rows", [3]), options.pop("backend", "auto")
    with pytest.raises(AttentionInvalid, match=sentence):
        rolled(drawn.layers, rows, Rollout(**options), backend)  # type: ignore[arg-type]


# ---------------------------------------------------------------- devices


@pytest.mark.gpu
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("options", [{}, {"fusion": "max", "discard_ratio": 0.3}])
def test_a_device_explains_as_the_cpu_does(mask: Mask, options: dict[str, object]) -> None:
    drawn = case(mask, time=500, dim=32, heads=2, dtype=torch.float32)
    queries, keys, sums = ([tensor.cuda() for tensor in part] for part in drawn[:3])
    on_device = rolled(layers_of(queries, keys, sums, mask), [3, 499], Rollout(**options))  # type: ignore[arg-type]
    wanted = rolled(drawn.layers, [3, 499], Rollout(**options))  # type: ignore[arg-type]
    assert float((on_device.weights.cpu() - wanted.weights).abs().max()) < 1e-5


# ---------------------------------------------------------------- memory


MEMORY_SCRIPT = """
import sys, torch
from pathlib import Path
from tracepaper.strategies.attention import Layer, Mask, Rollout, attend, rollout
torch.set_num_threads(1)
time, fusion = 6_000, sys.argv[1]
generator = torch.Generator().manual_seed(1)
query, key = (torch.randn(1, 2, time, 16, generator=generator) for _ in range(2))
sums = attend(query, key, key, Mask()).logsumexp
short = [Layer(query[:, :, :600], key[:, :, :600], None, sums[:, :, :600])] * 2
rollout(short, [599], Rollout(fusion=fusion), backend="tiles")
def kib(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))
before = kib("VmHWM")
whole = [Layer(query, key, None, sums)] * 2
rollout(whole, [time - 1], Rollout(fusion=fusion), backend="tiles")
print(kib("VmHWM") - before)
"""


def extra_kib(fusion: str) -> int:
    """Return what a rollout of two layers over 6,000 bars takes in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", MEMORY_SCRIPT, fusion],
        # What is freed goes back at once, so that a peak is what was held and no luck of the heap.
        env=os.environ | {"OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": str(1 << 16)},
        capture_output=True,
        check=True,
        timeout=deadline_s(120),
    )
    return int(done.stdout)


@pytest.mark.slow
def test_no_matrix_is_ever_stored() -> None:
    matrix_kib = 6_000**2 * 4 // 1_024  # of one layer and one head
    for fusion in ("mean", "max"):
        fused_kib = 3 * 4 * tiles.TILE["cpu"] ** 2 // 1_024 if fusion == "max" else 0
        allowed_kib = rollout_bytes(2, 2, 32, 6_000) // 1_024 + fused_kib
        assert extra_kib(fusion) < allowed_kib < matrix_kib
