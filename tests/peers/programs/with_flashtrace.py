"""FlashTrace's scores of the passages of prompts for their answers; tokens become words."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch
from flashtrace import FlashTrace
from transformers import LlamaForCausalLM
from words import tokenizer_of

torch.set_num_threads(1)
given, answer = map(Path, sys.argv[1:])
task = json.loads(given.read_text(encoding="utf-8"))
model = LlamaForCausalLM.from_pretrained(task["model"], attn_implementation="eager")
tokenizer = tokenizer_of(model.config.vocab_size)
tracer = FlashTrace(model, tokenizer)
began = time.process_time()
rows = []
for example in task["examples"]:
    prompt, target = (
        " ".join(f"w{token}" for token in example[name]) for name in ("prompt", "answer")
    )
    traced = tracer.trace(prompt=prompt, target=target + " ")
    assert len(traced.scores) == len(example["prompt"])
    rows.append([sum(traced.scores[start:stop]) for start, stop in example["spans"]])
spent = time.process_time() - began
answer.write_text(json.dumps({"scores": rows, "cpu_s": spent}), encoding="utf-8")
