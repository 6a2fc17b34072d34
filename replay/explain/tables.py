"""One decision as tables and paragraphs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from operator import attrgetter
from typing import Any, Final

from tracepaper.replay.document.values import (
    Figure,
    Form,
    Paragraph,
    Part,
    Table,
    Value,
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
from tracepaper.replay.explain.decision import (
    Flips,
    StoredDecision,
    flips_of,
    stand_of,
    verdict_of,
)
from tracepaper.replay.explain.recompute import (
    HEAVIEST,
    Deletion,
    Full,
    FullAttribution,
    HeavyBar,
    Moves,
    Trial,
)
from tracepaper.replay.report.listed_orders import listed
from tracepaper.strategies.attention.methods import PLAIN
from tracepaper.strategies.gates.gate import measured, unit_beside
from tracepaper.strategies.types.decisions import Action
from tracepaper.strategies.units import interval_text, iso

BASIS_POINTS: Final = 1e4
BUCKETS_SHOWN: Final = 12
SHARE_MOST: Final = 10.0
"""From here on a share is written as a multiple of the threshold."""
ORDERS_TITLE: Final = "Orders of the list, and what became of each"
LOOKED: Final = "where attention flowed; not why the price will move"
ADDED: Final = "relevance: signed shares, whose sizes sum to 1; not why the price will move"
FEATURES_SHOWN: Final = 10
BARS_SHOWN: Final = 8
COMPARED_SHOWN: Final = 6


def stored_parts(stored: StoredDecision) -> Iterator[Part]:
    """Yield what the rows of one decision say, and what would have flipped it."""
    decision, flips = stored.decision, flips_of(stored)
    verdict, reason = verdict_of(decision)
    yield from (Paragraph(state.sentence, "warning") for state in stored.states)
    yield Paragraph(
        f"{decision['instrument']} at {decision['open_time_iso']}: "
        f"{decision['action']} ({verdict}){reason and f', {reason}'}",
        "strong",
    )
    if (unfilled := decision["unfilled_reason"]) is not None:
        yield Paragraph(
            f"unfilled: {unfilled}; {decision['target_quantity_text']} is wanted and no order "
            "for it would be taken"
        )
    yield from map(Paragraph, map(attrgetter("sentence"), stored.liquidations))
    if decision["horizon"] is not None:
        yield Paragraph(_forecast(decision))
    if decision["action"] == Action.ORDERS:
        if stored.orders:
            yield listed(stored.orders, title=ORDERS_TITLE, queues=stored.queues)
        else:
            yield Paragraph("Its list changed no order.")
    if stored.strategies:
        yield _netted(stored)
    if stored.notes:
        yield Paragraph(f"The strategy noted: {', '.join(map(_noted, stored.notes))}.")
    yield _gates(flips)
    yield from map(Paragraph, filter(None, (stored.halt, stored.entropy_worth, stored.reweighting)))
    yield Paragraph(flips.sentence)
    if stored.trend is not None:
        yield Paragraph(stored.trend)
    elif (side := flips.side) is not None:
        pointed = {
            "LONG": "The forecast pointed up",
            "SHORT": "The forecast pointed down",
        }.get(side.side, "The mean and the classes of the forecast disagreed")
        yield Paragraph(
            f"{pointed}: the mean is {side.mean_return * BASIS_POINTS:+.2f} bp from zero "
            f"({abs(side.mean_over_stdev):.1%} of its standard deviation), and up less down is "
            f"{side.lean:+.3f}; its side turns where both change sign."
        )
    yield from _attended(stored)


def _attended(stored: StoredDecision) -> Iterator[Part]:
    """Yield where it looked, and how much of that is content."""
    yield Paragraph(stored.no_attribution) if stored.no_attribution else bucket_table(stored)
    if (share := stored.content_share) is not None:
        yield Paragraph(
            f"The rollout differs from that of uniform attention by {share:.1%}; the rest is the "
            "profile of a network that looks at everything alike."
        )
    if stored.looked_at:
        yield Paragraph(stored.looked_at)


def _forecast(decision: Mapping[str, Any]) -> str:
    """Say what the model forecast at the gates' horizon, as far as it gives it."""
    parts = []
    if (mean := decision["mean_return"]) is not None:
        stdev = decision["stdev_return"]
        spread = "" if stdev is None else f" ± {stdev * BASIS_POINTS:.1f} bp"
        parts.append(
            f"expected return {mean * BASIS_POINTS:+.2f} bp{spread} over {decision['horizon']} bars"
        )
    if decision["p_up"] is not None:
        parts.append(
            f"down {decision['p_down']:.2f}, flat {decision['p_flat']:.2f}, "
            f"up {decision['p_up']:.2f}"
        )
    if (loss := decision["expected_shortfall_long"]) is not None:
        parts.append(
            f"in the worst 2.5 % of cases a long loses {_bp(loss)} bp and a short "
            f"{_bp(decision['expected_shortfall_short'])} bp on average"
        )
    if (fall := decision["expected_drawdown"]) is not None:
        parts.append(f"a fall of {_bp(fall)} bp on the way is as likely as not")
    if (allocation := decision["learned_allocation"]) is not None:
        parts.append(f"the network itself would hold {allocation:+.3f}")
    parts.append(f"regime {decision['regime']}")
    if (learned := decision["learned_regime"]) is not None:
        parts.append(f"the network's regime {learned}")
    if (cell := decision["regime_cell"]) is not None:
        parts.append(f"the card's regime {cell}")
    if (factor := decision["size_factor"]) is not None:
        parts.append(f"sized {factor:.3f} by confidence in its volatility")
    return "; ".join(parts)


def _noted(row: Mapping[str, Any]) -> str:
    if row["text"] is not None:
        return f"{row['name']} “{row['text']}”"
    number = "no finite number" if row["number"] is None else f"{row['number']:,.6g}"
    return f"{row['name']} {number}"


def _netted(stored: StoredDecision) -> Table:
    """Return the target and the position of each strategy behind the account's decision."""
    forms: dict[str, Form] = {
        "strategy": "text", "action": "text", "wants": "exact", "holds": "exact", "reason": "text",
        "gates": "text",
    }  # fmt: skip
    rows = [
        (
            row["strategy"], row["action"], row["target_quantity_text"], row["quantity_text"],
            row["reason"], stand_of(row),
        )
        for row in stored.strategies
    ]  # fmt: skip
    return table_of("strategies", "What each strategy wants of the account's position", forms, rows)


def _gates(flips: Flips) -> Table:
    rows: list[tuple[Value, ...]] = []
    for gate in flips.gates:
        share = ""
        if gate.is_gradual and gate.share is not None:
            is_share = abs(gate.share) < SHARE_MOST
            share = f"{gate.share:+.1%}" if is_share else f"{gate.share:+,.0f} ×"
        rows.append(
            (
                gate.gate,
                measured(gate.gate, gate.measure),
                measured(gate.gate, gate.threshold),
                measured(gate.gate, gate.margin, signed=True),
                share,
                unit_beside(gate.gate),
                gate.passed,
            )
        )
    forms: dict[str, Form] = {
        "gate": "text", "measure": "exact", "threshold": "exact", "margin": "exact",
        "share": "exact", "unit": "text", "": "mark",
    }  # fmt: skip
    title = "Gates (the margin is what each had to spare, or was short by)"
    return table_of("gates", title, forms, rows)


def bucket_table(stored: StoredDecision) -> Table:
    """Return the heaviest 64-bar blocks of the explanation that was stored."""
    heaviest = sorted(stored.buckets, key=lambda row: -abs(row["weight"]))[:BUCKETS_SHOWN]
    sizes = (abs(row["weight"]) for row in heaviest if row["bucket"] != "older")
    most = max(sizes, default=0.0) or 1.0
    rows: list[tuple[Value, ...]] = [
        # All that is older is no block, and has no bar.
        ("older", row["weight"], None)
        if row["bucket"] == "older"
        else (row["from_open_time_iso"], row["weight"], abs(row["weight"]) / most)
        for row in heaviest
    ]
    title = f"Where it looked, by 64-bar block ({LOOKED})"
    if stored.is_relevance:
        title = f"What moved its mean, by 64-bar block ({ADDED})"
    return table_of("buckets", title, {"from": "text", "weight": "measure", "": "bar"}, rows)


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
    if (products := full.multiplications) is not None:
        yield Paragraph(
            f"ProbSparse makes {products.sparse / products.dense:.1%} of the multiplications of "
            f"dense attention in the same layers (sampled keys and attending queries), and "
            f"{products.computed / products.dense:.1%} where it takes the sampled ones from all "
            "products."
        )
    yield from full.further


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
    given = ", ".join(
        f"{name.replace('_', ' ')} {value}" for name, value in explained.options.items() if value
    )
    yield Paragraph(f"By the method {explained.method} ({given})")
    yield from attribution_parts(explained.attribution)
    ranks = explained.rank_correlation
    alike = "no order to compare" if ranks is None else f"rank correlation {ranks:+.2f}"
    yield Paragraph(
        f"Beside the explanation that was stored, over the same bars: {alike}, and "
        f"{explained.common:.0%} of the weight on the same bars."
    )


def _bp(value: float) -> str:
    return f"{BASIS_POINTS * value:,.1f}"


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
    residual, start = influence.residual_weight, influence.start_layer
    if (residual, start) == (PLAIN.residual_weight, PLAIN.start_layer):
        yield Paragraph(f"{sentence}.")
    else:
        yield Paragraph(f"{sentence}; these are of residual {residual:g} from layer {start} on.")
