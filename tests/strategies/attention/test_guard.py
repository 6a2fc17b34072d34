"""The guard names the layer in which a NaN or an infinity first appears."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tracepaper.strategies.attention.checks import finite_layers, require_finite
from tracepaper.strategies.errors import AttentionInvalid


def spoil(layer: nn.Module, value: float) -> None:
    """Overwrite a layer's parameters."""
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.fill_(value)


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.LSTM(4, 2, batch_first=True))


def test_a_finite_network_passes_and_is_left_as_it_was() -> None:
    made = network()
    with finite_layers(made):
        made(torch.ones(1, 2, 3))
    spoil(made[0], float("nan"))
    assert bool(made(torch.ones(1, 2, 3))[0].isnan().all())  # watched no more


@pytest.mark.parametrize(("value", "word"), [(float("nan"), "NaN"), (float("inf"), "infinity")])
def test_the_first_broken_layer_is_named(value: float, word: str) -> None:
    made = network()
    spoil(made[0], value)
    expected = rf"Layer 0 \(Linear\) produced {word}"
    with pytest.raises(AttentionInvalid, match=expected), finite_layers(made):
        made(torch.ones(1, 2, 3))


def test_a_broken_state_inside_a_tuple_is_found() -> None:
    made = network()
    spoil(made[2], float("nan"))
    with pytest.raises(AttentionInvalid, match=r"Layer 2 \(LSTM\)"), finite_layers(made):
        made(torch.ones(1, 2, 3))


def test_a_finite_tensor_is_handed_back() -> None:
    tensor = torch.ones(2)
    assert require_finite(tensor, "here") is tensor
