"""Linear attention held to the matrices that it never stores."""

from __future__ import annotations

import dense_attention as reference
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tracepaper.strategies.attention.linear import (
    LinearRead,
    attend_linearly,
    draw_directions,
    elu_features,
    random_features,
)
from tracepaper.strategies.attention.masks import Mask
from tracepaper.strategies.attention.methods import Rollout, rollout
from tracepaper.strategies.errors import AttentionInvalid
from tracepaper.strategies.networks.linear import LinearConfig, LinearNetwork

MASKS = {"full": Mask.full(), "causal": Mask()}
BATCH, HEADS, DIM = 2, 3, 8
masks = pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)


def drawn(time: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    source = torch.Generator().manual_seed(seed)
    shape = (BATCH, HEADS, time, DIM)
    return tuple(torch.randn(shape, generator=source, dtype=torch.float64) for _ in range(3))  # type: ignore[return-value]


def features(name: str, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    if name == "elu":
        return elu_features(query), elu_features(key)
    return random_features(query, key, draw_directions(HEADS, DIM, 20, seed=4))


def dense(query: Tensor, key: Tensor, mask: Mask) -> Tensor:
    """Return the matrix that the features imply."""
    products = query @ key.mT
    products = products * reference.visible(query.shape[-2], mask)
    return products / products.sum(-1, keepdim=True)


@settings(max_examples=25, deadline=None)
@given(
    time=st.sampled_from([1, 2, 127, 128, 129, 300]),
    name=st.sampled_from(["elu", "random"]),
    mask=st.sampled_from(list(MASKS.values())),
    seed=st.integers(0, 99),
)
def test_every_figure_is_that_of_the_dense_matrix(
    time: int, name: str, mask: Mask, seed: int
) -> None:
    query, key, value = drawn(time, seed)
    query, key = features(name, query, key)
    attended, read = attend_linearly(query, key, value, mask)
    matrix = dense(query, key, mask)
    assert torch.allclose(matrix.sum(-1), torch.ones(()).double())
    assert torch.allclose(attended, matrix @ value, atol=1e-11)
    rows = sorted({0, time // 2, time - 1})
    assert torch.allclose(read.rows(rows), matrix[..., rows, :], atol=1e-12)
    weights = torch.rand(BATCH, 2, time, dtype=torch.float64)
    pushed = read.carry(weights)
    assert torch.allclose(pushed, weights @ matrix.mean(1), atol=1e-11)
    entropy = reference.entropy(matrix)[..., rows]
    visible = reference.visible(time, mask).sum(-1)[rows]
    expected = torch.where(visible > 1, 1 - entropy / visible.clamp_min(2).double().log(), 0.0)
    assert torch.allclose(read.confidence(rows), expected, atol=1e-6)


@masks
def test_the_rollout_is_the_product_of_the_matrices(mask: Mask) -> None:
    time, rows = 150, [3, 149]
    reads, matrices = [], []
    for seed in range(3):
        query, key, value = drawn(time, seed)
        query, key = features("elu", query, key)
        reads.append(attend_linearly(query, key, value, mask)[1])
        matrices.append(dense(query, key, mask))
    bars = rollout(reads, rows, Rollout(residual_weight=0.3)).weights["tokens"]
    whole = reference.rollout(matrices, mask, residual_weight=0.3)
    assert torch.allclose(bars, whole[:, rows], atol=1e-12)
    above = rollout(reads, rows, Rollout(start_layer=2)).weights["tokens"]
    assert torch.allclose(above, reference.rollout(matrices[2:], mask)[:, rows], atol=1e-12)


@masks
def test_slopes_go_through_the_sums_as_through_the_matrix(mask: Mask) -> None:
    query, key, value = (x[:1, :1, :140, :3] for x in drawn(140))
    inputs = [x.clone().requires_grad_() for x in (query, key, value)]
    read, _ = attend_linearly(elu_features(inputs[0]), elu_features(inputs[1]), inputs[2], mask)
    slopes = torch.autograd.grad(read.square().sum(), inputs)
    read = dense(elu_features(inputs[0]), elu_features(inputs[1]), mask) @ inputs[2]
    expected = torch.autograd.grad(read.square().sum(), inputs)
    for slope, other in zip(slopes, expected, strict=True):
        assert torch.allclose(slope, other, atol=1e-10)


def test_random_features_come_nearer_to_the_softmax_the_more_there_are() -> None:
    time, rows, mask = 200, [50, 199], Mask()
    query, key, value = drawn(time)
    query, key = 0.5 * query, 0.5 * key
    exact = reference.attention_matrix(query, key, mask)[..., rows, :]
    far = []
    for count in (8, 256, 16_384):
        phi = random_features(query, key, draw_directions(HEADS, DIM, count, seed=1))
        _, read = attend_linearly(*phi, value, mask)
        far.append(float((read.rows(rows) - exact).abs().sum(-1).mean()) / 2)
    assert far[0] > far[1] > far[2]
    assert far[2] < 0.01


def test_directions_are_orthogonal_and_of_gaussian_length() -> None:
    tensor = draw_directions(2, 16, 40, seed=9)
    assert tensor.shape == (2, 40, 16)
    block = tensor[0, :16].double()
    products = block @ block.T
    assert torch.allclose(
        products - products.diag().diag(), torch.zeros(16, 16).double(), atol=1e-5
    )
    many = draw_directions(4, 16, 2_000, seed=2).square().sum(-1)
    assert float(many.mean()) == pytest.approx(16, rel=0.03)
    assert torch.equal(tensor, draw_directions(2, 16, 40, seed=9))
    assert not torch.equal(tensor, draw_directions(2, 16, 40, seed=8))


def test_what_cannot_be_is_refused_in_one_sentence() -> None:
    query, key, value = drawn(5)
    with pytest.raises(AttentionInvalid, match="cannot forget a window's"):
        attend_linearly(query, key, value, Mask.window(3))
    with pytest.raises(AttentionInvalid, match=r"key is .* head 3,"):
        attend_linearly(query, key[:, :2], value, Mask.full())
    read = LinearRead(query.exp(), key.exp(), query[..., 0].exp(), Mask.full())
    with pytest.raises(AttentionInvalid, match="leaves nothing to explain"):
        rollout([read], [0], Rollout(start_layer=1))
    with pytest.raises(AttentionInvalid, match="over the heads' mean"):
        rollout([read], [0], Rollout(fusion="max"))


@pytest.mark.parametrize("feature_map", ["elu", "random"])
@pytest.mark.parametrize("mask", MASKS)
def test_a_network_explains_what_its_layers_attended_with(mask: str, feature_map: str) -> None:
    torch.manual_seed(1)
    config = LinearConfig(
        features=4, dim=16, layers=2, heads=2, window=40, mask=mask, feature_map=feature_map,
        clock=("month",),
    )  # fmt: skip
    network = LinearNetwork(config).eval()
    torch.nn.init.normal_(network.heads.project.weight)
    x, positions = torch.randn(1, 40, 4), torch.arange(40) + 9
    with torch.inference_mode():
        explained, answered = network.explain(x, positions), network(x, positions)
        reads = network.trace(x, positions).reads
    layers = [read for read in reads if isinstance(read, LinearRead)]
    assert torch.allclose(explained.outputs.mean, answered.mean, atol=1e-6)
    matrices = [dense(each.query.double(), each.key.double(), MASKS[mask]) for each in layers]
    whole = reference.rollout(matrices, MASKS[mask])
    assert torch.allclose(explained.rollout.weights.double(), whole[:, 39:], atol=1e-5)
    assert explained.confidence.shape == (2, 2)
    above = Rollout(start_layer=1, residual_weight=0.1)
    whole = reference.rollout(matrices[1:], MASKS[mask], residual_weight=0.1)
    above_rollout = network.explain(x, positions, above).rollout.weights.double()
    assert torch.allclose(above_rollout, whole[:, 39:], atol=1e-5)
