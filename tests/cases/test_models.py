"""Public reports about attention and about training."""

from __future__ import annotations

import gzip
import hashlib
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest
import torch
from command_line import Cli
from public_cases import START

from tracepaper.replay.samples import samples
from tracepaper.strategies.attention import Layer, Mask, Rollout, attend, cross_attend, rollout
from tracepaper.strategies.errors import AttentionInvalid

pytestmark = pytest.mark.usefixtures("one_thread")
ROWS: Final = 40
CAUSAL: Final = torch.ones(ROWS, ROWS, dtype=torch.bool).tril()
WINDOW: Final = CAUSAL & ~torch.ones(ROWS, ROWS, dtype=torch.bool).tril(-8)
DISTANCE: Final = (torch.arange(ROWS)[:, None] - torch.arange(ROWS)[None]).abs()
PADDED: Final = (CAUSAL[None] & (torch.arange(ROWS)[None, None] >= torch.tensor([[[0]], [[7]]])))[
    :, None
]
TOLERANCE: Final = 2e-6


def projections() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return queries of eight heads, and keys and values of two."""
    torch.manual_seed(0)
    return torch.randn(2, 8, ROWS, 16), torch.randn(2, 2, ROWS, 16), torch.randn(2, 2, ROWS, 16)


def by_hand(
    allowed: torch.Tensor, softcap: float | None = None, sinks: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return weights and output of attention as it is written out."""
    query, key, value = projections()
    key, value = key.repeat_interleave(4, 1), value.repeat_interleave(4, 1)
    scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~allowed, float("-inf"))
    if sinks is not None:
        column = sinks.view(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        scores = torch.cat([scores, column], -1)
    weights = scores.softmax(-1)[..., :ROWS].nan_to_num(0)
    return weights, weights @ value


@pytest.mark.parametrize("backend", ["auto", "sdpa", "chunked"])
@pytest.mark.parametrize(
    ("mask", "allowed"), [(Mask(), CAUSAL), (Mask.window(8), WINDOW)], ids=["causal", "window"]
)
def test_attention_is_as_it_is_written_out(backend: str, mask: Mask, allowed: torch.Tensor) -> None:
    """Case 160: onnx#7274, mlx-lm#390, transformers#37574, nanochat#452, LlamaFactory#7063."""
    query, key, value = projections()
    key, value = key.repeat_interleave(4, 1), value.repeat_interleave(4, 1)
    output = attend(query, key, value, mask, backend=backend).output
    assert torch.allclose(output, by_hand(allowed)[1], atol=TOLERANCE)


def sinks() -> torch.Tensor:
    return torch.linspace(-1, 1, 8)


Layers = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], Layer]
LAYERS: dict[str, tuple[Layers, Callable[[], tuple[torch.Tensor, torch.Tensor]]]] = {
    "grouped": (Layer.of, lambda: by_hand(CAUSAL)),
    "both sides": (
        lambda q, k, v: Layer.of(q, k, v, Mask(causal=False, before=3, after=3)),
        lambda: by_hand(DISTANCE <= 3),
    ),
    "padded": (lambda q, k, v: Layer.of(q, k, v, Mask(starts=(0, 7))), lambda: by_hand(PADDED)),
    "softcap": (lambda q, k, v: Layer.of(q, k, v, softcap=5.0), lambda: by_hand(CAUSAL, 5.0)),
    "sinks": (
        lambda q, k, v: Layer.of(q, k, v, sinks=sinks()),
        lambda: by_hand(CAUSAL, sinks=sinks()),
    ),
}


@pytest.mark.parametrize("name", LAYERS)
def test_rows_of_a_layer_are_as_they_are_written_out(name: str) -> None:
    """Case 160: onnx#8006, unsloth-zoo#593, ReaLLM#461, rocm-libraries#10901, profam#495."""
    layer, expected = LAYERS[name]
    rows = [3, 20, 39]
    computed = layer(*projections()).rows(rows)
    assert torch.allclose(computed, expected()[0][:, :, rows], atol=TOLERANCE)


def test_one_query_over_a_cache_sees_its_window() -> None:
    """Case 160: nanochat#452. A window with one key too many, or none with one query."""
    query, key, value = projections()
    computed = Layer.of(query[:, :, -1:], key, value, Mask.window(8)).rows([0])[:, :, 0]
    assert torch.allclose(computed, by_hand(WINDOW)[0][:, :, -1], atol=TOLERANCE)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"fusion": "max"},
        {"fusion": "min"},
        {"discard_ratio": 0.5},
        {"fusion": "max", "discard_ratio": 0.9},
    ],
    ids=str,
)
def test_a_rollout_keeps_its_mass(options: dict[str, str | float]) -> None:
    """Case 162: vit-explain#16 and #3."""
    layers = [Layer.of(*projections(), Mask.window(8)) for _ in range(3)]
    weights = rollout(layers, [5, 39], Rollout(**options)).weights["tokens"]  # type: ignore[arg-type]
    assert torch.allclose(weights.sum(-1), torch.ones(2, 2), atol=1e-5)
    assert (weights >= 0).all()
    assert not weights[:, 0, 6:].any()


def test_a_rollout_leaves_padding_alone() -> None:
    """Case 162: inseq#268."""
    padded = Layer.of(*projections(), Mask(starts=(0, 7)))
    assert not rollout([padded], [39]).weights["tokens"][1, 0, :7].any()


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_a_rollout_of_half_types_is_finite(kind: torch.dtype) -> None:
    """Case 162: interpreto#98."""
    query, key, value = projections()
    layer = Layer.of((query * 30).to(kind), key.to(kind), value.to(kind))
    weights = rollout([layer], [39]).weights["tokens"]
    assert torch.isfinite(weights).all()
    assert torch.allclose(weights.sum(-1).float(), torch.ones(2, 1), atol=1e-3)


def test_rows_that_see_nothing_are_zero_with_finite_gradients() -> None:
    """Case 55: pytorch#103963 and #101967."""
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 1, 2, 64, 16).unbind()
    unseen = cross_attend(query, key, value, torch.zeros(64, dtype=torch.int64)).output
    assert not unseen.any()
    leaves = [each.clone().requires_grad_() for each in (query, key, value)]
    cross_attend(leaves[0], leaves[1], leaves[2], torch.arange(64) // 2).output.sum().backward()
    for leaf in leaves:
        assert leaf.grad is not None
        assert torch.isfinite(leaf.grad).all()
    key[:, :, 0] = float("nan")
    with pytest.raises(AttentionInvalid, match="not finite"):
        attend(query, key, value, Mask.window(8))


def test_a_wide_batch_is_split_and_other_lengths_are_aligned_to_the_end() -> None:
    """Case 55: pytorch#142228, flash-attention#282, #402 and #1778."""
    torch.manual_seed(0)
    wide = torch.randn(70_000, 1, 4, 4)
    assert attend(wide, wide, wide, Mask()).output.shape == wide.shape
    query, key, _ = torch.randn(3, 1, 2, 64, 16).unbind()
    tail = Layer.of(query[:, :, -5:], key, None).logsumexp
    assert torch.allclose(tail, Layer.of(query, key, None).logsumexp[:, :, -5:])
    fewer = Layer.of(query, key[:, :, :32], None).logsumexp
    assert torch.isneginf(fewer[0, 0, :32]).all()


@pytest.mark.long
def test_the_test_span_does_not_reach_the_weights(here: Path, cli: Cli) -> None:
    """Case 56: Informer2020#41. Weights are equal whatever the last 12 % of the bars hold."""
    head, *rows = (
        gzip.decompress(samples("BTCUSDT", "15m").read_bytes()).decode().splitlines()[:1201]
    )
    tested = int(len(rows) * 0.88)
    changed = rows[:tested]
    for row in rows[tested:]:
        cells = row.split(",")
        cells[1:5] = [f"{float(cell) * 1.7:.1f}" for cell in cells[1:5]]
        cells[5] = f"{float(cells[5]) * 13:.3f}"
        changed.append(",".join(cells))
    settings = {"model.kind": "flash", "horizons": 4, "window": 64, "training.steps": 2}
    given = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    digests = set()
    for name, lines in {"same": rows, "changed": changed}.items():
        Path(f"{name}.csv").write_text("\n".join([head, *lines]) + "\n")
        cli.out("train", "--data", f"BTCUSDT={name}.csv", *given, "--out", name)
        digests.add(hashlib.sha256((here / name / "weights.safetensors").read_bytes()).digest())
    assert len(digests) == 1


def spike(place: int) -> str:
    return "100,100000,100,100,5" if place == 2500 else "100,100,100,100,0"


def no_volume(place: int) -> str:
    price = 100 + place % 7
    return f"{price},{price + 1},{price - 1},{price},0"


@pytest.mark.slow
@pytest.mark.parametrize("row", [lambda _place: "100,100,100,100,5", no_volume, spike])
def test_a_series_of_nothing_is_one_sentence_or_a_model(
    row: Callable[[int], str], here: Path, cli: Cli
) -> None:
    """Case 170: pytorch-forecasting#750, spacetimeformer#12, timesfm#522, numalogic#153."""
    times = itertools.count(START // 1000, 900)
    lines = [f"{next(times)},{row(place)}" for place in range(3000)]
    text = "\n".join(["time,open,high,low,close,volume", *lines])
    (here / "BTCUSDT.csv").write_text(text + "\n")
    settings = {"model.kind": "flash", "horizons": "4,16", "window": 64, "training.steps": 2}
    given = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    answer = cli("train", "--data", "BTCUSDT.csv", *given, "--out", "model")
    assert "Traceback" not in answer.err
    if answer.code:
        assert (answer.code, answer.err.count("\n")) == (1, 1)
    else:
        assert (here / "model" / "weights.safetensors").exists()
