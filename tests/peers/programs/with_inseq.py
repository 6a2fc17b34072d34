"""Inseq's attention of a GPT-2 for the words that follow a prompt: every matrix, stored."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import inseq
from transformers import GPT2LMHeadModel
from words import tokenizer_of

given, answer = map(Path, sys.argv[1:])
task = json.loads(given.read_text(encoding="utf-8"))
model = GPT2LMHeadModel.from_pretrained(task["model"], attn_implementation="eager").eval()
tokenizer = tokenizer_of(model.config.vocab_size)
tokenizer.save_pretrained(task["model"])
attributed = inseq.load_model(model, "attention", tokenizer=tokenizer)
prompt, text = (
    " ".join(f"w{word}" for word in task["words"][:end]) for end in (task["prompt"], None)
)
told = attributed.attribute(prompt, text, show_progress=False, step_scores=[])
scores = told.sequence_attributions[0].target_attributions
answer.write_text(json.dumps({"scores": scores.tolist()}), encoding="utf-8")
