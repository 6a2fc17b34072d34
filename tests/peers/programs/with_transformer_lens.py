"""TransformerLens's cached patterns of a GPT-2: every matrix of every head."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from transformer_lens.model_bridge import TransformerBridge
from transformers import GPT2LMHeadModel
from words import tokenizer_of

given, answer = map(Path, sys.argv[1:])
task = json.loads(given.read_text(encoding="utf-8"))
model = GPT2LMHeadModel.from_pretrained(task["model"], attn_implementation="eager").eval()
tokenizer_of(model.config.vocab_size).save_pretrained(task["model"])
hooked = TransformerBridge.boot_transformers(task["model"], hf_model=model)
with torch.no_grad():
    _, cache = hooked.run_with_cache(torch.tensor([task["words"]]))
patterns = [cache["pattern", layer][0].tolist() for layer in range(model.config.n_layer)]
answer.write_text(json.dumps({"patterns": patterns}), encoding="utf-8")
