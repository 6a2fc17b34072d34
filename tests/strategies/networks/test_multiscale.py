"""Several timeframes in one stream: what a token is made of, and what it explains."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tracepaper.strategies.attention.layer import Layer
from tracepaper.strategies.networks.timeframes import MultiscaleConfig, MultiscaleNetwork, frame_of

FEATURES = 3
SMALL = MultiscaleConfig(
    features=FEATURES,
    dim=8,
    layers=2,
    heads=2,
    frames=(1, 4, 12),
    tokens=(5, 4, 3),
    horizons=(2, 7),
)


def network(config: MultiscaleConfig = SMALL) -> MultiscaleNetwork:
    torch.manual_seed(3)
    model = MultiscaleNetwork(config).eval()
    torch.nn.init.normal_(model.heads.project.weight)
    return model


def rows(time: int, seed: int = 0) -> Tensor:
    return torch.randn(1, time, FEATURES, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=60, deadline=None)
@given(
    wide=st.sampled_from([2, 3, 5, 12]),
    count=st.integers(1, 6),
    shift=st.integers(0, 40),
    kept=st.sampled_from([1.0, 0.7, 0.2]),
    seed=st.integers(0, 99),
)
def test_a_token_is_made_of_the_rows_of_its_closed_bar(
    wide: int, count: int, shift: int, kept: float, seed: int
) -> None:
    time = wide * (count + 1) + 5
    draw = np.random.default_rng(seed)
    grid = np.sort(draw.choice(6 * time, round(6 * time * kept), replace=False))[:time] + shift
    x = rows(time, seed)
    tokens = frame_of(x, torch.from_numpy(grid)[None], wide=wide, count=count)
    members: dict[int, list[int]] = {}
    for place, position in enumerate(grid.tolist()):
        members.setdefault(position // wide, []).append(place)
    closed = [bar for bar in sorted(members) if (bar + 1) * wide - 1 <= grid[-1]][-count:]
    assert len(closed) == count
    for token, bar in enumerate(closed):
        bars = members[bar]
        expected = torch.cat((x[0, bars].double().mean(0), x[0, bars[-1]].double()))
        assert torch.allclose(tokens.rows[0, token].double(), expected, atol=1e-6)
        assert tokens.close[0, token] == grid[bars[-1]]
        assert (int(tokens.start[0, token]), int(tokens.length[0, token])) == (bars[0], len(bars))


def test_a_bar_that_is_not_over_is_no_token_and_one_that_just_closed_is() -> None:
    x = rows(40)
    before = frame_of(x, torch.arange(40)[None], wide=8, count=3)  # the last position is 39
    assert before.close.tolist() == [[23, 31, 39]]
    after = frame_of(x, torch.arange(1, 41)[None], wide=8, count=3)  # bar 40 has just begun
    assert after.close.tolist() == [[23, 31, 39]]
    assert after.start.tolist() == [[15, 23, 31]]


def test_each_window_of_a_batch_lies_on_its_own_grid() -> None:
    multiscale_network, time = network(), SMALL.window
    x = torch.cat((rows(time, 1), rows(time, 2)))
    positions = torch.stack((torch.arange(time) + 7, torch.arange(time) + 10_001))
    together = multiscale_network(x, positions)
    for at in range(2):
        alone = multiscale_network(x[at : at + 1], positions[at])
        assert torch.allclose(together.mean[at], alone.mean[0], atol=1e-6)
    moved = multiscale_network(x[:1], positions[0] + 1)
    assert not torch.allclose(moved.mean, multiscale_network(x[:1], positions[0]).mean)


def test_cycles_of_day_week_and_funding_reach_the_tokens_of_every_frame() -> None:
    minutes = 5
    config = replace(SMALL, clock=("week", "funding"), interval_minutes=minutes)
    multiscale_network = network(config)
    x, start = rows(config.window), 1_000_003
    positions = torch.arange(start, start + config.window)
    tokens, frames = multiscale_network.tokens(x, positions)
    closes = torch.cat([frame.close[0] for frame in frames[::-1]]).tolist()
    assert len(set(closes)) > 8  # frames close at times of their own
    for token, close in zip(tokens[0], closes, strict=True):
        day, shift = (close * minutes % length / length for length in (1_440, 480))
        week = close * minutes % 10_080 / 10_080
        turns = [*(2 * math.pi * week * n for n in (1, 2, 7, 14)), 2 * math.pi * shift]
        cycles = token[2 * FEATURES : -len(frames)].tolist()
        assert cycles[:4] == pytest.approx([math.sin(turn) for turn in turns[:4]], abs=1e-5)
        assert cycles[2] == pytest.approx(math.sin(2 * math.pi * day), abs=1e-5)  # a day's turn
        assert cycles[8] == pytest.approx(math.sin(turns[4]), abs=1e-5)
        assert cycles[-1] == pytest.approx(shift, abs=1e-6)
    forecast = multiscale_network(x, positions).mean.detach()
    week_on = multiscale_network(x, positions + 7 * 1_440 // minutes).mean
    torch.testing.assert_close(week_on, forecast)
    hour_on = multiscale_network(x, positions + 60 // minutes).mean
    assert float((hour_on - forecast).abs().max()) > 1e-5


def test_the_rollout_over_tokens_equals_the_dense_product() -> None:
    model, time = network(), SMALL.window
    x, positions = rows(time), torch.arange(time)
    with torch.inference_mode():
        traces = model.trace(x, positions).attending
        shares = torch.tensor([part.share for part in model.explain(x, positions).parts])
    product = torch.eye(sum(SMALL.tokens), dtype=torch.float64)
    for trace in traces:
        assert isinstance(trace, Layer)
        scores = trace.query.double() @ trace.key.double().mT / trace.query.shape[-1] ** 0.5
        mean = scores.softmax(-1)[0].mean(0)
        product = (0.5 * torch.eye(len(mean)).double() + 0.5 * mean) @ product
    assert torch.allclose(product[-1], shares.double(), atol=1e-6)


def test_what_lies_in_no_token_moves_nothing_and_what_lies_in_one_does() -> None:
    config = replace(SMALL, frames=(1, 12), tokens=(5, 2))
    multiscale_network, time = network(config), config.window
    positions = torch.arange(time) + 12 - (time % 12)  # the window ends with a closed bar
    x = rows(time)
    slopes = x.clone().requires_grad_()
    multiscale_network(slopes, positions).mean.sum().backward()
    assert slopes.grad is not None
    moves = slopes.grad[0].abs().sum(-1) > 0
    assert moves.tolist() == [False] * (time - 24) + [True] * 24
