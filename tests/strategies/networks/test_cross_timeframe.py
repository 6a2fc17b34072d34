"""Bars that read a slower timeframe: what each sees, and its rollout against matrices in numpy."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from dense import DenseLayers, Matrix
from hypothesis import given, settings
from hypothesis import strategies as st
from models import moved
from torch import Tensor

from tracepaper.strategies.attention.methods import Rollout
from tracepaper.strategies.networks.checks import check_network
from tracepaper.strategies.networks.timeframes import CrossConfig, CrossNetwork

torch.set_num_threads(1)
FEATURES = 3
SMALL = CrossConfig(
    features=FEATURES, dim=8, layers=2, heads=2, bars=7, frame=4, tokens=3, horizons=(2, 7),
    clock=(),
)  # fmt: skip
BLIND = replace(SMALL, bars=14, tokens=2)
"""Its first bars close before any slower bar that is seen."""


def network(config: CrossConfig = SMALL) -> CrossNetwork:
    torch.manual_seed(3)
    return moved(CrossNetwork(config).double())


def window(config: CrossConfig = SMALL, *, shift: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(8)
    x = torch.randn(1, config.window, FEATURES, generator=generator, dtype=torch.float64)
    return x, torch.arange(shift, shift + config.window)


class Dense(DenseLayers):
    """The network written down a second time in numpy, each head's matrix stored."""

    def __init__(self, network: CrossNetwork) -> None:
        super().__init__(network)
        self.config = network.config
        self.matrices: list[tuple[str, Matrix]] = []  # of each block [head, query, key]

    def block(
        self, name: str, x: Matrix, other: Matrix, closes: tuple[list[int], list[int]]
    ) -> Matrix:
        """Return *x*, which closed at the first of *closes*, after it read of *other*."""
        dim, size = self.config.dim, self.config.dim // self.config.heads
        projected = self.linear(f"{name}.project_in", self.norm(f"{name}.attention_norm", x))
        given = self.linear(f"{name}.project_in", self.norm(f"{name}.attention_norm", other))
        values = np.array([[there <= here for there in closes[1]] for here in closes[0]])
        read, heads = np.zeros_like(x), []
        for head in range(self.config.heads):
            at = slice(head * size, (head + 1) * size)
            query, key, value = projected[:, at], given[:, dim:][:, at], given[:, 2 * dim :][:, at]
            scores = self.turned(query, closes[0]) @ self.turned(key, closes[1]).T
            power = np.where(values, np.exp(scores / math.sqrt(size)), 0.0)
            matrix = power / np.maximum(power.sum(1, keepdims=True), 1e-300)
            read[:, at] = matrix @ value
            heads.append(matrix)
        kind = ("slower", "bars", "read")[int(name[-1])]
        self.matrices.append((kind, np.array(heads)))
        x = x + self.linear(f"{name}.project_out", read)
        return x + self.feed_forward(f"{name}.mlp", self.norm(f"{name}.mlp_norm", x))

    @staticmethod
    def turned(x: Matrix, places: list[int]) -> Matrix:
        """Return rows turned by their place: pairs half a head apart, as a complex number."""
        half = x.shape[1] // 2
        angle = np.array(places)[:, None] * 10_000.0 ** -(np.arange(half) / half)
        turn = np.cos(angle).astype(np.float32) + 1j * np.sin(angle).astype(np.float32)
        rotated = (x[:, :half] + 1j * x[:, half:]) * turn
        return np.concatenate([rotated.real, rotated.imag], axis=1)

    def __call__(self, x: Matrix, positions: list[int]) -> Matrix:
        """Return the mean returns; ``members`` are the rows of each slower bar, oldest first."""
        config = self.config
        groups: dict[int, list[int]] = {}
        for row, place in enumerate(positions):
            groups.setdefault(place // config.frame, []).append(row)
        ends = {(bar + 1) * config.frame - 1: rows for bar, rows in groups.items()}
        closed = [end for end in sorted(ends) if end <= positions[-1]][-config.tokens :]
        self.members = [ends[end] for end in closed]
        near = positions[-config.bars :]
        tokens = [np.concatenate([x[rows].mean(0), x[rows[-1]]]) for rows in self.members]
        slower = self.linear("embed_slower", np.array(tokens))
        bars = self.linear("embed", x[-config.bars :])
        for depth in range(config.layers):
            name = f"layers.{depth}"
            slower = self.block(f"{name}.0", slower, slower, (closed, closed))
            bars = self.block(f"{name}.1", bars, bars, (near, near))
            bars = self.block(f"{name}.2", bars, slower, (near, closed))
        raw = self.linear("heads.project", self.norm("norm", bars[-1:]))[0]
        return raw.reshape(len(config.horizons), -1)[:, 0]

    def rollout(self, share: float, *, lowest: int = 0) -> Matrix:
        """Return the last row of the product over slower bars, then bars; *share* is kept."""
        tokens, bars = self.config.tokens, self.config.bars
        product = np.eye(tokens + bars)
        for depth in range(lowest, self.config.layers):
            of = dict(self.matrices[3 * depth : 3 * depth + 3])
            within, across = np.eye(tokens + bars), np.eye(tokens + bars)
            within[:tokens, :tokens] = of["slower"].mean(0)
            within[tokens:, tokens:] = of["bars"].mean(0)
            within = share * np.eye(tokens + bars) + (1 - share) * within
            read = of["read"].mean(0)
            sees = read.sum(1) > 0.5
            across[tokens:][sees] *= share
            across[tokens:, :tokens][sees] = (1 - share) * read[sees]
            product = across @ within @ product
        matrix: Matrix = product[-1]
        return matrix

    def by_bar(self, weights: Matrix) -> Matrix:
        """Return *weights* of slower bars and bars by the rows of the window."""
        values = np.zeros(self.config.window)
        values[-self.config.bars :] = weights[self.config.tokens :]
        for rows, weight in zip(self.members, weights, strict=False):
            values[rows] += weight / len(rows)
        return values


@pytest.mark.parametrize("config", [SMALL, BLIND], ids=["seeing", "blind"])
@pytest.mark.parametrize("shift", [5, 29_000_002])
@pytest.mark.parametrize("has_holes", [False, True])
def test_forecast_rollout_and_confidence_equal_stored_matrices(
    config: CrossConfig, shift: int, has_holes: bool
) -> None:
    cross_network, (x, positions) = network(config), window(config, shift=shift)
    if has_holes:  # of some slower bars the last rows are missing
        positions = positions + positions.sub(shift) // 3 * 2
    dense = Dense(cross_network)
    forecast = dense(x[0].numpy(), positions.tolist())
    with torch.no_grad():
        outputs = cross_network.explain(x, positions)
        outputs_only = cross_network(x, positions)
    np.testing.assert_allclose(outputs_only.mean[0, 0].numpy(), forecast, rtol=0, atol=1e-10)
    torch.testing.assert_close(outputs.outputs.mean, outputs_only.mean, rtol=0, atol=1e-12)
    wanted = dense.rollout(0.5)
    shares = [part.share for part in outputs.parts]
    np.testing.assert_allclose(shares, wanted, rtol=0, atol=1e-10)
    by_bar = outputs.rollout.weights[0, 0].numpy()
    np.testing.assert_allclose(by_bar, dense.by_bar(wanted), rtol=0, atol=1e-10)
    assert by_bar.sum() == pytest.approx(1.0, abs=1e-12)
    last_rows = [matrix[:, -1] for name, matrix in dense.matrices if name != "slower"]
    for sure, rows in zip(outputs.confidence.numpy(), last_rows, strict=True):
        entropy = -(rows * np.log(rows)).sum(1)
        np.testing.assert_allclose(sure, 1 - entropy / math.log(rows.shape[1]), atol=1e-10)


OTHER = replace(SMALL, features=2 * FEATURES, other_symbol="BBBUSDT")
"""It asks another symbol's bars of four of its own."""
EACH = replace(OTHER, frame=1, tokens=7)
"""It asks each of the other symbol's bars."""


class DenseOther(Dense):
    """The same of bars of another symbol, which stand in the second half of each row."""

    def linear(self, name: str, x: Matrix) -> Matrix:
        half = len(x[0]) // 2
        if name == "embed":
            x = x[:, :half]
        elif name == "embed_slower":  # mean and last, each of both symbols
            x = np.concatenate([x[:, half - FEATURES : half], x[:, -FEATURES:]], axis=1)
        return super().linear(name, x)


@pytest.mark.parametrize("config", [OTHER, EACH], ids=["of four", "each"])
@pytest.mark.parametrize("has_holes", [False, True])
def test_another_symbols_bars_are_read_and_explained_as_stored_matrices_say(
    config: CrossConfig, has_holes: bool
) -> None:
    cross_network = network(config)
    positions = window(config)[1]
    x = torch.cat([window(config)[0], window(config)[0].flip(1)], dim=-1)
    if has_holes:
        positions = positions + positions.sub(5) // 3 * 2
    dense = DenseOther(cross_network)
    forecast = dense(x[0].numpy(), positions.tolist())
    with torch.no_grad():
        outputs, outputs_only = cross_network.explain(x, positions), cross_network(x, positions)
    np.testing.assert_allclose(outputs_only.mean[0, 0].numpy(), forecast, rtol=0, atol=1e-10)
    shares = [part.share for part in outputs.parts]
    np.testing.assert_allclose(shares, dense.rollout(0.5), rtol=0, atol=1e-10)
    last_rows = [matrix[:, -1] for name, matrix in dense.matrices if name != "slower"]
    for sure, rows in zip(outputs.confidence.numpy(), last_rows, strict=True):
        entropy = -(rows * np.log(rows)).sum(1)
        np.testing.assert_allclose(sure, 1 - entropy / math.log(rows.shape[1]), atol=1e-10)
    other = [part for part in outputs.parts if part.symbol == "BBBUSDT"]
    assert [part.frame for part in other] == [config.frame] * config.tokens
    assert sum(part.share for part in other) == pytest.approx(0.75)
    assert not any(part.symbol for part in outputs.parts[config.tokens :])


def test_no_bar_reads_a_later_bar_of_the_other_symbol() -> None:
    cross_network, positions = network(EACH), window(EACH)[1]
    x = torch.cat([window(EACH)[0], window(EACH)[0].flip(1)], dim=-1)
    with torch.no_grad():
        before = states(cross_network, x, positions)
        for row in range(EACH.window - EACH.tokens, EACH.window):
            other = x.clone()
            other[0, row, FEATURES:] += 1.0  # of the other symbol's bar alone
            moved = (states(cross_network, other, positions) - before).abs().amax(1) > 0
            assert moved.tolist() == [place >= row for place in range(EACH.window)]


def test_a_layers_ages_and_rows_are_those_of_both_timeframes() -> None:
    cross_network, (x, positions) = network(), window()
    with torch.no_grad():
        attribution, read, *_ = cross_network.attribution_by_layer(x, positions)
    closed = [SMALL.window - 1 - rows[-1] for rows in members(cross_network, x, positions)]
    assert attribution.age.tolist() == [*closed, *range(SMALL.bars - 1, -1, -1)]
    assert float(attribution.rows[:, : -SMALL.bars].abs().max()) == 0.0
    older = [row for rows in members(cross_network, x, positions) for row in rows]
    assert float(read.rows[:, older].sum()) == pytest.approx(2.0)  # its heads look there alone


def members(cross_network: CrossNetwork, x: Tensor, positions: Tensor) -> list[list[int]]:
    dense = Dense(cross_network)
    dense(x[0].numpy(), positions.tolist())
    return dense.members


def states(cross_network: CrossNetwork, x: Tensor, positions: Tensor) -> Tensor:
    """Return the bars above the last layer, [bar, dim]."""
    return cross_network.run(x, positions, None)[0]


@settings(max_examples=25, deadline=None)
@given(
    bars=st.integers(1, 15),
    frame=st.integers(2, 5),
    tokens=st.integers(1, 3),
    kept=st.sampled_from([1.0, 0.6]),
    seed=st.integers(0, 999),
)
def test_a_bar_sees_itself_the_bars_before_it_and_slower_bars_that_have_closed(
    bars: int, frame: int, tokens: int, kept: float, seed: int
) -> None:
    config = replace(SMALL, bars=bars, frame=frame, tokens=tokens)
    cross_network, time = network(config), config.window
    draw = np.random.default_rng(seed)
    grid = np.sort(draw.choice(round(time / kept), time, replace=False)) + seed
    positions, places = torch.from_numpy(grid), grid.tolist()
    x = window(config)[0].requires_grad_()
    tensor = states(cross_network, x, positions)
    closes = [(place // frame + 1) * frame - 1 for place in places]
    newest = sorted({close for close in closes if close <= places[-1]})[-tokens:]
    for bar in range(bars):
        row = time - bars + bar
        (slope,) = torch.autograd.grad(tensor[bar].square().sum(), x, retain_graph=True)
        wanted = {
            at
            for at in range(time)
            if time - bars <= at <= row or (closes[at] in newest and closes[at] <= places[row])
        }
        assert set(slope[0].abs().sum(-1).nonzero()[:, 0].tolist()) == wanted


def test_a_slower_bar_that_is_open_moves_nothing_and_once_it_closes_it_does() -> None:
    model, (x, _) = network(replace(SMALL, bars=1)), window()
    moved = x.clone()
    moved[:, -3:-1] += 1.0  # the two bars before the last
    for shift, is_open in ((-SMALL.window + 3 + 4 * 9, True), (-SMALL.window + 4 + 4 * 9, False)):
        positions = torch.arange(shift, shift + SMALL.window)
        with torch.no_grad():
            same = torch.equal(model(x, positions).mean, model(moved, positions).mean)
        assert same is is_open


def test_a_dead_head_is_named_by_the_row_of_its_confidence() -> None:
    cross_network, (x, positions) = network(), window()
    with torch.no_grad():  # the columns that read head 1
        cross_network.get_parameter("layers.1.2.project_out.weight")[:, 4:] = 0.0
    check = check_network(cross_network.float(), [(x.float(), positions)])
    assert check.faults == ("Layer 3, head 1: it is dead, and moves 0.00 % of its layer's output.",)


def test_each_window_of_a_batch_lies_on_its_own_grid() -> None:
    cross_network, (x, positions) = network(), window()
    pair = torch.stack((positions, positions + 10_001))
    both = cross_network(torch.cat((x, x)), pair).mean
    for at in range(2):
        torch.testing.assert_close(both[at], cross_network(x, pair[at]).mean[0], rtol=0, atol=1e-12)
    assert not torch.allclose(both[0], both[1])


def test_the_clock_reaches_both_timeframes_at_their_closes() -> None:
    config = replace(SMALL, clock=("week",), interval_minutes=60)
    cross_network, (x, positions) = network(config), window(config)
    with torch.no_grad():
        for embed in (cross_network.embed, cross_network.embed_slower):
            embed.weight.zero_()
            embed.bias.zero_()
        (bars, _), (slower, _), *_ = cross_network.enter(x, positions)
    assert cross_network.clock is not None
    last = int(positions[-1])
    closes = [(last + 1) // 4 * 4 - 1 - 4 * back for back in (2, 1, 0)]
    torch.testing.assert_close(slower[0], cross_network.clock(torch.tensor(closes)))
    torch.testing.assert_close(bars[0], cross_network.clock(positions[-7:]))


def test_residual_and_start_layer_are_those_of_the_stored_matrices() -> None:
    cross_network, (x, positions) = network(), window()
    dense = Dense(cross_network)
    dense(x[0].numpy(), positions.tolist())
    for share, lowest in ((0.5, 0), (0.2, 0), (0.7, 1)):
        method = Rollout(residual_weight=share, start_layer=lowest)
        outputs = cross_network.explain(x, positions, method)
        wanted = dense.rollout(share, lowest=lowest)
        np.testing.assert_allclose([part.share for part in outputs.parts], wanted, atol=1e-10)
        np.testing.assert_allclose(outputs.rollout.weights[0, 0], dense.by_bar(wanted), atol=1e-10)


def test_the_gradient_weighs_entries_of_all_three_blocks() -> None:
    cross_network, (x, positions) = network(), window()
    dense = Dense(cross_network)
    dense(x[0].numpy(), positions.tolist())
    trace = cross_network.trace(x, positions)
    slopes = torch.autograd.grad(trace.outputs.mean[0, 0, 1], trace.attended)
    for at, (read, slope) in enumerate(zip(trace.attending, slopes, strict=True)):
        name, matrix = dense.matrices[at]
        assert read.value is not None
        moved = (slope[0] @ read.value[0].mT).detach().numpy()
        fused = np.maximum(moved * matrix, 0.0).mean(0)
        total = fused.sum(1, keepdims=True)
        values = np.eye(len(fused), fused.shape[1]) if name != "read" else np.zeros_like(fused)
        dense.matrices[at] = (
            name,
            np.where(total > 0, fused / np.where(total, total, 1), values)[None],
        )
    outputs = cross_network.explain(x, positions, Rollout(fusion="gradient", horizon=7))
    wanted = dense.rollout(0.5)
    np.testing.assert_allclose([part.share for part in outputs.parts], wanted, atol=1e-10)
    assert float(outputs.rollout.weights.sum()) == pytest.approx(1.0, abs=1e-12)
