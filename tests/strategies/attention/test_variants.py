"""One layer of anyone's attention, against dense matrices in float64 written pair by pair."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tracepaper.strategies import attention
from tracepaper.strategies.attention import reference
from tracepaper.strategies.attention.masks import Mask
from tracepaper.strategies.attention.variants import (
    Scores,
    carry_rows,
    score_entropy,
    score_logsumexp,
    score_rollout,
)
from tracepaper.strategies.errors import AttentionInvalid

torch.set_num_threads(1)
DIM = 4


def tensors(heads: int, key_heads: int, count: int, keys: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(heads * 100 + keys)
    query = torch.randn(2, heads, count, DIM, generator=generator, dtype=torch.float64)
    return 2.0 * query, torch.randn(
        2, key_heads, keys, DIM, generator=generator, dtype=torch.float64
    )


def dense(query: Tensor, key: Tensor, scores: Scores) -> tuple[Tensor, Tensor]:
    """Return the matrices [batch, head, query, key] and what the sinks take, pair by pair."""
    batch, heads, count, _ = query.shape
    keys = key.shape[2]
    matrix = torch.zeros(batch, heads, count, keys, dtype=torch.float64)
    lost = torch.zeros(batch, heads, count, dtype=torch.float64)
    scale = DIM**-0.5 if scores.scale is None else scores.scale
    for element in range(batch):
        length = keys if scores.lengths is None else int(scores.lengths[element])
        first = length - count if scores.first is None else int(scores.first[element])
        for head in range(heads):
            shared = head // (heads // key.shape[1])
            for row in range(count):
                at, found = first + row, {}
                for place in range(length):
                    if scores.causal and place > at:
                        continue
                    if scores.window is not None and at - place >= scores.window:
                        continue
                    product = scale * float(query[element, head, row] @ key[element, shared, place])
                    if scores.softcap is not None:
                        product = scores.softcap * math.tanh(product / scores.softcap)
                    found[place] = math.exp(product)
                sink = 0.0 if scores.sinks is None else math.exp(float(scores.sinks[head]))
                total = sum(found.values()) + sink
                for place, value in found.items():
                    matrix[element, head, row, place] = value / total
                lost[element, head, row] = sink / total if total else 0.0
    return matrix, lost


@settings(max_examples=40, deadline=None)
@given(
    shape=st.sampled_from([(2, 2, 6, 6), (4, 2, 6, 6), (4, 1, 1, 9), (2, 1, 3, 8)]),
    causal=st.booleans(),
    window=st.sampled_from([None, 1, 3]),
    softcap=st.sampled_from([None, 0.7]),
    has_sinks=st.booleans(),
    lengths=st.sampled_from([None, (5, 3)]),
    scale=st.sampled_from([None, 0.9]),
)
def test_mass_entropy_and_logsumexp_equal_the_matrices(
    shape: tuple[int, int, int, int],
    causal: bool,
    window: int | None,
    softcap: float | None,
    has_sinks: bool,
    lengths: tuple[int, int] | None,
    scale: float | None,
) -> None:
    query, key = tensors(*shape)
    sinks = torch.linspace(-1.0, 1.0, shape[0], dtype=torch.float64) if has_sinks else None
    at_end = lengths is None or (shape[2] <= min(lengths) and shape[2] < shape[3])
    scores = Scores(
        causal=causal, window=window, scale=scale, softcap=softcap, sinks=sinks, lengths=lengths,
        first=None if at_end else (0, 0),
    )  # fmt: skip
    if window is not None and not causal:
        with pytest.raises(AttentionInvalid, match="both sides"):
            score_logsumexp(query, key, scores)
        return
    matrix, lost = dense(query, key, scores)
    total = score_logsumexp(query, key, scores)
    whole = matrix.sum(-1) + lost
    seen = whole > 0  # a padded query may see no key
    weights = torch.rand(2, 3, shape[2], dtype=torch.float64) * seen.all(1)[:, None]
    found = carry_rows(query, key, total, weights, scores)
    torch.testing.assert_close(found, weights[:, None] @ matrix, rtol=0, atol=1e-12)
    entropy = torch.special.entr(matrix).sum(-1) + torch.special.entr(lost)
    told = score_entropy(query, key, total, scores)
    torch.testing.assert_close(told[seen], entropy[seen], rtol=0, atol=1e-12)


def test_a_step_of_decoding_over_a_cache_is_the_last_row_of_the_whole() -> None:
    layers = [tensors(4, 2, 7, 7) for _ in range(3)]
    scores = Scores(window=5, softcap=2.0)
    whole = [(q, k, score_logsumexp(q, k, scores)) for q, k in layers]
    last = torch.zeros(2, 1, 7, dtype=torch.float64)
    last[:, :, -1] = 1.0
    wanted = score_rollout(whole, last, scores)
    query, key, _ = whole[-1]
    step = query[:, :, -1:]
    one = (step, key, score_logsumexp(step, key, scores))
    alone = torch.ones(2, 1, 1, dtype=torch.float64)
    found = score_rollout([*whole[:-1], one], alone, scores)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)
    assert found.sum(-1).tolist() == [[pytest.approx(1.0)], [pytest.approx(1.0)]]


def test_plain_scores_roll_out_as_the_oracle() -> None:
    layers = [tensors(2, 2, 8, 8) for _ in range(2)]
    whole = [(q, k, score_logsumexp(q, k)) for q, k in layers]
    rows = torch.eye(8, dtype=torch.float64).expand(2, -1, -1)
    matrices = [reference.attention_matrix(q, k, Mask.causal()) for q, k in layers]
    wanted = reference.rollout(matrices, Mask.causal(), residual_weight=0.3)
    found = score_rollout(whole, rows, residual_weight=0.3)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)


def test_padding_changes_nothing_of_a_shorter_sequence() -> None:
    query, key = tensors(4, 2, 6, 6)
    padded = Scores(lengths=(6, 4), first=(0, 0))
    total = score_logsumexp(query, key, padded)
    weights = torch.zeros(2, 1, 6, dtype=torch.float64)
    weights[:, 0, 3] = 1.0
    spoiled = key.clone()
    spoiled[1, :, 4:] = 1e3
    found = carry_rows(query, spoiled, score_logsumexp(query, spoiled, padded), weights, padded)
    alone = carry_rows(query[1:, :, :4], key[1:, :, :4], total[1:, :, :4], weights[1:, :, :4])
    torch.testing.assert_close(found[1:, :, :, :4], alone, rtol=0, atol=1e-12)
    assert not found[1, :, :, 4:].any()


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (Scores(softcap=0.5), "A row sums to"),
        (Scores(scale=0.1), "A row sums to"),
        (Scores(sinks=torch.zeros(4)), "A row sums to"),
        (Scores(window=0), "window is 0; it must be above 0"),
        (Scores(sinks=torch.zeros(3)), "give one a head"),
        (Scores(lengths=(3,)), "lengths has 1 numbers for 2 sequences"),
        (Scores(lengths=(3, 9)), "Each of lengths must be from 1 to 6"),
        (Scores(lengths=(4, 6)), "does not say where the queries stand"),
        (Scores(lengths=(6, 6), first=(0, 2)), "padding at the start"),
        (Scores(first=(-2, 0)), "padding at the start"),
        (Scores(causal=False, window=3), "both sides"),
        (Scores(window=(3, 3)), "whole numbers"),  # type: ignore[arg-type]
        (Scores(seen=torch.ones(2, 6, 6, dtype=torch.bool)), "one whole number a query"),
    ],
)
def test_what_does_not_fit_is_one_sentence(wrong: Scores, sentence: str) -> None:
    query, key = tensors(4, 2, 6, 6)
    total = score_logsumexp(query, key)
    weights = torch.ones(2, 1, 6, dtype=torch.float64)
    with pytest.raises(AttentionInvalid, match=sentence):
        carry_rows(query, key, total, weights, wrong)
    for broken in (query[:, :3], query[..., :2], query[0]):
        with pytest.raises(AttentionInvalid, match=r"cannot share|must agree|must be \[batch"):
            score_logsumexp(broken, key, replace(wrong, sinks=None))


def test_the_public_names_are_what_their_modules_call_so() -> None:
    for name in attention.__all__:
        assert getattr(attention, name).__name__ == name
    assert dir(attention) == attention.__all__
    with pytest.raises(AttributeError, match="has no 'attned'; choose one of"):
        getattr(attention, "attned")  # noqa: B009 - a checker would say so before it runs
