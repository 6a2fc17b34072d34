"""TransformerLens's cached patterns of a GPT-2: every matrix of every head."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformer_lens.pretrained.weight_conversions import convert_gpt2_weights
from transformers import GPT2LMHeadModel

given, answer = map(Path, sys.argv[1:])
task = json.loads(given.read_text(encoding="utf-8"))
model = GPT2LMHeadModel.from_pretrained(task["model"], attn_implementation="eager").eval()
config = HookedTransformerConfig(
    n_layers=model.config.n_layer,
    d_model=model.config.n_embd,
    n_ctx=model.config.n_positions,
    d_head=model.config.n_embd // model.config.n_head,
    n_heads=model.config.n_head,
    d_vocab=model.config.vocab_size,
    act_fn="gelu_new",
    normalization_type="LN",
    original_architecture="GPT2LMHeadModel",
)
hooked = HookedTransformer(config)
hooked.load_and_process_state_dict(
    convert_gpt2_weights(model, config), fold_ln=False, center_writing_weights=False,
    center_unembed=False, fold_value_biases=False,
)  # fmt: skip
with torch.no_grad():
    _, cache = hooked.run_with_cache(torch.tensor([task["words"]]))
patterns = [cache["pattern", layer][0].tolist() for layer in range(config.n_layers)]
answer.write_text(json.dumps({"patterns": patterns}), encoding="utf-8")
