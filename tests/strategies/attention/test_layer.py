"""One layer of anyone's attention, against dense matrices in float64 over all options."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import dense_attention as reference
import pytest
import torch
from drawn_layers import DrawnLayer
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from tracepaper.strategies.attention import (
    GridRead,
    Layer,
    Mask,
    Rollout,
    capture,
    compiled,
    rollout,
)
from tracepaper.strategies.attention.reads import Fuse
from tracepaper.strategies.errors import AttentionInvalid

torch.set_num_threads(1)
DIM = 4


def drawn(
    mask: Mask,
    *,
    heads: int = 4,
    key_heads: int = 2,
    queries: int = 6,
    keys: int = 6,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    **options: object,
) -> Layer:
    """Return a layer of two sequences that knows its values, projection and gradient."""
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    layer = Layer.of(
        2 * noise(2, heads, queries, DIM),
        noise(2, key_heads, keys, DIM),
        noise(2, key_heads, keys, DIM),
        mask,
        **options,  # type: ignore[arg-type]
    )
    return replace(
        layer, output_weight=noise(5, heads * DIM), gradient=noise(2, heads, queries, DIM)
    )


@st.composite
def masks(draw: st.DrawFn, queries: int, keys: int) -> Mask:
    """Return any mask of two sequences, its restrictions together."""
    numbers = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    dense = draw(st.sampled_from(["none", "bool", "bias"]))
    table = torch.rand(2, 1, queries, keys, generator=numbers, dtype=torch.float64)
    return Mask(
        causal=draw(st.booleans()),
        before=draw(st.sampled_from([None, 0, 2, 7])),
        after=draw(st.sampled_from([None, 0, 3])),
        first=draw(st.sampled_from([None, 0, 1, (0, 2)])),
        starts=draw(st.sampled_from([None, (0, 3)])),
        stops=draw(st.sampled_from([None, (keys, keys - 1)])),
        leading_keys=torch.randint(0, keys + 1, (2, queries), generator=numbers)
        if draw(st.booleans())
        else None,
        dense={"none": None, "bool": table < 0.7, "bias": table}[dense],
    )


def same(tensor: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(tensor, wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("seed", range(40))
def test_a_random_layer_is_that_of_its_matrix(seed: int) -> None:
    DrawnLayer(seed).check()


@pytest.mark.parametrize("backend", ["tiles", *compiled.available()])
@pytest.mark.parametrize(
    ("mask", "sizes"),
    [
        (Mask(), (150, 150)),
        (Mask.window(31), (400, 400)),
        (Mask(causal=False, before=20, after=9), (150, 130)),
        (Mask.full(), (1, 1_300)),
        (Mask(first=40), (70, 200)),
    ],
)
def test_long_layers_of_float32_are_those_of_matrices(
    mask: Mask, sizes: tuple[int, int], backend: str
) -> None:
    for softcap, sinks in ((None, None), (3.0, torch.tensor([0.0, 1.0, -torch.inf, 2.0]))):
        layer = drawn(
            mask, queries=sizes[0], keys=sizes[1], dtype=torch.float32, softcap=softcap,
            sinks=sinks,
        )  # fmt: skip
        matrix, sums = reference.layer_matrix(layer)
        torch.testing.assert_close(layer.logsumexp.double(), sums, rtol=0, atol=1e-5)
        for rows in (1, 3, 12):
            weights = torch.rand(2, rows, sizes[0])
            moved = layer.carry(weights, Fuse(backend=backend))
            wanted = weights.double() @ matrix.mean(dim=1)
            torch.testing.assert_close(moved.double(), wanted, rtol=2e-5, atol=1e-6)
        entropy = torch.special.entr(matrix).sum(dim=-1)
        if sinks is not None:
            sunk = (sinks.double()[:, None] - sums).exp().nan_to_num(0.0)
            entropy = entropy + torch.special.entr(sunk)
        measured = layer.entropy(backend=backend).double()
        torch.testing.assert_close(measured, entropy, rtol=0, atol=2e-5)


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_a_stored_mask_is_recognised_or_kept(data: st.DataObject) -> None:
    queries, keys = data.draw(st.sampled_from([(6, 6), (1, 9), (3, 8)]))
    mask = data.draw(masks(queries, keys))
    mask = replace(mask, dense=None)
    layer = drawn(mask, queries=queries, keys=keys)
    matrix, _ = reference.layer_matrix(layer)
    visible = matrix[:, :1] > 0
    for table in (visible, torch.zeros(visible.shape).masked_fill(~visible, -torch.inf)):
        again, _ = reference.layer_matrix(replace(layer, mask=Mask.from_dense(table)))
        assert torch.equal(again, matrix)


@pytest.mark.parametrize(
    "mask", [Mask(), Mask.full(), Mask.window(3), Mask(starts=(0, 2)), Mask(causal=False, after=2)]
)
def test_age_and_padding_are_recognised(mask: Mask) -> None:
    matrix, _ = reference.layer_matrix(drawn(mask, queries=9, keys=9))
    recognised = Mask.from_dense(matrix[:, :1] > 0)
    assert recognised.dense is None
    assert recognised.kind == mask.kind
    bias = torch.rand(9, 9)
    assert Mask.from_dense(bias).dense is bias


def test_a_windows_tiles_keep_to_its_band() -> None:
    mask, time = Mask.window(16), 4_096
    layer = drawn(mask, queries=time, keys=time, heads=1, key_heads=1, dtype=torch.float32)
    computed = sum(tile.values.numel() for tile in layer.operand.scores())
    assert computed < 2 * 3.5 * int(mask.visible(time, time).sum())


def test_a_step_of_decoding_over_a_cache_is_the_last_row_of_the_whole() -> None:
    mask = Mask.window(5)
    whole = [drawn(mask, queries=7, keys=7, softcap=2.0, seed=seed) for seed in range(3)]
    wanted = rollout(whole, [6]).weights["tokens"]
    top = whole[-1]
    step = Layer.of(top.query[:, :, -1:], top.key, top.value, mask, softcap=2.0)
    bars = rollout([*whole[:-1], step], [0]).weights["tokens"]
    torch.testing.assert_close(bars, wanted, rtol=0, atol=1e-12)


def test_padding_changes_nothing_of_a_shorter_sequence() -> None:
    for mask, kept in ((Mask(stops=(6, 4)), slice(4)), (Mask(starts=(0, 2)), slice(2, 6))):
        padded = drawn(mask)
        spoiled = padded.key.clone()
        spoiled[1, :, [at for at in range(6) if at not in range(6)[kept]]] = 1e3
        again = Layer.of(padded.query, spoiled, padded.value, mask)
        alone = Layer.of(padded.query[1:, :, kept], padded.key[1:, :, kept], None, Mask())
        bars = rollout([padded, again], [kept.stop - 1]).weights["tokens"][1:]
        weights = rollout([alone, alone], [3]).weights["tokens"]
        torch.testing.assert_close(bars[..., kept], weights, rtol=0, atol=1e-12)
        assert float(bars.sum()) == pytest.approx(float(bars[..., kept].sum()))


def test_a_sink_takes_what_a_query_that_sees_nothing_would_keep() -> None:
    """Two of four heads have a sink; the other two keep their share of the row."""
    sinks = torch.tensor([0.0, -torch.inf, 1.0, -torch.inf], dtype=torch.float64)
    blind = Mask(starts=(3, 3))
    for sinks_of, lost in ((None, 0.0), (sinks, 0.25), (torch.zeros_like(sinks), 0.5)):
        row = rollout([drawn(blind, sinks=sinks_of)], [1])
        unit = torch.eye(6, dtype=torch.float64)[1]
        same(row.weights["tokens"], unit.expand(2, 1, -1))
        same(row.l1_error, torch.full((2, 1), lost, dtype=torch.float64))


def test_each_head_is_measured_by_its_own_mask() -> None:
    shown = torch.rand(2, 4, 6, 6, generator=torch.Generator().manual_seed(2)) < 0.4
    shown[0, 2, 3] = False  # sees nothing, and the other heads do
    layer = drawn(Mask(causal=False, dense=shown), key_heads=4)
    assert layer.value is not None
    matrix, _ = reference.layer_matrix(layer)
    counts, entropy = shown.sum(dim=-1), torch.special.entr(matrix).sum(dim=-1)
    confidence = 1.0 - entropy / counts.clamp_min(2).double().log()
    same(layer.confidence(range(6)), confidence.masked_fill(counts < 2, 0.0))
    visible = shown.any(dim=1)
    moved = layer.carry(torch.eye(6).double().expand(2, 6, 6), Fuse("max", discard_ratio=0.5))
    for fused, pairs, rows in zip(matrix.amax(dim=1), visible, moved, strict=True):
        edge = fused[pairs].sort().values[int(pairs.sum()) // 2]
        assert torch.equal(rows > 0, fused >= edge)
    with capture() as captured:
        functional.scaled_dot_product_attention(layer.query, layer.key, layer.value, shown)
    same(captured.reads[0].rows(range(6)), matrix)


@pytest.mark.parametrize("axis", [0, 1])
def test_a_grid_asks_its_layer_once_for_any_tokens(
    axis: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tokens' rows are those of the dense matrix in which each line sees itself alone."""
    layer, (first, second) = drawn(Mask()), ((6, 2), (2, 6))[axis]
    grid = GridRead(layer, (first, second), axis)
    matrix, _ = reference.layer_matrix(layer)
    dense = torch.zeros(4, first, second, first, second, dtype=torch.float64)
    for line in range(2):
        if axis == 0:
            dense[:, :, line, :, line] = matrix[line]
        else:
            dense[:, line, :, line] = matrix[line]
    dense = dense.view(1, 4, 12, 12)
    calls: list[str] = []
    for name in ("rows", "entropy"):
        explain = getattr(Layer, name)

        def counted(*args: Any, _name: str = name, _explain: Any = explain) -> Tensor:
            calls.append(_name)
            result: Tensor = _explain(*args)
            return result

        monkeypatch.setattr(Layer, name, counted)
    for tokens in ([7, 0, 7, 11], range(12)):
        chosen = dense[:, :, list(tokens)]
        same(grid.rows(tokens), chosen)
        same(grid.entropy(tokens), torch.special.entr(chosen).sum(dim=-1))
    assert calls == ["rows", "entropy"] * 2


def test_content_share_is_the_distance_from_looking_at_all_alike() -> None:
    layer = drawn(Mask(), key_heads=4)
    even = torch.ones(6, 6, dtype=torch.float64).tril()
    even = even / even.sum(dim=-1, keepdim=True)
    matrix, _ = reference.layer_matrix(layer)
    wanted = 0.5 * (0.5 * (matrix.mean(dim=1) - even)[:, 5]).abs().sum(dim=-1)
    share = rollout([layer], [5]).content_share[:, 0]
    torch.testing.assert_close(share, wanted, rtol=0, atol=1e-12)
    flat = replace(layer, query=torch.zeros_like(layer.query))
    flat = replace(flat, logsumexp=flat.natural_logsumexp(torch.float64))
    assert float(rollout([flat], [5]).content_share.abs().max()) < 1e-12


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"softcap": 0.5}, "attention mass"),
        ({"mask": Mask.window(2)}, "attention mass"),
        ({"sinks": torch.zeros(3)}, r"sinks is \[3\]; give \[head 4\]"),
        ({"mask": Mask(stops=(3, 3, 3))}, "The mask does not fit"),
        ({"mask": Mask(leading_keys=torch.ones(5, dtype=torch.int64))}, "The mask does not fit"),
        ({"mask": Mask(dense=torch.ones(4, 6, dtype=torch.bool))}, "The mask does not fit"),
        ({"mask": None}, "give Mask"),
        ({"logsumexp": torch.zeros(2, 4, 7)}, r"logsumexp is .* query 6\]"),
        ({"gradient": torch.zeros(2, 4, 5, DIM)}, r"gradient is .* query 6, width 4\]"),
        ({"key": torch.zeros(2, 3, 6, DIM).double(), "value": None}, "cannot share"),
        ({"query": torch.zeros(4, 6, DIM)}, r"give \[batch, head, query, dim\]"),
    ],
)
def test_what_does_not_fit_is_one_sentence(wrong: dict[str, object], sentence: str) -> None:
    good = drawn(Mask())
    with pytest.raises(AttentionInvalid, match=sentence):
        rollout([replace(good, **wrong)], [5])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"before": -1}, "0 keys or more"),
        ({"starts": [0.5, 1]}, "whole numbers"),
        ({"dense": torch.ones(3, dtype=torch.int64)}, "booleans"),
    ],
)
def test_what_is_no_mask_is_one_sentence(options: dict[str, object], sentence: str) -> None:
    with pytest.raises(AttentionInvalid, match=sentence):
        Mask(**options)  # type: ignore[arg-type]


def test_a_fusion_without_what_it_needs_is_one_sentence() -> None:
    good = drawn(Mask())
    for wrong, fusion, sentence in (
        ({"value": None}, "norm", "needs its value"),
        ({"output_weight": None}, "norm", "output projection"),
        ({"gradient": None}, "gradient", "needs it; capture"),
        ({"value": None}, "gradient", "needs its value"),
        ({"norms": torch.ones(2, 4, 5)}, "norm", "norms is .* key 6"),
        ({"output_weight": torch.ones(5, 8)}, "norm", "output_weight is .* inputs 16"),
    ):
        with pytest.raises(AttentionInvalid, match=sentence):
            rollout([replace(good, **wrong)], [5], Rollout(fusion=fusion))  # type: ignore[arg-type]


def test_rows_are_given_in_the_order_and_as_often_as_they_are_asked_for() -> None:
    query, key = torch.randn(2, 2, 3, 9, 4, generator=torch.Generator().manual_seed(5))
    layer = Layer.of(query, key, None)
    for rows in ([2, 1, 0], [4, 4, 6], [8]):
        torch.testing.assert_close(layer.rows(rows), layer.rows(range(9))[:, :, rows])
        torch.testing.assert_close(layer.entropy(rows), layer.entropy()[:, :, rows])
