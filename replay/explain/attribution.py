"""Attribution of one decision by feature, method and asset; comparison of two decisions.

The model that decided is loaded from beside the database and reads the stored bars of every symbol.
The rule is docs/several.md, P28.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Final

import numpy as np
from msgspec.structs import replace

from tracepaper.daemon.config.loading import restore
from tracepaper.daemon.session.covariates import recorded_covariates, recorded_covariates_name
from tracepaper.daemon.session.models import forecaster_of
from tracepaper.daemon.session.user_model import user_model
from tracepaper.replay.document.values import (
    Figure,
    Form,
    Paragraph,
    Part,
    of_field,
    table,
    table_of,
)
from tracepaper.replay.explain.decision_document import ATTENDED, BASIS_POINTS
from tracepaper.replay.explain.options import TypedMethod
from tracepaper.replay.explain.recompute import (
    FEATURES_SHOWN,
    Floats,
    FullAttribution,
    attribute,
    rank_correlation,
    relevance_by_bar,
)
from tracepaper.replay.report.past import (
    ModelAnswer,
    Past,
    PastOf,
    bars_before,
    kept_forecaster,
    stored_forecast,
)
from tracepaper.storage import checkpoints
from tracepaper.storage.database.reader import Reader
from tracepaper.strategies.api.strategy import Forecaster
from tracepaper.strategies.attention.methods import PLAIN, Rollout, fusion_of, head_weights
from tracepaper.strategies.builtin import SymbolAnswer
from tracepaper.strategies.errors import AttentionInvalid, ConfigInvalid, DataInvalid
from tracepaper.strategies.forecasters.attribution import Probe, attending
from tracepaper.strategies.forecasters.cross_asset import over_symbols
from tracepaper.strategies.forecasters.tabular import (
    RowForecaster,
    figures_of_rows,
    network_shares,
    row_member,
)
from tracepaper.strategies.types.market import Bar
from tracepaper.strategies.units import iso, percent

COMPARED_SHOWN: Final = 6
CONTRIBUTIONS_SHOWN: Final = 8


@dataclass(frozen=True)
class FeatureContribution:
    """Contribution of one feature: a summand of the mean (log return), a factor of volatility."""

    feature: str
    value: float  # of the decided bar
    mean_return: float
    volatility: float


@dataclass(frozen=True)
class ByFeature(ModelAnswer):
    """Contributions at the gates' horizon, the largest change of volatility first.

    ``mean_base`` plus all means is ``mean_return``. ``volatility_base`` (in units of σ √h, as the
    labels) times all factors and σ √h is ``volatility``. ``gap`` is the largest difference from the
    stored forecast.
    """

    key: ClassVar = "by_feature"
    horizon: int  # bars
    mean_return: float
    mean_base: float
    volatility: float
    volatility_base: float
    gap: float
    features: tuple[FeatureContribution, ...]
    share: float | None = (
        None  # of this model in an ensemble's log variance; the network has the rest
    )

    def parts(self) -> Iterator[Part]:
        """Yield the features that contribute most."""
        yield table_of(
            "by_feature",
            f"Added by each feature, over {self.horizon} bars",
            {"feature": "text", "value": "exact", "mean, bp": "points", "volatility ×": "exact"},
            [
                ("base value", "", self.mean_base, f"{self.volatility_base:.3g}"),
                *(
                    (
                        feature.feature,
                        f"{feature.value:+.3f}",
                        feature.mean_return,
                        f"{feature.volatility:.4f}",
                    )
                    for feature in self.features[:FEATURES_SHOWN]
                ),
            ],
        )
        rest = len(self.features) - FEATURES_SHOWN
        yield Paragraph(
            f"With {max(rest, 0)} further features the means sum to "
            f"{BASIS_POINTS * self.mean_return:+.3f} bp and the factors multiply to a volatility "
            f"of {BASIS_POINTS * self.volatility:.2f} bp; what was stored differs by at most "
            f"{self.gap:.1e}."
        )
        if self.share is not None:
            yield Paragraph(
                f"These are the contributions of the ensemble's row model, which has a share of "
                f"{self.share:.2f} in the log variance; the network has the rest, and the mean."
            )

    @property
    def added(self) -> Sequence[tuple[str, float]]:
        """What each feature added to the mean."""
        return [(feature.feature, feature.mean_return) for feature in self.features]


def past_of_row_model(past: PastOf[Forecaster]) -> PastOf[RowForecaster] | None:
    """Return *past* with the model of single rows that decided; None if no such model did.

    For an ensemble with such a member, it has that member and its forecast.
    """
    forecaster, forecast = row_member(past.forecaster), past.forecast
    if forecaster is None:
        return None
    if forecaster is not past.forecaster:
        forecaster.warm(past.decided.instrument, past.bars)
        mean, volatility = (tuple(column) for column in figures_of_rows(forecast).tolist())
        forecast = replace(forecast, mean_return=mean, volatility=volatility)
    return PastOf(**{**vars(past), "forecaster": forecaster, "forecast": forecast})


@dataclass(frozen=True)
class ModelContributions(ModelAnswer):
    """Contributions that a custom model reports for each feature, the largest first.

    They are log returns at the gates' horizon, include the base value and sum to ``mean_return``.
    """

    key: ClassVar = "contributions"
    horizon: int  # bars
    mean_return: float
    features: tuple[tuple[str, float], ...]

    def parts(self) -> Iterator[Part]:
        """Yield the largest contributions of a custom model, and the sum of all."""
        yield table_of(
            "contributions",
            f"Added to the mean by each feature, over {self.horizon} bars, as the model says",
            {"feature": "text", "mean, bp": "points"},
            list(self.features[:CONTRIBUTIONS_SHOWN]),
        )
        rest = max(len(self.features) - CONTRIBUTIONS_SHOWN, 0)
        yield Paragraph(
            f"With {rest} further features they sum to the stored "
            f"{BASIS_POINTS * self.mean_return:+.3f} bp. They are computed on request, not stored."
        )

    @property
    def added(self) -> Sequence[tuple[str, float]]:
        """What each feature added to the mean."""
        return self.features


def model_contributions(past: PastOf[Forecaster]) -> ModelContributions | None:
    """Return the contributions that a custom model reports; None if it reports none.

    Raises ``DataInvalid`` if they do not sum to the stored forecast.
    """
    model = user_model(past.forecaster)
    added = None if model is None else model.contributions(past.decided.instrument)
    if added is None:
        return None
    at, total = past.horizon_index, sum(added.values())
    horizon = past.forecast.horizons[at]
    if not past.forecast.mean_return:
        raise DataInvalid(
            f"The model {past.forecaster.model_id} gives contributions and no mean_return; declare "
            "that measure."
        )
    mean = past.forecast.mean_return[at]
    if abs(total - mean) > _SUM_TOLERANCE * (abs(mean) + sum(map(abs, added.values()))):
        raise DataInvalid(
            f"The contributions of the model {past.forecaster.model_id} sum to {total:.6g}, and "
            f"its mean_return {horizon} bars ahead is {mean:.6g}; let them sum to it, the base "
            "value included."
        )
    largest = sorted(added.items(), key=lambda item: -abs(item[1]))
    return ModelContributions(horizon, mean, tuple(largest))


_SUM_TOLERANCE: Final = 1e-6


@dataclass(frozen=True)
class ModelAttended(ModelAnswer):
    """The share of attention that a custom model reports for each bar of its context."""

    key: ClassVar = "attended"
    attribution: FullAttribution

    def parts(self) -> Iterator[Part]:
        """Yield the decided bar and the heaviest past bars."""
        yield from self.attribution.parts()


def model_attended(past: PastOf[Forecaster]) -> ModelAttended | None:
    """Return where a custom model looked, as it reports; None if it does not, or sees one bar."""
    model = user_model(past.forecaster)
    shares = None if model is None else model.attended(past.decided.instrument)
    if shares is None or len(shares) == 1:
        return None
    bars = past.bars[-len(shares) :]
    scale = 10**past.price_decimals
    return ModelAttended(
        FullAttribution(
            tuple(bar.open_time_ms for bar in bars),
            tuple(bar.close / scale for bar in bars),
            shares,
            abs(sum(shares) - 1),
            None,
        )
    )


def share_of_rows(past: PastOf[Forecaster]) -> float | None:
    """Return the row model's share of an ensemble's log variance; None if it is no ensemble."""
    shares = network_shares(past.forecaster)
    return None if shares is None else 1.0 - shares[past.horizon_index]


def by_feature(past: PastOf[RowForecaster], *, share: float | None = None) -> ByFeature:
    """Return the contribution of each feature to the forecast, computed from the stored bars.

    *share* is the model's share of an ensemble's log variance, if it is a member of one.
    """
    explained = past.forecaster.explain(past.decided.instrument)
    at = past.horizon_index
    horizon = past.forecast.horizons[at]
    root = explained.sigma * float(np.sqrt(horizon))
    mean, log_variance = explained.added.mean[at] * root, explained.added.log_variance[at]
    mean_base = float(explained.added.mean_base[at]) * root
    volatility_base = float(np.exp(0.5 * explained.added.log_variance_base[at]))
    total_mean = mean_base + float(mean.sum())
    volatility = volatility_base * float(np.exp(0.5 * log_variance.sum())) * root
    names = past.forecaster.trained.schema.names
    columns = (names, explained.row.tolist(), mean.tolist(), np.exp(0.5 * log_variance).tolist())
    features = [FeatureContribution(*column) for column in zip(*columns, strict=True)]
    return ByFeature(
        horizon=horizon,
        mean_return=total_mean,
        mean_base=mean_base,
        volatility=volatility,
        volatility_base=volatility_base,
        gap=max(
            abs(total_mean - past.forecast.mean_return[at]),
            abs(volatility - past.forecast.volatility[at]),
        ),
        features=tuple(sorted(features, key=lambda feature: -abs(np.log(feature.volatility)))),
        share=share,
    )


def method_of(typed: TypedMethod, stored: Rollout = PLAIN) -> Rollout:
    """Return the method with its options; an option that was not typed is that of *stored*.

    If *typed* names another method than *stored*, its other options have their defaults. Raises
    ``AttentionInvalid`` for an unknown method or option, ``DataInvalid`` for invalid weights.
    """
    name = typed.method or stored.name
    base = stored if name == stored.name else PLAIN
    fusion = typed.fusion or (base.fusion if name == "rollout" else None)
    given = {
        "residual_weight": typed.residual,
        "start_layer": typed.start_layer,
        "discard_ratio": typed.discard,
        "head_weights": None if typed.head_weights is None else head_weights(typed.head_weights),
    }
    options: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    return dataclasses.replace(base, fusion=fusion_of(name, fusion), **options)


def check_method(typed: TypedMethod) -> None:
    """Raise ``ConfigInvalid`` for an unknown method or an option that the method lacks."""
    try:
        method_of(typed)
    except (AttentionInvalid, DataInvalid) as error:
        raise ConfigInvalid(str(error)) from None


@dataclass(frozen=True)
class ByMethod(ModelAnswer):
    """Attribution of one decision by one method; the weights of its bars, oldest first, sum to 1.

    ``rank_correlation`` is Spearman's, with the stored explanation over the same past bars.
    ``common`` is the share of the weight that both give to the same bars, over all bars. Relevance
    counts by its absolute value.
    """

    key: ClassVar = "by_method"
    method: str
    options: dict[str, Any]
    attribution: FullAttribution
    rank_correlation: float | None
    common: float

    def parts(self) -> Iterator[Part]:
        """Yield the attribution, and its agreement with the stored one."""
        chosen = {name: option for name, option in self.options.items() if option}
        yield Paragraph(f"By the method {self.method} ({_options(chosen)})")
        yield from self.attribution.parts()
        ranks = self.rank_correlation
        alike = "no order to compare" if ranks is None else f"rank correlation {ranks:+.2f}"
        yield Paragraph(
            f"Compared with the stored explanation over the same bars: {alike}, and "
            f"{percent(self.common, 0)} of the weight on the same bars."
        )


def explain_by(past: Past, typed: TypedMethod) -> ByMethod:
    """Attribute the decision by *typed*; raise ``AttentionInvalid`` if the model cannot do so."""
    horizon = past.forecast.horizons[past.horizon_index]
    method = dataclasses.replace(method_of(typed, past.forecaster.method), horizon=horizon)
    rollout = Probe(past.forecaster, past.bars, horizon=horizon).attended(method)
    weights = rollout.weights[0, 0].double().numpy()
    if (stored := relevance_by_bar(past)) is None:
        stored = np.array(past.forecaster.explain(past.decided.instrument).weights)
    stored_sizes = np.abs(stored[-len(weights) :])
    bars = past.bars[-len(weights) :]
    return ByMethod(
        method.name,
        {name: value for name, value in asdict(method).items() if name != "horizon"},
        FullAttribution(
            tuple(bar.open_time_ms for bar in bars),
            tuple(bar.close / 10**past.price_decimals for bar in bars),
            tuple(weights.tolist()),
            float(rollout.l1_error[0, 0]),
            None,
        ),
        rank_correlation(weights[:-1], stored_sizes[:-1]),
        float(np.minimum(weights, stored_sizes / stored_sizes.sum()).sum()),
    )


@dataclass(frozen=True)
class ComparisonSide:
    """One of two compared forecasts, with its attribution by bar, feature and layer."""

    name: str
    model_id: str
    open_time_ms: int  # of the decided bar
    horizon: int  # bars
    mean_return: float  # log return
    lean: float  # p_up - p_down
    times_ms: tuple[int, ...]  # of the bars, oldest first
    weights: tuple[float, ...]  # of the rollout; they sum to 1
    features: dict[str, float]  # contribution to the mean return, over all bars
    layers: tuple[Floats, ...]  # per layer [head, age], the newest bar first

    def by_age(self, ages: int) -> Floats:
        """Return the weights of the *ages* newest bars, newest first, padded with zeros."""
        padded = np.zeros(ages)
        newest = np.array(self.weights[::-1])[:ages]
        padded[: newest.size] = newest
        return padded


@dataclass(frozen=True)
class SideBySide(ModelAnswer):
    """Two forecasts and their overlap: shares of the weight, from 0 to 1."""

    key: ClassVar = "compared"
    first: ComparisonSide
    second: ComparisonSide
    common_ages: float  # given by both to the same ages
    common_bars: float  # given by both to the same bars
    rank_correlation: float | None  # Spearman's, over the past ages of both
    common_by_layer: tuple[float, ...]  # by age, of the mean of a layer's heads; lowest first

    def parts(self) -> Iterator[Part]:
        """Yield the two sides and their overlap."""
        first, second = self.first, self.second
        both = [name for name in first.features if name in second.features]
        both.sort(key=lambda name: -max(abs(first.features[name]), abs(second.features[name])))
        figures = (
            of_field("name", "", "text"),
            of_field("model", "model", "text", "model_id"),
            Figure[ComparisonSide](
                "decided_bar", "decided bar", "text", lambda side: iso(side.open_time_ms)
            ),
            of_field("horizon", "over, bars", "count"),
            Figure[ComparisonSide](
                "expected", "expected, bp", "exact",
                lambda side: f"{BASIS_POINTS * side.mean_return:+.2f}",
            ),
            Figure[ComparisonSide]("lean", "up less down", "exact", lambda it: f"{it.lean:+.3f}"),
            Figure[ComparisonSide](
                "own_share",
                "decided bar's share",
                "exact",
                lambda side: percent(side.weights[-1], 1),
            ),
            *(_added_by(name) for name in both[:COMPARED_SHOWN]),
        )  # fmt: skip
        yield table("compared", "Beside each other", figures, (first, second), turned=True)
        layers = ", ".join(
            f"{layer} {percent(common, 0)}"
            for layer, common in enumerate(self.common_by_layer, start=1)
        )
        yield Paragraph(f"{self.in_common} In common by layer, in the mean of its heads: {layers}.")

    @property
    def in_common(self) -> str:
        """The overlap in a sentence."""
        ranks = self.rank_correlation
        alike = "no order to compare" if ranks is None else f"a rank correlation of {ranks:+.2f}"
        return (
            f"They give {percent(self.common_ages, 0)} of their weight to the same ages and "
            f"{percent(self.common_bars, 0)} to the same bars; over past ages they have {alike}."
        )

    def document(self) -> dict[str, Any]:
        """Return the values without the bars' times and the heads of each layer."""
        document = asdict(self)
        sides = [document.pop(name) for name in ("first", "second")]
        for side in sides:
            del side["times_ms"], side["layers"]
        return {"sides": sides, **document}


def compare(first: ComparisonSide, second: ComparisonSide) -> SideBySide:
    """Measure how far *first* and *second* agree."""
    ages = max(len(first.weights), len(second.weights))
    both = min(len(first.weights), len(second.weights))
    left, right = first.by_age(ages), second.by_age(ages)
    weights = dict(zip(second.times_ms, second.weights, strict=True))
    bars = sum(
        min(weight, weights.get(time, 0.0))
        for time, weight in zip(first.times_ms, first.weights, strict=True)
    )
    return SideBySide(
        first,
        second,
        float(np.minimum(left, right).sum()),
        float(bars),
        rank_correlation(left[1:both], right[1:both]),
        tuple(
            _common(layer.mean(axis=0), other.mean(axis=0))
            for layer, other in zip(first.layers, second.layers, strict=False)
        ),
    )


def _common(first: Floats, second: Floats) -> float:
    both = min(first.size, second.size)
    return float(np.minimum(first[:both], second[:both]).sum())


def comparison_side(past: Past, name: str) -> ComparisonSide:
    """Return the decision of *past* as one side, with the *name* to show."""
    attribution = attribute(past)
    horizon = past.forecast.horizons[past.horizon_index]
    probe = Probe(past.forecaster, past.bars, horizon=horizon)
    again, added = probe.figures(), probe.contributions().mean_return.sum(axis=0)
    layers = past.forecaster.attribution_by_layer(past.decided.instrument)
    return ComparisonSide(
        name,
        past.forecaster.model_id,
        past.decided.open_time_ms,
        horizon,
        again.mean_return,
        again.lean,
        attribution.open_time_ms,
        attribution.weights,
        dict(zip(probe.names, added.tolist(), strict=True)),
        tuple(attribution.rows.flip(-1).double().cpu().numpy() for attribution in layers),
    )


def by_model(database: Path, past: Past, model: str) -> Past:
    """Return the same decision by the checkpoint *model*: a bundled name or a folder.

    Raises ``DataInvalid`` if the model has no attention, is for another bar interval, or needs more
    bars than the run has.
    """
    folder = checkpoints.locate(model)
    card = checkpoints.read_card(folder)
    minutes = past.decided.interval_ms // 60_000
    if str(card["market"].get("interval")) != str(minutes):
        raise DataInvalid(
            f"{model} is for bars of {card['market'].get('interval')} minutes and the decision is "
            f"of {minutes}; choose another model."
        )
    vectors = recorded_covariates(database, recorded_covariates_name(past.run.libraries), card)
    forecaster = attending(
        forecaster_of(folder, restore(past.run.config), mode="step", covariates=vectors)
    )
    if forecaster is None:
        raise DataInvalid(f"{model} has no attention to compare; choose a network's checkpoint.")
    run_id, instrument = past.run.run_id, past.decided.instrument
    with Reader.open(database) as reader:
        bars = bars_before(reader, run_id, past.sequence, instrument, forecaster, model)
    forecaster.warm(instrument, bars[:-1])
    forecast = forecaster.step(bars[-1])
    if forecast is None:
        raise DataInvalid(f"{model} gives no forecast at that bar; choose another decision.")
    return PastOf(past.run, past.sequence, forecaster, forecast, tuple(bars), past.price_decimals)


HEAVIEST: Final = 12
"""Past bars of all assets that a table lists."""


@dataclass(frozen=True)
class HeavyToken:
    """One bar of one asset, and its weight."""

    symbol: str
    open_time_ms: int
    weight: float


@dataclass(frozen=True)
class Influence(ModelAnswer):
    """The attention of the decided symbol by bar, and of every symbol by symbol.

    Each row of ``matrix``, [decided asset, attended asset], sums to 1. ``heaviest`` excludes the
    decided bar. ``largest_difference`` compares the decided symbol's row with the stored shares of
    the default rollout; ``options`` are those of this rollout that differ from the default.
    """

    key: ClassVar = "influence"
    symbol: str
    symbols: tuple[str, ...]
    matrix: tuple[tuple[float, ...], ...]
    bars: int
    heaviest: tuple[HeavyToken, ...]
    largest_difference: float
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def row(self) -> tuple[float, ...]:
        """The decided symbol's shares, in the order of ``symbols``."""
        return self.matrix[self.symbols.index(self.symbol)]

    def parts(self) -> Iterator[Part]:
        """Yield the decided symbol's heaviest bars, and the matrix."""
        most = self.heaviest[0].weight or 1.0
        yield table_of(
            "heaviest",
            f"Where {self.symbol} looked, over {self.bars:,} bars of each asset ({ATTENDED})",
            {"asset": "text", "bar": "text", "weight": "measure", "": "bar"},
            [
                (token.symbol, iso(token.open_time_ms), token.weight, token.weight / most)
                for token in self.heaviest
            ],
        )
        forms: dict[str, Form] = {"": "text", **dict.fromkeys(self.symbols, "exact")}
        yield table_of(
            "influence",
            "Influence: the share of each asset (column) in where each looked (row)",
            forms,
            [
                (symbol, *(f"{share:.3f}" for share in row))
                for symbol, row in zip(self.symbols, self.matrix, strict=True)
            ],
        )
        sentence = f"Its shares differ by at most {self.largest_difference:.1e} from those stored"
        if self.options:
            sentence += f"; these are by {_options(self.options)}"
        yield Paragraph(f"{sentence}.")


def influence(
    database: Path, run_id: str, sequence: int, typed: TypedMethod | None = None
) -> Influence:
    """Return the influence between assets in a decision, recomputed by the model that decided.

    *typed* has options of the rollout. Raises ``AttentionInvalid`` for another method,
    ``DataInvalid`` if the decision has no forecast, the run no longer has the bars or the model
    reads one symbol, and ``CheckpointMismatch`` if the checkpoint is missing.
    """
    with Reader.open(database) as reader:
        run = reader.run(run_id)
        step = reader.step(run_id, sequence)
        forecast, event = stored_forecast(run, step), step.event
        assert isinstance(event, Bar)
        forecaster = over_symbols(kept_forecaster(database, run))
        if forecaster is None:
            raise DataInvalid(
                f"The model {run.model_id} reads one symbol; choose a run over several."
            )
        for item in run.instruments:
            # Bars with one close time are consecutive steps; some may be stored after this one.
            until = sequence + len(run.instruments)
            bars = reader.bars(run_id, item.id, forecaster.context + 1, until=until)
            past_bars = [bar for bar in bars if bar.open_time_ms <= event.open_time_ms]
            forecaster.warm(item.id, past_bars)
    if lacking := forecaster.lacking:
        raise DataInvalid(f"Run {run_id} lacks the bars before decision {sequence}: {lacking}.")
    symbol, symbols = event.instrument.partition(":")[2], forecaster.symbols
    method = PLAIN if typed is None else method_of(typed)
    if method.name != "rollout":
        raise AttentionInvalid(
            f"A network over several symbols is explained by its rollout, not by {method.name}; "
            "leave --method out, or choose rollout."
        )
    close = forecaster.last_close(method)
    attribution = close.attribution
    at = symbols.index(symbol)
    matrix = attribution.influence.double().numpy()
    weights = attribution.weights[at].double().numpy().copy()  # [asset, time]
    weights[at, -1] = 0.0
    order = np.argsort(-weights.ravel(), kind="stable")[:HEAVIEST]
    time = weights.shape[1]
    return Influence(
        symbol,
        symbols,
        tuple(tuple(row) for row in matrix.tolist()),
        time,
        tuple(
            HeavyToken(
                symbols[place // time],
                int(close.positions[place % time]) * event.interval_ms,
                float(weights.ravel()[place]),
            )
            for place in order.tolist()
        ),
        float(np.abs(matrix[at] - SymbolAnswer.of(forecast).shares).max()),
        {name: option for name, option in asdict(method).items() if option != getattr(PLAIN, name)},
    )


def _added_by(feature: str) -> Figure[ComparisonSide]:
    return Figure(feature, f"{feature} added, bp", "points", lambda side: side.features[feature])


def _options(options: Mapping[str, Any]) -> str:
    """Return the options of a method in words: ``residual weight 0.9, fusion max``."""
    return ", ".join(
        f"{name.replace('_', ' ')} {value}" for name, value in options.items() if value is not None
    )
