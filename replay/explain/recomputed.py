"""What ``explain`` asks of the model: its answers, their charts and the page of --full."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final, TypeVar

import numpy as np
from msgspec import structs
from rich.console import Console

from tracepaper.daemon.config.values import MODEL_INPUTS
from tracepaper.daemon.session.user_model import user_model
from tracepaper.replay.document.charts import (
    BarLayer,
    Chart,
    ChartAxis,
    ChartPanel,
    ChartRole,
    Layer,
    LineLayer,
    RuleLayer,
    category_axis,
    percent_axis,
    rounded,
    time_axis,
)
from tracepaper.replay.document.values import Paragraph, Part, TitledParts
from tracepaper.replay.explain.attribution import (
    ComparisonSide,
    ModelAttended,
    SideBySide,
    by_feature,
    by_model,
    compare,
    comparison_side,
    explain_by,
    influence,
    model_attended,
    model_contributions,
    past_of_row_model,
    share_of_rows,
)
from tracepaper.replay.explain.auxiliary_heads import decided_map
from tracepaper.replay.explain.decision import StoredDecision
from tracepaper.replay.explain.decision_document import BASIS_POINTS, decision_title, stored_parts
from tracepaper.replay.explain.options import ComparedWith, ModelRequest
from tracepaper.replay.explain.picture import shares_chart, shares_panels, stored_chart
from tracepaper.replay.explain.place import find_decision
from tracepaper.replay.explain.recompute import Floats, Full, explain_fully
from tracepaper.replay.report.attention_charts import head_charts
from tracepaper.replay.report.heads import HeadReport, heads_of
from tracepaper.replay.report.past import ModelAnswer, Past, open_any, open_past
from tracepaper.strategies.api.model import DataSource
from tracepaper.strategies.errors import TracepaperError
from tracepaper.strategies.forecasters.attribution import DECISIONS
from tracepaper.strategies.units import percent

Kind = TypeVar("Kind", bound=ModelAnswer)


def _compared(path: Path, run_id: str, sequence: int, with_other: ComparedWith) -> SideBySide:
    past = open_past(path, run_id, sequence)
    if with_other.model is not None:
        other, name = by_model(path, past, with_other.model), with_other.model
        label = past.forecaster.model_id
    else:
        assert with_other.decision is not None
        place = find_decision(with_other.decision, None if "#" in with_other.decision else path)
        other, name = open_past(*place), f"decision {place[2]:,}"
        label = f"decision {sequence:,}"
    return compare(comparison_side(past, label), comparison_side(other, name))


def ask_again(
    path: Path,
    run_id: str,
    sequence: int,
    stored: StoredDecision,
    request: ModelRequest,
    *,
    begins: Callable[[str], None] = lambda _doing: None,
) -> list[ModelAnswer]:
    """Return the model's recomputed answers; call *begins* with the name of each part of the work.

    Raises as :func:`explain_decision` does.
    """
    method, other = request.method, request.other
    asks = None if other else MODEL_INPUTS.get(stored.run["strategy"])
    if asks is DataSource.CLOSES:
        return [influence(path, run_id, sequence, method)]
    if asks is DataSource.ORDER_BOOKS and not method:
        return [decided_map(path, run_id, sequence, stored)]
    # The status prints only on a terminal.
    with Console(stderr=True).status("Asking the model again; this takes some seconds."):
        chosen = explain_by(open_past(path, run_id, sequence), method) if method else None
        compared = _compared(path, run_id, sequence, other) if other else None
        asked: list[ModelAnswer | None] = [chosen, compared]
        if request.full:
            past = open_any(path, run_id, sequence)
            if user_model(past.forecaster) is not None:
                asked = [model_attended(past), model_contributions(past), *asked]
            else:
                rows = past_of_row_model(past)
                added = None if rows is None else by_feature(rows, share=share_of_rows(past))
                asked = [added, *asked]
                if rows is None or rows.forecaster is not past.forecaster:
                    attended = open_past(path, run_id, sequence)
                    asked = [explain_fully(attended, begins=begins), *asked]
    return [answer for answer in asked if answer is not None]


def ask_custom_model(path: Path, run_id: str, sequence: int) -> list[ModelAnswer]:
    """Return what a custom model reports: where it looked, and what each feature added."""
    try:
        past = open_any(path, run_id, sequence)
    except TracepaperError:  # it has none or was changed; --full gives the reason
        return []
    reported = model_attended(past), model_contributions(past)
    return [answer for answer in reported if answer is not None]


def recomputed_parts(recomputed: Sequence[ModelAnswer]) -> Iterator[Part]:
    """Yield the answers for people; the deletion test comes first."""
    if (full := _of(Full, recomputed)) is not None:
        yield Paragraph(full.deletion.sentence, "strong")
    for answer in recomputed:
        yield from answer.parts()


def recomputed_chart(recomputed: Sequence[ModelAnswer]) -> Chart | None:
    """Return the chart of single bars, if the model attended."""
    if (full := _of(Full, recomputed)) is not None:
        return attention_chart(full)
    reported = _of(ModelAttended, recomputed)
    return None if reported is None else shares_chart(reported.attribution)


def page_document(
    path: Path,
    stored: StoredDecision,
    titled: TitledParts,
    recomputed: Sequence[ModelAnswer],
    printed: Sequence[Part],
) -> TitledParts:
    """Return the document of --page: of a network all of --full, else a chart and the *printed*."""
    if (full := _of(Full, recomputed)) is None:
        chart = recomputed_chart(recomputed) or stored_chart(path, stored)
        return TitledParts(decision_title(stored), (chart, *printed))
    place = path, stored.run["run_id"], stored.decision["sequence"]
    heads = read_heads_at(open_past(*place, earlier=DECISIONS - 1))
    return full_document(stored, titled, full, heads, _of(SideBySide, recomputed))


def _of(kind: type[Kind], recomputed: Sequence[ModelAnswer]) -> Kind | None:
    """Return the recomputed answer of *kind*, or None."""
    return next((answer for answer in recomputed if isinstance(answer, kind)), None)


FEATURES_MAX: Final = 15
BINS: Final = 48
"""Cells of age in a comparison; older cells are wider."""


def attention_chart(full: Full) -> Chart:
    """Draw the close, and each past bar's share of the rollout and contribution to the mean."""
    attribution, moves = full.attribution, full.moves
    times = list(attribution.open_time_ms[:-1])
    moved = [BASIS_POINTS * added for added in moves.by_bar[:-1]]
    relevant = [BASIS_POINTS * added for added in moves.relevance[:-1]]
    roles: list[ChartRole] = ["gain" if each > 0 else "loss" for each in moved]
    panels = [
        *shares_panels(attribution),
        *(
            ChartPanel(
                [layer],
                time_axis(),
                ChartAxis(f"{layer.name}, bp", unit=" bp", digits=4, has_zero=True),
                130,
            )
            for layer in (
                BarLayer("added", times, rounded(moved, 4), roles),
                LineLayer("relevance", times, rounded(relevant, 4), width=1.0),
            )
        ),
    ]
    caption = (
        f"Each past bar's share of the rollout, and what it added to the mean, by integrated "
        f"gradients and by relevance. The decided bar itself, not drawn, holds "
        f"{percent(attribution.weights[-1], 1)} and added "
        f"{BASIS_POINTS * moves.by_bar[-1]:+.2f} and {BASIS_POINTS * moves.relevance[-1]:+.2f} bp. "
        "Where attention flowed is not why. Times are UTC."
    )
    return Chart("", caption, panels, is_aligned=True)


def attribution_chart(full: Full) -> Chart:
    """Draw a bar per feature: its contributions at the decided bar and before."""
    moves = full.moves
    features = moves.features[:FEATURES_MAX]
    decided = [BASIS_POINTS * each.decided_bar for each in features]
    past = [BASIS_POINTS * (each.all_bars - each.decided_bar) for each in features]
    caption = (
        f"Integrated gradients from rows that say nothing ({BASIS_POINTS * moves.neutral:+.2f} bp) "
        f"to these ({BASIS_POINTS * moves.forecast:+.2f} bp): the largest features of "
        f"{len(moves.features)}."
    )
    sides = {"at the decided bar": decided, "at all bars before": past}
    panel = _by_feature([each.feature for each in features], sides)
    return Chart("", caption, [panel])


def _by_feature(
    names: list[str], sides: dict[str, list[float]], *, is_grouped: bool = False
) -> ChartPanel:
    """Return signed bars, one row per feature, the first on top."""
    roles: tuple[ChartRole, ChartRole] = ("accent", "muted")
    layers: list[Layer] = [
        BarLayer(side, rounded(added, 4), range(len(names)), (role,))
        for (side, added), role in zip(sides.items(), roles, strict=True)
    ]
    return ChartPanel(
        [*layers, RuleLayer(0.0, "x")],
        ChartAxis("added to the expected return, bp", unit=" bp", digits=3, has_zero=True),
        category_axis(names, is_reversed=True),
        50 + (26 if is_grouped else 22) * len(names),
        is_grouped=is_grouped,
    )


def age_chart(compared: SideBySide) -> Chart:
    """Draw both rollouts by age, then the mean attention of the heads of each layer."""
    ages = max(len(compared.first.weights), len(compared.second.weights))
    panels = [_by_age([side.by_age(ages) for side in (compared.first, compared.second)], compared)]
    for layer, common in enumerate(compared.common_by_layer):
        rows = [side.layers[layer].mean(axis=0) for side in (compared.first, compared.second)]
        ages = max(map(len, rows))
        rows = [np.pad(row, (0, ages - len(row))) for row in rows]
        title = f"layer {layer + 1}: {percent(common, 0)} in common"
        panels.append(structs.replace(_by_age(rows, compared), title=title, height=170))
    caption = (
        "What both gave to each age, the decided bar at 0: by the rollout, and by the mean of the "
        "heads of each layer."
    )
    return Chart("", caption, panels)


def features_chart(compared: SideBySide) -> Chart | None:
    """Draw each feature's contribution to both; None if they have no feature in common."""
    first, second = compared.first, compared.second
    names = [name for name in first.features if name in second.features]
    names.sort(key=lambda name: -max(abs(side.features[name]) for side in (first, second)))
    names = names[:FEATURES_MAX]
    if not names:
        return None
    # Both sides may have one name.
    sides = {
        f"{side.name}{mark}": [BASIS_POINTS * side.features[name] for name in names]
        for side, mark in ((first, ""), (second, " " if first.name == second.name else ""))
    }
    panel = _by_feature(names, sides, is_grouped=True)
    return Chart("", "What each feature added to both.", [panel])


def _by_age(rows: list[Floats], compared: SideBySide) -> ChartPanel:
    """Return lines of the share in each cell of age; the cells are logarithmic."""
    ages = len(rows[0])
    firsts = np.unique(np.geomspace(1, ages + 1, BINS + 1).astype(np.int64))[:-1] - 1
    cells = [np.add.reduceat(row, firsts) for row in rows]
    places = list(range(len(firsts)))
    lasts = [*(firsts[1:] - 1).tolist(), ages - 1]
    spans = [f"age {first} to {last}" for first, last in zip(firsts.tolist(), lasts, strict=True)]
    ticks = [(float(place), str(firsts[place])) for place in places[:: max(1, len(places) // 10)]]
    sides: tuple[ComparisonSide, ComparisonSide] = (compared.first, compared.second)
    roles: tuple[ChartRole, ChartRole] = ("accent", "muted")
    return ChartPanel(
        [
            LineLayer(side.name, places, rounded(100 * cell), role, 2.0, is_step=True, texts=spans)
            for cell, side, role in zip(cells, sides, roles, strict=True)
        ],
        ChartAxis("age, bars (wider cells further back)", ticks=ticks),
        percent_axis("share in a cell, %"),
        260,
    )


DECISIONS_MIN: Final = 2
"""Fewest decisions from which heads are analysed."""


def read_heads_at(past: Past) -> HeadReport | None:
    """Analyse the heads at the decision; None if the run has too few bars before it."""
    if len(past.read) < past.forecaster.context + DECISIONS_MIN - 1:
        return None
    return heads_of(past.forecaster, past.read, past.sequence, half=past.is_member)


def full_document(
    stored: StoredDecision,
    titled: TitledParts,
    full: Full,
    heads: HeadReport | None,
    compared: SideBySide | None,
) -> TitledParts:
    """Return the output of ``explain --full`` as a document with charts, and with *compared*."""
    parts: list[Part] = [
        Paragraph(full.deletion.sentence, "lead"),
        Paragraph("The decision", "heading"),
        *stored_parts(stored, titled),
        Paragraph("Where it looked", "heading"),
        attention_chart(full),
        Paragraph("What moved it", "heading"),
        attribution_chart(full),
        *full.parts(),
    ]
    if compared:
        parts += [Paragraph("Beside another", "heading"), *compared.parts()]
        parts += filter(None, (age_chart(compared), features_chart(compared)))
    parts.append(Paragraph("Heads", "heading"))
    if heads is None:
        parts.append(
            Paragraph("The run has too few bars before this decision to analyse the heads.", "note")
        )
    else:
        kinds, by_head, flow, *_ = heads.tables()
        alone = replace(kinds, title="")
        parts += [alone, by_head, *head_charts(heads, flow.title)]
    return TitledParts(decision_title(stored), tuple(parts))
