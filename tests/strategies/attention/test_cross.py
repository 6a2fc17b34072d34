"""Cross-attention against dense matrices in float64: values, gradients, entropy, rollout."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tracepaper.strategies.attention import (
    Scores,
    StreamRead,
    backends,
    closed_keys,
    cross_attend,
    cross_confidence,
    stream_rollout,
)
from tracepaper.strategies.errors import AttentionInvalid

torch.set_num_threads(1)
DIM = 4


def drawn(*lengths: int, seed: int = 0, heads: int = 2, batch: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(batch, heads, length, DIM, generator=generator, dtype=torch.float64)
        for length in lengths
    ]


def dense(query: Tensor, key: Tensor, seen: Tensor | None) -> Tensor:
    """Return the matrices [batch, head, query, key]; a row that sees nothing is 0."""
    scores = query @ key.mT / math.sqrt(DIM)
    if seen is None:
        return scores.softmax(dim=-1)
    hidden = torch.arange(key.shape[2]) >= seen.view(-1, query.shape[2])[:, None, :, None]
    return scores.masked_fill(hidden, -torch.inf).softmax(dim=-1).nan_to_num(0.0)


@settings(max_examples=30, deadline=None)
@given(
    queries=st.integers(1, 9),
    keys=st.integers(1, 12),
    kind=st.sampled_from(["all", "shared", "each"]),
    entries=st.sampled_from([1, 50, 1 << 24]),
    seed=st.integers(0, 99),
)
def test_what_is_read_and_its_gradients_are_those_of_the_matrix(
    queries: int, keys: int, kind: str, entries: int, seed: int
) -> None:
    draw = torch.Generator().manual_seed(seed)
    shape = {"all": None, "shared": (queries,), "each": (2, queries)}[kind]
    seen = None if shape is None else torch.randint(0, keys + 1, shape, generator=draw)
    query, key, value = given_ = [x.requires_grad_() for x in drawn(queries, keys, keys, seed=seed)]
    weights = torch.randn(2, 2, queries, DIM, generator=draw, dtype=torch.float64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(backends.CHUNK_ENTRIES, "cpu", entries)  # down to a block of one query
        output, logsumexp = cross_attend(query, key, value, seen)
        slopes = torch.autograd.grad((output * weights).sum(), given_)
    matrix = dense(query, key, seen)
    wanted = matrix @ value
    torch.testing.assert_close(output, wanted, rtol=0, atol=1e-12)
    expected = torch.autograd.grad((wanted * weights).sum(), given_)
    for slope, one in zip(slopes, expected, strict=True):
        torch.testing.assert_close(slope, one.nan_to_num(0.0), rtol=0, atol=1e-12)
    sees = matrix.sum(dim=-1) > 0
    assert torch.equal(torch.isneginf(logsumexp), ~sees)


def test_no_query_reads_a_key_that_has_not_closed() -> None:
    query_closes = torch.tensor([60, 120, 180, 240])  # one stream a minute
    key_closes = torch.tensor([0, 100, 120, 120, 239, 300])  # one whenever something happened
    seen = closed_keys(query_closes, key_closes)
    assert seen.tolist() == [1, 4, 4, 5]

    def leaks(seen: Tensor) -> bool:
        query, key, value = drawn(4, 6, 6)
        before = cross_attend(query, key, value, seen).output
        for row, close in enumerate(query_closes.tolist()):
            later = key_closes > close
            keys, values = (torch.where(later[:, None], x + 1.0, x) for x in (key, value))
            after = cross_attend(query, keys, values, seen).output
            if not torch.equal(after[:, :, row], before[:, :, row]):
                return True
        return False

    assert not leaks(seen)
    assert leaks((seen + 1).clamp_max(6))  # one key of the future, planted


def test_memory_holds_some_queries_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(backends.CHUNK_ENTRIES, "cpu", 2 * 2 * 64 * 3)
    sizes: list[int] = []
    softmax = torch.logsumexp

    def counted(scores: Tensor, dim: int) -> Tensor:
        sizes.append(scores.numel())
        return softmax(scores, dim=dim)

    monkeypatch.setattr(torch, "logsumexp", counted)
    query, key = drawn(100, 64)
    cross_attend(query, key, key, torch.full((100,), 64))
    assert max(sizes) == 2 * 2 * 64 * 3  # three queries of each head
    assert len(sizes) == 34


def test_confidence_is_that_of_the_rows() -> None:
    query, key = drawn(5, 7)
    seen = torch.tensor([0, 1, 2, 7, 5])
    logsumexp = cross_attend(query, key, key, seen).logsumexp
    entropy = torch.special.entr(dense(query, key, seen)).sum(dim=-1)
    wanted = 1 - entropy / seen.double().clamp_min(2).log()
    wanted[:, :, :2] = 0.0  # nothing to choose
    found = cross_confidence(query, key, logsumexp, range(5), seen)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)
    some = cross_confidence(query, key, logsumexp, [3], seen)
    torch.testing.assert_close(some, wanted[:, :, 3:4], rtol=0, atol=1e-12)
    whole = cross_attend(query, key, key).logsumexp
    entropy = torch.special.entr(dense(query, key, None)).sum(dim=-1)
    torch.testing.assert_close(
        cross_confidence(query, key, whole, range(5)),
        1 - entropy / math.log(7),
        rtol=0,
        atol=1e-12,
    )


def read(into: int, of: int, seed: int, *, by_gradient: bool = False) -> StreamRead:
    """Return a read between streams of 4, 7 and 3 tokens; what reads stream 2 sees part of it."""
    lengths = (4, 7, 3)
    query, key, value, gradient = drawn(
        lengths[into], lengths[of], lengths[of], lengths[into], seed=seed
    )
    seen = torch.arange(lengths[into]) % (lengths[of] + 1) if of == 2 else None
    logsumexp = cross_attend(query, key, value, seen).logsumexp
    scores = Scores(causal=False, seen=seen)
    if by_gradient:
        return StreamRead(into, of, query, key, logsumexp, scores, value, gradient)
    return StreamRead(into, of, query, key, logsumexp, scores)


STEPS = [
    [read(0, 0, 1), read(1, 1, 2), read(2, 2, 3)],  # each stream reads itself
    [read(0, 1, 4), read(1, 0, 5)],  # two read each other, as they were
    [read(0, 1, 6), read(0, 2, 7)],  # one reads two
]
BY_GRADIENT = [
    [read(0, 0, 1, by_gradient=True), read(1, 1, 2)],
    [read(0, 1, 4, by_gradient=True), read(0, 2, 7, by_gradient=True)],
]


def dense_rollout(steps: list[list[StreamRead]], share: float) -> Tensor:
    """Return the product over all 14 tokens of all streams together, [batch, token, token]."""
    places = [slice(0, 4), slice(4, 11), slice(11, 14)]
    product = torch.eye(14, dtype=torch.float64).expand(2, 14, 14)
    for step in steps:
        layer = torch.eye(14, dtype=torch.float64).repeat(2, 1, 1)
        for into in {one.into for one in step}:
            layer[:, places[into], places[into]] *= share
        for one in step:
            matrix = dense(one.query, one.key, one.scores.seen)
            fused = matrix.mean(dim=1)
            if one.gradient is not None and one.value is not None:
                fused = (matrix * (one.gradient @ one.value.mT)).clamp_min(0).mean(dim=1)
                fused = fused / fused.sum(dim=-1, keepdim=True).clamp_min(1e-300)
            each = (1 - share) / sum(other.into == one.into for other in step)
            layer[:, places[one.into], places[one.of]] += each * fused
            blind = torch.diag_embed((fused.sum(dim=-1) == 0).double())
            layer[:, places[one.into], places[one.into]] += each * blind
        product = layer @ product
    return product


@pytest.mark.parametrize("steps", [STEPS, BY_GRADIENT], ids=["attention", "gradient"])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.8])
@pytest.mark.parametrize("stream", [0, 1, 2])
def test_the_rollout_over_streams_is_the_product_over_all_their_tokens(
    steps: list[list[StreamRead]], share: float, stream: int
) -> None:
    lengths = (4, 7, 3)
    rows = range(lengths[stream])
    found = torch.cat(
        stream_rollout(steps, lengths, rows, stream=stream, residual_weight=share), dim=-1
    )
    start = sum(lengths[:stream])
    wanted = dense_rollout(steps, share)[:, start : start + lengths[stream]]
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)
    torch.testing.assert_close(found.sum(-1), torch.ones_like(found[..., 0]), rtol=0, atol=1e-12)


def test_a_row_that_no_gradient_asks_for_keeps_itself() -> None:
    found = read(0, 1, 4, by_gradient=True)
    assert found.value is not None
    assert found.gradient is not None
    slope = found.gradient.clone()
    slope[:, :, 2] = -1.0  # against every value
    found = found._replace(value=found.value.abs(), gradient=slope)
    own, other = stream_rollout([[found]], (4, 7, 3), [2, 3])[:2]
    assert own[:, 0, 2].tolist() == [1.0, 1.0]
    assert float(other[:, 0].sum()) == 0.0
    wanted = dense_rollout([[found]], 0.5)[:, 2:4, :11]
    torch.testing.assert_close(torch.cat((own, other), dim=-1), wanted, rtol=0, atol=1e-12)


def test_a_row_that_does_not_sum_to_one_is_found() -> None:
    good = read(0, 1, 4)
    stream_rollout([[good]], (4, 7, 3), [0])
    for wrong in (
        good.logsumexp / math.log(2),  # another base
        good.logsumexp + 1e-9,
        cross_attend(good.query, good.key, good.key, torch.full((4,), 6)).logsumexp,
    ):
        with pytest.raises(AttentionInvalid, match=r"sums to|attention mass"):
            stream_rollout([[good._replace(logsumexp=wrong)]], (4, 7, 3), [3])


class Reader(nn.Module):
    """One layer that reads a second stream of (time, value) by the first one's times."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(8, 16), nn.Linear(8, 16)

    def forward(self, times: Tensor, others: Tensor, values: Tensor, seen: Tensor) -> StreamRead:
        codes = [self._code(x) for x in (times, others)]
        query, key = self.query(codes[0])[None, None], self.key(codes[1])[None, None]
        self.read, logsumexp = cross_attend(query, key, values.expand(-1, -1, -1, 16), seen)
        return StreamRead(0, 1, query, key, logsumexp, Scores(causal=False, seen=seen))

    @staticmethod
    def _code(times: Tensor) -> Tensor:
        angles = times[:, None] * torch.tensor([0.02, 0.05, 0.11, 0.23])
        return torch.cat((angles.sin(), angles.cos()), dim=-1)


def test_a_trained_layer_is_explained_by_the_key_that_it_learned_to_read() -> None:
    """The truth is the other stream's value of three events before the newest closed one."""
    torch.manual_seed(0)
    others = torch.arange(0, 128, 4)
    times = torch.arange(30, 120, 6)
    seen = closed_keys(times, others)
    asked = seen - 4
    reader = Reader()
    optimiser = torch.optim.Adam(reader.parameters(), lr=0.03)
    for _ in range(250):
        values = torch.randn(1, 1, len(others), 1)
        reader(times.float(), others.float(), values, seen)
        loss = (reader.read[0, 0, :, 0] - values[0, 0, asked, 0]).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    read_ = reader(times.float(), others.float(), torch.randn(1, 1, len(others), 1), seen)
    detached = read_._replace(
        query=read_.query.detach(), key=read_.key.detach(), logsumexp=read_.logsumexp.detach()
    )
    own, other = stream_rollout([[detached]], (len(times), len(others)), range(len(times)))
    assert torch.equal(other[0].argmax(dim=-1), asked)
    torch.testing.assert_close(own[0].diagonal(), torch.full((len(times),), 0.5))


@pytest.mark.parametrize(
    ("seen", "words"),
    [
        (torch.ones(4), "one whole number a query"),
        (torch.ones(3, dtype=torch.int64), "one whole number a query"),
        (torch.full((4,), 8), "from 0 to 7"),
        (torch.full((4,), -1), "from 0 to 7"),
    ],
)
def test_keys_that_are_not_there_cannot_be_seen(seen: Tensor, words: str) -> None:
    query, key = drawn(4, 7)
    with pytest.raises(AttentionInvalid, match=words):
        cross_attend(query, key, key, seen)


def test_what_does_not_fit_is_one_sentence() -> None:
    good = read(0, 1, 4)
    for steps, rows, words in (
        ([], [0], "no layer to roll out"),
        ([[]], [0], "no layer to roll out"),
        ([[good._replace(of=2)]], [0], "stream 2 is read with 7 tokens and has 3"),
        ([[good._replace(into=5)]], [0], "stream 5 asks with 4 tokens and has no"),
        ([[good]], [9], "out of range"),
    ):
        with pytest.raises(AttentionInvalid, match=words):
            stream_rollout(steps, (4, 7, 3), rows)
    with pytest.raises(AttentionInvalid, match="no stream 3"):
        stream_rollout([[good]], (4, 7, 3), [0], stream=3)
    with pytest.raises(AttentionInvalid, match="do not ascend"):
        closed_keys(torch.tensor([1]), torch.tensor([2, 1]))
    with pytest.raises(AttentionInvalid, match="whole numbers"):
        closed_keys(torch.tensor([1.0]), torch.tensor([2]))
    gradient = good._replace(gradient=good.query)
    with pytest.raises(AttentionInvalid, match="needs its value"):
        stream_rollout([[gradient]], (4, 7, 3), [0])
    scores = Scores(causal=False, seen=torch.ones(9, dtype=torch.int64))
    with pytest.raises(AttentionInvalid, match=r"seen is torch\.int64 \[9\]"):
        stream_rollout([[good._replace(scores=scores)]], (4, 7, 3), [0])
