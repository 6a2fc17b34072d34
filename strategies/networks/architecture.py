"""What all networks share: the ``[architecture]`` of a card, and output heads.

A network registers its ``ModelKind`` in its own module, which need not be named anywhere else:
cards, forecasters, ``doctor`` and error messages find it here.

Beyond the return, the direction and the volatility, which every network has, stand quantiles, an
allocation, and what only some have: the tails of the return, the drawdown, the regime of the
coming variance and the path to the horizon. Tails, drawdown and path are in units of the
network's own volatility, whose gradient they leave alone: they learn what it does not say.

The rules are docs/models.md, L59 and L60.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import ClassVar, Final, NamedTuple, Protocol

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
from tracepaper.strategies.attention.probsparse import Multiplications, SparseRead
from tracepaper.strategies.attention.reads import Read
from tracepaper.strategies.errors import ConfigInvalid, InvariantBroken, shown
from tracepaper.strategies.networks.attribution import STORED, AttributionMethod
from tracepaper.strategies.types.decisions import DRAWDOWN_LEVELS, PATH_LEVELS, PATH_STEPS

DIRECTIONS: Final = 3  # down, flat, up
LOG_RANGE: Final = 6.0
DOF_MIN: Final = 2.1
"""Degrees of freedom stay above 2, where a Student-t still has a variance."""
_LEVELS_GAIN: Final = 10.0
"""What the parameters of regimes are multiplied by: some hundred steps must move them."""
# Where softplus begins: at the tails, drawdowns and quantiles of a random walk without drift.
_TAILS_BEGIN: Final = (1.43, -0.65, -0.03, -0.90)
_DRAWDOWNS_BEGIN: Final = (0.77, 0.29)
_PATH_BEGINS: Final = 1.43


class Outputs(NamedTuple):
    """One forecast a position; returns are in units of ``sigma_t * sqrt(horizon)``."""

    mean: Tensor  # [batch, time, horizon], the Student-t's location
    log_scale: Tensor  # [batch, time, horizon], in [-LOG_RANGE, LOG_RANGE]
    dof: Tensor  # [batch, time, horizon], above DOF_MIN
    direction_logits: Tensor  # [batch, time, horizon, 3]: down, flat, up
    log_variance: Tensor  # [batch, time, horizon], of the same scaled return
    allocation: Tensor | None  # [batch, time, horizon] in [-1, 1]
    quantiles: Tensor | None  # [batch, time, horizon, quantile], ascending
    tails: Tensor | None = None
    """[batch, time, horizon, long and short, ``SHARES``, value at risk and expected shortfall]:
    losses above 0, each at most the next further one."""
    drawdown: Tensor | None = None  # [batch, time, horizon, DRAWDOWN_LEVELS], ascending, above 0
    regimes: Tensor | None = None
    """[batch, time, horizon, 3, regime]: log probability; of the variance in each, the log mean,
    which ascends, and the log shape of its gamma distribution."""
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
        """Return the outputs on the CPU, without a copy where they are there."""
        return self.map(Tensor.cpu)


def together(parts: Sequence[Outputs]) -> Outputs:
    """Return outputs of several passes as those of one: their batches one after the other."""
    columns = zip(*parts, strict=True)
    return Outputs._make(None if column[0] is None else torch.cat(column) for column in columns)


def _bounded(raw: Tensor) -> Tensor:
    """Return *raw* where it is small, and never beyond ``LOG_RANGE``."""
    return LOG_RANGE * torch.tanh(raw / LOG_RANGE)


def _ascending(raw: Tensor) -> Tensor:
    """Return quantiles that cannot cross: a lowest one and positive steps."""
    steps = functional.softplus(raw[..., 1:])
    return torch.cat((raw[..., :1], raw[..., :1] + steps.cumsum(-1)), dim=-1)


def _tails(raw: Tensor) -> Tensor:
    """Return losses [.., 2, 2, 2] of [.., 8] numbers that no further tail falls below."""
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
    """Return quantiles [.., step, 3] about the middle one."""
    middle, below, above = raw.unflatten(-1, (PATH_STEPS, len(PATH_LEVELS))).unbind(-1)
    low = middle - functional.softplus(below + _PATH_BEGINS)
    return torch.stack((low, middle, middle + functional.softplus(above + _PATH_BEGINS)), -1)


class HeadSizes(NamedTuple):
    """Which of the heads a network has that not all have, and of how many numbers."""

    quantiles: int = 0
    allocation: bool = False
    risk: bool = False  # tails and drawdown
    regimes: int = 0
    path: bool = False
    runup: bool = False


class Head(NamedTuple):
    """How wide a head is at each horizon, and what its raw numbers [..., width] become."""

    width: Callable[[HeadSizes], int]
    """Of the sizes of a network; 0 where it is absent."""
    of: Callable[[Tensor], Tensor]


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
"""Every field of ``Outputs``, in its order, which is that of the projection's columns."""


class Heads(nn.Module):
    """One linear layer over the last state; its slices become ``Outputs``."""

    def __init__(
        self,
        dim: int,
        horizons: int,
        quantiles: int,
        *,
        allocation: bool,
        risk: bool = False,
        regimes: int = 0,
        path: bool = False,
        runup: bool = False,
    ) -> None:
        super().__init__()
        sizes = HeadSizes(quantiles, allocation, risk, regimes, path, runup)
        self.widths = [head.width(sizes) for head in HEADS.values()]
        self.horizons = horizons
        self.levels = RegimeLevels(horizons, regimes) if regimes else None
        self.project = nn.Linear(dim, horizons * sum(self.widths))
        # Start at "nothing is known": mean 0, scale and variance 1, even odds.
        nn.init.normal_(self.project.weight, std=0.01)
        nn.init.zeros_(self.project.bias)

    def forward(self, state: Tensor) -> Outputs:
        """Map *state* [batch, time, dim] to the outputs."""
        raw: Tensor = self.project(state)
        raw = raw.unflatten(-1, (self.horizons, -1))  # [batch, time, horizon, width]
        slices = zip(HEADS.values(), raw.split(self.widths, -1), strict=True)
        outputs = Outputs._make(head.of(part) if part.shape[-1] else None for head, part in slices)
        if self.levels is not None and outputs.regimes is not None:
            outputs = outputs._replace(regimes=self.levels(outputs.regimes))
        return _in_sigmas(outputs)


def _in_sigmas(outputs: Outputs) -> Outputs:
    """Convert tails, drawdown, run-up and path from multiples of the forecast volatility to σ."""
    named = ("tails", "drawdown", "path", "runup")
    given = {name: part for name in named if (part := getattr(outputs, name)) is not None}
    if not given:
        return outputs
    # Detached: these heads learn what the volatility does not say, and leave it alone.
    spread = torch.exp(0.5 * outputs.log_variance.detach())
    return outputs._replace(
        **{
            name: part * spread[(..., *(None,) * (part.ndim - spread.ndim))]
            for name, part in given.items()
        }
    )


class RegimeLevels(nn.Module):
    """What the variance is in each regime: a gamma distribution each, the same at every bar."""

    def __init__(self, horizons: int, regimes: int) -> None:
        super().__init__()
        self.raw = nn.Parameter(torch.zeros(2, horizons, regimes))

    def forward(self, probabilities: Tensor) -> Tensor:
        """Return log *probabilities* [.., horizon, regime] with the levels: [.., 3, regime]."""
        place, shape = _LEVELS_GAIN * self.raw
        count = place.shape[-1]
        # The first is calm, and all together lie about 1, the usual variance in its own unit.
        steps = functional.softplus(place[..., 1:] + 0.5)
        first = place[..., :1] - 0.5 * (count - 1)
        mean = torch.cat((first, first + steps.cumsum(-1)), dim=-1)
        levels = torch.stack((_bounded(mean), _bounded(shape + 0.7)), dim=-2)
        wide = levels.to(probabilities.dtype).expand(*probabilities.shape[:-2], *levels.shape)
        return torch.cat((probabilities[..., None, :], wide), dim=-2)


class Architecture(Protocol):
    """What every network's configuration tells, whatever else it holds."""

    @property
    def features(self) -> int:
        """Columns of a row."""
        ...

    @property
    def dim(self) -> int:
        """The width of the network."""
        ...

    @property
    def layers(self) -> int:
        """Layers, of attention or of another kind."""
        ...

    @property
    def window(self) -> int:
        """Bars that one layer sees."""
        ...

    @property
    def receptive_field(self) -> int:
        """How many rows one answer depends on."""
        ...

    @property
    def horizons(self) -> tuple[int, ...]:
        """Bars ahead that are forecast."""
        ...


class AttendedPart(NamedTuple):
    """A share of where a bar looked: some rows that the network saw as one, or a part of a row."""

    frame: int  # bars that make one of its timeframe
    start: int  # its first row's place in the window
    rows: int
    share: float
    modality: str = ""  # of its columns, where a network tells them apart
    levels: str = ""  # of an order book: the group of levels that its columns are of
    symbol: str = ""  # of another symbol's bars: which


class BarWeights(NamedTuple):
    """Where a bar looked: weights [1, 1, bars], oldest bar first, and the mass that was missing."""

    weights: Tensor
    l1_error: Tensor  # [1, 1]


class ExplainedOutputs(NamedTuple):
    """What a network says of one window, and where the decided bar looked."""

    outputs: Outputs  # [1, 1, ...]: of the last bar
    rollout: BarWeights
    confidence: Tensor  # [layer, head]
    parts: tuple[AttendedPart, ...] = ()
    """What it saw instead of single rows, where a network sees other than these; they sum to 1."""


class LayerAttribution(NamedTuple):
    """What one layer of attention did in one pass over a window."""

    rows: Tensor  # [head, bar]: where each head looked from the decided bar, oldest bar first
    age: Tensor  # [position] of what the layer gave: how many bars old its newest bar is
    carry: Callable[[Tensor], Tensor]
    """Row weights [row, position] on what the layer gave → on what it took in, oldest first."""


ToBars = Callable[[Mapping[str, Tensor]], "tuple[Tensor, tuple[AttendedPart, ...]]"]
"""Weights [row, token] by stream → on the window's bars [row, bar], and the first row's parts."""


class Trace(NamedTuple):
    """A window's forecast with all that explains it."""

    outputs: Outputs
    reads: list[Read]
    """The lowest first; those of attention know values and projections as well."""
    start: Mapping[str, Tensor]
    """Weights [batch, row, token] of what is read out, by stream: the decided bar's."""
    attended: list[Tensor]
    """Each attention's A·V [batch, head, query, dim], or that of its last queries."""
    to_bars: ToBars
    decided: list[tuple[Read, tuple[int, ...]]]
    """The reads whose confidence is the decision's, each with the queries that decide."""

    @property
    def attending(self) -> list[Layer | SparseRead]:
        """The reads of attention over values, in the order of ``attended``."""
        return [read for read in self.reads if isinstance(read, Layer | SparseRead)]


def last_bar(like: Tensor, time: int) -> dict[str, Tensor]:
    """Return the start of a network that reads out the last of *time* bars, like *like*."""
    start = torch.zeros(len(like), 1, time, dtype=like.dtype, device=like.device)
    start[..., -1] = 1.0
    return {"bars": start}


def plain_bars(weights: Mapping[str, Tensor]) -> tuple[Tensor, tuple[AttendedPart, ...]]:
    """Return the weights of a network whose tokens are bars."""
    return weights["bars"], ()


class Network(nn.Module):
    """A network of this package: rows of features in, forecasts with their explanation out."""

    config: Architecture
    takes_any_length: ClassVar[bool] = False
    """Whether it takes fewer rows than its window: else only whole windows."""
    has_attention: ClassVar[bool] = True
    """Whether ``explain`` tells where it looked: else no gate of entropy, shift or regime is."""
    in_float32: ClassVar[bool] = False
    """Whether an explained window is computed in float32 whatever is asked for."""
    rows_a_pass: ClassVar[int | None] = None
    """Rows of single windows that one pass learns from on the CPU; None for a whole batch.

    What a pass keeps for the gradient then fits the caches, and its memory is used again.
    """

    @property
    def further_heads(self) -> frozenset[str]:
        """The heads beyond those that every network has, which are learnt from their own labels."""
        return frozenset()

    @property
    def given_heads(self) -> frozenset[str]:
        """The heads that not every network has: ``further_heads``, quantiles, an allocation."""
        optional = ("quantiles", "allocation")
        return self.further_heads | {name for name in optional if getattr(self.config, name, ())}

    def attend_by(self, backend: str) -> bool:
        """Attend by the kernel *backend*; return whether this network can be told to."""
        del backend
        return False

    def hold_by(self, say: Callable[[str], object]) -> None:
        """Answer NaN, which no gate lets pass, where code of a user's fails; tell *say* why.

        Without it such a failure is raised. A network of this package alone has none.
        """
        del say

    @property
    def answers_every_row(self) -> bool:
        """Whether one pass answers each of many rows as the rows before it alone would.

        Elsewhere a pass is one window, and what it says of the last row is the only answer.
        """
        return False

    def trace(self, x: Tensor, positions: Tensor | None = None) -> Trace:
        """Forecast as ``forward`` does, and return what explains it.

        Raises ``InvariantBroken`` of a network without attention.
        """
        del x, positions
        raise InvariantBroken(f"{type(self).__name__} has no attention; ask it for its forecast.")

    def explain(
        self, x: Tensor, positions: Tensor, way: AttributionMethod = STORED, *, half: bool = False
    ) -> ExplainedOutputs:
        """Forecast one window *x* [1, window, features] and explain its last bar by *way*.

        *positions* int64 [window] are absolute bar numbers; *half* multiplies in bfloat16. No
        attention matrix is stored. Of a flow the bars are the newest ``TIME_MAX``, where the
        network looks back only. Raises ``InvariantBroken`` of a network without attention, and
        ``AttentionInvalid`` for what cannot be had.
        """
        way.check()
        with torch.no_grad(), self._halved(x, half):
            seen = self.trace(x, positions)
        by_gradient = way.rollout.fusion == "gradient"
        reads = self._with_gradients(x, positions, way.rollout) if by_gradient else seen.reads
        if way.method == "flow":
            time = reads[0].shape[2]
            newest = min(TIME_MAX, time)
            found = flow(reads, [newest - 1], way.rollout, newest=newest)
            older = time - newest
            held = {name: pad(own, (older, 0)) for name, own in found.weights.items()}
        else:
            found = rollout(reads, seen.start, way.rollout, backend=explained_by(x.device))
            held, older = dict(found.weights), 0
        by_bar, parts = seen.to_bars({name: own[0] for name, own in held.items()})
        sure = [read.confidence(at)[0].mean(dim=-1) for read, at in seen.decided]
        return ExplainedOutputs(
            seen.outputs.map(lambda part: part[:, -1:]),
            BarWeights(by_bar[None, :, older:], found.l1_error),
            torch.stack(sure),
            parts,
        )

    def _halved(self, x: Tensor, half: bool) -> torch.autocast:  # noqa: FBT001
        """Return the context in which an explained window is computed."""
        return torch.autocast(x.device.type, torch.bfloat16, enabled=half and not self.in_float32)

    def _with_gradients(self, x: Tensor, positions: Tensor, method: Rollout) -> list[Read]:
        """Return the reads of one window with the gradient of the mean return by each A·V."""
        with torch.inference_mode(mode=False), torch.enable_grad():
            seen = self.trace(x, positions)
            horizons = self.config.horizons
            at = horizons.index(method.horizon) if method.horizon in horizons else 0
            figure = seen.outputs.mean[0, -1, at]
            slopes: Sequence[Tensor] = ()
            if seen.attended:
                slopes = torch.autograd.grad(figure, seen.attended, materialize_grads=True)
        found: list[Read] = []
        given = iter(slopes)
        for read in seen.reads:
            if slopes and isinstance(read, Layer | SparseRead):
                slope = next(given)
                # A layer that computes the decided bar alone has slopes at that bar alone.
                slope = pad(slope, (0, 0, read.shape[2] - slope.shape[2], 0))
                found.append(replace(read, gradient=slope))
            else:
                found.append(read)
        return found

    def attribution_by_layer(
        self, x: Tensor, positions: Tensor, *, half: bool = False
    ) -> list[LayerAttribution]:
        """Attribute one window layer by layer, the lowest first.

        Arguments and errors are those of ``explain``; carried down all layers, the decided bar
        becomes its rollout.
        """
        with self._halved(x, half):
            seen = self.trace(x, positions)
        return [layer_of(read, read.shape[2]) for read in seen.reads]

    def multiplications(self) -> Multiplications | None:
        """Count the multiplications of its attention; None where it attends densely, or not."""
        return None

    @abstractmethod
    def named_states(self, x: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Yield each stage's name and output for *x* [batch, time, features], first to last."""

    def content_free(self) -> float:
        """Return the confidence over a full window that mask and encoding alone give.

        0 where every key is alike without content, or where nothing is known of that.
        """
        return 0.0

    def dropping(self) -> list[nn.Module]:
        """Return the modules that drop numbers at random while training; empty where none does."""
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


def layer_of(read: Read, time: int, method: Rollout = PLAIN) -> LayerAttribution:
    """Attribute one read of a stream of *time* bars by itself at its last bar."""
    [name] = {read.target, read.source}
    return LayerAttribution(
        read.rows([time - 1])[0, :, 0],
        torch.arange(time - 1, -1, -1),
        lambda weights: carry_down([read], {name: weights[None]}, method)[name][0],
    )


def explained_by(device: torch.device) -> str:
    """Return what rolls out the layers of a network over whole windows.

    A run names what attends; that of a kernel says nothing of compiled loops beside it.
    """
    return "tiles" if device.type == "cpu" else "auto"


def network_kinds() -> Mapping[str, ModelKind]:
    """Return every kind that is one ``Network``, once each module of this package was imported."""
    from tracepaper.strategies import networks

    return {name: kind for name, kind in KINDS.of(networks).items() if kind.has_network}


def kind_of(name: object) -> ModelKind:
    """Return the kind of network of that name; raise ``ConfigInvalid`` where none has it."""
    known = network_kinds()
    if isinstance(name, str) and (kind := KINDS.get(name)) is not None and not kind.has_network:
        raise ConfigInvalid(
            kind.refusal or f"A {name} checkpoint has no network; name a network's checkpoint."
        )
    if not isinstance(name, str) or name not in known:
        raise ConfigInvalid(
            f"The model's card names the kind {shown(name)}; use {' or '.join(known)}."
        )
    return known[name]
