"""Captum's gradient times input of a GPT-2's last logit, summed by word."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from captum.attr import InputXGradient
from transformers import GPT2LMHeadModel

given, answer = map(Path, sys.argv[1:])
task = json.loads(given.read_text(encoding="utf-8"))
model = GPT2LMHeadModel.from_pretrained(task["model"]).eval()
x = model.get_input_embeddings()(torch.tensor([task["words"]])).detach().requires_grad_()
method = InputXGradient(lambda x: model(inputs_embeds=x).logits[:, -1, task["answer"]])
scores = method.attribute(x).sum(dim=-1)[0]
logit = model(inputs_embeds=x).logits[0, -1, task["answer"]]
document = {"scores": scores.tolist(), "logit": logit.item()}
answer.write_text(json.dumps(document), encoding="utf-8")
