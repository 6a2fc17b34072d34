"""``explain`` as text, JSON or page."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from rich.console import Console

from tracepaper.daemon.commands.options import print_json
from tracepaper.daemon.config.values import ASKS
from tracepaper.daemon.terminal.console import Terminal
from tracepaper.replay.archive.columns import iso
from tracepaper.replay.document.page import (
    Charts,
    Markup,
    element,
    figures,
    html_table,
    joined,
    whole_page,
    write_text,
)
from tracepaper.replay.document.terminal import show
from tracepaper.replay.document.values import Part
from tracepaper.replay.explain.attribution import (
    ALONE,
    ByFeature,
    ByMethod,
    ComparedWith,
    Influence,
    SideBySide,
    Sided,
    TypedMethod,
    as_document,
    by_feature,
    by_model,
    check_asked,
    compare,
    explain_by,
    influence,
    of_rows,
    share_of_rows,
    sided,
)
from tracepaper.replay.explain.auxiliary_heads import decided_map
from tracepaper.replay.explain.decision import (
    StoredDecision,
    flips_of,
    locate,
    read_stored,
    verdict_of,
)
from tracepaper.replay.explain.order_book import BookMap
from tracepaper.replay.explain.picture import draw, map_document, map_parts
from tracepaper.replay.explain.recompute import (
    Floats,
    Full,
    Past,
    explain_fully,
    open_any,
    open_past,
)
from tracepaper.replay.explain.tables import (
    BASIS_POINTS,
    compared_parts,
    feature_parts,
    full_parts,
    in_common,
    influence_parts,
    method_parts,
    stored_parts,
)
from tracepaper.replay.report.charts import (
    ACCENT,
    GAIN,
    INK,
    LOSS,
    MUTED,
    SOFT,
    Figure,
    axis,
    layout,
    line,
    rounded,
)
from tracepaper.replay.report.heads import HeadReport, heads_of
from tracepaper.replay.report.page import head_pictures
from tracepaper.replay.report.trades import listed
from tracepaper.storage.database.reader import Reader
from tracepaper.strategies.api.model import DataSource
from tracepaper.strategies.errors import AttentionInvalid, CheckpointMismatch, DataInvalid
from tracepaper.strategies.extras import require
from tracepaper.strategies.forecasters.attribution import DECISIONS


class Recomputed(NamedTuple):
    """What the model said again: where a network looked, what a tree's or a glm's features added.

    An ensemble says both, and a decision of which nothing was asked again neither. ``by_method``
    is where a network looked by the method that was asked for, ``influence`` where one over several
    assets did, ``books`` where one of order books did.
    """

    full: Full | None = None
    by_feature: ByFeature | None = None
    by_method: ByMethod | None = None
    compared: SideBySide | None = None
    influence: Influence | None = None
    books: BookMap | None = None


def explain_decision(
    decision: str,
    database: Path | None,
    *,
    full: bool,
    png: Path | None,
    as_json: bool,
    page: Path | None = None,
    method: TypedMethod | None = None,
    other: ComparedWith = ALONE,
) -> None:
    """Explain *decision* (``RUN:SEQUENCE``); what was stored is shown even where --full fails.

    *method* is an attribution method beside the stored one, *other* what the decision is compared
    with; a *page* takes all that --full does. Raises ``DataInvalid``, ``AttentionInvalid`` or
    ``CheckpointMismatch`` where what was asked for cannot be had.
    """
    require("matplotlib", "--png", png)
    require("plotly", "--page", page)
    other.check()
    if method:
        check_asked(method)
    path, run_id, sequence = locate(decision, database)
    stored = read_stored(path, run_id, sequence)
    found = Recomputed()
    missing: DataInvalid | CheckpointMismatch | AttentionInvalid | None = None
    if full or method or other or page is not None:
        try:
            found = _recompute(
                path,
                run_id,
                sequence,
                stored,
                full=full or page is not None,
                method=method,
                other=other,
            )
        except (DataInvalid, CheckpointMismatch, AttentionInvalid) as error:
            missing = error
    if as_json:
        print_json(document(stored, found, None if missing is None else str(missing)))
    else:
        show(Terminal(), _parts(stored, found))
    if missing is not None:
        raise missing
    if png is not None:
        draw(path, stored, found.full, png)
        _say(f"The picture is {png}.")
    if page is not None:
        if found.full is None:
            raise DataInvalid(
                "A page shows where a network looked, and this model has no attention; leave "
                "--page out."
            )
        heads = read_heads_at(path, open_past(path, run_id, sequence))
        write_page(page, stored, found.full, heads, found.compared)
        _say(f"The page is {page}.")


def _say(sentence: str) -> None:
    Console(stderr=True, soft_wrap=True).print(sentence, highlight=False, markup=False)


def document(stored: StoredDecision, found: Recomputed, missing: str | None) -> dict[str, Any]:
    """Return everything about one decision as plain values; returns are log returns."""
    flips = asdict(flips_of(stored))
    margins = flips.pop("gates")
    names = ("unit", "words", "margin", "share")
    return {
        "run": {name: stored.run[name] for name in ("run_id", "kind", "strategy", "interval")},
        "decision": stored.decision,
        "notes": {
            row["name"]: row["number"] if row["text"] is None else row["text"]
            for row in stored.notes
        },
        "orders": listed(stored.orders, title="").documents(),
        "gates": [
            {**row, **{name: margin[name] for name in names}}
            for row, margin in zip(stored.gates, margins, strict=True)
        ],
        "flips": flips,
        "buckets": stored.buckets,
        "no_attribution": stored.no_attribution,
        "full": None if found.full is None else asdict(found.full),
        "by_feature": None if found.by_feature is None else asdict(found.by_feature),
        "by_method": None if found.by_method is None else asdict(found.by_method),
        "compared": None if found.compared is None else as_document(found.compared),
        "influence": None if found.influence is None else asdict(found.influence),
        "books": None if found.books is None else map_document(found.books),
        "full_missing": missing,
    }


def _compared(path: Path, run_id: str, sequence: int, against: ComparedWith) -> SideBySide:
    past = open_past(path, run_id, sequence)
    if against.model is not None:
        other, name = by_model(path, past, against.model), against.model
        own = past.forecaster.model_id
    else:
        assert against.decision is not None
        place = locate(against.decision, None if "#" in against.decision else path)
        other, name = open_past(*place), f"decision {place[2]:,}"
        own = f"decision {sequence:,}"
    return compare(sided(past, own), sided(other, name))


def _recompute(
    path: Path,
    run_id: str,
    sequence: int,
    stored: StoredDecision,
    *,
    full: bool,
    method: TypedMethod | None,
    other: ComparedWith,
) -> Recomputed:
    asks = None if other else ASKS.get(stored.run["strategy"])
    if asks is DataSource.CLOSES:
        return Recomputed(influence=influence(path, run_id, sequence, method))
    if asks is DataSource.ORDER_BOOKS and not method:
        return Recomputed(books=decided_map(path, run_id, sequence, stored))
    # On anything but a terminal the status prints nothing.
    with Console(stderr=True).status("Asking the model again; this takes some seconds."):
        chosen = explain_by(open_past(path, run_id, sequence), method) if method else None
        compared = _compared(path, run_id, sequence, other) if other else None
        if not full:
            return Recomputed(by_method=chosen, compared=compared)
        past = open_any(path, run_id, sequence)
        rows = of_rows(past)
        added = None if rows is None else by_feature(rows, share=share_of_rows(past))
        if rows is not None and rows.forecaster is past.forecaster:
            return Recomputed(None, added)
        return Recomputed(explain_fully(open_past(path, run_id, sequence)), added, chosen, compared)


def _parts(stored: StoredDecision, found: Recomputed) -> Iterator[Part]:
    yield from stored_parts(stored)
    if found.full is not None:
        yield from full_parts(found.full)
    if found.by_feature is not None:
        yield from feature_parts(found.by_feature)
    if found.by_method is not None:
        yield from method_parts(found.by_method)
    if found.compared is not None:
        yield from compared_parts(found.compared)
    if found.influence is not None:
        yield from influence_parts(found.influence)
    if found.books is not None:
        yield from map_parts(found.books)


FEATURES_MAX: Final = 15
BINS: Final = 48
"""Cells of age in a comparison, the older the wider."""


def looked_chart(full: Full) -> Figure:
    """Return the close, each past bar's share of the rollout, and what each added to the mean."""
    found, moves = full.attribution, full.moves
    times = list(found.open_time_ms[:-1])
    moved = BASIS_POINTS * np.array(moves.by_bar[:-1])
    return {
        "data": [
            line(times, list(found.close[:-1]), "close", {"color": INK, "width": 1.2}, yaxis="y3"),
            line(
                times, 100 * np.array(found.weights[:-1]), "attention",
                {"color": ACCENT, "width": 1}, yaxis="y2", fill="tozeroy", fillcolor=SOFT,
                hovertemplate="%{y:.3f} %",
            ),
            {
                "type": "bar", "x": times, "y": rounded(moved, 4), "name": "added", "yaxis": "y",
                "marker": {"color": [GAIN if each > 0 else LOSS for each in moved]},
                "hovertemplate": "%{y:+.4f} bp",
            },
        ],
        "layout": layout(
            520, showlegend=False, bargap=0,
            xaxis=axis(type="date", anchor="y", showgrid=False),
            yaxis=axis("added, bp", domain=[0.0, 0.24]),
            yaxis2=axis("attention, %", domain=[0.32, 0.60], rangemode="tozero"),
            yaxis3=axis("close", domain=[0.68, 1.0]),
        ),
    }  # fmt: skip


def attribution_chart(full: Full) -> Figure:
    """Return a bar a feature: what its values at the decided bar and before added to the mean."""
    features = full.moves.features[:FEATURES_MAX][::-1]
    names = [each.feature for each in features]
    own = [BASIS_POINTS * each.decided_bar for each in features]
    past = [BASIS_POINTS * (each.all_bars - each.decided_bar) for each in features]
    shown = {"type": "bar", "orientation": "h", "y": names, "hovertemplate": "%{y}: %{x:+.3f} bp"}
    parts = ((own, "at the decided bar", ACCENT), (past, "at all bars before", MUTED))
    return {
        "data": [
            {**shown, "x": rounded(values, 4), "name": name, "marker": {"color": colour}}
            for values, name, colour in parts
        ],
        "layout": layout(
            90 + 22 * len(names), barmode="relative", bargap=0.35, hovermode="closest",
            xaxis=axis("added to the expected return, bp", zeroline=True, zerolinecolor=MUTED),
            yaxis=axis(automargin=True, showgrid=False),
        ),
    }  # fmt: skip


def age_chart(found: SideBySide) -> Figure:
    """Draw the rollout of both by age."""
    ages = max(len(found.first.weights), len(found.second.weights))
    return _by_age([side.by_age(ages) for side in (found.first, found.second)], found)


def layer_chart(found: SideBySide, layer: int) -> Figure:
    """Draw the mean attention of the heads of *layer* of both by age; 0 is the lowest."""
    rows = [side.layers[layer].mean(axis=0) for side in (found.first, found.second)]
    ages = max(map(len, rows))
    return _by_age([np.pad(row, (0, ages - len(row))) for row in rows], found, height=200)


def features_chart(found: SideBySide) -> Figure | None:
    """Draw each feature's contribution to both; None where they have none in common."""
    sides = (found.first, found.second)
    names = [name for name in found.first.features if name in found.second.features]
    names.sort(key=lambda name: max(abs(side.features[name]) for side in sides))
    names = names[-FEATURES_MAX:]
    if not names:
        return None
    return {
        "data": [
            {
                "type": "bar", "orientation": "h", "y": names, "name": side.name,
                "x": rounded([BASIS_POINTS * side.features[name] for name in names], 4),
                "marker": {"color": colour}, "hovertemplate": "%{y}: %{x:+.3f} bp",
            }
            for side, colour in zip(sides, (ACCENT, MUTED), strict=True)
        ],
        "layout": layout(
            90 + 26 * len(names), barmode="group", bargap=0.3, hovermode="closest",
            xaxis=axis("added to the expected return, bp", zeroline=True, zerolinecolor=MUTED),
            yaxis=axis(automargin=True, showgrid=False),
        ),
    }  # fmt: skip


def _by_age(rows: list[Floats], found: SideBySide, *, height: int = 300) -> Figure:
    """Return lines of the share in each cell of age, the cells logarithmic."""
    ages = len(rows[0])
    firsts = np.unique(np.geomspace(1, ages + 1, BINS + 1).astype(np.int64))[:-1] - 1
    cells = [np.add.reduceat(row, firsts) for row in rows]
    places = list(range(len(firsts)))
    lasts = [*(firsts[1:] - 1).tolist(), ages - 1]
    spans = [f"age {first} to {last}" for first, last in zip(firsts.tolist(), lasts, strict=True)]
    ticks = places[:: max(1, len(places) // 10)]
    styles = ({"color": ACCENT, "width": 2}, {"color": MUTED, "width": 2})
    sides: tuple[Sided, Sided] = (found.first, found.second)
    return {
        "data": [
            line(
                places, 100 * cell, side.name, {**style, "shape": "hvh"}, text=spans,
                hovertemplate="%{text}: %{y:.2f} %",
            )
            for cell, side, style in zip(cells, sides, styles, strict=True)
        ],
        "layout": layout(
            height,
            xaxis=axis(
                "age, bars (wider cells further back)", showgrid=False, tickvals=ticks,
                ticktext=[str(firsts[tick]) for tick in ticks],
            ),
            yaxis=axis("share in a cell, %", rangemode="tozero"),
        ),
    }  # fmt: skip


FEWEST: Final = 2
"""Decisions that heads are read from at least."""


def read_heads_at(database: Path, past: Past) -> HeadReport | None:
    """Analyse the heads at the decision; None where the run has too few bars before it."""
    wanted = past.forecaster.context + DECISIONS - 1
    with Reader.open(database) as reader:
        bars = reader.bars(past.run.run_id, past.decided.instrument, wanted, until=past.sequence)
    if len(bars) < past.forecaster.context + FEWEST - 1:
        return None
    return heads_of(past.forecaster, bars, past.sequence, half=past.is_half)


def write_page(
    path: Path,
    stored: StoredDecision,
    full: Full,
    heads: HeadReport | None,
    compared: SideBySide | None,
) -> None:
    """Write the page of one decision to *path*, beside another where *compared* is given.

    Raises ``ConfigInvalid`` where plotly is missing or *path* cannot be written.
    """
    charts = Charts()
    decision, again, found, moves = stored.decision, full.agreement, full.attribution, full.moves
    verdict, _ = verdict_of(decision)
    lead = (
        f"Decision {decision['sequence']} of run {stored.run['run_id']}: {decision['action']}, "
        f"{verdict}. Model {decision['model_id']} expected "
        f"{BASIS_POINTS * again.recomputed.mean_return:+.2f} bp over {again.horizon} bars, up less "
        f"down {again.recomputed.lean:+.3f}."
    )
    looked = charts.put(
        looked_chart(full),
        f"Each past bar's share of the rollout, and what it added to the mean. The decided bar "
        f"itself, not drawn, holds {found.weights[-1]:.1%} and added "
        f"{BASIS_POINTS * moves.by_bar[-1]:+.2f} bp. Where attention "
        "flowed is not why. Times are UTC.",
    )
    moved = charts.put(
        attribution_chart(full),
        f"Integrated gradients from rows that say nothing "
        f"({BASIS_POINTS * moves.neutral:+.2f} bp) to these ({BASIS_POINTS * moves.forecast:+.2f} "
        f"bp): the largest features of {len(moves.features)}.",
    )
    sections = {"Where it looked": looked, "What moved it": moved}
    if compared:
        sections["Beside another"] = _beside(compared, charts)
    sections["Heads"] = _heads(heads, charts)
    title = f"{decision['instrument']} at {iso(decision['open_time_ms'])}"
    heading = joined([element("h1", title), element("p", lead, class_="lead")])
    content = [element("section", element("h2", name), of) for name, of in sections.items()]
    write_text(whole_page(title, heading, content, charts), path)


def _beside(found: SideBySide, charts: Charts) -> Markup:
    sides = (found.first, found.second)
    rows = [
        (
            side.name,
            side.model_id,
            iso(side.open_time_ms),
            f"{BASIS_POINTS * side.mean_return:+.2f} bp over {side.horizon} bars",
            f"{side.lean:+.3f}",
        )
        for side in sides
    ]
    layers = range(len(found.common_by_layer))
    return joined(
        [
            html_table(
                ("", "model", "decided bar", "expected", "up less down"), rows, texts=(0, 1, 2)
            ),
            element("p", in_common(found), class_="note"),
            charts.put(age_chart(found), "The rollout of both by age, the decided bar at 0."),
            charts.put(features_chart(found), "What each feature added to both."),
            *(
                charts.put(
                    layer_chart(found, layer),
                    f"Layer {layer + 1}: the mean of its heads from the decided bar; they have "
                    f"{found.common_by_layer[layer]:.0%} in common.",
                )
                for layer in layers
            ),
        ]
    )


def _heads(found: HeadReport | None, charts: Charts) -> Markup:
    if found is None:
        return element("p", "The run has too few bars before it to read its heads.", class_="note")
    kinds, looks, flow, *_ = found.tables()
    pictures = head_pictures(found, charts, flow.title)
    return joined([figures(kinds), charts.parts([looks]), pictures])
