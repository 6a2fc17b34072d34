"""A stream of anyone's attention equals its layers over the whole sequence, past wrap-around."""

from __future__ import annotations

import dense_attention as reference
import pytest
import torch
from attention_cases import layers_of, rolled
from torch import Tensor

from tracepaper.strategies.attention import Mask, Stream, attend
from tracepaper.strategies.attention.methods import Rollout
from tracepaper.strategies.errors import AttentionInvalid

WINDOW, LAYERS, BATCH, HEADS, DIM, TIME = 7, 3, 2, 2, 4, 150


def inputs(seed: int = 2) -> list[tuple[Tensor, Tensor, Tensor]]:
    drawn = torch.Generator().manual_seed(seed)
    shape = (3, BATCH, HEADS, TIME, DIM)
    tensors = [torch.randn(shape, generator=drawn, dtype=torch.float64) for _ in range(LAYERS)]
    return [(tensor[0], tensor[1], tensor[2]) for tensor in tensors]


def stream(window: int = WINDOW) -> Stream:
    return Stream(
        window, layers=LAYERS, batch=BATCH, heads=HEADS, dim=DIM, dtype=torch.float64
    )  # fmt: skip


OPTIONS = (
    Rollout(),
    Rollout(fusion="max", residual_weight=0.3),
    Rollout(head_weights=(0.8, 0.2), start_layer=1),
)


@pytest.mark.parametrize("window", [1, WINDOW, 100])
def test_every_step_is_the_row_of_the_whole_sequence(window: int) -> None:
    layers, attention_stream = inputs(), stream(window)
    whole = [attend(*layer, Mask.window(window)) for layer in layers]
    for step in range(TIME):
        for number, layer in enumerate(layers):
            read = attention_stream.attend(number, *(each[:, :, step] for each in layer))
            torch.testing.assert_close(read.output, whole[number].output[:, :, step])
            torch.testing.assert_close(read.logsumexp, whole[number].logsumexp[:, :, step])
    assert attention_stream.steps == TIME


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("steps", [1, WINDOW, 19, 20, TIME])
def test_the_rollout_of_a_step_is_that_of_the_stored_matrices(steps: int, options: Rollout) -> None:
    layers, attention_stream, mask = inputs(), stream(), Mask.window(WINDOW)
    for step in range(steps):
        for number, layer in enumerate(layers):
            attention_stream.attend(number, *(each[:, :, step] for each in layer))
    matrices = [
        reference.attention_matrix(q[:, :, :steps], k[:, :, :steps], mask) for q, k, _ in layers
    ]
    streamed = attention_stream.rollout(options)
    field = LAYERS * (WINDOW - 1) + 1
    assert streamed.weights["tokens"].shape == (BATCH, 1, min(steps, field))
    sums = [reference.logsumexp(q[:, :, :steps], k[:, :, :steps], mask) for q, k, _ in layers]
    short = [(q[:, :, :steps], k[:, :, :steps]) for q, k, _ in layers]
    usual = rolled(
        layers_of([q for q, _ in short], [k for _, k in short], sums, mask),
        [steps - 1],
        Rollout(
            fusion=options.fusion,
            head_weights=options.head_weights,
            residual_weight=options.residual_weight,
            start_layer=options.start_layer,
        ),
    )
    torch.testing.assert_close(
        streamed.weights["tokens"], usual.weights[..., -field:], rtol=0, atol=1e-12
    )
    if options == Rollout():
        dense = reference.rollout(matrices, mask)[:, -1:, -field:]
        torch.testing.assert_close(streamed.weights["tokens"], dense, rtol=0, atol=1e-12)


def test_what_discards_ranks_the_steps_that_are_kept() -> None:
    """The oldest windows began before these: their rows are those of the keys that are here."""
    layers, attention_stream, mask = inputs(), stream(), Mask.window(WINDOW)
    for step in range(TIME):
        for number, layer in enumerate(layers):
            attention_stream.attend(number, *(each[:, :, step] for each in layer))
    field = LAYERS * (WINDOW - 1) + 1
    queries = [query[:, :, -field:] for query, _, _ in layers]
    keys = [key[:, :, -field:] for _, key, _ in layers]
    sums = [attend(q, k, k, mask).logsumexp for q, k in zip(queries, keys, strict=True)]
    streamed = attention_stream.rollout(Rollout(discard_ratio=0.5))
    usual = rolled(layers_of(queries, keys, sums, mask), [field - 1], Rollout(discard_ratio=0.5))
    torch.testing.assert_close(streamed.weights["tokens"], usual.weights, rtol=0, atol=1e-12)


def test_what_does_not_fit_is_refused_in_one_sentence() -> None:
    layers, attention_stream = inputs(), stream()
    step = [each[:, :, 0] for each in layers[0]]
    with pytest.raises(AttentionInvalid, match="Layer 1 was called, but layer 0 is next; keep"):
        attention_stream.attend(1, step[0], step[1], step[2])
    with pytest.raises(AttentionInvalid, match=r"key is .* give \[batch 2, head 2, dim 4\]"):
        attention_stream.attend(0, step[0], step[1][:1], step[2])
    with pytest.raises(AttentionInvalid, match="projection of the value produced infinity"):
        attention_stream.attend(0, step[0], step[1], step[2] * torch.inf)
    with pytest.raises(AttentionInvalid, match="run 0 of 3 layers; run all"):
        attention_stream.rollout()
    attention_stream.attend(0, step[0], step[1], step[2])
    with pytest.raises(AttentionInvalid, match="Step 1 has run 1 of 3 layers; run all"):
        attention_stream.rollout()
    with pytest.raises(AttentionInvalid, match="at least 1 bar"):
        Stream(0, heads=1, dim=4)
