"""What a model said of a decision again, as tables and paragraphs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from tracepaper.replay.document.values import (
    Figure,
    Form,
    Paragraph,
    Part,
    Table,
    of_field,
    table,
    table_of,
)
from tracepaper.replay.explain.attribution import (
    ByFeature,
    ByMethod,
    Influence,
    MemberView,
    ModelContributions,
    SideBySide,
)
from tracepaper.replay.explain.decision_document import BASIS_POINTS, NOT_WHY
from tracepaper.replay.explain.recompute import (
    HEAVIEST,
    Deletion,
    Full,
    FullAttribution,
    HeavyBar,
    Moves,
    Trial,
)
from tracepaper.strategies.units import interval_text, iso

LOOKED: Final = f"where attention flowed; {NOT_WHY}"
ADDED: Final = f"relevance: signed shares, whose sizes sum to 1; {NOT_WHY}"
FEATURES_SHOWN: Final = 10
BARS_SHOWN: Final = 8
COMPARED_SHOWN: Final = 6


def full_parts(full: Full) -> Iterator[Part]:
    """Yield all that was recomputed: attribution, contributions, deletion test."""
    agreed, moves = full.agreement, full.moves
    stored, again = agreed.stored, agreed.recomputed
    yield Paragraph(
        f"Recomputed from the stored bars, {agreed.horizon} bars ahead: mean "
        f"{again.mean_return * BASIS_POINTS:+.4f} bp (stored "
        f"{stored.mean_return * BASIS_POINTS:+.4f}), up less down {again.lean:+.5f} "
        f"(stored {stored.lean:+.5f})."
    )
    yield from attribution_parts(full.attribution)
    yield _moved_by_feature(moves)
    yield Paragraph(
        f"All contributions add {_points(moves.forecast - moves.neutral)} bp to the "
        f"{_points(moves.neutral)} bp that the model says of neutral rows, and so give "
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
    rank = "none, for either is the same for every bar" if ranks is None else f"{ranks:+.2f}"
    yield Paragraph(
        f"Rank correlation of these contributions with the rollout, over the past bars: {rank}."
    )
    yield from _deletion_parts(full.deletion)
    yield from full.auxiliary


def feature_parts(added: ByFeature) -> Iterator[Part]:
    """Yield the features that added most to mean and volatility."""
    yield table_of(
        "by_feature",
        f"Added by each feature, over {added.horizon} bars",
        {"feature": "text", "value": "exact", "mean, bp": "points", "volatility ×": "exact"},
        [
            ("the usual bar", "", added.mean_base, f"{added.volatility_base:.3g}"),
            *(
                (
                    feature.feature,
                    f"{feature.value:+.3f}",
                    feature.mean_return,
                    f"{feature.volatility:.4f}",
                )
                for feature in added.features[:FEATURES_SHOWN]
            ),
        ],
    )
    rest = len(added.features) - FEATURES_SHOWN
    yield Paragraph(
        f"With {max(rest, 0)} further features the means sum to "
        f"{BASIS_POINTS * added.mean_return:+.3f} bp and the factors multiply to a volatility of "
        f"{BASIS_POINTS * added.volatility:.2f} bp; what was stored differs by at most "
        f"{added.gap:.1e}."
    )
    if added.share is not None:
        yield Paragraph(
            f"These are of the ensemble's row model, which has {added.share:.2f} of the log "
            f"variance; the network has {1 - added.share:.2f}, and the mean."
        )


CONTRIBUTIONS_SHOWN: Final = 8


def contributed_parts(added: ModelContributions) -> Iterator[Part]:
    """Yield the largest contributions of a user's own model, and what all of them sum to."""
    yield table_of(
        "contributions",
        f"Added to the mean by each feature, over {added.horizon} bars, as the model says",
        {"feature": "text", "mean, bp": "points"},
        list(added.features[:CONTRIBUTIONS_SHOWN]),
    )
    rest = max(len(added.features) - CONTRIBUTIONS_SHOWN, 0)
    yield Paragraph(
        f"With {rest} further features they sum to the stored "
        f"{BASIS_POINTS * added.mean_return:+.3f} bp. They are computed when asked, and not stored."
    )


def attribution_parts(attribution: FullAttribution) -> Iterator[Part]:
    """Yield the decided bar and the heaviest past ones, with their closes."""
    newest = len(attribution.weights) - 1
    heaviest = attribution.heaviest(HEAVIEST)
    most = attribution.weights[heaviest[0]] or 1.0
    yield table_of(
        "bars",
        f"Bar by bar: the decided bar and the {HEAVIEST} heaviest of {newest:,} before it "
        f"({LOOKED})",
        {"bar": "text", "age": "exact", "close": "exact", "weight": "measure", "": "bar"},
        [
            (
                iso(attribution.open_time_ms[place]),
                str(newest - place),
                f"{attribution.close[place]:,g}",
                attribution.weights[place],
                None if place == newest else attribution.weights[place] / most,
            )
            for place in [newest, *sorted(heaviest, reverse=True)]
        ],
    )
    sentence = f"Weights sum to 1 within {attribution.l1_error:.1e}"
    if (difference := attribution.largest_bucket_difference) is not None:
        sentence += f"; the stored buckets differ by at most {difference:.1e}"
    yield Paragraph(f"{sentence}.")
    if attribution.frames:
        yield table_of(
            "timeframes",
            "By symbol and timeframe, of closed bars"
            if any(of.symbol for of in attribution.frames)
            else "By timeframe, of closed bars",
            {"timeframe": "text", "bars": "count", "weight": "measure",
             "heaviest of them": "text"},
            [
                (
                    f"{of.symbol} {interval_text(of.interval_ms)}".lstrip(),
                    of.bars,
                    of.weight,
                    _heavy_bars(of.heaviest),
                )
                for of in attribution.frames
            ],
        )  # fmt: skip
    if attribution.modalities:
        yield table_of(
            "modalities",
            "By modality of the bars",
            {"modality": "text", "weight": "measure", "heaviest bars of it": "text"},
            [(of.modality, of.weight, _heavy_bars(of.heaviest)) for of in attribution.modalities],
        )
    for of in attribution.modalities:
        if of.levels:
            yield table_of(
                "levels",
                f"By levels of the order book, of its {of.weight:.4f}",
                {"levels": "text", "weight": "measure"},
                [(name.replace("_", "–"), weight) for name, weight in of.levels.items()],
            )


def _heavy_bars(bars: tuple[HeavyBar, ...]) -> str:
    return "  ".join(f"{iso(bar.open_time_ms)} {bar.weight:.4f}" for bar in bars)


def compared_parts(compared: SideBySide) -> Iterator[Part]:
    """Yield two decisions, or two models on one, side by side, and what they have in common."""
    first, second = compared.first, compared.second
    both = [name for name in first.features if name in second.features]
    both.sort(key=lambda name: -max(abs(first.features[name]), abs(second.features[name])))
    figures = (
        of_field("name", "", "text"),
        of_field("model", "model", "text", "model_id"),
        Figure[MemberView](
            "decided_bar", "decided bar", "text", lambda side: iso(side.open_time_ms)
        ),
        of_field("horizon", "over, bars", "count"),
        Figure[MemberView](
            "expected", "expected, bp", "exact",
            lambda side: f"{BASIS_POINTS * side.mean_return:+.2f}",
        ),
        Figure[MemberView]("lean", "up less down", "exact", lambda side: f"{side.lean:+.3f}"),
        Figure[MemberView](
            "own_share", "decided bar's share", "exact", lambda side: f"{side.weights[-1]:.1%}"
        ),
        *(_added_by(name) for name in both[:COMPARED_SHOWN]),
    )  # fmt: skip
    yield table("compared", "Beside each other", figures, (first, second), turned=True)
    layers = ", ".join(
        f"{layer} {common:.0%}" for layer, common in enumerate(compared.common_by_layer, start=1)
    )
    yield Paragraph(
        f"{in_common(compared)} In common by layer, in the mean of its heads: {layers}."
    )


def in_common(compared: SideBySide) -> str:
    """Say what the two have in common."""
    ranks = compared.rank_correlation
    alike = "no order to compare" if ranks is None else f"a rank correlation of {ranks:+.2f}"
    return (
        f"They give {compared.common_ages:.0%} of their weight to the same ages and "
        f"{compared.common_bars:.0%} to the same bars; over past ages they have {alike}."
    )


def _added_by(feature: str) -> Figure[MemberView]:
    return Figure(feature, f"{feature} added, bp", "points", lambda side: side.features[feature])


def method_parts(explained: ByMethod) -> Iterator[Part]:
    """Yield the attribution by a method of one's choice, and how far it agrees with the stored."""
    given = {name: of for name, of in explained.options.items() if of}
    yield Paragraph(f"By the method {explained.method} ({_options(given)})")
    yield from attribution_parts(explained.attribution)
    ranks = explained.rank_correlation
    alike = "no order to compare" if ranks is None else f"rank correlation {ranks:+.2f}"
    yield Paragraph(
        f"Beside the explanation that was stored, over the same bars: {alike}, and "
        f"{explained.common:.0%} of the weight on the same bars."
    )


def _options(options: Mapping[str, Any]) -> str:
    """Return the options of a method in words: ``residual weight 0.9, fusion max``."""
    return ", ".join(
        f"{name.replace('_', ' ')} {of}" for name, of in options.items() if of is not None
    )


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


def _deletion_parts(deletion: Deletion) -> Iterator[Part]:
    chance = deletion.of("random")
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
    trials = {order: deletion.of(order)[0] for order in named}
    trials["random"] = Trial("random", None, deletion.bars, *means)
    yield table_of(
        "deletion",
        "Rows made neutral, and how far the forecast then moves (deletion); these past rows alone, "
        "and how far it still is (insertion)",
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


def _points(log_return: float) -> str:
    return f"{log_return * BASIS_POINTS:+.3f}"


def influence_parts(influence: Influence) -> Iterator[Part]:
    """Yield the decided symbol's heaviest bars, and the matrix of all."""
    most = influence.heaviest[0].weight or 1.0
    yield table_of(
        "heaviest",
        f"Where {influence.symbol} looked, over {influence.bars:,} bars of each asset ({LOOKED})",
        {"asset": "text", "bar": "text", "weight": "measure", "": "bar"},
        [
            (token.symbol, iso(token.open_time_ms), token.weight, token.weight / most)
            for token in influence.heaviest
        ],
    )
    forms: dict[str, Form] = {"": "text", **dict.fromkeys(influence.symbols, "exact")}
    yield table_of(
        "influence",
        "Influence: the share of each asset (column) in where each looked (row)",
        forms,
        [
            (symbol, *(f"{share:.3f}" for share in row))
            for symbol, row in zip(influence.symbols, influence.matrix, strict=True)
        ],
    )
    sentence = f"Its shares differ by at most {influence.largest_difference:.1e} from those stored"
    if influence.options:
        sentence += f"; these are by {_options(influence.options)}"
    yield Paragraph(f"{sentence}.")
