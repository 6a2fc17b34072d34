"""A factorised network over several assets: attention over time, then over assets.

Each layer is two blocks, so that no attention is [asset x bar] squared. ``joint`` attention is one
block per layer over all tokens of a window that ends now, and answers only its last bar. Only an
embedding of the symbol distinguishes assets, so their order has no effect.

The rules are docs/several.md, P24 and P25.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Final, NamedTuple

import torch
from msgspec import Meta
from torch import Tensor, nn
from torch.nn import functional

from tracepaper.strategies.attention.masks import Mask
from tracepaper.strategies.attention.methods import PLAIN, Rollout, rollout
from tracepaper.strategies.errors import AttentionInvalid, ConfigInvalid
from tracepaper.strategies.networks import keys
from tracepaper.strategies.networks.architecture import Heads, Outputs, Trace
from tracepaper.strategies.networks.encodings import ENCODINGS, Phases, Sizes
from tracepaper.strategies.networks.flash import Block, BlockOptions, each_block
from tracepaper.strategies.networks.grid import GridAxis, along, attend_by_axis
from tracepaper.strategies.networks.keys import Rule, one_of

SYMBOLS_MAX: Final = 1_000
FACTORISED: Final = "factorised"
JOINT: Final = "joint"
_ROWS_AT_ONCE: Final = 32
"""Decided assets whose rows of weights are carried together; bounds memory."""


@dataclass(frozen=True, slots=True)
class CrossAssetConfig(keys.ReadKeys):
    """The architecture; it is stored in a model's card as ``[architecture]``.

    ``symbols`` have an embedding each, in their order. Weights are held for ``every`` bars.
    """

    symbols: Annotated[
        tuple[str, ...],
        keys.derived("Symbols, each with an embedding; the candles tell.", max_length=SYMBOLS_MAX),
    ] = ()
    features: keys.Features = 78
    dim: keys.Dim = 32
    layers: keys.Layers = 2
    heads: keys.Heads = 4
    window: keys.Window = 64
    horizons: keys.Horizons = (5, 30, 240)
    attention: Annotated[str, Meta(description="Attention: factorised, or joint over windows.")] = (
        FACTORISED
    )
    interval_minutes: keys.IntervalMinutes = 1
    mlp_ratio: keys.MlpRatio = 2.0
    dropout: keys.Dropout = 0.0
    allocation: Annotated[bool, keys.derived("Also learn weights; the kind tells.")] = False
    every: Annotated[
        int, Meta(ge=1, le=1_000_000, description="Bars between rebalances: one of the horizons.")
    ] = 30
    factors: Annotated[
        int, Meta(ge=0, le=32, description="Factors of the correlations; 0: none.")
    ] = 0

    RULES: ClassVar[tuple[keys.Rule, ...]] = (
        Rule(
            lambda of: of.symbols and len(set(of.symbols)) == len(of.symbols),
            f"symbols must name 1 to {SYMBOLS_MAX:,} different symbols",
        ),
        one_of("attention", (FACTORISED, JOINT)),
        Rule(
            lambda of: of.every in of.horizons,
            "every is {of.every}; weights are held for one of the horizons, {of.horizons}",
        ),
        keys.EVEN_HEADS,
    )

    @property
    def receptive_field(self) -> int:
        """How many bars of each asset one answer depends on."""
        if self.attention == JOINT:
            return self.window
        return self.layers * (self.window - 1) + 1

    def places(self, symbols: Sequence[str]) -> Tensor:
        """Return the index of each of *symbols* in the embedding: int64 [asset].

        Raises ``ConfigInvalid`` for a symbol that the network was not trained on.
        """
        place_of = {symbol: place for place, symbol in enumerate(self.symbols)}
        if unknown := [symbol for symbol in symbols if symbol not in place_of]:
            raise ConfigInvalid(
                f"The network knows {', '.join(self.symbols[:8])}"
                f"{' and others' if len(self.symbols) > 8 else ''}, and not {unknown[0]}; train it "
                "with its candles, or take the symbol out."
            )
        return torch.tensor([place_of[symbol] for symbol in symbols], dtype=torch.int64)


class CrossOutputs(NamedTuple):
    """The outputs for each asset at each bar; returns are in units of ``sigma * sqrt(horizon)``."""

    each: Outputs  # [batch, asset, time, ...]: of each asset alone
    relative: Tensor  # [batch, asset, time, horizon]: its return less the mean of the assets
    allocation: Tensor | None  # [batch, asset, time] in (-1, 1), before ``weights_of``
    loadings: Tensor | None = None  # [batch, asset, time, horizon, factor]: see ``correlations_of``

    def map(self, change: Callable[[Tensor], Tensor]) -> CrossOutputs:
        """Return *change* of every head that the network has."""
        return CrossOutputs(
            self.each.map(change),
            change(self.relative),
            None if self.allocation is None else change(self.allocation),
            None if self.loadings is None else change(self.loadings),
        )


def correlations_of(loadings: Tensor) -> Tensor:
    """Return the correlation of each pair of assets: [batch, pair, time, horizon].

    Pairs are (0, 1), (0, 2), … (1, 2), …. Rows of *loadings* at one bar and horizon have one length
    of at most 1. Their products with the diagonal raised to 1 are a correlation matrix, because a
    non-negative diagonal keeps it positive semi-definite.
    """
    first, second = torch.triu_indices(loadings.shape[1], loadings.shape[1], offset=1)
    return (loadings[:, first] * loadings[:, second]).sum(dim=-1)


def weights_of(allocation: Tensor) -> Tensor:
    """Return weights [batch, asset, time] whose sizes sum to at most 1 over the assets."""
    return allocation / allocation.abs().sum(dim=1, keepdim=True).clamp_min(1.0)


class CrossAttribution(NamedTuple):
    """The outputs for the last bar of one window, and the attention of each decided asset."""

    outputs: CrossOutputs  # [1, asset, 1, ...]
    weights: Tensor  # [decided asset, asset, time], each decided asset's sum to 1
    heads: Tensor  # [decided asset, block, head]: confidence, 1 - H / ln n

    @property
    def influence(self) -> Tensor:
        """The share of each asset in each decided asset's attention: [decided asset, asset]."""
        return self.weights.sum(dim=-1)


class CrossAssetNetwork(nn.Module):
    """Rows of features of several assets in, the forecasts of each asset's bars out."""

    def __init__(self, config: CrossAssetConfig) -> None:
        super().__init__()
        self.config = config
        options = BlockOptions.of(config)
        self.embed = nn.Linear(config.features, config.dim)
        self.asset = nn.Embedding(len(config.symbols), config.dim)
        nn.init.normal_(self.asset.weight, std=0.02)
        self.encoding = ENCODINGS["rope"](Sizes(config.dim, config.heads, config.window))
        is_joint = config.attention == JOINT
        self.over_time = nn.ModuleList(Block(options, depth) for depth in range(config.layers))
        self.over_assets = nn.ModuleList(
            Block(options, depth) for depth in range(0 if is_joint else config.layers)
        )
        self.norm = nn.LayerNorm(config.dim)
        self.heads = Heads(config.dim, len(config.horizons))
        self.relative = _near_zero(config.dim, len(config.horizons))
        self.allocate = _near_zero(config.dim, 1) if config.allocation else None
        self.load = self.share = None
        if config.factors:
            self.load = nn.Linear(config.dim, len(config.horizons) * config.factors)
            self.share = _near_zero(config.dim, len(config.horizons))

    def forward(self, x: Tensor, assets: Tensor, positions: Tensor) -> CrossOutputs:
        """Forecast each bar of *x* [batch, asset, time, feature].

        *assets* int64 [asset] are indices of the embedding, *positions* int64 [time] absolute
        numbers of consecutive bars. With joint attention only the last bar is answered.
        """
        return self._outputs(self._run(x, assets, positions, None))

    def explain(
        self,
        x: Tensor,
        assets: Tensor,
        positions: Tensor,
        method: Rollout = PLAIN,
        decided: Sequence[int] | None = None,
    ) -> CrossAttribution:
        """Forecast one window *x* [1, asset, time, feature] and explain its last bar by *method*.

        *decided* are the indices of the *assets* to explain; by default all of them. A row of
        weights over the tokens is carried for each: [asset x time] squared is never stored. Raises
        ``AttentionInvalid`` for a method that its layers do not support.
        """
        trace = Trace()
        state = self._run(x, assets, positions, trace)
        rows = list(range(x.shape[1]) if decided is None else decided)
        last = [row * x.shape[2] + x.shape[2] - 1 for row in rows]  # tokens, asset by asset
        weights = []
        for first in range(0, len(last), _ROWS_AT_ONCE):
            part = last[first : first + _ROWS_AT_ONCE]
            start = state.new_zeros(1, len(part), trace.reads[-1].shape[2])
            start[0, range(len(part)), part] = 1.0
            weights.append(rollout(trace.reads, {"tokens": start}, method).weights["tokens"][0])
        return CrossAttribution(
            self._outputs(state[:, :, -1:]),
            torch.cat(weights).unflatten(1, x.shape[1:3]),
            torch.stack([read.confidence(last)[0].T for read in trace.reads], dim=1),
        )

    def _outputs(self, state: Tensor) -> CrossOutputs:
        last = self.norm(state)
        allocation = None
        if self.allocate is not None:
            allocation = torch.tanh(self.allocate(last).squeeze(-1))
        return CrossOutputs(self.heads(last), self.relative(last), allocation, self._loadings(last))

    def _loadings(self, last: Tensor) -> Tensor | None:
        """Return unit rows of factors times the root of the share that they explain."""
        if self.load is None or self.share is None:
            return None
        raw = self.load(last).unflatten(-1, (-1, self.config.factors))
        unit = functional.normalize(raw, dim=-1)
        share = torch.sigmoid(self.share(last.mean(dim=1, keepdim=True)))  # equal for all assets
        return unit * share.sqrt()[..., None]

    def _run(self, x: Tensor, assets: Tensor, positions: Tensor, trace: Trace | None) -> Tensor:
        """Return the last layer's states [batch, asset, time, dim]; of the last bar, if joint."""
        if x.shape[1] != len(assets) or x.shape[2] != len(positions):
            raise AttentionInvalid(
                f"Rows of {x.shape[1]} assets and {x.shape[2]} bars came with {len(assets)} assets "
                f"and {len(positions)} positions; give one of each."
            )
        state: Tensor = self.embed(x) + self.asset(assets)[:, None]
        phases = self.encoding.phases(positions)
        if self.config.attention == JOINT:
            return self._joint(state, phases, trace)
        axes = (GridAxis(1, Mask.window(self.config.window), phases), GridAxis(0, Mask.full()))
        layers = zip(each_block(self.over_time), each_block(self.over_assets), strict=True)
        return attend_by_axis(layers, state, axes, trace)

    def _joint(self, state: Tensor, phases: Phases, trace: Trace | None) -> Tensor:
        """Let all tokens see all others: a window that ends now has no later bars to leak."""
        assets, time = state.shape[1:3]
        if time != self.config.window:
            raise AttentionInvalid(
                f"Joint attention takes windows of {self.config.window} bars, not {time}; cut or "
                "warm the window."
            )
        cosine, sine = (
            None if part is None else part.repeat(assets, 1, 1, 1)
            for part in (phases.cosine, phases.sine)
        )
        repeated = Phases(cosine, sine)
        rows = state.flatten(1, 2)[:, None]  # [batch, 1, asset * time, dim]
        for block in each_block(self.over_time):
            rows, layer = along(block, rows, repeated, Mask.full(), trace)
            if trace is not None and layer is not None:
                trace.attend(layer)
        return rows[:, 0].unflatten(1, (assets, time))[:, :, -1:]


def _near_zero(dim: int, width: int) -> nn.Linear:
    """Return a projection with small initial weights and no bias."""
    layer = nn.Linear(dim, width)
    nn.init.normal_(layer.weight, std=0.01)
    nn.init.zeros_(layer.bias)
    return layer


# ---------------------------------------------------------------- losses


def relative_loss(outputs: CrossOutputs, relative: Tensor) -> Tensor:
    """Return Huber's loss of *relative* returns [batch, asset, time, horizon], elementwise."""
    return functional.huber_loss(outputs.relative, relative, reduction="none")


def correlation_loss(loadings: Tensor, realised: Tensor) -> Tensor:
    """Return the squared errors of the correlations by *loadings*: [batch, row, horizon, pair].

    *realised* [batch, pair, row, horizon] are the realised correlations; where they are NaN the
    error and its gradient are 0.
    """
    forecast = correlations_of(loadings)
    target = torch.where(realised.isfinite(), realised, forecast.detach())
    return (forecast - target).square().permute(0, 2, 3, 1)


class PortfolioCosts(NamedTuple):
    """The constants of a portfolio's loss."""

    fee: float  # a share of the traded amount
    unit: float  # a usual return over the holding time: the unit of the loss
    aversion: float  # price of variance, in these units


def portfolio_loss(allocation: Tensor, gains: Tensor, costs: PortfolioCosts) -> Tensor:
    """Return the negative mean utility of holding the weights of *allocation*, net of turnover.

    *allocation* and *gains* are [batch, asset, decision]; gains are the simple returns until the
    next decision, 0 if unknown. The first decision of each row has no predecessor: it only starts
    the turnover of the next, and earns nothing.
    """
    weights = weights_of(allocation)
    turnover = (weights[..., 1:] - weights[..., :-1]).abs().sum(dim=1)
    net = (weights[..., 1:] * gains[..., 1:]).sum(dim=1) - costs.fee * turnover
    scaled = net / costs.unit
    return (0.5 * costs.aversion * scaled**2 - scaled).mean()
