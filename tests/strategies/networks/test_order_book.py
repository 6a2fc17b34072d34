"""The network of order books: equal to a dense one in float64, causal, and mapped exactly."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from depth_cases import depth, walk
from numpy.typing import NDArray
from torch import Tensor, nn

from tracepaper.strategies.errors import AttentionInvalid
from tracepaper.strategies.networks import grid
from tracepaper.strategies.networks.flash import each_block
from tracepaper.strategies.networks.order_book import OrderBookConfig, OrderBookNetwork
from tracepaper.strategies.order_book import (
    COLUMNS,
    Books,
    books_of,
    check_books,
    joined,
    tokens_of,
)

BOOKS, LEVELS = 9, 3
CONFIG = OrderBookConfig(levels=LEVELS, window=12, dim=16, layers=3, heads=2, horizons=(1, 4))
Dense = NDArray[np.float64]


def network(config: OrderBookConfig = CONFIG, *, seed: int = 3) -> OrderBookNetwork:
    """Return a network in float64 whose attention is far from even."""
    torch.manual_seed(seed)
    net = OrderBookNetwork(config).double().eval()
    with torch.no_grad():
        for name, weight in net.named_parameters():
            if "project_in" in name:
                weight.mul_(4.0)
    return net


def tokens(books: int = BOOKS, *, seed: int = 5, config: OrderBookConfig = CONFIG) -> Tensor:
    torch.manual_seed(seed)
    return torch.randn(books, config.tokens, len(COLUMNS), dtype=torch.float64)


def plain(x: Tensor) -> Dense:
    values: Dense = x.detach().numpy()
    return values


def normed(x: Dense, norm: nn.LayerNorm) -> Dense:
    spread = np.sqrt(x.var(axis=-1, keepdims=True) + norm.eps)
    centred: Dense = (x - x.mean(axis=-1, keepdims=True)) / spread
    return centred * plain(norm.weight) + plain(norm.bias)


def linear(x: Dense, layer: nn.Linear) -> Dense:
    return x @ plain(layer.weight).T + plain(layer.bias)


def turned(x: Dense, place: int) -> Dense:
    """Return one head's vector as RoPE turns it at *place*, pair by pair."""
    half = len(x) // 2
    rotated = np.empty_like(x)
    for pair in range(half):
        angle = place * 10_000.0 ** (-pair / half)
        first, second = x[pair], x[pair + half]
        # Every network here rounds these tables to float32; that is a choice, no error.
        cosine, sine = float(np.float32(math.cos(angle))), float(np.float32(math.sin(angle)))
        rotated[pair] = first * cosine - second * sine
        rotated[pair + half] = second * cosine + first * sine
    return rotated


def dense(net: OrderBookNetwork, given: Tensor) -> tuple[Dense, Dense]:
    """Return log probabilities and the map by whole token x token matrices, one head at a time.

    Tokens are numbered book by book; a matrix entry is nought where an attention cannot look.
    """
    config = net.config
    books, count = given.shape[:2]
    total = books * count
    x = linear(plain(given), net.embed) + plain(net.place)  # [book, token, dim]
    x = x.reshape(total, -1)
    book, token = np.divmod(np.arange(total), count)
    rollout = np.eye(total)
    for levels, time in zip(each_block(net.over_levels), each_block(net.over_time), strict=True):
        for attention in (levels, time):
            if over_time := attention is time:
                visible = (token[:, None] == token) & (book[:, None] >= book)
            else:
                visible = book[:, None] == book
            mixed = linear(normed(x, attention.attention_norm), attention.project_in)
            parts = mixed.reshape(total, 3, config.heads, -1)
            read = np.zeros((total, config.heads, parts.shape[-1]))
            mean = np.zeros((total, total))
            for head in range(config.heads):
                query, key, value = (parts[:, part, head] for part in range(3))
                if over_time:
                    query = np.array([turned(row, at) for row, at in zip(query, book, strict=True)])
                    key = np.array([turned(row, at) for row, at in zip(key, book, strict=True)])
                scores = query @ key.T / math.sqrt(query.shape[-1])
                scores = np.where(visible, scores, -np.inf)
                matrix = np.exp(scores - scores.max(axis=1, keepdims=True))
                matrix /= matrix.sum(axis=1, keepdims=True)
                read[:, head] = matrix @ value
                mean += matrix / config.heads
            x = x + linear(read.reshape(total, -1), attention.project_out)
            rollout = (0.5 * np.eye(total) + 0.5 * mean) @ rollout
        assert time.mlp is not None
        assert time.mlp_norm is not None
        hidden = linear(normed(x, time.mlp_norm), time.mlp.rise)
        gelu = np.vectorize(lambda v: 0.5 * v * (1 + math.erf(v / math.sqrt(2))))
        x = x + linear(gelu(hidden), time.mlp.fall)
    newest = np.where(book == books - 1, 1.0 / count, 0.0)
    pooled = normed(x, net.norm).reshape(books, count, -1).mean(axis=1)
    logits = linear(pooled, net.direction).reshape(books, len(config.horizons), 3)
    shares = np.exp(logits - logits.max(axis=-1, keepdims=True))
    shares /= shares.sum(axis=-1, keepdims=True)
    return shares, (newest @ rollout).reshape(books, count)


@pytest.mark.parametrize("at_once", [1, 7, 8_192])
def test_answer_and_map_are_those_of_dense_matrices(
    monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr(grid, "_TOKENS_AT_ONCE", at_once)
    order_book_network, given = network(), tokens()
    shares, weights = dense(order_book_network, given)
    explained = order_book_network.explain(given)
    assert np.abs(plain(explained.probabilities) - shares[-1]).max() < 1e-13
    assert np.abs(plain(explained.weights) - weights).max() < 1e-13
    assert abs(float(explained.weights.sum()) - 1) < 1e-13
    assert explained.l1_error < 1e-13
    assert float(explained.weights.max()) > 3 / given[..., 0].numel()  # it is no even map
    in_one_pass = order_book_network(given[None])[0].softmax(dim=-1)
    assert np.abs(plain(in_one_pass) - shares).max() < 1e-13


def test_no_answer_depends_on_a_later_book() -> None:
    order_book_network, given = network(), tokens()
    before = order_book_network(given[None])
    for at in range(1, BOOKS):
        changed = given.clone()
        changed[at:] = torch.randn_like(changed[at:])
        after = order_book_network(changed[None])
        assert torch.equal(before[:, :at], after[:, :at])
        assert not torch.allclose(before[:, at:], after[:, at:])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_token_that_is_no_number_is_refused(bad: float) -> None:
    given = tokens()
    given[4, 2, 1] = bad
    for ask in (network().explain, lambda x: network()(x[None])):
        with pytest.raises(AttentionInvalid, match="NaN or infinite; look for the book"):
            ask(given)


def test_windows_and_levels_of_another_size_are_refused() -> None:
    for given in (tokens(13), tokens()[:, :4], tokens()[..., :2], tokens()[:0]):
        with pytest.raises(AttentionInvalid, match="takes up to 12 books of 6 tokens by 7 columns"):
            network().explain(given)


# ---------------------------------------------------------------- tokens


def books(count: int = 20) -> Books:
    return books_of(list(walk(count, levels=5)), 5)


def test_tokens_hold_what_their_columns_say() -> None:
    first = depth([(1_000, 8), (998, 2)], [(1_002, 4)], 60_000, age_ms=1_000)
    later = depth([(1_002, 16), (998, 2)], [(1_004, 4), (1_008, 1)], 61_000, age_ms=0)
    tokens = tokens_of(books_of([first, later], 2)).reshape(2, 2, 2, -1)
    named = {name: tokens[..., place] for place, name in enumerate(COLUMNS)}
    assert named["absent"][0].tolist() == [[0, 0], [0, 1]]
    assert named["distance"][0, 0] == pytest.approx([-1e3 / 1001, -3e3 / 1001], rel=1e-5)
    assert named["distance"][1, 1] == pytest.approx([1e3 / 1003, 5e3 / 1003], rel=1e-5)
    mean = (math.log(8) + math.log(2) + math.log(4)) / 3
    assert named["size"][0, 0] == pytest.approx([math.log(8) - mean, math.log(2) - mean], abs=1e-6)
    assert named["size"][0, 1, 1] == 0
    assert named["share"][0].tolist() == [pytest.approx([0.8, 1.0]), pytest.approx([1.0, 1.0])]
    assert named["grown"][0].tolist() == [[0, 0], [0, 0]]
    assert named["grown"][1].tolist() == [pytest.approx([math.log(2), 0]), [0, 0]]
    assert named["moved"][1] == pytest.approx(np.full((2, 2), 10.0))  # clipped: 19.98 basis points
    assert named["age"][:, 0, 0] == pytest.approx([math.log(2), 0.0])


def test_a_row_depends_on_its_book_and_the_one_before() -> None:
    some = books()
    whole = tokens_of(some)
    for at in (1, 7, 19):
        assert np.array_equal(whole[at], tokens_of(some.part(at - 1, at + 1))[1])


def test_scales_cancel() -> None:
    some = books()
    other = Books(some.seen_ms, some.market_ms, some.price * 100, some.size * 1_000)
    assert np.abs(tokens_of(other) - tokens_of(some)).max() < 1e-5


def test_parts_joined_are_the_whole() -> None:
    some = books()
    again = joined([some.part(0, 7), some.part(7, 20)])
    check_books(again, "here")
    assert np.array_equal(tokens_of(again), tokens_of(some))
    assert again.shallower(2).levels == 2
