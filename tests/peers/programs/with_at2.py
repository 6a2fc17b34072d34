"""AT2's scores of the passages of prompts, by weights of heads learned from given ablations.

Its attention, its estimator and its loss; its trainer wants texts of a dataset and is left out.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from at2.attribution import AttentionFeatureExtractor, LinearScoreEstimator
from at2.attribution.attention import get_attention_weights
from at2.attribution.trainer import PearsonCorrelationLoss
from transformers import LlamaForCausalLM

torch.set_num_threads(1)
torch.manual_seed(0)
given, answer = map(Path, sys.argv[1:])
task = json.loads(given.read_text(encoding="utf-8"))
model = LlamaForCausalLM.from_pretrained(task["model"])
layers, heads = len(model.model.layers), model.config.num_attention_heads


@torch.no_grad()
def features(example: dict[str, Any]) -> torch.Tensor:
    """Return the attention of the answer's tokens to each passage: [passage, layer * head]."""
    tokens = torch.tensor([[*example["prompt"], *example["answer"]]])
    states = model(tokens[:, :-1], output_hidden_states=True).hidden_states
    start = len(example["prompt"])
    weights = get_attention_weights(model, states, start, tokens.shape[1], model_type="llama")
    by_head = weights.mean(dim=2).flatten(0, 1)
    return torch.stack([by_head[:, at:end].sum(dim=1) for at, end in example["spans"]])


estimator = LinearScoreEstimator(AttentionFeatureExtractor(layers, heads, "llama"))
loss = PearsonCorrelationLoss()
learned = torch.stack([features(example) for example in task["learned"]])
seen = ~torch.tensor([example["hidden"] for example in task["learned"]])
truth = torch.tensor([example["scores"] for example in task["learned"]])
optimizer = torch.optim.Adam(estimator.parameters(), lr=1e-3)
for _ in range(1_000):
    scores = estimator(learned)[..., 0]
    error = loss((seen.float() @ scores[..., None])[..., 0], truth)
    optimizer.zero_grad()
    error.backward()
    optimizer.step()
estimator.finalize_parameters()
began = time.process_time()
rows = [estimator(features(example))[:, 0].tolist() for example in task["examples"]]
spent = time.process_time() - began
answer.write_text(json.dumps({"scores": rows, "cpu_s": spent}), encoding="utf-8")
