"""Shares by passage are the sums of the rollout's columns, for any mask, and hiding is measured."""

from __future__ import annotations

from typing import Any

import dense_attention as reference
import pytest
import torch
from attention_cases import Case, cases
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tracepaper.strategies.attention import Layer, Mask, Rollout, capture, passages, rollout
from tracepaper.strategies.errors import AttentionInvalid

torch.set_num_threads(1)


def summed(layers: list[Layer], labels: Tensor, names: int) -> Tensor:
    """Return the rollout of every row, its columns summed by label."""
    rows = rollout(layers, range(layers[0].shape[2])).weights["tokens"]
    return rows @ torch.nn.functional.one_hot(labels, names).to(rows)


@settings(max_examples=60, deadline=None)
@given(cases(longest=60), st.integers(0, 2**32 - 1))
def test_shares_equal_the_stored_matrices(sample: Case, seed: int) -> None:
    time = sample.queries[0].shape[2]
    labels = torch.randint(0, 3, (time,), generator=torch.Generator().manual_seed(seed))
    labels[0] = 2
    spans = {
        name: (labels == place).nonzero()[:, 0].tolist()
        for place, name in enumerate("ab")
        if bool((labels == place).any())
    }
    if not spans:
        return
    result = passages(sample.layers, spans)
    matrix = reference.rollout(sample.matrices, sample.mask)
    for name, positions in spans.items():
        sample.hold(result.of(name), matrix[..., positions].sum(dim=-1))
    sample.hold(result.shares.sum(dim=-1), torch.ones(matrix.shape[:2], dtype=torch.float64))


def layers_with(mask: Mask, *, groups: int = 1, sinks: bool = False) -> list[Layer]:
    generator = torch.Generator().manual_seed(5)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return [
        Layer.of(
            drawn(2, 4, 40, 8), drawn(2, 4 // groups, 40, 8), drawn(2, 4 // groups, 40, 8), mask,
            sinks=drawn(4) if sinks else None,
        )
        for _ in range(3)
    ]  # fmt: skip


STARTS = torch.tensor([0, 7])
TABLE = torch.rand(1, 1, 40, 40, generator=torch.Generator().manual_seed(1)) < 0.6


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("sinks", [False, True])
@pytest.mark.parametrize(
    "mask",
    [
        Mask(causal=True),
        Mask(causal=True, before=6),
        Mask.full(),
        Mask(causal=True, starts=STARTS),
        Mask(causal=True, before=6, starts=STARTS),
        Mask.from_dense(TABLE | torch.eye(40, dtype=torch.bool)),
        Mask.from_dense(TABLE.tril(-1)),
    ],
    ids=["causal", "window", "full", "padded", "padded window", "stored", "blind rows"],
)
def test_every_mask_gives_the_rollouts_sums(mask: Mask, groups: int, *, sinks: bool) -> None:
    layers = layers_with(mask, groups=groups, sinks=sinks)
    labels = torch.arange(40) // 14
    result = passages(layers, {"a": range(14), "b": range(14, 28), "c": slice(28, None)})
    torch.testing.assert_close(result.shares, summed(layers, labels, 3), atol=1e-9, rtol=0.0)
    empty = [layer.content_free() for layer in layers]
    torch.testing.assert_close(result.content_free, summed(empty, labels, 3), atol=1e-9, rtol=0.0)
    assert bool((result.content_share.amax(dim=1) > 1e-3).all())


def test_what_no_passage_names_is_other_and_special_tokens_and_padding_stand_apart() -> None:
    layers = layers_with(Mask(causal=True, starts=STARTS))
    attention_mask = torch.ones(2, 40, dtype=torch.int64)
    attention_mask[1, :7] = 0
    result = passages(layers, {"a": range(7, 20)}, special=[39], attention_mask=attention_mask)
    assert result.names == ("a", "special", "padding", "other")
    assert result.of("padding")[0].max() == 0.0
    assert result.of("padding")[1, 7:].max() == 0.0
    assert result.of("special")[:, :39].max() == 0.0
    assert passages(layers, {"a": range(40)}).names == ("a",)


@pytest.mark.parametrize(
    ("spans", "options", "words"),
    [
        ({}, {}, "No passage is given"),
        ({"a": []}, {}, "'a' must hold"),
        ({"a": range(5), "b": range(4, 9)}, {}, "'b' must hold"),
        ({"a": range(38, 44)}, {}, "'a' must hold"),
        ({"a": [-1]}, {}, "'a' must hold"),
        ({"other": range(4)}, {}, "is the name of the rest"),
        ({"a": range(4)}, {"special": [3]}, "'special' must hold"),
        ({"a": range(4)}, {"attention_mask": torch.ones(2, 39)}, r"\[batch, token\]"),
        ({"a": range(4)}, {"method": Rollout(fusion="max")}, "heads' mean"),
        ({"a": [True, False]}, {}, "a boolean for each of the 40 tokens"),
        ({"a": "question"}, {}, "'a' is question; give token positions"),
        ({"a": [0.5]}, {}, "give token positions"),
        ({"a": 3}, {}, "give token positions"),
        ({"a": torch.ones(2, 40, dtype=torch.bool)}, {}, "give token positions"),
    ],
)
def test_what_is_refused_says_what_to_do(
    spans: dict[str, Any], options: dict[str, Any], words: str
) -> None:
    with pytest.raises(AttentionInvalid, match=words):
        passages(layers_with(Mask(causal=True)), spans, **options)


def test_positions_and_booleans_name_the_same_passage() -> None:
    layers, flags = layers_with(Mask(causal=True)), torch.zeros(40, dtype=torch.bool)
    flags[7:20] = True
    wanted = passages(layers, {"a": range(7, 20)})
    for span in (flags, flags.tolist(), flags.numpy(), flags.nonzero()[:, 0], slice(7, 20)):
        assert torch.equal(passages(layers, {"a": span}).shares, wanted.shares)  # type: ignore[dict-item]


def test_a_name_that_is_none_of_them_is_refused() -> None:
    result = passages(layers_with(Mask(causal=True)), {"a": range(4)})
    with pytest.raises(AttentionInvalid, match="no passage 'b'; choose one of a, other"):
        result.of("b")
    with pytest.raises(AttentionInvalid, match="No two other spans of 30 tokens"):
        passages(layers_with(Mask(causal=True)), {"a": range(30)}).without(
            "a", lambda: torch.ones(1)
        )


transformers = pytest.importorskip("transformers", reason="transformers is not installed")


def llama(kernel: str) -> Any:
    torch.manual_seed(3)
    config = transformers.LlamaConfig(
        vocab_size=97, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, intermediate_size=48, attn_implementation=kernel,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval().double()


def test_a_generation_gives_the_shares_of_one_call_over_all_its_tokens() -> None:
    model = llama("sdpa")
    prompt = torch.randint(0, 97, (1, 12))
    with torch.no_grad(), capture(model) as captured:
        text = model.generate(prompt, max_new_tokens=6, do_sample=False)[:, :-1]
    joined = captured.passages({"question": range(4, 9)}, special=[0])
    with torch.no_grad(), capture(model) as captured:
        model(text)
    whole = captured.passages({"question": range(4, 9)}, special=[0])
    assert joined.shares.shape == (1, 17, 3)
    torch.testing.assert_close(joined.shares, whole.shares, atol=1e-9, rtol=0.0)


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_hiding_a_passage_is_a_call_whose_mask_hides_it(kernel: str) -> None:
    model = llama(kernel)
    words = torch.randint(0, 97, (1, 40))

    def score() -> Tensor:
        logits: Tensor = model(words).logits
        return logits.log_softmax(dim=-1)[0, -3:, 5]

    shown = torch.ones(40, 40, dtype=torch.bool).tril()
    shown[:, 4:9] = False
    shown |= torch.eye(40, dtype=torch.bool)
    added = torch.zeros(40, 40, dtype=torch.float64).masked_fill(~shown, -torch.inf)[None, None]
    with torch.no_grad(), capture(model) as captured:
        before = score()
    with torch.no_grad():
        wanted = model(words, attention_mask=added).logits.log_softmax(dim=-1)[0, -3:, 5] - before
    control = captured.passages({"question": range(4, 9)}).without("question", score, spans=20)
    torch.testing.assert_close(control.change, wanted, atol=1e-9, rtol=0.0)
    assert bool((wanted.abs() > 1e-6).all())
    assert control.of_spans.shape == (20, 3)
    larger = 1 + (control.of_spans.abs() >= control.change.abs()).sum(dim=0)
    assert torch.equal(control.larger * 21, larger.double())
    assert len({tuple(row) for row in control.of_spans.tolist()}) == 20
    few = captured.passages({"question": range(13)}).without("question", score)
    assert len(few.of_spans) == 15  # as many as there are
    assert not bool((control.of_spans == control.change).any())
    again = captured.passages({"question": range(4, 9)}).without("question", score, spans=20)
    assert torch.equal(again.of_spans, control.of_spans)
    torch.testing.assert_close(score(), before)  # nothing stays replaced


def test_hiding_from_a_generation_is_refused_and_from_a_longer_text_works() -> None:
    model = llama("sdpa")
    words = torch.randint(0, 97, (1, 40))
    with torch.no_grad(), capture(model) as captured:
        model(words[:, :30])
    looked = captured.passages({"question": range(4, 9)})

    def generated() -> Tensor:
        tokens: Tensor = model.generate(words, max_new_tokens=3, do_sample=False)
        return tokens.double()

    with pytest.raises(AttentionInvalid, match="let the score call the model once"):
        looked.without("question", generated)
    control = looked.without("question", lambda: model(words).logits[0, -1, 5], spans=2)
    assert float(control.change.abs()) > 1e-6


def test_hiding_works_in_torchs_own_layers() -> None:
    torch.manual_seed(3)
    layer = torch.nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
    model = torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).double().eval()
    x = torch.randn(1, 20, 16, dtype=torch.float64)
    shown = torch.ones(20, 20, dtype=torch.bool).tril()

    def run(mask: Tensor) -> Tensor:
        output: Tensor = model(x, mask=~mask)
        return output[0, -1].sum()

    with torch.no_grad(), capture(model) as captured:
        run(shown)
    control = captured.passages({"a": range(3, 6)}).without("a", lambda: run(shown))
    hidden = shown.clone()
    hidden[:, 3:6] = False
    hidden |= torch.eye(20, dtype=torch.bool)
    with torch.no_grad():
        torch.testing.assert_close(control.change, run(hidden) - run(shown))
