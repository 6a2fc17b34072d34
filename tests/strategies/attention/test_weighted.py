"""Gradient- and norm-weighted rollout against stored matrices and autograd."""

from __future__ import annotations

import pytest
import torch
from attention_cases import Case, case, layers_of, rolled
from torch import Tensor

from tracepaper.strategies.attention import reference
from tracepaper.strategies.attention.layer import value_norms
from tracepaper.strategies.attention.masks import Mask
from tracepaper.strategies.attention.methods import Rollout
from tracepaper.strategies.errors import AttentionInvalid

MASKS = (Mask.full(), Mask(), Mask.window(11))


def stored(weighted: list[Tensor], residual: float = 0.5) -> Tensor:
    """Roll out stored fused weights, rows normalised, empty rows keeping themselves."""
    matrices = []
    for fused in weighted:
        totals = fused.sum(dim=-1, keepdim=True)
        identity = torch.eye(fused.shape[-1], dtype=fused.dtype).expand_as(fused)
        matrices.append(torch.where(totals > 0, fused / totals, identity)[:, None])
    return reference.rollout(matrices, Mask.full(), residual_weight=residual)


def tensors(made: Case, *, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(query.shape, generator=generator, dtype=torch.float64) for query in made.queries
    ]


@pytest.mark.parametrize("mask", MASKS)
def test_gradient_rollout_equals_the_gradient_of_the_stored_matrix(mask: Mask) -> None:
    made = case(mask, batch=2, time=33)
    values, gradients = tensors(made, seed=1), tensors(made, seed=2)
    weighted = []
    for matrix, value, gradient in zip(made.matrices, values, gradients, strict=True):
        leaf = matrix.clone().requires_grad_()
        ((leaf @ value) * gradient).sum().backward()
        assert leaf.grad is not None
        weighted.append((leaf.grad * matrix).clamp_min(0.0).mean(dim=1))
    result = rolled(
        layers_of(made.queries, made.keys, made.sums, mask, value=values, gradient=gradients),
        [0, 20, 32],
        Rollout(fusion="gradient"),
    )
    wanted = stored(weighted)[:, [0, 20, 32]]
    torch.testing.assert_close(result.weights, wanted, rtol=0, atol=1e-12)


def test_a_row_without_gradient_keeps_itself() -> None:
    made = case(Mask(), layers=2)
    values = tensors(made, seed=1)
    gradients = [torch.zeros_like(value) for value in values]
    result = rolled(
        layers_of(made.queries, made.keys, made.sums, made.mask, value=values, gradient=gradients),
        [7],
        Rollout(residual_weight=0.0, fusion="gradient"),
    )
    assert result.weights[0, 0].argmax() == 7
    assert float(result.weights[0, 0, 7]) == 1.0


@pytest.mark.parametrize("mask", MASKS)
def test_norm_rollout_weighs_by_the_length_of_the_projected_values(mask: Mask) -> None:
    made = case(mask, heads=3, dim=4, time=33)
    values = tensors(made, seed=5)
    projection = torch.randn(12, 12, generator=torch.Generator().manual_seed(6)).double()
    by_head = projection.unflatten(1, (3, 4))
    lengths = [torch.einsum("bhtd,mhd->bhtm", value, by_head).norm(dim=-1) for value in values]
    norms = [value_norms(value, projection) for value in values]
    for one, other in zip(norms, lengths, strict=True):
        torch.testing.assert_close(one, other)
    weighted = [
        (matrix * length[:, :, None]).mean(dim=1)
        for matrix, length in zip(made.matrices, lengths, strict=True)
    ]
    result = rolled(
        layers_of(made.queries, made.keys, made.sums, mask, norms=norms),
        [1, 32],
        Rollout(fusion="norm"),
    )
    wanted = stored(weighted)[:, [1, 32]]
    torch.testing.assert_close(result.weights, wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("norms", "sentence"),
    [
        (lambda sums: [one[..., :5] for one in sums], "one length a head and key"),
        (lambda sums: [one * torch.nan for one in sums], "NaN or infinite norm"),
        (lambda sums: [-torch.ones_like(one) for one in sums], "cannot be negative"),
    ],
)
def test_norms_that_do_not_fit_are_refused(norms: object, sentence: str) -> None:
    made = case(Mask())
    assert callable(norms)
    with pytest.raises(AttentionInvalid, match=sentence):
        rolled(
            layers_of(made.queries, made.keys, made.sums, made.mask, norms=norms(made.sums)),
            [3],
            Rollout(fusion="norm"),
        )


def test_a_projection_of_another_width_is_refused() -> None:
    with pytest.raises(AttentionInvalid, match="must take 16 inputs"):
        value_norms(torch.ones(1, 2, 5, 8), torch.ones(16, 8))
