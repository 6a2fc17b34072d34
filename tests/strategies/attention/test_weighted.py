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


def tensors(drawn: Case, *, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(query.shape, generator=generator, dtype=torch.float64)
        for query in drawn.queries
    ]


def test_a_row_without_gradient_keeps_itself() -> None:
    drawn = case(Mask(), layers=2)
    values = tensors(drawn, seed=1)
    gradients = [torch.zeros_like(value) for value in values]
    result = rolled(
        layers_of(
            drawn.queries, drawn.keys, drawn.sums, drawn.mask, value=values, gradient=gradients
        ),
        [7],
        Rollout(residual_weight=0.0, fusion="gradient"),
    )
    assert result.weights[0, 0].argmax() == 7
    assert float(result.weights[0, 0, 7]) == 1.0


@pytest.mark.parametrize(
    ("norms", "sentence"),
    [
        (lambda sums: [norms[..., :5] for norms in sums], "norms is .* key 40"),
        (lambda sums: [norms * torch.nan for norms in sums], "NaN or infinite norm"),
        (lambda sums: [-torch.ones_like(norms) for norms in sums], "none below 0"),
    ],
)
def test_norms_that_do_not_fit_are_refused(norms: object, sentence: str) -> None:
    drawn = case(Mask())
    assert callable(norms)
    with pytest.raises(AttentionInvalid, match=sentence):
        rolled(
            layers_of(drawn.queries, drawn.keys, drawn.sums, drawn.mask, norms=norms(drawn.sums)),
            [3],
            Rollout(fusion="norm"),
        )


def test_a_projection_of_another_width_is_refused() -> None:
    with pytest.raises(AttentionInvalid, match=r"output_weight is .* inputs 16"):
        value_norms(torch.ones(1, 2, 5, 8), torch.ones(16, 8))
