"""What rounding may do to a product, and what is done where it would do too much."""

from __future__ import annotations

from dataclasses import replace

import dense_attention as reference
import pytest
import torch
from attention_cases import case, layers_of, rolled
from hypothesis import given, settings
from hypothesis import strategies as st
from rounding import gamma
from torch import Tensor, nn

from tracepaper.strategies.attention.checks import finite_layers
from tracepaper.strategies.attention.kernels import attend
from tracepaper.strategies.attention.layer import Layer
from tracepaper.strategies.attention.masks import Mask
from tracepaper.strategies.attention.methods import Rollout, rollout
from tracepaper.strategies.attention.tiles import check_mass, tie_slack
from tracepaper.strategies.errors import AttentionInvalid

torch.set_num_threads(1)
MASKS = (Mask.full(), Mask(), Mask.window(13))


def layer_of(mask: Mask, *, size: float = 1.0, dtype: torch.dtype = torch.float32) -> Layer:
    return case(mask, time=70, layers=1, size=size, dtype=dtype).layers[0]


def test_no_score_exceeds_the_largest_that_norms_allow() -> None:
    layer = layer_of(Mask.full(), size=3.0)
    scores = layer.query @ layer.key.transpose(2, 3) * layer.factor
    assert float(scores.abs().max()) <= layer.largest


def test_ordinary_layers_stay_as_they_are_and_huge_ones_become_float64() -> None:
    ordinary, huge = layer_of(Mask()), layer_of(Mask(), size=1_000.0)
    assert ordinary.operand.kind == torch.float32
    assert huge.operand.kind == torch.float64
    wanted = reference.logsumexp(huge.query.double(), huge.key.double(), Mask())
    torch.testing.assert_close(huge.operand.logsumexp, wanted, rtol=0, atol=1e-6)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 999), st.sampled_from([30.0, 1e3, 1e5]), st.sampled_from(MASKS))
def test_rows_of_huge_scores_still_sum_to_one(seed: int, size: float, mask: Mask) -> None:
    for dtype in (torch.float32, torch.float64):
        sample = case(mask, seed=seed, time=40, size=size, dtype=dtype)
        result = rolled(sample.layers, [0, 39])
        wanted = reference.rollout(sample.matrices, mask)[:, [0, 39]]
        # Both are float64's, but for the rows that are carried and normalised.
        exact = sample._replace(sums=[sums.double() for sums in sample.sums])
        rounding = 2 * exact.rounding() + gamma(2 * 40, dtype)
        torch.testing.assert_close(
            result.weights.double(), wanted, rtol=rounding, atol=torch.finfo(dtype).tiny
        )


@pytest.mark.parametrize("digits", [8, 11])
def test_a_rollout_of_fewer_digits_is_beyond_the_bound_of_float32(digits: int) -> None:
    """bfloat16's 8 digits and TF32's 11, in the queries alone, as a kernel may take in silence.

    Over few bars: the bound of a sum over hundreds is as wide as TF32's error.
    """
    sample = case(Mask(), time=60, dim=16, heads=4, dtype=torch.float32)
    wanted = reference.rollout(sample.matrices, sample.mask)[:, [30, 59]]

    def weights(queries: list[Tensor]) -> Tensor:
        pairs = zip(queries, sample.keys, strict=True)
        sums = [attend(query, key, key, sample.mask).logsumexp for query, key in pairs]
        return rolled(layers_of(queries, sample.keys, sums, sample.mask), [30, 59]).weights

    sample.hold(weights(sample.queries), wanted)
    step = 1 << (24 - digits)
    rough = [
        ((query.contiguous().view(torch.int32) + step // 2) // step * step).view(torch.float32)
        for query in sample.queries
    ]
    with pytest.raises(AssertionError, match="not close"):
        sample.hold(weights(rough), wanted)


LOWEST = {f"lowest of {kind}": torch.finfo(kind).min for kind in (torch.float32, torch.bfloat16)}


@pytest.mark.parametrize("hides", [*LOWEST.values(), -1e4, -1e9], ids=[*LOWEST, "-1e4", "-1e9"])
def test_a_number_that_hides_is_minus_infinity_to_all_that_follows_from_scores(
    hides: float,
) -> None:
    """A bias by distance hides the later keys and a padded one, as ALiBi and T5 write it."""
    base = layer_of(Mask.full())
    bias = -0.1 * (torch.arange(70)[:, None] - torch.arange(70)).abs()
    hidden = torch.ones(70, 70, dtype=torch.bool).triu(1)
    hidden[:, 5] = True
    hidden[0] = False  # a row that sees all
    layer, wanted = (
        Layer.of(base.query, base.key, None, Mask(causal=False, dense=table))
        for table in (
            (bias + hides * hidden).float(),
            bias.double().masked_fill(hidden, -torch.inf),
        )
    )
    matrix, _ = reference.layer_matrix(wanted)
    assert layer.largest == pytest.approx(wanted.largest)
    assert torch.equal(layer.visible(), wanted.visible())
    torch.testing.assert_close(layer.confidence(range(70)), wanted.confidence(range(70)))
    slack = tie_slack(wanted.largest)
    kept = reference.discard(matrix.mean(dim=1), ~hidden, 0.5, slack=slack)
    mixed = 0.5 * torch.eye(70) + 0.5 * kept
    mixed = mixed / mixed.sum(dim=-1, keepdim=True)
    weights = rollout([layer], range(70), Rollout(discard_ratio=0.5)).weights["tokens"]
    assert (weights - mixed).abs().max() < 1e-4  # within the soft edge
    with pytest.raises(AttentionInvalid, match="logsumexp"):
        rollout([replace(layer, logsumexp=layer.logsumexp + 0.1)], [69])


@pytest.mark.parametrize("hides", [torch.finfo(torch.float32).min, -1e9])
def test_a_row_in_which_all_is_as_low(hides: float) -> None:
    """The lowest number shows such a row nothing; any other number is as 0 there."""
    base = layer_of(Mask.full())
    table = torch.randn(70, 70, generator=torch.Generator().manual_seed(1))
    alone = Layer.of(base.query, base.key, None, Mask(causal=False, dense=table))
    table = table.clone()
    table[3] = hides
    layer = Layer.of(base.query, base.key, None, Mask(causal=False, dense=table))
    row = layer.rows([3])
    matrix, _ = reference.layer_matrix(base)
    wanted = torch.zeros(70) if hides < -1e30 else matrix[:, :, 3:4]
    torch.testing.assert_close(row, wanted.expand_as(row).float(), rtol=0, atol=1e-6)
    for read in (layer, replace(layer, logsumexp=alone.logsumexp + 0.1)):
        with pytest.raises(AttentionInvalid, match="logsumexp"):
            rollout([replace(read, logsumexp=read.logsumexp + 0.1)], [0])


@pytest.mark.parametrize("value", [0.9, 1.1, float("nan"), float("inf")])
def test_a_lost_gained_or_undefined_mass_is_refused(value: float) -> None:
    mass = torch.ones(1, 3, 2)
    check_mass(mass, 1e-5)
    mass[0, 1, 1] = value
    with pytest.raises(AttentionInvalid, match="Head 1 did not keep"):
        check_mass(mass, 1e-5)


# ---------------------------------------------------------------- guard


def spoil(layer: nn.Module, value: float) -> None:
    """Overwrite a layer's parameters."""
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.fill_(value)


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.LSTM(4, 2, batch_first=True))


def test_a_finite_network_passes_and_is_left_as_it_was() -> None:
    model = network()
    with finite_layers(model):
        model(torch.ones(1, 2, 3))
    spoil(model[0], float("nan"))
    assert bool(model(torch.ones(1, 2, 3))[0].isnan().all())  # watched no more


@pytest.mark.parametrize(("value", "word"), [(float("nan"), "NaN"), (float("inf"), "infinity")])
def test_the_first_broken_layer_is_named(value: float, word: str) -> None:
    model = network()
    spoil(model[0], value)
    expected = rf"Layer 0 \(Linear\) produced {word}"
    with pytest.raises(AttentionInvalid, match=expected), finite_layers(model):
        model(torch.ones(1, 2, 3))


def test_a_broken_state_inside_a_tuple_is_found() -> None:
    model = network()
    spoil(model[2], float("nan"))
    with pytest.raises(AttentionInvalid, match=r"Layer 2 \(LSTM\)"), finite_layers(model):
        model(torch.ones(1, 2, 3))
