"""The parts that all networks share: the base class, its trace of attention, and output heads.

A network registers its ``ModelKind`` in its own module, which need not be named anywhere else:
cards, forecasters, ``doctor`` and error messages find it here.

Every network forecasts the return, the direction and the volatility. Some also forecast quantiles,
an allocation, the tails of the return, the drawdown, the regime of the coming variance and the path
to the horizon. Tails, drawdown and path are in units of the forecast volatility; their losses have
no gradient to it, so they learn only what it does not explain.

The rules are docs/models.md, L59 and L60.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Final, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.functional import pad

from tracepaper.strategies.api.model import KINDS, ModelKind
from tracepaper.strategies.attention.layer import Layer
from tracepaper.strategies.attention.methods import (
    PLAIN,
    TIME_MAX,
    Rollout,
    carry_down,
    flow,
    rollout,
)
from tracepaper.strategies.attention.probsparse import MapRead, SparseRead
from tracepaper.strategies.attention.reads import Read
from tracepaper.strategies.errors import AttentionInvalid, ConfigInvalid, shown
from tracepaper.strategies.networks.keys import NetworkConfig
from tracepaper.strategies.types.decisions import DRAWDOWN_LEVELS, PATH_LEVELS, PATH_STEPS

DIRECTIONS: Final = 3  # down, flat, up
LOG_RANGE: Final = 6.0
DOF_MIN: Final = 2.1
"""Degrees of freedom stay above 2, where a Student-t still has a variance."""
_LEVELS_GAIN: Final = 10.0
"""The factor of the parameters of regimes, so that some hundred steps can move them."""
# The heads start at the tails, drawdowns and quantiles of a random walk without drift.
_TAILS_BEGIN: Final = (1.43, -0.65, -0.03, -0.90)
_DRAWDOWNS_BEGIN: Final = (0.77, 0.29)
_PATH_BEGINS: Final = 1.43


class Outputs(NamedTuple):
    """One forecast per position; returns are in units of ``sigma_t * sqrt(horizon)``."""

    mean: Tensor  # [batch, time, horizon], the Student-t's location
    log_scale: Tensor  # [batch, time, horizon], in [-LOG_RANGE, LOG_RANGE]
    dof: Tensor  # [batch, time, horizon], above DOF_MIN
    direction_logits: Tensor  # [batch, time, horizon, 3]: down, flat, up
    log_variance: Tensor  # [batch, time, horizon], of the same scaled return
    allocation: Tensor | None = None  # [batch, time, horizon] in [-1, 1]
    quantiles: Tensor | None = None  # [batch, time, horizon, quantile], ascending
    tails: Tensor | None = None
    """[batch, time, horizon, long and short, ``SHARES``, value at risk and expected shortfall]:
    losses above 0, each at most that of the next rarer tail."""
    drawdown: Tensor | None = None  # [batch, time, horizon, DRAWDOWN_LEVELS], ascending, above 0
    regimes: Tensor | None = None
    """[batch, time, horizon, 3, regime]: log probability, and the log mean (ascending) and log
    shape of the gamma distribution of each regime's variance."""
    path: Tensor | None = None
    """[batch, time, horizon, PATH_STEPS, PATH_LEVELS]: the return to each step in units of sigma_t
    and the root of the step's bars, ascending by level."""
    runup: Tensor | None = None  # [batch, time, horizon, DRAWDOWN_LEVELS], ascending, above 0

    def map(self, change: Callable[[Tensor], Tensor]) -> Outputs:
        """Return *change* of every head that the network has."""
        return Outputs._make(None if x is None else change(x) for x in self)

    def by_stream(self, streams: int) -> Outputs:
        """Return outputs [1, stream * time, …] as [stream, time, …]: views."""
        return self if streams == 1 else self.map(lambda x: x[0].unflatten(0, (streams, -1)))

    def first(self, bars: int) -> Outputs:
        """Return the outputs of the first *bars* positions."""
        return self if self.mean.shape[1] == bars else self.map(lambda x: x[:, :bars])

    def cpu(self) -> Outputs:
        """Return the outputs on the CPU, without a copy if they are there already."""
        return self.map(Tensor.cpu)


def together(parts: Sequence[Outputs]) -> Outputs:
    """Return the outputs of several passes, concatenated along the batch."""
    columns = zip(*parts, strict=True)
    return Outputs._make(None if column[0] is None else torch.cat(column) for column in columns)


def _bounded(raw: Tensor) -> Tensor:
    """Return nearly *raw* if it is small, and never beyond ``LOG_RANGE``."""
    return LOG_RANGE * torch.tanh(raw / LOG_RANGE)


def _ascending(raw: Tensor) -> Tensor:
    """Return quantiles that cannot cross: a lowest one and positive steps."""
    steps = functional.softplus(raw[..., 1:])
    return torch.cat((raw[..., :1], raw[..., :1] + steps.cumsum(-1)), dim=-1)


def _tails(raw: Tensor) -> Tensor:
    """Return losses [.., 2, 2, 2] of [.., 8] numbers; that of a rarer tail is never smaller."""
    each = raw.unflatten(-1, (2, len(_TAILS_BEGIN))).unbind(-1)  # [.., long and short]
    near, beyond, far, farthest = (
        functional.softplus(part + begin) for part, begin in zip(each, _TAILS_BEGIN, strict=True)
    )
    rare = near + far
    rarest = torch.maximum(rare, near + beyond) + farthest
    return torch.stack(
        (torch.stack((rare, rarest), -1), torch.stack((near, near + beyond), -1)), -2
    )


def _drawdown(raw: Tensor) -> Tensor:
    steps = [
        functional.softplus(part + begin)
        for part, begin in zip(raw.unbind(-1), _DRAWDOWNS_BEGIN, strict=True)
    ]
    return torch.stack(steps, -1).cumsum(-1)


def _path(raw: Tensor) -> Tensor:
    """Return quantiles [.., step, 3]: the middle one, and positive distances to both sides."""
    middle, below, above = raw.unflatten(-1, (PATH_STEPS, len(PATH_LEVELS))).unbind(-1)
    low = middle - functional.softplus(below + _PATH_BEGINS)
    return torch.stack((low, middle, middle + functional.softplus(above + _PATH_BEGINS)), -1)


class HeadSizes(NamedTuple):
    """The optional heads of a network, and how many numbers each has."""

    quantiles: int = 0
    allocation: bool = False
    risk: bool = False  # tails and drawdown
    regimes: int = 0
    path: bool = False
    runup: bool = False


class Head(NamedTuple):
    """The width of a head at each horizon, and the function of its raw numbers [..., width]."""

    width: Callable[[HeadSizes], int]
    """By the sizes of a network; 0 if it lacks the head."""
    output: Callable[[Tensor], Tensor]


HEADS: Final[dict[str, Head]] = {
    "mean": Head(lambda _: 1, lambda raw: raw.squeeze(-1)),
    "log_scale": Head(lambda _: 1, lambda raw: _bounded(raw.squeeze(-1))),
    "dof": Head(lambda _: 1, lambda raw: DOF_MIN + functional.softplus(raw.squeeze(-1) + 2.0)),
    "direction_logits": Head(lambda _: DIRECTIONS, lambda raw: raw),
    "log_variance": Head(lambda _: 1, lambda raw: _bounded(raw.squeeze(-1))),
    "allocation": Head(
        lambda sizes: int(sizes.allocation), lambda raw: torch.tanh(raw.squeeze(-1))
    ),
    "quantiles": Head(lambda sizes: sizes.quantiles, _ascending),
    "tails": Head(lambda sizes: 2 * len(_TAILS_BEGIN) * sizes.risk, _tails),
    "drawdown": Head(lambda sizes: len(DRAWDOWN_LEVELS) * sizes.risk, _drawdown),
    "regimes": Head(lambda sizes: sizes.regimes, lambda raw: raw.log_softmax(-1)),
    "path": Head(lambda sizes: PATH_STEPS * len(PATH_LEVELS) * sizes.path, _path),
    "runup": Head(lambda sizes: len(DRAWDOWN_LEVELS) * sizes.runup, _drawdown),
}
"""Every field of ``Outputs``; their order is also that of the projection's columns."""


class Heads(nn.Module):
    """One linear layer over the last state; its slices become ``Outputs``."""

    def __init__(self, dim: int, horizons: int, quantiles: int = 0, **auxiliary: Any) -> None:  # noqa: ANN401
        """Make heads for each of *horizons*; *auxiliary* are further fields of ``HeadSizes``."""
        super().__init__()
        sizes = HeadSizes(quantiles, **auxiliary)
        self.widths = [head.width(sizes) for head in HEADS.values()]
        self.horizons = horizons
        self.levels = RegimeLevels(horizons, sizes.regimes) if sizes.regimes else None
        self.project = nn.Linear(dim, horizons * sum(self.widths))
        # Without knowledge of the state: mean 0, scale and variance 1, even odds.
        nn.init.normal_(self.project.weight, std=0.01)
        nn.init.zeros_(self.project.bias)

    def forward(self, state: Tensor) -> Outputs:
        """Map *state* [batch, time, dim] to the outputs."""
        raw: Tensor = self.project(state)
        raw = raw.unflatten(-1, (self.horizons, -1))  # [batch, time, horizon, width]
        slices = zip(HEADS.values(), raw.split(self.widths, -1), strict=True)
        outputs = Outputs._make(
            head.output(part) if part.shape[-1] else None for head, part in slices
        )
        if self.levels is not None and outputs.regimes is not None:
            outputs = outputs._replace(regimes=self.levels(outputs.regimes))
        return _in_sigmas(outputs)


def heads_of(config: NetworkConfig, *, horizons: int | None = None, **auxiliary: Any) -> Heads:  # noqa: ANN401
    """Return the heads of *config* with *auxiliary* ones; *horizons* overrides how many per row."""
    ahead = len(config.horizons) if horizons is None else horizons
    auxiliary |= {"allocation": config.allocation}
    return Heads(config.dim, ahead, len(config.quantiles), **auxiliary)


def _in_sigmas(outputs: Outputs) -> Outputs:
    """Convert tails, drawdown, run-up and path from multiples of the forecast volatility to σ."""
    named = ("tails", "drawdown", "path", "runup")
    given = {name: part for name in named if (part := getattr(outputs, name)) is not None}
    if not given:
        return outputs
    # Detached, so that the losses of these heads do not train the volatility.
    spread = torch.exp(0.5 * outputs.log_variance.detach())
    return outputs._replace(
        **{
            name: part * spread[(..., *(None,) * (part.ndim - spread.ndim))]
            for name, part in given.items()
        }
    )


class RegimeLevels(nn.Module):
    """The variance in each regime: one gamma distribution each, the same at every bar."""

    def __init__(self, horizons: int, regimes: int) -> None:
        super().__init__()
        self.raw = nn.Parameter(torch.zeros(2, horizons, regimes))

    def forward(self, probabilities: Tensor) -> Tensor:
        """Return log *probabilities* [.., horizon, regime] with the levels: [.., 3, regime]."""
        place, shape = _LEVELS_GAIN * self.raw
        count = place.shape[-1]
        # They start evenly around 1, the usual variance in these units; the first is the calmest.
        steps = functional.softplus(place[..., 1:] + 0.5)
        first = place[..., :1] - 0.5 * (count - 1)
        mean = torch.cat((first, first + steps.cumsum(-1)), dim=-1)
        levels = torch.stack((_bounded(mean), _bounded(shape + 0.7)), dim=-2)
        wide = levels.to(probabilities.dtype).expand(*probabilities.shape[:-2], *levels.shape)
        return torch.cat((probabilities[..., None, :], wide), dim=-2)


class AttendedPart(NamedTuple):
    """A share of a bar's attention: several rows that form one token, or some columns of a row."""

    frame: int  # bars per bar of its timeframe
    start: int  # its first row's place in the window
    rows: int
    share: float
    modality: str = ""  # of its columns, if the network separates modalities
    levels: str = ""  # the group of levels of its columns, for an order book
    symbol: str = ""  # whose bars they are, if another symbol's


class BarWeights(NamedTuple):
    """The attention of a bar: weights [1, 1, bars], oldest bar first, and the missing mass."""

    weights: Tensor
    l1_error: Tensor  # [1, 1]


class ExplainedOutputs(NamedTuple):
    """The outputs for one window, and the attention of the decided bar."""

    outputs: Outputs  # [1, 1, ...]: of the last bar
    rollout: BarWeights
    confidence: Tensor  # [layer, head]
    parts: tuple[AttendedPart, ...] = ()
    """The shares of its tokens, if these are not single rows; they sum to 1."""


class LayerAttribution(NamedTuple):
    """The attention of one layer in one pass over a window."""

    rows: Tensor  # [head, bar]: each head's attention from the decided bar, oldest bar first
    age: Tensor  # [position] of the layer's output: the age of its newest bar, in bars
    carry: Callable[[Tensor], Tensor]
    """Row weights [row, position] on the layer's output → on its input, oldest first."""


ToBars = Callable[[Mapping[str, Tensor]], "tuple[Tensor, tuple[AttendedPart, ...]]"]
"""Weights [row, token] by stream → on the window's bars [row, bar], and the first row's parts."""


def plain_bars(weights: Mapping[str, Tensor]) -> tuple[Tensor, tuple[AttendedPart, ...]]:
    """Return the weights of a network whose tokens are bars."""
    return weights["tokens"], ()


class Trace:
    """The explanation of a pass over some windows; each attention adds its read, lowest first."""

    outputs: Outputs

    def __init__(self) -> None:
        self.reads: list[Read] = []
        self.attended: list[Tensor] = []
        """A·V [batch, head, query, dim] of each ``attending``, or of its last queries only."""
        self.decided: list[tuple[Read, tuple[int, ...]]] = []
        """The reads whose confidence is the decision's, each with the deciding queries."""
        self.places: dict[str, tuple[int, ...]] = {}
        """By stream the tokens that are read out; by default the last one."""
        self.ahead: dict[str, int] = {}
        """By stream how many of its last tokens belong to no bar: weights leave them out."""
        self.ages: dict[str, Tensor] = {}
        """By stream the ages, in bars, of the lowest tokens, if these are not single bars."""
        self.to_bars: ToBars = plain_bars

    @property
    def attending(self) -> list[Layer | SparseRead]:
        """The reads of attention over values, in the order of ``attended``."""
        return [read for read in self.reads if isinstance(read, Layer | SparseRead)]

    def attend(
        self,
        read: Read,
        attended: Tensor | None = None,
        *,
        is_layer: bool = True,
        decides: bool = True,
    ) -> None:
        """Add an attention; one with *is_layer* False belongs to the layer of the last."""
        layer = max((other.layer for other in self.reads if other.layer is not None), default=-1)
        placed = replace(read, step=len(self.reads), layer=layer + is_layer)
        self.reads.append(placed)
        if attended is not None:
            self.attended.append(attended)
        if decides:
            at = self.places.get(placed.target, (placed.shape[2] - 1,))
            self.decided.append((placed, at))

    def map(self, read: MapRead) -> None:
        """Add a map of time."""
        self.reads.append(replace(read, step=len(self.reads)))

    @property
    def sizes(self) -> dict[str, int]:
        """The final number of tokens of each stream; the stream that is read out comes last."""
        sizes: dict[str, int] = {}
        for read in self.reads:
            sizes.setdefault(read.source, read.shape[3])
            sizes[read.target] = read.shape[2]
        return {name: sizes[name] for name in sorted(sizes, key=self.reads[-1].target.__eq__)}

    def start(self, like: Tensor) -> dict[str, Tensor]:
        """Return by stream the weights [batch, 1, token] of the tokens that are read out.

        *like* sets batch, type and device.
        """
        kind, top = torch.promote_types(like.dtype, torch.float32), self.reads[-1].target
        held = {
            name: torch.zeros(len(like), 1, size, dtype=kind, device=like.device)
            for name, size in self.sizes.items()
        }
        places = self.places.get(top, (held[top].shape[-1] - 1,))
        held[top][..., list(places)] = 1.0 / len(places)
        return held

    def on_bars(self, held: Mapping[str, Tensor]) -> tuple[Tensor, tuple[AttendedPart, ...]]:
        """Return ``to_bars`` of weights *held* by stream, without mass on tokens of no bar.

        The rest is scaled to sum to 1.
        """
        by_bar, parts = self.to_bars(held)
        return (by_bar / by_bar.sum(dim=-1, keepdim=True) if self.ahead else by_bar), parts

    def by_layer(self, method: Rollout = PLAIN) -> list[LayerAttribution]:
        """Attribute layer by layer, the lowest first; a layer ends with a read that decides.

        Carried down all layers, the decided bar becomes its rollout. If tokens belong to no bar,
        each step is weighted by the share of every token that ends at bars, and above the last
        layer one position, the decision, replaces all tokens that are read out.
        """
        deciding = {id(read): at for read, at in self.decided}
        first: dict[str, int] = {}  # tokens of each stream below all reads
        for read in self.reads:
            first.setdefault(read.source, read.shape[3])
            first.setdefault(read.target, read.shape[2])
        first = {name: first[name] for name in self.sizes}
        ends: Tensor | None = None
        layers: list[LayerAttribution] = []
        group: list[Read] = []
        maps: list[Read] = []
        above = first
        for read in self.reads:
            group.append(read)
            if isinstance(read, MapRead):
                maps.append(read)
            decides = [member for member in group if id(member) in deciding]
            if not decides:
                continue
            below, above = above, above | {member.target: member.shape[2] for member in group}
            number = None if method.head_weights is None else len(layers)
            step = _Step(self, group, below, above, _of_layer(method, number), is_lowest=not layers)
            at = deciding[id(decides[0])]
            rows = decides[0].rows(at)[0].mean(dim=1)
            if not self.ahead.keys().isdisjoint(member.target for member in group):
                every = torch.eye(len(step), dtype=rows.dtype, device=rows.device)
                if ends is None:
                    ends = torch.cat(
                        [
                            torch.arange(size) < size - self.ahead.get(name, 0)
                            for name, size in below.items()
                        ]
                    ).to(every)
                step.ends = ends
                ends = step.ends_above = step.concatenated(every) @ step.ends
            ages = [self._age(name, first[name], size) for name, size in above.items()]
            places = self.places.get(read.target, ())
            if read is self.reads[-1] and len(places) > 1:
                step.decision = len(places)
                ages[-1] = ages[-1][: 1 - len(places)]
            held = carry_down(
                [member for member in maps if member.target == decides[0].source],
                {decides[0].source: rows[None]},
            )
            empty = {name: rows.new_zeros(len(rows), size) for name, size in first.items()}
            on_bars, _ = self.on_bars(empty | {name: carried[0] for name, carried in held.items()})
            layers.append(LayerAttribution(on_bars, torch.cat(ages), step))
            group = []
        return layers

    def _age(self, name: str, first: int, size: int) -> Tensor:
        """Return the ages [token] of a stream of *size* tokens above all but *first* below."""
        age = torch.arange(size - 1, -1, -1) * first // size
        return self.ages.get(name, age) if size == first else age


class _Step:
    """Carries row weights through some reads: [row, token], all streams one after another."""

    def __init__(
        self,
        trace: Trace,
        reads: Sequence[Read],
        below: Mapping[str, int],
        above: Mapping[str, int],
        method: Rollout,
        *,
        is_lowest: bool,
    ) -> None:
        self._trace, self._reads, self._method = trace, tuple(reads), method
        self._below, self._above, self._is_lowest = below, above, is_lowest
        self.ends: Tensor | None = None
        """The share of each token below that ends at bars; None if all do."""
        self.ends_above: Tensor | None = None
        self.decision = 0
        """How many tokens above are joined in the last position."""

    def __len__(self) -> int:
        """Return the number of tokens above."""
        return sum(self._above.values())

    def concatenated(self, weights: Tensor) -> Tensor:
        """Return the row weights below the reads, of all streams."""
        held = dict(
            zip(self._above, weights[None].split([*self._above.values()], dim=2), strict=True)
        )
        below = carry_down(self._reads, held, self._method)
        return torch.cat([below[name] for name in self._below], dim=2)[0]

    def __call__(self, weights: Tensor) -> Tensor:
        """Return the row weights below the reads; below the lowest step, on bars."""
        if self.ends is None or self.ends_above is None:
            below = self.concatenated(weights)
        else:
            if self.decision:
                shares = self.ends_above[-self.decision :]
                spread = weights[:, -1:] * (shares / shares.sum())
                weights = torch.cat((weights[:, :-1], spread), dim=1)
            tiny = torch.finfo(self.ends_above.dtype).tiny
            below = self.concatenated(weights / self.ends_above.clamp_min(tiny)) * self.ends
        if not self._is_lowest:
            return below
        parts = below.split([*self._below.values()], dim=1)
        return self._trace.to_bars(dict(zip(self._below, parts, strict=True)))[0]


def _of_layer(method: Rollout, number: int | None) -> Rollout:
    """Return *method* with the head weights of one layer alone, if each has its own."""
    given = method.head_weights
    if number is None or given is None:
        return method
    weights = torch.as_tensor(given, dtype=torch.float64)
    weights = weights[number] if weights.ndim > 1 else weights
    return replace(method, head_weights=tuple(weights.tolist()))


class Network(nn.Module):
    """A network of this package: rows of features in, forecasts with their explanation out.

    A kind defines ``run``, which maps windows to states, and may redefine ``read_out``.
    """

    config: NetworkConfig
    takes_any_length: ClassVar[bool] = False
    """Whether it takes fewer rows than its window, or only whole windows."""
    has_attention: ClassVar[bool] = True
    """Whether ``explain`` works; without it there is no gate of entropy, shift or regime."""
    in_float32: ClassVar[bool] = False
    """Whether an explained window is always computed in float32."""
    rows_a_pass: ClassVar[int | None] = None
    """Rows of single windows per training pass on the CPU; None for a whole batch.

    The activations of a pass then fit the caches, and their memory is reused.
    """
    heads: Heads
    norm: nn.Module

    def __init__(self, config: Any) -> None:  # noqa: ANN401 - of its kind
        super().__init__()
        self.config = config

    @property
    def auxiliary_heads(self) -> frozenset[str]:
        """The further heads of this network that are learnt from labels of their own."""
        return frozenset()

    @property
    def given_heads(self) -> frozenset[str]:
        """The heads that not every network has: ``auxiliary_heads``, quantiles, an allocation."""
        optional = ("quantiles", "allocation")
        return self.auxiliary_heads | {name for name in optional if getattr(self.config, name)}

    def attend_by(self, backend: str) -> bool:
        """Attend by the kernel *backend*; return whether this network can."""
        del backend
        return False

    def hold_by(self, say: Callable[[str], object]) -> None:
        """Answer NaN, which no gate passes, where a user's code fails; call *say* with the reason.

        Without this call the failure is raised. Networks without a user's code ignore it.
        """
        del say

    @property
    def answers_every_row(self) -> bool:
        """Whether one pass answers every row, each from it and the rows before it alone.

        Otherwise a pass is one window with one answer, that of its last row.
        """
        return False

    def run(self, x: Tensor, positions: Tensor, trace: Trace | None) -> Tensor:
        """Return the states of windows *x* for ``read_out``; add each attention to *trace*.

        *positions* are int64 [time], or [batch, time]. A kind defines it.
        """
        raise NotImplementedError

    def read_out(self, state: Tensor) -> Outputs:
        """Return the heads' outputs of *state* [batch, time, dim]: of the last row alone."""
        return self.heads(self.norm(state[:, -1:]))

    def forward(self, x: Tensor, positions: Tensor | None = None) -> Outputs:
        """Forecast the last bar of each window *x* [batch, window, features]: [batch, 1, ...].

        If ``answers_every_row``, forecast every row. *positions* [time], or [batch, time] of
        consecutive bars, are int64 absolute bar numbers. Raises ``AttentionInvalid`` on a window of
        another length than the network takes.
        """
        return self.read_out(self.run(x, self._placed(x, positions), None))

    def trace(self, x: Tensor, positions: Tensor | None = None) -> Trace:
        """Forecast as ``forward`` does, and return the trace of its attention."""
        trace = Trace()
        trace.outputs = self.read_out(self.run(x, self._placed(x, positions), trace))
        return trace

    def explain(
        self, x: Tensor, positions: Tensor, method: Rollout = PLAIN, *, half: bool = False
    ) -> ExplainedOutputs:
        """Forecast one window *x* [1, window, features] and explain its last bar by *method*.

        *positions* int64 [window] are absolute bar numbers; *half* multiplies in bfloat16. No
        attention matrix is stored. A flow covers the newest ``TIME_MAX`` bars. Raises
        ``InvariantBroken`` for a network without attention, and ``AttentionInvalid`` for a method
        that it does not support.
        """
        with torch.no_grad(), self._halved(x, half):
            trace = self.trace(x, positions)
        by_gradient = method.fusion == "gradient"
        reads = self._with_gradients(x, positions, method) if by_gradient else trace.reads
        if method.fusion == "flow":
            time = reads[0].shape[2]
            newest = min(TIME_MAX, time)
            tokens = flow(reads, [newest - 1], method, newest=newest)
            older = time - newest
            held = {name: pad(weights, (older, 0)) for name, weights in tokens.weights.items()}
        else:
            tokens = rollout(reads, trace.start(x), method, backend=explained_by(x.device))
            held, older = dict(tokens.weights), 0
        by_bar, parts = trace.on_bars({name: weights[0] for name, weights in held.items()})
        confidence = [read.confidence(at)[0].mean(dim=-1) for read, at in trace.decided]
        return ExplainedOutputs(
            trace.outputs.map(lambda part: part[:, -1:]),
            BarWeights(by_bar[None, :, older:], tokens.l1_error),
            torch.stack(confidence),
            parts,
        )

    def attribution_by_layer(
        self, x: Tensor, positions: Tensor, *, half: bool = False
    ) -> list[LayerAttribution]:
        """Attribute one window layer by layer, the lowest first.

        Arguments and errors are those of ``explain``; carried down all layers, the decided bar
        becomes its rollout.
        """
        with self._halved(x, half):
            return self.trace(x, positions).by_layer()

    def content_free(self) -> float:
        """Return the confidence over a full window that mask and encoding alone give.

        0 if attention without content is uniform, or if its confidence is unknown.
        """
        return 0.0

    def dropping(self) -> list[nn.Module]:
        """Return the modules with dropout."""
        return [
            module
            for module in self.modules()
            if (isinstance(module, nn.Dropout) and module.p > 0)
            or (isinstance(module, nn.LSTM) and module.dropout > 0)
        ]

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return next(self.parameters()).device

    def _placed(self, x: Tensor, positions: Tensor | None) -> Tensor:
        return torch.arange(x.shape[1], device=x.device) if positions is None else positions

    def _require_window(self, x: Tensor) -> None:
        if x.shape[1] != self.config.window:
            raise AttentionInvalid(
                f"This network takes windows of {self.config.window} bars, not {x.shape[1]}; cut "
                "or warm the window."
            )

    def _halved(self, x: Tensor, half: bool) -> torch.autocast:  # noqa: FBT001
        """Return the context in which an explained window is computed."""
        return torch.autocast(x.device.type, torch.bfloat16, enabled=half and not self.in_float32)

    def _with_gradients(self, x: Tensor, positions: Tensor, method: Rollout) -> list[Read]:
        """Return the reads of one window with the gradient of the mean return by each A·V."""
        with torch.inference_mode(mode=False), torch.enable_grad():
            trace = self.trace(x, positions)
            horizons = self.config.horizons
            at = horizons.index(method.horizon) if method.horizon in horizons else 0
            figure = trace.outputs.mean[0, -1, at]
            slopes: Sequence[Tensor] = ()
            if trace.attended:
                slopes = torch.autograd.grad(figure, trace.attended, materialize_grads=True)
        reads: list[Read] = []
        given = iter(slopes)
        for read in trace.reads:
            if slopes and isinstance(read, Layer | SparseRead):
                slope = next(given)
                # A layer that computes only the decided bar has a gradient only there.
                slope = pad(slope, (0, 0, read.shape[2] - slope.shape[2], 0))
                reads.append(replace(read, gradient=slope))
            else:
                reads.append(read)
        return reads


def explained_by(device: torch.device) -> str:
    """Return the rollout backend of a network over whole windows.

    On the CPU it is not the compiled loops: a run records only its attention kernel, and the bits
    of a rollout must follow from what is recorded.
    """
    return "tiles" if device.type == "cpu" else "auto"


def network_kinds() -> Mapping[str, ModelKind]:
    """Return every kind that is one ``Network``, after importing each module of this package."""
    from tracepaper.strategies import networks

    return {name: kind for name, kind in KINDS.of(networks).items() if kind.has_network}


def kind_of(name: object) -> ModelKind:
    """Return the kind of network with that name; raise ``ConfigInvalid`` if there is none."""
    kinds = network_kinds()
    if isinstance(name, str) and (kind := KINDS.get(name)) is not None and not kind.has_network:
        raise ConfigInvalid(
            kind.refusal or f"A {name} checkpoint has no network; name a network's checkpoint."
        )
    if not isinstance(name, str) or name not in kinds:
        raise ConfigInvalid(
            f"The model's card names the kind {shown(name)}; use {' or '.join(kinds)}."
        )
    return kinds[name]
