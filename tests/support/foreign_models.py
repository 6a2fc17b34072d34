"""Small transformers of Hugging Face with seeded weights, one of each architecture, for tests."""

from __future__ import annotations

from typing import Any, Final

import pytest
import torch
from torch import Tensor, nn

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

WORDS, TOKENS, WIDTH, HEADS, LAYERS = 97, 24, 32, 4, 2
COMMON: Final[dict[str, Any]] = {
    "vocab_size": WORDS,
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": 48,
}
GROUPED: Final = {**COMMON, "num_key_value_heads": 2, "head_dim": 8}
FORMS: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "Llama": ("LlamaForCausalLM", GROUPED),
    "Mistral": ("MistralForCausalLM", {**GROUPED, "sliding_window": 6}),
    "Gemma3": ("Gemma3ForCausalLM", {**GROUPED, "sliding_window": 6}),
    "Llama4": (
        "Llama4ForCausalLM",
        {
            **GROUPED,
            "attention_chunk_size": 6,
            "num_local_experts": 2,
            "intermediate_size_mlp": 48,
        },
    ),
    "ModernBert": (
        "ModernBertModel",
        {
            **COMMON,
            "local_attention": 6,
            **dict.fromkeys(("pad_token_id", "cls_token_id", "sep_token_id"), 0),
        },
    ),
    "GPTNeoX": ("GPTNeoXForCausalLM", COMMON),
    "GPT2": ("GPT2LMHeadModel", {"vocab_size": WORDS, "n_embd": WIDTH, "n_layer": 2, "n_head": 4}),
    "Bert": ("BertModel", COMMON),
    "Qwen3": ("Qwen3ForCausalLM", GROUPED),
    "Phi3": (
        "Phi3ForCausalLM",
        {
            **COMMON,
            "num_key_value_heads": 2,
            **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), 0),
        },
    ),
    "OPT": ("OPTForCausalLM", {**COMMON, "ffn_dim": 48, "word_embed_proj_dim": WIDTH}),
    "DistilBert": (
        "DistilBertModel",
        {"vocab_size": WORDS, "dim": WIDTH, "n_layers": LAYERS, "n_heads": HEADS, "hidden_dim": 48},
    ),
}
"""Architectures that attend by torch's function and by a formula of their own."""
OTHER_FORMS: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "Gemma2": (
        "Gemma2ForCausalLM",
        {**GROUPED, "sliding_window": 6, "attn_logit_softcapping": 0.5},
    ),
    "GptOss": (
        "GptOssForCausalLM",
        {**GROUPED, "sliding_window": 6, "num_local_experts": 2, "num_experts_per_tok": 1},
    ),
    "ViT": ("ViTModel", {**COMMON, "image_size": 32, "patch_size": 8}),
}
"""The formula alone, or no padding."""
KERNELS: Final = ("sdpa", "eager")
PADDINGS: Final = ("none", "left", "right")


def model_of(form: str, kernel: str) -> nn.Module:
    """Return a model of *form* with seeded weights."""
    name, options = (FORMS | OTHER_FORMS)[form]
    kind = getattr(transformers, name)
    config = kind.config_class(**options, attn_implementation=kernel)
    model: nn.Module = kind(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        if parameter.ndim > 1:  # so that heads look at something
            parameter.mul_(4.0)
    return model


def tokens_of(padding: str) -> dict[str, Tensor]:
    """Return two sequences, the second with *padding*: none, left or right."""
    words = {"input_ids": torch.randint(0, WORDS, (2, TOKENS))}
    shown = torch.ones(2, TOKENS, dtype=torch.long)
    shown[1, {"none": slice(0), "left": slice(5), "right": slice(9, None)}[padding]] = 0
    return words if padding == "none" else {**words, "attention_mask": shown}
