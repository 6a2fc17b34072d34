"""The forecaster of a network over several symbols: one answer per close of all their bars.

The rules are docs/several.md, P26 to P28.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from msgspec.structs import replace
from numpy.typing import NDArray
from torch import Tensor

from tracepaper.strategies.api.model import DataSource, ModelKind, register
from tracepaper.strategies.api.strategy import Forecaster
from tracepaper.strategies.attention import kernels
from tracepaper.strategies.attention.methods import PLAIN, Rollout
from tracepaper.strategies.builtin import CommonBars, SymbolAnswer, symbol_of
from tracepaper.strategies.errors import ConfigInvalid, shown
from tracepaper.strategies.features.rolling import Array
from tracepaper.strategies.features.rows import FeatureRows, FeatureSchema
from tracepaper.strategies.forecasters.base import (
    CheckpointForecaster,
    FeatureMemory,
    InstrumentMemory,
    feature_windows,
)
from tracepaper.strategies.forecasters.build import RunOptions, filled, known_kind, known_schema
from tracepaper.strategies.forecasters.outputs import explained_rows, forecasts
from tracepaper.strategies.forecasters.windowed import CONTENT_FREE
from tracepaper.strategies.gates.card import calibration_of, per_horizon, section_of
from tracepaper.strategies.gates.gate import MEASURES
from tracepaper.strategies.networks.cross_asset import (
    CrossAssetConfig,
    CrossAssetNetwork,
    CrossAttribution,
    CrossOutputs,
    weights_of,
)
from tracepaper.strategies.time_buckets import (
    RECENT_SHARE,
    bucket_bars,
    buckets_of,
    cells_by_age,
    shift,
)
from tracepaper.strategies.types.calibration import Calibration
from tracepaper.strategies.types.decisions import Explanation, Forecast, HeadForecasts
from tracepaper.strategies.types.market import Bar

Ids = NDArray[np.int64]
DECIMALS: Final = 6
"""The decimals of weights."""


@dataclass(frozen=True)
class TogetherModel:
    """A checkpoint of several symbols: identity, calibration and network."""

    kind: str
    network: CrossAssetNetwork
    schema: FeatureSchema
    model_id: str
    sha256: str
    horizon: int  # the horizon of a crossasset's weights
    temperature: tuple[float, ...]  # of the direction, one a horizon
    relative_slope: tuple[float, ...]  # of realised on predicted relative returns
    calibration: Calibration | None

    @classmethod
    def read(cls, card: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> TogetherModel:
        """Build from a card and its tensors.

        Raises ``ConfigInvalid`` for another kind, an architecture that cannot be built or an
        unknown schema, ``CheckpointMismatch`` for tensors that do not fit.
        """
        identity = section_of(card, "model")
        kind = known_kind(card)
        if kind is None or kind.source is not DataSource.CLOSES:
            raise ConfigInvalid(
                f"The checkpoint is of the kind {shown(str(identity.get('kind')))}, not "
                f"{' or '.join(KINDS)}; name another."
            )
        config = CrossAssetConfig.read(section_of(card, "architecture"))
        schema, scales = known_schema(card), section_of(card, "calibration")
        horizon = scales.get("horizon", config.horizons[0])
        return cls(
            kind.name,
            filled(lambda: CrossAssetNetwork(config), tensors),
            schema,
            str(identity.get("id", "")),
            str(identity.get("sha256", "")),
            horizon,
            per_horizon(scales.get("temperature", 1.0), config.horizons),
            per_horizon(scales.get("relative_slope", 1.0), config.horizons),
            calibration_of(scales, CONTENT_FREE, config.horizons),
        )

    @property
    def config(self) -> CrossAssetConfig:
        """The architecture."""
        return self.network.config

    @property
    def context(self) -> int:
        """Bars of each symbol that an answer depends on, features included."""
        return self.config.receptive_field + self.schema.lookback - 1

    def weights(self, relative: Tensor, allocation: Tensor | None) -> Array:
        """Return weights [asset, row] by *relative* [asset, row, horizon] and *allocation*.

        *allocation* [asset, row] gives a portfolio's weights. Those of a crossasset are its
        expected relative returns, in units of each asset's volatility, less their mean; all are 0
        if the calibration found no slope for these returns. Sizes sum to at most 1.
        """
        if allocation is not None:
            weights = weights_of(allocation[None])[0].double()
        else:
            at = self.config.horizons.index(self.horizon)
            expected = relative[..., at].double() * self.relative_slope[at]
            excess = expected - expected.mean(dim=0)
            weights = excess / excess.abs().sum(dim=0).clamp_min(1e-12)
        return np.asarray(weights.numpy().round(DECIMALS)) + 0.0  # no negative zero


class LastClose(NamedTuple):
    """The network's answer at the newest close of all symbols, and the attention of each."""

    attribution: CrossAttribution
    by_time: Array  # [symbol, time]: the attention of each, summed over the attended symbols
    positions: Ids  # [time]: absolute numbers of the bars


class TogetherForecaster(CheckpointForecaster):
    """A network over several symbols, with one answer per close.

    If a close lacks one of the symbols, or one of the bars of an answer's lookback, no symbol has
    an answer. Raises ``ConfigInvalid`` for a symbol that it was not trained on.
    """

    causal = False  # an answer needs the bars of all symbols; bars of one have none
    scanned_at_once = 1

    def __init__(self, model: TogetherModel, symbols: Sequence[str], *, threads: int) -> None:
        correlations = {"correlations"} if model.config.factors else set()
        super().__init__(
            model,
            FeatureMemory(model.schema, expected=len(symbols)),
            context=model.context,
            horizons=model.config.horizons,
            measures=MEASURES | correlations,
            mode="batched",
            threads=threads,
            backend=kernels.resolve("auto", "cpu", torch.float32),
        )
        self.model = model
        self.symbols = tuple(symbols)
        self.every = model.config.every
        self.bucket_bars = bucket_bars(model.config.receptive_field)
        self._places = model.config.places(self.symbols)
        self._windows = feature_windows(model.config.receptive_field, model.schema)
        self._bars = CommonBars(self.symbols, self.context)
        self._before: tuple[int, Array | None] = -1, None  # a close, and its ``by_time``
        torch.set_num_threads(threads)

    def remember(self, memory: InstrumentMemory, bars: Sequence[Bar], taken: FeatureRows) -> None:
        """Restart the window of one symbol."""
        symbol = memory.instrument.partition(":")[2]
        self._windows.pop(symbol, None)
        self._bars.forget(symbol)
        self._before = -1, None
        for bar in bars:
            self._bars.take(bar)
        self._windows[symbol].fill(bars, taken)

    def answer(
        self, bars: Sequence[Bar], taken: FeatureRows, *, is_group: bool
    ) -> list[Forecast | None]:
        """Return the answers to the *bars* of one close if it has all symbols.

        All are NaN if a feature of one of these bars is not finite.
        """
        del is_group  # it is never asked about known bars of one symbol: it is not causal
        before = self._attended_before()
        sigmas = {}  # by symbol; NaN where its features cannot be used
        for at, bar in enumerate(bars):
            self._bars.take(bar)
            sigma = self._windows[symbol_of(bar)].take(bar, taken, at)
            sigmas[symbol_of(bar)] = float("nan") if sigma is None else sigma
        if len(bars) < len(self.symbols) or self._bars.lacking():
            return [None] * len(bars)
        close = self.last_close()
        unit = np.array([sigmas[symbol] for symbol in self.symbols])
        if not np.isfinite(unit).all():
            unit = np.full(len(unit), np.nan)
        predictions = self._answers(close.attribution, unit, self._explained(close, before))
        self._before = self._newest_ms, close.by_time
        answers = dict(zip(self.symbols, predictions, strict=True))
        return [answers[symbol_of(bar)] for bar in bars]

    def last_close(self, method: Rollout = PLAIN) -> LastClose:
        """Return the forecasts of the newest close, and each symbol's attribution by *method*.

        All bars of the lookback must be known: see ``lacking``. Raises ``AttentionInvalid`` for a
        method that its layers do not support.
        """
        held = [self._windows[symbol] for symbol in self.symbols]
        x = torch.from_numpy(np.stack([window.rows for window in held]))[None]
        positions = held[0].positions
        with torch.inference_mode():
            attribution = self.model.network.explain(
                x, self._places, torch.from_numpy(positions), method
            )
        return LastClose(attribution, attribution.weights.double().sum(dim=1).numpy(), positions)

    @property
    def lacking(self) -> str:
        """The symbol and bars that are missing, in a sentence; empty if there is a close."""
        return self._bars.lacking()

    @property
    def _newest_ms(self) -> int:
        """The open time of the first symbol's newest bar."""
        return self._bars.newest_ms[self.symbols[0]]

    def _attended_before(self) -> Array | None:
        """Return ``by_time`` of the newest close before the next; None if it had no answer.

        After a start it is recomputed from the bars, with the same result.
        """
        if self._before[0] == self._newest_ms:
            return self._before[1]
        return None if self._bars.lacking() else self.last_close().by_time

    def _explained(self, close: LastClose, before: Array | None) -> list[Explanation]:
        """Return the explanation of each symbol, by age over the bars of all symbols.

        *before* is ``by_time`` of the previous close.
        """
        by_time = close.by_time
        rows = np.stack([buckets_of(row, close.positions) for row in by_time])
        positions = np.repeat(close.positions[-1:], len(rows))
        by_age = cells_by_age(rows, positions, self.bucket_bars)
        shifts = [None] * len(rows) if before is None else shift(before, by_time).tolist()
        recent = (
            by_time[:, -max(round(self.model.config.receptive_field * RECENT_SHARE), 1) :]
            .sum(axis=1)
            .tolist()
        )
        heads = close.attribution.heads.float().flatten(1).numpy()
        errors = np.abs(1.0 - by_time.sum(axis=1)).tolist()
        return explained_rows(
            rows, heads, by_age, recent=recent, shifts=shifts, errors=errors,
            content_free=CONTENT_FREE, context=self.model.config.receptive_field,
        )  # fmt: skip

    def _answers(
        self, attribution: CrossAttribution, sigma: Array, explained: Sequence[Explanation]
    ) -> list[Forecast]:
        """Return the forecast of each symbol, with its weight, relative returns and heads."""
        outputs, model = attribution.outputs, self.model
        answers = forecasts(
            outputs.each.map(lambda part: part[0]),
            sigma,
            explained,
            horizons=self.horizons,
            temperature=model.temperature,
        )
        allocation = None if outputs.allocation is None else outputs.allocation[0]
        weights = model.weights(outputs.relative[0], allocation)[:, 0].tolist()
        unit = sigma[:, None] * np.sqrt(self.horizons) * np.array(model.relative_slope)
        relative = outputs.relative[0, :, 0].double().numpy() * unit
        shares = attribution.influence.double().numpy()
        return [
            replace(
                answer,
                auxiliary=SymbolAnswer(weight, tuple(returns), tuple(row)).encoded(),
                heads=heads,
            )
            for answer, weight, returns, row, heads in zip(
                answers, weights, relative.tolist(), shares.tolist(), _heads(outputs), strict=True
            )
        ]


def _heads(outputs: CrossOutputs) -> list[HeadForecasts | None]:
    """Pack each symbol's row of the correlations at each horizon; None without that head."""
    if outputs.loadings is None:
        return [None] * outputs.relative.shape[1]
    loadings = outputs.loadings[0, :, 0].double()  # [symbol, horizon, factor]
    rows = torch.einsum("ahf,bhf->ahb", loadings, loadings)
    rows.diagonal(dim1=0, dim2=2).fill_(1.0)
    return [HeadForecasts(correlations=row.numpy().astype("<f4").tobytes()) for row in rows]


def over_symbols(forecaster: Forecaster | None) -> TogetherForecaster | None:
    """Return the model that answers for all symbols of a close; None for any other forecaster."""
    return forecaster if isinstance(forecaster, TogetherForecaster) else None


def _of_close(
    card: Mapping[str, Any], tensors: Mapping[str, Tensor], options: RunOptions
) -> TogetherForecaster:
    """Return the forecaster of the symbols of *options*, by its horizon if the model has it.

    Raises ``ConfigInvalid`` without symbols: bars of one symbol have no answer.
    """
    model = TogetherModel.read(card, tensors)
    if not options.symbols:
        raise ConfigInvalid(KINDS[model.kind].refusal)
    if options.horizon in model.config.horizons:
        model = dataclasses.replace(model, horizon=options.horizon)
    return TogetherForecaster(model, options.symbols, threads=options.threads)


KINDS: Final[Mapping[str, ModelKind]] = {
    name: register(
        ModelKind(
            name,
            summary,
            DataSource.CLOSES,
            build=_of_close,
            heads=heads,
            refusal=f"A {name} checkpoint answers for all symbols of a close; trade it by "
            f"strategy.name '{name}'.",
        )
    )
    for name, summary, heads in (
        (
            "crossasset",
            "several symbols at once, with returns relative to each other",
            frozenset({"relative"}),
        ),
        (
            "portfolio",
            "the same with weights, costs and turnover inside the loss",
            frozenset({"relative", "allocation"}),
        ),
    )
}
"""The kinds that answer for all symbols of a close."""
