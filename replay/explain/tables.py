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
from tracepaper.replay.explain.auxiliary_heads import FurtherAhead
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
            "LONG": "It pointed up",
            "SHORT": "It pointed down",
        }.get(side.side, "The mean and the classes disagreed")
        yield Paragraph(
            f"{pointed}: the mean is {side.mean_return * BASIS_POINTS:+.2f} bp from zero "
            f"({abs(side.mean_over_stdev):.1%} of its standard deviation), and up less down is "
            f"{side.lean:+.3f}; the side turns where both change sign."
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
    if (own := decision["learned_allocation"]) is not None:
        parts.append(f"the network itself would hold {own:+.3f}")
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
            one["strategy"], one["action"], one["target_quantity_text"], one["quantity_text"],
            one["reason"], stand_of(one),
        )
        for one in stored.strategies
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
    """Return the heaviest 64-bar blocks of the rollout that was stored."""
    heaviest = sorted(stored.buckets, key=lambda row: -row["weight"])[:BUCKETS_SHOWN]
    most = max((row["weight"] for row in heaviest if row["bucket"] != "older"), default=0.0) or 1.0
    rows: list[tuple[Value, ...]] = [
        # All that is older is no block, and has no bar.
        ("older", row["weight"], None)
        if row["bucket"] == "older"
        else (row["from_open_time_iso"], row["weight"], row["weight"] / most)
        for row in heaviest
    ]
    title = f"Where it looked, by 64-bar block ({LOOKED})"
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
         "rollout weight": "measure"},
        [
            (iso(move.open_time_ms), str(move.age), move.added, move.feature, move.weight)
            for move in moves.bars[:BARS_SHOWN]
        ],
    )  # fmt: skip
    ranks = moves.rank_correlation
    rank = "none, for either is the same for every bar" if ranks is None else f"{ranks:+.2f}"
    yield Paragraph(
        f"Rank correlation of these contributions with the rollout, over the past bars: {rank}."
    )
    yield from _deletion_parts(full.deletion)
    if (made := full.multiplications) is not None:
        yield Paragraph(
            f"ProbSparse makes {made.sparse / made.dense:.1%} of the multiplications of dense "
            f"attention in the same layers (sampled keys and attending queries), and "
            f"{made.computed / made.dense:.1%} where it takes the sampled ones from all products."
        )
    if full.further:
        for table in (_tails, _extremes, _regimes, _paths):
            if (said := table(full.further)).rows:
                yield said


def feature_parts(found: ByFeature) -> Iterator[Part]:
    """Yield the features that added most to mean and volatility."""
    yield table_of(
        "by_feature",
        f"Added by each feature, over {found.horizon} bars",
        {"feature": "text", "value": "exact", "mean, bp": "points", "volatility ×": "exact"},
        [
            ("the usual bar", "", found.mean_base, f"{found.volatility_base:.3g}"),
            *(
                (one.feature, f"{one.value:+.3f}", one.mean_return, f"{one.volatility:.4f}")
                for one in found.features[:FEATURES_SHOWN]
            ),
        ],
    )
    rest = len(found.features) - FEATURES_SHOWN
    yield Paragraph(
        f"With {max(rest, 0)} further features the means sum to "
        f"{BASIS_POINTS * found.mean_return:+.3f} bp and the factors multiply to a volatility of "
        f"{BASIS_POINTS * found.volatility:.2f} bp; what was stored differs by at most "
        f"{found.gap:.1e}."
    )
    if found.share is not None:
        yield Paragraph(
            f"These are of the ensemble's row model, which has {found.share:.2f} of the log "
            f"variance; the network has {1 - found.share:.2f}, and the mean."
        )


CONTRIBUTIONS_SHOWN: Final = 8


def contributed_parts(found: ModelContributions) -> Iterator[Part]:
    """Yield the largest contributions of a user's own model, and what all of them sum to."""
    yield table_of(
        "contributions",
        f"Added to the mean by each feature, over {found.horizon} bars, as the model says",
        {"feature": "text", "mean, bp": "points"},
        list(found.features[:CONTRIBUTIONS_SHOWN]),
    )
    rest = max(len(found.features) - CONTRIBUTIONS_SHOWN, 0)
    yield Paragraph(
        f"With {rest} further features they sum to the stored "
        f"{BASIS_POINTS * found.mean_return:+.3f} bp. They are computed when asked, and not stored."
    )


def attribution_parts(found: FullAttribution) -> Iterator[Part]:
    """Yield the decided bar and the heaviest past ones, with their closes."""
    newest = len(found.weights) - 1
    heaviest = found.heaviest(HEAVIEST)
    most = found.weights[heaviest[0]] or 1.0
    yield table_of(
        "bars",
        f"Bar by bar: the decided bar and the {HEAVIEST} heaviest of {newest:,} before it "
        f"({LOOKED})",
        {"bar": "text", "age": "exact", "close": "exact", "weight": "measure", "": "bar"},
        [
            (
                iso(found.open_time_ms[place]),
                str(newest - place),
                f"{found.close[place]:,g}",
                found.weights[place],
                None if place == newest else found.weights[place] / most,
            )
            for place in [newest, *sorted(heaviest, reverse=True)]
        ],
    )
    said = f"Weights sum to 1 within {found.l1_error:.1e}"
    if (difference := found.largest_bucket_difference) is not None:
        said += f"; the stored buckets differ by at most {difference:.1e}"
    yield Paragraph(f"{said}.")
    if found.frames:
        yield table_of(
            "timeframes",
            "By symbol and timeframe, of closed bars"
            if any(of.symbol for of in found.frames)
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
                for of in found.frames
            ],
        )  # fmt: skip
    if found.modalities:
        yield table_of(
            "modalities",
            "By modality of the bars",
            {"modality": "text", "weight": "measure", "heaviest bars of it": "text"},
            [(of.modality, of.weight, _heavy_bars(of.heaviest)) for of in found.modalities],
        )
    for of in found.modalities:
        if of.levels:
            yield table_of(
                "levels",
                f"By levels of the order book, of its {of.weight:.4f}",
                {"levels": "text", "weight": "measure"},
                [(name.replace("_", "–"), weight) for name, weight in of.levels.items()],
            )


def _heavy_bars(bars: tuple[HeavyBar, ...]) -> str:
    return "  ".join(f"{iso(bar.open_time_ms)} {bar.weight:.4f}" for bar in bars)


def compared_parts(found: SideBySide) -> Iterator[Part]:
    """Yield two decisions, or two models on one, side by side, and what they have in common."""
    first, second = found.first, found.second
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
        f"{layer} {common:.0%}" for layer, common in enumerate(found.common_by_layer, start=1)
    )
    yield Paragraph(f"{in_common(found)} In common by layer, in the mean of its heads: {layers}.")


def in_common(found: SideBySide) -> str:
    """Say what the two have in common."""
    ranks = found.rank_correlation
    alike = "no order to compare" if ranks is None else f"a rank correlation of {ranks:+.2f}"
    return (
        f"They give {found.common_ages:.0%} of their weight to the same ages and "
        f"{found.common_bars:.0%} to the same bars; over past ages they have {alike}."
    )


def _added_by(feature: str) -> Figure[MemberView]:
    return Figure(feature, f"{feature} added, bp", "points", lambda side: side.features[feature])


def method_parts(found: ByMethod) -> Iterator[Part]:
    """Yield the attribution by a method of one's choice, and how far it agrees with the stored."""
    given = ", ".join(
        f"{name.replace('_', ' ')} {value}" for name, value in found.options.items() if value
    )
    yield Paragraph(f"By the method {found.method} ({given})")
    yield from attribution_parts(found.attribution)
    ranks = found.rank_correlation
    alike = "no order to compare" if ranks is None else f"rank correlation {ranks:+.2f}"
    yield Paragraph(
        f"Beside the explanation that was stored, over the same bars: {alike}, and "
        f"{found.common:.0%} of the weight on the same bars."
    )


def _tails(found: tuple[FurtherAhead, ...]) -> Table:
    return table_of(
        "tails",
        "The loss that a share of returns exceeds, and the mean of those, in bp",
        {"bars ahead": "count", "position": "text", "share": "share", "value at risk": "bp",
         "expected shortfall": "bp"},
        [
            (one.horizon, tail.position, tail.share, tail.value_at_risk, tail.expected_shortfall)
            for one in found
            for tail in one.tails
        ],
    )  # fmt: skip


def _extremes(found: tuple[FurtherAhead, ...]) -> Table:
    return table_of(
        "extremes",
        "The largest fall and rise from one close to a later one, in bp, by quantile",
        {"bars ahead": "count", "extreme": "text", "quantile": "share", "return": "bp"},
        [
            (one.horizon, name, quantile.level, quantile.drawdown)
            for one in found
            for name, quantiles in (("drawdown", one.drawdown), ("run-up", one.runup))
            for quantile in quantiles
        ],
    )


def _regimes(found: tuple[FurtherAhead, ...]) -> Table:
    return table_of(
        "regimes",
        "The odds of each regime, and the volatility to the horizon in it, in bp",
        {"bars ahead": "count", "regime": "count", "odds": "share", "volatility": "bp"},
        [
            (one.horizon, number, regime.probability, regime.volatility)
            for one in found
            for number, regime in enumerate(one.regimes, 1)
        ],
    )


def _paths(found: tuple[FurtherAhead, ...]) -> Table:
    return table_of(
        "paths",
        "The path that it says, in bp: 5, 50 and 95 % of the return",
        {"bars ahead": "count", "after bars": "count", "5 %": "bp", "50 %": "bp", "95 %": "bp"},
        [
            (one.horizon, step.bars, step.low, step.middle, step.high)
            for one in found
            for step in one.path
        ],
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


def _deletion_parts(found: Deletion) -> Iterator[Part]:
    (heaviest,), (newest,) = found.of("heaviest"), found.of("newest")
    (decided,), (past,) = found.of("decided"), found.of("past")
    chance = found.of("random")
    mean = sum(trial.mean_return for trial in chance) / len(chance)
    lean = sum(trial.lean for trial in chance) / len(chance)
    trials = (
        (heaviest, "heaviest by rollout"),
        (Trial("random", None, found.bars, mean, lean), f"random (mean of {len(chance)} seeds)"),
        (newest, "newest"),
        (decided, "the decided bar alone"),
        (past, "all but the decided bar"),
    )
    yield table_of(
        "deletion",
        "Deletion test: rows made neutral, and how far the forecast then moves",
        {"bars": "count", "which": "text", "mean, bp": "exact", "up less down": "measure"},
        [
            (trial.bars, name, f"{trial.mean_return * BASIS_POINTS:.3f}", trial.lean)
            for trial, name in trials
        ],
    )
    means = [trial.mean_return * BASIS_POINTS for trial in chance]
    below = sum(trial.mean_return < heaviest.mean_return for trial in chance)
    further = "further" if heaviest.mean_return > newest.mean_return else "no further"
    yield Paragraph(
        f"Random draws of seeds {chance[0].seed} to {chance[-1].seed} moved the mean by "
        f"{min(means):.3f} to {max(means):.3f} bp. The heaviest bars moved it further than {below} "
        f"of these {len(chance)}, and {further} than the newest."
    )


def _points(log_return: float) -> str:
    return f"{log_return * BASIS_POINTS:+.3f}"


def influence_parts(found: Influence) -> Iterator[Part]:
    """Yield the decided symbol's heaviest bars, and the matrix of all."""
    most = found.heaviest[0].weight or 1.0
    yield table_of(
        "heaviest",
        f"Where {found.symbol} looked, over {found.bars:,} bars of each asset ({LOOKED})",
        {"asset": "text", "bar": "text", "weight": "measure", "": "bar"},
        [
            (one.symbol, iso(one.open_time_ms), one.weight, one.weight / most)
            for one in found.heaviest
        ],
    )
    forms: dict[str, Form] = {"": "text", **dict.fromkeys(found.symbols, "exact")}
    yield table_of(
        "influence",
        "Influence: the share of each asset (column) in where each looked (row)",
        forms,
        [
            (symbol, *(f"{share:.3f}" for share in row))
            for symbol, row in zip(found.symbols, found.matrix, strict=True)
        ],
    )
    said = f"Its shares differ by at most {found.largest_difference:.1e} from those stored"
    residual, start = found.residual_weight, found.start_layer
    if (residual, start) == (PLAIN.residual_weight, PLAIN.start_layer):
        yield Paragraph(f"{said}.")
    else:
        yield Paragraph(f"{said}; these are of residual {residual:g} from layer {start} on.")
