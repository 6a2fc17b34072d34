"""ProbSparse against its own dense matrix: output, rollout, entropy and the choice of rows."""

from __future__ import annotations

import math

import pytest
import torch
from builders import present
from dense_attention import dense_rows
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tracepaper.strategies.attention import probsparse
from tracepaper.strategies.attention.masks import Mask
from tracepaper.strategies.attention.probsparse import SparseRead, attend_sparsely, sample_keys
from tracepaper.strategies.attention.reads import Fuse
from tracepaper.strategies.errors import AttentionInvalid

torch.set_num_threads(1)
MASKS = (Mask.full(), Mask())


def draw(time: int, *, size: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    tensors = torch.randn(3, 2, 2, time, 8, generator=generator).double() * size
    return tensors[0], tensors[1], tensors[2]


def attended(
    time: int, mask: Mask, *, size: float = 1.0, factor: int = 2
) -> tuple[Tensor, SparseRead]:
    query, key, value = draw(time, size=size)
    samples = sample_keys(time, mask, factor=factor, seed=7)
    return attend_sparsely(query, key, value, mask, samples, factor=factor)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 90), st.sampled_from(MASKS), st.sampled_from([0.0, 1.0, 3.0]))
def test_the_output_is_the_dense_matrix_times_the_values(
    time: int, mask: Mask, size: float
) -> None:
    output, read = attended(time, mask, size=size)
    value = draw(time, size=size)[2]
    wanted = dense_rows(read) @ value
    torch.testing.assert_close(output, wanted, rtol=0, atol=1e-12)
    torch.testing.assert_close(dense_rows(read).sum(-1), wanted.new_ones(2, 2, time))


@pytest.mark.parametrize("ratio", [0, 10**9])
def test_queries_are_ranked_alike_by_all_products_and_by_gathered_keys(
    ratio: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probsparse, "_DENSE_RATIO", ratio)
    for mask in MASKS:
        query, key, _ = draw(70)
        samples = sample_keys(70, mask, factor=2, seed=7)
        active = attended(70, mask)[1].active
        products = torch.einsum("bhnd,bhmd->bhnm", query, key)
        sampled = torch.stack([products[:, :, n, samples[n]] for n in range(70)], dim=2)
        spread = sampled.amax(-1) - sampled.mean(-1)
        wanted = spread.sort(dim=-1, descending=True, stable=True).indices
        assert torch.equal(active, wanted[..., : active.shape[-1]])


def test_windows_are_ranked_together_as_alone() -> None:
    drawn = torch.Generator().manual_seed(2)
    query, key, value = torch.randn(3, 40, 2, 70, 8, generator=drawn).double()
    samples = sample_keys(70, Mask.full(), factor=2, seed=7)

    def active(part: slice) -> Tensor:
        given = (query[part], key[part], value[part], Mask.full(), samples)
        return attend_sparsely(*given, factor=2)[1].active

    every = active(slice(None))
    for at in (0, 17, 39):
        assert torch.equal(every[[at]], active(slice(at, at + 1)))


def test_a_row_that_was_lazy_has_the_entropy_of_all_it_sees() -> None:
    _output, read = attended(60, Mask.full())
    every = torch.special.entr(dense_rows(read)).sum(dim=-1)
    for row in (0, 17, 59):
        wanted = 1.0 - every[..., row] / math.log(60)
        torch.testing.assert_close(read.confidence([row])[..., 0], wanted, rtol=0, atol=1e-12)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 90), st.sampled_from(MASKS), st.integers(1, 4))
def test_the_product_is_that_of_the_dense_matrix(time: int, mask: Mask, rows: int) -> None:
    _output, read = attended(time, mask)
    weights = torch.rand(2, rows, time, generator=torch.Generator().manual_seed(3)).double()
    dense = dense_rows(read)
    product = read.carry(weights)
    torch.testing.assert_close(product, weights @ dense.mean(dim=1), rtol=0, atol=1e-12)
    shares = torch.tensor([0.2, 0.8])
    weighed = read.carry(weights, Fuse(shares=shares))
    wanted = weights @ (0.2 * dense[:, 0] + 0.8 * dense[:, 1])
    torch.testing.assert_close(weighed, wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("mask", MASKS)
def test_entropy_is_that_of_the_dense_matrix(mask: Mask) -> None:
    _output, read = attended(70, mask)
    wanted = torch.special.entr(dense_rows(read)).sum(dim=-1)
    torch.testing.assert_close(read.entropy(), wanted, rtol=0, atol=1e-12)


def test_a_full_set_of_active_rows_is_ordinary_attention() -> None:
    query, key, value = draw(20)
    samples = sample_keys(20, Mask.full(), factor=50, seed=7)
    output, _read = attend_sparsely(query, key, value, Mask.full(), samples, factor=50)
    wanted = torch.nn.functional.scaled_dot_product_attention(query, key, value)
    torch.testing.assert_close(output, wanted)


def test_the_rows_that_choose_most_attend() -> None:
    query, key, value = draw(64)
    chosen = torch.tensor([5, 17, 40])
    query[:, :, chosen] *= 30.0
    samples = sample_keys(64, Mask.full(), factor=1, seed=7)
    _output, read = attend_sparsely(query, key, value, Mask.full(), samples, factor=1)
    assert read.active.shape[2] == math.ceil(math.log(64))
    for active in read.active.flatten(0, 1).tolist():
        assert {5, 17, 40} <= set(active)


def test_the_decided_row_always_attends() -> None:
    query, key, value = draw(64)
    query[:, :, -1] = 0.0
    samples = sample_keys(64, Mask.full(), factor=1, seed=7)
    _, lazy = attend_sparsely(query, key, value, Mask.full(), samples, factor=1)
    _, forced = attend_sparsely(query, key, value, Mask.full(), samples, factor=1, always=[63])
    assert not bool((lazy.active == 63).any())
    assert bool((forced.active == 63).any(dim=-1).all())
    assert float(lazy.confidence([63]).max()) < 1e-12


def test_the_last_places_go_to_the_earlier_of_rows_that_choose_alike() -> None:
    query, key, value = draw(64)
    query[:, :, :61] = 0.0  # spread nothing; only the last three choose
    samples = sample_keys(64, Mask.full(), factor=2, seed=7)
    _output, read = attend_sparsely(query, key, value, Mask.full(), samples, factor=2, always=[63])
    for active in read.active.flatten(0, 1).tolist():
        assert active[0] == 63
        assert sorted(active) == [0, 1, 2, 3, 4, 5, 6, 61, 62, 63]


def test_causal_probsparse_is_not_prefix_consistent() -> None:
    # Why it never takes a batched pass: one future bar changes which past rows attend.
    query, key, value = draw(400)
    samples = sample_keys(400, Mask(), seed=1)
    before, _ = attend_sparsely(query, key, value, Mask(), samples)
    query[:, :, 399] *= 100.0
    after, _ = attend_sparsely(query, key, value, Mask(), samples)
    assert not torch.equal(before[:, :, :399], after[:, :, :399])


def test_gradients_flow_to_every_input() -> None:
    tensors = query, key, value = draw(30)
    for tensor in tensors:
        tensor.requires_grad_()
    samples = sample_keys(30, Mask.full(), factor=1, seed=7)
    attend_sparsely(query, key, value, Mask.full(), samples, factor=1)[0].sum().backward()
    for tensor in tensors:
        assert bool(present(tensor.grad).isfinite().all())
    assert float(present(tensors[2].grad).abs().sum()) > 0.0


def test_samples_of_another_length_and_uneven_shapes_are_refused() -> None:
    query, key, value = draw(9)
    with pytest.raises(AttentionInvalid, match=r"use Mask\.full"):
        sample_keys(50, Mask.window(5), seed=1)
    samples = sample_keys(8, Mask.full(), seed=1)
    with pytest.raises(AttentionInvalid, match=r"samples is \[8, 8\]; give \[time 9"):
        attend_sparsely(query, key, value, Mask.full(), samples)
    with pytest.raises(AttentionInvalid, match=r"key is .* head 1,"):
        attend_sparsely(query[:, :1], key, value, Mask.full(), samples)
