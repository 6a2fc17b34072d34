"""Explanations of other attention: grouped queries, caches, soft caps, sinks, cross-attention.

Beside what ``attend`` knows: grouped queries (several query heads share a key head), queries that
are fewer than the keys (a step of decoding over a cache), padded batches of sequences of several
lengths, scores with a soft cap and sinks. ``A_ij = exp(score_ij - lse_i)`` is rebuilt some rows at
once and never stored, as in docs/attention.md, A4; a sink takes the rest of a row's mass.

Streams have lengths and clocks of their own, so what a query may see of another stream is a number
of leading keys, ``seen``: those that have closed by the query's own close. Each head's matrix
[query, key] is row-stochastic, so a rollout goes through layers that cross streams as through any:
``w_into`` keeps its share ρ, and ``(1-ρ)·w_intoᵀA`` moves to the stream that was read. A decision's
row is then one row over all streams, which sums to 1. No matrix is stored.

The rule is docs/attention.md, A32.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, NamedTuple

import torch

from tracepaper.strategies.attention.backends import Chunked, chunk_entries
from tracepaper.strategies.attention.checks import (
    Layer,
    check_products,
    check_rows,
    check_share,
    check_tensors,
    exact,
    explanation,
    is_finite,
    working_type,
)
from tracepaper.strategies.attention.entropy import row_confidence
from tracepaper.strategies.attention.kernels import (
    Attention,
    attend,
    check_inputs,
    refuse_overflow,
    square_attention,
)
from tracepaper.strategies.attention.masks import Mask, whole
from tracepaper.strategies.attention.rollout_kernels import rows_with_weight
from tracepaper.strategies.attention.tiles import check_mass, mass_tolerance
from tracepaper.strategies.errors import AttentionInvalid

if TYPE_CHECKING:
    from torch import Tensor

_MASS_TOLERANCE: Final = 1e-3
_AXES: Final = 4


@dataclass(frozen=True)
class Scores:
    """How a layer scores its pairs; as it stands, plain causal attention.

    Fewer queries than keys stand at the end of each sequence, as a step of decoding has them: query
    i of n is at position ``length - n + i``. ``first`` [batch] says where the first query is
    instead, among the keys: 0 for whole sequences that are padded at their end, which have to say
    so. Padding at the start, windows that look ahead and stored masks cannot be expressed.
    """

    causal: bool = True
    window: int | None = None
    """Keys that a causal query sees, its own included; None for all before it."""
    scale: float | None = None
    """The factor of q·k; None is ``dim ** -0.5``."""
    softcap: float | None = None
    """c of ``c · tanh(score / c)``; None for none."""
    sinks: Tensor | None = None
    """A score [head] that every row of a head has beside its keys', where mass is lost."""
    lengths: Sequence[int] | Tensor | None = None
    """Keys of each batch element; those behind are padding. None for all."""
    first: Sequence[int] | Tensor | None = None
    seen: Tensor | None = None
    """Leading keys that each query sees at most, int64 [query] or [batch, query]; None for all."""


class ScoredRows(NamedTuple):
    """Some rows of every matrix: where they begin, and their scores, hidden pairs at -inf."""

    rows: slice
    scores: Tensor  # [batch, head, row, key]


@explanation
def score_logsumexp(query: Tensor, key: Tensor, scores: Scores = Scores()) -> Tensor:
    """Return the natural logsumexp [batch, head, query] of the scores, sinks included.

    *query* is [batch, head, query, dim], *key* [batch, key head, key, dim], the heads a multiple of
    the key heads. A row that sees no key and has no sink is -inf. Raises ``AttentionInvalid`` for
    tensors that do not fit together.
    """
    _check(query, key, scores)
    found = []
    for part in _parts(query, key, scores):
        total = part.scores.logsumexp(dim=-1)
        if scores.sinks is not None:
            total = torch.logaddexp(total, _sinks(scores, total))
        found.append(total)
    return torch.cat(found, dim=2)


@explanation
def carry_rows(
    query: Tensor,
    key: Tensor,
    logsumexp: Tensor,
    weights: Tensor,
    scores: Scores = Scores(),
) -> Tensor:
    """Return each head's ``wᵀA`` [batch, head, row, key] of *weights* [batch, row, query].

    Rows lose what their sinks take, and keep the rest: each row's mass with its sink's is checked.
    Raises ``AttentionInvalid`` as ``score_logsumexp``, and for a logsumexp of other scores.
    """
    _check_weights(weights, query)
    kind = working_type(query)
    result = query.new_zeros(
        query.shape[0], query.shape[1], weights.shape[1], key.shape[2], dtype=kind
    )
    for part, entries in score_entries(query, key, logsumexp, scores):
        own = weights[:, None, :, part.rows].to(kind)  # [batch, 1, row, query]
        asked = (own != 0).any(dim=2)  # [batch, 1, query]
        _check_rows(entries, logsumexp[:, :, part.rows].to(kind), scores, asked)
        # What is not asked for may have a logsumexp of anything, as padding has.
        result += own @ entries.masked_fill(~asked[..., None], 0.0)
    return result


@explanation
def score_entropy(
    query: Tensor,
    key: Tensor,
    logsumexp: Tensor,
    scores: Scores = Scores(),
) -> Tensor:
    """Return the entropy in nats of every row, [batch, head, query]; a sink is an outcome as well.

    Raises ``AttentionInvalid`` as ``carry_rows``.
    """
    found = []
    for part, entries in score_entries(query, key, logsumexp, scores):
        own = logsumexp[:, :, part.rows].to(entries.dtype)
        asked = ~torch.isneginf(part.scores).all(dim=-1)
        if scores.sinks is not None:
            asked = asked | torch.isfinite(_sinks(scores, own))
        _check_rows(entries, own, scores, asked)
        entropy = torch.special.entr(entries).sum(dim=-1)
        if scores.sinks is not None:
            entropy = entropy + torch.special.entr((_sinks(scores, own) - own).exp())
        found.append(entropy)
    return torch.cat(found, dim=2)


@explanation
def score_rollout(
    layers: Sequence[tuple[Tensor, Tensor, Tensor]],
    weights: Tensor,
    scores: Scores = Scores(),
    *,
    residual_weight: float = 0.5,
) -> Tensor:
    """Return *weights* [batch, row, time] carried down through *layers*, rows normalised.

    *layers* are query, key and logsumexp, the first layer first. Only the last one may have fewer
    queries than keys (a step of decoding): weights are then over its queries. Raises
    ``AttentionInvalid`` where a layer below has not a query for every key.
    """
    check_share(residual_weight, "residual_weight")
    check_tensors(weights=weights)
    if not layers:
        raise AttentionInvalid("There is no layer to roll out; give at least one.")
    for query, key, logsumexp in reversed(layers):
        check_tensors(query=query)
        if weights.shape[2] != query.shape[2]:
            raise AttentionInvalid(
                f"A layer has {query.shape[2]} queries for {weights.shape[2]} bars above it; give "
                "every layer but the last one a query for each key."
            )
        moved = carry_rows(query, key, logsumexp, weights, scores).mean(dim=1)
        own = torch.zeros_like(moved)
        at = _first(query, key, scores)[:, None] + torch.arange(
            query.shape[2], device=query.device
        )  # [batch, query]
        inside = (at >= 0) & (at < key.shape[2])
        places = at.clamp(0, key.shape[2] - 1)[:, None].expand(-1, weights.shape[1], -1)
        own.scatter_add_(2, places, weights.to(own.dtype) * inside[:, None])
        weights = residual_weight * own + (1.0 - residual_weight) * moved
    total = weights.sum(dim=-1, keepdim=True)
    return weights / total.clamp_min(torch.finfo(total.dtype).tiny)


def score_entries(
    query: Tensor, key: Tensor, logsumexp: Tensor, scores: Scores
) -> Iterator[tuple[ScoredRows, Tensor]]:
    """Yield the rows with their probabilities; a row without any mass is zero."""
    _check(query, key, scores)
    check_tensors(logsumexp=logsumexp)
    if logsumexp.shape != query.shape[:3]:
        raise AttentionInvalid(
            f"The logsumexp is {list(logsumexp.shape)} for queries {list(query.shape)}; give one "
            "number a head and query."
        )
    for part in _parts(query, key, scores):
        own = logsumexp[:, :, part.rows, None].to(part.scores.dtype)
        entries = (part.scores - own).exp()
        yield part, entries.masked_fill(torch.isneginf(part.scores), 0.0)


def _parts(query: Tensor, key: Tensor, scores: Scores) -> Iterator[ScoredRows]:
    """Yield the scores [batch, head, row, key] of some rows at once."""
    kind = working_type(query)
    batch, heads, count, dim = query.shape
    keys = key.to(kind).repeat_interleave(heads // key.shape[1], dim=1)
    factor = dim**-0.5 if scores.scale is None else scores.scale
    lengths = _lengths(key, scores)
    first = _first(query, key, scores)
    places = torch.arange(key.shape[2], device=key.device)
    rows = max(1, chunk_entries(query.device) // (batch * heads * key.shape[2]))
    for start in range(0, count, rows):
        part = slice(start, min(count, start + rows))
        found = factor * query[:, :, part].to(kind) @ keys.mT
        if scores.softcap is not None:
            found = scores.softcap * torch.tanh(found / scores.softcap)
        hidden = (places >= lengths[:, None])[:, None]  # [batch, 1, key]
        at = first[:, None] + torch.arange(part.start, part.stop, device=key.device)
        age = at[:, :, None] - places  # [batch, row, key]
        if scores.causal:
            hidden = hidden | (age < 0)
        if scores.window is not None:
            hidden = hidden | (age >= scores.window)
        if scores.seen is not None:
            own = scores.seen.to(places.device).expand(batch, count)[:, part, None]
            hidden = hidden | (places >= own)
        yield ScoredRows(part, found.masked_fill(hidden[:, None], -torch.inf))


def _lengths(key: Tensor, scores: Scores) -> Tensor:
    if scores.lengths is None:
        return torch.full((len(key),), key.shape[2], device=key.device)
    return torch.as_tensor(scores.lengths, device=key.device)


def _first(query: Tensor, key: Tensor, scores: Scores) -> Tensor:
    """Return the position [batch] of each element's first query."""
    if scores.first is None:
        return _lengths(key, scores) - query.shape[2]
    return torch.as_tensor(scores.first, device=key.device)


def _sinks(scores: Scores, like: Tensor) -> Tensor:
    """Return the sinks [1, head, 1] in the type of *like*."""
    assert scores.sinks is not None
    return scores.sinks.to(like)[None, :, None]


def _check_rows(entries: Tensor, logsumexp: Tensor, scores: Scores, asked: Tensor) -> None:
    """Raise unless each row that is asked for sums to 1 with its sink."""
    mass = entries.sum(dim=-1)
    if scores.sinks is not None:
        mass = mass + (_sinks(scores, logsumexp) - logsumexp).exp()
    wrong = ~((mass - 1.0).abs() <= _MASS_TOLERANCE) & asked
    if bool(wrong.any()):
        raise AttentionInvalid(
            f"A row sums to {float(mass[wrong][0]):.4g} instead of 1; give the natural logsumexp "
            "of these queries and keys, with their scale, window, lengths, cap and sinks."
        )


def _check(query: Tensor, key: Tensor, scores: Scores) -> None:
    """Raise ``AttentionInvalid`` for tensors and scores that do not fit together."""
    check_tensors(query=query, key=key)
    if not isinstance(scores, Scores):
        raise AttentionInvalid(f"scores is a {type(scores).__name__}; give Scores(...).")
    if query.ndim != _AXES or key.ndim != _AXES or not query.numel() or not key.numel():
        raise AttentionInvalid(
            f"query {list(query.shape)} and key {list(key.shape)} must be [batch, head, time, dim] "
            "and hold at least one number."
        )
    if query.shape[0] != key.shape[0] or query.shape[3] != key.shape[3]:
        raise AttentionInvalid(
            f"query {list(query.shape)} and key {list(key.shape)} must agree in batch and dim."
        )
    if query.shape[1] % key.shape[1]:
        raise AttentionInvalid(
            f"{query.shape[1]} query heads cannot share {key.shape[1]} key heads alike; give a "
            "multiple."
        )
    if query.dtype != key.dtype or not query.is_floating_point():
        raise AttentionInvalid(
            f"query is {query.dtype} and key {key.dtype}; give one floating point type."
        )
    _check_numbers(query, key, scores)
    check_products(query, key, query.shape[3] ** -0.5 if scores.scale is None else scores.scale)


def _check_numbers(query: Tensor, key: Tensor, scores: Scores) -> None:
    if scores.window is not None and whole(scores.window, "The window's bars") < 1:
        raise AttentionInvalid(f"window is {scores.window}; it must be above 0.")
    if scores.window is not None and not scores.causal:
        raise AttentionInvalid(
            "A window looks back from a causal query; one to both sides cannot be expressed, so "
            "leave causal=True or drop the window."
        )
    for name in ("scale", "softcap"):
        value = getattr(scores, name)
        if value is not None and not (isinstance(value, (int, float)) and 0 < value < math.inf):
            raise AttentionInvalid(f"{name} is {value!r}; it must be a finite number above 0.")
    if scores.sinks is not None:
        check_tensors(sinks=scores.sinks)
        if scores.sinks.shape != query.shape[1:2]:
            raise AttentionInvalid(
                f"The sinks are {list(scores.sinks.shape)} for {query.shape[1]} heads; give one a "
                "head."
            )
        if not bool((torch.isfinite(scores.sinks) | torch.isneginf(scores.sinks)).all()):
            raise AttentionInvalid("A sink is NaN or infinite; give -inf where a head has none.")
    for name in ("lengths", "first"):
        _check_whole(getattr(scores, name), name, len(query))
    check_seen(scores.seen, query)
    lengths = _lengths(key, scores)
    if not bool(((lengths >= 1) & (lengths <= key.shape[2])).all()):
        raise AttentionInvalid(f"Each of lengths must be from 1 to {key.shape[2]}.")
    _check_places(query, key, scores)


def _check_places(query: Tensor, key: Tensor, scores: Scores) -> None:
    """Raise ``AttentionInvalid`` where queries would be taken for those of other positions."""
    count, keys = query.shape[2], key.shape[2]
    if scores.first is None:
        if scores.lengths is None:
            return
        if count == keys or bool((_lengths(key, scores) < count).any()):
            raise AttentionInvalid(
                f"lengths with {count} queries for {keys} keys does not say where the queries "
                "stand; give first, 0 for each sequence that is padded at its end."
            )
        return
    first = _first(query, key, scores)
    if bool(((first < 0) | (first + count > keys)).any()):
        raise AttentionInvalid(
            f"first puts some of {count} queries before or behind the {keys} keys; give positions "
            "among the keys, and cut off padding at the start, which cannot be expressed."
        )


def _check_whole(value: Sequence[int] | Tensor | None, name: str, count: int) -> None:
    """Raise ``AttentionInvalid`` unless *value* is None or *count* whole numbers."""
    if value is None:
        return
    numbers = value.tolist() if isinstance(value, torch.Tensor) else value
    if not isinstance(numbers, Sequence):
        raise AttentionInvalid(f"{name} is {value!r}; give one whole number a sequence.")
    if len(numbers) != count:
        raise AttentionInvalid(
            f"{name} has {len(numbers)} numbers for {count} sequences; give one each."
        )
    for number in numbers:
        whole(number, f"The numbers of {name}")


def _check_weights(weights: Tensor, query: Tensor) -> None:
    check_tensors(query=query, weights=weights)
    if weights.ndim != _AXES - 1 or weights.shape[::2] != (len(query), query.shape[2]):
        raise AttentionInvalid(
            f"The weights are {list(weights.shape)} for queries {list(query.shape)}; give [batch, "
            "row, query]."
        )
    if not is_finite(weights):
        raise AttentionInvalid("A weight is NaN or infinite; look for its source.")


def check_seen(seen: Tensor | None, query: Tensor) -> None:
    """Raise ``AttentionInvalid`` unless *seen* is None or a whole number for each query."""
    if seen is None:
        return
    check_tensors(seen=seen)
    fits = seen.shape in (query.shape[2:3], (len(query), query.shape[2]))
    if seen.is_floating_point() or seen.dtype == torch.bool or not fits:
        raise AttentionInvalid(
            f"seen is {seen.dtype} {list(seen.shape)} for {query.shape[2]} queries; give one whole "
            "number a query."
        )


class StreamRead(NamedTuple):
    """One layer by which the tokens of a stream read those of a stream, which may be the same."""

    into: int  # the number of the stream that asks
    of: int  # the number of the stream that is read
    query: Tensor  # [batch, head, query, dim]
    key: Tensor  # [batch, head, key, dim]
    logsumexp: Tensor  # [batch, head, query], natural
    scores: Scores = Scores(causal=False)
    value: Tensor | None = None  # [batch, head, key, dim]
    gradient: Tensor | None = None  # [batch, head, query, dim], of what was read
    """With the value, entries are weighed by it: ``mean_h (∇A ⊙ A)⁺``, rows normalised (A22)."""


def closed_keys(query_closes: Tensor, key_closes: Tensor) -> Tensor:
    """Return how many keys have closed by each query's close: int64, for ``seen``.

    Both are int64 times of one clock (milliseconds, say), [.., query] and [.., key], the keys'
    ascending. A key that closes with the query counts. Raises ``AttentionInvalid``.
    """
    if query_closes.is_floating_point() or key_closes.is_floating_point():
        raise AttentionInvalid("Times are whole numbers; give milliseconds as int64.")
    # An export asks no numbers.
    if not torch.compiler.is_compiling() and bool((key_closes.diff(dim=-1) < 0).any()):
        raise AttentionInvalid("The keys' times do not ascend; sort the stream by its closes.")
    return torch.searchsorted(key_closes.contiguous(), query_closes.contiguous(), right=True)


@exact
def cross_attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    seen: Tensor | None = None,
    *,
    scale: float | None = None,
    backend: str = "auto",
) -> Attention:
    """Attend from *query* [batch, head, query, dim] to another stream: output and logsumexp.

    *key* and *value* are [batch, head, key, dim], of any length; *seen* [query] or [batch, query]
    says how many leading keys each query sees, None shows all. A query that sees none reads 0, its
    logsumexp is -inf. Differentiable; all keys go by *backend*, some by blocks of queries in
    memory that does not grow with query · key. Raises ``AttentionInvalid`` as ``attend`` does.
    """
    if seen is None:
        return attend(query, key, value, Mask.full(), scale=scale, backend=backend)
    check_inputs(query, key, value, Mask.full())
    factor = 1.0 / math.sqrt(query.shape[-1]) if scale is None else scale
    if torch.compiler.is_compiling():
        return _written_out(query, key, value, seen.view(-1, query.shape[2]), factor)
    largest = check_products(query, key, factor, value=value)[2]
    own = _checked_seen(seen, query, key)
    causal = False
    made = Attention(*square_attention(query, key, value, Chunked(own), causal, factor))
    return refuse_overflow(made, largest, key.shape[2])


def _written_out(
    query: Tensor, key: Tensor, value: Tensor, seen: Tensor, factor: float
) -> Attention:
    """Attend with all scores stored: an export has no blocks of keys that numbers choose."""
    shown = torch.arange(key.shape[2], device=key.device) < seen[:, None, :, None]
    scores = (factor * query @ key.mT).float().masked_fill(~shown, -torch.inf)
    logsumexp = scores.logsumexp(dim=-1)
    entries = (scores - logsumexp.clamp_min(torch.finfo(scores.dtype).min)[..., None]).exp()
    return Attention(entries.to(value.dtype) @ value, logsumexp)


@explanation
def cross_confidence(
    query: Tensor,
    key: Tensor,
    logsumexp: Tensor,
    rows: Sequence[int],
    seen: Tensor | None = None,
    *,
    scale: float | None = None,
) -> Tensor:
    """Return ``1 - H / ln n`` of chosen *rows* over the n keys that they see: [batch, head, row].

    Tensors are those of ``cross_attend``; a row that sees one key, or none, has 0. Raises
    ``AttentionInvalid``.
    """
    check_tensors(query=query, key=key, logsumexp=logsumexp)
    chosen = check_rows(rows, query.shape[2])
    counts = torch.full_like(query[:, 0, :, 0], key.shape[2], dtype=torch.int64)
    if seen is not None:
        counts = _checked_seen(seen, query, key).expand_as(counts)
    counts = counts[:, chosen]  # [batch, row]
    scores = Scores(causal=False, scale=scale, seen=counts)
    entropy = score_entropy(query[:, :, chosen], key, logsumexp[:, :, chosen], scores)
    return row_confidence(entropy, counts[:, None].clamp_min(1))


@explanation
def stream_rollout(
    steps: Sequence[Sequence[StreamRead]],
    lengths: Sequence[int],
    rows: Sequence[int],
    *,
    stream: int = 0,
    residual_weight: float = 0.5,
) -> list[Tensor]:
    """Return where *rows* of *stream* looked: a tensor [batch, row, time] for each stream.

    Together they sum to 1. *steps* are the layers, the first one first; the reads of one step all
    see the streams as the step found them, and those into one stream share ``1 - ρ`` equally.
    *lengths* are the streams' own. What sees nothing keeps itself. Exact; heads are fused by their
    mean. Raises ``AttentionInvalid`` for reads that do not fit and when a head does not keep its
    mass.
    """
    check_share(residual_weight, "residual_weight")
    _check_steps(steps, lengths)
    if not 0 <= stream < len(lengths):
        raise AttentionInvalid(f"There is no stream {stream}; choose 0 to {len(lengths) - 1}.")
    chosen = check_rows(rows, lengths[stream])
    like = steps[0][0].logsumexp
    held = [like.new_zeros(len(like), len(chosen), length) for length in lengths]
    held[stream][:, range(len(chosen)), chosen] = 1.0
    for step in reversed(steps):
        held = carry_step(step, held, residual_weight=residual_weight)
    total = torch.stack([own.sum(dim=-1) for own in held]).sum(dim=0)[..., None]
    return [own / total for own in held]


@explanation
def carry_step(
    step: Sequence[StreamRead], held: Sequence[Tensor], *, residual_weight: float = 0.5
) -> list[Tensor]:
    """Return the weights [batch, row, time] *held* on each stream above one step as those below it.

    The reads are those of one step of ``stream_rollout``, which also says what is raised.
    """
    asking = {read.into for read in step}
    below = [residual_weight * own if number in asking else own for number, own in enumerate(held)]
    for read in step:
        share = (1.0 - residual_weight) / sum(one.into == read.into for one in step)
        moved, kept = _moved(read, held[read.into])
        below[read.of] = below[read.of] + share * moved
        below[read.into] = below[read.into] + share * kept
    return below


def _moved(read: StreamRead, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``mean_h wᵀA`` [batch, row, key], and the weights of queries that see nothing."""
    blind = torch.isneginf(read.logsumexp[:, 0])[:, None]  # [batch, 1, query]
    kept = weights * blind
    used = weights.masked_fill(blind, 0.0)
    rows = rows_with_weight(used)
    if not bool(rows.any()):
        return used.new_zeros(*used.shape[:2], read.key.shape[2]), kept
    if not read.scores.causal and read.scores.window is None and not bool(rows.all()):
        places = rows.nonzero()[:, 0]
        moved, own = _moved_by_heads(_rows_of(read, places), used[:, :, places])
        return moved, kept.index_add(2, places, own)
    moved, own = _moved_by_heads(read, used)
    return moved, kept + own


def _rows_of(read: StreamRead, places: Tensor) -> StreamRead:
    """Return *read* of the queries at *places* alone, which see what they see by themselves."""
    seen, gradient = read.scores.seen, read.gradient
    return read._replace(
        query=read.query[:, :, places],
        logsumexp=read.logsumexp[:, :, places],
        scores=replace(read.scores, seen=None if seen is None else seen[..., places]),
        gradient=None if gradient is None else gradient[:, :, places],
    )


def _moved_by_heads(read: StreamRead, used: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``mean_h wᵀA`` [batch, row, key], each head's mass checked, and what was kept."""
    if read.gradient is not None:
        return _moved_by_gradient(read, used)
    product = carry_rows(read.query, read.key, read.logsumexp, used, read.scores)
    if read.scores.sinks is None:
        factor = read.query.shape[-1] ** -0.5 if read.scores.scale is None else read.scores.scale
        logsumexp = read.logsumexp.to(product.dtype)
        tolerance = mass_tolerance(Layer(read.query, read.key, logsumexp, factor))
        check_mass(product.sum(dim=-1), used.sum(dim=-1).to(product.dtype), tolerance)
    return product.mean(dim=1).to(used.dtype), torch.zeros_like(used)


def _moved_by_gradient(read: StreamRead, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``wᵀ`` times ``mean_h (∇A ⊙ A)⁺`` with its rows normalised, and rows without any."""
    if read.value is None or read.gradient is None:
        raise AttentionInvalid("A read that is weighed by its gradient needs its value as well.")
    moved = weights.new_zeros(*weights.shape[:2], read.key.shape[2])
    kept = torch.zeros_like(weights)
    for part, entries in score_entries(read.query, read.key, read.logsumexp, read.scores):
        slopes = read.gradient[:, :, part.rows].to(entries.dtype) @ read.value.to(entries.dtype).mT
        fused = (entries * slopes).clamp_min(0.0).mean(dim=1)  # [batch, row, key]
        total = fused.sum(dim=-1)
        own = weights[:, :, part.rows]
        kept[:, :, part.rows] = own * (total == 0)[:, None]
        scaled = own / total.clamp_min(torch.finfo(total.dtype).tiny)[:, None]
        moved += (scaled @ fused).to(moved.dtype)
    return moved, kept


def _checked_seen(seen: Tensor, query: Tensor, key: Tensor) -> Tensor:
    """Return *seen* as [batch or 1, query]; raise where it is not whole numbers of keys."""
    check_seen(seen, query)
    if not bool(((seen >= 0) & (seen <= key.shape[2])).all()):
        raise AttentionInvalid(
            f"seen must be from 0 to {key.shape[2]}, the keys that there are; count them anew."
        )
    return seen.to(query.device).view(-1, query.shape[2])


def _check_steps(steps: Sequence[Sequence[StreamRead]], lengths: Sequence[int]) -> None:
    if not steps or not all(steps):
        raise AttentionInvalid("There is no layer to roll out; give every step at least one read.")
    for number, read in ((number, read) for number, step in enumerate(steps) for read in step):
        check_seen(read.scores.seen, read.query)
        if not read.query.numel():
            raise AttentionInvalid(f"A read of step {number} is empty; give at least one bar.")
        for name, stream, tensor in (
            ("asks", read.into, read.query),
            ("is read", read.of, read.key),
        ):
            if not 0 <= stream < len(lengths) or tensor.shape[2] != lengths[stream]:
                known = lengths[stream] if 0 <= stream < len(lengths) else "no"
                raise AttentionInvalid(
                    f"In step {number} stream {stream} {name} with {tensor.shape[2]} tokens and "
                    f"has {known}; give each read the whole of its streams."
                )
