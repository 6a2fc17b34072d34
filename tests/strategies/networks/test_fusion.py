"""Discard thresholds are exact order statistics, found without sorting."""

from __future__ import annotations

import dense_attention as reference
import pytest
import torch
from attention_cases import case, masks, rolled
from hypothesis import given, settings
from hypothesis import strategies as st

from tracepaper.strategies.attention import tiles
from tracepaper.strategies.attention.masks import Mask
from tracepaper.strategies.attention.methods import Rollout
from tracepaper.strategies.attention.reads import Fuse, Fusion
from tracepaper.strategies.attention.tiles import FADE, Entries, discard_below, smallest_kept
from tracepaper.strategies.errors import AttentionInvalid

torch.set_num_threads(1)


@settings(max_examples=50, deadline=None)
@given(
    masks(60),
    st.integers(1, 50),
    st.integers(0, 99),
    st.sampled_from([0.001, 0.25, 0.5, 0.9, 0.999]),
    st.sampled_from([torch.float32, torch.float64]),
    st.sampled_from(["mean", "max", "min"]),
)
def test_the_threshold_is_the_kth_value_of_what_the_mask_shows(
    mask: Mask, time: int, seed: int, ratio: float, dtype: torch.dtype, fusion: Fusion
) -> None:
    sample = case(mask, seed=seed, batch=2, time=time, layers=1, dtype=dtype)
    layer = sample.layers[0]
    fuse = layer._fuse_tile(Fuse(fusion))  # noqa: SLF001 - entry by entry
    tensor = smallest_kept(
        layer._parts,  # noqa: SLF001
        fuse,
        ratio,
        candidates=layer.visible()[:, 0].sum(dim=-1).tolist(),
        like=torch.empty(2, dtype=dtype),
    )
    fused = torch.zeros(2, time, time, dtype=dtype)
    for tile in layer.operand.entries(whole=True):
        fused[tile.batch, tile.rows, tile.keys] = fuse(tile)
    visible = reference.visible(time, mask)
    for element in range(2):
        ordered = fused[element][visible].sort().values
        wanted = float(ordered[int(ratio * len(ordered))])
        assert float(tensor[element]) == wanted


@settings(max_examples=30, deadline=None)
@given(
    threshold=st.floats(1e-30, 1.0),
    slack=st.floats(2.0**-20, 0.3),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_no_last_digit_keeps_or_drops_an_entry(
    threshold: float, slack: float, dtype: torch.dtype
) -> None:
    """What is kept of an entry follows it without a step, from the ties of the threshold down."""
    below = torch.linspace(0.0, min(1.0, (FADE + 3) * slack), 5_001, dtype=dtype)
    entries = threshold * (1.0 - below)[None, None]
    fuse = discard_below(lambda tile: tile.values[:, 0], entries[0, 0, :1], slack=slack)
    unit = slice(0, 1)
    kept = fuse(Entries(unit, unit, unit, unit, slice(0, 5_001), entries[None]))[0, 0] / threshold
    rounding = 4 * torch.finfo(dtype).eps
    ties = below < 0.99 * slack
    assert torch.equal(kept[ties], (entries[0, 0] / threshold)[ties])
    assert not bool(kept[below > 1.01 * (FADE + 1) * slack].any())
    step = float(below[1]) * (1.0 + 1.0 / (FADE * slack)) + rounding * (1.0 + 1.0 / slack)
    assert 0.0 <= -float(kept.diff().min()) <= step
    assert float(kept.diff().max()) <= rounding * (1.0 + 1.0 / slack)


def test_many_small_tiles_give_the_same_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    method = Rollout(fusion="max", discard_ratio=0.3)
    once = rolled(case(Mask(), time=60, layers=2).layers, [59, 7], method).weights
    monkeypatch.setitem(tiles.TILE, "cpu", 22)
    often = rolled(case(Mask(), time=60, layers=2).layers, [59, 7], method).weights
    torch.testing.assert_close(often, once, rtol=0, atol=1e-14)


def test_a_row_that_keeps_nothing_is_refused_where_no_residual_is_left() -> None:
    sample = case(Mask.full(), time=60, layers=1, size=4.0)
    with pytest.raises(AttentionInvalid, match="raise residual_weight or lower discard_ratio"):
        rolled(sample.layers, range(60), Rollout(discard_ratio=0.999, residual_weight=0.0))
