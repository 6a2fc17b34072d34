"""A checkpoint that answers for all symbols of a close, as the strategy that trades them together.

The network is run once a close at which it decides. What it says of a symbol, how much of where
it looked is of each other, and the weight that follows are notes on that symbol's decision; the
weight is its size. The rules are docs/several.md, P26 to P28.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tracepaper.strategies import features
from tracepaper.strategies.errors import CheckpointMismatch, ConfigInvalid, shown
from tracepaper.strategies.features import FeatureSchema
from tracepaper.strategies.features_rolling import Array
from tracepaper.strategies.forecasters.build import (
    filled,
    known_schema,
    per_horizon,
    section_of,
)
from tracepaper.strategies.networks.crossasset import (
    KINDS,
    CrossAssetConfig,
    CrossAssetNetwork,
    CrossLook,
    weights_of,
)
from tracepaper.strategies.outlook import Outlook
from tracepaper.strategies.portfolio import SHARE_OF, PortfolioStrategy
from tracepaper.strategies.signals import Signal
from tracepaper.strategies.types import Action, Bar

OPTIONS: Final = ("checkpoint", "every", "long_only")
DECIMALS: Final = 6
"""Weights are rounded to so many."""
SHARES_NOTED: Final = 8
"""Assets whose share of where a symbol looked is noted with its decision, the largest first."""
_BASIS_POINTS: Final = 1e4


def is_together(card: Mapping[str, Any]) -> bool:
    """Return whether *card* is of a network that answers for all symbols of a close."""
    return section_of(card, "model").get("kind") in KINDS


@dataclass(frozen=True)
class TogetherModel:
    """What a checkpoint of several assets says of itself, and its network."""

    kind: str
    network: CrossAssetNetwork
    schema: FeatureSchema
    interval: str  # as the card names it
    horizon: int  # the one that a crossasset trades by
    temperature: tuple[float, ...]  # of the direction, one a horizon
    slope: tuple[float, ...]  # of realised on predicted means
    relative_slope: tuple[float, ...]

    @classmethod
    def read(
        cls, card: Mapping[str, Any], tensors: Mapping[str, Tensor], *, threads: int | None = None
    ) -> TogetherModel:
        """Build from a card and its tensors, checked; set PyTorch's *threads* where given.

        Raises ``ConfigInvalid`` for another kind, an architecture that cannot be built or an
        unknown schema, ``CheckpointMismatch`` for tensors or a calibration that do not fit.
        """
        kind = section_of(card, "model").get("kind")
        if not isinstance(kind, str) or kind not in KINDS:
            raise ConfigInvalid(
                f"The checkpoint is of the kind {shown(kind)}, and strategy.options.checkpoint "
                f"takes {' or '.join(KINDS)}; name it by model.checkpoint."
            )
        config = CrossAssetConfig.read(section_of(card, "architecture"))
        schema, scales = known_schema(card), section_of(card, "calibration")
        if len(schema.names) != config.features or config.allocation != (kind == "portfolio"):
            raise CheckpointMismatch(
                f"The card's features {schema.schema_id} or its kind {kind} are not those of its "
                "architecture; use the card that was written."
            )
        horizon = scales.get("horizon", config.horizons[0])
        if horizon not in config.horizons:
            raise CheckpointMismatch(
                f"The card's calibration.horizon {shown(horizon)} is none of its horizons "
                f"{list(config.horizons)}; use the card that was written."
            )
        if threads is not None:
            torch.set_num_threads(threads)
        return cls(
            kind,
            filled(lambda: CrossAssetNetwork(config), tensors),
            schema,
            str(section_of(card, "market").get("interval", "")),
            horizon,
            per_horizon(scales.get("temperature", 1.0), config.horizons),
            per_horizon(scales.get("slope", 1.0), config.horizons),
            per_horizon(scales.get("relative_slope", 1.0), config.horizons),
        )

    @property
    def config(self) -> CrossAssetConfig:
        """The architecture."""
        return self.network.config

    @property
    def context(self) -> int:
        """Bars of each symbol that an answer depends on, features included."""
        return self.config.receptive_field + self.schema.lookback - 1

    @property
    def index(self) -> int:
        """The place of the horizon that it trades by."""
        return self.config.horizons.index(self.horizon)

    def weights(
        self, relative: Tensor, allocation: Tensor | None, *, long_only: bool = False
    ) -> Array:
        """Return the weights [asset, row] that answers [asset, row, horizon] and [asset, row] mean.

        A portfolio's are its own. Those of a crossasset are its expected relative returns, in
        units of each asset's volatility, less their mean; all 0 where the calibration slice gave
        these returns no slope. Sizes sum to at most 1; *long_only* leaves out what is negative.
        """
        if allocation is not None:
            found = weights_of(allocation[None])[0].double()
        else:
            expected = relative[..., self.index].double() * self.relative_slope[self.index]
            apart = expected - expected.mean(dim=0)
            found = apart / apart.abs().sum(dim=0).clamp_min(1e-12)
        if long_only:
            found = found.clamp_min(0.0)
        return np.asarray(found.numpy().round(DECIMALS)) + 0.0  # no negative zero


class CloseRows(NamedTuple):
    """What is known of every symbol at one close: features [asset, time, feature] and σ [asset]."""

    values: NDArray[np.float32]
    sigma: Array
    first: int  # the absolute number of the first bar


class TogetherStrategy(PortfolioStrategy):
    """Trade all symbols of a close together, by one network that sees all of them.

    ``every`` is how many bars lie between decisions, those of the card unless told otherwise. With
    ``[sizing] mode = "equity"`` a weight is a share of equity. Where a symbol has no bar at a
    close, or lacks one of those that an answer depends on, all of them hold.
    """

    reads_history = False

    def __init__(
        self, model: TogetherModel, symbols: Sequence[str], options: Mapping[str, object]
    ) -> None:
        if unknown := sorted(set(options) - set(OPTIONS)):
            raise ConfigInvalid(
                f"strategy.options.{unknown[0]} is unknown; use {', '.join(OPTIONS)}."
            )
        self.model = model
        self.symbols = tuple(symbols)
        self.warmup = model.context
        self._places = model.config.places(self.symbols)
        self._every = _every(options.get("every", model.config.every))
        long_only = options.get("long_only", False)
        if type(long_only) is not bool:
            raise ConfigInvalid("strategy.options.long_only must be true or false.")
        self._long_only = long_only
        self._bars: dict[str, deque[Bar]] = {
            symbol: deque(maxlen=model.context) for symbol in self.symbols
        }

    def observe(self, bar: Bar) -> None:
        """Remember a closed bar of any symbol."""
        self._bars[symbol_of(bar)].append(bar)

    def decide(self, now: Mapping[str, Outlook]) -> Mapping[str, Signal]:
        """Answer for all symbols at a close of every so many bars; elsewhere all hold."""
        first = next(iter(now.values())).exact
        if (first.open_time_ms // first.interval_ms + 1) % self._every:
            return {}
        held = self._held(now)
        if isinstance(held, str):
            return dict.fromkeys(now, Signal(Action.HOLD, held))
        look = self.look(held)
        said, sizes = look.outputs, self._weights(look)
        at, unit = self.model.index, held.sigma * np.sqrt(self.model.horizon)
        logits = said.each.direction_logits[0, :, 0, at].double()
        odds = torch.softmax(logits / self.model.temperature[at], dim=-1).numpy()
        figures = {
            "weight": sizes,
            "mean_bp": said.each.mean[0, :, 0, at].numpy() * unit * self.model.slope[at] * 1e4,
            "relative_bp": said.relative[0, :, 0, at].numpy()
            * unit
            * self.model.relative_slope[at]
            * _BASIS_POINTS,
            "volatility_bp": (0.5 * said.each.log_variance[0, :, 0, at]).exp().numpy()
            * unit
            * _BASIS_POINTS,
            "p_down": odds[:, 0],
            "p_up": odds[:, 2],
            "confidence": look.confidence.numpy(),
        }
        return {
            symbol: _signal({name: float(of[place]) for name, of in figures.items()}, shares)
            for place, (symbol, shares) in enumerate(
                zip(self.symbols, self._shares(look), strict=True)
            )
        }

    def look(self, held: CloseRows, decided: Sequence[int] | None = None) -> CrossLook:
        """Return what the network says of the close that *held* ends at, and where it looked."""
        positions = held.first + torch.arange(held.values.shape[1])
        with torch.inference_mode():
            x = torch.from_numpy(held.values)[None]
            return self.model.network.look(x, self._places, positions, decided)

    def held(self) -> CloseRows | str:
        """Return what is known of every symbol at the last close, or why nothing can be said."""
        context, newest = self.model.context, set()
        for symbol, bars in self._bars.items():
            if len(bars) < context:
                return f"{symbol} has {len(bars):,} of the {context:,} bars that are looked back on"
            if bars[-1].open_time_ms - bars[0].open_time_ms != (context - 1) * bars[0].interval_ms:
                return f"{symbol} lacks one of the last {context:,} bars"
            newest.add(bars[-1].open_time_ms)
        if len(newest) > 1:
            return "the symbols' last bars are of different closes"
        field, values, sigmas = self.model.config.receptive_field, [], []
        for symbol, bars in self._bars.items():
            block = features.compute(self.model.schema, features.columns(list(bars)))
            rows = block.values[-field:]
            if not np.isfinite(rows).all() or not np.isfinite(block.sigma[-1]):
                return f"a feature of {symbol} is not finite"
            values.append(rows)
            sigmas.append(float(block.sigma[-1]))
        last = next(iter(self._bars.values()))[-1]
        first = last.open_time_ms // last.interval_ms - field + 1
        return CloseRows(np.stack(values), np.array(sigmas), first)

    def _held(self, now: Mapping[str, Outlook]) -> CloseRows | str:
        """Return what is known where every symbol is in *now*; else which one is missing."""
        if missing := [symbol for symbol in self.symbols if symbol not in now]:
            return f"{missing[0]} has no bar at this close"
        return self.held()

    def _weights(self, look: CrossLook) -> Array:
        said = look.outputs
        allocation = None if said.allocation is None else said.allocation[0]
        found = self.model.weights(said.relative[0], allocation, long_only=self._long_only)
        weights: Array = found[:, 0]
        return weights

    def _shares(self, look: CrossLook) -> list[dict[str, float]]:
        """Return the largest shares of each decided symbol's influence, as notes."""
        found = []
        for row in look.influence.double().numpy():
            order = np.argsort(-row, kind="stable")[:SHARES_NOTED].tolist()
            found.append({f"{SHARE_OF}{self.symbols[at]}": float(row[at]) for at in order})
        return found


def symbol_of(bar: Bar) -> str:
    """Return the symbol of a bar's instrument."""
    return bar.instrument.partition(":")[2]


def _every(value: object) -> int:
    if type(value) is not int or value < 1:
        raise ConfigInvalid(
            f"strategy.options.every is {shown(value)}; it must be a whole number of bars."
        )
    return value


def _signal(figures: Mapping[str, float], shares: Mapping[str, float]) -> Signal:
    """Return the signal of one symbol, its size the weight, with what it follows from."""
    weight, note = figures["weight"], {**figures, **shares}
    if weight == 0.0:
        return Signal(Action.FLAT, "no weight", note=note)
    action = Action.LONG if weight > 0.0 else Action.SHORT
    return Signal(action, "held by its weight", min(abs(weight), 1.0), note=note)
