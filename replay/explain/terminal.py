"""One decision for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tracepaper.replay.archive.columns import iso
from tracepaper.replay.document.terminal import printed
from tracepaper.replay.document.values import bar_of
from tracepaper.replay.explain.attribution import (
    ByFeature,
    ByMethod,
    Influence,
    SideBySide,
)
from tracepaper.replay.explain.auxiliary_heads import FurtherAhead
from tracepaper.replay.explain.decision import (
    Flips,
    GateMargin,
    StoredDecision,
    flips_of,
    verdict_of,
)
from tracepaper.replay.explain.recompute import (
    HEAVIEST,
    Agreement,
    Deletion,
    FrameShare,
    Full,
    FullAttribution,
    HeavyBar,
    ModalityShare,
    Moves,
    Trial,
)
from tracepaper.replay.report.trades import listed
from tracepaper.replay.training.further import TAILS
from tracepaper.strategies.forecasters.cross_asset import USUAL
from tracepaper.strategies.gates.gate import measured, unit_beside
from tracepaper.strategies.types.decisions import Action
from tracepaper.strategies.units import interval_text

BASIS_POINTS: Final = 1e4
BUCKETS_SHOWN: Final = 12
SHARE_MOST: Final = 10.0
"""From here on a share is written as a multiple of the threshold."""
ANSWER_MARK: Final = {True: "[green]✓[/]", False: "[red]✗[/]"}
ORDERS_TITLE: Final = "Orders of the list, and what became of each"
LOOKED: Final = "where attention flowed; not why the price will move"


def show_stored(stored: StoredDecision) -> RenderableType:
    """Return what the rows of one decision say, and what would have flipped it."""
    flips = flips_of(stored)
    parts: list[RenderableType] = [_verdict(stored.decision), _gate_table(flips)]
    parts.append(_flip_text(flips, stored.trend))
    if stored.notes:
        parts.insert(1, _notes(stored.notes))
    if stored.decision["action"] == Action.ORDERS:
        parts.insert(1, _orders(stored))
    parts.append(Text(stored.no_attribution) if stored.no_attribution else _bucket_table(stored))
    if stored.looked_at:
        parts.append(Text(stored.looked_at))
    return Group(*parts)


def table_of(title: str, columns: tuple[tuple[str, bool], ...]) -> Table:
    """Return an empty table; a column is its name, and whether it holds numbers."""
    table = Table(title=title, title_justify="left", title_style="bold", box=None)
    for name, is_number in columns:
        table.add_column(name, justify="right" if is_number else "left")
    return table


def _verdict(decision: dict[str, Any]) -> Text:
    text = Text()
    text.append(f"{decision['instrument']} at {decision['open_time_iso']}: ", style="bold")
    verdict, reason = verdict_of(decision)
    text.append(f"{decision['action']} ({verdict}){reason and f', {reason}'}\n")
    if (unfilled := decision["unfilled_reason"]) is not None:
        text.append(
            f"unfilled: {unfilled}; {decision['target_quantity_text']} is wanted and no order "
            "for it would be taken\n"
        )
    if decision["horizon"] is not None:
        text.append(f"{_forecast(decision)}\n")
    return text


def _forecast(decision: Mapping[str, Any]) -> str:
    """Return what the model said at the gates' horizon, as far as it gives it."""
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
    parts.append(f"regime {decision['regime']}")
    if (cell := decision["regime_cell"]) is not None:
        parts.append(f"the card's regime {cell}")
    if (factor := decision["size_factor"]) is not None:
        parts.append(f"sized {factor:.3f} by confidence in its volatility")
    return "; ".join(parts)


def _notes(rows: Sequence[dict[str, Any]]) -> Text:
    """Return what the strategy noted at the decision, in its order."""
    said = [f"{row['name']} {_noted(row)}" for row in rows]
    return Text(f"The strategy noted: {', '.join(said)}.\n")


def _orders(stored: StoredDecision) -> RenderableType:
    """Return the orders of a list, and what became of each."""
    if not stored.orders:
        return Text("Its list changed no order.\n")
    return Group(printed(listed(stored.orders, title=ORDERS_TITLE)), Text())


def _noted(row: dict[str, Any]) -> str:
    if row["text"] is not None:
        return f"“{row['text']}”"
    return "no finite number" if row["number"] is None else f"{row['number']:,.6g}"


def _gate_table(flips: Flips) -> Table:
    table = table_of(
        "Gates (the margin is what each had to spare, or was short by)",
        (
            ("gate", False),
            ("measure", True),
            ("threshold", True),
            ("margin", True),
            ("share", True),
            ("unit", False),
            ("", False),
        ),
    )
    for gate in flips.gates:
        table.add_row(
            f"[bold]{gate.gate}[/]" if gate.gate == flips.nearest else gate.gate,
            measured(gate.gate, gate.measure),
            measured(gate.gate, gate.threshold),
            measured(gate.gate, gate.margin, signed=True),
            _share(gate),
            f"[dim]{unit_beside(gate.gate)}[/]",
            ANSWER_MARK[gate.passed],
        )
    return table


def _share(gate: GateMargin) -> str:
    """Return the margin over the threshold where that says something: a share, or a multiple."""
    if not gate.is_gradual or gate.share is None:
        return ""
    return f"{gate.share:+.1%}" if abs(gate.share) < SHARE_MOST else f"{gate.share:+,.0f} ×"


def _flip_text(flips: Flips, trend: str | None) -> Text:
    """Return what would have flipped the verdict, and where the direction came from."""
    text = Text(f"{flips.sentence}\n")
    if trend is not None:
        return text.append(f"{trend}\n")
    if (side := flips.side) is None:
        return text
    pointed = {"LONG": "up", "SHORT": "down"}.get(side.side)
    pointed_at = (
        "The mean and the classes disagreed" if pointed is None else f"It pointed {pointed}"
    )
    text.append(
        f"{pointed_at}: the mean is {side.mean_return * BASIS_POINTS:+.2f} bp from zero "
        f"({abs(side.mean_over_stdev):.1%} of its standard deviation), and up less down is "
        f"{side.lean:+.3f}; the side turns where both change sign.\n"
    )
    return text


def _bucket_table(stored: StoredDecision) -> Table:
    table = table_of(
        f"Where it looked, by 64-bar block ({LOOKED})",
        (("from", False), ("weight", True), ("", False)),
    )
    heaviest = sorted(stored.buckets, key=lambda row: -row["weight"])[:BUCKETS_SHOWN]
    blocks = [row["weight"] for row in heaviest if row["bucket"] != "older"]
    most = max(blocks, default=0.0) or 1.0
    for row in heaviest:
        is_block = row["bucket"] != "older"  # all that is older is no block, and has no bar
        start = str(row["from_open_time_iso"]) if is_block else "older"
        bar = f"[cyan]{bar_of(row['weight'] / most)}[/]" if is_block else ""
        table.add_row(start, f"{row['weight']:.4f}", bar)
    return table


FEATURES_SHOWN: Final = 10
BARS_SHOWN: Final = 8
BAR_CELLS: Final = 16
COMPARED_SHOWN: Final = 6


def show_full(full: Full) -> RenderableType:
    """Return all that was recomputed: attribution, contributions, deletion test."""
    return Group(
        _agreement(full.agreement),
        show_attribution(full.attribution),
        _features(full.moves),
        _sums(full.moves),
        _bars(full.moves),
        _deletions(full.deletion),
        *_further(full.further),
    )


def show_by_feature(found: ByFeature) -> RenderableType:
    """Return a table of the features that added most to mean and volatility."""
    table = table_of(
        f"Added by each feature, over {found.horizon} bars",
        (("feature", False), ("value", True), ("mean, bp", True), ("volatility ×", True)),
    )
    table.add_row(
        "the usual bar",
        "",
        f"{BASIS_POINTS * found.mean_base:+.3f}",
        f"{found.volatility_base:.3g}",
    )
    for one in found.features[:FEATURES_SHOWN]:
        table.add_row(
            one.feature,
            f"{one.value:+.3f}",
            f"{BASIS_POINTS * one.mean_return:+.3f}",
            f"{one.volatility:.4f}",
        )
    rest = len(found.features) - FEATURES_SHOWN
    note = Text(
        f"With {max(rest, 0)} further features the means sum to "
        f"{BASIS_POINTS * found.mean_return:+.3f} bp and the factors multiply to a volatility of "
        f"{BASIS_POINTS * found.volatility:.2f} bp; what was stored differs by at most "
        f"{found.gap:.1e}.\n"
    )
    if found.share is not None:
        note.append(
            f"These are of the ensemble's row model, which has {found.share:.2f} of the log "
            f"variance; the network has {1 - found.share:.2f}, and the mean.\n"
        )
    return Group(table, note)


def show_attribution(found: FullAttribution) -> RenderableType:
    """Return a table of the decided bar and the heaviest past ones, with their closes."""
    table = table_of(
        f"Bar by bar: the decided bar and the {HEAVIEST} heaviest of {len(found.weights) - 1:,} "
        f"before it ({LOOKED})",
        (("bar", False), ("age", True), ("close", True), ("weight", True), ("", False)),
    )
    newest = len(found.weights) - 1
    heaviest = found.heaviest(HEAVIEST)
    most = found.weights[heaviest[0]] or 1.0
    for place in [newest, *sorted(heaviest, reverse=True)]:
        weight = found.weights[place]
        bar = "" if place == newest else f"[cyan]{bar_of(weight / most)}[/]"
        table.add_row(
            iso(found.open_time_ms[place]),
            str(newest - place),
            f"{found.close[place]:,g}",
            f"{weight:.4f}",
            bar,
        )
    note = Text(f"Weights sum to 1 within {found.l1_error:.1e}")
    if found.largest_bucket_difference is not None:
        note.append(f"; the stored buckets differ by at most {found.largest_bucket_difference:.1e}")
    parts = [_by_frame(found.frames)] if found.frames else []
    parts += [_by_modality(found.modalities)] if found.modalities else []
    return Group(table, note.append(".\n"), *parts)


def show_compared(found: SideBySide) -> RenderableType:
    """Return a table of two decisions, or of two models on one, and what they have in common."""
    sides = (found.first, found.second)
    table = table_of("Beside each other", (("", False), *((side.name, True) for side in sides)))
    table.add_row("model", *(side.model_id for side in sides))
    table.add_row("decided bar", *(iso(side.open_time_ms) for side in sides))
    table.add_row("over, bars", *(f"{side.horizon:,}" for side in sides))
    table.add_row("expected, bp", *(f"{BASIS_POINTS * side.mean_return:+.2f}" for side in sides))
    table.add_row("up less down", *(f"{side.lean:+.3f}" for side in sides))
    table.add_row("decided bar's share", *(f"{side.weights[-1]:.1%}" for side in sides))
    for name in _largest(found):
        added = (f"{BASIS_POINTS * side.features[name]:+.3f}" for side in sides)
        table.add_row(f"{name} added, bp", *added)
    layers = ", ".join(
        f"{layer} {common:.0%}" for layer, common in enumerate(found.common_by_layer, start=1)
    )
    ranks = found.rank_correlation
    alike = "no order to compare" if ranks is None else f"a rank correlation of {ranks:+.2f}"
    note = Text(
        f"They give {found.common_ages:.0%} of their weight to the same ages and "
        f"{found.common_bars:.0%} to the same bars; over past ages they have {alike}. In common by "
        f"layer, in the mean of its heads: {layers}.\n"
    )
    return Group(table, note)


def _largest(found: SideBySide) -> list[str]:
    """Return the features that both have and that added most to either."""
    sides = (found.first, found.second)
    names = [name for name in found.first.features if name in found.second.features]
    names.sort(key=lambda name: -max(abs(side.features[name]) for side in sides))
    return names[:COMPARED_SHOWN]


def show_by_method(found: ByMethod) -> RenderableType:
    """Return the table of a method of one's choice, and how far it agrees with what was stored."""
    given = ", ".join(
        f"{name.replace('_', ' ')} {value}" for name, value in found.options.items() if value
    )
    ranks = found.rank_correlation
    alike = "no order to compare" if ranks is None else f"rank correlation {ranks:+.2f}"
    return Group(
        Text(f"By the method {found.method} ({given})"),
        show_attribution(found.attribution),
        Text(
            f"Beside the explanation that was stored, over the same bars: {alike}, and "
            f"{found.common:.0%} of the weight on the same bars.\n"
        ),
    )


def _by_frame(frames: tuple[FrameShare, ...]) -> Table:
    table = table_of(
        "By timeframe, of closed bars",
        (("frame", False), ("bars", True), ("weight", True), ("heaviest of them", False)),
    )
    for frame in frames:
        table.add_row(
            interval_text(frame.interval_ms),
            str(frame.bars),
            f"{frame.weight:.4f}",
            _named(frame.heaviest),
        )
    return table


def _by_modality(modalities: tuple[ModalityShare, ...]) -> Table:
    table = table_of(
        "By modality of the bars",
        (("modality", False), ("weight", True), ("heaviest bars of it", False)),
    )
    for one in modalities:
        table.add_row(one.modality, f"{one.weight:.4f}", _named(one.heaviest))
    return table


def _named(bars: tuple[HeavyBar, ...]) -> str:
    return "  ".join(f"{iso(bar.open_time_ms)} {bar.weight:.4f}" for bar in bars)


def _further(found: tuple[FurtherAhead, ...]) -> list[RenderableType]:
    """Return the table of tails, drawdown and regimes, and that of the path; none of neither."""
    if not found:
        return []
    risks = table_of(
        "What it says of the risk, in bp: value at risk / expected shortfall at 1 and 5 %, median "
        "/ 90 % of the drawdown, and the odds of each regime with the volatility in it",
        (("bars ahead", True), ("long", True), ("short", True), ("drawdown", True),
         ("regimes", False)),
    )  # fmt: skip
    paths = table_of(
        "The path that it says, in bp: 5, 50 and 95 % of the return",
        (("bars ahead", True), ("after bars", True), ("5 %", True), ("50 %", True), ("95 %", True)),
    )
    for one in found:
        risks.add_row(
            str(one.horizon),
            *(
                "  ".join(
                    f"{_bp(tail.value_at_risk)} / {_bp(tail.expected_shortfall)}"
                    for tail in one.tails
                    if tail.position == position
                )
                for position in TAILS
            ),
            " / ".join(_bp(level.drawdown) for level in one.drawdown),
            "  ".join(f"{each.probability:.2f} at {_bp(each.volatility)}" for each in one.regimes),
        )
        for step in one.path:
            quantiles = (step.low, step.middle, step.high)
            paths.add_row(str(one.horizon), str(step.bars), *map(_bp, quantiles))
    return [risks, paths]


def _bp(value: float) -> str:
    return f"{BASIS_POINTS * value:,.1f}"


def _agreement(found: Agreement) -> Text:
    stored, again = found.stored, found.recomputed
    return Text(
        f"Recomputed from the stored bars, {found.horizon} bars ahead: mean "
        f"{again.mean_return * BASIS_POINTS:+.4f} bp (stored "
        f"{stored.mean_return * BASIS_POINTS:+.4f}), up less down {again.lean:+.5f} "
        f"(stored {stored.lean:+.5f}).\n"
    )


def _features(moves: Moves) -> Table:
    table = table_of(
        f"What moved the mean, by feature in bp (integrated gradients; the "
        f"{FEATURES_SHOWN} largest of {len(moves.features)})",
        (
            ("feature", False),
            ("value now", True),
            ("this bar", True),
            (f"{HEAVIEST} heaviest", True),
            ("all bars", True),
            ("", False),
        ),
    )
    most = abs(moves.features[0].all_bars) or 1.0
    for move in moves.features[:FEATURES_SHOWN]:
        colour = "green" if move.all_bars > 0 else "red"
        table.add_row(
            move.feature,
            f"{move.value:+.2f}",
            _points(move.decided_bar),
            _points(move.heaviest_bars),
            _points(move.all_bars),
            f"[{colour}]{bar_of(abs(move.all_bars) / most, BAR_CELLS)}[/]",
        )
    return table


def _sums(moves: Moves) -> Text:
    return Text(
        f"All contributions add {_points(moves.forecast - moves.neutral)} bp to the "
        f"{_points(moves.neutral)} bp that the model says of neutral rows, and so give "
        f"{_points(moves.forecast)} bp, within {abs(moves.gap) * BASIS_POINTS:.1e} bp.\n"
    )


def _bars(moves: Moves) -> RenderableType:
    table = table_of(
        f"What moved the mean, by bar (the {BARS_SHOWN} largest)",
        (
            ("bar", False),
            ("age", True),
            ("adds bp", True),
            ("most by", False),
            ("rollout weight", True),
        ),
    )
    for move in moves.bars[:BARS_SHOWN]:
        table.add_row(
            iso(move.open_time_ms),
            str(move.age),
            _points(move.added),
            move.feature,
            f"{move.weight:.4f}",
        )
    agreed = moves.rank_correlation
    rank = "none, for either is the same for every bar" if agreed is None else f"{agreed:+.2f}"
    note = Text(
        f"Rank correlation of these contributions with the rollout, over the past bars: {rank}.\n"
    )
    return Group(table, note)


def _deletions(found: Deletion) -> RenderableType:
    table = table_of(
        "Deletion test: rows made neutral, and how far the forecast then moves",
        (("bars", True), ("which", False), ("mean, bp", True), ("up less down", True)),
    )
    (heaviest,), (newest,) = found.of("heaviest"), found.of("newest")
    (decided,), (past,) = found.of("decided"), found.of("past")
    chance = found.of("random")
    mean = sum(trial.mean_return for trial in chance) / len(chance)
    lean = sum(trial.lean for trial in chance) / len(chance)
    shown = (
        (heaviest, "heaviest by rollout"),
        (Trial("random", None, found.bars, mean, lean), f"random (mean of {len(chance)} seeds)"),
        (newest, "newest"),
        (decided, "the decided bar alone"),
        (past, "all but the decided bar"),
    )
    for trial, name in shown:
        moved = f"{trial.mean_return * BASIS_POINTS:.3f}"
        table.add_row(f"{trial.bars:,}", name, moved, f"{trial.lean:.4f}")
    means = [trial.mean_return * BASIS_POINTS for trial in chance]
    below = sum(trial.mean_return < heaviest.mean_return for trial in chance)
    further = "further" if heaviest.mean_return > newest.mean_return else "no further"
    note = Text(
        f"Random draws of seeds {chance[0].seed} to {chance[-1].seed} moved the mean by "
        f"{min(means):.3f} to {max(means):.3f} bp. The heaviest bars moved it further than {below} "
        f"of these {len(chance)}, and {further} than the newest.\n"
    )
    return Group(table, note)


def _points(log_return: float) -> str:
    return f"{log_return * BASIS_POINTS:+.3f}"


# ---------------------------------------------------------------- for a terminal


def show_influence(found: Influence) -> RenderableType:
    """Return the decided symbol's heaviest bars, and the matrix of all."""
    bars = table_of(
        f"Where {found.symbol} looked, over {found.bars:,} bars of each asset ({LOOKED})",
        (("asset", False), ("bar", False), ("weight", True), ("", False)),
    )
    most = found.heaviest[0].weight or 1.0
    for one in found.heaviest:
        bars.add_row(
            one.symbol,
            iso(one.open_time_ms),
            f"{one.weight:.4f}",
            f"[cyan]{bar_of(one.weight / most)}[/]",
        )
    matrix = table_of(
        "Influence: the share of each asset (column) in where each looked (row)",
        (("", False), *((symbol, True) for symbol in found.symbols)),
    )
    for symbol, row in zip(found.symbols, found.matrix, strict=True):
        matrix.add_row(symbol, *(f"{share:.3f}" for share in row))
    said = f"Its shares differ by at most {found.largest_difference:.1e} from those stored"
    residual, start = found.residual_weight, found.start_layer
    if (residual, start) == (USUAL.residual_weight, USUAL.start_layer):
        said += "."
    else:
        said += f"; these are of residual {residual:g} from layer {start} on."
    return Group(bars, matrix, said)
