"""Cross-attention against dense matrices in float64: values, gradients, entropy, rollout."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from builders import present
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tracepaper.strategies.attention import (
    Layer,
    Mask,
    Rollout,
    backends,
    closed_keys,
    cross_attend,
    rollout,
)
from tracepaper.strategies.attention.reads import Fusion
from tracepaper.strategies.errors import AttentionInvalid

torch.set_num_threads(1)
DIM = 4


def drawn(*lengths: int, seed: int = 0, heads: int = 2, batch: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(batch, heads, length, DIM, generator=generator, dtype=torch.float64)
        for length in lengths
    ]


def dense(query: Tensor, key: Tensor, tensor: Tensor | None) -> Tensor:
    """Return the matrices [batch, head, query, key]; a row that sees nothing is 0."""
    scores = query @ key.mT / math.sqrt(DIM)
    if tensor is None:
        return scores.softmax(dim=-1)
    hidden = torch.arange(key.shape[2]) >= tensor.view(-1, query.shape[2])[:, None, :, None]
    return scores.masked_fill(hidden, -torch.inf).softmax(dim=-1).nan_to_num(0.0)


@settings(max_examples=30, deadline=None)
@given(
    queries=st.integers(1, 9),
    keys=st.integers(1, 12),
    kind=st.sampled_from(["all", "shared", "each"]),
    entries=st.sampled_from([1, 50, 1 << 24]),
    seed=st.integers(0, 99),
)
def test_what_is_read_and_its_gradients_are_those_of_the_matrix(
    queries: int, keys: int, kind: str, entries: int, seed: int
) -> None:
    draw = torch.Generator().manual_seed(seed)
    shape = {"all": None, "shared": (queries,), "each": (2, queries)}[kind]
    limits = None if shape is None else torch.randint(0, keys + 1, shape, generator=draw)
    query, key, value = given_ = [x.requires_grad_() for x in drawn(queries, keys, keys, seed=seed)]
    weights = torch.randn(2, 2, queries, DIM, generator=draw, dtype=torch.float64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(backends.CHUNK_ENTRIES, "cpu", entries)  # down to a block of one query
        output, logsumexp = cross_attend(query, key, value, limits)
        slopes = torch.autograd.grad((output * weights).sum(), given_)
    matrix = dense(query, key, limits)
    wanted = matrix @ value
    torch.testing.assert_close(output, wanted, rtol=0, atol=1e-12)
    expected = torch.autograd.grad((wanted * weights).sum(), given_)
    for slope, gradient in zip(slopes, expected, strict=True):
        torch.testing.assert_close(slope, gradient.nan_to_num(0.0), rtol=0, atol=1e-12)
    sees = matrix.sum(dim=-1) > 0
    assert torch.equal(torch.isneginf(logsumexp), ~sees)


def test_no_query_reads_a_key_that_has_not_closed() -> None:
    query_closes = torch.tensor([60, 120, 180, 240])  # one stream a minute
    key_closes = torch.tensor([0, 100, 120, 120, 239, 300])  # one whenever something happened
    tensor = closed_keys(query_closes, key_closes)
    assert tensor.tolist() == [1, 4, 4, 5]

    def leaks(limits: Tensor) -> bool:
        query, key, value = drawn(4, 6, 6)
        before = cross_attend(query, key, value, limits).output
        for row, close in enumerate(query_closes.tolist()):
            later = key_closes > close
            keys, values = (torch.where(later[:, None], x + 1.0, x) for x in (key, value))
            after = cross_attend(query, keys, values, limits).output
            if not torch.equal(after[:, :, row], before[:, :, row]):
                return True
        return False

    assert not leaks(tensor)
    assert leaks((tensor + 1).clamp_max(6))  # one key of the future, planted


def test_memory_holds_some_queries_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(backends.CHUNK_ENTRIES, "cpu", 2 * 2 * 64 * 3)
    sizes: list[int] = []
    softmax = torch.logsumexp

    def counted(scores: Tensor, dim: int) -> Tensor:
        sizes.append(scores.numel())
        return softmax(scores, dim=dim)

    monkeypatch.setattr(torch, "logsumexp", counted)
    query, key = drawn(100, 64)
    cross_attend(query, key, key, torch.full((100,), 64))
    assert max(sizes) == 2 * 2 * 64 * 3  # three queries of each head
    assert len(sizes) == 34


def read(into: int, of: int, step: int, seed: int) -> Layer:
    """Return a read between streams of 4, 7 and 3 tokens; what reads stream 2 sees part of it."""
    lengths = (4, 7, 3)
    query, key, value, gradient = drawn(
        lengths[into], lengths[of], lengths[of], lengths[into], seed=seed
    )
    limits = torch.arange(lengths[into]) % (lengths[of] + 1) if of == 2 else None
    logsumexp = cross_attend(query, key, value, limits).logsumexp
    return Layer(
        query, key, value, logsumexp, Mask(causal=False, leading_keys=limits), gradient=gradient,
        target=str(into), source=str(of), step=step,
    )  # fmt: skip


READS = [
    *(read(0, 0, 0, 1), read(1, 1, 0, 2), read(2, 2, 0, 3)),  # each stream reads itself
    *(read(0, 1, 1, 4), read(1, 0, 1, 5)),  # two read each other, as they were
    *(read(0, 1, 2, 6), read(0, 2, 2, 7)),  # one reads two
]


def dense_rollout(reads: list[Layer], share: float, fusion: str) -> Tensor:
    """Return the product over all 14 tokens of all streams together, [batch, token, token]."""
    places = {"0": slice(0, 4), "1": slice(4, 11), "2": slice(11, 14)}
    product = torch.eye(14, dtype=torch.float64).expand(2, 14, 14)
    for step in sorted({layer.step for layer in reads if layer.step is not None}):
        same_step = [layer for layer in reads if layer.step == step]
        layer = torch.eye(14, dtype=torch.float64).repeat(2, 1, 1)
        for into in {layer.target for layer in same_step}:
            layer[:, places[into], places[into]] *= share
        for member in same_step:
            matrix = dense(member.query, member.key, member.mask.leading_keys)
            fused = matrix.mean(dim=1)
            if fusion == "gradient":
                assert member.gradient is not None
                fused = (
                    (matrix * (member.gradient @ present(member.value).mT)).clamp_min(0).mean(dim=1)
                )
                fused = fused / fused.sum(dim=-1, keepdim=True).clamp_min(1e-300)
            each = (1 - share) / sum(other.target == member.target for other in same_step)
            layer[:, places[member.target], places[member.source]] += each * fused
            blind = torch.diag_embed((fused.sum(dim=-1) == 0).double())
            layer[:, places[member.target], places[member.target]] += each * blind
        product = layer @ product
    return product


@pytest.mark.parametrize("fusion", ["mean", "gradient"])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.8])
@pytest.mark.parametrize("stream", [0, 1, 2])
def test_the_rollout_over_streams_is_the_product_over_all_their_tokens(
    fusion: Fusion, share: float, stream: int
) -> None:
    lengths = (4, 7, 3)
    start = {
        str(each): torch.eye(length).double().expand(2, -1, -1) * (each == stream)
        if each == stream
        else torch.zeros(2, lengths[stream], length).double()
        for each, length in enumerate(lengths)
    }
    weights = rollout(READS, start, Rollout(share, fusion)).weights
    joined = torch.cat([weights[str(each)] for each in range(3)], dim=-1)
    first = sum(lengths[:stream])
    wanted = dense_rollout(READS, share, fusion)[:, first : first + lengths[stream]]
    torch.testing.assert_close(joined, wanted, rtol=0, atol=1e-12)


def test_a_row_that_no_gradient_asks_for_keeps_itself() -> None:
    layer = read(0, 1, 0, 4)
    slope = present(layer.gradient).clone()
    slope[:, :, 2] = -1.0  # against every value
    layer = replace(layer, value=present(layer.value).abs(), gradient=slope)
    weights = rollout([layer], [2, 3], Rollout(fusion="gradient")).weights
    assert weights["0"][:, 0, 2].tolist() == [1.0, 1.0]
    assert float(weights["1"][:, 0].sum()) == 0.0
    wanted = dense_rollout([layer], 0.5, "gradient")[:, 2:4, :11]
    torch.testing.assert_close(
        torch.cat((weights["0"], weights["1"]), dim=-1), wanted, rtol=0, atol=1e-12
    )


def test_a_row_that_does_not_sum_to_one_is_found() -> None:
    good = read(0, 1, 0, 4)
    rollout([good], [0])
    for wrong in (
        good.logsumexp / math.log(2),  # another base
        good.logsumexp + 1e-9,
        cross_attend(good.query, good.key, good.key, torch.full((4,), 6)).logsumexp,
    ):
        with pytest.raises(AttentionInvalid, match="attention mass"):
            rollout([replace(good, logsumexp=wrong)], [3])


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (torch.ones(4), "give whole numbers"),
        (torch.ones(3, dtype=torch.int64), "one whole number a query"),
        (torch.full((4,), 8), "from 0 to 7"),
        (torch.full((4,), -1), "from 0 to 7"),
    ],
)
def test_keys_that_are_not_there_cannot_be_seen(tensor: Tensor, words: str) -> None:
    query, key = drawn(4, 7)
    with pytest.raises(AttentionInvalid, match=words):
        cross_attend(query, key, key, tensor)


def test_what_does_not_fit_is_one_sentence() -> None:
    good = read(0, 1, 0, 4)
    other = read(1, 1, 1, 2)
    for reads, rows, words in (
        ([], [0], "nothing to roll out"),
        ([good, other], {"1": torch.ones(2, 1, 6)}, "7 queries for 6 tokens"),
        ([good], {"1": torch.ones(2, 1, 7)}, "which has no weights"),
        ([good], {"0": torch.ones(2, 1, 4), "1": torch.ones(2, 1, 3)}, "the whole of its streams"),
    ):
        with pytest.raises(AttentionInvalid, match=words):
            rollout(reads, rows)
    with pytest.raises(AttentionInvalid, match="do not ascend"):
        closed_keys(torch.tensor([1]), torch.tensor([2, 1]))
    with pytest.raises(AttentionInvalid, match="whole numbers"):
        closed_keys(torch.tensor([1.0]), torch.tensor([2]))
