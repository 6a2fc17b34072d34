"""What torch's own loops compute is the same at any number of threads, within 1e-12 in float64."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from attention_cases import bucketed, layers_of, rolled
from torch import Tensor

from tracepaper.strategies.attention.kernels import attend, cross_attend
from tracepaper.strategies.attention.layer import Layer
from tracepaper.strategies.attention.linear import attend_linearly, elu_features
from tracepaper.strategies.attention.masks import Mask, closed_keys
from tracepaper.strategies.attention.methods import Rollout

TIME = 600
ROWS = [0, 299, 599]
MASKS = {"causal": Mask(), "window": Mask.window(100)}


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """Leave the number of threads as it was."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def computed(mask: Mask) -> list[Tensor]:
    """Return what each operation gives over the same layers: values, gradients, explanations."""
    generator = torch.Generator().manual_seed(4)
    tensor = torch.randn(2, 3, 1, 4, TIME, 8, generator=generator, dtype=torch.float64)
    queries, keys, values = (list(part) for part in tensor.unbind(1))
    parts, sums = [], []
    for query, key, value in zip(queries, keys, values, strict=True):
        leaves = [x.clone().requires_grad_() for x in (query, key, value)]
        output, logsumexp = attend(leaves[0], leaves[1], leaves[2], mask)
        parts += [output.detach(), *torch.autograd.grad(output.square().sum(), leaves)]
        sums.append(logsumexp)
    parts += sums
    for options in ({}, {"fusion": "max"}, {"discard_ratio": 0.3}):
        parts.append(rolled(layers_of(queries, keys, sums, mask), ROWS, Rollout(**options)).weights)
    many = list(range(0, TIME, 20))  # more rows than a product a head takes
    parts.append(rolled(layers_of(queries, keys, sums, mask), many).weights)
    parts.append(
        rolled(
            layers_of(queries, keys, sums, mask, value=values, gradient=keys),
            ROWS,
            Rollout(fusion="gradient"),
        ).weights
    )
    parts.append(bucketed(layers_of(queries, keys, sums, mask), by_age=True).weights)
    parts.append(Layer(queries[0], keys[0], None, sums[0], mask).entropy())
    return parts


def read_across() -> list[Tensor]:
    """Return the same of linear and of cross-attention."""
    generator = torch.Generator().manual_seed(5)
    query, key, value = torch.randn(3, 1, 4, TIME, 8, generator=generator, dtype=torch.float64)
    tensor = closed_keys(torch.arange(TIME), 3 * torch.arange(200) + 2)
    crossed = cross_attend(query, key[:, :, :200], value[:, :, :200], tensor)
    attended, read = attend_linearly(elu_features(query), elu_features(key), value, Mask())
    return [*crossed[:1], attended, rolled([read], ROWS).weights]


@pytest.mark.slow
@pytest.mark.parametrize("name", [*MASKS, "linear and cross"])
def test_results_do_not_depend_on_threads(name: str) -> None:
    wanted: list[Tensor] = []
    for count in (1, 2, 3, 8, 16):
        torch.set_num_threads(count)
        tensors = computed(MASKS[name]) if name in MASKS else read_across()
        wanted = wanted or tensors
        for tensor, other in zip(tensors, wanted, strict=True):
            torch.testing.assert_close(tensor, other, rtol=0, atol=1e-12)
