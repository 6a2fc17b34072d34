"""Rollout, entropy, confidence and attention flow through any sequence of reads.

``Ã = ρ·I + (1-ρ)·fuse_h A_h`` and ``R = Ã_L ··· Ã_1`` (Abnar and Zuidema, 2020, arXiv:2005.00928).
A row of R is a row vector carried down through the reads; only ``rollout`` implements that
recursion. Heads are fused by their mean, weighted or not, by their largest or smallest entry, by
the norms of the projected values (Kobayashi et al., 2020, arXiv:2004.10102) or by
``mean_h (∇A ⊙ A)⁺`` (Chefer, Gur and Wolf, 2021, arXiv:2103.15679).

``R_l = ρ·R_{l-1} + (1-ρ)·mean_h A_l,h·R_{l-1}`` runs upwards for every row at once, over buckets of
time: O(N·G) memory for G buckets. Under a window a row needs only the columns of the buckets that
it can reach: they form a ring, and memory is linear in time.

Attention flow (Abnar and Zuidema, section 3) is a reference for small graphs: each edge's capacity
is its weight, and a row's attribution of a bar is the maximum flow between the two.

The rules are docs/attention.md, A5 to A11 and A21 to A23.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from heapq import nlargest
from typing import TYPE_CHECKING, Any, Final, cast, get_args

import torch

from . import compiled
from .checks import (
    check_axes,
    check_mask,
    check_rows,
    check_share,
    check_shares,
    check_start,
    exact,
    explanation,
    working_type,
)
from .errors import AttentionInvalid
from .kernels import attend
from .layer import Layer
from .masks import Mask, MaskKind, whole
from .reads import TOKENS, Fuse, Fusion, Read
from .tiles import check_mass, fuse_mean, mass_tolerance

if TYPE_CHECKING:
    from torch import Tensor

HeadWeights = Sequence[Sequence[float]] | Sequence[float]
FUSIONS: Final = get_args(Fusion)
METHODS: Final = ("rollout", *FUSIONS[3:])
"""The methods to choose from: rollout, by the heads' mean, max or min, and the other fusions."""


@dataclass(frozen=True, slots=True)
class Rollout:
    """How a rollout fuses heads and joins layers: shares from 0 to 1, by default the paper's.

    The mean, ``residual_weight`` and flow are of Abnar and Zuidema (2020, arXiv:2005.00928), the
    norms of Kobayashi et al. (2020, arXiv:2004.10102), the gradient of Chefer, Gur and Wolf (2021,
    arXiv:2103.15679).
    """

    residual_weight: float = 0.5
    """ρ, the share of the residual stream."""
    fusion: Fusion = "mean"
    """``flow`` is only for the function of that name, which joins layers differently."""
    head_weights: HeadWeights | Tensor | None = None
    """For mean and flow: one list, or one per layer; None weighs the heads equally."""
    discard_ratio: float = 0.0
    """The share of each layer's visible fused entries that is dropped, smallest first."""
    start_layer: int = 0
    """The lowest layer that is included."""
    horizon: int | None = None
    """The horizon, in bars, whose mean return is differentiated; else the network's first."""

    def __post_init__(self) -> None:
        """Raise ``AttentionInvalid`` for options that are invalid for any layers."""
        if self.fusion not in FUSIONS:
            raise AttentionInvalid(
                f"There is no head fusion {self.fusion!r}; choose one of {', '.join(FUSIONS)}."
            )
        check_share(self.residual_weight, "residual_weight")
        check_share(self.discard_ratio, "discard_ratio", below_one=True)
        if self.fusion not in {"mean", "flow"} and self.head_weights is not None:
            raise AttentionInvalid(f"Head weights weigh a mean, not a {self.fusion}; drop them.")
        if self.name != "rollout" and self.discard_ratio:
            raise AttentionInvalid(
                f"Discarding ranks entries of the heads, not by {self.fusion}; set it to 0."
            )
        if self.fusion == "flow" and self.start_layer:
            raise AttentionInvalid("A flow goes through all layers; leave the start layer out.")

    @property
    def name(self) -> str:
        """The method among ``METHODS``."""
        return self.fusion if self.fusion in METHODS else "rollout"

    @property
    def is_plain(self) -> bool:
        """Whether the heads are fused by their plain mean and nothing is discarded."""
        return self.fusion == "mean" and self.head_weights is None and not self.discard_ratio


PLAIN: Final = Rollout()
"""The method that is stored with a decision by default."""


def fusion_of(method: str, fusion: str | None = None) -> Fusion:
    """Return the fusion of a *method* of ``METHODS``; *fusion* is that of a rollout's heads.

    Raises ``AttentionInvalid`` for an unknown method, and for a *fusion* without a rollout.
    """
    if method not in METHODS:
        raise AttentionInvalid(
            f"There is no method {method!r}; choose one of {', '.join(METHODS)}."
        )
    if method == "rollout":
        return cast("Fusion", fusion or PLAIN.fusion)
    if fusion not in (None, PLAIN.fusion):
        raise AttentionInvalid(f"The method {method} takes no fusion; leave it out.")
    return cast("Fusion", method)


def head_weights(text: str) -> tuple[float, ...] | tuple[tuple[float, ...], ...]:
    """Parse *text* as head weights: one number per head, or such a list for each layer.

    Commas separate numbers, slashes separate lists. Raises ``AttentionInvalid`` if it is malformed.
    """
    try:
        layers = tuple(
            tuple(float(number) for number in layer.split(",")) for layer in text.split("/")
        )
    except ValueError:
        raise AttentionInvalid(
            f"The head weights are {text[:40]!r}; give one number a head, as 1,0,0,0, or such a "
            "list for each layer with / between them."
        ) from None
    if len({len(layer) for layer in layers}) > 1:
        raise AttentionInvalid("Head weights must give each layer as many numbers as it has heads.")
    return layers[0] if len(layers) == 1 else layers


@dataclass(frozen=True, eq=False)
class AttendedTokens:
    """Shares [batch, row, key] of what rows attend to through all reads; a row sums to 1."""

    weights: Mapping[str, Tensor]
    """By stream, [batch, row, key]; a row sums to 1 over all streams."""
    l1_error: Tensor
    """The mass [batch, row] that was missing before normalisation: rounding, and sinks."""
    _content_free: Callable[[], Mapping[str, Tensor]] | None = field(default=None, repr=False)

    def __repr__(self) -> str:
        """Name the sizes, and the tokens to which the first row attends most."""
        batch, rows = self.l1_error.shape
        sizes = " and ".join(f"{each.shape[2]} {name}" for name, each in self.weights.items())
        several = f", batch of {batch}" if batch > 1 else ""
        shares = {
            f"{name} {token}": share
            for name, each in self.weights.items()
            for token, share in enumerate(each[0, 0].tolist())
        }
        most = [f"{at} ({shares[at]:.0%})" for at in nlargest(3, shares, key=shares.__getitem__)]
        return (
            f"AttendedTokens: {rows} rows over {sizes}{several}; the first attends most to "
            f"{', '.join(most)}"
        )

    @cached_property
    def content_share(self) -> Tensor:
        """The total variation [batch, row] from the content-free rollout, 0 to 1.

        It takes a second rollout. Raises ``AttentionInvalid`` if the method is no rollout.
        """
        if self._content_free is None:
            raise AttentionInvalid("This explanation has no content share; choose rollout.")
        empty = self._content_free()
        distances = [
            (weights - empty[name]).abs().sum(dim=-1) for name, weights in self.weights.items()
        ]
        return 0.5 * torch.stack(distances).sum(dim=0)


@explanation
def rollout(
    reads: Sequence[Read],
    start: Mapping[str, Tensor] | Sequence[int],
    method: Rollout = PLAIN,
    *,
    backend: str = "auto",
) -> AttendedTokens:
    """Return what the rows *start* attend to through *reads*, the lowest first: [batch, row, key].

    It is the attention rollout of Abnar and Zuidema (2020, arXiv:2005.00928). *start* are weights
    [batch, row, query] by stream above the last read, or queries of its stream. The reads of one
    step all start from the same streams, and those of one stream share ``1 - ρ`` equally. A query
    that sees nothing keeps its weight. *backend* computes the mean over heads. Raises
    ``AttentionInvalid`` for reads and options that do not fit, and if the mass of a head changes.
    """
    reads = _checked(reads)
    if method.fusion == "flow":
        raise AttentionInvalid("A flow is no rollout; call flow.")
    steps = _steps(reads)
    numbers = [number for step in steps for number, read in step if read.residual]
    if numbers or method.start_layer:
        check_start(method.start_layer, max(numbers, default=-1) + 1)
    first = _first_held(reads[-1], start)
    carried = _carried(steps, first, method, backend)
    total = torch.stack([weights.sum(dim=-1) for weights in carried.values()]).sum(dim=0)
    carried = _shares_of(carried, total)

    def content_free() -> Mapping[str, Tensor]:
        with torch.no_grad():
            empty = [[(number, read.content_free()) for number, read in step] for step in steps]
            plain = Rollout(method.residual_weight, start_layer=method.start_layer)
            held = _carried(empty, first, plain, backend)
            sums = torch.stack([weights.sum(dim=-1) for weights in held.values()]).sum(dim=0)
            return _shares_of(held, sums)

    return AttendedTokens(carried, (1.0 - total).clamp_min(0.0), content_free)


@explanation
def carry_down(
    reads: Sequence[Read], held: Mapping[str, Tensor], method: Rollout = PLAIN
) -> dict[str, Tensor]:
    """Carry the weights *held* by stream down through *reads*, as ``rollout`` does.

    They are not normalised. Head weights are those of these reads alone.
    """
    return _carried(_steps(list(reads)), held, method, "auto")


def _checked(reads: Sequence[Read]) -> list[Read]:
    """Return *reads* as a list; raise ``AttentionInvalid`` for none."""
    if not reads:
        raise AttentionInvalid("There is nothing to roll out; give at least one layer.")
    return list(reads)


def _shares_of(held: Mapping[str, Tensor], total: Tensor) -> dict[str, Tensor]:
    least = torch.finfo(total.dtype).tiny
    return {name: weights / total.clamp_min(least)[..., None] for name, weights in held.items()}


_Steps = Sequence[Sequence[tuple[int, Read]]]
"""The reads of each step, each with the number of its layer."""


def _steps(reads: Sequence[Read]) -> _Steps:
    """Return the reads by step, the lowest first."""
    by_step: dict[int, list[tuple[int, Read]]] = {}
    for place, read in enumerate(reads):
        step = place if read.step is None else read.step
        number = step if read.layer is None else read.layer
        by_step.setdefault(step, []).append((number, read))
    return [by_step[step] for step in sorted(by_step)]


def _first_held(top: Read, start: Mapping[str, Tensor] | Sequence[int]) -> dict[str, Tensor]:
    """Return the weights above the last read by stream."""
    if isinstance(start, Mapping):
        for name, weights in start.items():
            check_axes({name: (weights, "batch row query")})
        return dict(start)
    batch, _, queries, _ = top.shape
    chosen = check_rows(start, queries)
    weights = torch.zeros(batch, len(chosen), queries, device="cpu")  # each read moves it
    weights[:, range(len(chosen)), chosen] = 1.0
    return {top.target: weights}


def _carried(
    steps: _Steps, first: Mapping[str, Tensor], method: Rollout, backend: str
) -> dict[str, Tensor]:
    """Return the weights *first* above the last step as those below the first."""
    attending = [(number, read) for step in steps for number, read in step if read.residual]
    numbers = sorted({number for number, _ in attending})
    shares = None
    if method.head_weights is not None:
        heads = attending[0][1].shape[1]
        like = torch.empty(0, dtype=torch.float64)  # each layer rounds to its own type
        shares = check_shares(method.head_weights, (len(numbers), heads), like=like)
    held = dict(first)
    for step in reversed(steps):
        used = [(n, r) for n, r in step if not r.residual or n >= method.start_layer]
        asking = [read.target for _, read in used]
        below = {name: weights for name, weights in held.items() if name not in asking}
        for number, read in used:
            fuse = Fuse(backend=backend)
            if read.residual:
                head_shares = None if shares is None else shares[numbers.index(number)]
                fuse = Fuse(
                    method.fusion,
                    head_shares,
                    method.discard_ratio,
                    method.residual_weight,
                    backend,
                )
            given = _query_weights(read, held)
            share = 1.0 / asking.count(read.target)
            _carry_read(read, given, fuse, share, below)
        held = below
    return held


def _query_weights(read: Read, held: Mapping[str, Tensor]) -> Tensor:
    """Return the weights on a read's queries; raise where there are none."""
    if read.target not in held:
        raise AttentionInvalid(
            f"A read has queries of {read.target!r}, which has no weights; give its start."
        )
    given = held[read.target]
    if given.shape[-1] != read.shape[2]:
        raise AttentionInvalid(
            f"A read has {read.shape[2]} queries for {given.shape[-1]} tokens above it; give every "
            "layer but the last one a query for each token."
        )
    return given


def _carry_read(
    read: Read, given: Tensor, fuse: Fuse, share: float, below: dict[str, Tensor]
) -> None:
    """Add to *below* the weights *given* carried through *read* and scaled by *share*."""
    rho = fuse.residual_weight if read.residual else 0.0
    above, moved, kept = read.advance(given, fuse)
    if read.residual:
        stays = (rho * share) * above
        if kept is not None:
            stays = stays + ((1.0 - rho) * share) * kept
        _add(below, read.target, read.place(stays) if read.source == read.target else stays)
    _add(below, read.source, ((1.0 - rho) * share) * moved)


def _add(held: dict[str, Tensor], name: str, weights: Tensor) -> None:
    """Add *weights* to what is held on a stream."""
    if name not in held:
        held[name] = weights
        return
    before = held[name]
    if before.shape[-1] != weights.shape[-1]:
        raise AttentionInvalid(
            f"The stream {name!r} has {before.shape[-1]} tokens and is read with "
            f"{weights.shape[-1]}; give each read the whole of its streams."
        )
    kind = torch.promote_types(before.dtype, weights.dtype)
    held[name] = before.to(weights.device, kind) + weights.to(kind)


@explanation
def confidence(reads: Sequence[Read], queries: Sequence[int]) -> list[Tensor]:
    """Return ``1 - H / ln n`` of *queries* in each of *reads*: [batch, head, row] each, 0 to 1.

    H is the entropy in nats over the n keys that a query sees.
    """
    return [read.confidence(queries) for read in _checked(reads)]


def entropy(reads: Sequence[Read], queries: Sequence[int] | None = None) -> list[Tensor]:
    """Return the entropy in nats of *queries*, None for all, in each of *reads*.

    Each is [batch, head, row]; heads are told apart by it (Vig and Belinkov, 2019,
    arXiv:1906.04284).
    """
    return [read.entropy(queries) for read in _checked(reads)]


@exact
def trained_entropy(
    query: Tensor, key: Tensor, logsumexp: Tensor, mask: Mask, *, scale: float | None = None
) -> Tensor:
    """Return the entropy of every row in nats for a loss, differentiable once: [batch, head, time].

    A model trained with it spreads its attention (Attanasio et al., 2022, arXiv:2203.09192). The
    tensors are those of a ``Layer`` with as many queries as keys, and the value equals its
    ``entropy``, which has no gradient. A flash pass gives the logsumexp no gradient either: that is
    ``scale·Σ_j p_ij k_j`` for the query and ``scale·Σ_i p_ij q_i`` for the keys, computed in two
    more passes: three in all, and three backward. Raises ``AttentionInvalid`` for tensors that do
    not fit.
    """
    check_mask(mask)
    layer = Layer(query, key, None, logsumexp, mask, scale)
    factor, kind = layer.factor, working_type(query)
    _ = layer.largest  # raises for what is not finite
    query, key, sums = query.to(kind), key.to(kind), logsumexp.detach().to(kind)
    mean_key = attend(query, key, key, mask, scale=factor, checked=False).output
    mean_score = factor * (query * mean_key).sum(dim=-1)
    fixed = query.detach()
    by_key = attend(fixed, key.detach(), key, mask, scale=factor, checked=False).output
    carried = factor * ((query * mean_key.detach()).sum(dim=-1) + (fixed * by_key).sum(dim=-1))
    return sums + (carried - carried.detach()) - mean_score


# --- every row at once, over buckets of time


@explanation
def rollout_buckets(
    layers: Sequence[Layer],
    method: Rollout = PLAIN,
    *,
    bucket_bars: int = 64,
    by_age: bool = False,
    backend: str = "auto",
) -> AttendedTokens:
    """Return every row's rollout by bucket: "tokens" [batch, time, bucket], oldest bucket first.

    It is ``rollout`` of all rows at once, in O(time · buckets) memory. The *layers* need a kernel
    mask and as many queries as keys; their heads are fused by the mean. With *by_age* the newest
    bucket, that of the row itself, comes first; under a window there are only as many ages as a row
    can reach, so memory is linear in time. *backend* tiles uses torch only, auto uses compiled
    loops if they are built. Raises ``AttentionInvalid`` for layers that do not fit, and if the mass
    of a head changes.
    """
    _checked(layers)
    if by_age and layers[0].mask.kind is MaskKind.FULL:
        raise AttentionInvalid("A full mask looks both ways, so its rows have no age; drop by_age.")
    values, bucket = _rolled(layers, method, bucket_bars, backend)
    ring, newest = values.shape[2], bucket[:, None]
    column = torch.arange(ring if by_age else int(bucket[-1]) + 1, device=bucket.device)
    place = newest - column if by_age else column  # which bucket: [time, column] or [column]
    weights = values.gather(2, (place % ring).expand(*values.shape[:2], -1))
    if layers[0].mask.kind is not MaskKind.FULL:
        # A row's columns hold its own bucket and the ``ring - 1`` before it.
        weights.masked_fill_((place < 0) | (place > newest) | (place <= newest - ring), 0.0)
    total = weights.sum(dim=-1)
    return AttendedTokens({TOKENS: weights / total[..., None]}, (1.0 - total).clamp_min(0.0))


def _rolled(
    layers: Sequence[Layer], method: Rollout, bucket_bars: int, backend: str
) -> tuple[Tensor, Tensor]:
    """Return every row's rollout over a ring of buckets, and each bar's bucket, int64 [time].

    The first is [batch, time, ring], with bucket b in column ``b % ring``.
    """
    if method.fusion != "mean" or method.discard_ratio:
        raise AttentionInvalid(
            "Every row at once is rolled out by the heads' mean without discarding; use rollout."
        )
    mask, (batch, heads, time, _) = layers[0].mask, layers[0].shape
    for layer in layers:
        shape = (batch, heads, time, time)
        if layer.mask != mask or mask.kind is MaskKind.OTHER or layer.shape != shape:
            raise AttentionInvalid(
                "Buckets of every row need layers with one mask (full, causal or a window), of one "
                "batch and as many heads, and as many queries as keys; use rollout."
            )
    shares = check_shares(method.head_weights, (len(layers), heads), like=layers[0].logsumexp)
    if whole(bucket_bars, "Bars of a bucket") < 1:
        raise AttentionInvalid(f"Buckets of {bucket_bars} bars cannot be; give at least 1 bar.")
    if backend not in {"auto", "tiles"}:
        raise AttentionInvalid(f"The backend is {backend!r}; choose auto or tiles.")
    device = layers[0].query.device
    bucket = torch.arange(time, device=device) // bucket_bars
    used = range(check_start(method.start_layer, len(layers)), len(layers))
    ring = int(bucket[-1]) + 1
    if mask.kind is MaskKind.WINDOW:
        # Consecutive bars can touch one bucket more than they fill.
        ring = min(ring, -(-len(used) * (mask.window_bars - 1) // bucket_bars) + 2)
    is_whole_ring = ring == int(bucket[-1]) + 1
    kind = layers[0].operand.kind
    values = torch.zeros(batch, time, ring, dtype=kind, device=device)
    values.scatter_(2, (bucket % ring)[:, None].expand(batch, -1, 1), 1.0)
    for depth, number in enumerate(used):
        layer, rho = layers[number], method.residual_weight
        bars = (bucket_bars, _reach(mask, depth, time) if is_whole_ring else None)
        below = values.to(layer.operand.kind)
        values = mean_of_all_rows(layer, below, shares[number], rho, bars=bars, backend=backend)
    return values, bucket


def _reach(mask: Mask, depth: int, time: int) -> int | None:
    """Return how many bars back a row can reach after *depth* layers, None without a limit."""
    match mask.kind:
        case MaskKind.CAUSAL:
            return time if depth else 0
        case MaskKind.WINDOW:
            return depth * (mask.window_bars - 1)
        case _:
            return None if depth else 0


def mean_of_all_rows(
    layer: Layer,
    values: Tensor,
    shares: Tensor,
    rho: float,
    *,
    own: Tensor | None = None,
    bars: tuple[int, int | None] = (1, None),
    backend: str = "auto",
) -> Tensor:
    """Return ``ρ·Q + (1-ρ)·Σ_h shares_h A_h·R``, a tile of all heads at a time.

    R are *values* [batch, key, column], and Q are *own* [batch, query, column], by default the
    same. A row that sees nothing keeps its own; the share of a sink is dropped. *bars* are the
    length of a bucket, and how far a row can reach, None without a limit.
    """
    operand = layer.operand
    shares = (1.0 - rho) * shares.to(values.dtype)
    tolerance = mass_tolerance(operand.kind, layer.largest)
    is_plain = layer.mask.kind is not MaskKind.OTHER and layer.lost is None
    is_plain = is_plain and layer.source == layer.target
    loops = compiled.choose(operand) if backend == "auto" and is_plain else None
    own = values if own is None else own
    if loops is not None and operand.softcap is None:
        mixed, masses = compiled.bucket_rows(operand, values, shares, rho, loops)
        check_mass(masses, tolerance)
        return mixed
    result = rho * own
    if layer.blind is not None:
        result += torch.einsum("h,bhq->bq", shares, layer.blind.to(shares))[..., None] * own
    mass = values.new_zeros(layer.shape[:3]) if layer.lost is None else layer.lost.clone()
    for tile in operand.entries(whole=True):
        mass[tile.batch, :, tile.rows] += tile.values.sum(dim=-1)
        columns = _columns(tile.keys.start, tile.keys.stop, bars)
        mean = fuse_mean(tile.values, shares)
        result[tile.batch, tile.rows, columns] += mean @ values[tile.batch, tile.keys, columns]
    check_mass(mass, tolerance)
    return result


def _columns(start: int, stop: int, bars: tuple[int, int | None]) -> slice:
    """Return the buckets in which the keys ``start`` … ``stop - 1`` can have any mass."""
    bucket_bars, reach = bars
    if reach is None:
        return slice(None)
    return slice(max(0, start - reach) // bucket_bars, (stop - 1) // bucket_bars + 1)


# --- attention flow

TIME_MAX: Final = 256
CAPACITY: Final = 1 << 22
"""The integer for a capacity of 1; the library's flows are 32-bit integers."""


@explanation
def flow(
    reads: Sequence[Read],
    queries: Sequence[int],
    method: Rollout = PLAIN,
    *,
    newest: int | None = None,
) -> AttendedTokens:
    """Return each query's flow from every bar, normalised to sum to 1: float64 [batch, row, time].

    It is attention flow (Abnar and Zuidema, 2020, arXiv:2005.00928, section 3). Raises
    ``AttentionInvalid`` beyond ``TIME_MAX`` bars, and for reads of several streams. Capacities are
    rounded to 1 / ``CAPACITY``. *newest* keeps only so many last bars of longer sequences, and
    queries are counted among them; if no bar sees a later one, the flows are the same. Only the
    residual and the head weights of *method* are used.
    """
    reads = _checked(reads)
    if any(read.source != read.target or not read.residual for read in reads):
        raise AttentionInvalid(
            "Attention flow needs layers that all see the same bars; choose rollout."
        )
    batch, heads, bars, _ = reads[0].shape
    if any(read.shape[2:] != (bars, bars) for read in reads):
        raise AttentionInvalid(
            "Attention flow needs layers that all see the same bars; choose rollout."
        )
    time = bars if newest is None else min(whole(newest, "newest"), bars)
    wanted = check_rows(queries, time)
    if time > TIME_MAX:
        raise AttentionInvalid(
            f"Attention flow of {time} bars would take too long; use at most {TIME_MAX} or rollout."
        )
    first = bars - time
    like = torch.empty(0, dtype=torch.float64)
    shares = check_shares(method.head_weights, (len(reads), heads), like=like)
    identity = torch.eye(time, dtype=torch.float64, device="cpu")
    mixed = []
    for read, share in zip(reads, shares, strict=True):
        back = torch.arange(first + 1, bars, device="cpu")  # keys that are not newer
        if first and bool((read.visible(range(first, bars - 1)) > back).any()):
            raise AttentionInvalid(
                f"Attention flow among the newest {time} of {bars} bars needs a mask that looks "
                "back; use rollout."
            )
        rows = read.rows(range(first, bars)).cpu().double()
        fused = torch.einsum("h,bhrk->brk", share, rows)[..., first:]
        mixed.append(method.residual_weight * identity + (1.0 - method.residual_weight) * fused)
    stacked = torch.stack(mixed, dim=1).numpy()  # [batch, layer, time, time]
    flows = torch.tensor(
        [[_row_flow(graph, row) for row in wanted] for graph in stacked],
        dtype=torch.float64,
        device="cpu",
    )
    normalised = flows / flows.sum(dim=-1, keepdim=True)
    return AttendedTokens({TOKENS: normalised}, normalised.new_zeros(batch, len(wanted)))


def _row_flow(matrices: Any, row: int) -> list[int]:  # noqa: ANN401 - a NumPy array
    """Return the maximum flow from *row* above the last layer to each bar below the first."""
    import numpy as np
    from scipy.sparse import coo_array, csr_array
    from scipy.sparse.csgraph import maximum_flow

    layers, time, _ = matrices.shape
    # Node ``layer · time + bar``, edges from each layer to the next.
    capacities = np.rint(matrices * CAPACITY).astype(np.int32)
    layer, query, key = np.nonzero(capacities)
    nodes = (layers + 1) * time
    edges = ((layer + 1) * time + query, layer * time + key)
    graph = csr_array(coo_array((capacities[layer, query, key], edges), shape=(nodes, nodes)))
    source = layers * time + row
    return [int(maximum_flow(graph, source, bar).flow_value) for bar in range(time)]
