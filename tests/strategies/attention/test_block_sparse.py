"""Blocks of the past: no row sees a later bar, what none sees costs nothing, all explanations."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import models
import pytest
import torch
from attention_cases import case, sparse_masks
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tracepaper.strategies.attention import backends, reference, rollout_kernels
from tracepaper.strategies.attention.checks import check_layers
from tracepaper.strategies.attention.entropy import confidence
from tracepaper.strategies.attention.flash import Pass
from tracepaper.strategies.attention.kernels import attend, choose
from tracepaper.strategies.attention.linear import attend_linearly
from tracepaper.strategies.attention.masks import Blocks, Mask
from tracepaper.strategies.attention.probsparse import sample_keys
from tracepaper.strategies.attention.rollout import rollout_by_age, rollout_rows
from tracepaper.strategies.attention.tiles import key_tiles, row_blocks, tile_rows, visible_pairs
from tracepaper.strategies.errors import AttentionInvalid, ConfigInvalid
from tracepaper.strategies.networks.architecture import ExplainedOutputs
from tracepaper.strategies.networks.flash import FlashConfig, FlashNetwork

torch.set_num_threads(1)

MASK = Mask.sparse(4, last=1, stride=3, first=1)


def drawn(time: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    made = torch.randn(3, 1, 2, time, 8, generator=generator, dtype=torch.float64)
    return made[0], made[1], made[2]


def test_a_bar_sees_its_block_the_last_every_third_and_the_first() -> None:
    row = 4 * 8 + 1  # the second bar of block 8
    seen = reference.visible(40, MASK)[row].nonzero()[:, 0].tolist()
    assert seen == [*range(4), *range(8, 12), *range(20, 24), *range(28, 32), 32, 33]
    assert MASK.blocks.earlier(8) == [0, 2, 5, 7]
    assert MASK.blocks.runs(8) == [slice(0, 4), slice(8, 12), slice(20, 24), slice(28, 32)]
    assert MASK.visible(row, 40) == len(seen)
    assert Mask.sparse(4, last=3).blocks.runs(8) == [slice(20, 32)]
    assert Mask.sparse(4, last=0).blocks.runs(8) == []


@pytest.mark.parametrize("blocks", [Blocks(4, 1, 3, 0), Blocks(4, 0, 2, 1), Blocks(4, 2, 0, 0)])
def test_the_earlier_blocks_that_are_listed_are_those_that_the_mask_shows(blocks: Blocks) -> None:
    for block in range(9):
        last_bar = torch.tensor(block * 4 + 3)
        shown = [one for one in range(block) if blocks.shows(last_bar, torch.tensor(one * 4))]
        assert blocks.earlier(block) == shown


def earliest_leak(mask: Mask, backend: str) -> int | None:
    """Return the first row of 30 that a later bar moves, None where none does."""
    query, key, value = drawn(30)
    before = attend(query, key, value, mask, backend=backend)
    for at in range(29):
        later = torch.arange(30)[:, None] > at
        other = [torch.where(later, x + 1.0, x) for x in (query, key, value)]
        after = attend(other[0], other[1], other[2], mask, backend=backend)
        moved = [
            (one - two)[:, :, : at + 1].abs().max() for one, two in zip(after, before, strict=True)
        ]
        if float(max(moved)) > 1e-12:
            return at
    return None


@pytest.mark.parametrize("backend", ["sdpa", "chunked", "reference"])
def test_no_row_sees_a_later_bar(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert earliest_leak(MASK, backend) is None
    honest = Blocks.runs

    def leaking(self: Blocks, block: int) -> list[slice]:
        # Planted: the first bar of a block sees the one after it.
        return [slice(run.start, run.stop + 2) for run in honest(self, block)]

    monkeypatch.setattr(Blocks, "runs", leaking)
    assert earliest_leak(MASK, backend) == 4


def test_a_leak_of_one_bar_breaks_the_mass_of_an_explanation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = case(MASK, time=30)
    rollout_rows(made.queries, made.keys, made.sums, [29], MASK)
    shows = Blocks.shows
    monkeypatch.setattr(Blocks, "shows", lambda self, query, key: shows(self, query + 1, key))
    with pytest.raises(AttentionInvalid, match="did not keep its attention mass"):
        rollout_rows(made.queries, made.keys, made.sums, [21], MASK)


def test_the_cost_is_that_of_the_pairs_that_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    time, mask = 8_192, Mask.sparse(64, last=2, stride=16, first=1)
    shown = visible_pairs(time, mask)
    assert shown < visible_pairs(time, Mask.causal()) / 7
    tiles = sum(
        block.size() * (stop - start)
        for block in row_blocks(time, mask, rows_a_block=tile_rows(mask))
        for start, stop in key_tiles(block, mask, 256)
    )
    assert tiles < 1.2 * shown
    computed: list[int] = []
    forward = backends.CpuFlash.forward

    def counted(self: backends.CpuFlash, *tensors: Tensor, **options: Any) -> Pass:
        computed.append(len(tensors[0]) * tensors[0].shape[2] * tensors[1].shape[2])
        return forward(self, *tensors, **options)

    monkeypatch.setattr(backends.CpuFlash, "forward", counted)
    query = torch.zeros(1, 1, time, 2)
    attend(query, query, query, mask)
    assert sum(computed) < 1.2 * shown


@pytest.mark.parametrize("mask", [Mask.causal(), Mask.window(20), Mask.sparse(4, last=1, first=1)])
def test_whole_rows_are_held_some_at_a_time(mask: Mask, monkeypatch: pytest.MonkeyPatch) -> None:
    made = case(mask, time=300, layers=1)
    layer = check_layers(made.queries, made.keys, made.sums)[0]
    monkeypatch.setattr(rollout_kernels, "STRIPE_ENTRIES", 6_000)
    held = [stripe.entries.numel() for stripe in rollout_kernels.stripes(layer, mask)]
    assert len(held) > 5
    assert max(held) <= 6_000


def test_blocks_that_show_all_are_causal_bit_for_bit() -> None:
    query, key, value = drawn(50)
    wanted = attend(query, key, value, Mask.causal())
    for mask in (Mask.sparse(7, last=7), Mask.sparse(8, stride=1), Mask.sparse(7, first=7)):
        found = attend(query, key, value, mask)
        assert all(map(torch.equal, found, wanted))
    some = attend(query, key, value, Mask.sparse(7, last=6))  # of blocks 0 to 7
    assert not torch.equal(some.output, wanted.output)


@settings(max_examples=25, deadline=None)
@given(sparse_masks(40), st.integers(1, 60), st.integers(0, 99))
def test_explanations_are_those_of_the_stored_matrices(mask: Mask, time: int, seed: int) -> None:
    made = case(mask, time=time, seed=seed, layers=2)
    rows = sorted({0, time // 2, time - 1})
    wanted = reference.rollout(made.matrices, mask)
    found = rollout_rows(made.queries, made.keys, made.sums, rows, mask).weights
    torch.testing.assert_close(found, wanted[:, rows], rtol=0, atol=1e-12)
    torch.testing.assert_close(found.sum(-1), torch.ones_like(found[..., 0]), rtol=0, atol=1e-12)
    by_age = rollout_by_age(made.queries, made.keys, made.sums, mask, bucket_bars=1).weights
    torch.testing.assert_close(by_age[0, -1].flip(0), wanted[0, -1], rtol=0, atol=1e-12)
    entropy = torch.stack([reference.entropy(one) for one in made.matrices], dim=1)[..., rows]
    counts = torch.tensor([mask.visible(row, time) for row in rows]).double()
    sure = torch.where(counts > 1, 1 - entropy / counts.log().clamp_min(0.1), 0.0).clamp(0, 1)
    torch.testing.assert_close(
        confidence(made.queries, made.keys, made.sums, rows, mask), sure, rtol=0, atol=1e-10
    )


CONFIG = FlashConfig(
    features=5, dim=8, layers=2, heads=2, window=41, mask="blocks", blocks=(4, 1, 3, 1)
)


def look(network: FlashNetwork, x: Tensor) -> ExplainedOutputs:
    return network.look(x, torch.arange(x.shape[1]))


@pytest.mark.slow
def test_a_network_of_blocks_looks_back_alone_and_explains_what_it_attended_with() -> None:
    network = models.network(CONFIG).double().eval()
    x = torch.randn(1, 41, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    leaf = x.clone().requires_grad_()
    for at in (0, 7, 22, 40):
        (slope,) = torch.autograd.grad(network(leaf).mean[0, at].sum(), leaf)
        assert int(slope[0].abs().sum(-1).nonzero().max()) == at
    assert CONFIG.receptive_field == CONFIG.window == 41
    assert not network.answers_every_row
    _, traces = network.trace(x)
    matrices = [reference.attention_matrix(one.query, one.key, network.mask) for one in traces]
    wanted = reference.rollout(matrices, network.mask)[:, -1:]
    torch.testing.assert_close(look(network, x).rollout.weights, wanted, rtol=0, atol=1e-12)
    layers = network.attribution_by_layer(x, torch.arange(41))
    for layer, matrix in zip(layers, matrices, strict=True):
        torch.testing.assert_close(layer.rows, matrix[0, :, -1], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"blocks": (0, 1, 1, 1)}, "at least 1"),
        ({"blocks": (4, -1, 1, 1)}, "at least 0"),
        ({"blocks": (4, 1, 1)}, "give the bars of one"),
        ({"encoding": "alibi"}, "use rope with blocks"),
    ],
)
def test_blocks_that_cannot_be_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigInvalid, match=words):
        replace(CONFIG, **changes)


def test_what_knows_no_blocks_says_so() -> None:
    made = case(MASK, time=30)
    query, key = made.queries[0], made.keys[0]
    with pytest.raises(AttentionInvalid, match="rollout backend flash knows no blocks"):
        rollout_rows(made.queries, made.keys, made.sums, [3], MASK, backend="flash")
    with pytest.raises(AttentionInvalid, match="cannot be"):
        Mask.sparse(0)
    with pytest.raises(AttentionInvalid, match="full or a causal mask"):
        attend_linearly(query.exp(), key.exp(), key, MASK)
    with pytest.raises(AttentionInvalid, match="ranks a whole sequence"):
        sample_keys(30, MASK, seed=1)


def test_a_package_without_blocks_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "flash_package", lambda: backends)
    assert choose("cuda", torch.bfloat16) == "flash_attn"
    assert choose("cuda", torch.bfloat16, MASK) == "sdpa"
    monkeypatch.setitem(
        backends.BACKENDS, "sdpa", replace(backends.BACKENDS["sdpa"], takes_blocks=False)
    )
    with pytest.raises(AttentionInvalid, match="backend sdpa knows no blocks"):
        attend(*drawn(30), MASK, backend="sdpa")
