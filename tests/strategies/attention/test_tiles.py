"""Tiles cover exactly what a mask shows, whatever rows are left out."""

from __future__ import annotations

import torch
from attention_cases import masks
from hypothesis import given
from hypothesis import strategies as st

from tracepaper.strategies.attention import reference
from tracepaper.strategies.attention.masks import Mask
from tracepaper.strategies.attention.tiles import (
    hide_,
    is_whole,
    key_tiles,
    row_blocks,
    tile_rows,
    visible_pairs,
)


@given(
    masks(80),
    st.integers(1, 70),
    st.integers(1, 20),
    st.integers(1, 20),
    st.lists(st.booleans(), min_size=70, max_size=70),
)
def test_tiles_cover_what_the_mask_shows_once(
    mask: Mask, time: int, rows_a_block: int, keys_a_tile: int, chosen: list[bool]
) -> None:
    kept = torch.tensor(chosen[:time])
    covered = torch.zeros(time, time)
    for block in row_blocks(time, mask, rows_a_block=rows_a_block, kept=kept):
        rows = torch.arange(block.start, block.stop) if block.rows is None else block.rows
        assert block.size() == len(rows)
        for start, stop in key_tiles(block, keys_a_tile):
            tile = torch.ones(2, len(rows), stop - start)
            whole = is_whole(block, mask, start, stop)
            hidden = hide_(tile.clone(), block, mask, start)
            assert torch.equal(hidden, tile) or not whole
            covered[rows, start:stop] += hidden[0]
    wanted = reference.visible(time, mask) & kept[:, None]
    assert torch.equal(covered, wanted.float())


@given(masks(80), st.integers(1, 70))
def test_visible_pairs_are_counted_without_a_table(mask: Mask, time: int) -> None:
    assert visible_pairs(time, mask) == int(reference.visible(time, mask).sum())
    assert visible_pairs(time, mask) == sum(mask.visible(row, time) for row in range(time))


def test_a_windows_tiles_keep_to_its_band() -> None:
    mask, time = Mask.window(16), 4_096
    computed = sum(
        block.size() * (stop - start)
        for block in row_blocks(time, mask, rows_a_block=tile_rows(mask))
        for start, stop in key_tiles(block, 256)
    )
    assert computed < 3.5 * visible_pairs(time, mask)


def test_a_hidden_infinity_leaves_no_nan() -> None:
    block = next(row_blocks(4, Mask.window(2), rows_a_block=4))
    tile = hide_(torch.full((1, 4, 4), torch.inf), block, Mask.window(2), 0)
    assert not bool(tile.isnan().any())
    assert float(tile[0, 0, 1]) == 0.0
