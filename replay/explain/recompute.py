"""One decision recomputed by the run's model.

First the attention by bar; then what moved the forecast: contributions of features and bars, their
relevance, and a test that removes and inserts the bars that matter most.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, cast

import msgspec
import numpy as np
from numpy.typing import NDArray

from tracepaper.replay.document.values import Paragraph, Part, Table, table_of
from tracepaper.replay.explain.auxiliary_heads import auxiliary_tables
from tracepaper.replay.explain.decision_document import ATTENDED, BASIS_POINTS
from tracepaper.replay.report.past import ModelAnswer, Past
from tracepaper.strategies.errors import InvariantBroken
from tracepaper.strategies.forecasters.attribution import Contributions, Figures, Probe
from tracepaper.strategies.forecasters.base import Attribution
from tracepaper.strategies.forecasters.outputs import head_forecasts
from tracepaper.strategies.forecasters.passes import RelevancePasses
from tracepaper.strategies.networks.architecture import AttendedPart
from tracepaper.strategies.time_buckets import weights_of
from tracepaper.strategies.units import interval_text, iso

FEATURES_SHOWN: Final = 10
BARS_SHOWN: Final = 8
HEAVIEST: Final = 16
"""Past bars that a table shows, and whose contributions have a separate sum."""

FRAME_BARS: Final = 3
"""Bars of each timeframe or modality that a table lists."""


@dataclass(frozen=True)
class HeavyBar:
    """A closed bar of a timeframe, which the network reads as one token, and its weight."""

    open_time_ms: int  # of its first row
    weight: float


@dataclass(frozen=True)
class FrameShare:
    """Attention to one timeframe, of the decided symbol or another, and its heaviest bars."""

    interval_ms: int
    weight: float
    bars: int
    heaviest: tuple[HeavyBar, ...]
    symbol: str = ""  # if it is not the decided one


@dataclass(frozen=True)
class ModalityShare:
    """Attention to one modality of the bars, and its heaviest bars.

    ``levels`` has the shares of an order book's groups of levels; they sum to ``weight``.
    """

    modality: str
    weight: float
    heaviest: tuple[HeavyBar, ...]
    levels: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class FullAttribution:
    """Attention of one decision by bar, oldest first; weights sum to 1 within ``l1_error``.

    It shows where attention flowed, not why the price will move. ``largest_bucket_difference`` is
    that between the sums over blocks (of relevance, if the run stores that) and the stored buckets;
    None for another method. ``frames`` is set for a network with several timeframes, the bars
    first; the rows of a frame's bar share its weight. ``modalities`` is set for a network that
    separates the columns of a bar.
    """

    open_time_ms: tuple[int, ...]
    close: tuple[float, ...]
    weights: tuple[float, ...]
    l1_error: float
    largest_bucket_difference: float | None
    frames: tuple[FrameShare, ...] = ()
    modalities: tuple[ModalityShare, ...] = ()

    def heaviest(self, count: int) -> list[int]:
        """Return the indices of the *count* heaviest past bars, heaviest first.

        The decided bar is left out, because the residual stream alone gives it a large share.
        """
        past = np.array(self.weights[:-1])
        return [int(place) for place in np.argsort(-past, kind="stable")[:count]]

    def parts(self) -> Iterator[Part]:
        """Yield the decided bar and the heaviest past bars with their closes, then the shares."""
        newest = len(self.weights) - 1
        heaviest = self.heaviest(HEAVIEST)
        most = self.weights[heaviest[0]] or 1.0
        yield table_of(
            "bars",
            f"Bar by bar: the decided bar and the {HEAVIEST} heaviest of {newest:,} before it "
            f"({ATTENDED})",
            {"bar": "text", "age": "exact", "close": "exact", "weight": "measure", "": "bar"},
            [
                (
                    iso(self.open_time_ms[place]),
                    str(newest - place),
                    f"{self.close[place]:,g}",
                    self.weights[place],
                    None if place == newest else self.weights[place] / most,
                )
                for place in [newest, *sorted(heaviest, reverse=True)]
            ],
        )
        sentence = f"Weights sum to 1 within {self.l1_error:.1e}"
        if (difference := self.largest_bucket_difference) is not None:
            sentence += f"; the stored buckets differ by at most {difference:.1e}"
        yield Paragraph(f"{sentence}.")
        if self.frames:
            yield table_of(
                "timeframes",
                "By symbol and timeframe, of closed bars"
                if any(frame.symbol for frame in self.frames)
                else "By timeframe, of closed bars",
                {"timeframe": "text", "bars": "count", "weight": "measure",
                 "heaviest of them": "text"},
                [
                    (
                        f"{frame.symbol} {interval_text(frame.interval_ms)}".lstrip(),
                        frame.bars,
                        frame.weight,
                        _heavy_bars(frame.heaviest),
                    )
                    for frame in self.frames
                ],
            )  # fmt: skip
        if self.modalities:
            yield table_of(
                "modalities",
                "By modality of the bars",
                {"modality": "text", "weight": "measure", "heaviest bars of it": "text"},
                [
                    (each.modality, each.weight, _heavy_bars(each.heaviest))
                    for each in self.modalities
                ],
            )
        for modality in self.modalities:
            if modality.levels:
                yield table_of(
                    "levels",
                    f"By levels of the order book, of its {modality.weight:.4f}",
                    {"levels": "text", "weight": "measure"},
                    [(name.replace("_", "–"), weight) for name, weight in modality.levels.items()],
                )


def attribute(past: Past) -> FullAttribution:
    """Return the attribution at full resolution, compared with the stored buckets."""
    attribution = past.forecaster.explain(past.decided.instrument)
    weights = relevance_by_bar(past)
    closes = {bar.open_time_ms: bar.close / 10**past.price_decimals for bar in past.bars}
    parts = attribution.parts
    return FullAttribution(
        attribution.open_time_ms,
        tuple(closes[time] for time in attribution.open_time_ms),
        attribution.weights,
        attribution.l1_error,
        _difference(past, attribution, weights),
        _frames(past, parts, attribution.open_time_ms),
        _modalities(parts, attribution.open_time_ms),
    )


def relevance_by_bar(past: Past) -> Floats | None:
    """Return the bars' signed shares of relevance, oldest first; None without relevance."""
    for passes in past.forecaster.passes:
        if isinstance(passes, RelevancePasses):
            return passes.by_bar(past.decided.instrument)
    return None


def _modalities(
    parts: Sequence[AttendedPart], open_time_ms: Sequence[int]
) -> tuple[ModalityShare, ...]:
    """Return the share of each modality; empty if the network does not separate them."""
    shares = []
    for name in dict.fromkeys(part.modality for part in parts if part.modality):
        chosen = [part for part in parts if part.modality == name]
        weight = sum(part.share for part in chosen)
        levels = {
            group: sum(part.share for part in chosen if part.levels == group)
            for group in dict.fromkeys(part.levels for part in chosen if part.levels)
        }
        by_bar = dict.fromkeys((part.start for part in chosen), 0.0)
        for part in chosen:
            by_bar[part.start] += part.share
        bars = [AttendedPart(1, start, 1, share) for start, share in by_bar.items()]
        shares.append(ModalityShare(name, weight, _heaviest(bars, open_time_ms), levels))
    return tuple(shares)


def _heaviest(parts: Sequence[AttendedPart], open_time_ms: Sequence[int]) -> tuple[HeavyBar, ...]:
    heaviest = sorted(parts, key=lambda part: -part.share)[:FRAME_BARS]
    return tuple(HeavyBar(open_time_ms[part.start], part.share) for part in heaviest)


def _frames(
    past: Past, parts: Sequence[AttendedPart], open_time_ms: Sequence[int]
) -> tuple[FrameShare, ...]:
    """Return the share of each timeframe; empty if the network reads one."""
    shares = []
    for symbol, frame in sorted({(part.symbol, part.frame) for part in parts if not part.modality}):
        chosen = [part for part in parts if (part.symbol, part.frame) == (symbol, frame)]
        shares.append(
            FrameShare(
                frame * past.decided.interval_ms,
                sum(part.share for part in chosen),
                len(chosen),
                _heaviest(chosen, open_time_ms),
                symbol,
            )
        )
    return tuple(shares)


def _difference(past: Past, attribution: Attribution, weights: Floats | None) -> float:
    """Return the largest difference between a stored bucket and the sum of its bars' weights.

    The weights are those of *attribution* if *weights* is None.
    """
    stored = past.forecast.explanation
    if stored is None or stored.older_mass is None:
        return 0.0
    kept = np.append(weights_of(stored.buckets), stored.older_mass)
    block_ms = past.forecaster.bucket_bars * past.decided.interval_ms
    blocks = np.array(attribution.open_time_ms) // block_ms
    at = np.minimum(blocks[-1] - blocks, len(kept) - 1)
    weights = np.array(attribution.weights) if weights is None else weights
    sums = np.bincount(at, weights=weights, minlength=len(kept))
    return float(np.abs(sums - kept).max())


# ---------------------------------------------------------------- what moved the forecast

DELETED_SHARE: Final = 0.05
"""Share of the past bars that the deletion test makes neutral."""
SEEDS: Final = tuple(range(4))
"""Seeds of the random bars with which the other orders are compared."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Agreement:
    """The forecast at the gates' horizon, stored and recomputed."""

    horizon: int  # bars
    stored: Figures
    recomputed: Figures


@dataclass(frozen=True)
class FeatureMove:
    """Contribution of one feature to the mean log return, by integrated gradients."""

    feature: str
    value: float  # at the decided bar, as the network reads it
    decided_bar: float
    heaviest_bars: float  # sum over the heaviest past bars
    all_bars: float


@dataclass(frozen=True)
class BarMove:
    """Contribution of one bar to the mean log return, and its weight in the rollout."""

    open_time_ms: int
    age: int  # bars before the decided one
    added: float
    relevance: float
    weight: float
    feature: str  # with the largest contribution, up or down


@dataclass(frozen=True)
class Moves:
    """Integrated gradients of the mean return; they sum to ``forecast - neutral`` within ``gap``.

    ``rank_correlation`` is Spearman's between the size of the past bars' contributions and the
    rollout: the agreement of "where it looked" and "what moved it". It is None if either is the
    same for every bar.
    """

    forecast: float
    neutral: float  # the mean return for neutral rows
    gap: float
    rank_correlation: float | None
    features: tuple[FeatureMove, ...]  # largest sum over all bars first
    bars: tuple[BarMove, ...]  # largest first, the decided bar among them
    by_bar: tuple[float, ...]  # oldest first, as ``FullAttribution.weights``
    relevance: tuple[float, ...]  # the same by relevance


@dataclass(frozen=True)
class Trial:
    """Absolute change of the forecast when the rows of some bars are neutral.

    ``left`` is the change of the mean when all other past bars are neutral instead.
    """

    order: str  # rollout, relevance, newest or random; decided: that bar alone; past: all but it
    seed: int | None
    bars: int
    mean_return: float
    lean: float
    left: float | None = None  # None for decided and past


RECENCY: Final = "newest"


@dataclass(frozen=True)
class Deletion:
    """Deletion and insertion of equally many past bars by rollout, relevance, age and chance.

    The decided bar stays in all trials, because it outweighs all others. ``beat_recency`` names the
    orders whose bars moved the mean further than the newest bars when deleted, and less when they
    alone were kept.
    """

    bars: int
    trials: tuple[Trial, ...]
    beat_recency: tuple[str, ...]

    def of(self, order: str) -> tuple[Trial, ...]:
        """Return the trials of one order; random has one per seed."""
        return tuple(trial for trial in self.trials if trial.order == order)

    @property
    def sentence(self) -> str:
        """Whether rollout or relevance finds more important bars than recency does."""
        orders = " and ".join(self.beat_recency) or "neither rollout nor relevance"
        return (
            f"By deletion and by insertion, {orders} found past bars that matter more to this "
            "forecast than the newest."
        )

    def parts(self) -> Iterator[Part]:
        """Yield the trials, with the mean of the random ones."""
        chance = self.of("random")
        columns = [(each.mean_return, each.lean, each.left or 0.0) for each in chance]
        means = [sum(column) / len(chance) for column in zip(*columns, strict=True)]
        named = {
            "rollout": "heaviest by rollout",
            "relevance": "largest by relevance",
            "random": f"random (mean of {len(chance)} seeds)",
            "newest": "newest",
            "decided": "the decided bar alone",
            "past": "all but the decided bar",
        }
        trials = {order: self.of(order)[0] for order in named}
        trials["random"] = Trial("random", None, self.bars, *means)
        yield table_of(
            "deletion",
            "How far the forecast moves if these rows are neutral (deletion), and how far it is "
            "if they are the only past rows (insertion)",
            {"bars": "count", "which": "text", "mean, bp": "exact", "up less down": "measure",
             "insertion, bp": "exact"},
            [
                (
                    trials[order].bars,
                    name,
                    f"{trials[order].mean_return * BASIS_POINTS:.3f}",
                    trials[order].lean,
                    "" if (left := trials[order].left) is None else f"{left * BASIS_POINTS:.3f}",
                )
                for order, name in named.items()
            ],
        )  # fmt: skip


@dataclass(frozen=True)
class Full(ModelAnswer):
    """Everything about one decision that the run's model must recompute."""

    key: ClassVar = "full"
    agreement: Agreement
    attribution: FullAttribution
    moves: Moves
    deletion: Deletion
    auxiliary: tuple[Table, ...] = ()  # of the auxiliary heads

    def parts(self) -> Iterator[Part]:
        """Yield the forecast, attribution, contributions, deletion test and auxiliary heads."""
        agreed, moves = self.agreement, self.moves
        stored, again = agreed.stored, agreed.recomputed
        yield Paragraph(
            f"Recomputed from the stored bars, {agreed.horizon} bars ahead: mean "
            f"{again.mean_return * BASIS_POINTS:+.4f} bp (stored "
            f"{stored.mean_return * BASIS_POINTS:+.4f}), up less down {again.lean:+.5f} "
            f"(stored {stored.lean:+.5f})."
        )
        yield from self.attribution.parts()
        yield _moved_by_feature(moves)
        yield Paragraph(
            f"All contributions add {_points(moves.forecast - moves.neutral)} bp to the "
            f"{_points(moves.neutral)} bp that the model forecasts for neutral rows, and so give "
            f"{_points(moves.forecast)} bp, within {abs(moves.gap) * BASIS_POINTS:.1e} bp."
        )
        yield table_of(
            "moved_by_bar",
            f"What moved the mean, by bar (the {BARS_SHOWN} largest)",
            {"bar": "text", "age": "exact", "adds bp": "points", "most by": "text",
             "relevance bp": "points", "rollout weight": "measure"},
            [
                (iso(move.open_time_ms), str(move.age), move.added, move.feature, move.relevance,
                 move.weight)
                for move in moves.bars[:BARS_SHOWN]
            ],
        )  # fmt: skip
        ranks = moves.rank_correlation
        rank = "none, as one is the same for every bar" if ranks is None else f"{ranks:+.2f}"
        yield Paragraph(
            f"Rank correlation of these contributions with the rollout, over the past bars: {rank}."
        )
        yield from self.deletion.parts()
        yield from self.auxiliary

    def document(self) -> dict[str, Any]:
        """Return the values, and the tables of the auxiliary heads by their keys."""
        values = {name: value for name, value in vars(self).items() if name != "auxiliary"}
        return values | {"auxiliary": {table.key: table.documents() for table in self.auxiliary}}

    @property
    def added(self) -> Sequence[tuple[str, float]]:
        """What each feature added to the mean over all bars."""
        return [(move.feature, move.all_bars) for move in self.moves.features]


def explain_fully(past: Past, *, begins: Callable[[str], object] = lambda _doing: None) -> Full:
    """Recompute one decision; raise ``DataInvalid`` if that is not possible.

    *begins* is called with the name of each pass over the network before it.
    """
    begins("where it looked, bar by bar")
    attribution = attribute(past)
    forecast = past.forecast
    at = past.horizon_index
    horizon = forecast.horizons[at]
    probe = Probe(past.forecaster, past.bars, horizon=horizon)
    if len(probe.rows) != len(attribution.weights):
        raise InvariantBroken("The probe and the attribution cover different bars; report this.")
    again = probe.figures()
    stored = Figures(forecast.mean_return[at], forecast.p_up[at] - forecast.p_down[at])
    begins("what each feature added")
    contributions = probe.contributions()
    begins("what it says without the bars that it looked at most")
    return Full(
        Agreement(horizon, stored, again),
        attribution,
        moves_of(contributions, probe.rows[-1].tolist(), probe.names, attribution),
        delete(probe, again, attribution, contributions.relevance),
        _auxiliary(past, probe.scale / horizon**0.5),
    )


def _auxiliary(past: Past, sigma: float) -> tuple[Table, ...]:
    """Return the auxiliary heads' forecasts, stored or else recomputed.

    *sigma* is the volatility of a bar.
    """
    forecast, forecaster = past.forecast, past.forecaster
    if (
        forecast.heads is None
        and (outputs := forecaster.explain(past.decided.instrument).outputs) is not None
    ):
        levels = forecaster.model.levels
        heads = head_forecasts(outputs, np.array([sigma]), forecast.horizons, levels)
        forecast = msgspec.structs.replace(forecast, heads=None if heads is None else heads[0])
    return auxiliary_tables(forecast)


def moves_of(
    contributions: Contributions,
    decided: Sequence[float],
    names: Sequence[str],
    attribution: FullAttribution,
) -> Moves:
    """Sum contributions [bar, feature] over features and over bars.

    *decided* is the decided bar's row, *names* the features in its order.
    """
    table = contributions.mean_return
    heaviest = table[attribution.heaviest(HEAVIEST)].sum(axis=0)
    features = [
        FeatureMove(name, value, float(at_decided), float(heavy), float(total))
        for name, value, at_decided, heavy, total in zip(
            names, decided, table[-1], heaviest, table.sum(axis=0), strict=True
        )
    ]
    by_bar: Floats = table.sum(axis=1)
    newest = len(by_bar) - 1
    largest = np.argsort(-np.abs(by_bar), kind="stable")[:HEAVIEST].tolist()
    return Moves(
        contributions.forecast,
        contributions.neutral,
        contributions.gap,
        rank_correlation(np.abs(by_bar[:-1]), np.array(attribution.weights[:-1])),
        tuple(sorted(features, key=lambda move: -abs(move.all_bars))),
        tuple(
            BarMove(
                attribution.open_time_ms[place],
                newest - place,
                float(by_bar[place]),
                float(contributions.relevance[place]),
                attribution.weights[place],
                names[int(np.abs(table[place]).argmax())],
            )
            for place in largest
        ),
        tuple(by_bar.tolist()),
        tuple(contributions.relevance.tolist()),
    )


def rank_correlation(first: Floats, second: Floats) -> float | None:
    """Return Spearman's correlation; None if either is constant."""
    if len(first) == 0 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    from scipy.stats import spearmanr  # slow to import, and unused by stored decisions

    correlation, _p_value = cast("tuple[float, float]", spearmanr(first, second))
    return float(correlation)


def delete(
    probe: Probe, whole: Figures, attribution: FullAttribution, relevance: Floats
) -> Deletion:
    """Delete and insert equally many bars by rollout, relevance, age and chance.

    *whole* is the forecast of the window without any neutral bar, *relevance* that of each bar.
    """
    past = len(attribution.weights) - 1
    count = max(1, round(DELETED_SHARE * past))

    def trial(
        order: str, bars: Sequence[int], seed: int | None = None, *, inserted: bool = True
    ) -> Trial:
        moved, left = probe.without(bars), None
        if inserted:
            given = probe.without(sorted(set(range(past)).difference(bars)))
            left = abs(given.mean_return - whole.mean_return)
        return Trial(
            order,
            seed,
            len(bars),
            abs(moved.mean_return - whole.mean_return),
            abs(moved.lean - whole.lean),
            left,
        )

    largest = np.argsort(-np.abs(relevance[:past]), kind="stable")[:count].tolist()
    ranked = (
        trial("rollout", attribution.heaviest(count)),
        trial("relevance", largest),
        trial(RECENCY, range(past - count, past)),
    )
    *rivals, newest = ranked
    beat = tuple(
        each.order
        for each in rivals
        if each.mean_return > newest.mean_return and (each.left or 0.0) < (newest.left or 0.0)
    )
    chance = [
        trial("random", np.random.default_rng(seed).permutation(past)[:count].tolist(), seed)
        for seed in SEEDS
    ]
    alone = (
        trial("decided", [past], inserted=False),
        trial("past", range(past), inserted=False),
    )
    return Deletion(count, (*ranked, *chance, *alone), beat)


def _moved_by_feature(moves: Moves) -> Table:
    most = abs(moves.features[0].all_bars) or 1.0
    return table_of(
        "moved_by_feature",
        f"What moved the mean, by feature in bp (integrated gradients; the "
        f"{FEATURES_SHOWN} largest of {len(moves.features)})",
        {"feature": "text", "value now": "exact", "this bar": "points",
         f"{HEAVIEST} heaviest": "points", "all bars": "points", "": "gain bar"},
        [
            (
                move.feature,
                f"{move.value:+.2f}",
                move.decided_bar,
                move.heaviest_bars,
                move.all_bars,
                move.all_bars / most,
            )
            for move in moves.features[:FEATURES_SHOWN]
        ],
    )  # fmt: skip


def _heavy_bars(bars: tuple[HeavyBar, ...]) -> str:
    return "  ".join(f"{iso(bar.open_time_ms)} {bar.weight:.4f}" for bar in bars)


def _points(log_return: float) -> str:
    return f"{log_return * BASIS_POINTS:+.3f}"
