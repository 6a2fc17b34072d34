"""Anybody's transformer: what is captured is what it computed, and the model is left as it was."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from foreign_models import HEADS, LAYERS, TOKENS, WIDTH, WORDS, model_of, tokens_of, transformers
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.functional import scaled_dot_product_attention as sdpa

from tracepaper.strategies.attention import (
    Layer,
    Rollout,
    capture,
    entropy,
    relevance,
    relevance_rules,
)
from tracepaper.strategies.errors import AttentionInvalid

SDPA = ("Llama", "Mistral", "GPTNeoX", "GPT2", "Bert", "ViT")
EAGER = ("Llama", "Gemma2", "GptOss", "Bert")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(3)


def inputs_of(form: str, *, padded: bool) -> dict[str, Tensor]:
    if form == "ViT":
        return {"pixel_values": torch.randn(2, 3, 32, 32)}
    return tokens_of("left" if padded else "none")


def rolled(matrices: list[Tensor]) -> Tensor:
    """Return the last row [batch, key] of the rollout of stored *matrices*, summing to 1."""
    row = torch.eye(matrices[0].shape[-1], dtype=torch.float64)[-1:]
    for matrix in reversed(matrices):
        row = 0.5 * row + 0.5 * row @ matrix.double().mean(dim=1)
    return (row / row.sum(dim=-1, keepdim=True))[:, 0]


@pytest.mark.parametrize(
    ("form", "kernel"), [*((form, "sdpa") for form in SDPA), *((form, "eager") for form in EAGER)]
)
@pytest.mark.parametrize("padded", [False, True])
def test_a_model_is_explained_as_its_stored_matrices_are(
    form: str, kernel: str, *, padded: bool
) -> None:
    """Public reports: transformers#31990, #33858 and #47014, chatterbox#339 and #398."""
    model, given = model_of(form, kernel), inputs_of(form, padded=padded)
    before = model(**given)[0]
    with capture(model) as captured:
        during = model(**given)[0]
    assert torch.equal(before, during)
    assert torch.equal(before, model(**given)[0])
    model.set_attn_implementation("eager")  # type: ignore[operator]
    stored = list(model(**given, output_attentions=True).attentions)
    weights = captured.rollout().weights["tokens"][:, 0]
    assert (weights.double() - rolled(stored)).abs().max() < 1e-6
    if form != "GptOss":  # whose rows sum to less than 1
        heads = entropy(captured.reads, [-1 % stored[-1].shape[-1]])[-1][..., 0]
        last = stored[-1][:, :, -1].double()
        assert (heads - torch.special.entr(last).sum(dim=-1)).abs().max() < 1e-5


WINDOWS = ("Mistral", "Gemma2", "Gemma3", "Llama4", "ModernBert", "GptOss")


@pytest.mark.parametrize("form", WINDOWS)
def test_padding_on_the_right_of_a_window_is_explained_as_the_stored_matrices_are(
    form: str,
) -> None:
    """The last queries see padding alone, and some none of it: theirs are no rows to compare."""
    model, given = model_of(form, "eager"), inputs_of(form, padded=True)
    given["attention_mask"] = given["attention_mask"].flip(-1)
    given["attention_mask"][1, 9:] = 0
    with capture(model) as captured:
        model(**given)
    stored = list(model(**given, output_attentions=True).attentions)
    weights = captured.rollout(range(TOKENS)).weights["tokens"].double()
    unit = torch.eye(TOKENS, dtype=torch.float64)
    matrix = unit.expand(2, -1, -1)
    for each in stored:
        matrix = (0.5 * unit + 0.5 * each.double().mean(dim=1)) @ matrix
    matrix = matrix / matrix.sum(dim=-1, keepdim=True)
    for element, count in enumerate((TOKENS, 9)):
        difference = weights[element, :count] - matrix[element, :count]
        assert difference.abs().max() < 1e-6


BOTH: dict[str, Any] = {
    "d_model": WIDTH,
    **dict.fromkeys(("encoder_layers", "decoder_layers"), LAYERS),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), HEADS),
    **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), 48),
}
SERIES = {"prediction_length": 4, "context_length": TOKENS, "lags_sequence": [1], "distil": False}
TWO_PARTS: dict[str, tuple[str, dict[str, Any]]] = {
    "Bart": ("BartModel", {**BOTH, "vocab_size": WORDS}),
    "T5": ("T5Model", {"vocab_size": WORDS, "d_model": WIDTH, "d_kv": 8, "num_heads": HEADS}),
    "Whisper": (
        "WhisperModel",
        {**BOTH, "vocab_size": WORDS, "num_mel_bins": 8, "max_source_positions": TOKENS}
        | dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), 0),
    ),
    "Informer": ("InformerModel", {**BOTH, **SERIES, "attention_type": "full"}),
}


def two_parts(form: str, kernel: str) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """Return an encoder–decoder, and what its encoder and its decoder are given."""
    name, options = TWO_PARTS[form]
    kind = getattr(transformers, name)
    torch.manual_seed(2)
    model = kind(kind.config_class(**options, num_layers=LAYERS)).eval().requires_grad_(False)
    if form != "Informer":  # which has the formula alone
        model.set_attn_implementation(kernel)
    padding = torch.ones(2, TOKENS, dtype=torch.long)
    padding[1, -5:] = 0
    given = {"input_ids": torch.randint(3, WORDS, (2, TOKENS)), "attention_mask": padding}
    written: dict[str, Any] = {"decoder_input_ids": torch.randint(3, WORDS, (2, 6))}
    if form == "Whisper":
        given = {"input_features": torch.randn(2, 8, 2 * TOKENS)}
    elif form == "Informer":
        given = {"inputs_embeds": torch.randn(2, TOKENS, model.config.feature_size)}
    return model, given, written


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize("form", TWO_PARTS)
def test_an_encoder_is_explained(form: str, kernel: str) -> None:
    model, given, _ = two_parts(form, kernel)
    with capture(model.encoder) as captured:
        model.encoder(**given)
    model.set_attn_implementation("eager")
    stored = list(model.encoder(**given, output_attentions=True).attentions)
    assert len(stored) == LAYERS
    weights = captured.rollout().weights["tokens"][:, 0]
    assert (weights.double() - rolled(stored)).abs().max() < 1e-6


def joined_rows(result: Any) -> tuple[Tensor, Tensor]:
    """Return every written token's weights of source and target, by stored matrices."""

    def mean(matrix: Tensor) -> Tensor:
        return matrix.double().mean(dim=1)

    def units(count: int) -> Tensor:
        return torch.eye(count, dtype=torch.float64).expand(2, -1, -1)

    source = units(result.encoder_attentions[0].shape[-1])
    for matrix in result.encoder_attentions:
        source = 0.5 * source + 0.5 * mean(matrix) @ source
    target = units(result.decoder_attentions[0].shape[-1])
    of_source = target.new_zeros(*target.shape[:2], source.shape[-1])
    for itself, cross in zip(result.decoder_attentions, result.cross_attentions, strict=True):
        target, of_source = (0.5 * x + 0.5 * mean(itself) @ x for x in (target, of_source))
        target, of_source = 0.5 * target, 0.5 * of_source + 0.5 * mean(cross) @ source
    return of_source, target


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize("form", ["Bart", "T5", "Whisper"])
def test_an_encoder_and_a_decoder_are_explained_as_their_stored_matrices_are(
    form: str, kernel: str
) -> None:
    model, given, written = two_parts(form, kernel)
    with capture(model) as captured:
        model(**given, **written)
    model.set_attn_implementation("eager")
    source, target = joined_rows(model(**given, **written, output_attentions=True))
    weights = captured.rollout(range(6)).weights
    assert (weights["source"].double() - source).abs().max() < 1e-6
    assert (weights["target"].double() - target).abs().max() < 1e-6
    parts = {"first": range(4), "rest": range(4, 9)}
    looked = captured.passages(parts, attention_mask=given.get("attention_mask"))
    for name, span in parts.items():
        assert (looked.of(name).double() - source[..., span].sum(dim=-1)).abs().max() < 1e-6
    assert looked.names[-1] == "target"
    assert (looked.of("target").double() - target.sum(dim=-1)).abs().max() < 1e-6
    assert (looked.shares.sum(dim=-1) - 1).abs().max() < 1e-6
    assert bool((looked.content_share >= 0).all())
    with pytest.raises(AttentionInvalid, match="attention_mask"):
        looked.without("first", lambda: torch.zeros(()))


@pytest.mark.parametrize(
    ("form", "cache"),
    [
        ("BartForConditionalGeneration", None),
        ("T5ForConditionalGeneration", None),
        ("T5ForConditionalGeneration", "static"),
    ],
)
def test_a_generation_that_reads_a_source_is_explained_as_one_call_is(
    form: str, cache: str | None
) -> None:
    kind = getattr(transformers, form)
    _, options = TWO_PARTS["Bart" if form.startswith("Bart") else "T5"]
    torch.manual_seed(4)
    config = kind.config_class(**options, num_layers=LAYERS, decoder_start_token_id=0)
    model = kind(config).eval().requires_grad_(False)
    source = torch.randint(3, WORDS, (1, 7))
    with capture(model) as captured:
        words = model.generate(
            source, max_new_tokens=5, min_new_tokens=5, do_sample=False, cache_implementation=cache
        )
    with capture(model) as at_once:
        model(input_ids=source, decoder_input_ids=words[:, :-1])
    for name, weights in at_once.rollout(range(5)).weights.items():
        assert (captured.rollout(range(5)).weights[name] - weights).abs().max() < 1e-6
    spans = {"first": range(3)}
    shares = captured.passages(spans).shares
    assert (shares - at_once.passages(spans).shares).abs().max() < 1e-6


def test_a_decoder_of_torch_is_explained_by_streams() -> None:
    torch.manual_seed(5)
    model = nn.Transformer(WIDTH, HEADS, 2, 2, 48, batch_first=True).eval()
    with torch.no_grad(), capture(model) as captured:
        model(torch.randn(1, 7, WIDTH), torch.randn(1, 7, WIDTH))
    weights = captured.rollout().weights
    assert {name: each.shape[-1] for name, each in weights.items()} == {"target": 7, "source": 7}


class Plain(nn.Module):
    """Two layers that call torch's function themselves, by the name that this module gave it."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList(nn.Linear(WIDTH, 3 * WIDTH) for _ in range(LAYERS))
        self.matrices: list[Tensor] = []

    def forward(self, x: Tensor, attend: Callable[..., Tensor] | None = None) -> Tensor:
        for part in self.parts:
            split = part(x).unflatten(-1, (3 * HEADS, -1)).transpose(1, 2).chunk(3, dim=1)
            call = attend or sdpa
            query, key, value = split
            out = call(query, key, value, is_causal=True)
            x = x + out.transpose(1, 2).flatten(2)
        return x

    def by_matrices(self, x: Tensor) -> Tensor:
        """Return the same from matrices, which are kept."""

        def attend(query: Tensor, key: Tensor, value: Tensor, *, is_causal: bool) -> Tensor:
            assert is_causal
            scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
            hidden = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
            matrix = scores.masked_fill(hidden, -torch.inf).softmax(dim=-1)
            matrix.retain_grad()
            self.matrices.append(matrix)
            return matrix @ value

        return self(x, attend)


def tokens() -> Tensor:
    return torch.randn(2, TOKENS, WIDTH, dtype=torch.float64)


def test_gradients_fuse_heads_as_autograd_does() -> None:
    model, x = Plain().double(), tokens()
    with capture(model, backward=True) as captured:
        output = model(x)
        captured.gradient(output[:, -1].sum())
    weights = captured.rollout(method=Rollout(fusion="gradient")).weights["tokens"][:, 0]
    model.by_matrices(x)[:, -1].sum().backward()
    row = torch.eye(TOKENS, dtype=torch.float64)[-1:].expand(2, 1, TOKENS)
    for matrix in reversed(model.matrices):
        assert matrix.grad is not None
        fused = (matrix.grad * matrix).clamp_min(0.0).mean(dim=1).detach()
        fused = fused / fused.sum(dim=-1, keepdim=True).clamp_min(1e-300)
        row = 0.5 * row + 0.5 * row @ fused
    assert (weights - row[:, 0]).abs().max() < 1e-9


@pytest.mark.parametrize("with_weights", [False, True])
def test_gradients_reach_what_has_no_heads_and_what_gives_its_weights(
    *, with_weights: bool
) -> None:
    x = tokens().requires_grad_()
    part: Any = nn.MultiheadAttention(WIDTH, 1, batch_first=True).double()
    given = [x @ each.mT for each in part.in_proj_weight.chunk(3)]
    with capture(backward=True) as captured:
        output = part(x, x, x)[0] if with_weights else sdpa(*given) @ part.out_proj.weight.mT
        captured.gradient(output.sum())
    [layer] = captured.reads
    assert isinstance(layer, Layer)
    slope = layer.gradient
    assert slope is not None
    torch.testing.assert_close(slope, part.out_proj.weight.sum(dim=0).expand_as(slope))


SHOWN = torch.rand(2, HEADS, TOKENS, TOKENS, generator=torch.Generator().manual_seed(1)) > 0.4
SHOWN |= torch.eye(TOKENS, dtype=torch.bool)
BIAS = torch.randn(HEADS, TOKENS, TOKENS, generator=torch.Generator().manual_seed(2)).double()
CALLS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "a bias by head": lambda x, v: sdpa(x, x, v, BIAS),
    "a mask beside the causal one": lambda x, v: sdpa(x, x, v, SHOWN, is_causal=True),
    "a bias beside the causal one": lambda x, v: sdpa(x, x, v, BIAS[None], is_causal=True),
    "padding of all sequences": lambda x, v: sdpa(x, x, v, torch.arange(TOKENS)[None] > 1),
    "heads that share a key": lambda x, v: sdpa(x, x[:, :2], v[:, :2], enable_gqa=True),
    "sequences that share a key": lambda x, v: sdpa(x, x[:1], v[:1], is_causal=True),
    "no axis of heads": lambda x, v: sdpa(x[:, 0], x[:, 0], v[:, 0], SHOWN[:, 0]),
    "no axis of a batch": lambda x, v: sdpa(x[0, 0], x[0, 0], v[0, 0], SHOWN[0, 0]),
    "a batch of two axes": lambda x, v: sdpa(x[None], x[None], v[None], SHOWN[None]),
}


@pytest.mark.parametrize("form", CALLS)
def test_every_form_of_a_call_is_explained_as_its_stored_matrix_is(form: str) -> None:
    x = torch.randn(2, HEADS, TOKENS, TOKENS, dtype=torch.float64)
    with capture() as captured:
        CALLS[form](x, x)
    weights = captured.rollout(range(TOKENS)).weights["tokens"]
    unit = torch.eye(TOKENS, dtype=torch.float64)
    matrix = CALLS[form](x, unit.expand(2, HEADS, -1, -1))
    matrix = matrix.reshape(-1, 1 if "no axis" in form else HEADS, TOKENS, TOKENS)
    assert (weights - 0.5 * (unit + matrix.mean(dim=1))).abs().max() < 1e-9


@pytest.mark.parametrize("is_whole", [True, False])
def test_a_compiled_model_is_seen_and_stays_compiled(*, is_whole: bool) -> None:
    plain, x = Plain().double(), tokens()
    compiled: Any = torch.compile(plain, backend="eager", fullgraph=True)
    model: Any = compiled if is_whole else nn.Sequential(compiled)
    before = model(x)
    with capture(model) as captured:
        assert torch.equal(model(x), before)
    with capture(plain) as wanted:
        plain(x)
    weights, other = (each.rollout().weights["tokens"] for each in (captured, wanted))
    assert torch.equal(weights, other)
    assert torch.equal(model(x), before)


def test_torchs_own_modules_are_seen_though_they_avoid_the_function() -> None:
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 48, batch_first=True)
    model = nn.TransformerEncoder(layer, LAYERS).eval().double()
    x, padding = tokens(), torch.zeros(2, TOKENS, dtype=torch.bool)
    padding[1, :5] = True
    stored: list[Tensor] = []
    below = x
    for part in model.layers:
        attended, matrix = part.self_attn(
            below, below, below, key_padding_mask=padding, average_attn_weights=False
        )
        stored.append(matrix.detach())
        between = part.norm1(below + attended)
        below = part.norm2(between + part.linear2(part.linear1(between).relu()))
    with torch.no_grad(), capture(model) as captured:
        model(x, src_key_padding_mask=padding)
    weights = captured.rollout().weights["tokens"][:, 0]
    assert (weights - rolled(stored)).abs().max() < 1e-9
    alone = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True).eval().double()
    with torch.no_grad(), capture(alone) as captured:
        _, matrix = alone(x, x, x, average_attn_weights=False)
    assert (captured.rollout().weights["tokens"][:, 0] - rolled([matrix])).abs().max() < 1e-9


def test_a_capture_that_stays_open_has_each_call_as_a_block_has() -> None:
    model, other = model_of("Llama", "sdpa"), model_of("GPT2", "sdpa")
    attend = functional.scaled_dot_product_attention
    captured, layers = capture(model).start(), []
    for _ in range(6):
        words = torch.randint(0, WORDS, (1, TOKENS))
        with torch.no_grad():
            model(words)
            stayed = captured.rollout().weights["tokens"]
            layers.append(weakref.ref(captured.reads[0]))
            assert functional.scaled_dot_product_attention is attend
            other(words)  # is nobody's
            assert torch.equal(captured.rollout().weights["tokens"], stayed)
    assert sum(layer() is not None for layer in layers) <= 2
    captured.stop()
    model(words)
    assert torch.equal(captured.rollout().weights["tokens"], stayed)
    with torch.no_grad(), capture(model) as block:
        model(words)
    assert torch.equal(block.rollout().weights["tokens"], stayed)


@pytest.mark.parametrize("again", [False, True])
def test_a_checkpoint_that_computes_again_adds_nothing(*, again: bool) -> None:
    model: Any = model_of("Llama", "sdpa").requires_grad_()
    words = torch.randint(0, WORDS, (1, TOKENS))
    with torch.no_grad(), capture(model) as whole:
        model(words)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": again})
    model.enable_input_require_grads()
    model.train()
    with capture(model) as captured:
        model(words).logits.sum().backward()
    difference = whole.rollout().weights["tokens"] - captured.rollout().weights["tokens"]
    assert difference.abs().max() < 1e-6


def test_nested_tensors_are_refused() -> None:
    x = torch.nested.nested_tensor([torch.randn(2, 3, 8), torch.randn(2, 5, 8)])
    with pytest.raises(AttentionInvalid, match="query is a nested tensor; pad it"), capture():
        functional.scaled_dot_product_attention(x, x, x)


def test_a_last_key_that_no_query_sees_stays_a_key() -> None:
    query, key = torch.randn(1, 2, 1, 8), torch.randn(1, 2, 6, 8)
    shown = torch.ones(1, 1, 1, 6, dtype=torch.bool)
    shown[..., -1] = False
    with capture() as captured:
        functional.scaled_dot_product_attention(query, key, key, shown)
    assert captured.reads[0].rows([0])[..., -1].abs().max() == 0.0
    assert captured.reads[0].shape == (1, 2, 1, 6)


def test_two_captures_that_are_open_at_once_are_refused() -> None:
    model, attend = model_of("Llama", "sdpa"), functional.scaled_dot_product_attention
    captured = capture(model).start()
    with pytest.raises(AttentionInvalid, match="Two captures are open"), capture(model):
        model(torch.randint(0, WORDS, (1, TOKENS)))
    assert functional.scaled_dot_product_attention is attend
    captured.stop()


@pytest.mark.parametrize("hides", [-torch.inf, torch.finfo(torch.float32).min, None])
def test_a_query_that_sees_nothing_keeps_its_weight(hides: float | None) -> None:
    x, visible = torch.randn(1, 2, 6, 8), torch.ones(1, 1, 6, 6, dtype=torch.bool).tril()
    visible[..., 3, :] = False
    mask = visible if hides is None else torch.zeros(1, 1, 6, 6).masked_fill(~visible, hides)
    with capture() as captured:
        functional.scaled_dot_product_attention(x, x, x, mask)
    blind, last = captured.rollout([3, 5]).weights["tokens"][0]
    assert blind.tolist() == [0.0, 0.0, 0.0, 1.0, 0.0, 0.0]
    assert float(last.sum()) == pytest.approx(1.0)
    assert (last > 0).all()


class KernelAttention(nn.Module):
    """Attention without a softmax, as a kernel of another package has it."""

    def forward(self, x: Tensor) -> Tensor:
        shares = (x @ x.transpose(-1, -2)).exp()
        return shares / shares.sum(dim=-1, keepdim=True) @ x


class MixedLayers(nn.Module):
    """A layer that is seen, and one that is not."""

    def __init__(self) -> None:
        super().__init__()
        self.plain, self.other = nn.MultiheadAttention(WIDTH, HEADS), KernelAttention()

    def forward(self, x: Tensor) -> Tensor:
        return self.other(self.plain(x, x, x)[0])


def dropping() -> nn.Module:
    return nn.MultiheadAttention(WIDTH, HEADS, dropout=0.5).train()


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        (lambda: nn.Linear(WIDTH, WIDTH), "No attention was captured"),
        (
            MixedLayers,
            r"other \(its shares are of no softmax of torch\) attended in a way",
        ),
        (dropping, "call model.eval"),
        (lambda: nn.MultiheadAttention(WIDTH, HEADS, add_zero_attn=True).eval(), "no token"),
    ],
)
def test_what_is_not_seen_is_named_and_all_is_put_back(
    model: Callable[[], Any], sentence: str
) -> None:
    attend, heads = functional.scaled_dot_product_attention, functional.multi_head_attention_forward
    module = model()
    x = torch.randn(TOKENS, 2, WIDTH)
    given = {nn.MultiheadAttention: (x, x, x)}
    with pytest.raises(AttentionInvalid, match=sentence), capture(module):
        module(*given.get(type(module), (x,)))
    assert functional.scaled_dot_product_attention is attend
    assert functional.multi_head_attention_forward is heads
    assert torch.backends.mha.get_fastpath_enabled()
    assert not [*vars(module)["_forward_hooks"], *vars(module)["_forward_pre_hooks"]]


def test_an_error_of_the_model_is_its_own_and_all_is_put_back() -> None:
    attend, model = functional.scaled_dot_product_attention, Plain()
    with pytest.raises(RuntimeError, match="shapes"), capture(model):
        model(torch.randn(2, TOKENS, WIDTH + 1))
    assert functional.scaled_dot_product_attention is attend
    assert not vars(model)["_forward_hooks"]


def test_nan_in_half_precision_is_named() -> None:
    x = torch.randn(1, HEADS, TOKENS, 8).bfloat16()
    x[0, 0, 3, 0] = torch.nan
    with capture() as captured:
        functional.scaled_dot_product_attention(x, x, x)
    with pytest.raises(AttentionInvalid, match="NaN or infinite query"):
        captured.rollout()


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_relevances_sum_to_the_output_and_leave_it_as_it_was(kernel: str) -> None:
    model, words = model_of("Llama", kernel).double(), inputs_of("Llama", padded=False)["input_ids"]
    embed: Any = model.get_input_embeddings()  # type: ignore[operator]
    x = embed(words).detach().requires_grad_()
    before = model(inputs_embeds=x).logits
    with relevance_rules(model):
        during = model(inputs_embeds=x).logits
        logit = during[0, -1].max()
        relevances = relevance(logit, x)
    wanted = float(logit.detach())
    assert (before - during).abs().max() < 1e-12
    assert relevances.shape == x.shape
    assert float(relevances.sum()) == pytest.approx(wanted, rel=1e-9)
    with relevance_rules(model, gated=()):  # a rule less, and the sum tells
        logit = model(inputs_embeds=x).logits[0, -1].max()
        assert float(relevance(logit, x).sum()) != pytest.approx(wanted, rel=1e-3)
    assert torch.equal(before, model(inputs_embeds=x).logits)


def test_attention_called_by_a_name_of_its_module_hands_on_by_its_values() -> None:
    x = torch.randn(1, 1, TOKENS, 8, dtype=torch.float64, requires_grad=True)
    with relevance_rules(nn.Identity()):
        output = sdpa(x, x, x)[0, 0, -1, 0]
        assert float(relevance(output, x).sum()) == pytest.approx(float(output.detach()))


def test_layers_of_other_tokens_are_no_rollout() -> None:
    x = torch.randn(1, 2, TOKENS, 8)
    for first, second in ((x, x[:, :, ::2]), (x, x[:, :, :5])):
        with capture() as captured:
            sdpa(first, second, second)
            sdpa(first, first, first)
        with pytest.raises(AttentionInvalid, match="have not all the same tokens"):
            captured.rollout()


def test_a_compiler_is_not_loaded_to_say_that_nothing_is_compiled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delitem(sys.modules, "torch._dynamo", raising=False)
    monkeypatch.setattr(torch.compiler, "set_stance", None)
    with capture():
        sdpa(*torch.randn(3, 1, 2, TOKENS, 8))


@pytest.mark.parametrize("axis", range(4))
def test_a_call_without_entries_is_one_sentence(axis: int) -> None:
    x = torch.randn(1, 2, TOKENS, 8).narrow(axis, 0, 0)
    with pytest.raises(AttentionInvalid, match="none of them 0"), capture():
        sdpa(x, x, x)


def test_relevance_of_what_does_not_follow_is_one_sentence() -> None:
    x = torch.randn(3, requires_grad=True)
    with pytest.raises(AttentionInvalid, match="does not follow from these inputs"):
        relevance(torch.ones(()), x)
