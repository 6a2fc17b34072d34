"""Bertviz's picture of the matrices that it is given, as HTML that holds them all."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from bertviz import head_view

given, answer = map(Path, sys.argv[1:])
task = json.loads(given.read_text(encoding="utf-8"))
matrices = [torch.tensor(matrix)[None] for matrix in task["matrices"]]
words = [f"w{word}" for word in task["words"]]
drawn = head_view(matrices, words, html_action="return")
answer.write_text(json.dumps({"html": drawn.data}), encoding="utf-8")
