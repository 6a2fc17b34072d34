"""Encodings: exact angles far from the origin, and ALiBi through an ordinary product."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tracepaper.strategies.networks.encodings import (
    ENCODINGS,
    Contextual,
    Mixture,
    Sizes,
    alibi_key,
    alibi_query,
    alibi_slopes,
    rope_table,
    rotate,
    sinusoidal_table,
    turns,
)


@given(position=st.integers(0, 2**40), dim=st.sampled_from([2, 8, 16, 64]))
def test_rope_angles_are_exact_at_any_position(position: int, dim: int) -> None:
    cosine, sine = rope_table(torch.tensor([position]), dim)
    for i in range(dim // 2):
        angle = position * 10_000.0 ** -(2 * i / dim)
        assert abs(float(cosine[0, i]) - math.cos(angle)) < 1e-6 + 4e-16 * angle
        assert abs(float(sine[0, i]) - math.sin(angle)) < 1e-6 + 4e-16 * angle


@given(seed=st.integers(0, 2**31), near=st.integers(0, 2_000), away=st.integers(0, 30_000_000))
def test_rope_products_depend_on_the_distance_alone(seed: int, near: int, away: int) -> None:
    source = torch.Generator().manual_seed(seed)
    query, key = torch.randn(2, 1, 16, generator=source)

    def product(first: int, second: int) -> float:
        turned = [
            rotate(x, *turns(torch.tensor([p]), 16)) for x, p in ((query, first), (key, second))
        ]
        return float((turned[0] * turned[1]).sum())

    assert abs(product(near, 0) - product(near + away, away)) < 2e-5


def test_rotation_is_that_of_complex_numbers() -> None:
    x = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(1), requires_grad=True)
    at = torch.arange(700, 705)
    cosine, sine = rope_table(at, 16)
    wanted = torch.complex(*x.chunk(2, dim=-1)) * torch.complex(cosine, sine)
    turned = rotate(x, *turns(at, 16))
    torch.testing.assert_close(turned, torch.cat((wanted.real, wanted.imag), dim=-1))
    (slope,) = torch.autograd.grad(turned.square().sum(), x)
    torch.testing.assert_close(slope, 2 * x)  # a length does not change


def test_alibi_slopes_are_the_papers() -> None:
    assert alibi_slopes(8).tolist() == [2.0**-h for h in range(1, 9)]
    assert alibi_slopes(4).tolist() == [2.0**-2, 2.0**-4, 2.0**-6, 2.0**-8]


@given(seed=st.integers(0, 2**31), origin=st.integers(0, 5_000))
def test_alibi_rides_on_an_ordinary_product(seed: int, origin: int) -> None:
    source = torch.Generator().manual_seed(seed)
    query, key = torch.randn(2, 1, 4, 9, 6, generator=source, dtype=torch.float64)
    age = torch.arange(8, -1, -1, dtype=torch.float64) + origin
    slopes = alibi_slopes(4)
    wide_query, wide_key = alibi_query(query, age, slopes), alibi_key(key, age)
    scores = wide_query @ wide_key.mT / math.sqrt(wide_query.shape[-1])
    distance = age[None, :] - age[:, None]  # of the key, back from the query
    wanted = query @ key.mT / math.sqrt(6) - slopes.double()[:, None, None] * distance
    torch.testing.assert_close(scores, wanted)


SIZES = Sizes(dim=8, heads=2, window=10)


@pytest.mark.parametrize("name", ["sinusoidal", "learned", "mixture"])
def test_a_code_of_the_place_is_the_same_a_window_later_whatever_the_state(name: str) -> None:
    torch.manual_seed(0)
    encoder = ENCODINGS[name](SIZES)
    states = torch.randn(2, 1, 20, 8)
    added = encoder.enter(states[0], torch.arange(20)) - states[0]
    torch.testing.assert_close(encoder.enter(states[1], torch.arange(20)) - states[1], added)
    torch.testing.assert_close(added[:, :10], added[:, 10:])
    assert len({tuple(row) for row in added[0, :10].round(decimals=4).tolist()}) == 10


def test_a_mixture_leans_from_waves_to_what_is_learned_and_rotates_as_well() -> None:
    torch.manual_seed(0)
    mixture = Mixture(SIZES)
    waves, places = sinusoidal_table(torch.arange(10), 8, 10), mixture.place.detach()
    at = torch.arange(10)
    torch.testing.assert_close(mixture.code(at), (0.5 * waves + 0.5 * places).float())
    for lean, wanted in (([30.0, 0.0], waves), ([0.0, 30.0], places)):
        with torch.no_grad():
            mixture.lean.copy_(torch.tensor(lean))
        torch.testing.assert_close(mixture.code(at), wanted.float())
        torch.testing.assert_close(mixture.shares().sum(), torch.tensor(1.0))
    (slope,) = torch.autograd.grad(mixture.code(at).square().sum(), mixture.lean)
    assert slope.shape == (2,)
    cosine, _ = turns(at, 4)
    torch.testing.assert_close(mixture.phases(at).cosine, cosine[:, None, None])


def test_a_bar_takes_as_much_of_its_place_as_its_own_features_ask_for() -> None:
    torch.manual_seed(0)
    encoder = Contextual(SIZES)
    state, at = torch.randn(1, 10, 8), torch.arange(10) + 530
    shares = torch.sigmoid(state @ encoder.ask.weight.T + encoder.ask.bias)
    torch.testing.assert_close(encoder.enter(state, at), state + encoder.place[at % 10] * shares)
    other = state.clone()
    other[0, 3] += 1.0
    moved = (encoder.enter(other, at) - other) - (encoder.enter(state, at) - state)
    assert moved[0].abs().sum(-1).nonzero()[:, 0].tolist() == [3]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_alibi_in_half_types_keeps_float32s_bias(dtype: torch.dtype) -> None:
    # Queries and keys of zero leave the bias alone.
    age = torch.tensor([0.0, 1.0, 255.0, 2_049.0, 65_535.0, 131_071.0])
    alibi = ENCODINGS["alibi"](SIZES)
    empty = torch.zeros(1, 2, len(age), 4, dtype=dtype)
    query, key, _ = alibi.widen(empty, empty, empty, age)
    distance = (age[None, :] - age[:, None]).double()
    wanted = -alibi_slopes(2).double()[None, :, None, None] * distance
    torch.testing.assert_close((query @ key.mT).double() / 6**0.5, wanted, rtol=1e-6, atol=0.01)
