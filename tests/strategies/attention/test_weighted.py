"""Gradient- and norm-weighted rollout against stored matrices and autograd."""

from __future__ import annotations

import pytest
import torch
from attention_cases import Case, case, layers_of, rolled
from torch import Tensor

from tracepaper.strategies.attention.layer import value_norms
from tracepaper.strategies.attention.masks import Mask
from tracepaper.strategies.attention.methods import Rollout
from tracepaper.strategies.errors import AttentionInvalid


def tensors(made: Case, *, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(query.shape, generator=generator, dtype=torch.float64) for query in made.queries
    ]


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
