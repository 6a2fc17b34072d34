"""What other explainers of transformers give, by the same GPT-2 with random weights.

- **captum** gives gradients and Shapley values of inputs, and nothing of attention. Gradient times
  input does not sum to the logit; ``relevance`` of an attention-only answer is not it.
- **inseq** gives for each generated word the attention of every layer and head, of stored matrices,
  and captum's methods.
- **TransformerLens** keeps each activation, so also every matrix, of models that it knows and
  writes anew.
- **bertviz** draws the matrices that it is given, as HTML that holds all of them.

None of them rolls attention out, and each stores the matrices that it shows.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from other_backtesters import Peer, Task

from tracepaper.attention import capture

transformers = pytest.importorskip("transformers", reason="transformers is not installed")
pytestmark = [pytest.mark.peers, pytest.mark.timeout(1_800)]

WORDS, PROMPT = 16, 10


@pytest.fixture
def explained(tmp_path: Path) -> tuple[Task, Any, Any]:
    """Return a task with a model on disk, the model, and the capture of its words."""
    torch.manual_seed(7)
    config = transformers.GPT2Config(
        vocab_size=60, n_embd=32, n_layer=2, n_head=4, n_positions=32, bos_token_id=0,
        eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    model = transformers.GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(8.0)
    model.save_pretrained(tmp_path / "model")
    words = torch.randint(1, 60, (1, WORDS))
    with torch.no_grad(), capture(model) as captured:
        logits = model(words).logits
    task = {
        "model": str(tmp_path / "model"),
        "words": words[0].tolist(),
        "prompt": PROMPT,
        "answer": int(logits[0, -1].argmax()),
    }
    return task, model, captured


def rows_of(captured: Any) -> torch.Tensor:
    """Return each head's rows [layer, head, query, key]."""
    return torch.stack([read.rows(range(WORDS))[0] for read in captured.reads])


def test_transformer_lens_keeps_the_matrices_whose_rows_are_captured(
    peer: Peer, explained: tuple[Task, Any, Any]
) -> None:
    task, _, captured = explained
    patterns = torch.tensor(peer("transformer_lens", task)["patterns"])
    assert (patterns - rows_of(captured)).abs().max() < 1e-5


def test_inseq_stores_the_rows_that_are_captured(
    peer: Peer, explained: tuple[Task, Any, Any]
) -> None:
    task, _, captured = explained
    scores = torch.tensor(peer("inseq", task)["scores"])  # [read, written, layer, head]
    ours = rows_of(captured)[:, :, PROMPT - 1 : -1].permute(3, 2, 0, 1)
    seen = scores[:WORDS, :].nan_to_num()
    assert seen.shape[1:] == ours.shape[1:]
    assert (seen - ours[: seen.shape[0]]).abs().max() < 1e-5


def test_bertviz_draws_the_rows_that_are_captured_and_holds_them_all(
    peer: Peer, explained: tuple[Task, Any, Any]
) -> None:
    task, _, captured = explained
    rows = rows_of(captured)
    html = peer("bertviz", task | {"matrices": rows.tolist()})["html"]
    assert html.count("[") > rows[..., 0].numel()  # a list for each row
    assert "w" + str(task["words"][0]) in html


def test_captums_gradient_times_input_does_not_sum_to_the_logit(
    peer: Peer, explained: tuple[Task, Any, Any]
) -> None:
    task, _, _ = explained
    told = peer("captum", task)
    assert len(told["scores"]) == WORDS
    assert abs(sum(told["scores"]) - told["logit"]) > 0.01 * abs(told["logit"])
