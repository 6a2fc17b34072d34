"""A generation is explained as one call over all its tokens is, whatever its cache does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from foreign_models import TOKENS, WORDS, model_of, transformers
from torch import Tensor
from torch.nn import functional

from tracepaper.attention import capture, entropy
from tracepaper.strategies.errors import AttentionInvalid

SPLIT = TOKENS - 6
ROWS = (SPLIT - 1, TOKENS - 1)


def cache_of(kind: str, model: Any) -> Any:
    if kind == "dynamic":
        return transformers.DynamicCache(config=model.config)
    return transformers.StaticCache(config=model.config, max_cache_len=TOKENS + 7)


def words_of(batch: int = 2) -> Tensor:
    torch.manual_seed(5)
    return torch.randint(0, WORDS, (batch, TOKENS))


def compare(whole: capture, part: capture) -> None:
    """Hold two captures to the same rollouts, entropies and rows."""
    one, other = (each.rollout(ROWS).weights["tokens"] for each in (whole, part))
    assert (one - other).abs().max() < 2e-6
    for one, other in zip(entropy(whole.reads), entropy(part.reads), strict=True):
        assert one.shape == other.shape
        assert (one - other).abs().max() < 1e-5
    for first, second in zip(whole.reads, part.reads, strict=True):
        assert (first.rows(ROWS) - second.rows(ROWS)).abs().max() < 2e-6


@pytest.mark.parametrize(
    ("form", "cached"),
    [
        *((form, "dynamic") for form in ("Llama", "Mistral", "Gemma3", "GPT2")),
        *((form, "static") for form in ("Llama", "GPT2")),
    ],
)
@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_calls_over_a_cache_are_one_sequence(form: str, kernel: str, cached: str) -> None:
    model, words = model_of(form, kernel), words_of()
    with capture(model) as whole:
        model(words)
    cache, at = cache_of(cached, model), 0
    with capture(model) as parts:
        for size in (SPLIT, 3, 1, 1, 1):
            model(words[:, at : at + size], cache=cache)
            at += size
    compare(whole, parts)


@pytest.mark.parametrize(
    ("form", "cached"),
    [("Llama", "dynamic"), ("Mistral", "dynamic"), ("Llama", "static"), ("Qwen3", "static")],
)
def test_sequences_that_are_padded_on_the_left_are_generated_together(
    form: str, cached: str
) -> None:
    """Their heads share keys, and each step gives the heads of a key as its queries."""
    model: Any = model_of(form, "sdpa")
    prompt, shown = words_of()[:, :SPLIT], torch.ones(2, TOKENS, dtype=torch.long)
    shown[1, :5] = 0
    options: dict[str, Any] = {"max_new_tokens": 7, "min_new_tokens": 7, "do_sample": False}
    options |= {} if cached == "dynamic" else {"cache_implementation": "static"}
    with capture(model) as parts:
        words = model.generate(prompt, attention_mask=shown[:, :SPLIT], **options)
    with capture(model) as whole:
        model(words[:, :TOKENS], attention_mask=shown)
    compare(whole, parts)


@pytest.mark.parametrize("is_stored", [False, True])
def test_tokens_that_are_cut_from_a_cache_leave_no_rows(*, is_stored: bool) -> None:
    model, words = model_of("Llama", "sdpa"), words_of()
    shown = torch.ones(1, 1, TOKENS, TOKENS, dtype=torch.bool).tril()
    if is_stored:
        shown[..., 5:, 3] = False  # so that no rule by age and padding gives the mask

    guessed = shown.clone()
    guessed[..., SPLIT:, SPLIT:] = True

    def run(tokens: Tensor, start: int, cache: Any, mask: Tensor = shown) -> None:
        end = start + tokens.shape[1]
        model(tokens, attention_mask=mask[..., start:end, :end], cache=cache)

    with capture(model) as whole:
        model(words, attention_mask=shown)
    cache = cache_of("dynamic", model)
    with capture(model) as parts:
        run(words[:, :SPLIT].roll(1, dims=0), 0, cache_of("dynamic", model))
        run(words[:, :SPLIT], 0, cache)
        run(words[:, :3], SPLIT, cache, guessed)  # as an assistant's guesses that are not taken
        cache.crop(-3)
        for at in range(SPLIT, TOKENS):
            run(words[:, at : at + 1], at, cache)
    compare(whole, parts)


def test_a_prompt_that_reads_all_of_itself_is_no_causal_one() -> None:
    model, words = model_of("Llama", "sdpa"), words_of()
    shown = torch.ones(1, 1, TOKENS, TOKENS, dtype=torch.bool).tril()
    shown[..., :SPLIT, :SPLIT] = True
    with capture(model) as whole:
        model(words, attention_mask=shown)
    cache = cache_of("dynamic", model)
    with capture(model) as parts:
        model(words[:, :SPLIT], attention_mask=shown[..., :SPLIT, :SPLIT], cache=cache)
        for at in range(SPLIT, TOKENS):
            model(words[:, at : at + 1], cache=cache)
    compare(whole, parts)


def test_a_step_of_grouped_heads_has_its_gradient() -> None:
    model, words = model_of("Llama", "sdpa"), words_of()
    shown = torch.ones(2, TOKENS, dtype=torch.long)
    shown[1, :5] = 0
    cache = cache_of("dynamic", model)
    with torch.no_grad():
        model(words[:, :-1], attention_mask=shown[:, :-1], cache=cache)
    embedded: Any = model.get_input_embeddings()(words[:, -1:]).detach().requires_grad_()  # type: ignore[operator]
    with capture(model, backward=True) as captured:
        logits = model(inputs_embeds=embedded, attention_mask=shown, cache=cache).logits
    captured.gradient(logits.sum())
    top: Any = captured.reads[-1]
    assert top.gradient.shape == top.query.shape
    assert top.shape == (2, 4, 1, TOKENS)


def beams(model: Any) -> capture:
    with capture(model) as captured:
        model.generate(words_of(1), max_new_tokens=5, do_sample=False, num_beams=3)
    return captured


def begun_before(model: Any) -> capture:
    cache = cache_of("dynamic", model)
    model(words_of()[:, :4], cache=cache)
    with capture(model) as captured:
        model(words_of()[:, 4:5], cache=cache)
    return captured


def overwritten(model: Any) -> capture:
    cache = cache_of("static", model)
    with capture(model) as captured:
        for at in range(7):  # one more than the window
            model(words_of()[:, at : at + 1], cache=cache)
    return captured


@pytest.mark.parametrize(
    ("form", "run"), [("Llama", beams), ("Llama", begun_before), ("Mistral", overwritten)]
)
def test_a_cache_that_does_not_go_on_is_refused(form: str, run: Callable[[Any], capture]) -> None:
    captured = run(model_of(form, "sdpa"))
    with pytest.raises(AttentionInvalid, match=r"as with beams .* call the model once"):
        captured.rollout()


def test_a_model_that_writes_its_attention_out_is_told_to_leave_its_cache() -> None:
    torch.manual_seed(3)
    config = transformers.BloomConfig(vocab_size=WORDS, hidden_size=32, n_layer=2, n_head=4)
    model: Any = transformers.BloomForCausalLM(config).eval().double()
    words = words_of(1)
    with pytest.raises(AttentionInvalid, match="use_cache=False"), capture(model):
        model.generate(words, max_new_tokens=3, do_sample=False)
    with torch.no_grad(), capture(model) as captured:
        model(words, use_cache=False)
    stored = captured.reads[0].rows([3])
    assert functional.softmax(stored.log(), dim=-1).shape == (1, 4, 1, TOKENS)
