"""What a newcomer types first: an import, words with colours, and objects that name themselves."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import nn

from tracepaper.attention import capture
from tracepaper.strategies.attention import Layer, Mask
from tracepaper.strategies.errors import AttentionInvalid

WORDS = ["The", "Ġcat", "Ġ<b>", "Ġsat", "."]


def encoder() -> tuple[nn.Module, capture]:
    torch.manual_seed(3)
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    with torch.no_grad(), capture(model) as captured:
        shown = nn.Transformer.generate_square_subsequent_mask(5)
        model(torch.randn(1, 5, 16), mask=shown, is_causal=True)
    return model, captured


def test_words_are_coloured_by_their_shares(tmp_path: Path) -> None:
    _, captured = encoder()
    shares = captured.rollout([3]).weights["tokens"][0, 0]
    captured.show(WORDS, 3).write(tmp_path / "words.html")
    page = (tmp_path / "words.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    spans = re.findall(r"/ ([\d.]+)\)' title='([\d.]+)%'>(.*?)</span>", page)
    assert [text for *_, text in spans] == ["The", " cat", " &lt;b&gt;", " sat", "."]
    for (depth, percent, _), share in zip(spans, shares.tolist(), strict=True):
        assert float(percent) == pytest.approx(100 * share, abs=0.006)
        assert float(depth) == pytest.approx(0.7 * share / float(shares.max()), abs=0.006)
    assert captured.show(WORDS, 3)._repr_html_() in page
    for wrong in (WORDS[1:], "The cat"):
        with pytest.raises(AttentionInvalid, match="for 5 tokens; give one for each"):
            captured.show(wrong)


def test_each_object_says_what_it_is() -> None:
    model, captured = encoder()
    assert repr(captured) == "capture: 2 layers × 4 heads, 5 tokens, causal; skipped: none"
    assert repr(captured.reads[0]) == "Layer: 4 heads, 5 tokens, causal"
    attended = captured.rollout()
    most = attended.weights["tokens"][0, 0].argmax()
    assert repr(attended).startswith(
        f"AttendedTokens: 1 rows over 5 tokens; the first attends most to tokens {most} ("
    )
    assert repr(capture(model)).startswith("capture: No attention was captured")
    x = torch.randn(2, 4, 5, 8)
    padded = Layer.of(x[:, :, :1], x, x, Mask(before=2, starts=(0, 1)))
    assert (
        repr(padded) == "Layer: 4 heads, 1 of 5 tokens, causal, a window of 3, padded, batch of 2"
    )
